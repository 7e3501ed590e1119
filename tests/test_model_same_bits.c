/* Promise P1: a token's log-prob has the same bits however it was computed. Sequences are sampled
 * once; then every other way of computing them (batch size, chunked prefill, shared prefix pages,
 * staggered starts, threads, forced ids) must sample the same ids with the same bits, and so must
 * the packed forward of training, for each kernel table, in fp32, bf16 and int8; on a GPU, where
 * there is one, with up to 256 sequences at a time. */
#include "model/kv_cache.h"
#include "tests/model_fixture.h"

#include <math.h>

#if SUPPORT_EMULATED /* which is slow */
enum { PROMPTS = 2, SAMPLES = 3, SEQUENCES_MAX = 6, COMPLETION = 4, ARCHITECTURES = 1 };
#else
enum { PROMPTS = 4, SAMPLES = 8, SEQUENCES_MAX = 256, COMPLETION = 14, ARCHITECTURES = 5 };
#endif
enum {
    LENGTH_MAX = 50 + COMPLETION,
    PAGES_EACH = (LENGTH_MAX + KERNEL_PAGE_TOKENS - 1) / KERNEL_PAGE_TOKENS,
    TOKENS_MAX = SEQUENCES_MAX * LENGTH_MAX,
    THREADS_MAX = 4,
    DTYPES = 3,
    WIDE = 4, /* the architecture that only a GPU is given: its products are as in a real model */
    CONFIGURATIONS = 4 * DTYPES * ARCHITECTURES
};

static const int32_t prompt_lengths[] = {5, 33, 16, 50};
static const struct kernel_sampling sampling = {
    .temperature = 0.8F, .top_p = 0.95F, .min_p = 0.01F, .top_k = 40};

/* One way to run: `batch` sequences at a time, prompts in pieces of at most `chunk` tokens. */
struct mode {
    int batch;
    int chunk;
    int threads;
    int stagger; /* passes between the starts of two sequences of a batch */
    bool share;  /* samples of a prompt share its pages */
    bool forced; /* ids given, not drawn */
    enum model_split split;
};

static const struct mode cpu_modes[] = {
    {32, 64, 1, 0, false, false, MODEL_SPLIT_AUTO},
    {1, 64, 1, 0, false, false, MODEL_SPLIT_AUTO},
    {3, 64, 2, 0, false, true, MODEL_SPLIT_OUTPUTS},
    {8, 64, 2, 0, false, false, MODEL_SPLIT_OUTPUTS},
    {8, 7, 1, 0, false, true, MODEL_SPLIT_AUTO},
    {32, 16, 4, 0, false, false, MODEL_SPLIT_OUTPUTS},
    {8, 64, 1, 0, true, false, MODEL_SPLIT_AUTO},
    {32, 5, 3, 0, true, true, MODEL_SPLIT_OUTPUTS},
    {8, 9, 2, 2, false, false, MODEL_SPLIT_SEQUENCES},
    {32, 1, 2, 1, false, false, MODEL_SPLIT_SEQUENCES},
    {32, 16, 3, 0, true, false, MODEL_SPLIT_SEQUENCES},
    {3, 64, 4, 1, false, true, MODEL_SPLIT_SEQUENCES},
    {32, 64, 4, 0, false, false, MODEL_SPLIT_AUTO},
};

static const struct mode gpu_modes[] = {
#if SUPPORT_EMULATED
    {6, 64, 1, 0, false, false, MODEL_SPLIT_AUTO},
    {1, 64, 1, 0, false, false, MODEL_SPLIT_AUTO},
    {6, 7, 1, 0, true, true, MODEL_SPLIT_AUTO},
#else
    {256, 64, 1, 0, false, false, MODEL_SPLIT_AUTO},
    {1, 64, 1, 0, false, true, MODEL_SPLIT_AUTO},
    {2, 64, 1, 0, false, true, MODEL_SPLIT_AUTO},
    {7, 5, 1, 0, false, false, MODEL_SPLIT_AUTO},
    {16, 64, 1, 1, true, false, MODEL_SPLIT_AUTO},
    {33, 64, 1, 0, false, true, MODEL_SPLIT_AUTO},
    {64, 9, 1, 0, false, false, MODEL_SPLIT_AUTO},
    {65, 64, 1, 0, false, false, MODEL_SPLIT_AUTO},
    {128, 16, 1, 1, true, true, MODEL_SPLIT_AUTO},
    {200, 64, 1, 0, false, false, MODEL_SPLIT_AUTO},
    {256, 1, 1, 0, true, false, MODEL_SPLIT_AUTO},
    {256, 64, 1, 2, false, true, MODEL_SPLIT_AUTO},
#endif
};

