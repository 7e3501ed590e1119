/* The teacher of a learner: prompts that say more than the samples' own, and the log-probs that the
 * same network gives the samples' tokens behind them. Owns those prompts for a step and the moving
 * average's weights. The invariant: the tokens that are scored are the sample's ids; only what
 * stands before them differs. */
#include "trainer/learner_internal.h"

#include "core/log.h"
#include "kernels/device.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* --- weights
 * ---------------------------------------------------------------------------------------- */

static struct model_divergence divergence_kind(const struct rl_config *config)
{
    bool chosen = config->teacher.logits == CONFIG_TEACHER_TOP_K;
    return (struct model_divergence){.alpha = config->teacher.alpha,
                                     .top_k = chosen ? (int32_t)config->teacher.support : 0,
                                     .tail = config->teacher.tail};
}

rl_status learner_teacher_open(struct learner *l)
{
    const struct rl_config *config = l->args.config;
    const struct model_layout *layout = l->args.layout;
    struct learner_teaching *t = &l->teaching;
    if (config->teacher.loss == CONFIG_TEACHER_NONE) {
        return RL_OK;
    }
    if (l->args.teacher == NULL ||
        (config->teacher.policy == CONFIG_TEACHER_INITIAL && l->args.teacher->image == NULL)) {
        return rl_fail(RL_INVALID, "learner: teacher.loss is set, but there is no teacher");
    }
    t->kind = divergence_kind(config);
    if (config->teacher.policy == CONFIG_TEACHER_EMA) {
        RL_TRY(
            model_slab_create(layout, layout->master_count, "the teacher's weights", &t->average));
        t->image_is_own = true;
        return device_buffer_alloc(layout->device, layout->image_bytes,
                                   "the teacher's weight image", &t->image);
    }
    return config->teacher.policy == CONFIG_TEACHER_INITIAL
               ? learner_frozen_image(l, l->args.teacher->image, &t->image)
               : RL_OK;
}

size_t learner_teacher_bytes(const struct model_layout *layout, const struct rl_config *config,
                             int64_t rows)
{
    struct model_divergence kind = divergence_kind(config);
    size_t states = 2 * (size_t)rows * (size_t)layout->arch.width * sizeof(float);
    return config->teacher.loss == CONFIG_TEACHER_SDPO &&
                   config->teacher.logits != CONFIG_TEACHER_SAMPLED_TOKEN
               ? states + model_divergence_bytes(layout, &kind)
               : 0;
}

static void free_logits(struct learner *l)
{
    struct learner_teaching *t = &l->teaching;
    struct device *device = l->args.layout->device;
    device_buffer_free(device, t->hidden);
    device_buffer_free(device, t->g_hidden);
    free(t->g_divergence);
    free(t->divergence);
    t->hidden = t->g_hidden = t->g_divergence = t->divergence = NULL;
}

void learner_teacher_close(struct learner *l)
{
    struct learner_teaching *t = &l->teaching;
    model_slab_fini(l->args.layout, &t->average);
    if (t->image_is_own) {
        device_buffer_free(l->args.layout->device, t->image);
    } else {
        learner_frozen_free(l, t->image);
    }
    token_buffer_fini(&t->ids);
    model_packing_destroy(t->packing);
    free(t->tokens);
    free(t->first);
    free(t->rows);
    free(t->logprob);
    free(t->packed_logprob);
    free_logits(l);
    if (t->host_scratch != t->scratch) {
        device_free(t->host_scratch);
    }
    device_buffer_free(l->args.layout->device, t->scratch);
    *t = (struct learner_teaching){0};
}

static void publish_average(struct learner *l)
{
    model_params_publish(l->args.layout, l->args.kernels, l->teaching.average.data,
                         l->teaching.image, l->args.pool);
}

void learner_teacher_start(struct learner *l, uint32_t version)
{
    if (l->teaching.average.data == NULL) {
        return;
    }
    if (version == 0) {
        struct kernel_copy_args copy = {.to = l->teaching.average.data,
                                        .from = l->master.data,
                                        .rows = 1,
                                        .bytes = l->master.bytes};
        l->args.kernels->copy_rows(&copy, l->args.pool);
    }
    publish_average(l);
}

