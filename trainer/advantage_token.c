/* Advantages token by token: returns, and whitening over all tokens of a batch. Owns the walk over
 * the groups' tokens; the invariant is that it reads nothing that depends on the rank. */
#include "trainer/advantage.h"

#include <math.h>

#define WHITEN_EPSILON 1e-8 /* added to the variance */
#define LOG_RHO_MAX 20.0    /* bound of a log-ratio before exp */

/* One pass over the tokens that count. */
struct advantage_walk {
    const struct advantage_options *options;
    const float *sample, *penalty;
    float *advantage;
    double mean, scale; /* known in the last pass */
    double sum, count, least, most, squares;
};

typedef void (*advantage_visit_fn)(struct advantage_walk *walk, double value, size_t token);

bool advantage_by_token(const struct advantage_options *options)
{
    return options->mode == CONFIG_ADV_REINFORCE_PLUS_PLUS ||
           options->mode == CONFIG_ADV_REINFORCE_PLUS_PLUS_BASELINE ||
           options->mode == CONFIG_ADV_VTRACE;
}

size_t advantage_token_count(struct trajectory_group *const *groups, uint32_t group_count)
{
    size_t tokens = 0;
    for (uint32_t g = 0; g < group_count; g++) {
        for (uint32_t s = 0; s < groups[g]->sample_count; s++) {
            tokens += groups[g]->samples[s].completion_count;
        }
    }
    return tokens;
}

static bool advantage_counts(const struct advantage_walk *walk, const struct trajectory *sample,
                             size_t first)
{
    bool cut = walk->options->mask_truncated && sample->finish == RL_FINISH_LENGTH;
    bool counts = sample->reward_valid && isfinite(sample->reward) && !cut;
    for (uint32_t t = 0; counts && walk->penalty != NULL && t < sample->completion_count; t++) {
        counts = isfinite(walk->penalty[first + t]);
    }
    return counts;
}

/* From the last token to the first, as returns add up. */
static void advantage_visit_sample(struct advantage_walk *walk, const struct trajectory *sample,
                                   size_t index, size_t first, advantage_visit_fn visit)
{
    bool returns = walk->options->mode == CONFIG_ADV_REINFORCE_PLUS_PLUS;
    double value = 0;
    for (uint32_t t = sample->completion_count; t-- > 0;) {
        double reward = t + 1 == sample->completion_count ? (double)sample->reward : 0;
        double off = walk->penalty != NULL ? (double)walk->penalty[first + t] : 0;
        value = reward - off + walk->options->gamma * value;
        visit(walk, returns ? value : (double)walk->sample[index], first + t);
    }
}

static void advantage_visit(struct advantage_walk *walk, struct trajectory_group *const *groups,
                            uint32_t group_count, advantage_visit_fn visit)
{
    size_t index = 0;
    size_t first = 0;
    for (uint32_t g = 0; g < group_count; g++) {
        for (uint32_t s = 0; s < groups[g]->sample_count; s++) {
            const struct trajectory *sample = &groups[g]->samples[s];
            if (advantage_counts(walk, sample, first)) {
                advantage_visit_sample(walk, sample, index, first, visit);
            }
            index++;
            first += sample->completion_count;
        }
    }
}

static void advantage_add(struct advantage_walk *walk, double value, size_t token)
{
    (void)token;
    walk->sum += value;
    walk->count++;
    walk->least = fmin(walk->least, value);
    walk->most = fmax(walk->most, value);
}

static void advantage_add_square(struct advantage_walk *walk, double value, size_t token)
{
    (void)token;
    walk->squares += (value - walk->mean) * (value - walk->mean);
}

static void advantage_write(struct advantage_walk *walk, double value, size_t token)
{
    walk->advantage[token] = (float)((value - walk->mean) * walk->scale);
}

void advantage_of_tokens(const struct advantage_options *options,
                         struct trajectory_group *const *groups, uint32_t group_count,
                         const float *sample, const float *penalty, float *advantage)
{
    size_t tokens = advantage_token_count(groups, group_count);
    bool returns = options->mode == CONFIG_ADV_REINFORCE_PLUS_PLUS;
    struct advantage_walk walk = {.options = options,
                                  .sample = sample,
                                  .penalty = returns ? penalty : NULL,
                                  .advantage = advantage,
                                  .least = INFINITY,
                                  .most = -INFINITY};
    for (size_t t = 0; t < tokens; t++) {
        advantage[t] = 0;
    }
    advantage_visit(&walk, groups, group_count, advantage_add);
    double freedom = walk.count - options->ddof;
    if (!(walk.most > walk.least) || freedom <= 0) {
        return;
    }
    walk.mean = walk.sum / walk.count;
    advantage_visit(&walk, groups, group_count, advantage_add_square);
    walk.scale = 1 / sqrt(walk.squares / freedom + WHITEN_EPSILON);
    advantage_visit(&walk, groups, group_count, advantage_write);
}

void advantage_vtrace(const struct advantage_options *options, float sample, const float *old,
                      const float *behaviour, uint32_t count, float *advantage)
{
    double ahead = (double)sample; /* value target of the next token less the baseline */
    for (uint32_t t = count; t-- > 0;) {
        double gap = fmin(fmax((double)old[t] - (double)behaviour[t], -LOG_RHO_MAX), LOG_RHO_MAX);
        double rho = fmin(exp(gap), options->rho_max);
        advantage[t] = (float)(rho * ahead);
        ahead *= t + 1 == count ? rho : fmin(exp(gap), options->c_max);
    }
}
