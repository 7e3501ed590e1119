/* Every backward op of every table against central differences of a forward pass written here in
 * double, independent of the kernels: loss = sum of (random weight x output). */
#include "kernels/bf16.h"
#include "tests/kernel_support.h"

#include <check.h>

enum { INPUTS_MAX = 4, TOKENS_MAX = 96 };

/* One input of an op: its value in double, and the gradient that the kernel gave. */
struct input {
    const char *name;
    double *value;
    const float *gradient;
    int64_t count;
};

/* A forward pass in double with the loss at its end. */
struct model {
    struct input inputs[INPUTS_MAX];
    int input_count;
    const float *weight;  /* of the outputs in the loss */
    const float *weight2; /* of a second output (entropy) */
    double (*loss)(const struct model *m);
    int64_t rows, n, k;         /* linear: M, N, K; norm: M, C; head: M, V, C */
    int64_t heads, kv_heads, d; /* attention, rope */
    const int32_t *ids;         /* tokens, targets or positions */
    const float *cosine, *sine; /* rope */
    const struct kernel_segments *segments;
    int64_t window;
    double scale; /* epsilon, attention scale or 1 / temperature */
    enum kernel_activation activation;
    double tolerance; /* of the largest gradient; 0: 2e-5 */
};

static void model_input(struct model *m, struct memory *memory, const char *name,
                        const float *value, int64_t count, const float *gradient)
{
    double *copy = memory_area(memory, (size_t)count * sizeof(double), false);
    for (int64_t i = 0; i < count; i++) {
        copy[i] = (double)value[i];
    }
    m->inputs[m->input_count++] =
        (struct input){.name = name, .value = copy, .gradient = gradient, .count = count};
}

/* Compare all gradients; `offset` was in the gradient buffers before (they accumulate). */
static void model_check(const struct model *m, const char *table, const char *op, double offset)
{
    for (int i = 0; i < m->input_count; i++) {
        const struct input *in = &m->inputs[i];
        double largest = 1e-2; /* gradients that vanish are held against the terms that cancel */
        double worst = 0.0;
        for (int64_t j = 0; j < in->count; j++) {
            const double step = 1e-5;
            double kept = in->value[j];
            in->value[j] = kept + step;
            double up = m->loss(m);
            in->value[j] = kept - step;
            double down = m->loss(m);
            in->value[j] = kept;
            double want = (up - down) / (2.0 * step);
            largest = fmax(largest, fabs(want));
            worst = fmax(worst, fabs(want - ((double)in->gradient[j] - offset)));
        }
        double tolerance = m->tolerance > 0 ? m->tolerance : 2e-5;
        ck_assert_msg(worst <= tolerance * largest, "%s %s d%s: off by %g where the largest is %g",
                      table, op, in->name, worst, largest);
    }
}

static float *gradient_buffer(struct memory *m, int64_t count, float offset)
{
    float *data = memory_output(m, count, 1.0);
    for (int64_t i = 0; i < count; i++) {
        data[i] = offset;
    }
    return data;
}

static double linear_loss(const struct model *m)
{
    const double *x = m->inputs[0].value;
    const double *w = m->inputs[1].value;
    const double *bias = m->inputs[2].value;
    double loss = 0.0;
    for (int64_t i = 0; i < m->rows * m->n; i++) {
        double y = bias[i % m->n];
        for (int64_t k = 0; k < m->k; k++) {
            y += x[i / m->n * m->k + k] * w[i % m->n * m->k + k];
        }
        loss += y * (double)m->weight[i];
    }
    return loss;
}

