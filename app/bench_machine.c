/* See bench_machine.h. */
#include "app/bench_machine.h"

#include "app/app.h"
#include "app/bench_device.h"
#include "app/bench_profile.h"
#include "app/doctor.h"

#include "core/log.h"
#include "kernels/device.h"
#include "kernels/probe.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BENCH_THREADS_MAX = 256 };

static const double gib = 1024.0 * 1024.0 * 1024.0;

/* --- options ------------------------------------------------------------------------------------
 */

static rl_status read_count(const char *flag, const char *text, int64_t max, int64_t *value)
{
    char *end = NULL;
    errno = 0;
    long long number = strtoll(text, &end, 10);
    if (errno != 0 || end == text || (*end != '\0' && *end != ',') || number < 1 || number > max) {
        return rl_fail(RL_INVALID, "bench: %s %s: expected 1 to %lld", flag, text, (long long)max);
    }
    *value = number;
    return RL_OK;
}

rl_status bench_take_list(int *argc, char **argv, const char *flag, int64_t max,
                          struct bench_list *list)
{
    const char *text = NULL;
    RL_TRY(app_take_value(argc, argv, flag, &text));
    if (text == NULL) {
        return RL_OK;
    }
    for (list->count = 0; text != NULL; list->count++) {
        if (list->count == BENCH_LIST_MAX) {
            return rl_fail(RL_INVALID, "bench: %s: at most %d values", flag, BENCH_LIST_MAX);
        }
        RL_TRY(read_count(flag, text, max, &list->values[list->count]));
        text = strchr(text, ',');
        text = text != NULL ? text + 1 : NULL;
    }
    return RL_OK;
}

rl_status bench_take_count(int *argc, char **argv, const char *flag, int64_t max, int64_t *value)
{
    struct bench_list list = {{*value}, 1};
    RL_TRY(bench_take_list(argc, argv, flag, max, &list));
    if (list.count != 1) {
        return rl_fail(RL_INVALID, "bench: %s: expected one number", flag);
    }
    *value = list.values[0];
    return RL_OK;
}

rl_status bench_take_isa(int *argc, char **argv, const struct kernel_table **out)
{
    const char *name = NULL;
    RL_TRY(app_take_value(argc, argv, "--isa", &name));
    if (name == NULL) {
        return kernel_table_get(kernel_isa_best(), out);
    }
    for (int isa = KERNEL_ISA_REF; isa <= (int)kernel_isa_best(); isa++) {
        const struct kernel_table *table = NULL;
        RL_TRY(kernel_table_get((enum kernel_isa)isa, &table));
        if (strcmp(table->name, name) == 0) {
            *out = table;
            return RL_OK;
        }
    }
    return rl_fail(RL_INVALID,
                   "bench: --isa %s: expected ref, avx2 or avx512, as far as this machine has it",
                   name);
}

rl_status bench_machine_open(int *argc, char **argv, struct bench_machine *machine)
{
    int cores = doctor_usable_cores();
    int64_t threads = cores < BENCH_THREADS_MAX ? cores : BENCH_THREADS_MAX;
    *machine = (struct bench_machine){.json = app_take_flag(argc, argv, "--json")};
    RL_TRY(bench_take_isa(argc, argv, &machine->table));
    RL_TRY(bench_take_count(argc, argv, "--threads", BENCH_THREADS_MAX, &threads));
    if (threads > cores) {
        return rl_fail(RL_INVALID,
                       "bench: --threads %lld, but only %d core(s) may be used: figures of "
                       "threads that share a core mean nothing",
                       (long long)threads, cores);
    }
    machine->threads = (int)threads;
    return rl_pool_create(machine->threads, &machine->pool);
}

void bench_machine_close(struct bench_machine *machine)
{
    bench_profile_destroy(machine->profile);
    device_stream_stop(machine->pool);
    rl_pool_destroy(machine->pool);
    device_close(machine->device);
    *machine = (struct bench_machine){0};
}

/* --- limits -------------------------------------------------------------------------------------
 */

/* One thread's part. */
struct probe {
    const struct bench_machine *machine;
    const char *data;
    size_t bytes;
    pthread_barrier_t *together;
    struct bench_limits found;
};

/* The barriers also see to it that no thread takes two parts. */
static void run_probe(void *arg, int index)
{
    struct probe *p = (struct probe *)arg + index;
    pthread_barrier_wait(p->together);
    p->found.fma_gflops = kernel_probe_fma(p->machine->table->isa);
    pthread_barrier_wait(p->together);
    p->found.read_gb_per_s = kernel_probe_read(p->data, p->bytes);
}

