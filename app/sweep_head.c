/* Rank 0 of a sweep: which trial goes where and when. Invariant: a trial is at work in one place at
 * most, and whether it is finished is what its folder says. */
#include "app/signals.h"
#include "app/sweep_message.h"
#include "app/sweep_table.h"

#include "core/clock.h"
#include "core/log.h"
#include "transport/channel_mpi.h"
#include "transport/world.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* HEAD_ELSEWHERE: of another shard. */
enum head_state {
    HEAD_WAITING,
    HEAD_WORKING,
    HEAD_AT_RUNG,
    HEAD_DONE,
    HEAD_FAILED,
    HEAD_STOPPED,
    HEAD_ELSEWHERE
};

static const double head_pause_s = 0.01;
static const double head_flush_s = 10.0;

struct head_trial {
    enum head_state state;
    int rank;       /* where it works */
    double began_s; /* when it began to */
};

struct head_rank {
    bool lost;
    size_t capacity, busy;
};

struct head {
    const struct sweep *sweep;
    const struct sweep_plan *plan;
    struct world *world;
    struct channel *channel; /* NULL: alone */
    struct sweep_pool pool;
    struct sweep_table table;
    struct head_trial *trials;    /* [count] */
    struct head_rank *ranks;      /* [world size] */
    struct sweep_table_row *rows; /* [count] */
    double *seconds, *estimates;  /* [count] */
    uint64_t plan_hash;
    size_t count;  /* trials, then the base models if they are evaluated */
    size_t rung;   /* rungs below it are decided */
    bool stopping; /* asked to */
};

/* --- what is where --- */

static int64_t steps_of(const struct head *h, size_t trial)
{
    if (trial >= h->plan->trial_count) {
        return 0;
    }
    return h->rung < h->plan->rung_count ? h->plan->rungs[h->rung] : h->plan->trials[trial].steps;
}

static size_t count_of(const struct head *h, enum head_state state)
{
    size_t count = 0;
    for (size_t i = 0; i < h->count; i++) {
        count += h->trials[i].state == state;
    }
    return count;
}

/* Trials of this shard, and base models. */
static size_t count_own(const struct head *h)
{
    return h->count - count_of(h, HEAD_ELSEWHERE);
}

static size_t slots_of(const struct head *h)
{
    size_t slots = 0;
    for (int rank = 0; rank < world_size(h->world); rank++) {
        slots += h->ranks[rank].capacity;
    }
    return slots;
}

static void reckon(struct head *h)
{
    sweep_plan_estimate(h->plan, h->seconds, h->estimates);
}

/* Seconds to go; NAN while nothing is measured. */
static double eta_s(const struct head *h)
{
    double left_s = 0;
    bool measured = false;
    for (size_t i = 0; i < h->plan->trial_count; i++) {
        const struct head_trial *trial = &h->trials[i];
        double worked_s = rl_clock_now_s(NULL) - trial->began_s;
        measured = measured || !isnan(h->seconds[i]);
        if (trial->state == HEAD_WORKING) {
            left_s += fmax(h->estimates[i] - worked_s, 0);
        } else if (trial->state == HEAD_WAITING || trial->state == HEAD_AT_RUNG) {
            left_s += h->estimates[i];
        }
    }
    size_t slots = slots_of(h);
    return measured && slots > 0 ? left_s / (double)slots : NAN;
}

static void draw(struct head *h)
{
    struct sweep_table_totals totals = {.trials = count_own(h),
                                        .done = count_of(h, HEAD_DONE),
                                        .failed = count_of(h, HEAD_FAILED),
                                        .stopped = count_of(h, HEAD_STOPPED),
                                        .eta_s = eta_s(h)};
    for (size_t i = 0; i < h->count; i++) {
        if (h->trials[i].state == HEAD_WORKING) {
            h->rows[totals.running++] = (struct sweep_table_row){
                .trial = i, .steps = steps_of(h, i), .began_s = h->trials[i].began_s};
        }
    }
    sweep_table_draw(&h->table, h->sweep, h->rows, &totals);
}

/* --- ends of jobs --- */

static void say_end(struct head *h, size_t trial, const struct sweep_outcome *outcome)
{
    static const char *const words[] = {"done", "failed", "stopped"};
    char took[16];
    size_t finished = count_of(h, HEAD_DONE) + count_of(h, HEAD_FAILED) + count_of(h, HEAD_STOPPED);
    double seconds = rl_clock_now_s(NULL) - h->trials[trial].began_s;
    snprintf(took, sizeof took, "%.1fs", seconds);
    sweep_table_say(&h->table, "[%zu/%zu] %s: %s after %s%s%s", finished, count_own(h),
                    sweep_trial_name(h->sweep, trial),
                    h->trials[trial].state == HEAD_AT_RUNG ? "at its rung" : words[outcome->end],
                    took, outcome->reason[0] != '\0' ? ": " : "", outcome->reason);
}

