/* Promise P1 on the kernels themselves, for every table of this machine and bit by bit: a row's
 * result is the same alone and in any batch; a token's attention is the same in decode, in chunked
 * prefill and in one training segment; a sampled id's log-probability is what head_forward gives.
 */
#include "kernels/bf16.h"
#include "kernels/sampling.h"
#include "tests/kernel_support.h"

#include <check.h>
#if SUPPORT_EMULATED
#include "tests/emulation/emulation_cublas_lt.h"
#endif

#if SUPPORT_EMULATED /* which is slow */
static const int64_t batch_sizes[] = {1, 3, 20};
enum { ROWS_MAX = 20, ROWS_MANY = 70, FIRST_VOCABULARY = 4 };
#else
static const int64_t batch_sizes[] = {1, 2, 3, 5, 7, 8, 13, 14, 15, 32, 65};
enum { ROWS_MAX = 65, ROWS_MANY = 300, FIRST_VOCABULARY = 0 };
#endif
enum { BATCH_COUNT = sizeof batch_sizes / sizeof batch_sizes[0] };

static void assert_same_bits(const float *want, const float *got, int64_t count, const char *what)
{
    if (memcmp(want, got, (size_t)count * sizeof *want) == 0) {
        return; /* an assertion each would take longer than the kernels */
    }
    for (int64_t i = 0; i < count; i++) {
        ck_assert_msg(memcmp(&want[i], &got[i], sizeof *want) == 0,
                      "%s: element %lld is %.9g, alone it was %.9g", what, (long long)i,
                      (double)got[i], (double)want[i]);
    }
}

struct linear_shape {
    int64_t n, k;
    enum kernel_dtype dtype;
    bool bias, accumulate;
};

static const struct linear_shape linear_shapes[] = {
    {33, 70, KERNEL_FP32, true, false},    {512, 128, KERNEL_FP32, false, true},
    {96, 1100, KERNEL_FP32, true, true},   {160, 513, KERNEL_BF16, false, false},
    {1, 1, KERNEL_FP32, true, true},       {65, 192, KERNEL_BF16, true, true},
    {300, 2049, KERNEL_FP32, true, false},
};
enum { LINEAR_SHAPES = sizeof linear_shapes / sizeof linear_shapes[0] };

/* All rows one by one into `alone`, then batches of m rows at every offset that is a multiple of 7.
 */
static void linear_rows(const struct kernel_table *table, const struct linear_shape *shape,
                        int64_t rows)
{
    struct memory m;
    memory_init(&m, 11, FLAVOUR_MIXED);
    struct kernel_linear_args a = {.n = shape->n,
                                   .k = shape->k,
                                   .dtype = shape->dtype,
                                   .x_stride = shape->k,
                                   .y_stride = shape->n,
                                   .accumulate = shape->accumulate};
    a.w = memory_weights(&m, a.n, a.k, a.dtype);
    a.bias = shape->bias ? memory_floats(&m, a.n, 1.0) : NULL;
    float *x = memory_floats(&m, rows * a.k, 1.0);
    float *old = memory_floats(&m, rows * a.n, 1.0);
    float *alone = memory_output(&m, rows * a.n, 1.0);
    float *batch = memory_output(&m, rows * a.n, 1.0);
    memcpy(alone, old, (size_t)(rows * a.n) * sizeof *old);
    for (int64_t r = 0; r < rows; r++) {
        a.m = 1;
        a.x = x + r * a.k;
        a.y = alone + r * a.n;
        table->linear_forward(&a, NULL);
    }
    for (int64_t i = 0; i <= BATCH_COUNT; i++) {
        a.m = i < BATCH_COUNT && batch_sizes[i] < rows ? batch_sizes[i] : rows;
        for (int64_t first = 0; first + a.m <= rows; first += rows > ROWS_MAX ? rows : 7) {
            memcpy(batch, old, (size_t)(rows * a.n) * sizeof *old);
            a.x = x + first * a.k;
            a.y = batch + first * a.n;
            table->linear_forward(&a, NULL);
            assert_same_bits(alone + first * a.n, a.y, a.m * a.n, "linear_forward");
        }
    }
    memory_fini(&m);
}

