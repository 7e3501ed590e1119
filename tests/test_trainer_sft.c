/* Weighted fine-tuning: weights scale gradients, the RAFT gradient is GRPO's with advantages
 * 1[right], a stopped and resumed run has the bits of one that was not. */
#include "tests/model_fixture.h"
#include "trainer/optimizer.h"
#include "trainer/sft.h"

#include <math.h>

enum { EXAMPLES = 12, LENGTH_MAX = 24 };

struct bench {
    struct model_fixture f;
    struct rl_config config;
    int32_t tokens[EXAMPLES][LENGTH_MAX];
    float behaviour[EXAMPLES][LENGTH_MAX];
    struct sft_example examples[EXAMPLES];
    float *start; /* [master_count] */
};

static size_t slab_bytes(const struct bench *b)
{
    return (size_t)b->f.layout->master_count * sizeof(float);
}

static void set(struct bench *b, const char *assignment)
{
    ck_assert_int_eq(rl_config_override(&b->config, assignment), RL_OK);
}

static void bench_open(struct bench *b)
{
    struct model_architecture arch = fixture_architecture(0);
    struct fixture_options options = {KERNEL_ISA_REF, KERNEL_FP32, 1};
    struct rl_rng rng = rl_rng_make(5, 1);
    memset(b, 0, sizeof(*b));
    fixture_create(&b->f, &arch, &options);
    fixture_randomise(&b->f, 3);
    ck_assert_int_eq(rl_config_init(&b->config), RL_OK);
    set(b, "sft.batch_tokens=60");
    set(b, "optimizer.learning_rate=1e-2");
    set(b, "optimizer.max_grad_norm=0");
    for (int i = 0; i < EXAMPLES; i++) {
        uint32_t count = 8 + (uint32_t)rl_rng_next_below(&rng, LENGTH_MAX - 8);
        for (uint32_t t = 0; t < count; t++) {
            b->tokens[i][t] = (int32_t)rl_rng_next_below(&rng, (uint64_t)arch.vocab);
            b->behaviour[i][t] = -2.0F - (float)rl_rng_next_uniform(&rng) * 4.0F;
        }
        b->examples[i] = (struct sft_example){.tokens = b->tokens[i],
                                              .count = count,
                                              .prompt_count = 3,
                                              .weight = 1.0F,
                                              .behaviour = b->behaviour[i]};
    }
    b->start = fixture_floats(b->f.layout->master_count);
    memcpy(b->start, b->f.master, slab_bytes(b));
}

static void bench_close(struct bench *b)
{
    device_free(b->start);
    rl_config_fini(&b->config);
    fixture_destroy(&b->f);
}

static struct sft_args args_of(struct bench *b)
{
    return (struct sft_args){.config = &b->config,
                             .layout = b->f.layout,
                             .kernels = b->f.kernels,
                             .examples = b->examples,
                             .example_count = EXAMPLES,
                             .inv_temperature = 1.0F,
                             .master = b->f.master};
}

static void train_from_start(struct bench *b, const struct sft_args *args, float *result)
{
    double loss = 0;
    memcpy(b->f.master, b->start, slab_bytes(b));
    ck_assert_int_eq(sft_run(args, &loss), RL_OK);
    ck_assert(isfinite(loss));
    memcpy(result, b->f.master, slab_bytes(b));
}

/* --- a point in the middle ------------------------------------------------------------------- */

struct kept_point {
    struct bench *b;
    int64_t stop_at, saves;
    struct sft_state state;
    float *master, *adam_m, *adam_v;
    bool finished;
};

static rl_status keep_point(void *arg, const struct sft_point *point)
{
    struct kept_point *kept = arg;
    size_t bytes = slab_bytes(kept->b);
    kept->saves++;
    kept->finished = point->finished;
    kept->state = point->state;
    memcpy(kept->master, point->master, bytes);
    memcpy(kept->adam_m, point->adam_m, bytes);
    memcpy(kept->adam_v, point->adam_v, bytes);
    return RL_OK;
}

