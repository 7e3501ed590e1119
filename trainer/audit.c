/* See audit.h: sums, histograms, the bottleneck and the change. */
#include "trainer/audit.h"

#include "core/log.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* Shares of a role's time from which on a wait is worth a sentence. */
static const double idle_least = 0.1, weight_least = 0.005;

/* --- sums
 * ------------------------------------------------------------------------------------------------
 */

static double at(const struct report_table *table, const char *name, size_t row)
{
    const double *values = report_table_find(table, name);
    return values != NULL && isfinite(values[row]) ? values[row] : 0;
}

static double sum_of(const struct report_table *table, const char *name)
{
    double sum = 0;
    for (size_t i = 0; i < table->row_count; i++) {
        sum += at(table, name, i);
    }
    return sum;
}

static double last_of(const struct report_table *table, const char *name)
{
    double value = 0;
    (void)report_values_last(report_table_find(table, name), table->row_count, &value);
    return value;
}

static double share(double part, double whole)
{
    return whole > 0 ? part / whole : 0;
}

static void add_times(const struct report_table *table, struct audit *a)
{
    char name[64];
    for (int i = 0; i < RL_LEARNER_TIMES; i++) {
        snprintf(name, sizeof(name), "time/%s", rl_learner_time_name((enum rl_learner_time)i));
        a->learner_s[i] = sum_of(table, name);
    }
    for (int i = 0; i < RL_ROLLOUT_TIMES; i++) {
        snprintf(name, sizeof(name), "time/rollout_%s",
                 rl_rollout_time_name((enum rl_rollout_time)i));
        a->rollout_s[i] = sum_of(table, name);
    }
    double learner = rl_times_sum(a->learner_s, RL_LEARNER_TIMES);
    double rollout = rl_times_sum(a->rollout_s, RL_ROLLOUT_TIMES);
    a->learner_idle = share(rl_learner_idle_s(a->learner_s), learner);
    a->rollout_idle = share(rl_rollout_idle_s(a->rollout_s), rollout);
    a->weight_wait = fmax(share(a->learner_s[RL_LEARNER_TIME_WEIGHT_SLOT], learner),
                          share(a->rollout_s[RL_ROLLOUT_TIME_WEIGHT_WAIT], rollout));
    a->learner_cpu_s = last_of(table, "time/cpu");
    a->rollout_cpu_s = last_of(table, "time/rollout_cpu");
    a->wall_s = sum_of(table, "step_time");
}

/* --- histograms
 * --------------------------------------------------------------------------------------- */

static double tokens_of_step(const struct report_table *table, size_t row)
{
    return at(table, "completions/mean_length", row) * at(table, "completions/length/count", row);
}

static void add_ages(const struct report_table *table, struct audit *a)
{
    for (int age = 0; age < AUDIT_AGES; age++) {
        char name[64];
        snprintf(name, sizeof(name), "staleness/hist_%d", age);
        for (size_t row = 0; row < table->row_count; row++) {
            a->ages[age] += at(table, name, row) * tokens_of_step(table, row);
        }
    }
    double total = rl_times_sum(a->ages, AUDIT_AGES);
    for (int age = 0; age < AUDIT_AGES; age++) {
        a->ages[age] = share(a->ages[age], total);
    }
}

/* Share of a step's completions of at most `length` tokens, between the quantiles that the step's
 * line has. */
static double share_up_to(const struct report_table *table, size_t row, double length)
{
    static const struct {
        const char *name;
        double share;
    } knots[] = {{"completions/min_length", 0},    {"completions/length/p05", 0.05},
                 {"completions/length/p25", 0.25}, {"completions/length/p50", 0.5},
                 {"completions/length/p75", 0.75}, {"completions/length/p95", 0.95},
                 {"completions/max_length", 1}};
    double low = at(table, knots[0].name, row);
    double result = length >= low ? knots[0].share : 0;
    for (size_t i = 1; i < sizeof(knots) / sizeof(knots[0]) && length >= low; i++) {
        double high = at(table, knots[i].name, row);
        double part = high > low ? fmin(1, (length - low) / (high - low)) : 1;
        result = knots[i - 1].share + part * (knots[i].share - knots[i - 1].share);
        if (length < high) {
            break;
        }
        low = high;
    }
    return result;
}

