/* Every op of ops.def on every table of this machine: against `ref` (random odd sizes, hostile
 * values, guard zones), and with 1, 2 and 3 threads bit by bit. `check_kernels --bench` times the
 * same calls at the sizes of a small model. The table of cases comes from ops.def: an op without a
 * case does not compile. */
#include "kernels/bf16.h"
#include "kernels/probe.h"
#include "kernels/sampling.h"
#include "tests/kernel_calls.h"

#include <check.h>

static void case_pass_begin(struct call *c)
{
    struct kernel_pass_array arrays[KERNEL_PASS_ARRAYS] = {{0}};
    struct kernel_pass_args a = {.arrays = arrays, .count = call_size(c, 0, 8, 8)};
    int64_t lengths[3] = {call_size(c, 0, 40, 30), 1, call_size(c, 0, 70, 30)};
    int64_t first[3] = {0, call_size(c, 0, 90, 30), 17};
    struct sequences s = memory_sequences(&c->memory, 3, lengths, first);
    a.segments = &s.segments;
    for (int64_t i = 0; i < a.count; i++) {
        int64_t integers = call_size(c, 1, 50, 100);
        arrays[i] = (struct kernel_pass_array){.data = memory_ids(&c->memory, integers, 1000),
                                               .bytes = (size_t)integers * sizeof(int32_t)};
    }
    while (call_again(c)) {
        c->table->pass_begin(&a, c->pool);
    }
}

static void case_linear_pack(struct call *c)
{
    struct kernel_linear_pack_args a = {
        .n = call_size(c, 1, 100, 512), .k = call_size(c, 1, 70, 512), .dtype = call_dtype(c)};
    float *w = memory_floats(&c->memory, a.n * a.k, 3.0);
    if (c->size == SIZE_ODD) {
        w[0] = NAN;
        w[a.n * a.k / 2] = -INFINITY;
        w[a.n * a.k - 1] = 3.4e38f; /* rounds to infinity in bf16 */
    }
    a.w = w;
    size_t bytes = kernel_packed_bytes(a.n, a.k, a.dtype);
    if (call_flip(c)) { /* against an image in which every fifth element or so was another */
        size_t width = a.dtype == KERNEL_BF16 ? 2 : 4;
        char *previous = memory_area(&c->memory, bytes, false);
        a.packed = previous;
        support_ref()->linear_pack(&a, NULL);
        for (size_t i = (size_t)memory_pick(&c->memory, 0, 4); i < bytes / width; i += 5) {
            previous[i * width + (size_t)memory_pick(&c->memory, 0, (int64_t)width - 1)] ^= 1;
        }
        memory_packed(&c->memory, a.n, a.k, width);
        a.previous = previous;
        a.changed = memory_area(&c->memory, bytes / width / 8, true);
        memory_packed(&c->memory, a.n, a.k, 0);
        c->memory.areas[c->memory.count - 1].integers = true;
        memset(a.changed, 0x55, bytes / width / 8);
    }
    a.packed = memory_area(&c->memory, bytes, true);
    memory_packed(&c->memory, a.n, a.k, a.dtype == KERNEL_BF16 ? 2 : 4);
    c->memory.areas[c->memory.count - 1].integers = true; /* compare bits */
    while (call_again(c)) {
        c->table->linear_pack(&a, c->pool);
    }
}

static void case_linear_quantize(struct call *c)
{
    struct kernel_linear_quantize_args a = {
        .n = call_size(c, 1, 100, 512), .k = call_size(c, 1, 70, 512), .dtype = call_dtype(c)};
    a.w = memory_weights(&c->memory, a.n, a.k, a.dtype);
    a.packed = memory_area(&c->memory, kernel_packed_bytes(a.n, a.k, KERNEL_INT8), true);
    while (call_again(c)) {
        c->table->linear_quantize(&a, c->pool);
    }
}

static struct kernel_linear_args linear_case(struct call *c)
{
    struct kernel_linear_args a = {.m = call_size(c, 1, 60, 512),
                                   .n = call_size(c, 1, 150, 384),
                                   .k = call_size(c, 1, 130, 192),
                                   .dtype = call_dtype(c),
                                   .accumulate = call_flip(c)};
    if (c->size == SIZE_ODD && memory_pick(&c->memory, 0, 3) == 0) {
        a.k = memory_pick(&c->memory, 500, 1100); /* several blocks of K */
    }
    a.x_stride = a.k + (call_flip(c) ? 5 : 0);
    a.y_stride = a.n + (call_flip(c) ? 3 : 0);
    c->flops = 2.0 * (double)a.m * (double)a.n * (double)a.k;
    return a;
}

static void case_linear_forward(struct call *c)
{
    struct kernel_linear_args a = linear_case(c);
    a.dtype = call_weights(c);
    a.w = memory_weights(&c->memory, a.n, a.k, a.dtype);
    a.bias = call_flip(c) ? memory_floats(&c->memory, a.n, 1.0) : NULL;
    a.x = call_inputs(c, (a.m - 1) * a.x_stride + a.k, 1.0);
    a.y = memory_output(&c->memory, (a.m - 1) * a.y_stride + a.n, 1.0);
    while (call_again(c)) {
        c->table->linear_forward(&a, c->pool);
    }
}

