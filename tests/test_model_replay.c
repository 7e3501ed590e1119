/* Generation passes that a device may record and launch again: varying batches, contexts, weights
 * and samplings give what single sequences give. Behind the wall of walled_device.h that is what
 * the CPU gives; on the emulated GPU (SUPPORT_EMULATED) passes are launched as graphs or op by op.
 */
#include "tests/model_fixture.h"
#if SUPPORT_EMULATED
#include "tests/emulation/emulation.h"
#else
#include "tests/walled_device.h"
#endif

enum {
    SEQUENCES = 5,
    STEPS = 40,
    IMAGES = 2,
    SAMPLINGS = 3,
    PAGES = 20, /* of a sequence */
    FIRST = 250 /* position of the first token: contexts of two kinds come */
};

/* Half of the sequences start where contexts change their kind. */
static int32_t first_of(int sequence)
{
    return sequence % 2 == 0 ? FIRST - sequence : 3 * sequence;
}

static const struct kernel_sampling samplings[SAMPLINGS] = {
    {.temperature = 0.9F, .top_p = 1},
    {.temperature = 0.0F, .top_p = 1},
    {.temperature = 1.1F, .top_p = 0.9F, .min_p = 0.01F, .top_k = 20}};

/* A model, in memory that the passes are given. */
struct bench {
    struct model_fixture f;
    struct device *device;
    struct rl_pool *pool;
    struct model_layout *layout;
    struct model_context context;
    void *images[IMAGES];
};

static void bench_create(struct bench *b)
{
    struct model_architecture arch = fixture_architecture(1);
    struct fixture_options options = {.isa = kernel_isa_best(), .dtype = KERNEL_BF16};
    const struct kernel_table *kernels = NULL;
    *b = (struct bench){0};
    fixture_create(&b->f, &arch, &options);
#if SUPPORT_EMULATED
    ck_assert_int_eq(device_gpu_open(0, &b->device), RL_OK);
    ck_assert_int_eq(kernel_table_get(KERNEL_ISA_CUDA, &kernels), RL_OK);
#else
    b->device = walled_device();
    kernels = walled_kernels();
#endif
    ck_assert_int_eq(rl_pool_create(1, &b->pool), RL_OK);
    ck_assert_int_eq(device_stream_start(b->device, b->pool), RL_OK);
    ck_assert_int_eq(
        model_layout_create_on(b->device, b->pool, &arch, KERNEL_BF16, 512, &b->layout), RL_OK);
    b->context = (struct model_context){.layout = b->layout, .kernels = kernels, .pool = b->pool};
    for (int i = 0; i < IMAGES; i++) {
        fixture_randomise(&b->f, 31 + (uint64_t)i);
        b->images[i] = fixture_image_on(&b->f, &b->context);
    }
}

static void bench_destroy(struct bench *b)
{
    for (int i = 0; i < IMAGES; i++) {
        device_buffer_free(b->device, b->images[i]);
    }
    model_layout_destroy(b->layout);
    device_stream_stop(b->pool);
    rl_pool_destroy(b->pool);
    fixture_destroy(&b->f);
#if SUPPORT_EMULATED
    device_close(b->device);
#else
    ck_assert_int_eq(walled_held(), 0);
#endif
}

/* What came of every token. */
struct tokens {
    int32_t ids[SEQUENCES][STEPS];
    float logprob[SEQUENCES][STEPS], kept[SEQUENCES][STEPS];
};

/* One pass: the running sequences' next tokens. */
struct pass {
    int32_t tokens[SEQUENCES], positions[SEQUENCES], rows[SEQUENCES], start[SEQUENCES + 1];
    int32_t pages[SEQUENCES][PAGES];
    const int32_t *table[SEQUENCES];
    int sequence[SEQUENCES];
    struct rl_rng_key keys[SEQUENCES];
    uint64_t counters[SEQUENCES];
    int32_t ids[SEQUENCES];
    float logprob[SEQUENCES], kept[SEQUENCES];
    int32_t count;
};

static void pass_add(struct pass *p, int sequence, int step, const struct tokens *before)
{
    const int32_t i = p->count++;
    p->sequence[i] = sequence;
    p->tokens[i] = step == 0 ? 5 + sequence : before->ids[sequence][step - 1];
    p->positions[i] = first_of(sequence) + step;
    p->rows[i] = i;
    p->start[i] = i;
    p->start[i + 1] = i + 1;
    p->table[i] = p->pages[i];
    p->keys[i] = rl_rng_key_make(5, (uint64_t)sequence, 0);
    p->counters[i] = (uint64_t)step;
    for (int32_t j = 0; j < PAGES; j++) {
        p->pages[i][j] = j * SEQUENCES + sequence;
    }
}

