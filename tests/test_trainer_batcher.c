/* Plans: everything exactly once, whole groups, balanced ranks, budgets; and the packed arrays. */
#include "core/rng.h"
#include "trainer/batcher.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

enum { GROUPS = 13, SAMPLES = 4, MOST = 64 };

/* Sequence lengths drawn from a seed; tokens say where they come from. */
static void sample_fill(struct trajectory *sample, uint32_t prompt, uint32_t completion,
                        uint32_t tag)
{
    int32_t tokens[2 * MOST];
    float logprob[MOST];
    uint32_t version[MOST];
    for (uint32_t i = 0; i < prompt + completion; i++) {
        tokens[i] = (int32_t)(tag * 1000 + i);
    }
    for (uint32_t i = 0; i < completion; i++) {
        logprob[i] = -(float)(tag + i);
        version[i] = tag + i;
    }
    ck_assert_int_eq(trajectory_set_tokens(sample, tokens, logprob, version, prompt, completion),
                     RL_OK);
    sample->finish = RL_FINISH_STOP;
}

static void groups_make(struct trajectory_group *groups[GROUPS], uint64_t seed)
{
    struct rl_rng rng = rl_rng_make(seed, 3);
    for (uint32_t g = 0; g < GROUPS; g++) {
        ck_assert_int_eq(trajectory_group_create(SAMPLES, &groups[g]), RL_OK);
        groups[g]->ticket = g;
        for (uint32_t s = 0; s < SAMPLES; s++) {
            uint32_t prompt = 1 + (uint32_t)rl_rng_next_below(&rng, 20);
            uint32_t completion = 1 + (uint32_t)rl_rng_next_below(&rng, MOST);
            sample_fill(&groups[g]->samples[s], prompt, completion, g * SAMPLES + s);
            groups[g]->samples[s].sample_index = s;
        }
    }
}

static void groups_free(struct trajectory_group *groups[GROUPS])
{
    for (uint32_t g = 0; g < GROUPS; g++) {
        trajectory_group_destroy(groups[g]);
    }
}

static struct batcher_options options_make(uint32_t updates, uint32_t budget, uint32_t ranks)
{
    return (struct batcher_options){
        .updates_per_step = updates,
        .max_tokens_per_microbatch = budget,
        .ranks = ranks,
        .shuffle = true,
        .seed = 5,
        .step = 2,
    };
}

/* Each micro-batch under the budget (or alone); totals as stated. */
static void check_microbatches(const struct batcher_plan *plan, uint32_t budget)
{
    for (uint32_t m = 0; m < plan->microbatch_count; m++) {
        const struct batcher_microbatch *micro = &plan->microbatches[m];
        uint32_t tokens = 0;
        uint32_t rows = 0;
        uint32_t pages = 0;
        for (uint32_t i = 0; i < micro->sequence_count; i++) {
            const struct batcher_sequence *sequence = &plan->sequences[micro->first_sequence + i];
            tokens += sequence->token_count;
            rows += sequence->sample->completion_count;
            pages += (sequence->token_count + 15) / 16;
        }
        ck_assert_uint_gt(micro->sequence_count, 0);
        ck_assert(tokens <= budget || micro->sequence_count == 1);
        ck_assert_uint_eq(tokens, micro->token_count);
        ck_assert_uint_eq(rows, micro->row_count);
        ck_assert_uint_eq(pages, micro->page_count);
        ck_assert_uint_le(tokens, plan->max_tokens);
        ck_assert_uint_le(micro->sequence_count, plan->max_sequences);
        ck_assert_uint_le(pages, plan->max_pages);
    }
}

/* Mark which minibatch each sample is in; returns the rank's tokens. */
static uint64_t collect(const struct batcher_plan *plan, uint32_t *seen, uint32_t *minibatch_of)
{
    uint64_t tokens = 0;
    for (uint32_t b = 0; b < plan->minibatch_count; b++) {
        const struct batcher_minibatch *mini = &plan->minibatches[b];
        for (uint32_t m = 0; m < mini->microbatch_count; m++) {
            const struct batcher_microbatch *micro =
                &plan->microbatches[mini->first_microbatch + m];
            for (uint32_t i = 0; i < micro->sequence_count; i++) {
                const struct batcher_sequence *s = &plan->sequences[micro->first_sequence + i];
                ck_assert_uint_eq(s->index, s->group * SAMPLES + s->sample->sample_index);
                seen[s->index]++;
                minibatch_of[s->index] = b;
                tokens += s->token_count;
            }
        }
    }
    return tokens;
}

