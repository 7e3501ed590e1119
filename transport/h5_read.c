/* Reading datasets. Invariant: type, rank, size, storage and filters of a dataset are checked
 * before a byte of it is read or memory asked for. */
#include "core/log.h"
#include "transport/h5_internal.h"

#include <stdlib.h>
#include <string.h>

enum { H5_NAME_BYTES = 256 };

/* True if every part of the name is a hard link: others could lead out of the file. */
static bool name_is_plain(struct h5_file *file, const char *name)
{
    char part[H5_NAME_BYTES];
    size_t length = strlen(name);
    if (length == 0 || length >= sizeof part) {
        return false;
    }
    for (size_t i = 1; i <= length; i++) {
        if (name[i] != '/' && name[i] != '\0') {
            continue;
        }
        memcpy(part, name, i);
        part[i] = '\0';
        H5L_info_t info;
        if (H5Lexists(file->id, part, H5P_DEFAULT) <= 0 ||
            H5Lget_info(file->id, part, &info, H5P_DEFAULT) < 0 || info.type != H5L_TYPE_HARD) {
            return false;
        }
    }
    return true;
}

bool h5_file_has(struct h5_file *file, const char *name)
{
    bool has = h5_enter() == RL_OK && name_is_plain(file, name);
    H5Eclear2(H5E_DEFAULT);
    h5_leave();
    return has;
}

/* Every chunk is there: chunks that are not would read as zeros, and let a small file ask for any
 * amount of memory. (HDF5's own "space status" does not know filters.) */
static bool chunks_are_present(hid_t dataset, uint64_t count, hsize_t chunk)
{
    hsize_t present = 0;
    hid_t space = H5Dget_space(dataset);
    bool fine = space >= 0 && H5Dget_num_chunks(dataset, space, &present) >= 0 &&
                present == (count + chunk - 1) / chunk;
    if (space >= 0) {
        H5Sclose(space);
    }
    return fine;
}

/* Chunks of a sane size with known filters. */
static bool chunks_are_plain(hid_t dataset, hid_t properties, enum h5_type type, uint64_t count)
{
    hsize_t chunk = 0;
    int filters = H5Pget_nfilters(properties);
    if (H5Pget_chunk(properties, 1, &chunk) != 1 || chunk < 1 || filters < 0 ||
        chunk > H5_FILTER_CHUNK_MAX / h5_type_bytes(type)) {
        return false;
    }
    for (int i = 0; i < filters; i++) {
        unsigned flags = 0;
        size_t values = 0;
        H5Z_filter_t id =
            H5Pget_filter2(properties, (unsigned)i, &flags, &values, NULL, 0, NULL, NULL);
        if (id != H5Z_FILTER_SHUFFLE && id != H5Z_FILTER_FLETCHER32 && id != H5_FILTER_ZSTD) {
            return false;
        }
    }
    return chunks_are_present(dataset, count, chunk);
}

/* Storage inside the file. */
static bool storage_is_plain(hid_t dataset, enum h5_type type, uint64_t count)
{
    hid_t properties = H5Dget_create_plist(dataset);
    if (properties < 0) {
        return false;
    }
    H5D_layout_t layout = H5Pget_layout(properties);
    bool fine = H5Pget_external_count(properties) == 0;
    if (layout == H5D_CHUNKED) {
        fine = fine && chunks_are_plain(dataset, properties, type, count);
    } else {
        fine = fine && (layout == H5D_CONTIGUOUS || layout == H5D_COMPACT) &&
               H5Dget_storage_size(dataset) == count * h5_type_bytes(type);
    }
    H5Pclose(properties);
    return fine;
}

/* Elements of an open dataset of the right type, -1 if it is not one. */
static int64_t dataset_count(hid_t dataset, enum h5_type type)
{
    hid_t space = H5Dget_space(dataset);
    hid_t stored = H5Dget_type(dataset);
    hsize_t dims = 0;
    int64_t count = -1;
    if (space >= 0 && stored >= 0 && H5Sget_simple_extent_ndims(space) == 1 &&
        H5Tequal(stored, h5_type_id(type)) > 0 &&
        H5Sget_simple_extent_dims(space, &dims, NULL) == 1 && dims <= INT64_MAX / 8 &&
        storage_is_plain(dataset, type, dims)) {
        count = (int64_t)dims;
    }
    if (stored >= 0) {
        H5Tclose(stored);
    }
    if (space >= 0) {
        H5Sclose(space);
    }
    return count;
}

