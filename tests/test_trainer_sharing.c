/* A group's prompt computed once in training: the same log-probs to the bit and the same gradients
 * up to the order of sums as with every sample's prompt computed for itself, on every back end. */
#include "tests/model_fixture.h"
#include "trainer/batcher.h"

#include <math.h>

enum { GROUPS = 4, SAMPLES = 4, LONGEST = 120, ARCHITECTURES = 3, ISAS = 3 };

/* Prompts without a whole page, of exactly one, of several and a bit, and longer than completions.
 */
static const uint32_t prompts[GROUPS] = {7, 16, 37, 80};

struct work {
    struct model_fixture f;
    struct trajectory_group *groups[GROUPS];
};

static void sample_fill(struct work *w, uint32_t group, uint32_t sample, struct rl_rng *rng)
{
    int32_t tokens[LONGEST];
    float logprob[LONGEST] = {0};
    uint32_t version[LONGEST] = {0};
    struct rl_rng prompt = rl_rng_make(17, group);
    uint32_t vocab = (uint32_t)w->f.layout->arch.vocab;
    /* the first sample of each group is one token long: with a prompt of one page it has none of
     * its own behind the page */
    uint32_t count = sample == 0 ? 1 : 1 + (uint32_t)rl_rng_next_below(rng, 39);
    for (uint32_t i = 0; i < prompts[group] + count; i++) {
        tokens[i] = (int32_t)rl_rng_next_below(i < prompts[group] ? &prompt : rng, vocab);
    }
    ck_assert_int_eq(trajectory_set_tokens(&w->groups[group]->samples[sample], tokens, logprob,
                                           version, prompts[group], count),
                     RL_OK);
    w->groups[group]->samples[sample].finish = RL_FINISH_STOP;
}

static void work_open(struct work *w, int which, const struct fixture_options *options)
{
    struct model_architecture arch = fixture_architecture(which);
    struct rl_rng rng = rl_rng_make(29, 1);
    fixture_create(&w->f, &arch, options);
    fixture_randomise(&w->f, 8);
    for (uint32_t g = 0; g < GROUPS; g++) {
        ck_assert_int_eq(trajectory_group_create(SAMPLES, &w->groups[g]), RL_OK);
        for (uint32_t s = 0; s < SAMPLES; s++) {
            sample_fill(w, g, s, &rng);
        }
    }
}

static void work_close(struct work *w)
{
    for (uint32_t g = 0; g < GROUPS; g++) {
        trajectory_group_destroy(w->groups[g]);
    }
    fixture_destroy(&w->f);
}

/* What a step makes of all samples. */
struct result {
    uint32_t tokens, rows, microbatches;
    float *logprob, *entropy; /* [rows] in the plan's order of sequences */
    float *grad;
};

static void result_free(struct result *r)
{
    device_free(r->grad);
    device_free(r->entropy);
    device_free(r->logprob);
}

/* One micro-batch, whose rows are `first` and on. */
static void run_microbatch(struct work *w, const struct batcher_arrays *a,
                           struct model_workspace *workspace, struct result *r, uint32_t first)
{
    struct model_kv kv = {0};
    const float *hidden = NULL;
    float *g_logprob = fixture_floats(a->row_count);
    ck_assert_int_eq(model_kv_create(w->f.layout, (int32_t)a->page_count, &kv), RL_OK);
    model_forward(&w->f.context, w->f.image, &kv, &a->batch, workspace, &hidden);
    model_head_forward(&w->f.context, w->f.image, workspace,
                       &(struct model_head_args){a->hidden_rows, a->targets, a->row_count, 0.9F,
                                                 r->logprob + first, r->entropy + first});
    for (int64_t i = 0; i < a->row_count; i++) {
        g_logprob[i] = (float)((first + i) % 7) - 2.5F;
    }
    model_backward(&w->f.context, w->f.image, &kv, &a->batch, workspace,
                   &(struct model_backward_args){g_logprob, NULL, r->grad});
    model_kv_fini(&kv);
    device_free(g_logprob);
}

static void run(struct work *w, bool share, uint32_t budget, struct result *r)
{
    struct batcher_options options = {.updates_per_step = 1,
                                      .max_tokens_per_microbatch = budget,
                                      .ranks = 1,
                                      .share_prompts = share};
    struct batcher_plan *plan = NULL;
    struct batcher_arrays arrays;
    struct model_workspace *workspace = NULL;
    batcher_arrays_init(&arrays);
    ck_assert_int_eq(batcher_plan_create(&options, w->groups, GROUPS, &plan), RL_OK);
    uint32_t room = plan->max_tokens > plan->max_rows ? plan->max_tokens : plan->max_rows;
    ck_assert_int_eq(model_workspace_create(w->f.layout, room, MODEL_KEEP_COSTLY, &workspace),
                     RL_OK);
    *r = (struct result){.microbatches = plan->microbatch_count};
    r->logprob = fixture_floats(GROUPS * SAMPLES * LONGEST);
    r->entropy = fixture_floats(GROUPS * SAMPLES * LONGEST);
    r->grad = fixture_floats(w->f.layout->master_count);
    for (uint32_t m = 0; m < plan->microbatch_count; m++) {
        ck_assert_int_eq(batcher_arrays_fill(&arrays, plan, m), RL_OK);
        ck_assert_uint_le(plan->microbatches[m].token_count, budget);
        run_microbatch(w, &arrays, workspace, r, r->rows);
        r->tokens += plan->microbatches[m].token_count;
        r->rows += plan->microbatches[m].row_count;
    }
    model_workspace_destroy(workspace);
    batcher_arrays_fini(&arrays);
    batcher_plan_destroy(plan);
}

