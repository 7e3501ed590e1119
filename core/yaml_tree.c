/* See yaml_tree.h. */
#include "core/yaml_tree.h"

#include "core/log.h"
#include "core/text.h"
#include "core/yaml_reader.h"

#include <stdlib.h>
#include <string.h>

enum { TREE_DEPTH_MAX = 8, TREE_KEY_BYTES = 256 };

static rl_status parse_node(struct rl_yaml_reader *reader, struct rl_yaml_node **out);

void rl_yaml_tree_free(struct rl_yaml_node *root)
{
    while (root != NULL) {
        struct rl_yaml_node *next = root->next;
        rl_yaml_tree_free(root->first);
        free(root->key);
        free(root->text);
        free(root->where);
        free(root);
        root = next;
    }
}

size_t rl_yaml_count(const struct rl_yaml_node *node)
{
    size_t count = 0;
    for (const struct rl_yaml_node *child = node->first; child != NULL; child = child->next) {
        count++;
    }
    return count;
}

static rl_status make_node(const char *where, enum rl_yaml_kind kind, struct rl_yaml_node **out)
{
    struct rl_yaml_node *node = calloc(1, sizeof *node);
    if (node == NULL) {
        return rl_fail(RL_NO_MEMORY, "%s: out of memory", where);
    }
    node->kind = kind;
    *out = node;
    return rl_text_copy(where, &node->where);
}

static rl_status parse_scalar(struct rl_yaml_reader *reader, struct rl_yaml_node *node)
{
    struct rl_yaml_scalar scalar = rl_yaml_scalar(reader);
    if (rl_yaml_is_null(reader)) {
        node->kind = RL_YAML_NODE_NULL;
        return RL_OK;
    }
    if (strlen(scalar.text) != scalar.bytes) {
        return rl_fail(RL_INVALID, "%s: the value holds a NUL byte", node->where);
    }
    return rl_text_copy(scalar.text, &node->text);
}

static rl_status refuse_twice(const struct rl_yaml_node *map, const struct rl_yaml_node *entry)
{
    for (const struct rl_yaml_node *other = map->first; other != entry; other = other->next) {
        if (strcmp(other->key, entry->key) == 0) {
            return rl_fail(RL_INVALID, "%s: %s is given twice", entry->where, entry->key);
        }
    }
    return RL_OK;
}

/* The current event is a key; the child is hung in before it is complete, so that it is freed. */
static rl_status parse_entry(struct rl_yaml_reader *reader, struct rl_yaml_node **slot)
{
    char key[TREE_KEY_BYTES];
    RL_TRY(rl_yaml_key(reader, key, sizeof key));
    RL_TRY(rl_yaml_next(reader));
    RL_TRY(parse_node(reader, slot));
    return rl_text_copy(key, &(*slot)->key);
}

/* The children up to the end of the list or mapping, which is the current event afterwards. */
static rl_status parse_children(struct rl_yaml_reader *reader, struct rl_yaml_node *node)
{
    struct rl_yaml_node **slot = &node->first;
    enum rl_yaml_event end = node->kind == RL_YAML_NODE_MAP ? RL_YAML_MAP_END : RL_YAML_LIST_END;
    RL_TRY(rl_yaml_next(reader));
    while (rl_yaml_event(reader) != end) {
        if (node->kind == RL_YAML_NODE_MAP) {
            RL_TRY(parse_entry(reader, slot));
            RL_TRY(refuse_twice(node, *slot));
        } else {
            RL_TRY(parse_node(reader, slot));
        }
        slot = &(*slot)->next;
        RL_TRY(rl_yaml_next(reader));
    }
    return RL_OK;
}

/* The node that the current event begins; *out is set, if only in part, whatever is returned, and
 * NULL only without memory. */
static rl_status parse_node(struct rl_yaml_reader *reader, struct rl_yaml_node **out)
{
    enum rl_yaml_event event = rl_yaml_event(reader);
    enum rl_yaml_kind kind = event == RL_YAML_MAP_BEGIN    ? RL_YAML_NODE_MAP
                             : event == RL_YAML_LIST_BEGIN ? RL_YAML_NODE_LIST
                                                           : RL_YAML_NODE_SCALAR;
    RL_TRY(make_node(rl_yaml_where(reader), kind, out));
    return kind == RL_YAML_NODE_SCALAR ? parse_scalar(reader, *out) : parse_children(reader, *out);
}

static rl_status parse_document(struct rl_yaml_reader *reader, struct rl_yaml_node **out)
{
    bool empty = false;
    RL_TRY(rl_yaml_begin(reader, &empty));
    if (empty) {
        return make_node(rl_yaml_where(reader), RL_YAML_NODE_MAP, out);
    }
    RL_TRY(parse_node(reader, out));
    return rl_yaml_finish(reader);
}

rl_status rl_yaml_tree_parse(const char *name, const char *text, size_t bytes,
                             struct rl_yaml_node **out)
{
    struct rl_yaml_reader *reader = NULL;
    struct rl_yaml_node *root = NULL;
    RL_TRY(rl_yaml_open(name, text, bytes, TREE_DEPTH_MAX, &reader));
    rl_status status = parse_document(reader, &root);
    rl_yaml_close(reader);
    if (status != RL_OK) {
        rl_yaml_tree_free(root);
        return status;
    }
    *out = root;
    return RL_OK;
}
