/* Forward pass of the decoder. Owns the order of kernel calls. Invariant: generation and training
 * run the very same calls on the same numbers; whether a layer's state is kept or overwritten is
 * decided by where the workspace's pointers point, never by a branch around arithmetic (P1). */
#include "model/workspace.h"

#include <assert.h>
#include <math.h>
#include <string.h>

const void *model_image_tensor(const struct model_layout *layout, const void *image,
                               enum model_param param, int32_t layer)
{
    if (param == MODEL_PARAM_COUNT) {
        return NULL;
    }
    const struct model_tensor *tensor = model_layout_tensor(layout, param, layer);
    return tensor == NULL ? NULL : (const unsigned char *)image + tensor->image_offset;
}

static float *grad_tensor(const struct model_pass *pass, enum model_param param, int32_t layer)
{
    if (pass->grad == NULL || param == MODEL_PARAM_COUNT) {
        return NULL;
    }
    const struct model_tensor *tensor = model_layout_tensor(pass->layout, param, layer);
    return tensor == NULL ? NULL : pass->grad + tensor->offset;
}

struct kernel_linear_args model_linear_args(const struct model_pass *pass,
                                            const struct model_linear *map)
{
    const struct model_layout *layout = pass->layout;
    const struct model_tensor *weight = model_layout_tensor(layout, map->weight, map->layer);
    return (struct kernel_linear_args){
        .w = (const unsigned char *)pass->image + weight->image_offset,
        .dtype = layout->dtype,
        .bias = model_image_tensor(layout, pass->image, map->bias, map->layer),
        .x = map->x,
        .y = map->y,
        .dw = grad_tensor(pass, map->weight, map->layer),
        .dbias = grad_tensor(pass, map->bias, map->layer),
        .m = pass->batch->token_count,
        .n = weight->rows,
        .k = weight->cols,
        .x_stride = weight->cols,
        .y_stride = weight->rows,
        .accumulate = map->accumulate,
    };
}

static void linear_forward(const struct model_pass *pass, const struct model_linear *map)
{
    struct kernel_linear_args args = model_linear_args(pass, map);
    pass->kernels->linear_forward(&args, pass->context->pool);
}

/* Maps of the same rows. */
static void linear_forward_set(const struct model_pass *pass, const struct model_linear *maps,
                               int count)
{
    struct kernel_linear_set_args set = {.count = count};
    for (int i = 0; i < count; i++) {
        set.maps[i] = model_linear_args(pass, &maps[i]);
    }
    pass->kernels->linear_forward_set(&set, pass->context->pool);
}

void model_norm_forward(const struct model_pass *pass, const struct model_norm *norm)
{
    struct kernel_rmsnorm_args args = {
        .x = norm->x,
        .weight = model_image_tensor(pass->layout, pass->image, norm->weight, norm->layer),
        .y = norm->y,
        .inv_rms = norm->inv_rms,
        .m = norm->m,
        .c = norm->c,
        .epsilon = pass->layout->arch.norm_epsilon,
    };
    pass->kernels->rmsnorm_forward(&args, pass->context->pool);
}

void model_rope_forward(const struct model_pass *pass, float *x, int64_t heads)
{
    struct kernel_rope_args args = {
        .x = x,
        .cosine = pass->layout->cosine,
        .sine = pass->layout->sine,
        .positions = pass->batch->positions,
        .n = pass->batch->token_count,
        .heads = heads,
        .d = pass->layout->arch.head_dim,
    };
    pass->kernels->rope_forward(&args, pass->context->pool);
}

void model_glu_forward(const struct model_pass *pass, int32_t layer)
{
    const struct model_layer_state *state = &pass->workspace->layers[layer];
    struct kernel_glu_args args = {
        .gate = state->gate,
        .up = state->up,
        .y = state->act,
        .count = pass->batch->token_count * pass->layout->arch.ffn,
        .activation = pass->layout->arch.activation,
    };
    pass->kernels->glu_forward(&args, pass->context->pool);
}

