/* See eval_compare.h. */
#include "trainer/eval_compare.h"

#include "core/log.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

rl_status eval_paired_interval(const double *left, const double *right, uint32_t count,
                               uint64_t seed, struct eval_interval *out)
{
    double *differences = calloc((size_t)count + 1, sizeof *differences);
    if (differences == NULL) {
        return rl_fail(RL_NO_MEMORY, "evaluation: no memory for %" PRIu32 " problems", count);
    }
    for (uint32_t i = 0; i < count; i++) {
        differences[i] = right[i] - left[i];
    }
    rl_status status = eval_mean_interval(differences, count, seed, out);
    free(differences);
    return status;
}

rl_status eval_same_problems(const struct count_table *left, const struct count_table *right)
{
    if (left->problem_count != right->problem_count) {
        return rl_fail(RL_INVALID, "evaluations of %" PRIu32 " and of %" PRIu32 " problems",
                       left->problem_count, right->problem_count);
    }
    for (uint32_t i = 0; i < left->problem_count; i++) {
        const struct count_problem *a = &left->problems[i];
        const struct count_problem *b = &right->problems[i];
        if (a->id != b->id || a->set != b->set) {
            return rl_fail(RL_INVALID,
                           "evaluations of different problems: number %" PRIu32 " is %016" PRIx64
                           " of set %" PRIu32 " in one and %016" PRIx64 " of set %" PRIu32
                           " in the other",
                           i, a->id, a->set, b->id, b->set);
        }
    }
    return RL_OK;
}

bool eval_scope_has(const struct eval_scope *scope, const struct count_problem *problem)
{
    return problem->set == scope->set && (scope->split < 0 || problem->split == scope->split);
}

rl_status eval_counts_values(const struct count_table *table, const struct eval_pick *pick,
                             double *values, uint32_t *count)
{
    uint32_t found = 0;
    for (uint32_t p = 0; p < table->problem_count; p++) {
        const struct count_cell *cell = count_table_at(table, pick->temperature, p);
        if (!eval_scope_has(&pick->scope, &table->problems[p])) {
            continue;
        }
        if (pick->figure == EVAL_MAJORITY) {
            values[found++] = cell->majority;
            continue;
        }
        if (pick->k == 0 || pick->k > cell->samples) {
            return rl_fail(RL_INVALID, "pass@%" PRIu32 " of a problem with %" PRIu32 " samples",
                           pick->k, cell->samples);
        }
        values[found++] = eval_pass_at_k(cell->samples, cell->correct, pick->k);
    }
    *count = found;
    return RL_OK;
}

int eval_find_temperature(const struct count_table *table, double temperature)
{
    for (uint32_t t = 0; t < table->temperature_count; t++) {
        if (fabs(table->temperatures[t] - temperature) < 1e-9) {
            return (int)t;
        }
    }
    return -1;
}

double eval_t_quantile(uint32_t df)
{
    static const double table[] = {
        12.706204736, 4.302652730, 3.182446305, 2.776445105, 2.570581836, 2.446911851,
        2.364624252,  2.306004135, 2.262157163, 2.228138852, 2.200985160, 2.178812830,
        2.160368656,  2.144786688, 2.131449546, 2.119905299, 2.109815578, 2.100922040,
        2.093024054,  2.085963447, 2.079613845, 2.073873068, 2.068657610, 2.063898562,
        2.059538553,  2.055529439, 2.051830516, 2.048407142, 2.045229642, 2.042272456};
    if (df >= 1 && df <= sizeof table / sizeof *table) {
        return table[df - 1];
    }
    /* Cornish-Fisher about the normal quantile; below 1e-6 off from 30 degrees on */
    double z = 1.959963984540054;
    double n = df;
    double z3 = z * z * z;
    double z5 = z3 * z * z;
    return z + (z3 + z) / (4 * n) + (5 * z5 + 16 * z3 + 3 * z) / (96 * n * n) +
           (3 * z5 * z * z + 19 * z5 + 17 * z3 - 15 * z) / (384 * n * n * n);
}

