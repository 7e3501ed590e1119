/* See replay.h: from record to record. A step is made by the very code that made it in the run;
 * what is compared is the record, number by number. */
#include "app/replay.h"

#include "core/log.h"
#include "kernels/device.h"
#include "trainer/progress.h"
#include "transport/collective.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

void replay_differs(struct replay *r, uint64_t step, const char *format, ...)
{
    va_list args;
    if (r->difference.found) {
        return;
    }
    r->difference.found = true;
    r->difference.step = step;
    va_start(args, format);
    vsnprintf(r->difference.what, sizeof(r->difference.what), format, args);
    va_end(args);
}

/* --- images
 * ------------------------------------------------------------------------------------------ */

const void *replay_image(const struct replay *r, uint32_t version)
{
    for (size_t i = 0; i < r->images.count; i++) {
        if (r->images.items[i].version == version) {
            return r->images.items[i].image;
        }
    }
    return NULL;
}

void replay_images_drop(struct replay_images *images, uint32_t keep_from)
{
    size_t kept = 0;
    for (size_t i = 0; i < images->count; i++) {
        if (images->items[i].version < keep_from) {
            device_free(images->items[i].image);
        } else {
            images->items[kept++] = images->items[i];
        }
    }
    images->count = kept;
}

rl_status replay_images_add(struct replay_images *images, uint32_t version, void *image)
{
    if (images->count == images->capacity) {
        size_t capacity = images->capacity == 0 ? 8 : 2 * images->capacity;
        void *grown = realloc(images->items, capacity * sizeof(*images->items));
        if (grown == NULL) {
            return rl_fail(RL_NO_MEMORY, "replay: out of memory");
        }
        images->items = grown;
        images->capacity = capacity;
    }
    images->items[images->count++] = (struct replay_image){version, image};
    return RL_OK;
}

/* Keep the image of the learner's masters as its version. */
static rl_status keep_image(struct replay *r, uint64_t *hash)
{
    uint32_t version = learner_version(r->learner);
    if (replay_image(r, version) == NULL) {
        void *image = NULL;
        RL_TRY(learner_pull(r->learner));
        RL_TRY(session_make_image(&r->session, learner_master(r->learner), &image));
        rl_status status = replay_images_add(&r->images, version, image);
        if (status != RL_OK) {
            device_free(image);
            return status;
        }
    }
    *hash = model_image_hash(r->session.layout, replay_image(r, version));
    return RL_OK;
}

/* --- records
 * ----------------------------------------------------------------------------------------- */

static rl_status note_start(struct replay *r, const struct event_start *start)
{
    char *config = malloc((size_t)start->config_bytes + 1);
    if (config == NULL) {
        return rl_fail(RL_NO_MEMORY, "replay: out of memory");
    }
    memcpy(config, start->config, start->config_bytes);
    config[start->config_bytes] = '\0';
    free((char *)(uintptr_t)r->start.config);
    r->start = *start;
    r->start.config = config;
    r->fresh = true;
    return RL_OK;
}

/* Act on the newest start record: now, because only a step that follows says that it matters. */
static rl_status begin_part(struct replay *r)
{
    uint64_t hash = 0;
    uint64_t master = 0;
    RL_TRY(replay_part_open(r));
    r->fresh = false;
    RL_TRY(keep_image(r, &hash));
    if (r->step != r->start.step) {
        return RL_OK; /* begun at a checkpoint; its masters were compared */
    }
    master = learner_master_hash(r->learner);
    if (master != r->start.master_hash || hash != r->start.image_hash ||
        learner_version(r->learner) != r->start.version) {
        replay_differs(r, r->step,
                       "the run went on from step %" PRIu64 " with version %" PRIu64
                       ", masters %016" PRIx64 ", image %016" PRIx64 "; replayed: version %" PRIu32
                       ", masters %016" PRIx64 ", image %016" PRIx64,
                       r->start.step, r->start.version, r->start.master_hash, r->start.image_hash,
                       learner_version(r->learner), master, hash);
    }
    return RL_OK;
}

static void compare(struct replay *r, const struct event_step *step,
                    const struct learner_report *report, uint64_t image)
{
    uint64_t master = learner_master_hash(r->learner);
    if (report->version != step->version || (uint64_t)report->updates != step->updates ||
        (uint64_t)report->skipped != step->skipped) {
        replay_differs(r, step->step,
                       "recorded version %" PRIu32 " after %" PRIu64 " updates, %" PRIu64
                       " skipped; replayed version %" PRIu32 " after %" PRId64 ", %" PRId64
                       " skipped",
                       step->version, step->updates, step->skipped, report->version,
                       report->updates, report->skipped);
    }
    if (master != step->master_hash) {
        replay_differs(r, step->step,
                       "the masters after the step hash to %016" PRIx64 ", recorded %016" PRIx64
                       " (its groups were equal)",
                       master, step->master_hash);
    }
    if (image != step->image_hash) {
        replay_differs(r, step->step,
                       "the image of version %" PRIu32 " hashes to %016" PRIx64
                       ", recorded %016" PRIx64 " (the masters are equal)",
                       step->version, image, step->image_hash);
    }
}

/* The weights that the step went back to, if it did. */
static rl_status put_sound(struct replay *r)
{
    struct replay_slabs start = {0};
    if (r->rollback.to_step == 0) {
        rl_status status = replay_slabs_model(r, &start);
        if (status == RL_OK) {
            replay_slabs_put(r, &start);
        }
        replay_slabs_fini(&start);
        return status;
    }
    if (r->sound.step != r->rollback.to_step) {
        return rl_fail(RL_UNSUPPORTED,
                       "replay: step %" PRIu64 " went back to step %" PRIu64
                       ", which was before the replay began",
                       r->rollback.step, r->rollback.to_step);
    }
    replay_slabs_put(r, &r->sound);
    return RL_OK;
}