void learner_teacher_follow(struct learner *l)
{
    struct kernel_blend_args blend = {.y = l->teaching.average.data,
                                      .x = l->master.data,
                                      .count = l->args.layout->master_count,
                                      .rate = (float)l->args.config->teacher.ema_rate};
    if (blend.y == NULL) {
        return;
    }
    l->args.kernels->blend(&blend, l->args.pool);
    publish_average(l);
}

float *learner_teacher_average(struct learner *learner)
{
    return learner->teaching.average.host;
}

static const void *teacher_image(const struct learner *l)
{
    return l->teaching.image != NULL ? l->teaching.image : l->image;
}

double learner_teacher_lambda(const struct rl_config *config, uint64_t step)
{
    double warmup = (double)config->teacher.lambda_warmup_steps;
    double decay = (double)config->teacher.lambda_decay_steps;
    double past = (double)step - warmup;
    if (past < 0) {
        return config->teacher.lambda * (double)step / warmup;
    }
    return config->teacher.lambda * (decay > 0 ? fmax(0, 1 - past / decay) : 1);
}

/* --- prompts of a step
 * ------------------------------------------------------------------------------ */

/* Keep the teacher's prompt in `ids` and the completion but for its last token, which predicts
 * nothing; none if the sequence would be longer than the model's positions. */
static rl_status keep_sequence(struct learner *l, const struct trajectory *sample,
                               uint32_t sequence, bool told)
{
    struct learner_teaching *t = &l->teaching;
    size_t first = t->first[sequence];
    size_t count = told ? t->ids.count + sample->completion_count - 1 : 0;
    t->first[sequence + 1] = first;
    if (count == 0 || t->ids.count == 0 || count > (size_t)l->args.layout->rope_positions) {
        return RL_OK;
    }
    if (first + count > t->token_capacity) {
        size_t capacity = 2 * (first + count);
        int32_t *grown = realloc(t->tokens, capacity * sizeof(*grown));
        if (grown == NULL) {
            return rl_fail(RL_NO_MEMORY, "learner: out of memory for the teacher's prompts");
        }
        t->tokens = grown;
        t->token_capacity = capacity;
    }
    memcpy(t->tokens + first, t->ids.ids, t->ids.count * sizeof(int32_t));
    memcpy(t->tokens + first + t->ids.count, sample->tokens + sample->prompt_count,
           (sample->completion_count - 1) * sizeof(int32_t));
    t->first[sequence + 1] = first + count;
    t->longest = (int64_t)count > t->longest ? (int64_t)count : t->longest;
    return RL_OK;
}

static uint32_t place_in_group(const struct trajectory_group *group,
                               const struct trajectory *sample)
{
    return (uint32_t)(sample - group->samples);
}

static rl_status grow_first(struct learner_teaching *t, uint32_t sequences)
{
    size_t *grown = realloc(t->first, ((size_t)sequences + 1) * sizeof(*grown));
    if (grown == NULL) {
        return rl_fail(RL_NO_MEMORY, "learner: out of memory for the teacher's prompts");
    }
    t->first = grown;
    t->first[0] = 0;
    return RL_OK;
}

static rl_status grow_packing(struct learner_teaching *t, int64_t tokens, int64_t sequences)
{
    if (t->packing != NULL && t->packing->max_tokens >= tokens &&
        t->packing->max_sequences >= sequences) {
        return RL_OK;
    }
    model_packing_destroy(t->packing);
    t->packing = NULL;
    return model_packing_create(tokens, sequences, &t->packing);
}

/* For logits of a few rows. */
static rl_status make_scratch(struct learner *l)
{
    const struct model_layout *layout = l->args.layout;
    struct learner_teaching *t = &l->teaching;
    size_t bytes = model_divergence_bytes(layout, &t->kind);
    if (t->scratch != NULL) {
        return RL_OK;
    }
    if (layout->device != NULL) {
        RL_TRY(device_alloc(bytes, "logits of a few rows", &t->host_scratch));
    }
    RL_TRY(device_buffer_alloc(layout->device, bytes, "logits of a few rows", &t->scratch));
    t->host_scratch = layout->device != NULL ? t->host_scratch : t->scratch;
    return RL_OK;
}