static void case_linear_forward_set(struct call *c)
{
    struct kernel_linear_set_args set = {.count = (int)memory_pick(&c->memory, 1, 3)};
    struct kernel_linear_args a = linear_case(c);
    a.dtype = call_weights(c);
    const float *x = call_inputs(c, (a.m - 1) * a.x_stride + a.k, 1.0);
    c->flops = 0;
    for (int i = 0; i < set.count; i++) {
        struct kernel_linear_args *map = &set.maps[i];
        *map = a;
        map->n = call_size(c, 1, 150, 384);
        map->y_stride = map->n;
        map->w = memory_weights(&c->memory, map->n, a.k, a.dtype);
        map->bias = call_flip(c) ? memory_floats(&c->memory, map->n, 1.0) : NULL;
        map->x = (float *)(uintptr_t)x;
        map->y = memory_output(&c->memory, a.m * map->n, 1.0);
        c->flops += 2.0 * (double)a.m * (double)map->n * (double)a.k;
    }
    while (call_again(c)) {
        c->table->linear_forward_set(&set, c->pool);
    }
}

static void case_linear_backward_set(struct call *c)
{
    struct kernel_linear_set_args set = {.count = (int)memory_pick(&c->memory, 1, 3)};
    struct kernel_linear_args a = linear_case(c);
    a.x = call_inputs(c, (a.m - 1) * a.x_stride + a.k, 1.0);
    set.dx = call_flip(c) ? NULL : memory_output(&c->memory, (a.m - 1) * a.x_stride + a.k, 1.0);
    c->flops = 0;
    for (int i = 0; i < set.count; i++) {
        struct kernel_linear_args *map = &set.maps[i];
        *map = a;
        map->n = call_size(c, 1, 150, 384);
        map->y_stride = map->n;
        map->w = memory_weights(&c->memory, map->n, a.k, a.dtype);
        map->y = call_inputs(c, a.m * map->n, 1.0);
        map->dw = memory_output(&c->memory, map->n * a.k, 1.0);
        map->dbias = call_flip(c) ? memory_output(&c->memory, map->n, 1.0) : NULL;
        map->accumulate = i > 0 || a.accumulate;
        c->flops += 4.0 * (double)a.m * (double)map->n * (double)a.k;
    }
    while (call_again(c)) {
        c->table->linear_backward_set(&set, c->pool);
    }
}

static void case_linear_backward_input(struct call *c)
{
    struct kernel_linear_args a = linear_case(c);
    a.w = memory_weights(&c->memory, a.n, a.k, a.dtype);
    a.y = call_inputs(c, (a.m - 1) * a.y_stride + a.n, 1.0);
    a.x = memory_output(&c->memory, (a.m - 1) * a.x_stride + a.k, 1.0);
    while (call_again(c)) {
        c->table->linear_backward_input(&a, c->pool);
    }
}

static void case_linear_backward_weight(struct call *c)
{
    struct kernel_linear_args a = linear_case(c);
    if (c->size == SIZE_ODD && memory_pick(&c->memory, 0, 2) == 0) {
        a.m = memory_pick(&c->memory, 250, 600); /* several blocks of rows */
    }
    a.y = call_inputs(c, (a.m - 1) * a.y_stride + a.n, 1.0);
    a.x = call_inputs(c, (a.m - 1) * a.x_stride + a.k, 1.0);
    a.dw = memory_output(&c->memory, a.n * a.k, 1.0);
    a.dbias = call_flip(c) ? memory_output(&c->memory, a.n, 1.0) : NULL;
    while (call_again(c)) {
        c->table->linear_backward_weight(&a, c->pool);
    }
}

static void case_embedding_forward(struct call *c)
{
    struct kernel_embedding_args a = {.m = call_size(c, 1, 60, 4096),
                                      .v = call_size(c, 1, 90, 64),
                                      .c = call_size(c, 1, 70, 128),
                                      .dtype = call_weights(c)};
    a.w = memory_weights(&c->memory, a.v, a.c, a.dtype);
    a.ids = memory_ids(&c->memory, a.m, a.v);
    a.y = memory_output(&c->memory, a.m * a.c, 1.0);
    while (call_again(c)) {
        c->table->embedding_forward(&a, c->pool);
    }
}

static void case_embedding_backward(struct call *c)
{
    struct kernel_embedding_args a = {.m = call_size(c, 1, 60, 4096),
                                      .v = call_size(c, 1, 90, 64),
                                      .c = call_size(c, 1, 70, 128)};
    a.ids = memory_ids(&c->memory, a.m, a.v);
    a.y = memory_floats(&c->memory, a.m * a.c, 1.0);
    a.dw = memory_output(&c->memory, a.v * a.c, 1.0);
    while (call_again(c)) {
        c->table->embedding_backward(&a, c->pool);
    }
}

static void case_rmsnorm_forward(struct call *c)
{
    struct kernel_rmsnorm_args a = {
        .m = call_size(c, 1, 40, 4096), .c = call_size(c, 1, 200, 128), .epsilon = 1e-6f};
    float *x = memory_output(&c->memory, a.m * a.c, 1.0);
    a.x = x;
    a.weight = memory_floats(&c->memory, a.c, 1.0);
    a.y = call_flip(c) ? x : memory_output(&c->memory, a.m * a.c, 1.0);
    a.inv_rms = call_flip(c) ? memory_output(&c->memory, a.m, 1.0) : NULL;
    if (c->size == SIZE_ODD) {
        memset(x, 0, (size_t)a.c * sizeof *x); /* a row of zeros */
    }
    c->flops = 4.0 * (double)(a.m * a.c);
    while (call_again(c)) {
        c->table->rmsnorm_forward(&a, c->pool);
    }
}

