/* Top-k, top-p, min-p and the draw. The kept set is described by its least member (probability,
 * id), so nothing of the size of the vocabulary is stored besides the caller's scratch. A heap
 * gives the most probable ids one by one: cheap when few are kept, V log V at worst. */
#include "kernels/sampling.h"

#include <math.h>

#define GREEDY_BELOW 1e-5f

struct cut {
    float p;    /* least kept probability */
    int32_t id; /* at that probability, ids up to this one are kept */
};

static bool before(const float *p, int32_t a, int32_t b)
{
    return p[a] > p[b] || (p[a] == p[b] && a < b);
}

static void heap_sift(const float *p, int32_t *heap, int64_t count, int64_t at)
{
    int32_t moving = heap[at];
    for (;;) {
        int64_t child = 2 * at + 1;
        if (child >= count) {
            break;
        }
        if (child + 1 < count && before(p, heap[child + 1], heap[child])) {
            child++;
        }
        if (!before(p, heap[child], moving)) {
            break;
        }
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = moving;
}

static void heap_build(const float *p, int32_t *heap, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        heap[i] = (int32_t)i;
    }
    for (int64_t i = count / 2; i-- > 0;) {
        heap_sift(p, heap, count, i);
    }
}

/* Remove the first id; it is left at heap[count - 1]. */
static int32_t heap_pop(const float *p, int32_t *heap, int64_t count)
{
    int32_t top = heap[0];
    heap[0] = heap[count - 1];
    heap_sift(p, heap, count - 1, 0);
    heap[count - 1] = top;
    return top;
}

/* Least member of top-k, then top-p within it. */
static struct cut find_cut(const struct kernel_sampling_row *row)
{
    const struct kernel_sampling *s = row->sampling;
    bool limit = s->top_k > 0 && s->top_k < row->v;
    struct cut cut = {.p = 0.0f, .id = (int32_t)row->v - 1};
    if (!limit && s->top_p >= 1.0f) {
        return cut;
    }
    int64_t kept = limit ? s->top_k : row->v;
    heap_build(row->p, row->order, row->v);
    double total = 0.0;
    if (limit) {
        for (int64_t i = 0; i < kept; i++) {
            total += (double)row->p[heap_pop(row->p, row->order, row->v - i)];
        }
    } else {
        for (int64_t i = 0; i < row->v; i++) {
            total += (double)row->p[i];
        }
    }
    double share = s->top_p < 1.0f ? (double)s->top_p * total : 2.0 * total;
    double sum = 0.0;
    for (int64_t i = 0; i < kept; i++) {
        /* popped ids lie at the end of the array, first one last */
        cut.id = limit ? row->order[row->v - 1 - i] : heap_pop(row->p, row->order, row->v - i);
        cut.p = row->p[cut.id];
        sum += (double)cut.p;
        if (sum >= share) {
            break;
        }
    }
    return cut;
}

static bool keeps(const struct cut *cut, float floor, float p, int64_t id)
{
    return p >= floor && (p > cut->p || (p == cut->p && id <= cut->id));
}

int32_t kernel_sampling_draw(const struct kernel_sampling_row *row)
{
    struct cut cut = find_cut(row);
    float floor = row->sampling->min_p > 0.0f ? row->sampling->min_p : 0.0f;
    floor = floor < 1.0f ? floor : 1.0f;
    double total = 0.0;
    double all = 0.0;
    for (int64_t i = 0; i < row->v; i++) {
        total += keeps(&cut, floor, row->p[i], i) ? (double)row->p[i] : 0.0;
        all += (double)row->p[i];
    }
    if (row->kept != NULL) {
        *row->kept = (float)(total / all);
    }
    double target = row->u * total;
    double sum = 0.0;
    int32_t last = 0;
    for (int64_t i = 0; i < row->v; i++) {
        if (row->p[i] > 0.0f && keeps(&cut, floor, row->p[i], i)) {
            last = (int32_t)i;
            sum += (double)row->p[i];
            if (sum > target) {
                break;
            }
        }
    }
    return last;
}

int32_t kernel_sampling_greedy(const float *logits, int64_t v)
{
    int32_t best = 0;
    float top = -INFINITY;
    for (int64_t i = 0; i < v; i++) {
        if (logits[i] > top) {
            top = logits[i];
            best = (int32_t)i;
        }
    }
    return best;
}

bool kernel_sampling_is_greedy(const struct kernel_sampling *sampling)
{
    return sampling->temperature < GREEDY_BELOW;
}

bool kernel_sampling_truncates(const struct kernel_sampling *sampling)
{
    return sampling->top_k > 0 || sampling->top_p < 1.0f || sampling->min_p > 0.0f;
}

float kernel_sampling_inverse_temperature(const struct kernel_sampling *sampling)
{
    return kernel_sampling_is_greedy(sampling) ? 1.0f : 1.0f / sampling->temperature;
}
