/* See generator_internal.h. The scheduler says which tokens the next pass holds; this file moves
 * the data: it fills the batch, runs the model, and files each sampled token with its log-prob and
 * version. */
#include "rollout/generator_internal.h"

#include "core/clock.h"
#include "core/log.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static int32_t token_at(const struct rollout_generator *g, const struct rollout_segment *segment,
                        int32_t position)
{
    int32_t group =
        segment->prefix ? segment->index : rollout_scheduler_group_of(g->scheduler, segment->index);
    const struct generator_work *work = &g->works[group];
    if (position < work->prompt_count) {
        return work->prompt[position];
    }
    size_t row = (size_t)segment->index * (size_t)g->options.max_completion;
    return g->completion[row + (size_t)(position - work->prompt_count)];
}

static struct rl_rng_key key_of(const struct rollout_generator *g, int32_t slot)
{
    const struct generator_work *work = &g->works[rollout_scheduler_group_of(g->scheduler, slot)];
    uint64_t prompt = work->group->prompt_id ^ ((uint64_t)work->group->epoch << 40);
    return rl_rng_key_make(g->options.seed, prompt,
                           (uint64_t)rollout_scheduler_sample_of(g->scheduler, slot));
}

/* Lay the plan's tokens out as a packed batch; returns the number of rows to sample. */
static int32_t fill_pass(struct rollout_generator *g, const struct rollout_plan *plan)
{
    struct generator_pass *pass = &g->pass;
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
        for (int32_t i = 0; segment->sample && i <= segment->guessed; i++, rows++) {
            pass->hidden_rows[rows] = token - 1 - segment->guessed + i;
            pass->slots[rows] = segment->index;
            pass->keys[rows] = key_of(g, segment->index);
            pass->counters[rows] = (uint64_t)(g->completion_count[segment->index] + i);
        }
    }
    pass->segment_start[plan->segment_count] = token;
    return rows;
}

static void count_pass(struct rollout_generator *g, const struct rollout_plan *plan, double pass_s,
                       double head)
{
    int32_t decoded = 0;
    for (int32_t s = 0; s < plan->segment_count; s++) {
        const struct rollout_segment *segment = &plan->segments[s];
        decoded += segment->sample && segment->count == 1 + segment->guessed ? segment->count : 0;
    }
    double share = (double)decoded / (double)plan->token_count;
    g->counters.decode_s += share * (1 - head) * pass_s;
    g->counters.prefill_s += (1 - share) * (1 - head) * pass_s;
    g->counters.sample_s += head * pass_s;
}

/* A pass starts: was the time since the one before a pause for new weights? */
static void count_gap(struct rollout_generator *g, uint32_t version, double start_s)
{
    double gap = start_s - g->pass_end_s;
    if (version > g->newest_passed && g->pass_end_s > 0) {
        rl_histogram_add(g->counters.times.switch_gap_us, gap);
        g->counters.times.switch_gap_max_s = fmax(gap, g->counters.times.switch_gap_max_s);
    }
    g->newest_passed = version > g->newest_passed ? version : g->newest_passed;
}

static void run_model(struct rollout_generator *g, const struct rollout_plan *plan, int32_t rows)
{
    struct generator_pass *pass = &g->pass;
    struct kernel_segments segments = {.count = plan->segment_count,
                                       .segment_start = pass->segment_start,
                                       .first_position = pass->first_position,
                                       .page_table = pass->page_table};
    struct model_batch batch = {.token_count = plan->token_count,
                                .tokens = pass->tokens,
                                .positions = pass->positions,
                                .segments = &segments};
    const void *image = generator_image(g, plan->version);
    struct model_decode_args decode = {.hidden_rows = pass->hidden_rows,
                                       .sampling = &g->options.sampling,
                                       .keys = pass->keys,
                                       .counters = pass->counters,
                                       .m = rows,
                                       .ids = pass->ids,
                                       .logprob = pass->logprob,
                                       .kept = pass->kept};
    double start = rl_clock_now_s(NULL);
    count_gap(g, plan->version, start);
    double head = model_generate(&g->context, image, &g->kv, &batch, g->workspace, &decode);
    g->pass_end_s = rl_clock_now_s(NULL);
    g->pass_s = g->pass_end_s - start;
    rl_histogram_add(g->counters.times.pass_us, g->pass_s);
    count_pass(g, plan, g->pass_s, head);
}

/* Move a finished sequence's tokens into its trajectory. */
static rl_status file_sample(struct rollout_generator *g, int32_t slot, enum rl_finish finish)
{
    const struct generator_work *work = &g->works[rollout_scheduler_group_of(g->scheduler, slot)];
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
    sample->kept_mass = count > 0 ? (float)(g->kept_sum[slot] / (double)count) : 1.0f;
    rl_status status =
        trajectory_set_tokens(sample, tokens, g->logprob + row, g->token_version + row,
                              (uint32_t)prompt, (uint32_t)count);
    free(tokens);
    generator_draft_finish(g, slot, sample->tokens + prompt);
    return status;
}

/* Does the completion, `count` tokens long, end here? With forced lengths the stop rules only say
 * how the last token is to be called. */
