/* Reads YAML and writes it back. The accepted shape is `section: {name: scalar or list of
 * scalars}`; everything else that YAML can say is refused with file and line. */
#include "core/config_table.h"

#include "core/log.h"
#include "core/yaml_reader.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { CONFIG_FILE_BYTES = 1 << 20, CONFIG_DEPTH_MAX = 4 };

struct config_reader {
    struct rl_yaml_reader *yaml;
    const char *path;
    struct rl_config *config;
    unsigned char *seen_options;
    unsigned char *seen_sections;
};

static rl_status config_reader_next(struct config_reader *reader)
{
    return rl_yaml_next(reader->yaml);
}

static const char *config_where(const struct config_reader *reader)
{
    return rl_yaml_where(reader->yaml);
}

static struct config_scalar config_reader_scalar(const struct config_reader *reader)
{
    struct rl_yaml_scalar scalar = rl_yaml_scalar(reader->yaml);
    return (struct config_scalar){
        .text = scalar.text, .bytes = scalar.bytes, .quoted = scalar.quoted};
}

/* One more element of a list. A comma inside would be read as two elements later. */
static rl_status config_reader_join(struct config_reader *reader, const struct config_row *row,
                                    bool first, struct rl_text *joined)
{
    if (rl_yaml_event(reader->yaml) != RL_YAML_SCALAR) {
        return rl_fail(RL_INVALID, "%s: %s.%s: a list may hold single values only",
                       config_where(reader), row->section, row->name);
    }
    struct config_scalar scalar = config_reader_scalar(reader);
    if (memchr(scalar.text, ',', scalar.bytes) != NULL) {
        return rl_fail(RL_INVALID, "%s: %s.%s: \"%.80s\" holds a comma, which separates elements",
                       config_where(reader), row->section, row->name, scalar.text);
    }
    if (!first) {
        RL_TRY(rl_text_append_byte(joined, ','));
    }
    return rl_text_append(joined, scalar.text, scalar.bytes);
}

static rl_status config_read_list(struct config_reader *reader, size_t index)
{
    const struct config_row *row = config_row_of(index);
    if (row->type != CONFIG_STR) {
        return rl_fail(RL_INVALID, "%s: %s.%s: a list where one value is expected",
                       config_where(reader), row->section, row->name);
    }
    struct rl_text joined;
    rl_text_init(&joined, CONFIG_FILE_BYTES);
    rl_status status = RL_OK;
    RL_TRY_GOTO(rl_text_reserve(&joined, 0), status, done);
    RL_TRY_GOTO(config_reader_next(reader), status, done);
    for (bool first = true; rl_yaml_event(reader->yaml) != RL_YAML_LIST_END; first = false) {
        RL_TRY_GOTO(config_reader_join(reader, row, first, &joined), status, done);
        RL_TRY_GOTO(config_reader_next(reader), status, done);
    }
    struct config_scalar scalar = {.text = joined.data, .bytes = joined.bytes, .quoted = true};
    status = config_set(reader->config, index, &scalar, config_where(reader));
done:
    rl_text_fini(&joined);
    return status;
}

static rl_status config_read_value(struct config_reader *reader, size_t index)
{
    const struct config_row *row = config_row_of(index);
    if (rl_yaml_event(reader->yaml) == RL_YAML_SCALAR) {
        struct config_scalar scalar = config_reader_scalar(reader);
        return config_set(reader->config, index, &scalar, config_where(reader));
    }
    if (rl_yaml_event(reader->yaml) == RL_YAML_LIST_BEGIN) {
        return config_read_list(reader, index);
    }
    return rl_fail(RL_INVALID, "%s: %s.%s: a mapping where a value is expected",
                   config_where(reader), row->section, row->name);
}

/* The current event opens the section's mapping; read to its end. */
static rl_status config_read_section(struct config_reader *reader, const char *section)
{
    char name[128];
    RL_TRY(config_reader_next(reader));
    while (rl_yaml_event(reader->yaml) != RL_YAML_MAP_END) {
        RL_TRY(rl_yaml_key(reader->yaml, name, sizeof name));
        size_t index = config_row_find(section, name);
        if (index == SIZE_MAX) {
            return config_unknown_option(config_where(reader), section, name);
        }
        if (reader->seen_options[index]++ != 0) {
            return rl_fail(RL_INVALID, "%s: %s.%s is given twice", config_where(reader), section,
                           name);
        }
        RL_TRY(config_reader_next(reader));
        RL_TRY(config_read_value(reader, index));
        RL_TRY(config_reader_next(reader));
    }
    return RL_OK;
}

