/* See histogram.h. */
#include "core/histogram.h"

#include <math.h>
#include <stddef.h>

void rl_histogram_add(uint64_t counts[RL_HISTOGRAM_BUCKETS], double time_s)
{
    double limit_us = 1;
    int bucket = 0;
    while (bucket < RL_HISTOGRAM_BUCKETS - 1 && time_s * 1e6 >= limit_us) {
        limit_us *= 2;
        bucket++;
    }
    counts[bucket]++;
}

static uint64_t count_all(const uint64_t counts[RL_HISTOGRAM_BUCKETS])
{
    uint64_t total = 0;
    for (int i = 0; i < RL_HISTOGRAM_BUCKETS; i++) {
        total += counts[i];
    }
    return total;
}

double rl_histogram_quantile_us(const uint64_t counts[RL_HISTOGRAM_BUCKETS], double quantile)
{
    double total = (double)count_all(counts);
    double below = 0;
    for (int i = 0; i < RL_HISTOGRAM_BUCKETS; i++) {
        double count = (double)counts[i];
        if (count > 0 && below + count >= quantile * total) {
            double low = i == 0 ? 0 : ldexp(1, i - 1);
            double high = ldexp(1, i);
            return low + (high - low) * fmax(0, quantile * total - below) / count;
        }
        below += count;
    }
    return 0;
}

void rl_pass_times_add(struct rl_pass_times *sum, const struct rl_pass_times *now,
                       const struct rl_pass_times *before)
{
    static const struct rl_pass_times nothing = {0};
    if (before == NULL || count_all(before->pass_us) > count_all(now->pass_us)) {
        before = &nothing;
    }
    for (int i = 0; i < RL_HISTOGRAM_BUCKETS; i++) {
        sum->pass_us[i] += now->pass_us[i] - before->pass_us[i];
        sum->switch_gap_us[i] += now->switch_gap_us[i] - before->switch_gap_us[i];
    }
    sum->guessed_tokens += now->guessed_tokens - before->guessed_tokens;
    sum->right_guesses += now->right_guesses - before->right_guesses;
    sum->switch_gap_max_s = fmax(sum->switch_gap_max_s, now->switch_gap_max_s);
}

double rl_pass_times_gap_us(const struct rl_pass_times *times, double quantile)
{
    /* Within a bucket a quantile is estimated: never above the longest that there was. */
    return fmin(rl_histogram_quantile_us(times->switch_gap_us, quantile),
                times->switch_gap_max_s * 1e6);
}
