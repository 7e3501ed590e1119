/* HDF5 files. Owns the process-wide lock (fair: a long write gives way between slices), the
 * temporary name of a file being written, and all property settings. Invariant: HDF5 is called only
 * between h5_enter and h5_leave, and no object outlives the call that opened it but the file. */
#include "transport/h5_file.h"

#include "core/log.h"
#include "transport/h5_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    H5_CHUNK_BYTES = 1024 * 1024,
    H5_SLICE_BYTES = 8 * H5_CHUNK_BYTES, /* the lock is given up between slices */
    H5_NAMES_MAX = 1000,
    H5_GROUP_BYTES = 1024
};

/* HDF5's state is the process's, and so is its lock. Tickets keep it fair. */
static pthread_mutex_t h5_mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t h5_turn = PTHREAD_COND_INITIALIZER;
static uint64_t h5_next_ticket;
static uint64_t h5_serving;
static bool h5_ready; /* set up; this and the next are guarded by having the turn */
static hid_t h5_driver;

rl_status h5_enter(void)
{
    pthread_mutex_lock(&h5_mutex);
    uint64_t ticket = h5_next_ticket++;
    while (ticket != h5_serving) {
        pthread_cond_wait(&h5_turn, &h5_mutex);
    }
    pthread_mutex_unlock(&h5_mutex);
    if (!h5_ready) {
        RL_TRY(h5_filter_register());
        RL_TRY(h5_driver_register(&h5_driver));
        h5_ready = true;
    }
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL); /* per thread; its stack goes to our log instead */
    return RL_OK;
}

void h5_leave(void)
{
    pthread_mutex_lock(&h5_mutex);
    h5_serving++;
    pthread_cond_broadcast(&h5_turn);
    pthread_mutex_unlock(&h5_mutex);
}

/* What the driver has noted, if anything. */
static rl_status h5_written(const struct h5_file *file, const char *name)
{
    if (file->error == 0) {
        return RL_OK;
    }
    bool full = file->error == ENOSPC || file->error == EDQUOT || file->error == EFBIG;
    return rl_fail(RL_IO, "%s%s%s: cannot write: %s%s", file->path, name != NULL ? ": " : "",
                   name != NULL ? name : "", strerror(file->error),
                   full ? " (no room left; nothing of this file is kept)" : "");
}

/* The innermost message of HDF5's error stack. */
static herr_t error_note(unsigned depth, const H5E_error2_t *error, void *arg)
{
    char *text = arg;
    if (depth == 0 && error->desc != NULL) {
        snprintf(text, 256, "%s", error->desc);
    }
    return 0;
}

rl_status h5_fail(rl_status status, const struct h5_file *file, const char *name, const char *what)
{
    char text[256] = "no reason given";
    H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, error_note, text);
    H5Eclear2(H5E_DEFAULT);
    return rl_fail(status, "%s%s%s: %s: %s", file->path, name != NULL ? ": " : "",
                   name != NULL ? name : "", what, text);
}

size_t h5_type_bytes(enum h5_type type)
{
    switch (type) {
    case H5_I64:
    case H5_U64:
    case H5_F64:
        return 8;
    case H5_I32:
    case H5_U32:
    case H5_F32:
        return 4;
    case H5_U8:
        break;
    }
    return 1;
}

hid_t h5_type_id(enum h5_type type)
{
    switch (type) {
    case H5_I32:
        return H5T_STD_I32LE;
    case H5_U32:
        return H5T_STD_U32LE;
    case H5_I64:
        return H5T_STD_I64LE;
    case H5_U64:
        return H5T_STD_U64LE;
    case H5_F32:
        return H5T_IEEE_F32LE;
    case H5_F64:
        return H5T_IEEE_F64LE;
    case H5_U8:
        break;
    }
    return H5T_STD_U8LE;
}

static struct h5_file *file_alloc(const char *path)
{
    struct h5_file *file = calloc(1, sizeof *file);
    char *copy = strdup(path);
    if (file == NULL || copy == NULL) {
        free(file);
        free(copy);
        return NULL;
    }
    file->path = copy;
    file->id = H5I_INVALID_HID;
    file->fd = -1;
    return file;
}

static void file_free(struct h5_file *file)
{
    if (file->fd >= 0) {
        close(file->fd);
    }
    free(file->temporary);
    free(file->path);
    free(file);
}

/* Newest format: its metadata carries checksums. No locks: they fail on some network file systems,
 * and names are private until commit. */
