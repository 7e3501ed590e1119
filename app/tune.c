/* See tune.h. */
#include "app/tune.h"

#include "app/run_folder.h"
#include "app/signals.h"
#include "core/clock.h"
#include "core/hash.h"
#include "core/log.h"
#include "kernels/device.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TUNE_FORMAT = 1 };

/* --- what travels in a checkpoint
 * ------------------------------------------------------------------------------------------------
 */

static json_t *state_json(const struct sft_state *s)
{
    return json_pack("{s:I, s:I, s:I, s:f, s:I, s:I, s:I, s:I}", "update", (json_int_t)s->update,
                     "position", (json_int_t)s->position, "tokens", (json_int_t)s->tokens,
                     "tail_loss", s->tail_loss, "tail_updates", (json_int_t)s->tail_updates,
                     "optimizer_step", (json_int_t)s->optimizer_step, "skipped",
                     (json_int_t)s->skipped, "skipped_run", (json_int_t)s->skipped_run);
}

static bool read_state(json_t *json, struct sft_state *s)
{
    json_int_t v[7];
    if (json_unpack(json, "{s:I, s:I, s:I, s:F, s:I, s:I, s:I, s:I}", "update", &v[0], "position",
                    &v[1], "tokens", &v[2], "tail_loss", &s->tail_loss, "tail_updates", &v[3],
                    "optimizer_step", &v[4], "skipped", &v[5], "skipped_run", &v[6]) != 0) {
        return false;
    }
    s->update = v[0];
    s->position = (uint64_t)v[1];
    s->tokens = (uint64_t)v[2];
    s->tail_updates = v[3];
    s->optimizer_step = v[4];
    s->skipped = v[5];
    s->skipped_run = v[6];
    return true;
}

static char *record_text(const struct tune *t, const struct sft_point *point)
{
    json_t *record = json_pack(
        "{s:i, s:b, s:o, s:I, s:I, s:I, s:O}", "format", TUNE_FORMAT, "in_job", !point->finished,
        "sft", state_json(&point->state), "job_step", (json_int_t)t->job_step, "job_tokens",
        (json_int_t)t->job_tokens, "skipped", (json_int_t)t->skipped, "note", t->note);
    char *text = record != NULL ? json_dumps(record, JSON_COMPACT) : NULL;
    json_decref(record);
    return text;
}

static rl_status read_record(struct tune *t, const char *path, const struct checkpoint_state *state)
{
    json_t *note = NULL;
    json_t *sft = NULL;
    int format = 0;
    int in_job = 0;
    json_int_t v[3] = {0};
    json_t *record = json_loadb(state->learner, state->learner_bytes, 0, NULL);
    bool sound = json_unpack(record, "{s:i, s:b, s:o, s:I, s:I, s:I, s:o}", "format", &format,
                             "in_job", &in_job, "sft", &sft, "job_step", &v[0], "job_tokens", &v[1],
                             "skipped", &v[2], "note", &note) == 0 &&
                 format == TUNE_FORMAT && json_is_object(note) && read_state(sft, &t->sft);
    if (!sound) {
        json_decref(record);
        return rl_fail(RL_CORRUPT,
                       "%s is not a checkpoint of this command: choose another run.name", path);
    }
    json_decref(t->note);
    t->note = json_incref(note);
    t->in_job = in_job != 0;
    t->step = state->step;
    t->job_step = (uint64_t)v[0];
    t->job_tokens = (uint64_t)v[1];
    t->skipped = v[2];
    if (!t->in_job) { /* the next job begins where this one ended */
        t->job_step = t->step;
        t->job_tokens += t->sft.tokens;
        t->skipped += t->sft.skipped;
        t->sft = (struct sft_state){0};
    }
    json_decref(record);
    return RL_OK;
}

/* --- opening
 * -------------------------------------------------------------------------------------------- */

static rl_status alloc_slab(int64_t count, const char *what, float **out)
{
    void *memory = NULL;
    RL_TRY(device_alloc((size_t)count * sizeof(float), what, &memory));
    *out = memory;
    return RL_OK;
}