START_TEST(linear_gradients)
{
    const struct kernel_table *table = NULL;
    const int64_t shapes[3][3] = {{1, 3, 5}, {7, 33, 20}, {17, 40, 35}};
    for (int index = 0; support_table(index, &table); index++) {
        struct memory memory;
        memory_init(&memory, 20, FLAVOUR_PLAIN);
        struct model m = {.loss = linear_loss};
        m.rows = shapes[_i][0];
        m.n = shapes[_i][1];
        m.k = shapes[_i][2];
        const float offset = 0.5f;
        float *x = memory_floats(&memory, m.rows * m.k, 1.0);
        float *w = memory_floats(&memory, m.n * m.k, 1.0);
        float *bias = memory_floats(&memory, m.n, 1.0);
        float *dy = memory_floats(&memory, m.rows * m.n, 1.0);
        float *packed = memory_area(&memory, kernel_packed_bytes(m.n, m.k, KERNEL_FP32), false);
        struct kernel_linear_pack_args pack = {
            .w = w, .packed = packed, .dtype = KERNEL_FP32, .n = m.n, .k = m.k};
        table->linear_pack(&pack, NULL);
        struct kernel_linear_args a = {.w = packed,
                                       .x = gradient_buffer(&memory, m.rows * m.k, offset),
                                       .y = dy,
                                       .dw = gradient_buffer(&memory, m.n * m.k, offset),
                                       .dbias = gradient_buffer(&memory, m.n, offset),
                                       .m = m.rows,
                                       .n = m.n,
                                       .k = m.k,
                                       .x_stride = m.k,
                                       .y_stride = m.n,
                                       .accumulate = true};
        table->linear_backward_input(&a, NULL);
        m.weight = dy;
        model_input(&m, &memory, "x", x, m.rows * m.k, a.x);
        a.x = x;
        table->linear_backward_weight(&a, NULL);
        model_input(&m, &memory, "w", w, m.n * m.k, a.dw);
        model_input(&m, &memory, "bias", bias, m.n, a.dbias);
        model_check(&m, table->name, "linear", (double)offset);
        memory_fini(&memory);
    }
}
END_TEST

static double embedding_loss(const struct model *m)
{
    double loss = 0.0;
    for (int64_t i = 0; i < m->rows * m->k; i++) {
        loss += m->inputs[0].value[m->ids[i / m->k] * m->k + i % m->k] * (double)m->weight[i];
    }
    return loss;
}

START_TEST(embedding_gradients)
{
    const struct kernel_table *table = NULL;
    for (int index = 0; support_table(index, &table); index++) {
        struct memory memory;
        memory_init(&memory, 21, FLAVOUR_PLAIN);
        struct model m = {.loss = embedding_loss, .rows = 40, .n = 13, .k = 37};
        float *w = memory_floats(&memory, m.n * m.k, 1.0);
        float *dy = memory_floats(&memory, m.rows * m.k, 1.0);
        struct kernel_embedding_args a = {.ids = memory_ids(&memory, m.rows, m.n),
                                          .y = dy,
                                          .dw = gradient_buffer(&memory, m.n * m.k, 0.0f),
                                          .m = m.rows,
                                          .v = m.n,
                                          .c = m.k};
        table->embedding_backward(&a, NULL);
        m.weight = dy;
        m.ids = a.ids;
        model_input(&m, &memory, "w", w, m.n * m.k, a.dw);
        model_check(&m, table->name, "embedding", 0.0);
        memory_fini(&memory);
    }
}
END_TEST

static double norm_loss(const struct model *m)
{
    const double *w = m->inputs[1].value;
    double loss = 0.0;
    for (int64_t r = 0; r < m->rows; r++) {
        const double *x = m->inputs[0].value + r * m->k;
        double square = 0.0;
        for (int64_t c = 0; c < m->k; c++) {
            square += x[c] * x[c];
        }
        double inv = 1.0 / sqrt(square / (double)m->k + m->scale);
        for (int64_t c = 0; c < m->k; c++) {
            loss += x[c] * inv * w[c] * (double)m->weight[r * m->k + c];
        }
    }
    return loss;
}

