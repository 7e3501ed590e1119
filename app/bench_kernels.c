/* `foresight bench kernels`: how fast the kernels are on this machine, beside what the machine can
 * do at best at that very moment (fused multiply-adds on registers, reads of as many bytes).
 * Medians of single calls: other load on a shared machine makes means useless. */
#include "app/app.h"
#include "app/bench.h"
#include "app/bench_machine.h"

#include "core/log.h"
#include "kernels/bf16.h"
#include "kernels/device.h"
#include "kernels/probe.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { BENCH_CALLS_MIN = 5, BENCH_CALLS_MAX = 300, BENCH_ARENA_BYTES = 192 * 1024 * 1024 };
enum { BENCH_THREADS_MAX = 256, BENCH_PAGES_MAX = 8192, BENCH_SEGMENTS_MAX = 512 };

#define BENCH_SECONDS 0.05 /* of calls for one line */

/* What is timed: sizes mean M, N, K for linear ops; M, V, C for the head; M, C for norms;
 * sequences, keys before and new tokens of each for attention. */
struct bench_shape {
    const char *op;
    int64_t m, n, k;
    enum kernel_dtype dtype;
};

#define BENCH_LINEAR(n, k)                                                                         \
    {"linear_forward", 1, n, k, KERNEL_FP32}, {"linear_forward", 1, n, k, KERNEL_BF16},            \
        {"linear_forward", 8, n, k, KERNEL_FP32}, {"linear_forward", 32, n, k, KERNEL_FP32},       \
        {"linear_forward", 64, n, k, KERNEL_FP32}, {"linear_forward", 256, n, k, KERNEL_FP32},     \
    {                                                                                              \
        "linear_forward", 256, n, k, KERNEL_BF16                                                   \
    }

static const struct bench_shape bench_shapes[] = {
    BENCH_LINEAR(512, 128),
    BENCH_LINEAR(2048, 512),
    BENCH_LINEAR(4864, 896),
    BENCH_LINEAR(896, 4864),
    {"linear_backward_input", 4096, 512, 128, KERNEL_FP32},
    {"linear_backward_input", 512, 2048, 512, KERNEL_FP32},
    {"linear_backward_weight", 4096, 512, 128, KERNEL_FP32},
    {"linear_backward_weight", 512, 2048, 512, KERNEL_FP32},
    {"head_forward", 4096, 32, 128, KERNEL_FP32},
    {"head_forward", 128, 32000, 128, KERNEL_FP32},
    {"head_backward", 4096, 32, 128, KERNEL_FP32},
    {"head_backward", 1024, 8192, 512, KERNEL_FP32},
    {"head_decode", 64, 32, 128, KERNEL_FP32},
    {"head_decode", 8, 32000, 768, KERNEL_BF16},
    {"head_decode", 64, 32000, 768, KERNEL_BF16},
    {"rmsnorm_forward", 4096, 0, 128, KERNEL_FP32},
    {"rmsnorm_backward", 4096, 0, 128, KERNEL_FP32},
};
enum { BENCH_SHAPES = sizeof bench_shapes / sizeof bench_shapes[0] };

/* Attention: of `shared` keys, if any, 8 sequences that follow one another hold the same pages. */
struct bench_heads {
    struct bench_shape shape;
    int64_t heads, kv_heads, d, shared;
};
enum { BENCH_GROUP = 8 };

