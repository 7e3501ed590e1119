/* KL estimators of one token: k1, k2, k3 (Schulman, "Approximating KL divergence", 2020), k3 with
 * better gradients, and the k1 sum that is taken off a reward. Pure. */
#include "trainer/objective.h"

#include <math.h>

#define KL_GAP_MAX 20.0   /* bound of -gap before exp */
#define KL_VALUE_MAX 10.0 /* bound of the k3 value */

/* expm1 keeps the digits that exp(-gap) - 1 + gap would cancel for small gaps. */
static double objective_kl3(double gap, double *derivative)
{
    double minus = -gap;
    bool inside = fabs(minus) <= KL_GAP_MAX;
    minus = fmin(fmax(minus, -KL_GAP_MAX), KL_GAP_MAX);
    double grown = expm1(minus);
    double value = grown - minus;
    if (value > KL_VALUE_MAX) {
        *derivative = 0;
        return KL_VALUE_MAX;
    }
    *derivative = inside ? -grown : 0;
    return value;
}

double objective_kl(enum config_kl_type type, double gap, double log_ratio, double *derivative)
{
    double ratio = exp(log_ratio);
    double value = 0;
    switch (type) {
    case CONFIG_KL_K1:
        *derivative = 1;
        return gap;
    case CONFIG_KL_K2:
        *derivative = gap;
        return 0.5 * gap * gap;
    case CONFIG_KL_K3_PLUS:
        value = objective_kl3(gap, derivative);
        *derivative = gap;
        return value;
    case CONFIG_KL_K3_UNBIASED:
        value = objective_kl3(gap, derivative);
        *derivative = fabs(log_ratio) < KL_GAP_MAX ? ratio * (value + *derivative) : 0;
        return ratio * value;
    case CONFIG_KL_K3:
    default:
        return objective_kl3(gap, derivative);
    }
}

double objective_kl_penalty(double beta, const float *logprob, const float *reference,
                            const uint8_t *mask, uint32_t count)
{
    double sum = 0;
    for (uint32_t t = 0; t < count; t++) {
        if (mask != NULL && mask[t] == 0) {
            continue;
        }
        if (!isfinite(logprob[t]) || !isfinite(reference[t])) {
            return NAN;
        }
        sum += (double)logprob[t] - (double)reference[t];
    }
    return beta * sum;
}