START_TEST(linear_row_is_the_same_in_any_batch)
{
    const struct kernel_table *table = NULL;
    for (int index = 0; support_table(index, &table); index++) {
        linear_rows(table, &linear_shapes[_i], ROWS_MAX);
        if (SUPPORT_EMULATED || index != KERNEL_ISA_REF) {
            linear_rows(table, &linear_shapes[_i], ROWS_MANY); /* several blocks of rows */
        }
    }
}
END_TEST

/* Maps that read the same rows, of sizes that end inside a panel, together and one by one. */
START_TEST(linear_set_is_the_same_as_its_maps)
{
    enum { MAPS = KERNEL_SET_MAPS, K = 300, N = 200 };
    const int64_t rows[] = {1, 2, 3, 4, 5, 8, 14, 15, 33, ROWS_MAX};
    const int64_t outputs[MAPS] = {N, 33, 64};
    const struct kernel_table *table = NULL;
    struct rl_pool *pool = NULL;
    ck_assert_int_eq(rl_pool_create(3, &pool), RL_OK);
    for (int index = 0; support_table(index, &table); index++) {
        struct memory m;
        memory_init(&m, 21, FLAVOUR_MIXED);
        struct kernel_linear_set_args set = {.count = MAPS};
        struct kernel_linear_args *maps = set.maps;
        float *alone[MAPS];
        float *x = memory_floats(&m, (int64_t)ROWS_MAX * K, 1.0);
        for (int i = 0; i < MAPS; i++) {
            maps[i] = (struct kernel_linear_args){
                .dtype = _i == 0 ? KERNEL_FP32 : KERNEL_BF16, .x = x, .m = rows[0]};
            maps[i].n = maps[i].y_stride = outputs[i];
            maps[i].k = maps[i].x_stride = K;
            maps[i].w = memory_weights(&m, outputs[i], K, maps[i].dtype);
            maps[i].bias = i == 1 ? memory_floats(&m, outputs[i], 1.0) : NULL;
            maps[i].y = memory_output(&m, (int64_t)ROWS_MAX * N, 1.0);
            alone[i] = memory_output(&m, (int64_t)ROWS_MAX * N, 1.0);
        }
        for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
            if (rows[r] > ROWS_MAX) {
                continue;
            }
            for (int i = 0; i < MAPS; i++) {
                maps[i].m = rows[r];
                struct kernel_linear_args one = maps[i];
                one.y = alone[i];
                table->linear_forward(&one, NULL);
            }
            table->linear_forward_set(&set, pool);
            for (int i = 0; i < MAPS; i++) {
                assert_same_bits(alone[i], maps[i].y, rows[r] * outputs[i], "linear_forward_set");
            }
        }
        memory_fini(&m);
    }
    rl_pool_destroy(pool);
}
END_TEST

#if SUPPORT_EMULATED
START_TEST(few_rows_have_an_algorithm_of_their_own)
{
    const struct kernel_table *table = NULL;
    ck_assert(support_table(0, &table));
    const uint64_t before = emulation_few_rows_products();
    linear_rows(table, &linear_shapes[1], 2);
    ck_assert(emulation_few_rows_products() > before);
}
END_TEST
#endif

