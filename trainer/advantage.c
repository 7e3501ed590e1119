/* Advantages. Owns the statistics of rewards; knows nothing of tokens or losses. The invariant: a
 * group without signal gives exactly 0, and an unscorable sample changes nobody else's advantage.
 */
#include "trainer/advantage.h"

#include "core/log.h"

#include <math.h>
#include <stdlib.h>

struct advantage_moments {
    uint32_t count;
    double mean, std; /* std with the options' ddof; 0 if count <= ddof */
    double min, max;
};

static bool advantage_usable(const struct advantage_input *input, size_t index)
{
    return (input->valid == NULL || input->valid[index] != 0) && isfinite(input->reward[index]);
}

/* Two passes over the valid rewards of [first, first + count): the mean, then the squares of the
 * distances from it, which stays exact where one pass would cancel. */
static struct advantage_moments advantage_measure(const struct advantage_input *input, size_t first,
                                                  size_t count, int ddof)
{
    struct advantage_moments out = {.min = INFINITY, .max = -INFINITY};
    double sum = 0;
    for (size_t i = first; i < first + count; i++) {
        if (advantage_usable(input, i)) {
            sum += input->reward[i];
            out.count++;
            out.min = fmin(out.min, input->reward[i]);
            out.max = fmax(out.max, input->reward[i]);
        }
    }
    if (out.count == 0) {
        return (struct advantage_moments){0};
    }
    out.mean = sum / out.count;
    double squares = 0;
    for (size_t i = first; i < first + count; i++) {
        if (advantage_usable(input, i)) {
            squares += (input->reward[i] - out.mean) * (input->reward[i] - out.mean);
        }
    }
    int64_t freedom = (int64_t)out.count - ddof;
    out.std = freedom > 0 && out.max > out.min ? sqrt(squares / (double)freedom) : 0;
    return out;
}

/* Factor by which R - mean of the group is multiplied. */
static double advantage_scale(const struct advantage_options *options,
                              const struct advantage_moments *group,
                              const struct advantage_moments *batch)
{
    switch (options->mode) {
    case CONFIG_ADV_GROUP:
        return 1.0 / (group->std + options->epsilon);
    case CONFIG_ADV_BATCH:
        return 1.0 / (batch->std + options->epsilon);
    case CONFIG_ADV_RLOO: /* R - mean of the others = n/(n-1) (R - mean of all) */
        return (double)group->count / (double)(group->count - 1);
    case CONFIG_ADV_MAXRL:
        return group->mean > 0 ? 1.0 / group->mean : 0;
    case CONFIG_ADV_GROUP_NO_STD:
    default:
        return 1.0;
    }
}

static void advantage_group(const struct advantage_options *options,
                            const struct advantage_input *input, size_t first, size_t count,
                            const struct advantage_moments moments[2], float *advantage)
{
    const struct advantage_moments *group = &moments[0];
    bool signal = group->count > 1 && group->max > group->min;
    double scale = signal ? advantage_scale(options, group, &moments[1]) : 0;
    for (size_t i = first; i < first + count; i++) {
        bool usable = signal && advantage_usable(input, i);
        advantage[i] = usable ? (float)((input->reward[i] - group->mean) * scale) : 0.0f;
    }
}

void advantage_compute(const struct advantage_options *options, const struct advantage_input *input,
                       float *advantage, struct advantage_stats *stats)
{
    size_t total = 0;
    for (uint32_t g = 0; g < input->group_count; g++) {
        total += input->group_size[g];
    }
    struct advantage_moments moments[2];
    moments[1] = advantage_measure(input, 0, total, options->ddof);
    double std_sum = 0;
    uint32_t zero = 0;
    size_t first = 0;
    for (uint32_t g = 0; g < input->group_count; g++) {
        moments[0] = advantage_measure(input, first, input->group_size[g], options->ddof);
        advantage_group(options, input, first, input->group_size[g], moments, advantage);
        zero += moments[0].max > moments[0].min ? 0 : 1;
        std_sum += moments[0].std;
        first += input->group_size[g];
    }
    if (stats != NULL) {
        *stats = (struct advantage_stats){
            .sample_count = (uint32_t)total,
            .valid_count = moments[1].count,
            .group_count = input->group_count,
            .zero_std_groups = zero,
            .reward_mean = moments[1].mean,
            .reward_std = moments[1].std,
            .reward_min = moments[1].min,
            .reward_max = moments[1].max,
            .group_std_mean = input->group_count > 0 ? std_sum / input->group_count : 0,
        };
    }
}

void advantage_options_from_config(const struct rl_config *config, struct advantage_options *out)
{
    struct rl_loss_settings loss;
    rl_config_loss_settings(config, &loss);
    *out = (struct advantage_options){
        .mode = loss.advantage,
        .ddof = (int)config->loss.advantage_ddof,
        .epsilon = config->loss.advantage_eps,
        .gamma = config->loss.gamma,
        .rho_max = config->loss.vtrace_rho_max,
        .c_max = config->loss.vtrace_c_max,
        .mask_truncated = config->loss.mask_truncated_completions,
    };
}

/* Rewards of all samples less the penalty; NaN where unscorable. */
static void advantage_collect(struct trajectory_group *const *groups, uint32_t group_count,
                              const double *penalty, double *reward, uint32_t *group_size)
{
    size_t index = 0;
    for (uint32_t g = 0; g < group_count; g++) {
        group_size[g] = groups[g]->sample_count;
        for (uint32_t s = 0; s < groups[g]->sample_count; s++, index++) {
            const struct trajectory *sample = &groups[g]->samples[s];
            double off = penalty != NULL ? penalty[index] : 0;
            reward[index] = sample->reward_valid ? (double)sample->reward - off : NAN;
        }
    }
}

rl_status advantage_of_groups(const struct advantage_options *options,
                              struct trajectory_group *const *groups, uint32_t group_count,
                              const double *penalty, float *advantage,
                              struct advantage_stats *stats)
{
    size_t total = 0;
    for (uint32_t g = 0; g < group_count; g++) {
        total += groups[g]->sample_count;
    }
    double *reward = calloc(total + 1, sizeof(*reward));
    uint32_t *group_size = calloc((size_t)group_count + 1, sizeof(*group_size));
    rl_status status = RL_OK;
    if (reward == NULL || group_size == NULL) {
        status = rl_fail(RL_NO_MEMORY, "advantages: no memory for %zu rewards", total);
        goto out;
    }
    advantage_collect(groups, group_count, penalty, reward, group_size);
    struct advantage_input input = {
        .group_count = group_count, .group_size = group_size, .reward = reward};
    advantage_compute(options, &input, advantage, stats);
out:
    free(group_size);
    free(reward);
    return status;
}
