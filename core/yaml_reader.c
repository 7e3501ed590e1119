/* See yaml_reader.h. Only this file sees yaml.h. */
#include "core/yaml_reader.h"

#include "core/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <yaml.h>

enum { YAML_WHERE_BYTES = 512 };

struct rl_yaml_reader {
    yaml_parser_t parser;
    yaml_event_t event; /* the current one; owned by libyaml */
    bool have_event;
    const char *name;
    char where[YAML_WHERE_BYTES]; /* "name:line" of the current event */
    int depth, depth_max;
};

rl_status rl_yaml_open(const char *name, const char *text, size_t bytes, int depth_max,
                       struct rl_yaml_reader **out)
{
    struct rl_yaml_reader *reader = calloc(1, sizeof *reader);
    if (reader == NULL || !yaml_parser_initialize(&reader->parser)) {
        free(reader);
        return rl_fail(RL_NO_MEMORY, "%s: no memory for parsing", name);
    }
    reader->name = name;
    reader->depth_max = depth_max;
    yaml_parser_set_encoding(&reader->parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&reader->parser, (const unsigned char *)text, bytes);
    *out = reader;
    return RL_OK;
}

void rl_yaml_close(struct rl_yaml_reader *reader)
{
    if (reader == NULL) {
        return;
    }
    if (reader->have_event) {
        yaml_event_delete(&reader->event);
    }
    yaml_parser_delete(&reader->parser);
    free(reader);
}

static void yaml_reader_at(struct rl_yaml_reader *reader, size_t line)
{
    snprintf(reader->where, sizeof reader->where, "%.400s:%zu", reader->name, line + 1);
}

static rl_status yaml_reader_syntax(struct rl_yaml_reader *reader)
{
    const yaml_parser_t *parser = &reader->parser;
    const char *problem = parser->problem != NULL ? parser->problem : "cannot be parsed";
    if (parser->error == YAML_MEMORY_ERROR) {
        return rl_fail(RL_NO_MEMORY, "%s: no memory for parsing", reader->name);
    }
    if (parser->error == YAML_READER_ERROR) {
        return rl_fail(RL_INVALID, "%s: byte %zu: %s", reader->name, parser->problem_offset,
                       problem);
    }
    yaml_reader_at(reader, parser->problem_mark.line);
    return rl_fail(RL_INVALID, "%s: column %zu: %s%s%s", reader->where,
                   parser->problem_mark.column + 1, problem, parser->context != NULL ? ", " : "",
                   parser->context != NULL ? parser->context : "");
}

/* What is refused wherever it stands. A quoted scalar's implicit "!" tag is not a tag. */
static rl_status yaml_reader_refuse(const struct rl_yaml_reader *reader)
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

rl_status rl_yaml_next(struct rl_yaml_reader *reader)
{
    if (reader->have_event) {
        yaml_event_delete(&reader->event);
        reader->have_event = false;
    }
    if (!yaml_parser_parse(&reader->parser, &reader->event)) {
        return yaml_reader_syntax(reader);
    }
    reader->have_event = true;
    yaml_reader_at(reader, reader->event.start_mark.line);
    yaml_event_type_t type = reader->event.type;
    bool opens = type == YAML_MAPPING_START_EVENT || type == YAML_SEQUENCE_START_EVENT;
    bool closes = type == YAML_MAPPING_END_EVENT || type == YAML_SEQUENCE_END_EVENT;
    reader->depth += opens - closes;
    if (reader->depth > reader->depth_max) {
        return rl_fail(RL_INVALID, "%s: nested deeper than %d levels", reader->where,
                       reader->depth_max);
    }
    return yaml_reader_refuse(reader);
}

enum rl_yaml_event rl_yaml_event(const struct rl_yaml_reader *reader)
{
    if (!reader->have_event) {
        return RL_YAML_OTHER;
    }
    switch (reader->event.type) {
    case YAML_SCALAR_EVENT:
        return RL_YAML_SCALAR;
    case YAML_SEQUENCE_START_EVENT:
        return RL_YAML_LIST_BEGIN;
    case YAML_SEQUENCE_END_EVENT:
        return RL_YAML_LIST_END;
    case YAML_MAPPING_START_EVENT:
        return RL_YAML_MAP_BEGIN;
    case YAML_MAPPING_END_EVENT:
        return RL_YAML_MAP_END;
    case YAML_STREAM_END_EVENT:
        return RL_YAML_END;
    default:
        return RL_YAML_OTHER;
    }
}

const char *rl_yaml_where(const struct rl_yaml_reader *reader)
{
    return reader->where;
}

struct rl_yaml_scalar rl_yaml_scalar(const struct rl_yaml_reader *reader)
{
    return (struct rl_yaml_scalar){.text = (const char *)reader->event.data.scalar.value,
                                   .bytes = reader->event.data.scalar.length,
                                   .quoted =
                                       reader->event.data.scalar.style != YAML_PLAIN_SCALAR_STYLE};
}

rl_status rl_yaml_key(const struct rl_yaml_reader *reader, char *out, size_t bytes)
{
    if (rl_yaml_event(reader) != RL_YAML_SCALAR) {
        return rl_fail(RL_INVALID, "%s: a key must be a plain name", reader->where);
    }
    struct rl_yaml_scalar scalar = rl_yaml_scalar(reader);
    if (scalar.bytes >= bytes || strlen(scalar.text) != scalar.bytes || scalar.bytes == 0) {
        return rl_fail(RL_INVALID, "%s: \"%.80s\" is not a name (1 .. %zu bytes)", reader->where,
                       scalar.text, bytes - 1);
    }
    memcpy(out, scalar.text, scalar.bytes + 1);
    return RL_OK;
}

bool rl_yaml_is_null(const struct rl_yaml_reader *reader)
{
    if (rl_yaml_event(reader) != RL_YAML_SCALAR) {
        return false;
    }
    struct rl_yaml_scalar scalar = rl_yaml_scalar(reader);
    return !scalar.quoted &&
           (scalar.bytes == 0 || strcmp(scalar.text, "~") == 0 || strcmp(scalar.text, "null") == 0);
}

rl_status rl_yaml_begin(struct rl_yaml_reader *reader, bool *empty)
{
    RL_TRY(rl_yaml_next(reader)); /* stream start */
    RL_TRY(rl_yaml_next(reader)); /* document start, or the end of an empty stream */
    *empty = rl_yaml_event(reader) == RL_YAML_END;
    return *empty ? RL_OK : rl_yaml_next(reader);
}

rl_status rl_yaml_finish(struct rl_yaml_reader *reader)
{
    RL_TRY(rl_yaml_next(reader)); /* document end */
    RL_TRY(rl_yaml_next(reader));
    if (rl_yaml_event(reader) != RL_YAML_END) {
        return rl_fail(RL_INVALID, "%s: a second document; one file holds one", reader->where);
    }
    return RL_OK;
}
