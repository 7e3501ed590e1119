/* Packing of whole sequences for training. Owns the arrays behind a batch. Invariant: after each
 * call `batch` describes exactly the sequences added since the last reset. */
#include "model/forward.h"

#include "core/log.h"
#include "model/kv_cache.h"

#include <stdlib.h>
#include <string.h>

int32_t model_packing_pages(int64_t max_tokens, int64_t max_sequences)
{
    /* Each sequence wastes less than a page. */
    return (int32_t)(max_tokens / KERNEL_PAGE_TOKENS + max_sequences);
}

static bool allocate(struct model_packing *packing, size_t tokens, size_t sequences)
{
    size_t pages = (size_t)packing->page_count;
    packing->tokens = malloc(tokens * sizeof(*packing->tokens));
    packing->positions = malloc(tokens * sizeof(*packing->positions));
    packing->segment_start = malloc((sequences + 1) * sizeof(*packing->segment_start));
    packing->first_position = calloc(sequences, sizeof(*packing->first_position));
    packing->page_table = malloc(sequences * sizeof(*packing->page_table));
    packing->page_numbers = malloc(pages * sizeof(*packing->page_numbers));
    return packing->tokens != NULL && packing->positions != NULL &&
           packing->segment_start != NULL && packing->first_position != NULL &&
           packing->page_table != NULL && packing->page_numbers != NULL;
}

rl_status model_packing_create(int64_t max_tokens, int64_t max_sequences,
                               struct model_packing **out)
{
    if (max_tokens < 1 || max_sequences < 1 || max_tokens > INT32_MAX / 2 ||
        max_sequences > INT32_MAX / 2) {
        return rl_fail(RL_INVALID, "a batch of %lld tokens and %lld sequences is out of range",
                       (long long)max_tokens, (long long)max_sequences);
    }
    struct model_packing *packing = calloc(1, sizeof(*packing));
    if (packing == NULL) {
        return rl_fail(RL_NO_MEMORY, "no memory for a training batch");
    }
    packing->max_tokens = max_tokens;
    packing->max_sequences = max_sequences;
    packing->page_count = model_packing_pages(max_tokens, max_sequences);
    if (!allocate(packing, (size_t)max_tokens, (size_t)max_sequences)) {
        model_packing_destroy(packing);
        return rl_fail(RL_NO_MEMORY, "no memory for a training batch of %lld tokens",
                       (long long)max_tokens);
    }
    for (int32_t i = 0; i < packing->page_count; i++) {
        packing->page_numbers[i] = i;
    }
    packing->batch.tokens = packing->tokens;
    packing->batch.positions = packing->positions;
    packing->batch.segments = &packing->segments;
    packing->segments.segment_start = packing->segment_start;
    packing->segments.first_position = packing->first_position;
    packing->segments.page_table = packing->page_table;
    model_packing_reset(packing);
    *out = packing;
    return RL_OK;
}

void model_packing_destroy(struct model_packing *packing)
{
    if (packing == NULL) {
        return;
    }
    free(packing->page_numbers);
    free(packing->page_table);
    free(packing->first_position);
    free(packing->segment_start);
    free(packing->positions);
    free(packing->tokens);
    free(packing);
}

void model_packing_reset(struct model_packing *packing)
{
    packing->page_count = 0;
    packing->segments.count = 0;
    packing->segment_start[0] = 0;
    packing->batch.token_count = 0;
}

rl_status model_packing_add(struct model_packing *packing, const int32_t *tokens, int64_t count,
                            int64_t *first_row)
{
    int64_t start = packing->batch.token_count;
    if (count < 1 || count > packing->max_tokens - start ||
        packing->segments.count == packing->max_sequences) {
        return RL_AGAIN;
    }
    memcpy(packing->tokens + start, tokens, (size_t)count * sizeof(*tokens));
    for (int64_t i = 0; i < count; i++) {
        packing->positions[start + i] = (int32_t)i;
    }
    packing->page_table[packing->segments.count++] = packing->page_numbers + packing->page_count;
    packing->segment_start[packing->segments.count] = (int32_t)(start + count);
    packing->page_count += model_pages_for_tokens(count);
    packing->batch.token_count = start + count;
    *first_row = start;
    return RL_OK;
}
