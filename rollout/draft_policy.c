/* See draft_policy.h. Times are kept as low estimates: a machine that is busy with something else
 * makes passes longer, never shorter. */
#include "rollout/draft_policy.h"

#include <assert.h>
#include <math.h>
#include <string.h>

enum {
    TRIALS = 2,         /* passes after which a width counts as measured */
    PLAIN_EVERY = 128,  /* passes: the plain pass is measured again at least so often */
    STALE_AFTER = 1024, /* passes: a width not met for so long is tried again */
    EXACT_BATCHES = 16, /* numbers of sequences below are told apart one by one */
    PRIOR_ROWS = 8,     /* before measuring: reading the weights costs as much as so many tokens */
    CREDIT_PASSES = 4,  /* plain passes that may be lost at the start */
    CREDIT_MAX_PASSES = 16
};

static const double credit_share = 0.005; /* of all time that may be lost in trials */
static const double margin = 1.02;        /* by which guesses must be expected to pay */

/* Guesses of a pass: the largest number of each width. */
static const int32_t width_rows[DRAFT_WIDTHS] = {0, 1, 2, 3, 5, 7, 11, 15, 24, 40, DRAFT_ROWS};

static int width_of(int32_t rows)
{
    int width = 0;
    while (width_rows[width] < rows) {
        width++;
    }
    return width;
}

/* One by one, then eight to an octave. */
static int batch_of(int32_t sequences)
{
    if (sequences <= EXACT_BATCHES) {
        return sequences - 1;
    }
    int batch = (int)(8 * log2((double)sequences / EXACT_BATCHES)) + EXACT_BATCHES;
    return batch < DRAFT_BATCHES ? batch : DRAFT_BATCHES - 1;
}

void rollout_draft_policy_init(struct rollout_draft_policy *policy)
{
    memset(policy, 0, sizeof(*policy));
}

void rollout_draft_policy_clear(struct rollout_draft_policy *policy)
{
    memset(policy->offered, 0, sizeof(policy->offered));
    memset(policy->chance, 0, sizeof(policy->chance));
}

static int level_of(float chance)
{
    int level = (int)(chance * DRAFT_CHANCE_LEVELS);
    return level < DRAFT_CHANCE_LEVELS ? level : DRAFT_CHANCE_LEVELS - 1;
}

void rollout_draft_policy_offer(struct rollout_draft_policy *policy, float chance)
{
    policy->offered[level_of(chance)]++;
    policy->chance[level_of(chance)] += (double)chance;
}

/* Cost of a pass of this width as a multiple of the plain one's. */
static double ratio_of(const struct rollout_draft_policy *p, int32_t sequences, int width)
{
    const struct draft_cell *cells = p->cells[batch_of(sequences)];
    const struct draft_cell *cell = &cells[width];
    if (cell->trials >= TRIALS && p->passes - cell->last < STALE_AFTER) {
        return cell->cost;
    }
    int below = width - 1;
    while (below > 0 && cells[below].trials < TRIALS) {
        below--;
    }
    double known = below > 0 ? cells[below].cost : 1;
    double guess =
        known + (double)(width_rows[width] - width_rows[below]) / (double)(sequences + PRIOR_ROWS);
    return cell->trials > 0 && cell->cost < guess ? cell->cost : guess;
}

/* Expected tokens of the likeliest `rows` guesses on offer; *level: the lowest they come from. */
static double expected(const struct rollout_draft_policy *p, int32_t rows, int *level)
{
    double tokens = 0;
    int32_t left = rows;
    int at = DRAFT_CHANCE_LEVELS;
    while (left > 0 && at > 0) {
        at--;
        int32_t taken = p->offered[at] < left ? p->offered[at] : left;
        tokens += taken > 0 ? p->chance[at] * taken / p->offered[at] : 0;
        left -= taken;
    }
    *level = at;
    return tokens;
}

struct draft_choice rollout_draft_policy_choose(const struct rollout_draft_policy *policy,
                                                int32_t sequences)
{
    const struct draft_cell *plain = &policy->cells[batch_of(sequences)][0];
    struct draft_choice best = {.chance = 2};
    double most = margin;
    int32_t offered = 0;
    if (plain->trials < TRIALS || policy->passes - plain->last >= PLAIN_EVERY ||
        policy->credit_s < 0) {
        return best;
    }
    for (int i = 0; i < DRAFT_CHANCE_LEVELS; i++) {
        offered += policy->offered[i];
    }
    for (int width = 1; width < DRAFT_WIDTHS && width_rows[width - 1] < offered; width++) {
        int level = 0;
        int32_t rows = width_rows[width] < offered ? width_rows[width] : offered;
        double tokens = 1 + expected(policy, rows, &level) / sequences;
        double gain = tokens / ratio_of(policy, sequences, width);
        if (gain > most) {
            most = gain;
            best = (struct draft_choice){(float)level / DRAFT_CHANCE_LEVELS, rows};
        }
    }
    return best;
}

/* Down at once, up slowly. */
static void learn_cost(struct draft_cell *cell, double cost, uint64_t now)
{
    bool first = cell->trials == 0;
    double weight = cost < cell->cost ? (cell->trials < 2 * TRIALS ? 1.0 : 0.5) : 0.05;
    cell->cost = first ? cost : cell->cost + weight * (cost - cell->cost);
    cell->trials++;
    cell->last = now;
}

void rollout_draft_policy_learn(struct rollout_draft_policy *policy, const struct draft_pass *pass)
{
    struct draft_cell *cells = policy->cells[batch_of(pass->sequences)];
    struct draft_cell *cell = &cells[width_of(pass->rows)];
    bool drafted = pass->rows > 0;
    assert(pass->rows <= DRAFT_ROWS && (!drafted || cells[0].trials > 0));
    policy->passes++;
    double plain_s = drafted ? cells[0].cost : pass->seconds;
    if (policy->passes == 1) {
        policy->credit_s = CREDIT_PASSES * plain_s;
    }
    learn_cost(cell, drafted ? pass->seconds / plain_s : pass->seconds, policy->passes);
    policy->credit_s += credit_share * plain_s;
    if (drafted) {
        double ratio = fmin(pass->seconds / plain_s, 2 * cell->cost);
        policy->credit_s += ((double)pass->tokens / pass->sequences - ratio) * plain_s;
    }
    policy->credit_s = fmin(policy->credit_s, CREDIT_MAX_PASSES * plain_s);
    policy->credit_s = fmax(policy->credit_s, -CREDIT_MAX_PASSES * plain_s);
}