/* Share of all completions of at most `length` tokens. */
static double all_up_to(const struct report_table *table, double length)
{
    double sum = 0;
    double count = 0;
    for (size_t row = 0; row < table->row_count; row++) {
        double samples = at(table, "completions/length/count", row);
        sum += samples * share_up_to(table, row, length);
        count += samples;
    }
    return share(sum, count);
}

static double length_quantile(const struct report_table *table, double wanted, double longest)
{
    double low = 0;
    double high = longest;
    for (int i = 0; i < 40; i++) {
        double middle = (low + high) / 2;
        bool enough = all_up_to(table, middle) >= wanted;
        low = enough ? low : middle;
        high = enough ? middle : high;
    }
    return high;
}

static void add_lengths(const struct report_table *table, struct audit *a)
{
    double before = 0;
    double samples = sum_of(table, "completions/length/count");
    for (size_t row = 0; row < table->row_count; row++) {
        a->tokens += tokens_of_step(table, row);
        a->length_max = fmax(a->length_max, at(table, "completions/max_length", row));
    }
    for (int i = 0; i < AUDIT_LENGTHS; i++) {
        double up_to = all_up_to(table, ldexp(1, i));
        a->lengths[i] = fmax(0, up_to - before);
        before = up_to;
    }
    a->length_mean = share(a->tokens, samples);
    a->length_p50 = length_quantile(table, 0.5, a->length_max);
    a->length_p95 = length_quantile(table, 0.95, a->length_max);
}

/* --- what it was like
 * --------------------------------------------------------------------------------- */

static void make_plan(const struct report_table *table, const struct rl_config *config,
                      struct audit *a)
{
    double work_s = rl_times_sum(a->rollout_s, RL_ROLLOUT_TIMES) - rl_rollout_idle_s(a->rollout_s);
    double learn_s = rl_times_sum(a->learner_s, RL_LEARNER_TIMES) - rl_learner_idle_s(a->learner_s);
    double eta = last_of(table, "async/max_staleness");
    a->plan = (struct audit_plan){.by_turns = !config->async.enabled,
                                  .rollout_ranks = fmax(1, last_of(table, "rollout/ranks")),
                                  .learners =
                                      config->async.enabled ? (double)config->cluster.learners : 1,
                                  .max_staleness = config->async.enabled ? eta : 0,
                                  .prompts_per_step = (double)config->rollout.prompts_per_step,
                                  .samples_per_prompt = (double)config->rollout.samples_per_prompt,
                                  .max_running = (double)config->rollout.max_running,
                                  .length_median = fmax(1, a->length_p50),
                                  .length_p95 = fmax(1, a->length_p95),
                                  .length_max = fmax(1, a->length_max),
                                  .token_s = share(work_s, a->tokens),
                                  .step_s = share(learn_s, (double)a->steps)};
    a->change = a->plan;
}

static enum audit_bottleneck find_bottleneck(const struct audit *a)
{
    double rollout = rl_times_sum(a->rollout_s, RL_ROLLOUT_TIMES);
    double learner = rl_times_sum(a->learner_s, RL_LEARNER_TIMES);
    double rewards = share(a->rollout_s[RL_ROLLOUT_TIME_REWARD_WAIT], rollout);
    double channel = share(a->rollout_s[RL_ROLLOUT_TIME_CHANNEL_FULL], rollout);
    double tickets = share(a->rollout_s[RL_ROLLOUT_TIME_TICKET_WAIT], rollout);
    double samples = share(a->learner_s[RL_LEARNER_TIME_WAIT_FOR_BATCH], learner);
    double checkpoint = share(a->learner_s[RL_LEARNER_TIME_CHECKPOINT], learner);
    if (checkpoint > idle_least && checkpoint > samples) {
        return AUDIT_CHECKPOINT;
    }
    if (rewards > idle_least && rewards > tickets && samples > idle_least) {
        return AUDIT_REWARDS;
    }
    if (a->plan.by_turns) {
        return AUDIT_BY_TURNS;
    }
    if (channel > idle_least && channel > tickets) {
        return AUDIT_CHANNEL;
    }
    if (samples > idle_least && tickets > idle_least) {
        return AUDIT_STALENESS;
    }
    if (samples > idle_least) {
        return AUDIT_GENERATION;
    }
    if (tickets > idle_least) {
        return AUDIT_LEARNING;
    }
    return a->weight_wait > weight_least ? AUDIT_WEIGHTS : AUDIT_BALANCED;
}

