/* Backward pass of the decoder. Owns the order of gradient kernels. What forward did not
 * keep (enum model_keep) is computed again, by the same kernels on the same numbers. Invariant:
 * gradients are only ever added to `grad`. */
#include "model/workspace.h"

#include <assert.h>

/* Of maps of the same rows: dW += dY^T X each, and their gradients of the input. */
static void linear_backward(const struct model_pass *pass, const struct model_linear *maps,
                            int count, float *dx)
{
    struct kernel_linear_set_args set = {.dx = dx, .count = count};
    for (int i = 0; i < count; i++) {
        set.maps[i] = model_linear_args(pass, &maps[i]);
    }
    pass->kernels->linear_backward_set(&set, pass->context->pool);
}

struct norm_gradient {
    struct model_norm norm; /* x and inv_rms as in forward */
    const float *dy;
    float *dx;
    bool accumulate;
};

static void norm_backward(const struct model_pass *pass, const struct norm_gradient *gradient)
{
    const struct model_norm *norm = &gradient->norm;
    const struct model_tensor *weight =
        model_layout_tensor(pass->layout, norm->weight, norm->layer);
    struct kernel_rmsnorm_args args = {
        .x = norm->x,
        .weight = (const void *)((const unsigned char *)pass->image + weight->image_offset),
        .inv_rms = norm->inv_rms,
        .dy = gradient->dy,
        .dx = gradient->dx,
        .dweight = pass->grad + weight->offset,
        .m = norm->m,
        .c = norm->c,
        .epsilon = pass->layout->arch.norm_epsilon,
        .accumulate = gradient->accumulate,
    };
    pass->kernels->rmsnorm_backward(&args, pass->context->pool);
}

/* Before anything of the layer: what is cheap, from what is not; or all of it from its input,
 * except that the last layer's arrays are still those of its forward. */
static void recompute_layer(const struct model_pass *pass, int32_t layer)
{
    const struct model_layer_state *state = &pass->workspace->layers[layer];
    const struct model_architecture *a = &pass->layout->arch;
    int64_t n = pass->batch->token_count;
    if (pass->workspace->keep == MODEL_KEEP_ALL) {
        return;
    }
    if (pass->workspace->keep == MODEL_KEEP_INPUTS && layer + 1 < a->layers) {
        model_layer_again(pass, layer);
        return;
    }
    model_norm_forward(pass, &(struct model_norm){MODEL_PARAM_POST_NORM, layer, state->middle,
                                                  state->norm_middle, NULL, n, a->width});
    model_glu_forward(pass, layer);
    if (a->qk_norm) {
        model_norm_forward(pass, &(struct model_norm){MODEL_PARAM_Q_NORM, layer, state->q_raw,
                                                      state->q, NULL, n * a->heads, a->head_dim});
        model_rope_forward(pass, state->q, a->heads);
    }
}

static void feed_forward_backward(const struct model_pass *pass, int32_t layer)
{
    struct model_workspace *ws = pass->workspace;
    struct model_layer_state *state = &ws->layers[layer];
    const struct model_architecture *a = &pass->layout->arch;
    int64_t n = pass->batch->token_count;
    linear_backward(pass,
                    &(struct model_linear){MODEL_PARAM_DOWN, MODEL_PARAM_DOWN_BIAS, layer,
                                           state->act, ws->dx, false},
                    1, ws->dact);
    struct kernel_glu_args glu = {
        .gate = state->gate,
        .up = state->up,
        .dy = ws->dact,
        .dgate = state->gate,
        .dup = state->up,
        .count = n * a->ffn,
        .activation = a->activation,
    };
    pass->kernels->glu_backward(&glu, pass->context->pool);
    float *x = state->norm_middle;
    const struct model_linear maps[] = {
        {MODEL_PARAM_GATE, MODEL_PARAM_GATE_BIAS, layer, x, state->gate, false},
        {MODEL_PARAM_UP, MODEL_PARAM_UP_BIAS, layer, x, state->up, true}};
    linear_backward(pass, maps, 2, ws->dnorm);
    struct model_norm norm = {MODEL_PARAM_POST_NORM, layer, state->middle, NULL,
                              state->inv_middle,     n,     a->width};
    norm_backward(pass, &(struct norm_gradient){norm, ws->dnorm, ws->dx, true});
}

