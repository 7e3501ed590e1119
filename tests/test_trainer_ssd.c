/* Simple self-distillation (arXiv 2604.01193) where everything is known: what its loss is made of,
 * and the automaton of 16 tokens whose best success rate it lifts from 8.33 % to 13.77 %. The
 * sampler, the model with its head, the supervised trainer with its packing, cross-entropy and
 * optimizer are the product's. The model is a table: one state is one prompt token, its logits are
 * a column of the head, attention and feed-forward are zero and stay so. */
#include "kernels/sampling.h"
#include "tests/model_fixture.h"
#include "trainer/sft.h"

#include <math.h>

enum { V = 16, WIDTH = 32, STATES = 3, LOCK = 0, FORK = 1, ROOT = 2 };
enum { SAMPLES = 30000 }; /* of each state */

/* --- distributions in double
 * ---------------------------------------------------------------------------- */

static void order_of(const double *p, int *order)
{
    for (int i = 0; i < V; i++) {
        int at = i;
        for (; at > 0 && p[order[at - 1]] < p[i]; at--) {
            order[at] = order[at - 1];
        }
        order[at] = i;
    }
}

/* q: p to the power of 1/temperature, its smallest most probable set with a share >= top_p. Returns
 * how many it keeps. */
static int decode(const double *p, double temperature, double top_p, double *q)
{
    int order[V];
    double total = 0;
    double sum = 0;
    int kept = 0;
    for (int i = 0; i < V; i++) {
        q[i] = pow(p[i], 1 / temperature);
        total += q[i];
    }
    order_of(q, order);
    while (kept < V && (kept == 0 || sum < top_p * total)) {
        sum += q[order[kept++]];
    }
    for (int i = 0; i < V; i++) {
        q[order[i]] = i < kept ? q[order[i]] / sum : 0;
    }
    return kept;
}

/* --- the loss identity
 * -------------------------------------------------------------------------------------- */

/* What kernel_sampling_draw makes of a row: steps of its inverse CDF, found by halving. */
static void drawn_distribution(const float *p, const struct kernel_sampling *sampling, double *q)
{
    int32_t order[V];
    struct kernel_sampling_row row = {p, order, V, sampling, 0, NULL};
    double before = 0;
    for (int32_t id = 0; id < V; id++) {
        double low = before;
        double high = 1;
        for (int i = 0; i < 70 && id + 1 < V; i++) {
            row.u = low + (high - low) / 2;
            if (kernel_sampling_draw(&row) > id) {
                high = row.u;
            } else {
                low = row.u;
            }
        }
        q[id] = high - before;
        before = high;
    }
    double sum = 0;
    for (int i = 0; i < V; i++) {
        q[i] = q[i] > 1e-13 ? q[i] : 0; /* nothing that is kept here is so small */
        sum += q[i];
    }
    for (int i = 0; i < V; i++) {
        q[i] /= sum;
    }
}

static void random_distribution(struct rl_rng *rng, double *p)
{
    double total = 0;
    for (int i = 0; i < V; i++) {
        p[i] = exp(1.5 * rl_rng_next_normal(rng));
        total += p[i];
    }
    for (int i = 0; i < V; i++) {
        p[i] /= total;
    }
}

/* -log KeptMass + (1 - T) H_{1/T}(p | S) + T KL(q || p_T | S) + T H(q), S: where q > 0. */
static double three_terms(const double *p, const double *q, double t)
{
    double kept = 0;
    double power = 0;
    double kl = 0;
    double entropy = 0;
    for (int i = 0; i < V; i++) {
        kept += q[i] > 0 ? p[i] : 0;
    }
    for (int i = 0; i < V; i++) {
        power += q[i] > 0 ? pow(p[i] / kept, 1 / t) : 0;
    }
    for (int i = 0; i < V; i++) {
        if (q[i] > 0) {
            kl += q[i] * log(q[i] * power / pow(p[i] / kept, 1 / t));
            entropy -= q[i] * log(q[i]);
        }
    }
    double renyi = t != 1 ? log(power) / (1 - 1 / t) : 0; /* its factor is 0 there */
    return -log(kept) + (1 - t) * renyi + t * kl + t * entropy;
}

