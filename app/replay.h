/* Replay: a run computed again in this process from what its events.bin recorded
 * (app/train_events.h), and compared with it bit for bit. replay_index reads the file once and
 * checks it; replay_run makes the steps; replay_groups brings the groups that a step was trained
 * on; replay_group looks into one of them. Nothing is written into the run's folder. */
#ifndef FORESIGHT_APP_REPLAY_H
#define FORESIGHT_APP_REPLAY_H

#include "app/sampler.h"
#include "app/session.h"
#include "trainer/learner.h"
#include "transport/event_file.h"

/* --- what the file holds ------------------------------------------------------------------------
 */

struct replay_step {
    uint64_t step;
    uint32_t version;   /* after it */
    uint32_t oldest;    /* version of any token that it was trained on */
    uint32_t keep_from; /* oldest version that this step or a later one needs */
    uint64_t image_hash, master_hash;
    bool target; /* a later step rolls back to it */
};

struct replay_index {
    struct replay_step
        *steps; /* [count] without gaps but where the run was resumed without events */
    size_t count, capacity;
    uint64_t until; /* 0, or where reading stopped */
    uint64_t arrivals, bytes;
    uint64_t first_master_hash; /* of the weights that the run began with */
};

/* Read RUN/events.bin to its end, or up to the record of step `until` if that is not 0. Release
 * with replay_index_fini (also after an error). Errors: RL_CORRUPT (file, offset and reason; also a
 * file without end), RL_NOT_FOUND (no such step), RL_IO, RL_NO_MEMORY. */
rl_status replay_index_read(const char *run_dir, uint64_t until, struct replay_index *out);
void replay_index_fini(struct replay_index *index);

/* The step's entry; NULL if it is not there. Borrowed. */
const struct replay_step *replay_index_find(const struct replay_index *index, uint64_t step);

/* --- groups that the run has kept ---------------------------------------------------------------
 */

/* The run's rollout segments, one of them in memory. Starts zeroed but for run_dir. */
struct replay_segments {
    const char *run_dir; /* borrowed */
    uint64_t number;     /* of the segment in memory; 0: none */
    uint64_t first_step, last_step;
    struct trajectory_group **groups; /* [count] */
    size_t count;
};

/* The group of `ticket` that step `step` was trained on; borrowed until the next call. Errors:
 * RL_NOT_FOUND (not logged: the run did not keep it), RL_CORRUPT, RL_IO, RL_NO_MEMORY. */
rl_status replay_segments_find(struct replay_segments *segments, uint64_t step, uint64_t ticket,
                               const struct trajectory_group **out);
void replay_segments_fini(struct replay_segments *segments);

/* --- the run
 * --------------------------------------------------------------------------------------
 */

struct replay_options {
    const char *run_dir; /* borrowed */
    uint64_t until;      /* last step; 0: all */
    uint64_t from;       /* begin at the checkpoint of this step; 0: at the model */
    bool recorded;       /* take groups from the segments where they are, instead of generating */
    uint32_t keep;       /* images of versions >= this stay to the end; UINT32_MAX: as needed */
    bool quiet;          /* no progress bar */
};

struct replay_images {
    struct replay_image {
        uint32_t version;
        void *image;
    } * items; /* [count] versions ascend */
    size_t count, capacity;
};

/* Everything that a learner is made of. Starts zeroed. */
struct replay_slabs {
    uint64_t step;
    float *master, *m, *v; /* device memory */
    float *teacher;        /* the teacher's average, device memory; NULL: there is none */
    size_t bytes;          /* of each */
    int64_t updates;
    struct guard_state guard;
};

struct replay_totals {
    uint64_t steps, groups_generated, groups_recorded, samples, tokens;
    uint64_t deltas;   /* versions of the weights read from deltas.bin */
    uint64_t switched; /* samples whose tokens are of more than one version */
};

/* The first thing that was not as recorded. */
struct replay_difference {
    bool found;
    uint64_t step;
    char what[512];
};

struct teacher_prompts;