static const struct bench_heads bench_attentions[] = {
    {{"attention_forward", 64, 40, 1, KERNEL_FP32}, 4, 2, 32, 0},
    {{"attention_forward", 64, 192, 1, KERNEL_FP32}, 4, 2, 32, 0},
    {{"attention_forward", 64, 192, 1, KERNEL_BF16}, 4, 2, 32, 0},
    {{"attention_forward", 8, 192, 1, KERNEL_FP32}, 6, 2, 64, 0},
    {{"attention_forward", 64, 192, 1, KERNEL_FP32}, 6, 2, 64, 0},
    {{"attention_forward", 64, 192, 1, KERNEL_FP32}, 6, 2, 64, 128},
    {{"attention_forward", 8, 1024, 1, KERNEL_FP32}, 14, 2, 64, 0},
    {{"attention_forward", 8, 1024, 1, KERNEL_BF16}, 14, 2, 64, 0},
    {{"attention_forward", 8, 1024, 1, KERNEL_BF16}, 14, 2, 64, 512},
    {{"attention_forward", 16, 0, 256, KERNEL_FP32}, 6, 2, 64, 0},
    {{"attention_forward", 4, 0, 1024, KERNEL_FP32}, 12, 4, 64, 0},
    {{"attention_backward", 16, 0, 256, KERNEL_FP32}, 6, 2, 64, 0},
    {{"attention_backward", 4, 0, 1024, KERNEL_FP32}, 12, 4, 64, 0},
};
enum { BENCH_ATTENTIONS = sizeof bench_attentions / sizeof bench_attentions[0] };

struct bench {
    const struct kernel_table *table;
    struct rl_pool *pool;
    int threads;
    bool json;
    char *arena; /* inputs and outputs of one line; made anew for each */
    size_t used;
    json_t *lines;
    /* of attention */
    int32_t start[BENCH_SEGMENTS_MAX + 1], position[BENCH_SEGMENTS_MAX], pages[BENCH_PAGES_MAX];
    const int32_t *tables[BENCH_SEGMENTS_MAX];
    struct kernel_segments segments;
};

/* One prepared call and what it moves. */
struct bench_call {
    void (*run)(const struct bench *bench, const void *args);
    const void *args;
    double flops, bytes;
    char note[48]; /* what the sizes do not say */
};

/* --- memory and time --- */

/* Floats from the arena, filled with small numbers of both signs. */
static float *bench_floats(struct bench *b, int64_t count)
{
    float *data = (float *)(void *)(b->arena + b->used);
    b->used += ((size_t)count * sizeof *data + 63) / 64 * 64;
    if (b->used > BENCH_ARENA_BYTES) {
        abort(); /* a shape in the table above is too large for the arena */
    }
    for (int64_t i = 0; i < count; i++) {
        data[i] = (float)((i * 7919) % 2001 - 1000) * 1e-3f;
    }
    return data;
}

static int32_t *bench_ids(struct bench *b, int64_t count, int64_t below)
{
    int32_t *ids = (int32_t *)(void *)bench_floats(b, count);
    for (int64_t i = 0; i < count; i++) {
        ids[i] = (int32_t)(i * 31 % below);
    }
    return ids;
}

static const void *bench_weights(struct bench *b, int64_t n, int64_t k, enum kernel_dtype dtype)
{
    float *w = bench_floats(b, n * k);
    for (int64_t i = 0; i < n * k; i++) {
        w[i] *= 0.1f;
    }
    size_t floats = kernel_packed_bytes(n, k, dtype) / sizeof(float);
    struct kernel_linear_pack_args pack = {
        .w = w, .packed = bench_floats(b, (int64_t)floats), .dtype = dtype, .n = n, .k = k};
    b->table->linear_pack(&pack, b->pool);
    return pack.packed;
}

