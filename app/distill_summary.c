/* RUN/summary.json of a distillation. Figures that depend on time or on who else was at work stand
 * under wall_seconds, cpu_seconds, rates and corpus; the others are the same in every run. */
#include "app/distill.h"
#include "app/summary.h"

#include "core/clock.h"
#include "core/log.h"

#include <stdio.h>
#include <stdlib.h>

/* Samples of the run's corpora, and how many of them it made itself. */
struct corpus_use {
    const char *key; /* the last round's; borrowed */
    uint64_t samples, made;
};

static rl_status add_corpus(const struct distill *d, const char *folder, const json_t *entry,
                            struct corpus_use *use)
{
    uint64_t made = 0;
    const struct rl_config *config = d->config;
    struct corpus_name name = {.folder = folder,
                               .key = json_string_value(json_object_get(entry, "corpus")),
                               .prompt_count =
                                   (uint64_t)json_integer_value(json_object_get(entry, "prompts"))};
    int64_t samples = config->distill.corpus_samples > 0 ? config->distill.corpus_samples
                                                         : config->distill.samples;
    if (name.key == NULL) { /* stopped before its corpus was complete */
        return RL_OK;
    }
    RL_TRY(corpus_made_by(&name, d->tune.dir, &made));
    use->key = name.key;
    use->samples += name.prompt_count * (uint64_t)samples;
    use->made += made;
    return RL_OK;
}

static rl_status count_corpora(const struct distill *d, struct corpus_use *use)
{
    char *folder = NULL;
    json_t *round = NULL;
    size_t i = 0;
    RL_TRY(corpus_folder(d->config, &folder));
    rl_status status = RL_OK;
    json_array_foreach(json_object_get(d->tune.note, "rounds"), i, round)
    {
        const json_t *retry = json_object_get(round, "retry");
        if (status == RL_OK && retry != NULL) {
            status = add_corpus(d, folder, retry, use);
        }
        if (status == RL_OK) {
            status = add_corpus(d, folder, round, use);
        }
    }
    free(folder);
    return status;
}

static double ratio(double a, double b)
{
    return b > 0 ? a / b : 0;
}

/* Rates of this process (training: of all ranks together), 0 where it had nothing to do. */
static json_t *rates_json(const struct distill *d)
{
    const struct corpus_work *w = &d->work;
    const struct tune *t = &d->tune;
    double tokens = (double)w->tokens;
    double trained = (double)t->busy_tokens;
    double places = (double)w->passes * (double)d->config->rollout.max_running;
    return json_pack("{s:f, s:f, s:f, s:f, s:f}", "engine_fill", ratio(tokens, places),
                     "sampling_tokens_per_second", ratio(tokens, w->wall_s),
                     "engine_tokens_per_second", ratio(tokens, w->busy_s),
                     "training_tokens_per_second", ratio(trained, t->wall_s),
                     "learner_tokens_per_second", ratio(trained, t->busy_s));
}

static json_t *summary_json(const struct distill *d, const struct corpus_use *use, bool completed)
{
    char checkpoint[64];
    tune_checkpoint_name(&d->tune, checkpoint);
    return json_pack(
        "{s:s, s:b, s:O, s:I, s:I, s:I, s:s, s:{s:s, s:I, s:I, s:I}, s:{s:f, s:f}, s:{s:f}, s:o}",
        "command", "distill", "completed", completed, "rounds",
        json_object_get(d->tune.note, "rounds"), "updates", (json_int_t)d->tune.step,
        "tokens_trained", (json_int_t)d->tune.job_tokens, "skipped_updates",
        (json_int_t)d->tune.skipped, "checkpoint", d->tune.step > 0 ? checkpoint : "", "corpus",
        "key", use->key != NULL ? use->key : "", "samples", (json_int_t)use->samples, "generated",
        (json_int_t)use->made, "served", (json_int_t)(use->samples - use->made), "wall_seconds",
        "sampling", d->work.wall_s, "training", d->tune.wall_s, "cpu_seconds", "distill",
        rl_clock_process_cpu_s(), "rates", rates_json(d));
}

rl_status distill_summarize(struct distill *d, bool completed)
{
    char path[CHECKPOINT_PATH_MAX + 32];
    struct corpus_use use = {0};
    if (d->tune.note == NULL) { /* stopped before the run was open */
        return RL_OK;
    }
    RL_TRY(count_corpora(d, &use));
    snprintf(path, sizeof(path), "%s/summary.json", d->tune.dir);
    json_t *summary = summary_json(d, &use, completed);
    if (summary == NULL) {
        return rl_fail(RL_NO_MEMORY, "%s: out of memory", path);
    }
    rl_status status = summary_merge(path, summary);
    json_decref(summary);
    return status;
}