static rl_status load_checkpoint(struct tune *t, const char *path)
{
    struct checkpoint_state state = {0};
    struct checkpoint_moments *moments = &t->moments;
    int64_t count = t->session->layout->master_count;
    optimizer_own_share(t->config, t->team->collective, count, &moments->first, &moments->count);
    RL_TRY(alloc_slab(count, "master weights", &t->master));
    RL_TRY(alloc_slab(moments->count, "moments", &moments->m));
    RL_TRY(alloc_slab(moments->count, "moments", &moments->v));
    RL_TRY(checkpoint_load(path, t->session->layout, t->master, moments, &state));
    rl_status status = read_record(t, path, &state);
    if (status == RL_OK && state.seed != (uint64_t)t->config->run.seed) {
        status = rl_fail(RL_INVALID, "run.seed is %lld, the checkpoint was made with %llu",
                         (long long)t->config->run.seed, (unsigned long long)state.seed);
    }
    if (status == RL_OK) {
        t->resumed = true;
        rl_log(RL_LOG_INFO, "resumed from %s", path);
    }
    checkpoint_state_fini(&state);
    return status;
}

/* Rank 0 looks, so that all ranks take the same checkpoint. path "": there is none. */
static rl_status find_checkpoint(const struct tune *t, char path[CHECKPOINT_PATH_MAX])
{
    memset(path, 0, CHECKPOINT_PATH_MAX);
    if (t->leader) {
        RL_TRY(run_folder_checkpoint(t->config, t->dir, path));
    }
    return collective_broadcast(t->team->collective, path, CHECKPOINT_PATH_MAX, 0);
}

static rl_status start_writer(struct tune *t)
{
    t->target = (struct checkpoint_target){.run_dir = t->dir,
                                           .layout = t->session->layout,
                                           .tokenizer = t->session->tokenizer,
                                           .keep_last = t->config->checkpoint.keep_last,
                                           .keep_every = t->config->checkpoint.keep_every};
    return checkpoint_writer_start(&t->target, checkpoint_writer_reserve(), &t->writer);
}

static rl_status open_metrics(struct tune *t)
{
    char path[CHECKPOINT_PATH_MAX + 32];
    int64_t skipped = t->skipped + t->sft.skipped;
    if (!t->leader) {
        return RL_OK;
    }
    RL_TRY(rl_metrics_create(&t->metrics));
    snprintf(path, sizeof(path), "%s/metrics.jsonl", t->dir);
    RL_TRY(rl_metrics_open(t->metrics, path, t->step > 0 ? (int64_t)t->step : -1));
    rl_metrics_restore_counter(t->metrics, RL_METRIC_NUM_TOKENS,
                               (double)(t->job_tokens + t->sft.tokens));
    rl_metrics_restore_counter(t->metrics, RL_METRIC_SKIPPED_UPDATES, (double)skipped);
    rl_metrics_restore_counter(t->metrics, RL_METRIC_UPDATES, (double)t->step - (double)skipped);
    RL_TRY(start_writer(t));
    return run_folder_write_config(t->config, t->dir);
}

rl_status tune_open(const struct rl_config *config, const struct session *session,
                    const struct rank_team *team, struct tune *tune)
{
    char path[CHECKPOINT_PATH_MAX];
    *tune = (struct tune){.config = config,
                          .session = session,
                          .team = team,
                          .leader = team->collective->rank == 0,
                          .note = json_object()};
    if (tune->note == NULL) {
        return rl_fail(RL_NO_MEMORY, "%s: out of memory", config->run.name);
    }
    RL_TRY(run_folder_open(config, team->collective->rank, tune->dir));
    RL_TRY(find_checkpoint(tune, path));
    if (path[0] != '\0') {
        RL_TRY(load_checkpoint(tune, path));
    }
    return open_metrics(tune);
}

