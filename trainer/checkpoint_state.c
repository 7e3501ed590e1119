/* The learner's state in an HDF5 file. Owns the names and types of what lies there. */
#include "trainer/checkpoint_state.h"

#include "core/log.h"
#include "core/text.h"
#include "transport/h5_file.h"
#include "transport/segment_file.h"

#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    STATE_FORMAT = 2,
    STATE_MOMENT_LEVEL = 1, /* zstd: moments hardly shrink, so do not spend time on them */
    STATE_TEXT_LEVEL = 3,
    STATE_IMAGES_MAX = 4096
};
#define STATE_BLOB_MAX (UINT64_C(1) << 30)
#define STATE_IMAGE_MAX (UINT64_C(1) << 42)

/* Numbers of struct checkpoint_state, each an attribute. */
static const struct {
    const char *name;
    size_t offset;
} state_integers[] = {
    {"step", offsetof(struct checkpoint_state, step)},
    {"version", offsetof(struct checkpoint_state, version)},
    {"updates", offsetof(struct checkpoint_state, updates)},
    {"seed", offsetof(struct checkpoint_state, seed)},
    {"segment", offsetof(struct checkpoint_state, segment)},
    {"tokens_trained", offsetof(struct checkpoint_state, tokens_trained)},
    {"tokens_generated", offsetof(struct checkpoint_state, tokens_generated)},
    {"samples_trained", offsetof(struct checkpoint_state, samples_trained)},
};
enum { STATE_INTEGERS = sizeof state_integers / sizeof state_integers[0] };

static rl_status write_numbers(struct h5_file *file, const struct checkpoint_state *state,
                               int64_t count, bool moments)
{
    RL_TRY(h5_file_write_u64(file, "format", STATE_FORMAT));
    RL_TRY(h5_file_write_u64(file, "master_count", (uint64_t)count));
    RL_TRY(h5_file_write_u64(file, "moments", moments ? 1 : 0));
    for (size_t i = 0; i < STATE_INTEGERS; i++) {
        uint64_t value = 0;
        memcpy(&value, (const unsigned char *)state + state_integers[i].offset, sizeof value);
        RL_TRY(h5_file_write_u64(file, state_integers[i].name, value));
    }
    RL_TRY(h5_file_write_f64(file, "elapsed_s", state->elapsed_s));
    return h5_file_write_f64(file, "cpu_s", state->cpu_s);
}

static rl_status write_images(struct h5_file *file, const struct checkpoint_state *state)
{
    char name[32];
    RL_TRY(h5_file_write_u64(file, "images", state->image_count));
    for (size_t i = 0; i < state->image_count; i++) {
        snprintf(name, sizeof name, "images/%zu", i);
        RL_TRY(h5_file_write(file, name, H5_U8, state->images[i].data, state->images[i].bytes, 0));
    }
    return RL_OK;
}

static const char *const moment_names[2] = {"optimizer/m", "optimizer/v"};

struct moment_source {
    struct optimizer *optimizer;
    int slab;
};

static rl_status fetch_moments(void *arg, uint64_t first, uint64_t count, void *data)
{
    const struct moment_source *source = arg;
    return optimizer_fetch(source->optimizer, &(struct optimizer_window){.slab = source->slab,
                                                                         .first = (int64_t)first,
                                                                         .count = (int64_t)count,
                                                                         .out = data});
}

static rl_status write_moments(struct h5_file *file, const struct checkpoint_slabs *slabs,
                               int64_t count)
{
    const float *here[2] = {slabs->adam_m, slabs->adam_v};
    for (int i = 0; i < 2; i++) {
        struct moment_source shared = {slabs->shared, i};
        struct h5_source source = {
            .type = H5_F32, .count = (uint64_t)count, .read = fetch_moments, .arg = &shared};
        RL_TRY(slabs->shared != NULL
                   ? h5_file_write_from(file, moment_names[i], &source, STATE_MOMENT_LEVEL)
                   : h5_file_write(file, moment_names[i], H5_F32, here[i], (uint64_t)count,
                                   STATE_MOMENT_LEVEL));
    }
    return RL_OK;
}