static void case_rmsnorm_backward(struct call *c)
{
    struct kernel_rmsnorm_args a = {.m = call_size(c, 1, 40, 4096),
                                    .c = call_size(c, 1, 200, 128),
                                    .epsilon = 1e-6f,
                                    .accumulate = call_flip(c)};
    a.x = memory_floats(&c->memory, a.m * a.c, 1.0);
    a.weight = memory_floats(&c->memory, a.c, 1.0);
    a.inv_rms = memory_floats(&c->memory, a.m, 1.0);
    float *dy = memory_output(&c->memory, a.m * a.c, 1.0);
    bool in_place = !a.accumulate && call_flip(c);
    a.dy = dy;
    a.dx = in_place ? dy : memory_output(&c->memory, a.m * a.c, 1.0);
    a.dweight = memory_output(&c->memory, a.c, 1.0);
    c->flops = 10.0 * (double)(a.m * a.c);
    while (call_again(c)) {
        c->table->rmsnorm_backward(&a, c->pool);
    }
}

static struct kernel_rope_args rope_case(struct call *c)
{
    struct kernel_rope_args a = {.n = call_size(c, 1, 40, 2048),
                                 .heads = call_size(c, 1, 5, 6),
                                 .d = 2 * call_size(c, 1, 50, 16)};
    int64_t positions = 77;
    a.x = memory_output(&c->memory, a.n * a.heads * a.d, 1.0);
    float *cosine = memory_floats(&c->memory, positions * a.d / 2, 1.0);
    float *sine = memory_floats(&c->memory, positions * a.d / 2, 1.0);
    for (int64_t i = 0; i < positions * a.d / 2; i++) {
        double angle = 7.0 * rl_rng_next_uniform(&c->memory.rng);
        cosine[i] = (float)cos(angle);
        sine[i] = (float)sin(angle);
    }
    a.cosine = cosine;
    a.sine = sine;
    a.positions = memory_ids(&c->memory, a.n, positions);
    c->flops = 3.0 * (double)(a.n * a.heads * a.d);
    return a;
}

static void case_rope_forward(struct call *c)
{
    struct kernel_rope_args a = rope_case(c);
    while (call_again(c)) {
        c->table->rope_forward(&a, c->pool);
    }
}

static void case_rope_backward(struct call *c)
{
    struct kernel_rope_args a = rope_case(c);
    while (call_again(c)) {
        c->table->rope_backward(&a, c->pool);
    }
}

static struct kernel_glu_args glu_case(struct call *c)
{
    struct kernel_glu_args a = {.count = call_size(c, 1, 900, 512 * 1024),
                                .activation = call_flip(c) ? KERNEL_GELU_TANH : KERNEL_SILU};
    float *gate = memory_output(&c->memory, a.count, 3.0);
    if (c->size == SIZE_ODD) {
        const float hostile[] = {-1e4f, 1e4f, 88.0f, -88.0f, 103.0f, -103.0f, 20.0f, -20.0f, 0.0f};
        int64_t fits = a.count < 9 ? a.count : 9;
        memcpy(gate, hostile, (size_t)fits * sizeof *gate);
    }
    a.gate = gate;
    a.up = memory_output(&c->memory, a.count, 1e-4);
    return a;
}

static void case_glu_forward(struct call *c)
{
    struct kernel_glu_args a = glu_case(c);
    a.y = memory_output(&c->memory, a.count, 1.0);
    c->flops = 20.0 * (double)a.count;
    while (call_again(c)) {
        c->table->glu_forward(&a, c->pool);
    }
}

static void case_glu_backward(struct call *c)
{
    struct kernel_glu_args a = glu_case(c);
    bool in_place = c->size != SIZE_BENCH && call_flip(c);
    a.dy = memory_floats(&c->memory, a.count, 1.0);
    a.dgate = in_place ? (float *)a.gate : memory_output(&c->memory, a.count, 1.0);
    a.dup = in_place ? (float *)a.up : memory_output(&c->memory, a.count, 1.0);
    c->flops = 25.0 * (double)a.count;
    while (call_again(c)) {
        c->table->glu_backward(&a, c->pool);
    }
}

/* Segments of random lengths; training: all start at position 0. */
static struct sequences sequences_case(struct call *c, bool training)
{
    int64_t lengths[64] = {0};
    int64_t first[64] = {0};
    int64_t count = c->size == SIZE_ODD ? memory_pick(&c->memory, 1, 5) : 48;
    for (int64_t i = 0; i < count; i++) {
        lengths[i] = memory_pick(&c->memory, c->size == SIZE_ODD ? 0 : 20, 60);
        lengths[i] += c->size == SIZE_ODD && memory_pick(&c->memory, 0, 3) == 0 ? 130 : 0;
        first[i] = training ? 0 : memory_pick(&c->memory, 0, 90);
    }
    lengths[0] += lengths[0] == 0;
    return memory_sequences(&c->memory, count, lengths, first);
}

static void page_store(void *pages, enum kernel_dtype dtype, int64_t index, float value)
{
    if (dtype == KERNEL_BF16) {
        ((uint16_t *)pages)[index] = kernel_bf16_from_float(value);
    } else {
        ((float *)pages)[index] = value;
    }
}

