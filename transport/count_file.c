/* Tables of counts to columns and back. Owns the columns' names and types; what may stand in them
 * is checked by one function, before writing and after reading. */
#include "transport/count_file.h"

#include "core/hash.h"
#include "core/log.h"
#include "transport/h5_file.h"

#include <inttypes.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

enum {
    COUNT_FORMAT = 2,
    COUNT_LEVEL = 3, /* zstd */
    COUNT_PROBLEMS_MAX = 1 << 24,
    COUNT_CELLS_MAX = 1 << 27,
    COUNT_NAMES_BYTES = 65536
};
#define COUNT_SPLIT_SEED UINT64_C(0x5B117)

struct count_column {
    const char *name;
    enum h5_type type;
    size_t offset;
};

#define PROBLEM_COLUMN(field, type)                                                                \
    {                                                                                              \
        "problems/" #field, type, offsetof(struct count_problem, field)                            \
    }
#define CELL_COLUMN(field, type)                                                                   \
    {                                                                                              \
        "cells/" #field, type, offsetof(struct count_cell, field)                                  \
    }

static const struct count_column problem_columns[] = {
    PROBLEM_COLUMN(id, H5_U64),
    PROBLEM_COLUMN(set, H5_U32),
    PROBLEM_COLUMN(split, H5_U8),
    PROBLEM_COLUMN(difficulty, H5_U8),
};

static const struct count_column cell_columns[] = {
    CELL_COLUMN(samples, H5_U32),   CELL_COLUMN(correct, H5_U32),    CELL_COLUMN(finished, H5_U32),
    CELL_COLUMN(truncated, H5_U32), CELL_COLUMN(unscorable, H5_U32), CELL_COLUMN(tokens, H5_U64),
    CELL_COLUMN(majority, H5_F64),  CELL_COLUMN(logprob, H5_F64),    CELL_COLUMN(kept_mass, H5_F64),
};

/* Rows of structs, seen as columns. */
struct count_rows {
    const struct count_column *columns;
    size_t column_count;
    void *rows;
    size_t row_bytes;
    uint64_t count;
};

static struct count_rows problem_rows(const struct count_table *table)
{
    return (struct count_rows){problem_columns, sizeof problem_columns / sizeof *problem_columns,
                               table->problems, sizeof *table->problems, table->problem_count};
}

static struct count_rows cell_rows(const struct count_table *table)
{
    return (struct count_rows){cell_columns, sizeof cell_columns / sizeof *cell_columns,
                               table->cells, sizeof *table->cells,
                               (uint64_t)table->problem_count * table->temperature_count};
}

/* --- tables ----------------------------------------------------------------------------------- */

rl_status count_table_create(uint32_t problems, uint32_t temperatures, struct count_table **out)
{
    uint64_t cells = (uint64_t)problems * temperatures;
    if (problems == 0 || problems > COUNT_PROBLEMS_MAX || temperatures == 0 ||
        temperatures > COUNT_TEMPERATURES_MAX || cells > COUNT_CELLS_MAX) {
        return rl_fail(RL_INVALID, "counts of %" PRIu32 " problems at %" PRIu32 " temperatures",
                       problems, temperatures);
    }
    struct count_table *table = calloc(1, sizeof *table);
    if (table == NULL) {
        return rl_fail(RL_NO_MEMORY, "counts: out of memory");
    }
    table->problem_count = problems;
    table->temperature_count = temperatures;
    table->temperatures = calloc(temperatures, sizeof *table->temperatures);
    table->problems = calloc(problems, sizeof *table->problems);
    table->cells = calloc(cells, sizeof *table->cells);
    if (table->temperatures == NULL || table->problems == NULL || table->cells == NULL) {
        count_table_destroy(table);
        return rl_fail(RL_NO_MEMORY, "counts: no memory for %" PRIu64 " cells", cells);
    }
    *out = table;
    return RL_OK;
}

