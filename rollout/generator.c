/* See generator.h. The scheduler says which tokens the next pass holds; this file moves the data:
 * it fills the batch, runs the model, and files each sampled token with its log-prob and version.
 */
#include "rollout/generator.h"

#include "core/clock.h"
#include "core/log.h"
#include "rollout/scheduler.h"
#include "rollout/stop_rules.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A group being generated; index as in the scheduler. */
struct work {
    struct trajectory_group *group;
    int32_t *prompt; /* [prompt_count] owned */
    int32_t prompt_count;
};

/* Arrays of one pass, sized for the largest plan. */
struct pass {
    int32_t *tokens, *positions;        /* [max_tokens] */
    int32_t *segment_start;             /* [max_segments + 1] */
    int32_t *first_position;            /* [max_segments] */
    const int32_t **page_table;         /* [max_segments] */
    int32_t *hidden_rows, *slots, *ids; /* [max_running] */
    float *logprob;                     /* [max_running] */
    struct rl_rng_key *keys;            /* [max_running] */
    uint64_t *counters;                 /* [max_running] */
};

struct rollout_generator {
    struct model_context context;
    struct rollout_generator_options options;
    struct stop_rules stop;
    struct rollout_scheduler *scheduler;
    struct model_kv kv;
    struct model_workspace *workspace;
    const void *image;
    uint32_t version;
    int32_t max_length;
    struct work *works;        /* [max_groups] */
    int32_t *completion;       /* [max_running][max_completion] */
    float *logprob;            /* [max_running][max_completion] */
    uint32_t *token_version;   /* [max_running][max_completion] */
    int32_t *completion_count; /* [max_running] */
    struct pass pass;
    struct trajectory_group **done; /* ring [max_groups + 1] */
    int32_t done_head, done_count, done_capacity;
    struct rollout_counters counters;
};

static int32_t pass_tokens(const struct rollout_generator_options *options)
{
    return options->max_running + options->prefill_chunk;
}

/* --- life cycle
 * ----------------------------------------------------------------------------------- */

static bool allocate_pass(struct pass *pass, const struct rollout_generator_options *options)
{
    size_t tokens = (size_t)pass_tokens(options);
    size_t segments = (size_t)options->max_running + (size_t)options->max_groups;
    size_t rows = (size_t)options->max_running;
    pass->tokens = calloc(tokens, sizeof(int32_t));
    pass->positions = calloc(tokens, sizeof(int32_t));
    pass->segment_start = calloc(segments + 1, sizeof(int32_t));
    pass->first_position = calloc(segments, sizeof(int32_t));
    pass->page_table = calloc(segments, sizeof(*pass->page_table));
    pass->hidden_rows = calloc(rows, sizeof(int32_t));
    pass->slots = calloc(rows, sizeof(int32_t));
    pass->ids = calloc(rows, sizeof(int32_t));
    pass->logprob = calloc(rows, sizeof(float));
    pass->keys = calloc(rows, sizeof(*pass->keys));
    pass->counters = calloc(rows, sizeof(uint64_t));
    return pass->tokens && pass->positions && pass->segment_start && pass->first_position &&
           pass->page_table && pass->hidden_rows && pass->slots && pass->ids && pass->logprob &&
           pass->keys && pass->counters;
}

static bool allocate_sequences(struct rollout_generator *g)
{
    size_t rows = (size_t)g->options.max_running;
    size_t tokens = rows * (size_t)g->options.max_completion;
    g->works = calloc((size_t)g->options.max_groups, sizeof(*g->works));
    g->completion = calloc(tokens, sizeof(int32_t));
    g->logprob = calloc(tokens, sizeof(float));
    g->token_version = calloc(tokens, sizeof(uint32_t));
    g->completion_count = calloc(rows, sizeof(int32_t));
    g->done_capacity = g->options.max_groups + 1;
    g->done = calloc((size_t)g->done_capacity, sizeof(*g->done));
    return g->works && g->completion && g->logprob && g->token_version && g->completion_count &&
           g->done && allocate_pass(&g->pass, &g->options);
}