static rl_status config_mark_section(struct config_reader *reader, const char *section)
{
    for (size_t i = 0; i < config_section_count(); i++) {
        if (strcmp(config_section_of(i)->name, section) != 0) {
            continue;
        }
        if (reader->seen_sections[i]++ != 0) {
            return rl_fail(RL_INVALID, "%s: section %s is given twice", config_where(reader),
                           section);
        }
        return RL_OK;
    }
    return config_unknown_section(config_where(reader), section);
}

/* The current event is the document's root. A section whose lines are all commented out is null. */
static rl_status config_read_root(struct config_reader *reader)
{
    if (rl_yaml_is_null(reader->yaml)) {
        return RL_OK;
    }
    if (rl_yaml_event(reader->yaml) != RL_YAML_MAP_BEGIN) {
        return rl_fail(RL_INVALID, "%s: expected `section: {name: value}` at the top",
                       config_where(reader));
    }
    char section[128];
    RL_TRY(config_reader_next(reader));
    while (rl_yaml_event(reader->yaml) != RL_YAML_MAP_END) {
        RL_TRY(rl_yaml_key(reader->yaml, section, sizeof section));
        RL_TRY(config_mark_section(reader, section));
        RL_TRY(config_reader_next(reader));
        if (rl_yaml_event(reader->yaml) == RL_YAML_MAP_BEGIN) {
            RL_TRY(config_read_section(reader, section));
        } else if (!rl_yaml_is_null(reader->yaml)) {
            return rl_fail(RL_INVALID, "%s: section %s: expected `name: value` lines below it",
                           config_where(reader), section);
        }
        RL_TRY(config_reader_next(reader));
    }
    return RL_OK;
}

static rl_status config_read_stream(struct config_reader *reader)
{
    bool empty = false;
    RL_TRY(rl_yaml_begin(reader->yaml, &empty));
    if (empty) {
        return RL_OK;
    }
    RL_TRY(config_read_root(reader));
    return rl_yaml_finish(reader->yaml);
}

static rl_status config_read_text(struct config_reader *reader, const char *text, size_t bytes)
{
    reader->seen_options = calloc(config_row_count() + config_section_count(), 1);
    if (reader->seen_options == NULL) {
        return rl_fail(RL_NO_MEMORY, "%s: no memory for parsing", reader->path);
    }
    reader->seen_sections = reader->seen_options + config_row_count();
    rl_status status = rl_yaml_open(reader->path, text, bytes, CONFIG_DEPTH_MAX, &reader->yaml);
    if (status == RL_OK) {
        status = config_read_stream(reader);
    }
    rl_yaml_close(reader->yaml);
    free(reader->seen_options);
    return status;
}

rl_status rl_config_load(struct rl_config *config, const char *path)
{
    char *text = NULL;
    size_t bytes = 0;
    rl_status status = rl_file_read(path, CONFIG_FILE_BYTES, &text, &bytes);
    if (status == RL_TOO_LONG) {
        return RL_INVALID;
    }
    RL_TRY(status);
    struct config_reader reader = {.path = path, .config = config};
    status = config_read_text(&reader, text, bytes);
    free(text);
    return status;
}

rl_status rl_config_load_text(struct rl_config *config, const char *name, const char *text,
                              size_t bytes)
{
    struct config_reader reader = {.path = name, .config = config};
    return config_read_text(&reader, text, bytes);
}

static rl_status config_dump_text(const struct rl_config *config, struct rl_text *text)
{
    const char *section = "";
    for (size_t i = 0; i < config_row_count(); i++) {
        const struct config_row *row = config_row_of(i);
        if (strcmp(row->section, section) != 0) {
            RL_TRY(rl_text_printf(text, "%s%s:\n", i > 0 ? "\n" : "", row->section));
            section = row->section;
        }
        RL_TRY(rl_text_printf(text, "  %s: ", row->name));
        RL_TRY(config_print_value(config, row, text));
        RL_TRY(rl_text_append_byte(text, '\n'));
    }
    return RL_OK;
}

rl_status rl_config_dump(const struct rl_config *config, FILE *out)
{
    struct rl_text text;
    rl_text_init(&text, CONFIG_FILE_BYTES);
    rl_status status = config_dump_text(config, &text);
    if (status == RL_OK &&
        (fwrite(text.data, 1, text.bytes, out) != text.bytes || fflush(out) != 0)) {
        status = rl_fail(RL_IO, "cannot write the configuration: %s", strerror(errno));
    }
    rl_text_fini(&text);
    return status;
}
