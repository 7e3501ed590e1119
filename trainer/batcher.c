/* Planning of a step's minibatches and micro-batches. Pure; owns the plan's arrays, borrows the
 * groups. The invariant: every sequence with a completion is in exactly one micro-batch of exactly
 * one rank (truncated ones excepted if asked), and ranks differ in nothing but which they take. */
#include "trainer/batcher.h"

#include "core/log.h"
#include "core/rng.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define BATCHER_RNG_TAG (UINT64_C(0xBA) << 56)

/* What planning works with. */
struct batcher_build {
    const struct batcher_options *options;
    struct trajectory_group *const *groups;
    uint32_t group_count;
    uint64_t *order;                     /* [group_count] groups as dealt */
    uint32_t *first_index;               /* [group_count] index of a group's first sample */
    struct batcher_sequence *sequences;  /* of the minibatch in hand, all ranks */
    struct batcher_sequence **by_length; /* the same, longest first */
    uint32_t *owner;                     /* [sequences] rank */
    uint64_t *load;                      /* [ranks] tokens */
    uint32_t sequence_count;
    struct batcher_plan *plan;
};

static rl_status batcher_check_options(const struct batcher_options *options, uint32_t group_count)
{
    if (options->updates_per_step == 0 || options->max_tokens_per_microbatch == 0 ||
        options->ranks == 0 || options->rank >= options->ranks) {
        return rl_fail(RL_INVALID,
                       "batcher: updates_per_step %" PRIu32 ", max_tokens_per_microbatch %" PRIu32
                       ", rank %" PRIu32 " of %" PRIu32 ": none may be 0, rank below ranks",
                       options->updates_per_step, options->max_tokens_per_microbatch, options->rank,
                       options->ranks);
    }
    if (group_count == 0) {
        return rl_fail(RL_INVALID, "batcher: no group to train on");
    }
    return RL_OK;
}

/* Total number of samples, which indices and counts of the plan must hold in 32 bits. */
static rl_status batcher_count_samples(struct trajectory_group *const *groups, uint32_t group_count,
                                       uint32_t *out)
{
    uint64_t total = 0;
    for (uint32_t g = 0; g < group_count; g++) {
        total += groups[g]->sample_count;
    }
    if (total > INT32_MAX) {
        return rl_fail(RL_INVALID, "batcher: %" PRIu64 " samples in one step, at most %d", total,
                       INT32_MAX);
    }
    *out = (uint32_t)total;
    return RL_OK;
}

static void batcher_build_fini(struct batcher_build *build)
{
    free(build->load);
    free(build->owner);
    free(build->by_length);
    free(build->sequences);
    free(build->first_index);
    free(build->order);
    batcher_plan_destroy(build->plan);
}

static rl_status batcher_build_init(struct batcher_build *build, uint32_t samples)
{
    uint32_t groups = build->group_count;
    uint32_t minibatches =
        build->options->updates_per_step < groups ? build->options->updates_per_step : groups;
    build->order = calloc(groups, sizeof(*build->order));
    build->first_index = calloc(groups, sizeof(*build->first_index));
    build->sequences = calloc((size_t)samples + 1, sizeof(*build->sequences));
    build->by_length = calloc((size_t)samples + 1, sizeof(*build->by_length));
    build->owner = calloc((size_t)samples + 1, sizeof(*build->owner));
    build->load = calloc(build->options->ranks, sizeof(*build->load));
    struct batcher_plan *plan = calloc(1, sizeof(*plan));
    build->plan = plan;
    if (plan != NULL) {
        plan->minibatches = calloc(minibatches, sizeof(*plan->minibatches));
        plan->microbatches = calloc((size_t)samples + 1, sizeof(*plan->microbatches));
        plan->sequences = calloc((size_t)samples + 1, sizeof(*plan->sequences));
        plan->minibatch_count = minibatches;
    }
    if (build->order == NULL || build->first_index == NULL || build->sequences == NULL ||
        build->by_length == NULL || build->owner == NULL || build->load == NULL || plan == NULL ||
        plan->minibatches == NULL || plan->microbatches == NULL || plan->sequences == NULL) {
        return rl_fail(RL_NO_MEMORY, "batcher: no memory for a plan of %" PRIu32 " samples",
                       samples);
    }
    return RL_OK;
}

