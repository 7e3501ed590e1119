/* See guard.h. */
#include "trainer/guard.h"

#include "core/log.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

void guard_init(struct guard_state *state)
{
    *state = (struct guard_state){.rate_scale = 1};
}

rl_status guard_check(const struct guard_state *state)
{
    bool sane = state->norm_count <= GUARD_WINDOW && state->norm_next < GUARD_WINDOW &&
                state->revoked_from <= state->revoked_to && state->rate_scale > 0 &&
                state->rate_scale <= 1;
    return sane ? RL_OK : rl_fail(RL_CORRUPT, "checkpoint: the guard's state makes no sense");
}

/* --- gradient norms
 * ----------------------------------------------------------------------------------- */

double guard_norm_score(const struct guard_state *state, double norm)
{
    double sum = 0;
    double squares = 0;
    double n = (double)state->norm_count;
    if (state->norm_count < GUARD_WINDOW_LEAST || !isfinite(norm)) {
        return 0;
    }
    for (uint64_t i = 0; i < state->norm_count; i++) {
        sum += state->norms[i];
    }
    double mean = sum / n;
    for (uint64_t i = 0; i < state->norm_count; i++) {
        squares += (state->norms[i] - mean) * (state->norms[i] - mean);
    }
    double deviation = sqrt(squares / (n - 1));
    return deviation > 0 ? (norm - mean) / deviation : 0;
}

static void remember_norm(struct guard_state *state, double norm)
{
    state->norms[state->norm_next] = norm;
    state->norm_next = (state->norm_next + 1) % GUARD_WINDOW;
    state->norm_count += state->norm_count < GUARD_WINDOW;
}

/* Outliers one after the other are no outliers: begin to learn the level anew. */
static bool is_outlier(struct guard_state *state, double limit, double norm)
{
    if (limit <= 0 || guard_norm_score(state, norm) <= limit) {
        state->outliers_in_a_row = 0;
        return false;
    }
    if (++state->outliers_in_a_row < GUARD_OUTLIERS) {
        return true;
    }
    state->outliers_in_a_row = 0;
    state->norm_count = 0;
    state->norm_next = 0;
    return false;
}

enum guard_verdict guard_judge(struct guard_state *state, const struct guard_options *options,
                               uint32_t faults, double norm)
{
    if (faults != 0) {
        return GUARD_SKIP;
    }
    if (is_outlier(state, options->norm_score_max, norm)) {
        return GUARD_SKIP_OUTLIER;
    }
    remember_norm(state, norm);
    return GUARD_APPLY;
}

/* --- samples
 * ----------------------------------------------------------------------------------------- */

static uint32_t examine_sample(const struct guard_state *state, const struct trajectory *sample,
                               uint64_t step)
{
    for (uint32_t i = 0; i < sample->completion_count; i++) {
        if (sample->version[i] >= state->revoked_from && sample->version[i] < state->revoked_to) {
            return GUARD_REVOKED;
        }
    }
    if (sample->finish != RL_FINISH_ABORTED) {
        return 0;
    }
    /* Without a token nothing says which weights ended it: for a while it is those given up. */
    return step <= state->grace_until ? GUARD_REVOKED : GUARD_SAMPLER;
}

uint32_t guard_examine(const struct guard_state *state, struct trajectory_group *const *groups,
                       uint32_t count, uint64_t step)
{
    uint32_t faults = 0;
    for (uint32_t g = 0; g < count; g++) {
        for (uint32_t i = 0; i < groups[g]->sample_count; i++) {
            faults |= examine_sample(state, &groups[g]->samples[i], step);
        }
    }
    return faults;
}

/* --- steps
 * ------------------------------------------------------------------------------------------- */

enum guard_action guard_end_step(struct guard_state *state, const struct guard_step *step)
{
    if ((step->faults & GUARD_WEIGHTS) == 0) {
        if (step->skipped == 0) {
            state->sound_step = step->step;
        }
        if ((step->faults & GUARD_REVOKED) != 0) {
            return GUARD_GO_ON; /* says nothing about the weights that are there now */
        }
        if (step->updates > 0) {
            state->skipped_in_a_row = 0;
        }
        state->skipped_in_a_row += step->skipped > 0 && step->updates == 0;
        if (state->skipped_in_a_row < GUARD_SKIPS) {
            return GUARD_GO_ON;
        }
    }
    return state->rollbacks >= GUARD_ROLLBACKS_MOST ? GUARD_STOP : GUARD_ROLL_BACK;
}

void guard_rolled_back(struct guard_state *state, const struct guard_options *options,
                       uint64_t step, uint32_t version, uint32_t next)
{
    state->rollbacks++;
    state->skipped_in_a_row = 0;
    state->rate_scale /= 2;
    state->revoked_from = (uint64_t)version + 1;
    state->revoked_to = next;
    state->grace_until = step + options->lag + 1;
    state->outliers_in_a_row = 0;
    state->norm_count = 0;
    state->norm_next = 0;
    state->sound_step = step + 1; /* the weights put back are sound: they were checked */
}

const char *guard_faults_text(uint32_t faults, char *out, size_t bytes)
{
    static const char *const names[] = {"log-prob", "advantage", "sampler's log-prob",
                                        "gradient", "weights",   "samples of weights given up"};
    size_t used = 0;
    out[0] = '\0';
    for (uint32_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if ((faults & 1u << i) != 0 && used < bytes) {
            int length = snprintf(out + used, bytes - used, "%s%s", used > 0 ? ", " : "", names[i]);
            used += length > 0 ? (size_t)length : 0;
        }
    }
    return out;
}
