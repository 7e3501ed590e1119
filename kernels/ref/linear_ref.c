/* Reference linear maps on packed weights. Owns the meaning of the packed layout:
 * element (n, k) is at (n / 32 * K + k) * 32 + n % 32. Each output is one double sum in ascending
 * order of the reduced index, so a row never depends on its neighbours. */
#include "kernels/bf16.h"
#include "kernels/int8.h"
#include "kernels/ref/ops_ref.h"

#include <string.h>

size_t kernel_packed_bytes(int64_t n, int64_t k, enum kernel_dtype dtype)
{
    size_t panels = (size_t)((n + KERNEL_PANEL - 1) / KERNEL_PANEL);
    if (dtype == KERNEL_INT8) {
        return panels * (size_t)kernel_int8_panel_bytes(k);
    }
    size_t element = dtype == KERNEL_BF16 ? sizeof(uint16_t) : sizeof(float);
    return panels * (size_t)k * KERNEL_PANEL * element;
}

float weight_at_ref(const void *w, enum kernel_dtype dtype, int64_t index)
{
    if (dtype == KERNEL_BF16) {
        return kernel_bf16_to_float(((const uint16_t *)w)[index]);
    }
    return ((const float *)w)[index];
}

/* Bit `index` of the map: are the two elements' bits different? */
static void mark_ref(const struct kernel_linear_pack_args *a, int64_t index)
{
    size_t width = a->dtype == KERNEL_BF16 ? sizeof(uint16_t) : sizeof(float);
    const char *now = (const char *)a->packed + (size_t)index * width;
    const char *before = (const char *)a->previous + (size_t)index * width;
    uint8_t bit = (uint8_t)(1U << (index % 8));
    uint8_t *place = &a->changed[index / 8];
    *place = (uint8_t)(memcmp(now, before, width) != 0 ? *place | bit : *place & ~bit);
}

void linear_pack_ref(const struct kernel_linear_pack_args *a, struct rl_pool *pool)
{
    (void)pool;
    int64_t padded = (a->n + KERNEL_PANEL - 1) / KERNEL_PANEL * KERNEL_PANEL;
    for (int64_t n = 0; n < padded; n++) {
        for (int64_t k = 0; k < a->k; k++) {
            float value = n < a->n ? a->w[n * a->k + k] : 0.0f;
            int64_t index = (n / KERNEL_PANEL * a->k + k) * KERNEL_PANEL + n % KERNEL_PANEL;
            if (a->dtype == KERNEL_BF16) {
                ((uint16_t *)a->packed)[index] = kernel_bf16_from_float(value);
            } else {
                ((float *)a->packed)[index] = value;
            }
            if (a->changed != NULL) {
                mark_ref(a, index);
            }
        }
    }
}

/* sum[32] = x . panel, for one panel of 32 outputs. */
static void panel_row(const struct linear_row_ref *linear, int64_t panel, const float *x,
                      double *sum)
{
    for (int j = 0; j < KERNEL_PANEL; j++) {
        sum[j] = 0.0;
    }
    for (int64_t k = 0; k < linear->k; k++) {
        int64_t base = (panel * linear->k + k) * KERNEL_PANEL;
        for (int j = 0; j < KERNEL_PANEL; j++) {
            sum[j] += (double)x[k] * (double)weight_at_ref(linear->w, linear->dtype, base + j);
        }
    }
}

void linear_row_ref(const struct linear_row_ref *linear, const float *x, float *y)
{
    double sum[KERNEL_PANEL];
    if (linear->dtype == KERNEL_INT8) {
        linear_int8_row_ref(linear, x, y);
        return;
    }
    for (int64_t n = 0; n < linear->n; n++) {
        if (n % KERNEL_PANEL == 0) {
            panel_row(linear, n / KERNEL_PANEL, x, sum);
        }
        y[n] = (float)sum[n % KERNEL_PANEL];
    }
}

void linear_forward_ref(const struct kernel_linear_args *a, struct rl_pool *pool)
{
    struct linear_row_ref linear = {.w = a->w, .dtype = a->dtype, .n = a->n, .k = a->k};
    if (a->dtype == KERNEL_INT8) {
        linear_int8_ref(a, pool);
        return;
    }
    double sum[KERNEL_PANEL];
    for (int64_t m = 0; m < a->m; m++) {
        float *y = a->y + m * a->y_stride;
        for (int64_t n = 0; n < a->n; n++) {
            if (n % KERNEL_PANEL == 0) {
                panel_row(&linear, n / KERNEL_PANEL, a->x + m * a->x_stride, sum);
            }
            double value = sum[n % KERNEL_PANEL];
            value += a->bias != NULL ? (double)a->bias[n] : 0.0;
            value += a->accumulate ? (double)y[n] : 0.0;
            y[n] = (float)value;
        }
    }
}

void linear_forward_set_ref(const struct kernel_linear_set_args *a, struct rl_pool *pool)
{
    for (int i = 0; i < a->count; i++) {
        linear_forward_ref(&a->maps[i], pool);
    }
}

void linear_backward_input_ref(const struct kernel_linear_args *a, struct rl_pool *pool)
{
    (void)pool;
    for (int64_t m = 0; m < a->m; m++) {
        const float *dy = a->y + m * a->y_stride;
        float *dx = a->x + m * a->x_stride;
        for (int64_t k = 0; k < a->k; k++) {
            double sum = a->accumulate ? (double)dx[k] : 0.0;
            for (int64_t n = 0; n < a->n; n++) {
                int64_t index = (n / KERNEL_PANEL * a->k + k) * KERNEL_PANEL + n % KERNEL_PANEL;
                sum += (double)dy[n] * (double)weight_at_ref(a->w, a->dtype, index);
            }
            dx[k] = (float)sum;
        }
    }
}

void linear_backward_weight_ref(const struct kernel_linear_args *a, struct rl_pool *pool)
{
    (void)pool;
    for (int64_t n = 0; n < a->n; n++) {
        for (int64_t k = 0; k < a->k; k++) {
            double sum = (double)a->dw[n * a->k + k];
            for (int64_t m = 0; m < a->m; m++) {
                sum += (double)a->y[m * a->y_stride + n] * (double)a->x[m * a->x_stride + k];
            }
            a->dw[n * a->k + k] = (float)sum;
        }
        if (a->dbias != NULL) {
            double sum = (double)a->dbias[n];
            for (int64_t m = 0; m < a->m; m++) {
                sum += (double)a->y[m * a->y_stride + n];
            }
            a->dbias[n] = (float)sum;
        }
    }
}

void linear_backward_set_ref(const struct kernel_linear_set_args *a, struct rl_pool *pool)
{
    for (int i = 0; i < a->count; i++) {
        struct kernel_linear_args map = a->maps[i];
        linear_backward_weight_ref(&map, pool);
        if (a->dx != NULL) {
            map.x = a->dx;
            linear_backward_input_ref(&map, pool);
        }
    }
}