START_TEST(norm_row_is_the_same_in_any_batch)
{
    const struct kernel_table *table = NULL;
    const int64_t width[] = {1, 20, 32, 128, 200, 897};
    for (int index = 0; support_table(index, &table); index++) {
        struct memory m;
        memory_init(&m, 12, FLAVOUR_MIXED);
        struct kernel_rmsnorm_args a = {.c = width[_i], .epsilon = 1e-6f};
        float *x = memory_floats(&m, ROWS_MAX * a.c, 1.0);
        a.weight = memory_floats(&m, a.c, 1.0);
        float *alone = memory_output(&m, ROWS_MAX * a.c, 1.0);
        float *inv = memory_output(&m, 2 * ROWS_MAX, 1.0);
        float *batch = memory_output(&m, ROWS_MAX * a.c, 1.0);
        for (int64_t r = 0; r < ROWS_MAX; r++) {
            a.m = 1;
            a.x = x + r * a.c;
            a.y = alone + r * a.c;
            a.inv_rms = inv + r;
            table->rmsnorm_forward(&a, NULL);
        }
        for (int i = 0; i < BATCH_COUNT; i++) {
            a.m = batch_sizes[i];
            a.x = x + (ROWS_MAX - a.m) * a.c;
            a.y = batch;
            a.inv_rms = inv + ROWS_MAX;
            table->rmsnorm_forward(&a, NULL);
            assert_same_bits(alone + (ROWS_MAX - a.m) * a.c, batch, a.m * a.c, "rmsnorm_forward");
            assert_same_bits(inv + ROWS_MAX - a.m, inv + ROWS_MAX, a.m, "inv_rms");
        }
        memory_fini(&m);
    }
}
END_TEST

/* glu and rope see rows as stretches of elements: a stretch must not depend on where it begins. */
START_TEST(pointwise_element_is_the_same_anywhere)
{
    enum { COUNT = 300 };
    const struct kernel_table *table = NULL;
    for (int index = 0; support_table(index, &table); index++) {
        struct memory m;
        memory_init(&m, 13, FLAVOUR_MIXED);
        float *gate = memory_floats(&m, COUNT, 4.0);
        float *up = memory_floats(&m, COUNT, 1.0);
        float *whole = memory_output(&m, COUNT, 1.0);
        float *part = memory_output(&m, COUNT, 1.0);
        struct kernel_glu_args a = {.gate = gate,
                                    .up = up,
                                    .y = whole,
                                    .count = COUNT,
                                    .activation = _i == 0 ? KERNEL_SILU : KERNEL_GELU_TANH};
        table->glu_forward(&a, NULL);
        for (int64_t first = 0; first < COUNT; first += a.count) {
            a.count = 1 + first % 37;
            a.count = a.count < COUNT - first ? a.count : COUNT - first;
            a.gate = gate + first;
            a.up = up + first;
            a.y = part + first;
            table->glu_forward(&a, NULL);
        }
        assert_same_bits(whole, part, COUNT, "glu_forward");
        memory_fini(&m);
    }
}
END_TEST

struct head_fixture {
    struct memory memory;
    struct kernel_head_args head;
    struct kernel_decode_args decode;
    struct kernel_sampling sampling;
    struct rl_rng_key keys[ROWS_MAX];
    uint64_t counters[ROWS_MAX];
    int32_t *targets;
};

static void head_fixture_init(struct head_fixture *f, int64_t v, float temperature)
{
    struct memory *m = &f->memory;
    const int64_t c = 48;
    memory_init(m, 14, FLAVOUR_PLAIN);
    f->sampling = (struct kernel_sampling){.temperature = temperature, .top_p = 1.0f};
    f->targets = memory_ids(m, ROWS_MAX, v);
    f->head =
        (struct kernel_head_args){.m = ROWS_MAX,
                                  .v = v,
                                  .c = c,
                                  .inv_temperature = temperature > 0 ? 1.0f / temperature : 1.0f};
    f->head.dtype = v % 2 == 0 ? KERNEL_FP32 : KERNEL_BF16;
    f->head.w = memory_weights(m, v, c, f->head.dtype);
    f->head.x = memory_floats(m, ROWS_MAX * c, 2.0);
    f->head.targets = f->targets;
    f->head.scratch = memory_output(m, ROWS_MAX * KERNEL_HEAD_CHUNK, 1.0);
    f->head.logprob = memory_output(m, ROWS_MAX, 1.0);
    f->head.entropy = memory_output(m, ROWS_MAX, 1.0);
    f->head.lse = memory_output(m, ROWS_MAX, 1.0);
    for (int r = 0; r < ROWS_MAX; r++) {
        f->keys[r] = rl_rng_key_make(9, (uint64_t)r, 0);
        f->counters[r] = (uint64_t)r;
    }
    int64_t stride = (v + KERNEL_PANEL - 1) / KERNEL_PANEL * KERNEL_PANEL;
    f->decode = (struct kernel_decode_args){.x = f->head.x,
                                            .w = f->head.w,
                                            .dtype = f->head.dtype,
                                            .sampling = &f->sampling,
                                            .keys = f->keys,
                                            .counters = f->counters,
                                            .m = ROWS_MAX,
                                            .v = v,
                                            .c = c};
    f->decode.ids = memory_output_ids(m, ROWS_MAX);
    f->decode.logprob = memory_output(m, ROWS_MAX, 1.0);
    f->decode.logits = memory_output(m, ROWS_MAX * stride, 1.0);
    f->decode.columns = stride;
    f->decode.chunks = memory_chunks(m, ROWS_MAX, v);
    f->decode.order = memory_output_ids(m, ROWS_MAX * v);
}

