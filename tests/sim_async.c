/* The asynchronous loop in one process on a virtual clock: the real dispatcher and admission,
 * made-up generation, and a network and workers that fail in every way a seed can think of. Workers
 * are slow, die, pause and come back to deliver what was given up; messages are late, overtake each
 * other or get lost; weights arrive late; the learner is killed and goes on from its last
 * checkpoint. After every event: counters add up, the admission rule holds, versions only grow. Of
 * everything trained: staleness within eta, no ticket twice; in the orders ticket and fixed_lag the
 * batches are in order, and in fixed_lag each is the same tickets by the same versions as in a
 * second run with other delays, losses, deaths and workers. At the end: every ticket trained or
 * dropped, none lost; and all along each step comes within a bounded time. */
#include "core/rng.h"
#include "tests/sim_async_events.h"
#include "trainer/admission.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

/* Check's own assertions report to the parent process even when they hold: too dear here, where
 * millions of them do. These say which seed failed, and when. */
#define SIM_HOLDS(condition)                                                                       \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            ck_abort_msg("seed %" PRIu64 " at %.3f s: does not hold: %s", sim->seed, sim->now,     \
                         #condition);                                                              \
        }                                                                                          \
    } while (0)
#define SIM_EQ(a, b) SIM_HOLDS((a) == (b))
#define SIM_LE(a, b) SIM_HOLDS((a) <= (b))
#define SIM_LT(a, b) SIM_HOLDS((a) < (b))
#define SIM_GE(a, b) SIM_HOLDS((a) >= (b))

enum {
    SEEDS = 1000,
    WORKERS_MAX = 5,
    STEPS = 40,
    ETA_MAX = 4,
    REFILLS_MAX = 256, /* of a step */
    NUMBERS_MAX = 20000,
    TICKETS_MAX = NUMBERS_MAX + (STEPS + ETA_MAX + 1) * REFILLS_MAX,
    SAMPLES = 2,
    PROMPTS = 11
};

#define SIM_TICK_S 1.0
#define SIM_STALL_S 4000.0 /* longest time a step may take */
#define SIM_DEAD_AFTER_S 8.0
#define SIM_DEADLINE_S 60.0 /* a ticket unheard of for so long is issued again */

/* What a seed chooses. */
struct sim_world {
    uint32_t workers, prompts_per_step, eta, max_outstanding;
    double delay_s, generate_s, step_s; /* means */
    double slow_factor;                 /* of worker 0 */
    double loss, trouble;               /* probabilities of a message, per tick */
    double flat, unscorable, skip;      /* probabilities of a group, group, step */
    bool dynamic_sampling, killed;
    enum dispatcher_order order;
};

struct sim_worker {
    bool dead;
    double paused_until;
    uint32_t life, version;
    bool given_up; /* the learner takes it for dead */
    double heard_s;
};

/* What the learner's checkpoint holds, and this program's own book beside it. */
struct sim_checkpoint {
    uint8_t *state;
    size_t bytes;
    struct trajectory_group **waiting;
    uint32_t waiting_count, steps;
    uint64_t last_key;
    uint8_t trained[TICKETS_MAX];
};

struct sim {
    uint64_t seed;
    struct sim_world world;
    struct rl_rng rng;
    struct sim_events events;
    double now;
    struct sim_worker workers[WORKERS_MAX];
    struct dispatcher *dispatcher;
    struct admission *admission;
    struct admission_batch batch;
    bool training;
    uint32_t learner_life, steps, version_seen;
    double step_began_s;
    uint64_t last_key;            /* highest ticket trained, in order of consumption */
    uint64_t batch_hash[STEPS];   /* fixed_lag: tickets and versions of each step, 0: not yet */
    uint8_t trained[TICKETS_MAX]; /* the book: how often each ticket was trained */
    double issued_s[TICKETS_MAX];
    struct sim_checkpoint checkpoint;
};

/* What all seeds together met, so that a quiet simulation is a failure. */
struct sim_totals {
    uint64_t orders[3], refills, trained, stale, reissued, duplicates, resumed, zero_variance,
        unscorable;
};

static double chance(struct sim *sim)
{
    return rl_rng_next_uniform(&sim->rng);
}

