/* See generator.h. Life of the engine; weights, requests and finished groups in and out. */
#include "rollout/generator_internal.h"

#include "core/log.h"

#include <assert.h>
#include <stdlib.h>

static int32_t pass_tokens(const struct rollout_generator_options *options)
{
    return options->max_running + options->prefill_chunk + generator_draft_rows(options);
}

/* --- life cycle
 * ----------------------------------------------------------------------------------- */

static bool allocate_pass(struct generator_pass *pass,
                          const struct rollout_generator_options *options)
{
    size_t tokens = (size_t)pass_tokens(options);
    size_t segments = (size_t)options->max_running + (size_t)options->max_groups;
    size_t rows = (size_t)options->max_running + (size_t)generator_draft_rows(options);
    pass->tokens = calloc(tokens, sizeof(int32_t));
    pass->positions = calloc(tokens, sizeof(int32_t));
    pass->segment_start = calloc(segments + 1, sizeof(int32_t));
    pass->first_position = calloc(segments, sizeof(int32_t));
    pass->page_table = calloc(segments, sizeof(*pass->page_table));
    pass->hidden_rows = calloc(rows, sizeof(int32_t));
    pass->slots = calloc(rows, sizeof(int32_t));
    pass->ids = calloc(rows, sizeof(int32_t));
    pass->logprob = calloc(rows, sizeof(float));
    pass->kept = calloc(rows, sizeof(float));
    pass->keys = calloc(rows, sizeof(*pass->keys));
    pass->counters = calloc(rows, sizeof(uint64_t));
    return pass->tokens && pass->positions && pass->segment_start && pass->first_position &&
           pass->page_table && pass->hidden_rows && pass->slots && pass->ids && pass->logprob &&
           pass->kept && pass->keys && pass->counters;
}

static bool allocate_sequences(struct rollout_generator *g)
{
    size_t rows = (size_t)g->options.max_running;
    size_t tokens = rows * (size_t)g->options.max_completion;
    g->works = calloc((size_t)g->options.max_groups, sizeof(*g->works));
    g->completion = calloc(tokens, sizeof(int32_t));
    g->logprob = calloc(tokens, sizeof(float));
    g->kept_sum = calloc(rows, sizeof(double));
    g->token_version = calloc(tokens, sizeof(uint32_t));
    g->completion_count = calloc(rows, sizeof(int32_t));
    g->done_capacity = g->options.max_groups + 1;
    g->done = calloc((size_t)g->done_capacity, sizeof(*g->done));
    return g->works && g->completion && g->logprob && g->token_version && g->completion_count &&
           g->kept_sum && g->done && allocate_pass(&g->pass, &g->options);
}

static bool has_image(void *arg, uint32_t version)
{
    return generator_image(arg, version) != NULL;
}

static bool needs_copy(void *arg, uint32_t version)
{
    const struct rollout_generator *g = arg;
    return (g->image != NULL && version == g->version) || (g->awaits && version == g->awaited) ||
           rollout_generator_needs(g, version);
}

/* `source`: what copies with int8 weights are made from; NULL: they are like the image. */
static rl_status open_copies(struct rollout_generator *g, const struct model_layout *source)
{
    struct image_copies_kind kind = {
        .layout = g->context.layout, .source = source, .kernels = g->context.kernels};
    return image_copies_create(&kind, needs_copy, g, &g->copies);
}

/* Passes read int8 weights: from here on the context's layout is theirs. */
static rl_status choose_int8(struct rollout_generator *g)
{
    const struct model_layout *layout = g->context.layout;
    if (!g->options.int8_weights) {
        return RL_OK;
    }
    if (layout->device != NULL) {
        return rl_fail(RL_UNSUPPORTED, "rollout.quantize: int8 weights are for CPUs");
    }
    RL_TRY(model_layout_create(&layout->arch, KERNEL_INT8, layout->rope_positions, &g->int8));
    g->int8->kv_dtype = layout->kv_dtype;
    g->context.layout = g->int8;
    return open_copies(g, layout);
}

