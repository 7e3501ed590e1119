/* See replay.h: groups that the run kept in its rollout segments. */
#include "app/replay.h"

#include "core/log.h"
#include "transport/segment_file.h"

#include <unistd.h>

static rl_status load(struct replay_segments *s, uint64_t number)
{
    char path[CHECKPOINT_PATH_MAX];
    struct segment_summary summary = {0};
    replay_segments_fini(s);
    RL_TRY(segment_file_path(s->run_dir, number, path, sizeof(path)));
    if (access(path, R_OK) != 0) {
        return RL_NOT_FOUND;
    }
    RL_TRY(segment_file_read(path, &s->groups, &s->count, &summary));
    s->number = number;
    s->first_step = summary.first_step;
    s->last_step = summary.last_step;
    return RL_OK;
}

/* Bring the segment with `step` into memory: from the one at hand forwards, else from the first. */
static rl_status seek(struct replay_segments *s, uint64_t step)
{
    if (s->number == 0 || step < s->first_step) {
        RL_TRY(load(s, 1));
    }
    while (step > s->last_step) {
        RL_TRY(load(s, s->number + 1));
    }
    return step >= s->first_step ? RL_OK : RL_NOT_FOUND;
}

rl_status replay_segments_find(struct replay_segments *segments, uint64_t step, uint64_t ticket,
                               const struct trajectory_group **out)
{
    RL_TRY(seek(segments, step));
    for (size_t i = 0; i < segments->count; i++) {
        if (segments->groups[i]->ticket == ticket) {
            *out = segments->groups[i];
            return RL_OK;
        }
    }
    return RL_NOT_FOUND;
}

void replay_segments_fini(struct replay_segments *segments)
{
    segment_groups_free(segments->groups, segments->count);
    *segments = (struct replay_segments){.run_dir = segments->run_dir};
}
