/* Checkpoint folders: making, committing, finding, pruning. Invariant: a folder named step_N has
 * been complete since it got that name; everything unfinished is named ".step_N.tmp.PID", and what
 * such folders a dead process left is removed by the next save. */
#include "trainer/checkpoint.h"

#include "core/log.h"
#include "trainer/checkpoint_manifest.h"
#include "trainer/checkpoint_state.h"
#include "transport/segment_file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define CHECKPOINT_TEMPORARY ".step_"
#define CHECKPOINT_PREFIX "step_"

static rl_status path_format(char *out, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static rl_status path_format(char *out, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int length = vsnprintf(out, CHECKPOINT_PATH_MAX, format, args);
    va_end(args);
    if (length < 0 || length >= CHECKPOINT_PATH_MAX) {
        return rl_fail(RL_TOO_LONG, "a checkpoint's path is longer than %d bytes",
                       CHECKPOINT_PATH_MAX);
    }
    return RL_OK;
}

static rl_status folder_make(const char *path, bool may_exist)
{
    if (mkdir(path, 0777) != 0 && !(may_exist && errno == EEXIST)) {
        return rl_fail(RL_IO, "%s: cannot make the folder: %s", path, strerror(errno));
    }
    return RL_OK;
}

static rl_status folder_sync(const char *path)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) != 0) {
        int error = errno;
        if (fd >= 0) {
            close(fd);
        }
        return rl_fail(RL_IO, "%s: cannot flush the folder: %s", path, strerror(error));
    }
    close(fd);
    return RL_OK;
}

/* Remove a folder of plain files. What cannot be removed is said once, and is no error: it harms
 * nobody, and the next save tries again. */
static void folder_remove(const char *path)
{
    DIR *list = opendir(path);
    if (list == NULL) {
        return;
    }
    for (struct dirent *entry = readdir(list); entry != NULL; entry = readdir(list)) {
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) {
            unlinkat(dirfd(list), entry->d_name, 0);
        }
    }
    closedir(list);
    if (rmdir(path) != 0) {
        rl_log(RL_LOG_WARN, "%s: cannot remove it: %s", path, strerror(errno));
    }
}

/* A committed name goes first, so that a removal that is broken off leaves no half checkpoint under
 * it. */
static void checkpoint_remove(const char *folder, uint64_t step)
{
    char path[CHECKPOINT_PATH_MAX];
    char doomed[CHECKPOINT_PATH_MAX];
    if (path_format(path, "%s/step_%06" PRIu64, folder, step) != RL_OK ||
        path_format(doomed, "%s/.step_%06" PRIu64 ".tmp.old", folder, step) != RL_OK) {
        return;
    }
    if (rename(path, doomed) != 0) {
        rl_log(RL_LOG_WARN, "%s: cannot remove it: %s", path, strerror(errno));
        return;
    }
    folder_remove(doomed);
}

/* Step in "step_000100"; false for other names. */
static bool name_step(const char *name, uint64_t *step)
{
    size_t prefix = strlen(CHECKPOINT_PREFIX);
    if (strncmp(name, CHECKPOINT_PREFIX, prefix) != 0 || name[prefix] < '0' || name[prefix] > '9') {
        return false;
    }
    char *end = NULL;
    errno = 0;
    unsigned long long number = strtoull(name + prefix, &end, 10);
    if (errno != 0 || *end != '\0') {
        return false;
    }
    *step = number;
    return true;
}

static int newest_first(const void *a, const void *b)
{
    uint64_t left = *(const uint64_t *)a;
    uint64_t right = *(const uint64_t *)b;
    return left < right ? 1 : left > right ? -1 : 0;
}

/* Steps of the folders in `folder`, newest first. Caller frees *steps. A missing folder has none.
 */
static rl_status steps_list(const char *folder, uint64_t **steps, size_t *count)
{
    DIR *list = opendir(folder);
    if (list == NULL && errno != ENOENT) {
        return rl_fail(RL_IO, "%s: cannot read the folder: %s", folder, strerror(errno));
    }
    uint64_t *found = NULL;
    size_t used = 0;
    size_t room = 0;
    for (struct dirent *entry = list != NULL ? readdir(list) : NULL; entry != NULL;
         entry = readdir(list)) {
        uint64_t step = 0;
        if (!name_step(entry->d_name, &step)) {
            continue;
        }
        if (used == room) {
            room = room * 2 + 16;
            uint64_t *grown = realloc(found, room * sizeof *grown);
            if (grown == NULL) {
                free(found);
                closedir(list);
                return rl_fail(RL_NO_MEMORY, "%s: no memory to list it", folder);
            }
            found = grown;
        }
        found[used++] = step;
    }
    if (list != NULL) {
        closedir(list);
    }
    if (used > 0) {
        qsort(found, used, sizeof *found, newest_first);
    }
    *steps = found;
    *count = used;
    return RL_OK;
}

