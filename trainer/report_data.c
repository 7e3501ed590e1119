/* See report_data.h. Everything read here may be broken or hostile: sizes, names, counts and steps
 * are bounded. */
#include "trainer/report_data.h"

#include "core/log.h"
#include "core/text.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum {
    METRICS_MAX_BYTES = 512 << 20,
    METRICS_MAX_DEPTH = 4,
    SUMMARY_MAX_BYTES = 64 << 20,
    CONFIG_MAX_BYTES = 4 << 20,
    NAME_MAX_BYTES = 160,
    FIRST_ROWS = 256
};

/* --- table ------------------------------------------------------------------------------------ */

void report_table_fini(struct report_table *table)
{
    for (size_t i = 0; i < table->column_count; i++) {
        free(table->columns[i].name);
        free(table->columns[i].values);
    }
    free(table->steps);
    memset(table, 0, sizeof *table);
}

static rl_status grow_values(double **values, size_t rows)
{
    double *grown = realloc(*values, rows * sizeof *grown);
    if (grown == NULL) {
        return rl_fail(RL_NO_MEMORY, "report: no memory for %zu rows of metrics", rows);
    }
    *values = grown;
    return RL_OK;
}

/* Room for one more row in every column. */
static rl_status table_reserve(struct report_table *table)
{
    if (table->row_count < table->row_capacity) {
        return RL_OK;
    }
    size_t rows = table->row_capacity == 0 ? FIRST_ROWS : table->row_capacity * 2;
    RL_TRY(grow_values(&table->steps, rows));
    for (size_t i = 0; i < table->column_count; i++) {
        RL_TRY(grow_values(&table->columns[i].values, rows));
    }
    table->row_capacity = rows;
    return RL_OK;
}

static struct report_column *table_column(struct report_table *table, const char *name)
{
    for (size_t i = 0; i < table->column_count; i++) {
        if (strcmp(table->columns[i].name, name) == 0) {
            return &table->columns[i];
        }
    }
    return NULL;
}

/* New column, NAN in the rows so far and in the one being filled. */
static rl_status table_add_column(struct report_table *table, const char *name,
                                  struct report_column **out)
{
    if (table->column_count == REPORT_COLUMNS_MAX) {
        return rl_fail(RL_TOO_LONG, "report: more than %d different metrics", REPORT_COLUMNS_MAX);
    }
    struct report_column column = {NULL, NULL};
    RL_TRY(rl_text_copy(name, &column.name));
    rl_status status = grow_values(&column.values, table->row_capacity);
    if (status != RL_OK) {
        free(column.name);
        return status;
    }
    for (size_t row = 0; row <= table->row_count; row++) {
        column.values[row] = NAN;
    }
    table->columns[table->column_count] = column;
    *out = &table->columns[table->column_count++];
    return RL_OK;
}

static rl_status table_set(struct report_table *table, const char *name, double value)
{
    struct report_column *column = table_column(table, name);
    if (column == NULL) {
        RL_TRY(table_add_column(table, name, &column));
    }
    column->values[table->row_count] = value;
    return RL_OK;
}

const double *report_table_find(const struct report_table *table, const char *name)
{
    for (size_t i = 0; i < table->column_count; i++) {
        if (strcmp(table->columns[i].name, name) == 0) {
            return table->columns[i].values;
        }
    }
    return NULL;
}

/* --- lines ------------------------------------------------------------------------------------ */

/* Numbers of `object` into the row being filled; nested objects with '/' between the names. */
static rl_status flatten(struct report_table *table, json_t *object, const char *prefix, int depth)
{
    const char *key = NULL;
    json_t *value = NULL;
    json_object_foreach(object, key, value)
    {
        char name[NAME_MAX_BYTES];
        int length = snprintf(name, sizeof name, "%s%s%s", prefix, prefix[0] ? "/" : "", key);
        if (length < 0 || (size_t)length >= sizeof name) {
            return rl_fail(RL_TOO_LONG, "report: metric name '%.40s...' is longer than %d bytes",
                           key, NAME_MAX_BYTES - 1);
        }
        if (json_is_number(value)) {
            RL_TRY(table_set(table, name, json_number_value(value)));
        } else if (json_is_boolean(value)) {
            RL_TRY(table_set(table, name, json_is_true(value) ? 1.0 : 0.0));
        } else if (json_is_object(value) && depth < METRICS_MAX_DEPTH) {
            RL_TRY(flatten(table, value, name, depth + 1));
        }
    }
    return RL_OK;
}

/* A resumed run writes again the steps after its checkpoint: the later account stands. */
static void drop_rows_from(struct report_table *table, double step)
{
    while (table->row_count > 0 && table->steps[table->row_count - 1] >= step) {
        table->row_count--;
        table->rows_replaced++;
    }
}

