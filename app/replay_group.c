/* See replay.h: one group looked into. The versions that produced its tokens are computed again
 * (from the nearest checkpoint before them), then its recorded tokens are fed through the model,
 * each under its own version: what the engine saw, token for token, by the training forward's
 * passes. */
#include "app/replay.h"

#include "core/log.h"
#include "kernels/sampling.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* --- which group, which weights
 * ---------------------------------------------------------------------- */

/* The group's digest in the record of a step, or RL_NOT_FOUND with the tickets that are there. */
static rl_status digest_in(const struct event_step *step, uint64_t ticket, uint64_t *digest)
{
    char there[256] = "";
    for (uint32_t g = 0; g < step->group_count; g++) {
        size_t used = strlen(there);
        if (step->groups[g].ticket == ticket) {
            *digest = step->groups[g].digest;
            return RL_OK;
        }
        snprintf(there + used, sizeof(there) - used, " %" PRIu64, step->groups[g].ticket);
    }
    return rl_fail(RL_NOT_FOUND,
                   "replay: step %" PRIu64 " was not trained on ticket %" PRIu64 ", but on%s",
                   step->step, ticket, there);
}

static rl_status find_digest(const char *run_dir, uint64_t step, uint64_t ticket, uint64_t *digest)
{
    char path[CHECKPOINT_PATH_MAX];
    struct event_file *file = NULL;
    struct event event = {0};
    bool there = false;
    snprintf(path, sizeof(path), "%s/events.bin", run_dir);
    RL_TRY(event_file_open(path, &file));
    rl_status status = RL_OK;
    while (status == RL_OK && !there && (status = event_file_next(file, &event)) == RL_OK) {
        there = event.kind == EVENT_STEP && event.step.step == step;
        if (there) {
            status = digest_in(&event.step, ticket, digest);
        }
        event_fini(&event);
    }
    event_file_close(file);
    return status;
}

static rl_status find_group(struct replay *r, uint64_t step, uint64_t ticket,
                            struct trajectory_group **out)
{
    const struct trajectory_group *kept = NULL;
    uint64_t digest = 0;
    RL_TRY(find_digest(r->options.run_dir, step, ticket, &digest));
    rl_status status = replay_segments_find(&r->segments, step, ticket, &kept);
    if (status == RL_NOT_FOUND) {
        return rl_fail(RL_NOT_FOUND,
                       "replay: no rollout segment of the run holds step %" PRIu64
                       " (rollout.save was false, or they were removed)",
                       step);
    }
    RL_TRY(status);
    if (event_group_digest(kept) != digest) {
        return rl_fail(RL_CORRUPT,
                       "replay: ticket %" PRIu64 " in the rollout segment is not what events.bin "
                       "names",
                       ticket);
    }
    return trajectory_group_copy(kept, out);
}

/* The newest step whose checkpoint is there and whose version is not after `version`; 0: none. */
static uint64_t nearest_checkpoint(const struct replay *r, uint32_t version)
{
    char path[CHECKPOINT_PATH_MAX];
    for (size_t i = r->index.count; i-- > 0;) {
        const struct replay_step *entry = &r->index.steps[i];
        snprintf(path, sizeof(path), "%s/checkpoints/step_%06" PRIu64 "/MANIFEST.json",
                 r->options.run_dir, entry->step);
        if (entry->version <= version && access(path, R_OK) == 0) {
            return entry->step;
        }
    }
    return 0;
}

/* The step after which the weights are `version` for the first time; 0: before all. */
static uint64_t step_of_version(const struct replay *r, uint32_t version)
{
    for (size_t i = 0; i < r->index.count; i++) {
        if (r->index.steps[i].version >= version) {
            return version == 0 ? 0 : r->index.steps[i].step;
        }
    }
    return 0;
}

static rl_status make_weights(struct replay *r, uint32_t oldest, uint32_t newest)
{
    uint64_t last = step_of_version(r, newest);
    r->options.from = nearest_checkpoint(r, oldest);
    r->options.keep = oldest;
    RL_TRY(replay_advance(r, r->options.from));
    rl_status status = r->difference.found ? RL_OK : replay_deltas_apply(r, newest);
    if (status == RL_NOT_FOUND) { /* then they are trained again, if there are any */
        status = last > r->options.from ? replay_advance(r, last) : RL_OK;
    }
    RL_TRY(status);
    if (r->difference.found) {
        return rl_fail(RL_CORRUPT, "replay: the weights cannot be made again: step %" PRIu64 ": %s",
                       r->difference.step, r->difference.what);
    }
    return RL_OK;
}

