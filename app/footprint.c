/* See footprint.h. */
#include "app/footprint.h"
#include "app/train.h"

#include "app/weight_window.h"
#include "core/log.h"
#include "kernels/device.h"
#include "trainer/learner.h"
#include "transport/collective_gpu.h"

#include <stdio.h>
#include <string.h>

/* A process's share of CUDA before it asks for anything, where it cannot be measured. */
static const size_t context_bytes = (size_t)512 << 20;

enum { LARGEST = 4 }; /* items that a refusal names */

const char *footprint_text(size_t bytes, char text[FOOTPRINT_TEXT])
{
    const double mib = 1024.0 * 1024.0;
    bool large = bytes >= (size_t)1 << 30;
    snprintf(text, FOOTPRINT_TEXT, large ? "%.3f GiB" : "%.1f MiB",
             (double)bytes / (large ? 1024.0 * mib : mib));
    return text;
}

/* --- one rank
 * ----------------------------------------------------------------------------------------- */

static void add(struct footprint *out, const char *what, const char *option, size_t bytes)
{
    if (bytes > 0) {
        out->items[out->count++] = (struct footprint_item){what, option, bytes};
        out->fixed += bytes;
    }
}

static bool learns(const struct footprint_run *run, int rank)
{
    return rank < run->learners;
}

static bool generates(const struct footprint_run *run, int rank)
{
    return run->ranks == 1 || !learns(run, rank);
}

static bool same_machine(const struct footprint_run *run, int a, int b)
{
    return run->world == NULL || world_node_of(run->world, a) == world_node_of(run->world, b);
}

static bool is_fp32(const struct footprint_run *run)
{
    return run->layout->dtype == KERNEL_FP32;
}

struct footprint_microbatch footprint_largest_microbatch(const struct rl_config *config)
{
    int64_t longest = session_learner_length(config);
    int64_t samples = config->rollout.samples_per_prompt;
    int64_t step = config->rollout.prompts_per_step * samples;
    int64_t probe = (TRAIN_PROBE_SAMPLES + samples - 1) / samples * samples;
    int64_t completions = step > probe ? step : probe;
    int64_t tokens = config->optimizer.max_tokens_per_microbatch;
    tokens = tokens < completions * longest ? tokens : completions * longest;
    tokens = tokens > longest ? tokens : longest;
    return (struct footprint_microbatch){
        tokens, model_packing_pages(tokens, completions < tokens ? completions : tokens)};
}

/* Of the arena that the learner publishes in. */
static int slots(const struct footprint_run *run)
{
    return run->ranks > 1 ? weight_window_slots(run->config) : 2;
}

static void add_learner(const struct footprint_run *run, bool publishes, struct footprint *out)
{
    const struct rl_config *config = run->config;
    const struct model_layout *layout = run->layout;
    const char *image_option = is_fp32(run) ? "kernels.weights" : NULL;
    struct learner_bytes bytes = learner_bytes(layout, config, run->learners);
    struct footprint_microbatch largest = footprint_largest_microbatch(config);
    enum model_keep keep = optimizer_keep(config);
    add(out, "master weights", NULL, bytes.masters);
    add(out, "gradients", NULL, bytes.gradients);
    add(out, "moments", NULL, bytes.moments);
    add(out, "what goes between learners", NULL,
        collective_gpu_bytes(run->learners, bytes.gradients));
    add(out, "teacher's average", "teacher.policy", bytes.average);
    add(out, "teacher's logits", "teacher.logits",
        learner_teacher_bytes(layout, config, largest.tokens));
    add(out, "frozen weights", "loss.beta or teacher.policy", bytes.frozen);
    add(out, "weight images", image_option,
        learner_image_bytes(layout, publishes ? slots(run) : 0));
    add(out, "activations", "optimizer.max_tokens_per_microbatch or optimizer.recompute",
        model_workspace_bytes(layout, largest.tokens, keep));
    add(out, "keys and values of training", "optimizer.max_tokens_per_microbatch",
        (size_t)largest.pages * model_kv_page_bytes(layout));
    add(out, "scratch of training", "optimizer.max_tokens_per_microbatch",
        model_scratch_bytes(layout, largest.tokens, keep));
}

