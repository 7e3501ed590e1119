/* Numeric kernels on raw pointers and sizes. They know no model.
 *
 * Contract of every op: fp32 activations, row-major, last index fastest; pointers aligned to 64
 * bytes unless a stride says otherwise; no aliasing unless stated; no allocation; no locks.
 * `pool` splits the work over threads and may be NULL; neither the split nor the thread count
 * changes a bit of the result.
 *
 * Promise P1 (same bits): in every forward op a row's result depends on that row's inputs alone,
 * by a fixed order of operations: never on M, on the row's place, on tile remainders, on how a
 * sequence is cut into calls, or on threads. Promised per table (ref, avx2, avx512), not across.
 *
 * Shape letters: M rows, N outputs of a linear map (elsewhere packed tokens), K inputs, C width,
 * H query heads, G kv heads here (`kv_heads`), D head dim, V vocabulary, P pages, S segments. */
#ifndef FORESIGHT_KERNELS_KERNELS_H
#define FORESIGHT_KERNELS_KERNELS_H

#include "core/pool.h"
#include "core/rng.h"
#include "core/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    KERNEL_PANEL = 32,           /* outputs per packed weight panel */
    KERNEL_SET_MAPS = 3,         /* linear maps of one call at most */
    KERNEL_PAGE_TOKENS = 16,     /* tokens per KV page */
    KERNEL_HEAD_CHUNK = 1024,    /* vocabulary entries of the head at a time; multiple of 32 */
    KERNEL_DECODE_PARTS = 8,     /* of a head chunk, whose probability mass is kept apart */
    KERNEL_PASS_ARRAYS = 8,      /* that pass_begin takes */
    KERNEL_HEAD_DIM_MAX = 256,   /* largest D: rows of a head live on the stack; callers check */
    KERNEL_INT8_INPUTS = 1 << 17 /* largest K of int8 weights: sums of products fit 32 bits */
};

enum kernel_dtype {
    KERNEL_FP32,
    KERNEL_BF16,
    KERNEL_INT8 /* of weights only, on CPUs: linear_quantize makes it, no backward op reads it */
};
enum kernel_isa { KERNEL_ISA_REF, KERNEL_ISA_AVX2, KERNEL_ISA_AVX512, KERNEL_ISA_CUDA };
enum kernel_activation { KERNEL_SILU, KERNEL_GELU_TANH };

/* Bytes of a packed [N, K] weight: [ceil(N/32)][K][32] of dtype, padded outputs are zero; a
 * multiple of 64. Element (n, k) is at index (n/32 * K + k) * 32 + n%32. KERNEL_INT8: see
 * kernels/int8.h; K is at most KERNEL_INT8_INPUTS. */
size_t kernel_packed_bytes(int64_t n, int64_t k, enum kernel_dtype dtype);

/* packed = cast(w), round to nearest even for bf16. w [N, K]. With `changed`: its bit i (bit i % 8
 * of byte i / 8) becomes whether the bits of packed element i differ from those in `previous`. */
struct kernel_linear_pack_args {
    const float *w;
    void *packed;
    enum kernel_dtype dtype;
    int64_t n, k;
    const void *previous; /* packed like `packed`, not the same memory; NULL without `changed` */
    uint8_t *changed;     /* [packed elements / 8] overwritten; may be NULL */
};

/* packed [N, K] in KERNEL_INT8 = w, packed in fp32 or bf16, with the scale of each output from its
 * largest weight. An output with a weight that is not finite gets the scale NaN. */
struct kernel_linear_quantize_args {
    const void *w;
    enum kernel_dtype dtype; /* of w */
    void *packed;            /* not the same memory */
    int64_t n, k;
};

/* forward:         y[M,N] = x[M,K] W^T + bias (+ old y if accumulate)
 *                  With int8 weights each row of x is quantised too, as if it were an output; the
 *                  bits are the same on every table.
 * backward_input:  x[M,K] = y[M,N] W (+ old x if accumulate); y is dY (read), x is dX
 * backward_weight: dw[N,K] += y^T x, dbias[N] += column sums of y; y is dY, x the input (read) */
struct kernel_linear_args {
    const void *w; /* packed; unused by backward_weight */
    enum kernel_dtype dtype;
    const float *bias; /* [N] or NULL */
    float *x;          /* [M, x_stride] */
    float *y;          /* [M, y_stride] */
    float *dw;         /* [N, K] raw layout, backward_weight only */
    float *dbias;      /* [N] or NULL, backward_weight only */
    int64_t m, n, k, x_stride, y_stride;
    bool accumulate;
};

