/* Reference causal attention over paged keys and values, one query row at a time.
 * Slots of a page outside a row's range are never read, so they may hold anything. */
#include "kernels/bf16.h"
#include "kernels/ref/ops_ref.h"

#include <math.h>

/* Pages of one kv head of one segment: element (position, d). */
struct head_pages {
    const int32_t *table;
    const void *k, *v;
    enum kernel_dtype dtype;
    int64_t kv_heads, kv_head, d;
};

static int64_t page_base(const struct head_pages *p, int64_t position)
{
    int64_t page = p->table[position / KERNEL_PAGE_TOKENS];
    return (page * p->kv_heads + p->kv_head) * p->d * KERNEL_PAGE_TOKENS;
}

static double page_number(const void *pages, enum kernel_dtype dtype, int64_t index)
{
    return dtype == KERNEL_BF16 ? (double)kernel_bf16_to_float(((const uint16_t *)pages)[index])
                                : (double)((const float *)pages)[index];
}

static double key_at(const struct head_pages *p, int64_t position, int64_t d)
{
    int64_t slot = position % KERNEL_PAGE_TOKENS;
    return page_number(p->k, p->dtype, page_base(p, position) + d * KERNEL_PAGE_TOKENS + slot);
}

static double value_at(const struct head_pages *p, int64_t position, int64_t d)
{
    int64_t slot = position % KERNEL_PAGE_TOKENS;
    return page_number(p->v, p->dtype, page_base(p, position) + slot * p->d + d);
}

static void store(void *pages, enum kernel_dtype dtype, int64_t index, float value)
{
    if (dtype == KERNEL_BF16) {
        ((uint16_t *)pages)[index] = kernel_bf16_from_float(value);
    } else {
        ((float *)pages)[index] = value;
    }
}

void kv_write_ref(const struct kernel_kv_args *a, struct rl_pool *pool)
{
    (void)pool;
    const struct kernel_segments *g = a->segments;
    for (int64_t s = 0; s < g->count; s++) {
        for (int64_t t = g->segment_start[s]; t < g->segment_start[s + 1]; t++) {
            int64_t position = g->first_position[s] + t - g->segment_start[s];
            int64_t slot = position % KERNEL_PAGE_TOKENS;
            for (int64_t i = 0; i < a->kv_heads * a->d; i++) {
                struct head_pages p = {.table = g->page_table[s],
                                       .kv_heads = a->kv_heads,
                                       .kv_head = i / a->d,
                                       .d = a->d};
                int64_t base = page_base(&p, position);
                int64_t d = i % a->d;
                int64_t from = t * a->kv_heads * a->d + i;
                store(a->k_pages, a->dtype, base + d * KERNEL_PAGE_TOKENS + slot, a->k[from]);
                store(a->v_pages, a->dtype, base + slot * a->d + d, a->v[from]);
            }
        }
    }
}

static double score(const struct head_pages *p, const float *q, int64_t position, double scale)
{
    double sum = 0.0;
    for (int64_t d = 0; d < p->d; d++) {
        sum += (double)q[d] * key_at(p, position, d);
    }
    return sum * scale;
}

static int64_t first_key(const struct kernel_attention_args *a, int64_t position)
{
    return a->window > 0 && position >= a->window ? position - a->window + 1 : 0;
}

/* One query row: online softmax over keys first_key .. position. Returns lse. */
static double attend_row(const struct kernel_attention_args *a, const struct head_pages *p,
                         const float *q, int64_t position, float *out)
{
    double acc[KERNEL_HEAD_DIM_MAX] = {0.0};
    double max = -INFINITY;
    double sum = 0.0;
    for (int64_t j = first_key(a, position); j <= position; j++) {
        double s = score(p, q, j, (double)a->scale);
        double top = s > max ? s : max;
        double old = exp(max - top);
        double weight = exp(s - top);
        for (int64_t d = 0; d < a->d; d++) {
            acc[d] = acc[d] * old + weight * value_at(p, j, d);
        }
        sum = sum * old + weight;
        max = top;
    }
    for (int64_t d = 0; d < a->d; d++) {
        out[d] = (float)(acc[d] / sum);
    }
    return max + log(sum);
}

