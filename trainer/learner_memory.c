/* See learner_internal.h: arrays that grow to the largest step seen, and the pass that fills them.
 */
#include "trainer/learner_internal.h"

#include "core/log.h"

#include <stdlib.h>

static void free_rows(struct learner *l)
{
    free(l->logprob);
    free(l->entropy);
    free(l->g_logprob);
    free(l->g_entropy);
    l->logprob = l->entropy = l->g_logprob = l->g_entropy = NULL;
    l->row_capacity = 0;
}

static rl_status grow_rows(struct learner *l, uint32_t rows)
{
    if (rows <= l->row_capacity) {
        return RL_OK;
    }
    free_rows(l);
    l->logprob = calloc(rows, sizeof(float));
    l->entropy = calloc(rows, sizeof(float));
    l->g_logprob = calloc(rows, sizeof(float));
    l->g_entropy = calloc(rows, sizeof(float));
    if (!l->logprob || !l->entropy || !l->g_logprob || !l->g_entropy) {
        free_rows(l);
        return rl_fail(RL_NO_MEMORY, "learner: out of memory for %u token rows", rows);
    }
    l->row_capacity = rows;
    return RL_OK;
}

rl_status learner_grow_activations(struct learner *l, const struct batcher_plan *plan)
{
    const struct learner_teaching *teaching = &l->teaching;
    /* families share tokens, so that there may be more rows to score */
    int64_t tokens = plan->max_tokens > plan->max_rows ? plan->max_tokens : plan->max_rows;
    int64_t pages = plan->max_pages;
    if (teaching->packing != NULL) {
        int64_t packed = teaching->packing->max_tokens;
        int64_t needed = model_packing_pages(packed, teaching->packing->max_sequences);
        tokens = packed > tokens ? packed : tokens;
        pages = needed > pages ? needed : pages;
    }
    if (tokens > l->workspace_tokens) {
        model_workspace_destroy(l->workspace);
        l->workspace = NULL;
        l->workspace_tokens = 0;
        RL_TRY(model_workspace_create(l->args.layout, tokens, optimizer_keep(l->args.config),
                                      &l->workspace));
        l->workspace_tokens = tokens;
    }
    if (pages > l->kv_pages) {
        model_kv_fini(&l->kv);
        l->kv = (struct model_kv){0};
        l->kv_pages = 0;
        RL_TRY(model_kv_create(l->args.layout, (int32_t)pages, &l->kv));
        l->kv_pages = pages;
    }
    return grow_rows(l, plan->max_rows);
}

static bool grow_floats(float **array, size_t count)
{
    float *grown = realloc(*array, (count == 0 ? 1 : count) * sizeof(float));
    if (grown == NULL) {
        return false;
    }
    *array = grown;
    return true;
}

rl_status learner_grow_step_rows(struct learner *l, const struct batcher_plan *plan)
{
    struct step_rows *rows = &l->rows;
    size_t *base = realloc(rows->base, (plan->microbatch_count + 1) * sizeof(*base));
    if (base == NULL) {
        return rl_fail(RL_NO_MEMORY, "learner: out of memory for a plan");
    }
    rows->base = base;
    size_t total = 0;
    for (uint32_t i = 0; i < plan->microbatch_count; i++) {
        base[i] = total;
        total += plan->microbatches[i].row_count;
    }
    bool ok = true;
    if (l->needs_old || l->kl_in_reward) {
        ok = grow_floats(&rows->old, total);
    }
    if (l->args.reference_image != NULL) {
        ok = ok && grow_floats(&rows->reference, total);
    }
    return ok ? RL_OK : rl_fail(RL_NO_MEMORY, "learner: out of memory for %zu log-probs", total);
}

rl_status learner_grow_samples(struct learner *l, size_t samples)
{
    if (samples <= l->sample_capacity) {
        return RL_OK;
    }
    free(l->sample_advantage);
    free(l->sample_penalty);
    free(l->token_first);
    l->sample_capacity = 0;
    l->sample_advantage = calloc(samples, sizeof(float));
    l->sample_penalty = calloc(samples, sizeof(double));
    l->token_first = calloc(samples, sizeof(size_t));
    if (l->sample_advantage == NULL || l->sample_penalty == NULL || l->token_first == NULL) {
        return rl_fail(RL_NO_MEMORY, "learner: out of memory for %zu samples", samples);
    }
    l->sample_capacity = samples;
    return RL_OK;
}

rl_status learner_grow_tokens(struct learner *l, size_t tokens)
{
    if (tokens <= l->token_capacity) {
        return RL_OK;
    }
    l->token_capacity = 0;
    bool ok = grow_floats(&l->token_advantage, tokens);
    ok = ok && (!l->kl_in_reward || grow_floats(&l->token_penalty, tokens));
    if (!ok) {
        return rl_fail(RL_NO_MEMORY, "learner: out of memory for %zu advantages", tokens);
    }
    l->token_capacity = tokens;
    return RL_OK;
}

void learner_free_memory(struct learner *l)
{
    free_rows(l);
    free(l->rows.old);
    free(l->rows.reference);
    free(l->rows.base);
    free(l->ahead);
    free(l->sample_advantage);
    free(l->sample_penalty);
    free(l->token_advantage);
    free(l->token_penalty);
    free(l->token_first);
    batcher_arrays_fini(&l->arrays);
    model_workspace_destroy(l->workspace);
    model_kv_fini(&l->kv);
}

rl_status learner_forward_microbatch(struct learner *l, const struct batcher_plan *plan,
                                     uint32_t index, const void *image, float *logprob,
                                     float *entropy)
{
    const float *hidden = NULL;
    RL_TRY(batcher_arrays_fill(&l->arrays, plan, index));
    model_forward(&l->context, image, &l->kv, &l->arrays.batch, l->workspace, &hidden);
    model_head_forward(&l->context, image, l->workspace,
                       &(struct model_head_args){l->arrays.hidden_rows, l->arrays.targets,
                                                 l->arrays.row_count, l->inv_temperature, logprob,
                                                 entropy});
    return device_wait(l->args.pool);
}
