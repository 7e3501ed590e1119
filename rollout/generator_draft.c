/* See generator_internal.h. Which guessed tokens a pass carries: the drafter (speculation.h)
 * offers, the policy (draft_policy.h) chooses, the scheduler's plan is extended. A guess is written
 * where the completion goes on and is written over by what is sampled there. */
#include "rollout/generator_internal.h"

#include "core/log.h"

#include <stdlib.h>

static struct rollout_speculation_limits limits_of(const struct rollout_generator_options *options)
{
    return (struct rollout_speculation_limits){.max_running = options->max_running,
                                               .max_groups = options->max_groups,
                                               .max_prompt = options->max_prompt,
                                               .max_completion = options->max_completion};
}

int32_t generator_draft_rows(const struct rollout_generator_options *options)
{
    return options->speculation != ROLLOUT_SPECULATION_OFF ? DRAFT_ROWS : 0;
}

size_t generator_draft_bytes(const struct rollout_generator_options *options)
{
    struct rollout_speculation_limits limits = limits_of(options);
    return options->speculation != ROLLOUT_SPECULATION_OFF
               ? rollout_speculation_bytes(&limits) + sizeof(struct rollout_draft_policy)
               : 0;
}

rl_status generator_draft_create(struct rollout_generator *g)
{
    if (g->options.speculation == ROLLOUT_SPECULATION_OFF) {
        return RL_OK;
    }
    struct rollout_speculation_limits limits = limits_of(&g->options);
    size_t rows = (size_t)g->options.max_running;
    g->draft.policy = calloc(1, sizeof(*g->draft.policy));
    g->draft.guesses = calloc(rows, sizeof(int32_t));
    g->draft.chance = calloc(rows * SPECULATION_GUESSES, sizeof(float));
    if (g->draft.policy == NULL || g->draft.guesses == NULL || g->draft.chance == NULL) {
        return rl_fail(RL_NO_MEMORY, "rollout: out of memory for speculation");
    }
    rollout_draft_policy_init(g->draft.policy);
    return rollout_speculation_create(&limits, &g->draft.speculation);
}

void generator_draft_destroy(struct rollout_generator *g)
{
    rollout_speculation_destroy(g->draft.speculation);
    free(g->draft.policy);
    free(g->draft.guesses);
    free(g->draft.chance);
}

/* --- texts --------------------------------------------------------------------------------------
 */

void generator_draft_open(struct rollout_generator *g, int32_t group)
{
    const struct generator_work *work = &g->works[group];
    if (g->draft.speculation == NULL) {
        return;
    }
    struct rollout_speculation_group args = {.prompt = work->prompt,
                                             .prompt_count = work->prompt_count,
                                             .samples = (int32_t)work->group->sample_count,
                                             .texts = work->texts};
    rollout_speculation_open(g->draft.speculation, group, &args);
    for (int32_t i = 0; i < args.samples; i++) {
        const struct trajectory *done = &work->group->samples[i];
        if (done->completion_count > 0) {
            rollout_speculation_add(g->draft.speculation, group, i,
                                    done->tokens + done->prompt_count,
                                    (int32_t)done->completion_count);
        }
    }
}

void generator_draft_close(struct rollout_generator *g, int32_t group)
{
    if (g->draft.speculation != NULL) {
        rollout_speculation_close(g->draft.speculation, group);
    }
}

void generator_draft_append(struct rollout_generator *g, int32_t slot)
{
    if (g->draft.speculation != NULL) {
        rollout_speculation_append(g->draft.speculation, slot);
    }
}

void generator_draft_finish(struct rollout_generator *g, int32_t slot, const int32_t *completion)
{
    if (g->draft.speculation != NULL) {
        rollout_speculation_finish(g->draft.speculation, slot, completion);
    }
}

/* --- guesses of a pass --------------------------------------------------------------------------
 */

