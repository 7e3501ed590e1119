/* Gated units: y = act(gate) up with act SiLU or tanh-GELU. */
#include "kernels/cuda/cuda_kernel.h"

enum { GLU_BLOCK = 256, GLU_EACH = 4 /* elements of a thread */ };

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

/* GLU_EACH numbers from element i on, or those that there are. `wide`: arrays are aligned to 16. */
static __device__ __forceinline__ void glu_load(const float *from, int64_t i, int count, bool wide,
                                                float value[GLU_EACH])
{
    if (wide && count == GLU_EACH) {
        const float4 four = *(const float4 *)(from + i);
        value[0] = four.x;
        value[1] = four.y;
        value[2] = four.z;
        value[3] = four.w;
        return;
    }
    for (int j = 0; j < GLU_EACH; j++) {
        value[j] = j < count ? from[i + j] : 0.0f;
    }
}

static __device__ __forceinline__ void glu_store(float *to, int64_t i, int count, bool wide,
                                                 const float value[GLU_EACH])
{
    if (wide && count == GLU_EACH) {
        *(float4 *)(to + i) = make_float4(value[0], value[1], value[2], value[3]);
        return;
    }
    for (int j = 0; j < GLU_EACH; j++) {
        if (j < count) {
            to[i + j] = value[j];
        }
    }
}

static __global__ void glu_forward_kernel(struct kernel_glu_args a, bool wide)
{
    const int64_t i = cuda_thread() * GLU_EACH;
    const int count = (int)min(a.count - i, (int64_t)GLU_EACH);
    if (count <= 0) {
        return;
    }
    float gate[GLU_EACH];
    float up[GLU_EACH];
    float y[GLU_EACH];
    glu_load(a.gate, i, count, wide, gate);
    glu_load(a.up, i, count, wide, up);
    for (int j = 0; j < GLU_EACH; j++) {
        float value;
        float slope;
        activate(a.activation, gate[j], &value, &slope);
        y[j] = value * up[j];
    }
    glu_store(a.y, i, count, wide, y);
}

/* dgate may be gate and dup may be up: everything is read first. */
static __global__ void glu_backward_kernel(struct kernel_glu_args a, bool wide)
{
    const int64_t i = cuda_thread() * GLU_EACH;
    const int count = (int)min(a.count - i, (int64_t)GLU_EACH);
    if (count <= 0) {
        return;
    }
    float gate[GLU_EACH];
    float up[GLU_EACH];
    float dy[GLU_EACH];
    glu_load(a.gate, i, count, wide, gate);
    glu_load(a.up, i, count, wide, up);
    glu_load(a.dy, i, count, wide, dy);
    for (int j = 0; j < GLU_EACH; j++) {
        float value;
        float slope;
        activate(a.activation, gate[j], &value, &slope);
        gate[j] = dy[j] * up[j] * slope;
        up[j] = dy[j] * value;
    }
    glu_store(a.dgate, i, count, wide, gate);
    glu_store(a.dup, i, count, wide, up);
}

extern "C" void glu_forward_cuda(const struct kernel_glu_args *a, struct rl_pool *pool)
{
    struct cuda_stream *stream = cuda_op_begin(pool, "glu_forward");
    const uintptr_t all = (uintptr_t)a->gate | (uintptr_t)a->up | (uintptr_t)a->y;
    CUDA_LAUNCH(glu_forward_kernel, cuda_blocks(a->count, GLU_BLOCK * GLU_EACH), GLU_BLOCK, 0,
                stream, *a, all % sizeof(float4) == 0);
    cuda_op_end(stream);
}

extern "C" void glu_backward_cuda(const struct kernel_glu_args *a, struct rl_pool *pool)
{
    struct cuda_stream *stream = cuda_op_begin(pool, "glu_backward");
    const uintptr_t all = (uintptr_t)a->gate | (uintptr_t)a->up | (uintptr_t)a->dy |
                          (uintptr_t)a->dgate | (uintptr_t)a->dup;
    CUDA_LAUNCH(glu_backward_kernel, cuda_blocks(a->count, GLU_BLOCK * GLU_EACH), GLU_BLOCK, 0,
                stream, *a, all % sizeof(float4) == 0);
    cuda_op_end(stream);
}