static rl_status check_end(const struct rollout_generator *g, int32_t slot, int32_t count,
                           enum rl_finish *finish)
{
    const struct generator_work *work = &g->works[rollout_scheduler_group_of(g->scheduler, slot)];
    int32_t limit = g->options.max_completion;
    bool stop = false;
    if (work->lengths != NULL) {
        limit = (int32_t)work->lengths[rollout_scheduler_sample_of(g->scheduler, slot)];
    }
    if (work->lengths == NULL || count == limit) {
        size_t row = (size_t)slot * (size_t)g->options.max_completion;
        RL_TRY(stop_rules_check(&g->stop, g->completion + row, count, &stop));
    }
    if (stop) {
        *finish = RL_FINISH_STOP;
    } else if (count == limit) {
        *finish = RL_FINISH_LENGTH;
    }
    return RL_OK;
}

static void keep_token(struct rollout_generator *g, int32_t row, uint32_t version)
{
    int32_t slot = g->pass.slots[row];
    size_t at =
        (size_t)slot * (size_t)g->options.max_completion + (size_t)g->completion_count[slot];
    g->completion[at] = g->pass.ids[row];
    g->logprob[at] = g->pass.logprob[row];
    g->token_version[at] = version;
    g->kept_sum[slot] += (double)g->pass.kept[row];
    g->completion_count[slot]++;
    g->counters.sampled_tokens++;
    generator_draft_append(g, slot);
}

/* File one sampled token; *finish says whether the completion ends there. */
static rl_status take_token(struct rollout_generator *g, int32_t row, uint32_t version,
                            enum rl_finish *finish)
{
    int32_t slot = g->pass.slots[row];
    if (isfinite(g->pass.logprob[row])) {
        keep_token(g, row, version);
        return check_end(g, slot, g->completion_count[slot], finish);
    }
    *finish = RL_FINISH_ABORTED;
    g->counters.nonfinite++;
    return RL_OK;
}

/* Was the token sampled in `row` guessed? The guess stands where the token will. */
static bool was_guessed(const struct rollout_generator *g, int32_t row)
{
    size_t slot = (size_t)g->pass.slots[row];
    size_t at = slot * (size_t)g->options.max_completion + (size_t)g->completion_count[slot];
    return g->completion[at] == g->pass.ids[row];
}

/* File the tokens sampled for a sequence, from its first row on. A token that was guessed right has
 * the next one after it, sampled from the same numbers as in a pass of its own. */
static rl_status take_tokens(struct rollout_generator *g, const struct rollout_segment *segment,
                             int32_t row, uint32_t version)
{
    int32_t slot = segment->index;
    int32_t group = rollout_scheduler_group_of(g->scheduler, slot);
    struct generator_work *work = &g->works[group];
    enum rl_finish finish = RL_FINISH_NONE;
    int32_t count = 0;
    bool group_done = false;
    bool more = true;
    while (more && finish == RL_FINISH_NONE) {
        more = count < segment->guessed && was_guessed(g, row + count);
        RL_TRY(take_token(g, row + count, version, &finish));
        count++;
    }
    g->counters.times.right_guesses += (uint64_t)(count - 1);
    if (work->group->started_s <= 0) {
        work->group->started_s = rl_clock_now_s(NULL);
    }
    if (finish != RL_FINISH_NONE) {
        RL_TRY(file_sample(g, slot, finish));
        g->counters.finished_samples++;
        g->counters.finished_tokens += (uint64_t)g->completion_count[slot];
        g->completion_count[slot] = 0;
        g->kept_sum[slot] = 0.0;
    }
    rollout_scheduler_append(g->scheduler, slot, count, finish != RL_FINISH_NONE, &group_done);
    if (group_done) {
        generator_draft_close(g, group);
        generator_finish_work(g, work);
    }
    return RL_OK;
}

/* The pass is done: count it, and file what was sampled in it. */
static rl_status file_tokens(struct rollout_generator *g, const struct rollout_plan *plan)
{
    const uint64_t sampled = g->counters.sampled_tokens;
    const uint64_t right = g->counters.times.right_guesses;
    int32_t row = 0;
    int32_t guessed = 0;
    for (int32_t s = 0; s < plan->segment_count; s++) {
        const struct rollout_segment *segment = &plan->segments[s];
        if (segment->sample) {
            RL_TRY(take_tokens(g, segment, row, plan->version));
            row += 1 + segment->guessed;
            guessed += segment->guessed;
        }
    }
    uint64_t wrong = (uint64_t)guessed - (g->counters.times.right_guesses - right);
    g->counters.passes++;
    g->counters.forwarded_tokens += (uint64_t)plan->token_count - wrong;
    generator_draft_learn(g, plan, g->counters.sampled_tokens - sampled);
    return RL_OK;
}

rl_status rollout_generator_tick(struct rollout_generator *generator, bool *busy)
{
    struct rollout_generator *g = generator;
    struct rollout_plan plan;
    rollout_scheduler_plan(g->scheduler, &plan);
    if (plan.segment_count == 0) {
        g->pass_end_s = 0;
        *busy = false;
        return g->copies_status;
    }
    for (int32_t i = 0; i < plan.copy_count; i++) {
        model_kv_copy_page(&g->context, &g->kv, plan.copies[i].from, plan.copies[i].to);
    }
    generator_draft_plan(g, &plan);
    int32_t rows = fill_pass(g, &plan);
    run_model(g, &plan, rows);
    RL_TRY(device_wait(g->context.pool)); /* the image may be overwritten from here on */
    rollout_scheduler_commit(g->scheduler, &plan);
    RL_TRY(file_tokens(g, &plan));
    if (rollout_scheduler_groups(g->scheduler) == 0) {
        g->pass_end_s = 0; /* what comes next is no pause of anything */
    }
    *busy = true;
    return RL_OK;
}
