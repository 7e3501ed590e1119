/* Reading safetensors: maps files, joins the shards of a folder, converts to fp32. Owns the
 * mappings; parsing is safetensors_header.c. Invariant: an entry's data lies whole inside its
 * mapping, at any alignment. */
#include "model/safetensors.h"

#include "core/log.h"
#include "model/folder.h"
#include "model/json_fields.h"
#include "model/safetensors_header.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { HEADER_BYTES_MAX = 100000000, INDEX_BYTES_MAX = 64 << 20, SHARDS_MAX = 10000 };

struct shard {
    char *path;
    const unsigned char *data;
    size_t bytes;
    struct safetensors_header header;
};

struct safetensors {
    struct shard *shards; /* [shard_count] */
    int64_t shard_count;
    struct safetensors_entry *entries; /* [count], by shard and place */
    int64_t count;
    int64_t *by_name; /* [count] entry numbers in order of name */
};

static rl_status shard_map(struct shard *shard)
{
    /* O_NONBLOCK: a pipe of that name must be refused, not waited for. */
    int fd = open(shard->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        return rl_fail(RL_IO, "%s: cannot open: %s", shard->path, strerror(errno));
    }
    struct stat info;
    rl_status status = RL_OK;
    if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
        status = rl_fail(RL_IO, "%s: not a regular file", shard->path);
    } else if (info.st_size < 8) {
        status = rl_fail(RL_CORRUPT, "%s: %lld bytes are too few for a safetensors file",
                         shard->path, (long long)info.st_size);
    } else {
        void *data = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (data == MAP_FAILED) {
            status = rl_fail(RL_IO, "%s: cannot map: %s", shard->path, strerror(errno));
        } else {
            shard->data = data;
            shard->bytes = (size_t)info.st_size;
        }
    }
    close(fd);
    return status;
}

static rl_status shard_open(const char *path, struct shard *shard)
{
    shard->path = strdup(path);
    if (shard->path == NULL) {
        return rl_fail(RL_NO_MEMORY, "%s: no memory to open it", path);
    }
    RL_TRY(shard_map(shard));
    uint64_t length = 0;
    for (int i = 7; i >= 0; i--) {
        length = length << 8 | shard->data[i];
    }
    if (length > HEADER_BYTES_MAX || length > shard->bytes - 8) {
        return rl_fail(RL_CORRUPT,
                       "%s: header length %llu is beyond the file's %zu bytes or the limit of %d",
                       path, (unsigned long long)length, shard->bytes, HEADER_BYTES_MAX);
    }
    return safetensors_header_parse(path, (const char *)shard->data + 8, (size_t)length,
                                    shard->bytes - 8 - length, &shard->header);
}

static size_t shard_data_offset(const struct shard *shard)
{
    uint64_t end = 0;
    for (int64_t i = 0; i < shard->header.tensor_count; i++) {
        end = shard->header.tensors[i].end > end ? shard->header.tensors[i].end : end;
    }
    return shard->bytes - (size_t)end;
}

static void list_shard(const struct shard *shard, struct safetensors_entry *entries)
{
    const unsigned char *data = shard->data + shard_data_offset(shard);
    for (int64_t i = 0; i < shard->header.tensor_count; i++) {
        const struct safetensors_tensor *tensor = &shard->header.tensors[i];
        entries[i] = (struct safetensors_entry){
            .name = tensor->name,
            .dtype = tensor->dtype,
            .rank = tensor->rank,
            .data = data + tensor->begin,
            .bytes = (size_t)(tensor->end - tensor->begin),
        };
        memcpy(entries[i].shape, tensor->shape, sizeof tensor->shape);
    }
}

static int by_entry_name(const void *a, const void *b, void *context)
{
    const struct safetensors_entry *entries = context;
    return strcmp(entries[*(const int64_t *)a].name, entries[*(const int64_t *)b].name);
}

/* Entries of all shards in one list, and their order by name. */
static rl_status list_all(const char *path, struct safetensors *file)
{
    for (int64_t i = 0; i < file->shard_count; i++) {
        file->count += file->shards[i].header.tensor_count;
    }
    size_t room = (size_t)file->count + 1;
    file->entries = calloc(room, sizeof *file->entries);
    file->by_name = calloc(room, sizeof *file->by_name);
    if (file->entries == NULL || file->by_name == NULL) {
        return rl_fail(RL_NO_MEMORY, "%s: no memory for %lld tensors", path,
                       (long long)file->count);
    }
    int64_t at = 0;
    for (int64_t i = 0; i < file->shard_count; i++) {
        list_shard(&file->shards[i], file->entries + at);
        at += file->shards[i].header.tensor_count;
    }
    for (int64_t i = 0; i < file->count; i++) {
        file->by_name[i] = i;
    }
    qsort_r(file->by_name, (size_t)file->count, sizeof *file->by_name, by_entry_name,
            file->entries);
    return RL_OK;
}

