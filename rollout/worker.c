/* See worker.h. One round of the loop never blocks while there is something to decode; without work
 * it sleeps on the channel. Back-pressure needs no code of its own: a group that cannot move on is
 * held, the engine then fills up, and tickets stay in the queue. A snapshot is copied at once and
 * sent as the channel takes it, so decoding goes on. */
#include "rollout/worker.h"

#include "core/clock.h"
#include "core/log.h"
#include "rollout/snapshot_reply.h"
#include "rollout/ticket_queue.h"
#include "rollout/version_pins.h"

#include <stdlib.h>
#include <string.h>

struct worker {
    const struct rollout_worker_args *args;
    struct ticket_queue queue; /* tickets not yet submitted */
    struct version_pins pins;  /* weights of pinned tickets */
    struct snapshot_reply reply;
    struct trajectory_group *to_score, *to_send; /* held because the next stage is full */
    uint64_t open;                               /* tickets received and not yet sent back */
    struct weight_view loading;                  /* the version that the engine is to use next */
    bool is_loading;
    bool has_weights;
    bool weights_coming; /* a newer version is being verified, or copied to the device */
    uint32_t version;
    double next_status_s, busy_s, idle_s;
    double lap_s;                    /* when the part of time that goes on now began */
    double time_s[RL_ROLLOUT_TIMES]; /* but for the passes, which the generator counts */
    bool stopped;
    struct wire_stop stop;
};

/* --- where the time goes
 * ------------------------------------------------------------------------------------ */

/* What has gone on since the lap before was `part`. */
static void lap(struct worker *w, enum rl_rollout_time part)
{
    double now = rl_clock_now_s(NULL);
    w->time_s[part] += now - w->lap_s;
    w->lap_s = now;
}

static double pass_s(const struct worker *w)
{
    const struct rollout_counters *c = rollout_generator_counters(w->args->generator);
    return c->prefill_s + c->decode_s + c->sample_s;
}

/* A group without a version of its own does not begin with weights that were old when its ticket
 * was issued, if newer ones are about to be there: it would be older than the admission rule
 * reckons with, and at staleness 0 nothing but the newest will do. Tickets issued before that need
 * not wait.
 */
static bool awaits_weights(const struct worker *w, const struct ticket_entry *entry)
{
    return w->weights_coming && !entry->ticket.pinned && entry->ticket.version > w->version;
}

/* Nothing to decode and nothing to move: who is waited for? */
static enum rl_rollout_time awaited(const struct worker *w)
{
    if (!w->has_weights ||
        (w->queue.count > 0 && awaits_weights(w, ticket_queue_at(&w->queue, 0)))) {
        return RL_ROLLOUT_TIME_WEIGHT_WAIT;
    }
    if (w->to_send != NULL) {
        return RL_ROLLOUT_TIME_CHANNEL_FULL;
    }
    if (rollout_generator_groups(w->args->generator) > 0) {
        return RL_ROLLOUT_TIME_WEIGHT_WAIT; /* for the version that its groups ask for */
    }
    return w->open > w->queue.count ? RL_ROLLOUT_TIME_REWARD_WAIT : RL_ROLLOUT_TIME_TICKET_WAIT;
}

static const char *awaited_name(enum rl_rollout_time part)
{
    switch (part) {
    case RL_ROLLOUT_TIME_WEIGHT_WAIT:
        return "worker waits for weights";
    case RL_ROLLOUT_TIME_CHANNEL_FULL:
        return "worker waits for the learner to take groups";
    case RL_ROLLOUT_TIME_REWARD_WAIT:
        return "worker waits for rewards";
    default:
        return "worker waits for tickets";
    }
}

/* --- messages in
 * ------------------------------------------------------------------------------------ */

static rl_status take_ticket(struct worker *w, const struct channel_message *message)
{
    struct wire_ticket ticket;
    RL_TRY(wire_decode_ticket(message, &ticket));
    if (ticket.prompt_id >= prompts_count(w->args->prompts)) {
        return rl_fail(RL_CORRUPT, "worker: ticket %llu names prompt %llu of %llu",
                       (unsigned long long)ticket.ticket, (unsigned long long)ticket.prompt_id,
                       (unsigned long long)prompts_count(w->args->prompts));
    }
    RL_TRY(ticket_queue_push(&w->queue, &ticket));
    w->open++;
    return RL_OK;
}

