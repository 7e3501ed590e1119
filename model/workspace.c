/* Working memory of passes: one slab, carved in one place. Invariant: sizing and carving are the
 * same code, run without and with a base address. */
#include "model/workspace.h"

#include "core/log.h"
#include "kernels/sampling.h"

#include <stdlib.h>

/* A pointer that moves through the slab; without a base it only counts. */
struct carver {
    unsigned char *base;
    size_t used;
    int64_t tokens;
    struct model_view from; /* skip so many rows of every array */
};

/* `rows` rows of `per_row` four-byte elements each, from row `first` on. */
static void *carve_rows(struct carver *carver, int64_t rows, int64_t per_row, int64_t first)
{
    void *place = carver->base == NULL ? NULL : carver->base + carver->used + first * per_row * 4;
    carver->used += ((size_t)(rows * per_row * 4) + 63) / 64 * 64;
    return place;
}

/* Elements, `per_token` for each token. */
static void *carve(struct carver *carver, int64_t per_token)
{
    return carve_rows(carver, carver->tokens, per_token, carver->from.token);
}

static void carve_layer(struct carver *carver, const struct model_architecture *a,
                        enum model_keep keep, struct model_layer_state *state)
{
    bool training = model_keep_trains(keep);
    int64_t q_width = (int64_t)a->heads * a->head_dim;
    int64_t k_width = (int64_t)a->kv_heads * a->head_dim;
    state->input = carve(carver, a->width);
    state->middle = training ? carve(carver, a->width) : state->input;
    state->inv_input = carve(carver, 1);
    state->inv_middle = carve(carver, 1);
    state->q_raw = carve(carver, q_width);
    if (a->qk_norm) {
        state->k_raw = carve(carver, k_width);
        state->inv_q = carve(carver, a->heads);
        state->inv_k = carve(carver, a->kv_heads);
    }
    state->attention = carve(carver, q_width);
    state->lse = training ? carve(carver, a->heads) : NULL;
    state->gate = carve(carver, a->ffn);
    state->up = carve(carver, a->ffn);
}

/* What backward can do without; see struct model_layer_state. */
static void carve_cheap(struct carver *carver, const struct model_architecture *a,
                        enum model_keep keep, struct model_layer_state *state)
{
    state->norm_input = carve(carver, a->width);
    /* shared, they are never needed at the same time */
    state->norm_middle = keep == MODEL_KEEP_ALL ? carve(carver, a->width) : state->norm_input;
    state->q = a->qk_norm ? carve(carver, (int64_t)a->heads * a->head_dim) : state->q_raw;
    state->act = carve(carver, a->ffn);
}

/* Layers after the first have arrays of their own as far as they are kept. Returns the first. */
static struct model_layer_state carve_layers(struct carver *carver,
                                             const struct model_architecture *a,
                                             struct model_workspace *workspace)
{
    enum model_keep keep = workspace->keep;
    struct model_layer_state first = {0};
    carve_layer(carver, a, keep, &first);
    carve_cheap(carver, a, keep, &first);
    for (int32_t layer = 0; layer < a->layers; layer++) {
        struct model_layer_state state = first;
        if (layer > 0 && (keep == MODEL_KEEP_COSTLY || keep == MODEL_KEEP_ALL)) {
            carve_layer(carver, a, keep, &state);
            state.q = a->qk_norm ? first.q : state.q_raw;
        } else if (layer > 0 && keep == MODEL_KEEP_INPUTS) {
            state.input = carve(carver, a->width);
        }
        if (layer > 0 && keep == MODEL_KEEP_ALL) {
            carve_cheap(carver, a, keep, &state);
        }
        if (workspace->layers != NULL) {
            workspace->layers[layer] = state;
        }
    }
    return first;
}

/* Logits of a row that decoding holds at a time. */
static int64_t decode_columns(const struct model_architecture *a, bool whole)
{
    int64_t padded = ((int64_t)a->vocab + KERNEL_PANEL - 1) / KERNEL_PANEL * KERNEL_PANEL;
    return whole || padded < MODEL_DECODE_COLUMNS ? padded : MODEL_DECODE_COLUMNS;
}