/* Exponential with the given mean: now and then much longer than usual, so order gets lost. */
static double spread(struct sim *sim, double mean)
{
    return -mean * log(1 - chance(sim));
}

static uint32_t between(struct sim *sim, uint32_t low, uint32_t high)
{
    return low + (uint32_t)rl_rng_next_below(&sim->rng, high - low + 1);
}

static void world_choose(struct sim *sim)
{
    struct sim_world *w = &sim->world;
    w->workers = between(sim, 1, WORKERS_MAX);
    w->prompts_per_step = between(sim, 1, 6);
    w->eta = between(sim, 0, ETA_MAX);
    w->max_outstanding = between(sim, 1, 8);
    w->delay_s = 0.01 + chance(sim);
    w->generate_s = 0.1 + 4 * chance(sim);
    w->step_s = 0.1 + 3 * chance(sim);
    w->slow_factor = chance(sim) < 0.3 ? 10 : 1;
    w->loss = chance(sim) < 0.5 ? 0 : 0.1 * chance(sim);
    w->trouble = chance(sim) < 0.3 ? 0 : 0.1 * chance(sim);
    w->flat = 0.5 * chance(sim);
    w->unscorable = chance(sim) < 0.5 ? 0 : 0.1;
    w->skip = chance(sim) < 0.5 ? 0 : 0.1;
    w->dynamic_sampling = chance(sim) < 0.4;
    w->killed = chance(sim) < 0.3;
    w->order = (enum dispatcher_order)between(sim, 0, 2);
}

static bool fixed(const struct sim *sim)
{
    return sim->world.order == DISPATCHER_FIXED_LAG;
}

/* The second run of a fixed_lag seed: what the samples and the configuration are made of stays. */
static void world_change_weather(struct sim *sim, uint64_t seed)
{
    struct sim_world before = sim->world;
    sim->rng = rl_rng_make(seed, 1);
    world_choose(sim);
    sim->world.prompts_per_step = before.prompts_per_step;
    sim->world.eta = before.eta;
    sim->world.flat = before.flat;
    sim->world.unscorable = before.unscorable;
    sim->world.skip = before.skip;
    sim->world.dynamic_sampling = before.dynamic_sampling;
    sim->world.order = before.order;
}

/* Where a ticket stands in the books. */
static uint64_t slot(struct sim *sim, uint64_t number)
{
    if ((number & DISPATCHER_REFILL) == 0) {
        SIM_LT(number, NUMBERS_MAX);
        return number;
    }
    uint64_t step = (number & (DISPATCHER_REFILL - 1)) >> DISPATCHER_REFILL_BITS;
    uint64_t index = number & ((UINT64_C(1) << DISPATCHER_REFILL_BITS) - 1);
    SIM_LT(index, REFILLS_MAX);
    SIM_LE(step, STEPS + ETA_MAX);
    return NUMBERS_MAX + step * REFILLS_MAX + index;
}

static rl_status next_prompt(void *arg, uint64_t position, uint64_t *prompt_id, uint32_t *epoch)
{
    (void)arg;
    *prompt_id = position % PROMPTS;
    *epoch = (uint32_t)(position / PROMPTS); /* of refills: some large number */
    return RL_OK;
}

/* A message: late by chance, lost by chance. */
static void send(struct sim *sim, struct sim_event event)
{
    if (chance(sim) >= sim->world.loss) {
        event.time = sim->now + spread(sim, sim->world.delay_s);
        sim_post(&sim->events, event);
    }
}

/* --- learner
 * -------------------------------------------------------------------------------------- */

static void learner_open(struct sim *sim)
{
    struct dispatcher_options tickets = {.prompts_per_step = sim->world.prompts_per_step,
                                         .max_staleness = sim->world.eta,
                                         .order = sim->world.order,
                                         .next = next_prompt};
    struct admission_options groups = {.prompts_per_step = sim->world.prompts_per_step,
                                       .samples_per_prompt = SAMPLES,
                                       .max_staleness = sim->world.eta,
                                       .order = sim->world.order,
                                       .dynamic_sampling = sim->world.dynamic_sampling,
                                       .dynamic_sampling_rounds = 1000};
    SIM_EQ(dispatcher_create(&tickets, &sim->dispatcher), RL_OK);
    SIM_EQ(admission_create(&groups, sim->dispatcher, &sim->admission), RL_OK);
}

