/* Reference output head: log-probability and entropy of softmax(x W^T / tau) by an online sum in
 * blocks of KERNEL_HEAD_CHUNK logits; its backward; and decoding by the same sums. */
#include "kernels/ref/ops_ref.h"
#include "kernels/sampling.h"

#include <math.h>

/* Running softmax of a row: sum of e^(z - max) and of e^(z - max) (z - max). */
struct softmax_state {
    double max, sum, weighted;
};

static void softmax_add(struct softmax_state *s, const float *z, int64_t count, double inv_t)
{
    double top = s->max;
    for (int64_t i = 0; i < count; i++) {
        double value = (double)z[i] * inv_t;
        top = value > top || isnan(value) ? value : top;
    }
    double shift = s->max - top;
    double old = s->sum > 0.0 ? exp(shift) : 0.0;
    s->weighted = s->sum > 0.0 ? old * (s->weighted + s->sum * shift) : 0.0;
    s->sum *= old;
    s->max = top;
    for (int64_t i = 0; i < count; i++) {
        double value = (double)z[i] * inv_t - top;
        double weight = exp(value);
        s->sum += weight;
        s->weighted += weight != 0.0 ? weight * value : 0.0;
    }
}

/* Panels start at multiples of 32, and a chunk is a multiple of 32, so a chunk of the vocabulary is
 * a packed weight of its own. */
static struct linear_row_ref head_chunk(const void *w, enum kernel_dtype dtype, int64_t start,
                                        int64_t v, int64_t c)
{
    int64_t count = v - start < KERNEL_HEAD_CHUNK ? v - start : KERNEL_HEAD_CHUNK;
    const char *base = (const char *)w + kernel_packed_bytes(start, c, dtype);
    return (struct linear_row_ref){.w = base, .dtype = dtype, .n = count, .k = c};
}

static void head_row(const struct kernel_head_args *a, int64_t m)
{
    struct softmax_state s = {.max = -INFINITY, .sum = 0.0, .weighted = 0.0};
    double target = 0.0;
    float *z = a->scratch + m * KERNEL_HEAD_CHUNK;
    for (int64_t start = 0; start < a->v; start += KERNEL_HEAD_CHUNK) {
        struct linear_row_ref chunk = head_chunk(a->w, a->dtype, start, a->v, a->c);
        linear_row_ref(&chunk, a->x + m * a->c, z);
        softmax_add(&s, z, chunk.n, (double)a->inv_temperature);
        if (a->targets[m] >= start && a->targets[m] < start + chunk.n) {
            target = (double)z[a->targets[m] - start];
        }
    }
    a->logprob[m] = (float)(target * (double)a->inv_temperature - s.max - log(s.sum));
    a->lse[m] = (float)(s.max + log(s.sum));
    if (a->entropy != NULL) {
        a->entropy[m] = (float)(log(s.sum) - s.weighted / s.sum);
    }
}

void head_forward_ref(const struct kernel_head_args *a, struct rl_pool *pool)
{
    (void)pool;
    for (int64_t m = 0; m < a->m; m++) {
        head_row(a, m);
    }
}

/* z becomes dL/dz of one chunk of one row. */
static void head_chunk_gradient(const struct kernel_head_args *a, int64_t m, int64_t start,
                                int64_t count)
{
    float *z = a->scratch + m * KERNEL_HEAD_CHUNK;
    double inv_t = (double)a->inv_temperature;
    double g = (double)a->g_logprob[m];
    double h = a->g_entropy != NULL ? (double)a->g_entropy[m] : 0.0;
    double entropy = h != 0.0 ? (double)a->entropy[m] : 0.0;
    for (int64_t i = 0; i < count; i++) {
        double log_p = (double)z[i] * inv_t - (double)a->lse[m];
        double p = exp(log_p);
        double hit = a->targets[m] == start + i ? 1.0 : 0.0;
        double pull = p > 0.0 ? h * p * (log_p + entropy) : 0.0;
        z[i] = (float)(inv_t * (g * (hit - p) - pull));
    }
}

void head_backward_ref(const struct kernel_head_args *a, struct rl_pool *pool)
{
    for (int64_t i = 0; i < a->m * a->c; i++) {
        a->dx[i] = 0.0f;
    }
    for (int64_t m = 0; m < a->m; m++) {
        bool active = a->g_logprob[m] != 0.0f || (a->g_entropy != NULL && a->g_entropy[m] != 0.0f);
        for (int64_t start = 0; active && start < a->v; start += KERNEL_HEAD_CHUNK) {
            struct linear_row_ref chunk = head_chunk(a->w, a->dtype, start, a->v, a->c);
            float *z = a->scratch + m * KERNEL_HEAD_CHUNK;
            linear_row_ref(&chunk, a->x + m * a->c, z);
            head_chunk_gradient(a, m, start, chunk.n);
            struct kernel_linear_args row = {.w = chunk.w,
                                             .dtype = a->dtype,
                                             .x = a->dx + m * a->c,
                                             .y = z,
                                             .dw = a->dw + start * a->c,
                                             .m = 1,
                                             .n = chunk.n,
                                             .k = a->c,
                                             .x_stride = a->c,
                                             .y_stride = KERNEL_HEAD_CHUNK,
                                             .accumulate = true};
            linear_backward_input_ref(&row, pool);
            row.x = (float *)a->x + m * a->c;
            linear_backward_weight_ref(&row, pool);
        }
    }
}