static bool stop_there(void *arg, const struct sft_progress *progress)
{
    return progress->update != ((const struct kept_point *)arg)->stop_at;
}

START_TEST(resumed_at_every_update)
{
    struct bench b;
    bench_open(&b);
    set(&b, "sft.epochs=2.5");
    int64_t count = b.f.layout->master_count;
    float *whole = fixture_floats(count);
    struct kept_point kept = {.b = &b,
                              .master = fixture_floats(count),
                              .adam_m = fixture_floats(count),
                              .adam_v = fixture_floats(count)};
    struct sft_args args = args_of(&b);
    args.save = keep_point;
    args.save_arg = &kept;
    train_from_start(&b, &args, whole);
    int64_t updates = kept.state.update;
    ck_assert(kept.finished && kept.saves == 1 && updates > 5);
    for (int64_t stop = 1; stop < updates; stop++) {
        double loss = 0;
        kept.stop_at = stop;
        args.progress = stop_there;
        args.progress_arg = &kept;
        args.resume = NULL;
        memcpy(b.f.master, b.start, slab_bytes(&b));
        ck_assert_int_eq(sft_run(&args, &loss), RL_INTERRUPTED);
        ck_assert(!kept.finished && kept.state.update == stop);
        struct sft_resume resume = {kept.state, kept.adam_m, kept.adam_v};
        memcpy(b.f.master, kept.master, slab_bytes(&b));
        args.progress = NULL;
        args.resume = &resume;
        float *m = fixture_floats(count); /* what is resumed from must not be what is saved to */
        float *v = fixture_floats(count);
        memcpy(m, kept.adam_m, slab_bytes(&b));
        memcpy(v, kept.adam_v, slab_bytes(&b));
        resume.adam_m = m;
        resume.adam_v = v;
        ck_assert_int_eq(sft_run(&args, &loss), RL_OK);
        ck_assert_int_eq(memcmp(b.f.master, whole, slab_bytes(&b)), 0);
        device_free(m);
        device_free(v);
    }
    kept.saves = 0;
    args.resume = NULL;
    args.save_every = 2;
    train_from_start(&b, &args, whole);
    ck_assert_int_eq(kept.saves, (updates + 1) / 2);
    device_free(kept.adam_v);
    device_free(kept.adam_m);
    device_free(kept.master);
    device_free(whole);
    bench_close(&b);
}
END_TEST

/* --- gradients ---------------------------------------------------------------------------------
 * One update of plain SGD-like size: compared are the weights after it. */

static const struct objective_options grpo = {.loss_type = CONFIG_LOSS_GRPO,
                                              .aggregation = OBJECTIVE_TOKEN_MEAN,
                                              .epsilon_low = 0.2,
                                              .epsilon_high = 0.28,
                                              .fipo_decay_rate = 32,
                                              .correction = CONFIG_CORRECTION_NONE};

/* All examples in one packed batch. */
struct pass {
    struct model_workspace *workspace;
    struct model_packing *packing;
    struct model_kv kv;
    float *grad, *logprob, *entropy, *g;
    int32_t rows[EXAMPLES * LENGTH_MAX], targets[EXAMPLES * LENGTH_MAX];
    uint64_t order[EXAMPLES];
    int64_t count;
};

