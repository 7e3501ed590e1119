/* Reads YAML through libyaml's events and writes it back. Only this file sees yaml.h. The accepted
 * shape is `section: {name: scalar or list of scalars}`; everything else that YAML can say
 * (anchors, aliases, tags, several documents, deeper nesting) is refused with file and line. */
#include "core/config_table.h"

#include "core/log.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <yaml.h>

enum { CONFIG_FILE_BYTES = 1 << 20, CONFIG_DEPTH_MAX = 4, CONFIG_WHERE_BYTES = 512 };

struct config_reader {
    yaml_parser_t parser;
    yaml_event_t event; /* the current one; owned by libyaml */
    bool have_event;
    const char *path;
    char where[CONFIG_WHERE_BYTES]; /* "path:line" of the current event */
    int depth;
    struct rl_config *config;
    unsigned char *seen_options;
    unsigned char *seen_sections;
};

static void config_reader_at(struct config_reader *reader, size_t line)
{
    snprintf(reader->where, sizeof reader->where, "%.400s:%zu", reader->path, line + 1);
}

static rl_status config_reader_syntax(struct config_reader *reader)
{
    const yaml_parser_t *parser = &reader->parser;
    const char *problem = parser->problem != NULL ? parser->problem : "cannot be parsed";
    if (parser->error == YAML_MEMORY_ERROR) {
        return rl_fail(RL_NO_MEMORY, "%s: no memory for parsing", reader->path);
    }
    if (parser->error == YAML_READER_ERROR) {
        return rl_fail(RL_INVALID, "%s: byte %zu: %s", reader->path, parser->problem_offset,
                       problem);
    }
    config_reader_at(reader, parser->problem_mark.line);
    return rl_fail(RL_INVALID, "%s: column %zu: %s%s%s", reader->where,
                   parser->problem_mark.column + 1, problem, parser->context != NULL ? ", " : "",
                   parser->context != NULL ? parser->context : "");
}

/* What is refused wherever it stands. A quoted scalar's implicit "!" tag is not a tag. */
static rl_status config_reader_refuse(struct config_reader *reader)
{
    const yaml_event_t *event = &reader->event;
    const yaml_char_t *anchor = NULL;
    const yaml_char_t *tag = NULL;
    if (event->type == YAML_ALIAS_EVENT) {
        return rl_fail(RL_INVALID, "%s: alias *%.80s: aliases are not accepted", reader->where,
                       (const char *)event->data.alias.anchor);
    }
    if (event->type == YAML_SCALAR_EVENT) {
        anchor = event->data.scalar.anchor;
        tag = event->data.scalar.tag;
    } else if (event->type == YAML_SEQUENCE_START_EVENT) {
        anchor = event->data.sequence_start.anchor;
        tag = event->data.sequence_start.tag;
    } else if (event->type == YAML_MAPPING_START_EVENT) {
        anchor = event->data.mapping_start.anchor;
        tag = event->data.mapping_start.tag;
    }
    if (anchor != NULL) {
        return rl_fail(RL_INVALID, "%s: anchor &%.80s: anchors are not accepted", reader->where,
                       (const char *)anchor);
    }
    if (tag != NULL) {
        return rl_fail(RL_INVALID, "%s: tag %.80s: tags are not accepted", reader->where,
                       (const char *)tag);
    }
    return RL_OK;
}

static rl_status config_reader_next(struct config_reader *reader)
{
    if (reader->have_event) {
        yaml_event_delete(&reader->event);
        reader->have_event = false;
    }
    if (!yaml_parser_parse(&reader->parser, &reader->event)) {
        return config_reader_syntax(reader);
    }
    reader->have_event = true;
    config_reader_at(reader, reader->event.start_mark.line);
    yaml_event_type_t type = reader->event.type;
    bool opens = type == YAML_MAPPING_START_EVENT || type == YAML_SEQUENCE_START_EVENT;
    bool closes = type == YAML_MAPPING_END_EVENT || type == YAML_SEQUENCE_END_EVENT;
    reader->depth += opens - closes;
    if (reader->depth > CONFIG_DEPTH_MAX) {
        return rl_fail(RL_INVALID, "%s: nested deeper than %d levels", reader->where,
                       CONFIG_DEPTH_MAX);
    }
    return config_reader_refuse(reader);
}