static void learner_close(struct sim *sim)
{
    admission_batch_fini(&sim->batch);
    admission_destroy(sim->admission);
    dispatcher_destroy(sim->dispatcher);
    sim->training = false;
}

static void learner_issue(struct sim *sim)
{
    int32_t ready[WORKERS_MAX];
    uint32_t count = 0;
    for (uint32_t w = 0; w < sim->world.workers; w++) {
        if (!sim->workers[w].given_up) {
            ready[count++] = (int32_t)w;
        }
    }
    uint32_t most = sim->world.max_outstanding;
    int32_t worker;
    while ((worker = dispatcher_pick_worker(sim->dispatcher, ready, count, most)) >= 0) {
        struct dispatcher_ticket ticket;
        rl_status status = dispatcher_issue(sim->dispatcher, worker, most, &ticket);
        if (status == RL_AGAIN) {
            return;
        }
        SIM_EQ(status, RL_OK);
        sim->issued_s[slot(sim, ticket.number)] = sim->now;
        send(sim, (struct sim_event){.kind = SIM_TICKET_AT_WORKER,
                                     .worker = worker,
                                     .life = sim->workers[worker].life,
                                     .ticket = ticket.number,
                                     .first_version = ticket.version});
    }
}

static void learner_begin_step(struct sim *sim)
{
    if (sim->training || sim->steps >= STEPS) {
        return;
    }
    rl_status status = admission_take(sim->admission, &sim->batch);
    if (status == RL_AGAIN) {
        return;
    }
    SIM_EQ(status, RL_OK);
    SIM_EQ(sim->batch.count, sim->world.prompts_per_step);
    sim->training = true;
    sim_post(&sim->events, (struct sim_event){.time = sim->now + spread(sim, sim->world.step_s),
                                              .kind = SIM_STEP_DONE,
                                              .life = sim->learner_life});
}

/* What order says of a batch: ascending, and after all that was trained before; in fixed_lag the
 * same as ever. */
static void book_order(struct sim *sim)
{
    uint64_t hash = sim->world.prompts_per_step;
    for (uint32_t g = 0; g < sim->batch.count; g++) {
        const struct trajectory_group *group = sim->batch.groups[g];
        uint64_t step = group->ticket & DISPATCHER_REFILL
                            ? (group->ticket & (DISPATCHER_REFILL - 1)) >> DISPATCHER_REFILL_BITS
                            : group->ticket / sim->world.prompts_per_step;
        uint64_t key = fixed(sim) ? step << 32 | slot(sim, group->ticket) : group->ticket;
        SIM_LT(sim->last_key, key + 1);
        sim->last_key = key + 1;
        SIM_HOLDS(!fixed(sim) || step == sim->steps);
        hash = (hash ^ group->ticket) * UINT64_C(0x100000001b3);
        hash = (hash ^ group->samples[0].version[2]) * UINT64_C(0x100000001b3);
        hash ^= hash >> 29;
    }
    if (fixed(sim)) {
        SIM_HOLDS(sim->batch_hash[sim->steps] == 0 || sim->batch_hash[sim->steps] == hash);
        sim->batch_hash[sim->steps] = hash;
    }
}

static void book_batch(struct sim *sim)
{
    uint32_t version = dispatcher_version(sim->dispatcher);
    for (uint32_t g = 0; g < sim->batch.count; g++) {
        uint32_t oldest;
        uint32_t newest;
        trajectory_group_versions(sim->batch.groups[g], &oldest, &newest);
        SIM_LE(newest, version);
        SIM_LE(version - oldest, sim->world.eta);
        SIM_HOLDS(!fixed(sim) ||
                  (version - oldest == (version < sim->world.eta ? version : sim->world.eta) &&
                   newest == oldest));
        SIM_EQ(sim->trained[slot(sim, sim->batch.groups[g]->ticket)]++, 0);
    }
    if (sim->world.order != DISPATCHER_READY) {
        book_order(sim);
    }
}

