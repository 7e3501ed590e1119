/* FIPO's influence weights (arXiv 2603.19835, equations 5 to 7, and the rules that only the
 * authors' code has). Owns the scan over the future of a sequence; the invariant is that a token's
 * weight depends on tokens at and after it only, and on detached values only. */
#include "trainer/objective.h"

#include <math.h>

/* With range 0 the authors' code knows an upper bound only. */
#define FIPO_UNRANGED_MAX 10.0
/* Bounds of the weight where the safety rule holds. */
#define FIPO_SAFE_LOW 0.8
#define FIPO_SAFE_HIGH 1.0

void objective_fipo_start(const struct objective_options *options, struct objective_fipo *fipo)
{
    double range = options->fipo_clip_range;
    *fipo = (struct objective_fipo){
        .gamma = exp2(-1.0 / options->fipo_decay_rate),
        .log_delta = options->delta > 0 ? log(options->delta) : INFINITY,
        .influence_low = options->fipo_clip_high_only ? 1.0 : 1.0 - range,
        .influence_high = 1.0 + range,
        .safety = options->fipo_safety_threshold > 0 ? options->fipo_safety_threshold : INFINITY,
        .decay_over_masked = options->fipo_decay_over_masked,
    };
    if (range <= 0) {
        fipo->influence_low = 0;
        fipo->influence_high = FIPO_UNRANGED_MAX;
    }
}

void objective_fipo_masked(struct objective_fipo *fipo)
{
    if (fipo->decay_over_masked) {
        fipo->accumulator *= fipo->gamma;
    }
}

void objective_fipo_token(struct objective_fipo *fipo, double log_ratio, double advantage,
                          struct objective_influence *out)
{
    bool participates = !(log_ratio > fipo->log_delta);
    fipo->accumulator = (participates ? log_ratio : 0) + fipo->gamma * fipo->accumulator;
    double weight = fmin(fmax(exp(fipo->accumulator), fipo->influence_low), fipo->influence_high);
    double clipped = weight;
    if (advantage < 0 && exp(log_ratio) > fipo->safety) {
        weight = fmin(fmax(weight, FIPO_SAFE_LOW), FIPO_SAFE_HIGH);
    }
    *out = (struct objective_influence){
        .weight = weight,
        .future_kl = fipo->accumulator,
        .participates = participates,
        .safety = weight < clipped || weight > clipped,
    };
}