static rl_status add_row(struct report_table *table, json_t *object, double step)
{
    drop_rows_from(table, step);
    RL_TRY(table_reserve(table));
    for (size_t i = 0; i < table->column_count; i++) {
        table->columns[i].values[table->row_count] = NAN;
    }
    RL_TRY(flatten(table, object, "", 0));
    table->steps[table->row_count] = step;
    table->row_count++;
    return RL_OK;
}

struct line {
    const char *text;
    size_t bytes;
    size_t number; /* 1-based */
    bool ended;    /* a newline follows */
};

static bool line_blank(const struct line *line)
{
    return strspn(line->text, " \t\r") >= line->bytes;
}

/* Largest step: what a double counts exactly. */
#define STEP_MAX ((json_int_t)1 << 53)

static rl_status read_line(struct report_table *table, const char *path, const struct line *line)
{
    json_error_t error;
    json_t *object = json_loadb(line->text, line->bytes, JSON_REJECT_DUPLICATES, &error);
    if (object == NULL && !line->ended) {
        table->torn_tail = true;
        rl_log(RL_LOG_WARN, "%s: the last line (%zu) was cut off while being written; left out",
               path, line->number);
        return RL_OK;
    }
    if (object == NULL) {
        return rl_fail(RL_INVALID, "%s: line %zu is not JSON: %s (column %d)", path, line->number,
                       error.text, error.column);
    }
    json_t *step = json_is_object(object) ? json_object_get(object, "step") : NULL;
    rl_status status = RL_OK;
    if (!json_is_integer(step) || json_integer_value(step) < 0 ||
        json_integer_value(step) > STEP_MAX) {
        status = rl_fail(RL_INVALID,
                         "%s: line %zu: expected an object with a whole number \"step\" >= 0", path,
                         line->number);
    } else {
        status = add_row(table, object, json_number_value(step));
    }
    json_decref(object);
    return status;
}

static rl_status read_lines(struct report_table *table, const char *path, const char *data,
                            size_t bytes)
{
    struct line line = {data, 0, 1, false};
    const char *end = data + bytes;
    while (line.text < end) {
        const char *newline = memchr(line.text, '\n', (size_t)(end - line.text));
        line.ended = newline != NULL;
        line.bytes = (size_t)((line.ended ? newline : end) - line.text);
        if (!line_blank(&line)) {
            RL_TRY(read_line(table, path, &line));
        }
        line.text += line.bytes + (line.ended ? 1 : 0);
        line.number++;
    }
    return RL_OK;
}

static bool file_exists(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0;
}

rl_status report_table_load(const char *path, struct report_table *table)
{
    memset(table, 0, sizeof *table);
    if (!file_exists(path)) {
        return RL_OK;
    }
    char *data = NULL;
    size_t bytes = 0;
    RL_TRY(rl_file_read(path, METRICS_MAX_BYTES, &data, &bytes));
    rl_status status = read_lines(table, path, data, bytes);
    free(data);
    return status;
}

/* --- values ----------------------------------------------------------------------------------- */

bool report_values_first(const double *values, size_t count, double *out)
{
    for (size_t i = 0; values != NULL && i < count; i++) {
        if (!isnan(values[i])) {
            *out = values[i];
            return true;
        }
    }
    return false;
}

bool report_values_last(const double *values, size_t count, double *out)
{
    for (size_t i = values == NULL ? 0 : count; i > 0; i--) {
        if (!isnan(values[i - 1])) {
            *out = values[i - 1];
            return true;
        }
    }
    return false;
}

/* True if the last part of a metric's name says that it is such an extreme: "max", "max_seconds",
 * "influence_weight_max". */
static bool names_extreme(const char *name, const char *extreme)
{
    const char *slash = strrchr(name, '/');
    const char *part = slash == NULL ? name : slash + 1;
    size_t length = strlen(part);
    size_t bytes = strlen(extreme);
    if (length < bytes) {
        return false;
    }
    bool starts = strncmp(part, extreme, bytes) == 0 && (part[bytes] == '_' || part[bytes] == '\0');
    bool ends = length > bytes && part[length - bytes - 1] == '_' &&
                strcmp(part + length - bytes, extreme) == 0;
    return starts || ends;
}

/* One value for values[0 .. count): NAN where all are. */
static double merge_values(const char *name, const double *values, size_t count)
{
    bool maximum = names_extreme(name, "max");
    bool minimum = names_extreme(name, "min");
    double merged = NAN;
    size_t seen = 0;
    for (size_t i = 0; i < count; i++) {
        if (isnan(values[i])) {
            continue;
        }
        if (seen == 0) {
            merged = values[i];
        } else if (maximum || minimum) {
            merged = maximum ? fmax(merged, values[i]) : fmin(merged, values[i]);
        } else {
            merged += values[i];
        }
        seen++;
    }
    return maximum || minimum || seen == 0 ? merged : merged / (double)seen;
}

