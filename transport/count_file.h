/* What an evaluation counted, per temperature and problem, and the HDF5 file that keeps it
 * (docs/evaluation.md describes the format). Figures are computed from these counts later, so that
 * two models can be compared problem by problem. Invariant of a table that was read or is written:
 * problems are in rising order of (set, id), every count is within its samples, every number is
 * finite. One thread. */
#ifndef FORESIGHT_TRANSPORT_COUNT_FILE_H
#define FORESIGHT_TRANSPORT_COUNT_FILE_H

#include "core/status.h"

#include <stdint.h>

enum { COUNT_SPLIT_A, COUNT_SPLIT_B };
enum {
    COUNT_NO_CLASS = 255, /* the problem's row names no difficulty */
    COUNT_CLASSES_MAX = 16,
    COUNT_SETS_MAX = 64,
    COUNT_TEMPERATURES_MAX = 256
};

struct count_problem {
    uint64_t id;        /* xxh3 of prompt, a zero byte, ground truth */
    uint32_t set;       /* 0: data.eval, 1 ..: eval.guards */
    uint8_t split;      /* COUNT_SPLIT_A or B, a function of the id */
    uint8_t difficulty; /* index into the table's difficulties, or COUNT_NO_CLASS */
};

struct count_cell {
    uint32_t samples;    /* n */
    uint32_t correct;    /* c */
    uint32_t finished;   /* ended by a stop token or string */
    uint32_t truncated;  /* cut at the length limit */
    uint32_t unscorable; /* had no verdict; counted as wrong */
    uint64_t tokens;     /* sampled, all samples */
    double majority;     /* share of right answers among the most frequent ones */
    double logprob;      /* nats, sum over the tokens, at the sampling temperature */
    double kept_mass;    /* sum over the tokens of what truncation left of the probability */
};

struct count_table {
    uint64_t seed, top_k;
    double top_p;
    double default_temperature; /* eval.temperature: how the model decodes when nothing is tuned */
    char *sets;                 /* owned; names, one a line, in order of their numbers */
    char *difficulties;         /* owned; names, one a line; "" if no row names one */
    uint32_t problem_count, temperature_count;
    double *temperatures;           /* owned [temperature_count], as evaluated, all different */
    struct count_problem *problems; /* owned [problem_count] */
    struct count_cell *cells;       /* owned [temperature_count][problem_count] */
};

/* A table with room, all zero, no names. Caller owns *out. Errors: RL_INVALID (no problem or
 * temperature, or more than the limits), RL_NO_MEMORY. */
rl_status count_table_create(uint32_t problems, uint32_t temperatures, struct count_table **out);

/* Takes NULL. */
void count_table_destroy(struct count_table *table);

/* One cell; both indices in range. Borrowed. */
struct count_cell *count_table_at(const struct count_table *table, uint32_t temperature,
                                  uint32_t problem);

/* Id of a problem, and the split that follows from it. */
uint64_t count_problem_id(const char *prompt, const char *ground_truth);
uint8_t count_problem_split(uint64_t id);

/* Put problems (and their cells) into the order that the invariant asks for. Errors: RL_NO_MEMORY.
 */
rl_status count_table_sort(struct count_table *table);

/* Write a sorted table, atomically. Errors: RL_INVALID (the invariant), RL_IO, RL_NO_MEMORY. */
rl_status count_file_write(const char *path, const struct count_table *table);

/* Read and check every size and range. Caller owns *out. Errors: RL_IO (missing), RL_CORRUPT (file,
 * place and reason), RL_TOO_LONG, RL_NO_MEMORY. */
rl_status count_file_read(const char *path, struct count_table **out);

#endif
