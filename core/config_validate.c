/* Rules between options, and what one option makes of another. Every broken rule is logged, so that
 * one try shows all of them. Only what makes no sense for any command is refused here; what a
 * command needs (a model, data) it checks.
 */
#include "core/config_table.h"

#include "core/log.h"

#include <string.h>

/* Counts broken rules; the first error's text is not lost, since each is logged. */
struct config_verdict {
    int problems;
};

#define CONFIG_RULE(holds, ...)                                                                    \
    do {                                                                                           \
        if (!(holds)) {                                                                            \
            (void)rl_fail(RL_INVALID, "configuration: " __VA_ARGS__);                              \
            verdict->problems++;                                                                   \
        }                                                                                          \
    } while (0)

static void config_check_ranges(const struct rl_config *config, struct config_verdict *verdict)
{
    for (size_t i = 0; i < config_row_count(); i++) {
        if (config_check_range(config, config_row_of(i), "configuration") != RL_OK) {
            verdict->problems++;
        }
    }
}

static void config_check_run(const struct rl_config *config, struct config_verdict *verdict)
{
    const char *name = config->run.name;
    CONFIG_RULE(strchr(name, '/') == NULL && strcmp(name, ".") != 0 && strcmp(name, "..") != 0,
                "run.name \"%s\" must be the name of a folder, not a path", name);
    CONFIG_RULE(config->rollout.top_p > 0.0, "rollout.top_p is 0, which keeps no token");
    CONFIG_RULE(config->eval.top_p > 0.0, "eval.top_p is 0, which keeps no token");
    CONFIG_RULE(
        config->rewards.overlong_buffer <= config->rollout.max_completion_length,
        "rewards.overlong_buffer (%lld) is longer than rollout.max_completion_length (%lld)",
        (long long)config->rewards.overlong_buffer,
        (long long)config->rollout.max_completion_length);
    CONFIG_RULE(config->optimizer.updates_per_step <= config->rollout.prompts_per_step,
                "optimizer.updates_per_step (%lld) is above rollout.prompts_per_step (%lld); a "
                "minibatch holds whole groups",
                (long long)config->optimizer.updates_per_step,
                (long long)config->rollout.prompts_per_step);
}

static void config_check_async(const struct rl_config *config, struct config_verdict *verdict)
{
    CONFIG_RULE(config->async.enabled || config->cluster.learners == 1,
                "async.enabled is false, which is one process, but cluster.learners is %lld",
                (long long)config->cluster.learners);
    CONFIG_RULE(config->async.dead_after_ms >= 3 * config->async.heartbeat_ms,
                "async.dead_after_ms (%lld) must be at least 3 x async.heartbeat_ms (%lld)",
                (long long)config->async.dead_after_ms, (long long)config->async.heartbeat_ms);
    CONFIG_RULE(config->async.order != CONFIG_ORDER_FIXED_LAG ||
                    config->async.max_staleness != CONFIG_AUTO,
                "async.order is fixed_lag, which needs a fixed async.max_staleness, not auto");
    CONFIG_RULE(config->async.order != CONFIG_ORDER_FIXED_LAG ||
                    config->async.max_staleness <= CONFIG_FIXED_LAG_MAX,
                "async.order is fixed_lag, which keeps max_staleness + 3 versions of the weights: "
                "async.max_staleness is %lld, at most %d",
                (long long)config->async.max_staleness, CONFIG_FIXED_LAG_MAX);
    CONFIG_RULE(config->async.wait_timeout_ms >= config->async.dead_after_ms,
                "async.wait_timeout_ms (%lld) is below async.dead_after_ms (%lld): the run would "
                "stop before a dead rank is noticed",
                (long long)config->async.wait_timeout_ms, (long long)config->async.dead_after_ms);
}

static void config_check_clips(const struct rl_config *config, struct config_verdict *verdict)
{
    CONFIG_RULE(config->loss.delta == 0.0 || config->loss.delta > 1.0,
                "loss.delta is %g; a dual clip is a ratio: 0 (off) or above 1", config->loss.delta);
    double safety = config->loss.fipo_safety_threshold;
    CONFIG_RULE(safety == 0.0 || safety >= 1.0,
                "loss.fipo_safety_threshold is %g; it is a ratio: 0 (off) or at least 1", safety);
    CONFIG_RULE(config->loss.tis_cap == 0.0 || config->loss.tis_cap >= 1.0,
                "loss.tis_cap is %g; a cap below 1 would scale on-policy tokens down",
                config->loss.tis_cap);
    bool group = config->loss.advantage != CONFIG_ADV_BATCH;
    CONFIG_RULE(!group || config->rollout.samples_per_prompt >= 2,
                "rollout.samples_per_prompt is 1; a group needs 2 samples for an advantage other "
                "than loss.advantage: batch");
}

static void config_check_kl(const struct rl_config *config, struct config_verdict *verdict)
{
    bool in_reward = config->loss.kl_in == CONFIG_KL_IN_REWARD;
    CONFIG_RULE(!in_reward || config->loss.beta > 0.0,
                "loss.kl_in is reward but loss.beta is 0, so there is no KL term");
    if (config->loss.beta == 0.0 && config->model.reference[0] != '\0') {
        rl_log(RL_LOG_WARN, "configuration: model.reference is not used, because loss.beta is 0");
    }
}

rl_status rl_config_validate(const struct rl_config *config)
{
    struct config_verdict verdict = {0};
    config_check_ranges(config, &verdict);
    config_check_run(config, &verdict);
    config_check_async(config, &verdict);
    config_check_clips(config, &verdict);
    config_check_kl(config, &verdict);
    return verdict.problems == 0 ? RL_OK : RL_INVALID;
}

uint32_t rl_config_first_staleness(const struct rl_config *config)
{
    int64_t staleness = config->async.max_staleness;
    if (!config->async.enabled) {
        return 0;
    }
    return staleness == CONFIG_AUTO ? 1 : (uint32_t)staleness;
}

static void config_mark(struct rl_config *config, const char *section, const char *name)
{
    config->set_flags[config_row_find(section, name)] = 1;
}

void rl_config_resolve(struct rl_config *config)
{
    int loss_type = config->loss.loss_type;
    bool classic = loss_type == CONFIG_LOSS_GRPO || loss_type == CONFIG_LOSS_DR_GRPO;
    if (classic && !rl_config_is_set(config, "loss.epsilon_high")) {
        config->loss.epsilon_high = config->loss.epsilon_low;
        config_mark(config, "loss", "epsilon_high");
    }
    if (classic && !rl_config_is_set(config, "loss.delta")) {
        config->loss.delta = 0.0;
        config_mark(config, "loss", "delta");
    }
    if (loss_type == CONFIG_LOSS_DR_GRPO && !rl_config_is_set(config, "loss.advantage")) {
        config->loss.advantage = CONFIG_ADV_GROUP_NO_STD;
        config_mark(config, "loss", "advantage");
    }
    if (config->loss.kl_in == CONFIG_KL_IN_REWARD) {
        config->loss.kl_type = CONFIG_KL_K1;
        config_mark(config, "loss", "kl_type");
    }
}