/* Keys and values in pages; slots that no token holds are NaN. */
static void pages_case(struct call *c, const struct sequences *s,
                       const struct kernel_attention_args *a, void *pages[2])
{
    const struct kernel_segments *g = &s->segments;
    const int64_t kv_heads = a->kv_heads;
    const int64_t d = a->d;
    int64_t floats = s->pages * kv_heads * d * KERNEL_PAGE_TOKENS;
    for (int i = 0; i < 2; i++) {
        pages[i] = memory_area(&c->memory, (size_t)floats * sizeof(float), false);
        memset(pages[i], 0xff, (size_t)floats * sizeof(float)); /* NaN in both types */
    }
    for (int64_t i = 0; i < g->count; i++) {
        int64_t end = g->first_position[i] + g->segment_start[i + 1] - g->segment_start[i];
        for (int64_t e = 0; e < end * kv_heads * d; e++) {
            int64_t position = e / (kv_heads * d);
            int64_t head = e / d % kv_heads;
            int64_t slot = position % KERNEL_PAGE_TOKENS;
            int64_t page = g->page_table[i][position / KERNEL_PAGE_TOKENS];
            int64_t base = (page * kv_heads + head) * d * KERNEL_PAGE_TOKENS;
            page_store(pages[0], a->dtype, base + e % d * KERNEL_PAGE_TOKENS + slot,
                       memory_value(&c->memory, 1.0));
            page_store(pages[1], a->dtype, base + slot * d + e % d, memory_value(&c->memory, 1.0));
        }
    }
}

static void case_kv_write(struct call *c)
{
    struct sequences s = sequences_case(c, false);
    struct kernel_kv_args a = {
        .segments = &s.segments, .kv_heads = call_size(c, 1, 3, 2), .d = call_size(c, 1, 40, 32)};
    a.dtype = call_dtype(c);
    a.k = memory_floats(&c->memory, s.tokens * a.kv_heads * a.d, 1.0);
    a.v = memory_floats(&c->memory, s.tokens * a.kv_heads * a.d, 1.0);
    int64_t floats = s.pages * a.kv_heads * a.d * KERNEL_PAGE_TOKENS;
    a.k_pages = memory_output(&c->memory, floats, 1.0);
    a.v_pages = memory_output(&c->memory, floats, 1.0);
    while (call_again(c)) {
        c->table->kv_write(&a, c->pool);
    }
}

static struct kernel_attention_args attention_case(struct call *c, const struct sequences *s)
{
    struct kernel_attention_args a = {.segments = &s->segments,
                                      .kv_heads = c->size == SIZE_BENCH ? 2 : 1 + call_flip(c),
                                      .d =
                                          c->size == SIZE_ODD ? memory_pick(&c->memory, 1, 90) : 32,
                                      .window = call_flip(c) ? memory_pick(&c->memory, 1, 90) : 0};
    int64_t group = c->size == SIZE_BENCH ? 2 : memory_pick(&c->memory, 1, 5);
    a.heads = a.kv_heads * group;
    a.scale = (float)(1.0 / sqrt((double)a.d));
    a.dtype = call_dtype(c);
    void *pages[2];
    pages_case(c, s, &a, pages);
    a.k_pages = pages[0];
    a.v_pages = pages[1];
    a.q = memory_floats(&c->memory, s->tokens * a.heads * a.d, 1.0);
    for (int64_t i = 0; i < s->segments.count; i++) {
        double length = (double)(s->segments.segment_start[i + 1] - s->segments.segment_start[i]);
        double keys = (double)s->segments.first_position[i] + 0.5 * length;
        c->flops += 4.0 * length * keys * (double)(a.heads * a.d);
    }
    return a;
}

static void case_attention_forward(struct call *c)
{
    struct sequences s = sequences_case(c, c->size == SIZE_BENCH);
    struct kernel_attention_args a = attention_case(c, &s);
    a.out = memory_output(&c->memory, s.tokens * a.heads * a.d, 1.0);
    a.lse = call_flip(c)
                ? memory_floor(&c->memory, memory_output(&c->memory, s.tokens * a.heads, 1.0), 1.0)
                : NULL;
    while (call_again(c)) {
        c->table->attention_forward(&a, c->pool);
    }
}

/* Segments of which some are prefixes of one or more pages, each followed by those that share it.
 */
static struct sequences families_case(struct call *c)
{
    int64_t lengths[8] = {0};
    int64_t first[8] = {0};
    int32_t owner[8];
    int64_t count = memory_pick(&c->memory, 2, 8);
    int32_t latest = -1;
    for (int64_t i = 0; i < count; i++) {
        owner[i] = memory_pick(&c->memory, 0, 3) > 0 ? latest : -1;
        lengths[i] = memory_pick(&c->memory, 0, 40);
        if (owner[i] >= 0) {
            first[i] = lengths[owner[i]];
        } else if (call_flip(c)) {
            lengths[i] = KERNEL_PAGE_TOKENS * memory_pick(&c->memory, 1, 9);
            latest = (int32_t)i;
        } else {
            latest = -1;
        }
    }
    lengths[0] += lengths[0] == 0;
    struct sequences s = memory_sequences(&c->memory, count, lengths, first);
    int32_t *prefix = memory_area(&c->memory, sizeof owner, false);
    memcpy(prefix, owner, sizeof owner);
    s.segments.prefix = prefix;
    for (int64_t i = 0; i < count; i++) {
        if (owner[i] >= 0) {
            memcpy((int32_t *)(uintptr_t)s.segments.page_table[i], s.segments.page_table[owner[i]],
                   (size_t)(first[i] / KERNEL_PAGE_TOKENS) * sizeof(int32_t));
        }
    }
    return s;
}