static void checkpoint_clear(struct sim_checkpoint *checkpoint)
{
    for (uint32_t i = 0; i < checkpoint->waiting_count; i++) {
        trajectory_group_destroy(checkpoint->waiting[i]);
    }
    free(checkpoint->waiting);
    free(checkpoint->state);
    checkpoint->waiting = NULL;
    checkpoint->state = NULL;
    checkpoint->waiting_count = 0;
}

static void checkpoint_take(struct sim *sim)
{
    struct sim_checkpoint *checkpoint = &sim->checkpoint;
    checkpoint_clear(checkpoint);
    SIM_EQ(dispatcher_save(sim->dispatcher, &checkpoint->state, &checkpoint->bytes), RL_OK);
    uint32_t count = 0;
    struct trajectory_group *const *waiting = admission_waiting(sim->admission, &count);
    checkpoint->waiting = calloc((size_t)count + 1, sizeof(struct trajectory_group *));
    SIM_HOLDS(NULL != checkpoint->waiting);
    for (uint32_t i = 0; i < count; i++) {
        SIM_EQ(trajectory_group_copy(waiting[i], &checkpoint->waiting[i]), RL_OK);
    }
    checkpoint->waiting_count = count;
    checkpoint->steps = sim->steps;
    checkpoint->last_key = sim->last_key;
    memcpy(checkpoint->trained, sim->trained, sizeof(sim->trained));
}

static void learner_end_step(struct sim *sim)
{
    uint32_t version = dispatcher_version(sim->dispatcher);
    /* In fixed_lag a step without an update publishes the same weights as its version. */
    bool skipped = !fixed(sim) && chance(sim) < sim->world.skip;
    if (skipped) {
        SIM_EQ(admission_rejected(sim->admission, &sim->batch), RL_OK);
    } else {
        book_batch(sim);
        SIM_EQ(admission_trained(sim->admission, &sim->batch), RL_OK);
        sim->steps++;
        version++;
    }
    admission_batch_fini(&sim->batch);
    sim->training = false;
    sim->step_began_s = sim->now;
    SIM_EQ(dispatcher_set_version(sim->dispatcher, version), RL_OK);
    for (uint32_t w = 0; w < sim->world.workers; w++) {
        send(sim, (struct sim_event){.kind = SIM_VERSION_AT_WORKER,
                                     .worker = (int)w,
                                     .life = sim->workers[w].life,
                                     .first_version = version});
    }
    if (sim->steps % 3 == 1) {
        checkpoint_take(sim);
    }
}

/* The whole job is killed and started again from the last checkpoint: nothing under way survives.
 */
static void learner_resume(struct sim *sim)
{
    learner_close(sim);
    sim_clear(&sim->events);
    learner_open(sim);
    struct sim_checkpoint *checkpoint = &sim->checkpoint;
    SIM_EQ(dispatcher_load(sim->dispatcher, checkpoint->state, checkpoint->bytes), RL_OK);
    for (uint32_t i = 0; i < checkpoint->waiting_count; i++) {
        struct trajectory_group *copy = NULL;
        SIM_EQ(trajectory_group_copy(checkpoint->waiting[i], &copy), RL_OK);
        SIM_EQ(admission_restore(sim->admission, copy), RL_OK);
    }
    memcpy(sim->trained, checkpoint->trained, sizeof(sim->trained));
    sim->steps = checkpoint->steps;
    sim->last_key = checkpoint->last_key;
    sim->learner_life++;
    sim->version_seen = dispatcher_version(sim->dispatcher);
    sim->step_began_s = sim->now;
    for (uint32_t w = 0; w < sim->world.workers; w++) {
        sim->workers[w] = (struct sim_worker){
            .life = sim->workers[w].life + 1, .version = sim->version_seen, .heard_s = sim->now};
    }
    sim_post(&sim->events, (struct sim_event){.time = sim->now, .kind = SIM_TICK});
}

