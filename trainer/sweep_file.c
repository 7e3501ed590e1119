/* Reading SWEEP.yaml. Every value is brought into the one form that rl_config_value gives, by way
 * of a scratch configuration, which also checks its name, type and range. */
#include "trainer/sweep_plan_internal.h"

#include "core/log.h"
#include "core/text.h"
#include "core/yaml_tree.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SWEEP_FILE_BYTES = 1 << 20 };
#define SWEEP_LABELS "name"

rl_status sweep_copy(const struct sweep_plan *plan, const char *text, const char **out)
{
    void *copy = NULL;
    size_t bytes = strlen(text) + 1;
    RL_TRY(rl_arena_alloc(plan->arena, bytes, 1, &copy));
    memcpy(copy, text, bytes);
    *out = copy;
    return RL_OK;
}

static rl_status get_array(const struct sweep_plan *plan, size_t count, size_t item_bytes,
                           void *out)
{
    void *memory = NULL;
    RL_TRY(rl_arena_calloc(plan->arena, count, item_bytes, &memory));
    memcpy(out, &memory, sizeof memory);
    return RL_OK;
}

/* A scalar, or a list of scalars joined by commas. */
static rl_status value_text(const struct rl_yaml_node *node, struct rl_text *out)
{
    rl_text_clear(out);
    if (node->kind == RL_YAML_NODE_MAP) {
        return rl_fail(RL_INVALID, "%s: a mapping where a value is expected", node->where);
    }
    if (node->kind != RL_YAML_NODE_LIST) {
        return rl_text_append_str(out, node->text != NULL ? node->text : "");
    }
    for (const struct rl_yaml_node *item = node->first; item != NULL; item = item->next) {
        if (item->kind != RL_YAML_NODE_SCALAR || strchr(item->text, ',') != NULL) {
            return rl_fail(RL_INVALID, "%s: a list may hold single values without commas only",
                           item->where);
        }
        RL_TRY(rl_text_append_str(out, item == node->first ? "" : ","));
        RL_TRY(rl_text_append_str(out, item->text));
    }
    return RL_OK;
}

/* `value` of `key` (as rl_config_key writes it) in the one form, checked. */
static rl_status canonical(const struct sweep_plan *plan, const char *where, const char *key,
                           const char *value, const char **out)
{
    struct rl_config scratch;
    char *text = NULL;
    RL_TRY(rl_config_init(&scratch));
    rl_status status = rl_config_assign(&scratch, where, key, value);
    if (status == RL_OK) {
        status = rl_config_value(&scratch, key, &text);
    }
    if (status == RL_OK) {
        status = sweep_copy(plan, text, out);
    }
    free(text);
    rl_config_fini(&scratch);
    return status;
}

static rl_status canonical_node(const struct sweep_plan *plan, const char *key,
                                const struct rl_yaml_node *node, const char **out)
{
    struct rl_text text;
    rl_text_init(&text, SWEEP_FILE_BYTES);
    rl_status status = value_text(node, &text);
    if (status == RL_OK) {
        status = canonical(plan, node->where, key, rl_text_str(&text), out);
    }
    rl_text_fini(&text);
    return status;
}

static bool is_of(const char *key, const char *section)
{
    size_t bytes = strlen(section);
    return strncmp(key, section, bytes) == 0 && key[bytes] == '.';
}

/* What the sweep itself sets, or what would change nothing. */
static rl_status refuse_reserved(const struct sweep_plan *plan, const char *where, const char *key)
{
    static const char *const own[] = {"run.name", "run.dir", "run.resume"};
    for (size_t i = 0; i < sizeof own / sizeof own[0]; i++) {
        if (strcmp(key, own[i]) == 0) {
            return rl_fail(RL_INVALID, "%s: %s is set by the sweep itself", where, key);
        }
    }
    if (is_of(key, "sweep") || is_of(key, "halving")) {
        return rl_fail(RL_INVALID, "%s: %s is of the sweep, not of its trials", where, key);
    }
    if (is_of(key, "eval") && plan->settings.sweep.command != CONFIG_SWEEP_EVAL) {
        return rl_fail(RL_INVALID,
                       "%s: %s changes no trial, only its evaluation: it belongs under `eval:`",
                       where, key);
    }
    return RL_OK;
}

