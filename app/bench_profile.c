/* See bench_profile.h. Ops are given nothing but their arguments, so the profile that they note
 * their times in is this file's own. */
#include "app/bench_profile.h"

#include "app/app.h"

#include "core/clock.h"
#include "core/log.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PROFILE_NOTES = 256, PROFILE_EMPTY_CALLS = 50 };

/* All calls of one op with one size. */
struct op_note {
    const char *op;
    int64_t m, n, k; /* as `foresight bench --help` says */
    int64_t calls;
    double seconds;
    double flop, bytes; /* that the calls must take at least */
};

struct bench_profile {
    const struct kernel_table *inner;
    struct rl_pool *pool; /* whose ops are not launched from records while it is on */
    bool on;
    double empty_s; /* an op of nothing, and waiting for it */
    double begun_s; /* when it was switched on */
    int count;
    struct op_note notes[PROFILE_NOTES];
};

static struct bench_profile *current;

/* --- what a call must do ------------------------------------------------------------------------
 */

static double width(enum kernel_dtype dtype)
{
    return dtype == KERNEL_BF16 ? 2 : 4;
}

/* One function for each struct of arguments. */
static void size_kernel_pass_args(const struct kernel_pass_args *a, struct op_note *o)
{
    o->m = a->count;
}

static void size_kernel_linear_pack_args(const struct kernel_linear_pack_args *a, struct op_note *o)
{
    o->n = a->n;
    o->k = a->k;
    o->bytes = (double)(a->n * a->k) * (4 + width(a->dtype) * (a->changed != NULL ? 2 : 1));
}

static void size_kernel_linear_quantize_args(const struct kernel_linear_quantize_args *a,
                                             struct op_note *o)
{
    o->n = a->n;
    o->k = a->k;
    o->bytes = (double)(a->n * a->k) * (width(a->dtype) + 1);
}

static void size_kernel_linear_args(const struct kernel_linear_args *a, struct op_note *o)
{
    bool weight = a->dw != NULL;
    o->m = a->m;
    o->n = a->n;
    o->k = a->k;
    o->flop = 2.0 * (double)a->m * (double)a->n * (double)a->k;
    o->bytes = 4.0 * (double)(a->m * (a->n + a->k)) +
               (double)(a->n * a->k) * (weight ? 8 : width(a->dtype));
}

static void size_kernel_linear_set_args(const struct kernel_linear_set_args *a, struct op_note *o)
{
    for (int i = 0; i < a->count; i++) {
        struct op_note one = {0};
        size_kernel_linear_args(&a->maps[i], &one);
        o->n += one.n;
        o->flop += one.flop;
        o->bytes += one.bytes;
    }
    o->m = a->maps[0].m;
    o->k = a->maps[0].k;
}

static void size_kernel_embedding_args(const struct kernel_embedding_args *a, struct op_note *o)
{
    o->m = a->m;
    o->k = a->c;
    o->bytes = (double)(a->m * a->c) * (a->dw != NULL ? 12 : 4 + width(a->dtype));
}

static void size_kernel_rmsnorm_args(const struct kernel_rmsnorm_args *a, struct op_note *o)
{
    o->m = a->m;
    o->k = a->c;
    o->bytes = (double)(a->m * a->c) * (a->dx != NULL ? 12 : 8);
}

static void size_kernel_rope_args(const struct kernel_rope_args *a, struct op_note *o)
{
    o->m = a->n;
    o->n = a->heads;
    o->k = a->d;
    o->bytes = 8.0 * (double)(a->n * a->heads * a->d);
}

static void size_kernel_glu_args(const struct kernel_glu_args *a, struct op_note *o)
{
    o->m = a->count;
    o->bytes = (double)a->count * (a->dgate != NULL ? 20 : 12);
}

static void size_kernel_kv_args(const struct kernel_kv_args *a, struct op_note *o)
{
    o->m = a->segments->segment_start[a->segments->count];
    o->n = a->kv_heads;
    o->k = a->d;
    o->bytes = (double)(o->m * a->kv_heads * a->d) * 2 * (4 + width(a->dtype));
}

/* Keys and values are read once for each segment. */
static void size_kernel_attention_args(const struct kernel_attention_args *a, struct op_note *o)
{
    const struct kernel_segments *s = a->segments;
    bool backward = a->dq != NULL;
    double pairs = 0;
    double keys = 0;
    for (int64_t i = 0; i < s->count; i++) {
        double rows = (double)(s->segment_start[i + 1] - s->segment_start[i]);
        double before = (double)s->first_position[i];
        pairs += rows * (before + 0.5 * (rows + 1));
        keys += before + rows;
    }
    o->m = s->segment_start[s->count];
    o->n = s->count;
    o->k = a->d;
    o->flop = pairs * (double)(a->heads * a->d) * (backward ? 10 : 4);
    o->bytes = keys * (double)(a->kv_heads * a->d) * 2 * (width(a->dtype) + (backward ? 4 : 0)) +
               (double)(o->m * a->heads * a->d) * (backward ? 16 : 8);
}