void tune_close(struct tune *tune)
{
    checkpoint_writer_stop(tune->writer);
    rl_metrics_destroy(tune->metrics);
    device_free(tune->moments.v);
    device_free(tune->moments.m);
    device_free(tune->master);
    json_decref(tune->note);
    rl_log_close_file();
    *tune = (struct tune){0};
}

float *tune_take_master(struct tune *tune)
{
    float *master = tune->master;
    tune->master = NULL;
    return master;
}

void tune_checkpoint_name(const struct tune *tune, char out[64])
{
    snprintf(out, 64, "checkpoints/step_%06" PRIu64, tune->step);
}

/* --- a job
 * ---------------------------------------------------------------------------------------------- */

/* Handed to the writer; it is on the disk when the job ends. */
static rl_status save_on_leader(struct tune *t, const struct sft_point *point)
{
    struct checkpoint_slabs slabs = {.master = point->master,
                                     .adam_m = point->adam_m,
                                     .adam_v = point->adam_v,
                                     .shared = point->shared};
    struct checkpoint_state state = {.step = t->step,
                                     .version = t->step,
                                     .updates = (uint64_t)point->state.optimizer_step,
                                     .seed = (uint64_t)t->config->run.seed,
                                     .tokens_trained = t->job_tokens + point->state.tokens};
    char *text = record_text(t, point);
    if (text == NULL) {
        return rl_fail(RL_NO_MEMORY, "checkpoint: out of memory");
    }
    state.learner = text;
    state.learner_bytes = strlen(text);
    rl_status status = checkpoint_writer_submit(t->writer, &state, &slabs);
    free(text);
    return status;
}

/* Where moments are shared out, the leader has them from the others meanwhile. */
static rl_status save_together(struct tune *t, const struct sft_point *point)
{
    rl_status mine = RL_OK;
    if (t->leader) {
        mine = save_on_leader(t, point);
    } else if (point->shared != NULL) {
        return optimizer_serve(point->shared);
    }
    if (point->shared != NULL) {
        rl_status end = optimizer_fetch_end(point->shared);
        mine = mine != RL_OK ? mine : end;
    }
    return mine;
}

static rl_status save(void *arg, const struct sft_point *point)
{
    struct tune *t = arg;
    rl_status worst = RL_OK;
    if (point->finished && t->job->finish != NULL) {
        const struct sft_state *s = &point->state;
        t->job->finish(t->job->arg,
                       s->tail_updates > 0 ? s->tail_loss / (double)s->tail_updates : 0, s->update);
    }
    t->step = t->job_step + (uint64_t)point->state.update;
    rl_status mine = save_together(t, point);
    RL_TRY(collective_agree(t->team->collective, mine, &worst));
    if (worst == RL_OK && point->finished) {
        t->job_step = t->step;
        t->job_tokens += point->state.tokens;
        t->skipped += point->state.skipped;
    }
    return worst;
}

static void add_metrics(struct tune *t, const struct sft_progress *p)
{
    struct rl_metrics *m = t->metrics;
    double busy_s = p->busy_s - t->last_busy_s;
    rl_metrics_add(m, RL_METRIC_LOSS, p->loss);
    rl_metrics_add(m, RL_METRIC_ENTROPY, p->entropy);
    rl_metrics_add(m, RL_METRIC_GRAD_NORM, p->grad_norm);
    rl_metrics_add(m, RL_METRIC_LEARNING_RATE, p->learning_rate);
    rl_metrics_add(m, RL_METRIC_UPDATES, p->skipped ? 0 : 1);
    rl_metrics_add(m, RL_METRIC_SKIPPED_UPDATES, p->skipped ? 1 : 0);
    rl_metrics_add(m, RL_METRIC_NUM_TOKENS, (double)p->update_tokens);
    rl_metrics_add(m, RL_METRIC_STEP_TIME, p->elapsed_s - t->last_elapsed_s);
    rl_metrics_add(m, RL_METRIC_LEARNER_TOKENS_PER_SECOND,
                   (double)p->update_tokens / (busy_s > 0 ? busy_s : 1e-9));
    rl_metrics_add(m, RL_METRIC_CPU_TIME, rl_clock_process_cpu_s());
    rl_metrics_set_waits(m, t->team->waits);
    if (p->update == 1 && t->job->describe != NULL) {
        t->job->describe(t->job->arg, m);
    }
}

