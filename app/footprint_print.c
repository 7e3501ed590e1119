/* Footprints of GPUs as text and as JSON; see footprint.h. */
#include "app/footprint.h"

#include "kernels/device.h"

#include <jansson.h>
#include <stdio.h>

static double gib(size_t bytes)
{
    return (double)bytes / (1024.0 * 1024.0 * 1024.0);
}

/* Ranks on the GPU whose footprint is the same, from `rank` on and following each other there. */
static int alike(const struct footprint_run *run, int rank, const struct footprint *one)
{
    int count = 1;
    for (int next = rank + run->gpus; next < run->ranks; next += run->gpus, count++) {
        struct footprint other;
        footprint_of_rank(run, next, &other);
        if (other.fixed != one->fixed || other.page != one->page) {
            break;
        }
    }
    return count;
}

static void print_rank(const struct footprint_run *run, int rank, int count,
                       const struct footprint *one)
{
    char text[FOOTPRINT_TEXT];
    printf("  rank %-4d %s", rank, footprint_role(run, rank));
    if (count > 1) {
        printf(", and %d like it", count - 1);
    }
    printf(", %s:\n", footprint_text(one->fixed, text));
    for (int i = 0; i < one->count; i++) {
        printf("            %-28s %12s\n", one->items[i].what,
               footprint_text(one->items[i].bytes, text));
    }
}

static void print_head(const struct footprint_gpu *gpu)
{
    char fixed[FOOTPRINT_TEXT];
    char there[FOOTPRINT_TEXT];
    char all[FOOTPRINT_TEXT];
    printf("GPU %-4d    %d rank%s, %s beside KV pages of generation; ", gpu->index, gpu->ranks,
           gpu->ranks == 1 ? "" : "s", footprint_text(gpu->fixed, fixed));
    if (gpu->available == 0) {
        printf("no GPU here to compare with\n");
    } else {
        printf("%s of %s are there\n", footprint_text(gpu->available, there),
               footprint_text(gpu->total, all));
    }
}

static void print_gpu(const struct footprint_run *run, const struct footprint_gpu *gpu)
{
    struct footprint rollout = {0};
    char text[FOOTPRINT_TEXT];
    int64_t pages = footprint_pages(run, gpu);
    print_head(gpu);
    for (int rank = gpu->index; rank < run->ranks;) {
        struct footprint one;
        footprint_of_rank(run, rank, &one);
        int count = alike(run, rank, &one);
        print_rank(run, rank, count, &one);
        rollout = one.page > 0 ? one : rollout;
        rank += count * run->gpus;
    }
    if (rollout.page > 0) {
        printf("  KV pages  %lld a rollout rank, %s; %lld can be used, %lld are the least\n",
               (long long)pages, footprint_text(rollout.page * (size_t)pages, text),
               (long long)rollout.pages_wanted, (long long)rollout.pages_least);
    }
}

rl_status footprint_print(const struct footprint_run *run, const struct device *device)
{
    rl_status status = RL_OK;
    for (int index = 0; index < run->gpus && index < run->ranks; index++) {
        struct footprint_gpu gpu;
        footprint_of_gpu(run, index, device, &gpu);
        print_gpu(run, &gpu);
        fflush(stdout);
        rl_status fits = footprint_check(run, &gpu, device_name(device), status == RL_OK);
        status = status == RL_OK ? fits : status;
    }
    return status;
}

static json_t *rank_json(const struct footprint_run *run, int rank)
{
    struct footprint one;
    json_t *items = json_object();
    footprint_of_rank(run, rank, &one);
    for (int i = 0; i < one.count; i++) {
        json_object_set_new(items, one.items[i].what, json_real(gib(one.items[i].bytes)));
    }
    return json_pack("{s:i, s:s, s:o}", "rank", rank, "role", footprint_role(run, rank), "gib",
                     items);
}

json_t *footprint_json(const struct footprint_run *run, const struct device *device)
{
    json_t *gpus = json_array();
    for (int index = 0; index < run->gpus && index < run->ranks; index++) {
        struct footprint_gpu gpu;
        json_t *ranks = json_array();
        footprint_of_gpu(run, index, device, &gpu);
        for (int rank = index; rank < run->ranks; rank += run->gpus) {
            json_array_append_new(ranks, rank_json(run, rank));
        }
        json_array_append_new(gpus,
                              json_pack("{s:i, s:f, s:f, s:f, s:I, s:o}", "gpu", index, "fixed_gib",
                                        gib(gpu.fixed), "available_gib", gib(gpu.available),
                                        "kv_least_gib", gib(gpu.least), "kv_pages",
                                        (json_int_t)footprint_pages(run, &gpu), "ranks", ranks));
    }
    return gpus;
}