/* Does the rank read weights in the learner's slots, on the same GPU? */
static bool reads_in_place(const struct footprint_run *run, int rank)
{
    int local = 0;
    if (run->learners == 0 || (run->ranks > 1 && run->config->transport.force_remote)) {
        return false;
    }
    for (int before = 0; before < rank; before++) {
        local += same_machine(run, before, rank);
    }
    return same_machine(run, 0, rank) && local % run->gpus == 0;
}

/* Copies of the weights that it generates with: of the versions that may be in use at once, and one
 * on its way. */
static size_t copies(const struct footprint_run *run, int rank)
{
    const struct rl_config *config = run->config;
    bool window = config->async.enabled && config->async.order == CONFIG_ORDER_FIXED_LAG;
    if (reads_in_place(run, rank)) {
        return 0;
    }
    return run->ranks > 1 && window ? (size_t)weight_window_slots(config) : 2;
}

static void add_rollout(const struct footprint_run *run, int rank, struct footprint *out)
{
    const struct rl_config *config = run->config;
    const struct model_layout *layout = run->layout;
    struct rollout_generator_options options;
    session_training_options(config, run->ranks == 1, &options);
    options = run->options != NULL ? *run->options : options;
    struct rollout_generator_bytes bytes = rollout_generator_bytes(layout, &options);
    enum model_keep keep = model_sampling_keep(&options.sampling);
    add(out, "copies of the weights", is_fp32(run) ? "kernels.weights" : NULL,
        copies(run, rank) * layout->image_bytes);
    add(out, "workspace of generation", "rollout.prefill_chunk or rollout.max_running",
        bytes.workspace);
    add(out, "scratch of generation", "rollout.prefill_chunk",
        model_scratch_bytes(layout, options.prefill_chunk + options.max_running, keep));
    out->page = bytes.page;
    out->pages_wanted = bytes.pages_wanted;
    out->pages_least = bytes.pages_least;
}

void footprint_of_rank(const struct footprint_run *run, int rank, struct footprint *out)
{
    *out = (struct footprint){0};
    if (learns(run, rank)) {
        add_learner(run, rank == 0, out);
    }
    if (generates(run, rank)) {
        add_rollout(run, rank, out);
    }
}

const char *footprint_role(const struct footprint_run *run, int rank)
{
    return !learns(run, rank)     ? "rollout"
           : generates(run, rank) ? "learner and rollout"
                                  : "learner";
}

/* --- a GPU
 * -------------------------------------------------------------------------------------------- */

static bool is_here(const struct footprint_run *run, int rank)
{
    return run->world == NULL || world_node_of(run->world, rank) == world_node(run->world);
}

/* The next rank from `rank` on that has the GPU, *local: ranks of this machine before `rank`. */
static int next_on_gpu(const struct footprint_run *run, int index, int rank, int *local)
{
    for (; rank < run->ranks; rank++) {
        if (is_here(run, rank) && (*local)++ % run->gpus == index) {
            break;
        }
    }
    return rank;
}

static void measure_memory(const struct device *device, struct footprint_gpu *gpu)
{
    size_t free_bytes = 0;
    if (device == NULL) {
        return;
    }
    device_gpu_memory(device, &free_bytes, &gpu->total);
    size_t taken = gpu->total - free_bytes;
    size_t context = taken < context_bytes ? taken : context_bytes;
    size_t contexts = context * (size_t)gpu->ranks;
    /* others of the run may have allocated already: what is free says little */
    gpu->available = gpu->ranks == 1         ? free_bytes
                     : gpu->total > contexts ? gpu->total - contexts
                                             : 1;
}