struct sequence {
    int32_t tokens[LENGTH_MAX];
    float logprob[LENGTH_MAX]; /* of tokens[i], from the prompt's end on */
    int32_t prompt, length;    /* length: tokens wanted in the end */
    int32_t done;              /* tokens fed so far; their keys are in the pages */
    int32_t pages[PAGES_EACH];
    int32_t page_count;
};

struct engine {
    struct model_fixture f;
    struct rl_pool *pools[THREADS_MAX + 1]; /* by threads, from 2 on */
    struct model_workspace *workspace;
    struct model_kv kv;
    struct model_pages *pages;
    struct sequence sequences[SEQUENCES_MAX];
    int sequence_count, token_max, page_count; /* that are used */
    /* the pass being built */
    int32_t tokens[TOKENS_MAX], positions[TOKENS_MAX];
    int32_t segment_start[SEQUENCES_MAX + 1], first_position[SEQUENCES_MAX];
    const int32_t *page_table[SEQUENCES_MAX];
    int32_t rows[SEQUENCES_MAX], members[SEQUENCES_MAX];
    struct rl_rng_key keys[SEQUENCES_MAX];
    uint64_t counters[SEQUENCES_MAX];
    int32_t given[SEQUENCES_MAX], ids[SEQUENCES_MAX];
    float logprob[SEQUENCES_MAX];
    int count;   /* segments */
    int decodes; /* rows that draw a token */
};

/* The pool for so many threads; on a GPU the one with its stream. */
static struct rl_pool *engine_pool(const struct engine *e, int threads)
{
    return e->f.device != NULL ? e->f.pool : e->pools[threads];
}

static void engine_reset(struct engine *e, const struct sequence *from)
{
    for (int i = 0; i < e->sequence_count; i++) {
        e->sequences[i] = from[i];
        e->sequences[i].done = 0;
        e->sequences[i].page_count = 0;
        memset(e->sequences[i].logprob, 0xff, sizeof e->sequences[i].logprob);
    }
    /* Unused slots of a page may hold anything. */
    size_t bytes = e->kv.layer_bytes * (size_t)e->f.layout->arch.layers;
    void *nan = NULL;
    ck_assert_int_eq(device_alloc(bytes, "test", &nan), RL_OK);
    memset(nan, 0xff, bytes); /* in both storage types */
    device_write(e->f.pool, e->kv.k, nan, bytes);
    device_write(e->f.pool, e->kv.v, nan, bytes);
    ck_assert_int_eq(device_wait(e->f.pool), RL_OK);
    device_free(nan);
}

static void engine_create(struct engine *e, const struct model_architecture *arch,
                          const struct fixture_options *options)
{
    fixture_create(&e->f, arch, options);
    e->sequence_count = e->f.device != NULL ? SEQUENCES_MAX : PROMPTS * SAMPLES;
    e->token_max = e->sequence_count * LENGTH_MAX;
    e->page_count = e->sequence_count * PAGES_EACH + 3;
    e->f.layout->kv_dtype = options->dtype == KERNEL_BF16 ? KERNEL_BF16 : KERNEL_FP32;
    fixture_randomise(&e->f, 17);
    ck_assert_int_eq(model_kv_create(e->f.layout, e->page_count, &e->kv), RL_OK);
    ck_assert_int_eq(model_pages_create(e->page_count, &e->pages), RL_OK);
    for (int threads = 2; threads <= THREADS_MAX; threads++) {
        ck_assert_int_eq(rl_pool_create(threads, &e->pools[threads]), RL_OK);
    }
}

