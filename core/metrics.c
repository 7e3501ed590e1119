/* Collects the figures of a step. Owns the cells; knows nothing of files. Invariant: a cell with
 * weight 0 holds no information. */
#include "core/metrics_state.h"

#include "core/log.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define METRIC(id, metric_name, metric_kind, metric_unit, metric_help)                             \
    {.name = metric_name, .unit = metric_unit, .help = metric_help, .kind = METRICS_##metric_kind},
static const struct metrics_row metrics_rows[RL_METRIC_COUNT] = {
#include "core/metrics.def"
};

const struct metrics_row *metrics_row_of(size_t id)
{
    return &metrics_rows[id];
}

const char *rl_metrics_name(enum rl_metric_id id)
{
    return metrics_rows[id].name;
}

rl_status rl_metrics_create(struct rl_metrics **out)
{
    struct rl_metrics *metrics = calloc(1, sizeof *metrics);
    if (metrics == NULL) {
        return rl_fail(RL_NO_MEMORY, "no memory for metrics");
    }
    for (size_t id = 0; id < RL_METRIC_COUNT; id++) {
        if (metrics_rows[id].kind != METRICS_HISTOGRAM) {
            continue;
        }
        metrics->buckets[id] = calloc(METRICS_BUCKETS, sizeof *metrics->buckets[id]);
        if (metrics->buckets[id] == NULL) {
            rl_metrics_destroy(metrics);
            return rl_fail(RL_NO_MEMORY, "no memory for the histogram %s", metrics_rows[id].name);
        }
    }
    *out = metrics;
    return RL_OK;
}

void rl_metrics_destroy(struct rl_metrics *metrics)
{
    if (metrics == NULL) {
        return;
    }
    for (size_t id = 0; id < RL_METRIC_COUNT; id++) {
        free(metrics->buckets[id]);
    }
    if (metrics->file != NULL) {
        fclose(metrics->file);
    }
    free(metrics);
}

/* Order-preserving map from float to bucket. */
static size_t metrics_bucket(double value)
{
    float narrow = (float)value;
    uint32_t bits = 0;
    memcpy(&bits, &narrow, sizeof bits);
    uint32_t ordered = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
    return ordered >> METRICS_BUCKET_SHIFT;
}

/* The value of a bucket that is nearest to 0. */
static double metrics_bucket_value(size_t bucket)
{
    uint32_t ordered = (uint32_t)bucket << METRICS_BUCKET_SHIFT;
    bool positive = (ordered & 0x80000000u) != 0;
    uint32_t last = ordered | ((1u << METRICS_BUCKET_SHIFT) - 1);
    uint32_t bits = positive ? ordered & 0x7fffffffu : ~last;
    float value = 0.0f;
    memcpy(&value, &bits, sizeof value);
    return (double)value;
}

double metrics_quantile(const struct rl_metrics *metrics, size_t id, double q)
{
    const uint32_t *buckets = metrics->buckets[id];
    const struct metrics_cell *cell = &metrics->cells[id];
    uint64_t count = 0;
    for (size_t i = 0; i < METRICS_BUCKETS; i++) {
        count += buckets[i];
    }
    uint64_t rank = (uint64_t)(q * (double)(count > 0 ? count - 1 : 0) + 0.5);
    uint64_t below = 0;
    for (size_t i = 0; i < METRICS_BUCKETS; i++) {
        below += buckets[i];
        if (below > rank) {
            return fmin(fmax(metrics_bucket_value(i), cell->min), cell->max);
        }
    }
    return (double)NAN;
}

static void metrics_observe(struct metrics_cell *cell, double sum, double weight, double min,
                            double max)
{
    bool first = cell->weight == 0.0;
    cell->min = first ? min : fmin(cell->min, min);
    cell->max = first ? max : fmax(cell->max, max);
    cell->sum = first ? sum : cell->sum + sum;
    cell->weight += weight;
}

/* Fold one or many observations into a metric as its kind says. */
static void metrics_fold(struct rl_metrics *metrics, size_t id, const struct metrics_cell *from)
{
    struct metrics_cell *cell = &metrics->cells[id];
    switch (metrics_rows[id].kind) {
    case METRICS_GAUGE:
        cell->sum = from->sum;
        cell->weight = 1.0;
        break;
    case METRICS_COUNTER:
        cell->sum += from->sum;
        cell->total += from->sum;
        cell->weight = 1.0;
        cell->seen = true;
        break;
    case METRICS_MEAN:
    case METRICS_MIN:
    case METRICS_MAX:
    case METRICS_HISTOGRAM:
        metrics_observe(cell, from->sum, from->weight, from->min, from->max);
        break;
    }
}

void rl_metrics_add(struct rl_metrics *metrics, enum rl_metric_id id, double value)
{
    if (metrics == NULL) {
        return;
    }
    struct metrics_cell one = {.sum = value, .weight = 1.0, .min = value, .max = value};
    metrics_fold(metrics, id, &one);
    if (metrics->buckets[id] != NULL && isfinite(value)) {
        metrics->buckets[id][metrics_bucket(value)]++;
    }
}

void rl_metrics_add_sum(struct rl_metrics *metrics, enum rl_metric_id id, double sum, double weight)
{
    if (metrics == NULL || weight == 0.0) {
        return;
    }
    if (metrics_rows[id].kind != METRICS_MEAN) {
        rl_metrics_add(metrics, id, sum);
        return;
    }
    struct metrics_cell many = {
        .sum = sum, .weight = weight, .min = sum / weight, .max = sum / weight};
    metrics_fold(metrics, id, &many);
}

/* Names become JSON keys as they stand: quotes, backslashes, blanks and non-ASCII bytes do not. */
static void metrics_clean_name(char *name)
{
    for (; *name != '\0'; name++) {
        unsigned char byte = (unsigned char)*name;
        if (byte <= 0x20 || byte >= 0x7f || byte == '"' || byte == '\\') {
            *name = '_';
        }
    }
}

static struct metrics_named *metrics_find_named(struct rl_metrics *metrics, const char *name)
{
    for (size_t i = 0; i < metrics->named_count; i++) {
        if (strcmp(metrics->named[i].name, name) == 0) {
            return &metrics->named[i];
        }
    }
    if (metrics->named_count == RL_METRIC_NAMED_MAX) {
        if (!metrics->named_overflow) {
            rl_log(RL_LOG_WARN, "metric %s is not kept: more than %d run-time names", name,
                   RL_METRIC_NAMED_MAX);
        }
        metrics->named_overflow = true;
        return NULL;
    }
    struct metrics_named *added = &metrics->named[metrics->named_count++];
    snprintf(added->name, sizeof added->name, "%s", name);
    return added;
}

void rl_metrics_set_named(struct rl_metrics *metrics, const char *name, double value)
{
    if (metrics == NULL) {
        return;
    }
    char clean[RL_METRIC_NAME_BYTES];
    snprintf(clean, sizeof clean, "%s", name);
    metrics_clean_name(clean);
    struct metrics_named *named = metrics_find_named(metrics, clean);
    if (named != NULL) {
        named->value = value;
        named->set = true;
    }
}

static void metrics_set_wait(struct rl_metrics *metrics, const struct rl_wait_stats *stats,
                             const char *what, double value)
{
    char name[RL_METRIC_NAME_BYTES];
    char wait[RL_WAIT_NAME_BYTES];
    memcpy(wait, stats->name, sizeof wait);
    for (char *at = wait; *at != '\0'; at++) {
        *at = *at == ':' || *at == '/' ? '_' : *at;
    }
    snprintf(name, sizeof name, "wait/%.55s/%s", wait, what);
    rl_metrics_set_named(metrics, name, value);
}

void rl_metrics_set_waits(struct rl_metrics *metrics, struct rl_waits *waits)
{
    if (metrics == NULL || waits == NULL) {
        return;
    }
    struct rl_wait_stats stats[RL_WAIT_SITES_MAX];
    size_t count = rl_waits_snapshot(waits, stats);
    for (size_t i = 0; i < count; i++) {
        metrics_set_wait(metrics, &stats[i], "seconds", stats[i].total_s);
        metrics_set_wait(metrics, &stats[i], "count", (double)stats[i].count);
        metrics_set_wait(metrics, &stats[i], "max_seconds", stats[i].max_s);
    }
}

bool rl_metrics_get(const struct rl_metrics *metrics, enum rl_metric_id id, double *value)
{
    if (metrics == NULL) {
        return false;
    }
    const struct metrics_cell *cell = &metrics->cells[id];
    enum metrics_kind kind = metrics_rows[id].kind;
    if (kind == METRICS_COUNTER ? !cell->seen : cell->weight == 0.0) {
        return false;
    }
    if (kind == METRICS_COUNTER) {
        *value = cell->total;
    } else if (!isfinite(cell->sum)) {
        *value = (double)NAN;
    } else if (kind == METRICS_MIN || kind == METRICS_MAX) {
        *value = kind == METRICS_MIN ? cell->min : cell->max;
    } else {
        *value = cell->sum / cell->weight;
    }
    return true;
}

void rl_metrics_restore_counter(struct rl_metrics *metrics, enum rl_metric_id id, double total)
{
    metrics->cells[id].total = total;
    metrics->cells[id].seen = true;
}

void rl_metrics_pack(const struct rl_metrics *metrics, double out[RL_METRICS_PACKED])
{
    for (size_t id = 0; id < RL_METRIC_COUNT; id++) {
        const struct metrics_cell *cell = &metrics->cells[id];
        out[4 * id] = cell->sum;
        out[4 * id + 1] = cell->weight;
        out[4 * id + 2] = cell->min;
        out[4 * id + 3] = cell->max;
    }
}

void rl_metrics_merge(struct rl_metrics *metrics, const double packed[RL_METRICS_PACKED])
{
    for (size_t id = 0; id < RL_METRIC_COUNT; id++) {
        struct metrics_cell from = {.sum = packed[4 * id],
                                    .weight = packed[4 * id + 1],
                                    .min = packed[4 * id + 2],
                                    .max = packed[4 * id + 3]};
        if (from.weight > 0.0) {
            metrics_fold(metrics, id, &from);
        }
    }
}

void rl_metrics_reset(struct rl_metrics *metrics)
{
    for (size_t id = 0; id < RL_METRIC_COUNT; id++) {
        struct metrics_cell *cell = &metrics->cells[id];
        *cell = (struct metrics_cell){.total = cell->total, .seen = cell->seen};
        if (metrics->buckets[id] != NULL) {
            memset(metrics->buckets[id], 0, METRICS_BUCKETS * sizeof *metrics->buckets[id]);
        }
    }
    for (size_t i = 0; i < metrics->named_count; i++) {
        metrics->named[i].set = false;
    }
}