static void batcher_order_groups(struct batcher_build *build)
{
    uint32_t index = 0;
    for (uint32_t g = 0; g < build->group_count; g++) {
        build->order[g] = g;
        build->first_index[g] = index;
        index += build->groups[g]->sample_count;
    }
    if (build->options->shuffle) {
        struct rl_rng_key key =
            rl_rng_key_make(build->options->seed, build->options->step, BATCHER_RNG_TAG);
        rl_rng_permutation(key, build->group_count, build->order);
    }
}

/* Add a sample to the minibatch in hand, unless there is nothing to train on in it. */
static rl_status batcher_add_sample(struct batcher_build *build, uint32_t group, uint32_t sample)
{
    const struct trajectory *trajectory = &build->groups[group]->samples[sample];
    if (trajectory->completion_count == 0) {
        build->plan->skipped_empty++;
        return RL_OK;
    }
    if (build->options->mask_truncated && trajectory->finish == RL_FINISH_LENGTH) {
        build->plan->skipped_truncated++;
        return RL_OK;
    }
    uint64_t tokens = (uint64_t)trajectory->prompt_count + trajectory->completion_count - 1;
    if (trajectory->prompt_count == 0 || tokens > INT32_MAX) {
        return rl_fail(RL_INVALID,
                       "batcher: ticket %" PRIu64 " sample %" PRIu32 " has %" PRIu32
                       " prompt and %" PRIu32 " completion tokens; a prompt token is needed, and "
                       "fewer than 2^31 in all",
                       build->groups[group]->ticket, sample, trajectory->prompt_count,
                       trajectory->completion_count);
    }
    build->sequences[build->sequence_count] = (struct batcher_sequence){
        .sample = trajectory,
        .group = group,
        .index = build->first_index[group] + sample,
        .token_count = (uint32_t)tokens,
    };
    build->sequence_count++;
    return RL_OK;
}

/* Longest first; the array they point into breaks ties, so the order is total. */
static int batcher_compare_length(const void *left, const void *right)
{
    const struct batcher_sequence *a = *(struct batcher_sequence *const *)left;
    const struct batcher_sequence *b = *(struct batcher_sequence *const *)right;
    if (a->token_count != b->token_count) {
        return a->token_count > b->token_count ? -1 : 1;
    }
    return (a > b) - (a < b);
}

/* Longest first, each to the rank with the fewest tokens so far, the lowest of equals. */
static void batcher_share(struct batcher_build *build)
{
    uint32_t ranks = build->options->ranks;
    for (uint32_t r = 0; r < ranks; r++) {
        build->load[r] = 0;
    }
    for (uint32_t i = 0; i < build->sequence_count; i++) {
        build->by_length[i] = &build->sequences[i];
    }
    qsort(build->by_length, build->sequence_count, sizeof(struct batcher_sequence *),
          batcher_compare_length);
    for (uint32_t i = 0; i < build->sequence_count; i++) {
        uint32_t best = 0;
        for (uint32_t r = 1; r < ranks; r++) {
            best = build->load[r] < build->load[best] ? r : best;
        }
        build->load[best] += build->by_length[i]->token_count;
        build->owner[build->by_length[i] - build->sequences] = best;
    }
}

static uint32_t batcher_pages(uint32_t tokens)
{
    return (tokens + KERNEL_PAGE_TOKENS - 1) / KERNEL_PAGE_TOKENS;
}

static void batcher_note_largest(struct batcher_plan *plan, const struct batcher_microbatch *micro)
{
    plan->max_tokens =
        micro->token_count > plan->max_tokens ? micro->token_count : plan->max_tokens;
    plan->max_rows = micro->row_count > plan->max_rows ? micro->row_count : plan->max_rows;
    plan->max_pages = micro->page_count > plan->max_pages ? micro->page_count : plan->max_pages;
    if (micro->sequence_count > plan->max_sequences) {
        plan->max_sequences = micro->sequence_count;
    }
}

/* Tokens of whole pages that both prompts begin with; each must have tokens of its own behind. */
static uint32_t batcher_shared_tokens(const struct batcher_options *options,
                                      const struct batcher_sequence *a,
                                      const struct batcher_sequence *b)
{
    uint32_t prompt = a->sample->prompt_count;
    uint32_t shared = prompt / KERNEL_PAGE_TOKENS * KERNEL_PAGE_TOKENS;
    bool same = options->share_prompts && a->group == b->group && shared > 0 &&
                b->sample->prompt_count == prompt && a->token_count > shared &&
                b->token_count > shared &&
                memcmp(a->sample->tokens, b->sample->tokens, shared * sizeof(int32_t)) == 0;
    return same ? shared : 0;
}