static rl_status take_partial(struct worker *w, const struct channel_message *message)
{
    struct trajectory_group *group = NULL;
    uint64_t id = 0;
    RL_TRY(wire_decode_partial(message, &id, &group));
    ticket_queue_hold(&w->queue, group);
    return RL_OK;
}

/* All that is finished and not with the learner: in the engine, what waiting tickets go on from,
 * and groups on their way to it. */
static rl_status take_snapshot(struct worker *w, const struct channel_message *message)
{
    uint64_t id = 0;
    struct trajectory_group **groups = NULL;
    int32_t inside = 0;
    uint32_t scored = 0;
    RL_TRY(wire_decode_snapshot(message, &id));
    snapshot_reply_start(&w->reply, id);
    RL_TRY(rollout_generator_partials(w->args->generator, &groups, &inside));
    RL_TRY(snapshot_reply_take(&w->reply, groups, (size_t)inside));
    for (size_t i = 0; i < w->queue.count; i++) {
        RL_TRY(snapshot_reply_add(&w->reply, ticket_queue_at(&w->queue, i)->done));
    }
    RL_TRY(w->args->scorer.copy(w->args->scorer.arg, &groups, &scored));
    RL_TRY(snapshot_reply_take(&w->reply, groups, scored));
    RL_TRY(snapshot_reply_add(&w->reply, w->to_score));
    return snapshot_reply_add(&w->reply, w->to_send);
}

static rl_status handle_message(struct worker *w, struct channel_message *message)
{
    switch (message->kind) {
    case WIRE_TICKET:
        return take_ticket(w, message);
    case WIRE_PARTIAL:
        return take_partial(w, message);
    case WIRE_SNAPSHOT:
        return take_snapshot(w, message);
    case WIRE_STOP:
        RL_TRY(wire_decode_stop(message, &w->stop));
        w->stopped = true;
        return RL_OK;
    case CHANNEL_PEER_LOST:
        if (message->peer == w->args->learner) {
            return rl_fail(RL_PEER_LOST, "worker %d: the learner (rank %d) is lost", w->args->rank,
                           message->peer);
        }
        return RL_OK;
    default:
        w->args->deliver(w->args->deliver_arg, message);
        return RL_OK;
    }
}

static rl_status receive_all(struct worker *w, double timeout_s)
{
    struct channel_message message = {0};
    while (!w->stopped) {
        rl_status status = channel_receive(w->args->channel, timeout_s, &message);
        if (status == RL_AGAIN) {
            return RL_OK;
        }
        RL_TRY(status);
        status = handle_message(w, &message);
        channel_message_fini(&message);
        RL_TRY(status);
        timeout_s = 0;
    }
    return RL_OK;
}

/* --- work
 * ------------------------------------------------------------------------------------------- */

/* All samples of a pinned ticket by its one version. The version is taken hold of now, not when its
 * first pass is due. */
static rl_status submit_pinned(struct worker *w, struct rollout_request *request, uint32_t version)
{
    struct rollout_switch only = {.position = 0, .version = version};
    struct rollout_schedule *schedules = calloc(request->samples, sizeof(*schedules));
    if (schedules == NULL) {
        return rl_fail(RL_NO_MEMORY, "worker: out of memory for a ticket");
    }
    for (uint32_t i = 0; i < request->samples; i++) {
        schedules[i] = (struct rollout_schedule){.count = 1, .switches = &only};
    }
    request->schedule = schedules;
    rl_status status = rollout_generator_submit(w->args->generator, request);
    free(schedules);
    if (status == RL_OK) {
        (void)version_pins_image(&w->pins, version);
    }
    return status;
}

