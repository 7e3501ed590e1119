/* Reference element-wise sums and the AdamW step; the begin of a pass, which is nothing here. */
#include "kernels/ref/ops_ref.h"

#include <math.h>

enum { SUM_BLOCK = 65536 };

void pass_begin_ref(const struct kernel_pass_args *a, struct rl_pool *pool)
{
    (void)a;
    (void)pool;
}

void add_ref(const struct kernel_add_args *a, struct rl_pool *pool)
{
    (void)pool;
    for (int64_t i = 0; i < a->count; i++) {
        a->y[i] += a->x[i];
    }
}

void sum_squares_ref(const struct kernel_sum_squares_args *a, struct rl_pool *pool)
{
    (void)pool;
    double total = 0.0;
    for (int64_t start = 0; start < a->count; start += SUM_BLOCK) {
        int64_t end = start + SUM_BLOCK < a->count ? start + SUM_BLOCK : a->count;
        double sum = 0.0;
        for (int64_t i = start; i < end; i++) {
            sum += (double)a->x[i] * (double)a->x[i];
        }
        a->block_sums[start / SUM_BLOCK] = sum;
        total += sum;
    }
    *a->sum = total;
}

void adamw_ref(const struct kernel_adamw_args *a, struct rl_pool *pool)
{
    (void)pool;
    double beta1 = (double)a->beta1;
    double beta2 = (double)a->beta2;
    double correct1 = 1.0 - pow(beta1, (double)a->step);
    double correct2 = sqrt(1.0 - pow(beta2, (double)a->step));
    double step = (double)a->learning_rate / correct1;
    double decay = 1.0 - (double)a->learning_rate * (double)a->weight_decay;
    for (int64_t i = 0; i < a->count; i++) {
        double g = (double)a->grad[i] * (double)a->grad_scale;
        a->m[i] = (float)((double)a->m[i] + (1.0 - beta1) * (g - (double)a->m[i]));
        a->v[i] = (float)(beta2 * (double)a->v[i] + (1.0 - beta2) * g * g);
        double root = sqrt((double)a->v[i]) / correct2 + (double)a->epsilon;
        a->param[i] = (float)((double)a->param[i] * decay - step * (double)a->m[i] / root);
        if (a->nonfinite != NULL && !isfinite(a->param[i])) {
            *a->nonfinite = 1;
        }
    }
}

void adamw_pack_ref(const struct kernel_adamw_pack_args *a, struct rl_pool *pool)
{
    adamw_ref(&a->adamw, pool);
    linear_pack_ref(&a->pack, pool);
}
