/* The generating role of `foresight bench async`: one loop with the real generator, which differs
 * from row to row in when groups enter and how new weights come in. */
#include "app/bench_async.h"

#include "core/log.h"
#include "core/rng.h"
#include "kernels/device.h"

#include <stdlib.h>
#include <string.h>

enum { BENCH_SEED = 5, BENCH_PROMPT_STREAM = 77, BENCH_REWARD_STREAM = 78 };

/* --- life cycle --------------------------------------------------------------------------------
 */

rl_status bench_engine_init(struct bench_engine *engine, const struct bench_workload *workload,
                            const struct bench_rung *rung, struct bench_meeting *meeting)
{
    const struct simulate_options *shape = &workload->shape;
    struct model_context context = {.layout = workload->layout, .kernels = workload->kernels};
    struct rollout_generator_options options = {.max_running = (int32_t)shape->max_running,
                                                .max_groups = (int32_t)shape->max_running + 1,
                                                .max_prompt = (int32_t)shape->prompt_tokens,
                                                .max_completion = (int32_t)shape->length_max,
                                                .prefill_chunk = (int32_t)shape->prefill_chunk,
                                                .seed = BENCH_SEED,
                                                .sampling = {.temperature = 1, .top_p = 1},
                                                .stop_strings = "",
                                                .stop_token_ids = ""};
    *engine = (struct bench_engine){.workload = workload, .rung = rung, .meeting = meeting};
    RL_TRY(rollout_generator_create(&context, NULL, &options, &engine->generator));
    if (rung->mode != SIMULATE_SLOTS) {
        RL_TRY(device_alloc(workload->layout->image_bytes, "engine's weights", &engine->own_image));
    }
    return RL_OK;
}

void bench_engine_fini(struct bench_engine *engine)
{
    rollout_generator_destroy(engine->generator);
    device_free(engine->own_image);
    free(engine->passes);
    free(engine->gap_us);
    *engine = (struct bench_engine){0};
}

/* Room for one more item; `items` may move. */
static rl_status grow(void **items, size_t item_bytes, size_t count, size_t *reserved)
{
    if (count < *reserved) {
        return RL_OK;
    }
    size_t wanted = *reserved > 0 ? 2 * *reserved : 4096;
    void *grown = realloc(*items, wanted * item_bytes);
    if (grown == NULL) {
        return rl_fail(RL_NO_MEMORY, "bench: no memory for %zu measurements", wanted);
    }
    *items = grown;
    *reserved = wanted;
    return RL_OK;
}

/* --- weights -----------------------------------------------------------------------------------
 */

/* The engine's only place for weights is overwritten: it cannot decode meanwhile. */
static rl_status receive(struct bench_engine *e, struct weight_view *view)
{
    struct weight_arena *arena = e->meeting->arena;
    RL_TRY(weight_arena_acquire(arena, 0, view));
    memcpy(e->own_image, view->image, view->bytes);
    weight_arena_release(arena, 0);
    if (model_image_hash(e->workload->layout, e->own_image) != view->hash) {
        return rl_fail(RL_CORRUPT, "bench: version %u arrived damaged", view->version);
    }
    view->image = e->own_image;
    return RL_OK;
}

static rl_status adopt(struct bench_engine *e)
{
    uint32_t newest;
    struct weight_view view;
    if (!weight_arena_latest(e->meeting->arena, &newest) ||
        (e->has_weights && newest == e->version)) {
        return RL_OK;
    }
    bool in_flight = e->rung->mode == SIMULATE_PAUSE || e->rung->mode == SIMULATE_SLOTS;
    if (!in_flight && rollout_generator_groups(e->generator) > 0) {
        e->draining = e->rung->mode == SIMULATE_DRAIN;
        return RL_OK;
    }
    double begin = bench_now_s(e->workload);
    if (e->own_image != NULL) {
        RL_TRY(receive(e, &view));
    } else {
        RL_TRY(weight_arena_acquire(e->meeting->arena, 0, &view));
    }
    rollout_generator_set_weights(e->generator, view.image, view.version);
    double seconds = bench_now_s(e->workload) - begin;
    e->switched = rollout_generator_running(e->generator) > 0;
    e->draining = false;
    if (e->has_weights) {
        e->paused_s += seconds;
        e->transfer_s += seconds;
        e->transfers++;
    }
    e->has_weights = true;
    e->version = view.version;
    return RL_OK;
}

/* --- groups in and out -------------------------------------------------------------------------
 */

/* Groups that may enter now. */
static int32_t room(const struct bench_engine *e)
{
    int32_t samples = (int32_t)e->workload->shape.samples_per_prompt;
    uint64_t finished = rollout_generator_counters(e->generator)->finished_samples;
    int32_t wanted = (int32_t)e->workload->shape.max_running - (int32_t)(e->submitted - finished);
    if (e->rung->mode == SIMULATE_STATIC) {
        return rollout_generator_groups(e->generator) > 0 ? 0 : wanted / samples;
    }
    return wanted > 0 && !e->draining ? (wanted + samples - 1) / samples : 0;
}

