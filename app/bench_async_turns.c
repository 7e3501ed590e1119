/* `foresight bench async --clock cpu`: both roles in one thread, each on a core of its own in
 * virtual time, which only the CPU time of their real work moves. Whatever else runs on the machine
 * then takes no time; what two cores take from each other (caches, memory bandwidth) is not seen.
 * The work is the very same, and each role sees what the other has done by then. */
#include "app/bench_async.h"

#include "core/log.h"

struct turns {
    struct bench_row *row;
    double engine_s;  /* generating role's clock */
    double learner_s; /* when the learning role is free, or its step ends */
    double ready_s;   /* when the next batch was complete; negative: it is not */
    bool training;
};

static void look_for_batch(struct turns *t, double now_s)
{
    uint32_t waiting;
    (void)admission_waiting(t->row->meeting.admission, &waiting);
    bool ready = waiting >= t->row->workload->shape.prompts_per_step;
    t->ready_s = !ready ? -1 : t->ready_s < 0 ? now_s : t->ready_s;
}

static rl_status begin_step(struct turns *t, uint64_t step)
{
    double seconds;
    double begin_s = t->ready_s > t->learner_s ? t->ready_s : t->learner_s;
    RL_TRY(bench_row_take(t->row));
    RL_TRY(bench_row_train(t->row, step, &seconds));
    t->learner_s = begin_s + seconds;
    t->training = true;
    t->ready_s = -1;
    look_for_batch(t, begin_s);
    return RL_OK;
}

/* One round of the generating role; without work it sleeps until the learning one shows its step.
 */
static rl_status engine_round(struct turns *t)
{
    bool busy;
    double begin_s = bench_now_s(t->row->workload);
    RL_TRY(bench_engine_round(&t->row->engine, &busy));
    t->engine_s += bench_now_s(t->row->workload) - begin_s;
    look_for_batch(t, t->engine_s);
    if (!busy && !t->training && t->ready_s < 0) {
        return rl_fail(RL_INTERNAL, "bench: neither role has anything to do");
    }
    if (!busy && t->training && t->engine_s < t->learner_s) {
        t->engine_s = t->learner_s;
    }
    return RL_OK;
}

rl_status bench_row_run_in_turns(struct bench_row *row, struct bench_mark *from,
                                 struct bench_mark *to)
{
    struct turns t = {.row = row, .ready_s = -1};
    uint64_t warmup = (uint64_t)row->workload->shape.warmup_steps;
    uint64_t steps = warmup + (uint64_t)row->workload->shape.steps;
    uint64_t step = 0;
    while (step < steps) {
        if (t.training && t.learner_s <= t.engine_s) {
            RL_TRY(bench_row_settle(row));
            t.training = false;
            step++;
            if (step == warmup || step == steps) {
                struct bench_mark *mark = step == warmup ? from : to;
                *mark = bench_row_mark(row);
                mark->time_s = t.learner_s;
            }
        } else if (!t.training && t.ready_s >= 0) {
            RL_TRY(begin_step(&t, step));
        } else {
            RL_TRY(engine_round(&t));
        }
    }
    return RL_OK;
}