struct replay {
    struct replay_options options;
    struct replay_index index;
    struct replay_segments segments;
    struct event_start start; /* newest; config is owned here */
    bool fresh;               /* it has not been acted on */
    /* from here on: set up by it */
    bool open;
    struct rl_config config;
    struct session session;
    struct prompts *prompts;
    struct reward_set *rewards;
    struct collective *alone;
    void *reference_image;
    struct teacher_prompts *teacher;
    struct learner *learner;
    struct sampler *sampler;
    struct replay_images images;
    struct event_file *file;
    uint64_t step, passed;          /* made; seen in the file but before `from` */
    struct replay_slabs sound;      /* of the newest step that a later one rolls back to */
    struct event_rollback rollback; /* recorded for the step to come; step 0: none */
    struct replay_totals totals;
    struct replay_difference difference;
};

/* Read and check the record; compute nothing yet. Release with replay_close (also after an error).
 * Errors: those of replay_index_read. */
rl_status replay_open(const struct replay_options *options, struct replay *r);

/* Recompute and compare up to and including step `last` (at least options.from; 0: only the model
 * is loaded). RL_OK also if something differed: *r says what. Errors: RL_CORRUPT, RL_UNSUPPORTED
 * (several learners, another instruction set), RL_INVALID (model or data changed), those of the
 * parts. */
rl_status replay_advance(struct replay *r, uint64_t last);
void replay_close(struct replay *r);

/* The weights of `version`; NULL if they are not there. Borrowed. */
const void *replay_image(const struct replay *r, uint32_t version);

/* Take an image (device memory) as that of `version`, newer than all there; forget those of
 * versions below `keep_from`. Errors: RL_NO_MEMORY (the image stays the caller's). */
rl_status replay_images_add(struct replay_images *images, uint32_t version, void *image);
void replay_images_drop(struct replay_images *images, uint32_t keep_from);

/* From the learner's version on, make the images up to `newest` from RUN/deltas.bin; those from
 * options.keep on stay. The learner stays where it is. Errors: RL_NOT_FOUND (not logged: there is
 * no such file, or it lacks some), RL_CORRUPT, RL_IO, RL_NO_MEMORY. */
rl_status replay_deltas_apply(struct replay *r, uint32_t newest);

/* Note the first difference; printf arguments. */
void replay_differs(struct replay *r, uint64_t step, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Parts of a run, set up from the newest start record (replay_part.c). */
rl_status replay_part_open(struct replay *r);

/* Copy what the learner is now into *out (what was there is freed); put its masters, moments and
 * update counter back. Errors: RL_NO_MEMORY. */
rl_status replay_slabs_keep(struct replay *r, struct replay_slabs *out);
rl_status replay_slabs_model(struct replay *r, struct replay_slabs *out); /* as the run began */
void replay_slabs_put(struct replay *r, const struct replay_slabs *slabs);
void replay_slabs_fini(struct replay_slabs *slabs);
void replay_part_close(struct replay *r);

/* The groups of a step, [step->group_count] in its order, generated again or taken from the
 * segments, checked against the record; a difference is noted and leaves *equal false. Caller frees
 * each group. Errors: RL_NOT_FOUND (a version that is needed is not there), those of the engine. */
rl_status replay_groups_make(struct replay *r, const struct event_step *step,
                             struct trajectory_group **groups, bool *equal);

/* --- one group
 * ------------------------------------------------------------------------------------
 */

struct replay_group_report {
    uint64_t step, ticket, prompt_id, tokens;
    uint32_t sample_count, oldest, newest; /* versions */
    double max_abs_difference;
    uint64_t different; /* tokens whose bits differ */
    uint64_t deltas;    /* versions read from deltas.bin rather than trained again */
};

/* Recompute the log-probs of the group of `ticket` in step `step` by passes of the training forward
 * over its recorded tokens, each token under the version that produced it, and print the
 * differences to the recorded ones (a table, or one JSON line). Errors: RL_NOT_FOUND (no such
 * ticket; the run kept no segments), as replay_advance. */
rl_status replay_group(const char *run_dir, uint64_t step, uint64_t ticket, bool json,
                       struct replay_group_report *out);

#endif