static void size_kernel_head_args(const struct kernel_head_args *a, struct op_note *o)
{
    bool backward = a->dx != NULL;
    o->m = a->m;
    o->n = a->v;
    o->k = a->c;
    o->flop = (backward ? 6.0 : 2.0) * (double)a->m * (double)a->v * (double)a->c;
    o->bytes = (double)(a->v * a->c) * (width(a->dtype) + (backward ? 8 : 0)) +
               4.0 * (double)(a->m * a->c) * (backward ? 2 : 1);
}

static void size_kernel_decode_args(const struct kernel_decode_args *a, struct op_note *o)
{
    o->m = a->m;
    o->n = a->v;
    o->k = a->c;
    o->flop = 2.0 * (double)a->m * (double)a->v * (double)a->c;
    o->bytes = (double)(a->v * a->c) * width(a->dtype) + 4.0 * (double)(a->m * a->c);
}

static void size_kernel_add_args(const struct kernel_add_args *a, struct op_note *o)
{
    o->m = a->count;
    o->bytes = 12.0 * (double)a->count;
}

static void size_kernel_blend_args(const struct kernel_blend_args *a, struct op_note *o)
{
    o->m = a->count;
    o->bytes = 12.0 * (double)a->count;
}

static void size_kernel_zero_args(const struct kernel_zero_args *a, struct op_note *o)
{
    o->m = (int64_t)a->bytes;
    o->bytes = (double)a->bytes;
}

static void size_kernel_copy_args(const struct kernel_copy_args *a, struct op_note *o)
{
    o->m = a->rows;
    o->k = (int64_t)a->bytes;
    o->bytes = 2.0 * (double)a->rows * (double)a->bytes;
}

static void size_kernel_gather_args(const struct kernel_gather_args *a, struct op_note *o)
{
    o->m = a->m;
    o->k = a->c;
    o->bytes = 8.0 * (double)(a->m * a->c);
}

static void size_kernel_vector_pack_args(const struct kernel_vector_pack_args *a, struct op_note *o)
{
    o->m = a->count;
    o->bytes = (double)a->count * (a->changed != NULL ? 12 : 8);
}

static void size_kernel_sum_squares_args(const struct kernel_sum_squares_args *a, struct op_note *o)
{
    o->m = a->count;
    o->flop = 2.0 * (double)a->count;
    o->bytes = 4.0 * (double)a->count;
}

static void size_kernel_hash_args(const struct kernel_hash_args *a, struct op_note *o)
{
    o->m = a->count;
    o->bytes = 4.0 * (double)a->count;
}

static void size_kernel_adamw_args(const struct kernel_adamw_args *a, struct op_note *o)
{
    o->m = a->count;
    o->bytes = 28.0 * (double)a->count;
}

static void size_kernel_adamw_pack_args(const struct kernel_adamw_pack_args *a, struct op_note *o)
{
    size_kernel_linear_pack_args(&a->pack, o);
    o->bytes += 24.0 * (double)a->adamw.count;
}

/* --- the table of kernels -----------------------------------------------------------------------
 */

static void keep_note(const struct op_note *call)
{
    struct bench_profile *p = current;
    int i = 0;
    while (i < p->count && (strcmp(p->notes[i].op, call->op) != 0 || p->notes[i].m != call->m ||
                            p->notes[i].n != call->n || p->notes[i].k != call->k)) {
        i++;
    }
    if (i == PROFILE_NOTES) {
        i--; /* more sizes than a model has: the last line is theirs together */
    } else if (i == p->count) {
        p->notes[p->count++] = (struct op_note){call->op, call->m, call->n, call->k, 0, 0, 0, 0};
    }
    p->notes[i].calls++;
    p->notes[i].seconds += call->seconds;
    p->notes[i].flop += call->flop;
    p->notes[i].bytes += call->bytes;
}

