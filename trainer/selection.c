/* See selection.h. */
#include "trainer/selection.h"

#include "core/log.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct selection {
    const struct selection_options *options;
    const struct selection_sample *samples;
    size_t count;
    enum selection_verdict *verdict;
};

/* Samples [first, end) of one prompt. */
struct selection_group {
    size_t first, end;
};

void selection_options_from_config(const struct rl_config *config, struct selection_options *out)
{
    *out = (struct selection_options){.select = (enum config_select)config->distill.select,
                                      .weight = (enum config_weight)config->distill.weight,
                                      .degenerate =
                                          (enum config_degenerate)config->distill.drop_degenerate,
                                      .dedupe = config->distill.dedupe != CONFIG_DEDUPE_NONE,
                                      .drop_truncated = config->distill.drop_truncated,
                                      .drop_shortest = config->distill.drop_shortest,
                                      .max_per_prompt = (uint32_t)config->distill.max_per_prompt};
}

const char *selection_verdict_name(enum selection_verdict verdict)
{
#define SELECTION_NAME(id, name) [SELECTION_##id] = (name),
    static const char *const names[] = {SELECTION_VERDICTS(SELECTION_NAME)};
#undef SELECTION_NAME
    return names[verdict];
}

/* --- texts
 * ------------------------------------------------------------------------------------------------
 */

static bool is_space(char c)
{
    return strchr(" \t\r\n\v\f", c) != NULL && c != '\0';
}

static const char *skip_space(const char *text)
{
    while (is_space(*text)) {
        text++;
    }
    return text;
}

static bool is_single_line(const char *text)
{
    const char *line = strchr(skip_space(text), '\n');
    return line == NULL || *skip_space(line) == '\0';
}

/* Equal but for how much white space stands where there is some, and around. */
static bool same_text(const char *a, const char *b)
{
    a = skip_space(a);
    b = skip_space(b);
    while (*a != '\0' && *b != '\0') {
        if (is_space(*a) && is_space(*b)) {
            a = skip_space(a);
            b = skip_space(b);
        } else if (*a++ != *b++) {
            return false;
        }
    }
    return *skip_space(a) == '\0' && *skip_space(b) == '\0';
}

/* --- one sample
 * ----------------------------------------------------------------------------------------- */

static bool is_correct(const struct selection_sample *sample)
{
    return sample->valid && sample->accuracy >= 1.0F;
}

static bool needs_reward(const struct selection_options *options)
{
    return options->select != CONFIG_SELECT_NONE || options->weight == CONFIG_WEIGHT_REWARD ||
           options->weight == CONFIG_WEIGHT_ADVANTAGE;
}

static enum selection_verdict judge_alone(const struct selection_options *options,
                                          const struct selection_sample *sample)
{
    bool drops = options->degenerate != CONFIG_DEGENERATE_NONE;
    if (sample->length == 0 || (drops && *skip_space(sample->text) == '\0')) {
        return SELECTION_EMPTY;
    }
    if (options->degenerate == CONFIG_DEGENERATE_STUB && is_single_line(sample->text)) {
        return SELECTION_STUB;
    }
    if (options->drop_truncated && sample->truncated) {
        return SELECTION_TRUNCATED;
    }
    return needs_reward(options) && !sample->valid ? SELECTION_UNSCORED : SELECTION_KEPT;
}

/* --- one prompt
 * ------------------------------------------------------------------------------------------ */

/* Everything of the group that is still kept gets the verdict. */
static void drop_group(struct selection *s, struct selection_group group,
                       enum selection_verdict verdict)
{
    for (size_t i = group.first; i < group.end; i++) {
        s->verdict[i] = s->verdict[i] == SELECTION_KEPT ? verdict : s->verdict[i];
    }
}

static void keep_correct(struct selection *s, struct selection_group group)
{
    for (size_t i = group.first; i < group.end; i++) {
        if (s->verdict[i] == SELECTION_KEPT && !is_correct(&s->samples[i])) {
            s->verdict[i] = SELECTION_WRONG;
        }
    }
}

/* The highest reward; the first of equals. */
static void keep_best(struct selection *s, struct selection_group group)
{
    size_t best = group.end;
    for (size_t i = group.first; i < group.end; i++) {
        if (s->verdict[i] == SELECTION_KEPT &&
            (best == group.end || s->samples[i].reward > s->samples[best].reward)) {
            best = i;
        }
    }
    drop_group(s, group, SELECTION_NOT_BEST);
    if (best < group.end) {
        s->verdict[best] = SELECTION_KEPT;
    }
}

static void keep_by_group(struct selection *s, struct selection_group group)
{
    size_t right = 0;
    size_t scored = 0;
    for (size_t i = group.first; i < group.end; i++) {
        right += is_correct(&s->samples[i]);
        scored += s->samples[i].valid;
    }
    if (right == 0) {
        drop_group(s, group, SELECTION_ALL_WRONG);
    } else if (right == scored && s->options->select == CONFIG_SELECT_MIXED_ONLY) {
        drop_group(s, group, SELECTION_ALL_RIGHT);
    }
}

