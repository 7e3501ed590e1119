/* `foresight bench async --clock cpu`: both roles in one thread, each on a core of its own in
 * virtual time, which only the CPU time of their real work moves. Whatever else runs on the machine
 * then takes no time; what two cores take from each other (caches, memory bandwidth) is not seen.
 * The work is the very same, and each role sees what the other has done by then. What other threads
 * do in between (comparing hashes, making and applying deltas) takes the core of its side. */
#include "app/bench_async.h"

#include "core/log.h"

#include <math.h>

struct turns {
    struct bench_row *row;
    double engine_s;  /* generating role's clock */
    double learner_s; /* when the learning role is free, or its step ends */
    bool training;
    bool idle; /* the generating role has nothing to do */
};

/* A step begins when its last group is there. RL_AGAIN: one is still to come. */
static rl_status begin_step(struct turns *t, uint64_t step)
{
    double seconds;
    RL_TRY(bench_row_take(t->row));
    for (uint32_t i = 0; i < t->row->batch.count; i++) {
        t->learner_s = fmax(t->learner_s, t->row->batch.groups[i]->finished_s);
    }
    RL_TRY(bench_row_train(t->row, step, &seconds));
    t->learner_s += seconds;
    t->training = true;
    return RL_OK;
}

/* Deltas: encoding is the learner's side, all else that the push does the engine's. */
static rl_status push(struct turns *t)
{
    struct bench_push cost;
    struct bench_row *row = t->row;
    RL_TRY(bench_path_push(row->path, row->report.version, &cost));
    double encode_s = fmin(cost.encode_s, cost.total_s);
    t->learner_s += encode_s;
    row->totals.learner_busy_s += encode_s;
    row->publish_s += encode_s;
    t->engine_s += cost.total_s - encode_s;
    row->engine.beside_s += cost.total_s - encode_s;
    return RL_OK;
}

static rl_status end_step(struct turns *t)
{
    RL_TRY(bench_row_settle(t->row));
    t->training = false;
    t->idle = false;
    return t->row->path != NULL ? push(t) : RL_OK;
}

/* One round of the generating role; without work it sleeps until the learning one shows its step.
 */
static rl_status engine_round(struct turns *t)
{
    bool busy;
    const struct bench_workload *workload = t->row->workload;
    double begin_s = bench_now_s(workload);
    t->row->engine.offset_s = t->engine_s - begin_s;
    RL_TRY(bench_engine_round(&t->row->engine, &busy));
    t->engine_s += bench_now_s(workload) - begin_s;
    t->idle = !busy;
    if (t->idle && t->training) {
        t->engine_s = fmax(t->engine_s, t->learner_s);
    }
    return RL_OK;
}

rl_status bench_row_run_in_turns(struct bench_row *row, struct bench_mark *from,
                                 struct bench_mark *to)
{
    struct turns t = {.row = row};
    uint64_t warmup = (uint64_t)row->workload->shape.warmup_steps;
    uint64_t steps = warmup + (uint64_t)row->workload->shape.steps;
    uint64_t step = 0;
    while (step < steps) {
        if (t.training && t.learner_s <= t.engine_s) {
            RL_TRY(end_step(&t));
            step++;
            if (step == warmup || step == steps) {
                struct bench_mark *mark = step == warmup ? from : to;
                *mark = bench_row_mark(row);
                mark->time_s = t.learner_s;
            }
            continue;
        }
        rl_status status = t.training ? RL_AGAIN : begin_step(&t, step);
        if (status != RL_AGAIN) {
            RL_TRY(status);
            continue;
        }
        if (t.idle && !t.training) {
            return rl_fail(RL_INTERNAL, "bench: neither role has anything to do");
        }
        RL_TRY(engine_round(&t));
    }
    return RL_OK;
}
