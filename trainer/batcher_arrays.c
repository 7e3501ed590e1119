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
    free(arrays->tables);
    free(arrays->prefix);
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
    if (micro->segment_count > a->segment_capacity) {
        uint32_t count = micro->segment_count;
        a->segment_capacity = count;
        ok = batcher_renew(&a->segment_start, count, sizeof(*a->segment_start)) && ok;
        ok = batcher_renew(&a->first_position, count, sizeof(*a->first_position)) && ok;
        ok = batcher_renew(&a->prefix, count, sizeof(*a->prefix)) && ok;
        ok = batcher_renew(&a->row_start, count, sizeof(*a->row_start)) && ok;
        ok = batcher_renew(&a->page_table, count, sizeof(*a->page_table)) && ok;
    }
    if (micro->table_count > a->table_capacity) {
        a->table_capacity = micro->table_count;
        ok = batcher_renew(&a->tables, micro->table_count, sizeof(*a->tables)) && ok;
    }
    return ok;
}

/* Tokens first .. end-1 of a sample as a segment, behind the pages of segment `prefix` (-1: from
 * position 0). */
static void batcher_add_segment(struct batcher_arrays *a, const struct trajectory *sample,
                                uint32_t first, uint32_t end, int32_t prefix)
{
    int64_t s = a->segment_count++;
    int32_t *table = a->tables + a->table_count;
    int64_t shared = first / KERNEL_PAGE_TOKENS;
    int64_t own = (end - first + KERNEL_PAGE_TOKENS - 1) / KERNEL_PAGE_TOKENS;
    for (int64_t i = 0; i < shared; i++) {
        table[i] = a->page_table[prefix][i];
    }
    for (int64_t i = 0; i < own; i++) {
        table[shared + i] = (int32_t)(a->page_count + i);
    }
    memcpy(a->tokens + a->token_count, sample->tokens + first, (end - first) * sizeof(*a->tokens));
    for (uint32_t i = first; i < end; i++) {
        a->positions[a->token_count + i - first] = (int32_t)i;
    }
    a->page_table[s] = table;
    a->first_position[s] = (int32_t)first;
    a->prefix[s] = prefix;
    a->table_count += shared + own;
    a->page_count += own;
    a->token_count += end - first;
    a->segment_start[s + 1] = (int32_t)a->token_count;
}

/* `family`: segment of what the sequence's family shares, which its first sequence makes. */
static void batcher_fill_sequence(struct batcher_arrays *a, const struct batcher_sequence *sequence,
                                  int32_t *family)
{
    const struct trajectory *sample = sequence->sample;
    int64_t rows = a->row_count;
    if (sequence->leads) {
        *family = (int32_t)a->segment_count;
        batcher_add_segment(a, sample, 0, sequence->shared, -1);
    }
    int64_t shared_start = sequence->shared > 0 ? a->segment_start[*family] : 0;
    int64_t own_start = a->token_count - sequence->shared;
    batcher_add_segment(a, sample, sequence->shared, sequence->token_count,
                        sequence->shared > 0 ? *family : -1);
    for (uint32_t t = 0; t < sample->completion_count; t++) {
        uint32_t before = sample->prompt_count - 1 + t;
        a->hidden_rows[rows + t] =
            (int32_t)((before < sequence->shared ? shared_start : own_start) + before);
        a->targets[rows + t] = sample->tokens[sample->prompt_count + t];
    }
    a->row_count += sample->completion_count;
    a->row_start[++a->sequence_count] = (int32_t)a->row_count;
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
    arrays->sequence_count = arrays->segment_count = 0;
    arrays->page_count = arrays->table_count = 0;
    int32_t family = -1;
    arrays->segment_start[0] = 0;
    arrays->row_start[0] = 0;
    for (uint32_t i = 0; i < micro->sequence_count; i++) {
        batcher_fill_sequence(arrays, &plan->sequences[micro->first_sequence + i], &family);
    }
    arrays->segments = (struct kernel_segments){
        .count = arrays->segment_count,
        .segment_start = arrays->segment_start,
        .first_position = arrays->first_position,
        .page_table = arrays->page_table,
        .prefix = arrays->prefix,
    };
    arrays->batch = (struct model_batch){
        .token_count = arrays->token_count,
        .tokens = arrays->tokens,
        .positions = arrays->positions,
        .segments = &arrays->segments,
    };
    return RL_OK;
}
