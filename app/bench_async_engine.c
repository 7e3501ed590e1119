/* The generating role of `foresight bench async`: one loop with the real generator, which differs
 * from row to row in when groups enter and how new weights come in. */
#include "app/bench_async.h"

#include "core/clock.h"
#include "core/log.h"
#include "core/rng.h"

#include <stdlib.h>

static const double weights_poll_s = 0.0002; /* as the worker does */

enum { BENCH_SEED = 5, BENCH_PROMPT_STREAM = 77 };

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
    return bench_engine_open_weights(engine);
}

void bench_engine_fini(struct bench_engine *engine)
{
    rollout_generator_destroy(engine->generator);
    bench_engine_close_weights(engine);
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
    return wanted > 0 && !e->draining && !e->coming ? (wanted + samples - 1) / samples : 0;
}

/* In fixed_lag all samples by the ticket's version, which is taken hold of now. */
static rl_status submit_request(struct bench_engine *e, struct rollout_request *request,
                                uint32_t version)
{
    struct rollout_switch only = {.position = 0, .version = version};
    if (!e->rung->fixed_lag) {
        return rollout_generator_submit(e->generator, request);
    }
    struct rollout_schedule *schedules = calloc(request->samples, sizeof *schedules);
    if (schedules == NULL) {
        return rl_fail(RL_NO_MEMORY, "bench: no memory for a request");
    }
    for (uint32_t i = 0; i < request->samples; i++) {
        schedules[i] = (struct rollout_schedule){.count = 1, .switches = &only};
    }
    request->schedule = schedules;
    rl_status status = rollout_generator_submit(e->generator, request);
    free(schedules);
    (void)version_pins_image(&e->pins, version);
    return status;
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
    status = submit_request(e, &request, ticket->version);
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

/* A coin for each sample. */
static void reward(const struct bench_engine *e, struct trajectory_group *group)
{
    for (uint32_t i = 0; i < group->sample_count; i++) {
        struct trajectory *sample = &group->samples[i];
        sample->reward_valid = true;
        sample->reward = simulate_right(&e->workload->shape, group->prompt_id, i) ? 1 : 0;
        sample->accuracy = sample->reward;
    }
}

static rl_status deliver(struct bench_engine *e)
{
    struct bench_meeting *m = e->meeting;
    struct trajectory_group *group;
    rl_status status = RL_OK;
    while (status == RL_OK && rollout_generator_take(e->generator, &group) == RL_OK) {
        reward(e, group);
        version_pins_trim(&e->pins, e->generator);
        group->finished_s = bench_now_s(e->workload) + e->offset_s;
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
    for (int i = 0; i < 2 && !*busy; i++) { /* what was just verified may be all it waits for */
        RL_TRY(bench_engine_adopt(e));
        RL_TRY(intake(e));
        RL_TRY(pass(e, busy));
        RL_TRY(e->pins.status);
    }
    double end = bench_now_s(e->workload);
    pthread_mutex_lock(&m->mutex);
    m->busy_s += *busy ? e->passes[e->pass_count - 1].seconds : 0;
    m->paused_s = e->paused_s;
    m->beside_s = e->beside_s;
    pthread_mutex_unlock(&m->mutex);
    RL_TRY(deliver(e));
    e->tail_s = bench_now_s(e->workload) - end;
    return RL_OK;
}

/* Sleep until something has changed; weights that come are not announced. The mutex is held. */
static void await_change(struct bench_engine *e)
{
    struct bench_meeting *m = e->meeting;
    if (e->coming || e->rung->remote) {
        double begin = bench_now_s(e->workload);
        pthread_mutex_unlock(&m->mutex);
        rl_clock_sleep_s(NULL, weights_poll_s);
        pthread_mutex_lock(&m->mutex);
        e->paused_s += e->coming ? bench_now_s(e->workload) - begin : 0;
        return;
    }
    while (!m->stop && m->changes == e->seen) {
        pthread_cond_wait(&m->changed, &m->mutex);
    }
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
        if (status == RL_OK && !busy) {
            await_change(engine);
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