static struct config_scalar config_reader_scalar(const struct config_reader *reader)
{
    return (struct config_scalar){.text = (const char *)reader->event.data.scalar.value,
                                  .bytes = reader->event.data.scalar.length,
                                  .quoted =
                                      reader->event.data.scalar.style != YAML_PLAIN_SCALAR_STYLE};
}

/* The current event as a key: a scalar that fits. Copied, because the next event frees it. */
static rl_status config_reader_key(struct config_reader *reader, char *out, size_t bytes)
{
    if (reader->event.type != YAML_SCALAR_EVENT) {
        return rl_fail(RL_INVALID, "%s: a key must be a plain name", reader->where);
    }
    struct config_scalar scalar = config_reader_scalar(reader);
    if (scalar.bytes >= bytes || strlen(scalar.text) != scalar.bytes || scalar.bytes == 0) {
        return rl_fail(RL_INVALID, "%s: \"%.80s\" is not a name (1 .. %zu bytes)", reader->where,
                       scalar.text, bytes - 1);
    }
    memcpy(out, scalar.text, scalar.bytes + 1);
    return RL_OK;
}

/* One more element of a list. A comma inside would be read as two elements later. */
static rl_status config_reader_join(struct config_reader *reader, const struct config_row *row,
                                    bool first, struct rl_text *joined)
{
    if (reader->event.type != YAML_SCALAR_EVENT) {
        return rl_fail(RL_INVALID, "%s: %s.%s: a list may hold single values only", reader->where,
                       row->section, row->name);
    }
    struct config_scalar scalar = config_reader_scalar(reader);
    if (memchr(scalar.text, ',', scalar.bytes) != NULL) {
        return rl_fail(RL_INVALID, "%s: %s.%s: \"%.80s\" holds a comma, which separates elements",
                       reader->where, row->section, row->name, scalar.text);
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
        return rl_fail(RL_INVALID, "%s: %s.%s: a list where one value is expected", reader->where,
                       row->section, row->name);
    }
    struct rl_text joined;
    rl_text_init(&joined, CONFIG_FILE_BYTES);
    rl_status status = RL_OK;
    RL_TRY_GOTO(rl_text_reserve(&joined, 0), status, done);
    RL_TRY_GOTO(config_reader_next(reader), status, done);
    for (bool first = true; reader->event.type != YAML_SEQUENCE_END_EVENT; first = false) {
        RL_TRY_GOTO(config_reader_join(reader, row, first, &joined), status, done);
        RL_TRY_GOTO(config_reader_next(reader), status, done);
    }
    struct config_scalar scalar = {.text = joined.data, .bytes = joined.bytes, .quoted = true};
    status = config_set(reader->config, index, &scalar, reader->where);
done:
    rl_text_fini(&joined);
    return status;
}

static rl_status config_read_value(struct config_reader *reader, size_t index)
{
    const struct config_row *row = config_row_of(index);
    if (reader->event.type == YAML_SCALAR_EVENT) {
        struct config_scalar scalar = config_reader_scalar(reader);
        return config_set(reader->config, index, &scalar, reader->where);
    }
    if (reader->event.type == YAML_SEQUENCE_START_EVENT) {
        return config_read_list(reader, index);
    }
    return rl_fail(RL_INVALID, "%s: %s.%s: a mapping where a value is expected", reader->where,
                   row->section, row->name);
}