static rl_status file_create(const char *path, int64_t shards, struct safetensors **out)
{
    struct safetensors *file = calloc(1, sizeof *file);
    struct shard *array = calloc((size_t)shards, sizeof *array);
    if (file == NULL || array == NULL) {
        free(array);
        free(file);
        return rl_fail(RL_NO_MEMORY, "%s: no memory to open %lld files", path, (long long)shards);
    }
    file->shards = array;
    file->shard_count = shards;
    *out = file;
    return RL_OK;
}

rl_status safetensors_open(const char *path, struct safetensors **out)
{
    struct safetensors *file = NULL;
    RL_TRY(file_create(path, 1, &file));
    rl_status status = RL_OK;
    RL_TRY_GOTO(shard_open(path, &file->shards[0]), status, fail);
    RL_TRY_GOTO(list_all(path, file), status, fail);
    *out = file;
    return RL_OK;
fail:
    safetensors_close(file);
    return status;
}

void safetensors_close(struct safetensors *file)
{
    if (file == NULL) {
        return;
    }
    for (int64_t i = 0; i < file->shard_count; i++) {
        struct shard *shard = &file->shards[i];
        safetensors_header_fini(&shard->header);
        if (shard->data != NULL) {
            munmap((void *)(uintptr_t)shard->data, shard->bytes);
        }
        free(shard->path);
    }
    free(file->by_name);
    free(file->entries);
    free(file->shards);
    free(file);
}

/* A shard must be a plain file name: nothing outside the folder is ever opened. */
static rl_status check_shard_name(const char *path, const char *tensor, const json_t *value)
{
    const char *name = json_string_value(value);
    if (name == NULL) {
        return rl_fail(RL_CORRUPT, "%s: weight_map[%.200s] must be a file name", path, tensor);
    }
    if (name[0] == '\0' || strchr(name, '/') != NULL || strcmp(name, ".") == 0 ||
        strcmp(name, "..") == 0) {
        return rl_fail(RL_CORRUPT,
                       "%s: weight_map[%.200s] is %.200s, must be a file of the same "
                       "folder",
                       path, tensor, name);
    }
    return RL_OK;
}

/* Distinct shard names of the index, in order of appearance. `names` is an object used as a set. */
static rl_status collect_shards(const char *path, json_t *weight_map, json_t *names)
{
    const char *tensor;
    json_t *value;
    json_object_foreach(weight_map, tensor, value)
    {
        RL_TRY(check_shard_name(path, tensor, value));
        const char *name = json_string_value(value);
        if (json_object_get(names, name) == NULL &&
            json_object_set_new(names, name, json_true()) != 0) {
            return rl_fail(RL_NO_MEMORY, "%s: no memory for its shards", path);
        }
    }
    if (json_object_size(names) == 0 || json_object_size(names) > SHARDS_MAX) {
        return rl_fail(RL_CORRUPT, "%s: weight_map names %zu shards, must be 1 to %d", path,
                       json_object_size(names), SHARDS_MAX);
    }
    return RL_OK;
}

static rl_status check_shard(const char *path, const char *name, const json_t *weight_map,
                             const struct shard *shard)
{
    for (int64_t i = 0; i < shard->header.tensor_count; i++) {
        const char *tensor = shard->header.tensors[i].name;
        const char *owner = json_string_value(json_object_get(weight_map, tensor));
        if (owner == NULL || strcmp(owner, name) != 0) {
            return rl_fail(
                RL_CORRUPT, "%s: tensor %.200s is in %.200s but the index gives it %s%.200s", path,
                tensor, name, owner == NULL ? "no shard" : "to ", owner == NULL ? "" : owner);
        }
    }
    return RL_OK;
}

/* Shards hold nothing that the index lacks; what the index has and no shard holds is found here. */
static rl_status check_complete(const char *path, json_t *weight_map,
                                const struct safetensors *file)
{
    if ((int64_t)json_object_size(weight_map) == file->count) {
        return RL_OK;
    }
    const char *tensor;
    json_t *value;
    json_object_foreach(weight_map, tensor, value)
    {
        if (safetensors_find(file, tensor) == NULL) {
            return rl_fail(RL_CORRUPT, "%s: tensor %.200s is not in its shard %.200s", path, tensor,
                           json_string_value(value));
        }
    }
    return rl_fail(RL_CORRUPT, "%s: shards hold %lld tensors, the index %zu", path,
                   (long long)file->count, json_object_size(weight_map));
}

static rl_status open_shards(const char *dir, const char *path, json_t *weight_map, json_t *names,
                             struct safetensors *file)
{
    const char *name;
    json_t *value;
    int64_t number = 0;
    json_object_foreach(names, name, value)
    {
        char shard_path[MODEL_PATH_BYTES];
        RL_TRY(model_folder_path(dir, name, shard_path));
        struct shard *shard = &file->shards[number++];
        RL_TRY(shard_open(shard_path, shard));
        RL_TRY(check_shard(path, name, weight_map, shard));
    }
    RL_TRY(list_all(path, file));
    return check_complete(path, weight_map, file);
}

