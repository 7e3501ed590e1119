/* The simulation itself: the learner's side (the real dispatcher and admission) and the walk over
 * events. Owns everything for the time of one run. */
#include "app/simulate.h"

#include "app/simulate_internal.h"
#include "core/log.h"
#include "trainer/admission.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

/* No bound on age for admission when the system at hand drops nothing. */
enum { SIMULATE_NEVER_STALE = 1 << 20 };
/* Active sampling asks for so many steps' groups before it gives up. */
enum { SIMULATE_ROUNDS = 1000 };

/* What a delivered group holds, by prompt. */
struct simulate_record {
    double tokens, version_tokens;
};

/* Totals at some moment. */
struct simulate_totals {
    double time, tokens, learner_busy_s, busy_s, paused_s, running_s, age_tokens;
    uint64_t dropped, passes;
};

struct simulation {
    const struct simulate_options *options;
    struct simulate_scale scale;
    struct simulate_events events;
    struct simulate_engine *engines; /* [workers] */
    int32_t workers;
    struct simulate_group *done; /* [max_running] scratch */
    struct dispatcher *dispatcher;
    uint64_t prompts; /* used so far */
    struct admission *admission;
    struct admission_batch batch; /* in training */
    bool training;
    uint32_t parts_done;             /* minibatches of the version being made */
    uint32_t available;              /* newest version that engines can take */
    struct simulate_record *records; /* [records_reserved] */
    uint64_t records_reserved;
    double now;
    struct simulate_totals totals;
    double staleness_max;
};

/* --- set-up ------------------------------------------------------------------------------------
 */

static rl_status next_prompt(void *arg, uint64_t position, uint64_t *prompt_id, uint32_t *epoch)
{
    struct simulation *s = arg;
    (void)position;
    *prompt_id = s->prompts++;
    *epoch = 0;
    return RL_OK;
}

static int32_t scaled(double tokens, double stride)
{
    double count = ceil(tokens / stride);
    return count > 1 ? (int32_t)count : 1;
}

/* Sequences that an engine decodes together: the scheduler reserves a sequence's longest length. */
static double running_limit(const struct simulate_options *o)
{
    double fit = floor(o->kv_tokens / (o->prompt_tokens + o->length_max));
    return o->kv_tokens > 0 && fit < o->max_running ? fit : o->max_running;
}

static rl_status choose_scale(const struct simulate_options *o, struct simulate_scale *scale)
{
    double stride = fmax(1.0, ceil(o->length_max / o->resolution));
    double running = running_limit(o);
    if (running < 1) {
        return rl_fail(RL_INVALID, "simulate: kv_tokens=%g holds no sequence of %g tokens",
                       o->kv_tokens, o->prompt_tokens + o->length_max);
    }
    if (o->mode == SIMULATE_STATIC && running < o->samples_per_prompt) {
        return rl_fail(
            RL_INVALID,
            "simulate: a wave of %g sequences holds no group of %g samples (mode=static)", running,
            o->samples_per_prompt);
    }
    *scale = (struct simulate_scale){
        .stride = stride,
        .prompt = scaled(o->prompt_tokens, stride),
        .max_new = scaled(o->length_max, stride) + 1,
        .max_running = (int32_t)running,
        .max_groups = (int32_t)running, /* each may be waiting for its last sample */
        .prefill_chunk = scaled(o->prefill_chunk, stride),
    };
    return RL_OK;
}

static enum dispatcher_order order_of(const struct simulate_options *o)
{
    return o->fixed_lag > 0 ? DISPATCHER_FIXED_LAG : DISPATCHER_READY;
}

/* The admission rule with a fraction of a step ahead: (1 + eta) B tickets, counted one by one. */
static struct dispatcher_options ticket_rule(const struct simulate_options *o)
{
    struct dispatcher_options rule = {.next = next_prompt, .order = order_of(o)};
    if (o->max_staleness >= floor(o->max_staleness) + 1e-9) {
        rule.prompts_per_step = 1;
        rule.max_staleness = (uint32_t)((1 + o->max_staleness) * o->prompts_per_step + 0.5) - 1;
    } else {
        rule.prompts_per_step = (uint32_t)o->prompts_per_step;
        rule.max_staleness = (uint32_t)o->max_staleness;
    }
    return rule;
}