static rl_status submit_entry(struct worker *w, const struct ticket_entry *entry)
{
    const struct wire_ticket *ticket = &entry->ticket;
    const struct prompt *prompt = prompts_at(w->args->prompts, ticket->prompt_id);
    struct rollout_request request = {.ticket = ticket->ticket,
                                      .prompt_id = ticket->prompt_id,
                                      .epoch = ticket->epoch,
                                      .samples = ticket->sample_count,
                                      .prompt = prompt->tokens,
                                      .prompt_count = prompt->token_count,
                                      .done = entry->done};
    return ticket->pinned ? submit_pinned(w, &request, ticket->version)
                          : rollout_generator_submit(w->args->generator, &request);
}

static rl_status submit_tickets(struct worker *w)
{
    while (w->queue.count > 0) {
        const struct ticket_entry *entry = ticket_queue_at(&w->queue, 0);
        if (awaits_weights(w, entry)) {
            return RL_OK;
        }
        rl_status status = submit_entry(w, entry);
        if (status == RL_AGAIN) {
            return RL_OK;
        }
        RL_TRY(status);
        ticket_queue_pop(&w->queue);
    }
    return RL_OK;
}

/* The newest version that is not in use yet, held until it is. */
static rl_status find_weights(struct worker *w)
{
    uint32_t newest = 0;
    RL_TRY(weight_source_latest(w->args->weights, &newest, &w->weights_coming));
    if (w->has_weights && newest == w->version) {
        return RL_AGAIN;
    }
    rl_status status = weight_source_acquire(w->args->weights, newest, &w->loading);
    if (status == RL_AGAIN || status == RL_NOT_FOUND) {
        w->weights_coming = true; /* a newer one has taken its place */
        return RL_AGAIN;
    }
    w->is_loading = status == RL_OK;
    return status;
}

static rl_status switch_weights(struct worker *w)
{
    rl_status status = w->is_loading ? RL_OK : find_weights(w);
    if (status == RL_OK) {
        status = rollout_generator_load_weights(w->args->generator, w->loading.nearest,
                                                w->loading.version);
        w->weights_coming = w->weights_coming || status == RL_AGAIN;
    }
    if (status == RL_AGAIN) {
        return RL_OK;
    }
    RL_TRY(status);
    w->is_loading = false;
    w->version = w->loading.version;
    w->has_weights = true;
    return RL_OK;
}

/* Finished groups to the scorer, scored ones to the learner, as far as they go. */
static rl_status move_groups(struct worker *w, bool *moved)
{
    const struct rollout_worker_args *args = w->args;
    *moved = false;
    for (;;) {
        if (w->to_score == NULL && rollout_generator_take(args->generator, &w->to_score) == RL_OK) {
            w->to_score->worker = args->rank;
            version_pins_trim(&w->pins, args->generator);
        }
        if (w->to_score == NULL) {
            break;
        }
        rl_status status = args->scorer.submit(args->scorer.arg, w->to_score);
        if (status == RL_AGAIN) {
            break;
        }
        RL_TRY(status);
        w->to_score = NULL;
        *moved = true;
    }
    for (;;) {
        if (w->to_send == NULL && args->scorer.take(args->scorer.arg, &w->to_send) == RL_OK) {
            w->to_send->finished_s = rl_clock_now_s(NULL);
        }
        if (w->to_send == NULL) {
            return RL_OK;
        }
        struct channel_message message = {.peer = args->learner};
        RL_TRY(wire_encode_group(w->to_send, &message));
        rl_status status = channel_send(args->channel, &message);
        channel_message_fini(&message);
        if (status == RL_AGAIN) {
            return RL_OK;
        }
        RL_TRY(status);
        trajectory_group_destroy(w->to_send);
        w->to_send = NULL;
        w->open--;
        *moved = true;
    }
}

