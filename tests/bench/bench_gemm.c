/* The linear kernels beside the libraries that do the same product and are installed: see
 * scripts/bench_gemm. All of a line alternate in one process; medians of single calls; the
 * machine's peak of fused multiply-adds and its rate of reading memory are measured beside each
 * line.
 *
 *   bench_gemm [--threads N] [--isa avx2|avx512] [--only forward|decode|backward] [--seconds S]
 *              [--json]
 *
 * Outputs of all libraries are compared with ours before anything is timed. */
#include "tests/bench/bench_gemm.h"
#include "core/log.h"
#include "kernels/device.h"
#include "kernels/probe.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { ROUNDS_MIN = 5, ROUNDS_MAX = 400, LIBRARIES = 5, COPIES_MAX = 4096 };

/* Weights of a decode line are read from memory: as many copies as make this. */
#define COLD_BYTES ((size_t)128 << 20)
#define READ_BYTES ((size_t)256 << 20)

/* A library, or what to install for it. */
struct entry {
    const struct gemm_library *library;
    const char *name, *package;
};

static const struct entry entries[LIBRARIES] = {
    {&gemm_fp32, "foresight fp32", NULL}, {&gemm_bf16, "foresight bf16", NULL},
#if BENCH_HAVE_LIBXSMM
    {&gemm_libxsmm, "libxsmm", NULL},
#else
    {NULL, "libxsmm", "libxsmm-dev"},
#endif
#if BENCH_HAVE_ONEDNN
    {&gemm_onednn, "oneDNN", NULL},
#else
    {NULL, "oneDNN", "libdnnl-dev (version 2)"},
#endif
#if BENCH_HAVE_OPENBLAS
    {&gemm_openblas, "OpenBLAS", NULL},
#else
    {NULL, "OpenBLAS", "libopenblas-dev"},
#endif
};
enum { ENTRY_OWN = 2 }; /* the first two are ours */

struct shape {
    int64_t k, n;
};

static const struct shape forward_shapes[] = {{128, 512},  {512, 2048}, {1024, 4096},
                                              {896, 4864}, {4864, 896}, {768, 2048}};
static const int64_t forward_rows[] = {256, 1024};
static const struct shape decode_shapes[] = {{512, 2048}, {1024, 4096}, {896, 4864}, {4864, 896}};
static const int64_t decode_rows[] = {1, 2, 3, 4, 6, 8, 16, 32, 64};
static const struct shape backward_shapes[] = {{128, 512}, {512, 128},  {384, 1024},
                                               {768, 768}, {768, 2048}, {2048, 768}};
static const int64_t backward_rows[] = {4096};

struct bench {
    const struct kernel_table *table;
    struct rl_pool *pool;
    const char *only;
    double seconds; /* of calls for one line */
    bool json;
    json_t *lines;
    float *read; /* [READ_BYTES] */
    double read_rate;
};

/* --- time --- */