/* Linear maps of the same rows: m, k, x, x_stride and dtype are equal in all, no y overlaps another
 * one. forward_set: forward of each, in one meeting of the threads and reading x once.
 * backward_set: of each in turn backward_weight, then backward_input into dx unless that is NULL;
 * the first map's accumulate says whether dx is added to, that of the others is true. */
struct kernel_linear_set_args {
    struct kernel_linear_args maps[KERNEL_SET_MAPS];
    float *dx; /* [M, x_stride], backward_set only */
    int count; /* 1 .. KERNEL_SET_MAPS; the others are zero */
};

/* forward: y[i] = W[ids[i]]; backward: dw[ids[i]] += y[i] in order of i. W packed [V, C], dw raw.
 */
struct kernel_embedding_args {
    const void *w;
    enum kernel_dtype dtype;
    const int32_t *ids; /* [M] in [0, V) */
    float *y;           /* [M, C] output, or its gradient */
    float *dw;          /* [V, C] */
    int64_t m, v, c;
};

/* y = x * inv_rms(x) * weight per row of C; rows of heads are passed as M = tokens * heads.
 * backward: dx (+= if accumulate) and dweight += from dy, x and the saved inv_rms. */
struct kernel_rmsnorm_args {
    const float *x;      /* [M, C] */
    const float *weight; /* [C] fp32 */
    float *y;            /* [M, C]; may be x in forward */
    float *inv_rms;      /* [M]; forward writes (may be NULL), backward reads */
    const float *dy;     /* [M, C] */
    float *dx;           /* [M, C]; may be dy */
    float *dweight;      /* [C] */
    int64_t m, c;
    float epsilon;
    bool accumulate;
};

/* Rotate pairs (i, i + D/2) of each head in place by the angle of the token's position; backward
 * applies the inverse rotation to gradients. */
struct kernel_rope_args {
    float *x;                 /* [N, heads, D] */
    const float *cosine;      /* [max_position, D/2] */
    const float *sine;        /* [max_position, D/2] */
    const int32_t *positions; /* [N] */
    int64_t n, heads, d;
};

/* y = act(gate) * up; backward: dgate, dup from dy (may overwrite gate and up's storage: dgate ==
 * gate and dup == up are allowed). */
struct kernel_glu_args {
    const float *gate, *up; /* [count] */
    float *y;               /* [count] */
    const float *dy;        /* [count] */
    float *dgate, *dup;     /* [count] */
    int64_t count;
    enum kernel_activation activation;
};

/* A batch of packed tokens made of segments: segment s is tokens segment_start[s] ..
 * segment_start[s+1]-1 of one sequence, at positions first_position[s], +1, ...; its KV pages are
 * page_table[s][0..], page j holding positions 16 j .. 16 j + 15. */
struct kernel_segments {
    int64_t count;                    /* S */
    const int32_t *segment_start;     /* [S + 1] */
    const int32_t *first_position;    /* [S] */
    const int32_t *const *page_table; /* [S] -> page numbers */
    /* [S] number of the segment whose tokens are all those before first_position (a multiple of
     * 16), in pages with which this one's table begins; -1: none. A prefix starts at 0; those that
     * share it follow it directly. Only backward reads this. NULL: no segment has one. */
    const int32_t *prefix;
};

/* Contexts of so many tokens are launched alike: the power of two that is not less, 256 at least. A
 * size of launches alone, no result depends on it. */
static inline int64_t kernel_context_bucket(int64_t tokens)
{
    int64_t bucket = 256;
    while (bucket < tokens) {
        bucket *= 2;
    }
    return bucket;
}

/* What the ops of the pass that now begins will be given from the host's memory, so that a GPU gets
 * all of it in one copy. The arrays must not change before the pass has ended; an op may be given
 * others too. CPU tables do nothing. */
struct kernel_pass_array {
    const void *data;
    size_t bytes;
};
struct kernel_pass_args {
    const struct kernel_segments *segments; /* NULL: none */
    const struct kernel_pass_array *arrays; /* [count]: ids, positions, targets, ... */
    int64_t count;                          /* at most KERNEL_PASS_ARRAYS */
};

