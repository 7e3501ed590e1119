/* A model on a device whose memory the host may not touch (walled_device.h): the same kernels
 * behind the wall give the same bits, for training and for generation, and nothing is left behind.
 */
#include "tests/model_fixture.h"
#include "tests/walled_device.h"

#include "model/kv_cache.h"

#include <errno.h>
#include <unistd.h>

enum { SEQUENCES = 3, LENGTH = 37, TOKENS = SEQUENCES * LENGTH, STEPS = 5 };

/* The same model here and there. */
struct pair {
    struct model_fixture here;
    struct rl_pool *pool;        /* with a stream of the device */
    struct model_layout *layout; /* behind the wall */
    struct model_context context;
    void *image;
};

static void pair_create(struct pair *p, int architecture, enum kernel_dtype dtype)
{
    struct model_architecture arch = fixture_architecture(architecture);
    struct fixture_options options = {.isa = kernel_isa_best(), .dtype = dtype};
    void *master = NULL;
    *p = (struct pair){0};
    fixture_create(&p->here, &arch, &options);
    fixture_randomise(&p->here, 11);
    ck_assert_int_eq(rl_pool_create(2, &p->pool), RL_OK);
    ck_assert_int_eq(device_stream_start(walled_device(), p->pool), RL_OK);
    ck_assert_int_eq(
        model_layout_create_on(walled_device(), p->pool, &arch, dtype, 512, &p->layout), RL_OK);
    p->here.layout->kv_dtype = p->layout->kv_dtype = dtype;
    p->context =
        (struct model_context){.layout = p->layout, .kernels = walled_kernels(), .pool = p->pool};
    size_t bytes = (size_t)p->layout->master_count * sizeof(float);
    ck_assert_int_eq(device_buffer_alloc(walled_device(), bytes, "weights", &master), RL_OK);
    ck_assert_int_eq(
        device_buffer_alloc(walled_device(), p->layout->image_bytes, "image", &p->image), RL_OK);
    device_write(p->pool, master, p->here.master, bytes);
    model_params_publish(p->layout, p->context.kernels, master, p->image, p->pool);
    device_buffer_free(walled_device(), master);
}

static void pair_destroy(struct pair *p)
{
    device_buffer_free(walled_device(), p->image);
    model_layout_destroy(p->layout);
    device_stream_stop(p->pool);
    rl_pool_destroy(p->pool);
    fixture_destroy(&p->here);
    ck_assert_int_eq(walled_held(), 0);
}

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

static void assert_image(const struct pair *p, const void *image)
{
    unsigned char *found = malloc(p->layout->image_bytes);
    ck_assert_int_eq(device_read(p->pool, found, image, p->layout->image_bytes), RL_OK);
    ck_assert_mem_eq(found, p->here.image, p->layout->image_bytes);
    free(found);
}

START_TEST(images_are_the_same)
{
    char folder[] = "/tmp/fs_model_device_XXXXXX";
    char path[128];
    struct pair p;
    void *loaded = NULL;
    pair_create(&p, _i / 2, _i % 2 == 0 ? KERNEL_FP32 : KERNEL_BF16);
    assert_image(&p, p.image);
    ck_assert_ptr_nonnull(mkdtemp(folder));
    ck_assert_int_eq(model_params_save(p.here.layout, p.here.master, KERNEL_FP32, folder), RL_OK);
    ck_assert_int_eq(device_buffer_alloc(walled_device(), p.layout->image_bytes, "image", &loaded),
                     RL_OK);
    ck_assert_int_eq(model_image_load(p.layout, p.context.kernels, folder, loaded, p.pool), RL_OK);
    assert_image(&p, loaded);
    device_buffer_free(walled_device(), loaded);
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

START_TEST(training_gives_the_same_bits)
{
    struct pair p;
    static struct trained here;
    static struct trained there;
    pair_create(&p, _i / 2, _i % 2 == 0 ? KERNEL_FP32 : KERNEL_BF16);
    train(&p.here.context, p.here.image, &here);
    train(&p.context, p.image, &there);
    ck_assert_mem_eq(here.logprob, there.logprob, sizeof here.logprob);
    ck_assert_mem_eq(here.entropy, there.entropy, sizeof here.entropy);
    ck_assert_mem_eq(here.grad, there.grad, (size_t)p.layout->master_count * sizeof(float));
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
    const struct kernel_sampling sampling = {.temperature = 0.9F, .top_p = 0.95F};
    struct rl_rng_key key = rl_rng_key_make(3, 1, 4);
    ck_assert_int_eq(
        model_workspace_create(context->layout, LENGTH, model_sampling_keep(&sampling), &workspace),
        RL_OK);
    ck_assert_int_eq(model_workspace_share(workspace, context->layout, 2), RL_OK);
    ck_assert_int_eq(model_kv_create(context->layout, 5, &kv), RL_OK);
    for (int32_t i = 0; i < LENGTH; i++) {
        tokens[i] = (7 * i + 3) % context->layout->arch.vocab;
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

START_TEST(generation_gives_the_same_bits)
{
    struct pair p;
    struct generated here;
    struct generated there;
    pair_create(&p, _i / 2, _i % 2 == 0 ? KERNEL_FP32 : KERNEL_BF16);
    generate(&p.here.context, p.here.image, &here);
    generate(&p.context, p.image, &there);
    ck_assert_mem_eq(here.ids, there.ids, sizeof here.ids);
    ck_assert_mem_eq(here.logprob, there.logprob, sizeof here.logprob);
    pair_destroy(&p);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("model_device");
    TCase *all = tcase_create("device");
    tcase_add_test(all, the_host_stays_outside);
    tcase_add_loop_test(all, images_are_the_same, 0, 6);
    tcase_add_loop_test(all, training_gives_the_same_bits, 0, 8);
    tcase_add_loop_test(all, generation_gives_the_same_bits, 0, 8);
    suite_add_tcase(suite, all);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