static void note_end(struct head *h, int rank, const struct sweep_job *job,
                     const struct sweep_outcome *outcome)
{
    struct head_trial *trial = &h->trials[job->trial];
    h->ranks[rank].busy--;
    if (outcome->end == SWEEP_END_STOPPED) {
        trial->state = HEAD_WAITING;
    } else if (outcome->end == SWEEP_END_FAILED) {
        trial->state = HEAD_FAILED;
    } else {
        trial->state = job->last ? HEAD_DONE : HEAD_AT_RUNG;
    }
    if (trial->state == HEAD_DONE && job->trial < h->plan->trial_count) {
        h->seconds[job->trial] = sweep_seconds(h->sweep, job->trial);
        reckon(h);
    }
    say_end(h, job->trial, outcome);
}

static void lose_rank(struct head *h, int rank)
{
    world_note_lost(h->world, rank);
    h->ranks[rank] = (struct head_rank){.lost = true};
    for (size_t i = 0; i < h->count; i++) {
        if (h->trials[i].state == HEAD_WORKING && h->trials[i].rank == rank) {
            h->trials[i].state = HEAD_WAITING;
            sweep_table_say(&h->table, "rank %d is lost: %s is handed out again", rank,
                            sweep_trial_name(h->sweep, i));
        }
    }
}

static rl_status hear(struct head *h, int rank, const struct sweep_message *message)
{
    if (h->ranks[rank].lost) {
        return RL_OK;
    }
    if (message->kind == SWEEP_MESSAGE_READY) {
        if (message->plan_hash != h->plan_hash) {
            return rl_fail(RL_INVALID,
                           "rank %d has read another plan than rank 0: do the ranks see "
                           "the same files?",
                           rank);
        }
        h->ranks[rank].capacity = message->capacity;
    } else if (message->kind == SWEEP_MESSAGE_END && message->job.trial < h->count) {
        note_end(h, rank, &message->job, &message->outcome);
    }
    return RL_OK;
}

static rl_status hear_all(struct head *h)
{
    struct channel_message message = {0};
    struct sweep_message said;
    rl_status status = RL_OK;
    if (h->channel == NULL) {
        return RL_OK;
    }
    (void)channel_mpi_pump_once(h->channel, NULL);
    while (status == RL_OK && channel_receive(h->channel, 0, &message) == RL_OK) {
        if (message.kind == CHANNEL_PEER_LOST) {
            lose_rank(h, message.peer);
        } else {
            status = sweep_message_read(&message, &said);
            status = status == RL_OK ? hear(h, message.peer, &said) : status;
        }
        channel_message_fini(&message);
    }
    return status;
}

static void take_own(struct head *h)
{
    struct sweep_job job;
    struct sweep_outcome outcome;
    while (sweep_pool_take(&h->pool, &job, &outcome)) {
        note_end(h, 0, &job, &outcome);
    }
}

/* --- handing out --- */

/* Base models first, since they show soonest what is wrong with the evaluation; then the trial that
 * will take longest. `count` if none waits. */
static size_t next_trial(const struct head *h)
{
    size_t best = h->count;
    for (size_t i = h->plan->trial_count; i < h->count; i++) {
        if (h->trials[i].state == HEAD_WAITING) {
            return i;
        }
    }
    for (size_t i = 0; i < h->plan->trial_count; i++) {
        if (h->trials[i].state == HEAD_WAITING &&
            (best == h->count || h->estimates[i] > h->estimates[best])) {
            best = i;
        }
    }
    return best;
}

static rl_status start_on(struct head *h, int rank, size_t trial)
{
    struct sweep_message order = {
        .kind = SWEEP_MESSAGE_JOB,
        .job = {.trial = trial,
                .steps = steps_of(h, trial),
                .last = trial >= h->plan->trial_count || h->rung == h->plan->rung_count}};
    rl_status status = rank == 0 ? sweep_pool_start(&h->pool, &order.job)
                                 : sweep_message_send(h->channel, rank, &order);
    if (status == RL_OK) {
        h->ranks[rank].busy++;
        h->trials[trial].state = HEAD_WORKING;
        h->trials[trial].rank = rank;
        h->trials[trial].began_s = rl_clock_now_s(NULL);
    }
    return status;
}