static void case_attention_backward(struct call *c)
{
    bool shared = c->size == SIZE_ODD && call_flip(c);
    struct sequences s = shared ? families_case(c) : sequences_case(c, true);
    struct kernel_attention_args a = attention_case(c, &s);
    const struct kernel_table *ref = support_ref();
    a.out = memory_area(&c->memory, (size_t)(s.tokens * a.heads * a.d) * sizeof(float), false);
    a.lse = memory_area(&c->memory, (size_t)(s.tokens * a.heads) * sizeof(float), false);
    ref->attention_forward(&a, NULL);
    a.dout = memory_floats(&c->memory, s.tokens * a.heads * a.d, 1.0);
    a.dq = memory_floor(&c->memory, memory_output(&c->memory, s.tokens * a.heads * a.d, 1.0), 0.1);
    a.dk =
        memory_floor(&c->memory, memory_output(&c->memory, s.tokens * a.kv_heads * a.d, 1.0), 0.1);
    a.dv =
        memory_floor(&c->memory, memory_output(&c->memory, s.tokens * a.kv_heads * a.d, 1.0), 0.1);
    c->flops *= 2.5;
    while (call_again(c)) {
        c->table->attention_backward(&a, c->pool);
    }
}

static struct kernel_head_args head_case(struct call *c, enum kernel_dtype dtype)
{
    struct kernel_head_args a = {.m = call_size(c, 1, 40, 4096),
                                 .v = call_size(c, 1, 80, 32),
                                 .c = call_size(c, 1, 70, 128),
                                 .dtype = dtype,
                                 .inv_temperature = call_flip(c) ? 1.0f / 0.7f : 1.0f};
    if (c->size == SIZE_ODD && memory_pick(&c->memory, 0, 3) == 0) {
        a.v = memory_pick(&c->memory, 1000, 2500); /* several chunks */
        a.m = memory_pick(&c->memory, 1, 5);
    }
    a.w = memory_weights(&c->memory, a.v, a.c, a.dtype);
    a.x = call_inputs(c, a.m * a.c, 2.0);
    a.targets = memory_ids(&c->memory, a.m, a.v);
    a.scratch = memory_floats(&c->memory, a.m * KERNEL_HEAD_CHUNK, 1.0);
    c->flops = 2.0 * (double)a.m * (double)a.v * (double)a.c;
    return a;
}

static void case_head_forward(struct call *c)
{
    struct kernel_head_args a = head_case(c, call_weights(c));
    a.logprob = memory_floor(&c->memory, memory_output(&c->memory, a.m, 1.0), 1.0);
    a.lse = memory_floor(&c->memory, memory_output(&c->memory, a.m, 1.0), 1.0);
    a.entropy =
        call_flip(c) ? memory_floor(&c->memory, memory_output(&c->memory, a.m, 1.0), 1.0) : NULL;
    while (call_again(c)) {
        c->table->head_forward(&a, c->pool);
    }
}

static void case_head_backward(struct call *c)
{
    struct kernel_head_args a = head_case(c, call_dtype(c));
    const struct kernel_table *ref = support_ref();
    a.logprob = memory_floats(&c->memory, a.m, 1.0);
    a.lse = memory_floats(&c->memory, a.m, 1.0);
    a.entropy = memory_floats(&c->memory, a.m, 1.0);
    ref->head_forward(&a, NULL);
    float *g = memory_floats(&c->memory, a.m, 1.0);
    float *h = call_flip(c) ? memory_floats(&c->memory, a.m, 0.3) : NULL;
    for (int64_t i = 0; c->size != SIZE_BENCH && i < a.m; i++) { /* stretches without gradient */
        bool off = i / 3 % 2 == 1 || i % 100 > 60;
        g[i] = off ? 0.0f : g[i];
        if (h != NULL) {
            h[i] = off ? 0.0f : h[i];
        }
    }
    a.g_logprob = g;
    a.g_entropy = h;
    a.dx = memory_floor(&c->memory, memory_output(&c->memory, a.m * a.c, 1.0), 0.1);
    a.dw = memory_floor(&c->memory, memory_output(&c->memory, a.v * a.c, 1.0), 0.1);
    c->flops *= 3.0;
    while (call_again(c)) {
        c->table->head_backward(&a, c->pool);
    }
}

static void case_head_decode(struct call *c)
{
    struct kernel_head_args head = head_case(c, call_weights(c));
    struct kernel_sampling sampling = {.temperature = 0.5f + 0.25f * (float)call_size(c, -2, 6, 2),
                                       .top_p = call_flip(c) ? 0.8f : 1.0f,
                                       .min_p = call_flip(c) ? 0.05f : 0.0f,
                                       .top_k = call_flip(c) ? 7 : 0};
    struct kernel_decode_args a = {.x = head.x,
                                   .w = head.w,
                                   .dtype = head.dtype,
                                   .sampling = &sampling,
                                   .m = head.m,
                                   .v = head.v,
                                   .c = head.c};
    struct rl_rng_key *keys = memory_area(&c->memory, (size_t)a.m * sizeof *keys, false);
    uint64_t *counters = memory_area(&c->memory, (size_t)a.m * sizeof *counters, false);
    for (int64_t i = 0; i < a.m; i++) {
        keys[i] = rl_rng_key_make(5, (uint64_t)i, 1);
        counters[i] = (uint64_t)(3 * i);
    }
    a.keys = keys;
    a.counters = counters;
    if (call_flip(c)) {
        int32_t *forced = memory_ids(&c->memory, a.m, a.v);
        forced[0] = -1;
        a.forced = forced;
    }
    a.ids = memory_output_ids(&c->memory, a.m);
    a.logprob = memory_floor(&c->memory, memory_output(&c->memory, a.m, 1.0), 1.0);
    int64_t stride = (a.v + KERNEL_PANEL - 1) / KERNEL_PANEL * KERNEL_PANEL;
    a.columns = kernel_sampling_truncates(&sampling) || call_flip(c) ? stride : KERNEL_HEAD_CHUNK;
    a.logits = memory_floats(&c->memory, a.m * stride, 1.0);
    a.chunks = memory_chunks(&c->memory, a.m, a.v);
    a.order = memory_ids(&c->memory, a.m * a.v, 2);
    while (call_again(c)) {
        c->table->head_decode(&a, c->pool);
    }
}