rl_status eval_t_interval(const double *values, uint32_t count, struct eval_interval *out)
{
    double mean = 0;
    double squares = 0;
    for (uint32_t i = 0; i < count; i++) {
        mean += values[i];
    }
    if (count == 0 || !isfinite(mean)) {
        return rl_fail(RL_INVALID, "evaluation: no values, or one is not finite");
    }
    mean /= count;
    for (uint32_t i = 0; i < count; i++) {
        squares += (values[i] - mean) * (values[i] - mean);
    }
    double half = NAN;
    if (count > 1) {
        half = eval_t_quantile(count - 1) * sqrt(squares / (count - 1) / count);
    }
    *out = (struct eval_interval){mean, mean - half, mean + half};
    return RL_OK;
}

/* Solve the 3 x 3 system by elimination with pivots; false if it is singular. */
static bool solve3(double a[3][4], double out[3])
{
    for (int column = 0; column < 3; column++) {
        int pivot = column;
        for (int row = column + 1; row < 3; row++) {
            pivot = fabs(a[row][column]) > fabs(a[pivot][column]) ? row : pivot;
        }
        if (fabs(a[pivot][column]) < 1e-12) {
            return false;
        }
        double swap[4];
        memcpy(swap, a[pivot], sizeof swap);
        memcpy(a[pivot], a[column], sizeof swap);
        memcpy(a[column], swap, sizeof swap);
        for (int row = column + 1; row < 3; row++) {
            double factor = a[row][column] / a[column][column];
            for (int i = column; i < 4; i++) {
                a[row][i] -= factor * a[column][i];
            }
        }
    }
    for (int row = 2; row >= 0; row--) {
        double sum = a[row][3];
        for (int i = row + 1; i < 3; i++) {
            sum -= a[row][i] * out[i];
        }
        out[row] = sum / a[row][row];
    }
    return true;
}

/* R^2 of c (in u = (x - middle) / scale). */
static double explained(const double *x, const double *y, uint32_t count, const double place[2],
                        const double c[3])
{
    double mean = 0;
    double total = 0;
    double rest = 0;
    for (uint32_t i = 0; i < count; i++) {
        mean += y[i] / count;
    }
    for (uint32_t i = 0; i < count; i++) {
        double u = (x[i] - place[0]) / place[1];
        double off = y[i] - (c[0] + c[1] * u + c[2] * u * u);
        total += (y[i] - mean) * (y[i] - mean);
        rest += off * off;
    }
    return total > 0 ? 1 - rest / total : NAN;
}

bool eval_parabola_fit(const double *x, const double *y, uint32_t count, struct eval_parabola *out)
{
    double low = INFINITY;
    double high = -INFINITY;
    for (uint32_t i = 0; i < count; i++) {
        low = fmin(low, x[i]);
        high = fmax(high, x[i]);
    }
    if (count < 3 || !(high > low)) {
        return false;
    }
    double place[2] = {(low + high) / 2, (high - low) / 2}; /* keeps the system well conditioned */
    double a[3][4] = {{0}};
    for (uint32_t i = 0; i < count; i++) {
        double u = (x[i] - place[0]) / place[1];
        double power[3] = {1, u, u * u};
        for (int row = 0; row < 3; row++) {
            for (int column = 0; column < 3; column++) {
                a[row][column] += power[row] * power[column];
            }
            a[row][3] += power[row] * y[i];
        }
    }
    double c[3];
    if (!solve3(a, c)) {
        return false;
    }
    double b = c[1] / place[1];
    double q = c[2] / (place[1] * place[1]);
    *out = (struct eval_parabola){
        .c = {c[0] - b * place[0] + q * place[0] * place[0], b - 2 * q * place[0], q},
        .r2 = explained(x, y, count, place, c),
        .peak = q < 0 ? place[0] - b / (2 * q) : NAN};
    return true;
}
