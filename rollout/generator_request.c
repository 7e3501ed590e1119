/* See generator_internal.h. A request is checked and copied whole before anything is queued. */
#include "rollout/generator_internal.h"

#include "core/log.h"

#include <stdlib.h>
#include <string.h>

static rl_status check_prompt(const struct rollout_generator *g,
                              const struct rollout_request *request)
{
    int32_t vocab = g->context.layout->arch.vocab;
    if (request->prompt_count < 1 || request->prompt_count > (uint32_t)g->options.max_prompt) {
        return rl_fail(RL_TOO_LONG, "prompt %llu has %u tokens, the limit is %d",
                       (unsigned long long)request->prompt_id, request->prompt_count,
                       g->options.max_prompt);
    }
    for (uint32_t i = 0; i < request->prompt_count; i++) {
        if (request->prompt[i] < 0 || request->prompt[i] >= vocab) {
            return rl_fail(RL_INVALID, "prompt %llu: token id %d is outside the vocabulary of %d",
                           (unsigned long long)request->prompt_id, request->prompt[i], vocab);
        }
    }
    return RL_OK;
}

static rl_status check_lengths(const struct rollout_generator *g,
                               const struct rollout_request *request)
{
    for (uint32_t i = 0; request->lengths != NULL && i < request->samples; i++) {
        if (request->lengths[i] > (uint32_t)g->options.max_completion) {
            return rl_fail(RL_TOO_LONG, "ticket %llu sample %u: %u tokens forced, the limit is %d",
                           (unsigned long long)request->ticket, i, request->lengths[i],
                           g->options.max_completion);
        }
    }
    return RL_OK;
}

static rl_status check_done(const struct rollout_generator *g,
                            const struct rollout_request *request)
{
    const struct trajectory_group *done = request->done;
    if (done == NULL) {
        return RL_OK;
    }
    RL_TRY(trajectory_group_check(done));
    if (done->sample_count != request->samples) {
        return rl_fail(RL_INVALID, "ticket %llu: %u samples, the partial group has %u",
                       (unsigned long long)request->ticket, request->samples, done->sample_count);
    }
    for (uint32_t i = 0; i < done->sample_count; i++) {
        const struct trajectory *sample = &done->samples[i];
        bool fits =
            sample->prompt_count == request->prompt_count &&
            sample->completion_count <= (uint32_t)g->options.max_completion &&
            memcmp(sample->tokens, request->prompt, request->prompt_count * sizeof(int32_t)) == 0;
        if (sample->completion_count > 0 && !fits) {
            return rl_fail(RL_INVALID,
                           "ticket %llu sample %u: finished earlier, but of another "
                           "prompt or longer than %d tokens",
                           (unsigned long long)request->ticket, i, g->options.max_completion);
        }
    }
    return RL_OK;
}

/* NULL when out of memory. */
static void *copy_array(const void *from, size_t bytes)
{
    void *copy = malloc(bytes);
    if (copy != NULL) {
        memcpy(copy, from, bytes);
    }
    return copy;
}

/* Take finished samples over, and note which are not to be generated. */
static rl_status take_over(struct generator_work *work, const struct rollout_request *request)
{
    work->skip = calloc(request->samples, sizeof(bool));
    if (work->skip == NULL) {
        return rl_fail(RL_NO_MEMORY, "rollout: out of memory for a request");
    }
    for (uint32_t i = 0; i < request->samples; i++) {
        const struct trajectory *done = request->done != NULL ? &request->done->samples[i] : NULL;
        struct trajectory *sample = &work->group->samples[i];
        if (done != NULL && done->completion_count > 0) {
            RL_TRY(trajectory_set_tokens(sample, done->tokens, done->logprob, done->version,
                                         done->prompt_count, done->completion_count));
            sample->finish = done->finish;
            sample->kept_mass = done->kept_mass;
            work->skip[i] = true;
        } else if (request->lengths != NULL && request->lengths[i] == 0) {
            work->skip[i] = true;
        }
        work->left += !work->skip[i];
    }
    return RL_OK;
}

static rl_status copy_request(struct generator_work *work, const struct rollout_request *request)
{
    RL_TRY(trajectory_group_create(request->samples, &work->group));
    work->group->ticket = request->ticket;
    work->group->prompt_id = request->prompt_id;
    work->group->epoch = request->epoch;
    work->prompt_count = (int32_t)request->prompt_count;
    work->prompt = copy_array(request->prompt, request->prompt_count * sizeof(int32_t));
    if (request->lengths != NULL) {
        work->lengths = copy_array(request->lengths, request->samples * sizeof(uint32_t));
    }
    if (work->prompt == NULL || (request->lengths != NULL && work->lengths == NULL)) {
        return rl_fail(RL_NO_MEMORY, "rollout: out of memory for a request");
    }
    RL_TRY(take_over(work, request));
    if (request->schedule != NULL) {
        RL_TRY(rollout_schedules_copy(request->schedule, work->skip, request->samples,
                                      &work->schedule));
    }
    return RL_OK;
}

static rl_status make_texts(struct generator_work *work, uint32_t samples)
{
    work->texts = calloc(samples, sizeof(*work->texts));
    return work->texts != NULL ? RL_OK
                               : rl_fail(RL_NO_MEMORY, "rollout: out of memory for a request");
}

rl_status generator_work_init(struct generator_work *work, const struct rollout_generator *g,
                              const struct rollout_request *request)
{
    struct generator_work made = {0};
    RL_TRY(check_prompt(g, request));
    RL_TRY(check_lengths(g, request));
    RL_TRY(check_done(g, request));
    rl_status status = copy_request(&made, request);
    if (status == RL_OK && g->options.speculation != ROLLOUT_SPECULATION_OFF) {
        status = make_texts(&made, request->samples);
    }
    if (status != RL_OK) {
        generator_work_fini(&made);
        return status;
    }
    *work = made;
    return RL_OK;
}

void generator_work_fini(struct generator_work *work)
{
    trajectory_group_destroy(work->group);
    free(work->prompt);
    free(work->schedule);
    free(work->lengths);
    free(work->skip);
    free(work->texts);
    *work = (struct generator_work){0};
}