/* What distributions need beside log-probs. */
static rl_status grow_logits(struct learner *l, uint32_t rows)
{
    struct learner_teaching *t = &l->teaching;
    struct device *device = l->args.layout->device;
    size_t bytes = rows * (size_t)l->args.layout->arch.width * sizeof(float);
    void *memory = NULL;
    free_logits(l);
    RL_TRY(device_buffer_alloc(device, bytes, "the teacher's hidden states", &memory));
    t->hidden = memory;
    RL_TRY(device_buffer_alloc(device, bytes, "gradients of hidden states", &memory));
    t->g_hidden = memory;
    t->g_divergence = calloc(rows, sizeof(float));
    t->divergence = calloc(rows, sizeof(float));
    if (t->g_divergence == NULL || t->divergence == NULL) {
        return rl_fail(RL_NO_MEMORY, "learner: out of memory for %u rows of the teacher", rows);
    }
    return make_scratch(l);
}

/* Rows of the largest micro-batch. */
static rl_status grow_rows(struct learner *l, uint32_t rows)
{
    struct learner_teaching *t = &l->teaching;
    if (rows <= t->row_capacity) {
        return RL_OK;
    }
    free(t->rows);
    free(t->logprob);
    free(t->packed_logprob);
    t->row_capacity = 0;
    t->rows = calloc(3 * (size_t)rows, sizeof(int32_t));
    t->logprob = calloc(rows, sizeof(float));
    t->packed_logprob = calloc(rows, sizeof(float));
    if (!t->rows || !t->logprob || !t->packed_logprob) {
        return rl_fail(RL_NO_MEMORY, "learner: out of memory for %u rows of the teacher", rows);
    }
    if (l->objective.teacher.by_logits) {
        RL_TRY(grow_logits(l, rows));
    }
    t->row_capacity = rows;
    return RL_OK;
}

rl_status learner_teacher_prepare(struct learner *l, struct trajectory_group *const *groups,
                                  const struct batcher_plan *plan)
{
    const struct learner_teacher *teacher = l->args.teacher;
    struct learner_teaching *t = &l->teaching;
    if (l->objective.teacher.loss == CONFIG_TEACHER_NONE) {
        return RL_OK;
    }
    t->longest = 0;
    l->objective.teacher.lambda = learner_teacher_lambda(l->args.config, l->batcher.step);
    RL_TRY(grow_first(t, plan->sequence_count));
    for (uint32_t i = 0; i < plan->sequence_count; i++) {
        const struct batcher_sequence *sequence = &plan->sequences[i];
        const struct trajectory_group *group = groups[sequence->group];
        bool told = false;
        RL_TRY(teacher->prompt(teacher->arg, group, place_in_group(group, sequence->sample),
                               &t->ids, &told));
        RL_TRY(keep_sequence(l, sequence->sample, i, told));
    }
    RL_TRY(grow_rows(l, plan->max_rows));
    int64_t tokens = t->longest > plan->max_tokens ? t->longest : plan->max_tokens;
    return tokens > 0 ? grow_packing(t, tokens, plan->max_sequences) : RL_OK;
}

/* --- scoring
 * ---------------------------------------------------------------------------------------- */

/* Final states of the packed rows to their places: those of a sequence lie side by side. */
static void keep_hidden(struct learner *l, const float *hidden, uint32_t count)
{
    struct learner_teaching *t = &l->teaching;
    const int32_t *places = t->rows + 2 * (size_t)t->row_capacity;
    int64_t width = l->args.layout->arch.width;
    uint32_t end = 0;
    for (uint32_t first = 0; first < count; first = end) {
        end = first + 1;
        while (end < count && places[end] == places[end - 1] + 1) {
            end++;
        }
        struct kernel_gather_args gather = {.x = hidden,
                                            .rows = t->rows + first,
                                            .y = t->hidden + places[first] * width,
                                            .m = end - first,
                                            .c = width};
        l->args.kernels->gather_rows(&gather, l->args.pool);
    }
}

