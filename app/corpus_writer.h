/* Writes finished parts of a corpus beside generation: one thread, parts in the order in which they
 * were handed over, each whole or not at all. Its owner is one thread. */
#ifndef FORESIGHT_APP_CORPUS_WRITER_H
#define FORESIGHT_APP_CORPUS_WRITER_H

#include "core/wait.h"
#include "transport/corpus_file.h"

struct corpus_writer;

/* A part whose lock the process holds. */
struct corpus_part {
    uint64_t part, count;
    struct trajectory_group *groups[CORPUS_PART_PROMPTS]; /* [count], in order of prompt; owned */
};

/* Start the thread. `corpus`, `run` (who is noted as the maker) and `waits` are borrowed until
 * destroy. Caller owns *out. Errors: RL_NO_MEMORY, RL_INTERNAL. */
rl_status corpus_writer_create(struct corpus *corpus, const char *run, struct rl_waits *waits,
                               struct corpus_writer **out);

/* Write what was handed over, end the thread, free. Takes NULL. */
void corpus_writer_destroy(struct corpus_writer *writer);

/* Hand a part over, to be written and then unlocked; its groups are taken, also after an error.
 * Waits while several parts are before it. Errors: that of an earlier part. */
rl_status corpus_writer_put(struct corpus_writer *writer, const struct corpus_part *part);

/* How many parts have been written and unlocked; `all`: wait until that is every one handed over.
 * Errors: that of the part that could not be written. */
rl_status corpus_writer_written(struct corpus_writer *writer, bool all, uint64_t *count);

#endif