static void engine_destroy(struct engine *e)
{
    for (int threads = 2; threads <= THREADS_MAX; threads++) {
        rl_pool_destroy(e->pools[threads]);
    }
    e->f.context.pool = NULL;
    model_pages_destroy(e->pages);
    model_kv_fini(&e->kv);
    fixture_destroy(&e->f);
}

/* Pages up to `tokens`; the page that will be written must be nobody else's. */
static void reserve_pages(struct engine *e, struct sequence *s, int32_t tokens)
{
    int32_t first = s->done / KERNEL_PAGE_TOKENS;
    int32_t from = -1;
    if (first < s->page_count) {
        ck_assert_int_eq(model_pages_make_private(e->pages, &s->pages[first], &from), RL_OK);
        if (from >= 0) {
            model_kv_copy_page(&e->f.context, &e->kv, from, s->pages[first]);
        }
    }
    int32_t wanted = model_pages_for_tokens(tokens);
    ck_assert_int_eq(
        model_pages_acquire(e->pages, wanted - s->page_count, s->pages + s->page_count), RL_OK);
    s->page_count = wanted;
}

/* Append the sequence's next tokens to the pass. */
static void feed(struct engine *e, int which, int32_t take)
{
    struct sequence *s = &e->sequences[which];
    int32_t at = e->segment_start[e->count];
    reserve_pages(e, s, s->done + take);
    for (int32_t i = 0; i < take; i++) {
        e->tokens[at + i] = s->tokens[s->done + i];
        e->positions[at + i] = s->done + i;
    }
    e->first_position[e->count] = s->done;
    e->page_table[e->count] = s->pages;
    e->segment_start[++e->count] = at + take;
    s->done += take;
    if (s->done >= s->prompt) {
        e->rows[e->decodes] = at + take - 1;
        e->members[e->decodes++] = which;
    }
}

/* When the first sample of a prompt is through it, the others take its pages and its last row. */
static void share_prefix(struct engine *e, int leader)
{
    const struct sequence *from = &e->sequences[leader];
    int32_t row = e->rows[e->decodes - 1];
    for (int i = leader + 1; i < leader + SAMPLES; i++) {
        struct sequence *s = &e->sequences[i];
        s->done = from->done;
        s->page_count = from->page_count;
        memcpy(s->pages, from->pages, sizeof s->pages);
        model_pages_share(e->pages, s->pages, s->page_count);
        e->rows[e->decodes] = row;
        e->members[e->decodes++] = i;
    }
}

/* What the pass is to draw: fills e->keys, e->counters, e->given. */
static struct model_decode_args decode_args(struct engine *e, bool forced)
{
    for (int i = 0; i < e->decodes; i++) {
        const struct sequence *s = &e->sequences[e->members[i]];
        e->keys[i] = rl_rng_key_make(99, 1, (uint64_t)e->members[i]);
        e->counters[i] = (uint64_t)s->done;
        e->given[i] = s->tokens[s->done];
    }
    return (struct model_decode_args){.hidden_rows = e->rows,
                                      .sampling = &sampling,
                                      .keys = e->keys,
                                      .counters = e->counters,
                                      .forced = forced ? e->given : NULL,
                                      .m = e->decodes,
                                      .ids = e->ids,
                                      .logprob = e->logprob};
}

static void run_pass(struct engine *e, bool forced)
{
    struct kernel_segments segments = {e->count, e->segment_start, e->first_position, e->page_table,
                                       NULL};
    struct model_batch batch = {e->segment_start[e->count], e->tokens, e->positions, &segments};
    struct model_decode_args decode = decode_args(e, forced);
    double head = model_generate(&e->f.context, e->f.image, &e->kv, &batch, e->workspace, &decode);
    ck_assert(head >= 0 && head <= 1);
    for (int i = 0; i < e->decodes; i++) {
        struct sequence *s = &e->sequences[e->members[i]];
        s->tokens[s->done] = e->ids[i];
        s->logprob[s->done] = e->logprob[i];
    }
}