static rl_status open_index(const char *dir, const char *path, const json_t *root,
                            struct safetensors **out)
{
    json_t *weight_map = json_object_get(root, "weight_map");
    if (!json_is_object(weight_map)) {
        return rl_fail(RL_CORRUPT, "%s: weight_map must be an object", path);
    }
    json_t *names = json_object();
    if (names == NULL) {
        return rl_fail(RL_NO_MEMORY, "%s: no memory for its shards", path);
    }
    struct safetensors *file = NULL;
    rl_status status = RL_OK;
    RL_TRY_GOTO(collect_shards(path, weight_map, names), status, fail);
    RL_TRY_GOTO(file_create(path, (int64_t)json_object_size(names), &file), status, fail);
    RL_TRY_GOTO(open_shards(dir, path, weight_map, names, file), status, fail);
    json_decref(names);
    *out = file;
    return RL_OK;
fail:
    safetensors_close(file);
    json_decref(names);
    return status;
}

rl_status safetensors_open_folder(const char *dir, struct safetensors **out)
{
    char path[MODEL_PATH_BYTES];
    RL_TRY(model_folder_path(dir, "model.safetensors", path));
    if (model_folder_has(dir, "model.safetensors")) {
        return safetensors_open(path, out);
    }
    RL_TRY(model_folder_path(dir, "model.safetensors.index.json", path));
    if (!model_folder_has(dir, "model.safetensors.index.json")) {
        return rl_fail(RL_IO, "%s: neither model.safetensors nor model.safetensors.index.json",
                       dir);
    }
    json_t *root = NULL;
    RL_TRY(json_fields_load(path, INDEX_BYTES_MAX, &root));
    rl_status status = open_index(dir, path, root, out);
    json_decref(root);
    return status;
}

int64_t safetensors_count(const struct safetensors *file)
{
    return file->count;
}

const struct safetensors_entry *safetensors_at(const struct safetensors *file, int64_t index)
{
    return &file->entries[index];
}

const struct safetensors_entry *safetensors_find(const struct safetensors *file, const char *name)
{
    int64_t low = 0;
    int64_t high = file->count;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        const struct safetensors_entry *entry = &file->entries[file->by_name[middle]];
        int order = strcmp(name, entry->name);
        if (order == 0) {
            return entry;
        }
        if (order < 0) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return NULL;
}

const char *safetensors_metadata(const struct safetensors *file, const char *key)
{
    const struct safetensors_header *header = &file->shards[0].header;
    for (int64_t i = 0; i < header->pair_count; i++) {
        if (strcmp(header->pairs[i].key, key) == 0) {
            return header->pairs[i].value;
        }
    }
    return NULL;
}

int64_t safetensors_elements(const struct safetensors_entry *entry)
{
    int64_t elements = 1;
    for (int i = 0; i < entry->rank; i++) {
        elements *= entry->shape[i];
    }
    return elements;
}

static float half_to_float(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000) << 16;
    uint32_t exponent = half >> 10 & 31;
    uint32_t fraction = half & 0x3ff;
    uint32_t bits = 0;
    if (exponent == 31) {
        bits = sign | 0x7f800000U | fraction << 13;
    } else if (exponent != 0) {
        bits = sign | (exponent + 112) << 23 | fraction << 13;
    } else {
        /* Subnormal: fraction * 2^-24 is exact in fp32. */
        float value = (float)fraction * 0x1p-24F;
        return sign != 0 ? -value : value;
    }
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

rl_status safetensors_check_dtype(const struct safetensors_entry *entry)
{
    if (strcmp(entry->dtype, "F32") == 0 || strcmp(entry->dtype, "F16") == 0 ||
        strcmp(entry->dtype, "BF16") == 0) {
        return RL_OK;
    }
    return rl_fail(RL_UNSUPPORTED,
                   "tensor %.200s: dtype %s is not supported (F32, F16 and BF16 are)", entry->name,
                   entry->dtype);
}

static void convert_bf16(const unsigned char *data, int64_t count, float *out)
{
    for (int64_t i = 0; i < count; i++) {
        uint16_t word;
        memcpy(&word, data + i * 2, sizeof word);
        uint32_t bits = (uint32_t)word << 16;
        memcpy(&out[i], &bits, sizeof bits);
    }
}

static void convert_half(const unsigned char *data, int64_t count, float *out)
{
    for (int64_t i = 0; i < count; i++) {
        uint16_t word;
        memcpy(&word, data + i * 2, sizeof word);
        out[i] = half_to_float(word);
    }
}

void safetensors_to_fp32(const struct safetensors_entry *entry, int64_t first, int64_t count,
                         float *out)
{
    const unsigned char *data = entry->data;
    if (strcmp(entry->dtype, "F32") == 0) {
        memcpy(out, data + first * 4, (size_t)count * sizeof(float));
    } else if (strcmp(entry->dtype, "F16") == 0) {
        convert_half(data + first * 2, count, out);
    } else {
        convert_bf16(data + first * 2, count, out);
    }
}
