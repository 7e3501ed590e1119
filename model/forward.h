/* Forward and backward of the decoder on packed tokens. Decode, prefill and training call the same
 * function with other segments, so a token's log-prob has the same bits in all of them (P1). */
#ifndef FORESIGHT_MODEL_FORWARD_H
#define FORESIGHT_MODEL_FORWARD_H

#include "model/params.h"

/* KV cache: pages of 16 tokens for all layers. k/v [L][P][kv_heads * D * 16] of the layout's
 * kv_dtype. */
struct model_kv {
    struct device *device; /* whose memory it is */
    unsigned char *k, *v;
    int32_t page_count;
    size_t layer_bytes; /* between layers */
};

/* Zeroed memory for page_count pages. Release with model_kv_fini. Errors: RL_NO_MEMORY, RL_INVALID.
 */
rl_status model_kv_create(const struct model_layout *layout, int32_t page_count,
                          struct model_kv *out);

/* Free the pages' memory. Takes a zeroed struct. */
void model_kv_fini(struct model_kv *kv);

/* Bytes of one page: all layers, k and v. */
size_t model_kv_page_bytes(const struct model_layout *layout);

/* How threads share a generation pass; the bits are the same. */
enum model_split {
    MODEL_SPLIT_AUTO,     /* whichever of the others is expected to be faster */
    MODEL_SPLIT_OUTPUTS,  /* each kernel call by itself: every weight is read once */
    MODEL_SPLIT_SEQUENCES /* a thread takes its segments through all layers: one meeting a pass */
};

/* What a pass runs with; the kernels are those of the layout's device. All borrowed. */
struct model_context {
    const struct model_layout *layout;
    const struct kernel_table *kernels;
    struct rl_pool *pool; /* may be NULL */
    enum model_split split;
};

/* Copy a page in every layer (copy-on-write of a shared prefix's last page). */
void model_kv_copy_page(const struct model_context *context, struct model_kv *kv, int32_t from,
                        int32_t to);

/* Packed tokens. For training every segment starts at position 0 or has a prefix. */
struct model_batch {
    int64_t token_count;      /* N */
    const int32_t *tokens;    /* [N] */
    const int32_t *positions; /* [N] */
    const struct kernel_segments *segments;
};

/* What a forward pass keeps of each layer. Backward computes the rest again with the same kernels
 * on the same numbers, so gradients have the same bits whatever is kept. Floats a token and layer,
 * with widths C, q = heads * D, k = kv_heads * D, F: */
enum model_keep {
    MODEL_KEEP_NOTHING, /* no backward */
    MODEL_KEEP_LOGITS,  /* nor here; but sampling with top-k, top-p or min-p, which look at all
                         * logits  of a row: room for those of some rows, and for their order */
    /* 2 C + 2 q (+ k with a per-head norm) + 2 F: not the norms' outputs, the normed queries and
     * the product of the feed-forward's halves, which cost little time */
    MODEL_KEEP_COSTLY,
    MODEL_KEEP_INPUTS, /* C: backward runs each layer but its last product once more */
    MODEL_KEEP_ALL     /* 2 C + F (+ q) more than MODEL_KEEP_COSTLY: nothing is computed again */
};

/* What sampling with these settings needs: MODEL_KEEP_NOTHING or MODEL_KEEP_LOGITS. */
enum model_keep model_sampling_keep(const struct kernel_sampling *sampling);

/* Working memory for passes of at most `max_tokens`. */
struct model_workspace;
rl_status model_workspace_create(const struct model_layout *layout, int64_t max_tokens,
                                 enum model_keep keep, struct model_workspace **out);
void model_workspace_destroy(struct model_workspace *workspace);
size_t model_workspace_bytes(const struct model_layout *layout, int64_t max_tokens,
                             enum model_keep keep);

/* About what the ops of a GPU need beside it in passes of `tokens`, for footprints. */
size_t model_scratch_bytes(const struct model_layout *layout, int64_t tokens, enum model_keep keep);

/* Final hidden states (after the last norm) of every token: *hidden [N, C], the device's, borrowed
 * from the workspace until the next pass. Writes the tokens' keys and values into `kv`. N <=
 * max_tokens. */
void model_forward(const struct model_context *context, const void *image, struct model_kv *kv,
                   const struct model_batch *batch, struct model_workspace *workspace,
                   const float **hidden);