/* Sequences first .. first + count - 1 from nothing to their full length. */
static void run_batch(struct engine *e, const struct mode *mode, int first, int count)
{
    bool busy = true;
    for (int pass = 0; busy; pass++) {
        busy = false;
        e->count = 0;
        e->decodes = 0;
        for (int i = first; i < first + count; i++) {
            struct sequence *s = &e->sequences[i];
            bool follower = mode->share && s->done == 0 && i % SAMPLES != 0;
            busy = busy || s->done < s->length - 1;
            if (s->done >= s->length - 1 || follower || pass < (i - first) * mode->stagger) {
                continue;
            }
            bool prefill = s->done < s->prompt;
            int32_t left = s->prompt - s->done;
            feed(e, i, prefill ? (left < mode->chunk ? left : mode->chunk) : 1);
            if (mode->share && prefill && s->done == s->prompt) {
                share_prefix(e, i);
                i += SAMPLES - 1; /* they draw in this pass, and feed from the next one on */
            }
        }
        if (e->count > 0) {
            run_pass(e, mode->forced);
        }
    }
    for (int i = first; i < first + count; i++) {
        model_pages_release(e->pages, e->sequences[i].pages, e->sequences[i].page_count);
    }
}

static void run_mode(struct engine *e, const struct mode *mode, const struct sequence *from)
{
    engine_reset(e, from);
    e->f.context.pool = engine_pool(e, mode->threads);
    e->f.context.split = mode->split;
    ck_assert_int_eq(
        model_workspace_create(e->f.layout, e->token_max, MODEL_KEEP_LOGITS, &e->workspace), RL_OK);
    ck_assert_int_eq(model_workspace_share(e->workspace, e->f.layout, mode->threads), RL_OK);
    for (int first = 0; first < e->sequence_count; first += mode->batch) {
        int left = e->sequence_count - first;
        run_batch(e, mode, first, left < mode->batch ? left : mode->batch);
    }
    ck_assert_int_eq(model_pages_free_count(e->pages), e->page_count);
    model_workspace_destroy(e->workspace);
}

static void compare(const struct engine *e, const struct sequence *expected, const char *what)
{
    for (int i = 0; i < e->sequence_count; i++) {
        const struct sequence *s = &e->sequences[i];
        for (int32_t t = s->prompt; t < s->length; t++) {
            ck_assert_msg(s->tokens[t] == expected[i].tokens[t] &&
                              memcmp(&s->logprob[t], &expected[i].logprob[t], sizeof(float)) == 0,
                          "%s %s, %s: sequence %d token %d: id %d logprob %.9g, expected %d %.9g",
                          e->f.kernels->name, e->f.layout->arch.name, what, i, t, s->tokens[t],
                          (double)s->logprob[t], expected[i].tokens[t],
                          (double)expected[i].logprob[t]);
        }
    }
}

static void make_prompts(struct sequence *sequences, int32_t vocab)
{
    for (int i = 0; i < SEQUENCES_MAX; i++) {
        struct sequence *s = &sequences[i];
        struct rl_rng rng = rl_rng_make(8, (uint64_t)(i / SAMPLES));
        memset(s, 0, sizeof *s);
        s->prompt = prompt_lengths[i / SAMPLES % PROMPTS];
        s->length = s->prompt + COMPLETION - i % 5;
        for (int32_t t = 0; t < s->prompt; t++) {
            s->tokens[t] = (int32_t)rl_rng_next_below(&rng, (uint64_t)vocab);
        }
    }
}

