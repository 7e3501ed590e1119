/* safetensors files, hostile-input safe: every check of the reference implementation. */
#ifndef FORESIGHT_MODEL_SAFETENSORS_H
#define FORESIGHT_MODEL_SAFETENSORS_H

#include "core/status.h"

#include <stddef.h>
#include <stdint.h>

enum { SAFETENSORS_RANK_MAX = 8 };

struct safetensors_entry {
    const char *name;  /* owned by the file */
    const char *dtype; /* "F32", "BF16", ... as written */
    int rank;
    int64_t shape[SAFETENSORS_RANK_MAX];
    const void *data; /* mapped */
    size_t bytes;
};

struct safetensors;

/* Map one file and check it whole: header length <= 100 MB and inside the file, UTF-8 JSON object
 * without duplicates, known dtypes, shapes and offsets consistent, no overlap, no hole, no trailing
 * bytes. Caller owns *out. Errors: RL_IO, RL_CORRUPT (file, tensor and reason named). */
rl_status safetensors_open(const char *path, struct safetensors **out);

/* Open DIR/model.safetensors or DIR/model.safetensors.index.json with its shards (which must lie in
 * DIR and hold exactly the tensors that the index gives them). */
rl_status safetensors_open_folder(const char *dir, struct safetensors **out);

/* Unmap everything; entries are gone. Takes NULL. */
void safetensors_close(struct safetensors *file);

/* Number of tensors in all shards. */
int64_t safetensors_count(const struct safetensors *file);

/* One of them, index < count, by shard and then by place. Borrowed. */
const struct safetensors_entry *safetensors_at(const struct safetensors *file, int64_t index);

/* By name, NULL if there is none. Borrowed. */
const struct safetensors_entry *safetensors_find(const struct safetensors *file, const char *name);

/* Value of a metadata key of the (first) file, NULL if there is none. Borrowed. */
const char *safetensors_metadata(const struct safetensors *file, const char *key);

/* Can safetensors_to_fp32 convert it? Errors: RL_UNSUPPORTED (dtype named). */
rl_status safetensors_check_dtype(const struct safetensors_entry *entry);

/* Convert elements first .. first + count - 1 of an F32, F16 or BF16 entry to fp32 [count]. */
void safetensors_to_fp32(const struct safetensors_entry *entry, int64_t first, int64_t count,
                         float *out);

/* Elements of an entry: the product of its shape. */
int64_t safetensors_elements(const struct safetensors_entry *entry);

/* Write the header for entries in the order given (`data` is not looked at; `bytes` must fit dtype
 * and shape) to a new file; the caller then appends each entry's bytes and commits or aborts *out.
 * For tensors that are converted on the way. Errors: RL_INVALID, RL_IO, RL_NO_MEMORY. */
struct atomic_file;
rl_status safetensors_write_header(const char *path, const struct safetensors_entry *entries,
                                   int64_t count, struct atomic_file **out);

/* Writer: entries in the order given, `data` read at write time; metadata {"format":"pt"}.
 * Atomic: temporary name, fsync, rename. */
rl_status safetensors_write(const char *path, const struct safetensors_entry *entries,
                            int64_t count);

#endif