void count_table_destroy(struct count_table *table)
{
    if (table != NULL) {
        free(table->sets);
        free(table->difficulties);
        free(table->temperatures);
        free(table->problems);
        free(table->cells);
        free(table);
    }
}

struct count_cell *count_table_at(const struct count_table *table, uint32_t temperature,
                                  uint32_t problem)
{
    return &table->cells[(size_t)temperature * table->problem_count + problem];
}

uint64_t count_problem_id(const char *prompt, const char *ground_truth)
{
    uint64_t hash = rl_hash(prompt, strlen(prompt) + 1);
    return rl_hash_seeded(ground_truth, strlen(ground_truth), hash);
}

uint8_t count_problem_split(uint64_t id)
{
    unsigned char bytes[8];
    for (int i = 0; i < 8; i++) {
        bytes[i] = (unsigned char)(id >> (8 * i));
    }
    return (rl_hash_seeded(bytes, sizeof bytes, COUNT_SPLIT_SEED) & 1) != 0 ? COUNT_SPLIT_B
                                                                            : COUNT_SPLIT_A;
}

struct count_place {
    struct count_problem problem;
    uint32_t from;
};

static int compare_places(const void *left, const void *right)
{
    const struct count_place *a = left;
    const struct count_place *b = right;
    if (a->problem.set != b->problem.set) {
        return a->problem.set < b->problem.set ? -1 : 1;
    }
    if (a->problem.id != b->problem.id) {
        return a->problem.id < b->problem.id ? -1 : 1;
    }
    return (a->from > b->from) - (a->from < b->from);
}

rl_status count_table_sort(struct count_table *table)
{
    uint32_t count = table->problem_count;
    struct count_place *places = calloc(count, sizeof *places);
    struct count_cell *row = calloc(count, sizeof *row);
    if (places == NULL || row == NULL) {
        free(places);
        free(row);
        return rl_fail(RL_NO_MEMORY, "counts: no memory to sort %" PRIu32 " problems", count);
    }
    for (uint32_t p = 0; p < count; p++) {
        places[p] = (struct count_place){table->problems[p], p};
    }
    qsort(places, count, sizeof *places, compare_places);
    for (uint32_t t = 0; t < table->temperature_count; t++) {
        for (uint32_t p = 0; p < count; p++) {
            row[p] = *count_table_at(table, t, places[p].from);
        }
        memcpy(count_table_at(table, t, 0), row, count * sizeof *row);
    }
    for (uint32_t p = 0; p < count; p++) {
        table->problems[p] = places[p].problem;
    }
    free(places);
    free(row);
    return RL_OK;
}

/* --- the invariant ---------------------------------------------------------------------------- */

static uint32_t count_lines(const char *names)
{
    uint32_t lines = names[0] != '\0' ? 1 : 0;
    for (const char *at = names; *at != '\0'; at++) {
        lines += *at == '\n' ? 1 : 0;
    }
    return lines;
}

static const char *problem_fault(const struct count_table *table, uint32_t p)
{
    const struct count_problem *problem = &table->problems[p];
    if (problem->set >= count_lines(table->sets)) {
        return "set without a name";
    }
    if (problem->split != count_problem_split(problem->id)) {
        return "split is not the id's";
    }
    if (problem->difficulty != COUNT_NO_CLASS &&
        problem->difficulty >= count_lines(table->difficulties)) {
        return "difficulty without a name";
    }
    if (p > 0) {
        const struct count_problem *before = &table->problems[p - 1];
        if (before->set > problem->set ||
            (before->set == problem->set && before->id > problem->id)) {
            return "problems out of order";
        }
    }
    return NULL;
}