/* Put an option into a list that has room; one that is there already is replaced. */
static void put_option(struct sweep_options *list, const struct sweep_option *option)
{
    for (size_t i = 0; i < list->count; i++) {
        if (strcmp(list->items[i].key, option->key) == 0) {
            list->items[i] = *option;
            return;
        }
    }
    list->items[list->count++] = *option;
}

/* `name: value` lines of one section, into `list`, which has room. */
static rl_status read_section(const struct sweep_plan *plan, const struct rl_yaml_node *section,
                              struct sweep_options *list)
{
    if (section->kind == RL_YAML_NODE_NULL) {
        return RL_OK;
    }
    if (section->kind != RL_YAML_NODE_MAP) {
        return rl_fail(RL_INVALID, "%s: %s: expected `name: value` lines", section->where,
                       section->key);
    }
    for (const struct rl_yaml_node *node = section->first; node != NULL; node = node->next) {
        char given[2 * CONFIG_KEY_BYTES];
        char key[CONFIG_KEY_BYTES];
        struct sweep_option option = {0};
        snprintf(given, sizeof given, "%.100s.%.100s", section->key, node->key);
        RL_TRY(rl_config_key(node->where, given, key));
        RL_TRY(sweep_copy(plan, key, &option.key));
        RL_TRY(sweep_copy(plan, node->where, &option.where));
        RL_TRY(canonical_node(plan, key, node, &option.value));
        put_option(list, &option);
    }
    return RL_OK;
}

static rl_status read_options(struct sweep_plan *plan, const struct rl_yaml_node *options)
{
    if (options->kind != RL_YAML_NODE_MAP) {
        return rl_fail(RL_INVALID, "%s: options: expected `section: {name: value}`",
                       options->where);
    }
    for (const struct rl_yaml_node *node = options->first; node != NULL; node = node->next) {
        size_t before = plan->options.count;
        RL_TRY(read_section(plan, node, &plan->options));
        for (size_t i = before; i < plan->options.count; i++) {
            RL_TRY(refuse_reserved(plan, plan->options.items[i].where, plan->options.items[i].key));
        }
    }
    return RL_OK;
}

/* --- axes --- */

static rl_status read_labels(struct sweep_plan *plan, struct sweep_axis *axis,
                             const struct rl_yaml_node *node)
{
    size_t count = rl_yaml_count(node);
    size_t filled = 0;
    RL_TRY(get_array(plan, count, sizeof *axis->labels, &axis->labels));
    for (const struct rl_yaml_node *item = node->first; item != NULL; item = item->next) {
        if (item->kind != RL_YAML_NODE_SCALAR || item->text[0] == '\0') {
            return rl_fail(RL_INVALID, "%s: a name of an axis must be a word", item->where);
        }
        for (size_t i = 0; i < filled; i++) {
            if (strcmp(axis->labels[i], item->text) == 0) {
                return rl_fail(RL_INVALID, "%s: the name %.80s is given twice", item->where,
                               item->text);
            }
        }
        RL_TRY(sweep_copy(plan, item->text, &axis->labels[filled++]));
    }
    return RL_OK;
}

/* One option of an axis, its values going into column `column`. */
static rl_status read_axis_option(struct sweep_plan *plan, struct sweep_axis *axis, size_t column,
                                  const struct rl_yaml_node *node)
{
    char key[CONFIG_KEY_BYTES];
    size_t row = 0;
    RL_TRY(rl_config_key(node->where, node->key, key));
    RL_TRY(refuse_reserved(plan, node->where, key));
    if (strcmp(key, "run.seed") == 0) {
        return rl_fail(RL_INVALID, "%s: run.seed is no axis; write `seeds: [1, 2, 3]`",
                       node->where);
    }
    if (strcmp(key, "run.steps") == 0 && plan->settings.halving.steps[0] != '\0') {
        return rl_fail(RL_INVALID, "%s: run.steps cannot be an axis where halving.steps is given",
                       node->where);
    }
    RL_TRY(sweep_copy(plan, key, &axis->keys[column]));
    for (const struct rl_yaml_node *item = node->first; item != NULL; item = item->next, row++) {
        RL_TRY(canonical_node(plan, key, item, &axis->values[row * axis->key_count + column]));
    }
    return RL_OK;
}