static const int64_t head_vocabularies[] = {1, 32, 33, 1024, 1501, 2100};
enum { HEAD_VOCABULARIES = sizeof head_vocabularies / sizeof head_vocabularies[0] };

START_TEST(head_row_is_the_same_in_any_batch)
{
    const struct kernel_table *table = NULL;
    static struct head_fixture f;
    for (int index = 0; support_table(index, &table); index++) {
        head_fixture_init(&f, head_vocabularies[_i], 0.8f);
        table->head_forward(&f.head, NULL);
        float logprob[ROWS_MAX];
        float entropy[ROWS_MAX];
        memcpy(logprob, f.head.logprob, sizeof logprob);
        memcpy(entropy, f.head.entropy, sizeof entropy);
        for (int i = 0; i < BATCH_COUNT; i++) {
            struct kernel_head_args part = f.head;
            int64_t first = ROWS_MAX - batch_sizes[i];
            part.m = batch_sizes[i];
            part.x += first * part.c;
            part.targets += first;
            table->head_forward(&part, NULL);
            assert_same_bits(logprob + first, part.logprob, part.m, "head_forward logprob");
            assert_same_bits(entropy + first, part.entropy, part.m, "head_forward entropy");
        }
        memory_fini(&f.memory);
    }
}
END_TEST

/* Decode (sampled, greedy, forced; any batch) against head_forward of the ids that came out. */
static void decode_matches_forward(const struct kernel_table *table, struct head_fixture *f,
                                   const int32_t *forced)
{
    f->decode.forced = forced;
    table->head_decode(&f->decode, NULL);
    int32_t ids[ROWS_MAX];
    memcpy(ids, f->decode.ids, sizeof ids);
    f->head.targets = ids;
    table->head_forward(&f->head, NULL);
    assert_same_bits(f->head.logprob, f->decode.logprob, ROWS_MAX, "head_decode logprob");
    for (int i = 0; i < BATCH_COUNT; i++) {
        struct kernel_decode_args part = f->decode;
        int64_t first = ROWS_MAX - batch_sizes[i];
        part.m = batch_sizes[i];
        part.x += first * part.c;
        part.keys += first;
        part.counters += first;
        part.forced = forced != NULL ? forced + first : NULL;
        /* all logits at once or a chunk at a time */
        if (i % 2 == 0 && !kernel_sampling_truncates(part.sampling)) {
            part.columns = KERNEL_HEAD_CHUNK;
        }
        table->head_decode(&part, NULL);
        ck_assert_mem_eq(ids + first, part.ids, (size_t)part.m * sizeof *ids);
        assert_same_bits(f->head.logprob + first, part.logprob, part.m, "head_decode batch");
    }
}

