/* See staleness_control.h. The invariant: eta <= STALENESS_CONTROL_CAP, and limit >= eta. */
#include "trainer/staleness_control.h"

#include <math.h>
#include <stdbool.h>

static const double idle_limit = 0.03; /* share of the time that the learner may wait */
static const double idle_margin = 0.1; /* smaller changes of the share waited are noise */
enum { PATIENCE_MIN = 16, PATIENCE_MAX = 128 };

void staleness_control_init(struct staleness_control *control, uint32_t eta)
{
    *control = (struct staleness_control){.eta = eta,
                                          .limit = eta,
                                          .skip = eta + 1,
                                          .surplus_min = UINT32_MAX,
                                          .raise_patience = PATIENCE_MIN,
                                          .lower_patience = PATIENCE_MIN};
}

static uint32_t doubled(uint32_t patience)
{
    return patience < PATIENCE_MAX ? 2 * patience : PATIENCE_MAX;
}

/* Tickets made under a larger bound may be as old as that when they are trained on. */
static enum staleness_move change(struct staleness_control *c, uint32_t eta,
                                  enum staleness_move move)
{
    if (eta < c->eta) {
        c->limit_steps = c->limit + 1;
    } else if (eta >= c->limit) {
        c->limit = eta;
        c->limit_steps = 0;
    }
    c->eta = eta;
    c->skip = c->limit + 1; /* until the tickets made before have been consumed */
    c->quiet = 0;
    c->last_move = (uint32_t)move;
    c->idle_before = c->idle;
    return move;
}

/* Less than what is lost in noise. */
static double margin(double idle)
{
    return fmax(idle_limit / 2, idle_margin * idle);
}

/* Was the last change worth it? Otherwise take it back. */
static enum staleness_move judge(struct staleness_control *c)
{
    enum staleness_move last = (enum staleness_move)c->last_move;
    c->last_move = STALENESS_KEPT;
    if (last == STALENESS_RAISED) {
        if (c->idle > idle_limit && c->idle > c->idle_before - margin(c->idle_before)) {
            c->raise_wait = c->raise_patience;
            c->raise_patience = doubled(c->raise_patience);
            return change(c, c->eta - 1, STALENESS_LOWERED_BACK);
        }
        c->raise_patience = PATIENCE_MIN;
    } else if (last == STALENESS_LOWERED) {
        if (c->idle > idle_limit && c->idle > c->idle_before + margin(c->idle_before)) {
            c->lower_patience = doubled(c->lower_patience);
            return change(c, c->eta + 1, STALENESS_RAISED_BACK);
        }
        c->lower_patience = PATIENCE_MIN;
    }
    return STALENESS_KEPT;
}

static enum staleness_move decide(struct staleness_control *c)
{
    enum staleness_move back = judge(c);
    if (back != STALENESS_KEPT) {
        return back;
    }
    c->raise_wait -= c->raise_wait > 0 ? 1 : 0;
    c->quiet++;
    bool plenty = c->surplus_min >= 1;
    if (c->idle > idle_limit && c->eta < STALENESS_CONTROL_CAP && c->raise_wait == 0) {
        return change(c, c->eta + 1, STALENESS_RAISED);
    }
    if (c->eta > 0 && (plenty || c->quiet >= c->lower_patience)) {
        return change(c, c->eta - 1, STALENESS_LOWERED);
    }
    return STALENESS_KEPT;
}

enum staleness_move staleness_control_step(struct staleness_control *control, double step_s,
                                           double wait_s, uint32_t surplus)
{
    struct staleness_control *c = control;
    if (c->limit_steps > 0 && --c->limit_steps == 0) {
        c->limit = c->eta;
    }
    if (c->skip > 0) {
        c->skip--;
        return STALENESS_KEPT;
    }
    c->wait_s += wait_s;
    c->step_s += step_s;
    c->surplus_min = surplus < c->surplus_min ? surplus : c->surplus_min;
    if (++c->steps < STALENESS_CONTROL_WINDOW) {
        return STALENESS_KEPT;
    }
    c->idle = c->step_s > 0 ? c->wait_s / c->step_s : 0;
    enum staleness_move move = decide(c);
    c->steps = 0;
    c->wait_s = 0;
    c->step_s = 0;
    c->surplus_min = UINT32_MAX;
    return move;
}

const char *staleness_control_reason(enum staleness_move move)
{
    switch (move) {
    case STALENESS_RAISED:
        return "the learner waited for samples";
    case STALENESS_RAISED_BACK:
        return "with the lower bound the learner waited";
    case STALENESS_LOWERED:
        return "a lower bound may do";
    case STALENESS_LOWERED_BACK:
        return "the higher bound gained nothing, generation is the bottleneck";
    case STALENESS_KEPT:
    default:
        return "no change";
    }
}
