/* What the scheduler of a sweep reckons with: how long trials will take, and which cells go on. */
#include "trainer/sweep_plan.h"

#include <math.h>

/* Mean seconds a unit over measured trials, of all (`axis` == axis_count) or of those that have
 * `entry` on `axis`; NAN without any. */
static double rate_of(const struct sweep_plan *plan, const double *seconds, size_t axis,
                      size_t entry)
{
    double sum_s = 0.0;
    double units = 0.0;
    for (size_t i = 0; i < plan->trial_count; i++) {
        bool counts = axis == plan->axis_count || plan->trials[i].entries[axis] == entry;
        if (counts && !isnan(seconds[i])) {
            sum_s += seconds[i];
            units += plan->trials[i].units;
        }
    }
    return units > 0.0 ? sum_s / units : NAN;
}

void sweep_plan_estimate(const struct sweep_plan *plan, const double *seconds, double *estimates)
{
    double overall = rate_of(plan, seconds, plan->axis_count, 0);
    for (size_t i = 0; i < plan->trial_count; i++) {
        estimates[i] = plan->trials[i].units * (isnan(overall) ? 1.0 : overall);
    }
    for (size_t a = 0; a < plan->axis_count && overall > 0.0; a++) {
        for (size_t entry = 0; entry < plan->axes[a].entry_count; entry++) {
            double rate = rate_of(plan, seconds, a, entry);
            for (size_t i = 0; i < plan->trial_count && !isnan(rate); i++) {
                estimates[i] *= plan->trials[i].entries[a] == entry ? rate / overall : 1.0;
            }
        }
    }
    for (size_t i = 0; i < plan->trial_count; i++) {
        estimates[i] = isnan(seconds[i]) ? estimates[i] : seconds[i];
    }
}

void sweep_plan_halve(const struct sweep_plan *plan, const double *scores, bool *goes_on)
{
    size_t living = 0;
    for (size_t c = 0; c < plan->cell_count; c++) {
        living += !isnan(scores[c]);
        goes_on[c] = false;
    }
    /* A share such as 0.3 of 10 must not become 4 by the last bit. */
    double wanted = ceil(plan->settings.halving.keep * (double)living - 1e-9);
    for (size_t kept = 0; (double)kept < wanted; kept++) {
        size_t best = plan->cell_count;
        for (size_t c = 0; c < plan->cell_count; c++) {
            bool candidate = !goes_on[c] && !isnan(scores[c]);
            if (candidate && (best == plan->cell_count || scores[c] > scores[best])) {
                best = c;
            }
        }
        goes_on[best] = true;
    }
}
