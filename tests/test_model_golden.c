/* The model against what transformers + PyTorch compute in float64 (scripts/make_golden.py), on the
 * CPU and, where there is one, on a GPU; FORESIGHT_SOURCE names another folder with tests/golden.
 */
#include "core/log.h"
#include "model/safetensors.h"
#include "tests/model_fixture.h"

#include <dirent.h>
#include <math.h>
#include <sys/stat.h>
#include <unistd.h>

#if SUPPORT_EMULATED /* which is slow */
static const char *const cases[] = {"qwen2_window", "qwen3_untied"};
enum { ADAMW_CASES = 0, SAVED_CASES = 0 };
#else
static const char *const cases[] = {"qwen2_tied",   "qwen2_window", "qwen2_yarn", "qwen3_tied",
                                    "qwen3_untied", "llama3_rope",  "llama_bias"};
enum { ADAMW_CASES = sizeof cases / sizeof cases[0], SAVED_CASES = ADAMW_CASES };
#endif

enum { CASE_COUNT = sizeof cases / sizeof cases[0], ISA_COUNT = 4 };

struct golden {
    struct model_fixture f;
    struct safetensors *expected;
    struct model_packing *packing;
    struct model_kv kv;
    struct model_workspace *workspace;
    float *g_logprob, *g_entropy, *logprob, *entropy, *grad;
    int32_t *rows, *targets;
    int64_t m;
    float inv_temperature;
};

static void golden_path(char *out, size_t bytes, int which, const char *file)
{
    const char *source = getenv("FORESIGHT_SOURCE");
    snprintf(out, bytes, "%s/tests/golden/%s%s", source != NULL ? source : FORESIGHT_SOURCE_DIR,
             cases[which], file);
}

static const struct safetensors_entry *expected_entry(const struct golden *g, const char *name)
{
    const struct safetensors_entry *entry = safetensors_find(g->expected, name);
    ck_assert_msg(entry != NULL, "expected.safetensors lacks %s", name);
    return entry;
}

static float *expected_floats(const struct golden *g, const char *name, int64_t *count)
{
    const struct safetensors_entry *entry = expected_entry(g, name);
    *count = safetensors_elements(entry);
    float *values = fixture_floats(*count);
    ck_assert_int_eq(safetensors_check_dtype(entry), RL_OK);
    safetensors_to_fp32(entry, 0, *count, values);
    return values;
}

static int32_t *expected_ints(const struct golden *g, const char *name, int64_t *count)
{
    const struct safetensors_entry *entry = expected_entry(g, name);
    ck_assert_str_eq(entry->dtype, "I32");
    *count = safetensors_elements(entry);
    int32_t *values = malloc(entry->bytes);
    memcpy(values, entry->data, entry->bytes);
    return values;
}

static void pack_sequences(struct golden *g)
{
    int64_t tokens = 0;
    int64_t sequences = 0;
    int64_t row = 0;
    int32_t *ids = expected_ints(g, "tokens", &tokens);
    int32_t *lengths = expected_ints(g, "lengths", &sequences);
    ck_assert_int_eq(model_packing_create(tokens, sequences, &g->packing), RL_OK);
    for (int64_t i = 0; i < sequences; i++) {
        ck_assert_int_eq(model_packing_add(g->packing, ids + row, lengths[i], &row), RL_OK);
        row += lengths[i];
    }
    ck_assert_int_eq(row, tokens);
    free(ids);
    free(lengths);
}

static void golden_open(struct golden *g, int which, enum kernel_isa isa, enum kernel_dtype dtype)
{
    char path[1024];
    struct model_architecture arch;
    int64_t count = 0;
    memset(g, 0, sizeof *g);
    golden_path(path, sizeof path, which, "");
    ck_assert_int_eq(model_architecture_load(path, &arch), RL_OK);
    struct fixture_options options = {isa, dtype, 2};
    fixture_create(&g->f, &arch, &options);
    g->f.layout->kv_dtype = dtype;
    ck_assert_int_eq(model_params_load(g->f.layout, path, g->f.master, NULL), RL_OK);
    fixture_publish(&g->f);
    golden_path(path, sizeof path, which, "/expected.safetensors");
    ck_assert_int_eq(safetensors_open(path, &g->expected), RL_OK);
    pack_sequences(g);
    ck_assert_int_eq(model_kv_create(g->f.layout, g->packing->page_count, &g->kv), RL_OK);
    ck_assert_int_eq(model_workspace_create(g->f.layout, g->packing->max_tokens, MODEL_KEEP_COSTLY,
                                            &g->workspace),
                     RL_OK);
    g->rows = expected_ints(g, "rows", &g->m);
    g->targets = expected_ints(g, "targets", &g->m);
    g->g_logprob = expected_floats(g, "weight", &count);
    for (int64_t i = 0; i < count; i++) {
        g->g_logprob[i] = -g->g_logprob[i];
    }
    g->g_entropy = expected_floats(g, "entropy_weight", &count);
    float *inv_temperature = expected_floats(g, "inv_temperature", &count);
    g->inv_temperature = inv_temperature[0];
    device_free(inv_temperature);
    g->logprob = fixture_floats(g->m);
    g->entropy = fixture_floats(g->m);
    g->grad = fixture_device_floats(&g->f, g->f.layout->master_count);
}

