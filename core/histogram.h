/* Counts of durations in buckets that double in width, so that those of many ranks add up and any
 * quantile is known within its bucket; and those that every rollout rank keeps. Pure. */
#ifndef FORESIGHT_CORE_HISTOGRAM_H
#define FORESIGHT_CORE_HISTOGRAM_H

#include <stdint.h>

/* Bucket 0 holds what is below 1 us, bucket b >= 1 holds [2^(b-1), 2^b) us, the last one is open.
 */
enum { RL_HISTOGRAM_BUCKETS = 32 };

/* Count one duration; a negative one counts as 0. */
void rl_histogram_add(uint64_t counts[RL_HISTOGRAM_BUCKETS], double time_s);

/* Duration in us that a share `quantile` (0 .. 1) of the counts lies below, linear within a bucket;
 * 0 if nothing was counted. */
double rl_histogram_quantile_us(const uint64_t counts[RL_HISTOGRAM_BUCKETS], double quantile);

/* Forward passes of rollout engines, and what lies between them where weights change: from the end
 * of a pass to the start of the first one with a newer version than any before, where sequences
 * were running all the while. */
struct rl_pass_times {
    uint64_t pass_us[RL_HISTOGRAM_BUCKETS];
    uint64_t switch_gap_us[RL_HISTOGRAM_BUCKETS];
    double switch_gap_max_s; /* the longest */
    uint64_t guessed_tokens; /* put into passes by speculation */
    uint64_t right_guesses;  /* of them: what sampling gave too */
};

/* sum += now - before, `before` (NULL: zeros) being an earlier state of the same counters, unless
 * they have begun anew since: fewer passes than before. */
void rl_pass_times_add(struct rl_pass_times *sum, const struct rl_pass_times *now,
                       const struct rl_pass_times *before);

/* Quantile (0 .. 1) of the gaps, microseconds. */
double rl_pass_times_gap_us(const struct rl_pass_times *times, double quantile);

#endif