#define KERNEL_OP(name, args, tolerance)                                                           \
    static void name##_noted(const struct args *a, struct rl_pool *pool)                           \
    {                                                                                              \
        struct op_note call = {.op = #name};                                                       \
        double begin = rl_clock_now_s(NULL);                                                       \
        current->inner->name(a, pool);                                                             \
        if (current->on && device_wait(pool) == RL_OK) {                                           \
            call.seconds = rl_clock_now_s(NULL) - begin;                                           \
            size_##args(a, &call);                                                                 \
            keep_note(&call);                                                                      \
        }                                                                                          \
    }
#include "kernels/ops.def"

static const struct kernel_table noting = {
    .name = "cuda",
    .isa = KERNEL_ISA_CUDA,
#define KERNEL_OP(op, args, tolerance) .op = op##_noted,
#include "kernels/ops.def"
};

/* --- life cycle ---------------------------------------------------------------------------------
 */

static rl_status measure_empty(const struct bench_machine *machine, double *seconds)
{
    double times[PROFILE_EMPTY_CALLS];
    void *data = NULL;
    RL_TRY(device_buffer_alloc(machine->device, sizeof(float), "profile", &data));
    struct kernel_zero_args args = {.data = data, .bytes = sizeof(float)};
    rl_status status = RL_OK;
    for (int i = 0; i < PROFILE_EMPTY_CALLS && status == RL_OK; i++) {
        double begin = rl_clock_now_s(NULL);
        machine->table->zero(&args, machine->pool);
        status = device_wait(machine->pool);
        times[i] = rl_clock_now_s(NULL) - begin;
    }
    device_buffer_free(machine->device, data);
    *seconds = status == RL_OK ? bench_median(times, PROFILE_EMPTY_CALLS) : 0;
    return status;
}

rl_status bench_take_profile(int *argc, char **argv, struct bench_machine *machine)
{
    if (!app_take_flag(argc, argv, "--profile")) {
        return RL_OK;
    }
    if (machine->device == NULL) {
        return rl_fail(RL_INVALID, "bench: --profile: with --device cuda only");
    }
    machine->profile = calloc(1, sizeof *machine->profile);
    if (machine->profile == NULL) {
        return rl_fail(RL_NO_MEMORY, "bench: out of memory");
    }
    RL_TRY(measure_empty(machine, &machine->profile->empty_s));
    machine->profile->inner = machine->table;
    machine->profile->pool = machine->pool;
    machine->table = &noting;
    current = machine->profile;
    return RL_OK;
}

void bench_profile_destroy(struct bench_profile *profile)
{
    if (profile != NULL) {
        current = NULL;
        free(profile);
    }
}

void bench_profile_begin(struct bench_profile *profile)
{
    if (profile != NULL) {
        profile->count = 0;
        profile->on = true;
        device_replay_allow(profile->pool, false);
        profile->begun_s = rl_clock_now_s(NULL);
    }
}

/* --- results ------------------------------------------------------------------------------------
 */

static int longest_first(const void *a, const void *b)
{
    double x = ((const struct op_note *)a)->seconds;
    double y = ((const struct op_note *)b)->seconds;
    return (x < y) - (x > y);
}

static double share_of(double amount, double rate, double seconds)
{
    return rate > 0 && seconds > 0 ? 100 * amount / (rate * 1e9) / seconds : 0;
}

static void print_note(const struct op_note *o, const struct bench_limits *limits, double steps,
                       double all_s)
{
    double own_s = fmax(o->seconds - (double)o->calls * current->empty_s, 0);
    printf("  %-22s %8lld %7lld %6lld %8.1f %9.3f %5.1f %% %9.1f %9.1f %9.1f %4.0f %% %4.0f %%\n",
           o->op, (long long)o->m, (long long)o->n, (long long)o->k, (double)o->calls / steps,
           o->seconds / steps * 1e3, 100 * o->seconds / all_s, o->seconds / (double)o->calls * 1e6,
           o->flop / o->seconds * 1e-9, o->bytes / o->seconds * 1e-9,
           share_of(o->flop, limits->fma_gflops, own_s),
           share_of(o->bytes, limits->read_gb_per_s, own_s));
}

static rl_status notes_json(const struct bench_profile *p, double steps, json_t *line)
{
    json_t *list = json_array();
    for (int i = 0; i < p->count; i++) {
        const struct op_note *o = &p->notes[i];
        json_t *one = json_pack("{s:s, s:I, s:I, s:I, s:f, s:f, s:f, s:f}", "op", o->op, "m",
                                (json_int_t)o->m, "n", (json_int_t)o->n, "k", (json_int_t)o->k,
                                "calls", (double)o->calls / steps, "seconds", o->seconds / steps,
                                "flop", o->flop / steps, "bytes", o->bytes / steps);
        if (one == NULL || json_array_append_new(list, one) != 0) {
            json_decref(list);
            return rl_fail(RL_NO_MEMORY, "bench: out of memory for the profile");
        }
    }
    bool kept = json_object_set_new(line, "ops", list) == 0 &&
                json_object_set_new(line, "empty_op_seconds", json_real(p->empty_s)) == 0;
    return kept ? RL_OK : rl_fail(RL_NO_MEMORY, "bench: out of memory for the profile");
}

rl_status bench_profile_end(const struct bench_machine *machine, const struct bench_limits *limits,
                            double steps, json_t *line)
{
    struct bench_profile *p = machine->profile;
    double all_s = 0;
    if (p == NULL) {
        return RL_OK;
    }
    double wall_s = rl_clock_now_s(NULL) - p->begun_s;
    p->on = false;
    device_replay_allow(p->pool, true);
    qsort(p->notes, (size_t)p->count, sizeof p->notes[0], longest_first);
    for (int i = 0; i < p->count; i++) {
        all_s += p->notes[i].seconds;
    }
    if (!machine->json) {
        printf("  each op waited for, %.1f us of a call with that alone (left out of the shares); "
               "%.3f ms a step in ops, %.3f with all between them\n"
               "  %-22s %8s %7s %6s %8s %9s %7s %9s %9s %9s %6s %6s\n",
               p->empty_s * 1e6, all_s / steps * 1e3, wall_s / steps * 1e3, "op", "m", "n", "k",
               "calls", "ms", "of all", "us a call", "GFLOP/s", "GB/s", "peak", "copy");
    }
    for (int i = 0; i < p->count && !machine->json; i++) {
        print_note(&p->notes[i], limits, steps, all_s);
    }
    return notes_json(p, steps, line);
}