static void carve_head(struct carver *carver, const struct model_architecture *a,
                       struct model_workspace *workspace)
{
    workspace->gathered = carve(carver, a->width);
    workspace->logprob = carve(carver, 1);
    workspace->head_lse = carve(carver, 1);
    workspace->entropy = carve(carver, 1);
    workspace->head_scratch = carve(carver, KERNEL_HEAD_CHUNK);
    if (workspace->device != NULL) {
        workspace->decode_rows = MODEL_DECODE_ROWS_DEVICE;
    } else if (!model_keep_trains(workspace->keep)) {
        int64_t rows = carver->tokens < MODEL_DECODE_ROWS ? carver->tokens : MODEL_DECODE_ROWS;
        int64_t chunks = ((int64_t)a->vocab + KERNEL_HEAD_CHUNK - 1) / KERNEL_HEAD_CHUNK;
        bool whole = workspace->keep == MODEL_KEEP_LOGITS;
        workspace->decode_rows = rows;
        workspace->columns = decode_columns(a, whole);
        workspace->logits = carve_rows(carver, rows, workspace->columns, carver->from.decode_row);
        workspace->chunks =
            carve_rows(carver, rows, chunks * (int64_t)sizeof(struct kernel_decode_chunk) / 4,
                       carver->from.decode_row);
        workspace->order =
            whole ? carve_rows(carver, rows, a->vocab, carver->from.decode_row) : NULL;
    }
}

static void carve_all(struct carver *carver, const struct model_architecture *a,
                      struct model_workspace *workspace)
{
    int64_t q_width = (int64_t)a->heads * a->head_dim;
    int64_t k_width = (int64_t)a->kv_heads * a->head_dim;
    bool training = model_keep_trains(workspace->keep);
    struct model_layer_state first = carve_layers(carver, a, workspace);
    workspace->output = training ? carve(carver, a->width) : first.input;
    workspace->inv_final = carve(carver, 1);
    workspace->hidden = carve(carver, a->width);
    workspace->norm =
        workspace->keep == MODEL_KEEP_ALL ? carve(carver, a->width) : first.norm_input;
    workspace->k = carve(carver, k_width);
    workspace->v = carve(carver, k_width);
    carve_head(carver, a, workspace);
    if (training) {
        workspace->g_logprob = carve(carver, 1);
        workspace->g_entropy = carve(carver, 1);
        workspace->dx = carve(carver, a->width);
        workspace->dnorm = carve(carver, a->width);
        workspace->dq = carve(carver, q_width);
        workspace->dattention = carve(carver, q_width);
        workspace->dk = carve(carver, k_width);
        workspace->dv = carve(carver, k_width);
        workspace->dact = carve(carver, a->ffn);
    }
}

static rl_status workspace_allocate(const struct model_layout *layout,
                                    struct model_workspace *workspace)
{
    size_t layers = (size_t)layout->arch.layers;
    workspace->layers = calloc(layers, sizeof(*workspace->layers));
    if (workspace->layers == NULL) {
        return rl_fail(RL_NO_MEMORY, "no memory for a workspace of %zu layers", layers);
    }
    workspace->rows = calloc((size_t)workspace->max_tokens * 2, sizeof(int32_t));
    if (workspace->rows == NULL) {
        return rl_fail(RL_NO_MEMORY, "no memory for a workspace's rows");
    }
    workspace->targets = workspace->rows + workspace->max_tokens;
    struct carver carver = {.tokens = workspace->max_tokens};
    carve_all(&carver, &layout->arch, workspace);
    bool training = model_keep_trains(workspace->keep);
    RL_TRY(device_buffer_alloc(layout->device, carver.used,
                               training ? "training workspace" : "workspace", &workspace->slab));
    carver.base = workspace->slab;
    carver.used = 0;
    carve_all(&carver, &layout->arch, workspace);
    return RL_OK;
}

void model_workspace_view(const struct model_workspace *workspace,
                          const struct model_layout *layout, const struct model_view *place,
                          struct model_workspace *view)
{
    struct model_layer_state *layers = view->layers;
    struct carver carver = {
        .base = workspace->slab, .tokens = workspace->max_tokens, .from = *place};
    *view = (struct model_workspace){.device = workspace->device,
                                     .keep = workspace->keep,
                                     .max_tokens = workspace->max_tokens - place->token,
                                     .layers = layers};
    carve_all(&carver, &layout->arch, view);
    view->decode_rows = place->decode_rows;
}

