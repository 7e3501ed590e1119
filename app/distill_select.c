/* From samples to examples: texts for the selection, advantages, figures of the round. */
#include "app/distill.h"

#include "app/sample_set.h"
#include "core/log.h"
#include "core/text.h"
#include "rewards/text_pattern.h"
#include "trainer/advantage.h"

#include <stdlib.h>
#include <string.h>

enum { PATH_LIMIT_BYTES = 1 << 20, KEPT_TEXT_BYTES = 512 };

/* All samples of all prompts as the selection sees them. */
struct candidates {
    struct selection_sample *samples; /* [count] */
    enum selection_verdict *verdict;
    float *weight, *advantage;
    size_t count;
    struct selection_counts counts;
    struct text_pattern *pattern; /* NULL: none */
};

static void candidates_fini(struct candidates *c)
{
    for (size_t i = 0; c->samples != NULL && i < c->count; i++) {
        free((char *)(uintptr_t)c->samples[i].text);
        free((char *)(uintptr_t)c->samples[i].path);
    }
    free(c->samples);
    free(c->verdict);
    free(c->weight);
    free(c->advantage);
    text_pattern_destroy(c->pattern);
}

static rl_status candidates_init(const struct distill *d, const struct corpus_samples *from,
                                 struct candidates *c)
{
    const struct rl_config *config = d->config;
    for (uint64_t i = 0; i < from->count; i++) {
        c->count += from->groups[i]->sample_count;
    }
    c->samples = calloc(c->count + 1, sizeof(*c->samples));
    c->verdict = calloc(c->count + 1, sizeof(*c->verdict));
    c->weight = calloc(c->count + 1, sizeof(*c->weight));
    c->advantage = calloc(c->count + 1, sizeof(*c->advantage));
    if (!c->samples || !c->verdict || !c->weight || !c->advantage) {
        return rl_fail(RL_NO_MEMORY, "distill: out of memory for %zu samples", c->count);
    }
    return config->distill.dedupe == CONFIG_DEDUPE_PATTERN
               ? text_pattern_create("distill.dedupe_pattern", config->distill.dedupe_pattern,
                                     &c->pattern)
               : RL_OK;
}

/* What the pattern finds in a completion; NULL if nothing, then the text stands for itself. */
static rl_status find_path(const struct text_pattern *pattern, const char *text, const char **path)
{
    struct rl_text found;
    char *taken = NULL;
    size_t bytes = 0;
    if (pattern == NULL) {
        return RL_OK;
    }
    rl_text_init(&found, PATH_LIMIT_BYTES);
    rl_status status = text_pattern_extract(pattern, text, &found);
    if (status == RL_OK) {
        status = rl_text_take(&found, &taken, &bytes);
        *path = taken;
    } else if (status == RL_NOT_FOUND || status == RL_INVALID || status == RL_TOO_LONG) {
        status = RL_OK; /* matching that passes its limits finds nothing */
    }
    rl_text_fini(&found);
    return status;
}

static rl_status describe_sample(const struct distill *d, const struct candidates *c,
                                 const struct trajectory *from, struct selection_sample *to)
{
    char *text = NULL;
    RL_TRY(sample_set_text(&d->session, from, &text));
    to->text = text;
    to->length = from->completion_count;
    to->truncated = from->finish == RL_FINISH_LENGTH;
    to->valid = from->reward_valid;
    to->reward = from->reward;
    to->accuracy = from->accuracy;
    return find_path(c->pattern, text, &to->path);
}

static rl_status describe_all(const struct distill *d, const struct corpus_samples *from,
                              struct candidates *c)
{
    struct advantage_options options;
    size_t at = 0;
    advantage_options_from_config(d->config, &options);
    if (d->config->distill.weight == CONFIG_WEIGHT_ADVANTAGE) {
        RL_TRY(advantage_of_groups(&options, from->groups, (uint32_t)from->count, NULL,
                                   c->advantage, NULL));
    }
    for (uint64_t g = 0; g < from->count; g++) {
        for (uint32_t i = 0; i < from->groups[g]->sample_count; i++, at++) {
            c->samples[at].prompt = g;
            c->samples[at].advantage = c->advantage[at];
            RL_TRY(describe_sample(d, c, &from->groups[g]->samples[i], &c->samples[at]));
        }
    }
    return RL_OK;
}

