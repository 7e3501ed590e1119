/* See replay.h: one pass over events.bin that checks its order and notes what each step needs. */
#include "app/replay.h"

#include "core/log.h"

#include <inttypes.h>
#include <stdlib.h>

struct scan {
    struct event_file *file;
    struct replay_index *index;
    uint64_t expected; /* step that must come next */
    bool started, ended;
};

static rl_status out_of_place(const struct scan *scan, const char *what)
{
    return rl_fail(RL_CORRUPT, "events.bin: record at byte %" PRIu64 ": %s",
                   event_file_record_offset(scan->file), what);
}

static rl_status note_start(struct scan *scan, const struct event_start *start)
{
    struct replay_index *index = scan->index;
    if (scan->started && start->step + 1 < scan->expected) {
        return out_of_place(scan, "a start that goes behind a step already made");
    }
    if (!scan->started) {
        index->first_master_hash = start->master_hash;
    }
    scan->started = true;
    scan->ended = false;
    scan->expected = start->step + 1;
    return RL_OK;
}

static rl_status note_step(struct scan *scan, const struct event_step *step)
{
    struct replay_index *index = scan->index;
    struct replay_step entry = {.step = step->step,
                                .version = step->version,
                                .oldest = step->version,
                                .image_hash = step->image_hash,
                                .master_hash = step->master_hash};
    if (!scan->started || step->step != scan->expected) {
        return out_of_place(scan, "a step that is not the next one");
    }
    for (uint32_t i = 0; i < step->run_count; i++) {
        uint32_t version = step->runs[i].version;
        if (version > step->version) {
            return out_of_place(scan, "a token of a version that did not exist yet");
        }
        entry.oldest = version < entry.oldest ? version : entry.oldest;
    }
    if (index->count == index->capacity) {
        size_t capacity = index->capacity == 0 ? 256 : 2 * index->capacity;
        struct replay_step *grown = realloc(index->steps, capacity * sizeof(*grown));
        if (grown == NULL) {
            return rl_fail(RL_NO_MEMORY, "replay: out of memory for %zu steps", capacity);
        }
        index->steps = grown;
        index->capacity = capacity;
    }
    index->steps[index->count++] = entry;
    scan->expected++;
    return RL_OK;
}

static rl_status note_rollback(struct scan *scan, const struct event_rollback *rollback)
{
    if (rollback->step != scan->expected) {
        return out_of_place(scan, "a rollback in a step that is not the next one");
    }
    for (size_t i = 0; i < scan->index->count; i++) {
        scan->index->steps[i].target |= scan->index->steps[i].step == rollback->to_step;
    }
    return RL_OK;
}

static rl_status note(struct scan *scan, const struct event *event)
{
    if (!scan->started && event->kind != EVENT_START) {
        return out_of_place(scan, "the file does not begin with a start");
    }
    switch (event->kind) {
    case EVENT_START:
        return note_start(scan, &event->start);
    case EVENT_STEP:
        return note_step(scan, &event->step);
    case EVENT_ROLLBACK:
        return note_rollback(scan, &event->rollback);
    case EVENT_ARRIVAL:
        scan->index->arrivals++;
        return RL_OK;
    case EVENT_END:
        scan->ended = true;
        return RL_OK;
    default:
        return RL_OK;
    }
}

static rl_status scan_file(struct scan *scan)
{
    struct replay_index *index = scan->index;
    struct event event = {0};
    for (;;) {
        rl_status status = event_file_next(scan->file, &event);
        if (status == RL_END) {
            return RL_OK;
        }
        RL_TRY(status);
        status = note(scan, &event);
        event_fini(&event);
        RL_TRY(status);
        index->bytes = event_file_offset(scan->file);
        if (index->until > 0 && scan->expected > index->until) {
            return RL_OK;
        }
    }
}

/* From the last step back: versions below keep_from are not needed any more. */
static void note_needs(struct replay_index *index)
{
    uint32_t oldest = UINT32_MAX;
    for (size_t i = index->count; i-- > 0;) {
        oldest = index->steps[i].oldest < oldest ? index->steps[i].oldest : oldest;
        index->steps[i].keep_from = oldest;
    }
}

rl_status replay_index_read(const char *run_dir, uint64_t until, struct replay_index *out)
{
    char path[CHECKPOINT_PATH_MAX];
    struct scan scan = {.index = out};
    *out = (struct replay_index){.until = until};
    if (snprintf(path, sizeof(path), "%s/events.bin", run_dir) >= (int)sizeof(path)) {
        return rl_fail(RL_TOO_LONG, "replay: the run's path is too long");
    }
    RL_TRY(event_file_open(path, &scan.file));
    rl_status status = scan_file(&scan);
    event_file_close(scan.file);
    RL_TRY(status);
    uint64_t last = out->count > 0 ? out->steps[out->count - 1].step : 0;
    if (until > 0 && last < until) {
        return rl_fail(RL_NOT_FOUND, "%s ends with step %" PRIu64 ": there is no step %" PRIu64,
                       path, last, until);
    }
    if (until == 0 && !scan.ended) {
        return rl_fail(RL_CORRUPT,
                       "%s: byte %" PRIu64 ": it has no end: the run goes on, was killed, or the "
                       "file was cut; --until %" PRIu64 " replays what is there",
                       path, out->bytes, last);
    }
    note_needs(out);
    return RL_OK;
}

void replay_index_fini(struct replay_index *index)
{
    free(index->steps);
    *index = (struct replay_index){0};
}

const struct replay_step *replay_index_find(const struct replay_index *index, uint64_t step)
{
    for (size_t i = 0; i < index->count; i++) {
        if (index->steps[i].step == step) {
            return &index->steps[i];
        }
    }
    return NULL;
}
