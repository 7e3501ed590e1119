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

static void carve_layer(struct carver *carver, const struct model_architecture *a, bool training,
                        struct model_layer_state *state)
{
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

static void carve_layers(struct carver *carver, const struct model_architecture *a,
                         struct model_workspace *workspace)
{
    for (int32_t layer = 0; layer < a->layers; layer++) {
        if (workspace->training || layer == 0) {
            carve_layer(carver, a, workspace->training, &workspace->layers[layer]);
        } else {
            workspace->layers[layer] = workspace->layers[0];
        }
    }
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
    if (!workspace->training) {
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
    carve_layers(carver, a, workspace);
    workspace->output = workspace->training ? carve(carver, a->width) : workspace->layers[0].input;
    workspace->inv_final = carve(carver, 1);
    workspace->hidden = carve(carver, a->width);
    workspace->norm = carve(carver, a->width);
    workspace->q = a->qk_norm ? carve(carver, q_width) : NULL;
    workspace->k = carve(carver, k_width);
    workspace->v = carve(carver, k_width);
    workspace->act = carve(carver, a->ffn);
    carve_head(carver, a, workspace);
    if (workspace->training) {
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
    RL_TRY(device_alloc(carver.used, workspace->training ? "training workspace" : "workspace",
                        &workspace->slab));
    carver.base = workspace->slab;
    carver.used = 0;
    carve_all(&carver, &layout->arch, workspace);
    return RL_OK;
}

rl_status model_workspace_create(const struct model_layout *layout, int64_t max_tokens,
                                 bool training, struct model_workspace **out)
{
    if (max_tokens < 1 || max_tokens > (INT64_C(1) << 24)) {
        return rl_fail(RL_INVALID, "a workspace for %lld tokens is out of range",
                       (long long)max_tokens);
    }
    struct model_workspace *workspace = calloc(1, sizeof(*workspace));
    if (workspace == NULL) {
        return rl_fail(RL_NO_MEMORY, "no memory for a workspace");
    }
    workspace->training = training;
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

size_t model_workspace_bytes(const struct model_layout *layout, int64_t max_tokens, bool training)
{
    struct model_layer_state first = {0};
    struct carver carver = {NULL, 0, max_tokens};
    struct model_workspace workspace = {.training = training, .max_tokens = max_tokens};
    carve_layer(&carver, &layout->arch, training, &first);
    size_t layer_bytes = carver.used;
    /* The rest is carved as for a model of one layer. */
    struct model_architecture one = layout->arch;
    one.layers = 1;
    workspace.layers = &first;
    carver.used = 0;
    carve_all(&carver, &one, &workspace);
    return carver.used + (training ? layer_bytes * (size_t)(layout->arch.layers - 1) : 0);
}