void footprint_of_gpu(const struct footprint_run *run, int index, const struct device *device,
                      struct footprint_gpu *out)
{
    int local = 0;
    *out = (struct footprint_gpu){.index = index, .first = -1};
    for (int rank = next_on_gpu(run, index, 0, &local); rank < run->ranks;
         rank = next_on_gpu(run, index, rank + 1, &local)) {
        struct footprint one;
        footprint_of_rank(run, rank, &one);
        out->first = out->first < 0 ? rank : out->first;
        out->ranks++;
        out->rollout_ranks += one.page > 0;
        out->fixed += one.fixed;
        out->least += one.page * (size_t)one.pages_least;
        out->wanted += one.page * (size_t)one.pages_wanted;
    }
    measure_memory(device, out);
}

/* KV pages of `rank` if so many bytes are left beside what is fixed. */
static int64_t pages_within(const struct footprint_run *run, const struct footprint *one,
                            size_t bytes)
{
    double share = run->config->rollout.kv_memory_fraction * (double)bytes;
    int64_t fit = (int64_t)(share / (double)one->page);
    return fit < one->pages_wanted ? fit : one->pages_wanted;
}

/* A rank of those on the GPU that generates: the last one, if any does. */
static int rollout_rank(const struct footprint_run *run, const struct footprint_gpu *gpu)
{
    int local = 0;
    int found = gpu->first;
    for (int rank = next_on_gpu(run, gpu->index, 0, &local); rank < run->ranks;
         rank = next_on_gpu(run, gpu->index, rank + 1, &local)) {
        found = rank;
    }
    return found;
}

int64_t footprint_pages(const struct footprint_run *run, const struct footprint_gpu *gpu)
{
    struct footprint one;
    if (gpu->rollout_ranks == 0) {
        return 0;
    }
    footprint_of_rank(run, rollout_rank(run, gpu), &one);
    if (gpu->available == 0) {
        return one.pages_wanted;
    }
    size_t left = gpu->available > gpu->fixed ? gpu->available - gpu->fixed : 0;
    return pages_within(run, &one, left / (size_t)gpu->rollout_ranks);
}

/* --- refusing
 * ----------------------------------------------------------------------------------------- */

struct held {
    struct footprint_item item;
    int rank;
};

/* Keep the LARGEST of all, the largest first. */
static void keep_largest(struct held *largest, struct held one)
{
    for (int i = 0; i < LARGEST; i++) {
        if (one.item.bytes > largest[i].item.bytes) {
            struct held moved = largest[i];
            largest[i] = one;
            one = moved;
        }
    }
}

static void find_largest(const struct footprint_run *run, const struct footprint_gpu *gpu,
                         struct held *largest)
{
    int local = 0;
    for (int rank = next_on_gpu(run, gpu->index, 0, &local); rank < run->ranks;
         rank = next_on_gpu(run, gpu->index, rank + 1, &local)) {
        struct footprint one;
        footprint_of_rank(run, rank, &one);
        for (int i = 0; i < one.count; i++) {
            keep_largest(largest, (struct held){one.items[i], rank});
        }
        size_t pages = one.page * (size_t)one.pages_least;
        keep_largest(largest, (struct held){{"KV pages of two sequences",
                                             "rollout.max_completion_length", pages},
                                            rank});
    }
}

/* "moments 3.000 GiB of rank 0, ..." and the options that change the largest items. */
static void name_largest(const struct held *largest, char *items, char *options, size_t size)
{
    size_t used = 0;
    size_t named = strlen(options);
    char text[FOOTPRINT_TEXT];
    items[0] = '\0';
    for (int i = 0; i < LARGEST && largest[i].item.bytes > 0; i++) {
        const struct footprint_item *item = &largest[i].item;
        used += (size_t)snprintf(items + used, size - used, "%s%s %s of rank %d", i > 0 ? ", " : "",
                                 item->what, footprint_text(item->bytes, text), largest[i].rank);
        if (item->option != NULL && strstr(options, item->option) == NULL) {
            named += (size_t)snprintf(options + named, size - named, "%s, ", item->option);
        }
    }
}