static rl_status build(struct rollout_generator *g)
{
    const struct model_layout *layout = g->context.layout;
    struct rollout_scheduler_limits limits = {.max_running = g->options.max_running,
                                              .max_groups = g->options.max_groups,
                                              .max_length = g->max_length,
                                              .prefill_chunk = g->options.prefill_chunk};
    RL_TRY(rollout_scheduler_create(&limits, &g->scheduler));
    RL_TRY(model_kv_create(layout, rollout_scheduler_page_count(g->scheduler), &g->kv));
    RL_TRY(model_workspace_create(layout, pass_tokens(&g->options), false, &g->workspace));
    if (!allocate_sequences(g)) {
        return rl_fail(RL_NO_MEMORY, "rollout: out of memory for %d sequences of %d tokens",
                       g->options.max_running, g->max_length);
    }
    return RL_OK;
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

static void free_pass(struct pass *pass)
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
        trajectory_group_destroy(g->works[i].group);
        free(g->works[i].prompt);
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
    free(g->completion);
    free(g->works);
    model_workspace_destroy(g->workspace);
    model_kv_fini(&g->kv);
    rollout_scheduler_destroy(g->scheduler);
    stop_rules_fini(&g->stop);
    free(g);
}

size_t rollout_generator_bytes(const struct model_layout *layout,
                               const struct rollout_generator_options *options)
{
    size_t length = (size_t)options->max_prompt + (size_t)options->max_completion;
    size_t pages = (length + KERNEL_PAGE_TOKENS - 1) / KERNEL_PAGE_TOKENS;
    /* Prefix pages of waiting groups stay untouched memory in practice: count running ones. */
    return pages * (size_t)options->max_running * model_kv_page_bytes(layout) +
           model_workspace_bytes(layout, pass_tokens(options), false);
}

/* --- groups in and out
 * ---------------------------------------------------------------------------- */

void rollout_generator_set_weights(struct rollout_generator *generator, const void *image,
                                   uint32_t version)
{
    bool changed = generator->image != NULL && version != generator->version;
    generator->image = image;
    generator->version = version;
    if (changed && rollout_scheduler_groups(generator->scheduler) > 0) {
        rollout_scheduler_switch(generator->scheduler, generator->options.recompute_on_update);
        generator->counters.switches++;
    }
}

static rl_status make_work(const struct rollout_request *request, struct work *work)
{
    RL_TRY(trajectory_group_create(request->samples, &work->group));
    work->prompt = malloc(request->prompt_count * sizeof(int32_t));
    if (work->prompt == NULL) {
        trajectory_group_destroy(work->group);
        *work = (struct work){0};
        return rl_fail(RL_NO_MEMORY, "rollout: out of memory for a prompt");
    }
    memcpy(work->prompt, request->prompt, request->prompt_count * sizeof(int32_t));
    work->prompt_count = (int32_t)request->prompt_count;
    work->group->ticket = request->ticket;
    work->group->prompt_id = request->prompt_id;
    work->group->epoch = request->epoch;
    return RL_OK;
}