static struct rollout_scheduler_limits limits_of(const struct rollout_generator_options *options)
{
    return (struct rollout_scheduler_limits){.max_running = options->max_running,
                                             .max_groups = options->max_groups,
                                             .max_length =
                                                 options->max_prompt + options->max_completion,
                                             .prefill_chunk = options->prefill_chunk,
                                             .pages = options->max_pages,
                                             .recompute = options->recompute_on_update};
}

static rl_status build(struct rollout_generator *g)
{
    RL_TRY(choose_int8(g));
    const struct model_layout *layout = g->context.layout;
    struct rollout_scheduler_limits limits = limits_of(&g->options);
    RL_TRY(rollout_scheduler_create(&limits, &g->scheduler));
    rollout_scheduler_set_usable(g->scheduler, has_image, g);
    RL_TRY(model_kv_create(layout, rollout_scheduler_page_count(g->scheduler), &g->kv));
    RL_TRY(model_workspace_create(layout, pass_tokens(&g->options),
                                  model_sampling_keep(&g->options.sampling), &g->workspace));
    RL_TRY(model_workspace_share(g->workspace, layout, rl_pool_threads(g->context.pool)));
    if (!allocate_sequences(g)) {
        return rl_fail(RL_NO_MEMORY, "rollout: out of memory for %d sequences of %d tokens",
                       g->options.max_running, g->max_length);
    }
    return generator_draft_create(g);
}

rl_status rollout_generator_create(const struct model_context *context,
                                   const struct tokenizer *tokenizer,
                                   const struct rollout_generator_options *options,
                                   struct rollout_generator **out)
{
    int64_t length = (int64_t)options->max_prompt + options->max_completion;
    if (length > context->layout->rope_positions) {
        return rl_fail(RL_INVALID,
                       "rollout: %lld tokens a sequence, but the model was set up for %d",
                       (long long)length, context->layout->rope_positions);
    }
    struct rollout_generator *g = calloc(1, sizeof(*g));
    if (g == NULL) {
        return rl_fail(RL_NO_MEMORY, "rollout: out of memory");
    }
    g->context = *context;
    g->options = *options;
    g->max_length = (int32_t)length;
    rl_status status = stop_rules_init(&g->stop, &context->layout->arch, tokenizer,
                                       options->stop_token_ids, options->stop_strings);
    if (status == RL_OK) {
        status = build(g);
    }
    if (status != RL_OK) {
        rollout_generator_destroy(g);
        return status;
    }
    *out = g;
    return RL_OK;
}

static void free_pass(struct generator_pass *pass)
{
    free(pass->tokens);
    free(pass->positions);
    free(pass->segment_start);
    free(pass->first_position);
    free(pass->page_table);
    free(pass->hidden_rows);
    free(pass->slots);
    free(pass->ids);
    free(pass->logprob);
    free(pass->kept);
    free(pass->keys);
    free(pass->counters);
}

void rollout_generator_destroy(struct rollout_generator *generator)
{
    struct rollout_generator *g = generator;
    if (g == NULL) {
        return;
    }
    for (int32_t i = 0; g->works != NULL && i < g->options.max_groups; i++) {
        generator_work_fini(&g->works[i]);
    }
    struct trajectory_group *group = NULL;
    while (g->done != NULL && rollout_generator_take(g, &group) == RL_OK) {
        trajectory_group_destroy(group);
    }
    free_pass(&g->pass);
    free(g->done);
    free(g->completion_count);
    free(g->token_version);
    free(g->logprob);
    free(g->kept_sum);
    free(g->completion);
    free(g->works);
    model_workspace_destroy(g->workspace);
    generator_draft_destroy(g);
    image_copies_destroy(g->copies);
    model_layout_destroy(g->int8);
    model_kv_fini(&g->kv);
    rollout_scheduler_destroy(g->scheduler);
    stop_rules_fini(&g->stop);
    free(g);
}

/* The copy in use and the next one. */
static size_t int8_bytes(const struct model_layout *layout,
                         const struct rollout_generator_options *options)
{
    size_t bytes = 0;
    for (int32_t i = 0; i < layout->tensor_count && options->int8_weights; i++) {
        const struct model_tensor *tensor = &layout->tensors[i];
        bytes += tensor->matrix ? kernel_packed_bytes(tensor->rows, tensor->cols, KERNEL_INT8)
                                : (size_t)tensor->cols * sizeof(float);
    }
    return 2 * bytes;
}

