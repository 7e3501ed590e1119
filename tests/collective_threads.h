/* A collective among threads of this process, for tests that need several learners and no MPI:
 * plain code that adds in rank order. */
#ifndef FORESIGHT_TESTS_COLLECTIVE_THREADS_H
#define FORESIGHT_TESTS_COLLECTIVE_THREADS_H

#include "transport/collective.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* For the threads of ranks, which cannot report to Check. */
#define MUST(condition)                                                                            \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: %s is false\n", __FILE__, __LINE__, #condition);               \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

enum { TEAM_MAX = 4, TEAM_NUMBERS = 512 };

struct team {
    pthread_barrier_t barrier;
    int size;
    const void *given[TEAM_MAX]; /* of the operation under way, by rank */
};

struct team_rank {
    struct collective base;
    struct team *team;
};

static inline void team_meet(struct collective *c, const void *given)
{
    struct team *team = ((struct team_rank *)c)->team;
    if (given != NULL) {
        team->given[c->rank] = given;
    }
    pthread_barrier_wait(&team->barrier);
}

static inline const void *team_given(struct collective *c, int rank)
{
    return ((struct team_rank *)c)->team->given[rank];
}

/* Sums of the elements [first, end) of everybody's values. */
static inline rl_status team_sum(struct collective *c, float *values, int64_t first, int64_t end)
{
    float *sums = malloc((size_t)(end - first + 1) * sizeof(*sums));
    team_meet(c, values);
    for (int64_t i = first; i < end; i++) {
        float sum = ((const float *)team_given(c, 0))[i];
        for (int rank = 1; rank < c->size; rank++) {
            sum += ((const float *)team_given(c, rank))[i];
        }
        sums[i - first] = sum;
    }
    team_meet(c, NULL);
    memcpy(values + first, sums, (size_t)(end - first) * sizeof(*sums));
    free(sums);
    return RL_OK;
}

static inline rl_status team_sum_float(struct collective *c, float *values, int64_t count)
{
    return team_sum(c, values, 0, count);
}

static inline rl_status team_sum_share(struct collective *c, float *values, const int64_t *bounds)
{
    return team_sum(c, values, bounds[c->rank], bounds[c->rank + 1]);
}

static inline rl_status team_fold(struct collective *c, double *values, int64_t count, int op)
{
    double result[TEAM_NUMBERS];
    if (count > TEAM_NUMBERS) {
        abort();
    }
    team_meet(c, values);
    for (int64_t i = 0; i < count; i++) {
        double total = ((const double *)team_given(c, 0))[i];
        for (int rank = 1; rank < c->size; rank++) {
            double value = ((const double *)team_given(c, rank))[i];
            bool takes = isnan(value) || (op > 0 ? value > total : value < total);
            total = op == 0 ? total + value : takes ? value : total;
        }
        result[i] = total;
    }
    team_meet(c, NULL);
    memcpy(values, result, (size_t)count * sizeof(*values));
    return RL_OK;
}

static inline rl_status team_sum_double(struct collective *c, double *values, int64_t count)
{
    return team_fold(c, values, count, 0);
}

static inline rl_status team_max_double(struct collective *c, double *values, int64_t count)
{
    return team_fold(c, values, count, 1);
}

static inline rl_status team_min_double(struct collective *c, double *values, int64_t count)
{
    return team_fold(c, values, count, -1);
}

static inline rl_status team_broadcast(struct collective *c, void *data, size_t bytes, int root)
{
    team_meet(c, data);
    if (c->rank != root) {
        memcpy(data, team_given(c, root), bytes);
    }
    team_meet(c, NULL);
    return RL_OK;
}

static inline rl_status team_gather(struct collective *c, const void *part, const int64_t *bounds,
                                    void *whole, int root)
{
    team_meet(c, part);
    for (int rank = 0; rank < c->size && (root == COLLECTIVE_ALL || root == c->rank); rank++) {
        unsigned char *place = (unsigned char *)whole + bounds[rank];
        if (place != team_given(c, rank)) {
            memcpy(place, team_given(c, rank), (size_t)(bounds[rank + 1] - bounds[rank]));
        }
    }
    team_meet(c, NULL);
    return RL_OK;
}

static inline rl_status team_agree(struct collective *c, rl_status mine, rl_status *worst)
{
    double code = mine;
    rl_status status = team_fold(c, &code, 1, 1);
    *worst = (rl_status)code;
    return status;
}

static inline void team_destroy(struct collective *c)
{
    free(c);
}

static inline struct collective *team_join(struct team *team, int rank)
{
    static const struct collective_ops ops = {.sum_float = team_sum_float,
                                              .sum_double = team_sum_double,
                                              .max_double = team_max_double,
                                              .min_double = team_min_double,
                                              .broadcast = team_broadcast,
                                              .sum_share = team_sum_share,
                                              .gather = team_gather,
                                              .agree = team_agree,
                                              .destroy = team_destroy};
    struct team_rank *member = calloc(1, sizeof(*member));
    *member = (struct team_rank){{.ops = &ops, .rank = rank, .size = team->size}, team};
    return &member->base;
}

/* Run `main` in one thread a rank, args [size] of `bytes` each, to the end. */
static inline void team_run(int size, void *(*main)(void *), void *args, size_t bytes)
{
    pthread_t threads[TEAM_MAX];
    for (int rank = 0; rank < size; rank++) {
        if (pthread_create(&threads[rank], NULL, main, (char *)args + (size_t)rank * bytes) != 0) {
            abort();
        }
    }
    for (int rank = 0; rank < size; rank++) {
        pthread_join(threads[rank], NULL);
    }
}

#endif