rl_status rollout_generator_submit(struct rollout_generator *generator,
                                   const struct rollout_request *request)
{
    struct rollout_generator *g = generator;
    if (request->prompt_count < 1 || request->prompt_count > (uint32_t)g->options.max_prompt) {
        return rl_fail(RL_TOO_LONG, "prompt %llu has %u tokens, the limit is %d",
                       (unsigned long long)request->prompt_id, request->prompt_count,
                       g->options.max_prompt);
    }
    for (uint32_t i = 0; i < request->prompt_count; i++) {
        if (request->prompt[i] < 0 || request->prompt[i] >= g->context.layout->arch.vocab) {
            return rl_fail(RL_INVALID, "prompt %llu: token id %d is outside the vocabulary of %d",
                           (unsigned long long)request->prompt_id, request->prompt[i],
                           g->context.layout->arch.vocab);
        }
    }
    if (rollout_scheduler_groups(g->scheduler) + g->done_count >= g->options.max_groups) {
        return RL_AGAIN;
    }
    struct work work = {0};
    int32_t index = 0;
    RL_TRY(make_work(request, &work));
    rl_status status =
        rollout_scheduler_add(g->scheduler, work.prompt_count, g->options.max_completion,
                              (int32_t)request->samples, &index);
    if (status != RL_OK) {
        trajectory_group_destroy(work.group);
        free(work.prompt);
        return status;
    }
    g->works[index] = work;
    return RL_OK;
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

/* --- one pass
 * --------------------------------------------------------------------------------------- */

static int32_t token_at(const struct rollout_generator *g, const struct rollout_segment *segment,
                        int32_t position)
{
    int32_t group =
        segment->prefix ? segment->index : rollout_scheduler_group_of(g->scheduler, segment->index);
    const struct work *work = &g->works[group];
    if (position < work->prompt_count) {
        return work->prompt[position];
    }
    size_t row = (size_t)segment->index * (size_t)g->options.max_completion;
    return g->completion[row + (size_t)(position - work->prompt_count)];
}

static struct rl_rng_key key_of(const struct rollout_generator *g, int32_t slot)
{
    const struct work *work = &g->works[rollout_scheduler_group_of(g->scheduler, slot)];
    uint64_t prompt = work->group->prompt_id ^ ((uint64_t)work->group->epoch << 40);
    return rl_rng_key_make(g->options.seed, prompt,
                           (uint64_t)rollout_scheduler_sample_of(g->scheduler, slot));
}

/* Lay the plan's tokens out as a packed batch; returns the number of rows to sample. */
static int32_t fill_pass(struct rollout_generator *g, const struct rollout_plan *plan)
{
    struct pass *pass = &g->pass;
    int32_t token = 0;
    int32_t rows = 0;
    for (int32_t s = 0; s < plan->segment_count; s++) {
        const struct rollout_segment *segment = &plan->segments[s];
        pass->segment_start[s] = token;
        pass->first_position[s] = segment->first;
        pass->page_table[s] = rollout_scheduler_pages(g->scheduler, segment);
        for (int32_t i = 0; i < segment->count; i++, token++) {
            pass->tokens[token] = token_at(g, segment, segment->first + i);
            pass->positions[token] = segment->first + i;
        }
        if (segment->sample) {
            pass->hidden_rows[rows] = token - 1;
            pass->slots[rows] = segment->index;
            pass->keys[rows] = key_of(g, segment->index);
            pass->counters[rows] = (uint64_t)g->completion_count[segment->index];
            rows++;
        }
    }
    pass->segment_start[plan->segment_count] = token;
    return rows;
}

static void count_pass(struct rollout_generator *g, const struct rollout_plan *plan, double pass_s)
{
    int32_t decoded = 0;
    for (int32_t s = 0; s < plan->segment_count; s++) {
        decoded += plan->segments[s].sample && plan->segments[s].count == 1;
    }
    double share = (double)decoded / (double)plan->token_count;
    g->counters.decode_s += share * pass_s;
    g->counters.prefill_s += (1 - share) * pass_s;
}

static void run_model(struct rollout_generator *g, const struct rollout_plan *plan, int32_t rows)
{
    struct pass *pass = &g->pass;
    struct kernel_segments segments = {.count = plan->segment_count,
                                       .segment_start = pass->segment_start,
                                       .first_position = pass->first_position,
                                       .page_table = pass->page_table};
    struct model_batch batch = {.token_count = plan->token_count,
                                .tokens = pass->tokens,
                                .positions = pass->positions,
                                .segments = &segments};
    const float *hidden = NULL;
    double start = rl_clock_now_s(NULL);
    model_forward(&g->context, g->image, &g->kv, &batch, g->workspace, &hidden);
    double forwarded = rl_clock_now_s(NULL);
    count_pass(g, plan, forwarded - start);
    if (rows == 0) {
        return;
    }
    struct model_decode_args decode = {.hidden_rows = pass->hidden_rows,
                                       .sampling = &g->options.sampling,
                                       .keys = pass->keys,
                                       .counters = pass->counters,
                                       .m = rows,
                                       .ids = pass->ids,
                                       .logprob = pass->logprob};
    model_head_decode(&g->context, g->image, g->workspace, &decode);
    g->counters.sample_s += rl_clock_now_s(NULL) - forwarded;
}

/* Move a finished sequence's tokens into its trajectory. */
static rl_status file_sample(struct rollout_generator *g, int32_t slot, enum rl_finish finish)
{
    const struct work *work = &g->works[rollout_scheduler_group_of(g->scheduler, slot)];
    int32_t index = rollout_scheduler_sample_of(g->scheduler, slot);
    size_t row = (size_t)slot * (size_t)g->options.max_completion;
    size_t count = (size_t)g->completion_count[slot];
    size_t prompt = (size_t)work->prompt_count;
    int32_t *tokens = malloc((prompt + count) * sizeof(int32_t));
    if (tokens == NULL) {
        return rl_fail(RL_NO_MEMORY, "rollout: out of memory for a finished sample");
    }
    memcpy(tokens, work->prompt, prompt * sizeof(int32_t));
    memcpy(tokens + prompt, g->completion + row, count * sizeof(int32_t));
    struct trajectory *sample = &work->group->samples[index];
    sample->sample_index = (uint32_t)index;
    sample->finish = finish;
    rl_status status =
        trajectory_set_tokens(sample, tokens, g->logprob + row, g->token_version + row,
                              (uint32_t)prompt, (uint32_t)count);
    free(tokens);
    return status;
}

static void finish_group(struct rollout_generator *g, int32_t index)
{
    struct work *work = &g->works[index];
    assert(g->done_count < g->done_capacity);
    g->done[(g->done_head + g->done_count++) % g->done_capacity] = work->group;
    free(work->prompt);
    *work = (struct work){0};
    g->counters.finished_groups++;
}

/* File one sampled token; ends the sequence where a rule says so. */
static rl_status take_token(struct rollout_generator *g, int32_t row)
{
    int32_t slot = g->pass.slots[row];
    int32_t count = g->completion_count[slot];
    size_t at = (size_t)slot * (size_t)g->options.max_completion;
    enum rl_finish finish = RL_FINISH_NONE;
    if (!isfinite(g->pass.logprob[row])) {
        finish = RL_FINISH_ABORTED;
        g->counters.nonfinite++;
    } else {
        bool stop = false;
        g->completion[at + (size_t)count] = g->pass.ids[row];
        g->logprob[at + (size_t)count] = g->pass.logprob[row];
        g->token_version[at + (size_t)count] = g->version;
        g->completion_count[slot] = ++count;
        g->counters.sampled_tokens++;
        RL_TRY(stop_rules_check(&g->stop, g->completion + at, count, &stop));
        if (stop) {
            finish = RL_FINISH_STOP;
        } else if (count == g->options.max_completion) {
            finish = RL_FINISH_LENGTH;
        }
    }
    int32_t group = rollout_scheduler_group_of(g->scheduler, slot);
    bool group_done = false;
    if (g->works[group].group->started_s <= 0) {
        g->works[group].group->started_s = rl_clock_now_s(NULL);
    }
    if (finish != RL_FINISH_NONE) {
        RL_TRY(file_sample(g, slot, finish));
        g->completion_count[slot] = 0;
    }
    rollout_scheduler_append(g->scheduler, slot, finish != RL_FINISH_NONE, &group_done);
    if (group_done) {
        finish_group(g, group);
    }
    return RL_OK;
}

rl_status rollout_generator_tick(struct rollout_generator *generator, bool *busy)
{
    struct rollout_generator *g = generator;
    struct rollout_plan plan;
    assert(g->image != NULL);
    rollout_scheduler_plan(g->scheduler, &plan);
    if (plan.segment_count == 0) {
        *busy = false;
        return RL_OK;
    }
    for (int32_t i = 0; i < plan.copy_count; i++) {
        model_kv_copy_page(g->context.layout, &g->kv, plan.copies[i].from, plan.copies[i].to);
    }
    int32_t rows = fill_pass(g, &plan);
    run_model(g, &plan, rows);
    rollout_scheduler_commit(g->scheduler, &plan);
    g->counters.passes++;
    g->counters.forwarded_tokens += (uint64_t)plan.token_count;
    for (int32_t row = 0; row < rows; row++) {
        RL_TRY(take_token(g, row));
    }
    *busy = true;
    return RL_OK;
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
