/* Sequences for the objective's tests: from the golden file, and random ones. Header only, because
 * each test is one program. */
#ifndef FORESIGHT_TESTS_OBJECTIVE_CASES_H
#define FORESIGHT_TESTS_OBJECTIVE_CASES_H

#include "core/rng.h"
#include "trainer/objective.h"

#include <check.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { CASE_SEQUENCES = 12, CASE_TOKENS = 64 };

/* A batch with room for everything; sequences point into it. */
struct objective_case {
    uint32_t count;
    struct objective_sequence sequences[CASE_SEQUENCES];
    uint8_t mask[CASE_SEQUENCES][CASE_TOKENS];
    float logprob[CASE_SEQUENCES][CASE_TOKENS];
    float old[CASE_SEQUENCES][CASE_TOKENS];
    float behaviour[CASE_SEQUENCES][CASE_TOKENS];
    float reference[CASE_SEQUENCES][CASE_TOKENS];
    float entropy[CASE_SEQUENCES][CASE_TOKENS];
    float proximal[CASE_SEQUENCES][CASE_TOKENS];
    uint32_t version[CASE_SEQUENCES][CASE_TOKENS];
    struct objective_minibatch minibatch;
    float g_logprob[CASE_SEQUENCES][CASE_TOKENS];
    float g_entropy[CASE_SEQUENCES][CASE_TOKENS];
    struct objective_stats stats;
};

static inline struct objective_case *case_create(uint32_t count)
{
    struct objective_case *c = calloc(1, sizeof(*c));
    ck_assert_ptr_nonnull(c);
    c->count = count;
    for (uint32_t i = 0; i < count; i++) {
        c->sequences[i].logprob = c->logprob[i];
        c->sequences[i].old = c->old[i];
    }
    return c;
}

/* Loss and normalised gradients of a case, as one minibatch. */
static inline double case_run(struct objective_case *c, const struct objective_options *options)
{
    float *g_logprob[CASE_SEQUENCES];
    float *g_entropy[CASE_SEQUENCES];
    ck_assert_int_eq(
        objective_minibatch_measure(options, c->sequences, c->count, NULL, &c->minibatch), RL_OK);
    for (uint32_t i = 0; i < c->count; i++) {
        c->sequences[i].minibatch = &c->minibatch;
        g_logprob[i] = c->g_logprob[i];
        g_entropy[i] = c->g_entropy[i];
    }
    objective_stats_init(&c->stats);
    return objective_batch(options, c->sequences, c->count, g_logprob, g_entropy, &c->stats);
}

/* Options of DAPO as published; tests change what they look at. */
static inline struct objective_options case_options(enum config_loss_type type)
{
    return (struct objective_options){
        .loss_type = type,
        .aggregation = OBJECTIVE_TOKEN_MEAN,
        .loss_scale = 4,
        .epsilon_low = 0.2,
        .epsilon_high = 0.28,
        .delta = 10,
        .fipo_decay_rate = 8,
        .fipo_clip_range = 0.2,
        .fipo_safety_threshold = 3,
        .fipo_drop_sequences = true,
        .fipo_decay_over_masked = true,
        .sapo_positive = 1,
        .sapo_negative = 1.05,
        .dppo_low = 0.2,
        .dppo_high = 0.2,
        .dppo_kl = 1e-3,
        .vespo_k_positive = 2,
        .vespo_lambda_positive = 3,
        .vespo_k_negative = 3,
        .vespo_lambda_negative = 2,
        .correction = CONFIG_CORRECTION_NONE,
    };
}

/* Turn on a correction with the bounds that it comes with; AUTO and NONE: none. */
static inline void case_correct(struct objective_options *options,
                                enum config_correction correction)
{
#define CASE_BOUNDS(id, name, scope, form, low, high) [CONFIG_CORRECTION_##id] = {low, high},
    static const double bounds[CONFIG_CORRECTION_COUNT][2] = {RL_CORRECTIONS(CASE_BOUNDS)};
#undef CASE_BOUNDS
    options->correction =
        correction == CONFIG_CORRECTION_AUTO ? CONFIG_CORRECTION_NONE : correction;
    options->correction_low = bounds[correction][0];
    options->correction_high = bounds[correction][1];
}