static void case_add(struct call *c)
{
    struct kernel_add_args a = {.count = call_size(c, 1, 900, 1024 * 1024)};
    a.y = memory_output(&c->memory, a.count, 1.0);
    a.x = memory_floats(&c->memory, a.count, 1.0);
    c->flops = (double)a.count;
    while (call_again(c)) {
        c->table->add(&a, c->pool);
    }
}

static void case_blend(struct call *c)
{
    struct kernel_blend_args a = {.count = call_size(c, 1, 900, 1024 * 1024), .rate = 0.05f};
    a.y = memory_output(&c->memory, a.count, 1.0);
    a.x = memory_floats(&c->memory, a.count, 1.0);
    c->flops = 3.0 * (double)a.count;
    while (call_again(c)) {
        c->table->blend(&a, c->pool);
    }
}

/* An output that is compared by its bits. */
static void *memory_bits(struct memory *m, size_t bytes)
{
    unsigned char *data = memory_area(m, bytes, true);
    m->areas[m->count - 1].integers = true;
    for (size_t i = 0; i < bytes; i++) {
        data[i] = (unsigned char)memory_pick(m, 0, 255);
    }
    return data;
}

static void case_zero(struct call *c)
{
    struct kernel_zero_args a = {.bytes = (size_t)call_size(c, 0, 3000, 8 << 20)};
    a.data = memory_bits(&c->memory, a.bytes);
    while (call_again(c)) {
        c->table->zero(&a, c->pool);
    }
}

static void case_copy_rows(struct call *c)
{
    struct kernel_copy_args a = {.rows = call_size(c, 0, 5, 6),
                                 .bytes = (size_t)call_size(c, 0, 700, 3 << 20)};
    a.stride = a.bytes + (size_t)call_size(c, 0, 100, 64);
    size_t bytes = (size_t)a.rows * a.stride;
    a.from = memory_floats(&c->memory, (int64_t)(bytes / sizeof(float)) + 1, 1.0);
    a.to = memory_bits(&c->memory, bytes);
    while (call_again(c)) {
        c->table->copy_rows(&a, c->pool);
    }
}

static void case_gather_rows(struct call *c)
{
    struct kernel_gather_args a = {.m = call_size(c, 1, 60, 4096), .c = call_size(c, 1, 70, 128)};
    int64_t from = call_size(c, 1, 40, 300);
    a.x = memory_floats(&c->memory, from * a.c, 1.0);
    a.rows = memory_ids(&c->memory, a.m, from);
    a.y = memory_output(&c->memory, a.m * a.c, 1.0);
    while (call_again(c)) {
        c->table->gather_rows(&a, c->pool);
    }
}

static void case_vector_pack(struct call *c)
{
    struct kernel_vector_pack_args a = {.count = call_size(c, 1, 300, 4096),
                                        .dtype = call_dtype(c)};
    size_t bytes = ((size_t)a.count * sizeof(float) + 63) / 64 * 64;
    size_t width = a.dtype == KERNEL_BF16 ? 2 : 4;
    a.w = memory_floats(&c->memory, a.count, 3.0);
    if (call_flip(c)) { /* against a vector in which every fifth element or so was another */
        char *previous = memory_area(&c->memory, bytes, false);
        memcpy(previous, a.w, (size_t)a.count * sizeof(float));
        for (size_t i = (size_t)memory_pick(&c->memory, 0, 4); i < bytes / width; i += 5) {
            previous[i * width + (size_t)memory_pick(&c->memory, 0, (int64_t)width - 1)] ^= 1;
        }
        a.previous = previous;
        a.changed = memory_bits(&c->memory, bytes / width / 8);
    }
    a.packed = memory_bits(&c->memory, bytes);
    while (call_again(c)) {
        c->table->vector_pack(&a, c->pool);
    }
}

#include "tests/kernel_cases_learner.h"

static void case_sum_squares(struct call *c)
{
    struct kernel_sum_squares_args a = {.count = call_size(c, 1, 200000, 1024 * 1024)};
    a.x = memory_floats(&c->memory, a.count, 1.0);
    a.block_sums = memory_scratch(&c->memory, (size_t)(a.count / 65536 + 1) * sizeof(double));
    c->memory.areas[c->memory.count - 1].written = false; /* order within a block is free */
    double sum = 0.0;
    float *result = memory_output(&c->memory, 2, 1.0);
    a.sum = &sum;
    c->flops = 2.0 * (double)a.count;
    while (call_again(c)) {
        c->table->sum_squares(&a, c->pool);
    }
    result[0] = (float)sum;
    result[1] =
        (float)((sum - (double)result[0]) * 1e7); /* so that threads are compared in double */
    if (c->size == SIZE_ODD) {
        result[1] = 0.0f;
    }
}

