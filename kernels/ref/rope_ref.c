/* Reference rotary embedding in the "half" convention: element i is paired with i + D/2. */
#include "kernels/ref/ops_ref.h"

/* `sign` +1 rotates forward, -1 back. */
static void rope_rotate(const struct kernel_rope_args *a, float sign)
{
    int64_t half = a->d / 2;
    for (int64_t row = 0; row < a->n * a->heads; row++) {
        const float *cosine = a->cosine + a->positions[row / a->heads] * half;
        const float *sine = a->sine + a->positions[row / a->heads] * half;
        float *low = a->x + row * a->d;
        float *high = low + half;
        for (int64_t i = 0; i < half; i++) {
            double c = (double)cosine[i];
            double s = (double)(sine[i] * sign);
            double x0 = (double)low[i];
            double x1 = (double)high[i];
            low[i] = (float)(x0 * c - x1 * s);
            high[i] = (float)(x1 * c + x0 * s);
        }
    }
}

void rope_forward_ref(const struct kernel_rope_args *a, struct rl_pool *pool)
{
    (void)pool;
    rope_rotate(a, 1.0f);
}

void rope_backward_ref(const struct kernel_rope_args *a, struct rl_pool *pool)
{
    (void)pool;
    rope_rotate(a, -1.0f);
}