START_TEST(rmsnorm_gradients)
{
    const struct kernel_table *table = NULL;
    const int64_t widths[] = {1, 32, 77, 130};
    for (int index = 0; support_table(index, &table); index++) {
        struct memory memory;
        memory_init(&memory, 22, FLAVOUR_PLAIN);
        struct model m = {.loss = norm_loss, .rows = 9, .k = widths[_i], .scale = 0.01};
        float *x = memory_floats(&memory, m.rows * m.k, 1.0);
        float *w = memory_floats(&memory, m.k, 1.0);
        float *dy = memory_floats(&memory, m.rows * m.k, 1.0);
        struct kernel_rmsnorm_args a = {.x = x,
                                        .weight = w,
                                        .y = memory_output(&memory, m.rows * m.k, 1.0),
                                        .inv_rms = memory_output(&memory, m.rows, 1.0),
                                        .dy = dy,
                                        .dx = gradient_buffer(&memory, m.rows * m.k, 0.25f),
                                        .dweight = gradient_buffer(&memory, m.k, 0.25f),
                                        .m = m.rows,
                                        .c = m.k,
                                        .epsilon = 0.01f,
                                        .accumulate = true};
        table->rmsnorm_forward(&a, NULL);
        table->rmsnorm_backward(&a, NULL);
        m.weight = dy;
        model_input(&m, &memory, "x", x, m.rows * m.k, a.dx);
        model_input(&m, &memory, "weight", w, m.k, a.dweight);
        model_check(&m, table->name, "rmsnorm", 0.25);
        memory_fini(&memory);
    }
}
END_TEST

static double rope_loss(const struct model *m)
{
    int64_t half = m->d / 2;
    double loss = 0.0;
    for (int64_t row = 0; row < m->rows * m->heads; row++) {
        const double *x = m->inputs[0].value + row * m->d;
        const float *weight = m->weight + row * m->d;
        for (int64_t i = 0; i < half; i++) {
            double c = (double)m->cosine[m->ids[row / m->heads] * half + i];
            double s = (double)m->sine[m->ids[row / m->heads] * half + i];
            loss += (x[i] * c - x[i + half] * s) * (double)weight[i];
            loss += (x[i + half] * c + x[i] * s) * (double)weight[i + half];
        }
    }
    return loss;
}

START_TEST(rope_gradients)
{
    const struct kernel_table *table = NULL;
    enum { POSITIONS = 20 };
    for (int index = 0; support_table(index, &table); index++) {
        struct memory memory;
        memory_init(&memory, 23, FLAVOUR_PLAIN);
        struct model m = {.loss = rope_loss, .rows = 6, .heads = 3, .d = 22};
        float *x = memory_floats(&memory, m.rows * m.heads * m.d, 1.0);
        float *dy = memory_floats(&memory, m.rows * m.heads * m.d, 1.0);
        float *dx = memory_output(&memory, m.rows * m.heads * m.d, 1.0);
        memcpy(dx, dy, (size_t)(m.rows * m.heads * m.d) * sizeof *dx);
        m.cosine = memory_floats(&memory, POSITIONS * m.d / 2, 1.0);
        m.sine = memory_floats(&memory, POSITIONS * m.d / 2, 1.0);
        m.ids = memory_ids(&memory, m.rows, POSITIONS);
        struct kernel_rope_args a = {dx, m.cosine, m.sine, m.ids, m.rows, m.heads, m.d};
        table->rope_backward(&a, NULL);
        m.weight = dy;
        model_input(&m, &memory, "x", x, m.rows * m.heads * m.d, dx);
        model_check(&m, table->name, "rope", 0.0);
        memory_fini(&memory);
    }
}
END_TEST

static double glu_loss(const struct model *m)
{
    double loss = 0.0;
    for (int64_t i = 0; i < m->k; i++) {
        double g = m->inputs[0].value[i];
        double tanh_part = tanh(sqrt(2.0 / M_PI) * (g + 0.044715 * g * g * g));
        double act =
            m->activation == KERNEL_SILU ? g / (1.0 + exp(-g)) : 0.5 * g * (1.0 + tanh_part);
        loss += act * m->inputs[1].value[i] * (double)m->weight[i];
    }
    return loss;
}