START_TEST(loss_is_its_three_terms)
{
    struct rl_rng rng = rl_rng_make(3, 1);
    double worst = 0;
    for (int round = 0; round < 300; round++) {
        double base[V];
        double p[V];
        double q[V];
        float row[V];
        double t = round % 10 == 0 ? 1 : 0.4 + 1.8 * rl_rng_next_uniform(&rng);
        struct kernel_sampling sampling = {
            .temperature = 1.0F,
            .top_k = round % 3 == 0 ? (int32_t)rl_rng_next_below(&rng, V) + 1 : 0,
            .top_p = round % 2 == 0 ? (float)(0.3 + 0.7 * rl_rng_next_uniform(&rng)) : 1.0F};
        random_distribution(&rng, base);
        random_distribution(&rng, p);
        double top = 0;
        for (int i = 0; i < V; i++) {
            top = fmax(top, base[i]);
        }
        for (int i = 0; i < V; i++) {
            row[i] = (float)pow(base[i] / top, 1 / t);
        }
        drawn_distribution(row, &sampling, q);
        double cross = 0;
        for (int i = 0; i < V; i++) {
            cross -= q[i] > 0 ? q[i] * log(p[i]) : 0;
        }
        worst = fmax(worst, fabs(cross - three_terms(p, q, t)));
    }
    ck_assert_double_lt(worst, 1e-10);
}
END_TEST

/* Largest |dL/dlogit| that the head's backward gives for the cross-entropy to what the sampler
 * draws from the very same policy. */
static double gradient_at_the_start(const struct kernel_table *kernels, double t, float top_p)
{
    enum { C = 16 };
    struct rl_rng rng = rl_rng_make(9, 2);
    double p[V];
    double q[V];
    float row[V];
    float *w = fixture_floats((int64_t)V * C);
    float *x = fixture_floats((int64_t)V * C);
    float *dx = fixture_floats((int64_t)V * C);
    float *dw = fixture_floats((int64_t)V * C);
    float *packed = fixture_floats((int64_t)kernel_packed_bytes(V, C, KERNEL_FP32) / 4);
    float *scratch = fixture_floats((int64_t)V * KERNEL_HEAD_CHUNK);
    float g[V];
    float logprob[V];
    float lse[V];
    int32_t targets[V];
    double top = 0;
    random_distribution(&rng, p);
    for (int i = 0; i < V; i++) {
        top = fmax(top, p[i]);
        w[i * C] = (float)log(p[i]);
        x[i * C] = 1;
        targets[i] = i;
    }
    for (int i = 0; i < V; i++) {
        row[i] = (float)pow(p[i] / top, 1 / t);
    }
    drawn_distribution(row, &(struct kernel_sampling){.temperature = 1, .top_p = top_p}, q);
    for (int i = 0; i < V; i++) {
        g[i] = (float)-q[i];
    }
    kernels->linear_pack(
        &(struct kernel_linear_pack_args){w, packed, KERNEL_FP32, V, C, NULL, NULL}, NULL);
    struct kernel_head_args head = {.x = x,
                                    .w = packed,
                                    .targets = targets,
                                    .inv_temperature = 1,
                                    .logprob = logprob,
                                    .lse = lse,
                                    .g_logprob = g,
                                    .dx = dx,
                                    .dw = dw,
                                    .scratch = scratch,
                                    .m = V,
                                    .v = V,
                                    .c = C};
    kernels->head_forward(&head, NULL);
    kernels->head_backward(&head, NULL);
    double largest = 0;
    for (int i = 0; i < V; i++) {
        double slope = p[i] - q[i];
        ck_assert_double_eq_tol((double)dw[i * C], slope, 2e-6);
        largest = fmax(largest, fabs((double)dw[i * C]));
    }
    float *buffers[] = {w, x, dx, dw, packed, scratch};
    for (size_t i = 0; i < sizeof(buffers) / sizeof(*buffers); i++) {
        device_free(buffers[i]);
    }
    return largest;
}