/* The current event opens the section's mapping; read to its end. */
static rl_status config_read_section(struct config_reader *reader, const char *section)
{
    char name[128];
    RL_TRY(config_reader_next(reader));
    while (reader->event.type != YAML_MAPPING_END_EVENT) {
        RL_TRY(config_reader_key(reader, name, sizeof name));
        size_t index = config_row_find(section, name);
        if (index == SIZE_MAX) {
            return config_unknown_option(reader->where, section, name);
        }
        if (reader->seen_options[index]++ != 0) {
            return rl_fail(RL_INVALID, "%s: %s.%s is given twice", reader->where, section, name);
        }
        RL_TRY(config_reader_next(reader));
        RL_TRY(config_read_value(reader, index));
        RL_TRY(config_reader_next(reader));
    }
    return RL_OK;
}

static bool config_reader_at_null(const struct config_reader *reader)
{
    if (reader->event.type != YAML_SCALAR_EVENT) {
        return false;
    }
    struct config_scalar scalar = config_reader_scalar(reader);
    return !scalar.quoted &&
           (scalar.bytes == 0 || strcmp(scalar.text, "~") == 0 || strcmp(scalar.text, "null") == 0);
}

static rl_status config_mark_section(struct config_reader *reader, const char *section)
{
    for (size_t i = 0; i < config_section_count(); i++) {
        if (strcmp(config_section_of(i)->name, section) != 0) {
            continue;
        }
        if (reader->seen_sections[i]++ != 0) {
            return rl_fail(RL_INVALID, "%s: section %s is given twice", reader->where, section);
        }
        return RL_OK;
    }
    return config_unknown_section(reader->where, section);
}

/* The current event is the document's root. A section whose lines are all commented out is null. */
static rl_status config_read_root(struct config_reader *reader)
{
    if (config_reader_at_null(reader)) {
        return RL_OK;
    }
    if (reader->event.type != YAML_MAPPING_START_EVENT) {
        return rl_fail(RL_INVALID, "%s: expected `section: {name: value}` at the top",
                       reader->where);
    }
    char section[128];
    RL_TRY(config_reader_next(reader));
    while (reader->event.type != YAML_MAPPING_END_EVENT) {
        RL_TRY(config_reader_key(reader, section, sizeof section));
        RL_TRY(config_mark_section(reader, section));
        RL_TRY(config_reader_next(reader));
        if (reader->event.type == YAML_MAPPING_START_EVENT) {
            RL_TRY(config_read_section(reader, section));
        } else if (!config_reader_at_null(reader)) {
            return rl_fail(RL_INVALID, "%s: section %s: expected `name: value` lines below it",
                           reader->where, section);
        }
        RL_TRY(config_reader_next(reader));
    }
    return RL_OK;
}

static rl_status config_read_stream(struct config_reader *reader)
{
    RL_TRY(config_reader_next(reader)); /* stream start */
    RL_TRY(config_reader_next(reader)); /* document start, or the end of an empty stream */
    if (reader->event.type == YAML_STREAM_END_EVENT) {
        return RL_OK;
    }
    RL_TRY(config_reader_next(reader));
    RL_TRY(config_read_root(reader));
    RL_TRY(config_reader_next(reader)); /* document end */
    RL_TRY(config_reader_next(reader));
    if (reader->event.type != YAML_STREAM_END_EVENT) {
        return rl_fail(RL_INVALID, "%s: a second document; one file holds one", reader->where);
    }
    return RL_OK;
}

static rl_status config_read_text(struct config_reader *reader, const char *text, size_t bytes)
{
    reader->seen_options = calloc(config_row_count() + config_section_count(), 1);
    if (reader->seen_options == NULL || !yaml_parser_initialize(&reader->parser)) {
        free(reader->seen_options);
        return rl_fail(RL_NO_MEMORY, "%s: no memory for parsing", reader->path);
    }
    reader->seen_sections = reader->seen_options + config_row_count();
    yaml_parser_set_encoding(&reader->parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&reader->parser, (const unsigned char *)text, bytes);
    rl_status status = config_read_stream(reader);
    if (reader->have_event) {
        yaml_event_delete(&reader->event);
    }
    yaml_parser_delete(&reader->parser);
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