/* Open and check; the caller has the turn and closes *dataset. */
static rl_status dataset_open(struct h5_file *file, const char *name, enum h5_type type,
                              hid_t *dataset, uint64_t *count)
{
    if (!name_is_plain(file, name)) {
        H5Eclear2(H5E_DEFAULT);
        return rl_fail(RL_NOT_FOUND, "%s: no dataset %s", file->path, name);
    }
    hid_t opened = H5Dopen2(file->id, name, H5P_DEFAULT);
    if (opened < 0) {
        return h5_fail(RL_CORRUPT, file, name, "cannot open the dataset");
    }
    int64_t found = dataset_count(opened, type);
    if (found < 0) {
        H5Dclose(opened);
        return h5_fail(RL_CORRUPT, file, name, "not a plain 1-D dataset of the expected type");
    }
    *dataset = opened;
    *count = (uint64_t)found;
    return RL_OK;
}

rl_status h5_file_count(struct h5_file *file, const char *name, enum h5_type type, uint64_t *count)
{
    hid_t dataset = H5I_INVALID_HID;
    rl_status status = h5_enter();
    if (status == RL_OK) {
        status = dataset_open(file, name, type, &dataset, count);
    }
    if (status == RL_OK) {
        H5Dclose(dataset);
    }
    h5_leave();
    return status;
}

/* Read a range of a dataset; *found: elements that it has. Nothing is read beyond them. */
static rl_status range_read(struct h5_file *file, const char *name, enum h5_type type,
                            const struct h5_range *range, uint64_t *found)
{
    hid_t dataset = H5I_INVALID_HID;
    rl_status status = h5_enter();
    if (status == RL_OK) {
        status = dataset_open(file, name, type, &dataset, found);
    }
    if (status == RL_OK) {
        bool there = range->count <= *found && range->first <= *found - range->count;
        if (there && !h5_dataset_move(dataset, type, range, false)) {
            status = h5_fail(RL_CORRUPT, file, name, "cannot read");
        }
        H5Dclose(dataset);
    }
    h5_leave();
    return status;
}

static rl_status wrong_count(const struct h5_file *file, const char *name, uint64_t found,
                             uint64_t expected)
{
    return rl_fail(RL_CORRUPT, "%s: %s: %llu elements, expected %llu", file->path, name,
                   (unsigned long long)found, (unsigned long long)expected);
}

rl_status h5_file_read(struct h5_file *file, const char *name, enum h5_type type, void *data,
                       uint64_t count)
{
    uint64_t found = 0;
    RL_TRY(range_read(file, name, type, &(struct h5_range){data, 0, count}, &found));
    return found == count ? RL_OK : wrong_count(file, name, found, count);
}

rl_status h5_file_read_part(struct h5_file *file, const char *name, enum h5_type type, void *data,
                            uint64_t first, uint64_t count)
{
    uint64_t found = 0;
    RL_TRY(range_read(file, name, type, &(struct h5_range){data, first, count}, &found));
    return count <= found && first <= found - count ? RL_OK
                                                    : wrong_count(file, name, found, first + count);
}

rl_status h5_file_read_new(struct h5_file *file, const char *name, enum h5_type type,
                           uint64_t max_count, void **data, uint64_t *count)
{
    uint64_t found = 0;
    RL_TRY(h5_file_count(file, name, type, &found));
    if (found > max_count) {
        return rl_fail(RL_TOO_LONG, "%s: %s: %llu elements, the limit is %llu", file->path, name,
                       (unsigned long long)found, (unsigned long long)max_count);
    }
    size_t bytes = (size_t)found * h5_type_bytes(type);
    void *memory = malloc(bytes > 0 ? bytes : 1);
    if (memory == NULL) {
        return rl_fail(RL_NO_MEMORY, "%s: %s: no memory for %zu bytes", file->path, name, bytes);
    }
    rl_status status = h5_file_read(file, name, type, memory, found);
    if (status != RL_OK) {
        free(memory);
        return status;
    }
    *data = memory;
    *count = found;
    return RL_OK;
}