/* Random walk of policies: most log-ratios are small, some reach past every clip. */
static inline struct objective_case *case_random(uint64_t seed, uint32_t count)
{
    struct objective_case *c = case_create(count);
    struct rl_rng rng = rl_rng_make(seed, 0);
    struct rl_rng second = rl_rng_make(seed, 1);
    for (uint32_t i = 0; i < count; i++) {
        struct objective_sequence *sequence = &c->sequences[i];
        sequence->count = 1 + (uint32_t)rl_rng_next_below(&rng, CASE_TOKENS);
        sequence->advantage = rl_rng_next_normal(&rng);
        sequence->mask = c->mask[i];
        sequence->behaviour = c->behaviour[i];
        sequence->reference = c->reference[i];
        sequence->entropy = c->entropy[i];
        sequence->version = c->version[i];
        sequence->version_now = 4;
        for (uint32_t t = 0; t < sequence->count; t++) {
            double wild = rl_rng_next_below(&rng, 8) == 0 ? 4.0 : 0.25;
            c->mask[i][t] = rl_rng_next_below(&rng, 5) > 0 ? 1 : 0;
            c->old[i][t] = (float)(-4.0 - rl_rng_next_uniform(&rng));
            c->logprob[i][t] = c->old[i][t] + (float)(wild * rl_rng_next_normal(&rng));
            c->behaviour[i][t] = c->old[i][t] + (float)(0.5 * rl_rng_next_normal(&rng));
            c->reference[i][t] = c->old[i][t] + (float)(0.5 * rl_rng_next_normal(&rng));
            c->entropy[i][t] = (float)rl_rng_next_uniform(&rng);
            c->version[i][t] = (uint32_t)rl_rng_next_below(&second, 5);
            c->proximal[i][t] = c->old[i][t] + (float)(0.3 * rl_rng_next_normal(&second));
        }
    }
    return c;
}

static inline double case_number(const json_t *array, size_t i, size_t t)
{
    return json_number_value(json_array_get(json_array_get(array, i), t));
}

/* Copy a [B][T] array of numbers, null where padded, into rows. */
static inline void case_copy(const json_t *array, float rows[][CASE_TOKENS])
{
    for (size_t i = 0; i < json_array_size(array); i++) {
        const json_t *row = json_array_get(array, i);
        ck_assert_uint_le(json_array_size(row), CASE_TOKENS);
        for (size_t t = 0; t < json_array_size(row); t++) {
            const json_t *value = json_array_get(row, t);
            rows[i][t] = json_is_number(value) ? (float)json_number_value(value) : (float)NAN;
        }
    }
}

static inline void case_check(double got, double wanted, const char *what)
{
    double tolerance = 1e-6 * fmax(1.0, fabs(wanted));
    ck_assert_msg(fabs(got - wanted) <= tolerance, "%s: %.12g, expected %.12g", what, got, wanted);
}

/* Loss and gradients against {"loss": x, "grad": [[...]]}. */
static inline void case_compare(const struct objective_case *c, double loss, const json_t *wanted,
                                const char *name)
{
    ck_assert_msg(json_is_object(wanted), "%s is not in the golden file", name);
    case_check(loss, json_number_value(json_object_get(wanted, "loss")), name);
    const json_t *grad = json_object_get(wanted, "grad");
    ck_assert_uint_eq(json_array_size(grad), c->count);
    for (uint32_t i = 0; i < c->count; i++) {
        for (uint32_t t = 0; t < c->sequences[i].count; t++) {
            case_check((double)c->g_logprob[i][t], case_number(grad, i, t), name);
        }
    }
}

/* The batch of section "common_batch". */
static inline struct objective_case *case_common(const json_t *inputs)
{
    const json_t *lengths = json_object_get(inputs, "n");
    struct objective_case *c = case_create((uint32_t)json_array_size(lengths));
    case_copy(json_object_get(inputs, "LP"), c->logprob);
    case_copy(json_object_get(inputs, "OLD"), c->old);
    case_copy(json_object_get(inputs, "MU"), c->behaviour);
    case_copy(json_object_get(inputs, "REF"), c->reference);
    for (uint32_t i = 0; i < c->count; i++) {
        struct objective_sequence *sequence = &c->sequences[i];
        sequence->count = (uint32_t)json_integer_value(json_array_get(lengths, i));
        sequence->advantage = json_number_value(json_array_get(json_object_get(inputs, "A"), i));
        sequence->behaviour = c->behaviour[i];
        sequence->version = c->version[i];
        for (uint32_t t = 0; t < sequence->count; t++) {
            c->version[i][t] = (uint32_t)case_number(json_object_get(inputs, "ver"), i, t);
        }
    }
    return c;
}

static inline json_t *case_golden(void)
{
    json_error_t error;
    json_t *root =
        json_load_file(FORESIGHT_SOURCE_DIR "/tests/golden/algorithms_vectors.json", 0, &error);
    ck_assert_msg(root != NULL, "golden file: %s", error.text);
    return root;
}

#endif
