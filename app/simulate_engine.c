/* One simulated engine: the real scheduler, passes that only cost time. Owns its scheduler, its
 * sequences' lengths and the tickets that wait to enter. Knows no clock: it says how long the next
 * pass or pause takes. */
#include "app/simulate_internal.h"

#include "core/log.h"

#include <stdlib.h>

/* A rollout_usable_fn. */
static bool is_here(void *arg, uint32_t version)
{
    const struct simulate_engine *engine = arg;
    return version <= engine->version;
}

rl_status simulate_engine_init(struct simulate_engine *engine,
                               const struct simulate_options *options,
                               const struct simulate_scale *scale)
{
    *engine = (struct simulate_engine){.options = options, .scale = scale};
    engine->slots = calloc((size_t)scale->max_running, sizeof *engine->slots);
    engine->groups = calloc((size_t)scale->max_groups, sizeof *engine->groups);
    engine->queue = calloc((size_t)scale->max_groups, sizeof *engine->queue);
    if (engine->slots == NULL || engine->groups == NULL || engine->queue == NULL) {
        return rl_fail(RL_NO_MEMORY, "simulate: no memory for an engine");
    }
    struct rollout_scheduler_limits limits = {.max_running = scale->max_running,
                                              .max_groups = scale->max_groups,
                                              .max_length = scale->prompt + scale->max_new,
                                              .prefill_chunk = scale->prefill_chunk,
                                              .recompute = options->recompute > 0};
    RL_TRY(rollout_scheduler_create(&limits, &engine->scheduler));
    rollout_scheduler_set_usable(engine->scheduler, is_here, engine);
    return RL_OK;
}

void simulate_engine_fini(struct simulate_engine *engine)
{
    for (int32_t i = 0; engine->groups != NULL && i < engine->scale->max_groups; i++) {
        trajectory_group_destroy(engine->groups[i].group);
        free(engine->groups[i].pin);
    }
    rollout_scheduler_destroy(engine->scheduler);
    free(engine->queue);
    free(engine->groups);
    free(engine->slots);
    *engine = (struct simulate_engine){0};
}

static bool engine_empty(const struct simulate_engine *engine)
{
    return rollout_scheduler_groups(engine->scheduler) == 0;
}

int32_t simulate_engine_room(const struct simulate_engine *engine)
{
    if (engine->options->mode == SIMULATE_STATIC && !engine_empty(engine)) {
        return 0; /* the next wave is dealt when this one is done */
    }
    int32_t samples = (int32_t)engine->options->samples_per_prompt;
    int32_t wanted = engine->scale->max_running - engine->unfinished;
    int32_t waves = engine->options->mode == SIMULATE_STATIC ? wanted : wanted + samples - 1;
    return wanted > 0 ? waves / samples : 0;
}

void simulate_engine_give(struct simulate_engine *engine, struct simulate_ticket ticket)
{
    engine->queue[engine->queue_count++] = ticket;
    engine->unfinished += (int32_t)engine->options->samples_per_prompt;
}

/* --- starting ----------------------------------------------------------------------------------
 */

/* A wave enters an empty engine; a draining engine takes nothing; with eta 0 a ticket waits for its
 * weights. */
static bool may_enter(const struct simulate_engine *engine, uint32_t newest)
{
    const struct simulate_options *o = engine->options;
    bool draining = o->mode == SIMULATE_DRAIN && newest > engine->version;
    bool early = o->max_staleness <= 0 && engine->queue[0].version > engine->version;
    return !draining && !early;
}

static rl_status make_pin(uint32_t version, int32_t samples, struct simulate_pin **out)
{
    struct simulate_pin *pin =
        calloc(1, sizeof *pin + (size_t)samples * sizeof(struct rollout_schedule));
    if (pin == NULL) {
        return rl_fail(RL_NO_MEMORY, "simulate: no memory for a group's schedule");
    }
    pin->only.version = version;
    for (int32_t i = 0; i < samples; i++) {
        pin->samples[i] = (struct rollout_schedule){.count = 1, .switches = &pin->only};
    }
    *out = pin;
    return RL_OK;
}

static rl_status enter(struct simulate_engine *engine)
{
    struct simulate_ticket ticket = engine->queue[0];
    struct simulate_group entry = {0};
    int32_t samples = (int32_t)engine->options->samples_per_prompt;
    int32_t index;
    RL_TRY(trajectory_group_create((uint32_t)samples, &entry.group));
    struct rollout_scheduler_group group = {.prompt_count = engine->scale->prompt,
                                            .max_new = engine->scale->max_new,
                                            .samples = samples};
    rl_status status = RL_OK;
    if (engine->options->fixed_lag > 0) {
        status = make_pin(ticket.version, samples, &entry.pin);
        group.schedule = entry.pin != NULL ? entry.pin->samples : NULL;
    }
    status = status == RL_OK ? rollout_scheduler_add(engine->scheduler, &group, &index) : status;
    if (status != RL_OK) {
        trajectory_group_destroy(entry.group);
        free(entry.pin);
        return status;
    }
    entry.group->ticket = ticket.number;
    entry.group->prompt_id = ticket.prompt;
    engine->groups[index] = entry;
    engine->queue_count--;
    for (int32_t i = 0; i < engine->queue_count; i++) {
        engine->queue[i] = engine->queue[i + 1];
    }
    return RL_OK;
}

static rl_status enter_all(struct simulate_engine *engine, uint32_t newest)
{
    bool wave = engine->options->mode == SIMULATE_STATIC;
    if (wave && !engine_empty(engine)) {
        return RL_OK;
    }
    while (engine->queue_count > 0 && may_enter(engine, newest)) {
        RL_TRY(enter(engine));
    }
    return RL_OK;
}

