/* libxsmm, for bench_gemm: its generated kernels over weights packed in panels of 64 outputs, with
 * the loops around them that its authors leave to the caller. dW is left out: its kernels take no
 * transposed left side. */
#include "tests/bench/bench_gemm.h"

#include <libxsmm.h>
#include <stdlib.h>

enum { XSMM_PANEL = 64, XSMM_ROWS = 48, XSMM_DEPTH = 512 };

/* out[m][p] = sum over q of in[m][q] w[q][p]: forward and backward_input are both of this form. */
struct xsmm {
    const struct gemm_problem *problem;
    const float *in;
    float *out;
    int64_t p, q;
    float *w; /* per copy [P / 64][Q][64] */
    const float *now;
};

static void xsmm_destroy(void *state)
{
    struct xsmm *xsmm = state;
    if (xsmm != NULL) {
        free(xsmm->w);
        free(xsmm);
    }
}

static void xsmm_pack(struct xsmm *xsmm)
{
    const struct gemm_problem *problem = xsmm->problem;
    const bool forward = problem->op == GEMM_FORWARD;
    const int64_t count = xsmm->p * xsmm->q;
    for (int64_t i = 0; i < count * problem->copies; i++) {
        int64_t p = i % count / (xsmm->q * XSMM_PANEL) * XSMM_PANEL + i % XSMM_PANEL;
        int64_t q = i % count / XSMM_PANEL % xsmm->q;
        xsmm->w[i] = problem->w[forward ? p * problem->k + q : q * problem->k + p];
    }
}

static void *xsmm_create(const struct gemm_problem *problem)
{
    const bool forward = problem->op == GEMM_FORWARD;
    struct xsmm made = {.problem = problem,
                        .in = forward ? problem->x : problem->y,
                        .out = forward ? problem->y : problem->x,
                        .p = forward ? problem->n : problem->k,
                        .q = forward ? problem->k : problem->n};
    if (problem->op == GEMM_BACKWARD_WEIGHT || made.p % XSMM_PANEL != 0) {
        return NULL;
    }
    struct xsmm *xsmm = malloc(sizeof *xsmm);
    size_t bytes = (size_t)(made.p * made.q * problem->copies) * sizeof(float);
    made.w = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    if (xsmm == NULL || made.w == NULL) {
        free(made.w);
        free(xsmm);
        return NULL;
    }
    *xsmm = made;
    xsmm_pack(xsmm);
    return xsmm;
}

/* A panel of outputs for all rows; the rows of a block stay in the cache for it. */
static void xsmm_panel(void *arg, int index)
{
    const struct xsmm *s = arg;
    const libxsmm_blasint ldw = XSMM_PANEL;
    const libxsmm_blasint ldi = (libxsmm_blasint)s->q;
    const libxsmm_blasint ldo = (libxsmm_blasint)s->p;
    const float *panel = s->now + (int64_t)index * s->q * XSMM_PANEL;
    for (int64_t q = 0; q < s->q; q += XSMM_DEPTH) {
        const libxsmm_blasint depth =
            (libxsmm_blasint)(s->q - q < XSMM_DEPTH ? s->q - q : XSMM_DEPTH);
        const float alpha = 1.0f;
        const float beta = q == 0 ? 0.0f : 1.0f;
        for (int64_t m = 0; m < s->problem->m; m += XSMM_ROWS) {
            const int64_t left = s->problem->m - m;
            const libxsmm_blasint rows = (libxsmm_blasint)(left < XSMM_ROWS ? left : XSMM_ROWS);
            const libxsmm_smmfunction kernel = libxsmm_smmdispatch(
                XSMM_PANEL, rows, depth, &ldw, &ldi, &ldo, &alpha, &beta, NULL, NULL);
            kernel(panel + q * XSMM_PANEL, s->in + m * s->q + q,
                   s->out + m * s->p + (int64_t)index * XSMM_PANEL);
        }
    }
}

static void xsmm_run(void *state, int copy)
{
    struct xsmm *s = state;
    s->now = s->w + (int64_t)copy * s->p * s->q;
    rl_pool_run(s->problem->pool, (int)(s->p / XSMM_PANEL), xsmm_panel, s);
}

const struct gemm_library gemm_libxsmm = {"libxsmm", xsmm_create, xsmm_run, xsmm_destroy};