struct runner {
    const struct model_context *context;
    void *const *images;
    struct model_workspace *workspace;
    struct model_kv kv;
    double head; /* sum of the head's parts of the time */
};

static void runner_create(struct runner *r, const struct model_context *context,
                          void *const *images)
{
    *r = (struct runner){.context = context, .images = images};
    ck_assert_int_eq(
        model_workspace_create(context->layout, SEQUENCES, MODEL_KEEP_LOGITS, &r->workspace),
        RL_OK);
    ck_assert_int_eq(model_kv_create(context->layout, SEQUENCES * PAGES, &r->kv), RL_OK);
}

static void runner_destroy(struct runner *r)
{
    model_kv_fini(&r->kv);
    model_workspace_destroy(r->workspace);
}

static void pass_run(struct runner *r, struct pass *p, int step, struct tokens *out)
{
    struct kernel_segments segments = {.count = p->count,
                                       .segment_start = p->start,
                                       .first_position = p->positions,
                                       .page_table = p->table};
    struct model_batch batch = {.token_count = p->count,
                                .tokens = p->tokens,
                                .positions = p->positions,
                                .segments = &segments};
    struct model_decode_args decode = {.hidden_rows = p->rows,
                                       .sampling = &samplings[step / 8 % SAMPLINGS],
                                       .keys = p->keys,
                                       .counters = p->counters,
                                       .m = p->count,
                                       .ids = p->ids,
                                       .logprob = p->logprob,
                                       .kept = p->kept};
    r->head += model_generate(r->context, r->images[step / 4 % IMAGES], &r->kv, &batch,
                              r->workspace, &decode);
    ck_assert_int_eq(device_wait(r->context->pool), RL_OK);
    for (int32_t i = 0; i < p->count; i++) {
        out->ids[p->sequence[i]][step] = p->ids[i];
        out->logprob[p->sequence[i]][step] = p->logprob[i];
        out->kept[p->sequence[i]][step] = p->kept[i];
    }
}

/* How many sequences run in a step. */
static int running(int step)
{
    return step < 12 ? SEQUENCES : SEQUENCES - 1 - step / 20;
}

/* Sequence by sequence, or all that run in one pass. Memory of passes is the same for all. */
static void generate(struct runner *r, bool together, struct tokens *out)
{
    static struct pass p;
    memset(out, 0, sizeof *out);
    for (int step = 0; step < STEPS; step++) {
        for (int s = 0; s < running(step); s += together ? SEQUENCES : 1) {
            p.count = 0;
            for (int i = s; i < (together ? running(step) : s + 1); i++) {
                pass_add(&p, i, step, out);
            }
            pass_run(r, &p, step, out);
        }
    }
}

/* --- tests --- */

START_TEST(passes_in_any_company_are_the_same)
{
    struct bench b;
    static struct tokens alone;
    static struct tokens together;
    struct runner r;
    bench_create(&b);
    runner_create(&r, &b.context, b.images);
    generate(&r, true, &together);
    ck_assert_double_ge(r.head, 0);
#if SUPPORT_EMULATED
    ck_assert_double_gt(r.head, 0);
    ck_assert_uint_gt(emulation_graph_launches(), STEPS / 3);
#endif
    runner_destroy(&r);
    runner_create(&r, &b.context, b.images);
#if SUPPORT_EMULATED /* on another stream, where every op is launched by itself */
    const uint64_t launches = emulation_graph_launches();
    device_stream_stop(b.pool);
    ck_assert_uint_eq(emulation_graphs(), 0);
    ck_assert_int_eq(setenv("FORESIGHT_CUDA_GRAPHS", "0", 1), 0);
    ck_assert_int_eq(device_stream_start(b.device, b.pool), RL_OK);
    generate(&r, true, &alone);
    ck_assert_uint_eq(emulation_graph_launches(), launches);
#else
    generate(&r, false, &alone);
#endif
    ck_assert_mem_eq(alone.ids, together.ids, sizeof alone.ids);
    ck_assert_mem_eq(alone.logprob, together.logprob, sizeof alone.logprob);
    ck_assert_mem_eq(alone.kept, together.kept, sizeof alone.kept);
    runner_destroy(&r);
    bench_destroy(&b);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("model_replay");
    TCase *all = tcase_create("replay");
    tcase_add_test(all, passes_in_any_company_are_the_same);
    suite_add_tcase(suite, all);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
