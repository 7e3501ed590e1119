/* A micro-batch as packed arrays. Owns their memory, which only ever grows. The invariant: row i of
 * the M completion rows is predicted by hidden row hidden_rows[i], the token just before it. */
#include "core/log.h"
#include "trainer/batcher.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

void batcher_arrays_init(struct batcher_arrays *arrays)
{
    *arrays = (struct batcher_arrays){0};
}

void batcher_arrays_fini(struct batcher_arrays *arrays)
{
    free(arrays->targets);
    free(arrays->hidden_rows);
    free(arrays->row_start);
    free(arrays->page_table);
    free(arrays->pages);
    free(arrays->first_position);
    free(arrays->segment_start);
    free(arrays->positions);
    free(arrays->tokens);
    *arrays = (struct batcher_arrays){0};
}

/* Old contents are not wanted: a fresh block costs less than realloc's copy. */
static bool batcher_renew(void *slot, int64_t count, size_t size)
{
    void *fresh = calloc((size_t)count + 1, size);
    void *old;
    memcpy(&old, slot, sizeof(old));
    free(old);
    memcpy(slot, &fresh, sizeof(fresh));
    return fresh != NULL;
}

static bool batcher_grow(struct batcher_arrays *a, const struct batcher_microbatch *micro)
{
    bool ok = true;
    if (micro->token_count > a->token_capacity) {
        a->token_capacity = micro->token_count;
        ok = batcher_renew(&a->tokens, micro->token_count, sizeof(*a->tokens)) && ok;
        ok = batcher_renew(&a->positions, micro->token_count, sizeof(*a->positions)) && ok;
    }
    if (micro->row_count > a->row_capacity) {
        a->row_capacity = micro->row_count;
        ok = batcher_renew(&a->hidden_rows, micro->row_count, sizeof(*a->hidden_rows)) && ok;
        ok = batcher_renew(&a->targets, micro->row_count, sizeof(*a->targets)) && ok;
    }
    if (micro->sequence_count > a->sequence_capacity) {
        uint32_t count = micro->sequence_count;
        a->sequence_capacity = count;
        ok = batcher_renew(&a->segment_start, count, sizeof(*a->segment_start)) && ok;
        ok = batcher_renew(&a->first_position, count, sizeof(*a->first_position)) && ok;
        ok = batcher_renew(&a->row_start, count, sizeof(*a->row_start)) && ok;
        ok = batcher_renew(&a->page_table, count, sizeof(*a->page_table)) && ok;
    }
    if (micro->page_count > a->page_capacity) {
        a->page_capacity = micro->page_count;
        ok = batcher_renew(&a->pages, micro->page_count, sizeof(*a->pages)) && ok;
    }
    return ok;
}

static void batcher_fill_sequence(struct batcher_arrays *a, const struct batcher_sequence *sequence)
{
    const struct trajectory *sample = sequence->sample;
    int64_t start = a->token_count;
    int64_t rows = a->row_count;
    uint32_t tokens = sequence->token_count;
    memcpy(a->tokens + start, sample->tokens, tokens * sizeof(*a->tokens));
    for (uint32_t i = 0; i < tokens; i++) {
        a->positions[start + i] = (int32_t)i;
    }
    for (uint32_t t = 0; t < sample->completion_count; t++) {
        a->hidden_rows[rows + t] = (int32_t)(start + sample->prompt_count - 1 + t);
        a->targets[rows + t] = sample->tokens[sample->prompt_count + t];
    }
    int64_t s = a->sequence_count++;
    a->first_position[s] = 0;
    a->page_table[s] = a->pages + a->page_count;
    a->token_count += tokens;
    a->row_count += sample->completion_count;
    a->page_count += (tokens + KERNEL_PAGE_TOKENS - 1) / KERNEL_PAGE_TOKENS;
    a->segment_start[s + 1] = (int32_t)a->token_count;
    a->row_start[s + 1] = (int32_t)a->row_count;
}

rl_status batcher_arrays_fill(struct batcher_arrays *arrays, const struct batcher_plan *plan,
                              uint32_t microbatch)
{
    const struct batcher_microbatch *micro = &plan->microbatches[microbatch];
    if (!batcher_grow(arrays, micro)) {
        batcher_arrays_fini(arrays);
        return rl_fail(RL_NO_MEMORY, "batcher: no memory for a micro-batch of %" PRIu32 " tokens",
                       micro->token_count);
    }
    arrays->token_count = arrays->row_count = 0;
    arrays->sequence_count = arrays->page_count = 0;
    arrays->segment_start[0] = 0;
    arrays->row_start[0] = 0;
    for (uint32_t i = 0; i < micro->sequence_count; i++) {
        batcher_fill_sequence(arrays, &plan->sequences[micro->first_sequence + i]);
    }
    for (int64_t p = 0; p < arrays->page_count; p++) {
        arrays->pages[p] = (int32_t)p;
    }
    arrays->segments = (struct kernel_segments){
        .count = arrays->sequence_count,
        .segment_start = arrays->segment_start,
        .first_position = arrays->first_position,
        .page_table = arrays->page_table,
    };
    arrays->batch = (struct model_batch){
        .token_count = arrays->token_count,
        .tokens = arrays->tokens,
        .positions = arrays->positions,
        .segments = &arrays->segments,
    };
    return RL_OK;
}