static double bench_now(const struct bench *b)
{
    struct timespec now;
    clock_gettime(b->threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static double bench_time(const struct bench *b, const struct bench_call *call)
{
    double seconds[BENCH_CALLS_MAX];
    int count = 0;
    call->run(b, call->args); /* warm caches and pages */
    double begin = bench_now(b);
    double last = begin;
    while (count < BENCH_CALLS_MAX && (count < BENCH_CALLS_MIN || last - begin < BENCH_SECONDS)) {
        call->run(b, call->args);
        double now = bench_now(b);
        seconds[count++] = now - last;
        last = now;
    }
    return bench_median(seconds, (size_t)count);
}

/* --- the calls --- */

static void run_linear_forward(const struct bench *b, const void *args)
{
    b->table->linear_forward(args, b->pool);
}

static void run_linear_backward_input(const struct bench *b, const void *args)
{
    b->table->linear_backward_input(args, b->pool);
}

static void run_linear_backward_weight(const struct bench *b, const void *args)
{
    b->table->linear_backward_weight(args, b->pool);
}

static void run_attention_forward(const struct bench *b, const void *args)
{
    b->table->attention_forward(args, b->pool);
}

static void run_attention_backward(const struct bench *b, const void *args)
{
    b->table->attention_backward(args, b->pool);
}

static void run_head_forward(const struct bench *b, const void *args)
{
    b->table->head_forward(args, b->pool);
}

static void run_head_backward(const struct bench *b, const void *args)
{
    b->table->head_backward(args, b->pool);
}

static void run_head_decode(const struct bench *b, const void *args)
{
    b->table->head_decode(args, b->pool);
}

static void run_rmsnorm_forward(const struct bench *b, const void *args)
{
    b->table->rmsnorm_forward(args, b->pool);
}

static void run_rmsnorm_backward(const struct bench *b, const void *args)
{
    b->table->rmsnorm_backward(args, b->pool);
}

static void bench_linear(struct bench *b, const struct bench_shape *s, struct bench_call *call)
{
    struct kernel_linear_args *a = (void *)bench_floats(b, (int64_t)sizeof *a);
    *a = (struct kernel_linear_args){
        .m = s->m, .n = s->n, .k = s->k, .x_stride = s->k, .y_stride = s->n, .dtype = s->dtype};
    a->x = bench_floats(b, s->m * s->k);
    a->y = bench_floats(b, s->m * s->n);
    double w_bytes = (double)kernel_packed_bytes(s->n, s->k, s->dtype);
    if (strcmp(s->op, "linear_backward_weight") == 0) {
        a->dw = bench_floats(b, s->n * s->k);
        call->run = run_linear_backward_weight;
    } else {
        a->w = bench_weights(b, s->n, s->k, s->dtype);
        bool forward = strcmp(s->op, "linear_forward") == 0;
        call->run = forward ? run_linear_forward : run_linear_backward_input;
    }
    call->args = a;
    call->flops = 2.0 * (double)s->m * (double)s->n * (double)s->k;
    call->bytes = w_bytes + 4.0 * (double)(s->m * (s->n + s->k));
}

/* Sequences and their pages; returns the number of different pages that are read. */
static int64_t bench_sequences(struct bench *b, const struct bench_heads *h)
{
    const struct bench_shape *s = &h->shape;
    const int64_t pages = (s->n + s->k + KERNEL_PAGE_TOKENS - 1) / KERNEL_PAGE_TOKENS;
    const int64_t shared = h->shared / KERNEL_PAGE_TOKENS;
    int64_t read = 0;
    for (int64_t i = 0; i < s->m; i++) {
        b->start[i] = (int32_t)(i * s->k);
        b->position[i] = (int32_t)s->n;
        b->tables[i] = b->pages + i * pages;
        for (int64_t page = 0; page < pages; page++) {
            const int64_t owner = page < shared ? i / BENCH_GROUP * BENCH_GROUP : i;
            b->pages[i * pages + page] = (int32_t)(owner * pages + page);
            read += owner == i;
        }
    }
    b->start[s->m] = (int32_t)(s->m * s->k);
    b->segments = (struct kernel_segments){s->m, b->start, b->position, b->tables, NULL};
    return read;
}

/* Numbers of dtype, with room for fp32. */
static void *bench_page_data(struct bench *b, int64_t count, enum kernel_dtype dtype)
{
    float *data = bench_floats(b, count);
    for (int64_t i = 0; dtype == KERNEL_BF16 && i < count; i++) {
        const uint16_t number = kernel_bf16_from_float(data[i]);
        memcpy((char *)data + i * (int64_t)sizeof number, &number, sizeof number);
    }
    return data;
}

static void bench_attention(struct bench *b, const struct bench_heads *h, struct bench_call *call)
{
    const struct bench_shape *s = &h->shape;
    const int64_t heads = h->heads;
    const int64_t kv_heads = h->kv_heads;
    const int64_t d = h->d;
    const int64_t pages = (s->n + s->k + KERNEL_PAGE_TOKENS - 1) / KERNEL_PAGE_TOKENS;
    const int64_t page_floats = kv_heads * d * KERNEL_PAGE_TOKENS;
    const int64_t read = bench_sequences(b, h);
    struct kernel_attention_args *a = (void *)bench_floats(b, (int64_t)sizeof *a);
    const int64_t tokens = s->m * s->k;
    *a = (struct kernel_attention_args){.segments = &b->segments,
                                        .dtype = s->dtype,
                                        .heads = heads,
                                        .kv_heads = kv_heads,
                                        .d = d,
                                        .scale = 1.0f / sqrtf((float)d)};
    a->q = bench_floats(b, tokens * heads * d);
    a->k_pages = bench_page_data(b, s->m * pages * page_floats, s->dtype);
    a->v_pages = bench_page_data(b, s->m * pages * page_floats, s->dtype);
    a->out = bench_floats(b, tokens * heads * d);
    a->lse = bench_floats(b, tokens * heads);
    a->dout = bench_floats(b, tokens * heads * d);
    a->dq = bench_floats(b, tokens * heads * d);
    a->dk = bench_floats(b, tokens * kv_heads * d);
    a->dv = bench_floats(b, tokens * kv_heads * d);
    bool forward = strcmp(s->op, "attention_forward") == 0;
    double pairs = (double)tokens * ((double)s->n + 0.5 * (double)(s->k + 1));
    b->table->attention_forward(a, b->pool);
    call->run = forward ? run_attention_forward : run_attention_backward;
    call->args = a;
    call->flops = pairs * (double)(heads * d) * (forward ? 4.0 : 10.0);
    call->bytes = (s->dtype == KERNEL_BF16 ? 2.0 : 4.0) * (double)(read * page_floats * 2) +
                  4.0 * (double)(tokens * heads * d * (forward ? 2 : 4));
    snprintf(call->note, sizeof call->note, " %lld/%lld x %lld%s", (long long)heads,
             (long long)kv_heads, (long long)d, h->shared > 0 ? ", shared" : "");
}

static void bench_head(struct bench *b, const struct bench_shape *s, struct bench_call *call)
{
    struct kernel_head_args *a = (void *)bench_floats(b, (int64_t)sizeof *a);
    *a = (struct kernel_head_args){
        .m = s->m, .v = s->n, .c = s->k, .dtype = s->dtype, .inv_temperature = 1.0f};
    a->w = bench_weights(b, s->n, s->k, s->dtype);
    a->x = bench_floats(b, s->m * s->k);
    a->targets = bench_ids(b, s->m, s->n);
    a->logprob = bench_floats(b, s->m);
    a->entropy = bench_floats(b, s->m);
    a->lse = bench_floats(b, s->m);
    a->scratch = bench_floats(b, s->m * KERNEL_HEAD_CHUNK);
    a->g_logprob = bench_floats(b, s->m);
    a->dx = bench_floats(b, s->m * s->k);
    a->dw = bench_floats(b, s->n * s->k);
    b->table->head_forward(a, b->pool);
    bool forward = strcmp(s->op, "head_forward") == 0;
    call->run = forward ? run_head_forward : run_head_backward;
    call->args = a;
    call->flops = (forward ? 2.0 : 6.0) * (double)s->m * (double)s->n * (double)s->k;
    call->bytes = (double)kernel_packed_bytes(s->n, s->k, s->dtype) + 4.0 * (double)(s->m * s->k);
}

static void bench_head_decode(struct bench *b, const struct bench_shape *s, struct bench_call *call)
{
    static const struct kernel_sampling sampling = {.temperature = 1.0f, .top_p = 1.0f};
    struct kernel_decode_args *a = (void *)bench_floats(b, (int64_t)sizeof *a);
    *a = (struct kernel_decode_args){
        .sampling = &sampling, .m = s->m, .v = s->n, .c = s->k, .dtype = s->dtype};
    a->w = bench_weights(b, s->n, s->k, s->dtype);
    a->x = bench_floats(b, s->m * s->k);
    a->keys = (void *)bench_ids(b, 2 * s->m, 1000);
    a->counters = (void *)bench_ids(b, 2 * s->m, 1000);
    a->ids = bench_ids(b, s->m, s->n);
    a->logprob = bench_floats(b, s->m);
    a->columns = s->n < KERNEL_HEAD_CHUNK ? s->n : KERNEL_HEAD_CHUNK;
    a->logits = bench_floats(b, s->m * (a->columns + KERNEL_PANEL));
    a->chunks = (void *)bench_floats(b, s->m * (s->n / KERNEL_HEAD_CHUNK + 1) *
                                            (int64_t)(sizeof *a->chunks / sizeof(float)));
    call->run = run_head_decode;
    call->args = a;
    call->flops = 2.0 * (double)s->m * (double)s->n * (double)s->k;
    call->bytes = (double)kernel_packed_bytes(s->n, s->k, s->dtype) + 4.0 * (double)(s->m * s->k);
}

static void bench_norm(struct bench *b, const struct bench_shape *s, struct bench_call *call)
{
    struct kernel_rmsnorm_args *a = (void *)bench_floats(b, (int64_t)sizeof *a);
    *a = (struct kernel_rmsnorm_args){.m = s->m, .c = s->k, .epsilon = 1e-6f};
    a->x = bench_floats(b, s->m * s->k);
    a->weight = bench_floats(b, s->k);
    a->y = bench_floats(b, s->m * s->k);
    a->inv_rms = bench_floats(b, s->m);
    a->dy = bench_floats(b, s->m * s->k);
    a->dx = bench_floats(b, s->m * s->k);
    a->dweight = bench_floats(b, s->k);
    bool forward = strcmp(s->op, "rmsnorm_forward") == 0;
    call->run = forward ? run_rmsnorm_forward : run_rmsnorm_backward;
    call->args = a;
    call->flops = (forward ? 4.0 : 10.0) * (double)(s->m * s->k);
    call->bytes = (forward ? 8.0 : 12.0) * (double)(s->m * s->k);
}

static void bench_prepare(struct bench *b, const struct bench_shape *s, struct bench_call *call)
{
    if (strncmp(s->op, "linear", 6) == 0) {
        bench_linear(b, s, call);
    } else if (strcmp(s->op, "head_decode") == 0) {
        bench_head_decode(b, s, call);
    } else if (strncmp(s->op, "head", 4) == 0) {
        bench_head(b, s, call);
    } else {
        bench_norm(b, s, call);
    }
}

/* --- the lines --- */

static rl_status bench_line(struct bench *b, const struct bench_shape *s,
                            const struct bench_call *prepared)
{
    const struct bench_call call = *prepared;
    double peak = kernel_probe_fma(b->table->isa) * (double)b->threads;
    double read = kernel_probe_read(b->arena, (size_t)fmax(call.bytes, 64.0)) * (double)b->threads;
    double seconds = bench_time(b, &call);
    double rate = call.flops / seconds * 1e-9;
    double moved = call.bytes / seconds * 1e-9;
    const char *dtype = s->dtype == KERNEL_BF16 ? "bf16" : "fp32";
    if (!b->json) {
        printf(
            "%-23s %5lld %6lld %5lld %s %10.1f us %8.1f GFLOP/s %4.0f %% %7.1f GB/s %4.0f %%%s\n",
            s->op, (long long)s->m, (long long)s->n, (long long)s->k, dtype, seconds * 1e6, rate,
            peak > 0.0 ? 100.0 * rate / peak : 0.0, moved, 100.0 * moved / read, call.note);
        fflush(stdout);
    }
    json_t *line =
        json_pack("{s:s, s:I, s:I, s:I, s:s, s:s, s:f, s:f, s:f, s:f, s:f}", "op", s->op, "m",
                  (json_int_t)s->m, "n", (json_int_t)s->n, "k", (json_int_t)s->k, "dtype", dtype,
                  "heads", call.note, "microseconds", seconds * 1e6, "gflops", rate, "peak_gflops",
                  peak, "gbytes_per_second", moved, "read_gbytes_per_second", read);
    if (line == NULL || json_array_append_new(b->lines, line) != 0) {
        return rl_fail(RL_NO_MEMORY, "bench: out of memory for the results");
    }
    return RL_OK;
}

static rl_status bench_all(struct bench *b)
{
    if (!b->json) {
        printf(
            "%s, %s, %d thread(s). Sizes: M N K (linear), M V C (head), M - C (norm), sequences\n"
            "keys tokens and query/kv heads x D (attention). Share of the peak of fused\n"
            "multiply-adds, then of the rate of reading as many bytes, both measured beside the\n"
            "line; medians.\n",
            device_cpu_name(), b->table->name, b->threads);
    }
    for (int i = 0; i < BENCH_SHAPES; i++) {
        struct bench_call call = {.note = ""};
        b->used = 0;
        bench_prepare(b, &bench_shapes[i], &call);
        RL_TRY(bench_line(b, &bench_shapes[i], &call));
    }
    for (int i = 0; i < BENCH_ATTENTIONS; i++) {
        struct bench_call call = {.note = ""};
        b->used = 0;
        bench_attention(b, &bench_attentions[i], &call);
        RL_TRY(bench_line(b, &bench_attentions[i].shape, &call));
    }
    if (b->json) {
        json_t *out = json_pack("{s:s, s:s, s:i, s:O}", "cpu", device_cpu_name(), "isa",
                                b->table->name, "threads", b->threads, "lines", b->lines);
        if (out == NULL || json_dumpf(out, stdout, JSON_COMPACT) != 0) {
            json_decref(out);
            return rl_fail(RL_IO, "bench: cannot write the results");
        }
        putchar('\n');
        json_decref(out);
    }
    return RL_OK;
}

/* --- options --- */

static rl_status bench_options(struct bench *b, int *argc, char **argv)
{
    int64_t threads = 1;
    b->json = app_take_flag(argc, argv, "--json");
    RL_TRY(bench_take_isa(argc, argv, &b->table));
    RL_TRY(bench_take_count(argc, argv, "--threads", BENCH_THREADS_MAX, &threads));
    b->threads = (int)threads;
    return *argc == 1 ? RL_OK
                      : rl_fail(RL_INVALID, "usage: foresight bench kernels "
                                            "[--isa ref|avx2|avx512] [--threads N] [--json]");
}

int bench_kernels(int argc, char **argv)
{
    struct bench bench = {.threads = 1};
    rl_status status = bench_options(&bench, &argc, argv);
    if (status != RL_OK) {
        return APP_USAGE;
    }
    RL_TRY_GOTO(rl_pool_create(bench.threads, &bench.pool), status, out);
    void *arena = NULL;
    RL_TRY_GOTO(device_alloc(BENCH_ARENA_BYTES, "bench", &arena), status, out_pool);
    bench.arena = arena;
    bench.lines = json_array();
    status = bench_all(&bench);
    json_decref(bench.lines);
    device_free(arena);
out_pool:
    rl_pool_destroy(bench.pool);
out:
    return status == RL_OK ? APP_OK : APP_FAILED;
}