START_TEST(decode_logprob_is_what_training_computes)
{
    const struct kernel_table *table = NULL;
    const float temperatures[] = {0.0f, 1.0f, 0.7f};
    static struct head_fixture f;
    for (int index = 0; support_table(index, &table); index++) {
        for (int t = 0; t < 3; t++) {
            head_fixture_init(&f, head_vocabularies[_i], temperatures[t]);
            decode_matches_forward(table, &f, NULL);
            decode_matches_forward(table, &f, f.targets);
            f.sampling.top_k = 5;
            f.sampling.top_p = 0.9f;
            f.sampling.min_p = 0.01f;
            decode_matches_forward(table, &f, NULL);
            memory_fini(&f.memory);
        }
    }
}
END_TEST

struct attention_shape {
    int64_t heads, kv_heads, d, window;
};

static const struct attention_shape attention_shapes[] = {
#if SUPPORT_EMULATED /* a GPU's threads one by one are slow: one of each kind */
    {7, 1, 64, 0},
    {10, 2, 80, 70},
    {3, 1, 7, 1},
    {8, 8, 8, 100},
#else
    {4, 2, 32, 0},  {6, 2, 32, 40}, {3, 1, 20, 0},  {1, 1, 128, 0}, {20, 1, 80, 70},
    {2, 2, 16, 16}, {5, 1, 7, 1},   {14, 2, 64, 0}, {8, 8, 8, 100},
#endif
};
enum { ATTENTION_SHAPES = sizeof attention_shapes / sizeof attention_shapes[0] };

#if SUPPORT_EMULATED
enum { SEQUENCES = 3, LENGTH_MAX = 140 };
#else
enum { SEQUENCES = 3, LENGTH_MAX = 200 };
#endif
static const int64_t sequence_lengths[SEQUENCES] = {1, 61, LENGTH_MAX};

/* The same three sequences, cut into calls in different ways. */
struct attention_fixture {
    struct memory memory;
    const struct kernel_table *table;
    struct attention_shape shape;
    int32_t tables[SEQUENCES][LENGTH_MAX / KERNEL_PAGE_TOKENS + 1];
    float *q[SEQUENCES], *k[SEQUENCES], *v[SEQUENCES]; /* [length, heads, D] */
    float *out[SEQUENCES], *lse[SEQUENCES];
    float *k_pages, *v_pages; /* of dtype, with room for fp32 */
    enum kernel_dtype dtype;
    int64_t page_floats, pages;
};

static void attention_fixture_init(struct attention_fixture *f, const struct kernel_table *table,
                                   const struct attention_shape *shape, enum kernel_dtype dtype)
{
    f->dtype = dtype;
    memory_init(&f->memory, 15, FLAVOUR_PLAIN);
    f->table = table;
    f->shape = *shape;
    f->page_floats = shape->kv_heads * shape->d * KERNEL_PAGE_TOKENS;
    f->pages = 1;
    for (int s = 0; s < SEQUENCES; s++) {
        int64_t length = sequence_lengths[s];
        for (int64_t p = 0; p * KERNEL_PAGE_TOKENS < length; p++) {
            f->tables[s][p] = (int32_t)f->pages++;
        }
        f->q[s] = memory_floats(&f->memory, length * shape->heads * shape->d, 1.5);
        f->k[s] = memory_floats(&f->memory, length * shape->kv_heads * shape->d, 1.5);
        f->v[s] = memory_floats(&f->memory, length * shape->kv_heads * shape->d, 1.0);
        f->out[s] = memory_output(&f->memory, length * shape->heads * shape->d, 1.0);
        f->lse[s] = memory_output(&f->memory, length * shape->heads, 1.0);
    }
    f->k_pages = memory_output(&f->memory, f->pages * f->page_floats, 1.0);
    f->v_pages = memory_output(&f->memory, f->pages * f->page_floats, 1.0);
}

static void attention_poison(struct attention_fixture *f)
{
    for (int64_t i = 0; i < f->pages * f->page_floats; i++) {
        f->k_pages[i] = NAN; /* as two numbers of bf16: NaN and 0 */
        f->v_pages[i] = i % 2 == 0 ? NAN : INFINITY;
    }
}

