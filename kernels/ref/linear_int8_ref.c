/* Reference linear maps on int8 weights (kernels/int8.h). Unlike other references not in double:
 * quantising and scaling are the fp32 operations that every back end makes, so that all of them
 * give the same bits. */
#include "kernels/bf16.h"
#include "kernels/int8.h"
#include "kernels/ref/ops_ref.h"

#include <math.h>

/* Largest magnitude of the numbers so far; NaN once one was not finite. */
struct range_ref {
    float largest, flaw;
};

static void range_add(struct range_ref *range, float x)
{
    range->largest = fabsf(x) > range->largest ? fabsf(x) : range->largest;
    range->flaw += isfinite(x) ? 0.0F : NAN;
}

static int32_t quantize_ref(float x, struct kernel_int8_scale scale)
{
    float q = rintf(x * scale.inverse);
    return isfinite(q) ? (int32_t)q : 0;
}

static struct kernel_int8_scale row_scale(const float *x, int64_t k)
{
    struct range_ref range = {0};
    for (int64_t i = 0; i < k; i++) {
        range_add(&range, x[i]);
    }
    return kernel_int8_scale_of(range.largest, range.flaw);
}

/* y[32] = x . panel, for one panel of 32 outputs and a row whose scale is known. */
static void panel_row(const struct linear_row_ref *linear, int64_t number, const float *x,
                      struct kernel_int8_scale scale, float *y)
{
    const char *panel = (const char *)linear->w + number * kernel_int8_panel_bytes(linear->k);
    int32_t sum[KERNEL_PANEL] = {0};
    for (int64_t k = 0; k < linear->k; k++) {
        const int32_t q = quantize_ref(x[k], scale);
        for (int j = 0; j < KERNEL_PANEL; j++) {
            sum[j] += q * (int32_t)(int8_t)panel[kernel_int8_index(k, j)];
        }
    }
    for (int j = 0; j < KERNEL_PANEL; j++) {
        y[j] = (float)sum[j] * (scale.scale * ((const float *)(const void *)panel)[j]);
    }
}

void linear_int8_row_ref(const struct linear_row_ref *linear, const float *x, float *y)
{
    const struct kernel_int8_scale scale = row_scale(x, linear->k);
    float out[KERNEL_PANEL];
    for (int64_t n = 0; n < linear->n; n++) {
        if (n % KERNEL_PANEL == 0) {
            panel_row(linear, n / KERNEL_PANEL, x, scale, out);
        }
        y[n] = out[n % KERNEL_PANEL];
    }
}

void linear_int8_ref(const struct kernel_linear_args *a, struct rl_pool *pool)
{
    (void)pool;
    struct linear_row_ref linear = {.w = a->w, .dtype = a->dtype, .n = a->n, .k = a->k};
    float out[KERNEL_PANEL];
    for (int64_t m = 0; m < a->m; m++) {
        const float *x = a->x + m * a->x_stride;
        float *y = a->y + m * a->y_stride;
        const struct kernel_int8_scale scale = row_scale(x, a->k);
        for (int64_t n = 0; n < a->n; n++) {
            if (n % KERNEL_PANEL == 0) {
                panel_row(&linear, n / KERNEL_PANEL, x, scale, out);
            }
            float value = out[n % KERNEL_PANEL];
            value = a->bias != NULL ? value + a->bias[n] : value;
            y[n] = a->accumulate ? value + y[n] : value;
        }
    }
}

static void quantize_output(const struct kernel_linear_quantize_args *a, int64_t n)
{
    char *panel = (char *)a->packed + n / KERNEL_PANEL * kernel_int8_panel_bytes(a->k);
    const int64_t lane = n % KERNEL_PANEL;
    const int64_t first = n / KERNEL_PANEL * a->k * KERNEL_PANEL + lane;
    struct range_ref range = {0};
    int32_t sum = 0;
    for (int64_t k = 0; k < a->k; k++) {
        range_add(&range, weight_at_ref(a->w, a->dtype, first + k * KERNEL_PANEL));
    }
    const struct kernel_int8_scale scale = kernel_int8_scale_of(range.largest, range.flaw);
    for (int64_t k = 0; k < kernel_int8_quads(a->k) * KERNEL_INT8_QUAD; k++) {
        int32_t q =
            k < a->k ? quantize_ref(weight_at_ref(a->w, a->dtype, first + k * KERNEL_PANEL), scale)
                     : 0;
        panel[kernel_int8_index(k, lane)] = (char)q;
        sum += q;
    }
    ((float *)(void *)panel)[lane] = scale.scale;
    ((int32_t *)(void *)panel)[KERNEL_PANEL + lane] = -128 * sum;
}

void linear_quantize_ref(const struct kernel_linear_quantize_args *a, struct rl_pool *pool)
{
    (void)pool;
    for (int64_t n = 0; n < (a->n + KERNEL_PANEL - 1) / KERNEL_PANEL * KERNEL_PANEL; n++) {
        quantize_output(a, n);
    }
}