static const char *cell_fault(const struct count_cell *cell)
{
    if (cell->samples == 0) {
        return "no samples";
    }
    if (cell->correct > cell->samples || cell->unscorable > cell->samples - cell->correct ||
        cell->finished > cell->samples || cell->truncated > cell->samples - cell->finished) {
        return "counts exceed the samples";
    }
    if (!(cell->majority >= 0 && cell->majority <= 1)) {
        return "majority outside of 0 .. 1";
    }
    if (!(cell->kept_mass >= 0 && cell->kept_mass <= (double)cell->tokens)) {
        return "kept mass outside of 0 .. tokens";
    }
    return isfinite(cell->logprob) && cell->logprob <= 0 ? NULL
                                                         : "log-prob is not finite or above 0";
}

static const char *temperature_fault(const struct count_table *table, uint32_t t)
{
    double value = table->temperatures[t];
    for (uint32_t i = 0; i < t; i++) {
        if (table->temperatures[i] == value) {
            return "temperature twice";
        }
    }
    return isfinite(value) && value >= 0 ? NULL : "temperature is not finite or below 0";
}

static rl_status check_table(const struct count_table *table, const char *path, rl_status code)
{
    if (count_lines(table->sets) > COUNT_SETS_MAX || count_lines(table->sets) == 0 ||
        count_lines(table->difficulties) > COUNT_CLASSES_MAX) {
        return rl_fail(code, "%s: too many names of sets or difficulties, or none of sets", path);
    }
    if (!isfinite(table->default_temperature) || !isfinite(table->top_p)) {
        return rl_fail(code, "%s: default_temperature or top_p is not finite", path);
    }
    for (uint32_t t = 0; t < table->temperature_count; t++) {
        const char *fault = temperature_fault(table, t);
        if (fault != NULL) {
            return rl_fail(code, "%s: temperature %" PRIu32 ": %s", path, t, fault);
        }
    }
    for (uint32_t p = 0; p < table->problem_count; p++) {
        const char *fault = problem_fault(table, p);
        for (uint32_t t = 0; fault == NULL && t < table->temperature_count; t++) {
            fault = cell_fault(count_table_at(table, t, p));
        }
        if (fault != NULL) {
            return rl_fail(code, "%s: problem %" PRIu32 ": %s", path, p, fault);
        }
    }
    return RL_OK;
}

/* --- the file --------------------------------------------------------------------------------- */

/* One column out of the rows (into = false) or into them. */
static void move_column(const struct count_rows *rows, const struct count_column *column,
                        unsigned char *values, bool into)
{
    size_t width = h5_type_bytes(column->type);
    for (uint64_t i = 0; i < rows->count; i++) {
        unsigned char *field = (unsigned char *)rows->rows + i * rows->row_bytes + column->offset;
        memcpy(into ? field : values + i * width, into ? values + i * width : field, width);
    }
}

static rl_status write_rows(struct h5_file *file, const struct count_rows *rows)
{
    unsigned char *values = malloc(rows->count * sizeof(uint64_t));
    rl_status status = values != NULL ? RL_OK : rl_fail(RL_NO_MEMORY, "counts: out of memory");
    for (size_t c = 0; c < rows->column_count && status == RL_OK; c++) {
        const struct count_column *column = &rows->columns[c];
        move_column(rows, column, values, false);
        status = h5_file_write(file, column->name, column->type, values, rows->count, COUNT_LEVEL);
    }
    free(values);
    return status;
}

static rl_status write_table(struct h5_file *file, const struct count_table *table)
{
    struct count_rows problems = problem_rows(table);
    struct count_rows cells = cell_rows(table);
    RL_TRY(h5_file_write_u64(file, "format", COUNT_FORMAT));
    RL_TRY(h5_file_write_u64(file, "seed", table->seed));
    RL_TRY(h5_file_write_u64(file, "top_k", table->top_k));
    RL_TRY(h5_file_write_f64(file, "top_p", table->top_p));
    RL_TRY(h5_file_write_f64(file, "default_temperature", table->default_temperature));
    RL_TRY(h5_file_write_text(file, "sets", table->sets));
    RL_TRY(h5_file_write_text(file, "difficulties", table->difficulties));
    RL_TRY(h5_file_write(file, "temperatures", H5_F64, table->temperatures,
                         table->temperature_count, 0));
    RL_TRY(write_rows(file, &problems));
    return write_rows(file, &cells);
}

