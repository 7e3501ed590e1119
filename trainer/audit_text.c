/* See audit.h: the audit in words, as text and as JSON. */
#include "trainer/audit.h"

#include "core/log.h"

#include <math.h>
#include <stdio.h>

enum { BAR_WIDTH = 40 };

static double percent(double part, double whole)
{
    return whole > 0 ? 100 * part / whole : 0;
}

/* --- sentences
 * --------------------------------------------------------------------------------------- */

void audit_say_bottleneck(const struct audit *a, char *text, size_t bytes)
{
    double learner = rl_times_sum(a->learner_s, RL_LEARNER_TIMES);
    double rollout = rl_times_sum(a->rollout_s, RL_ROLLOUT_TIMES);
    double samples = percent(a->learner_s[RL_LEARNER_TIME_WAIT_FOR_BATCH], learner);
    double tickets = percent(a->rollout_s[RL_ROLLOUT_TIME_TICKET_WAIT], rollout);
    double rewards = percent(a->rollout_s[RL_ROLLOUT_TIME_REWARD_WAIT], rollout);
    double channel = percent(a->rollout_s[RL_ROLLOUT_TIME_CHANNEL_FULL], rollout);
    double checkpoint = percent(a->learner_s[RL_LEARNER_TIME_CHECKPOINT], learner);
    switch (a->bottleneck) {
    case AUDIT_BALANCED:
        snprintf(text, bytes,
                 "balanced: the learner waited %.1f %% of the time for samples, rollout ranks %.1f "
                 "%% for tickets",
                 samples, tickets);
        return;
    case AUDIT_BY_TURNS:
        snprintf(text, bytes,
                 "generation (%.0f %% of the time) and learning take turns in one process",
                 samples);
        return;
    case AUDIT_GENERATION:
        snprintf(text, bytes, "generation: the learner waited %.0f %% of the time for samples",
                 samples);
        return;
    case AUDIT_LEARNING:
        snprintf(text, bytes,
                 "learning: rollout ranks waited %.0f %% of the time until they might go on",
                 tickets);
        return;
    case AUDIT_STALENESS:
        snprintf(text, bytes,
                 "the bound on staleness: the learner waited %.0f %% of the time for samples, "
                 "rollout ranks %.0f %% until they might go on",
                 samples, tickets);
        return;
    case AUDIT_REWARDS:
        snprintf(text, bytes, "scoring: rollout ranks waited %.0f %% of the time for scores",
                 rewards);
        return;
    case AUDIT_CHANNEL:
        snprintf(text, bytes,
                 "the queue to the learner: rollout ranks waited %.0f %% of the time until it took "
                 "their groups",
                 channel);
        return;
    case AUDIT_CHECKPOINT:
        snprintf(text, bytes, "checkpoints: the learner waited %.0f %% of the time for them",
                 checkpoint);
        return;
    case AUDIT_WEIGHTS:
        snprintf(text, bytes, "weights: %.2f %% of a role's time went to waiting for them",
                 100 * a->weight_wait);
        return;
    }
}

static int say_learners(const struct audit *a, char *text, size_t bytes)
{
    double enough = ceil(a->plan.rollout_ranks * (1 - a->rollout_idle));
    double learners = fmax(a->plan.learners + 1, a->change.learners);
    if (enough < a->plan.rollout_ranks) {
        return snprintf(text, bytes,
                        "make learners of rollout ranks (%.0f would keep up): cluster.learners "
                        "%.0f (now %.0f)",
                        enough, learners, a->plan.learners);
    }
    return snprintf(text, bytes, "add learners: cluster.learners %.0f (now %.0f)", learners,
                    a->plan.learners);
}