/* "120 wrong, 3 duplicate" */
static void counts_text(const struct selection_counts *counts, char *out, size_t bytes)
{
    size_t at = 0;
    out[0] = '\0';
    for (int v = 0; v < SELECTION_VERDICT_COUNT; v++) {
        if (v == SELECTION_KEPT || counts->verdict[v] == 0 || at >= bytes) {
            continue;
        }
        int length = snprintf(out + at, bytes - at, "%s%llu %s", at > 0 ? ", " : "",
                              (unsigned long long)counts->verdict[v],
                              selection_verdict_name((enum selection_verdict)v));
        at += length > 0 ? (size_t)length : 0;
    }
}

static json_t *dropped_json(const struct selection_counts *counts)
{
    json_t *dropped = json_object();
    for (int v = 0; v < SELECTION_VERDICT_COUNT; v++) {
        if (v != SELECTION_KEPT && counts->verdict[v] > 0) {
            json_object_set_new(dropped, selection_verdict_name((enum selection_verdict)v),
                                json_integer((json_int_t)counts->verdict[v]));
        }
    }
    return dropped;
}

static rl_status note_counts(struct distill *d, const struct candidates *c)
{
    char text[KEPT_TEXT_BYTES];
    uint64_t kept = c->counts.verdict[SELECTION_KEPT];
    counts_text(&c->counts, text, sizeof(text));
    if (kept == 0) {
        return rl_fail(RL_INVALID,
                       "distill: nothing was kept in round %llu: of %llu samples %s; see "
                       "distill.select, distill.samples and what drops samples",
                       (unsigned long long)d->round + 1, (unsigned long long)c->counts.samples,
                       text);
    }
    if (d->tune.leader) {
        rl_log(RL_LOG_INFO, "round %llu: %llu of %llu samples kept%s%s",
               (unsigned long long)d->round + 1, (unsigned long long)kept,
               (unsigned long long)c->counts.samples, text[0] != '\0' ? "; " : "", text);
    }
    json_t *part = json_pack("{s:I, s:I, s:o}", "samples", (json_int_t)c->counts.samples, "kept",
                             (json_int_t)kept, "dropped", dropped_json(&c->counts));
    int failed = part == NULL ? -1 : json_object_update(d->figures, part);
    json_decref(part);
    return failed == 0 ? RL_OK : rl_fail(RL_NO_MEMORY, "distill: out of memory");
}

static rl_status make_examples(const struct candidates *c, struct distill_examples *out)
{
    uint64_t kept = c->counts.verdict[SELECTION_KEPT];
    size_t at = 0;
    out->examples = calloc(kept + 1, sizeof(*out->examples));
    if (out->examples == NULL) {
        return rl_fail(RL_NO_MEMORY, "distill: out of memory for %llu examples",
                       (unsigned long long)kept);
    }
    for (uint64_t g = 0; g < out->samples.count; g++) {
        const struct trajectory_group *group = out->samples.groups[g];
        for (uint32_t i = 0; i < group->sample_count; i++, at++) {
            const struct trajectory *sample = &group->samples[i];
            if (c->verdict[at] == SELECTION_KEPT) {
                out->examples[out->count++] =
                    (struct sft_example){.tokens = sample->tokens,
                                         .count = sample->prompt_count + sample->completion_count,
                                         .prompt_count = sample->prompt_count,
                                         .weight = c->weight[at],
                                         .behaviour = sample->logprob};
            }
        }
    }
    return RL_OK;
}

rl_status distill_select(struct distill *d, struct corpus_samples *samples,
                         struct distill_examples *out)
{
    struct distill_examples made = {.samples = *samples};
    struct candidates c = {0};
    struct selection_options options;
    rl_status status = RL_OK;
    *samples = (struct corpus_samples){0};
    selection_options_from_config(d->config, &options);
    RL_TRY_GOTO(candidates_init(d, &made.samples, &c), status, done);
    RL_TRY_GOTO(describe_all(d, &made.samples, &c), status, done);
    RL_TRY_GOTO(selection_run(&options, c.samples, c.count, c.verdict, c.weight, &c.counts), status,
                done);
    RL_TRY_GOTO(note_counts(d, &c), status, done);
    RL_TRY_GOTO(make_examples(&c, &made), status, done);
    *out = made;
    made = (struct distill_examples){0};
done:
    candidates_fini(&c);
    distill_examples_fini(&made);
    return status;
}

void distill_examples_fini(struct distill_examples *examples)
{
    free(examples->examples);
    corpus_samples_fini(&examples->samples);
    *examples = (struct distill_examples){0};
}
