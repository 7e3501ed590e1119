/* oneDNN 2, for bench_gemm: its matmul with the weights in the layout that it asks for. */
#include "tests/bench/bench_gemm.h"

#include <oneapi/dnnl/dnnl.h>
#include <stdlib.h>

enum { ONEDNN_COPIES_MAX = 4096 };

struct onednn {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    dnnl_primitive_desc_t description;
    dnnl_primitive_t matmul;
    dnnl_memory_t in, out, raw;
    dnnl_memory_t w[ONEDNN_COPIES_MAX];
    int copies;
};

/* Row-major [rows, columns], or the transpose of one that is [columns, rows]. */
static dnnl_memory_desc_t onednn_matrix(int64_t rows, int64_t columns, bool transposed)
{
    const dnnl_dims_t dims = {rows, columns};
    dnnl_memory_desc_t matrix;
    dnnl_memory_desc_init_by_tag(&matrix, 2, dims, dnnl_f32, transposed ? dnnl_ba : dnnl_ab);
    return matrix;
}

static void onednn_destroy(void *state)
{
    struct onednn *s = state;
    if (s == NULL) {
        return;
    }
    for (int i = 0; i < s->copies; i++) {
        dnnl_memory_destroy(s->w[i]);
    }
    dnnl_memory_destroy(s->raw);
    dnnl_memory_destroy(s->out);
    dnnl_memory_destroy(s->in);
    dnnl_primitive_destroy(s->matmul);
    dnnl_primitive_desc_destroy(s->description);
    dnnl_stream_destroy(s->stream);
    dnnl_engine_destroy(s->engine);
    free(s);
}

/* The three matrices of out = in w. */
struct onednn_shapes {
    dnnl_memory_desc_t in, w, out;
    float *in_data, *w_data, *out_data;
};

static struct onednn_shapes onednn_shapes(const struct gemm_problem *p)
{
    switch (p->op) {
    case GEMM_FORWARD:
        return (struct onednn_shapes){onednn_matrix(p->m, p->k, false),
                                      onednn_matrix(p->k, p->n, true),
                                      onednn_matrix(p->m, p->n, false),
                                      p->x,
                                      (float *)p->w,
                                      p->y};
    case GEMM_BACKWARD_INPUT:
        return (struct onednn_shapes){onednn_matrix(p->m, p->n, false),
                                      onednn_matrix(p->n, p->k, false),
                                      onednn_matrix(p->m, p->k, false),
                                      p->y,
                                      (float *)p->w,
                                      p->x};
    default:
        return (struct onednn_shapes){onednn_matrix(p->n, p->m, true),
                                      onednn_matrix(p->m, p->k, false),
                                      onednn_matrix(p->n, p->k, false),
                                      p->y,
                                      p->x,
                                      p->dw};
    }
}

static bool onednn_prepare(struct onednn *s, const struct onednn_shapes *shapes, bool pack)
{
    dnnl_memory_desc_t asked = shapes->w;
    if (pack) {
        dnnl_memory_desc_init_by_tag(&asked, 2, shapes->w.dims, dnnl_f32, dnnl_format_tag_any);
    }
    dnnl_matmul_desc_t product;
    return dnnl_engine_create(&s->engine, dnnl_cpu, 0) == dnnl_success &&
           dnnl_stream_create(&s->stream, s->engine, dnnl_stream_default_flags) == dnnl_success &&
           dnnl_matmul_desc_init(&product, &shapes->in, &asked, NULL, &shapes->out) ==
               dnnl_success &&
           dnnl_primitive_desc_create(&s->description, &product, NULL, s->engine, NULL) ==
               dnnl_success &&
           dnnl_primitive_create(&s->matmul, s->description) == dnnl_success &&
           dnnl_memory_create(&s->in, &shapes->in, s->engine, shapes->in_data) == dnnl_success &&
           dnnl_memory_create(&s->out, &shapes->out, s->engine, shapes->out_data) == dnnl_success &&
           dnnl_memory_create(&s->raw, &shapes->w, s->engine, shapes->w_data) == dnnl_success;
}

/* One more copy of the weights in the primitive's layout. */
static bool onednn_pack(struct onednn *s)
{
    const dnnl_memory_desc_t *wanted =
        dnnl_primitive_desc_query_md(s->description, dnnl_query_weights_md, 0);
    const dnnl_memory_desc_t *raw = NULL;
    dnnl_primitive_desc_t description = NULL;
    dnnl_primitive_t reorder = NULL;
    bool done = dnnl_memory_create(&s->w[s->copies], wanted, s->engine, DNNL_MEMORY_ALLOCATE) ==
                dnnl_success;
    s->copies += done;
    done = done && dnnl_memory_get_memory_desc(s->raw, &raw) == dnnl_success &&
           dnnl_reorder_primitive_desc_create(&description, raw, s->engine, wanted, s->engine,
                                              NULL) == dnnl_success &&
           dnnl_primitive_create(&reorder, description) == dnnl_success;
    if (done) {
        dnnl_exec_arg_t args[] = {{DNNL_ARG_FROM, s->raw}, {DNNL_ARG_TO, s->w[s->copies - 1]}};
        done = dnnl_primitive_execute(reorder, s->stream, 2, args) == dnnl_success &&
               dnnl_stream_wait(s->stream) == dnnl_success;
    }
    dnnl_primitive_destroy(reorder);
    dnnl_primitive_desc_destroy(description);
    return done;
}

static void *onednn_create(const struct gemm_problem *p)
{
    const struct onednn_shapes shapes = onednn_shapes(p);
    const bool pack = p->op != GEMM_BACKWARD_WEIGHT;
    struct onednn *s = calloc(1, sizeof *s);
    bool ready = s != NULL && onednn_prepare(s, &shapes, pack);
    for (int i = 0; ready && pack && i < p->copies && i < ONEDNN_COPIES_MAX; i++) {
        ready = onednn_pack(s);
    }
    if (!ready) {
        onednn_destroy(s);
        return NULL;
    }
    return s;
}

static void onednn_run(void *state, int copy)
{
    struct onednn *s = state;
    dnnl_exec_arg_t args[] = {{DNNL_ARG_SRC, s->in},
                              {DNNL_ARG_WEIGHTS, s->copies > 0 ? s->w[copy % s->copies] : s->raw},
                              {DNNL_ARG_DST, s->out}};
    dnnl_primitive_execute(s->matmul, s->stream, 3, args);
    dnnl_stream_wait(s->stream);
}

const struct gemm_library gemm_onednn = {"oneDNN", onednn_create, onednn_run, onednn_destroy};