static void pass_open(struct bench *b, struct pass *p)
{
    int64_t room = EXAMPLES * LENGTH_MAX;
    memset(p, 0, sizeof(*p));
    p->grad = fixture_floats(b->f.layout->master_count);
    p->logprob = fixture_floats(room);
    p->entropy = fixture_floats(room);
    p->g = fixture_floats(room);
    memset(p->grad, 0, slab_bytes(b));
    ck_assert_int_eq(model_workspace_create(b->f.layout, room, MODEL_KEEP_COSTLY, &p->workspace),
                     RL_OK);
    ck_assert_int_eq(model_packing_create(room, room, &p->packing), RL_OK);
    ck_assert_int_eq(model_kv_create(b->f.layout, model_packing_pages(room, room), &p->kv), RL_OK);
    /* The order of fine-tuning's first epoch, so that sums are the same to the last bit. */
    rl_rng_permutation(rl_rng_key_make((uint64_t)b->config.run.seed, 0, 0x5f), EXAMPLES, p->order);
    for (int i = 0; i < EXAMPLES; i++) {
        const struct sft_example *e = &b->examples[p->order[i]];
        int64_t first = 0;
        ck_assert_int_eq(model_packing_add(p->packing, e->tokens, e->count - 1, &first), RL_OK);
        for (uint32_t t = e->prompt_count; t < e->count; t++) {
            p->rows[p->count] = (int32_t)(first + t - 1);
            p->targets[p->count++] = e->tokens[t];
        }
    }
}

static void pass_close(struct pass *p)
{
    model_kv_fini(&p->kv);
    model_packing_destroy(p->packing);
    model_workspace_destroy(p->workspace);
    device_free(p->g);
    device_free(p->entropy);
    device_free(p->logprob);
    device_free(p->grad);
}

/* Gradient of the objective's own code: GRPO, a mean over tokens. Returns the denominator. */
static double pass_run(struct bench *b, struct pass *p, const float *advantage, bool on_policy)
{
    struct objective_stats stats;
    const float *hidden = NULL;
    model_forward(&b->f.context, b->f.image, &p->kv, &p->packing->batch, p->workspace, &hidden);
    model_head_forward(
        &b->f.context, b->f.image, p->workspace,
        &(struct model_head_args){p->rows, p->targets, p->count, 1.0F, p->logprob, p->entropy});
    objective_stats_init(&stats);
    for (int64_t i = 0, at = 0; i < EXAMPLES; i++) {
        const struct sft_example *e = &b->examples[p->order[i]];
        struct objective_sequence sequence = {.count = e->count - e->prompt_count,
                                              .logprob = p->logprob + at,
                                              .old = on_policy ? p->logprob + at : e->behaviour,
                                              .advantage = advantage[p->order[i]]};
        objective_sequence(&grpo, &sequence, p->g + at, NULL, &stats);
        at += sequence.count;
    }
    model_backward(&b->f.context, b->f.image, &p->kv, &p->packing->batch, p->workspace,
                   &(struct model_backward_args){p->g, NULL, p->grad});
    return objective_denominator(&grpo, &stats);
}

/* One update on all examples. */
static void update_by_objective(struct bench *b, const float *advantage, bool on_policy,
                                float *result)
{
    struct optimizer_options options;
    struct optimizer_report report;
    struct optimizer *optimizer = NULL;
    struct pass pass;
    memcpy(b->f.master, b->start, slab_bytes(b));
    fixture_publish(&b->f);
    pass_open(b, &pass);
    double denominator = pass_run(b, &pass, advantage, on_policy);
    optimizer_options_from_config(&b->config, 1, NULL, &options);
    ck_assert_int_eq(optimizer_create(&options, b->f.layout, b->f.kernels, &optimizer), RL_OK);
    struct optimizer_weights weights = {
        .master = b->f.master, .grad = pass.grad, .image = b->f.image};
    ck_assert_int_eq(optimizer_step(optimizer, &weights, 1.0 / denominator, NULL, &report), RL_OK);
    ck_assert_int_eq(report.outcome, OPTIMIZER_UPDATED);
    memcpy(result, b->f.master, slab_bytes(b));
    optimizer_destroy(optimizer);
    pass_close(&pass);
}

static double farthest(const float *a, const float *b, int64_t count)
{
    double most = 0;
    for (int64_t i = 0; i < count; i++) {
        most = fmax(most, fabs((double)a[i] - (double)b[i]));
    }
    return most;
}

/* The update's size is Adam's, which hides the gradient's: a large epsilon makes it proportional.
 */
