/* See divergence.h. A block of rows has its logits, the student's and the teacher's, whole; the
 * student's become its gradient in place. All sums are in double, in order of ids. */
#include "model/divergence.h"

#include "model/slab.h"
#include "model/workspace.h"

#include <math.h>
#include <string.h>

enum { DIVERGENCE_ROWS = 16, DIVERGENCE_ALIGN = 64 };
#define TAIL_LOG_SUM_MAX (-1e-7)

/* --- one row
 * -------------------------------------------------------------------------------------------- */

/* What one outcome adds to the divergence, and p times the derivative by p. */
struct divergence_term {
    double value, pull;
};

static struct divergence_term divergence_term(double alpha, double log_p, double log_q)
{
    struct divergence_term term = {0};
    double p = exp(log_p);
    double q = exp(log_q);
    if (alpha >= 1) {
        term.value = p > 0 ? p * (log_p - log_q) : 0;
        term.pull = term.value;
    } else if (alpha <= 0) {
        term.value = q > 0 ? q * (log_q - log_p) : 0;
        term.pull = -q;
    } else {
        double log_m = log((1 - alpha) * p + alpha * q);
        term.pull = p > 0 ? (1 - alpha) * p * (log_p - log_m) : 0;
        term.value = term.pull + (q > 0 ? alpha * q * (log_q - log_m) : 0);
    }
    return term;
}

static double log_sum_exp(const float *z, int64_t v)
{
    double top = -INFINITY;
    double sum = 0;
    for (int64_t i = 0; i < v; i++) {
        top = fmax(top, (double)z[i]);
    }
    for (int64_t i = 0; i < v; i++) {
        sum += exp((double)z[i] - top);
    }
    return top + log(sum);
}

static double whole_row(double alpha, float *z, const float *teacher, int64_t v)
{
    double lse = log_sum_exp(z, v);
    double teacher_lse = log_sum_exp(teacher, v);
    double value = 0;
    double pull = 0;
    for (int64_t i = 0; i < v; i++) {
        struct divergence_term term =
            divergence_term(alpha, (double)z[i] - lse, (double)teacher[i] - teacher_lse);
        value += term.value;
        pull += term.pull;
    }
    for (int64_t i = 0; i < v; i++) {
        double log_p = (double)z[i] - lse;
        struct divergence_term term =
            divergence_term(alpha, log_p, (double)teacher[i] - teacher_lse);
        z[i] = (float)(term.pull - exp(log_p) * pull);
    }
    return value;
}

/* Is a before b among the most probable? Equals: the lower id. */
static bool before(const float *z, int32_t a, int32_t b)
{
    return z[a] > z[b] || (z[a] == z[b] && a < b);
}