rl_status footprint_check(const struct footprint_run *run, const struct footprint_gpu *gpu,
                          const char *device_name, bool log)
{
    char items[512];
    char options[512] = "";
    char need[FOOTPRINT_TEXT];
    char there[FOOTPRINT_TEXT];
    struct held largest[LARGEST] = {0};
    struct footprint one;
    footprint_of_rank(run, rollout_rank(run, gpu), &one);
    bool fits = gpu->fixed + gpu->least <= gpu->available;
    if (gpu->available == 0 || (fits && footprint_pages(run, gpu) >= one.pages_least)) {
        return RL_OK;
    }
    if (!log) {
        return RL_NO_MEMORY;
    }
    if (fits) {
        snprintf(options, sizeof(options), "rollout.kv_memory_fraction, ");
    }
    find_largest(run, gpu, largest);
    name_largest(largest, items, options, sizeof(items));
    return rl_fail(RL_NO_MEMORY,
                   "%s: its %d rank%s need%s %s at least, and %s are there: %s; change %sor use "
                   "more GPUs",
                   device_name, gpu->ranks, gpu->ranks > 1 ? "s" : "", gpu->ranks > 1 ? "" : "s",
                   footprint_text(gpu->fixed + gpu->least, need),
                   footprint_text(gpu->available, there), items, options);
}

/* --- before step 0
 * ------------------------------------------------------------------------------------ */

/* Others on the GPU, of this run or not, may hold more than is known of. */
static rl_status check_free(const struct footprint_run *run, const struct session *session,
                            const struct footprint *own, int64_t *pages)
{
    size_t free_bytes = 0;
    size_t total = 0;
    device_gpu_memory(session->device, &free_bytes, &total);
    size_t left = free_bytes > own->fixed ? free_bytes - own->fixed : 0;
    int64_t fit = own->page > 0 ? pages_within(run, own, left) : 0;
    *pages = fit < *pages ? fit : *pages;
    if (free_bytes >= own->fixed && *pages >= own->pages_least) {
        return RL_OK;
    }
    char need[FOOTPRINT_TEXT];
    char there[FOOTPRINT_TEXT];
    char all[FOOTPRINT_TEXT];
    return rl_fail(RL_NO_MEMORY,
                   "%s: this rank needs %s at least and %s are free: others hold the rest of %s",
                   device_name(session->device),
                   footprint_text(own->fixed + own->page * (size_t)own->pages_least, need),
                   footprint_text(free_bytes, there), footprint_text(total, all));
}

static void log_room(const struct session *session, const struct footprint *own, int64_t pages)
{
    char fixed[FOOTPRINT_TEXT];
    char kv[FOOTPRINT_TEXT];
    footprint_text(own->fixed, fixed);
    if (own->page == 0) {
        rl_log(RL_LOG_INFO, "%s: %s", device_name(session->device), fixed);
        return;
    }
    rl_log(RL_LOG_INFO, "%s: %s and %lld of %lld KV pages that can be used, %s",
           device_name(session->device), fixed, (long long)pages, (long long)own->pages_wanted,
           footprint_text(own->page * (size_t)pages, kv));
}

rl_status footprint_settle(const struct footprint_run *run, const struct session *session, int rank,
                           struct rollout_generator_options *options)
{
    struct footprint_run here = *run;
    struct footprint own;
    struct footprint_gpu gpu;
    if (session->device == NULL) {
        return RL_OK;
    }
    here.gpus = session->gpus;
    int local = run->world != NULL ? world_local_rank(run->world) : rank;
    footprint_of_rank(&here, rank, &own);
    footprint_of_gpu(&here, local % session->gpus, session->device, &gpu);
    RL_TRY(footprint_check(&here, &gpu, device_name(session->device), rank == gpu.first));
    int64_t pages = footprint_pages(&here, &gpu);
    RL_TRY(check_free(&here, session, &own, &pages));
    log_room(session, &own, pages);
    if (options != NULL) {
        options->max_pages = (int32_t)pages;
    }
    return RL_OK;
}
