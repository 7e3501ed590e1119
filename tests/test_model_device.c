/* A model on a device whose memory the host may not touch. Behind the wall of walled_device.h the
 * CPU's own kernels give the same bits, for training and for generation; those of CUDA, on the
 * emulated GPU (SUPPORT_EMULATED), about the same numbers. On both a token's log-prob has the same
 * bits in generation and in training, and nothing is left behind. */
#include "tests/model_fixture.h"
#if !SUPPORT_EMULATED
#include "tests/walled_device.h"
#endif

#include "kernels/sampling.h"
#include "model/kv_cache.h"

#include <errno.h>
#include <math.h>
#include <unistd.h>

enum { SEQUENCES = 3, LENGTH = 37, TOKENS = SEQUENCES * LENGTH, STEPS = 5 };

#if SUPPORT_EMULATED
enum { MODELS = 3, DTYPES = 1 }; /* in bf16 a GPU rounds the inputs of products, the CPU does not */

static void open_device(struct device **device, const struct kernel_table **kernels)
{
    ck_assert_int_eq(device_gpu_open(0, device), RL_OK);
    ck_assert_int_eq(kernel_table_get(KERNEL_ISA_CUDA, kernels), RL_OK);
}

static void assert_floats(const float *a, const float *b, int64_t count)
{
    double largest = 0;
    double difference = 0;
    for (int64_t i = 0; i < count; i++) {
        largest = fmax(largest, fabs((double)a[i]));
        difference = fmax(difference, fabs((double)a[i] - (double)b[i]));
        ck_assert(isfinite(b[i]));
    }
    ck_assert_msg(difference <= 1e-4 * largest, "off by %g of %g", difference, largest);
}
#else
enum { MODELS = 4, DTYPES = 2 };

static void open_device(struct device **device, const struct kernel_table **kernels)
{
    *device = walled_device();
    *kernels = walled_kernels();
}

static void assert_floats(const float *a, const float *b, int64_t count)
{
    ck_assert_mem_eq(a, b, (size_t)count * sizeof(float));
}
#endif

static enum kernel_dtype dtype_of(int index)
{
    return index % DTYPES == 0 ? KERNEL_FP32 : KERNEL_BF16;
}

/* The same model here and there. */
struct pair {
    struct model_fixture here;
    struct device *device;
    const struct kernel_table *kernels;
    struct rl_pool *pool;        /* with a stream of the device */
    struct model_layout *layout; /* behind the wall */
    struct model_context context;
    void *image;
};

static void pair_create(struct pair *p, int architecture, enum kernel_dtype dtype)
{
    struct model_architecture arch = fixture_architecture(architecture);
    struct fixture_options options = {.isa = kernel_isa_best(), .dtype = dtype};
    *p = (struct pair){0};
    fixture_create(&p->here, &arch, &options);
    fixture_randomise(&p->here, 11);
    open_device(&p->device, &p->kernels);
    ck_assert_int_eq(rl_pool_create(2, &p->pool), RL_OK);
    ck_assert_int_eq(device_stream_start(p->device, p->pool), RL_OK);
    ck_assert_int_eq(model_layout_create_on(p->device, p->pool, &arch, dtype, 512, &p->layout),
                     RL_OK);
    p->here.layout->kv_dtype = p->layout->kv_dtype = dtype;
    p->context =
        (struct model_context){.layout = p->layout, .kernels = p->kernels, .pool = p->pool};
    p->image = fixture_image_on(&p->here, &p->context);
}

static void pair_destroy(struct pair *p)
{
    device_buffer_free(p->device, p->image);
    model_layout_destroy(p->layout);
    device_stream_stop(p->pool);
    rl_pool_destroy(p->pool);
    fixture_destroy(&p->here);
#if SUPPORT_EMULATED
    device_close(p->device);
#else
    ck_assert_int_eq(walled_held(), 0);
#endif
}