static void apply_mask(struct selection *s, struct selection_group group)
{
    switch (s->options->select) {
    case CONFIG_SELECT_CORRECT:
        keep_correct(s, group);
        break;
    case CONFIG_SELECT_BEST_OF_N:
        keep_best(s, group);
        break;
    case CONFIG_SELECT_NOT_ALL_WRONG:
    case CONFIG_SELECT_MIXED_ONLY:
        keep_by_group(s, group);
        break;
    case CONFIG_SELECT_NONE:
    default:
        break;
    }
}

static const char *path_of(const struct selection_sample *sample)
{
    return sample->path != NULL ? sample->path : sample->text;
}

static void drop_duplicates(struct selection *s, struct selection_group group)
{
    for (size_t i = group.first; s->options->dedupe && i < group.end; i++) {
        for (size_t j = group.first; j < i && s->verdict[i] == SELECTION_KEPT; j++) {
            if (s->verdict[j] == SELECTION_KEPT &&
                same_text(path_of(&s->samples[i]), path_of(&s->samples[j]))) {
                s->verdict[i] = SELECTION_DUPLICATE;
            }
        }
    }
}

static void cap(struct selection *s, struct selection_group group)
{
    uint32_t kept = 0;
    for (size_t i = group.first; s->options->max_per_prompt > 0 && i < group.end; i++) {
        if (s->verdict[i] == SELECTION_KEPT && ++kept > s->options->max_per_prompt) {
            s->verdict[i] = SELECTION_CAPPED;
        }
    }
}

static void for_each_group(struct selection *s,
                           void (*act)(struct selection *, struct selection_group))
{
    for (size_t first = 0; first < s->count;) {
        size_t end = first + 1;
        while (end < s->count && s->samples[end].prompt == s->samples[first].prompt) {
            end++;
        }
        act(s, (struct selection_group){first, end});
        first = end;
    }
}

/* --- all samples
 * ----------------------------------------------------------------------------------------- */

struct selection_length {
    uint32_t length;
    size_t index;
};

static int by_length(const void *a, const void *b)
{
    const struct selection_length *x = a;
    const struct selection_length *y = b;
    if (x->length != y->length) {
        return x->length < y->length ? -1 : 1;
    }
    return x->index < y->index ? -1 : x->index > y->index;
}

/* The shortest share of what is kept; of equal lengths the earlier goes first. */
static rl_status drop_shortest(struct selection *s)
{
    size_t kept = 0;
    if (s->options->drop_shortest <= 0) {
        return RL_OK;
    }
    struct selection_length *lengths = calloc(s->count + 1, sizeof *lengths);
    if (lengths == NULL) {
        return rl_fail(RL_NO_MEMORY, "selection: out of memory");
    }
    for (size_t i = 0; i < s->count; i++) {
        if (s->verdict[i] == SELECTION_KEPT) {
            lengths[kept++] = (struct selection_length){s->samples[i].length, i};
        }
    }
    qsort(lengths, kept, sizeof *lengths, by_length);
    size_t drop = (size_t)floor(s->options->drop_shortest * (double)kept);
    for (size_t i = 0; i < drop; i++) {
        s->verdict[lengths[i].index] = SELECTION_SHORT;
    }
    free(lengths);
    return RL_OK;
}

static float weight_of(const struct selection_options *options,
                       const struct selection_sample *sample)
{
    switch (options->weight) {
    case CONFIG_WEIGHT_REWARD:
        return sample->reward;
    case CONFIG_WEIGHT_ADVANTAGE:
        return sample->advantage;
    case CONFIG_WEIGHT_ONE:
    case CONFIG_WEIGHT_IMPORTANCE: /* the ratio of each token comes on top, in training */
    default:
        return 1.0F;
    }
}

static rl_status weigh(struct selection *s, float *weight, struct selection_counts *counts)
{
    struct selection_counts found = {.samples = s->count};
    for (size_t i = 0; i < s->count; i++) {
        bool kept = s->verdict[i] == SELECTION_KEPT;
        weight[i] = kept ? weight_of(s->options, &s->samples[i]) : 0.0F;
        if (!isfinite(weight[i])) {
            return rl_fail(RL_INVALID, "selection: a sample of prompt %llu has weight %g",
                           (unsigned long long)s->samples[i].prompt, (double)weight[i]);
        }
        if (kept && weight[i] == 0.0F) {
            s->verdict[i] = SELECTION_WEIGHTLESS;
        }
        found.verdict[s->verdict[i]]++;
    }
    *counts = found;
    return RL_OK;
}

rl_status selection_run(const struct selection_options *options,
                        const struct selection_sample *samples, size_t count,
                        enum selection_verdict *verdict, float *weight,
                        struct selection_counts *counts)
{
    struct selection s = {options, samples, count, verdict};
    for (size_t i = 0; i < count; i++) {
        verdict[i] = judge_alone(options, &samples[i]);
    }
    for_each_group(&s, apply_mask);
    for_each_group(&s, drop_duplicates);
    RL_TRY(drop_shortest(&s));
    for_each_group(&s, cap);
    return weigh(&s, weight, counts);
}
