/* Sets of weighted reward functions: parsing of rewards.functions, the weighted sum, the overlong
 * punishment. It knows the functions only by their table rows. Invariant: a set never changes after
 * it was built, so any number of threads may score with it; it is counted because an abandoned
 * scoring thread may still hold it. */
#include "rewards/reward.h"

#include "core/log.h"
#include "core/text.h"
#include "rewards/reward_ops.h"

#include <ctype.h>
#include <limits.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAME_MAX_BYTES = 64, NAMES_TEXT_BYTES = 256, TABLE_MAX = 64 };
static const double weight_limit = 1e6;

struct reward_part {
    const struct reward_ops *ops;
    void *state;
    double weight;
};

struct reward_set {
    atomic_uint owners;
    uint32_t count;
    struct reward_part parts[RL_REWARD_PARTS_MAX];
    uint32_t completion_limit; /* Lmax, tokens */
    uint32_t overlong_buffer;  /* Lbuf, tokens; 0: no punishment */
    double overlong_factor;
};

#define REWARD(name, help) extern const struct reward_ops reward_##name##_ops;
#include "rewards/rewards.def"

static const struct reward_ops *const reward_table[] = {
#define REWARD(name, help) &reward_##name##_ops,
#include "rewards/rewards.def"
};

struct span {
    const char *text;
    size_t bytes;
};

static struct span span_trim(struct span span)
{
    while (span.bytes > 0 && isspace((unsigned char)span.text[0])) {
        span.text++;
        span.bytes--;
    }
    while (span.bytes > 0 && isspace((unsigned char)span.text[span.bytes - 1])) {
        span.bytes--;
    }
    return span;
}

/* Cut the span at the first `separator`: returns what stands before it, moves *rest behind it;
 * rest->text becomes NULL when there is no separator left. */
static struct span span_cut(struct span *rest, char separator)
{
    struct span head = *rest;
    const char *at = memchr(rest->text, separator, rest->bytes);
    if (at == NULL) {
        *rest = (struct span){NULL, 0};
        return head;
    }
    head.bytes = (size_t)(at - rest->text);
    *rest = (struct span){at + 1, rest->bytes - head.bytes - 1};
    return head;
}

/* Names of the table as one text, "a, b, c". */
static void list_names(const struct reward_ops *const *table, size_t count, char *out, size_t bytes)
{
    size_t used = 0;
    out[0] = '\0';
    for (size_t i = 0; i < count && used < bytes; i++) {
        int wrote = snprintf(out + used, bytes - used, "%s%s", i == 0 ? "" : ", ", table[i]->name);
        used += wrote > 0 ? (size_t)wrote : 0;
    }
}

static rl_status fail_unknown(const struct reward_ops *const *table, size_t count, struct span name)
{
    char typed[NAME_MAX_BYTES];
    char known[NAMES_TEXT_BYTES];
    const char *names[TABLE_MAX];
    snprintf(typed, sizeof(typed), "%.*s", (int)(name.bytes < INT_MAX ? name.bytes : INT_MAX),
             name.text);
    list_names(table, count, known, sizeof(known));
    count = count < TABLE_MAX ? count : TABLE_MAX;
    for (size_t i = 0; i < count; i++) {
        names[i] = table[i]->name;
    }
    const char *nearest = rl_text_nearest(typed, names, count);
    return rl_fail(RL_INVALID,
                   "rewards.functions: unknown reward function \"%s\"%s%s%s; expected one of %s",
                   typed, nearest != NULL ? "; did you mean \"" : "",
                   nearest != NULL ? nearest : "", nearest != NULL ? "\"?" : "", known);
}

static rl_status parse_weight(struct span text, double *weight)
{
    char digits[NAME_MAX_BYTES] = "";
    char *end = digits;
    double value = NAN;
    if (text.bytes > 0 && text.bytes < sizeof(digits)) {
        memcpy(digits, text.text, text.bytes);
        digits[text.bytes] = '\0';
        value = strtod(digits, &end);
    }
    if (end == digits || *end != '\0' || !isfinite(value) || fabs(value) > weight_limit) {
        return rl_fail(RL_INVALID,
                       "rewards.functions: bad weight \"%.*s\"; expected a number between -1e6 and "
                       "1e6, as in numeric*1.0",
                       (int)(text.bytes < NAME_MAX_BYTES ? text.bytes : NAME_MAX_BYTES), text.text);
    }
    *weight = value;
    return RL_OK;
}

static const struct reward_ops *find_ops(const struct reward_ops *const *table, size_t count,
                                         struct span name)
{
    for (size_t i = 0; i < count; i++) {
        if (strlen(table[i]->name) == name.bytes &&
            memcmp(table[i]->name, name.text, name.bytes) == 0) {
            return table[i];
        }
    }
    return NULL;
}

/* Parse one "name" or "name*weight" and append it to the set. */
static rl_status add_part(struct reward_set *set, struct span entry,
                          const struct reward_ops *const *table, size_t count,
                          const struct rl_config *config)
{
    struct span name = span_trim(span_cut(&entry, '*'));
    const struct reward_ops *ops = find_ops(table, count, name);
    if (ops == NULL) {
        return fail_unknown(table, count, name);
    }
    double weight = 1.0;
    if (entry.text != NULL) {
        RL_TRY(parse_weight(span_trim(entry), &weight));
    }
    for (uint32_t i = 0; i < set->count; i++) {
        if (set->parts[i].ops == ops) {
            return rl_fail(RL_INVALID, "rewards.functions: \"%s\" is named twice", ops->name);
        }
    }
    if (set->count == RL_REWARD_PARTS_MAX) {
        return rl_fail(RL_INVALID, "rewards.functions: more than %d functions",
                       RL_REWARD_PARTS_MAX);
    }
    void *state = NULL;
    if (ops->create != NULL) {
        RL_TRY(ops->create(config, &state));
    }
    set->parts[set->count++] = (struct reward_part){ops, state, weight};
    return RL_OK;
}

