/* This project's linear kernels, for bench_gemm. */
#include "kernels/device.h"
#include "tests/bench/bench_gemm.h"

#include <stdlib.h>

struct own {
    struct kernel_linear_args args;
    const struct gemm_problem *problem;
    char *packed; /* copies one after another */
    size_t packed_bytes;
};

static void own_destroy(void *state)
{
    struct own *own = state;
    if (own != NULL) {
        device_free(own->packed);
        free(own);
    }
}

static bool own_pack(struct own *own)
{
    const struct gemm_problem *p = own->problem;
    void *packed = NULL;
    own->packed_bytes = kernel_packed_bytes(p->n, p->k, own->args.dtype);
    if (device_alloc(own->packed_bytes * (size_t)p->copies, "packed weights", &packed) != RL_OK) {
        return false;
    }
    own->packed = packed;
    for (int i = 0; i < p->copies; i++) {
        struct kernel_linear_pack_args pack = {.w = p->w,
                                               .packed =
                                                   own->packed + (size_t)i * own->packed_bytes,
                                               .dtype = own->args.dtype,
                                               .n = p->n,
                                               .k = p->k};
        p->table->linear_pack(&pack, p->pool);
    }
    return true;
}

static void *own_create(const struct gemm_problem *p, enum kernel_dtype dtype)
{
    struct own *own = calloc(1, sizeof *own);
    if (own == NULL) {
        return NULL;
    }
    own->problem = p;
    own->args = (struct kernel_linear_args){.dtype = dtype,
                                            .x = p->x,
                                            .y = p->y,
                                            .dw = p->dw,
                                            .m = p->m,
                                            .n = p->n,
                                            .k = p->k,
                                            .x_stride = p->k,
                                            .y_stride = p->n};
    if (!own_pack(own)) {
        own_destroy(own);
        return NULL;
    }
    return own;
}

static void *own_create_fp32(const struct gemm_problem *p)
{
    return own_create(p, KERNEL_FP32);
}

/* dW does not read the weights: the same whatever they are stored as. */
static void *own_create_bf16(const struct gemm_problem *p)
{
    return p->op == GEMM_BACKWARD_WEIGHT ? NULL : own_create(p, KERNEL_BF16);
}

static void own_run(void *state, int copy)
{
    struct own *own = state;
    const struct gemm_problem *p = own->problem;
    own->args.w = own->packed + (size_t)copy * own->packed_bytes;
    if (p->op == GEMM_FORWARD) {
        p->table->linear_forward(&own->args, p->pool);
    } else if (p->op == GEMM_BACKWARD_INPUT) {
        p->table->linear_backward_input(&own->args, p->pool);
    } else {
        p->table->linear_backward_weight(&own->args, p->pool);
    }
}

const struct gemm_library gemm_fp32 = {"foresight fp32", own_create_fp32, own_run, own_destroy};
const struct gemm_library gemm_bf16 = {"foresight bf16", own_create_bf16, own_run, own_destroy};