/* --- what would help
 * ---------------------------------------------------------------------------------- */

struct prediction {
    audit_predict_fn predict;
    void *arg;
    double now; /* tokens/s of the run as it was */
};

/* The plan with `value` in the field that the bottleneck asks to change. */
static struct audit_plan changed(const struct audit *a, double value)
{
    struct audit_plan plan = a->plan;
    switch (a->bottleneck) {
    case AUDIT_GENERATION:
        plan.rollout_ranks = value;
        break;
    case AUDIT_LEARNING:
        plan.learners = value;
        plan.step_s = a->plan.step_s * a->plan.learners / value;
        break;
    case AUDIT_STALENESS:
        plan.max_staleness = value;
        break;
    case AUDIT_BY_TURNS:
        plan.by_turns = false;
        plan.rollout_ranks = value;
        plan.max_staleness = 1;
        break;
    case AUDIT_CHECKPOINT: {
        double whole = rl_times_sum(a->learner_s, RL_LEARNER_TIMES);
        double kept = 1 - 0.9 * share(a->learner_s[RL_LEARNER_TIME_CHECKPOINT],
                                      whole - rl_learner_idle_s(a->learner_s));
        plan.step_s = a->plan.step_s * kept;
        break;
    }
    default:
        break;
    }
    return plan;
}

static double first_value(const struct audit *a)
{
    switch (a->bottleneck) {
    case AUDIT_GENERATION:
        return a->plan.rollout_ranks + 1;
    case AUDIT_LEARNING:
        return a->plan.learners + 1;
    case AUDIT_STALENESS:
        return a->plan.max_staleness + 1;
    default:
        return 1;
    }
}

/* Only these are a matter of more of something. */
static int values_to_try(enum audit_bottleneck bottleneck)
{
    switch (bottleneck) {
    case AUDIT_GENERATION:
        return 8;
    case AUDIT_LEARNING:
    case AUDIT_STALENESS:
        return 3;
    case AUDIT_BY_TURNS:
    case AUDIT_CHECKPOINT:
        return 1;
    default:
        return 0;
    }
}

/* The smallest change from which a further one would add less than a twentieth. */
static rl_status choose(const struct prediction *p, struct audit *a)
{
    double best = p->now;
    int tries = values_to_try(a->bottleneck);
    for (int i = 0; i < tries; i++) {
        struct audit_plan plan = changed(a, first_value(a) + i);
        double rate = 0;
        RL_TRY(p->predict(p->arg, &plan, &rate));
        if (i > 0 && rate < 1.05 * best) {
            break;
        }
        if (rate > best) {
            best = rate;
            a->change = plan;
        }
    }
    a->predicted = tries > 0;
    a->predicted_now = p->now;
    a->gain = share(best, p->now) - 1;
    return RL_OK;
}

rl_status audit_make(const struct report_run *run, const struct rl_config *config,
                     audit_predict_fn predict, void *arg, struct audit *out)
{
    const struct report_table *table = &run->table;
    struct audit a = {.name = run->name, .steps = table->row_count};
    if (table->row_count == 0) {
        return rl_fail(RL_INVALID, "%s/metrics.jsonl has no finished step: nothing to audit",
                       run->dir);
    }
    if (report_table_find(table, "time/rollout_decode") == NULL) {
        return rl_fail(RL_INVALID,
                       "%s/metrics.jsonl has no times by role (time/rollout_*): not written by "
                       "`foresight train`, or by an older one",
                       run->dir);
    }
    add_times(table, &a);
    add_ages(table, &a);
    add_lengths(table, &a);
    make_plan(table, config, &a);
    a.bottleneck = find_bottleneck(&a);
    struct prediction p = {.predict = predict, .arg = arg};
    if (values_to_try(a.bottleneck) > 0 && a.plan.token_s > 0 && a.plan.step_s > 0) {
        RL_TRY(predict(arg, &a.plan, &p.now));
        RL_TRY(choose(&p, &a));
    }
    *out = a;
    return RL_OK;
}