START_TEST(glu_gradients)
{
    const struct kernel_table *table = NULL;
    for (int index = 0; support_table(index, &table); index++) {
        struct memory memory;
        memory_init(&memory, 24, FLAVOUR_PLAIN);
        struct model m = {.loss = glu_loss, .k = 201};
        m.activation = _i == 0 ? KERNEL_SILU : KERNEL_GELU_TANH;
        struct kernel_glu_args a = {.gate = memory_floats(&memory, m.k, 2.0),
                                    .up = memory_floats(&memory, m.k, 1.0),
                                    .dy = memory_floats(&memory, m.k, 1.0),
                                    .dgate = memory_output(&memory, m.k, 1.0),
                                    .dup = memory_output(&memory, m.k, 1.0),
                                    .count = m.k,
                                    .activation = m.activation};
        table->glu_backward(&a, NULL);
        m.weight = a.dy;
        model_input(&m, &memory, "gate", a.gate, m.k, a.dgate);
        model_input(&m, &memory, "up", a.up, m.k, a.dup);
        model_check(&m, table->name, "glu", 0.0);
        memory_fini(&memory);
    }
}
END_TEST

/* Loss part of query row (token t of the segment that starts at `first`, head h). */
static double attention_row_loss(const struct model *m, int64_t first, int64_t t, int64_t h)
{
    double weights[TOKENS_MAX];
    const double *q = m->inputs[0].value + ((first + t) * m->heads + h) * m->d;
    const float *dout = m->weight + ((first + t) * m->heads + h) * m->d;
    int64_t kv = h / (m->heads / m->kv_heads);
    int64_t low = m->window > 0 && t >= m->window ? t - m->window + 1 : 0;
    double sum = 0.0;
    for (int64_t j = low; j <= t; j++) {
        const double *k = m->inputs[1].value + ((first + j) * m->kv_heads + kv) * m->d;
        double score = 0.0;
        for (int64_t d = 0; d < m->d; d++) {
            score += q[d] * k[d] * m->scale;
        }
        weights[j] = exp(score);
        sum += weights[j];
    }
    double loss = 0.0;
    for (int64_t j = low; j <= t; j++) {
        const double *v = m->inputs[2].value + ((first + j) * m->kv_heads + kv) * m->d;
        for (int64_t d = 0; d < m->d; d++) {
            loss += weights[j] / sum * v[d] * (double)dout[d];
        }
    }
    return loss;
}

static double attention_loss(const struct model *m)
{
    const int32_t *start = m->segments->segment_start;
    double loss = 0.0;
    for (int64_t s = 0; s < m->segments->count; s++) {
        for (int64_t t = 0; t < start[s + 1] - start[s]; t++) {
            for (int64_t h = 0; h < m->heads; h++) {
                loss += attention_row_loss(m, start[s], t, h);
            }
        }
    }
    return loss;
}

struct attention_shape {
    int64_t heads, kv_heads, d, window;
    int64_t lengths[3];
};

static const struct attention_shape attention_shapes[] = {{2, 1, 5, 0, {1, 3, 18}},
                                                          {3, 3, 16, 4, {20, 0, 7}},
                                                          {4, 2, 8, 0, {2, 33, 1}},
                                                          {1, 1, 4, 66, {70, 1, 2}}};
enum { ATTENTION_SHAPES = sizeof attention_shapes / sizeof attention_shapes[0] };

/* With bf16 pages: at keys and values that rounding leaves alone, which is where it passes
 * gradients on. */