#if !SUPPORT_EMULATED
/* The test of the tests: not even the kernel reads it for the host. */
START_TEST(the_host_stays_outside)
{
    void *data = NULL;
    int ends[2];
    ck_assert_int_eq(device_buffer_alloc(walled_device(), 64, "test", &data), RL_OK);
    ck_assert_int_eq(pipe(ends), 0);
    ck_assert_int_eq((int)write(ends[1], data, 1), -1);
    ck_assert_int_eq(errno, EFAULT);
    close(ends[0]);
    close(ends[1]);
    device_buffer_free(walled_device(), data);
}
END_TEST
#endif

static void *image_of(const struct pair *p, const void *image)
{
    void *found = malloc(p->layout->image_bytes);
    ck_assert_int_eq(device_read(p->pool, found, image, p->layout->image_bytes), RL_OK);
    return found;
}

/* Published and loaded; packed as on the CPU where the kernels are the CPU's. */
START_TEST(images_are_the_same)
{
    char folder[] = "/tmp/fs_model_device_XXXXXX";
    char path[128];
    struct pair p;
    void *memory = NULL;
    pair_create(&p, _i / DTYPES, dtype_of(_i));
    size_t bytes = p.layout->image_bytes;
    ck_assert_ptr_nonnull(mkdtemp(folder));
    ck_assert_int_eq(model_params_save(p.here.layout, p.here.master, KERNEL_FP32, folder), RL_OK);
    ck_assert_int_eq(device_buffer_alloc(p.device, bytes, "image", &memory), RL_OK);
    ck_assert_int_eq(model_image_load(p.layout, p.kernels, folder, memory, p.pool), RL_OK);
    void *published = image_of(&p, p.image);
    void *loaded = image_of(&p, memory);
    ck_assert_mem_eq(published, loaded, bytes);
#if !SUPPORT_EMULATED
    ck_assert_mem_eq(published, p.here.image, bytes);
#endif
    free(published);
    free(loaded);
    device_buffer_free(p.device, memory);
    const char *const files[] = {"model.safetensors", "config.json", "generation_config.json", ""};
    for (int i = 0; i < 4; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, files[i]);
        (void)remove(path);
    }
    pair_destroy(&p);
}
END_TEST

/* --- training
 * --------------------------------------------------------------------------------------- */

struct trained {
    float logprob[TOKENS], entropy[TOKENS];
    float *grad; /* [master_count], the host's */
};

static void train(const struct model_context *context, const void *image, struct trained *out)
{
    const struct model_layout *layout = context->layout;
    struct device *device = layout->device;
    size_t bytes = (size_t)layout->master_count * sizeof(float);
    struct model_packing *packing = NULL;
    struct model_workspace *workspace = NULL;
    struct model_kv kv;
    const float *hidden = NULL;
    void *grad = NULL;
    int32_t rows[TOKENS];
    int32_t targets[TOKENS];
    float g_logprob[TOKENS];
    float g_entropy[TOKENS];
    struct rl_rng rng = rl_rng_make(5, 5);
    ck_assert_int_eq(model_packing_create(TOKENS, SEQUENCES, &packing), RL_OK);
    ck_assert_int_eq(model_workspace_create(layout, TOKENS, MODEL_KEEP_COSTLY, &workspace), RL_OK);
    ck_assert_int_eq(model_kv_create(layout, model_packing_pages(TOKENS, SEQUENCES), &kv), RL_OK);
    ck_assert_int_eq(device_buffer_alloc(device, bytes, "gradients", &grad), RL_OK);
    for (int32_t s = 0; s < SEQUENCES; s++) {
        int32_t tokens[LENGTH];
        int64_t first = 0;
        for (int32_t i = 0; i < LENGTH; i++) {
            tokens[i] = (int32_t)rl_rng_next_below(&rng, (uint64_t)layout->arch.vocab);
        }
        ck_assert_int_eq(model_packing_add(packing, tokens, LENGTH, &first), RL_OK);
    }
    for (int32_t i = 0; i < TOKENS; i++) {
        rows[i] = i % 5 == 0 ? i / 2 : i; /* some more than once, some never */
        targets[i] = (int32_t)rl_rng_next_below(&rng, (uint64_t)layout->arch.vocab);
        g_logprob[i] = (float)rl_rng_next_normal(&rng);
        g_entropy[i] = 0.1F * (float)rl_rng_next_normal(&rng);
    }
    model_forward(context, image, &kv, &packing->batch, workspace, &hidden);
    model_head_forward(
        context, image, workspace,
        &(struct model_head_args){rows, targets, TOKENS, 0.8F, out->logprob, out->entropy});
    model_backward(context, image, &kv, &packing->batch, workspace,
                   &(struct model_backward_args){g_logprob, g_entropy, grad});
    ck_assert_int_eq(device_wait(context->pool), RL_OK);
    out->grad = malloc(bytes);
    ck_assert_int_eq(device_read(context->pool, out->grad, grad, bytes), RL_OK);
    device_buffer_free(device, grad);
    model_kv_fini(&kv);
    model_workspace_destroy(workspace);
    model_packing_destroy(packing);
}