/* One process writes a run's checkpoints, so whatever is unfinished now was broken off. */
static void leftovers_remove(const char *folder)
{
    DIR *list = opendir(folder);
    for (struct dirent *entry = list != NULL ? readdir(list) : NULL; entry != NULL;
         entry = readdir(list)) {
        char path[CHECKPOINT_PATH_MAX];
        if (strncmp(entry->d_name, CHECKPOINT_TEMPORARY, strlen(CHECKPOINT_TEMPORARY)) == 0 &&
            path_format(path, "%s/%s", folder, entry->d_name) == RL_OK) {
            rl_log(RL_LOG_INFO, "%s: removing what an interrupted save left", path);
            folder_remove(path);
        }
    }
    if (list != NULL) {
        closedir(list);
    }
}

static void checkpoints_prune(const struct checkpoint_target *target, const char *folder)
{
    uint64_t *steps = NULL;
    size_t count = 0;
    if (steps_list(folder, &steps, &count) != RL_OK) {
        return;
    }
    for (size_t i = (size_t)target->keep_last; i < count; i++) {
        bool forever = target->keep_every > 0 && steps[i] % (uint64_t)target->keep_every == 0;
        if (!forever) {
            checkpoint_remove(folder, steps[i]);
        }
    }
    free(steps);
}

/* All files, the manifest last. */
static rl_status save_files(const struct checkpoint_target *target,
                            const struct checkpoint_state *state,
                            const struct checkpoint_slabs *slabs, const char *dir)
{
    char path[CHECKPOINT_PATH_MAX];
    RL_TRY(model_params_save(target->layout, slabs->master, KERNEL_FP32, dir));
    if (target->tokenizer != NULL) {
        RL_TRY(tokenizer_copy_files(target->tokenizer, dir));
    }
    RL_TRY(path_format(path, "%s/state.h5", dir));
    RL_TRY(checkpoint_state_write(path, state, slabs, target->layout->master_count));
    RL_TRY(checkpoint_manifest_write(dir, state->step, state->version));
    return folder_sync(dir);
}

static rl_status save_commit(const char *temporary, const char *path, const char *folder)
{
    if (rename(temporary, path) != 0) {
        return rl_fail(RL_IO, "%s: cannot give the finished checkpoint its name: %s", path,
                       strerror(errno));
    }
    return folder_sync(folder);
}

/* True if this step is committed and sound; an unsound one makes room. */
static bool save_is_done(const char *folder, const char *path, uint64_t step)
{
    struct stat info;
    if (stat(path, &info) != 0) {
        return false;
    }
    if (checkpoint_verify(path, NULL) == RL_OK) {
        return true;
    }
    checkpoint_remove(folder, step);
    return false;
}

static rl_status save_new(const struct checkpoint_target *target,
                          const struct checkpoint_state *state,
                          const struct checkpoint_slabs *slabs, const char *folder,
                          const char *path)
{
    char temporary[CHECKPOINT_PATH_MAX];
    RL_TRY(path_format(temporary, "%s/" CHECKPOINT_TEMPORARY "%06" PRIu64 ".tmp.%ld", folder,
                       state->step, (long)getpid()));
    leftovers_remove(folder);
    RL_TRY(folder_make(temporary, false));
    rl_status status = save_files(target, state, slabs, temporary);
    if (status == RL_OK) {
        status = save_commit(temporary, path, folder);
    }
    if (status != RL_OK) {
        folder_remove(temporary);
        return status;
    }
    checkpoints_prune(target, folder);
    return RL_OK;
}