/* Store keys and values of the batch's tokens into their pages, rounded to nearest even for bf16.
 * k_pages [P][kv_heads][D][16] (keys transposed), v_pages [P][kv_heads][16][D], of dtype. */
struct kernel_kv_args {
    const struct kernel_segments *segments;
    const float *k, *v; /* [N, kv_heads, D] */
    void *k_pages, *v_pages;
    enum kernel_dtype dtype;
    int64_t kv_heads, d;
};

/* Causal attention of the batch's queries over their pages (which already hold the batch's own
 * keys); GQA: query head h uses kv head h / (heads / kv_heads). Keys are taken in blocks of one
 * page from position 0 (or the first page inside the window), so decode, chunked prefill and
 * training give the same bits. window 0: unlimited; else only the last `window` positions count,
 * the token's own included. Unused slots of a page may hold anything, NaN included. Neighbouring
 * segments whose tables begin with the same page numbers (a group's samples) have those pages read
 * once.
 * backward: every segment must start at position 0 or have a prefix, whose dk and dv its rows add
 * to in order; needs out, lse and dout of the forward; writes dq, dk, dv: with bf16 pages the
 * gradients at the rounded keys and values, which are passed on to what was rounded as they are
 * (straight through). */
struct kernel_attention_args {
    const struct kernel_segments *segments;
    const float *q; /* [N, heads, D] */
    const void *k_pages, *v_pages;
    enum kernel_dtype dtype; /* of the pages */
    float *out;              /* [N, heads, D] */
    float *lse;              /* [N, heads] or NULL in forward */
    const float *dout;       /* [N, heads, D] */
    float *dq;               /* [N, heads, D] overwritten */
    float *dk, *dv;          /* [N, kv_heads, D] overwritten */
    int64_t heads, kv_heads, d, window;
    float scale;
};

/* Log-probability of targets and entropy without the [M, V] matrix:
 * z = x W^T; logprob = z[target]/tau - lse(z/tau); entropy in nats of softmax(z/tau).
 * backward: from g_logprob [M] = dL/dlogprob and g_entropy [M] = dL/dentropy (or NULL) and the
 * saved lse and entropy: dx (overwritten), dw += (raw [V, C]). Rows whose g are both 0 cost
 * nothing. */
struct kernel_head_args {
    const float *x; /* [M, C] */
    const void *w;  /* packed [V, C] */
    enum kernel_dtype dtype;
    const int32_t *targets; /* [M] */
    float inv_temperature;
    float *logprob, *entropy, *lse; /* [M]; entropy may be NULL in forward */
    const float *g_logprob, *g_entropy;
    float *dx, *dw;
    float *scratch; /* [M, KERNEL_HEAD_CHUNK] */
    int64_t m, v, c;
};

struct kernel_sampling {
    float temperature; /* below 1e-5: greedy (lowest id wins ties); logprob is then taken at 1 */
    float top_p, min_p;
    int32_t top_k;
};

/* What sampling keeps of KERNEL_HEAD_CHUNK logits of a row, relative to their largest. */
struct kernel_decode_chunk {
    float max, sum;
    float parts[KERNEL_DECODE_PARTS]; /* sums of each HEAD_CHUNK / PARTS weights */
};

/* One sampling step for M rows: z = x W^T, then temperature, top-k, top-p, min-p, draw.
 * Row i draws with rl_rng_uniform(keys[i], counters[i]) by inverse CDF in id order over the kept
 * set; without top-k, top-p and min-p its mass is summed up by chunk, part and id, and only
 * `columns` logits of a row exist at a time. ids [M] and logprob [M] (full vocabulary, at the
 * temperature: the same bits as head_forward gives for that id when its inv_temperature is the fp32
 * quotient 1 / temperature). With `forced` [M] non-NULL and forced[i] >= 0 that id is taken
 * instead. kept [M]: the share of the row's probability that top-k, top-p and min-p left to draw
 * from; 1 where nothing is drawn. A row whose logits have no finite softmax gets logprob NaN and id
 * 0 (or the forced one): callers reject it. `columns` and the scratch are the CPU's; a device has
 * its own. */