static rl_status open_learner(struct simulation *s)
{
    const struct simulate_options *o = s->options;
    struct dispatcher_options tickets = ticket_rule(o);
    double part = o->prompts_per_step / o->minibatches;
    tickets.next_arg = s;
    if (o->fixed_lag > 0 && (o->mode != SIMULATE_SLOTS || o->minibatches > 1 ||
                             o->max_staleness > floor(o->max_staleness))) {
        return rl_fail(RL_INVALID, "simulate: fixed_lag=1 needs mode=slots, minibatches=1 and a "
                                   "whole max_staleness");
    }
    if (part < 1 || part > floor(part)) {
        return rl_fail(RL_INVALID, "simulate: prompts_per_step=%g is no multiple of minibatches=%g",
                       o->prompts_per_step, o->minibatches);
    }
    struct admission_options groups = {.prompts_per_step = (uint32_t)part,
                                       .samples_per_prompt = (uint32_t)o->samples_per_prompt,
                                       .max_staleness = o->drop_stale > 0
                                                            ? (uint32_t)ceil(o->max_staleness)
                                                            : SIMULATE_NEVER_STALE,
                                       .order = order_of(o),
                                       .dynamic_sampling = o->active_sampling > 0,
                                       .dynamic_sampling_rounds = SIMULATE_ROUNDS};
    RL_TRY(dispatcher_create(&tickets, &s->dispatcher));
    return admission_create(&groups, s->dispatcher, &s->admission);
}

static rl_status open_simulation(struct simulation *s)
{
    RL_TRY(choose_scale(s->options, &s->scale));
    RL_TRY(open_learner(s));
    s->workers = (int32_t)s->options->workers;
    s->engines = calloc((size_t)s->workers, sizeof *s->engines);
    s->done = calloc((size_t)s->scale.max_running, sizeof *s->done);
    if (s->engines == NULL || s->done == NULL) {
        return rl_fail(RL_NO_MEMORY, "simulate: no memory for %d engines", s->workers);
    }
    for (int32_t i = 0; i < s->workers; i++) {
        RL_TRY(simulate_engine_init(&s->engines[i], s->options, &s->scale));
    }
    return RL_OK;
}

static void close_simulation(struct simulation *s)
{
    for (int32_t i = 0; s->engines != NULL && i < s->workers; i++) {
        if (s->engines[i].options != NULL) {
            simulate_engine_fini(&s->engines[i]);
        }
    }
    admission_batch_fini(&s->batch);
    admission_destroy(s->admission);
    dispatcher_destroy(s->dispatcher);
    simulate_events_fini(&s->events);
    free(s->records);
    free(s->done);
    free(s->engines);
}

/* --- engines and tickets -----------------------------------------------------------------------
 */

static rl_status go_on(struct simulation *s, int32_t worker)
{
    struct simulate_engine *engine = &s->engines[worker];
    if (engine->passing || engine->pausing) {
        return RL_OK;
    }
    double seconds;
    RL_TRY(simulate_engine_start(engine, s->available, &seconds));
    if (!engine->passing && !engine->pausing) {
        return RL_OK;
    }
    return simulate_events_post(&s->events, (struct simulate_event){.time = s->now + seconds,
                                                                    .kind = SIMULATE_ENGINE,
                                                                    .worker = worker});
}

/* RL_AGAIN: the rule allows no ticket now. */
static rl_status deal_one(struct simulation *s, int32_t worker)
{
    struct dispatcher_ticket ticket;
    RL_TRY(dispatcher_issue(s->dispatcher, worker, UINT32_MAX, &ticket));
    simulate_engine_give(&s->engines[worker], (struct simulate_ticket){.number = ticket.number,
                                                                       .prompt = ticket.prompt_id,
                                                                       .version = ticket.version});
    return RL_OK;
}

/* Deal what the rule allows, one each in turn to the engines that hold least. */
static rl_status deal_all(struct simulation *s)
{
    int32_t most = 0;
    for (int32_t i = 0; i < s->workers; i++) {
        int32_t room = simulate_engine_room(&s->engines[i]);
        most = room > most ? room : most;
    }
    for (int32_t room = most; room > 0; room--) {
        for (int32_t i = 0; i < s->workers; i++) {
            if (simulate_engine_room(&s->engines[i]) < room) {
                continue;
            }
            rl_status status = deal_one(s, i);
            if (status == RL_AGAIN) {
                room = 0;
                break;
            }
            RL_TRY(status);
        }
    }
    for (int32_t i = 0; i < s->workers; i++) {
        RL_TRY(go_on(s, i));
    }
    return RL_OK;
}