static rl_status hand_out(struct head *h)
{
    for (int rank = 0; rank < world_size(h->world); rank++) {
        while (h->ranks[rank].busy < h->ranks[rank].capacity) {
            size_t trial = next_trial(h);
            rl_status status = trial < h->count ? start_on(h, rank, trial) : RL_AGAIN;
            if (status == RL_AGAIN || status == RL_PEER_LOST) {
                break;
            }
            RL_TRY(status);
        }
    }
    return RL_OK;
}

/* --- rungs --- */

/* Mean over the seeds that came to the rung, on split A; NAN for a cell with none. */
static rl_status score_cells(struct head *h, double *scores)
{
    for (size_t c = 0; c < h->plan->cell_count; c++) {
        double sum = 0;
        size_t count = 0;
        for (size_t i = 0; i < h->plan->trial_count; i++) {
            double score = 0;
            if (h->plan->trials[i].cell == c && h->trials[i].state == HEAD_AT_RUNG) {
                RL_TRY(sweep_score(h->sweep, i, h->plan->rungs[h->rung], &score));
                sum += score;
                count++;
            }
        }
        scores[c] = count > 0 ? sum / (double)count : NAN;
    }
    return RL_OK;
}

static rl_status stop_early(struct head *h, size_t trial, double score)
{
    char reason[SWEEP_REASON_BYTES];
    snprintf(reason, sizeof reason, "after %" PRId64 " steps: %.4f on split A",
             h->plan->rungs[h->rung], score);
    h->trials[trial].state = HEAD_STOPPED;
    RL_TRY(sweep_write_result(h->sweep, trial, "stopped_early", reason));
    sweep_table_say(&h->table, "%s: stopped early %s", sweep_trial_name(h->sweep, trial), reason);
    return RL_OK;
}

static rl_status decide_with(struct head *h, double *scores, bool *goes_on)
{
    RL_TRY(score_cells(h, scores));
    sweep_plan_halve(h->plan, scores, goes_on);
    for (size_t i = 0; i < h->plan->trial_count; i++) {
        size_t cell = h->plan->trials[i].cell;
        if (h->trials[i].state == HEAD_AT_RUNG && !goes_on[cell]) {
            RL_TRY(stop_early(h, i, scores[cell]));
        } else if (h->trials[i].state == HEAD_AT_RUNG) {
            h->trials[i].state = HEAD_WAITING;
        }
    }
    h->rung++;
    return RL_OK;
}

/* All that live are at the rung: the best go on. */
static rl_status decide(struct head *h)
{
    double *scores = calloc(h->plan->cell_count, sizeof *scores);
    bool *goes_on = calloc(h->plan->cell_count, sizeof *goes_on);
    rl_status status = scores != NULL && goes_on != NULL
                           ? decide_with(h, scores, goes_on)
                           : rl_fail(RL_NO_MEMORY, "sweep: out of memory");
    free(scores);
    free(goes_on);
    return status;
}

static bool stage_is_over(const struct head *h)
{
    for (size_t i = 0; i < h->plan->trial_count; i++) {
        if (h->trials[i].state == HEAD_WAITING || h->trials[i].state == HEAD_WORKING) {
            return false;
        }
    }
    return true;
}

/* --- the loop --- */

static rl_status tell_all(struct head *h, enum sweep_message_kind kind)
{
    struct sweep_message message = {.kind = kind};
    for (int rank = 1; rank < world_size(h->world); rank++) {
        if (!h->ranks[rank].lost) {
            (void)sweep_message_send(h->channel, rank, &message);
        }
    }
    return RL_OK;
}

static rl_status stop(struct head *h)
{
    h->stopping = true;
    sweep_table_say(&h->table, "asked to stop: the trials at work write their checkpoints");
    sweep_pool_stop(&h->pool);
    return tell_all(h, SWEEP_MESSAGE_STOP);
}

static rl_status one_round(struct head *h)
{
    RL_TRY(hear_all(h));
    take_own(h);
    if (signals_stop_requested() != 0 && !h->stopping) {
        RL_TRY(stop(h));
    }
    if (!h->stopping) {
        if (h->rung < h->plan->rung_count && stage_is_over(h)) {
            RL_TRY(decide(h));
        }
        RL_TRY(hand_out(h));
    }
    draw(h);
    return RL_OK;
}

static bool is_over(const struct head *h)
{
    size_t working = count_of(h, HEAD_WORKING);
    return working == 0 &&
           (h->stopping || (count_of(h, HEAD_WAITING) == 0 && count_of(h, HEAD_AT_RUNG) == 0));
}