struct kernel_attention_args model_attention_args(const struct model_pass *pass, int32_t layer)
{
    const struct model_architecture *a = &pass->layout->arch;
    const struct model_layer_state *state = &pass->workspace->layers[layer];
    return (struct kernel_attention_args){
        .segments = pass->batch->segments,
        .q = state->q,
        .k_pages = pass->kv->k + (size_t)layer * pass->kv->layer_bytes,
        .v_pages = pass->kv->v + (size_t)layer * pass->kv->layer_bytes,
        .dtype = pass->layout->kv_dtype,
        .out = state->attention,
        .lse = state->lse,
        .heads = a->heads,
        .kv_heads = a->kv_heads,
        .d = a->head_dim,
        .window = layer >= a->window_first_layer ? a->window : 0,
        .scale = (float)(1.0 / sqrt((double)a->head_dim)),
    };
}

/* Next place of the residual stream; the same place without training. */
static void carry_residual(const struct model_pass *pass, float *to, const float *from)
{
    if (to != from) {
        int64_t floats = pass->batch->token_count * pass->layout->arch.width;
        struct kernel_copy_args copy = {
            .to = to, .from = from, .rows = 1, .bytes = (size_t)floats * sizeof(float)};
        pass->kernels->copy_rows(&copy, pass->context->pool);
    }
}

/* What the pass's kernels read of the host's memory, in one go. */
static void begin_pass(const struct model_pass *pass)
{
    const struct model_batch *batch = pass->batch;
    size_t bytes = (size_t)batch->token_count * sizeof(int32_t);
    const struct kernel_pass_array arrays[] = {{batch->tokens, bytes}, {batch->positions, bytes}};
    struct kernel_pass_args begin = {.segments = batch->segments, .arrays = arrays, .count = 2};
    pass->kernels->pass_begin(&begin, pass->context->pool);
}

static void embed_tokens(const struct model_pass *pass)
{
    const struct model_architecture *a = &pass->layout->arch;
    struct kernel_embedding_args args = {
        .w = model_image_tensor(pass->layout, pass->image, MODEL_PARAM_EMBEDDING, -1),
        .dtype = pass->layout->dtype,
        .ids = pass->batch->tokens,
        .y = pass->workspace->layers[0].input,
        .m = pass->batch->token_count,
        .v = a->vocab,
        .c = a->width,
    };
    pass->kernels->embedding_forward(&args, pass->context->pool);
}

static void project_qkv(const struct model_pass *pass, int32_t layer, float *k)
{
    struct model_workspace *ws = pass->workspace;
    const struct model_layer_state *state = &ws->layers[layer];
    float *x = state->norm_input;
    const struct model_linear maps[] = {
        {MODEL_PARAM_Q, MODEL_PARAM_Q_BIAS, layer, x, state->q_raw, false},
        {MODEL_PARAM_K, MODEL_PARAM_K_BIAS, layer, x, k, false},
        {MODEL_PARAM_V, MODEL_PARAM_V_BIAS, layer, x, ws->v, false},
    };
    linear_forward_set(pass, maps, 3);
}

/* Queries and keys of the layer, normed and rotated. */
static void prepare_heads(const struct model_pass *pass, int32_t layer)
{
    struct model_workspace *ws = pass->workspace;
    const struct model_architecture *a = &pass->layout->arch;
    const struct model_layer_state *state = &ws->layers[layer];
    int64_t n = pass->batch->token_count;
    project_qkv(pass, layer, a->qk_norm ? state->k_raw : ws->k);
    if (a->qk_norm) {
        model_norm_forward(pass,
                           &(struct model_norm){MODEL_PARAM_Q_NORM, layer, state->q_raw, state->q,
                                                state->inv_q, n * a->heads, a->head_dim});
        model_norm_forward(pass,
                           &(struct model_norm){MODEL_PARAM_K_NORM, layer, state->k_raw, ws->k,
                                                state->inv_k, n * a->kv_heads, a->head_dim});
    }
    model_rope_forward(pass, state->q, a->heads);
    model_rope_forward(pass, ws->k, a->kv_heads);
}

