/* A CUDA device and the streams on which the ops of one pool run, as kernels/cuda sees them. The
 * rest of the program uses kernels/device.h.
 *
 * How an op is written:
 *
 *     extern "C" void add_cuda(const struct kernel_add_args *a, struct rl_pool *pool)
 *     {
 *         struct cuda_stream *stream = cuda_op_begin(pool, "add");
 *         CUDA_LAUNCH(add_kernel, cuda_blocks(a->count, 256), 256, 0, stream, a->y, a->x,
 * a->count); cuda_op_end(stream);
 *     }
 *
 * Nothing here returns a status: the first error stays in the stream, which from then on does
 * nothing; device_wait and device_read report it. Owner: the pool's thread. */
#ifndef FORESIGHT_KERNELS_CUDA_DEVICE_CUDA_H
#define FORESIGHT_KERNELS_CUDA_DEVICE_CUDA_H

#include "kernels/device.h"
#include "kernels/kernels.h"

#include <cuda_runtime.h>

#ifdef __cplusplus
extern "C" {
#endif

struct cuda_stream;
struct cuda_matmul;

/* Segments of a batch in device memory. The pages of segment s are pages[page_offset[s]] up to
 * page_offset[s + 1], as many as its tokens need. */
struct cuda_segments {
    int32_t count, tokens;
    const int32_t *segment_start;    /* [S + 1] */
    const int32_t *first_position;   /* [S] */
    const int32_t *page_offset;      /* [S + 1] */
    const int32_t *pages;            /* [page_offset[S]] */
    const int32_t *prefix;           /* [S], -1 where there is none */
    const int32_t *segment_of_token; /* [N] */
};

/* The pool's stream, with its device made current for the calling thread. `op` (static text) is
 * what errors from now on name. The pool must have a stream (device_stream_start). */
struct cuda_stream *cuda_op_begin(struct rl_pool *pool, const char *op);

/* Give back the op's scratch. */
void cuda_op_end(struct cuda_stream *stream);

/* The CUDA stream, for launches and library calls. */
cudaStream_t cuda_stream_handle(const struct cuda_stream *stream);

/* The state of its matrix products (matmul_cuda.h). */
struct cuda_matmul *cuda_stream_matmul(const struct cuda_stream *stream);

/* False once something has failed: later work must not be queued. */
bool cuda_stream_good(const struct cuda_stream *stream);

/* Keep the first error. `what`: the kernel or call that gave it. True if there was none. */
bool cuda_check(struct cuda_stream *stream, cudaError_t error, const char *what);

/* The same for a library with codes of its own: `text` describes what happened. */
void cuda_fail(struct cuda_stream *stream, const char *what, const char *text);

/* `bytes` of device memory until the end of the op, aligned to 256; contents undefined. NULL after
 * an error. Sizes seen before cost nothing. */
void *cuda_scratch(struct cuda_stream *stream, size_t bytes);

/* Device copy of a host array, valid until the end of the op: what pass_begin uploaded if `host`
 * lies within that, else uploaded now (the host's array may change on return). */
const void *cuda_mirror(struct cuda_stream *stream, const void *host, size_t bytes);

/* The same for segments. All pointers are NULL after an error. */
struct cuda_segments cuda_segments(struct cuda_stream *stream,
                                   const struct kernel_segments *segments);

/* Queue a copy of device memory to `host`, which is written by cuda_wait. At most 24 between two
 * waits. */
void cuda_fetch(struct cuda_stream *stream, void *host, const void *device, size_t bytes);

/* Wait for the stream and complete the fetches; after an error they leave the host's memory alone.
 */
void cuda_wait(struct cuda_stream *stream);

/* Where an op's results are due: cuda_wait, unless device_replay has put that off. */
void cuda_deliver(struct cuda_stream *stream);

/* The stream's device: multiprocessors, for grids that fill it. */
int cuda_multiprocessors(const struct cuda_stream *stream);

#ifdef __cplusplus
}
#endif

#endif