static rl_status measure_axis(struct sweep_axis *axis, const struct rl_yaml_node *node)
{
    for (const struct rl_yaml_node *option = node->first; option != NULL; option = option->next) {
        size_t entries = rl_yaml_count(option);
        if (option->kind != RL_YAML_NODE_LIST) {
            return rl_fail(RL_INVALID, "%s: axis %s: expected a list of values", option->where,
                           option->key);
        }
        if (entries == 0) {
            return rl_fail(RL_INVALID, "%s: axis %s is empty: it has no values", option->where,
                           option->key);
        }
        if (axis->entry_count != 0 && entries != axis->entry_count) {
            return rl_fail(
                RL_INVALID, "%s: linked axis: %s has %zu values, %s has %zu; they must be as many",
                option->where, node->first->key, axis->entry_count, option->key, entries);
        }
        axis->entry_count = entries;
        axis->key_count += strcmp(option->key, SWEEP_LABELS) != 0;
    }
    return RL_OK;
}

/* `{section.name: [values], other.name: [values], name: [words]}`. */
static rl_status read_axis(struct sweep_plan *plan, struct sweep_axis *axis,
                           const struct rl_yaml_node *node)
{
    size_t column = 0;
    if (node->kind != RL_YAML_NODE_MAP) {
        return rl_fail(RL_INVALID, "%s: an axis is `section.name: [values]`", node->where);
    }
    RL_TRY(sweep_copy(plan, node->where, &axis->where));
    RL_TRY(measure_axis(axis, node));
    if (axis->key_count == 0) {
        return rl_fail(RL_INVALID, "%s: an axis without an option", node->where);
    }
    RL_TRY(get_array(plan, axis->key_count, sizeof *axis->keys, &axis->keys));
    RL_TRY(
        get_array(plan, axis->key_count * axis->entry_count, sizeof *axis->values, &axis->values));
    for (const struct rl_yaml_node *option = node->first; option != NULL; option = option->next) {
        if (strcmp(option->key, SWEEP_LABELS) == 0) {
            RL_TRY(read_labels(plan, axis, option));
        } else {
            RL_TRY(read_axis_option(plan, axis, column++, option));
        }
    }
    return RL_OK;
}

/* An option may be on one axis only. */
static rl_status refuse_shared(const struct sweep_plan *plan, const struct sweep_axis *axis)
{
    for (size_t k = 0; k < axis->key_count; k++) {
        for (const struct sweep_axis *other = plan->axes; other <= axis; other++) {
            size_t until = other == axis ? k : other->key_count;
            for (size_t i = 0; i < until; i++) {
                if (strcmp(other->keys[i], axis->keys[k]) == 0) {
                    return rl_fail(RL_INVALID, "%s: %s is on two axes (the other: %s)", axis->where,
                                   axis->keys[k], other->where);
                }
            }
        }
    }
    return RL_OK;
}

static rl_status read_axes(struct sweep_plan *plan, const struct rl_yaml_node *axes)
{
    if (axes->kind != RL_YAML_NODE_LIST) {
        return rl_fail(RL_INVALID, "%s: axes: expected a list, each item `- section.name: [...]`",
                       axes->where);
    }
    RL_TRY(get_array(plan, rl_yaml_count(axes), sizeof *plan->axes, &plan->axes));
    for (const struct rl_yaml_node *node = axes->first; node != NULL; node = node->next) {
        RL_TRY(read_axis(plan, &plan->axes[plan->axis_count], node));
        RL_TRY(refuse_shared(plan, &plan->axes[plan->axis_count]));
        plan->axis_count++;
    }
    return RL_OK;
}

