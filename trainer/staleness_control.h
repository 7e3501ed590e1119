/* async.max_staleness auto: the smallest bound on staleness with which the learner does not wait
 * for samples. Pure: fed with what each step cost, it says which bound holds from then on.
 *
 * Steps are judged in windows. A window in which the learner waited longer than a few per cent of
 * the time raises the bound by one. A raise that gains nothing is taken back (it is not the bound
 * that keeps the learner waiting, but generation) and not tried again for a while. The bound is
 * lowered when at each step of a window at least one whole further batch was already waiting, or,
 * as a trial, after a long time without a change; a lower bound that costs time is taken back and
 * the next trial comes later. */
#ifndef FORESIGHT_TRAINER_STALENESS_CONTROL_H
#define FORESIGHT_TRAINER_STALENESS_CONTROL_H

#include <stdint.h>

enum { STALENESS_CONTROL_CAP = 16, STALENESS_CONTROL_WINDOW = 12 };

enum staleness_move {
    STALENESS_KEPT,
    STALENESS_RAISED,      /* the learner waited */
    STALENESS_RAISED_BACK, /* the lower bound made the learner wait */
    STALENESS_LOWERED,     /* more samples waited than were needed, or a trial */
    STALENESS_LOWERED_BACK /* the higher bound gained nothing: generation is the bottleneck */
};

/* Caller's storage, no pointers: it may be saved and restored as it stands. */
struct staleness_control {
    uint32_t eta; /* bound for new tickets */
    uint32_t
        limit; /* oldest age to train on: eta, and the bound before it while its tickets live */
    uint32_t limit_steps;                    /* until limit becomes eta */
    uint32_t skip;                           /* steps still to be ignored after a change */
    uint32_t steps;                          /* in the window */
    uint32_t surplus_min;                    /* batches in excess, least of the window */
    uint32_t last_move;                      /* enum staleness_move that the window judges */
    uint32_t quiet;                          /* windows since the last change */
    uint32_t raise_wait;                     /* windows until a raise may be tried again */
    uint32_t raise_patience, lower_patience; /* windows; doubled by trials that fail */
    double wait_s, step_s;                   /* of the window */
    double idle;                             /* share waited in the last full window */
    double idle_before;                      /* the same before the last change */
};

/* Begin with the bound `eta` (at most STALENESS_CONTROL_CAP). */
void staleness_control_init(struct staleness_control *control, uint32_t eta);

/* A step took step_s in all, of which the learner waited wait_s for its batch; when it took the
 * batch, `surplus` whole further batches were waiting. Returns what changed. */
enum staleness_move staleness_control_step(struct staleness_control *control, double step_s,
                                           double wait_s, uint32_t surplus);

/* Why, as the end of a sentence about the move. Static. */
const char *staleness_control_reason(enum staleness_move move);

#endif
