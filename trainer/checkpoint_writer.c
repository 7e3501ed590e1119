/* The background writer. Owns one snapshot and one thread. Invariant: the snapshot is touched by
 * the submitting thread only while `busy` is false, and by the writer only while it is true. */
#include "trainer/checkpoint_writer.h"

#include "core/clock.h"
#include "core/log.h"
#include "core/text.h"
#include "core/wait.h"
#include "transport/segment_file.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct checkpoint_writer {
    const struct checkpoint_target *target;
    size_t reserve_bytes;
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    /* Guarded by mutex. */
    bool busy;
    bool stopping;
    rl_status status; /* of the last save, until it has been reported */
    double stall_s, save_s;
    /* The snapshot. */
    struct checkpoint_state state; /* owned copies */
    float *slab; /* [3 * master_count], or 4 with a teacher's; kept between saves; NULL: none yet */
    bool teacher; /* the fourth is there */
};

static void snapshot_clear(struct checkpoint_writer *writer)
{
    checkpoint_state_fini(&writer->state);
}

static bool writer_has_work(void *arg)
{
    const struct checkpoint_writer *writer = arg;
    return writer->busy || writer->stopping;
}

static void writer_save(struct checkpoint_writer *writer)
{
    size_t count = (size_t)writer->target->layout->master_count;
    struct checkpoint_slabs slabs = {
        .master = writer->slab, .adam_m = writer->slab + count, .adam_v = writer->slab + 2 * count};
    slabs.teacher = writer->teacher ? writer->slab + 3 * count : NULL;
    double started_s = rl_clock_now_s(NULL);
    rl_status status = checkpoint_save(writer->target, &writer->state, &slabs, NULL);
    snapshot_clear(writer);
    pthread_mutex_lock(&writer->mutex);
    writer->save_s = rl_clock_now_s(NULL) - started_s;
    writer->status = status;
    writer->busy = false;
    pthread_cond_broadcast(&writer->changed);
    pthread_mutex_unlock(&writer->mutex);
}

static void *writer_main(void *arg)
{
    struct checkpoint_writer *writer = arg;
    struct rl_wait_signal signal = {
        .cond = &writer->changed, .mutex = &writer->mutex, .done = writer_has_work, .arg = writer};
    for (;;) {
        pthread_mutex_lock(&writer->mutex);
        rl_wait_signal_poll(NULL, "checkpoint writer: idle", &signal, -1.0);
        bool busy = writer->busy;
        pthread_mutex_unlock(&writer->mutex);
        if (!busy) {
            return NULL;
        }
        writer_save(writer);
    }
}

static rl_status writer_init(struct checkpoint_writer *writer)
{
    RL_TRY(rl_wait_cond_init(&writer->changed));
    if (pthread_mutex_init(&writer->mutex, NULL) != 0) {
        pthread_cond_destroy(&writer->changed);
        return rl_fail(RL_INTERNAL, "cannot make the checkpoint writer's lock");
    }
    if (pthread_create(&writer->thread, NULL, writer_main, writer) != 0) {
        pthread_mutex_destroy(&writer->mutex);
        pthread_cond_destroy(&writer->changed);
        return rl_fail(RL_INTERNAL, "cannot start the checkpoint writer");
    }
    return RL_OK;
}

rl_status checkpoint_writer_start(const struct checkpoint_target *target, size_t reserve_bytes,
                                  struct checkpoint_writer **out)
{
    struct checkpoint_writer *writer = calloc(1, sizeof *writer);
    if (writer == NULL) {
        return rl_fail(RL_NO_MEMORY, "no memory for the checkpoint writer");
    }
    writer->target = target;
    writer->reserve_bytes = reserve_bytes;
    rl_status status = writer_init(writer);
    if (status != RL_OK) {
        free(writer);
        return status;
    }
    *out = writer;
    return RL_OK;
}

size_t checkpoint_writer_reserve(void)
{
    return (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE) / 2;
}

/* Bytes that the machine could still give; 0 if it does not say. */
static size_t memory_available(void)
{
    FILE *file = fopen("/proc/meminfo", "re");
    unsigned long long kib = 0;
    char line[256];
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1) {
            break;
        }
    }
    if (file != NULL) {
        fclose(file);
    }
    return (size_t)kib * 1024;
}

/* Memory for the slabs, if there is enough of it; kept from the first save on. */
static bool snapshot_has_room(struct checkpoint_writer *writer, bool teacher)
{
    if (writer->slab != NULL) {
        return writer->teacher == teacher;
    }
    writer->teacher = teacher;
    size_t bytes = (teacher ? 4 : 3) * (size_t)writer->target->layout->master_count * sizeof(float);
    if (memory_available() < bytes + writer->reserve_bytes) {
        return false;
    }
    writer->slab = malloc(bytes);
    return writer->slab != NULL;
}

static rl_status copy_bytes(const void *from, size_t bytes, void **to)
{
    if (bytes == 0) {
        return RL_OK;
    }
    *to = malloc(bytes);
    if (*to == NULL) {
        return rl_fail(RL_NO_MEMORY, "no memory for a checkpoint's snapshot");
    }
    memcpy(*to, from, bytes);
    return RL_OK;
}

static rl_status copy_groups(struct trajectory_group *const *from, size_t count,
                             struct trajectory_group ***to, size_t *to_count)
{
    *to_count = 0;
    *to = calloc(count + 1, sizeof **to);
    if (*to == NULL) {
        return rl_fail(RL_NO_MEMORY, "no memory for a checkpoint's snapshot");
    }
    for (size_t i = 0; i < count; i++) {
        RL_TRY(trajectory_group_copy(from[i], &(*to)[i]));
        (*to_count)++;
    }
    return RL_OK;
}