static void rope_backward(const struct model_pass *pass, float *dx, int64_t heads)
{
    struct kernel_rope_args args = {
        .x = dx,
        .cosine = pass->layout->cosine,
        .sine = pass->layout->sine,
        .positions = pass->batch->positions,
        .n = pass->batch->token_count,
        .heads = heads,
        .d = pass->layout->arch.head_dim,
    };
    pass->kernels->rope_backward(&args, pass->context->pool);
}

/* From gradients of rotated heads to gradients of the projections' outputs, in place. */
static void heads_backward(const struct model_pass *pass, int32_t layer)
{
    struct model_workspace *ws = pass->workspace;
    const struct model_layer_state *state = &ws->layers[layer];
    const struct model_architecture *a = &pass->layout->arch;
    int64_t n = pass->batch->token_count;
    rope_backward(pass, ws->dq, a->heads);
    rope_backward(pass, ws->dk, a->kv_heads);
    if (!a->qk_norm) {
        return;
    }
    struct model_norm q_norm = {MODEL_PARAM_Q_NORM, layer,        state->q_raw, NULL,
                                state->inv_q,       n * a->heads, a->head_dim};
    struct model_norm k_norm = {MODEL_PARAM_K_NORM, layer,           state->k_raw, NULL,
                                state->inv_k,       n * a->kv_heads, a->head_dim};
    norm_backward(pass, &(struct norm_gradient){q_norm, ws->dq, ws->dq, false});
    norm_backward(pass, &(struct norm_gradient){k_norm, ws->dk, ws->dk, false});
}

static void attention_backward(const struct model_pass *pass, int32_t layer)
{
    struct model_workspace *ws = pass->workspace;
    struct model_layer_state *state = &ws->layers[layer];
    int64_t n = pass->batch->token_count;
    linear_backward(pass,
                    &(struct model_linear){MODEL_PARAM_O, MODEL_PARAM_O_BIAS, layer,
                                           state->attention, ws->dx, false},
                    1, ws->dattention);
    struct kernel_attention_args attention = model_attention_args(pass, layer);
    attention.dout = ws->dattention;
    attention.dq = ws->dq;
    attention.dk = ws->dk;
    attention.dv = ws->dv;
    pass->kernels->attention_backward(&attention, pass->context->pool);
    heads_backward(pass, layer);
    struct model_norm norm = {
        MODEL_PARAM_INPUT_NORM,  layer, state->input, state->norm_input, state->inv_input, n,
        pass->layout->arch.width};
    if (ws->keep != MODEL_KEEP_ALL) { /* the second half has used the array since */
        model_norm_forward(pass, &norm);
    }
    float *x = state->norm_input;
    const struct model_linear maps[] = {
        {MODEL_PARAM_Q, MODEL_PARAM_Q_BIAS, layer, x, ws->dq, false},
        {MODEL_PARAM_K, MODEL_PARAM_K_BIAS, layer, x, ws->dk, true},
        {MODEL_PARAM_V, MODEL_PARAM_V_BIAS, layer, x, ws->dv, true}};
    linear_backward(pass, maps, 3, ws->dnorm);
    norm_backward(pass, &(struct norm_gradient){norm, ws->dnorm, ws->dx, true});
}

/* to [N, C] = the sum of its gathered rows, in order, for each token: adding rows where ids say is
 * what an embedding's gradient does. */