/* An update of `count` parameters. */
static struct kernel_adamw_args adamw_make(struct call *c, int64_t count)
{
    struct kernel_adamw_args a = {.count = count,
                                  .step = call_size(c, 1, 50, 10),
                                  .grad_scale = 0.7f,
                                  .learning_rate = 1e-3f,
                                  .beta1 = 0.9f,
                                  .beta2 = 0.999f,
                                  .epsilon = 1e-8f,
                                  .weight_decay = 0.1f};
    a.param = memory_output(&c->memory, a.count, 1.0);
    a.m = memory_output(&c->memory, a.count, 0.1);
    a.v = memory_output(&c->memory, a.count, 0.1);
    for (int64_t i = 0; i < a.count; i++) {
        a.v[i] = fabsf(a.v[i]);
        /* a second moment below the square of the first makes steps of any size: not a state that
         * AdamW reaches */
        a.m[i] = fminf(fabsf(a.m[i]), sqrtf(a.v[i]));
    }
    a.grad = memory_floats(&c->memory, a.count, 0.1);
    c->flops = 12.0 * (double)a.count;
    return a;
}

static void case_adamw(struct call *c)
{
    struct kernel_adamw_args a = adamw_make(c, call_size(c, 1, 900, 256 * 1024));
    while (call_again(c)) {
        c->table->adamw(&a, c->pool);
    }
}

/* Packing is compared with the parameters' tolerance, so in fp32; that it packs the very same
 * numbers, in bf16 too, test_trainer_optimizer says. */
static void case_adamw_pack(struct call *c)
{
    int64_t n = call_size(c, 1, 100, 512);
    int64_t k = call_size(c, 1, 600, 512);
    struct kernel_adamw_pack_args a = {.adamw = adamw_make(c, n * k),
                                       .pack = {.n = n, .k = k, .dtype = KERNEL_FP32}};
    a.pack.w = a.adamw.param;
    a.pack.packed = memory_output(&c->memory, (n + 31) / 32 * 32 * k, 0.0);
    memory_packed(&c->memory, n, k, sizeof(float));
    while (call_again(c)) {
        c->table->adamw_pack(&a, c->pool);
    }
}

struct op_case {
    const char *name;
    case_fn run;
    double tolerance;
};

static const struct op_case op_cases[] = {
#define KERNEL_OP(name, args, tolerance) {#name, case_##name, tolerance},
#include "kernels/ops.def"
};
enum { OP_COUNT = sizeof op_cases / sizeof op_cases[0] };

struct setup {
    const struct kernel_table *table;
    struct rl_pool *pool;
    enum size size;
    bool int8; /* the tables know such weights */
    int repeats;
    uint64_t seed;
};

static void call_run(struct call *c, const struct op_case *op, const struct setup *setup)
{
    *c = (struct call){
        .table = setup->table, .pool = setup->pool, .size = setup->size, .repeats = setup->repeats};
    c->int8 = setup->int8;
    enum flavour flavour =
        setup->size == SIZE_ODD ? (enum flavour)(setup->seed % FLAVOUR_COUNT) : FLAVOUR_PLAIN;
    memory_init(&c->memory, setup->seed, flavour);
    op->run(c);
}

/* A GPU rounds what comes between two products of an op to bf16: inputs are rounded by the case. */
static double call_tolerance(const struct call *c, const struct op_case *op)
{
    bool within = strncmp(op->name, "attention", 9) == 0 || strcmp(op->name, "head_backward") == 0;
    bool rounded = within && c->table->isa == KERNEL_ISA_CUDA && c->dtype == KERNEL_BF16;
    /* attention's gradients: q and dout are rounded as well, lse and out are the reference's */
    double least = strcmp(op->name, "attention_backward") == 0 ? 1.0 / 32.0 : 1.0 / 128.0;
    return rounded && op->tolerance > 0.0 ? fmax(op->tolerance, least) : op->tolerance;
}

/* int8 weights are for CPUs. */
static bool table_has(const struct kernel_table *table, const struct op_case *op)
{
    return table->isa != KERNEL_ISA_CUDA || strcmp(op->name, "linear_quantize") != 0;
}

static void compare_with_ref(const struct op_case *op, const struct kernel_table *ref,
                             const struct kernel_table *table, uint64_t seed)
{
    static struct call want;
    static struct call got;
    bool int8 = table->isa != KERNEL_ISA_CUDA;
    struct setup setup = {ref, NULL, SIZE_ODD, int8, 1, seed};
    call_run(&want, op, &setup);
    setup.table = table;
    call_run(&got, op, &setup);
    double allowed = call_tolerance(&got, op);
    ck_assert_msg(memory_guards_hold(&want.memory) && memory_guards_hold(&got.memory),
                  "%s %s seed %llu wrote outside of its outputs", table->name, op->name,
                  (unsigned long long)seed);
    for (int i = 0; i < want.memory.count; i++) {
        const struct area *a = &want.memory.areas[i];
        const struct area *b = &got.memory.areas[i];
        if (a->written && (a->integers || op->tolerance == 0.0)) {
            ck_assert_msg(memcmp(a->data, b->data, a->bytes) == 0,
                          "%s %s seed %llu: output %d has other bits than ref", table->name,
                          op->name, (unsigned long long)seed, i);
        } else if (a->written) {
            double difference = area_difference(a, b);
            ck_assert_msg(difference <= allowed,
                          "%s %s seed %llu: output %d differs from ref by %g, at most %g allowed",
                          table->name, op->name, (unsigned long long)seed, i, difference, allowed);
        }
    }
    memory_fini(&want.memory);
    memory_fini(&got.memory);
}

