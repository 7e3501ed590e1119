/* Inside of struct model_workspace, for forward.c and backward.c only. Letters as in kernels.h;
 * N here is max_tokens. */
#ifndef FORESIGHT_MODEL_WORKSPACE_H
#define FORESIGHT_MODEL_WORKSPACE_H

#include "model/forward.h"

/* Rows that decode takes at a time, more in turns, and logits of a row that it holds at a time
 * unless it needs all. A device reads the head's weights once a turn, and holds all logits of one
 * in the op's scratch. */
enum {
    MODEL_DECODE_ROWS = 64,
    MODEL_DECODE_ROWS_DEVICE = 256,
    MODEL_DECODE_COLUMNS = 4 * KERNEL_HEAD_CHUNK
};

/* Does a workspace that keeps this serve backward? */
static inline bool model_keep_trains(enum model_keep keep)
{
    return keep != MODEL_KEEP_NOTHING && keep != MODEL_KEEP_LOGITS;
}

/* What a layer leaves for backward. What is not kept is one array that all layers write in turn,
 * and without training `middle` is `input`. */
struct model_layer_state {
    float *input;      /* [N, C] residual stream as it enters */
    float *middle;     /* [N, C] after attention */
    float *inv_input;  /* [N] 1 / rms of input */
    float *inv_middle; /* [N] */
    float *q_raw;      /* [N, H * D] before the per-head norm; without one, after RoPE */
    float *k_raw;      /* [N, K * D] likewise; only the norm's backward reads it */
    float *inv_q;      /* [N, H]; NULL without the per-head norm */
    float *inv_k;      /* [N, K] */
    float *attention;  /* [N, H * D] */
    float *lse;        /* [N, H]; NULL without training */
    float *gate, *up;  /* [N, F]; backward overwrites them with their gradients */

    /* of the layer with MODEL_KEEP_ALL, else shared */
    float *norm_input;  /* [N, C] what the first and the second half's linear maps read */
    float *norm_middle; /* [N, C] */
    float *q;           /* [N, H * D] after norm and RoPE; q_raw without a per-head norm */
    float *act;         /* [N, F] product of the feed-forward's halves */
};

struct model_workspace {
    struct device *device; /* whose memory the slab is */
    enum model_keep keep;
    int64_t max_tokens;
    struct model_shares *shares;      /* of generate.c; NULL: passes are not split by segments */
    void *slab;                       /* all arrays below but rows and targets */
    struct model_layer_state *layers; /* [L] */
    float *output;                    /* [N, C] residual stream after the last layer */
    float *inv_final;                 /* [N] */
    float *hidden;                    /* [N, C] after the last norm */

    float *norm;  /* [N, C] scratch of the head's backward; norm_input, norm_middle if shared */
    float *k, *v; /* [N, K * D] */

    int64_t head_rows; /* M of the last model_head_forward */
    float inv_temperature;
    bool has_entropy;
    float *gathered; /* [N, C] */
    /* [M, C] gradient of the gathered rows that head_backward does not make itself; borrowed from
     * model_head_divergence until the next model_head_forward; NULL: there is none */
    const float *g_gathered;
    float *logprob;               /* [N] */
    float *head_lse;              /* [N] */
    float *entropy;               /* [N] */
    float *g_logprob, *g_entropy; /* [N]; NULL without training */
    int32_t *rows, *targets;      /* [N] the host's, not of the slab */
    float *head_scratch;          /* [N, KERNEL_HEAD_CHUNK] */
    int64_t decode_rows;
    int64_t columns; /* multiple of KERNEL_HEAD_CHUNK, or V rounded up to a panel */
    float *logits;   /* [decode rows, columns]; NULL when training, and these three on a device */
    struct kernel_decode_chunk *chunks; /* [decode rows, chunks of the vocabulary] */
    int32_t *order;                     /* [decode rows, V]; NULL unless all logits are kept */

    float *dx;              /* [N, C] gradient of the residual stream; NULL without training */
    float *dnorm;           /* [N, C] */
    float *dq, *dattention; /* [N, H * D] */
    float *dk, *dv;         /* [N, K * D] */
    float *dact;            /* [N, F] */
};

/* Rows of a workspace from `token` on as a workspace of their own, with rows `decode_row` ..
 * `decode_row` + `decode_rows` - 1 of the logits. */
struct model_view {
    int64_t token;
    int64_t decode_row, decode_rows;
};

/* Point *view, whose `layers` [L] are the caller's, into `workspace` (not for training). */
void model_workspace_view(const struct model_workspace *workspace,
                          const struct model_layout *layout, const struct model_view *place,
                          struct model_workspace *view);

/* Takes NULL. */
void model_shares_destroy(struct model_shares *shares);

/* One forward or backward pass; all borrowed. */
struct model_pass {
    const struct model_context *context;
    const struct model_layout *layout;
    const struct kernel_table *kernels;
    const void *image;
    struct model_kv *kv;
    const struct model_batch *batch;
    struct model_workspace *workspace;
    float *grad; /* backward only */
};

/* model_forward without pass_begin, which has named at least the batch. */
void model_forward_begun(const struct model_pass *pass);

/* model_generate where the layout has a device. */
double model_generate_on_device(const struct model_pass *pass,
                                const struct model_decode_args *decode);

/* A linear map of a layer (-1: of none): x [m, K] and y [m, N], or their gradients. */
struct model_linear {
    enum model_param weight;
    enum model_param bias; /* MODEL_PARAM_COUNT: never has one */
    int32_t layer;
    float *x, *y;
    bool accumulate;
};

/* Parameter of a layer inside the image, NULL if the architecture has none. */
const void *model_image_tensor(const struct model_layout *layout, const void *image,
                               enum model_param param, int32_t layer);

/* The kernel's arguments for a linear map of the pass's batch; dw and dbias point into pass->grad
 * if there is one. */
struct kernel_linear_args model_linear_args(const struct model_pass *pass,
                                            const struct model_linear *map);

/* What the layer's attention is called with, forward fields only. */
struct kernel_attention_args model_attention_args(const struct model_pass *pass, int32_t layer);

/* y = RMSNorm of x by a parameter; `inv_rms` may be NULL; m rows of c. */
struct model_norm {
    enum model_param weight;
    int32_t layer;
    const float *x;
    float *y, *inv_rms;
    int64_t m, c;
};
void model_norm_forward(const struct model_pass *pass, const struct model_norm *norm);

/* Rotate heads in place by the batch's positions. */
void model_rope_forward(const struct model_pass *pass, float *x, int64_t heads);

/* act = activation(gate) * up of a layer. */
void model_glu_forward(const struct model_pass *pass, int32_t layer);

/* Once more everything that backward of the layer reads, from the layer's input. */
void model_layer_again(const struct model_pass *pass, int32_t layer);

#endif