/* Score what is packed: rows [3][row_capacity] hold hidden rows, targets, and places in the
 * micro-batch. */
static void score_packed(struct learner *l, uint32_t count)
{
    struct learner_teaching *t = &l->teaching;
    const int32_t *places = t->rows + 2 * (size_t)t->row_capacity;
    const void *image = teacher_image(l);
    const float *hidden = NULL;
    if (count == 0) {
        return;
    }
    model_forward(&l->context, image, &l->kv, &t->packing->batch, l->workspace, &hidden);
    model_head_forward(&l->context, image, l->workspace,
                       &(struct model_head_args){t->rows, t->rows + t->row_capacity, count,
                                                 l->inv_temperature, t->packed_logprob, NULL});
    for (uint32_t i = 0; i < count; i++) {
        t->logprob[places[i]] = t->packed_logprob[i];
    }
    if (t->hidden != NULL) {
        keep_hidden(l, hidden, count);
    }
    model_packing_reset(t->packing);
}

const float *learner_teacher_rows(const struct learner *l, uint32_t sequence, size_t row)
{
    const struct learner_teaching *t = &l->teaching;
    bool taught = l->objective.teacher.loss != CONFIG_TEACHER_NONE &&
                  t->first[sequence + 1] > t->first[sequence];
    return taught ? t->logprob + row : NULL;
}

rl_status learner_teacher_microbatch(struct learner *l, const struct batcher_plan *plan,
                                     uint32_t index)
{
    const struct batcher_microbatch *micro = &plan->microbatches[index];
    struct learner_teaching *t = &l->teaching;
    uint32_t count = 0;
    int32_t place = 0;
    if (l->objective.teacher.loss == CONFIG_TEACHER_NONE) {
        return RL_OK;
    }
    if (t->g_divergence != NULL) {
        memset(t->g_divergence, 0, micro->row_count * sizeof(float));
    }
    model_packing_reset(t->packing);
    for (uint32_t s = 0; s < micro->sequence_count; s++) {
        uint32_t i = micro->first_sequence + s;
        const struct trajectory *sample = plan->sequences[i].sample;
        int64_t tokens = (int64_t)(t->first[i + 1] - t->first[i]);
        int64_t first = 0;
        if (tokens == 0) {
            place += (int32_t)sample->completion_count;
            continue;
        }
        rl_status status = model_packing_add(t->packing, t->tokens + t->first[i], tokens, &first);
        if (status == RL_AGAIN) {
            score_packed(l, count);
            count = 0;
            status = model_packing_add(t->packing, t->tokens + t->first[i], tokens, &first);
        }
        RL_TRY(status);
        first += tokens - sample->completion_count;
        for (uint32_t k = 0; k < sample->completion_count; k++, count++, place++) {
            t->rows[count] = (int32_t)(first + k);
            t->rows[t->row_capacity + count] = sample->tokens[sample->prompt_count + k];
            t->rows[2 * (size_t)t->row_capacity + count] = place;
        }
    }
    score_packed(l, count);
    return RL_OK;
}

void learner_teacher_divergence(struct learner *l, struct objective_stats *stats)
{
    struct learner_teaching *t = &l->teaching;
    int64_t rows = l->arrays.row_count;
    if (!l->objective.teacher.by_logits) {
        return;
    }
    model_head_divergence(&l->context, l->image, l->workspace,
                          &(struct model_divergence_args){.kind = t->kind,
                                                          .teacher_image = teacher_image(l),
                                                          .teacher_hidden = t->hidden,
                                                          .weight = t->g_divergence,
                                                          .value = t->divergence,
                                                          .g_hidden = t->g_hidden,
                                                          .grad = l->grad,
                                                          .scratch = t->scratch,
                                                          .host_scratch = t->host_scratch});
    for (int64_t i = 0; i < rows; i++) {
        stats->sum.distill_loss += (double)t->g_divergence[i] * (double)t->divergence[i];
    }
}