static void golden_close(struct golden *g)
{
    device_buffer_free(g->f.device, g->grad);
    device_free(g->entropy);
    device_free(g->logprob);
    device_free(g->g_entropy);
    device_free(g->g_logprob);
    free(g->targets);
    free(g->rows);
    model_workspace_destroy(g->workspace);
    model_kv_fini(&g->kv);
    model_packing_destroy(g->packing);
    safetensors_close(g->expected);
    fixture_destroy(&g->f);
}

static const float *golden_forward(struct golden *g)
{
    const float *hidden = NULL;
    model_forward(&g->f.context, g->f.image, &g->kv, &g->packing->batch, g->workspace, &hidden);
    model_head_forward(&g->f.context, g->f.image, g->workspace,
                       &(struct model_head_args){g->rows, g->targets, g->m, g->inv_temperature,
                                                 g->logprob, g->entropy});
    return hidden;
}

static void golden_backward(struct golden *g)
{
    device_clear(g->f.pool, g->grad, (size_t)g->f.layout->master_count * sizeof(float));
    model_backward(&g->f.context, g->f.image, &g->kv, &g->packing->batch, g->workspace,
                   &(struct model_backward_args){g->g_logprob, g->g_entropy, g->grad});
    ck_assert_int_eq(device_wait(g->f.pool), RL_OK);
}

/* Largest |difference|, divided by the largest |expected| if `relative`. */
static double worst_error(const float *found, const float *expected, int64_t count, bool relative)
{
    double worst = 0.0;
    double largest = 0.0;
    for (int64_t i = 0; i < count; i++) {
        double difference = fabs((double)found[i] - (double)expected[i]);
        worst = difference > worst || isnan(difference) ? difference : worst;
        largest = fmax(largest, fabs((double)expected[i]));
    }
    return relative && largest > 0.0 ? worst / largest : worst;
}

struct bound {
    const char *name;
    const float *found;
    double limit;
    bool relative;
};

static void check_bound(const struct golden *g, const struct bound *b)
{
    int64_t count = 0;
    float *expected = expected_floats(g, b->name, &count);
    double error = worst_error(b->found, expected, count, b->relative);
    ck_assert_msg(error <= b->limit, "%s: %s is off by %g, limit %g", g->f.kernels->name, b->name,
                  error, b->limit);
    device_free(expected);
}

/* Largest errors: of logits as they are, of the others against the largest expected value. */
struct limits {
    double logits, logprob, entropy, loss, grad;
};

static const struct limits limits_of[] = {
    [KERNEL_FP32] = {1e-4, 1e-5, 1e-5, 1e-5, 1e-5},
    [KERNEL_BF16] = {1e-1, 1e-2, 3e-3, 1e-2, 6e-2},
};

static void check_logits(const struct golden *g, const float *hidden, double limit)
{
    const struct model_layout *layout = g->f.layout;
    int64_t n = g->packing->batch.token_count;
    float *logits = fixture_device_floats(&g->f, n * layout->arch.vocab);
    const struct model_tensor *head = model_layout_tensor(layout, MODEL_PARAM_HEAD, -1);
    struct kernel_linear_args args = {
        .w = (const unsigned char *)g->f.image + head->image_offset,
        .dtype = layout->dtype,
        .x = (float *)(uintptr_t)hidden,
        .y = logits,
        .m = n,
        .n = layout->arch.vocab,
        .k = layout->arch.width,
        .x_stride = layout->arch.width,
        .y_stride = layout->arch.vocab,
    };
    g->f.kernels->linear_forward(&args, g->f.pool);
    float *found = fixture_download(&g->f, logits, n * layout->arch.vocab);
    check_bound(g, &(struct bound){"logits", found, limit, false});
    device_free(found);
    device_buffer_free(g->f.device, logits);
}

