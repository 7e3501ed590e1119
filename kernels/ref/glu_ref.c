/* Reference gated units (Shazeer 2020): y = act(gate) up with act SiLU or tanh-GELU. */
#include "kernels/ref/ops_ref.h"

#include <math.h>

/* Value and derivative of the activation. */
static void activate(enum kernel_activation activation, double g, double *value, double *slope)
{
    if (activation == KERNEL_SILU) {
        double sigmoid = 1.0 / (1.0 + exp(-g));
        *value = g * sigmoid;
        *slope = sigmoid * (1.0 + g * (1.0 - sigmoid));
        return;
    }
    const double root = 0.79788456080286535588; /* sqrt(2 / pi) */
    const double cubic = 0.044715;
    double t = tanh(root * (g + cubic * g * g * g));
    *value = 0.5 * g * (1.0 + t);
    *slope = 0.5 * (1.0 + t) + 0.5 * g * (1.0 - t * t) * root * (1.0 + 3.0 * cubic * g * g);
}

void glu_forward_ref(const struct kernel_glu_args *a, struct rl_pool *pool)
{
    (void)pool;
    for (int64_t i = 0; i < a->count; i++) {
        double value;
        double slope;
        activate(a->activation, (double)a->gate[i], &value, &slope);
        a->y[i] = (float)(value * (double)a->up[i]);
    }
}

void glu_backward_ref(const struct kernel_glu_args *a, struct rl_pool *pool)
{
    (void)pool;
    for (int64_t i = 0; i < a->count; i++) {
        double value;
        double slope;
        activate(a->activation, (double)a->gate[i], &value, &slope);
        double dy = (double)a->dy[i];
        double up = (double)a->up[i];
        a->dgate[i] = (float)(dy * up * slope);
        a->dup[i] = (float)(dy * value);
    }
}