struct kernel_decode_args {
    const float *x; /* [M, C] */
    const void *w;  /* packed [V, C] */
    enum kernel_dtype dtype;
    const struct kernel_sampling *sampling; /* one for all rows */
    const struct rl_rng_key *keys;          /* [M] */
    const uint64_t *counters;               /* [M] */
    const int32_t *forced;                  /* [M] or NULL */
    int32_t *ids;                           /* [M] */
    float *logprob;                         /* [M] */
    float *kept;                            /* [M] or NULL */
    int64_t columns; /* multiple of KERNEL_HEAD_CHUNK, or at least V, which truncation needs */
    float *logits;   /* scratch [M, columns, but no more than V rounded up to 32] */
    struct kernel_decode_chunk *chunks; /* scratch [M, V / KERNEL_HEAD_CHUNK rounded up] */
    int32_t *order;                     /* scratch [M, V]; NULL allowed without top-k and top-p */
    int64_t m, v, c;
};

/* y += x, count elements. */
struct kernel_add_args {
    float *y;
    const float *x;
    int64_t count;
};

/* y += rate (x - y), count elements. */
struct kernel_blend_args {
    float *y;
    const float *x;
    int64_t count;
    float rate;
};

/* All bytes become 0. */
struct kernel_zero_args {
    void *data;
    size_t bytes;
};

/* to = from: `rows` rows of `bytes`, which begin `stride` bytes apart on both sides; no row is
 * copied to where another one lies. */
struct kernel_copy_args {
    void *to;
    const void *from;
    int64_t rows;
    size_t bytes, stride;
};

/* y[i] = x[rows[i]]. */
struct kernel_gather_args {
    const float *x;
    const int32_t *rows; /* [M] */
    float *y;            /* [M, C] */
    int64_t m, c;
};

/* packed = w, then zeros up to a multiple of 64 bytes: what linear_pack is for a matrix. With
 * `changed`: its bit i becomes whether element i of `packed`, in bytes of `dtype`, differs from
 * that of `previous`. */
struct kernel_vector_pack_args {
    const float *w; /* [count] */
    void *packed;
    int64_t count;
    enum kernel_dtype dtype; /* of the matrices beside it; the vector itself is fp32 */
    const void *previous;    /* like `packed`, not the same memory; NULL without `changed` */
    uint8_t *changed;        /* [elements with the padding / 8] overwritten; may be NULL */
};

/* *sum = sum of squares in double, fixed blocks (independent of threads). */
struct kernel_sum_squares_args {
    const float *x;
    int64_t count;
    double *sum;
    double *block_sums; /* [ceil(count / 65536)] of each 65536 elements; from the first to the last
                           they add up to *sum */
};

/* *sum = a hash of words that is the same in whatever order they are taken: modulo 2^64, the sum of
 * the finalizers of splitmix64 (Steele, Lea & Flood 2014) over each word and its place. */
struct kernel_hash_args {
    const uint32_t *words;
    int64_t count;
    uint64_t *sum; /* the host's: valid on return */
};

/* AdamW (Loshchilov & Hutter 2019, as torch.optim.AdamW): decoupled decay, bias correction by
 * `step` (1-based). The gradient is multiplied by grad_scale (clipping) first. */
struct kernel_adamw_args {
    float *param, *m, *v; /* [count] */
    const float *grad;    /* [count] */
    int64_t count, step;
    float grad_scale, learning_rate, beta1, beta2, epsilon, weight_decay;
    int32_t *nonfinite; /* set to 1 if a new parameter is not finite, else left alone; or NULL */
};

/* The same on a matrix [n, k], and linear_pack of its new values while they are in the cache: one
 * pass over all arrays, to the same bits as one op after the other. adamw.count is n * k and
 * pack.w is adamw.param. */
struct kernel_adamw_pack_args {
    struct kernel_adamw_args adamw;
    struct kernel_linear_pack_args pack;
};

#define KERNEL_OP(name, args, tolerance) void (*name)(const struct args *a, struct rl_pool *pool);
struct kernel_table {
    const char *name; /* "ref", "avx2", "avx512", "cuda" */
    enum kernel_isa isa;
#include "kernels/ops.def"
};

/* The table of one ISA: filled with `ref`, overridden by what exists; no slot is NULL.
 * The table of CUDA is for pools with a stream (kernels/device.h).
 * Errors: RL_UNSUPPORTED if this machine or build cannot run it. Borrowed, static. */
rl_status kernel_table_get(enum kernel_isa isa, const struct kernel_table **out);

/* Best ISA that this machine's CPU has. */
enum kernel_isa kernel_isa_best(void);

#ifdef __cplusplus
}
#endif

#endif
