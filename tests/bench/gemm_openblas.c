/* OpenBLAS, for bench_gemm. It has no call that packs weights beforehand. */
#include "tests/bench/bench_gemm.h"

#include <cblas.h>
#include <stdlib.h>
#include <string.h>

struct openblas {
    const struct gemm_problem *problem;
    float *w; /* copies one after another */
};

static void openblas_destroy(void *state)
{
    struct openblas *blas = state;
    if (blas != NULL) {
        free(blas->w);
        free(blas);
    }
}

static void *openblas_create(const struct gemm_problem *p)
{
    const size_t bytes = (size_t)(p->n * p->k) * sizeof(float);
    struct openblas *blas = calloc(1, sizeof *blas);
    if (blas == NULL) {
        return NULL;
    }
    blas->problem = p;
    blas->w = aligned_alloc(4096, (bytes * (size_t)p->copies + 4095) / 4096 * 4096);
    if (blas->w == NULL) {
        openblas_destroy(blas);
        return NULL;
    }
    for (int i = 0; i < p->copies; i++) {
        memcpy(blas->w + (int64_t)i * p->n * p->k, p->w, bytes);
    }
    openblas_set_num_threads(rl_pool_threads(p->pool));
    return blas;
}

static void openblas_run(void *state, int copy)
{
    const struct openblas *blas = state;
    const struct gemm_problem *p = blas->problem;
    const int m = (int)p->m;
    const int n = (int)p->n;
    const int k = (int)p->k;
    const float *w = blas->w + (int64_t)copy * p->n * p->k;
    if (p->op == GEMM_FORWARD && m == 1) {
        cblas_sgemv(CblasRowMajor, CblasNoTrans, n, k, 1.0f, w, k, p->x, 1, 0.0f, p->y, 1);
    } else if (p->op == GEMM_FORWARD) {
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, m, n, k, 1.0f, p->x, k, w, k, 0.0f,
                    p->y, n);
    } else if (p->op == GEMM_BACKWARD_INPUT) {
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, m, k, n, 1.0f, p->y, n, w, k, 0.0f,
                    p->x, k);
    } else {
        cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, n, k, m, 1.0f, p->y, n, p->x, k, 1.0f,
                    p->dw, k);
    }
}

const struct gemm_library gemm_openblas = {"OpenBLAS", openblas_create, openblas_run,
                                           openblas_destroy};