/* Tokens from[s] .. to[s]-1 of every sequence in one call. */
static void attention_call(struct attention_fixture *f, const int64_t *from, const int64_t *to)
{
    const struct attention_shape *shape = &f->shape;
    struct memory m;
    memory_init(&m, 1, FLAVOUR_PLAIN);
    int32_t start[SEQUENCES + 1] = {0};
    int32_t position[SEQUENCES];
    const int32_t *tables[SEQUENCES];
    for (int s = 0; s < SEQUENCES; s++) {
        start[s + 1] = start[s] + (int32_t)(to[s] - from[s]);
        position[s] = (int32_t)from[s];
        tables[s] = f->tables[s];
    }
    struct kernel_segments segments = {SEQUENCES, start, position, tables, NULL};
    int64_t width = shape->heads * shape->d;
    int64_t kv_width = shape->kv_heads * shape->d;
    float *q = memory_floats(&m, start[SEQUENCES] * width, 1.0);
    float *k = memory_floats(&m, start[SEQUENCES] * kv_width, 1.0);
    float *v = memory_floats(&m, start[SEQUENCES] * kv_width, 1.0);
    float *out = memory_output(&m, start[SEQUENCES] * width, 1.0);
    float *lse = memory_output(&m, start[SEQUENCES] * shape->heads, 1.0);
    for (int s = 0; s < SEQUENCES; s++) {
        size_t count = (size_t)(to[s] - from[s]) * sizeof(float);
        memcpy(q + start[s] * width, f->q[s] + from[s] * width, count * (size_t)width);
        memcpy(k + start[s] * kv_width, f->k[s] + from[s] * kv_width, count * (size_t)kv_width);
        memcpy(v + start[s] * kv_width, f->v[s] + from[s] * kv_width, count * (size_t)kv_width);
    }
    struct kernel_kv_args kv = {.segments = &segments,
                                .k = k,
                                .v = v,
                                .k_pages = f->k_pages,
                                .v_pages = f->v_pages,
                                .dtype = f->dtype,
                                .kv_heads = shape->kv_heads,
                                .d = shape->d};
    f->table->kv_write(&kv, NULL);
    struct kernel_attention_args a = {.segments = &segments,
                                      .q = q,
                                      .k_pages = f->k_pages,
                                      .v_pages = f->v_pages,
                                      .dtype = f->dtype,
                                      .out = out,
                                      .lse = lse,
                                      .heads = shape->heads,
                                      .kv_heads = shape->kv_heads,
                                      .d = shape->d,
                                      .window = shape->window,
                                      .scale = (float)(1.0 / sqrt((double)shape->d))};
    f->table->attention_forward(&a, NULL);
    for (int s = 0; s < SEQUENCES; s++) {
        size_t count = (size_t)(to[s] - from[s]) * sizeof(float);
        memcpy(f->out[s] + from[s] * width, out + start[s] * width, count * (size_t)width);
        memcpy(f->lse[s] + from[s] * shape->heads, lse + start[s] * shape->heads,
               count * (size_t)shape->heads);
    }
    ck_assert(memory_guards_hold(&m));
    memory_fini(&m);
}

/* Feed all sequences in steps of `step` tokens (0: all at once). */
static void attention_feed(struct attention_fixture *f, int64_t step)
{
    attention_poison(f);
    int64_t from[SEQUENCES] = {0};
    int64_t to[SEQUENCES];
    for (int64_t done = 0; done < LENGTH_MAX; done += step) {
        step = step == 0 ? LENGTH_MAX : step;
        for (int s = 0; s < SEQUENCES; s++) {
            int64_t end = done + step < sequence_lengths[s] ? done + step : sequence_lengths[s];
            to[s] = end > from[s] ? end : from[s];
        }
        attention_call(f, from, to);
        memcpy(from, to, sizeof from);
    }
}