/* --- passes over one sample
 * -------------------------------------------------------------------------- */

struct passes {
    struct replay *r;
    struct model_workspace *workspace;
    struct model_kv kv;
    int32_t *positions, *pages, *rows; /* [max_tokens] each */
    float *logprob;                    /* [max_tokens] */
    int64_t max_tokens;
    float inv_temperature;
    bool recompute; /* rollout.kv_on_update: a switch computes everything before it again */
};

static rl_status passes_open(struct replay *r, const struct trajectory_group *group,
                             struct passes *p)
{
    struct kernel_sampling sampling = {.temperature = (float)r->config.rollout.temperature};
    *p = (struct passes){.r = r,
                         .recompute = r->config.rollout.kv_on_update == CONFIG_KV_RECOMPUTE,
                         .inv_temperature = kernel_sampling_inverse_temperature(&sampling)};
    for (uint32_t s = 0; s < group->sample_count; s++) {
        int64_t tokens =
            (int64_t)group->samples[s].prompt_count + group->samples[s].completion_count;
        p->max_tokens = tokens > p->max_tokens ? tokens : p->max_tokens;
    }
    size_t count = (size_t)p->max_tokens + 1;
    p->positions = calloc(count, sizeof(*p->positions));
    p->pages = calloc(count, sizeof(*p->pages));
    p->rows = calloc(count, sizeof(*p->rows));
    p->logprob = calloc(count, sizeof(*p->logprob));
    if (p->positions == NULL || p->pages == NULL || p->rows == NULL || p->logprob == NULL) {
        return rl_fail(RL_NO_MEMORY, "replay: out of memory for a sample");
    }
    for (int64_t i = 0; i < p->max_tokens; i++) {
        p->pages[i] = (int32_t)i;
    }
    RL_TRY(model_workspace_create(r->session.layout, p->max_tokens, MODEL_KEEP_NOTHING,
                                  &p->workspace));
    return model_kv_create(r->session.layout,
                           (int32_t)((p->max_tokens + KERNEL_PAGE_TOKENS - 1) / KERNEL_PAGE_TOKENS),
                           &p->kv);
}

static void passes_close(struct passes *p)
{
    model_kv_fini(&p->kv);
    model_workspace_destroy(p->workspace);
    free(p->logprob);
    free(p->rows);
    free(p->pages);
    free(p->positions);
}

/* Log-probs of the completion tokens [first, end), all of one version: the pass is fed what that
 * version was fed, up to the token before the last of them. */
static rl_status pass_run(struct passes *p, const struct trajectory *sample, uint32_t first,
                          uint32_t end)
{
    uint32_t version = sample->version[first];
    const void *image = replay_image(p->r, version);
    int32_t from = first == 0 || p->recompute ? 0 : (int32_t)(sample->prompt_count + first - 1);
    int32_t segment[2] = {0, (int32_t)(sample->prompt_count + end - 1) - from};
    const int32_t *page_table = p->pages;
    struct kernel_segments segments = {1, segment, &from, &page_table, NULL};
    struct model_batch batch = {segment[1], sample->tokens + from, p->positions, &segments};
    const float *hidden = NULL;
    if (image == NULL) {
        return rl_fail(RL_INTERNAL, "replay: version %" PRIu32 " was not kept", version);
    }
    for (int32_t i = 0; i < segment[1]; i++) {
        p->positions[i] = from + i;
    }
    for (uint32_t t = first; t < end; t++) {
        p->rows[t - first] = (int32_t)(sample->prompt_count + t - 1) - from;
    }
    model_forward(&p->r->session.context, image, &p->kv, &batch, p->workspace, &hidden);
    model_head_forward(
        &p->r->session.context, image, p->workspace,
        &(struct model_head_args){p->rows, sample->tokens + sample->prompt_count + first,
                                  end - first, p->inv_temperature, p->logprob, NULL});
    return RL_OK;
}

/* --- comparing and printing
 * -------------------------------------------------------------------------- */

struct sample_report {
    uint64_t different;
    double largest;
    char runs[256]; /* "v3 x 12, v4 x 7" */
};