static void check_all_ranks(uint64_t seed, uint32_t updates, uint32_t budget, uint32_t ranks)
{
    struct trajectory_group *groups[GROUPS];
    groups_make(groups, seed);
    uint32_t seen[GROUPS * SAMPLES] = {0};
    uint32_t minibatch_of[GROUPS * SAMPLES];
    uint64_t least = UINT64_MAX;
    uint64_t most = 0;
    for (uint32_t rank = 0; rank < ranks; rank++) {
        struct batcher_options options = options_make(updates, budget, ranks);
        options.rank = rank;
        struct batcher_plan *plan = NULL;
        ck_assert_int_eq(batcher_plan_create(&options, groups, GROUPS, &plan), RL_OK);
        ck_assert_uint_eq(plan->minibatch_count, updates < GROUPS ? updates : GROUPS);
        check_microbatches(plan, budget);
        uint64_t tokens = collect(plan, seen, minibatch_of);
        least = tokens < least ? tokens : least;
        most = tokens > most ? tokens : most;
        for (uint32_t b = 0; b < plan->minibatch_count; b++) {
            ck_assert_uint_ge(plan->minibatches[b].group_count, GROUPS / plan->minibatch_count);
            ck_assert_uint_le(plan->minibatches[b].group_count,
                              (GROUPS + plan->minibatch_count - 1) / plan->minibatch_count);
        }
        batcher_plan_destroy(plan);
    }
    for (uint32_t i = 0; i < GROUPS * SAMPLES; i++) {
        ck_assert_uint_eq(seen[i], 1);
        ck_assert_uint_eq(minibatch_of[i], minibatch_of[i / SAMPLES * SAMPLES]); /* whole groups */
    }
    ck_assert_uint_le(most - least, (uint64_t)updates * (MOST + 20));
    groups_free(groups);
}

START_TEST(everything_exactly_once)
{
    for (uint64_t seed = 0; seed < 8; seed++) {
        check_all_ranks(seed, 1, 100000, 1);
        check_all_ranks(seed, 4, 150, 1);
        check_all_ranks(seed, 3, 40, 3);
        check_all_ranks(seed, 99, 150, 2);
        check_all_ranks(seed, GROUPS, 1, 7); /* some ranks have nothing in some minibatches */
    }
}
END_TEST

START_TEST(plans_repeat_and_shuffle)
{
    struct trajectory_group *groups[GROUPS];
    groups_make(groups, 1);
    struct batcher_options options = options_make(4, 200, 2);
    struct batcher_plan *plans[3];
    ck_assert_int_eq(batcher_plan_create(&options, groups, GROUPS, &plans[0]), RL_OK);
    ck_assert_int_eq(batcher_plan_create(&options, groups, GROUPS, &plans[1]), RL_OK);
    options.step++;
    ck_assert_int_eq(batcher_plan_create(&options, groups, GROUPS, &plans[2]), RL_OK);
    uint32_t moved = plans[0]->sequence_count != plans[2]->sequence_count ? 1 : 0;
    ck_assert_uint_eq(plans[0]->sequence_count, plans[1]->sequence_count);
    for (uint32_t i = 0; i < plans[0]->sequence_count; i++) {
        ck_assert_uint_eq(plans[0]->sequences[i].index, plans[1]->sequences[i].index);
        if (i < plans[2]->sequence_count) {
            moved += plans[0]->sequences[i].index != plans[2]->sequences[i].index ? 1 : 0;
        }
    }
    ck_assert_uint_gt(moved, 0);
    for (int p = 0; p < 3; p++) {
        batcher_plan_destroy(plans[p]);
    }
    groups_free(groups);
}
END_TEST

START_TEST(unshuffled_keeps_the_order)
{
    struct trajectory_group *groups[GROUPS];
    groups_make(groups, 1);
    struct batcher_options options = options_make(1, 100000, 1);
    options.shuffle = false;
    struct batcher_plan *plan = NULL;
    ck_assert_int_eq(batcher_plan_create(&options, groups, GROUPS, &plan), RL_OK);
    for (uint32_t i = 0; i < plan->sequence_count; i++) {
        ck_assert_uint_eq(plan->sequences[i].index, i);
    }
    batcher_plan_destroy(plan);
    groups_free(groups);
}
END_TEST

START_TEST(empty_and_truncated_are_left_out)
{
    struct trajectory_group *groups[GROUPS];
    groups_make(groups, 1);
    groups[0]->samples[1].completion_count = 0;
    groups[3]->samples[2].finish = RL_FINISH_LENGTH;
    struct batcher_options options = options_make(2, 200, 1);
    struct batcher_plan *plan = NULL;
    ck_assert_int_eq(batcher_plan_create(&options, groups, GROUPS, &plan), RL_OK);
    ck_assert_uint_eq(plan->sequence_count, GROUPS * SAMPLES - 1);
    ck_assert_uint_eq(plan->skipped_empty, 1);
    ck_assert_uint_eq(plan->skipped_truncated, 0);
    batcher_plan_destroy(plan);
    options.mask_truncated = true;
    ck_assert_int_eq(batcher_plan_create(&options, groups, GROUPS, &plan), RL_OK);
    ck_assert_uint_eq(plan->sequence_count, GROUPS * SAMPLES - 2);
    ck_assert_uint_eq(plan->skipped_truncated, 1);
    batcher_plan_destroy(plan);
    groups_free(groups);
}
END_TEST

