/* Checkpoints: RUN/checkpoints/step_000100/ with a Hugging Face model folder (fp32, so the masters
 * come back bit for bit), state.h5, and MANIFEST.json last: sizes and hashes of every file, the
 * commit point. Everything is written in RUN/checkpoints/.step_000100.tmp.PID and renamed; a
 * committed checkpoint is never touched again but by pruning. The loader takes the newest whose
 * manifest verifies and says which it skipped and why. */
#ifndef FORESIGHT_TRAINER_CHECKPOINT_H
#define FORESIGHT_TRAINER_CHECKPOINT_H

#include "core/status.h"
#include "core/trajectory.h"
#include "model/params.h"
#include "model/tokenizer.h"
#include "trainer/optimizer.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { CHECKPOINT_PATH_MAX = 4096 };

/* Bytes that only their owner reads. */
struct checkpoint_blob {
    void *data; /* [bytes] */
    size_t bytes;
};

/* What a learner is made of besides its master weights. Saving borrows everything; loading fills
 * a struct that owns everything (checkpoint_state_fini). */
struct checkpoint_state {
    uint64_t step;    /* finished learner steps; names the folder */
    uint64_t version; /* weight version of the masters */
    uint64_t updates; /* optimizer updates */
    uint64_t seed;    /* run seed */
    uint64_t segment; /* next rollout segment number */
    uint64_t tokens_trained, tokens_generated, samples_trained;
    double elapsed_s; /* wall time of the run so far, over resumes */
    double cpu_s;
    void *dispatcher; /* [dispatcher_bytes] opaque: cursor, tickets, counters */
    size_t dispatcher_bytes;
    void *learner; /* [learner_bytes] opaque: whatever else the learner keeps; may be NULL */
    size_t learner_bytes;
    struct trajectory_group **pending; /* [pending_count] admitted, not yet trained */
    size_t pending_count;
    struct trajectory_group **partial; /* [partial_count] of tickets at work: the samples that were
                                          finished, the others empty */
    size_t partial_count;
    struct checkpoint_blob *images; /* [image_count] fixed_lag: weight deltas, each leads from one
                                       version to the one before, the first from `version` */
    size_t image_count;
    char *config_text; /* resolved configuration as YAML */
};

/* The big arrays, [layout->master_count] each. Borrowed. */
struct checkpoint_slabs {
    const float *master;
    const float *adam_m, *adam_v;
    const float *teacher; /* NULL unless teacher.policy is ema */
    /* NULL, or fetched from in place of adam_m and adam_v, which are NULL then; while submitting or
     * saving. The other learners serve. */
    struct optimizer *shared;
};

/* Where loaded moments go: those of the floats [first, first + count) of the slabs. Borrowed. */
struct checkpoint_moments {
    float *m, *v; /* [count] */
    int64_t first, count;
};

/* Where and how to save. All borrowed; must outlive a writer that was started with it. */
struct checkpoint_target {
    const char *run_dir; /* must exist */
    const struct model_layout *layout;
    const struct tokenizer *tokenizer; /* NULL: no tokenizer files */
    int64_t keep_last;                 /* >= 1 */
    int64_t keep_every;                /* steps; 0: none kept for ever */
};

/* Write, commit, prune. On an error nothing of it stays behind and earlier checkpoints are as they
 * were. A committed checkpoint of this step is kept and RL_OK returned. `path_out`
 * [CHECKPOINT_PATH_MAX] may be NULL. Errors: RL_IO (a full disk said as such), RL_NO_MEMORY. */
rl_status checkpoint_save(const struct checkpoint_target *target,
                          const struct checkpoint_state *state,
                          const struct checkpoint_slabs *slabs, char *path_out);

/* Newest checkpoint of the run whose files all verify (sizes and hashes); unsound ones are logged
 * with the reason. path [CHECKPOINT_PATH_MAX]. Errors: RL_NOT_FOUND (none; not logged as an error
 * if the run has no checkpoints at all), RL_IO. */
rl_status checkpoint_find_newest(const char *run_dir, char *path);

/* The same among checkpoints of steps below `step` only. */
rl_status checkpoint_find_before(const char *run_dir, uint64_t step, char *path);

/* Check one checkpoint folder against its manifest. `step` may be NULL. Errors: RL_CORRUPT (file
 * and reason named), RL_IO. */
rl_status checkpoint_verify(const char *path, uint64_t *step);

/* Read a verified checkpoint: masters into a slab [layout->master_count], moments or a stretch of
 * them (each NULL to skip), the rest into *out. Errors: RL_CORRUPT, RL_IO, RL_INVALID (another
 * model), RL_NO_MEMORY. */
rl_status checkpoint_load(const char *path, const struct model_layout *layout, float *master,
                          const struct checkpoint_moments *moments, struct checkpoint_state *out);

/* Where the moments that an optimizer has here go: all of them, or its share. */
struct checkpoint_moments checkpoint_moments_of(struct optimizer_state *optimizer);

/* Read the teacher's moving average into [layout->master_count]; nothing is done for NULL. Errors:
 * RL_INVALID (there is none), RL_CORRUPT, RL_IO. */
rl_status checkpoint_load_teacher(const char *path, const struct model_layout *layout,
                                  float *teacher);

/* Release what checkpoint_load filled. Takes a zeroed struct. */
void checkpoint_state_fini(struct checkpoint_state *state);

#endif