static rl_status loop(struct head *h)
{
    while (!is_over(h)) {
        RL_TRY(one_round(h));
        rl_clock_sleep_s(NULL, head_pause_s);
    }
    return h->stopping ? RL_INTERRUPTED : RL_OK;
}

/* --- beginning and end --- */

/* Whether nothing is missing of a trial that is done: counts that were removed are made again. */
static rl_status check_done(struct head *h, size_t trial)
{
    char model[SWEEP_PATH_BYTES];
    char counts[SWEEP_PATH_BYTES];
    struct sweep_job job = {.trial = trial, .last = true};
    job.steps = trial < h->plan->trial_count ? h->plan->trials[trial].steps : 0;
    RL_TRY(sweep_check_counts(h->sweep, trial));
    bool lacks = sweep_next_evaluation(h->sweep, &job, model, counts);
    h->trials[trial].state = lacks ? HEAD_WAITING : HEAD_DONE;
    return RL_OK;
}

/* With rungs a trial that goes on or was stopped takes part in its rung's decision again: its
 * figures are there. */
static rl_status read_state(struct head *h, size_t trial)
{
    char state[32];
    if (!sweep_is_own(h->sweep, trial)) {
        h->trials[trial].state = HEAD_ELSEWHERE;
        return RL_OK;
    }
    RL_TRY(sweep_result_state(h->sweep, trial, state));
    bool rungs = h->plan->rung_count > 0 && trial < h->plan->trial_count;
    if (strcmp(state, "failed") == 0) {
        h->trials[trial].state = HEAD_FAILED;
    } else if (state[0] != '\0') {
        RL_TRY(check_done(h, trial));
        h->trials[trial].state = rungs ? HEAD_WAITING : h->trials[trial].state;
    }
    if (state[0] != '\0') {
        h->seconds[trial] = sweep_seconds(h->sweep, trial);
    }
    return RL_OK;
}

static rl_status open_head(struct head *h)
{
    size_t count = sweep_count(h->sweep);
    h->count = count;
    h->trials = calloc(count, sizeof *h->trials);
    h->rows = calloc(count, sizeof *h->rows);
    h->seconds = calloc(count, sizeof *h->seconds);
    h->estimates = calloc(count, sizeof *h->estimates);
    h->ranks = calloc((size_t)world_size(h->world), sizeof *h->ranks);
    if (h->trials == NULL || h->rows == NULL || h->seconds == NULL || h->estimates == NULL ||
        h->ranks == NULL) {
        return rl_fail(RL_NO_MEMORY, "sweep: out of memory");
    }
    for (size_t i = 0; i < count; i++) {
        h->seconds[i] = NAN;
    }
    RL_TRY(sweep_message_plan_hash(h->plan, &h->plan_hash));
    RL_TRY(sweep_pool_open(h->sweep, &h->pool));
    h->ranks[0].capacity = h->pool.capacity;
    for (size_t i = 0; i < h->count; i++) {
        RL_TRY(read_state(h, i));
    }
    reckon(h);
    h->table = sweep_table_open(stdout, world_has_mpi(h->world));
    sweep_table_say(&h->table, "sweep %s: %zu trials in %zu cells%s, %zu finished before; %s",
                    h->plan->name, h->plan->trial_count, h->plan->cell_count,
                    h->plan->base_count == 0   ? ""
                    : h->plan->base_count == 1 ? " and the base model"
                                               : " and their base models",
                    count_own(h) - count_of(h, HEAD_WAITING), h->sweep->folder);
    return RL_OK;
}

static bool flushed(void *arg)
{
    return channel_mpi_flushed(arg);
}

static void close_head(struct head *h)
{
    if (h->table.out != NULL) {
        sweep_table_close(&h->table);
    }
    if (h->channel != NULL) {
        (void)tell_all(h, SWEEP_MESSAGE_LEAVE);
        (void)channel_mpi_pump(h->channel, NULL, flushed, h->channel, head_flush_s);
    }
    sweep_pool_close(&h->pool);
    free(h->trials);
    free(h->rows);
    free(h->seconds);
    free(h->estimates);
    free(h->ranks);
}

rl_status sweep_head_run(const struct sweep *sweep, struct world *world, struct channel *channel,
                         size_t *failed)
{
    struct head h = {.sweep = sweep, .plan = sweep->plan, .world = world, .channel = channel};
    rl_status status = open_head(&h);
    if (status == RL_OK) {
        status = loop(&h);
    }
    if (status == RL_OK) {
        *failed = count_of(&h, HEAD_FAILED);
    }
    if (h.ranks != NULL) {
        close_head(&h);
    }
    return status;
}