struct rollout_generator_bytes
rollout_generator_bytes(const struct model_layout *layout,
                        const struct rollout_generator_options *options)
{
    struct rollout_scheduler_limits limits = limits_of(options);
    size_t length = (size_t)limits.max_length;
    size_t pages = (length + KERNEL_PAGE_TOKENS - 1) / KERNEL_PAGE_TOKENS;
    struct rollout_generator_bytes bytes = {
        .workspace = model_workspace_bytes(layout, pass_tokens(options),
                                           model_sampling_keep(&options->sampling)),
        .page = model_kv_page_bytes(layout),
        .pages_wanted = rollout_scheduler_pages_wanted(&limits),
        .pages_least = rollout_scheduler_pages_least(&limits)};
    /* Prefix pages of waiting groups stay untouched memory in practice: count running ones. */
    bytes.all = pages * (size_t)options->max_running * bytes.page + bytes.workspace +
                generator_draft_bytes(options) + int8_bytes(layout, options);
    return bytes;
}

/* --- groups in and out
 * ---------------------------------------------------------------------------- */

static void use_weights(struct rollout_generator *g, const void *image, uint32_t version)
{
    bool changed = g->image != NULL && version != g->version;
    g->image = image;
    g->version = version;
    rollout_scheduler_switch(g->scheduler, version);
    if (changed && rollout_scheduler_groups(g->scheduler) > 0) {
        g->counters.switches++;
    }
}

/* *out = the image where passes can read it; RL_AGAIN while a copy is made. */
static rl_status reach_image(struct rollout_generator *g, struct device_source image,
                             uint32_t version, const void **out)
{
    bool here = image.place == DEVICE_PLACE_HERE || g->context.layout->device == NULL;
    if (here && g->int8 == NULL) {
        *out = image.data;
        return RL_OK;
    }
    if (g->copies == NULL) {
        RL_TRY(open_copies(g, NULL));
    }
    return image_copies_get(g->copies, version, image, out);
}

rl_status rollout_generator_load_weights(struct rollout_generator *generator,
                                         struct device_source image, uint32_t version)
{
    const void *reached = NULL;
    generator->awaited = version;
    generator->awaits = true;
    RL_TRY(reach_image(generator, image, version, &reached));
    generator->awaits = false;
    use_weights(generator, reached, version);
    return RL_OK;
}

void rollout_generator_set_weights(struct rollout_generator *generator, const void *image,
                                   uint32_t version)
{
    rl_status status = RL_AGAIN;
    if (generator->int8 == NULL) {
        use_weights(generator, image, version);
        return;
    }
    while (status == RL_AGAIN) {
        status = rollout_generator_load_weights(generator, (struct device_source){.data = image},
                                                version);
        image_copies_wait(generator->copies);
    }
    generator->copies_status = status; /* the next tick's */
}

void rollout_generator_await_weights(struct rollout_generator *generator)
{
    if (generator->copies != NULL) {
        image_copies_wait(generator->copies);
    }
}

void rollout_generator_set_image_source(struct rollout_generator *generator, rollout_image_fn fn,
                                        void *arg)
{
    generator->source = fn;
    generator->source_arg = arg;
}

const void *generator_image(struct rollout_generator *g, uint32_t version)
{
    if (g->image != NULL && version == g->version) {
        return g->image;
    }
    struct device_source image = {.data = NULL};
    const void *reached = NULL;
    if (g->source != NULL) {
        image = g->source(g->source_arg, version);
    }
    if (image.data == NULL) {
        return NULL;
    }
    rl_status status = reach_image(g, image, version, &reached);
    g->copies_status = status == RL_AGAIN || g->copies == NULL ? g->copies_status : status;
    return reached;
}