/* `slab`: the device's. */
static void check_tensors(const struct golden *g, const char *prefix, const float *slab,
                          double limit)
{
    float *found = fixture_download(&g->f, slab, g->f.layout->master_count);
    for (int32_t i = 0; i < g->f.layout->tensor_count; i++) {
        const struct model_tensor *tensor = &g->f.layout->tensors[i];
        char name[160];
        snprintf(name, sizeof name, "%s.%s", prefix, tensor->name);
        check_bound(g, &(struct bound){name, found + tensor->offset, limit, true});
    }
    device_free(found);
}

static void forward_and_gradients(int which, enum kernel_isa isa, enum kernel_dtype dtype)
{
    const struct limits *limits = &limits_of[dtype];
    struct golden g;
    golden_open(&g, which, isa, dtype);
    const float *hidden = golden_forward(&g);
    check_logits(&g, hidden, limits->logits);
    check_bound(&g, &(struct bound){"logprob", g.logprob, limits->logprob, true});
    check_bound(&g, &(struct bound){"entropy", g.entropy, limits->entropy, true});
    double loss = 0.0;
    for (int64_t i = 0; i < g.m; i++) {
        loss += (double)g.g_logprob[i] * (double)g.logprob[i];
        loss += (double)g.g_entropy[i] * (double)g.entropy[i];
    }
    float single = (float)loss;
    check_bound(&g, &(struct bound){"loss", &single, limits->loss, true});
    golden_backward(&g);
    check_tensors(&g, "grad", g.grad, limits->grad);
    golden_close(&g);
}

START_TEST(forward_and_gradients_match)
{
    enum kernel_isa isa = (enum kernel_isa)(_i % ISA_COUNT);
    if (fixture_has_isa(isa)) {
        forward_and_gradients(_i / ISA_COUNT, isa, KERNEL_FP32);
    }
}
END_TEST

START_TEST(bf16_forward_and_gradients_are_near)
{
    enum kernel_isa isa = (enum kernel_isa)(_i % ISA_COUNT);
    if (fixture_has_isa(isa)) {
        forward_and_gradients(_i / ISA_COUNT, isa, KERNEL_BF16);
    }
}
END_TEST

/* Masters and moments, the device's. */
struct training {
    float *master, *m, *v;
    double *block_sums;
};

static void training_open(const struct golden *g, struct training *t)
{
    int64_t count = g->f.layout->master_count;
    t->master = fixture_device_floats(&g->f, count);
    t->m = fixture_device_floats(&g->f, count);
    t->v = fixture_device_floats(&g->f, count);
    t->block_sums = (double *)(void *)fixture_device_floats(&g->f, 2 * (count / 65536 + 1));
    device_write(g->f.pool, t->master, g->f.master, (size_t)count * sizeof(float));
}

static void training_close(const struct golden *g, const struct training *t)
{
    device_buffer_free(g->f.device, t->block_sums);
    device_buffer_free(g->f.device, t->v);
    device_buffer_free(g->f.device, t->m);
    device_buffer_free(g->f.device, t->master);
}

static void adamw_step(struct golden *g, const struct training *t, int64_t step)
{
    const struct model_layout *layout = g->f.layout;
    double sum = 0.0;
    struct kernel_sum_squares_args norm = {g->grad, layout->master_count, &sum, t->block_sums};
    g->f.kernels->sum_squares(&norm, g->f.pool);
    double scale = fmin(1.0, 1.0 / (sqrt(sum) + 1e-6));
    for (int32_t i = 0; i < layout->tensor_count; i++) {
        const struct model_tensor *tensor = &layout->tensors[i];
        struct kernel_adamw_args args = {
            .param = t->master + tensor->offset,
            .m = t->m + tensor->offset,
            .v = t->v + tensor->offset,
            .grad = g->grad + tensor->offset,
            .count = tensor->rows * tensor->cols,
            .step = step,
            .grad_scale = (float)scale,
            .learning_rate = 1e-3F,
            .beta1 = 0.9F,
            .beta2 = 0.95F,
            .epsilon = 1e-8F,
            .weight_decay = tensor->matrix ? 0.1F : 0.0F,
        };
        g->f.kernels->adamw(&args, g->f.pool);
    }
    size_t bytes = (size_t)layout->master_count * sizeof(float);
    ck_assert_int_eq(device_read(g->f.pool, g->f.master, t->master, bytes), RL_OK);
}