static rl_status deal_to(struct simulation *s, int32_t worker)
{
    rl_status status = RL_OK;
    while (status == RL_OK && simulate_engine_room(&s->engines[worker]) > 0) {
        status = deal_one(s, worker);
    }
    return status == RL_OK || status == RL_AGAIN ? go_on(s, worker) : status;
}

/* --- the learner -------------------------------------------------------------------------------
 */

static rl_status note_group(struct simulation *s, const struct simulate_group *done)
{
    uint64_t number = done->group->prompt_id;
    if (number >= s->records_reserved) {
        uint64_t reserved = number * 2 + 1024;
        struct simulate_record *records = realloc(s->records, reserved * sizeof *records);
        if (records == NULL) {
            return rl_fail(RL_NO_MEMORY, "simulate: no memory for %" PRIu64 " groups", reserved);
        }
        s->records = records;
        s->records_reserved = reserved;
    }
    s->records[number] = (struct simulate_record){done->tokens, done->version_tokens};
    return RL_OK;
}

static rl_status begin_training(struct simulation *s)
{
    const struct simulate_options *o = s->options;
    uint32_t waiting;
    (void)admission_waiting(s->admission, &waiting);
    if (s->training || waiting * o->minibatches < o->prompts_per_step) {
        return RL_OK;
    }
    rl_status status = admission_take(s->admission, &s->batch);
    if (status == RL_AGAIN) {
        return deal_all(s); /* some were too old: others in their place */
    }
    RL_TRY(status);
    double tokens = s->batch.count * o->samples_per_prompt * o->prompt_tokens;
    for (uint32_t i = 0; i < s->batch.count; i++) {
        tokens += s->records[s->batch.groups[i]->prompt_id].tokens;
    }
    double seconds = o->train_s + o->train_token_s * tokens;
    bool last = s->parts_done + 1 >= o->minibatches;
    seconds += last ? o->publish_s : 0;
    s->training = true;
    s->totals.learner_busy_s += seconds;
    return simulate_events_post(
        &s->events, (struct simulate_event){.time = s->now + seconds, .kind = SIMULATE_TRAINED});
}

static rl_status publish(struct simulation *s)
{
    uint32_t version = dispatcher_version(s->dispatcher) + 1;
    s->parts_done = 0;
    RL_TRY(dispatcher_set_version(s->dispatcher, version));
    double delay = s->options->mode == SIMULATE_SLOTS ? s->options->transfer_s : 0;
    if (delay > 0) {
        RL_TRY(simulate_events_post(&s->events, (struct simulate_event){.time = s->now + delay,
                                                                        .kind = SIMULATE_VERSION,
                                                                        .version = version}));
    } else {
        s->available = version;
    }
    return deal_all(s);
}

static rl_status end_training(struct simulation *s)
{
    uint32_t version = dispatcher_version(s->dispatcher);
    for (uint32_t i = 0; i < s->batch.count; i++) {
        const struct simulate_record *record = &s->records[s->batch.groups[i]->prompt_id];
        s->totals.tokens += record->tokens;
        s->totals.age_tokens += version * record->tokens - record->version_tokens;
    }
    s->staleness_max = fmax(s->staleness_max, s->batch.staleness_max);
    s->totals.dropped += s->batch.counts.stale;
    RL_TRY(admission_trained(s->admission, &s->batch));
    admission_batch_fini(&s->batch);
    s->training = false;
    s->parts_done++;
    if (s->parts_done >= s->options->minibatches) {
        RL_TRY(publish(s));
    }
    return begin_training(s);
}

/* --- the walk ----------------------------------------------------------------------------------
 */

static rl_status engine_finished(struct simulation *s, int32_t worker)
{
    int32_t count;
    RL_TRY(simulate_engine_finish(&s->engines[worker], s->done, &count));
    rl_status status = RL_OK;
    for (int32_t i = 0; i < count; i++) {
        struct simulate_event scored = {.time = s->now + s->options->reward_s,
                                        .kind = SIMULATE_SCORED,
                                        .worker = worker,
                                        .group = s->done[i].group};
        status = status == RL_OK ? note_group(s, &s->done[i]) : status;
        status = status == RL_OK ? simulate_events_post(&s->events, scored) : status;
        if (status != RL_OK) {
            trajectory_group_destroy(scored.group);
        }
    }
    RL_TRY(status);
    return deal_to(s, worker);
}