START_TEST(training_gives_the_same)
{
    struct pair p;
    static struct trained here;
    static struct trained there;
    pair_create(&p, _i / DTYPES, dtype_of(_i));
    train(&p.here.context, p.here.image, &here);
    train(&p.context, p.image, &there);
    assert_floats(here.logprob, there.logprob, TOKENS);
    assert_floats(here.entropy, there.entropy, TOKENS);
    assert_floats(here.grad, there.grad, p.layout->master_count);
    free(here.grad);
    free(there.grad);
    pair_destroy(&p);
}
END_TEST

/* --- generation
 * ------------------------------------------------------------------------------------- */

struct generated {
    int32_t ids[STEPS + 1];
    float logprob[STEPS + 1];
};

static const struct kernel_sampling sampling = {.temperature = 0.9F, .top_p = 0.95F};

static int32_t prompt_token(const struct model_context *context, int32_t position)
{
    return (7 * position + 3) % context->layout->arch.vocab;
}

/* A prompt, a copy of its last page as if another sequence went on from it, and a few tokens. */
static void generate(const struct model_context *context, const void *image, struct generated *out)
{
    struct model_workspace *workspace = NULL;
    struct model_kv kv;
    int32_t pages[] = {0, 1, 3, 4};
    const int32_t *table = pages;
    int32_t tokens[LENGTH];
    int32_t positions[LENGTH];
    int32_t first = 0;
    int32_t count = LENGTH;
    struct rl_rng_key key = rl_rng_key_make(3, 1, 4);
    ck_assert_int_eq(
        model_workspace_create(context->layout, LENGTH, model_sampling_keep(&sampling), &workspace),
        RL_OK);
    ck_assert_int_eq(model_workspace_share(workspace, context->layout, 2), RL_OK);
    ck_assert_int_eq(model_kv_create(context->layout, 5, &kv), RL_OK);
    for (int32_t i = 0; i < LENGTH; i++) {
        tokens[i] = prompt_token(context, i);
    }
    for (int step = 0; step <= STEPS; step++) {
        int32_t start[] = {0, count};
        int32_t row = count - 1;
        uint64_t counter = (uint64_t)step;
        for (int32_t i = 0; i < count; i++) {
            positions[i] = first + i;
        }
        struct kernel_segments segments = {
            .count = 1, .segment_start = start, .first_position = &first, .page_table = &table};
        struct model_batch batch = {
            .token_count = count, .tokens = tokens, .positions = positions, .segments = &segments};
        struct model_decode_args decode = {.hidden_rows = &row,
                                           .sampling = &sampling,
                                           .keys = &key,
                                           .counters = &counter,
                                           .m = 1,
                                           .ids = &out->ids[step],
                                           .logprob = &out->logprob[step]};
        (void)model_generate(context, image, &kv, &batch, workspace, &decode);
        ck_assert_int_eq(device_wait(context->pool), RL_OK);
        first += count;
        count = 1;
        tokens[0] = out->ids[step];
        if (step == 1) {
            model_kv_copy_page(context, &kv, 3, 2);
            pages[2] = 2;
        }
    }
    model_kv_fini(&kv);
    model_workspace_destroy(workspace);
}

