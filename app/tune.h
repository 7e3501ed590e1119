/* A run folder around fine-tuning: config.yaml, metrics.jsonl, checkpoints/step_NNNNNN (model
 * folders, with the state to go on from) of one job after another, each job one call of sft_run.
 * Steps count optimizer updates over all jobs. What a caller must know again after a kill travels
 * in the checkpoints as its note, a JSON object. Checkpoints are written beside training.
 *
 * Every rank of the team holds one and makes the same calls; rank 0 writes. */
#ifndef FORESIGHT_APP_TUNE_H
#define FORESIGHT_APP_TUNE_H

#include "app/rank_team.h"
#include "app/session.h"
#include "core/metrics.h"
#include "trainer/checkpoint_writer.h"
#include "trainer/progress.h"
#include "trainer/sft.h"

#include <jansson.h>

struct tune {
    const struct rl_config *config;
    const struct session *session;
    const struct rank_team *team;
    bool leader; /* rank 0 */
    char dir[CHECKPOINT_PATH_MAX];
    struct rl_metrics *metrics; /* leader only */
    json_t *note;               /* the caller's; owned; goes into every checkpoint */
    uint64_t step;              /* updates of all jobs so far */
    double busy_s, wall_s;      /* of training in this process */
    uint64_t busy_tokens;       /* fed meanwhile, by all ranks */
    /* What the newest checkpoint held; NULL and zeros for a new run. */
    float *master;        /* [master_count], owned until tune_take_master */
    bool resumed, in_job; /* in_job: it stands inside of a job, which tune_job goes on with */
    /* the rest is this module's */
    struct checkpoint_target target;
    struct checkpoint_writer *writer; /* leader only */
    struct sft_state sft;
    struct checkpoint_moments moments; /* of this rank's share; owned */
    uint64_t job_step, job_tokens;     /* at the start of the job at work */
    int64_t skipped;                   /* of finished jobs */
    struct progress_bar bar;
    const struct tune_job *job;
    double last_busy_s, last_elapsed_s;
    rl_status status;
};

struct tune_job {
    const char *label; /* of the progress bar */
    const struct sft_example *examples;
    uint64_t example_count;
    uint64_t number; /* of the job in the run; also picks the order of the examples */
    const struct objective_options *objective; /* see sft.h */
    float inv_temperature;
    float *master; /* where to start; a resumed job must be given the checkpoint's */
    /* Figures of the job for the line of its first update (leader), and what the note shall say
     * once the job is done (all ranks, before the last checkpoint). Either may be NULL. */
    void (*describe)(void *arg, struct rl_metrics *metrics);
    void (*finish)(void *arg, double loss, int64_t updates);
    void *arg;
};

/* Make or find RUN (run.dir/run.name), obey run.resume, load the newest checkpoint, open the
 * metrics. Release with tune_close (also after an error). Collective.
 * Errors: RL_INVALID (run.resume is `never` and there are checkpoints, another seed), RL_NOT_FOUND,
 * RL_CORRUPT, RL_IO, RL_NO_MEMORY. */
rl_status tune_open(const struct rl_config *config, const struct session *session,
                    const struct rank_team *team, struct tune *tune);
void tune_close(struct tune *tune);

/* The checkpoint's weights; the caller frees them with device_free. NULL for a new run. */
float *tune_take_master(struct tune *tune);

/* Train. *loss: mean over the last tenth. A checkpoint every checkpoint.every updates, when
 * stopped, and at the end. Collective. Errors: RL_INTERRUPTED; those of sft_run and of saving. */
rl_status tune_job(struct tune *tune, const struct tune_job *job, double *loss);

/* Is this the sequence of examples that the resumed job was trained on? Sets it in the note
 * otherwise. Errors: RL_INVALID. */
rl_status tune_check_examples(struct tune *tune, const struct sft_example *examples,
                              uint64_t count);

/* Path of the newest checkpoint in the run folder: "checkpoints/step_000123". */
void tune_checkpoint_name(const struct tune *tune, char out[64]);

#endif