static rl_status copy_images(const struct checkpoint_state *from, struct checkpoint_state *to)
{
    to->images = calloc(from->image_count + 1, sizeof *to->images);
    if (to->images == NULL) {
        return rl_fail(RL_NO_MEMORY, "no memory for a checkpoint's snapshot");
    }
    for (size_t i = 0; i < from->image_count; i++) {
        const struct checkpoint_blob *image = &from->images[i];
        RL_TRY(copy_bytes(image->data, image->bytes, &to->images[i].data));
        to->images[i].bytes = image->bytes;
        to->image_count++;
    }
    return RL_OK;
}

static rl_status copy_state(const struct checkpoint_state *from, struct checkpoint_state *to)
{
    *to = *from;
    to->dispatcher = NULL;
    to->learner = NULL;
    to->pending = NULL;
    to->partial = NULL;
    to->images = NULL;
    to->pending_count = to->partial_count = to->image_count = 0;
    to->config_text = NULL;
    RL_TRY(copy_bytes(from->dispatcher, from->dispatcher_bytes, &to->dispatcher));
    RL_TRY(copy_bytes(from->learner, from->learner_bytes, &to->learner));
    if (from->config_text != NULL) {
        RL_TRY(rl_text_copy(from->config_text, &to->config_text));
    }
    RL_TRY(copy_groups(from->pending, from->pending_count, &to->pending, &to->pending_count));
    RL_TRY(copy_groups(from->partial, from->partial_count, &to->partial, &to->partial_count));
    return copy_images(from, to);
}

static rl_status copy_moments(const struct checkpoint_slabs *slabs, int64_t count, float *out)
{
    const float *here[2] = {slabs->adam_m, slabs->adam_v};
    for (int i = 0; i < 2; i++) {
        float *copy = out + i * count;
        if (slabs->shared == NULL) {
            memcpy(copy, here[i], (size_t)count * sizeof(float));
            continue;
        }
        RL_TRY(optimizer_fetch(slabs->shared,
                               &(struct optimizer_window){.slab = i, .count = count, .out = copy}));
    }
    return RL_OK;
}

static rl_status copy_slabs(struct checkpoint_writer *writer, const struct checkpoint_slabs *slabs)
{
    size_t count = (size_t)writer->target->layout->master_count;
    memcpy(writer->slab, slabs->master, count * sizeof(float));
    if (writer->teacher) {
        memcpy(writer->slab + 3 * count, slabs->teacher, count * sizeof(float));
    }
    return copy_moments(slabs, (int64_t)count, writer->slab + count);
}

static rl_status submit_copy(struct checkpoint_writer *writer, const struct checkpoint_state *state,
                             const struct checkpoint_slabs *slabs)
{
    rl_status status = copy_state(state, &writer->state);
    if (status == RL_OK) {
        status = copy_slabs(writer, slabs);
    }
    if (status != RL_OK) {
        snapshot_clear(writer);
        return status;
    }
    pthread_mutex_lock(&writer->mutex);
    writer->busy = true;
    pthread_cond_broadcast(&writer->changed);
    pthread_mutex_unlock(&writer->mutex);
    return RL_OK;
}

rl_status checkpoint_writer_submit(struct checkpoint_writer *writer,
                                   const struct checkpoint_state *state,
                                   const struct checkpoint_slabs *slabs)
{
    double started_s = rl_clock_now_s(NULL);
    bool moments = slabs->shared != NULL || (slabs->adam_m != NULL && slabs->adam_v != NULL);
    RL_TRY(checkpoint_writer_wait(writer, 0));
    bool copied = moments && snapshot_has_room(writer, slabs->teacher != NULL);
    rl_status status = copied ? submit_copy(writer, state, slabs)
                              : checkpoint_save(writer->target, state, slabs, NULL);
    pthread_mutex_lock(&writer->mutex);
    writer->stall_s = rl_clock_now_s(NULL) - started_s;
    writer->save_s = copied ? writer->save_s : writer->stall_s;
    pthread_mutex_unlock(&writer->mutex);
    return status;
}

static bool writer_is_idle(void *arg)
{
    return !((const struct checkpoint_writer *)arg)->busy;
}

rl_status checkpoint_writer_wait(struct checkpoint_writer *writer, double timeout_s)
{
    struct rl_wait_signal signal = {
        .cond = &writer->changed, .mutex = &writer->mutex, .done = writer_is_idle, .arg = writer};
    pthread_mutex_lock(&writer->mutex);
    rl_status status = rl_wait_signal(NULL, "learner waits for a checkpoint to be written", &signal,
                                      timeout_s > 0.0 ? timeout_s : -1.0);
    if (status == RL_OK) {
        status = writer->status;
        writer->status = RL_OK;
    }
    pthread_mutex_unlock(&writer->mutex);
    return status;
}

void checkpoint_writer_times(struct checkpoint_writer *writer, double *stall_s, double *save_s)
{
    pthread_mutex_lock(&writer->mutex);
    *stall_s = writer->stall_s;
    *save_s = writer->save_s;
    pthread_mutex_unlock(&writer->mutex);
}

void checkpoint_writer_stop(struct checkpoint_writer *writer)
{
    if (writer == NULL) {
        return;
    }
    pthread_mutex_lock(&writer->mutex);
    writer->stopping = true;
    pthread_cond_broadcast(&writer->changed);
    pthread_mutex_unlock(&writer->mutex);
    pthread_join(writer->thread, NULL);
    snapshot_clear(writer);
    pthread_cond_destroy(&writer->changed);
    pthread_mutex_destroy(&writer->mutex);
    free(writer->slab);
    free(writer);
}
