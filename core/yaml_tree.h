/* A small YAML document as a tree of scalars, lists and mappings, each of which knows its line.
 * Rules of what is accepted: yaml_reader.h. */
#ifndef FORESIGHT_CORE_YAML_TREE_H
#define FORESIGHT_CORE_YAML_TREE_H

#include "core/status.h"

#include <stddef.h>

enum rl_yaml_kind { RL_YAML_NODE_SCALAR, RL_YAML_NODE_LIST, RL_YAML_NODE_MAP, RL_YAML_NODE_NULL };

struct rl_yaml_node {
    enum rl_yaml_kind kind;
    char *key;                         /* of an entry of a mapping, else NULL */
    char *text;                        /* of a scalar, without NUL bytes; else NULL */
    char *where;                       /* "file:line" */
    struct rl_yaml_node *first, *next; /* children in order; brother */
};

/* Parse `text` [bytes]; `name` stands for the file in messages. An empty document is a mapping
 * without entries. Keys of one mapping differ. Caller owns *out (rl_yaml_tree_free). Errors:
 * RL_INVALID (file, line and reason), RL_NO_MEMORY. */
rl_status rl_yaml_tree_parse(const char *name, const char *text, size_t bytes,
                             struct rl_yaml_node **out);

/* Free a tree. Takes NULL. */
void rl_yaml_tree_free(struct rl_yaml_node *root);

/* Number of children. */
size_t rl_yaml_count(const struct rl_yaml_node *node);

#endif