static void thin_column(const char *name, double *values, size_t rows, size_t bucket)
{
    for (size_t from = 0, to = 0; from < rows; from += bucket, to++) {
        size_t count = rows - from < bucket ? rows - from : bucket;
        values[to] = merge_values(name, values + from, count);
    }
}

size_t report_table_thin(struct report_table *table, size_t max_rows)
{
    size_t rows = table->row_count;
    if (rows <= max_rows || max_rows == 0) {
        return 1;
    }
    size_t bucket = (rows + max_rows - 1) / max_rows;
    for (size_t i = 0; i < table->column_count; i++) {
        thin_column(table->columns[i].name, table->columns[i].values, rows, bucket);
    }
    thin_column("max", table->steps, rows, bucket); /* a bucket stands at its last step */
    table->row_count = (rows + bucket - 1) / bucket;
    return bucket;
}

/* --- folder ----------------------------------------------------------------------------------- */

static rl_status join(const char *dir, const char *file, char *path, size_t bytes)
{
    int length = snprintf(path, bytes, "%s/%s", dir, file);
    if (length < 0 || (size_t)length >= bytes) {
        return rl_fail(RL_TOO_LONG, "path %s/%s is too long", dir, file);
    }
    return RL_OK;
}

static rl_status load_config(const char *dir, char **out)
{
    char path[4096];
    RL_TRY(join(dir, "config.yaml", path, sizeof path));
    return file_exists(path) ? rl_file_read(path, CONFIG_MAX_BYTES, out, NULL) : RL_OK;
}

static rl_status load_summary(const char *dir, json_t **out)
{
    char path[4096];
    RL_TRY(join(dir, "summary.json", path, sizeof path));
    if (!file_exists(path)) {
        return RL_OK;
    }
    char *data = NULL;
    size_t bytes = 0;
    RL_TRY(rl_file_read(path, SUMMARY_MAX_BYTES, &data, &bytes));
    json_error_t error;
    json_t *summary = json_loadb(data, bytes, JSON_REJECT_DUPLICATES, &error);
    free(data);
    if (!json_is_object(summary)) {
        json_decref(summary);
        return rl_fail(RL_INVALID, "%s: line %d: %s", path, summary == NULL ? error.line : 1,
                       summary == NULL ? error.text : "expected an object");
    }
    *out = summary;
    return RL_OK;
}

/* Last part of a path, trailing slashes aside. */
static rl_status name_of(const char *dir, char **out)
{
    size_t length = strlen(dir);
    while (length > 1 && dir[length - 1] == '/') {
        length--;
    }
    size_t start = length;
    while (start > 0 && dir[start - 1] != '/') {
        start--;
    }
    char *name = strndup(dir + start, length - start);
    if (name == NULL) {
        return rl_fail(RL_NO_MEMORY, "report: no memory for a name");
    }
    *out = name;
    return RL_OK;
}

rl_status report_run_load(const char *dir, struct report_run *run)
{
    memset(run, 0, sizeof *run);
    struct stat info;
    if (stat(dir, &info) != 0) {
        return rl_fail(RL_IO, "%s: %s", dir, strerror(errno));
    }
    if (!S_ISDIR(info.st_mode)) {
        return rl_fail(RL_INVALID, "%s: expected the folder of a run", dir);
    }
    char path[4096];
    RL_TRY(rl_text_copy(dir, &run->dir));
    RL_TRY(name_of(dir, &run->name));
    RL_TRY(load_config(dir, &run->config));
    RL_TRY(load_summary(dir, &run->summary));
    RL_TRY(join(dir, "metrics.jsonl", path, sizeof path));
    if (run->config == NULL && run->summary == NULL && !file_exists(path)) {
        return rl_fail(RL_NOT_FOUND,
                       "%s: no run here (none of metrics.jsonl, config.yaml, summary.json)", dir);
    }
    return report_table_load(path, &run->table);
}

void report_run_fini(struct report_run *run)
{
    free(run->dir);
    free(run->name);
    free(run->config);
    json_decref(run->summary);
    report_table_fini(&run->table);
    memset(run, 0, sizeof *run);
}

json_t *report_summary_find(json_t *summary, const char *dotted)
{
    json_t *flat = json_object_get(summary, dotted);
    if (flat != NULL) {
        return flat;
    }
    for (const char *dot = strchr(dotted, '.'); dot != NULL; dot = strchr(dot + 1, '.')) {
        char head[NAME_MAX_BYTES];
        size_t length = (size_t)(dot - dotted);
        if (length >= sizeof head) {
            return NULL;
        }
        memcpy(head, dotted, length);
        head[length] = '\0';
        json_t *inner = json_object_get(summary, head);
        json_t *found = json_is_object(inner) ? report_summary_find(inner, dot + 1) : NULL;
        if (found != NULL) {
            return found;
        }
    }
    return NULL;
}