/* What kernels/cuda takes at once, as it is written there: at most for logits of a wave of the
 * vocabulary, and for partial results of attention; for a row whose probabilities are cut; at least
 * of all. */
enum {
    SCRATCH_LOGITS = 16 << 20,
    SCRATCH_ATTENTION_BYTES = 256 << 20,
    SCRATCH_CUT_ROW_BYTES = 64 << 10,
    SCRATCH_LEAST_BYTES = 1 << 20
};

static int64_t lower(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t higher(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

size_t model_scratch_bytes(const struct model_layout *layout, int64_t tokens, enum model_keep keep)
{
    const struct model_architecture *a = &layout->arch;
    int64_t number = layout->dtype == KERNEL_BF16 ? 2 : 4;
    int64_t heads = (int64_t)a->heads * a->head_dim;
    int64_t widest = higher(higher(a->width, a->ffn), heads);
    /* both sides of a product, rounded */
    int64_t linear = higher(2 * tokens * widest * number, SCRATCH_LEAST_BYTES);
    int64_t partial = lower(8 * tokens * heads * (int64_t)sizeof(float), SCRATCH_ATTENTION_BYTES);
    if (!model_keep_trains(keep)) {
        int64_t rows = lower(tokens, MODEL_DECODE_ROWS_DEVICE);
        int64_t logits = rows * decode_columns(a, true);
        int64_t cut = keep == MODEL_KEEP_LOGITS ? rows * SCRATCH_CUT_ROW_BYTES : 0;
        return (size_t)higher(higher(linear, partial), logits * (int64_t)sizeof(float) + cut);
    }
    int64_t attention = tokens * (a->heads * (int64_t)sizeof(float) + 2 * heads * number) + partial;
    int64_t logits =
        lower(higher(SCRATCH_LOGITS, tokens * KERNEL_HEAD_CHUNK), tokens * decode_columns(a, true));
    int64_t head = logits * ((int64_t)sizeof(float) + number) + tokens * a->width * number;
    return (size_t)higher(higher(linear, attention), head);
}

enum model_keep model_sampling_keep(const struct kernel_sampling *sampling)
{
    bool whole = kernel_sampling_truncates(sampling) && !kernel_sampling_is_greedy(sampling);
    return whole ? MODEL_KEEP_LOGITS : MODEL_KEEP_NOTHING;
}

rl_status model_workspace_create(const struct model_layout *layout, int64_t max_tokens,
                                 enum model_keep keep, struct model_workspace **out)
{
    if (max_tokens < 1 || max_tokens > (INT64_C(1) << 24)) {
        return rl_fail(RL_INVALID, "a workspace for %lld tokens is out of range",
                       (long long)max_tokens);
    }
    struct model_workspace *workspace = calloc(1, sizeof(*workspace));
    if (workspace == NULL) {
        return rl_fail(RL_NO_MEMORY, "no memory for a workspace");
    }
    workspace->device = layout->device;
    workspace->keep = keep;
    workspace->max_tokens = max_tokens;
    rl_status status = workspace_allocate(layout, workspace);
    if (status != RL_OK) {
        model_workspace_destroy(workspace);
        return status;
    }
    *out = workspace;
    return RL_OK;
}

void model_workspace_destroy(struct model_workspace *workspace)
{
    if (workspace == NULL) {
        return;
    }
    model_shares_destroy(workspace->shares);
    device_buffer_free(workspace->device, workspace->slab);
    free(workspace->rows);
    free(workspace->layers);
    free(workspace);
}

size_t model_workspace_bytes(const struct model_layout *layout, int64_t max_tokens,
                             enum model_keep keep)
{
    struct carver carver = {.tokens = max_tokens};
    struct model_workspace workspace = {
        .device = layout->device, .keep = keep, .max_tokens = max_tokens};
    carve_all(&carver, &layout->arch, &workspace);
    return carver.used;
}