START_TEST(attention_gradients)
{
    const struct attention_shape *shape = &attention_shapes[_i % ATTENTION_SHAPES];
    const enum kernel_dtype dtype = _i < ATTENTION_SHAPES ? KERNEL_FP32 : KERNEL_BF16;
    const struct kernel_table *table = NULL;
    for (int index = 0; support_table(index, &table); index++) {
        struct memory memory;
        memory_init(&memory, 25, FLAVOUR_PLAIN);
        struct sequences s = memory_sequences(&memory, 3, shape->lengths, NULL);
        struct model m = {.loss = attention_loss,
                          .heads = shape->heads,
                          .kv_heads = shape->kv_heads,
                          .d = shape->d,
                          .window = shape->window,
                          .scale = 0.5,
                          .segments = &s.segments};
        if (table->isa == KERNEL_ISA_CUDA && dtype == KERNEL_BF16) {
            m.tolerance = 1e-2; /* tensor cores are given rounded queries, slopes and gradients */
        }
        const int64_t q_count = s.tokens * m.heads * m.d;
        const int64_t kv_count = s.tokens * m.kv_heads * m.d;
        float *q = memory_floats(&memory, q_count, 1.0);
        float *k = memory_floats(&memory, kv_count, 1.0);
        float *v = memory_floats(&memory, kv_count, 1.0);
        for (int64_t i = 0; dtype == KERNEL_BF16 && i < kv_count; i++) {
            k[i] = kernel_bf16_to_float(kernel_bf16_from_float(k[i]));
            v[i] = kernel_bf16_to_float(kernel_bf16_from_float(v[i]));
        }
        int64_t page_floats = m.kv_heads * m.d * KERNEL_PAGE_TOKENS;
        float *k_pages = gradient_buffer(&memory, s.pages * page_floats, NAN);
        float *v_pages = gradient_buffer(&memory, s.pages * page_floats, NAN);
        struct kernel_kv_args kv = {&s.segments, k, v, k_pages, v_pages, dtype, m.kv_heads, m.d};
        table->kv_write(&kv, NULL);
        struct kernel_attention_args a = {.segments = &s.segments,
                                          .q = q,
                                          .k_pages = k_pages,
                                          .v_pages = v_pages,
                                          .dtype = dtype,
                                          .out = memory_output(&memory, q_count, 1.0),
                                          .lse = memory_output(&memory, s.tokens * m.heads, 1.0),
                                          .dout = memory_floats(&memory, q_count, 1.0),
                                          .dq = memory_output(&memory, q_count, 1.0),
                                          .dk = memory_output(&memory, kv_count, 1.0),
                                          .dv = memory_output(&memory, kv_count, 1.0),
                                          .heads = m.heads,
                                          .kv_heads = m.kv_heads,
                                          .d = m.d,
                                          .window = m.window,
                                          .scale = 0.5f};
        table->attention_forward(&a, NULL);
        table->attention_backward(&a, NULL);
        m.weight = a.dout;
        model_input(&m, &memory, "q", q, q_count, a.dq);
        model_input(&m, &memory, "k", k, kv_count, a.dk);
        model_input(&m, &memory, "v", v, kv_count, a.dv);
        model_check(&m, table->name, "attention", 0.0);
        memory_fini(&memory);
    }
}
END_TEST

static double head_row_loss(const struct model *m, int64_t row)
{
    double sum = 0.0;
    double weighted = 0.0;
    double target = 0.0;
    for (int64_t v = 0; v < m->n; v++) {
        double z = 0.0;
        for (int64_t c = 0; c < m->k; c++) {
            z += m->inputs[0].value[row * m->k + c] * m->inputs[1].value[v * m->k + c];
        }
        z *= m->scale;
        sum += exp(z);
        weighted += exp(z) * z;
        target = v == m->ids[row] ? z : target;
    }
    double entropy = log(sum) - weighted / sum;
    double loss = (target - log(sum)) * (double)m->weight[row];
    return loss + (m->weight2 != NULL ? entropy * (double)m->weight2[row] : 0.0);
}

