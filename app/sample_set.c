/* See sample_set.h. */
#include "app/sample_set.h"

#include "app/signals.h"
#include "core/clock.h"
#include "core/log.h"
#include "core/text.h"
#include "kernels/device.h"
#include "trainer/progress.h"
#include "transport/wire.h"

#include <stdlib.h>
#include <string.h>

/* Bytes of groups that go over at once. */
enum { SAMPLE_SET_CHUNK_BYTES = 16 << 20 };

struct feed {
    const struct sample_set_args *args;
    struct sampler *sampler;
    struct sample_set *set;
    uint64_t next, step; /* this rank's prompts */
    uint64_t wanted, taken;
};

static rl_status submit_some(struct feed *f)
{
    while (f->next < f->set->count) {
        rl_status status =
            sampler_submit(f->sampler, f->next, f->next, f->args->epoch, f->args->samples);
        if (status == RL_AGAIN) {
            return RL_OK;
        }
        RL_TRY(status);
        f->next += f->step;
    }
    return RL_OK;
}

static rl_status run_all(struct feed *f)
{
    bool shown = f->args->label != NULL;
    struct progress_bar bar =
        progress_bar_start(stderr, f->args->label, "prompts", (double)f->wanted);
    while (f->taken < f->wanted) {
        struct trajectory_group *group = NULL;
        if (signals_stop_requested() != 0) {
            return RL_INTERRUPTED;
        }
        RL_TRY(submit_some(f));
        RL_TRY(sampler_step(f->sampler));
        while (sampler_take(f->sampler, &group) == RL_OK) {
            f->set->groups[group->prompt_id] = group;
            f->taken++;
        }
        if (shown) {
            progress_bar_update(&bar, (double)f->taken, NULL);
        }
    }
    if (shown) {
        progress_bar_finish(&bar);
    }
    return RL_OK;
}

static rl_status generate(const struct sample_set_args *args, const void *image,
                          struct sample_set *set)
{
    struct feed feed = {.args = args, .set = set, .step = 1, .wanted = set->count};
    if (args->collective != NULL) {
        feed.next = (uint64_t)args->collective->rank;
        feed.step = (uint64_t)args->collective->size;
        feed.wanted = (set->count + feed.step - 1 - feed.next) / feed.step;
    }
    struct sampler_args sampler = {.session = args->session,
                                   .config = args->session->config,
                                   .prompts = args->prompts,
                                   .rewards = args->rewards,
                                   .options = args->options};
    double start = rl_clock_now_s(NULL);
    double cpu = rl_clock_process_cpu_s();
    RL_TRY(sampler_create(&sampler, &feed.sampler));
    rl_status status = sampler_load_weights(feed.sampler, (struct device_source){.data = image}, 0);
    if (status == RL_OK) {
        status = run_all(&feed);
    }
    set->sampled_tokens = (double)sampler_counters(feed.sampler)->sampled_tokens;
    set->timeouts = (double)sampler_reward_timeouts(feed.sampler);
    set->busy_s = sampler_busy_s(feed.sampler);
    set->wall_s = rl_clock_now_s(NULL) - start;
    set->cpu_s = rl_clock_process_cpu_s() - cpu;
    sampler_destroy(feed.sampler);
    return status;
}

/* --- from all ranks to rank 0
 * ------------------------------------------------------------------------------------ */

/* Frames of the groups from *next on, each behind its length, until the chunk is full. */
static rl_status pack(const struct sample_set *set, uint64_t step, uint64_t *next,
                      struct rl_text *out)
{
    while (*next < set->count && out->bytes < SAMPLE_SET_CHUNK_BYTES) {
        struct channel_message frame = {0};
        RL_TRY(wire_encode_group(set->groups[*next], &frame));
        uint64_t bytes = frame.bytes;
        rl_status status = rl_text_append(out, (const char *)&bytes, sizeof bytes);
        if (status == RL_OK) {
            status = rl_text_append(out, frame.data, frame.bytes);
        }
        channel_message_fini(&frame);
        RL_TRY(status);
        *next += step;
    }
    return RL_OK;
}

