/* Rotary embedding in the "half" convention: element i is paired with i + D/2. */
#include "kernels/cuda/float_cuda.h"

enum { THREADS = 256 };

/* One block a token; a thread turns every THREADS-th pair of its heads. */
static __global__ void rope_kernel(struct kernel_rope_args a, float sign)
{
    const int64_t token = blockIdx.x;
    const int half = (int)a.d / 2;
    const int pairs = (int)a.heads * half;
    const int64_t angle = (int64_t)a.positions[token] * half;
    const float *cosine = a.cosine + angle;
    const float *sine = a.sine + angle;
    float *x = a.x + token * a.heads * a.d;
    for (int pair = (int)threadIdx.x; pair < pairs; pair += THREADS) {
        const int i = pair % half;
        float *low = x + pair / half * 2 * half + i;
        float *high = low + half;
        const float c = cosine[i];
        const float s = sine[i] * sign;
        const float x0 = *low;
        const float x1 = *high;
        *low = fmaf(x0, c, -(x1 * s));
        *high = fmaf(x1, c, x0 * s);
    }
}

static void rope_run(struct cuda_stream *stream, const struct kernel_rope_args *a, float sign)
{
    struct kernel_rope_args args = *a;
    args.positions =
        (const int32_t *)cuda_mirror(stream, a->positions, (size_t)a->n * sizeof *a->positions);
    if (a->n > 0 && args.positions != NULL) {
        CUDA_LAUNCH(rope_kernel, dim3((unsigned)a->n), dim3(THREADS), 0, stream, args, sign);
    }
    cuda_op_end(stream);
}

extern "C" void rope_forward_cuda(const struct kernel_rope_args *a, struct rl_pool *pool)
{
    rope_run(cuda_op_begin(pool, "rope_forward"), a, 1.0f);
}

extern "C" void rope_backward_cuda(const struct kernel_rope_args *a, struct rl_pool *pool)
{
    rope_run(cuda_op_begin(pool, "rope_backward"), a, -1.0f);
}
