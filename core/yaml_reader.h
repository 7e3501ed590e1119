/* YAML as a stream of events with file and line. The only wrapper of libyaml. What the program's
 * files never need is refused wherever it stands: anchors, aliases, tags, deep nesting. */
#ifndef FORESIGHT_CORE_YAML_READER_H
#define FORESIGHT_CORE_YAML_READER_H

#include "core/status.h"

#include <stdbool.h>
#include <stddef.h>

enum rl_yaml_event {
    RL_YAML_OTHER, /* begin of the stream or of a document, end of a document */
    RL_YAML_END,   /* end of the stream */
    RL_YAML_SCALAR,
    RL_YAML_LIST_BEGIN,
    RL_YAML_LIST_END,
    RL_YAML_MAP_BEGIN,
    RL_YAML_MAP_END
};

struct rl_yaml_scalar {
    const char *text; /* NUL-terminated; borrowed until the next event */
    size_t bytes;
    bool quoted;
};

struct rl_yaml_reader;

/* Begin to read `text` [bytes] (borrowed until close); `name` (borrowed) stands for the file in
 * messages. Mappings and lists may be nested `depth_max` deep. Caller owns *out. Errors:
 * RL_NO_MEMORY. */
rl_status rl_yaml_open(const char *name, const char *text, size_t bytes, int depth_max,
                       struct rl_yaml_reader **out);

/* Free it. Takes NULL. */
void rl_yaml_close(struct rl_yaml_reader *reader);

/* Go to the next event. Errors: RL_INVALID (syntax, or something that is refused; file, line and
 * reason), RL_NO_MEMORY. */
rl_status rl_yaml_next(struct rl_yaml_reader *reader);

/* Kind of the current event. */
enum rl_yaml_event rl_yaml_event(const struct rl_yaml_reader *reader);

/* "file:line" of the current event; borrowed until the next one. */
const char *rl_yaml_where(const struct rl_yaml_reader *reader);

/* The current event's scalar; only where the event is RL_YAML_SCALAR. */
struct rl_yaml_scalar rl_yaml_scalar(const struct rl_yaml_reader *reader);

/* The current event as a key: a scalar that fits, copied into out [bytes], because the next event
 * frees it. Errors: RL_INVALID. */
rl_status rl_yaml_key(const struct rl_yaml_reader *reader, char *out, size_t bytes);

/* True of a plain `null`, `~` or nothing. */
bool rl_yaml_is_null(const struct rl_yaml_reader *reader);

/* From the fresh reader to the root of its one document; *empty if there is none. */
rl_status rl_yaml_begin(struct rl_yaml_reader *reader, bool *empty);

/* From the last event of the root to the end of the stream. Errors: RL_INVALID (a second
 * document). */
rl_status rl_yaml_finish(struct rl_yaml_reader *reader);

#endif