static int say_action(const struct audit *a, char *text, size_t bytes)
{
    switch (a->bottleneck) {
    case AUDIT_BALANCED:
        return snprintf(text, bytes, "nothing stands out; faster kernels, or more ranks of both");
    case AUDIT_BY_TURNS:
        return snprintf(text, bytes,
                        "start it with mpirun -n 2, so that both go on at once, each with the same "
                        "cores");
    case AUDIT_GENERATION:
        return snprintf(text, bytes, "add rollout ranks: %.0f more (now %.0f)",
                        fmax(1, a->change.rollout_ranks - a->plan.rollout_ranks),
                        a->plan.rollout_ranks);
    case AUDIT_LEARNING:
        return say_learners(a, text, bytes);
    case AUDIT_STALENESS:
        if (a->predicted && a->gain < 0.01) {
            return snprintf(text, bytes,
                            "larger steps, which hide the latency between ranks: raise "
                            "rollout.prompts_per_step; as for async.max_staleness above %.0f",
                            a->plan.max_staleness);
        }
        return snprintf(text, bytes, "raise async.max_staleness to %.0f (now %.0f)",
                        fmax(a->plan.max_staleness + 1, a->change.max_staleness),
                        a->plan.max_staleness);
    case AUDIT_REWARDS:
        return snprintf(text, bytes, "raise rewards.threads, or lower rewards.timeout_ms");
    case AUDIT_CHANNEL:
        return snprintf(text, bytes, "raise transport.ring_groups and transport.credits");
    case AUDIT_CHECKPOINT:
        return snprintf(text, bytes, "raise checkpoint.every tenfold");
    case AUDIT_WEIGHTS:
        return snprintf(text, bytes, "fewer updates: raise rollout.prompts_per_step");
    }
    return 0;
}

void audit_say_change(const struct audit *a, char *text, size_t bytes)
{
    int used = say_action(a, text, bytes);
    if (!a->predicted || used < 0 || (size_t)used >= bytes) {
        return;
    }
    if (a->gain < 0.01) {
        snprintf(text + used, bytes - (size_t)used, "; by the simulation that gains nothing");
        return;
    }
    snprintf(text + used, bytes - (size_t)used,
             "; expected: %+.0f %% tokens per second (simulated)", 100 * a->gain);
}

/* --- text
 * -------------------------------------------------------------------------------------------- */

struct part_names {
    const char *(*name)(int);
    const char *(*help)(int);
};

static const char *learner_name(int i)
{
    return rl_learner_time_name((enum rl_learner_time)i);
}

static const char *learner_help(int i)
{
    return rl_learner_time_help((enum rl_learner_time)i);
}

static const char *rollout_name(int i)
{
    return rl_rollout_time_name((enum rl_rollout_time)i);
}

static const char *rollout_help(int i)
{
    return rl_rollout_time_help((enum rl_rollout_time)i);
}

static rl_status append_role(struct rl_text *out, const double *times, int count,
                             const struct part_names *names)
{
    double whole = rl_times_sum(times, count);
    for (int i = 0; i < count; i++) {
        RL_TRY(rl_text_printf(out, "  %-18s %10.2f s %6.2f %%  %s\n", names->name(i), times[i],
                              percent(times[i], whole), names->help(i)));
    }
    return rl_text_printf(out, "  %-18s %10.2f s\n", "together", whole);
}

static rl_status append_bar(struct rl_text *out, const char *label, double part, double largest)
{
    char bar[BAR_WIDTH + 1];
    int length = largest > 0 ? (int)lround(BAR_WIDTH * part / largest) : 0;
    for (int i = 0; i < BAR_WIDTH; i++) {
        bar[i] = i < length ? '#' : ' ';
    }
    bar[BAR_WIDTH] = '\0';
    return rl_text_printf(out, "  %14s %s %6.2f %%\n", label, bar, 100 * part);
}

static double largest_of(const double *values, int count)
{
    double largest = 0;
    for (int i = 0; i < count; i++) {
        largest = fmax(largest, values[i]);
    }
    return largest;
}

static rl_status append_histograms(struct rl_text *out, const struct audit *a)
{
    char label[32];
    RL_TRY(rl_text_append_str(out, "\nStaleness of tokens, versions\n"));
    for (int i = 0; i < AUDIT_AGES; i++) {
        snprintf(label, sizeof(label), "%d", i);
        if (a->ages[i] > 0) {
            RL_TRY(append_bar(out, label, a->ages[i], largest_of(a->ages, AUDIT_AGES)));
        }
    }
    RL_TRY(rl_text_printf(out,
                          "\nLength of completions, tokens: mean %.1f, median %.0f, 95 %% %.0f, "
                          "longest %.0f\n",
                          a->length_mean, a->length_p50, a->length_p95, a->length_max));
    for (int i = 0; i < AUDIT_LENGTHS; i++) {
        snprintf(label, sizeof(label), "up to %.0f", ldexp(1, i));
        if (a->lengths[i] > 0.00005) {
            RL_TRY(append_bar(out, label, a->lengths[i], largest_of(a->lengths, AUDIT_LENGTHS)));
        }
    }
    return RL_OK;
}