START_TEST(attention_is_the_same_in_decode_prefill_and_training)
{
    const struct kernel_table *table = NULL;
    static struct attention_fixture training;
    static struct attention_fixture other;
#if SUPPORT_EMULATED
    const int64_t steps[] = {1, 50};
#else
    const int64_t steps[] = {1, 7, 16, 50};
#endif
    for (int index = 0; support_table(index, &table); index++) {
        const struct attention_shape *shape = &attention_shapes[_i % ATTENTION_SHAPES];
        const enum kernel_dtype dtype = _i < ATTENTION_SHAPES ? KERNEL_FP32 : KERNEL_BF16;
        attention_fixture_init(&training, table, shape, dtype);
        attention_fixture_init(&other, table, shape, dtype);
        attention_feed(&training, 0);
        for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++) {
            attention_feed(&other, steps[i]);
            for (int s = 0; s < SEQUENCES; s++) {
                int64_t rows = sequence_lengths[s] * training.shape.heads;
                assert_same_bits(training.out[s], other.out[s], rows * training.shape.d,
                                 "attention out");
                assert_same_bits(training.lse[s], other.lse[s], rows, "attention lse");
            }
        }
        int64_t bad = 0;
        for (int64_t i = 0; i < sequence_lengths[1] * training.shape.heads * training.shape.d;
             i++) {
            bad += !isfinite(training.out[1][i]);
        }
        ck_assert_int_eq(bad, 0);
        memory_fini(&training.memory);
        memory_fini(&other.memory);
    }
}
END_TEST

/* Two groups of samples: PREFIX pages of each group's first tokens are held once, the rest by each
 * sample. */
#if SUPPORT_EMULATED
enum { GROUPS = 2, SAMPLES = 3, PREFIX = 9, OWN = 4, LONGEST = 3 };
#else
enum { GROUPS = 2, SAMPLES = 9, PREFIX = 9, OWN = 4, LONGEST = 3 };
#endif
enum { SHARERS = GROUPS * SAMPLES, PAGES_EACH = PREFIX + OWN };

struct sharing {
    struct memory memory;
    struct kernel_attention_args a;
    struct kernel_segments segments;
    int32_t start[SHARERS + 1], position[SHARERS];
    int32_t tables[SHARERS][PAGES_EACH];
    const int32_t *table[SHARERS];
    int64_t page_bytes;
    char *pages[2];
};

static void sharing_init(struct sharing *f, const struct attention_shape *shape,
                         enum kernel_dtype dtype)
{
    struct memory *m = &f->memory;
    memory_init(m, 16, FLAVOUR_PLAIN);
    f->segments = (struct kernel_segments){SHARERS, f->start, f->position, f->table, NULL};
    f->a = (struct kernel_attention_args){.segments = &f->segments,
                                          .dtype = dtype,
                                          .heads = shape->heads,
                                          .kv_heads = shape->kv_heads,
                                          .d = shape->d,
                                          .window = shape->window,
                                          .scale = 0.3f};
    for (int32_t s = 0; s < SHARERS; s++) {
        f->start[s + 1] = f->start[s] + (int32_t)memory_pick(m, 1, LONGEST);
        f->position[s] = (int32_t)memory_pick(m, PREFIX * KERNEL_PAGE_TOKENS,
                                              PAGES_EACH * KERNEL_PAGE_TOKENS - LONGEST);
        f->table[s] = f->tables[s];
        for (int32_t p = 0; p < PAGES_EACH; p++) {
            f->tables[s][p] = (p < PREFIX ? s / SAMPLES * SAMPLES : s) * PAGES_EACH + p;
        }
    }
    const int64_t floats = SHARERS * PAGES_EACH * shape->kv_heads * shape->d * KERNEL_PAGE_TOKENS;
    f->page_bytes = floats / SHARERS / PAGES_EACH * (dtype == KERNEL_BF16 ? 2 : 4);
    for (int i = 0; i < 2; i++) {
        float *values = memory_floats(m, floats, 1.5);
        f->pages[i] = (char *)values;
        for (int64_t e = 0; dtype == KERNEL_BF16 && e < floats; e++) {
            ((uint16_t *)values)[e] = kernel_bf16_from_float(values[e]);
        }
    }
    const int64_t rows = f->start[SHARERS] * shape->heads;
    f->a.q = memory_floats(m, rows * shape->d, 1.5);
    f->a.k_pages = f->pages[0];
    f->a.v_pages = f->pages[1];
    f->a.out = memory_output(m, rows * shape->d, 1.0);
    f->a.lse = memory_output(m, rows, 1.0);
}

