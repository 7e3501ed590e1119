/* Reference RMSNorm (Zhang and Sennrich 2019): xhat = x / sqrt(mean(x^2) + epsilon), y = xhat w.
 * Backward: dx = r (dy w - xhat mean(dy w xhat)), dweight += sum over rows of dy xhat. */
#include "kernels/ref/ops_ref.h"

#include <math.h>

void rmsnorm_forward_ref(const struct kernel_rmsnorm_args *a, struct rl_pool *pool)
{
    (void)pool;
    for (int64_t m = 0; m < a->m; m++) {
        const float *x = a->x + m * a->c;
        double sum = 0.0;
        for (int64_t c = 0; c < a->c; c++) {
            sum += (double)x[c] * (double)x[c];
        }
        float inv = (float)(1.0 / sqrt(sum / (double)a->c + (double)a->epsilon));
        for (int64_t c = 0; c < a->c; c++) {
            a->y[m * a->c + c] = x[c] * inv * a->weight[c];
        }
        if (a->inv_rms != NULL) {
            a->inv_rms[m] = inv;
        }
    }
}

static void norm_weight_gradient(const struct kernel_rmsnorm_args *a)
{
    for (int64_t c = 0; c < a->c; c++) {
        double sum = (double)a->dweight[c];
        for (int64_t m = 0; m < a->m; m++) {
            sum += (double)a->dy[m * a->c + c] * (double)a->x[m * a->c + c] * (double)a->inv_rms[m];
        }
        a->dweight[c] = (float)sum;
    }
}

void rmsnorm_backward_ref(const struct kernel_rmsnorm_args *a, struct rl_pool *pool)
{
    (void)pool;
    norm_weight_gradient(a); /* first: dx may be dy */
    for (int64_t m = 0; m < a->m; m++) {
        const float *x = a->x + m * a->c;
        const float *dy = a->dy + m * a->c;
        float *dx = a->dx + m * a->c;
        double inv = (double)a->inv_rms[m];
        double dot = 0.0;
        for (int64_t c = 0; c < a->c; c++) {
            dot += (double)dy[c] * (double)a->weight[c] * (double)x[c] * inv;
        }
        dot /= (double)a->c;
        for (int64_t c = 0; c < a->c; c++) {
            double value = inv * ((double)dy[c] * (double)a->weight[c] - (double)x[c] * inv * dot);
            value += a->accumulate ? (double)dx[c] : 0.0;
            dx[c] = (float)value;
        }
    }
}