rl_status audit_text_append(struct rl_text *out, const struct audit *a)
{
    char bottleneck[256];
    char change[256];
    struct part_names learner = {learner_name, learner_help};
    struct part_names rollout = {rollout_name, rollout_help};
    audit_say_bottleneck(a, bottleneck, sizeof(bottleneck));
    audit_say_change(a, change, sizeof(change));
    RL_TRY(rl_text_printf(out,
                          "%s: %zu steps in %.1f s, %.0f completion tokens, %.0f a second\n\n"
                          "Bottleneck: %s.\nWhat would help: %s.\n\n",
                          a->name, a->steps, a->wall_s, a->tokens,
                          a->wall_s > 0 ? a->tokens / a->wall_s : 0, bottleneck, change));
    RL_TRY(rl_text_printf(out, "Learner: %.1f %% idle, %.1f s of CPU\n", 100 * a->learner_idle,
                          a->learner_cpu_s));
    RL_TRY(append_role(out, a->learner_s, RL_LEARNER_TIMES, &learner));
    RL_TRY(rl_text_printf(out, "\nRollout ranks (%.0f): %.1f %% idle, %.1f s of CPU\n",
                          a->plan.rollout_ranks, 100 * a->rollout_idle, a->rollout_cpu_s));
    RL_TRY(append_role(out, a->rollout_s, RL_ROLLOUT_TIMES, &rollout));
    RL_TRY(rl_text_printf(out, "\nWaiting for weights: %.3f %% of a role's time at most\n",
                          100 * a->weight_wait));
    return append_histograms(out, a);
}

/* --- JSON
 * -------------------------------------------------------------------------------------------- */

static const char *bottleneck_key(enum audit_bottleneck bottleneck)
{
    static const char *const names[] = {"balanced", "by_turns",   "generation",
                                        "learning", "staleness",  "rewards",
                                        "channel",  "checkpoint", "weights"};
    return names[bottleneck];
}

static json_t *role_json(const double *times, int count, const char *(*name)(int), double idle)
{
    json_t *seconds = json_object();
    for (int i = 0; i < count && seconds != NULL; i++) {
        (void)json_object_set_new(seconds, name(i), json_real(times[i]));
    }
    return json_pack("{s:o, s:f}", "seconds", seconds, "idle", idle);
}

static json_t *histogram_json(const double *values, int count)
{
    json_t *list = json_array();
    int last = count;
    while (last > 0 && values[last - 1] <= 0) {
        last--;
    }
    for (int i = 0; i < last && list != NULL; i++) {
        (void)json_array_append_new(list, json_real(values[i]));
    }
    return list;
}

json_t *audit_json(const struct audit *a)
{
    char bottleneck[256];
    char change[256];
    audit_say_bottleneck(a, bottleneck, sizeof(bottleneck));
    audit_say_change(a, change, sizeof(change));
    json_t *line = json_pack(
        "{s:s, s:I, s:f, s:f, s:f, s:s, s:s, s:s, s:f, s:o, s:o, s:o, s:o}", "run", a->name,
        "steps", (json_int_t)a->steps, "seconds", a->wall_s, "tokens", a->tokens,
        "tokens_per_second", a->wall_s > 0 ? a->tokens / a->wall_s : 0, "bottleneck",
        bottleneck_key(a->bottleneck), "bottleneck_text", bottleneck, "change", change,
        "weight_wait", a->weight_wait, "learner",
        role_json(a->learner_s, RL_LEARNER_TIMES, learner_name, a->learner_idle), "rollout",
        role_json(a->rollout_s, RL_ROLLOUT_TIMES, rollout_name, a->rollout_idle), "staleness",
        histogram_json(a->ages, AUDIT_AGES), "lengths_up_to_power_of_2",
        histogram_json(a->lengths, AUDIT_LENGTHS));
    if (line != NULL && a->predicted) {
        (void)json_object_set_new(line, "expected_gain", json_real(a->gain));
        (void)json_object_set_new(line, "simulated_tokens_per_second", json_real(a->predicted_now));
    }
    return line;
}