/* What to score: rows are gathered, hidden_rows[i] is an index into hidden. */
struct model_head_args {
    const int32_t *hidden_rows; /* [M] */
    const int32_t *targets;     /* [M] */
    int64_t m;                  /* <= max_tokens */
    float inv_temperature;
    float *logprob; /* [M] */
    float *entropy; /* [M] or NULL */
};

/* Log-prob and entropy of targets from hidden rows, to the host's memory. Keeps lse for backward.
 */
void model_head_forward(const struct model_context *context, const void *image,
                        struct model_workspace *workspace, const struct model_head_args *args);

/* What to back-propagate, and where to. */
struct model_backward_args {
    const float *g_logprob; /* [M] dL/dlogprob, the host's */
    const float *g_entropy; /* [M] dL/dentropy, or NULL; needs a forward that gave entropy */
    float *grad;            /* [master_count], the device's; added to */
};

/* Back-propagate through head and body of the last model_forward and model_head_forward on this
 * workspace (which must keep something). `kv` must still hold that forward's pages. Uses the
 * saved activations up: once per forward. */
void model_backward(const struct model_context *context, const void *image, struct model_kv *kv,
                    const struct model_batch *batch, struct model_workspace *workspace,
                    const struct model_backward_args *args);

/* Sample one token for each hidden row (see kernel_decode_args). The workspace must keep what
 * model_sampling_keep says. */
struct model_decode_args {
    const int32_t *hidden_rows; /* [M] */
    const struct kernel_sampling *sampling;
    const struct rl_rng_key *keys; /* [M] */
    const uint64_t *counters;      /* [M] */
    const int32_t *forced;         /* [M] or NULL */
    int64_t m;
    int32_t *ids;   /* [M] */
    float *logprob; /* [M] */
    float *kept;    /* [M] or NULL */
};
void model_head_decode(const struct model_context *context, const void *image,
                       struct model_workspace *workspace, const struct model_decode_args *args);

/* Let passes on this workspace (MODEL_KEEP_NOTHING) be split by segments over up to `threads`
 * threads: model_generate does so where it pays. Once, before the first pass. Errors: RL_NO_MEMORY.
 */
rl_status model_workspace_share(struct model_workspace *workspace,
                                const struct model_layout *layout, int threads);

/* A generation pass: model_forward, then model_head_decode, and the results are there (what failed,
 * device_wait says). hidden_rows ascend. No two segments of the batch belong to one sequence. A
 * device may record a pass in which each sequence has one token, and launch the record for those
 * like it. Returns the head's part of the time, 0 .. 1. */
double model_generate(const struct model_context *context, const void *image, struct model_kv *kv,
                      const struct model_batch *batch, struct model_workspace *workspace,
                      const struct model_decode_args *decode);

/* Whole sequences packed for training: one segment each, from position 0, with pages of its own.
 * Filled again and again without allocation. `batch` may be read at any time. */
struct model_packing {
    struct model_batch batch;
    struct kernel_segments segments;
    int32_t page_count; /* pages in use: 0 .. page_count - 1 */
    int64_t max_tokens, max_sequences;
    int32_t *tokens;            /* [max_tokens] */
    int32_t *positions;         /* [max_tokens] */
    int32_t *segment_start;     /* [max_sequences + 1] */
    int32_t *first_position;    /* [max_sequences], zeros */
    const int32_t **page_table; /* [max_sequences] */
    int32_t *page_numbers;      /* [model_packing_pages(max_tokens, max_sequences)], 0, 1, 2, ... */
};

/* Pages that a kv needs for any packing within these limits. */
int32_t model_packing_pages(int64_t max_tokens, int64_t max_sequences);

/* Caller owns *out. Errors: RL_NO_MEMORY, RL_INVALID (limits below 1 or too large). */
rl_status model_packing_create(int64_t max_tokens, int64_t max_sequences,
                               struct model_packing **out);
void model_packing_destroy(struct model_packing *packing);

/* Empty it. */
void model_packing_reset(struct model_packing *packing);

/* Append a sequence of `count` >= 1 tokens; its rows are *first_row .. *first_row + count - 1.
 * Returns RL_AGAIN, silently and unchanged, if it does not fit any more. */
rl_status model_packing_add(struct model_packing *packing, const int32_t *tokens, int64_t count,
                            int64_t *first_row);

#endif