static bool watch(void *arg, const struct sft_progress *p)
{
    struct tune *t = arg;
    char note[64];
    if (t->leader) {
        add_metrics(t, p);
        t->status = rl_metrics_write(t->metrics, (int64_t)t->job_step + p->update);
        snprintf(note, sizeof(note), "loss %.4f", p->loss);
        progress_bar_update(&t->bar, (double)p->update, note);
    }
    t->busy_s += p->busy_s - t->last_busy_s;
    t->busy_tokens += p->update_tokens;
    t->last_busy_s = p->busy_s;
    t->last_elapsed_s = p->elapsed_s;
    return signals_stop_requested() == 0 && t->status == RL_OK;
}

/* As many as sft_run plans its learning rate for. */
static double expected_updates(const struct tune *t, const struct tune_job *job)
{
    double tokens = 0;
    for (uint64_t i = 0; i < job->example_count; i++) {
        tokens += job->examples[i].count - 1;
    }
    tokens *= t->config->sft.epochs / (double)t->config->sft.batch_tokens;
    return tokens > 1 ? ceil(tokens) : 1;
}

rl_status tune_job(struct tune *tune, const struct tune_job *job, double *loss)
{
    struct tune *t = tune;
    struct sft_resume resume = {t->sft, t->moments.m, t->moments.v};
    struct sft_args args = {.config = t->config,
                            .layout = t->session->layout,
                            .kernels = t->session->kernels,
                            .pool = t->session->pool,
                            .collective = t->team->collective,
                            .examples = job->examples,
                            .example_count = job->example_count,
                            .stream = job->number,
                            .objective = job->objective,
                            .inv_temperature = job->inv_temperature,
                            .master = job->master,
                            .resume = t->in_job ? &resume : NULL,
                            .progress = watch,
                            .progress_arg = t,
                            .save = save,
                            .save_arg = t,
                            .save_every = t->config->checkpoint.every};
    t->job = job;
    t->last_busy_s = t->last_elapsed_s = 0;
    if (t->leader) {
        t->bar = progress_bar_start(stderr, job->label, "updates", expected_updates(t, job));
    }
    double start = rl_clock_now_s(NULL);
    rl_status status = sft_run(&args, loss);
    rl_status saved = t->leader ? checkpoint_writer_wait(t->writer, 0) : RL_OK;
    t->wall_s += rl_clock_now_s(NULL) - start;
    if (t->leader) {
        progress_bar_finish(&t->bar);
    }
    t->in_job = false;
    status = t->status != RL_OK ? t->status : status;
    return saved != RL_OK ? saved : status;
}

rl_status tune_check_examples(struct tune *tune, const struct sft_example *examples, uint64_t count)
{
    uint64_t hash = 0;
    char text[32];
    for (uint64_t i = 0; i < count; i++) {
        const struct sft_example *e = &examples[i];
        hash = rl_hash_seeded(e->tokens, e->count * sizeof(*e->tokens), hash);
        hash = rl_hash_seeded(&e->prompt_count, sizeof(e->prompt_count), hash);
        hash = rl_hash_seeded(&e->weight, sizeof(e->weight), hash);
    }
    snprintf(text, sizeof(text), "%016" PRIx64, hash);
    const char *known = json_string_value(json_object_get(tune->note, "examples"));
    if (tune->in_job && known != NULL && strcmp(known, text) != 0) {
        return rl_fail(RL_INVALID,
                       "%s: its checkpoint stands inside of training on other samples than these "
                       "options select: choose another run.name, or the options of before",
                       tune->dir);
    }
    return json_object_set_new(tune->note, "examples", json_string(text)) == 0
               ? RL_OK
               : rl_fail(RL_NO_MEMORY, "%s: out of memory", tune->dir);
}
