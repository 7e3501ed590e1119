/* Options of the simulator: defaults, parsing, help; and the lengths that they describe. All from
 * simulate.def; holds no state. */
#include "app/simulate.h"

#include "core/log.h"
#include "core/rng.h"
#include "core/text.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Quantile 0.99 of the standard normal distribution. */
#define SIMULATE_Z99 2.3263478740408408

enum { SIMULATE_RIGHT_STREAM = 1 }; /* seeds of lengths and of answers differ by it */

struct simulate_entry {
    const char *name;
    size_t offset;
    double initial, least, most;
    const char *help;
};

#define SIMULATE_OPTION(name, initial, least, most, help)                                          \
    {#name, offsetof(struct simulate_options, name), initial, least, most, help},
static const struct simulate_entry entries[] = {
#include "app/simulate.def"
};
#undef SIMULATE_OPTION
enum { SIMULATE_ENTRIES = sizeof entries / sizeof entries[0], SIMULATE_ASSIGNMENT_MAX = 128 };

static const char *const mode_names[SIMULATE_MODE_COUNT] = {"static", "drain", "pause", "slots"};

static double *entry_of(struct simulate_options *options, const struct simulate_entry *entry)
{
    return (double *)(void *)((char *)options + entry->offset);
}

void simulate_options_init(struct simulate_options *options)
{
    options->mode = SIMULATE_SLOTS;
    for (size_t i = 0; i < SIMULATE_ENTRIES; i++) {
        *entry_of(options, &entries[i]) = entries[i].initial;
    }
}

const char *simulate_mode_name(enum simulate_mode mode)
{
    return mode_names[mode];
}

static rl_status set_mode(struct simulate_options *options, const char *value)
{
    for (int i = 0; i < SIMULATE_MODE_COUNT; i++) {
        if (strcmp(value, mode_names[i]) == 0) {
            options->mode = (enum simulate_mode)i;
            return RL_OK;
        }
    }
    return rl_fail(RL_INVALID, "simulate: mode=%s: expected static, drain, pause or slots", value);
}

static rl_status set_number(struct simulate_options *options, const struct simulate_entry *entry,
                            const char *value)
{
    char *end = NULL;
    errno = 0;
    double number = strtod(value, &end);
    if (end == value || *end != '\0' || errno != 0 || !(number >= entry->least) ||
        !(number <= entry->most)) {
        return rl_fail(RL_INVALID, "simulate: %s=%s: expected a number from %g to %g", entry->name,
                       value, entry->least, entry->most);
    }
    *entry_of(options, entry) = number;
    return RL_OK;
}

static rl_status unknown_name(const char *name)
{
    const char *names[SIMULATE_ENTRIES + 1];
    for (size_t i = 0; i < SIMULATE_ENTRIES; i++) {
        names[i] = entries[i].name;
    }
    names[SIMULATE_ENTRIES] = "mode";
    const char *nearest = rl_text_nearest(name, names, SIMULATE_ENTRIES + 1);
    return rl_fail(RL_INVALID, "simulate: no option '%s'%s%s%s", name,
                   nearest != NULL ? "; did you mean '" : "", nearest != NULL ? nearest : "",
                   nearest != NULL ? "'?" : "");
}

rl_status simulate_options_set(struct simulate_options *options, const char *assignment)
{
    char name[SIMULATE_ASSIGNMENT_MAX];
    const char *equals = strchr(assignment, '=');
    if (equals == NULL || (size_t)(equals - assignment) >= sizeof name) {
        return rl_fail(RL_INVALID, "simulate: argument '%s': expected name=value", assignment);
    }
    memcpy(name, assignment, (size_t)(equals - assignment));
    name[equals - assignment] = '\0';
    if (strcmp(name, "mode") == 0) {
        return set_mode(options, equals + 1);
    }
    for (size_t i = 0; i < SIMULATE_ENTRIES; i++) {
        if (strcmp(name, entries[i].name) == 0) {
            return set_number(options, &entries[i], equals + 1);
        }
    }
    return unknown_name(name);
}

rl_status simulate_options_set_all(struct simulate_options *options, const char *assignments)
{
    const char *at = assignments + strspn(assignments, " ");
    while (*at != '\0') {
        char one[SIMULATE_ASSIGNMENT_MAX];
        size_t length = strcspn(at, " ");
        if (length >= sizeof one) {
            return rl_fail(RL_INVALID, "simulate: argument '%s' is too long", at);
        }
        memcpy(one, at, length);
        one[length] = '\0';
        RL_TRY(simulate_options_set(options, one));
        at += length;
        at += strspn(at, " ");
    }
    return RL_OK;
}

void simulate_options_help(FILE *out)
{
    fprintf(out, "  mode=slots               static, drain, pause or slots\n");
    for (size_t i = 0; i < SIMULATE_ENTRIES; i++) {
        char text[SIMULATE_ASSIGNMENT_MAX];
        snprintf(text, sizeof text, "%s=%g", entries[i].name, entries[i].initial);
        fprintf(out, "  %-24s %s\n", text, entries[i].help);
    }
}

uint32_t simulate_length(const struct simulate_options *options, uint64_t prompt, uint32_t sample)
{
    struct rl_rng_key key = rl_rng_key_make((uint64_t)options->seed, prompt, sample);
    double sigma = log(options->length_ratio) / SIMULATE_Z99;
    double length = options->length_median * exp(sigma * rl_rng_normal(key, 0));
    length = length < options->length_max ? length : options->length_max;
    return length > 1 ? (uint32_t)(length + 0.5) : 1;
}

bool simulate_right(const struct simulate_options *options, uint64_t prompt, uint32_t sample)
{
    uint64_t seed = (uint64_t)options->seed + SIMULATE_RIGHT_STREAM;
    return rl_rng_uniform(rl_rng_key_make(seed, prompt, sample), 1) < options->right_share;
}