static rl_status write_all(struct h5_file *file, const struct checkpoint_state *state,
                           const struct checkpoint_slabs *slabs, int64_t count)
{
    bool moments = slabs->shared != NULL || (slabs->adam_m != NULL && slabs->adam_v != NULL);
    const char *config = state->config_text != NULL ? state->config_text : "";
    RL_TRY(write_numbers(file, state, count, moments));
    if (moments) {
        RL_TRY(write_moments(file, slabs, count));
    }
    if (slabs->teacher != NULL) {
        RL_TRY(h5_file_write(file, "teacher/average", H5_F32, slabs->teacher, (uint64_t)count,
                             STATE_MOMENT_LEVEL));
    }
    RL_TRY(h5_file_write(file, "dispatcher", H5_U8, state->dispatcher, state->dispatcher_bytes,
                         STATE_TEXT_LEVEL));
    RL_TRY(h5_file_write(file, "learner", H5_U8, state->learner, state->learner_bytes,
                         STATE_TEXT_LEVEL));
    RL_TRY(h5_file_write(file, "config", H5_U8, config, strlen(config), STATE_TEXT_LEVEL));
    RL_TRY(write_images(file, state));
    RL_TRY(segment_groups_write(file, "pending/",
                                (const struct trajectory_group *const *)state->pending,
                                state->pending_count));
    return segment_groups_write(file, "partial/",
                                (const struct trajectory_group *const *)state->partial,
                                state->partial_count);
}

rl_status checkpoint_state_write(const char *path, const struct checkpoint_state *state,
                                 const struct checkpoint_slabs *slabs, int64_t count)
{
    struct h5_file *file = NULL;
    RL_TRY(h5_file_create(path, &file));
    rl_status status = write_all(file, state, slabs, count);
    if (status != RL_OK) {
        h5_file_abort(file);
        return status;
    }
    return h5_file_commit(file);
}

static rl_status read_numbers(struct h5_file *file, const char *path, int64_t count,
                              struct checkpoint_state *state, bool *moments)
{
    uint64_t format = 0;
    uint64_t found = 0;
    uint64_t with_moments = 0;
    RL_TRY(h5_file_read_u64(file, "format", &format));
    RL_TRY(h5_file_read_u64(file, "master_count", &found));
    RL_TRY(h5_file_read_u64(file, "moments", &with_moments));
    if (format != STATE_FORMAT) {
        return rl_fail(RL_CORRUPT, "%s: format %" PRIu64 ", expected %d", path, format,
                       STATE_FORMAT);
    }
    if (found != (uint64_t)count) {
        return rl_fail(RL_INVALID,
                       "%s: state of a model of %" PRIu64 " floats, this one has %" PRId64, path,
                       found, count);
    }
    for (size_t i = 0; i < STATE_INTEGERS; i++) {
        uint64_t value = 0;
        RL_TRY(h5_file_read_u64(file, state_integers[i].name, &value));
        memcpy((unsigned char *)state + state_integers[i].offset, &value, sizeof value);
    }
    RL_TRY(h5_file_read_f64(file, "elapsed_s", &state->elapsed_s));
    *moments = with_moments != 0;
    return h5_file_read_f64(file, "cpu_s", &state->cpu_s);
}

static rl_status read_moments(struct h5_file *file, const char *path,
                              const struct checkpoint_moments *moments, int64_t count)
{
    float *const slabs[2] = {moments->m, moments->v};
    for (int i = 0; i < 2; i++) {
        uint64_t found = 0;
        RL_TRY(h5_file_count(file, moment_names[i], H5_F32, &found));
        if (found != (uint64_t)count) {
            return rl_fail(RL_CORRUPT, "%s: %s: %" PRIu64 " elements, expected %" PRId64, path,
                           moment_names[i], found, count);
        }
        RL_TRY(h5_file_read_part(file, moment_names[i], H5_F32, slabs[i], (uint64_t)moments->first,
                                 (uint64_t)moments->count));
    }
    return RL_OK;
}

