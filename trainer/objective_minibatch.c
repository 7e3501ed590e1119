/* See objective_minibatch_measure. Owns the sums over a whole minibatch that corrections need
 * before its gradients; the invariant is that every decision is taken on reduced sums, so that all
 * ranks take the same ones and their collective calls match. */
#include "trainer/objective_internal.h"

#include <assert.h>
#include <math.h>
#include <string.h>

struct objective_batch_view {
    const struct objective_options *options;
    const struct objective_sequence *sequences;
    uint32_t count;
    const struct objective_reduce *reduce;
};

typedef void (*objective_visit_fn)(void *arg, const struct objective_batch_view *view,
                                   const struct objective_sequence *sequence,
                                   const struct objective_look *look);

static uint32_t objective_bits(float value)
{
    uint32_t bits = 0;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

static float objective_float(uint32_t bits)
{
    float value = 0;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

/* False if an unmasked value is not finite: the sequence will be rejected. */
static bool objective_look_ahead(const struct objective_options *options,
                                 const struct objective_sequence *sequence,
                                 struct objective_look *look)
{
    *look = (struct objective_look){.finite = true, .lowest_log_rho = INFINITY};
    for (uint32_t t = 0; t < sequence->count; t++) {
        if (objective_masked(sequence, t)) {
            continue;
        }
        double gap = objective_gap_at(options, sequence, t);
        if (!isfinite(gap)) {
            return false;
        }
        look->tokens++;
        objective_look_gap(look, gap);
    }
    return look->tokens > 0;
}

static void objective_visit(const struct objective_batch_view *view, objective_visit_fn visit,
                            void *arg)
{
    for (uint32_t i = 0; i < view->count; i++) {
        struct objective_look look;
        if (objective_look_ahead(view->options, &view->sequences[i], &look)) {
            visit(arg, view, &view->sequences[i], &look);
        }
    }
}

static rl_status objective_sum(const struct objective_batch_view *view, double *values,
                               int64_t count)
{
    return view->reduce != NULL ? view->reduce->sum(view->reduce->arg, values, count) : RL_OK;
}

/* --- normalised weights
 * ---------------------------------------------------------------------------------------------- */

static void objective_add_weights(void *arg, const struct objective_batch_view *view,
                                  const struct objective_sequence *sequence,
                                  const struct objective_look *look)
{
    double *sums = arg; /* weights, tokens */
    struct objective_options table = *view->options;
    struct objective_verdict verdict;
    table.veto_threshold = 0;
    table.opsm_delta = 0;
    objective_judge(&table, look, &verdict);
    for (uint32_t t = 0; t < sequence->count; t++) {
        if (!objective_masked(sequence, t)) {
            sums[0] += objective_weight_at(&table, sequence, &verdict, t, NULL);
            sums[1]++;
        }
    }
}

static rl_status objective_mean_weight(const struct objective_batch_view *view, double *scale)
{
    double sums[2] = {0, 0};
    objective_visit(view, objective_add_weights, sums);
    RL_TRY(objective_sum(view, sums, 2));
    *scale = sums[0] > 0 ? sums[1] / sums[0] : 1;
    return RL_OK;
}

/* --- M2PO
 * ------------------------------------------------------------------------------------------------
 */

struct objective_squares {
    float limit;
    double sum, count;     /* of squared gaps up to the limit */
    double largest, least; /* least: negative, so that both are maxima */
};

static void objective_add_squares(void *arg, const struct objective_batch_view *view,
                                  const struct objective_sequence *sequence,
                                  const struct objective_look *look)
{
    struct objective_squares *squares = arg;
    (void)look;
    for (uint32_t t = 0; t < sequence->count; t++) {
        if (objective_masked(sequence, t)) {
            continue;
        }
        double gap = objective_gap_at(view->options, sequence, t);
        float square = (float)(gap * gap);
        squares->largest = fmax(squares->largest, (double)square);
        squares->least = fmax(squares->least, -(double)square);
        if (square <= squares->limit) {
            squares->sum += (double)square;
            squares->count++;
        }
    }
}

/* True if the mean of the squares up to `limit` is below the threshold. */
static rl_status objective_passes(const struct objective_batch_view *view, float limit,
                                  bool *passes)
{
    struct objective_squares squares = {.limit = limit};
    objective_visit(view, objective_add_squares, &squares);
    double sums[2] = {squares.sum, squares.count};
    RL_TRY(objective_sum(view, sums, 2));
    *passes = sums[0] < view->options->m2po_threshold * sums[1];
    return RL_OK;
}

/* The mean grows with the limit, and floats of one sign are ordered like their bits. */
static rl_status objective_search(const struct objective_batch_view *view, float *limit)
{
    struct objective_squares squares = {.limit = -1, .largest = -INFINITY, .least = -INFINITY};
    objective_visit(view, objective_add_squares, &squares);
    double ends[2] = {squares.largest, squares.least};
    if (view->reduce != NULL) {
        RL_TRY(view->reduce->max(view->reduce->arg, ends, 2));
    }
    bool passes = ends[0] < 0; /* no token at all */
    if (!passes) {
        RL_TRY(objective_passes(view, (float)ends[0], &passes));
    }
    if (passes) {
        *limit = INFINITY;
        return RL_OK;
    }
    uint32_t low = objective_bits((float)-ends[1] + 0.0f); /* always kept; + 0: never -0 */
    uint32_t high = objective_bits((float)ends[0]);
    while (high > low + 1) {
        uint32_t middle = low + (high - low) / 2;
        RL_TRY(objective_passes(view, objective_float(middle), &passes));
        low = passes ? middle : low;
        high = passes ? high : middle;
    }
    *limit = objective_float(low);
    return RL_OK;
}

rl_status objective_minibatch_measure(const struct objective_options *options,
                                      const struct objective_sequence *sequences, uint32_t count,
                                      const struct objective_reduce *reduce,
                                      struct objective_minibatch *out)
{
    struct objective_minibatch measured = {.gap_limit = INFINITY, .weight_scale = 1};
    struct objective_batch_view view = {options, sequences, count, reduce};
    assert(!options->loglinear || !objective_needs_measure(options));
    if (options->correction_normalize) {
        RL_TRY(objective_mean_weight(&view, &measured.weight_scale));
    }
    if (options->m2po_threshold > 0) {
        RL_TRY(objective_search(&view, &measured.gap_limit));
    }
    *out = measured;
    return RL_OK;
}

bool objective_needs_measure(const struct objective_options *options)
{
    return options->correction_normalize || options->m2po_threshold > 0;
}