START_TEST(every_op_agrees_with_ref)
{
    const struct op_case *op = &op_cases[_i];
    const struct kernel_table *ref = support_ref();
    const struct kernel_table *table = NULL;
    for (int index = 0; support_table(index, &table); index++) {
        for (uint64_t seed = 0; table_has(table, op) && seed < support_seeds(); seed++) {
            compare_with_ref(op, ref, table, seed);
        }
    }
}
END_TEST

static void compare_threads(const struct op_case *op, const struct kernel_table *table, int threads)
{
    static struct call want;
    static struct call got;
    struct rl_pool *pool = NULL;
    ck_assert_int_eq(rl_pool_create(threads, &pool), RL_OK);
    struct setup setup = {table, NULL, SIZE_THREADS, table->isa != KERNEL_ISA_CUDA, 1, 3};
    for (setup.seed = 0; setup.seed < 3; setup.seed++) {
        setup.pool = NULL;
        call_run(&want, op, &setup);
        setup.pool = pool;
        call_run(&got, op, &setup);
        for (int i = 0; i < want.memory.count; i++) {
            const struct area *a = &want.memory.areas[i];
            ck_assert_msg(!a->written || memcmp(a->data, got.memory.areas[i].data, a->bytes) == 0,
                          "%s %s: output %d has other bits with %d threads", table->name, op->name,
                          i, threads);
        }
        memory_fini(&want.memory);
        memory_fini(&got.memory);
    }
    rl_pool_destroy(pool);
}

START_TEST(threads_change_no_bit)
{
    const struct kernel_table *table = NULL;
    for (int index = KERNEL_ISA_AVX2; support_table(index, &table); index++) {
        for (int threads = 1; table_has(table, &op_cases[_i]) && threads <= 3; threads++) {
            compare_threads(&op_cases[_i], table, threads);
        }
    }
}
END_TEST

#if SUPPORT_EMULATED
/* A barrier that is missing shows when threads and blocks take turns in another order. */
START_TEST(turns_change_no_bit)
{
    static struct call want;
    static struct call got;
    struct setup setup = {.size = SIZE_ODD, .repeats = 1};
    ck_assert(support_table(0, &setup.table));
    for (setup.seed = 0; table_has(setup.table, &op_cases[_i]) && setup.seed < 6; setup.seed++) {
        emulation_set_order(0);
        call_run(&want, &op_cases[_i], &setup);
        emulation_set_order(1 + setup.seed);
        call_run(&got, &op_cases[_i], &setup);
        for (int i = 0; i < want.memory.count; i++) {
            const struct area *a = &want.memory.areas[i];
            ck_assert_msg(!a->written || memcmp(a->data, got.memory.areas[i].data, a->bytes) == 0,
                          "%s: output %d has other bits when the threads take other turns",
                          op_cases[_i].name, i);
        }
        memory_fini(&want.memory);
        memory_fini(&got.memory);
    }
}
END_TEST
#endif

START_TEST(tables_are_complete_and_named)
{
    const struct kernel_table *table = NULL;
    ck_assert_str_eq(support_ref()->name, "ref");
    for (int index = 0; support_table(index, &table); index++) {
        ck_assert((int)table->isa == index || table->isa == KERNEL_ISA_CUDA);
#define KERNEL_OP(name, args, tolerance) ck_assert_ptr_nonnull((void *)(uintptr_t)table->name);
#include "kernels/ops.def"
    }
}
END_TEST

/* Print the speed of every op on every table beside the machine's peak. */
static int bench(void)
{
    const struct kernel_table *table = NULL;
    for (int index = KERNEL_ISA_AVX2; support_table(index, &table); index++) {
        double peak = kernel_probe_fma(table->isa);
        printf("%s, one thread, FMA peak %.0f GFLOP/s\n", table->name, peak);
        for (int i = 0; i < OP_COUNT; i++) {
            static struct call c;
            struct setup setup = {.table = table, .size = SIZE_BENCH, .repeats = 15, .seed = 1};
            call_run(&c, &op_cases[i], &setup);
            double rate = c.flops / c.seconds * 1e-9;
            printf("  %-24s %9.1f us", op_cases[i].name, c.seconds * 1e6);
            if (c.flops > 0.0) {
                printf(" %8.1f GFLOP/s %4.0f %% of peak", rate, 100.0 * rate / peak);
            }
            printf("\n");
            memory_fini(&c.memory);
        }
    }
    return 0;
}

static Suite *kernels_suite(void)
{
    Suite *suite = suite_create("check_kernels");
    TCase *all = tcase_create("ops");
    tcase_set_timeout(all, 300);
    tcase_add_test(all, tables_are_complete_and_named);
    tcase_add_loop_test(all, every_op_agrees_with_ref, 0, OP_COUNT);
    tcase_add_loop_test(all, threads_change_no_bit, 0, OP_COUNT);
#if SUPPORT_EMULATED
    tcase_add_loop_test(all, turns_change_no_bit, 0, OP_COUNT);
#endif
    suite_add_tcase(suite, all);
    return suite;
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "--bench") == 0) {
        return bench();
    }
    SRunner *runner = srunner_create(kernels_suite());
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