rl_status checkpoint_save(const struct checkpoint_target *target,
                          const struct checkpoint_state *state,
                          const struct checkpoint_slabs *slabs, char *path_out)
{
    char folder[CHECKPOINT_PATH_MAX];
    char path[CHECKPOINT_PATH_MAX];
    if (target->keep_last < 1 || target->keep_every < 0) {
        return rl_fail(RL_INVALID, "checkpoints: keep_last %lld, keep_every %lld",
                       (long long)target->keep_last, (long long)target->keep_every);
    }
    RL_TRY(path_format(folder, "%s/checkpoints", target->run_dir));
    RL_TRY(path_format(path, "%s/step_%06" PRIu64, folder, state->step));
    RL_TRY(folder_make(folder, true));
    if (!save_is_done(folder, path, state->step)) {
        RL_TRY(save_new(target, state, slabs, folder, path));
    }
    if (path_out != NULL) {
        memcpy(path_out, path, strlen(path) + 1);
    }
    return RL_OK;
}

rl_status checkpoint_verify(const char *path, uint64_t *step)
{
    uint64_t found = 0;
    uint64_t named = 0;
    rl_status status = checkpoint_manifest_verify(path, &found);
    if (status != RL_OK) {
        return status == RL_NOT_FOUND ? RL_CORRUPT : status;
    }
    const char *slash = strrchr(path, '/');
    if (name_step(slash != NULL ? slash + 1 : path, &named) && named != found) {
        return rl_fail(RL_CORRUPT, "%s: its manifest is that of step %" PRIu64, path, found);
    }
    if (step != NULL) {
        *step = found;
    }
    return RL_OK;
}

rl_status checkpoint_find_newest(const char *run_dir, char *path)
{
    return checkpoint_find_before(run_dir, UINT64_MAX, path);
}

rl_status checkpoint_find_before(const char *run_dir, uint64_t step, char *path)
{
    char folder[CHECKPOINT_PATH_MAX];
    char candidate[CHECKPOINT_PATH_MAX];
    uint64_t *steps = NULL;
    size_t count = 0;
    RL_TRY(path_format(folder, "%s/checkpoints", run_dir));
    RL_TRY(steps_list(folder, &steps, &count));
    rl_status status = RL_NOT_FOUND;
    size_t later = 0; /* newest first */
    while (later < count && steps[later] >= step) {
        later++;
    }
    for (size_t i = later; i < count && status != RL_OK; i++) {
        status = path_format(candidate, "%s/step_%06" PRIu64, folder, steps[i]);
        if (status == RL_OK) {
            status = checkpoint_verify(candidate, NULL);
        }
        if (status != RL_OK) {
            rl_log(RL_LOG_WARN, "checkpoint of step %" PRIu64 " skipped: %s", steps[i],
                   rl_log_last_error());
        }
    }
    free(steps);
    if (status == RL_OK) {
        memcpy(path, candidate, strlen(candidate) + 1);
        return RL_OK;
    }
    return count == later ? RL_NOT_FOUND
                          : rl_fail(RL_NOT_FOUND, "%s: none of %zu checkpoints is sound", folder,
                                    count - later);
}

struct checkpoint_moments checkpoint_moments_of(struct optimizer_state *optimizer)
{
    return (struct checkpoint_moments){
        .m = optimizer->m, .v = optimizer->v, .first = optimizer->first, .count = optimizer->count};
}

rl_status checkpoint_load(const char *path, const struct model_layout *layout, float *master,
                          const struct checkpoint_moments *moments, struct checkpoint_state *out)
{
    char state_path[CHECKPOINT_PATH_MAX];
    struct checkpoint_state state = {0};
    RL_TRY(path_format(state_path, "%s/state.h5", path));
    RL_TRY(checkpoint_state_read(state_path, layout->master_count, moments, &state));
    if (master != NULL) {
        rl_status status = model_params_load(layout, path, master, NULL);
        if (status != RL_OK) {
            checkpoint_state_fini(&state);
            return status;
        }
    }
    *out = state;
    return RL_OK;
}

rl_status checkpoint_load_teacher(const char *path, const struct model_layout *layout,
                                  float *teacher)
{
    char state_path[CHECKPOINT_PATH_MAX];
    if (teacher == NULL) {
        return RL_OK;
    }
    RL_TRY(path_format(state_path, "%s/state.h5", path));
    return checkpoint_state_read_teacher(state_path, layout->master_count, teacher);
}

void checkpoint_state_fini(struct checkpoint_state *state)
{
    free(state->dispatcher);
    free(state->learner);
    free(state->config_text);
    segment_groups_free(state->pending, state->pending_count);
    segment_groups_free(state->partial, state->partial_count);
    for (size_t i = 0; i < state->image_count; i++) {
        free(state->images[i].data);
    }
    free(state->images);
    memset(state, 0, sizeof *state);
}