/* Move heap[at] down: the last of the chosen is on top. */
static void sift(const float *z, int32_t *heap, int32_t count, int32_t at)
{
    int32_t moving = heap[at];
    for (;;) {
        int32_t child = 2 * at + 1;
        if (child >= count) {
            break;
        }
        if (child + 1 < count && before(z, heap[child], heap[child + 1])) {
            child++;
        }
        if (!before(z, moving, heap[child])) {
            break;
        }
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = moving;
}

/* The k most probable ids, in no order. */
static void choose(const float *z, int64_t v, int32_t k, int32_t *chosen)
{
    for (int32_t i = 0; i < k; i++) {
        chosen[i] = i;
    }
    for (int32_t i = k / 2; i-- > 0;) {
        sift(z, chosen, k, i);
    }
    for (int64_t i = k; i < v; i++) {
        if (before(z, (int32_t)i, chosen[0])) {
            chosen[0] = (int32_t)i;
            sift(z, chosen, k, 0);
        }
    }
}

/* Log of the mass of the chosen, relative to what `lse` is the log of. */
static double log_mass(const float *z, double lse, const int32_t *chosen, int32_t k)
{
    double sum = 0;
    for (int32_t i = 0; i < k; i++) {
        sum += exp((double)z[chosen[i]] - lse);
    }
    return log(sum);
}

/* Log of what is left of a mass. */
static double log_rest(double log_kept)
{
    return log(-expm1(fmin(log_kept, TAIL_LOG_SUM_MAX)));
}

static double chosen_row(const struct model_divergence *kind, float *z, const float *teacher,
                         int64_t v, int32_t *chosen)
{
    int32_t k = kind->top_k;
    double lse = log_sum_exp(z, v);
    double teacher_lse = log_sum_exp(teacher, v);
    choose(z, v, k, chosen);
    double kept = log_mass(z, lse, chosen, k);
    double teacher_kept = log_mass(teacher, teacher_lse, chosen, k);
    struct divergence_term rest = {0};
    double share = 0; /* of the rest's pull, for each unit of p */
    if (kind->tail) {
        double log_p = log_rest(kept);
        rest = divergence_term(kind->alpha, log_p, log_rest(teacher_kept));
        share = rest.pull / exp(log_p);
    } else {
        lse += kept;
        teacher_lse += teacher_kept;
    }
    double value = rest.value;
    double pull = rest.pull;
    for (int32_t i = 0; i < k; i++) {
        struct divergence_term term = divergence_term(kind->alpha, (double)z[chosen[i]] - lse,
                                                      (double)teacher[chosen[i]] - teacher_lse);
        value += term.value;
        pull += term.pull;
    }
    float *slope = (float *)(void *)(chosen + k);
    for (int32_t i = 0; i < k; i++) {
        double log_p = (double)z[chosen[i]] - lse;
        struct divergence_term term =
            divergence_term(kind->alpha, log_p, (double)teacher[chosen[i]] - teacher_lse);
        slope[i] = (float)(term.pull - exp(log_p) * pull);
    }
    for (int64_t i = 0; i < v; i++) {
        z[i] = kind->tail ? (float)(exp((double)z[i] - lse) * (share - pull)) : 0.0F;
    }
    for (int32_t i = 0; i < k; i++) {
        z[chosen[i]] = slope[i];
    }
    return value;
}

double model_divergence_row(const struct model_divergence *kind, float *z, const float *teacher,
                            int64_t v, int32_t *chosen)
{
    if (kind->top_k > 0 && kind->top_k < v) {
        return chosen_row(kind, z, teacher, v, chosen);
    }
    return whole_row(kind->alpha, z, teacher, v);
}

/* --- rows of a micro-batch
 * ------------------------------------------------------------------------------ */

struct divergence_block {
    const struct model_divergence_args *args;
    float *z, *teacher;               /* [DIVERGENCE_ROWS, stride] the host's */
    float *device_z, *device_teacher; /* the same on a CPU */
    int32_t *chosen;                  /* [DIVERGENCE_ROWS, 2 top_k] */
    int64_t first, stride, v;
    float inv_temperature;
};

static int64_t logit_stride(int64_t v)
{
    return (v + KERNEL_PANEL - 1) / KERNEL_PANEL * KERNEL_PANEL;
}

static size_t aligned(size_t bytes)
{
    return (bytes + DIVERGENCE_ALIGN - 1) / DIVERGENCE_ALIGN * DIVERGENCE_ALIGN;
}

size_t model_divergence_bytes(const struct model_layout *layout,
                              const struct model_divergence *kind)
{
    size_t logits = DIVERGENCE_ROWS * (size_t)logit_stride(layout->arch.vocab) * sizeof(float);
    return 2 * aligned(logits) + DIVERGENCE_ROWS * 2 * (size_t)kind->top_k * sizeof(int32_t);
}

static void block_row(void *arg, int index)
{
    const struct divergence_block *block = arg;
    const struct model_divergence_args *args = block->args;
    int64_t row = block->first + index;
    float *z = block->z + index * block->stride;
    float *teacher = block->teacher + index * block->stride;
    float scale = block->inv_temperature;
    args->value[row] = 0;
    if (args->weight[row] == 0) {
        memset(z, 0, (size_t)block->v * sizeof(float));
        return;
    }
    for (int64_t i = 0; i < block->v; i++) {
        z[i] *= scale;
        teacher[i] *= scale;
    }
    args->value[row] = (float)model_divergence_row(
        &args->kind, z, teacher, block->v, block->chosen + (int64_t)index * 2 * args->kind.top_k);
    for (int64_t i = 0; i < block->v; i++) {
        z[i] *= scale * args->weight[row];
    }
}

static bool any_weight(const float *weight, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        if (weight[i] != 0) {
            return true;
        }
    }
    return false;
}