/* Processor time for one thread, which other load on the machine does not disturb as much. */
static double now_seconds(const struct bench *b)
{
    struct timespec now;
    clock_gettime(rl_pool_threads(b->pool) == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a;
    double y = *(const double *)b;
    return (x > y) - (x < y);
}

struct read_share {
    const float *data;
    size_t bytes;
    double rate[256];
};

static void read_item(void *arg, int index)
{
    struct read_share *share = arg;
    const char *data = (const char *)share->data + (size_t)index * share->bytes;
    share->rate[index] = kernel_probe_read(data, share->bytes);
}

static double read_rate(struct bench *b)
{
    int threads = rl_pool_threads(b->pool);
    struct read_share share = {.data = b->read, .bytes = READ_BYTES / (size_t)threads / 64 * 64};
    rl_pool_run(b->pool, threads, read_item, &share);
    double sum = 0.0;
    for (int i = 0; i < threads; i++) {
        sum += share.rate[i];
    }
    return sum;
}

/* --- one line --- */

struct line {
    struct gemm_problem problem;
    void *state[LIBRARIES];
    double median[LIBRARIES]; /* seconds; 0: not there */
    float *memory;            /* inputs, outputs and what the outputs of ours were */
    size_t memory_floats;
};

/* Numbers in [-0.5, 0.5), the same in each run. */
static void fill(float *data, int64_t count)
{
    uint32_t state = 12345;
    for (int64_t i = 0; i < count; i++) {
        state = state * 1664525U + 1013904223U;
        data[i] = (float)(state >> 8) / 16777216.0f - 0.5f;
    }
}

static float *line_output(const struct gemm_problem *p, int64_t *count)
{
    *count = p->op == GEMM_FORWARD ? p->m * p->n
                                   : (p->op == GEMM_BACKWARD_INPUT ? p->m * p->k : p->n * p->k);
    return p->op == GEMM_FORWARD ? p->y : (p->op == GEMM_BACKWARD_INPUT ? p->x : p->dw);
}

static rl_status line_memory(struct line *line)
{
    struct gemm_problem *p = &line->problem;
    const int64_t sizes[] = {p->n * p->k, p->m * p->k, p->m * p->n, p->n * p->k,
                             p->m * (p->n + p->k) + p->n * p->k};
    float *parts[5];
    int64_t all = 0;
    for (int i = 0; i < 5; i++) {
        all += (sizes[i] + 15) / 16 * 16;
    }
    void *memory = NULL;
    RL_TRY(device_alloc((size_t)all * sizeof(float), "the matrices of a line", &memory));
    line->memory = memory;
    float *next = memory;
    for (int i = 0; i < 5; i++) {
        parts[i] = next;
        next += (sizes[i] + 15) / 16 * 16;
    }
    fill(line->memory, parts[3] - line->memory);
    p->w = parts[0];
    p->x = parts[1];
    p->y = parts[2];
    p->dw = parts[3];
    return RL_OK;
}

/* Largest difference from ours in fp32, relative to its largest value. */
static double line_difference(struct line *line, int which, float *ours)
{
    int64_t count;
    float *output = line_output(&line->problem, &count);
    double largest = 0.0;
    double difference = 0.0;
    memset(output, 0, (size_t)count * sizeof *output);
    entries[which].library->run(line->state[which], 0);
    if (which == 0) {
        memcpy(ours, output, (size_t)count * sizeof *ours);
    }
    for (int64_t i = 0; i < count; i++) {
        largest = fmax(largest, fabs((double)ours[i]));
        difference = fmax(difference, fabs((double)ours[i] - (double)output[i]));
    }
    return difference / largest;
}

static rl_status line_check(struct line *line)
{
    float *ours = line->problem.dw + (line->problem.n * line->problem.k + 15) / 16 * 16;
    for (int i = 0; i < LIBRARIES; i++) {
        if (line->state[i] == NULL) {
            continue;
        }
        double difference = line_difference(line, i, ours);
        double allowed = entries[i].library == &gemm_bf16 ? 1e-2 : 1e-4;
        if (!(difference <= allowed)) {
            return rl_fail(RL_INTERNAL,
                           "bench_gemm: the result of %s differs from ours by %g of its "
                           "largest value, expected at most %g",
                           entries[i].name, difference, allowed);
        }
    }
    return RL_OK;
}

static void line_time(const struct bench *b, struct line *line)
{
    static double seconds[LIBRARIES][ROUNDS_MAX];
    int rounds = 0;
    double spent = 0.0;
    while (rounds < ROUNDS_MAX && (rounds < ROUNDS_MIN || spent < b->seconds)) {
        for (int i = 0; i < LIBRARIES; i++) {
            if (line->state[i] != NULL) {
                double start = now_seconds(b);
                entries[i].library->run(line->state[i], rounds % line->problem.copies);
                seconds[i][rounds] = now_seconds(b) - start;
                spent += seconds[i][rounds];
            }
        }
        rounds++;
    }
    for (int i = 0; i < LIBRARIES; i++) {
        if (line->state[i] != NULL) {
            qsort(seconds[i], (size_t)rounds, sizeof seconds[i][0], compare_doubles);
            line->median[i] = seconds[i][rounds / 2];
        }
    }
}

/* --- what is printed --- */

static const char *const op_names[] = {"forward", "backward_input", "backward_weight"};

/* Fastest of the others, seconds; 0 if there is none. */
static double line_best_peer(const struct line *line)
{
    double best = 0.0;
    for (int i = ENTRY_OWN; i < LIBRARIES; i++) {
        if (line->median[i] > 0.0 && (best == 0.0 || line->median[i] < best)) {
            best = line->median[i];
        }
    }
    return best;
}

static void line_print(const struct bench *b, const struct line *line, double peak)
{
    const struct gemm_problem *p = &line->problem;
    const double flops = 2.0 * (double)p->m * (double)p->n * (double)p->k;
    const double best = line_best_peer(line);
    printf("%-15s %5lld %5lld %5lld %7.1f", op_names[p->op], (long long)p->k, (long long)p->n,
           (long long)p->m, peak);
    for (int i = 0; i < LIBRARIES; i++) {
        if (line->median[i] > 0.0) {
            printf(" %8.1f", flops / line->median[i] * 1e-9);
        } else {
            printf(" %8s", "-");
        }
    }
    for (int i = 0; i < ENTRY_OWN; i++) {
        if (best > 0.0 && line->median[i] > 0.0) {
            printf(" %7.2f", best / line->median[i]);
        } else {
            printf(" %7s", "-");
        }
    }
    for (int i = 0; p->copies > 1 && i < ENTRY_OWN; i++) {
        enum kernel_dtype dtype = i == 0 ? KERNEL_FP32 : KERNEL_BF16;
        double rate = (double)kernel_packed_bytes(p->n, p->k, dtype) / line->median[i] * 1e-9;
        printf(" %4.0f %%", 100.0 * rate / b->read_rate);
    }
    printf("\n");
    fflush(stdout);
}

static rl_status line_record(struct bench *b, const struct line *line, double peak)
{
    const struct gemm_problem *p = &line->problem;
    json_t *seconds = json_object();
    for (int i = 0; i < LIBRARIES; i++) {
        if (line->median[i] > 0.0) {
            json_object_set_new(seconds, entries[i].name, json_real(line->median[i]));
        }
    }
    json_t *record = json_pack("{s:s, s:I, s:I, s:I, s:b, s:f, s:f, s:o}", "op", op_names[p->op],
                               "k", (json_int_t)p->k, "n", (json_int_t)p->n, "m", (json_int_t)p->m,
                               "from_memory", p->copies > 1, "peak_gflops", peak,
                               "read_gbytes_per_second", b->read_rate, "median_seconds", seconds);
    if (record == NULL || json_array_append_new(b->lines, record) != 0) {
        return rl_fail(RL_NO_MEMORY, "bench_gemm: out of memory for the results");
    }
    return RL_OK;
}

static rl_status line_run(struct bench *b, struct line *line)
{
    struct gemm_problem *p = &line->problem;
    RL_TRY(line_memory(line));
    for (int i = 0; i < LIBRARIES; i++) {
        if (entries[i].library != NULL) {
            line->state[i] = entries[i].library->create(p);
        }
    }
    RL_TRY(line_check(line));
    double peak = kernel_probe_fma(b->table->isa) * rl_pool_threads(b->pool);
    line_time(b, line);
    if (b->json) {
        return line_record(b, line, peak);
    }
    line_print(b, line, peak);
    return RL_OK;
}

/* `copies` 0: as many as do not fit in a cache. */
static rl_status bench_line(struct bench *b, enum gemm_op op, const struct shape *shape, int64_t m,
                            int copies)
{
    struct line line = {.problem = {.op = op,
                                    .m = m,
                                    .n = shape->n,
                                    .k = shape->k,
                                    .copies = copies,
                                    .table = b->table,
                                    .pool = b->pool}};
    if (copies == 0) {
        size_t bytes = kernel_packed_bytes(shape->n, shape->k, KERNEL_BF16);
        line.problem.copies = (int)(COLD_BYTES / bytes) + 1;
    }
    rl_status status = line_run(b, &line);
    for (int i = 0; i < LIBRARIES; i++) {
        if (entries[i].library != NULL) {
            entries[i].library->destroy(line.state[i]);
        }
    }
    device_free(line.memory);
    return status;
}

/* --- the benchmark --- */

static bool bench_wants(const struct bench *b, const char *part)
{
    return b->only == NULL || strcmp(b->only, part) == 0;
}

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

static rl_status bench_lines(struct bench *b)
{
    for (size_t s = 0; bench_wants(b, "forward") && s < COUNT(forward_shapes); s++) {
        for (size_t i = 0; i < COUNT(forward_rows); i++) {
            RL_TRY(bench_line(b, GEMM_FORWARD, &forward_shapes[s], forward_rows[i], 1));
        }
    }
    for (size_t s = 0; bench_wants(b, "decode") && s < COUNT(decode_shapes); s++) {
        b->read_rate = read_rate(b);
        for (size_t i = 0; i < COUNT(decode_rows); i++) {
            RL_TRY(bench_line(b, GEMM_FORWARD, &decode_shapes[s], decode_rows[i], 0));
        }
    }
    for (size_t s = 0; bench_wants(b, "backward") && s < COUNT(backward_shapes); s++) {
        for (int op = GEMM_FORWARD; op <= GEMM_BACKWARD_WEIGHT; op++) {
            RL_TRY(bench_line(b, (enum gemm_op)op, &backward_shapes[s], backward_rows[0], 1));
        }
    }
    return RL_OK;
}

static void bench_header(struct bench *b)
{
    printf("%s, %s, %d thread(s), one thread reads %.1f GB/s, all %.1f GB/s\n", device_cpu_name(),
           b->table->name, rl_pool_threads(b->pool), kernel_probe_read(b->read, READ_BYTES),
           b->read_rate);
    for (int i = 0; i < LIBRARIES; i++) {
        if (entries[i].library == NULL) {
            printf("%s is not compared: it was not found at configure time (Debian: %s)\n",
                   entries[i].name, entries[i].package);
        }
    }
    printf("GFLOP/s: peak measured beside, ours with fp32 and bf16 weights, the libraries; ours\n"
           "against the best library (above 1: ours is faster); with weights from memory (M <= "
           "64):\n"
           "their bytes against the rate of reading.\n%-15s %5s %5s %5s %7s %8s %8s %8s %8s %8s "
           "%7s %7s\n",
           "", "K", "N", "M", "peak", "fp32", "bf16", "libxsmm", "oneDNN", "OpenBLAS", "fp32",
           "bf16");
}

static rl_status bench_run(struct bench *b)
{
    void *read = NULL;
    RL_TRY(device_alloc(READ_BYTES, "the probe of memory", &read));
    b->read = read;
    memset(b->read, 1, READ_BYTES);
    b->read_rate = read_rate(b);
    if (!b->json) {
        bench_header(b);
        return bench_lines(b);
    }
    RL_TRY(bench_lines(b));
    json_t *out = json_pack("{s:s, s:s, s:i, s:O}", "cpu", device_cpu_name(), "isa", b->table->name,
                            "threads", rl_pool_threads(b->pool), "lines", b->lines);
    if (out == NULL || json_dumpf(out, stdout, JSON_COMPACT) != 0) {
        json_decref(out);
        return rl_fail(RL_IO, "bench_gemm: cannot write the results");
    }
    putchar('\n');
    json_decref(out);
    return RL_OK;
}

/* --- options --- */

static rl_status option_number(const char *name, const char *text, double low, double high,
                               double *out)
{
    char *end = NULL;
    double value = strtod(text, &end);
    if (end == text || *end != '\0' || !(value >= low && value <= high)) {
        return rl_fail(RL_INVALID, "bench_gemm: %s %s: expected %g to %g", name, text, low, high);
    }
    *out = value;
    return RL_OK;
}

static rl_status option_isa(const char *name, const struct kernel_table **out)
{
    bool avx2 = strcmp(name, "avx2") == 0;
    if (!avx2 && strcmp(name, "avx512") != 0) {
        return rl_fail(RL_INVALID, "bench_gemm: --isa %s: expected avx2 or avx512", name);
    }
    return kernel_table_get(avx2 ? KERNEL_ISA_AVX2 : KERNEL_ISA_AVX512, out);
}

static rl_status bench_options(struct bench *b, int argc, char **argv, int *threads)
{
    RL_TRY(kernel_table_get(kernel_isa_best(), &b->table));
    double number = 1.0;
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        if (strcmp(argv[i], "--json") == 0) {
            b->json = true;
            continue;
        }
        if (strcmp(argv[i], "--threads") == 0) {
            RL_TRY(option_number("--threads", value, 1.0, 256.0, &number));
            *threads = (int)number;
        } else if (strcmp(argv[i], "--seconds") == 0) {
            RL_TRY(option_number("--seconds", value, 0.0, 3600.0, &b->seconds));
        } else if (strcmp(argv[i], "--isa") == 0) {
            RL_TRY(option_isa(value, &b->table));
        } else if (strcmp(argv[i], "--only") == 0 &&
                   (strcmp(value, "forward") == 0 || strcmp(value, "decode") == 0 ||
                    strcmp(value, "backward") == 0)) {
            b->only = value;
        } else {
            return rl_fail(RL_INVALID, "usage: bench_gemm [--threads N] [--isa avx2|avx512] "
                                       "[--only forward|decode|backward] [--seconds S] [--json]");
        }
        i++;
    }
    return RL_OK;
}

int main(int argc, char **argv)
{
    struct bench bench = {.seconds = 1.0, .lines = json_array()};
    int threads = 1;
    rl_status status = bench_options(&bench, argc, argv, &threads);
    if (status != RL_OK) {
        return 2;
    }
    status = rl_pool_create(threads, &bench.pool);
    if (status == RL_OK) {
        status = bench_run(&bench);
    }
    device_free(bench.read);
    rl_pool_destroy(bench.pool);
    json_decref(bench.lines);
    return status == RL_OK ? 0 : 1;
}
