/* Inside of the safetensors reader: the header of one file, parsed and checked, nothing mapped. */
#ifndef FORESIGHT_MODEL_SAFETENSORS_HEADER_H
#define FORESIGHT_MODEL_SAFETENSORS_HEADER_H

#include "model/safetensors.h"

struct safetensors_tensor {
    char *name;        /* in `strings` */
    const char *dtype; /* static */
    int rank;
    int64_t shape[SAFETENSORS_RANK_MAX];
    uint64_t begin, end; /* in the data section */
};

struct safetensors_pair {
    char *key, *value; /* in `strings` */
};

struct safetensors_header {
    struct safetensors_tensor *tensors; /* [tensor_count], by place in the file */
    int64_t tensor_count, tensor_capacity;
    struct safetensors_pair *pairs; /* [pair_count] metadata */
    int64_t pair_count, pair_capacity;
    char *strings; /* every name, decoded; owned */
};

/* Parse `text` [bytes] and check it against a data section of `data_bytes`. `path` is for errors.
 * Release with safetensors_header_fini, also after an error. Errors: RL_CORRUPT, RL_NO_MEMORY. */
rl_status safetensors_header_parse(const char *path, const char *text, size_t bytes,
                                   uint64_t data_bytes, struct safetensors_header *out);
void safetensors_header_fini(struct safetensors_header *header);

/* Bits of an element, 0 if the dtype is not known; *canonical is its static spelling. */
unsigned safetensors_dtype_bits(const char *dtype, const char **canonical);

#endif
