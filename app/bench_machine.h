/* What the benchmarks of whole models share: the options of the machine, what it can do at best at
 * that moment, memory, medians. */
#ifndef FORESIGHT_APP_BENCH_MACHINE_H
#define FORESIGHT_APP_BENCH_MACHINE_H

#include "core/pool.h"
#include "kernels/device.h"
#include "kernels/kernels.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

enum { BENCH_LIST_MAX = 16, BENCH_RUNS_MAX = 99 };

/* A comma-separated list of whole numbers. */
struct bench_list {
    int64_t values[BENCH_LIST_MAX];
    int count;
};

struct bench_machine {
    const struct kernel_table *table;
    struct rl_pool *pool;
    int threads;
    bool json;
    struct device *device;         /* a GPU, or NULL: the CPU */
    size_t device_used;            /* bytes of its memory in use when it was opened */
    struct bench_profile *profile; /* times of each op, or NULL (bench_profile.h) */
};

/* Best rates at that moment: of all threads together, or of the GPU. */
struct bench_limits {
    double fma_gflops;    /* GPU: of a large product in bf16; 0: not known for these kernels */
    double read_gb_per_s; /* of as many bytes, from where they lie after a first pass;
                             GPU: read and written by a large copy */
};

/* Take --isa, --threads (default: every core that may be used) and --json out of argv and start the
 * threads. Release with bench_machine_close (also after an error).
 * Errors: RL_INVALID (unknown instruction set, more threads than cores), those of rl_pool_create.
 */
rl_status bench_machine_open(int *argc, char **argv, struct bench_machine *machine);
void bench_machine_close(struct bench_machine *machine);

/* Measure, every thread at once: `data` [bytes] is divided among them. About 20 ms, more for large
 * data. On a GPU `data` plays no part. Errors: RL_INTERNAL, those of the device. */
rl_status bench_limits_measure(const struct bench_machine *machine, const void *data, size_t bytes,
                               struct bench_limits *out);

/* The larger of both, field by field: a disturbed measurement is too low, never too high. */
struct bench_limits bench_limits_max(const struct bench_limits *a, const struct bench_limits *b);

/* Errors: RL_NO_MEMORY if the machine, or its GPU, cannot give `bytes` more, said for `what`. */
rl_status bench_memory_check(const struct bench_machine *machine, double bytes, const char *what);

/* Forget the peak of resident memory so far (where the system allows it); the peak since, bytes. Of
 * a GPU: what is in use now and was not when it was opened. */
void bench_memory_reset_peak(void);
double bench_memory_peak(const struct bench_machine *machine);

/* "of FMA peak" and "of read bandwidth", or what stands for them on a GPU. */
const char *bench_peak_name(const struct bench_machine *machine);
const char *bench_read_name(const struct bench_machine *machine);

/* Model name of what computes; borrowed. */
const char *bench_machine_name(const struct bench_machine *machine);

/* Sorts values [count >= 1]; the mean of the middle two of an even number. */
double bench_median(double *values, size_t count);

/* Take --isa out of argv; the best that the machine has if it is absent. Errors: RL_INVALID. */
rl_status bench_take_isa(int *argc, char **argv, const struct kernel_table **out);

/* Take `flag` VALUE out of argv; unchanged if it is absent. Errors: RL_INVALID, naming the range.
 */
rl_status bench_take_count(int *argc, char **argv, const char *flag, int64_t max, int64_t *value);
rl_status bench_take_list(int *argc, char **argv, const char *flag, int64_t max,
                          struct bench_list *list);

/* After all options were taken: is anything left? Errors: RL_INVALID, naming it. */
rl_status bench_take_end(int argc, char **argv);

/* Errors: RL_INVALID if a batch is no multiple of `group` samples of one prompt. */
rl_status bench_check_groups(const struct bench_list *batches, int64_t group);

/* Add {cpu, device, isa, threads} of the machine to `lines` (taken) under the benchmark's name and
 * print them as one line of JSON. Errors: RL_IO, RL_NO_MEMORY. */
rl_status bench_json_print(const struct bench_machine *machine, const char *bench, json_t *lines);

#endif
