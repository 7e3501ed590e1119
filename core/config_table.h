/* config.def as data: one row per option and per section, and the typed setter that all sources
 * (YAML, overrides) go through. Only the config_*.c files include this. */
#ifndef FORESIGHT_CORE_CONFIG_TABLE_H
#define FORESIGHT_CORE_CONFIG_TABLE_H

#include "core/config.h"
#include "core/text.h"

#include <stddef.h>

enum config_type { CONFIG_BOOL, CONFIG_INT, CONFIG_AUTO_INT, CONFIG_REAL, CONFIG_STR, CONFIG_ENUM };

/* Longest STR value. Templates and file lists fit; a whole file pasted by mistake does not. */
enum { CONFIG_STR_BYTES = 1 << 16 };

struct config_row {
    const char *section;
    const char *name;
    enum config_type type;
    const char *choices;  /* ENUM: "a|b|c", else NULL */
    size_t offset;        /* of the member in struct rl_config */
    double def_number;    /* BOOL, INT, REAL; ENUM: index */
    const char *def_text; /* STR */
    double min;           /* INT, REAL: inclusive */
    double max;
    const char *unit;
    const char *help;
};

struct config_section {
    const char *name;
    const char *help;
};

size_t config_row_count(void);                    /* options in the table */
const struct config_row *config_row_of(size_t i); /* in table order; static */
size_t config_section_count(void);
const struct config_section *config_section_of(size_t i);

/* Find an option; SIZE_MAX if there is none. */
size_t config_row_find(const char *section, const char *name);

/* True if the table has this section. */
bool config_section_exists(const char *name);

/* Log that `name` is no section, or no option of `section`, with the nearest name there is; `where`
 * says file and line. Always returns RL_INVALID. */
rl_status config_unknown_section(const char *where, const char *name);
rl_status config_unknown_option(const char *where, const char *section, const char *name);

/* Address of an option's member. */
void *config_member(struct rl_config *config, const struct config_row *row);
const void *config_member_const(const struct rl_config *config, const struct config_row *row);

/* Name of a choice by index, copied into out [bytes]; false if there is none. */
bool config_choice_name(const char *choices, int index, char *out, size_t bytes);

/* A scalar as written. `quoted`: by YAML quotes, so it cannot be a number, a truth value or null.
 */
struct config_scalar {
    const char *text;
    size_t bytes;
    bool quoted;
};

/* Convert by the option's type, check its range, store it and mark it as set. Errors: RL_INVALID
 * (begins with `where`, names the option, what was found and expected), RL_NO_MEMORY. */
rl_status config_set(struct rl_config *config, size_t index, const struct config_scalar *scalar,
                     const char *where);

/* Range of one INT, REAL or ENUM value, as rl_config_validate also checks it. */
rl_status config_check_range(const struct rl_config *config, const struct config_row *row,
                             const char *where);

/* True of INT, AUTO_INT and REAL: has a range. */
bool config_is_number(const struct config_row *row);

/* "min .. max" of a number, copied into out [bytes]. */
void config_range_text(const struct config_row *row, char *out, size_t bytes);

/* Value as YAML text: strings quoted, reals in the shortest form that reads back to the same bits.
 */
rl_status config_print_value(const struct rl_config *config, const struct config_row *row,
                             struct rl_text *out);

/* Default as people read it. */
rl_status config_print_default(const struct config_row *row, struct rl_text *out);

#endif
