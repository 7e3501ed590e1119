/* Choice of one id from a row of unnormalised probabilities; shared by all back ends, which differ
 * only in how the row is computed. Pure: same inputs, same id. */
#ifndef FORESIGHT_KERNELS_SAMPLING_H
#define FORESIGHT_KERNELS_SAMPLING_H

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

struct kernel_sampling_row {
    const float *p; /* [V] >= 0, largest is 1 */
    int32_t *order; /* scratch [V]; NULL allowed without top-k and top-p */
    int64_t v;
    const struct kernel_sampling *sampling;
    double u;    /* in [0, 1) */
    float *kept; /* written: the share of the row's sum that truncation left; NULL: not wanted */
};

/* Keep top-k, of these the smallest most probable set with a share >= top_p, of these p >= min_p *
 * largest; then draw by inverse CDF in id order. Among equal probabilities the lower id goes first.
 * Always returns an id in [0, V). */
int32_t kernel_sampling_draw(const struct kernel_sampling_row *row);

/* Largest logit, lowest id on ties; 0 if every logit is NaN. */
int32_t kernel_sampling_greedy(const float *logits, int64_t v);

/* Temperatures below 1e-5 take the largest logit: at that heat a draw would be one by another name,
 * but for ties, and its log-probs would say nothing. */
bool kernel_sampling_is_greedy(const struct kernel_sampling *sampling);

/* Does it leave out ids (top-k, top-p or min-p)? */
bool kernel_sampling_truncates(const struct kernel_sampling *sampling);

/* Factor on the logits: 1 / temperature as one fp32 division (what head_forward must be given for
 * the same bits), or 1 for greedy. */
float kernel_sampling_inverse_temperature(const struct kernel_sampling *sampling);

#ifdef __cplusplus
}
#endif

#endif