/* The block's logits become gradients. */
static void compare_rows(const struct model_context *context, struct divergence_block *block,
                         int64_t count)
{
    size_t bytes = (size_t)(count * block->stride) * sizeof(float);
    bool away = context->layout->device != NULL;
    if (away) {
        (void)model_download(context->pool, block->teacher, block->device_teacher, bytes);
        (void)model_download(context->pool, block->z, block->device_z, bytes);
    }
    rl_pool_run(context->pool, (int)count, block_row, block);
    if (away) {
        model_upload(context->pool, block->device_z, block->z, bytes);
    }
}

/* Rows first .. first + count - 1: logits of both, gradients, and those back through the head. */
static void run_block(const struct model_context *context, const void *image,
                      const struct model_workspace *workspace, struct divergence_block *block,
                      int64_t count)
{
    const struct model_divergence_args *args = block->args;
    const struct model_layout *layout = context->layout;
    int64_t width = layout->arch.width;
    float *x = workspace->gathered + block->first * width;
    struct kernel_linear_args linear = {
        .w = model_image_tensor(layout, args->teacher_image, MODEL_PARAM_HEAD, -1),
        .dtype = layout->dtype,
        .x = (float *)(uintptr_t)(args->teacher_hidden + block->first * width),
        .y = block->device_teacher,
        .m = count,
        .n = block->v,
        .k = width,
        .x_stride = width,
        .y_stride = block->stride};
    context->kernels->linear_forward(&linear, context->pool);
    linear.w = model_image_tensor(layout, image, MODEL_PARAM_HEAD, -1);
    linear.x = x;
    linear.y = block->device_z;
    context->kernels->linear_forward(&linear, context->pool);
    compare_rows(context, block, count);
    linear.dw = args->grad + model_layout_tensor(layout, MODEL_PARAM_HEAD, -1)->offset;
    context->kernels->linear_backward_weight(&linear, context->pool);
    linear.x = args->g_hidden + block->first * width;
    context->kernels->linear_backward_input(&linear, context->pool);
}

void model_head_divergence(const struct model_context *context, const void *image,
                           struct model_workspace *workspace,
                           const struct model_divergence_args *args)
{
    const struct model_layout *layout = context->layout;
    int64_t stride = logit_stride(layout->arch.vocab);
    size_t logits = aligned(DIVERGENCE_ROWS * (size_t)stride * sizeof(float));
    char *scratch = args->host_scratch;
    char *device_scratch = args->scratch;
    struct divergence_block block = {.args = args,
                                     .z = (float *)(void *)scratch,
                                     .teacher = (float *)(void *)(scratch + logits),
                                     .device_z = (float *)(void *)device_scratch,
                                     .device_teacher = (float *)(void *)(device_scratch + logits),
                                     .chosen = (int32_t *)(void *)(scratch + 2 * logits),
                                     .stride = stride,
                                     .v = layout->arch.vocab,
                                     .inv_temperature = workspace->inv_temperature};
    int64_t width = layout->arch.width;
    workspace->g_gathered = args->g_hidden;
    context->kernels->zero(
        &(struct kernel_zero_args){args->g_hidden,
                                   (size_t)(workspace->head_rows * width) * sizeof(float)},
        context->pool);
    memset(args->value, 0, (size_t)workspace->head_rows * sizeof(float));
    for (; block.first < workspace->head_rows; block.first += DIVERGENCE_ROWS) {
        int64_t left = workspace->head_rows - block.first;
        int64_t count = left < DIVERGENCE_ROWS ? left : DIVERGENCE_ROWS;
        if (any_weight(args->weight + block.first, count)) {
            run_block(context, image, workspace, &block, count);
        }
    }
}