START_TEST(no_gradient_at_temperature_1_without_truncation)
{
    const struct kernel_table *kernels = NULL;
    ck_assert_int_eq(kernel_table_get(kernel_isa_best(), &kernels), RL_OK);
    ck_assert_double_lt(gradient_at_the_start(kernels, 1, 1.0F), 2e-6);
    ck_assert_double_gt(gradient_at_the_start(kernels, 0.8, 1.0F), 1e-2);
    ck_assert_double_gt(gradient_at_the_start(kernels, 1, 0.9F), 1e-2);
}
END_TEST

/* --- the automaton
 * ------------------------------------------------------------------------------------------ */

struct automaton {
    double p[STATES][V];
};

/* Root, one of two equal paths, fork, three locks. */
static double success(const struct automaton *a, double temperature, double top_p)
{
    double q[STATES][V];
    for (int s = 0; s < STATES; s++) {
        decode(a->p[s], temperature, top_p, q[s]);
    }
    return (q[ROOT][0] + q[ROOT][1]) * q[FORK][0] * pow(q[LOCK][0], 3);
}

static double best(const struct automaton *a, double *at)
{
    double most = 0;
    for (double t = 0.2; t < 4; t += 0.001) {
        double rate = success(a, t, 0.80);
        if (rate > most) {
            most = rate;
            *at = t;
        }
    }
    return most;
}

/* The published heads; the other twelve tokens share the rest, each half of the one before. */
static struct automaton teacher(void)
{
    static const double heads[STATES][4] = {
        {.750, .055, .050, .037}, {.148, .280, .140, .144}, {.200, .190, .329, .126}};
    struct automaton a;
    for (int s = 0; s < STATES; s++) {
        double rest = 1;
        double share = 0;
        for (int i = 0; i < 4; i++) {
            a.p[s][i] = heads[s][i];
            rest -= heads[s][i];
        }
        for (int i = 4; i < V; i++) {
            share += pow(0.5, i);
        }
        for (int i = 4; i < V; i++) {
            a.p[s][i] = rest * pow(0.5, i) / share;
        }
    }
    return a;
}

START_TEST(automaton_in_closed_form)
{
    struct automaton a = teacher();
    struct automaton student;
    double at = 0;
    ck_assert_double_eq_tol(best(&a, &at), 0.0833, 0.0003);
    ck_assert_double_eq_tol(at, 0.639, 0.005);
    ck_assert_int_eq(decode(a.p[LOCK], 0.9, 0.85, student.p[LOCK]), 2);
    ck_assert_int_eq(decode(a.p[FORK], 0.9, 0.85, student.p[FORK]), 5);
    ck_assert_int_eq(decode(a.p[ROOT], 0.9, 0.85, student.p[ROOT]), 4);
    ck_assert_double_eq_tol(student.p[LOCK][0], 0.948, 0.0005);
    ck_assert_double_eq_tol(student.p[LOCK][1], 0.052, 0.0005);
    const double fork[5] = {.169, .344, .159, .164, .164};
    for (int i = 0; i < 5; i++) {
        ck_assert_double_eq_tol(student.p[FORK][i], fork[i], 0.0006);
    }
    ck_assert_double_eq_tol(student.p[ROOT][2], 0.406, 0.0005);
    ck_assert_double_eq_tol(best(&student, &at), 0.1377, 0.0003);
    ck_assert_double_eq_tol(at, 2.09, 0.03);
}
END_TEST

