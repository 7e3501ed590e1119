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
    struct rl_loss_settings loss;
    rl_config_loss_settings(config, &loss);
    bool whitened = loss.advantage == CONFIG_ADV_REINFORCE_PLUS_PLUS;
    CONFIG_RULE(whitened || loss.advantage == CONFIG_ADV_BATCH ||
                    config->rollout.samples_per_prompt >= 2,
                "rollout.samples_per_prompt is 1; a group needs 2 samples for an advantage other "
                "than loss.advantage: batch or reinforce_plus_plus");
    CONFIG_RULE(whitened || config->loss.gamma == 1.0,
                "loss.gamma is %g; only loss.advantage: reinforce_plus_plus discounts",
                config->loss.gamma);
}

/* What x of a correction is where sampler and learner agree: its bounds must let that pass. */
static double config_neutral_of(enum config_correction correction)
{
#define CONFIG_NEUTRAL_TOKEN 1.0
#define CONFIG_NEUTRAL_SEQUENCE 1.0
#define CONFIG_NEUTRAL_MEAN 1.0
#define CONFIG_NEUTRAL_K3 0.0
#define CONFIG_NEUTRAL(id, name, scope, ...) [CONFIG_CORRECTION_##id] = CONFIG_NEUTRAL_##scope,
    static const double neutral[CONFIG_CORRECTION_COUNT] = {RL_CORRECTIONS(CONFIG_NEUTRAL)};
    return neutral[correction];
#undef CONFIG_NEUTRAL
}