/* Give every sample a copy of its group's prefix. */
static void sharing_end(struct sharing *f)
{
    for (int32_t s = 0; s < SHARERS; s++) {
        for (int32_t p = 0; p < PREFIX; p++) {
            const int64_t from = f->tables[s][p] * f->page_bytes;
            const int64_t to = (s * PAGES_EACH + p) * f->page_bytes;
            f->tables[s][p] = s * PAGES_EACH + p;
            for (int i = 0; i < 2 && from != to; i++) {
                memcpy(f->pages[i] + to, f->pages[i] + from, (size_t)f->page_bytes);
            }
        }
    }
}

START_TEST(attention_is_the_same_with_a_shared_prefix)
{
    const struct kernel_table *table = NULL;
    const struct attention_shape *shape = &attention_shapes[_i % ATTENTION_SHAPES];
    static struct sharing f;
    for (int index = 0; support_table(index, &table); index++) {
        sharing_init(&f, shape, _i < ATTENTION_SHAPES ? KERNEL_FP32 : KERNEL_BF16);
        const int64_t rows = f.start[SHARERS] * shape->heads;
        float *lse = memory_floats(&f.memory, rows, 1.0);
        float *out = memory_floats(&f.memory, rows * shape->d, 1.0);
        for (int32_t s = 0; s < SHARERS; s++) { /* each one alone */
            struct kernel_attention_args one = f.a;
            const int32_t start[2] = {0, f.start[s + 1] - f.start[s]};
            struct kernel_segments segment = {1, start, f.position + s, f.table + s, NULL};
            const int64_t row = f.start[s] * shape->heads;
            one.segments = &segment;
            one.q += row * shape->d;
            one.out = out + row * shape->d;
            one.lse = lse + row;
            table->attention_forward(&one, NULL);
        }
        for (int copies = 0; copies < 2; copies++) {
            table->attention_forward(&f.a, NULL);
            assert_same_bits(out, f.a.out, rows * shape->d, "shared prefix: out");
            assert_same_bits(lse, f.a.lse, rows, "shared prefix: lse");
            sharing_end(&f);
        }
        ck_assert(memory_guards_hold(&f.memory));
        memory_fini(&f.memory);
    }
}
END_TEST

static Suite *same_bits_suite(void)
{
    Suite *suite = suite_create("check_same_bits");
    TCase *all = tcase_create("same bits");
    tcase_set_timeout(all, 300);
    tcase_add_loop_test(all, linear_row_is_the_same_in_any_batch, 0, LINEAR_SHAPES);
    tcase_add_loop_test(all, linear_set_is_the_same_as_its_maps, 0, 2);
#if SUPPORT_EMULATED
    tcase_add_test(all, few_rows_have_an_algorithm_of_their_own);
#endif
    tcase_add_loop_test(all, norm_row_is_the_same_in_any_batch, 0, 6);
    tcase_add_loop_test(all, pointwise_element_is_the_same_anywhere, 0, 2);
    tcase_add_loop_test(all, head_row_is_the_same_in_any_batch, FIRST_VOCABULARY,
                        HEAD_VOCABULARIES);
    tcase_add_loop_test(all, decode_logprob_is_what_training_computes, FIRST_VOCABULARY,
                        HEAD_VOCABULARIES);
    suite_add_tcase(suite, all);
    TCase *attention = tcase_create("attention");
    tcase_set_timeout(attention, 300);
    tcase_add_loop_test(attention, attention_is_the_same_in_decode_prefill_and_training, 0,
                        2 * ATTENTION_SHAPES);
    tcase_add_loop_test(attention, attention_is_the_same_with_a_shared_prefix, 0,
                        2 * ATTENTION_SHAPES);
    suite_add_tcase(suite, attention);
    return suite;
}

int main(void)
{
    SRunner *runner = srunner_create(same_bits_suite());
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