/* Seconds that new weights stop this engine; negative: not now. */
static double pause_for(const struct simulate_engine *engine, uint32_t newest)
{
    const struct simulate_options *o = engine->options;
    if (newest <= engine->version) {
        return -1;
    }
    switch (o->mode) {
    case SIMULATE_SLOTS:
        return o->switch_s;
    case SIMULATE_PAUSE:
        return o->transfer_s;
    default:
        return engine_empty(engine) ? o->transfer_s : -1;
    }
}

static void take_weights(struct simulate_engine *engine, uint32_t version)
{
    engine->version = version;
    rollout_scheduler_switch(engine->scheduler, version);
}

/* A newcomer's length is drawn when its first token is due. */
static void meet(struct simulate_engine *engine, int32_t slot)
{
    struct simulate_slot *s = &engine->slots[slot];
    if (s->total > 0) {
        return;
    }
    int32_t group = rollout_scheduler_group_of(engine->scheduler, slot);
    uint32_t sample = (uint32_t)rollout_scheduler_sample_of(engine->scheduler, slot);
    uint32_t tokens =
        simulate_length(engine->options, engine->groups[group].group->prompt_id, sample);
    int32_t total = (int32_t)(tokens / engine->scale->stride + 0.5);
    *s = (struct simulate_slot){
        .total = total > 0 ? total : 1, .tokens = tokens, .first_version = engine->plan.version};
}

static double pass_cost(const struct simulate_engine *engine, int32_t *running)
{
    const struct simulate_options *o = engine->options;
    double stride = engine->scale->stride;
    double context = 0;
    double prefill = 0;
    *running = 0;
    for (int32_t i = 0; i < engine->plan.segment_count; i++) {
        const struct rollout_segment *segment = &engine->plan.segments[i];
        *running += segment->sample ? 1 : 0;
        context += segment->sample ? segment->first + 0.5 : 0;
        prefill += segment->count - (segment->sample ? 1 : 0);
    }
    double decode = o->pass_s + o->sequence_s * *running + o->context_token_s * context * stride;
    double passes = *running > 0 ? stride : 1;
    return decode * passes + o->prefill_token_s * prefill * stride;
}

rl_status simulate_engine_start(struct simulate_engine *engine, uint32_t newest, double *seconds)
{
    *seconds = 0;
    double pause = pause_for(engine, newest);
    if (pause > 0) {
        engine->pausing = true;
        engine->pausing_for = newest;
        engine->paused_s += pause;
        *seconds = pause;
        return RL_OK;
    }
    if (pause >= 0) {
        take_weights(engine, newest);
    }
    RL_TRY(enter_all(engine, newest));
    rollout_scheduler_plan(engine->scheduler, &engine->plan);
    if (engine->plan.segment_count == 0) {
        return RL_OK;
    }
    for (int32_t i = 0; i < engine->plan.segment_count; i++) {
        if (engine->plan.segments[i].sample) {
            meet(engine, engine->plan.segments[i].index);
        }
    }
    int32_t running;
    *seconds = pass_cost(engine, &running);
    engine->passing = true;
    engine->busy_s += *seconds;
    engine->running_s += *seconds * running;
    engine->passes++;
    return RL_OK;
}

/* --- finishing ---------------------------------------------------------------------------------
 */

static rl_status finish_sample(struct simulate_engine *engine, int32_t slot)
{
    struct simulate_slot *s = &engine->slots[slot];
    struct simulate_group *entry =
        &engine->groups[rollout_scheduler_group_of(engine->scheduler, slot)];
    uint32_t index = (uint32_t)rollout_scheduler_sample_of(engine->scheduler, slot);
    struct trajectory *sample = &entry->group->samples[index];
    const int32_t tokens[3] = {0};
    const float logprob[2] = {0};
    const uint32_t version[2] = {s->first_version, engine->plan.version};
    RL_TRY(trajectory_set_tokens(sample, tokens, logprob, version, 1, 2));
    sample->sample_index = index;
    sample->finish = RL_FINISH_STOP;
    sample->reward_valid = true;
    sample->reward = simulate_right(engine->options, entry->group->prompt_id, index) ? 1 : 0;
    sample->accuracy = sample->reward;
    entry->tokens += s->tokens;
    entry->version_tokens += s->tokens * s->version_sum / s->total;
    return RL_OK;
}

static rl_status finish_token(struct simulate_engine *engine, int32_t slot, bool *group_done)
{
    struct simulate_slot *s = &engine->slots[slot];
    s->version_sum += engine->plan.version;
    s->done++;
    bool last = s->done == s->total;
    if (last) {
        RL_TRY(finish_sample(engine, slot));
        engine->unfinished--;
        *s = (struct simulate_slot){0};
    }
    rollout_scheduler_append(engine->scheduler, slot, 1, last, group_done);
    return RL_OK;
}

rl_status simulate_engine_finish(struct simulate_engine *engine, struct simulate_group *done,
                                 int32_t *count)
{
    *count = 0;
    if (engine->pausing) {
        engine->pausing = false;
        take_weights(engine, engine->pausing_for);
        return RL_OK;
    }
    engine->passing = false;
    rollout_scheduler_commit(engine->scheduler, &engine->plan);
    for (int32_t i = 0; i < engine->plan.segment_count; i++) {
        const struct rollout_segment *segment = &engine->plan.segments[i];
        if (!segment->sample) {
            continue;
        }
        int32_t group = rollout_scheduler_group_of(engine->scheduler, segment->index);
        bool group_done = false;
        RL_TRY(finish_token(engine, segment->index, &group_done));
        if (group_done) {
            free(engine->groups[group].pin);
            engine->groups[group].pin = NULL;
            done[(*count)++] = engine->groups[group];
            engine->groups[group] = (struct simulate_group){0};
        }
    }
    return RL_OK;
}
