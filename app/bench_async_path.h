/* The forced remote path of one row of `foresight bench async`: the program's sender, channel and
 * receiver between the learner's arena and one of the engine's own, as between two nodes. */
#ifndef FORESIGHT_APP_BENCH_ASYNC_PATH_H
#define FORESIGHT_APP_BENCH_ASYNC_PATH_H

#include "transport/weight_sender.h"
#include "transport/weight_source.h"

struct bench_path;

/* Borrowed for its life. */
struct bench_path_options {
    struct weight_arena *arena; /* the learner's */
    int reader;                 /* of it, for the sender */
    struct weight_history *history;
    size_t image_bytes;
    uint32_t element_bytes;
    struct weight_source *source; /* gets the engine's arena with the first version */
};

/* CPU time that one push took beside the caller's own. */
struct bench_push {
    double encode_s; /* of it, on the learner's side: making deltas and copies */
    double total_s;
};

/* Start the threads and bring the learner's newest version to the other side. Caller owns *out,
 * also after an error. Errors: RL_NO_MEMORY, RL_INTERNAL, RL_TIMEOUT. */
rl_status bench_path_open(const struct bench_path_options *options, struct bench_path **out);

/* Nobody may be reading the engine's arena. Takes NULL. */
void bench_path_close(struct bench_path *path);

/* A version was published: on its way from here on. */
void bench_path_notify(struct bench_path *path);

/* The same, and wait until the other side has verified and published `version`.
 * Errors: RL_TIMEOUT. */
rl_status bench_path_push(struct bench_path *path, uint32_t version, struct bench_push *out);

/* The sender's totals. */
void bench_path_counters(struct bench_path *path, struct weight_sender_counters *out);

#endif