static rl_status submit(struct bench_engine *e, const struct dispatcher_ticket *ticket)
{
    const struct simulate_options *shape = &e->workload->shape;
    uint32_t samples = (uint32_t)shape->samples_per_prompt;
    uint32_t count = (uint32_t)shape->prompt_tokens;
    uint64_t vocab = (uint64_t)e->workload->layout->arch.vocab;
    struct rl_rng_key key = rl_rng_key_make(BENCH_SEED, ticket->prompt_id, BENCH_PROMPT_STREAM);
    int32_t *prompt = calloc(count, sizeof *prompt);
    uint32_t *lengths = calloc(samples, sizeof *lengths);
    rl_status status = RL_OK;
    if (prompt == NULL || lengths == NULL) {
        status = rl_fail(RL_NO_MEMORY, "bench: no memory for a request");
        goto done;
    }
    for (uint32_t i = 0; i < count; i++) {
        prompt[i] = (int32_t)rl_rng_below(key, i, vocab);
    }
    for (uint32_t i = 0; i < samples; i++) {
        lengths[i] = simulate_length(shape, ticket->prompt_id, i);
    }
    struct rollout_request request = {.ticket = ticket->number,
                                      .prompt_id = ticket->prompt_id,
                                      .epoch = ticket->epoch,
                                      .samples = samples,
                                      .prompt = prompt,
                                      .prompt_count = count,
                                      .lengths = lengths};
    status = rollout_generator_submit(e->generator, &request);
    e->submitted += samples;
done:
    free(lengths);
    free(prompt);
    return status;
}

static rl_status intake(struct bench_engine *e)
{
    struct bench_meeting *m = e->meeting;
    while (room(e) > 0) {
        struct dispatcher_ticket ticket;
        pthread_mutex_lock(&m->mutex);
        bool early = !e->rung->ahead && dispatcher_version(m->dispatcher) != e->version;
        rl_status status =
            early ? RL_AGAIN : dispatcher_issue(m->dispatcher, 0, UINT32_MAX, &ticket);
        pthread_mutex_unlock(&m->mutex);
        if (status == RL_AGAIN) {
            return RL_OK;
        }
        RL_TRY(status);
        RL_TRY(submit(e, &ticket));
    }
    return RL_OK;
}

/* A coin for each sample, so that every group teaches something. */
static void reward(struct trajectory_group *group)
{
    for (uint32_t i = 0; i < group->sample_count; i++) {
        struct trajectory *sample = &group->samples[i];
        struct rl_rng_key key = rl_rng_key_make(BENCH_SEED, group->prompt_id, BENCH_REWARD_STREAM);
        sample->reward_valid = true;
        sample->reward = (float)rl_rng_below(key, i, 2);
        sample->accuracy = sample->reward;
    }
}

static rl_status deliver(struct bench_engine *e)
{
    struct bench_meeting *m = e->meeting;
    struct trajectory_group *group;
    rl_status status = RL_OK;
    while (status == RL_OK && rollout_generator_take(e->generator, &group) == RL_OK) {
        reward(group);
        pthread_mutex_lock(&m->mutex);
        status = admission_offer(m->admission, group);
        m->changes++;
        pthread_cond_broadcast(&m->changed);
        pthread_mutex_unlock(&m->mutex);
    }
    return status;
}

/* --- the loop ----------------------------------------------------------------------------------
 */

static rl_status pass(struct bench_engine *e, bool *busy)
{
    const struct rollout_counters *counters = rollout_generator_counters(e->generator);
    uint64_t sampled = counters->sampled_tokens;
    uint64_t forwarded = counters->forwarded_tokens;
    double context = (double)(sampled - counters->finished_tokens);
    double begin = bench_now_s(e->workload);
    RL_TRY(rollout_generator_tick(e->generator, busy));
    double end = bench_now_s(e->workload);
    if (!*busy) {
        return RL_OK;
    }
    if (e->switched) {
        RL_TRY(grow((void **)&e->gap_us, sizeof *e->gap_us, e->gap_count, &e->gap_reserved));
        e->gap_us[e->gap_count++] = (e->tail_s + begin - e->round_began_s) * 1e6;
    }
    RL_TRY(grow((void **)&e->passes, sizeof *e->passes, e->pass_count, &e->pass_reserved));
    uint32_t tokens = (uint32_t)(counters->sampled_tokens - sampled);
    e->passes[e->pass_count++] =
        (struct bench_pass){.seconds = end - begin,
                            .sampled = tokens,
                            .prefill = (uint32_t)(counters->forwarded_tokens - forwarded) - tokens,
                            .context = context + tokens * e->workload->shape.prompt_tokens};
    e->switched = false;
    return RL_OK;
}

rl_status bench_engine_round(struct bench_engine *engine, bool *busy)
{
    struct bench_engine *e = engine;
    struct bench_meeting *m = e->meeting;
    *busy = false;
    e->round_began_s = bench_now_s(e->workload);
    pthread_mutex_lock(&m->mutex);
    e->seen = m->changes; /* what changes from here on makes for another round */
    pthread_mutex_unlock(&m->mutex);
    RL_TRY(adopt(e));
    RL_TRY(intake(e));
    RL_TRY(pass(e, busy));
    double end = bench_now_s(e->workload);
    pthread_mutex_lock(&m->mutex);
    m->busy_s += *busy ? e->passes[e->pass_count - 1].seconds : 0;
    m->paused_s = e->paused_s;
    pthread_mutex_unlock(&m->mutex);
    RL_TRY(deliver(e));
    e->tail_s = bench_now_s(e->workload) - end;
    return RL_OK;
}

void bench_engine_run(struct bench_engine *engine)
{
    struct bench_meeting *m = engine->meeting;
    rl_status status = RL_OK;
    bool stop = false;
    while (!stop) {
        bool busy = false;
        status = bench_engine_round(engine, &busy);
        pthread_mutex_lock(&m->mutex);
        while (status == RL_OK && !busy && !m->stop && m->changes == engine->seen) {
            pthread_cond_wait(&m->changed, &m->mutex);
        }
        if (status != RL_OK) {
            m->status = status;
            m->changes++;
            pthread_cond_broadcast(&m->changed);
        }
        stop = m->stop || status != RL_OK;
        pthread_mutex_unlock(&m->mutex);
    }
}