void generator_finish_work(struct rollout_generator *g, struct generator_work *work)
{
    assert(g->done_count < g->done_capacity);
    g->done[(g->done_head + g->done_count++) % g->done_capacity] = work->group;
    work->group = NULL;
    generator_work_fini(work);
    g->counters.finished_groups++;
}

/* Queue what is to be generated; a group without anything is finished at once. */
static rl_status enter(struct rollout_generator *g, struct generator_work *work)
{
    struct rollout_scheduler_group group = {.prompt_count = work->prompt_count,
                                            .max_new = g->options.max_completion,
                                            .samples = (int32_t)work->group->sample_count,
                                            .schedule = work->schedule,
                                            .skip = work->skip};
    int32_t index = 0;
    if (work->left == 0) {
        generator_finish_work(g, work);
        return RL_OK;
    }
    RL_TRY(rollout_scheduler_add(g->scheduler, &group, &index));
    g->works[index] = *work;
    generator_draft_open(g, index);
    return RL_OK;
}

rl_status rollout_generator_submit(struct rollout_generator *generator,
                                   const struct rollout_request *request)
{
    struct rollout_generator *g = generator;
    struct generator_work work = {0};
    if (rollout_scheduler_groups(g->scheduler) + g->done_count >= g->options.max_groups) {
        return RL_AGAIN;
    }
    RL_TRY(generator_work_init(&work, g, request));
    rl_status status = enter(g, &work);
    if (status != RL_OK) {
        generator_work_fini(&work);
    }
    return status;
}

rl_status rollout_generator_take(struct rollout_generator *generator,
                                 struct trajectory_group **group)
{
    if (generator->done_count == 0) {
        return RL_AGAIN;
    }
    *group = generator->done[generator->done_head];
    generator->done_head = (generator->done_head + 1) % generator->done_capacity;
    generator->done_count--;
    return RL_OK;
}

static bool is_partial(const struct generator_work *work)
{
    for (uint32_t i = 0; work->group != NULL && i < work->group->sample_count; i++) {
        if (work->group->samples[i].completion_count > 0) {
            return true;
        }
    }
    return false;
}

rl_status rollout_generator_partials(const struct rollout_generator *generator,
                                     struct trajectory_group ***groups, int32_t *count)
{
    const struct rollout_generator *g = generator;
    struct trajectory_group **found =
        calloc((size_t)(g->options.max_groups + g->done_count), sizeof(*found));
    int32_t filled = 0;
    rl_status status = RL_OK;
    if (found == NULL) {
        return rl_fail(RL_NO_MEMORY, "rollout: out of memory for partial groups");
    }
    for (int32_t i = 0; i < g->options.max_groups && status == RL_OK; i++) {
        if (is_partial(&g->works[i])) {
            status = trajectory_group_copy(g->works[i].group, &found[filled]);
            filled += status == RL_OK;
        }
    }
    for (int32_t i = 0; i < g->done_count && status == RL_OK; i++) {
        status =
            trajectory_group_copy(g->done[(g->done_head + i) % g->done_capacity], &found[filled]);
        filled += status == RL_OK;
    }
    if (status != RL_OK) {
        while (filled > 0) {
            trajectory_group_destroy(found[--filled]);
        }
        free(found);
        return status;
    }
    *groups = found;
    *count = filled;
    return RL_OK;
}

bool rollout_generator_needs(const struct rollout_generator *generator, uint32_t version)
{
    for (int32_t i = 0; i < generator->options.max_groups; i++) {
        const struct generator_work *work = &generator->works[i];
        for (uint32_t s = 0; work->schedule != NULL && s < work->group->sample_count; s++) {
            for (uint32_t k = 0; k < work->schedule[s].count; k++) {
                if (work->schedule[s].switches[k].version == version) {
                    return true;
                }
            }
        }
    }
    return false;
}

int32_t rollout_generator_running(const struct rollout_generator *generator)
{
    return rollout_scheduler_running(generator->scheduler);
}

int32_t rollout_generator_groups(const struct rollout_generator *generator)
{
    return rollout_scheduler_groups(generator->scheduler);
}

const struct rollout_counters *rollout_generator_counters(const struct rollout_generator *generator)
{
    return &generator->counters;
}
