/* See train_summary.h. */
#include "app/train_summary.h"

#include "app/summary.h"
#include "core/clock.h"
#include "core/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static json_t *ticket_summary(const struct dispatcher_counters *c)
{
    json_int_t live = 0;
    for (int i = 0; i < DISPATCHER_STATE_COUNT; i++) {
        live += (json_int_t)c->live[i];
    }
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:{s:I, s:I, s:I, s:I, s:I}}", "created",
                     (json_int_t)c->created, "trained", (json_int_t)c->trained, "live", live,
                     "reissued", (json_int_t)c->reissues, "duplicates", (json_int_t)c->duplicates,
                     "dropped", "stale", (json_int_t)c->dropped[DISPATCHER_STALE], "zero_variance",
                     (json_int_t)c->dropped[DISPATCHER_ZERO_VARIANCE], "unscorable",
                     (json_int_t)c->dropped[DISPATCHER_UNSCORABLE], "surplus",
                     (json_int_t)c->dropped[DISPATCHER_SURPLUS], "rejected",
                     (json_int_t)c->dropped[DISPATCHER_REJECTED]);
}

static double share(double part, double whole)
{
    return whole > 0 ? part / whole : 0;
}

/* {"seconds": {part: s, ...}, "idle": share}: what a role's time went to. */
static json_t *role_summary(const double *times, int count, const char *(*name)(int), double idle_s)
{
    json_t *seconds = json_object();
    for (int i = 0; i < count && seconds != NULL; i++) {
        (void)json_object_set_new(seconds, name(i), json_real(times[i]));
    }
    return json_pack("{s:o, s:f}", "seconds", seconds, "idle",
                     share(idle_s, rl_times_sum(times, count)));
}

static const char *learner_part(int part)
{
    return rl_learner_time_name((enum rl_learner_time)part);
}

static const char *rollout_part(int part)
{
    return rl_rollout_time_name((enum rl_rollout_time)part);
}

static json_t *time_summary(const struct train_totals *t)
{
    json_t *learner =
        role_summary(t->learner_s, RL_LEARNER_TIMES, learner_part, rl_learner_idle_s(t->learner_s));
    json_t *rollout =
        role_summary(t->rollout_s, RL_ROLLOUT_TIMES, rollout_part, rl_rollout_idle_s(t->rollout_s));
    return json_pack("{s:o, s:o}", "learner", learner, "rollout", rollout);
}

/* Tokens trained on at staleness 0, 1, ... 14, 15 and more. */
static json_t *histogram_summary(const struct train_totals *totals)
{
    json_t *array = json_array();
    for (int i = 0; array != NULL && i < OBJECTIVE_STALENESS_BUCKETS; i++) {
        (void)json_array_append_new(array,
                                    json_integer((json_int_t)totals->staleness_histogram[i]));
    }
    return array;
}

/* Microseconds; a gap's figures are 0 where generation never went on over a switch. */
static json_t *pass_summary(const struct rl_pass_times *passes)
{
    return json_pack(
        "{s:f, s:f, s:f, s:f}", "pass_us_p50", rl_histogram_quantile_us(passes->pass_us, 0.5),
        "switch_gap_us_p50", rl_pass_times_gap_us(passes, 0.5), "switch_gap_us_p99",
        rl_pass_times_gap_us(passes, 0.99), "switch_gap_us_max", passes->switch_gap_max_s * 1e6);
}

static json_t *weight_summary(const struct train_run *run)
{
    const struct weight_sender_counters *w = &run->totals.weights;
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:f}", "full_image_bytes",
                     (json_int_t)run->session->layout->image_bytes, "sends", (json_int_t)w->sends,
                     "bytes", (json_int_t)w->bytes, "full_sends", (json_int_t)w->full_sends,
                     "published", (json_int_t)w->published, "refused", (json_int_t)w->refused,
                     "encode_seconds", w->encode_s);
}

rl_status train_summary_write(const struct train_run *run, bool completed,
                              const struct dispatcher_counters *tickets)
{
    const struct train_totals *t = &run->totals;
    char path[CHECKPOINT_PATH_MAX + 32];
    bool quantized = run->config->rollout.quantize == CONFIG_QUANTIZE_INT8; /* no fault then */
    snprintf(path, sizeof(path), "%s/summary.json", run->dir);
    json_t *part = json_pack(
        "{s:s, s:I, s:I, s:b, s:f, s:f, s:{s:f, s:f, s:o}, s:{s:f, s:I}, s:{s:f, s:f, s:f}, "
        "s:{s:f, s:f}, s:o, s:o, s:o, s:o}",
        "run", run->config->run.name, "seed", (json_int_t)run->config->run.seed, "steps",
        (json_int_t)run->step, "completed", completed, "rollout_tokens_per_second",
        share(t->completion_tokens, t->wall_s), "learner_tokens_per_second",
        share(t->learner_tokens, t->learner_busy_s), "staleness", "mean",
        share(t->staleness_sum, t->staleness_tokens), "max", t->staleness_max, "histogram",
        histogram_summary(t), quantized ? "logprob_quantization" : "logprob_mismatch", "max",
        t->mismatch_max, "tokens", (json_int_t)t->mismatch_tokens, "wall_seconds", "train",
        t->wall_s, "train_wait_for_batch", t->wait_s, "train_learner_busy", t->learner_busy_s,
        "cpu_seconds", "learner", rl_clock_process_cpu_s(), "workers", run->worker_cpu_s, "tickets",
        ticket_summary(tickets), "time", time_summary(t), "rollout", pass_summary(&t->passes),
        "weights", weight_summary(run));
    if (part == NULL) {
        return rl_fail(RL_NO_MEMORY, "summary.json: out of memory");
    }
    rl_status status = summary_merge(path, part);
    json_decref(part);
    return status;
}