static rl_status read_seeds(struct sweep_plan *plan, const struct rl_yaml_node *seeds)
{
    size_t count = rl_yaml_count(seeds);
    if (seeds->kind != RL_YAML_NODE_LIST || count == 0) {
        return rl_fail(RL_INVALID, "%s: seeds: expected a list with at least one seed",
                       seeds->where);
    }
    RL_TRY(get_array(plan, count, sizeof *plan->seeds, &plan->seeds));
    plan->seeds_given = true;
    for (const struct rl_yaml_node *node = seeds->first; node != NULL; node = node->next) {
        const char *text = NULL;
        RL_TRY(canonical_node(plan, "run.seed", node, &text));
        int64_t seed = strtoll(text, NULL, 10);
        for (size_t i = 0; i < plan->seed_count; i++) {
            if (plan->seeds[i] == seed) {
                return rl_fail(RL_INVALID, "%s: seed %s is given twice", node->where, text);
            }
        }
        plan->seeds[plan->seed_count++] = seed;
    }
    return RL_OK;
}

/* --- exclusions --- */

static bool axis_has(const struct sweep_axis *axis, size_t column, const char *value)
{
    for (size_t row = 0; row < axis->entry_count; row++) {
        if (strcmp(axis->values[row * axis->key_count + column], value) == 0) {
            return true;
        }
    }
    return false;
}

/* A condition on what no trial has is a slip of the pen. */
static rl_status check_value(const struct sweep_plan *plan, const char *where, const char *key,
                             const char *value)
{
    bool found = false;
    for (size_t i = 0; strcmp(key, "run.seed") == 0 && i < plan->seed_count; i++) {
        if (plan->seeds[i] == strtoll(value, NULL, 10)) {
            return RL_OK;
        }
        found = true;
    }
    for (size_t a = 0; a < plan->axis_count; a++) {
        for (size_t k = 0; k < plan->axes[a].key_count; k++) {
            bool same = strcmp(plan->axes[a].keys[k], key) == 0;
            found = found || same;
            if (same && axis_has(&plan->axes[a], k, value)) {
                return RL_OK;
            }
        }
    }
    return found ? rl_fail(RL_INVALID, "%s: exclude: no trial has %s = %.80s", where, key, value)
                 : rl_fail(RL_INVALID, "%s: exclude: %s is on no axis", where, key);
}

static rl_status read_term(const struct sweep_plan *plan, struct sweep_term *term,
                           const struct rl_yaml_node *node)
{
    char key[CONFIG_KEY_BYTES];
    bool list = node->kind == RL_YAML_NODE_LIST;
    const struct rl_yaml_node *item = list ? node->first : node;
    RL_TRY(rl_config_key(node->where, node->key, key));
    RL_TRY(sweep_copy(plan, key, &term->key));
    size_t count = list ? rl_yaml_count(node) : 1;
    if (count == 0) {
        return rl_fail(RL_INVALID, "%s: exclude: %s has no values", node->where, key);
    }
    RL_TRY(get_array(plan, count, sizeof *term->values, &term->values));
    for (; term->value_count < count; item = item->next) {
        RL_TRY(canonical_node(plan, key, item, &term->values[term->value_count]));
        RL_TRY(check_value(plan, item->where, key, term->values[term->value_count]));
        term->value_count++;
    }
    return RL_OK;
}

static rl_status read_exclusions(struct sweep_plan *plan, const struct rl_yaml_node *exclude)
{
    if (exclude->kind != RL_YAML_NODE_LIST) {
        return rl_fail(RL_INVALID, "%s: exclude: expected a list, each item `- {option: value}`",
                       exclude->where);
    }
    RL_TRY(get_array(plan, rl_yaml_count(exclude), sizeof *plan->exclusions, &plan->exclusions));
    for (const struct rl_yaml_node *node = exclude->first; node != NULL; node = node->next) {
        struct sweep_exclusion *exclusion = &plan->exclusions[plan->exclusion_count++];
        if (node->kind != RL_YAML_NODE_MAP || node->first == NULL) {
            return rl_fail(RL_INVALID, "%s: exclude: expected `- {option: value}`", node->where);
        }
        RL_TRY(sweep_copy(plan, node->where, &exclusion->where));
        RL_TRY(get_array(plan, rl_yaml_count(node), sizeof *exclusion->terms, &exclusion->terms));
        for (const struct rl_yaml_node *term = node->first; term != NULL; term = term->next) {
            RL_TRY(read_term(plan, &exclusion->terms[exclusion->term_count++], term));
        }
    }
    return RL_OK;
}