static rl_status read_images(struct h5_file *file, const char *path, struct checkpoint_state *state)
{
    uint64_t count = 0;
    RL_TRY(h5_file_read_u64(file, "images", &count));
    if (count > STATE_IMAGES_MAX) {
        return rl_fail(RL_CORRUPT, "%s: %" PRIu64 " older weight versions, at most %d are kept",
                       path, count, STATE_IMAGES_MAX);
    }
    state->images = calloc((size_t)count + 1, sizeof *state->images);
    if (state->images == NULL) {
        return rl_fail(RL_NO_MEMORY, "no memory for the older weights of a checkpoint");
    }
    for (uint64_t i = 0; i < count; i++) {
        char name[32];
        uint64_t bytes = 0;
        snprintf(name, sizeof name, "images/%" PRIu64, i);
        RL_TRY(
            h5_file_read_new(file, name, H5_U8, STATE_IMAGE_MAX, &state->images[i].data, &bytes));
        state->images[i].bytes = (size_t)bytes;
        state->image_count++;
    }
    return RL_OK;
}

static rl_status read_blobs(struct h5_file *file, struct checkpoint_state *state)
{
    uint64_t bytes = 0;
    RL_TRY(h5_file_read_new(file, "dispatcher", H5_U8, STATE_BLOB_MAX, &state->dispatcher, &bytes));
    state->dispatcher_bytes = (size_t)bytes;
    RL_TRY(h5_file_read_new(file, "learner", H5_U8, STATE_BLOB_MAX, &state->learner, &bytes));
    state->learner_bytes = (size_t)bytes;
    void *config = NULL;
    RL_TRY(h5_file_read_new(file, "config", H5_U8, STATE_BLOB_MAX, &config, &bytes));
    state->config_text = malloc((size_t)bytes + 1);
    if (state->config_text == NULL) {
        free(config);
        return rl_fail(RL_NO_MEMORY, "no memory for the configuration of a checkpoint");
    }
    memcpy(state->config_text, config, (size_t)bytes);
    state->config_text[bytes] = '\0';
    free(config);
    RL_TRY(segment_groups_read(file, "pending/", &state->pending, &state->pending_count));
    return segment_groups_read(file, "partial/", &state->partial, &state->partial_count);
}

rl_status checkpoint_state_read(const char *path, int64_t count,
                                const struct checkpoint_moments *moments,
                                struct checkpoint_state *out)
{
    struct h5_file *file = NULL;
    RL_TRY(h5_file_open(path, &file));
    struct checkpoint_state state = {0};
    bool present = false;
    rl_status status = read_numbers(file, path, count, &state, &present);
    if (status == RL_OK && moments != NULL) {
        status = present ? read_moments(file, path, moments, count)
                         : rl_fail(RL_INVALID, "%s: holds no optimizer moments", path);
    }
    if (status == RL_OK) {
        status = read_blobs(file, &state);
    }
    if (status == RL_OK) {
        status = read_images(file, path, &state);
    }
    h5_file_close(file);
    if (status != RL_OK) {
        checkpoint_state_fini(&state);
        return status == RL_NOT_FOUND ? RL_CORRUPT : status;
    }
    *out = state;
    return RL_OK;
}

rl_status checkpoint_state_read_teacher(const char *path, int64_t count, float *teacher)
{
    struct h5_file *file = NULL;
    RL_TRY(h5_file_open(path, &file));
    rl_status status = h5_file_read(file, "teacher/average", H5_F32, teacher, (uint64_t)count);
    h5_file_close(file);
    return status != RL_NOT_FOUND
               ? status
               : rl_fail(RL_INVALID,
                         "%s: holds no moving average for a teacher: the run was made without "
                         "teacher.policy ema",
                         path);
}
