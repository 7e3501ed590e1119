/* Rollout segments: immutable HDF5 files of trajectory groups, flattened.
 *   groups/{ticket,prompt_id}[U64] {epoch,sample_count}[U32] {worker}[I32] {started_s,finished_s}
 *   samples/{prompt_count,completion_count,part_count}[U32] {finish,reward_valid}[U8]
 *           {reward,accuracy}[F32] reward_part[F32, 8 a sample] token_offset[U64]
 *   tokens/{id}[I32] all tokens of all samples; {logprob}[F32] {version}[U32] completions only
 * and the attributes format, first_step, last_step, run. Samples follow their groups' order. */
#ifndef FORESIGHT_TRANSPORT_SEGMENT_FILE_H
#define FORESIGHT_TRANSPORT_SEGMENT_FILE_H

#include "core/status.h"
#include "core/trajectory.h"
#include "transport/h5_file.h"

#include <stddef.h>
#include <stdint.h>

struct segment_info {
    uint64_t first_step, last_step; /* learner steps that the groups belong to */
    const char *run;                /* name of the run; NULL: "" */
};

/* Totals of a segment that was read or checked. */
struct segment_summary {
    uint64_t groups, samples, prompt_tokens, completion_tokens;
    uint64_t first_step, last_step;
    uint32_t oldest_version, newest_version;
    double reward_mean; /* over valid rewards; 0 if there is none */
};

/* Path of segment `number`: DIR/rollouts/seg_000001.h5. Errors: RL_TOO_LONG. */
rl_status segment_file_path(const char *run_dir, uint64_t number, char *out, size_t out_bytes);

/* Number after the highest existing segment of the run; makes DIR/rollouts. Errors: RL_IO. */
rl_status segment_file_next(const char *run_dir, uint64_t *number);

/* Write groups [count] atomically. Errors: RL_INVALID (a group that fails its check), RL_IO,
 * RL_NO_MEMORY. Thread: any one. */
rl_status segment_file_write(const char *path, const struct segment_info *info,
                             const struct trajectory_group *const *groups, size_t count);

/* Read back all groups. Caller owns *groups (segment_groups_free). `summary` may be NULL.
 * Errors: RL_IO, RL_CORRUPT (dataset and reason named), RL_TOO_LONG, RL_NO_MEMORY. */
rl_status segment_file_read(const char *path, struct trajectory_group ***groups, size_t *count,
                            struct segment_summary *summary);

/* Read and check everything, keep nothing. Errors as segment_file_read. */
rl_status segment_file_verify(const char *path, struct segment_summary *summary);

/* Free an array of groups. Takes NULL. */
void segment_groups_free(struct trajectory_group **groups, size_t count);

/* The flattening itself, for others that keep groups in an HDF5 file (checkpoints): datasets below
 * `prefix` ("" or "pending/"). Errors as above. */
rl_status segment_groups_write(struct h5_file *file, const char *prefix,
                               const struct trajectory_group *const *groups, size_t count);
rl_status segment_groups_read(struct h5_file *file, const char *prefix,
                              struct trajectory_group ***groups, size_t *count);

#endif