/* --- the file --- */

static const struct rl_yaml_node *find(const struct rl_yaml_node *root, const char *key)
{
    for (const struct rl_yaml_node *node = root->first; node != NULL; node = node->next) {
        if (strcmp(node->key, key) == 0) {
            return node;
        }
    }
    return NULL;
}

static rl_status check_keys(const struct rl_yaml_node *root)
{
    static const char *const names[] = {"sweep", "halving", "options", "axes",
                                        "seeds", "exclude", "eval"};
    enum { NAMES = sizeof names / sizeof names[0] };
    if (root->kind != RL_YAML_NODE_MAP) {
        return rl_fail(RL_INVALID, "%s: expected sweep:, axes: and so on at the top", root->where);
    }
    for (const struct rl_yaml_node *node = root->first; node != NULL; node = node->next) {
        bool known = false;
        for (size_t i = 0; i < NAMES; i++) {
            known = known || strcmp(node->key, names[i]) == 0;
        }
        const char *nearest = rl_text_nearest(node->key, names, NAMES);
        if (!known) {
            return rl_fail(RL_INVALID, "%s: unknown key %.80s%s%s%s", node->where, node->key,
                           nearest != NULL ? "; did you mean "
                                           : "; a sweep has sweep, halving, "
                                             "options, axes, seeds, exclude, "
                                             "eval",
                           nearest != NULL ? nearest : "", nearest != NULL ? "?" : "");
        }
    }
    return RL_OK;
}

/* "section.name=value" of the command line, to where it belongs: settings first, since the rest is
 * read by them. */
static rl_status take_override(struct sweep_plan *plan, const char *text, bool settings)
{
    char key[CONFIG_KEY_BYTES];
    char given[CONFIG_KEY_BYTES];
    struct sweep_option option = {.where = "override"};
    const char *equals = strchr(text, '=');
    if (equals == NULL || equals == text || equals - text >= (ptrdiff_t)sizeof given) {
        return rl_fail(RL_INVALID, "override \"%.80s\": expected section.name=value", text);
    }
    snprintf(given, sizeof given, "%.*s", (int)(equals - text), text);
    RL_TRY(rl_config_key("override", given, key));
    if (settings != (is_of(key, "sweep") || is_of(key, "halving"))) {
        return RL_OK;
    }
    if (settings) {
        return rl_config_assign(&plan->settings, "override", key, equals + 1);
    }
    RL_TRY(sweep_copy(plan, key, &option.key));
    RL_TRY(canonical(plan, "override", key, equals + 1, &option.value));
    if (is_of(key, "eval")) {
        put_option(&plan->eval, &option);
        return RL_OK;
    }
    RL_TRY(refuse_reserved(plan, "override", key));
    put_option(&plan->options, &option);
    return RL_OK;
}

/* `sweep:` and `halving:`, which the other parts are read by. */
static rl_status read_settings(struct sweep_plan *plan, const struct rl_yaml_node *root)
{
    static const char *const names[] = {"sweep", "halving"};
    struct sweep_options list = {0};
    RL_TRY(get_array(plan, 64, sizeof *list.items, &list.items));
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const struct rl_yaml_node *node = find(root, names[i]);
        list.count = 0;
        if (node != NULL) {
            RL_TRY(read_section(plan, node, &list));
        }
        for (size_t k = 0; k < list.count; k++) {
            RL_TRY(rl_config_assign(&plan->settings, list.items[k].where, list.items[k].key,
                                    list.items[k].value));
        }
    }
    return RL_OK;
}