/* Silent workers are given up, late tickets go back, weights are offered again. */
static void learner_tick(struct sim *sim)
{
    for (uint32_t w = 0; w < sim->world.workers; w++) {
        struct sim_worker *worker = &sim->workers[w];
        bool silent = worker->dead || worker->paused_until > sim->now;
        worker->heard_s = silent ? worker->heard_s : sim->now;
        if (!silent) {
            worker->given_up = false;
            send(sim, (struct sim_event){.kind = SIM_VERSION_AT_WORKER,
                                         .worker = (int)w,
                                         .life = worker->life,
                                         .first_version = dispatcher_version(sim->dispatcher)});
        } else if (!worker->given_up && sim->now - worker->heard_s > SIM_DEAD_AFTER_S) {
            worker->given_up = true;
            dispatcher_worker_lost(sim->dispatcher, (int32_t)w);
            SIM_EQ(dispatcher_outstanding(sim->dispatcher, (int32_t)w), 0);
        }
    }
    uint64_t count = 0;
    const struct dispatcher_ticket *tickets = dispatcher_tickets(sim->dispatcher, &count);
    for (uint64_t i = 0; i < count; i++) {
        bool away =
            tickets[i].state == DISPATCHER_ISSUED || tickets[i].state == DISPATCHER_GENERATED;
        if (away && sim->now - sim->issued_s[slot(sim, tickets[i].number)] > SIM_DEADLINE_S) {
            SIM_EQ(dispatcher_requeue(sim->dispatcher, tickets[i].number), RL_OK);
        }
    }
    sim_post(&sim->events, (struct sim_event){.time = sim->now + SIM_TICK_S, .kind = SIM_TICK});
    if (chance(sim) < sim->world.trouble) {
        sim_post(&sim->events,
                 (struct sim_event){.time = sim->now + chance(sim),
                                    .kind = SIM_TROUBLE,
                                    .worker = (int)between(sim, 0, sim->world.workers - 1)});
    }
}

/* --- workers
 * -------------------------------------------------------------------------------------- */

static void worker_start_ticket(struct sim *sim, const struct sim_event *event)
{
    struct sim_worker *worker = &sim->workers[event->worker];
    if ((sim->world.eta == 0 || fixed(sim)) && worker->version < event->first_version) {
        struct sim_event later = *event; /* take the new weights first */
        later.time = sim->now + 0.2;
        sim_post(&sim->events, later);
        return;
    }
    double slow = event->worker == 0 ? sim->world.slow_factor : 1;
    sim_post(
        &sim->events,
        (struct sim_event){.time = sim->now + slow * spread(sim, sim->world.generate_s),
                           .kind = SIM_GENERATED,
                           .worker = event->worker,
                           .life = worker->life,
                           .ticket = event->ticket,
                           .first_version = fixed(sim) ? event->first_version : worker->version});
}

static void worker_finish_ticket(struct sim *sim, const struct sim_event *event)
{
    struct sim_event message = *event;
    message.last_version = fixed(sim) ? event->first_version : sim->workers[event->worker].version;
    message.kind = SIM_NOTICE;
    send(sim, message);
    message.kind = SIM_GROUP_AT_LEARNER;
    send(sim, message);
}

/* Death loses what the worker had and comes back empty; a pause keeps it all and delivers late. */
static void worker_trouble(struct sim *sim, const struct sim_event *event)
{
    struct sim_worker *worker = &sim->workers[event->worker];
    if (worker->dead) {
        *worker = (struct sim_worker){.life = worker->life,
                                      .heard_s = sim->now,
                                      .version = dispatcher_version(sim->dispatcher)};
        return;
    }
    if (chance(sim) < 0.5) {
        worker->paused_until = sim->now + spread(sim, 3 * SIM_DEAD_AFTER_S);
        return;
    }
    worker->dead = true;
    worker->life++;
    struct sim_event restart = *event;
    restart.time = sim->now + spread(sim, 2 * SIM_DEAD_AFTER_S);
    sim_post(&sim->events, restart);
}

/* A new worker in a dead one's place: the learner hears of it when it registers. */
static void worker_registers(struct sim *sim, int index)
{
    dispatcher_worker_lost(sim->dispatcher, index);
    sim->workers[index].given_up = false;
}

