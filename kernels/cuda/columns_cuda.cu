/* Sums of columns in one or two steps: slices of the rows side by side, then their sums. */
#include "kernels/cuda/columns_cuda.h"

#include "kernels/cuda/float_cuda.h"

enum { COLUMN_WARPS = 8, SLICE_ROWS = 256 /* at least */, SLICES_MAX = 256 };

/* WARP columns of a slice, grid (columns, slices): warp r of the block takes every COLUMN_WARPS-th
 * row; they are added in order. Row `slice` of `to` is overwritten, or with `add` added to. */
static __global__ void __launch_bounds__(COLUMN_WARPS *WARP)
    columns_kernel(struct columns_args a, int64_t slice_rows, float *to, bool add)
{
    __shared__ float room[COLUMN_WARPS][WARP];
    const int lane = (int)threadIdx.x % WARP;
    const int warp = (int)threadIdx.x / WARP;
    const int64_t column = (int64_t)blockIdx.x * WARP + lane;
    const int64_t first = blockIdx.y * slice_rows;
    const int64_t end = min(first + slice_rows, a.rows);
    float sum = 0.0f;
    if (column < a.columns) {
#pragma unroll 8
        for (int64_t row = first + warp; row < end; row += COLUMN_WARPS) {
            sum += a.y[row * a.stride + column];
        }
    }
    room[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && column < a.columns) {
        float *out = to + blockIdx.y * a.columns + column;
        for (int i = 1; i < COLUMN_WARPS; i++) {
            sum += room[i][lane];
        }
        *out = add ? *out + sum : sum;
    }
}

void columns_add(struct cuda_stream *stream, const struct columns_args *a)
{
    const unsigned blocks = cuda_blocks(a->columns, WARP).x;
    int64_t slice_rows = (a->rows + SLICES_MAX - 1) / SLICES_MAX;
    slice_rows = slice_rows > SLICE_ROWS ? slice_rows : (int64_t)SLICE_ROWS;
    const int64_t slices = (a->rows + slice_rows - 1) / slice_rows;
    struct columns_args last = *a;
    if (slices > 1) {
        float *parts = (float *)cuda_scratch(stream, (size_t)(slices * a->columns) * sizeof *parts);
        CUDA_LAUNCH(columns_kernel, dim3(blocks, (unsigned)slices), dim3(COLUMN_WARPS * WARP), 0,
                    stream, *a, slice_rows, parts, false);
        last.y = parts;
        last.stride = a->columns;
        last.rows = slices;
    }
    if (a->rows > 0) {
        CUDA_LAUNCH(columns_kernel, dim3(blocks), dim3(COLUMN_WARPS * WARP), 0, stream, last,
                    last.rows, a->sums, true);
    }
}