/* A model that is the table `a`. */
static void make_model(const struct automaton *a, struct model_fixture *f)
{
    struct model_architecture arch = fixture_architecture(2);
    arch.layers = 1;
    arch.width = WIDTH;
    arch.heads = 1;
    arch.ffn = 32;
    arch.vocab = V;
    arch.qkv_bias = arch.o_bias = arch.mlp_bias = false;
    fixture_create(f, &arch, &(struct fixture_options){kernel_isa_best(), KERNEL_FP32, 1});
    memset(f->master, 0, (size_t)f->layout->master_count * sizeof(float));
    for (int32_t i = 0; i < f->layout->tensor_count; i++) {
        const struct model_tensor *t = &f->layout->tensors[i];
        for (int64_t j = 0; t->kind == MODEL_KIND_SCALE && j < t->cols; j++) {
            f->master[t->offset + j] = 1;
        }
    }
    const struct model_tensor *in = model_layout_tensor(f->layout, MODEL_PARAM_EMBEDDING, -1);
    const struct model_tensor *head = model_layout_tensor(f->layout, MODEL_PARAM_HEAD, -1);
    double hidden = 1 / sqrt(1.0 / WIDTH + (double)arch.norm_epsilon);
    for (int s = 0; s < STATES; s++) {
        f->master[in->offset + (int64_t)s * WIDTH + s] = 1;
        for (int i = 0; i < V; i++) {
            f->master[head->offset + (int64_t)i * WIDTH + s] = (float)(log(a->p[s][i]) / hidden);
        }
    }
    fixture_publish(f);
}

/* What the model says of every state. */
static void read_model(struct model_fixture *f, struct automaton *out)
{
    struct model_packing *packing = NULL;
    struct model_workspace *workspace = NULL;
    struct model_kv kv;
    const float *hidden = NULL;
    ck_assert_int_eq(model_packing_create(STATES * V, STATES * V, &packing), RL_OK);
    ck_assert_int_eq(model_workspace_create(f->layout, STATES * V, MODEL_KEEP_NOTHING, &workspace),
                     RL_OK);
    ck_assert_int_eq(model_kv_create(f->layout, model_packing_pages(STATES * V, STATES * V), &kv),
                     RL_OK);
    int32_t rows[STATES * V];
    int32_t targets[STATES * V];
    float logprob[STATES * V];
    for (int32_t i = 0; i < STATES * V; i++) {
        int64_t first = 0;
        int32_t state = i / V;
        ck_assert_int_eq(model_packing_add(packing, &state, 1, &first), RL_OK);
        rows[i] = (int32_t)first;
        targets[i] = i % V;
    }
    model_forward(&f->context, f->image, &kv, &packing->batch, workspace, &hidden);
    model_head_forward(&f->context, f->image, workspace,
                       &(struct model_head_args){rows, targets, STATES * V, 1.0F, logprob, NULL});
    for (int i = 0; i < STATES * V; i++) {
        out->p[i / V][i % V] = exp((double)logprob[i]);
    }
    model_kv_fini(&kv);
    model_workspace_destroy(workspace);
    model_packing_destroy(packing);
}

/* One token after each state, by the model's own sampling step at temperature 0.9 and top-p 0.85:
 * SSD's corpus. tokens [STATES * SAMPLES][2]: state, sample. */
static void sample_corpus(struct model_fixture *f, int32_t *tokens)
{
    enum { BATCH = 500 };
    struct kernel_sampling sampling = {.temperature = 0.9F, .top_p = 0.85F};
    struct model_packing *packing = NULL;
    struct model_workspace *workspace = NULL;
    struct model_kv kv;
    const float *hidden = NULL;
    int32_t rows[BATCH];
    int32_t ids[BATCH];
    float logprob[BATCH];
    uint64_t counters[BATCH] = {0};
    struct rl_rng_key keys[BATCH];
    ck_assert_int_eq(model_packing_create(BATCH, BATCH, &packing), RL_OK);
    ck_assert_int_eq(model_workspace_create(f->layout, BATCH, MODEL_KEEP_LOGITS, &workspace),
                     RL_OK);
    ck_assert_int_eq(model_kv_create(f->layout, model_packing_pages(BATCH, BATCH), &kv), RL_OK);
    for (int32_t first = 0; first < STATES * SAMPLES; first += BATCH) {
        model_packing_reset(packing);
        for (int32_t i = 0; i < BATCH; i++) {
            int64_t row = 0;
            int32_t state = (first + i) / SAMPLES;
            if (model_packing_add(packing, &state, 1, &row) != RL_OK) {
                ck_abort();
            }
            rows[i] = (int32_t)row;
            keys[i] = rl_rng_key_make(17, (uint64_t)state, (uint64_t)(first + i));
        }
        model_forward(&f->context, f->image, &kv, &packing->batch, workspace, &hidden);
        struct model_decode_args decoding = {rows,  &sampling, keys,    counters, NULL,
                                             BATCH, ids,       logprob, NULL};
        model_head_decode(&f->context, f->image, workspace, &decoding);
        for (int32_t i = 0; i < BATCH; i++) {
            tokens[2 * (size_t)(first + i)] = (first + i) / SAMPLES;
            tokens[2 * (size_t)(first + i) + 1] = ids[i];
        }
    }
    model_kv_fini(&kv);
    model_workspace_destroy(workspace);
    model_packing_destroy(packing);
}