/* Room for every option that the file and the command line can name. */
static rl_status make_room(struct sweep_plan *plan, const struct rl_yaml_node *root, int overrides)
{
    const struct rl_yaml_node *options = find(root, "options");
    const struct rl_yaml_node *eval = find(root, "eval");
    size_t count = (size_t)overrides + 1;
    for (const struct rl_yaml_node *node = options != NULL ? options->first : NULL; node != NULL;
         node = node->next) {
        count += rl_yaml_count(node);
    }
    RL_TRY(get_array(plan, count, sizeof *plan->options.items, &plan->options.items));
    count = (size_t)overrides + 1 + (eval != NULL ? rl_yaml_count(eval) : 0);
    return get_array(plan, count, sizeof *plan->eval.items, &plan->eval.items);
}

static rl_status read_parts(struct sweep_plan *plan, const struct rl_yaml_node *root,
                            char *const *overrides, int override_count)
{
    static const struct {
        const char *name;
        rl_status (*read)(struct sweep_plan *plan, const struct rl_yaml_node *node);
    } parts[] = {{"options", read_options},
                 {"axes", read_axes},
                 {"seeds", read_seeds},
                 {"exclude", read_exclusions}};
    RL_TRY(check_keys(root));
    RL_TRY(make_room(plan, root, override_count));
    RL_TRY(read_settings(plan, root));
    for (int i = 0; i < override_count; i++) {
        RL_TRY(take_override(plan, overrides[i], true));
    }
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        const struct rl_yaml_node *node = find(root, parts[i].name);
        if (node != NULL && node->kind != RL_YAML_NODE_NULL) {
            RL_TRY(parts[i].read(plan, node));
        }
    }
    if (find(root, "eval") != NULL) {
        RL_TRY(read_section(plan, find(root, "eval"), &plan->eval));
    }
    for (int i = 0; i < override_count; i++) {
        RL_TRY(take_override(plan, overrides[i], false));
    }
    return RL_OK;
}

/* The sweep's name: sweep.name, or the file's without folder and ending. */
static rl_status take_name(struct sweep_plan *plan, const char *path)
{
    char name[SWEEP_NAME_BYTES];
    const char *given = plan->settings.sweep.name;
    const char *base = strrchr(path, '/') != NULL ? strrchr(path, '/') + 1 : path;
    snprintf(name, sizeof name, "%.*s",
             given[0] != '\0' ? SWEEP_NAME_BYTES : (int)strcspn(base, "."),
             given[0] != '\0' ? given : base);
    if (name[0] == '\0' || name[0] == '.' || strchr(name, '/') != NULL) {
        return rl_fail(RL_INVALID, "%s: sweep.name \"%s\" is no name of a folder", path, name);
    }
    return sweep_copy(plan, name, &plan->name);
}

static rl_status read_config_text(struct sweep_plan *plan, const char *path)
{
    char *text = NULL;
    const char *config = plan->settings.sweep.config;
    if (config[0] == '\0') {
        return rl_fail(RL_INVALID, "%s: sweep.config is not set: the configuration of the trials",
                       path);
    }
    rl_status status = rl_file_read(config, SWEEP_FILE_BYTES, &text, NULL);
    if (status == RL_OK) {
        status = sweep_copy(plan, text, &plan->config_text);
    }
    free(text);
    return status;
}

rl_status sweep_file_read(struct sweep_plan *plan, const char *path, char *const *overrides,
                          int override_count)
{
    char *text = NULL;
    size_t bytes = 0;
    struct rl_yaml_node *root = NULL;
    RL_TRY(rl_file_read(path, SWEEP_FILE_BYTES, &text, &bytes));
    rl_status status = rl_yaml_tree_parse(path, text, bytes, &root);
    free(text);
    if (status == RL_OK) {
        status = read_parts(plan, root, overrides, override_count);
    }
    rl_yaml_tree_free(root);
    RL_TRY(status);
    RL_TRY(take_name(plan, path));
    return read_config_text(plan, path);
}