static struct trajectory_group *group_make(struct sim *sim, const struct sim_event *event)
{
    const int32_t tokens[4] = {1, 2, 3, 4};
    const float logprob[3] = {-1, -2, -3};
    const uint32_t version[3] = {event->first_version, event->first_version, event->last_version};
    struct trajectory_group *group = NULL;
    SIM_EQ(trajectory_group_create(SAMPLES, &group), RL_OK);
    group->ticket = event->ticket;
    group->worker = event->worker;
    next_prompt(NULL, event->ticket, &group->prompt_id, &group->epoch);
    struct rl_rng_key key = rl_rng_key_make(7, event->ticket, sim->seed);
    bool flat = rl_rng_uniform(key, 0) < sim->world.flat; /* the same however often it is issued */
    bool scorable = rl_rng_uniform(key, 1) >= sim->world.unscorable;
    for (uint32_t s = 0; s < SAMPLES; s++) {
        struct trajectory *sample = &group->samples[s];
        SIM_EQ(trajectory_set_tokens(sample, tokens, logprob, version, 1, 3), RL_OK);
        sample->sample_index = s;
        sample->finish = RL_FINISH_STOP;
        sample->reward_valid = scorable;
        sample->reward = sample->accuracy = flat || s == 0 ? 1.0f : 0.0f;
    }
    return group;
}

/* --- the run
 * -------------------------------------------------------------------------------------- */

static bool at_worker(enum sim_event_kind kind)
{
    return kind == SIM_TICKET_AT_WORKER || kind == SIM_GENERATED || kind == SIM_VERSION_AT_WORKER;
}

static void dispatch_worker_event(struct sim *sim, const struct sim_event *event)
{
    struct sim_worker *worker = &sim->workers[event->worker];
    if (worker->dead || event->life != worker->life) {
        return;
    }
    if (worker->paused_until > sim->now) {
        struct sim_event later = *event; /* nothing happens in a paused process */
        later.time = worker->paused_until;
        sim_post(&sim->events, later);
        return;
    }
    if (event->kind == SIM_TICKET_AT_WORKER) {
        worker_start_ticket(sim, event);
    } else if (event->kind == SIM_GENERATED) {
        worker_finish_ticket(sim, event);
    } else if (event->first_version > worker->version) {
        worker->version = event->first_version;
    }
}

static void dispatch_learner_event(struct sim *sim, const struct sim_event *event)
{
    switch (event->kind) {
    case SIM_NOTICE:
        dispatcher_generated(sim->dispatcher, event->ticket, event->worker);
        break;
    case SIM_GROUP_AT_LEARNER:
        SIM_EQ(admission_offer(sim->admission, group_make(sim, event)), RL_OK);
        break;
    case SIM_STEP_DONE:
        learner_end_step(sim);
        break;
    case SIM_TICK:
        learner_tick(sim);
        break;
    case SIM_TROUBLE:
        worker_trouble(sim, event);
        if (!sim->workers[event->worker].dead &&
            sim->workers[event->worker].paused_until <= sim->now) {
            worker_registers(sim, event->worker);
        }
        break;
    default:
        ck_abort_msg("no such event");
    }
}

static void check_everything(struct sim *sim)
{
    SIM_EQ(dispatcher_check(sim->dispatcher), RL_OK);
    uint32_t version = dispatcher_version(sim->dispatcher);
    SIM_GE(version, sim->version_seen);
    SIM_EQ(version, sim->steps);
    sim->version_seen = version;
    struct dispatcher_counters c;
    dispatcher_count(sim->dispatcher, &c);
    uint64_t live = 0;
    for (int s = 0; s < DISPATCHER_STATE_COUNT; s++) {
        live += c.live[s];
    }
    uint64_t limit = (uint64_t)(sim->world.eta + 1) * sim->world.prompts_per_step;
    SIM_LE(live, limit);
    SIM_EQ(c.trained, (uint64_t)sim->steps * sim->world.prompts_per_step);
    uint32_t waiting = 0;
    admission_waiting(sim->admission, &waiting);
    SIM_EQ(waiting, c.live[DISPATCHER_SCORED]);
    SIM_EQ(sim->batch.count, c.live[DISPATCHER_ADMITTED]);
    SIM_LT(sim->now - sim->step_began_s, SIM_STALL_S);
}

