/* Costs of a row from its measurements, and what the simulator makes of them. Pure. */
#include "app/bench_async.h"

#include <math.h>

enum { FIT_TERMS = 4 };

/* Solve the symmetric system a x = b in place by elimination; terms that never occur give 0. */
static void solve(double a[FIT_TERMS][FIT_TERMS + 1], double x[FIT_TERMS])
{
    for (int i = 0; i < FIT_TERMS; i++) {
        if (!(a[i][i] > 1e-12)) {
            a[i][i] = 1;
            a[i][FIT_TERMS] = 0;
        }
        for (int row = 0; row < FIT_TERMS; row++) {
            double factor = row == i ? 0 : a[row][i] / a[i][i];
            for (int column = i; column <= FIT_TERMS; column++) {
                a[row][column] -= factor * a[i][column];
            }
        }
    }
    for (int i = 0; i < FIT_TERMS; i++) {
        x[i] = fmax(0.0, a[i][FIT_TERMS] / a[i][i]);
    }
}

/* Least squares: seconds = pass + sequence * sampled + context_token * context + prefill_token *
 * prefill. Means, not medians:
 * time that others take from this machine is lost in the row as well. */
void bench_costs_fit(const struct bench_pass *passes, size_t count, struct bench_costs *out)
{
    double a[FIT_TERMS][FIT_TERMS + 1] = {{0}};
    double x[FIT_TERMS];
    for (size_t i = 0; i < count; i++) {
        const double term[FIT_TERMS + 1] = {1, passes[i].sampled, passes[i].context,
                                            passes[i].prefill, passes[i].seconds};
        for (int row = 0; row < FIT_TERMS; row++) {
            for (int column = 0; column <= FIT_TERMS; column++) {
                a[row][column] += term[row] * term[column];
            }
        }
    }
    solve(a, x);
    *out = (struct bench_costs){
        .pass_s = x[0], .sequence_s = x[1], .context_token_s = x[2], .prefill_token_s = x[3]};
}

rl_status bench_row_predict(const struct bench_workload *workload, const struct bench_rung *rung,
                            const struct bench_costs *costs, double *tokens_per_second)
{
    struct simulate_options options = workload->shape;
    struct simulate_result result;
    options.mode = rung->mode;
    options.max_staleness = rung->ahead ? options.max_staleness : 0;
    options.drop_stale = 0;
    options.resolution = options.length_max;
    options.pass_s = costs->pass_s;
    options.sequence_s = costs->sequence_s;
    options.context_token_s = costs->context_token_s;
    options.prefill_token_s = costs->prefill_token_s;
    options.train_s = costs->train_s;
    options.train_token_s = costs->train_token_s;
    options.publish_s = costs->publish_s;
    options.fixed_lag = rung->fixed_lag ? 1 : 0;
    options.transfer_s = rung->mode == SIMULATE_SLOTS ? 0 : costs->transfer_s;
    options.switch_s = rung->mode == SIMULATE_SLOTS ? costs->transfer_s : 0;
    RL_TRY(simulate_run(&options, &result));
    *tokens_per_second = result.tokens_per_second;
    return RL_OK;
}
