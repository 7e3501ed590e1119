/* Working memory of passes: one slab, carved in one place. Invariant: sizing and carving are the
 * same code, run without and with a base address. */
#include "model/workspace.h"

#include "core/log.h"
#include "kernels/device.h"

#include <stdlib.h>

/* A pointer that moves through the slab; without a base it only counts. */
struct carver {
    unsigned char *base;
    size_t used;
    int64_t tokens;
};

static void *carve_bytes(struct carver *carver, int64_t bytes)
{
    void *place = carver->base == NULL ? NULL : carver->base + carver->used;
    carver->used += ((size_t)bytes + 63) / 64 * 64;
    return place;
}

/* Four-byte elements, `per_token` for each token. */
static void *carve(struct carver *carver, int64_t per_token)
{
    return carve_bytes(carver, carver->tokens * per_token * 4);
}

static void carve_layer(struct carver *carver, const struct model_architecture *a,
                        enum model_keep keep, struct model_layer_state *state)
{
    bool training = keep != MODEL_KEEP_NOTHING;
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

static void carve_head(struct carver *carver, const struct model_architecture *a,
                       struct model_workspace *workspace)
{
    workspace->gathered = carve(carver, a->width);
    workspace->head_lse = carve(carver, 1);
    workspace->entropy = carve(carver, 1);
    workspace->rows = carve(carver, 1);
    workspace->targets = carve(carver, 1);
    workspace->head_scratch = carve(carver, KERNEL_HEAD_CHUNK);
    if (workspace->keep == MODEL_KEEP_NOTHING) {
        int64_t rows = carver->tokens < MODEL_DECODE_ROWS ? carver->tokens : MODEL_DECODE_ROWS;
        int64_t padded = ((int64_t)a->vocab + 31) / 32 * 32;
        workspace->logits = carve_bytes(carver, rows * padded * 4);
        workspace->order = carve_bytes(carver, rows * a->vocab * 4);
    }
}

static void carve_all(struct carver *carver, const struct model_architecture *a,
                      struct model_workspace *workspace)
{
    int64_t q_width = (int64_t)a->heads * a->head_dim;
    int64_t k_width = (int64_t)a->kv_heads * a->head_dim;
    bool training = workspace->keep != MODEL_KEEP_NOTHING;
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
    struct carver carver = {NULL, 0, workspace->max_tokens};
    carve_all(&carver, &layout->arch, workspace);
    bool training = workspace->keep != MODEL_KEEP_NOTHING;
    RL_TRY(
        device_alloc(carver.used, training ? "training workspace" : "workspace", &workspace->slab));
    carver.base = workspace->slab;
    carver.used = 0;
    carve_all(&carver, &layout->arch, workspace);
    return RL_OK;
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
    device_free(workspace->slab);
    free(workspace->layers);
    free(workspace);
}

size_t model_workspace_bytes(const struct model_layout *layout, int64_t max_tokens,
                             enum model_keep keep)
{
    struct carver carver = {NULL, 0, max_tokens};
    struct model_workspace workspace = {.keep = keep, .max_tokens = max_tokens};
    carve_all(&carver, &layout->arch, &workspace);
    return carver.used;
}
