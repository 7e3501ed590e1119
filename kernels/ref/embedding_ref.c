/* Reference embedding on packed weights. Gradients are added in fp32 in the order of the tokens,
 * which every back end repeats, so the result is the same everywhere. */
#include "kernels/int8.h"
#include "kernels/ref/ops_ref.h"

void embedding_forward_ref(const struct kernel_embedding_args *a, struct rl_pool *pool)
{
    (void)pool;
    for (int64_t i = 0; i < a->m; i++) {
        int64_t panel = a->ids[i] / KERNEL_PANEL;
        int64_t lane = a->ids[i] % KERNEL_PANEL;
        for (int64_t c = 0; c < a->c; c++) {
            int64_t index = (panel * a->c + c) * KERNEL_PANEL + lane;
            a->y[i * a->c + c] = a->dtype == KERNEL_INT8
                                     ? kernel_int8_weight(a->w, a->c, a->ids[i], c)
                                     : weight_at_ref(a->w, a->dtype, index);
        }
    }
}

void embedding_backward_ref(const struct kernel_embedding_args *a, struct rl_pool *pool)
{
    (void)pool;
    for (int64_t i = 0; i < a->m; i++) {
        float *row = a->dw + (int64_t)a->ids[i] * a->c;
        for (int64_t c = 0; c < a->c; c++) {
            row[c] += a->y[i * a->c + c];
        }
    }
}
