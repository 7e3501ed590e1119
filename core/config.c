/* Life cycle of the configuration, overrides, and which options were given. Invariant: every STR
 * member is an owned string, never NULL, between init and fini. */
#include "core/config_table.h"

#include "core/log.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static rl_status config_set_default(struct rl_config *config, const struct config_row *row)
{
    void *member = config_member(config, row);
    switch (row->type) {
    case CONFIG_BOOL:
        *(bool *)member = row->def_number != 0.0;
        return RL_OK;
    case CONFIG_INT:
    case CONFIG_AUTO_INT:
        *(int64_t *)member = (int64_t)row->def_number;
        return RL_OK;
    case CONFIG_REAL:
        *(double *)member = row->def_number;
        return RL_OK;
    case CONFIG_STR:
        return rl_text_copy(row->def_text, member);
    case CONFIG_ENUM:
        *(int *)member = (int)row->def_number;
        return RL_OK;
    }
    return RL_INTERNAL;
}

rl_status rl_config_init(struct rl_config *config)
{
    memset(config, 0, sizeof *config);
    config->set_flags = calloc(config_row_count(), 1);
    rl_status status = config->set_flags != NULL
                           ? RL_OK
                           : rl_fail(RL_NO_MEMORY, "no memory for the configuration");
    for (size_t i = 0; status == RL_OK && i < config_row_count(); i++) {
        status = config_set_default(config, config_row_of(i));
    }
    if (status != RL_OK) {
        rl_config_fini(config);
    }
    return status;
}

void rl_config_fini(struct rl_config *config)
{
    for (size_t i = 0; i < config_row_count(); i++) {
        const struct config_row *row = config_row_of(i);
        if (row->type == CONFIG_STR) {
            free(*(char **)config_member(config, row));
        }
    }
    free(config->set_flags);
    memset(config, 0, sizeof *config);
}

/* A bare name stands for the one section that has it. */
static rl_status config_find_bare(const char *where, const char *name, size_t *out)
{
    size_t found = SIZE_MAX;
    for (size_t i = 0; i < config_row_count(); i++) {
        if (strcmp(config_row_of(i)->name, name) != 0) {
            continue;
        }
        if (found != SIZE_MAX) {
            return rl_fail(RL_INVALID, "%s: %s: write %s.%s or %s.%s", where, name,
                           config_row_of(found)->section, name, config_row_of(i)->section, name);
        }
        found = i;
    }
    if (found == SIZE_MAX) {
        const char *names[256];
        size_t count = 0;
        for (size_t i = 0; i < config_row_count() && count < 256; i++) {
            names[count++] = config_row_of(i)->name;
        }
        const char *nearest = rl_text_nearest(name, names, count);
        return rl_fail(RL_INVALID, "%s: unknown option %.80s%s%s%s", where, name,
                       nearest != NULL ? "; did you mean " : "", nearest != NULL ? nearest : "",
                       nearest != NULL ? "?" : "");
    }
    *out = found;
    return RL_OK;
}

static rl_status config_find_key(const char *where, const char *key, size_t *out)
{
    const char *dot = strchr(key, '.');
    if (dot == NULL) {
        return config_find_bare(where, key, out);
    }
    char section[64];
    int written = snprintf(section, sizeof section, "%.*s", (int)(dot - key), key);
    if (written < 0 || (size_t)written >= sizeof section || !config_section_exists(section)) {
        return config_unknown_section(where, section);
    }
    size_t found = config_row_find(section, dot + 1);
    if (found == SIZE_MAX) {
        return config_unknown_option(where, section, dot + 1);
    }
    *out = found;
    return RL_OK;
}

rl_status rl_config_override(struct rl_config *config, const char *assignment)
{
    const char *equals = strchr(assignment, '=');
    if (equals == NULL || equals == assignment || equals - assignment > 127) {
        return rl_fail(RL_INVALID, "override \"%.80s\": expected section.name=value", assignment);
    }
    char key[CONFIG_KEY_BYTES];
    snprintf(key, sizeof key, "%.*s", (int)(equals - assignment), assignment);
    return rl_config_assign(config, "override", key, equals + 1);
}

rl_status rl_config_assign(struct rl_config *config, const char *where, const char *key,
                           const char *value)
{
    size_t index = 0;
    RL_TRY(config_find_key(where, key, &index));
    struct config_scalar scalar = {.text = value, .bytes = strlen(value)};
    return config_set(config, index, &scalar, where);
}

rl_status rl_config_key(const char *where, const char *key, char *out)
{
    size_t index = 0;
    RL_TRY(config_find_key(where, key, &index));
    const struct config_row *row = config_row_of(index);
    snprintf(out, CONFIG_KEY_BYTES, "%s.%s", row->section, row->name);
    return RL_OK;
}

rl_status rl_config_value(const struct rl_config *config, const char *key, char **out)
{
    size_t index = 0;
    RL_TRY(config_find_key("config", key, &index));
    const struct config_row *row = config_row_of(index);
    if (row->type == CONFIG_STR) {
        return rl_text_copy(*(char *const *)config_member_const(config, row), out);
    }
    struct rl_text text;
    rl_text_init(&text, CONFIG_KEY_BYTES);
    rl_status status = config_print_value(config, row, &text);
    if (status == RL_OK) {
        status = rl_text_take(&text, out, NULL);
    }
    rl_text_fini(&text);
    return status;
}

bool rl_config_is_set(const struct rl_config *config, const char *key)
{
    const char *dot = strchr(key, '.');
    for (size_t i = 0; dot != NULL && i < config_row_count(); i++) {
        const struct config_row *row = config_row_of(i);
        size_t section_bytes = strlen(row->section);
        if (section_bytes == (size_t)(dot - key) &&
            strncmp(row->section, key, section_bytes) == 0 && strcmp(row->name, dot + 1) == 0) {
            return config->set_flags[i] != 0;
        }
    }
    return false;
}