START_TEST(bad_input_is_refused)
{
    struct trajectory_group *groups[GROUPS];
    groups_make(groups, 1);
    struct batcher_plan *plan = NULL;
    struct batcher_options options = options_make(0, 200, 1);
    ck_assert_int_eq(batcher_plan_create(&options, groups, GROUPS, &plan), RL_INVALID);
    options = options_make(1, 200, 2);
    ck_assert_int_eq(batcher_plan_create(&options, groups, 0, &plan), RL_INVALID);
    options.rank = 2;
    ck_assert_int_eq(batcher_plan_create(&options, groups, GROUPS, &plan), RL_INVALID);
    options.rank = 0;
    groups[2]->samples[0].prompt_count = 0;
    ck_assert_int_eq(batcher_plan_create(&options, groups, GROUPS, &plan), RL_INVALID);
    ck_assert_ptr_null(plan);
    groups_free(groups);
}
END_TEST

/* Sequence s of the arrays against its sample. */
static void check_sequence(const struct batcher_arrays *a, int64_t s,
                           const struct trajectory *sample)
{
    int64_t start = a->segment_start[s];
    int64_t tokens = a->segment_start[s + 1] - start;
    int64_t row = a->row_start[s];
    ck_assert_int_eq(tokens, (int64_t)sample->prompt_count + sample->completion_count - 1);
    ck_assert_int_eq(a->row_start[s + 1] - row, (int64_t)sample->completion_count);
    ck_assert_int_eq(a->first_position[s], 0);
    for (int64_t i = 0; i < tokens; i++) {
        ck_assert_int_eq(a->tokens[start + i], sample->tokens[i]);
        ck_assert_int_eq(a->positions[start + i], i);
    }
    for (uint32_t t = 0; t < sample->completion_count; t++) {
        int32_t target = sample->tokens[sample->prompt_count + t];
        int32_t before = sample->tokens[sample->prompt_count + t - 1];
        ck_assert_int_eq(a->targets[row + t], target);
        ck_assert_int_eq(a->tokens[a->hidden_rows[row + t]], before);
    }
}

static void check_pages(const struct batcher_arrays *a)
{
    uint8_t used[4096] = {0};
    ck_assert_int_le(a->page_count, 4096);
    for (int64_t s = 0; s < a->sequence_count; s++) {
        int64_t tokens = a->segment_start[s + 1] - a->segment_start[s];
        for (int64_t p = 0; p < (tokens + KERNEL_PAGE_TOKENS - 1) / KERNEL_PAGE_TOKENS; p++) {
            int32_t page = a->page_table[s][p];
            ck_assert_int_ge(page, 0);
            ck_assert_int_lt(page, a->page_count);
            ck_assert_uint_eq(used[page], 0);
            used[page] = 1;
        }
    }
}

START_TEST(arrays_say_what_the_plan_says)
{
    struct trajectory_group *groups[GROUPS];
    groups_make(groups, 4);
    struct batcher_options options = options_make(2, 180, 1);
    struct batcher_plan *plan = NULL;
    ck_assert_int_eq(batcher_plan_create(&options, groups, GROUPS, &plan), RL_OK);
    struct batcher_arrays arrays;
    batcher_arrays_init(&arrays);
    for (uint32_t m = 0; m < plan->microbatch_count; m++) {
        const struct batcher_microbatch *micro = &plan->microbatches[m];
        ck_assert_int_eq(batcher_arrays_fill(&arrays, plan, m), RL_OK);
        ck_assert_int_eq(arrays.token_count, micro->token_count);
        ck_assert_int_eq(arrays.batch.token_count, micro->token_count);
        ck_assert_int_eq(arrays.row_count, micro->row_count);
        ck_assert_int_eq(arrays.page_count, micro->page_count);
        ck_assert_int_eq(arrays.segments.count, micro->sequence_count);
        ck_assert_ptr_eq(arrays.batch.segments, &arrays.segments);
        for (uint32_t s = 0; s < micro->sequence_count; s++) {
            check_sequence(&arrays, s, plan->sequences[micro->first_sequence + s].sample);
        }
        check_pages(&arrays);
    }
    batcher_arrays_fini(&arrays);
    batcher_arrays_fini(&arrays);
    batcher_plan_destroy(plan);
    groups_free(groups);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("batcher");
    TCase *tests = tcase_create("all");
    tcase_add_test(tests, everything_exactly_once);
    tcase_add_test(tests, plans_repeat_and_shuffle);
    tcase_add_test(tests, unshuffled_keeps_the_order);
    tcase_add_test(tests, empty_and_truncated_are_left_out);
    tcase_add_test(tests, bad_input_is_refused);
    tcase_add_test(tests, arrays_say_what_the_plan_says);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