static uint64_t tickets_to_deal(const struct simulation *s)
{
    struct dispatcher_counters counters;
    dispatcher_count(s->dispatcher, &counters);
    return dispatcher_capacity(s->dispatcher) + counters.live[DISPATCHER_PENDING];
}

static rl_status group_scored(struct simulation *s, struct trajectory_group *group)
{
    uint64_t before = tickets_to_deal(s);
    RL_TRY(admission_offer(s->admission, group));
    if (tickets_to_deal(s) > before) {
        RL_TRY(deal_all(s)); /* it was too old or taught nothing: another in its place */
    }
    return begin_training(s);
}

static rl_status handle(struct simulation *s, struct simulate_event *event)
{
    switch (event->kind) {
    case SIMULATE_ENGINE:
        return engine_finished(s, event->worker);
    case SIMULATE_SCORED:
        return group_scored(s, event->group);
    case SIMULATE_TRAINED:
        return end_training(s);
    case SIMULATE_VERSION:
        s->available = event->version > s->available ? event->version : s->available;
        for (int32_t i = 0; i < s->workers; i++) {
            RL_TRY(go_on(s, i));
        }
        return RL_OK;
    }
    return RL_OK;
}

static struct simulate_totals totals_now(const struct simulation *s)
{
    struct simulate_totals totals = s->totals;
    totals.time = s->now;
    for (int32_t i = 0; i < s->workers; i++) {
        totals.busy_s += s->engines[i].busy_s;
        totals.paused_s += s->engines[i].paused_s;
        totals.running_s += s->engines[i].running_s;
        totals.passes += s->engines[i].passes;
    }
    return totals;
}

static rl_status run_to_version(struct simulation *s, uint32_t version)
{
    struct simulate_event event;
    while (dispatcher_version(s->dispatcher) < version) {
        if (!simulate_events_next(&s->events, &event)) {
            return rl_fail(RL_INTERNAL, "simulate: nothing happens any more at version %" PRIu32,
                           dispatcher_version(s->dispatcher));
        }
        s->now = event.time;
        RL_TRY(handle(s, &event));
    }
    return RL_OK;
}

static void summarise(const struct simulation *s, const struct simulate_totals *from,
                      struct simulate_result *out)
{
    struct simulate_totals to = totals_now(s);
    const struct simulate_options *o = s->options;
    double seconds = to.time - from->time;
    double engines = seconds * o->workers;
    double tokens = to.tokens - from->tokens;
    double busy = to.busy_s - from->busy_s;
    double paused = to.paused_s - from->paused_s;
    *out = (struct simulate_result){
        .seconds = seconds,
        .tokens = tokens,
        .tokens_per_second = tokens / seconds,
        .step_s = seconds / o->steps,
        .learner_idle = fmax(0.0, 1 - (to.learner_busy_s - from->learner_busy_s) / seconds),
        .rollout_idle = fmax(0.0, 1 - (busy + paused) / engines),
        .rollout_paused = paused / engines,
        .running_mean = busy > 0 ? (to.running_s - from->running_s) / busy : 0,
        .staleness_mean = (to.age_tokens - from->age_tokens) / tokens,
        .staleness_max = s->staleness_max,
        .length_mean = tokens / (o->steps * o->prompts_per_step * o->samples_per_prompt),
        .dropped = to.dropped - from->dropped,
        .passes = to.passes,
    };
}

rl_status simulate_run(const struct simulate_options *options, struct simulate_result *out)
{
    struct simulation s = {.options = options};
    struct simulate_totals from;
    uint32_t warmup = (uint32_t)options->warmup_steps;
    rl_status status = RL_OK;
    RL_TRY_GOTO(open_simulation(&s), status, done);
    RL_TRY_GOTO(deal_all(&s), status, done);
    RL_TRY_GOTO(run_to_version(&s, warmup), status, done);
    from = totals_now(&s);
    s.staleness_max = 0;
    RL_TRY_GOTO(run_to_version(&s, warmup + (uint32_t)options->steps), status, done);
    summarise(&s, &from, out);
done:
    close_simulation(&s);
    return status;
}