START_TEST(ten_adamw_steps_match)
{
    enum kernel_isa isa = (enum kernel_isa)(_i % ISA_COUNT);
    if (!fixture_has_isa(isa)) {
        return;
    }
    struct golden g;
    struct training t;
    golden_open(&g, _i / ISA_COUNT, isa, KERNEL_FP32);
    training_open(&g, &t);
    for (int64_t step = 1; step <= 10; step++) {
        fixture_publish(&g.f);
        golden_forward(&g);
        golden_backward(&g);
        adamw_step(&g, &t, step);
    }
    check_tensors(&g, "adamw", t.master, 1e-4);
    training_close(&g, &t);
    golden_close(&g);
}
END_TEST

static void remove_folder(const char *dir)
{
    DIR *handle = opendir(dir);
    ck_assert_ptr_nonnull(handle);
    for (struct dirent *entry = readdir(handle); entry != NULL; entry = readdir(handle)) {
        char path[1024];
        snprintf(path, sizeof path, "%s/%.255s", dir, entry->d_name);
        if (entry->d_name[0] != '.') {
            ck_assert_int_eq(unlink(path), 0);
        }
    }
    closedir(handle);
    ck_assert_int_eq(rmdir(dir), 0);
}

static void check_same_architecture(const struct model_architecture *a,
                                    const struct model_architecture *b)
{
    /* Field by field where it matters: padding bytes are nobody's. */
    ck_assert_str_eq(a->name, b->name);
    ck_assert_int_eq(a->layers, b->layers);
    ck_assert_int_eq(a->width, b->width);
    ck_assert_int_eq(a->head_dim, b->head_dim);
    ck_assert_int_eq(a->max_position, b->max_position);
    ck_assert_int_eq(a->window, b->window);
    ck_assert_int_eq(a->window_first_layer, b->window_first_layer);
    ck_assert_int_eq(a->activation, b->activation);
    ck_assert_int_eq(a->rope_type, b->rope_type);
    ck_assert_int_eq(a->eos_count, b->eos_count);
    ck_assert_int_eq(a->eos_ids[0], b->eos_ids[0]);
    ck_assert_int_eq(a->bos_id, b->bos_id);
    ck_assert_int_eq(a->pad_id, b->pad_id);
    ck_assert(a->norm_epsilon == b->norm_epsilon);
    ck_assert(a->initializer_range == b->initializer_range);
    ck_assert(a->rope_attention_factor == b->rope_attention_factor);
    float *tables = fixture_floats(4 * 64 * a->head_dim);
    int64_t floats = 64 * (int64_t)a->head_dim;
    model_rope_tables(a, 64, tables, tables + floats);
    model_rope_tables(b, 64, tables + 2 * floats, tables + 3 * floats);
    ck_assert_mem_eq(tables, tables + 2 * floats, (size_t)(2 * floats) * sizeof(float));
    device_free(tables);
}

START_TEST(save_and_load_give_the_same_bits)
{
    struct golden g;
    char dir[] = "golden_save_XXXXXX";
    golden_open(&g, _i, KERNEL_ISA_REF, KERNEL_FP32);
    ck_assert_ptr_nonnull(mkdtemp(dir));
    ck_assert_int_eq(model_params_save(g.f.layout, g.f.master, KERNEL_FP32, dir), RL_OK);
    struct model_architecture arch;
    ck_assert_int_eq(model_architecture_load(dir, &arch), RL_OK);
    check_same_architecture(&arch, &g.f.layout->arch);
    float *again = fixture_floats(g.f.layout->master_count);
    ck_assert_int_eq(model_params_load(g.f.layout, dir, again, NULL), RL_OK);
    ck_assert_mem_eq(again, g.f.master, (size_t)g.f.layout->master_count * sizeof(float));
    remove_folder(dir);
    device_free(again);
    golden_close(&g);
}
END_TEST

static Suite *golden_suite(void)
{
    Suite *suite = suite_create("model_golden");
    TCase *tcase = tcase_create("against transformers");
    tcase_add_loop_test(tcase, forward_and_gradients_match, 0, CASE_COUNT * ISA_COUNT);
    tcase_add_loop_test(tcase, bf16_forward_and_gradients_are_near, 0, CASE_COUNT * ISA_COUNT);
    tcase_add_loop_test(tcase, ten_adamw_steps_match, 0, ADAMW_CASES * ISA_COUNT);
    tcase_add_loop_test(tcase, save_and_load_give_the_same_bits, 0, SAVED_CASES);
    suite_add_tcase(suite, tcase);
    return suite;
}

int main(void)
{
    SRunner *runner = srunner_create(golden_suite());
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