static double head_loss(const struct model *m)
{
    double loss = 0.0;
    for (int64_t row = 0; row < m->rows; row++) {
        loss += head_row_loss(m, row);
    }
    return loss;
}

/* Vocabulary of several chunks in the last shape; there the gradients of a few rows only. */
static const int64_t head_shapes[][3] = {{1, 1, 3}, {7, 33, 12}, {20, 64, 16}, {2, 1030, 2}};
enum { HEAD_SHAPES = sizeof head_shapes / sizeof head_shapes[0] };

START_TEST(head_gradients)
{
    const struct kernel_table *table = NULL;
    const int64_t *shape = head_shapes[_i / 2];
    for (int index = 0; support_table(index, &table); index++) {
        struct memory memory;
        memory_init(&memory, 26, FLAVOUR_PLAIN);
        struct model m = {
            .loss = head_loss, .rows = shape[0], .n = shape[1], .k = shape[2], .scale = 1.25};
        float *x = memory_floats(&memory, m.rows * m.k, 1.0);
        float *w = memory_floats(&memory, m.n * m.k, 1.0);
        float *packed = memory_area(&memory, kernel_packed_bytes(m.n, m.k, KERNEL_FP32), false);
        struct kernel_linear_pack_args pack = {
            .w = w, .packed = packed, .dtype = KERNEL_FP32, .n = m.n, .k = m.k};
        table->linear_pack(&pack, NULL);
        float *g = memory_floats(&memory, m.rows, 1.0);
        g[m.rows / 2] = 0.0f; /* a row without gradient, or with that of entropy alone */
        struct kernel_head_args a = {
            .x = x,
            .w = packed,
            .targets = memory_ids(&memory, m.rows, m.n),
            .inv_temperature = 1.25f,
            .logprob = memory_output(&memory, m.rows, 1.0),
            .entropy = memory_output(&memory, m.rows, 1.0),
            .lse = memory_output(&memory, m.rows, 1.0),
            .g_logprob = g,
            .g_entropy = _i % 2 == 1 ? memory_floats(&memory, m.rows, 1.0) : NULL,
            .dx = memory_output(&memory, m.rows * m.k, 1.0),
            .dw = gradient_buffer(&memory, m.n * m.k, 0.5f),
            .scratch = memory_output(&memory, m.rows * KERNEL_HEAD_CHUNK, 1.0),
            .m = m.rows,
            .v = m.n,
            .c = m.k};
        table->head_forward(&a, NULL);
        table->head_backward(&a, NULL);
        for (int64_t i = 0; i < m.rows * m.k; i++) {
            a.dx[i] += 0.5f; /* dx is overwritten, dw accumulates */
        }
        m.weight = g;
        m.weight2 = a.g_entropy;
        m.ids = a.targets;
        model_input(&m, &memory, "x", x, m.rows * m.k, a.dx);
        model_input(&m, &memory, "w", w, m.n * m.k, a.dw);
        model_check(&m, table->name, "head", 0.5);
        memory_fini(&memory);
    }
}
END_TEST

static Suite *gradients_suite(void)
{
    Suite *suite = suite_create("check_gradients");
    TCase *all = tcase_create("central differences");
    tcase_set_timeout(all, 300);
    tcase_add_loop_test(all, linear_gradients, 0, 3);
    tcase_add_test(all, embedding_gradients);
    tcase_add_loop_test(all, rmsnorm_gradients, 0, 4);
    tcase_add_test(all, rope_gradients);
    tcase_add_loop_test(all, glu_gradients, 0, 2);
    tcase_add_loop_test(all, attention_gradients, 0, 2 * ATTENTION_SHAPES);
    tcase_add_loop_test(all, head_gradients, 0, 2 * HEAD_SHAPES);
    suite_add_tcase(suite, all);
    return suite;
}

int main(void)
{
    SRunner *runner = srunner_create(gradients_suite());
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
