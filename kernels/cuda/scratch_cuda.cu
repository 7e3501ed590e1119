/* Device memory that lives as long as one op. The stream orders its next use after this one, so
 * nothing waits; only growth does. */
#include "kernels/cuda/cuda_kernel.h"
#include "kernels/cuda/stream_cuda.h"

enum : size_t { SCRATCH_ALIGN = 256, SCRATCH_FIRST = (size_t)1 << 20 };

/* Place in block 0, or a block more. */
void *cuda_scratch(struct cuda_stream *stream, size_t bytes)
{
    struct cuda_arena *arena = &stream->scratch;
    size_t room = (bytes + SCRATCH_ALIGN - 1) / SCRATCH_ALIGN * SCRATCH_ALIGN;
    if (!cuda_stream_good(stream)) {
        return nullptr;
    }
    if (arena->count > 0 && arena->used + room <= arena->bytes[0]) {
        arena->used += room;
        return arena->blocks[0] + arena->used - room;
    }
    if (arena->count == CUDA_SCRATCH_BLOCKS) {
        cuda_fail(stream, "scratch", "one op asked for too many pieces");
        return nullptr;
    }
    size_t size = arena->count == 0 && room < SCRATCH_FIRST ? SCRATCH_FIRST : room;
    if (!cuda_stream_malloc(stream, size, "scratch", &arena->blocks[arena->count])) {
        return nullptr;
    }
    arena->used = arena->count == 0 ? room : arena->used;
    arena->bytes[arena->count++] = size;
    return arena->blocks[arena->count - 1];
}

/* One block instead of several, if the op needed more than one. */
static void merge_blocks(struct cuda_stream *stream)
{
    struct cuda_arena *arena = &stream->scratch;
    size_t total = 0;
    stream->moved++;
    cuda_check(stream, cudaStreamSynchronize(stream->handle), "scratch");
    for (int i = 0; i < arena->count; i++) {
        total += arena->bytes[i];
        (void)cudaFree(arena->blocks[i]);
    }
    arena->count = 0;
    if (cuda_stream_malloc(stream, total, "scratch", &arena->blocks[0])) {
        arena->bytes[0] = total;
        arena->count = 1;
    }
}

void cuda_op_end(struct cuda_stream *stream)
{
    if (stream->scratch.count > 1) {
        merge_blocks(stream);
    }
    stream->scratch.used = 0;
}

void cuda_scratch_fini(struct cuda_stream *stream)
{
    for (int i = 0; i < stream->scratch.count; i++) {
        (void)cudaFree(stream->scratch.blocks[i]);
    }
    stream->scratch.count = 0;
}