START_TEST(generation_gives_the_same)
{
    struct pair p;
    struct generated here;
    struct generated there;
    pair_create(&p, _i / DTYPES, dtype_of(_i));
    generate(&p.here.context, p.here.image, &here);
    generate(&p.context, p.image, &there);
    ck_assert_mem_eq(here.ids, there.ids, sizeof here.ids);
    assert_floats(here.logprob, there.logprob, STEPS + 1);
    pair_destroy(&p);
}
END_TEST

/* Log-probs of what was generated, from the training forward pass over the whole sequence. */
static void score(const struct model_context *context, const void *image,
                  const struct generated *sample, float logprob[STEPS + 1])
{
    struct model_packing *packing = NULL;
    struct model_workspace *workspace = NULL;
    struct model_kv kv;
    const float *hidden = NULL;
    int32_t tokens[LENGTH + STEPS];
    int32_t rows[STEPS + 1];
    int64_t first = 0;
    for (int32_t i = 0; i < LENGTH + STEPS; i++) {
        tokens[i] = i < LENGTH ? prompt_token(context, i) : sample->ids[i - LENGTH];
    }
    for (int32_t i = 0; i <= STEPS; i++) {
        rows[i] = LENGTH - 1 + i;
    }
    ck_assert_int_eq(model_packing_create(LENGTH + STEPS, 1, &packing), RL_OK);
    ck_assert_int_eq(model_packing_add(packing, tokens, LENGTH + STEPS, &first), RL_OK);
    ck_assert_int_eq(
        model_workspace_create(context->layout, LENGTH + STEPS, MODEL_KEEP_COSTLY, &workspace),
        RL_OK);
    ck_assert_int_eq(model_kv_create(context->layout, 4, &kv), RL_OK);
    struct model_head_args head = {.hidden_rows = rows,
                                   .targets = sample->ids,
                                   .m = STEPS + 1,
                                   .inv_temperature =
                                       kernel_sampling_inverse_temperature(&sampling),
                                   .logprob = logprob};
    model_forward(context, image, &kv, &packing->batch, workspace, &hidden);
    model_head_forward(context, image, workspace, &head);
    ck_assert_int_eq(device_wait(context->pool), RL_OK);
    model_kv_fini(&kv);
    model_workspace_destroy(workspace);
    model_packing_destroy(packing);
}

START_TEST(generation_and_training_have_the_same_bits)
{
    struct pair p;
    struct generated sample;
    float logprob[STEPS + 1];
    pair_create(&p, _i / 2, _i % 2 == 0 ? KERNEL_FP32 : KERNEL_BF16);
    generate(&p.context, p.image, &sample);
    score(&p.context, p.image, &sample, logprob);
    ck_assert_mem_eq(sample.logprob, logprob, sizeof logprob);
    pair_destroy(&p);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("model_device");
    TCase *all = tcase_create("device");
#if !SUPPORT_EMULATED
    tcase_add_test(all, the_host_stays_outside);
#endif
    tcase_add_loop_test(all, images_are_the_same, 0, 3 * DTYPES);
    tcase_add_loop_test(all, training_gives_the_same, 0, MODELS * DTYPES);
    tcase_add_loop_test(all, generation_gives_the_same, 0, MODELS * DTYPES);
    tcase_add_loop_test(all, generation_and_training_have_the_same_bits, 0, MODELS * 2);
    suite_add_tcase(suite, all);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