static rl_status set_limits(struct reward_set *set, const struct rl_config *config)
{
    if (config->rewards.overlong_buffer > config->rollout.max_completion_length) {
        return rl_fail(RL_INVALID,
                       "rewards.overlong_buffer is %lld tokens, more than "
                       "rollout.max_completion_length (%lld)",
                       (long long)config->rewards.overlong_buffer,
                       (long long)config->rollout.max_completion_length);
    }
    set->completion_limit = (uint32_t)config->rollout.max_completion_length;
    set->overlong_buffer = (uint32_t)config->rewards.overlong_buffer;
    set->overlong_factor = config->rewards.overlong_factor;
    return RL_OK;
}

static rl_status fill_set(struct reward_set *set, const struct reward_ops *const *table,
                          size_t count, const struct rl_config *config)
{
    RL_TRY(set_limits(set, config));
    struct span rest = {config->rewards.functions, strlen(config->rewards.functions)};
    if (span_trim(rest).bytes == 0) {
        return rl_fail(RL_INVALID, "rewards.functions is empty; expected at least one function, "
                                   "as in numeric*1.0,format*0.2");
    }
    while (rest.text != NULL) {
        RL_TRY(add_part(set, span_cut(&rest, ','), table, count, config));
    }
    return RL_OK;
}

rl_status reward_set_create_from_ops(const struct reward_ops *const *table, size_t count,
                                     const struct rl_config *config, struct reward_set **out)
{
    struct reward_set *set = calloc(1, sizeof(*set));
    if (set == NULL) {
        return rl_fail(RL_NO_MEMORY, "reward set: %zu bytes", sizeof(*set));
    }
    atomic_init(&set->owners, 1);
    rl_status status = fill_set(set, table, count, config);
    if (status != RL_OK) {
        reward_set_destroy(set);
        return status;
    }
    *out = set;
    return RL_OK;
}

rl_status reward_set_create(const struct rl_config *config, struct reward_set **out)
{
    return reward_set_create_from_ops(reward_table, sizeof(reward_table) / sizeof(reward_table[0]),
                                      config, out);
}

struct reward_set *reward_set_acquire(const struct reward_set *set)
{
    /* The owners' count is the one thing about a set that changes. */
    struct reward_set *owned = (struct reward_set *)(uintptr_t)set;
    atomic_fetch_add_explicit(&owned->owners, 1, memory_order_relaxed);
    return owned;
}

void reward_set_destroy(struct reward_set *set)
{
    if (set == NULL || atomic_fetch_sub_explicit(&set->owners, 1, memory_order_acq_rel) != 1) {
        return;
    }
    for (uint32_t i = set->count; i > 0; i--) {
        struct reward_part *part = &set->parts[i - 1];
        if (part->ops->destroy != NULL) {
            part->ops->destroy(part->state);
        }
    }
    free(set);
}

uint32_t reward_set_count(const struct reward_set *set)
{
    return set->count;
}

const char *reward_set_name(const struct reward_set *set, uint32_t index)
{
    return set->parts[index].ops->name;
}

bool reward_set_gold_is_puzzle(const struct reward_set *set, uint32_t index)
{
    return set->parts[index].ops->gold_is_puzzle;
}

void reward_set_evaluate(const struct reward_set *set, const struct reward_input *input,
                         struct reward_output *parts)
{
    for (uint32_t i = 0; i < set->count; i++) {
        parts[i] = (struct reward_output){.valid = false, .value = 0.0, .reason = ""};
        set->parts[i].ops->score(set->parts[i].state, input, &parts[i]);
        if (parts[i].valid && !isfinite(parts[i].value)) {
            parts[i] = (struct reward_output){.reason = "the function's value is not finite"};
        }
    }
}

/* DAPO's soft punishment: 0 up to Lmax - Lbuf tokens, then falling linearly to -factor at Lmax. */
static double overlong_punishment(const struct reward_set *set, uint32_t completion_count)
{
    if (set->overlong_buffer == 0) {
        return 0.0;
    }
    double excess =
        (double)completion_count - ((double)set->completion_limit - (double)set->overlong_buffer);
    double punishment = -excess / (double)set->overlong_buffer * set->overlong_factor;
    return punishment < 0.0 ? punishment : 0.0;
}

void reward_set_score(const struct reward_set *set, const struct reward_input *input,
                      struct trajectory *sample)
{
    struct reward_output parts[RL_REWARD_PARTS_MAX];
    reward_set_evaluate(set, input, parts);
    double sum = 0.0;
    bool any_valid = false;
    sample->reward_part_count = set->count;
    for (uint32_t i = 0; i < set->count; i++) {
        sample->reward_part[i] = parts[i].valid ? (float)parts[i].value : 0.0F;
        sum += parts[i].valid ? set->parts[i].weight * parts[i].value : 0.0;
        any_valid = any_valid || parts[i].valid;
    }
    sum += overlong_punishment(set, sample->completion_count);
    sample->reward_valid = any_valid && isfinite((float)sum);
    sample->reward = sample->reward_valid ? (float)sum : 0.0F;
    sample->accuracy = parts[0].valid ? (float)parts[0].value : 0.0F;
}
