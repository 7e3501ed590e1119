/* The zstd filter: one frame a chunk, as the registered filter of that number writes it. Invariant:
 * a frame is decompressed only if it says its size and the size is within the limit, so that a
 * small file cannot ask for much memory. */
#include "core/log.h"
#include "transport/h5_internal.h"

#include <stdlib.h>
#include <zstd.h>

/* Its tables are made once; whoever calls the filter has the turn at HDF5. */
static ZSTD_CCtx *filter_context;

/* HDF5's contract: replace *buf (of *buf_bytes) by the result, return its size, 0 on failure. */
static size_t filter_replace(void **buf, size_t *buf_bytes, void *result, size_t result_capacity,
                             size_t result_bytes)
{
    if (result == NULL || ZSTD_isError(result_bytes)) {
        free(result);
        return 0;
    }
    free(*buf);
    *buf = result;
    *buf_bytes = result_capacity;
    return result_bytes;
}

static size_t filter_decompress(size_t bytes, size_t *buf_bytes, void **buf)
{
    unsigned long long size = ZSTD_getFrameContentSize(*buf, bytes);
    if (size == ZSTD_CONTENTSIZE_ERROR || size == ZSTD_CONTENTSIZE_UNKNOWN ||
        size > H5_FILTER_CHUNK_MAX || size == 0) {
        return 0;
    }
    void *result = malloc((size_t)size);
    size_t got = result != NULL ? ZSTD_decompress(result, (size_t)size, *buf, bytes) : 0;
    return filter_replace(buf, buf_bytes, result, (size_t)size, got);
}

static size_t filter_compress(size_t count, const unsigned values[], size_t bytes,
                              size_t *buf_bytes, void **buf)
{
    int level = count > 0 ? (int)values[0] : 1;
    size_t capacity = ZSTD_compressBound(bytes);
    void *result = filter_context != NULL ? malloc(capacity) : NULL;
    size_t got = 0;
    if (result != NULL) {
        got = ZSTD_compressCCtx(filter_context, result, capacity, *buf, bytes, level);
    }
    return filter_replace(buf, buf_bytes, result, capacity, got);
}

static size_t filter_apply(unsigned flags, size_t count, const unsigned values[], size_t bytes,
                           size_t *buf_bytes, void **buf)
{
    if ((flags & H5Z_FLAG_REVERSE) != 0) {
        return filter_decompress(bytes, buf_bytes, buf);
    }
    return filter_compress(count, values, bytes, buf_bytes, buf);
}

rl_status h5_filter_register(void)
{
    static const H5Z_class2_t filter = {
        .version = H5Z_CLASS_T_VERS,
        .id = H5_FILTER_ZSTD,
        .encoder_present = 1,
        .decoder_present = 1,
        .name = "zstd",
        .filter = filter_apply,
    };
    if (filter_context == NULL) {
        filter_context = ZSTD_createCCtx();
    }
    if (filter_context == NULL) {
        return rl_fail(RL_NO_MEMORY, "no memory for the compressor");
    }
    if (H5open() < 0 || H5Zregister(&filter) < 0 || H5PLset_loading_state(0) < 0) {
        return rl_fail(RL_INTERNAL, "cannot set up HDF5");
    }
    return RL_OK;
}