/* Log-probs of all completions by the training forward, in place of those that are there. */
static void train_forward(struct engine *e)
{
    struct model_packing *packing = NULL;
    struct model_workspace *workspace = NULL;
    struct model_kv kv;
    static int32_t rows[TOKENS_MAX], targets[TOKENS_MAX];
    float *logprob = fixture_floats(e->token_max);
    const float *hidden = NULL;
    int64_t m = 0;
    ck_assert_int_eq(model_packing_create(e->token_max, e->sequence_count, &packing), RL_OK);
    for (int i = 0; i < e->sequence_count; i++) {
        const struct sequence *s = &e->sequences[i];
        int64_t row = 0;
        ck_assert_int_eq(model_packing_add(packing, s->tokens, s->length, &row), RL_OK);
        for (int32_t t = s->prompt; t < s->length; t++, m++) {
            rows[m] = (int32_t)row + t - 1;
            targets[m] = s->tokens[t];
        }
    }
    ck_assert_int_eq(model_kv_create(e->f.layout, packing->page_count, &kv), RL_OK);
    ck_assert_int_eq(
        model_workspace_create(e->f.layout, e->token_max, MODEL_KEEP_COSTLY, &workspace), RL_OK);
    model_forward(&e->f.context, e->f.image, &kv, &packing->batch, workspace, &hidden);
    model_head_forward(
        &e->f.context, e->f.image, workspace,
        &(struct model_head_args){rows, targets, m, 1.0F / sampling.temperature, logprob, NULL});
    for (int i = e->sequence_count - 1; i >= 0; i--) {
        struct sequence *s = &e->sequences[i];
        memset(s->logprob, 0xff, sizeof s->logprob);
        for (int32_t t = s->length - 1; t >= s->prompt; t--) {
            s->logprob[t] = logprob[--m];
        }
    }
    model_workspace_destroy(workspace);
    model_kv_fini(&kv);
    model_packing_destroy(packing);
    device_free(logprob);
}

/* Shapes of a layer of a model of half a billion parameters. */
static struct model_architecture test_architecture(int which)
{
    struct model_architecture arch = fixture_architecture(which == WIDE ? 1 : which);
    if (which == WIDE) {
        arch.width = 896;
        arch.heads = 14;
        arch.kv_heads = 2;
        arch.head_dim = 64;
        arch.ffn = 4864;
        arch.vocab = 4 * KERNEL_HEAD_CHUNK + 77;
        arch.window = 0;
    }
    return arch;
}

static void compare_modes(struct engine *e, struct sequence *expected)
{
    bool gpu = e->f.device != NULL;
    const struct mode *modes = gpu ? gpu_modes : cpu_modes;
    size_t count =
        gpu ? sizeof gpu_modes / sizeof gpu_modes[0] : sizeof cpu_modes / sizeof cpu_modes[0];
    run_mode(e, &modes[0], expected);
    memcpy(expected, e->sequences, sizeof e->sequences);
    for (size_t i = 0; i < count; i++) {
        char what[32];
        snprintf(what, sizeof what, "mode %zu", i);
        run_mode(e, &modes[i], expected);
        compare(e, expected, what);
    }
}

START_TEST(every_way_gives_the_same_bits)
{
    static struct engine e;
    static struct sequence expected[SEQUENCES_MAX];
    int which = _i % ARCHITECTURES;
    struct model_architecture arch = test_architecture(which);
    struct fixture_options options = {(enum kernel_isa)(_i / (DTYPES * ARCHITECTURES)),
                                      (enum kernel_dtype)(_i / ARCHITECTURES % DTYPES), 1};
    bool gpu = options.isa == KERNEL_ISA_CUDA;
    if (!fixture_has_isa(options.isa) || (which == WIDE && !gpu) ||
        (gpu && options.dtype == KERNEL_INT8) ||
        (SUPPORT_EMULATED && options.dtype != KERNEL_BF16)) {
        return;
    }
    engine_create(&e, &arch, &options);
    make_prompts(expected, arch.vocab);
    compare_modes(&e, expected);
    for (int threads = 1; threads <= (gpu ? 1 : THREADS_MAX); threads++) {
        char what[32];
        snprintf(what, sizeof what, "training, %d threads", threads);
        e.f.context.pool = engine_pool(&e, threads);
        train_forward(&e);
        compare(&e, expected, what);
    }
    engine_destroy(&e);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("model_same_bits");
    TCase *tcase = tcase_create("P1");
    tcase_add_loop_test(tcase, every_way_gives_the_same_bits, 0, CONFIGURATIONS);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