void attention_forward_ref(const struct kernel_attention_args *a, struct rl_pool *pool)
{
    (void)pool;
    const struct kernel_segments *g = a->segments;
    for (int64_t s = 0; s < g->count; s++) {
        for (int64_t t = g->segment_start[s]; t < g->segment_start[s + 1]; t++) {
            int64_t position = g->first_position[s] + t - g->segment_start[s];
            for (int64_t h = 0; h < a->heads; h++) {
                struct head_pages p = {.table = g->page_table[s],
                                       .k = a->k_pages,
                                       .v = a->v_pages,
                                       .dtype = a->dtype,
                                       .kv_heads = a->kv_heads,
                                       .kv_head = h / (a->heads / a->kv_heads),
                                       .d = a->d};
                int64_t row = t * a->heads + h;
                double lse = attend_row(a, &p, a->q + row * a->d, position, a->out + row * a->d);
                if (a->lse != NULL) {
                    a->lse[row] = (float)lse;
                }
            }
        }
    }
}

/* Which token holds a position of a segment, its own or its prefix's. */
static int64_t token_at(const struct kernel_segments *g, int64_t segment, int64_t position)
{
    int64_t own = position - g->first_position[segment];
    return own >= 0 ? g->segment_start[segment] + own
                    : g->segment_start[g->prefix[segment]] + position;
}

/* Gradients of one query row: writes its dq, adds to dk and dv of the tokens that it sees. */
static void attend_row_backward(const struct kernel_attention_args *a, const struct head_pages *p,
                                int64_t segment, int64_t row)
{
    const struct kernel_segments *g = a->segments;
    const float *q = a->q + row * a->d;
    const float *dout = a->dout + row * a->d;
    double dq[KERNEL_HEAD_DIM_MAX] = {0.0};
    double delta = 0.0;
    for (int64_t d = 0; d < a->d; d++) {
        delta += (double)dout[d] * (double)a->out[row * a->d + d];
    }
    int64_t position = g->first_position[segment] + row / a->heads - g->segment_start[segment];
    for (int64_t j = first_key(a, position); j <= position; j++) {
        double weight = exp(score(p, q, j, (double)a->scale) - (double)a->lse[row]);
        double dweight = 0.0;
        for (int64_t d = 0; d < a->d; d++) {
            dweight += (double)dout[d] * value_at(p, j, d);
        }
        double ds = weight * (dweight - delta) * (double)a->scale;
        int64_t key = (token_at(g, segment, j) * a->kv_heads + p->kv_head) * a->d;
        for (int64_t d = 0; d < a->d; d++) {
            dq[d] += ds * key_at(p, j, d);
            a->dk[key + d] += (float)(ds * (double)q[d]);
            a->dv[key + d] += (float)(weight * (double)dout[d]);
        }
    }
    for (int64_t d = 0; d < a->d; d++) {
        a->dq[row * a->d + d] = (float)dq[d];
    }
}

void attention_backward_ref(const struct kernel_attention_args *a, struct rl_pool *pool)
{
    (void)pool;
    const struct kernel_segments *g = a->segments;
    for (int64_t s = 0; s < g->count; s++) {
        int64_t first = g->segment_start[s];
        int64_t end = g->segment_start[s + 1];
        int64_t width = a->kv_heads * a->d;
        for (int64_t i = first * width; i < end * width; i++) {
            a->dk[i] = 0.0f;
            a->dv[i] = 0.0f;
        }
        for (int64_t row = first * a->heads; row < end * a->heads; row++) {
            struct head_pages p = {.table = g->page_table[s],
                                   .k = a->k_pages,
                                   .v = a->v_pages,
                                   .dtype = a->dtype,
                                   .kv_heads = a->kv_heads,
                                   .kv_head = row % a->heads / (a->heads / a->kv_heads),
                                   .d = a->d};
            attend_row_backward(a, &p, s, row);
        }
    }
}