static void one_plain_update(struct bench *b)
{
    set(b, "sft.batch_tokens=100000");
    set(b, "optimizer.adam_epsilon=1");
    set(b, "optimizer.learning_rate=1");
}

START_TEST(raft_is_grpo)
{
    struct bench b;
    bench_open(&b);
    one_plain_update(&b);
    int64_t count = b.f.layout->master_count;
    float *mine = fixture_floats(count);
    float *other = fixture_floats(count);
    float right[EXAMPLES];
    struct sft_example kept[EXAMPLES];
    uint64_t kept_count = 0;
    double tokens = 0;
    double kept_tokens = 0;
    for (int i = 0; i < EXAMPLES; i++) {
        right[i] = i % 3 == 0 ? 1.0F : 0.0F;
        double own = b.examples[i].count - b.examples[i].prompt_count;
        tokens += own;
        if (right[i] > 0) {
            kept[kept_count++] = b.examples[i];
            kept_tokens += own;
        }
    }
    /* Both are means over tokens: GRPO's over all of them, RAFT's over those that were kept. */
    for (int i = 0; i < EXAMPLES; i++) {
        right[i] *= (float)(tokens / kept_tokens);
    }
    update_by_objective(&b, right, true, other);
    struct sft_args args = args_of(&b);
    args.examples = kept;
    args.example_count = kept_count;
    train_from_start(&b, &args, mine);
    ck_assert_double_gt(farthest(mine, b.start, count), 1e-3);
    ck_assert_double_lt(farthest(mine, other, count), 1e-5 * farthest(mine, b.start, count));
    device_free(other);
    device_free(mine);
    bench_close(&b);
}
END_TEST

/* Weights as advantages: the same bits as the objective's, signs and all. */
START_TEST(weights_are_advantages)
{
    struct bench b;
    bench_open(&b);
    one_plain_update(&b);
    int64_t count = b.f.layout->master_count;
    float *mine = fixture_floats(count);
    float *other = fixture_floats(count);
    float weight[EXAMPLES];
    for (int i = 0; i < EXAMPLES; i++) {
        weight[i] = i % 2 == 0 ? 1.0F : -0.5F;
        b.examples[i].weight = weight[i];
    }
    struct sft_args args = args_of(&b);
    update_by_objective(&b, weight, true, other);
    train_from_start(&b, &args, mine);
    ck_assert_int_eq(memcmp(mine, other, slab_bytes(&b)), 0);
    /* RAFT++: ratios to what sampled, clipped. */
    args.objective = &grpo;
    update_by_objective(&b, weight, false, other);
    train_from_start(&b, &args, mine);
    ck_assert_int_eq(memcmp(mine, other, slab_bytes(&b)), 0);
    update_by_objective(&b, weight, true, other);
    ck_assert_double_gt(farthest(mine, other, count), 0);
    device_free(other);
    device_free(mine);
    bench_close(&b);
}
END_TEST

START_TEST(refused)
{
    struct bench b;
    double loss = 0;
    bench_open(&b);
    struct sft_args args = args_of(&b);
    b.examples[3].weight = 0;
    ck_assert_int_eq(sft_run(&args, &loss), RL_INVALID);
    b.examples[3].weight = NAN;
    ck_assert_int_eq(sft_run(&args, &loss), RL_INVALID);
    b.examples[3].weight = 1;
    b.examples[4].behaviour = NULL;
    args.objective = &grpo;
    ck_assert_int_eq(sft_run(&args, &loss), RL_INVALID);
    args.example_count = 0;
    ck_assert_int_eq(sft_run(&args, &loss), RL_INVALID);
    bench_close(&b);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("trainer_sft");
    TCase *tcase = tcase_create("all");
    tcase_add_test(tcase, resumed_at_every_update);
    tcase_add_test(tcase, raft_is_grpo);
    tcase_add_test(tcase, weights_are_advantages);
    tcase_add_test(tcase, refused);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