/* The last sequence of the micro-batch becomes the first of a family. */
static void batcher_found_family(struct batcher_microbatch *micro, struct batcher_sequence *first,
                                 uint32_t shared)
{
    first->shared = shared;
    first->leads = true;
    micro->segment_count++;
    micro->table_count += shared / KERNEL_PAGE_TOKENS;
}

/* Append one of this rank's sequences, to the last micro-batch if the budget allows it. */
static void batcher_pack(struct batcher_build *build, struct batcher_minibatch *mini,
                         const struct batcher_sequence *sequence)
{
    struct batcher_plan *plan = build->plan;
    struct batcher_microbatch *micro =
        mini->microbatch_count > 0 ? &plan->microbatches[plan->microbatch_count - 1] : NULL;
    struct batcher_sequence *last =
        micro != NULL ? &plan->sequences[plan->sequence_count - 1] : NULL;
    uint64_t budget = build->options->max_tokens_per_microbatch;
    uint32_t shared = last != NULL ? batcher_shared_tokens(build->options, last, sequence) : 0;
    if (micro == NULL || (uint64_t)micro->token_count + sequence->token_count - shared > budget) {
        micro = &plan->microbatches[plan->microbatch_count++];
        micro->first_sequence = plan->sequence_count;
        mini->microbatch_count++;
        shared = 0;
    }
    if (shared > 0 && last->shared == 0) {
        batcher_found_family(micro, last, shared);
    }
    micro->sequence_count++;
    micro->segment_count++;
    micro->token_count += sequence->token_count - shared;
    micro->row_count += sequence->sample->completion_count;
    micro->page_count += batcher_pages(sequence->token_count - shared);
    micro->table_count += batcher_pages(sequence->token_count);
    plan->sequences[plan->sequence_count] = *sequence;
    plan->sequences[plan->sequence_count++].shared = shared;
    batcher_note_largest(plan, micro);
}

static rl_status batcher_minibatch(struct batcher_build *build, uint32_t number)
{
    struct batcher_plan *plan = build->plan;
    uint64_t groups = build->group_count;
    uint32_t begin = (uint32_t)(groups * number / plan->minibatch_count);
    uint32_t end = (uint32_t)(groups * (number + 1) / plan->minibatch_count);
    struct batcher_minibatch *mini = &plan->minibatches[number];
    mini->first_microbatch = plan->microbatch_count;
    mini->group_count = end - begin;
    build->sequence_count = 0;
    for (uint32_t i = begin; i < end; i++) {
        uint32_t group = (uint32_t)build->order[i];
        for (uint32_t s = 0; s < build->groups[group]->sample_count; s++) {
            RL_TRY(batcher_add_sample(build, group, s));
        }
    }
    batcher_share(build);
    mini->sequence_count = build->sequence_count;
    for (uint32_t i = 0; i < build->sequence_count; i++) {
        mini->row_count += build->sequences[i].sample->completion_count;
        if (build->owner[i] == build->options->rank) {
            batcher_pack(build, mini, &build->sequences[i]);
        }
    }
    return RL_OK;
}

rl_status batcher_plan_create(const struct batcher_options *options,
                              struct trajectory_group *const *groups, uint32_t group_count,
                              struct batcher_plan **out)
{
    RL_TRY(batcher_check_options(options, group_count));
    uint32_t samples = 0;
    RL_TRY(batcher_count_samples(groups, group_count, &samples));
    struct batcher_build build = {.options = options, .groups = groups, .group_count = group_count};
    rl_status status;
    RL_TRY_GOTO(batcher_build_init(&build, samples), status, done);
    batcher_order_groups(&build);
    for (uint32_t i = 0; i < build.plan->minibatch_count; i++) {
        RL_TRY_GOTO(batcher_minibatch(&build, i), status, done);
    }
    *out = build.plan;
    build.plan = NULL;
done:
    batcher_build_fini(&build);
    return status;
}

void batcher_plan_destroy(struct batcher_plan *plan)
{
    if (plan == NULL) {
        return;
    }
    free(plan->sequences);
    free(plan->microbatches);
    free(plan->minibatches);
    free(plan);
}