rl_status bench_limits_measure(const struct bench_machine *machine, const void *data, size_t bytes,
                               struct bench_limits *out)
{
    struct probe probes[BENCH_THREADS_MAX];
    pthread_barrier_t together;
    int count = machine->threads;
    if (machine->device != NULL) {
        return bench_device_limits(machine->device, out);
    }
    size_t part = bytes / (size_t)count / 64 * 64;
    if (pthread_barrier_init(&together, NULL, (unsigned)count) != 0) {
        return rl_fail(RL_INTERNAL, "bench: no barrier");
    }
    for (int i = 0; i < count; i++) {
        probes[i] = (struct probe){.machine = machine,
                                   .data = (const char *)data + (size_t)i * part,
                                   .bytes = part,
                                   .together = &together};
    }
    rl_pool_run(machine->pool, count, run_probe, probes);
    pthread_barrier_destroy(&together);
    *out = (struct bench_limits){0};
    for (int i = 0; i < count; i++) {
        out->fma_gflops += probes[i].found.fma_gflops;
        out->read_gb_per_s += probes[i].found.read_gb_per_s;
    }
    return RL_OK;
}

struct bench_limits bench_limits_max(const struct bench_limits *a, const struct bench_limits *b)
{
    return (struct bench_limits){a->fma_gflops > b->fma_gflops ? a->fma_gflops : b->fma_gflops,
                                 a->read_gb_per_s > b->read_gb_per_s ? a->read_gb_per_s
                                                                     : b->read_gb_per_s};
}

/* --- memory -------------------------------------------------------------------------------------
 */

static double usable_memory(const struct bench_machine *machine)
{
    size_t free_bytes = 0;
    size_t total = 0;
    if (machine->device == NULL) {
        return doctor_usable_memory();
    }
    device_gpu_memory(machine->device, &free_bytes, &total);
    return (double)free_bytes;
}

rl_status bench_memory_check(const struct bench_machine *machine, double bytes, const char *what)
{
    double usable = usable_memory(machine);
    if (usable >= 0 && bytes > usable) {
        return rl_fail(RL_NO_MEMORY, "bench: %s needs %.2f GiB, but only %.2f GiB are available",
                       what, bytes / gib, usable / gib);
    }
    return RL_OK;
}

void bench_memory_reset_peak(void)
{
    FILE *file = fopen("/proc/self/clear_refs", "we");
    if (file != NULL) {
        (void)fputs("5\n", file); /* where it is refused the peak is that of the whole process */
        (void)fclose(file);
    }
}

double bench_memory_peak(const struct bench_machine *machine)
{
    if (machine->device != NULL) {
        return (double)(bench_device_used(machine->device) - machine->device_used);
    }
    FILE *file = fopen("/proc/self/status", "re");
    char line[256];
    double kib = 0;
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        if (strncmp(line, "VmHWM:", 6) == 0) {
            kib = strtod(line + 6, NULL);
        }
    }
    if (file != NULL) {
        (void)fclose(file);
    }
    return kib * 1024;
}

/* --- names --------------------------------------------------------------------------------------
 */

const char *bench_peak_name(const struct bench_machine *machine)
{
    return machine->device == NULL ? "of FMA peak" : "of a large product";
}

const char *bench_read_name(const struct bench_machine *machine)
{
    return machine->device == NULL ? "of read bandwidth" : "of copy bandwidth";
}

const char *bench_machine_name(const struct bench_machine *machine)
{
    return device_name(machine->device);
}

/* --- figures ------------------------------------------------------------------------------------
 */

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a;
    double y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_median(double *values, size_t count)
{
    qsort(values, count, sizeof *values, compare_doubles);
    return 0.5 * (values[(count - 1) / 2] + values[count / 2]);
}

rl_status bench_take_end(int argc, char **argv)
{
    return argc == 1 ? RL_OK
                     : rl_fail(RL_INVALID, "bench: %s is no option here; foresight bench --help",
                               argv[1]);
}

rl_status bench_check_groups(const struct bench_list *batches, int64_t group)
{
    for (int i = 0; i < batches->count; i++) {
        if (batches->values[i] % group != 0) {
            return rl_fail(RL_INVALID, "bench: --batch %lld does not divide into groups of %lld",
                           (long long)batches->values[i], (long long)group);
        }
    }
    return RL_OK;
}

rl_status bench_json_print(const struct bench_machine *machine, const char *bench, json_t *lines)
{
    json_t *out = json_pack("{s:s, s:s, s:s, s:s, s:i, s:o}", "bench", bench, "cpu",
                            device_cpu_name(), "device", bench_machine_name(machine), "isa",
                            machine->table->name, "threads", machine->threads, "lines", lines);
    if (out == NULL) {
        return rl_fail(RL_NO_MEMORY, "bench: out of memory for the results");
    }
    bool written = json_dumpf(out, stdout, JSON_COMPACT) == 0 && putchar('\n') != EOF;
    json_decref(out);
    return written ? RL_OK : rl_fail(RL_IO, "bench: cannot write the results");
}
