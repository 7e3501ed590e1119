/* Reading tokenizer.json: typed members, with errors that name file and key. Strings are borrowed
 * from the JSON; outputs are written only on success. */
#ifndef FORESIGHT_MODEL_TOKENIZER_JSON_H
#define FORESIGHT_MODEL_TOKENIZER_JSON_H

#include "model/tokenizer_internal.h"

/* Where we are in the file, e.g. {"DIR/tokenizer.json", "pre_tokenizer.pretokenizers[1]"}. */
struct tok_where {
    const char *file;
    char key[160];
};

/* Child position: key ".name" or "[index]" appended. */
struct tok_where tok_where_child(const struct tok_where *where, const char *name);
struct tok_where tok_where_item(const struct tok_where *where, size_t index);

/* Typed members; a missing or null one gives the default where there is one. Strings are borrowed
 * from the JSON. Errors: RL_INVALID naming file and key. */
rl_status tok_json_string(const json_t *object, const struct tok_where *where, const char *name,
                          struct tok_view *out);
rl_status tok_json_optional_string(const json_t *object, const struct tok_where *where,
                                   const char *name, struct tok_view *out);
rl_status tok_json_bool(const json_t *object, const struct tok_where *where, const char *name,
                        int fallback, bool *out);
rl_status tok_json_array(const json_t *object, const struct tok_where *where, const char *name,
                         json_t **out);
rl_status tok_json_id(const json_t *value, const struct tok_where *where, int32_t *out);
rl_status tok_json_character(const json_t *object, const struct tok_where *where, const char *name,
                             struct tok_view *out);

/* Refuse members not in the space-separated list `known`. Errors: RL_UNSUPPORTED. */
rl_status tok_json_known(const json_t *object, const struct tok_where *where, const char *known);

/* What a component of the tokenizer can be, by its member `type`. */
struct tok_kind {
    const char *type;
    int kind;            /* the reader's own number for it */
    const char *members; /* that it may have, separated by spaces */
};

struct tok_kind_list {
    const char *part;
    const struct tok_kind *kinds; /* [count] */
    size_t count;
};

/* *kind of a component from the list, of which its members are. `part` names the list in errors.
 * Errors: RL_INVALID (no object, no type), RL_UNSUPPORTED (a type or member that is not listed,
 * nested deeper than TOK_DEPTH_MAX). */
rl_status tok_json_kind(const json_t *object, const struct tok_where *where, int depth,
                        const struct tok_kind_list *list, int *kind);

/* {"String": s} or {"Regex": r} of member `pattern`, compiled. */
rl_status tok_json_pattern(const json_t *object, const struct tok_where *where,
                           struct tok_regex **out);

/* Own copy of a view, NUL-terminated. */
rl_status tok_view_copy(struct tok_view view, struct tok_view *out);

/* Read a whole JSON file; `flags` of the JSON library in addition. Errors: RL_IO (also RL_NOT_FOUND
 * if absent, not logged), RL_INVALID. */
rl_status tok_json_load(const char *path, size_t flags, json_t **out);

#endif