static void scatter_rows(const struct model_pass *pass, float *from, float *to)
{
    const struct model_workspace *ws = pass->workspace;
    int64_t width = pass->layout->arch.width;
    int64_t n = pass->batch->token_count;
    struct kernel_zero_args zero = {.data = to, .bytes = (size_t)(n * width) * sizeof(float)};
    struct kernel_embedding_args scatter = {
        .ids = ws->rows, .y = from, .dw = to, .m = ws->head_rows, .v = n, .c = width};
    pass->kernels->zero(&zero, pass->context->pool);
    pass->kernels->embedding_backward(&scatter, pass->context->pool);
}

/* Head, then its gathered rows back to their tokens, then the last norm: leaves dx. */
static void head_backward(const struct model_pass *pass, bool g_entropy)
{
    struct model_workspace *ws = pass->workspace;
    const struct model_layout *layout = pass->layout;
    int64_t width = layout->arch.width;
    int64_t n = pass->batch->token_count;
    float *dgathered = ws->dnorm;
    float *dhidden = ws->norm;
    struct kernel_head_args args = {
        .x = ws->gathered,
        .w = model_image_tensor(layout, pass->image, MODEL_PARAM_HEAD, -1),
        .dtype = layout->dtype,
        .targets = ws->targets,
        .inv_temperature = ws->inv_temperature,
        .entropy = ws->entropy,
        .lse = ws->head_lse,
        .g_logprob = ws->g_logprob,
        .g_entropy = g_entropy ? ws->g_entropy : NULL,
        .dx = dgathered,
        .dw = pass->grad + model_layout_tensor(layout, MODEL_PARAM_HEAD, -1)->offset,
        .scratch = ws->head_scratch,
        .m = ws->head_rows,
        .v = layout->arch.vocab,
        .c = width,
    };
    pass->kernels->head_backward(&args, pass->context->pool);
    if (ws->g_gathered != NULL) {
        struct kernel_add_args add = {
            .y = dgathered, .x = ws->g_gathered, .count = ws->head_rows * width};
        pass->kernels->add(&add, pass->context->pool);
    }
    scatter_rows(pass, dgathered, dhidden);
    struct model_norm norm = {MODEL_PARAM_FINAL_NORM, -1, ws->output, NULL,
                              ws->inv_final,          n,  width};
    norm_backward(pass, &(struct norm_gradient){norm, dhidden, ws->dx, false});
}

/* The rows' gradients, to the device. */
static void take_gradients(const struct model_pass *pass, const struct model_backward_args *args)
{
    const struct model_workspace *ws = pass->workspace;
    const size_t bytes = (size_t)ws->head_rows * sizeof(float);
    struct rl_pool *pool = pass->context->pool;
    device_write(pool, ws->g_logprob, args->g_logprob, bytes);
    if (args->g_entropy != NULL) {
        device_write(pool, ws->g_entropy, args->g_entropy, bytes);
    }
}

void model_backward(const struct model_context *context, const void *image, struct model_kv *kv,
                    const struct model_batch *batch, struct model_workspace *workspace,
                    const struct model_backward_args *args)
{
    assert(model_keep_trains(workspace->keep) &&
           (args->g_entropy == NULL || workspace->has_entropy));
    const struct model_layout *layout = context->layout;
    struct model_pass pass = {context, layout, context->kernels, image,
                              kv,      batch,  workspace,        args->grad};
    if (batch->token_count == 0 || workspace->head_rows == 0) {
        return;
    }
    take_gradients(&pass, args);
    head_backward(&pass, args->g_entropy != NULL);
    for (int32_t layer = layout->arch.layers - 1; layer >= 0; layer--) {
        recompute_layer(&pass, layer);
        feed_forward_backward(&pass, layer);
        attention_backward(&pass, layer);
    }
    struct kernel_embedding_args embedding = {
        .dtype = layout->dtype,
        .ids = batch->tokens,
        .y = workspace->dx,
        .dw = args->grad + model_layout_tensor(layout, MODEL_PARAM_EMBEDDING, -1)->offset,
        .m = batch->token_count,
        .v = layout->arch.vocab,
        .c = layout->arch.width,
    };
    context->kernels->embedding_backward(&embedding, context->pool);
}
