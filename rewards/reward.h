/* Reward functions behind one table, and the pool that runs them off the decoding thread.
 * Pure with respect to the sample's text: no GPU, no MPI, no model. */
#ifndef FORESIGHT_REWARDS_REWARD_H
#define FORESIGHT_REWARDS_REWARD_H

#include "core/config.h"
#include "core/trajectory.h"

/* What a reward function may look at. All strings borrowed for the call, never NULL. */
struct reward_input {
    const char *prompt;       /* prompt text as given in the data row */
    const char *completion;   /* decoded completion, special tokens skipped */
    const char *ground_truth; /* gold answer; "" if the row has none */
    const char *data_source;  /* "" if the row has none */
    const char *extra_json;   /* the whole data row as JSON object text, "{}" if unknown */
    bool truncated;           /* finish reason was length */
};

struct reward_output {
    bool valid;         /* false: unscorable (null), e.g. the gold answer cannot be parsed */
    double value;       /* normally in [0, 1] */
    const char *reason; /* static text, why (for logs and `check`) */
};

/* A set of weighted functions as named by rewards.functions. Immutable, any thread. */
struct reward_set;

/* Parse and build, e.g. "numeric*1.0,format*0.2". Caller owns *out.
 * Errors: RL_INVALID (unknown name with the nearest one, bad weight, bad regex). */
rl_status reward_set_create(const struct rl_config *config, struct reward_set **out);

/* Free the set. Takes NULL. */
void reward_set_destroy(struct reward_set *set);

/* Functions in the set, and the name of one of them (static text). Any thread. */
uint32_t reward_set_count(const struct reward_set *set);
const char *reward_set_name(const struct reward_set *set, uint32_t index);

/* True if the ground truth of function `index` states a problem (numbers and a target) and is not
 * itself an answer that the function could score. */
bool reward_set_gold_is_puzzle(const struct reward_set *set, uint32_t index);

/* The functions' own verdicts, unweighted: fills `parts` [reward_set_count]. A value that is not
 * finite comes back as not valid. Any thread. */
void reward_set_evaluate(const struct reward_set *set, const struct reward_input *input,
                         struct reward_output *parts);

/* Score one text: fills reward_part[], reward_valid, reward (weighted sum over the valid parts plus
 * overlong punishment by completion_count), accuracy (part 0) of `sample`. A part that is
 * unscorable is stored as 0 and adds nothing; a sample none of whose parts is valid has
 * reward_valid = false and reward 0. Any thread. */
void reward_set_score(const struct reward_set *set, const struct reward_input *input,
                      struct trajectory *sample);

/* --- pool: `threads` scoring threads, one deadline a sample -------------------------------------
 */
struct reward_pool;

/* Called on a pool thread to make the input of sample `index`; strings stay valid until `release`.
 */
struct reward_text_ops {
    rl_status (*acquire)(void *arg, const struct trajectory_group *group, uint32_t index,
                         struct reward_input *input);
    void (*release)(void *arg, struct reward_input *input);
    void *arg;
};

/* Start the threads. `set` is borrowed for the pool's life. Caller owns *out. */
rl_status reward_pool_create(const struct reward_set *set, const struct rl_config *config,
                             struct reward_text_ops text, struct reward_pool **out);

/* Stop; groups still inside are destroyed. A function that never returns cannot hold this up: its
 * thread is abandoned after the deadline, and what it still looks at lives until it returns. Takes
 * NULL. */
void reward_pool_destroy(struct reward_pool *pool);

/* Hand over a group for scoring; takes `group` on RL_OK. Never blocks: RL_AGAIN when full. */
rl_status reward_pool_submit(struct reward_pool *pool, struct trajectory_group *group);

/* Take a scored group (caller owns it), RL_AGAIN if none is ready; never blocks. Groups come in the
 * order in which their last sample was finished. A sample whose scoring passed rewards.timeout_ms
 * comes back with reward_valid = false and is counted; so does one whose text could not be made. */
rl_status reward_pool_take(struct reward_pool *pool, struct trajectory_group **group);

/* Copies of the groups now inside, for a snapshot; scoring goes on. Caller owns the groups and
 * frees the array. Any thread. Errors: RL_NO_MEMORY. */
rl_status reward_pool_copy(struct reward_pool *pool, struct trajectory_group ***groups,
                           uint32_t *count);

/* Samples that timed out so far, and groups now inside (waiting, being scored, or not yet taken).
 */
uint64_t reward_pool_timeouts(const struct reward_pool *pool);
uint32_t reward_pool_pending(const struct reward_pool *pool);

#endif