static void check_close(const struct model_layout *layout, const float *got, const float *want)
{
    for (int32_t t = 0; t < layout->tensor_count; t++) {
        const struct model_tensor *tensor = &layout->tensors[t];
        double largest = 0;
        double difference = 0;
        for (int64_t i = tensor->offset; i < tensor->offset + tensor->rows * tensor->cols; i++) {
            largest = fmax(largest, fabs((double)want[i]));
            difference = fmax(difference, fabs((double)got[i] - (double)want[i]));
        }
        ck_assert_msg(difference <= 2e-5 * largest, "%s: off by %g of %g", tensor->name, difference,
                      largest);
    }
}

/* `budget` cuts families where it will. */
static void compare(struct work *w, uint32_t budget, struct result *shared)
{
    struct result own;
    run(w, false, budget, &own);
    run(w, true, budget, shared);
    ck_assert_uint_eq(own.rows, shared->rows);
    ck_assert_uint_lt(shared->tokens, own.tokens);
    ck_assert_uint_le(shared->microbatches, own.microbatches);
    ck_assert_mem_eq(shared->logprob, own.logprob, own.rows * sizeof(float));
    ck_assert_mem_eq(shared->entropy, own.entropy, own.rows * sizeof(float));
    check_close(w->f.layout, shared->grad, own.grad);
    result_free(&own);
}

START_TEST(a_shared_prompt_changes_no_bit_of_a_logprob)
{
    struct fixture_options options = {.isa = (enum kernel_isa)(_i / ARCHITECTURES), .threads = 1};
    if (!fixture_has_isa(options.isa)) {
        return;
    }
    struct work w;
    work_open(&w, _i % ARCHITECTURES, &options);
    struct result whole;
    struct result cut;
    compare(&w, 100000, &whole);
    ck_assert_uint_eq(whole.microbatches, 1);
    /* of groups 1 to 3 all samples that have tokens behind their whole pages share them */
    compare(&w, 150, &cut);
    ck_assert_uint_gt(cut.microbatches, 3);
    ck_assert_mem_eq(whole.logprob, cut.logprob, whole.rows * sizeof(float));
    result_free(&cut);
    result_free(&whole);
    work_close(&w);
}
END_TEST

/* Nor do threads change a bit of the gradients. */
START_TEST(gradients_of_shared_prompts_are_the_same_on_any_number_of_threads)
{
    struct result first = {0};
    for (int threads = 1; threads <= 4; threads++) {
        struct fixture_options options = {.isa = kernel_isa_best(), .threads = threads};
        struct work w;
        struct result r;
        work_open(&w, _i, &options);
        run(&w, true, 100000, &r);
        if (threads == 1) {
            first = r;
        } else {
            size_t bytes = (size_t)w.f.layout->master_count * sizeof(float);
            ck_assert_mem_eq(first.grad, r.grad, bytes);
            result_free(&r);
        }
        work_close(&w);
    }
    result_free(&first);
}
END_TEST

/* What the plan makes of four samples with a prompt of 37 tokens, and of those who differ. */
START_TEST(families_are_neighbours_with_the_same_prompt)
{
    struct fixture_options options = {.isa = KERNEL_ISA_REF, .threads = 1};
    struct batcher_options batch = {.updates_per_step = 1,
                                    .max_tokens_per_microbatch = 100000,
                                    .ranks = 1,
                                    .share_prompts = true};
    struct batcher_plan *plan = NULL;
    struct batcher_arrays a;
    struct work w;
    batcher_arrays_init(&a);
    work_open(&w, 0, &options);
    w.groups[2]->samples[3].tokens[31] ^= 1; /* in the last whole page */
    ck_assert_int_eq(batcher_plan_create(&batch, w.groups + 2, 1, &plan), RL_OK);
    ck_assert_int_eq(batcher_arrays_fill(&a, plan, 0), RL_OK);
    ck_assert_uint_eq(plan->microbatches[0].segment_count, 5);
    ck_assert_int_eq(a.segments.count, 5);
    ck_assert_int_eq(a.sequence_count, 4);
    ck_assert_int_eq(a.table_count, plan->microbatches[0].table_count);
    ck_assert_int_eq(a.page_count, plan->microbatches[0].page_count);
    for (int64_t s = 0; s < 5; s++) {
        bool reads = s > 0 && s < 4;
        ck_assert_int_eq(a.prefix[s], reads ? 0 : -1);
        ck_assert_int_eq(a.first_position[s], reads ? 32 : 0);
        ck_assert_int_eq(a.page_table[s][0] == a.page_table[0][0], s < 4);
    }
    ck_assert_int_eq(a.segment_start[1], 32);
    batcher_plan_destroy(plan);
    /* a prompt shorter than a page is nobody's */
    ck_assert_int_eq(batcher_plan_create(&batch, w.groups, 1, &plan), RL_OK);
    ck_assert_uint_eq(plan->microbatches[0].segment_count, 4);
    batcher_plan_destroy(plan);
    batcher_arrays_fini(&a);
    work_close(&w);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("shared prompts in training");
    TCase *all = tcase_create("all");
    tcase_add_loop_test(all, a_shared_prompt_changes_no_bit_of_a_logprob, 0, ISAS * ARCHITECTURES);
    tcase_add_loop_test(all, gradients_of_shared_prompts_are_the_same_on_any_number_of_threads, 0,
                        ARCHITECTURES);
    tcase_add_test(all, families_are_neighbours_with_the_same_prompt);
    suite_add_tcase(suite, all);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
