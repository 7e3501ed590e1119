/* config.def turned into rows, and finding one. No state beyond constants. */
#include "core/config_table.h"

#include "core/log.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define CONFIG_TYPE_BOOL .type = CONFIG_BOOL
#define CONFIG_TYPE_INT .type = CONFIG_INT
#define CONFIG_TYPE_AUTO_INT .type = CONFIG_AUTO_INT
#define CONFIG_TYPE_REAL .type = CONFIG_REAL
#define CONFIG_TYPE_STR .type = CONFIG_STR
#define CONFIG_TYPE_ENUM(names) .type = CONFIG_ENUM, .choices = names
#define CONFIG_DEF_BOOL(value) .def_number = (value)
#define CONFIG_DEF_INT(value) .def_number = (double)(value)
#define CONFIG_DEF_AUTO_INT(value) .def_number = (double)(value)
#define CONFIG_DEF_REAL(value) .def_number = (value)
#define CONFIG_DEF_STR(value) .def_text = value
#define CONFIG_DEF_ENUM(names) CONFIG_DEF_INT

#define SECTION_BEGIN(section, text)
#define SECTION_END(section)
#define OPTION(sec, member, kind, def, low, high, of, text)                                        \
    {.section = #sec,                                                                              \
     .name = #member,                                                                              \
     CONFIG_TYPE_##kind,                                                                           \
     CONFIG_DEF_##kind(def),                                                                       \
     .offset = offsetof(struct rl_config, sec.member),                                             \
     .min = (double)(low),                                                                         \
     .max = (double)(high),                                                                        \
     .unit = of,                                                                                   \
     .help = text},
static const struct config_row config_rows[] = {
#include "core/config.def"
};

#define SECTION_BEGIN(section, text) {#section, text},
#define SECTION_END(section)
#define OPTION(section, name, type, def, min, max, unit, help)
static const struct config_section config_sections[] = {
#include "core/config.def"
};

enum {
    CONFIG_ROWS = sizeof config_rows / sizeof config_rows[0],
    CONFIG_SECTIONS = sizeof config_sections / sizeof config_sections[0]
};

size_t config_row_count(void)
{
    return CONFIG_ROWS;
}

const struct config_row *config_row_of(size_t i)
{
    return &config_rows[i];
}

size_t config_section_count(void)
{
    return CONFIG_SECTIONS;
}

const struct config_section *config_section_of(size_t i)
{
    return &config_sections[i];
}

size_t config_row_find(const char *section, const char *name)
{
    for (size_t i = 0; i < CONFIG_ROWS; i++) {
        if (strcmp(config_rows[i].section, section) == 0 &&
            strcmp(config_rows[i].name, name) == 0) {
            return i;
        }
    }
    return SIZE_MAX;
}

bool config_section_exists(const char *name)
{
    for (size_t i = 0; i < CONFIG_SECTIONS; i++) {
        if (strcmp(config_sections[i].name, name) == 0) {
            return true;
        }
    }
    return false;
}

rl_status config_unknown_section(const char *where, const char *name)
{
    const char *names[CONFIG_SECTIONS];
    for (size_t i = 0; i < CONFIG_SECTIONS; i++) {
        names[i] = config_sections[i].name;
    }
    const char *nearest = rl_text_nearest(name, names, CONFIG_SECTIONS);
    for (size_t i = 0; i < CONFIG_ROWS; i++) {
        if (strcmp(config_rows[i].name, name) == 0) {
            return rl_fail(RL_INVALID, "%s: unknown section \"%s\"; it is an option: %s.%s", where,
                           name, config_rows[i].section, name);
        }
    }
    if (nearest != NULL) {
        return rl_fail(RL_INVALID, "%s: unknown section \"%.80s\"; did you mean %s?", where, name,
                       nearest);
    }
    return rl_fail(RL_INVALID, "%s: unknown section \"%.80s\"; `foresight train --help` lists them",
                   where, name);
}

/* The same name in another section is a likelier slip than a similar name in this one. */
rl_status config_unknown_option(const char *where, const char *section, const char *name)
{
    const char *names[CONFIG_ROWS];
    size_t count = 0;
    for (size_t i = 0; i < CONFIG_ROWS; i++) {
        if (strcmp(config_rows[i].name, name) == 0) {
            return rl_fail(RL_INVALID, "%s: unknown option %s.%s; did you mean %s.%s?", where,
                           section, name, config_rows[i].section, name);
        }
        if (strcmp(config_rows[i].section, section) == 0) {
            names[count++] = config_rows[i].name;
        }
    }
    const char *nearest = rl_text_nearest(name, names, count);
    if (nearest != NULL) {
        return rl_fail(RL_INVALID, "%s: unknown option %s.%.80s; did you mean %s.%s?", where,
                       section, name, section, nearest);
    }
    return rl_fail(RL_INVALID, "%s: unknown option %s.%.80s; docs/config.md lists all", where,
                   section, name);
}

void *config_member(struct rl_config *config, const struct config_row *row)
{
    return (unsigned char *)config + row->offset;
}

const void *config_member_const(const struct rl_config *config, const struct config_row *row)
{
    return (const unsigned char *)config + row->offset;
}

bool config_choice_name(const char *choices, int index, char *out, size_t bytes)
{
    const char *start = choices;
    for (int i = 0; i < index && start != NULL; i++) {
        start = strchr(start, '|');
        start = start != NULL ? start + 1 : NULL;
    }
    if (start == NULL || index < 0) {
        return false;
    }
    snprintf(out, bytes, "%.*s", (int)strcspn(start, "|"), start);
    return true;
}