static void fine_tune(struct model_fixture *f, const int32_t *tokens)
{
    struct rl_config config;
    double loss = 0;
    struct sft_example *examples = calloc((size_t)STATES * SAMPLES, sizeof(*examples));
    ck_assert_ptr_nonnull(examples);
    for (size_t i = 0; i < (size_t)STATES * SAMPLES; i++) {
        examples[i] = (struct sft_example){
            .tokens = tokens + 2 * i, .count = 2, .prompt_count = 1, .weight = 1.0F};
    }
    ck_assert_int_eq(rl_config_init(&config), RL_OK);
    config.sft.epochs = 8;
    config.sft.batch_tokens = 2000;
    config.optimizer.max_tokens_per_microbatch = 2000;
    config.optimizer.learning_rate = 0.03;
    config.optimizer.lr_scheduler_type = CONFIG_LR_COSINE;
    config.optimizer.weight_decay = 0;
    struct sft_args args = {.config = &config,
                            .layout = f->layout,
                            .kernels = f->kernels,
                            .examples = examples,
                            .example_count = (uint64_t)STATES * SAMPLES,
                            .master = f->master};
    ck_assert_int_eq(sft_run(&args, &loss), RL_OK);
    fixture_publish(f);
    rl_config_fini(&config);
    free(examples);
}

START_TEST(automaton_by_sampling_and_fine_tuning)
{
    struct automaton a = teacher();
    struct automaton student;
    struct model_fixture f;
    int32_t *tokens = calloc((size_t)STATES * SAMPLES, 2 * sizeof(*tokens));
    double at = 0;
    ck_assert_ptr_nonnull(tokens);
    make_model(&a, &f);
    read_model(&f, &student);
    ck_assert_double_eq_tol(best(&student, &at), 0.0833, 0.0003);
    sample_corpus(&f, tokens);
    fine_tune(&f, tokens);
    read_model(&f, &student);
    ck_assert_double_eq_tol(student.p[LOCK][0], 0.948, 0.005);
    ck_assert_double_eq_tol(student.p[FORK][0], 0.169, 0.008);
    ck_assert_double_eq_tol(student.p[ROOT][2], 0.406, 0.01);
    ck_assert_double_eq_tol(best(&student, &at), 0.1377, 0.003);
    ck_assert_double_eq_tol(at, 2.09, 0.3);
    free(tokens);
    fixture_destroy(&f);
}
END_TEST

static Suite *ssd_suite(void)
{
    Suite *suite = suite_create("test_trainer_ssd");
    TCase *all = tcase_create("ssd");
    tcase_add_test(all, loss_is_its_three_terms);
    tcase_add_test(all, no_gradient_at_temperature_1_without_truncation);
    tcase_add_test(all, automaton_in_closed_form);
    tcase_add_test(all, automaton_by_sampling_and_fine_tuning);
    suite_add_tcase(suite, all);
    return suite;
}

int main(void)
{
    SRunner *runner = srunner_create(ssd_suite());
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
