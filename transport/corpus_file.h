/* Corpora of self-distillation: what a model says to a set of prompts, sampled once and used by
 * every run that asks for the same. FOLDER/KEY/ holds corpus.json (what the samples are a function
 * of, in clear; KEY is its hash) and parts part_000001.h5, each the groups of a fixed range of
 * prompts (columns as in segment_file.h), immutable once there. Equal identities make equal bits,
 * whoever fills the parts: several ranks and several processes may at once, each part under a lock
 * that the system releases when its holder dies. log.jsonl says which run made which part. */
#ifndef FORESIGHT_TRANSPORT_CORPUS_FILE_H
#define FORESIGHT_TRANSPORT_CORPUS_FILE_H

#include "core/hash.h"
#include "core/status.h"
#include "core/trajectory.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { CORPUS_PART_PROMPTS = 32 };

/* Everything that the samples are a function of. Texts are borrowed. */
struct corpus_identity {
    uint64_t model;      /* hash of the weights */
    const char *weights; /* their storage, and that of keys and values: "fp32", "bf16", ... */
    uint64_t tokenizer;  /* hash of its files */
    uint64_t prompts;    /* hash of prompts and ground truths */
    uint64_t prompt_count;
    double temperature, top_p, min_p;
    int64_t top_k, max_completion;
    const char *stop, *stop_token_ids;
    uint32_t samples; /* a prompt */
    uint64_t seed;
    const char *rewards; /* how samples are scored */
};

struct corpus;

/* Make FOLDER/KEY if need be, or check that its corpus.json is this identity's. Caller owns *out.
 * Errors: RL_IO, RL_INVALID (what is there was made by something else: the field is named),
 * RL_NO_MEMORY. One thread; any number of processes. */
rl_status corpus_open(const char *folder, const struct corpus_identity *identity,
                      struct corpus **out);

/* Releases all locks. Takes NULL. */
void corpus_close(struct corpus *corpus);

/* Its key [32 hexadecimal digits] and folder. Borrowed. */
const char *corpus_key(const struct corpus *corpus);
const char *corpus_path(const struct corpus *corpus);

/* Parts, and the prompts [first, first + count) of one. */
uint64_t corpus_part_count(const struct corpus *corpus);
void corpus_part_range(const struct corpus *corpus, uint64_t part, uint64_t *first,
                       uint64_t *count);

/* Is the part there? */
bool corpus_has(const struct corpus *corpus, uint64_t part);

/* Lock a part that is not there, to fill it. RL_AGAIN: another opener does, or it is there by now.
 * Locking one's own again succeeds. Never blocks. Errors: RL_IO. */
rl_status corpus_lock(struct corpus *corpus, uint64_t part);
void corpus_unlock(struct corpus *corpus, uint64_t part);

/* Write a locked part, atomically, and note in the log that `run` made it. `groups` in the order of
 * the part's prompts. Errors: RL_INVALID (not the part's groups), RL_IO, RL_NO_MEMORY. */
rl_status corpus_write(struct corpus *corpus, uint64_t part,
                       const struct trajectory_group *const *groups, const char *run);

/* Read a part that is there. Caller owns *groups (segment_groups_free). Errors: RL_CORRUPT
 * (damaged, or a part of another corpus: what to do is said), RL_IO, RL_NO_MEMORY. */
rl_status corpus_read(const struct corpus *corpus, uint64_t part, struct trajectory_group ***groups,
                      size_t *count);

/* Samples of the corpus FOLDER/KEY of so many prompts that `run` made, by its log; 0 if there is no
 * log any more. Errors: RL_IO, RL_NO_MEMORY. */
struct corpus_name {
    const char *folder, *key;
    uint64_t prompt_count;
};
rl_status corpus_made_by(const struct corpus_name *corpus, const char *run, uint64_t *samples);

#endif