/* Samples that get their first token become texts. True if the pass is one token a sequence. */
static bool start_samples(struct rollout_generator *g, const struct rollout_plan *plan)
{
    for (int32_t i = 0; i < plan->segment_count; i++) {
        const struct rollout_segment *segment = &plan->segments[i];
        if (!segment->sample || g->completion_count[segment->index] > 0) {
            continue;
        }
        size_t row = (size_t)segment->index * (size_t)g->options.max_completion;
        struct rollout_speculation_start start = {
            .group = rollout_scheduler_group_of(g->scheduler, segment->index),
            .sample = rollout_scheduler_sample_of(g->scheduler, segment->index),
            .completion = g->completion + row};
        rollout_speculation_start(g->draft.speculation, segment->index, &start);
    }
    return plan->token_count == plan->segment_count;
}

/* Tokens that may be guessed of a sequence: what is sampled after the last guess must still have
 * room. */
static int32_t most_guesses(const struct rollout_generator *g, int32_t slot)
{
    const struct generator_work *work = &g->works[rollout_scheduler_group_of(g->scheduler, slot)];
    int32_t most = rollout_scheduler_room(g->scheduler, slot) - 1;
    if (work->lengths != NULL) {
        int32_t length = (int32_t)work->lengths[rollout_scheduler_sample_of(g->scheduler, slot)];
        int32_t left = length - g->completion_count[slot] - 1;
        most = left < most ? left : most;
    }
    return most < SPECULATION_GUESSES ? most : SPECULATION_GUESSES;
}

static void offer_guesses(struct rollout_generator *g, const struct rollout_plan *plan)
{
    rollout_draft_policy_clear(g->draft.policy);
    for (int32_t i = 0; i < plan->segment_count; i++) {
        int32_t slot = plan->segments[i].index;
        float *chance = g->draft.chance + (size_t)i * SPECULATION_GUESSES;
        int32_t count =
            rollout_speculation_guess(g->draft.speculation, slot, most_guesses(g, slot), chance);
        for (int32_t k = 0; k < count; k++) {
            rollout_draft_policy_offer(g->draft.policy, chance[k]);
        }
        g->draft.guesses[i] = count;
    }
}

/* Extend the plan by the guesses of enough chance. */
static void take_guesses(struct rollout_generator *g, struct rollout_plan *plan,
                         struct draft_choice choice)
{
    for (int32_t i = 0; i < plan->segment_count && g->draft.rows < choice.rows; i++) {
        const float *chance = g->draft.chance + (size_t)i * SPECULATION_GUESSES;
        int32_t left = choice.rows - g->draft.rows;
        int32_t most = g->draft.guesses[i] < left ? g->draft.guesses[i] : left;
        int32_t count = 0;
        while (count < most && chance[count] >= choice.chance) {
            count++;
        }
        rollout_scheduler_extend(g->scheduler, plan, i, count);
        g->draft.rows += count;
    }
}

void generator_draft_plan(struct rollout_generator *g, struct rollout_plan *plan)
{
    if (g->draft.speculation == NULL) {
        return;
    }
    g->draft.rows = 0;
    g->draft.decodes = start_samples(g, plan);
    if (!g->draft.decodes) {
        return;
    }
    offer_guesses(g, plan);
    struct draft_choice choice = {.chance = 0, .rows = DRAFT_ROWS};
    if (g->options.speculation == ROLLOUT_SPECULATION_AUTO) {
        choice = rollout_draft_policy_choose(g->draft.policy, plan->segment_count);
    }
    take_guesses(g, plan, choice);
    g->counters.times.guessed_tokens += (uint64_t)g->draft.rows;
}

void generator_draft_learn(struct rollout_generator *g, const struct rollout_plan *plan,
                           uint64_t tokens)
{
    if (g->draft.speculation == NULL || !g->draft.decodes ||
        g->options.speculation != ROLLOUT_SPECULATION_AUTO) {
        return;
    }
    struct draft_pass pass = {.sequences = plan->segment_count,
                              .rows = g->draft.rows,
                              .tokens = (int32_t)tokens,
                              .seconds = g->pass_s};
    rollout_draft_policy_learn(g->draft.policy, &pass);
}