rl_status count_file_write(const char *path, const struct count_table *table)
{
    struct h5_file *file = NULL;
    RL_TRY(check_table(table, path, RL_INVALID));
    RL_TRY(h5_file_create(path, &file));
    rl_status status = write_table(file, table);
    if (status != RL_OK) {
        h5_file_abort(file);
        return status;
    }
    return h5_file_commit(file);
}

static rl_status read_rows(struct h5_file *file, const struct count_rows *rows)
{
    unsigned char *values = malloc(rows->count * sizeof(uint64_t));
    rl_status status = values != NULL ? RL_OK : rl_fail(RL_NO_MEMORY, "counts: out of memory");
    for (size_t c = 0; c < rows->column_count && status == RL_OK; c++) {
        const struct count_column *column = &rows->columns[c];
        status = h5_file_read(file, column->name, column->type, values, rows->count);
        if (status == RL_OK) {
            move_column(rows, column, values, true);
        }
    }
    free(values);
    return status;
}

static rl_status read_attributes(struct h5_file *file, struct count_table *table)
{
    RL_TRY(h5_file_read_u64(file, "seed", &table->seed));
    RL_TRY(h5_file_read_u64(file, "top_k", &table->top_k));
    RL_TRY(h5_file_read_f64(file, "top_p", &table->top_p));
    RL_TRY(h5_file_read_f64(file, "default_temperature", &table->default_temperature));
    RL_TRY(h5_file_read_text(file, "sets", COUNT_NAMES_BYTES, &table->sets));
    return h5_file_read_text(file, "difficulties", COUNT_NAMES_BYTES, &table->difficulties);
}

static rl_status read_table(struct h5_file *file, const char *path, struct count_table **out)
{
    uint64_t format = 0;
    uint64_t problems = 0;
    uint64_t temperatures = 0;
    RL_TRY(h5_file_read_u64(file, "format", &format));
    if (format != COUNT_FORMAT) {
        return rl_fail(RL_CORRUPT, "%s: format %" PRIu64 ", expected %d", path, format,
                       COUNT_FORMAT);
    }
    RL_TRY(h5_file_count(file, "problems/id", H5_U64, &problems));
    RL_TRY(h5_file_count(file, "temperatures", H5_F64, &temperatures));
    if (problems > COUNT_PROBLEMS_MAX || temperatures > COUNT_TEMPERATURES_MAX || problems == 0 ||
        temperatures == 0 || problems * temperatures > COUNT_CELLS_MAX) {
        return rl_fail(RL_CORRUPT, "%s: %" PRIu64 " problems at %" PRIu64 " temperatures", path,
                       problems, temperatures);
    }
    RL_TRY(count_table_create((uint32_t)problems, (uint32_t)temperatures, out));
    RL_TRY(h5_file_read(file, "temperatures", H5_F64, (*out)->temperatures, temperatures));
    struct count_rows problem_part = problem_rows(*out);
    struct count_rows cell_part = cell_rows(*out);
    RL_TRY(read_attributes(file, *out));
    RL_TRY(read_rows(file, &problem_part));
    RL_TRY(read_rows(file, &cell_part));
    return check_table(*out, path, RL_CORRUPT);
}

rl_status count_file_read(const char *path, struct count_table **out)
{
    struct h5_file *file = NULL;
    struct count_table *table = NULL;
    RL_TRY(h5_file_open(path, &file));
    rl_status status = read_table(file, path, &table);
    h5_file_close(file);
    if (status != RL_OK) {
        count_table_destroy(table);
        return status == RL_NOT_FOUND ? RL_CORRUPT : status;
    }
    *out = table;
    return RL_OK;
}