static void compare_run(const struct passes *p, const struct trajectory *sample, uint32_t first,
                        uint32_t end, struct sample_report *out)
{
    size_t used = strlen(out->runs);
    for (uint32_t t = first; t < end; t++) {
        float made = p->logprob[t - first];
        double gap = fabs((double)made - (double)sample->logprob[t]);
        out->largest = gap > out->largest || isnan(gap) ? gap : out->largest;
        out->different += memcmp(&made, &sample->logprob[t], sizeof(made)) != 0;
    }
    snprintf(out->runs + used, sizeof(out->runs) - used, "%sv%" PRIu32 " x %" PRIu32,
             used > 0 ? ", " : "", sample->version[first], end - first);
}

static rl_status look_at(struct passes *p, const struct trajectory *sample,
                         struct sample_report *out)
{
    uint32_t end = 0;
    *out = (struct sample_report){0};
    for (uint32_t first = 0; first < sample->completion_count; first = end) {
        end = first + 1;
        while (end < sample->completion_count && sample->version[end] == sample->version[first]) {
            end++;
        }
        RL_TRY(pass_run(p, sample, first, end));
        compare_run(p, sample, first, end, out);
    }
    return RL_OK;
}

static rl_status look_at_all(struct passes *p, const struct trajectory_group *group, bool json,
                             struct replay_group_report *out)
{
    if (!json) {
        printf("%6s %7s %10s %14s  %s\n", "sample", "tokens", "different", "max |diff|",
               "versions x tokens");
    }
    for (uint32_t s = 0; s < group->sample_count; s++) {
        struct sample_report one;
        const struct trajectory *sample = &group->samples[s];
        RL_TRY(look_at(p, sample, &one));
        out->tokens += sample->completion_count;
        out->different += one.different;
        out->max_abs_difference = fmax(out->max_abs_difference, one.largest);
        if (!json) {
            printf("%6" PRIu32 " %7" PRIu32 " %10" PRIu64 " %14g  %s\n", s,
                   sample->completion_count, one.different, one.largest, one.runs);
        }
    }
    return RL_OK;
}

static void print_report(const struct replay_group_report *report, bool json)
{
    if (!json) {
        printf("step %" PRIu64 ", ticket %" PRIu64 ", prompt %" PRIu64 ": %" PRIu64
               " tokens of %" PRIu32 " samples by versions %" PRIu32 " to %" PRIu32 ", %" PRIu64
               " log-probs differ, at most by %g\n",
               report->step, report->ticket, report->prompt_id, report->tokens,
               report->sample_count, report->oldest, report->newest, report->different,
               report->max_abs_difference);
        return;
    }
    json_t *line =
        json_pack("{s:I, s:I, s:I, s:I, s:I, s:[I, I], s:I, s:I, s:f}", "step",
                  (json_int_t)report->step, "ticket", (json_int_t)report->ticket, "prompt_id",
                  (json_int_t)report->prompt_id, "samples", (json_int_t)report->sample_count,
                  "tokens", (json_int_t)report->tokens, "versions", (json_int_t)report->oldest,
                  (json_int_t)report->newest, "deltas", (json_int_t)report->deltas, "different",
                  (json_int_t)report->different, "max_abs_difference", report->max_abs_difference);
    json_dumpf(line, stdout, JSON_COMPACT | JSON_PRESERVE_ORDER);
    fputc('\n', stdout);
    json_decref(line);
}

static rl_status look_into(struct replay *r, const struct trajectory_group *group, bool json,
                           struct replay_group_report *out)
{
    struct passes passes = {0};
    trajectory_group_versions(group, &out->oldest, &out->newest);
    RL_TRY(make_weights(r, out->oldest, out->newest));
    out->deltas = r->totals.deltas;
    rl_status status = passes_open(r, group, &passes);
    if (status == RL_OK) {
        status = look_at_all(&passes, group, json, out);
    }
    passes_close(&passes);
    return status;
}

rl_status replay_group(const char *run_dir, uint64_t step, uint64_t ticket, bool json,
                       struct replay_group_report *out)
{
    struct replay r;
    struct replay_options options = {
        .run_dir = run_dir, .until = step, .recorded = true, .quiet = json};
    struct trajectory_group *group = NULL;
    *out = (struct replay_group_report){.step = step, .ticket = ticket};
    rl_status status = replay_open(&options, &r);
    if (status == RL_OK) {
        status = find_group(&r, step, ticket, &group);
    }
    if (status == RL_OK) {
        out->prompt_id = group->prompt_id;
        out->sample_count = group->sample_count;
        status = look_into(&r, group, json, out);
    }
    if (status == RL_OK) {
        print_report(out, json);
    }
    trajectory_group_destroy(group);
    replay_close(&r);
    return status;
}