static void attend(const struct model_pass *pass, int32_t layer)
{
    struct model_workspace *ws = pass->workspace;
    const struct model_layer_state *state = &ws->layers[layer];
    const struct model_architecture *a = &pass->layout->arch;
    int64_t n = pass->batch->token_count;
    model_norm_forward(pass,
                       &(struct model_norm){MODEL_PARAM_INPUT_NORM, layer, state->input,
                                            state->norm_input, state->inv_input, n, a->width});
    prepare_heads(pass, layer);
    struct kernel_kv_args store = {
        .segments = pass->batch->segments,
        .k = ws->k,
        .v = ws->v,
        .k_pages = pass->kv->k + (size_t)layer * pass->kv->layer_bytes,
        .v_pages = pass->kv->v + (size_t)layer * pass->kv->layer_bytes,
        .dtype = pass->layout->kv_dtype,
        .kv_heads = a->kv_heads,
        .d = a->head_dim,
    };
    pass->kernels->kv_write(&store, pass->context->pool);
    struct kernel_attention_args attention = model_attention_args(pass, layer);
    pass->kernels->attention_forward(&attention, pass->context->pool);
    carry_residual(pass, state->middle, state->input);
    linear_forward(pass, &(struct model_linear){MODEL_PARAM_O, MODEL_PARAM_O_BIAS, layer,
                                                state->attention, state->middle, true});
}

/* The feed-forward's first maps. */
static void project_gate_up(const struct model_pass *pass, int32_t layer)
{
    const struct model_layer_state *state = &pass->workspace->layers[layer];
    model_norm_forward(pass,
                       &(struct model_norm){MODEL_PARAM_POST_NORM, layer, state->middle,
                                            state->norm_middle, state->inv_middle,
                                            pass->batch->token_count, pass->layout->arch.width});
    float *x = state->norm_middle;
    const struct model_linear maps[] = {
        {MODEL_PARAM_GATE, MODEL_PARAM_GATE_BIAS, layer, x, state->gate, false},
        {MODEL_PARAM_UP, MODEL_PARAM_UP_BIAS, layer, x, state->up, false},
    };
    linear_forward_set(pass, maps, 2);
}

static void feed_forward(const struct model_pass *pass, int32_t layer, float *output)
{
    const struct model_layer_state *state = &pass->workspace->layers[layer];
    project_gate_up(pass, layer);
    model_glu_forward(pass, layer);
    carry_residual(pass, output, state->middle);
    linear_forward(pass, &(struct model_linear){MODEL_PARAM_DOWN, MODEL_PARAM_DOWN_BIAS, layer,
                                                state->act, output, true});
}

void model_layer_again(const struct model_pass *pass, int32_t layer)
{
    attend(pass, layer);
    project_gate_up(pass, layer);
    model_glu_forward(pass, layer);
}

void model_forward_begun(const struct model_pass *pass)
{
    struct model_workspace *workspace = pass->workspace;
    const int64_t tokens = pass->batch->token_count;
    assert(tokens <= workspace->max_tokens);
    workspace->head_rows = 0;
    if (tokens == 0) {
        return;
    }
    embed_tokens(pass);
    for (int32_t layer = 0; layer < pass->layout->arch.layers; layer++) {
        bool last = layer + 1 == pass->layout->arch.layers;
        attend(pass, layer);
        feed_forward(pass, layer, last ? workspace->output : workspace->layers[layer + 1].input);
    }
    model_norm_forward(pass, &(struct model_norm){MODEL_PARAM_FINAL_NORM, -1, workspace->output,
                                                  workspace->hidden, workspace->inv_final, tokens,
                                                  pass->layout->arch.width});
}

void model_forward(const struct model_context *context, const void *image, struct model_kv *kv,
                   const struct model_batch *batch, struct model_workspace *workspace,
                   const float **hidden)
{
    const struct model_layout *layout = context->layout;
    struct model_pass pass = {context, layout, context->kernels, image, kv, batch, workspace, NULL};
    *hidden = workspace->hidden;
    if (batch->token_count > 0) {
        begin_pass(&pass);
    }
    model_forward_begun(&pass);
}