static void config_check_corrections(const struct rl_config *config, struct config_verdict *verdict)
{
    struct rl_loss_settings loss;
    rl_config_loss_settings(config, &loss);
    bool behaviour = config->loss.old_logprob == CONFIG_OLD_BEHAVIOUR;
    bool loglinear = config->loss.old_logprob == CONFIG_OLD_LOGLINEAR;
    bool none = loss.correction == CONFIG_CORRECTION_NONE;
    CONFIG_RULE(none || !behaviour,
                "loss.correction weighs by exp(old - behaviour), which is 1 with "
                "loss.old_logprob: behaviour; take recompute or loglinear");
    bool vtrace = loss.advantage == CONFIG_ADV_VTRACE;
    CONFIG_RULE(!vtrace || (none && config->loss.old_logprob == CONFIG_OLD_RECOMPUTE),
                "loss.advantage: vtrace weighs by exp(old - behaviour) itself: it needs "
                "loss.old_logprob: recompute and loss.correction: none (or auto)");
    CONFIG_RULE(config->loss.veto_threshold == 0.0 || !behaviour,
                "loss.veto_threshold looks at exp(old - behaviour), which is 1 with "
                "loss.old_logprob: behaviour; take recompute or loglinear");
    CONFIG_RULE(!none || (config->loss.correction_low < 0.0 && config->loss.correction_high < 0.0),
                "loss.correction_low and loss.correction_high bound a loss.correction, and there "
                "is none");
    double neutral = none ? 0.0 : config_neutral_of(loss.correction);
    CONFIG_RULE(none || (loss.correction_low <= neutral && neutral <= loss.correction_high),
                "loss.correction_low and loss.correction_high are %g and %g; %g, where sampler and "
                "learner agree, must be between them",
                loss.correction_low, loss.correction_high, neutral);
    CONFIG_RULE(!config->loss.correction_normalize || (!none && !loglinear),
                "loss.correction_normalize needs a loss.correction whose weights are known before "
                "the minibatch: loss.old_logprob: recompute");
    CONFIG_RULE(config->loss.m2po_threshold == 0.0 || !loglinear,
                "loss.m2po_threshold needs the log-probs of the step's start, which "
                "loss.old_logprob: loglinear does not compute; take behaviour or recompute");
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

static void config_check_distill(const struct rl_config *config, struct config_verdict *verdict)
{
    CONFIG_RULE(config->distill.corpus_samples == 0 ||
                    config->distill.corpus_samples >= config->distill.samples,
                "distill.corpus_samples (%lld) is below distill.samples (%lld), which are taken "
                "from them",
                (long long)config->distill.corpus_samples, (long long)config->distill.samples);
    bool pattern = config->distill.dedupe == CONFIG_DEDUPE_PATTERN;
    CONFIG_RULE(pattern == (config->distill.dedupe_pattern[0] != '\0'),
                "distill.dedupe: pattern and distill.dedupe_pattern go together");
    CONFIG_RULE(!config->distill.hint_retry || config->distill.weight != CONFIG_WEIGHT_IMPORTANCE,
                "distill.weight: importance needs the log-probs of the prompt that is trained on; "
                "those of distill.hint_retry belong to another prompt");
    CONFIG_RULE(!config->distill.hint_retry ||
                    (strstr(config->distill.hint_template, "{prompt}") != NULL &&
                     strstr(config->distill.hint_template, "{answer}") != NULL),
                "distill.hint_template \"%s\" must hold {prompt} and {answer}",
                config->distill.hint_template);
}

static void config_check_teacher(const struct rl_config *config, struct config_verdict *verdict)
{
    if (config->teacher.loss == CONFIG_TEACHER_NONE) {
        return;
    }
    CONFIG_RULE(strstr(config->teacher.template, "{prompt}") != NULL,
                "teacher.template: expected {prompt} in it, which stands for the prompt's text");
    CONFIG_RULE(config->teacher.loss != CONFIG_TEACHER_SDPO || config->teacher.weight <= 1.0,
                "teacher.weight is above 1: with sdpo the loss is (1 - weight) policy + weight "
                "distillation");
}

rl_status rl_config_validate(const struct rl_config *config)
{
    struct config_verdict verdict = {0};
    config_check_ranges(config, &verdict);
    config_check_run(config, &verdict);
    config_check_async(config, &verdict);
    config_check_clips(config, &verdict);
    config_check_corrections(config, &verdict);
    config_check_kl(config, &verdict);
    config_check_distill(config, &verdict);
    config_check_teacher(config, &verdict);
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

/* What an objective is known for, and the bounds that a correction comes with. */
struct config_objective {
    double epsilon_low, epsilon_high, delta;
    enum config_advantage advantage;
};
struct config_bounds {
    double low, high;
};

static struct config_objective config_objective_of(int loss_type)
{
#define CONFIG_OBJECTIVE(id, name, form, ratio, aggregation, low, high, delta, advantage)          \
    [CONFIG_LOSS_##id] = {low, high, delta, CONFIG_ADV_##advantage},
    static const struct config_objective known[CONFIG_LOSS_COUNT] = {
        RL_OBJECTIVES(CONFIG_OBJECTIVE)};
    bool valid = loss_type >= 0 && loss_type < CONFIG_LOSS_COUNT;
    return known[valid ? loss_type : CONFIG_LOSS_FIPO];
#undef CONFIG_OBJECTIVE
}

static struct config_bounds config_bounds_of(enum config_correction correction)
{
#define CONFIG_BOUNDS(id, name, scope, form, low, high) [CONFIG_CORRECTION_##id] = {low, high},
    static const struct config_bounds known[CONFIG_CORRECTION_COUNT] = {
        [CONFIG_CORRECTION_NONE] = {-1.0, -1.0}, RL_CORRECTIONS(CONFIG_BOUNDS)};
    return known[correction];
#undef CONFIG_BOUNDS
}

static enum config_correction config_correction_of(const struct rl_config *config,
                                                   enum config_advantage advantage)
{
    bool known = config->loss.correction > CONFIG_CORRECTION_AUTO &&
                 config->loss.correction < CONFIG_CORRECTION_COUNT;
    if (known) {
        return (enum config_correction)config->loss.correction;
    }
    if (advantage == CONFIG_ADV_VTRACE) {
        return CONFIG_CORRECTION_NONE; /* the advantage carries the weights */
    }
    switch (config->loss.old_logprob) {
    case CONFIG_OLD_RECOMPUTE:
        return CONFIG_CORRECTION_TIS;
    case CONFIG_OLD_LOGLINEAR:
        return CONFIG_CORRECTION_DECOUPLED;
    default:
        return CONFIG_CORRECTION_NONE;
    }
}

static double config_given(const struct rl_config *config, const char *key, double given,
                           double implied)
{
    return rl_config_is_set(config, key) ? given : implied;
}

void rl_config_loss_settings(const struct rl_config *config, struct rl_loss_settings *out)
{
    struct config_objective known = config_objective_of(config->loss.loss_type);
    enum config_advantage advantage = rl_config_is_set(config, "loss.advantage")
                                          ? (enum config_advantage)config->loss.advantage
                                          : known.advantage;
    enum config_correction correction = config_correction_of(config, advantage);
    struct config_bounds bounds = config_bounds_of(correction);
    double low =
        config_given(config, "loss.epsilon_low", config->loss.epsilon_low, known.epsilon_low);
    double high = known.epsilon_high < 0 ? low : known.epsilon_high;
    *out = (struct rl_loss_settings){
        .epsilon_low = low,
        .epsilon_high = config_given(config, "loss.epsilon_high", config->loss.epsilon_high, high),
        .delta = config_given(config, "loss.delta", config->loss.delta, known.delta),
        .advantage = advantage,
        .correction = correction,
        .correction_low =
            config->loss.correction_low >= 0 ? config->loss.correction_low : bounds.low,
        .correction_high =
            config->loss.correction_high >= 0 ? config->loss.correction_high : bounds.high,
    };
}

/* Every option that rl_config_loss_settings fills in. */
static void config_resolve_loss(struct rl_config *config)
{
    static const char *const names[] = {"epsilon_low",    "epsilon_high", "delta",
                                        "advantage",      "correction",   "correction_low",
                                        "correction_high"};
    struct rl_loss_settings loss;
    rl_config_loss_settings(config, &loss);
    config->loss.epsilon_low = loss.epsilon_low;
    config->loss.epsilon_high = loss.epsilon_high;
    config->loss.delta = loss.delta;
    config->loss.advantage = (int)loss.advantage;
    config->loss.correction = (int)loss.correction;
    config->loss.correction_low = loss.correction_low;
    config->loss.correction_high = loss.correction_high;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        config_mark(config, "loss", names[i]);
    }
}

void rl_config_resolve(struct rl_config *config)
{
    config_resolve_loss(config);
    if (config->loss.kl_in == CONFIG_KL_IN_REWARD) {
        config->loss.kl_type = CONFIG_KL_K1;
        config_mark(config, "loss", "kl_type");
    }
}