/* Every ticket ever made was trained once or dropped. */
static void check_end(struct sim *sim, struct sim_totals *totals)
{
    dispatcher_drop_all(sim->dispatcher);
    struct dispatcher_counters c;
    dispatcher_count(sim->dispatcher, &c);
    uint64_t dropped = 0;
    for (int r = 0; r < DISPATCHER_REASON_COUNT; r++) {
        dropped += c.dropped[r];
    }
    uint64_t trained = 0;
    for (uint64_t t = 0; t < TICKETS_MAX; t++) {
        SIM_LE(sim->trained[t], 1);
        SIM_HOLDS(t < c.created || t >= NUMBERS_MAX || sim->trained[t] == 0);
        trained += sim->trained[t];
    }
    SIM_EQ(trained, c.trained);
    SIM_EQ(trained, (uint64_t)STEPS * sim->world.prompts_per_step);
    SIM_EQ(trained + dropped, c.created);
    SIM_EQ(c.unknown, 0);
    SIM_EQ(c.dropped[DISPATCHER_ZERO_VARIANCE] > 0 && !sim->world.dynamic_sampling, 0);
    SIM_EQ(fixed(sim) && c.dropped[DISPATCHER_STALE] > 0, 0);
    totals->orders[sim->world.order]++;
    totals->refills += fixed(sim) ? c.dropped[DISPATCHER_ZERO_VARIANCE] : 0;
    totals->trained += trained;
    totals->stale += c.dropped[DISPATCHER_STALE];
    totals->reissued += c.reissues;
    totals->duplicates += c.duplicates;
    totals->zero_variance += c.dropped[DISPATCHER_ZERO_VARIANCE];
    totals->unscorable += c.dropped[DISPATCHER_UNSCORABLE];
}

static void run_world(struct sim *sim, struct sim_totals *totals)
{
    learner_open(sim);
    checkpoint_take(sim);
    uint64_t kill_at = sim->world.killed ? between(sim, 50, 2000) : UINT64_MAX;
    sim_post(&sim->events, (struct sim_event){.kind = SIM_TICK});
    for (uint64_t event_count = 0; sim->steps < STEPS; event_count++) {
        struct sim_event event;
        SIM_EQ(sim_next(&sim->events, &event), 1);
        SIM_GE(event.time, sim->now);
        sim->now = event.time;
        if (at_worker(event.kind)) {
            dispatch_worker_event(sim, &event);
        } else {
            dispatch_learner_event(sim, &event);
        }
        if (event_count == kill_at) {
            learner_resume(sim);
            totals->resumed++;
        }
        learner_begin_step(sim);
        learner_issue(sim);
        check_everything(sim);
    }
    check_end(sim, totals);
    learner_close(sim);
    checkpoint_clear(&sim->checkpoint);
    sim_clear(&sim->events);
}

static void run_seed(uint64_t seed, struct sim *sim, struct sim_totals *totals)
{
    *sim = (struct sim){.seed = seed, .rng = rl_rng_make(seed, 0)};
    world_choose(sim);
    run_world(sim, totals);
    if (fixed(sim)) {
        struct sim_world world = sim->world;
        uint64_t hashes[STEPS];
        memcpy(hashes, sim->batch_hash, sizeof(hashes));
        *sim = (struct sim){.seed = seed, .world = world};
        memcpy(sim->batch_hash, hashes, sizeof(hashes)); /* book_order compares */
        world_change_weather(sim, seed);
        run_world(sim, totals);
    }
}

START_TEST(a_thousand_bad_days)
{
    struct sim *sim = calloc(1, sizeof(*sim));
    struct sim_totals totals = {0};
    ck_assert_ptr_nonnull(sim);
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        mark_point(); /* a crash is reported from here */
        run_seed(seed, sim, &totals);
    }
    free(sim);
    /* every kind of trouble must have been met */
    ck_assert_uint_gt(totals.trained, SEEDS * STEPS);
    for (int order = 0; order < 3; order++) {
        ck_assert_uint_gt(totals.orders[order], SEEDS / 4);
    }
    ck_assert_uint_gt(totals.refills, 1000);
    ck_assert_uint_gt(totals.stale, 1000);
    ck_assert_uint_gt(totals.reissued, 1000);
    ck_assert_uint_gt(totals.duplicates, 100);
    ck_assert_uint_gt(totals.resumed, 100);
    ck_assert_uint_gt(totals.zero_variance, 1000);
    ck_assert_uint_gt(totals.unscorable, 1000);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("sim async");
    TCase *tests = tcase_create("all");
    tcase_set_timeout(tests, 300);
    tcase_add_test(tests, a_thousand_bad_days);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
