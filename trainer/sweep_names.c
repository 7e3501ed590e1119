/* Names of trials: the values of the axes, each with its option's name where it is a number, and
 * the seed. A name is a plain file name and follows from the trial's own options. */
#include "trainer/sweep_plan_internal.h"

#include "core/log.h"
#include "core/text.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAME_VALUE_BYTES = 33, NAME_MOST = 96, NAME_CUT = 78 };

/* The option's own name, with its section where another axis has one of the same name. */
static const char *short_key(const struct sweep_plan *plan, const char *key)
{
    const char *name = strchr(key, '.') + 1;
    for (size_t a = 0; a < plan->axis_count; a++) {
        for (size_t k = 0; k < plan->axes[a].key_count; k++) {
            const char *other = plan->axes[a].keys[k];
            if (strcmp(other, key) != 0 && strcmp(strchr(other, '.') + 1, name) == 0) {
                return key;
            }
        }
    }
    return name;
}

static bool is_plain(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           strchr("._+-", c) != NULL;
}

/* A value as part of a file name: of a path the last part, odd characters as '_'. */
static void plain_value(const char *value, char out[NAME_VALUE_BYTES])
{
    size_t length = strlen(value);
    while (length > 1 && value[length - 1] == '/') {
        length--;
    }
    size_t start = length;
    while (start > 0 && (value[start - 1] != '/' || start == length)) {
        start--;
    }
    size_t used = 0;
    for (size_t i = start; i < length && used < NAME_VALUE_BYTES - 1; i++) {
        out[used++] = value[i];
    }
    out[used] = '\0';
    for (size_t i = 0; i < used; i++) {
        out[i] = is_plain(out[i]) ? out[i] : '_';
    }
    if (used == 0) {
        memcpy(out, "none", sizeof "none");
    }
}

static bool is_number(const char *value)
{
    char *end = NULL;
    (void)strtod(value, &end);
    return end != value && *end == '\0';
}

static rl_status append_value(const struct sweep_plan *plan, const char *key, const char *value,
                              struct rl_text *text)
{
    char plain[NAME_VALUE_BYTES];
    const char *separator = text->bytes > 0 ? "-" : "";
    plain_value(value, plain);
    if (is_number(value)) {
        return rl_text_printf(text, "%s%s%s", separator, short_key(plan, key), plain);
    }
    if (strcmp(value, "true") == 0 || strcmp(value, "false") == 0 || value[0] == '\0') {
        return rl_text_printf(text, "%s%s_%s", separator, short_key(plan, key), plain);
    }
    return rl_text_printf(text, "%s%s", separator, plain);
}

static rl_status append_axis(const struct sweep_plan *plan, const struct sweep_axis *axis,
                             size_t entry, struct rl_text *text)
{
    char plain[NAME_VALUE_BYTES];
    if (axis->labels != NULL) {
        plain_value(axis->labels[entry], plain);
        return rl_text_printf(text, "%s%s", text->bytes > 0 ? "-" : "", plain);
    }
    for (size_t k = 0; k < axis->key_count; k++) {
        const char *value = axis->values[entry * axis->key_count + k];
        RL_TRY(append_value(plan, axis->keys[k], value, text));
    }
    return RL_OK;
}

static rl_status make_name(const struct sweep_plan *plan, struct sweep_trial *trial)
{
    struct rl_text text;
    rl_text_init(&text, 1 << 16);
    rl_status status = RL_OK;
    for (size_t a = 0; status == RL_OK && a < plan->axis_count; a++) {
        status = append_axis(plan, &plan->axes[a], trial->entries[a], &text);
    }
    if (status == RL_OK && plan->seeds_given) {
        status = rl_text_printf(&text, "%sseed%" PRId64, text.bytes > 0 ? "-" : "", trial->seed);
    }
    const char *name = text.bytes > 0 ? rl_text_str(&text) : "trial";
    if (strlen(name) <= NAME_MOST && name[0] != '.' && name[0] != '-') {
        snprintf(trial->name, sizeof trial->name, "%s", name);
    } else {
        snprintf(trial->name, sizeof trial->name, "t%.*s-%s", NAME_CUT, name, trial->key);
    }
    rl_text_fini(&text);
    return status;
}

static int by_name(const void *a, const void *b)
{
    const struct sweep_trial *const *x = a;
    const struct sweep_trial *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

/* In the order of names: trials of one name get their keys behind it. */
static void tell_apart(struct sweep_trial **sorted, size_t count)
{
    for (size_t i = 0; i < count;) {
        size_t end = i + 1;
        while (end < count && strcmp(sorted[i]->name, sorted[end]->name) == 0) {
            end++;
        }
        for (size_t k = i; end - i > 1 && k < end; k++) {
            size_t used = strlen(sorted[k]->name);
            used = used < NAME_CUT ? used : NAME_CUT;
            snprintf(sorted[k]->name + used, SWEEP_NAME_BYTES - used, "-%s", sorted[k]->key);
        }
        i = end;
    }
}

static int by_key(const void *a, const void *b)
{
    const struct sweep_trial *const *x = a;
    const struct sweep_trial *const *y = b;
    return strcmp((*x)->key, (*y)->key);
}

rl_status sweep_names_make(struct sweep_plan *plan)
{
    struct sweep_trial **sorted = calloc(plan->trial_count, sizeof *sorted);
    rl_status status = sorted != NULL ? RL_OK : rl_fail(RL_NO_MEMORY, "sweep: out of memory");
    for (size_t i = 0; status == RL_OK && i < plan->trial_count; i++) {
        sorted[i] = &plan->trials[i];
        status = make_name(plan, sorted[i]);
    }
    if (status == RL_OK) {
        qsort(sorted, plan->trial_count, sizeof *sorted, by_key);
    }
    for (size_t i = 1; status == RL_OK && i < plan->trial_count; i++) {
        if (strcmp(sorted[i]->key, sorted[i - 1]->key) == 0) {
            status = rl_fail(RL_INVALID,
                             "sweep %s: two trials are the same, both %s: an axis names a value "
                             "twice",
                             plan->name, sorted[i]->name);
        }
    }
    if (status == RL_OK) {
        qsort(sorted, plan->trial_count, sizeof *sorted, by_name);
        tell_apart(sorted, plan->trial_count);
    }
    free(sorted);
    return status;
}