static rl_status send_status(struct worker *w, double now)
{
    const struct rollout_worker_args *args = w->args;
    const struct rollout_counters *counters = rollout_generator_counters(args->generator);
    uint32_t running = (uint32_t)rollout_generator_running(args->generator);
    struct wire_status report = {.rank = (uint32_t)args->rank,
                                 .version = w->version,
                                 .running_sequences = running,
                                 .tickets_open = w->open,
                                 .tokens_generated = counters->sampled_tokens,
                                 .prompt_tokens =
                                     counters->forwarded_tokens - counters->sampled_tokens,
                                 .weight_switches = counters->switches,
                                 .passes = counters->times,
                                 .decode_busy_s = w->busy_s,
                                 .idle_s = w->idle_s,
                                 .cpu_s = rl_clock_process_cpu_s()};
    memcpy(report.time_s, w->time_s, sizeof(report.time_s));
    report.time_s[RL_ROLLOUT_TIME_PREFILL] = counters->prefill_s;
    report.time_s[RL_ROLLOUT_TIME_DECODE] = counters->decode_s;
    report.time_s[RL_ROLLOUT_TIME_SAMPLE] = counters->sample_s;
    struct channel_message message = {.peer = args->learner};
    w->next_status_s = now + args->status_every_s;
    RL_TRY(wire_encode_status(&report, &message));
    rl_status status = channel_send(args->channel, &message);
    channel_message_fini(&message);
    return status == RL_AGAIN ? RL_OK : status;
}

static rl_status run_pass(struct worker *w, bool *busy)
{
    double start = rl_clock_now_s(NULL);
    double passes = pass_s(w);
    if (w->has_weights) {
        RL_TRY(rollout_generator_tick(w->args->generator, busy));
    }
    w->busy_s += *busy ? rl_clock_now_s(NULL) - start : 0;
    w->lap_s += pass_s(w) - passes; /* the generator has counted that */
    return RL_OK;
}

/* Sleep on the channel. */
static rl_status wait_for_work(struct worker *w)
{
    enum rl_rollout_time part = awaited(w);
    struct rl_wait wait = rl_wait_begin(w->args->waits, awaited_name(part));
    /* Scores and weights come from threads of this rank, which do not wake this one. */
    bool soon = part == RL_ROLLOUT_TIME_REWARD_WAIT || part == RL_ROLLOUT_TIME_WEIGHT_WAIT;
    rl_status status = receive_all(w, soon ? 0.0002 : 0.002);
    w->idle_s += rl_wait_end(&wait);
    lap(w, part);
    return status;
}

static rl_status run_round(struct worker *w)
{
    bool busy = false;
    bool moved = false;
    RL_TRY(receive_all(w, 0));
    lap(w, RL_ROLLOUT_TIME_OTHER);
    RL_TRY(switch_weights(w));
    lap(w, RL_ROLLOUT_TIME_WEIGHT_WAIT);
    RL_TRY(submit_tickets(w));
    RL_TRY(run_pass(w, &busy));
    RL_TRY(w->pins.status);
    RL_TRY(move_groups(w, &moved));
    RL_TRY(snapshot_reply_send(&w->reply, w->args->channel, w->args->learner));
    if (w->lap_s >= w->next_status_s) {
        RL_TRY(send_status(w, rl_clock_now_s(NULL)));
    }
    lap(w, RL_ROLLOUT_TIME_OTHER);
    return busy || moved ? RL_OK : wait_for_work(w);
}

rl_status rollout_worker_run(const struct rollout_worker_args *args, struct wire_stop *stop)
{
    struct worker w = {
        .args = args, .lap_s = rl_clock_now_s(NULL), .pins = {.source = args->weights}};
    rl_status status = RL_OK;
    rollout_generator_set_image_source(args->generator, version_pins_image, &w.pins);
    while (status == RL_OK && !w.stopped) {
        if (atomic_load_explicit(args->cancel, memory_order_relaxed)) {
            status = RL_INTERRUPTED;
            break;
        }
        status = run_round(&w);
    }
    if (status == RL_OK) {
        *stop = w.stop;
        (void)send_status(&w, rl_clock_now_s(NULL)); /* last figures for the summary */
    }
    trajectory_group_destroy(w.to_score);
    trajectory_group_destroy(w.to_send);
    ticket_queue_fini(&w.queue);
    snapshot_reply_fini(&w.reply);
    rollout_generator_set_image_source(args->generator, NULL, NULL);
    version_pins_trim(&w.pins, NULL);
    weight_source_release(args->weights);
    return status;
}