static void gather_rows(const struct model_context *context,
                        const struct model_workspace *workspace, const int32_t *rows, int64_t m)
{
    for (int64_t i = 0; i < m; i++) {
        assert(rows[i] >= 0 && rows[i] < workspace->max_tokens);
    }
    struct kernel_gather_args gather = {.x = workspace->hidden,
                                        .rows = rows,
                                        .y = workspace->gathered,
                                        .m = m,
                                        .c = context->layout->arch.width};
    context->kernels->gather_rows(&gather, context->pool);
}

void model_head_forward(const struct model_context *context, const void *image,
                        struct model_workspace *workspace, const struct model_head_args *args)
{
    int64_t m = args->m;
    assert(m <= workspace->max_tokens);
    const struct model_layout *layout = context->layout;
    workspace->head_rows = m;
    workspace->inv_temperature = args->inv_temperature;
    workspace->g_gathered = NULL;
    workspace->has_entropy = args->entropy != NULL;
    if (m == 0) {
        return;
    }
    gather_rows(context, workspace, args->hidden_rows, m);
    memcpy(workspace->rows, args->hidden_rows, (size_t)m * sizeof(*args->hidden_rows));
    memcpy(workspace->targets, args->targets, (size_t)m * sizeof(*args->targets));
    struct kernel_head_args head = {
        .x = workspace->gathered,
        .w = model_image_tensor(layout, image, MODEL_PARAM_HEAD, -1),
        .dtype = layout->dtype,
        .targets = workspace->targets,
        .inv_temperature = args->inv_temperature,
        .logprob = workspace->logprob,
        .entropy = args->entropy == NULL ? NULL : workspace->entropy,
        .lse = workspace->head_lse,
        .scratch = workspace->head_scratch,
        .m = m,
        .v = layout->arch.vocab,
        .c = layout->arch.width,
    };
    context->kernels->head_forward(&head, context->pool);
    const size_t bytes = (size_t)m * sizeof(float);
    (void)device_read(context->pool, args->logprob, workspace->logprob, bytes);
    if (args->entropy != NULL) {
        (void)device_read(context->pool, args->entropy, workspace->entropy, bytes);
    }
}

/* Logits of a row at a time: few rows have room for more of them, which saves meetings of threads.
 */
static int64_t decode_columns(const struct model_workspace *workspace, int64_t m)
{
    const int64_t room = workspace->decode_rows * workspace->columns;
    const int64_t fits = m < workspace->decode_rows ? room / m : workspace->columns;
    return fits / KERNEL_HEAD_CHUNK * KERNEL_HEAD_CHUNK > workspace->columns
               ? fits / KERNEL_HEAD_CHUNK * KERNEL_HEAD_CHUNK
               : workspace->columns;
}

void model_head_decode(const struct model_context *context, const void *image,
                       struct model_workspace *workspace, const struct model_decode_args *args)
{
    assert(!model_keep_trains(workspace->keep) && args->m <= workspace->max_tokens);
    assert(workspace->keep == MODEL_KEEP_LOGITS ||
           model_sampling_keep(args->sampling) == MODEL_KEEP_NOTHING);
    const struct model_layout *layout = context->layout;
    gather_rows(context, workspace, args->hidden_rows, args->m);
    /* In turns: a row's result does not depend on its company, and the logits stay small. */
    for (int64_t row = 0; row < args->m; row += workspace->decode_rows) {
        int64_t left = args->m - row;
        struct kernel_decode_args decode = {
            .x = workspace->gathered + row * layout->arch.width,
            .w = model_image_tensor(layout, image, MODEL_PARAM_HEAD, -1),
            .dtype = layout->dtype,
            .sampling = args->sampling,
            .keys = args->keys + row,
            .counters = args->counters + row,
            .forced = args->forced == NULL ? NULL : args->forced + row,
            .ids = args->ids + row,
            .logprob = args->logprob + row,
            .columns = decode_columns(workspace, args->m - row),
            .kept = args->kept == NULL ? NULL : args->kept + row,
            .logits = workspace->logits,
            .chunks = workspace->chunks,
            .order = workspace->order,
            .m = left < workspace->decode_rows ? left : workspace->decode_rows,
            .v = layout->arch.vocab,
            .c = layout->arch.width,
        };
        context->kernels->head_decode(&decode, context->pool);
    }
}
