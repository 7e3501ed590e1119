/* See train_events.h. */
#include "app/train_events.h"

#include "core/log.h"
#include "kernels/kernels.h"

#include <stdlib.h>

static rl_status write_start(struct train_run *run)
{
    const struct rl_config *config = run->config;
    char *text = NULL;
    size_t bytes = 0;
    FILE *memory = open_memstream(&text, &bytes);
    if (memory == NULL) {
        return rl_fail(RL_NO_MEMORY, "events.bin: out of memory");
    }
    rl_status status = rl_config_dump(config, memory);
    if (fclose(memory) != 0 && status == RL_OK) {
        status = rl_fail(RL_NO_MEMORY, "events.bin: out of memory");
    }
    struct event_start start = {.step = run->step,
                                .version = learner_version(run->learner),
                                .seed = (uint64_t)config->run.seed,
                                .isa = (uint32_t)run->session->kernels->isa,
                                .threads = (uint32_t)config->run.threads,
                                .learners = (uint32_t)run->collective->size,
                                .prompts_hash = prompts_hash(run->prompts),
                                .image_hash = run->image_hash,
                                .master_hash = learner_master_hash(run->learner),
                                .config = text,
                                .config_bytes = (uint32_t)bytes};
    if (status == RL_OK) {
        status = event_write_start(run->events, &start);
    }
    free(text);
    return status;
}

rl_status train_events_open(struct train_run *run)
{
    char path[CHECKPOINT_PATH_MAX + 32];
    bool complete = true;
    snprintf(path, sizeof(path), "%s/events.bin", run->dir);
    if (run->step > 0) {
        RL_TRY(event_writer_resume(path, run->step, &run->events, &complete));
    } else {
        RL_TRY(event_writer_create(path, &run->events));
    }
    run->image_hash = learner_image_hash(run->learner);
    RL_TRY(write_start(run));
    return event_writer_flush(run->events);
}

/* What became of the group just offered: the counter that has moved says it. */
static enum event_verdict verdict_of(const struct admission_counts *before,
                                     const struct admission_counts *after)
{
    if (after->queued > before->queued) {
        return EVENT_QUEUED;
    }
    if (after->duplicates > before->duplicates) {
        return EVENT_DUPLICATE;
    }
    if (after->unknown > before->unknown) {
        return EVENT_UNKNOWN;
    }
    if (after->stale > before->stale) {
        return EVENT_STALE;
    }
    if (after->unscorable > before->unscorable) {
        return EVENT_UNSCORABLE;
    }
    return after->zero_variance > before->zero_variance ? EVENT_ZERO_VARIANCE : EVENT_REJECTED;
}

rl_status train_events_offer(struct train_run *run, struct trajectory_group *group)
{
    struct admission_counts before = *admission_counts(run->admission);
    struct event_arrival arrival = {.ticket = group->ticket, .worker = (uint32_t)group->worker};
    RL_TRY(admission_offer(run->admission, group));
    arrival.verdict = verdict_of(&before, admission_counts(run->admission));
    return event_write_arrival(run->events, &arrival);
}

rl_status train_events_step(struct train_run *run, const struct admission_batch *batch,
                            const struct learner_report *report, uint64_t master_hash)
{
    struct event_step step = {.step = run->step + 1,
                              .version = report->version,
                              .master_hash = master_hash,
                              .updates = (uint64_t)report->updates,
                              .skipped = (uint64_t)report->skipped};
    if (report->hash != 0) {
        run->image_hash = report->hash;
    }
    step.image_hash = run->image_hash;
    return event_write_step(run->events, &step,
                            (const struct trajectory_group *const *)batch->groups, batch->count);
}

rl_status train_events_rollback(struct train_run *run, uint64_t to_step)
{
    struct event_rollback rollback = {.step = run->step + 1,
                                      .to_step = to_step,
                                      .rate_scale = learner_guard(run->learner)->rate_scale};
    train_run_lock(run);
    rl_status status = event_write_rollback(run->events, &rollback);
    train_run_unlock(run);
    return status;
}

rl_status train_events_checkpoint(struct train_run *run)
{
    RL_TRY(event_write_checkpoint(run->events, run->step));
    return event_writer_flush(run->events);
}

rl_status train_events_end(struct train_run *run)
{
    RL_TRY(event_write_end(run->events, run->step));
    return event_writer_flush(run->events);
}