static rl_status unpack(const char *data, uint64_t bytes, struct sample_set *set)
{
    uint64_t at = 0;
    uint64_t frame_bytes = 0;
    while (at < bytes) {
        struct trajectory_group *group = NULL;
        memcpy(&frame_bytes, data + at, sizeof frame_bytes);
        struct channel_message frame = {.kind = WIRE_GROUP,
                                        .bytes = frame_bytes,
                                        .data =
                                            (void *)(uintptr_t)(data + at + sizeof frame_bytes)};
        RL_TRY(wire_decode_group(&frame, &group));
        set->groups[group->prompt_id] = group;
        at += sizeof frame_bytes + frame_bytes;
    }
    return RL_OK;
}

/* One chunk of rank `root`, kept by rank 0; *bytes 0: there are no more. */
static rl_status pass_chunk(struct collective *c, int root, struct rl_text *chunk, uint64_t *bytes,
                            struct sample_set *set)
{
    *bytes = chunk->bytes;
    RL_TRY(collective_broadcast(c, bytes, sizeof *bytes, root));
    char *data = c->rank == root ? chunk->data : malloc(*bytes + 1);
    if (data == NULL) {
        return *bytes == 0 ? RL_OK
                           : rl_fail(RL_NO_MEMORY, "samples of rank %d: out of memory", root);
    }
    rl_status status = *bytes > 0 ? collective_broadcast(c, data, *bytes, root) : RL_OK;
    if (status == RL_OK && c->rank == 0) {
        status = unpack(data, *bytes, set);
    }
    if (c->rank != root) {
        free(data);
    }
    return status;
}

static rl_status pass_groups(struct collective *c, int root, struct sample_set *set)
{
    uint64_t next = (uint64_t)root;
    uint64_t bytes = 0;
    rl_status status = RL_OK;
    do {
        struct rl_text chunk;
        rl_text_init(&chunk, (size_t)1 << 40);
        if (c->rank == root) {
            status = pack(set, (uint64_t)c->size, &next, &chunk);
        }
        if (status == RL_OK) {
            status = pass_chunk(c, root, &chunk, &bytes, set);
        }
        rl_text_fini(&chunk);
    } while (status == RL_OK && bytes > 0);
    return status;
}

static rl_status gather(struct collective *c, rl_status mine, struct sample_set *set)
{
    rl_status worst = RL_OK;
    double sums[] = {set->sampled_tokens, set->timeouts, set->cpu_s};
    if (mine != RL_OK && mine != RL_INTERRUPTED) {
        return mine; /* whoever fails waits for nobody */
    }
    RL_TRY(collective_agree(c, mine, &worst));
    RL_TRY(worst);
    for (int root = 1; root < c->size; root++) {
        RL_TRY(pass_groups(c, root, set));
    }
    RL_TRY(collective_sum_double(c, sums, 3));
    set->sampled_tokens = sums[0];
    set->timeouts = sums[1];
    set->cpu_s = sums[2];
    return RL_OK;
}

/* --- the interface
 * -----------------------------------------------------------------------------------------------
 */

rl_status sample_set_load(const struct session *session, void **image)
{
    return session_load_image(session, session->config->model.path, image);
}

rl_status sample_set_run(const struct sample_set_args *args, const void *image,
                         struct sample_set *out)
{
    struct sample_set set = {.count = prompts_count(args->prompts)};
    rl_status status = RL_OK;
    if (args->limit > 0 && args->limit < set.count) {
        set.count = args->limit;
    }
    set.groups = calloc(set.count, sizeof(*set.groups));
    if (set.groups == NULL) {
        return rl_fail(RL_NO_MEMORY, "%s: out of memory", args->label);
    }
    RL_TRY_GOTO(signals_install(), status, done);
    status = generate(args, image, &set);
    if (args->collective != NULL) {
        status = gather(args->collective, status, &set);
    }
    RL_TRY_GOTO(status, status, done);
    *out = set;
    set = (struct sample_set){0};
done:
    sample_set_fini(&set);
    return status;
}

void sample_set_fini(struct sample_set *set)
{
    for (uint64_t i = 0; set->groups != NULL && i < set->count; i++) {
        trajectory_group_destroy(set->groups[i]);
    }
    free(set->groups);
    *set = (struct sample_set){0};
}

rl_status sample_set_text(const struct session *session, const struct trajectory *sample,
                          char **text)
{
    size_t bytes = 0;
    return tokenizer_decode(session->tokenizer, sample->tokens + sample->prompt_count,
                            sample->completion_count, true, text, &bytes);
}