/* Logits of a chunk of the vocabulary, into z; returns how many. */
static int64_t decode_logits(const struct kernel_decode_args *a, int64_t m, int64_t start, float *z)
{
    struct linear_row_ref chunk = head_chunk(a->w, a->dtype, start, a->v, a->c);
    linear_row_ref(&chunk, a->x + m * a->c, z);
    return chunk.n;
}

/* Inverse CDF in id order over the whole vocabulary. */
static int32_t decode_draw(const struct kernel_decode_args *a, int64_t m, double target, double max)
{
    float z[KERNEL_HEAD_CHUNK];
    double inv_t = (double)kernel_sampling_inverse_temperature(a->sampling);
    double sum = 0.0;
    int32_t last = 0;
    for (int64_t start = 0; start < a->v; start += KERNEL_HEAD_CHUNK) {
        int64_t count = decode_logits(a, m, start, z);
        for (int64_t i = 0; i < count && sum <= target; i++) {
            double p = exp((double)z[i] * inv_t - max);
            last = p > 0.0 ? (int32_t)(start + i) : last;
            sum += p;
        }
    }
    return last;
}

static int32_t decode_greedy(const struct kernel_decode_args *a, int64_t m)
{
    float z[KERNEL_HEAD_CHUNK];
    float top = -INFINITY;
    int32_t best = 0;
    for (int64_t start = 0; start < a->v; start += KERNEL_HEAD_CHUNK) {
        int64_t count = decode_logits(a, m, start, z);
        int32_t here = kernel_sampling_greedy(z, count);
        best = z[here] > top ? (int32_t)start + here : best;
        top = z[here] > top ? z[here] : top;
    }
    return best;
}

/* From all probabilities of the row, relative to the largest. */
static int32_t decode_draw_truncated(const struct kernel_decode_args *a, int64_t m, double u,
                                     double max)
{
    float *z = a->logits + m * ((a->v + KERNEL_PANEL - 1) / KERNEL_PANEL * KERNEL_PANEL);
    double inv_t = (double)kernel_sampling_inverse_temperature(a->sampling);
    for (int64_t start = 0; start < a->v; start += KERNEL_HEAD_CHUNK) {
        decode_logits(a, m, start, z + start);
    }
    for (int64_t i = 0; i < a->v; i++) {
        z[i] = (float)exp((double)z[i] * inv_t - max);
    }
    struct kernel_sampling_row row = {.p = z,
                                      .order = a->order != NULL ? a->order + m * a->v : NULL,
                                      .v = a->v,
                                      .sampling = a->sampling,
                                      .u = u,
                                      .kept = a->kept != NULL ? &a->kept[m] : NULL};
    return kernel_sampling_draw(&row);
}

static int32_t decode_choose(const struct kernel_decode_args *a, int64_t m,
                             const struct softmax_state *s)
{
    if (a->forced != NULL && a->forced[m] >= 0) {
        return a->forced[m];
    }
    if (kernel_sampling_is_greedy(a->sampling)) {
        return decode_greedy(a, m);
    }
    double u = rl_rng_uniform(a->keys[m], a->counters[m]);
    if (kernel_sampling_truncates(a->sampling)) {
        return decode_draw_truncated(a, m, u, s->max);
    }
    return decode_draw(a, m, u * s->sum, s->max);
}

void head_decode_ref(const struct kernel_decode_args *a, struct rl_pool *pool)
{
    (void)pool;
    float z[KERNEL_HEAD_CHUNK];
    double inv_t = (double)kernel_sampling_inverse_temperature(a->sampling);
    for (int64_t m = 0; m < a->m; m++) {
        struct softmax_state s = {.max = -INFINITY, .sum = 0.0, .weighted = 0.0};
        for (int64_t start = 0; start < a->v; start += KERNEL_HEAD_CHUNK) {
            int64_t count = decode_logits(a, m, start, z);
            softmax_add(&s, z, count, inv_t);
        }
        a->ids[m] = a->forced != NULL && a->forced[m] >= 0 ? a->forced[m] : 0;
        a->logprob[m] = NAN;
        if (a->kept != NULL) {
            a->kept[m] = 1.0f;
        }
        if (isfinite(s.max) && isfinite(s.sum)) {
            a->ids[m] = decode_choose(a, m, &s);
            int64_t start = a->ids[m] / KERNEL_HEAD_CHUNK * KERNEL_HEAD_CHUNK;
            decode_logits(a, m, start, z);
            a->logprob[m] = (float)((double)z[a->ids[m] - start] * inv_t - s.max - log(s.sum));
        }
    }
}