static hid_t access_properties(void)
{
    hid_t properties = H5Pcreate(H5P_FILE_ACCESS);
    if (properties >= 0 &&
        (H5Pset_libver_bounds(properties, H5F_LIBVER_LATEST, H5F_LIBVER_LATEST) < 0 ||
         H5Pset_fclose_degree(properties, H5F_CLOSE_STRONG) < 0 ||
         H5Pset_file_locking(properties, false, true) < 0)) {
        H5Pclose(properties);
        return H5I_INVALID_HID;
    }
    return properties;
}

static rl_status create_temporary(struct h5_file *file)
{
    size_t room = strlen(file->path) + 48;
    file->temporary = malloc(room);
    if (file->temporary == NULL) {
        return rl_fail(RL_NO_MEMORY, "%s: no memory for the temporary name", file->path);
    }
    for (int i = 0; i < H5_NAMES_MAX; i++) {
        snprintf(file->temporary, room, "%s.tmp.%ld.%d", file->path, (long)getpid(), i);
        file->fd = open(file->temporary, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (file->fd >= 0) {
            return RL_OK;
        }
        if (errno != EEXIST) {
            break;
        }
    }
    rl_status status = rl_fail(RL_IO, "%s: cannot create a temporary file beside it: %s",
                               file->path, strerror(errno));
    free(file->temporary);
    file->temporary = NULL;
    return status;
}

/* No times: the same content makes the same bytes. */
static hid_t creation_properties(void)
{
    hid_t properties = H5Pcreate(H5P_FILE_CREATE);
    if (properties >= 0 && H5Pset_obj_track_times(properties, false) < 0) {
        H5Pclose(properties);
        return H5I_INVALID_HID;
    }
    return properties;
}

static rl_status create_locked(struct h5_file *file)
{
    hid_t properties = access_properties();
    hid_t creation = creation_properties();
    struct h5_driver_info info = {.fd = file->fd, .error = &file->error};
    if (properties < 0 || creation < 0 || H5Pset_driver(properties, h5_driver, &info) < 0) {
        return h5_fail(RL_IO, file, NULL, "cannot set up");
    }
    file->id = H5Fcreate(file->temporary, H5F_ACC_TRUNC, creation, properties);
    H5Pclose(creation);
    H5Pclose(properties);
    return file->id < 0 ? h5_fail(RL_IO, file, NULL, "cannot create") : RL_OK;
}

rl_status h5_file_create(const char *path, struct h5_file **out)
{
    struct h5_file *file = file_alloc(path);
    if (file == NULL) {
        return rl_fail(RL_NO_MEMORY, "%s: no memory to create the file", path);
    }
    rl_status status = create_temporary(file);
    if (status == RL_OK) {
        status = h5_enter();
        if (status == RL_OK) {
            status = create_locked(file);
        }
        h5_leave();
    }
    if (status != RL_OK) {
        h5_file_abort(file);
        return status;
    }
    *out = file;
    return RL_OK;
}

/* Chunked, shuffled, compressed, checksummed. Nothing to chunk in an empty dataset. */
static hid_t dataset_properties(enum h5_type type, uint64_t count, int level)
{
    hid_t properties = H5Pcreate(H5P_DATASET_CREATE);
    if (properties < 0 || H5Pset_obj_track_times(properties, false) < 0 || count == 0) {
        return properties;
    }
    hsize_t chunk = H5_CHUNK_BYTES / h5_type_bytes(type);
    chunk = count < chunk ? count : chunk;
    unsigned value = (unsigned)level;
    bool fine = H5Pset_chunk(properties, 1, &chunk) >= 0 &&
                H5Pset_fill_time(properties, H5D_FILL_TIME_NEVER) >= 0;
    if (level != 0) {
        fine = fine && H5Pset_shuffle(properties) >= 0 &&
               H5Pset_filter(properties, H5_FILTER_ZSTD, H5Z_FLAG_MANDATORY, 1, &value) >= 0;
    }
    if (!fine || H5Pset_fletcher32(properties) < 0) {
        H5Pclose(properties);
        return H5I_INVALID_HID;
    }
    return properties;
}

static bool group_make(struct h5_file *file, const char *name)
{
    hid_t properties = H5Pcreate(H5P_GROUP_CREATE);
    hid_t group = H5I_INVALID_HID;
    if (properties >= 0 && H5Pset_obj_track_times(properties, false) >= 0) {
        group = H5Gcreate2(file->id, name, H5P_DEFAULT, properties, H5P_DEFAULT);
    }
    H5Pclose(properties);
    return group >= 0 && H5Gclose(group) >= 0;
}

/* The groups that a dataset's name goes through. */
static bool groups_make(struct h5_file *file, const char *name)
{
    char prefix[H5_GROUP_BYTES];
    for (const char *at = strchr(name, '/'); at != NULL; at = strchr(at + 1, '/')) {
        size_t bytes = (size_t)(at - name);
        if (bytes == 0) {
            continue;
        }
        if (bytes >= sizeof prefix) {
            return false;
        }
        memcpy(prefix, name, bytes);
        prefix[bytes] = '\0';
        if (H5Lexists(file->id, prefix, H5P_DEFAULT) <= 0 && !group_make(file, prefix)) {
            return false;
        }
    }
    return true;
}

static hid_t dataset_create(struct h5_file *file, const char *name, enum h5_type type,
                            uint64_t count, int level)
{
    hsize_t dims = count;
    hid_t space = H5Screate_simple(1, &dims, NULL);
    hid_t create = dataset_properties(type, count, level);
    hid_t dataset = H5I_INVALID_HID;
    if (space >= 0 && create >= 0 && groups_make(file, name)) {
        dataset =
            H5Dcreate2(file->id, name, h5_type_id(type), space, H5P_DEFAULT, create, H5P_DEFAULT);
    }
    H5Pclose(create);
    H5Sclose(space);
    return dataset;
}

/* Read or write a range. */
static bool dataset_move(hid_t dataset, enum h5_type type, const struct h5_range *range, bool write)
{
    hsize_t start = range->first;
    hsize_t length = range->count;
    hid_t memory = H5Screate_simple(1, &length, NULL);
    hid_t space = H5Dget_space(dataset);
    hid_t id = h5_type_id(type);
    bool fine = memory >= 0 && space >= 0 &&
                H5Sselect_hyperslab(space, H5S_SELECT_SET, &start, NULL, &length, NULL) >= 0;
    if (fine && write) {
        fine = H5Dwrite(dataset, id, memory, space, H5P_DEFAULT, range->data) >= 0;
    } else if (fine) {
        fine = H5Dread(dataset, id, memory, space, H5P_DEFAULT, range->data) >= 0;
    }
    H5Sclose(space);
    H5Sclose(memory);
    return fine;
}

/* Slices begin where chunks do. */
static uint64_t slice_count(enum h5_type type, uint64_t first, uint64_t left)
{
    uint64_t slice = H5_SLICE_BYTES / h5_type_bytes(type);
    uint64_t count = slice - first % slice;
    return left < count ? left : count;
}

bool h5_dataset_move(hid_t dataset, enum h5_type type, const struct h5_range *range, bool write)
{
    uint64_t done = 0;
    while (done < range->count) {
        if (done > 0) {
            h5_leave();
            if (h5_enter() != RL_OK) {
                return false;
            }
        }
        struct h5_range slice = {.data = (unsigned char *)range->data + done * h5_type_bytes(type),
                                 .first = range->first + done,
                                 .count =
                                     slice_count(type, range->first + done, range->count - done)};
        if (!dataset_move(dataset, type, &slice, write)) {
            return false;
        }
        done += slice.count;
    }
    return true;
}

/* The new dataset is complete: `status` says whether all went well. The caller has the turn. */
static rl_status dataset_finish(struct h5_file *file, const char *name, hid_t dataset,
                                rl_status status)
{
    if (H5Dclose(dataset) < 0 && status == RL_OK) {
        status = h5_fail(RL_IO, file, name, "cannot write");
    }
    return status == RL_OK ? h5_written(file, name) : status;
}

rl_status h5_file_write(struct h5_file *file, const char *name, enum h5_type type, const void *data,
                        uint64_t count, int level)
{
    struct h5_range all = {.data = (void *)(uintptr_t)data, .count = count};
    rl_status status = h5_enter();
    if (status == RL_OK) {
        hid_t dataset = dataset_create(file, name, type, count, level);
        if (dataset < 0) {
            status = h5_fail(RL_IO, file, name, "cannot create the dataset");
        } else if (!h5_dataset_move(dataset, type, &all, true)) {
            status = h5_fail(RL_IO, file, name, "cannot write");
        }
        status = dataset < 0 ? status : dataset_finish(file, name, dataset, status);
    }
    h5_leave();
    return status;
}

/* Slice by slice from the source, which is asked while others may have the turn. */
static rl_status write_slices(struct h5_file *file, const char *name, hid_t dataset,
                              const struct h5_source *source)
{
    rl_status status = RL_OK;
    void *data = malloc(H5_SLICE_BYTES);
    if (data == NULL) {
        return rl_fail(RL_NO_MEMORY, "%s: %s: no memory for a slice", file->path, name);
    }
    for (uint64_t first = 0; first < source->count && status == RL_OK;) {
        struct h5_range slice = {data, first,
                                 slice_count(source->type, first, source->count - first)};
        status = source->read(source->arg, slice.first, slice.count, data);
        if (status == RL_OK) {
            status = h5_enter();
            if (status == RL_OK && !dataset_move(dataset, source->type, &slice, true)) {
                status = h5_fail(RL_IO, file, name, "cannot write");
            }
            h5_leave();
        }
        first += slice.count;
    }
    free(data);
    return status;
}

rl_status h5_file_write_from(struct h5_file *file, const char *name, const struct h5_source *source,
                             int level)
{
    hid_t dataset = H5I_INVALID_HID;
    rl_status status = h5_enter();
    if (status == RL_OK) {
        dataset = dataset_create(file, name, source->type, source->count, level);
        status = dataset < 0 ? h5_fail(RL_IO, file, name, "cannot create the dataset") : RL_OK;
    }
    h5_leave();
    RL_TRY(status);
    status = write_slices(file, name, dataset, source);
    rl_status turn = h5_enter();
    status = dataset_finish(file, name, dataset, status == RL_OK ? turn : status);
    h5_leave();
    return status;
}

/* Make the new name last. */
static rl_status sync_folder(const struct h5_file *file)
{
    char *copy = strdup(file->path);
    if (copy == NULL) {
        return rl_fail(RL_NO_MEMORY, "%s: no memory for its folder's name", file->path);
    }
    int fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    free(copy);
    if (fd < 0 || fsync(fd) != 0) {
        int error = errno;
        if (fd >= 0) {
            close(fd);
        }
        return rl_fail(RL_IO, "%s: cannot flush its folder to the disk: %s", file->path,
                       strerror(error));
    }
    close(fd);
    return RL_OK;
}

/* HDF5 writes the last of it when it closes the file. */
static rl_status finish_writing(struct h5_file *file)
{
    rl_status status = h5_enter();
    if (status == RL_OK) {
        hid_t id = file->id;
        file->id = H5I_INVALID_HID;
        status = H5Fclose(id) < 0 ? h5_fail(RL_IO, file, NULL, "cannot finish writing")
                                  : h5_written(file, NULL);
    }
    h5_leave();
    return status;
}

static rl_status commit_file(struct h5_file *file)
{
    RL_TRY(finish_writing(file));
    if (fsync(file->fd) != 0) {
        return rl_fail(RL_IO, "%s: cannot flush it to the disk: %s", file->path, strerror(errno));
    }
    if (rename(file->temporary, file->path) != 0) {
        return rl_fail(RL_IO, "%s: cannot rename the finished file: %s", file->path,
                       strerror(errno));
    }
    free(file->temporary);
    file->temporary = NULL;
    return sync_folder(file);
}

rl_status h5_file_commit(struct h5_file *file)
{
    rl_status status = commit_file(file);
    h5_file_abort(file); /* after a success only memory is left to free */
    return status;
}

void h5_file_abort(struct h5_file *file)
{
    if (file == NULL) {
        return;
    }
    if (file->id >= 0) {
        rl_status status = h5_enter();
        if (status == RL_OK) {
            file->error = file->error == 0 ? ECANCELED : file->error; /* write nothing more */
            H5Fclose(file->id);
            H5Eclear2(H5E_DEFAULT);
        }
        h5_leave();
    }
    if (file->temporary != NULL) {
        unlink(file->temporary);
    }
    file_free(file);
}

static rl_status open_locked(struct h5_file *file)
{
    hid_t properties = access_properties();
    if (properties < 0) {
        return h5_fail(RL_IO, file, NULL, "cannot set up");
    }
    file->id = H5Fopen(file->path, H5F_ACC_RDONLY, properties);
    H5Pclose(properties);
    return file->id < 0 ? h5_fail(RL_CORRUPT, file, NULL, "not a sound HDF5 file") : RL_OK;
}

rl_status h5_file_open(const char *path, struct h5_file **out)
{
    if (access(path, R_OK) != 0) {
        return rl_fail(RL_IO, "%s: cannot open: %s", path, strerror(errno));
    }
    struct h5_file *file = file_alloc(path);
    if (file == NULL) {
        return rl_fail(RL_NO_MEMORY, "%s: no memory to open the file", path);
    }
    rl_status status = h5_enter();
    if (status == RL_OK) {
        status = open_locked(file);
    }
    h5_leave();
    if (status != RL_OK) {
        file_free(file);
        return status;
    }
    *out = file;
    return RL_OK;
}

void h5_file_close(struct h5_file *file)
{
    h5_file_abort(file); /* without a temporary name it only closes */
}
