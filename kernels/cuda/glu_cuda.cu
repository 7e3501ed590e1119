/* Gated units: y = act(gate) up with act SiLU or tanh-GELU; one element a thread. */
#include "kernels/cuda/cuda_kernel.h"

enum { GLU_BLOCK = 256 };

/* Value and slope of the activation. tanh-GELU is g sigmoid(2u), u = sqrt(2/pi) (g + 0.044715 g^3),
 * so both need one sigmoid. */
static __device__ __forceinline__ void activate(enum kernel_activation activation, float g,
                                                float *value, float *slope)
{
    const float root2 = 1.5957691216057308f; /* 2 sqrt(2 / pi) */
    const float cubic = 0.044715f;
    float u = g;
    float du = 1.0f;
    if (activation == KERNEL_GELU_TANH) {
        float square = g * g;
        u = root2 * g * fmaf(cubic, square, 1.0f);
        du = root2 * fmaf(3.0f * cubic, square, 1.0f);
    }
    float sigmoid = 1.0f / (1.0f + expf(-u));
    *value = g * sigmoid;
    /* sigmoid is exactly 0 or 1 where u overflows, and then its slope vanishes */
    float bend = sigmoid * (1.0f - sigmoid);
    *slope = bend > 0.0f ? fmaf(g * du, bend, sigmoid) : sigmoid;
}

static __global__ void glu_forward_kernel(struct kernel_glu_args a)
{
    int64_t i = cuda_thread();
    if (i < a.count) {
        float value;
        float slope;
        activate(a.activation, a.gate[i], &value, &slope);
        a.y[i] = value * a.up[i];
    }
}

/* dgate may be gate and dup may be up: everything is read first. */
static __global__ void glu_backward_kernel(struct kernel_glu_args a)
{
    int64_t i = cuda_thread();
    if (i < a.count) {
        float value;
        float slope;
        float dy = a.dy[i];
        float up = a.up[i];
        activate(a.activation, a.gate[i], &value, &slope);
        a.dgate[i] = dy * up * slope;
        a.dup[i] = dy * value;
    }
}

extern "C" void glu_forward_cuda(const struct kernel_glu_args *a, struct rl_pool *pool)
{
    struct cuda_stream *stream = cuda_op_begin(pool, "glu_forward");
    CUDA_LAUNCH(glu_forward_kernel, cuda_blocks(a->count, GLU_BLOCK), GLU_BLOCK, 0, stream, *a);
    cuda_op_end(stream);
}

extern "C" void glu_backward_cuda(const struct kernel_glu_args *a, struct rl_pool *pool)
{
    struct cuda_stream *stream = cuda_op_begin(pool, "glu_backward");
    CUDA_LAUNCH(glu_backward_kernel, cuda_blocks(a->count, GLU_BLOCK), GLU_BLOCK, 0, stream, *a);
    cuda_op_end(stream);
}