static rl_status roll_back(struct replay *r, const struct event_step *step,
                           struct learner_report *report)
{
    const struct replay_step *target = replay_index_find(&r->index, r->rollback.to_step);
    bool recorded = r->rollback.step == step->step;
    if (recorded != (report->action == GUARD_ROLL_BACK)) {
        replay_differs(r, step->step,
                       recorded ? "the run rolled back, the replay did not"
                                : "the replay wants to roll back, the run did not");
    }
    if (!recorded || r->difference.found) {
        return RL_OK;
    }
    RL_TRY(put_sound(r));
    RL_TRY(learner_roll_back(r->learner, target != NULL ? target->version : 0, report));
    if (learner_guard(r->learner)->rate_scale != r->rollback.rate_scale) {
        replay_differs(r, step->step, "learning rates scaled by %g, recorded %g",
                       learner_guard(r->learner)->rate_scale, r->rollback.rate_scale);
    }
    return RL_OK;
}

static rl_status train(struct replay *r, const struct event_step *step,
                       struct trajectory_group **groups)
{
    struct learner_report report;
    uint64_t image = 0;
    RL_TRY(learner_step(r->learner, groups, step->group_count, step->step, &report));
    RL_TRY(roll_back(r, step, &report));
    if (r->difference.found) {
        return RL_OK;
    }
    RL_TRY(learner_publish(r->learner, &report));
    RL_TRY(keep_image(r, &image));
    compare(r, step, &report, image);
    r->step = step->step;
    r->totals.steps++;
    return replay_index_find(&r->index, step->step)->target ? replay_slabs_keep(r, &r->sound)
                                                            : RL_OK;
}

static rl_status make_step(struct replay *r, const struct event_step *step)
{
    const struct replay_step *entry = replay_index_find(&r->index, step->step);
    bool equal = false;
    if (r->fresh) {
        RL_TRY(begin_part(r));
    }
    if (r->difference.found) {
        return RL_OK;
    }
    struct trajectory_group **groups = calloc(step->group_count + 1, sizeof(*groups));
    if (groups == NULL || entry == NULL) {
        free(groups);
        return rl_fail(RL_NO_MEMORY, "replay: out of memory for a step");
    }
    replay_images_drop(&r->images,
                       entry->keep_from < r->options.keep ? entry->keep_from : r->options.keep);
    rl_status status = replay_groups_make(r, step, groups, &equal);
    if (status == RL_OK && equal) {
        status = train(r, step, groups);
    }
    for (uint32_t i = 0; i < step->group_count; i++) {
        trajectory_group_destroy(groups[i]);
    }
    free(groups);
    return status;
}

static rl_status act(struct replay *r, const struct event *event)
{
    switch (event->kind) {
    case EVENT_START:
        return note_start(r, &event->start);
    case EVENT_STEP:
        if (event->step.step > r->options.from) {
            return make_step(r, &event->step);
        }
        r->passed = event->step.step;
        return RL_OK;
    case EVENT_ROLLBACK:
        r->rollback = event->rollback;
        return RL_OK;
    default:
        return RL_OK;
    }
}

/* --- the whole
 * --------------------------------------------------------------------------------------- */

rl_status replay_open(const struct replay_options *options, struct replay *r)
{
    char path[CHECKPOINT_PATH_MAX];
    *r = (struct replay){.options = *options, .segments = {.run_dir = options->run_dir}};
    RL_TRY(replay_index_read(options->run_dir, options->until, &r->index));
    if (options->from > 0 && replay_index_find(&r->index, options->from) == NULL) {
        return rl_fail(RL_NOT_FOUND, "replay: there is no step %" PRIu64 " to begin behind",
                       options->from);
    }
    RL_TRY(collective_local_create(&r->alone));
    snprintf(path, sizeof(path), "%s/events.bin", options->run_dir);
    return event_file_open(path, &r->file);
}

static rl_status follow(struct replay *r, uint64_t last, struct progress_bar *bar)
{
    struct event event = {0};
    while (!r->difference.found && (r->start.config == NULL || r->step < last) &&
           (r->start.config == NULL || r->passed < last)) {
        RL_TRY(event_file_next(r->file, &event));
        rl_status status = act(r, &event);
        event_fini(&event);
        RL_TRY(status);
        if (bar != NULL) {
            progress_bar_update(bar, (double)r->totals.steps, NULL);
        }
    }
    return r->open || r->difference.found ? RL_OK : begin_part(r);
}

rl_status replay_advance(struct replay *r, uint64_t last)
{
    double steps = last > r->options.from ? (double)(last - r->options.from) : 1;
    struct progress_bar bar = progress_bar_start(stderr, "replay", "steps", steps);
    rl_status status = follow(r, last, r->options.quiet ? NULL : &bar);
    if (!r->options.quiet) {
        progress_bar_finish(&bar);
    }
    return status;
}

void replay_close(struct replay *r)
{
    replay_part_close(r);
    rl_config_fini(&r->config);
    replay_images_drop(&r->images, UINT32_MAX);
    for (size_t i = 0; i < r->images.count; i++) {
        device_free(r->images.items[i].image);
    }
    free(r->images.items);
    replay_slabs_fini(&r->sound);
    collective_destroy(r->alone);
    event_file_close(r->file);
    replay_segments_fini(&r->segments);
    replay_index_fini(&r->index);
    free((char *)(uintptr_t)r->start.config);
    *r = (struct replay){0};
}
