/* Running the tree: statements write to the output, expressions give values. Invariant: every
 * evaluation counts against CHAT_STEP_LIMIT, every byte against the limits of chat_internal.h, so a
 * template can neither hang nor fill the memory. */
#include "model/chat_internal.h"

#include "core/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

rl_status chat_error(const struct chat_run *run, const char *format, ...)
{
    char text[400];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    return rl_fail(RL_INVALID, "chat template, line %d: %s", run->line, text);
}

static rl_status count_step(struct chat_run *run)
{
    if (++run->steps > CHAT_STEP_LIMIT) {
        return rl_fail(RL_TOO_LONG, "chat template, line %d: more than %d steps", run->line,
                       CHAT_STEP_LIMIT);
    }
    return RL_OK;
}

/* ---- scopes ---- */

static rl_status scope_push(struct chat_run *run, struct chat_scope *outer)
{
    void *scope;
    RL_TRY(rl_arena_calloc(run->arena, 1, sizeof(struct chat_scope), &scope));
    run->scope = scope;
    run->scope->outer = outer;
    return RL_OK;
}

static void lookup(const struct chat_run *run, const char *name, struct chat_value *out)
{
    for (const struct chat_scope *scope = run->scope; scope != NULL; scope = scope->outer) {
        const struct chat_value *found = chat_dict_find(&scope->names, name);
        if (found != NULL) {
            *out = *found;
            return;
        }
    }
    int function = chat_function_find(name);
    *out = function < 0 ? chat_undefined()
                        : (struct chat_value){.kind = CHAT_FUNCTION, .as.function = function};
}

static rl_status assign(struct chat_run *run, const struct chat_node *target,
                        struct chat_value value)
{
    if (value.kind == CHAT_DICT && value.as.dict->is_loop) {
        return chat_error(run, "the variable loop cannot be kept");
    }
    if (target->kind == CHAT_NODE_NAME) {
        return chat_dict_put(run, &run->scope->names, target->name, value);
    }
    if (target->kind == CHAT_NODE_ATTRIBUTE) {
        struct chat_value owner;
        lookup(run, target->a->name, &owner);
        if (owner.kind != CHAT_DICT || !owner.as.dict->is_namespace) {
            return chat_error(run, "\"%.60s\" is not a namespace", target->a->name);
        }
        return chat_dict_put(run, owner.as.dict, target->name, value);
    }
    struct chat_list *items;
    const struct chat_node *name = target->list;
    RL_TRY(chat_iterate(run, &value, &items));
    for (size_t i = 0; i < items->count; i++, name = name->next) {
        if (name == NULL) {
            return chat_error(run, "too many values for the names");
        }
        RL_TRY(assign(run, name, items->items[i]));
    }
    return name == NULL ? RL_OK : chat_error(run, "too few values for the names");
}

/* ---- expressions ---- */

static rl_status eval_list(struct chat_run *run, const struct chat_node *node,
                           struct chat_value *out)
{
    RL_TRY(chat_list_new(run, out));
    out->as.list->tuple = node->kind == CHAT_NODE_TUPLE;
    for (const struct chat_node *item = node->list; item != NULL; item = item->next) {
        struct chat_value value;
        RL_TRY(chat_eval(run, item, &value));
        RL_TRY(chat_list_push(run, out->as.list, value));
    }
    return RL_OK;
}

static rl_status eval_dict(struct chat_run *run, const struct chat_node *node,
                           struct chat_value *out)
{
    RL_TRY(chat_dict_new(run, out));
    for (const struct chat_node *item = node->list; item != NULL; item = item->next->next) {
        struct chat_value key;
        struct chat_value value;
        RL_TRY(chat_eval(run, item, &key));
        RL_TRY(chat_eval(run, item->next, &value));
        if (key.kind == CHAT_LIST || key.kind == CHAT_DICT) {
            return chat_error(run, "a %s as key", chat_kind_name(&key));
        }
        RL_TRY(chat_dict_set(run, out->as.dict, key, value));
    }
    return RL_OK;
}

rl_status chat_eval_arguments(struct chat_run *run, const struct chat_node *list,
                              struct chat_arguments *out)
{
    size_t count = 0;
    void *values;
    void *names;
    for (const struct chat_node *item = list; item != NULL; item = item->next) {
        count++;
    }
    RL_TRY(rl_arena_calloc(run->arena, count, sizeof(*out->values), &values));
    RL_TRY(rl_arena_calloc(run->arena, count, sizeof(*out->names), &names));
    *out = (struct chat_arguments){values, names, count};
    for (size_t i = 0; i < count; i++, list = list->next) {
        bool keyword = list->kind == CHAT_NODE_KEYWORD;
        out->names[i] = keyword ? list->name : NULL;
        RL_TRY(chat_eval(run, keyword ? list->a : list, &out->values[i]));
    }
    return RL_OK;
}

static rl_status eval_call(struct chat_run *run, const struct chat_node *node,
                           struct chat_value *out)
{
    struct chat_arguments arguments;
    struct chat_value callee;
    RL_TRY(chat_eval_arguments(run, node->list, &arguments));
    RL_TRY(chat_eval(run, node->a, &callee));
    if (callee.kind == CHAT_MACRO) {
        return chat_run_macro(run, callee.as.macro, &arguments, out);
    }
    if (callee.kind != CHAT_FUNCTION || callee.as.function == CHAT_OPAQUE) {
        return chat_error(run, "\"%.60s\" is a %s, not a function", node->a->name,
                          chat_kind_name(&callee));
    }
    return chat_function_call(run, callee.as.function, &arguments, out);
}

static rl_status eval_builtin(struct chat_run *run, const struct chat_node *node,
                              struct chat_value *out)
{
    struct chat_arguments arguments;
    struct chat_value subject;
    bool truth;
    RL_TRY(chat_eval(run, node->a, &subject));
    RL_TRY(chat_eval_arguments(run, node->list, &arguments));
    struct chat_call call = {&subject, &arguments};
    if (node->kind == CHAT_NODE_FILTER) {
        return chat_filter_call(run, node->builtin, &call, out);
    }
    if (node->kind == CHAT_NODE_METHOD) {
        return chat_method_call(run, node->builtin, &call, out);
    }
    RL_TRY(chat_test_call(run, node->builtin, &call, &truth));
    *out = chat_bool(truth);
    return RL_OK;
}

static rl_status eval_unary(struct chat_run *run, const struct chat_node *node,
                            struct chat_value *out)
{
    struct chat_value value;
    struct chat_value zero = chat_int(0);
    RL_TRY(chat_eval(run, node->a, &value));
    if (node->op == CHAT_OP_NOT) {
        *out = chat_bool(!chat_truth(&value));
        return RL_OK;
    }
    if (value.kind == CHAT_REAL) {
        *out = chat_real(node->op == CHAT_OP_NEGATE ? -value.as.real : value.as.real);
        return RL_OK;
    }
    enum chat_operator op = node->op == CHAT_OP_NEGATE ? CHAT_OP_SUBTRACT : CHAT_OP_ADD;
    return chat_binary(run, op, &zero, &value, out);
}

static rl_status eval_compare(struct chat_run *run, const struct chat_node *node,
                              struct chat_value *out)
{
    struct chat_value left;
    bool truth = true;
    RL_TRY(chat_eval(run, node->a, &left));
    for (const struct chat_node *part = node->list; part != NULL && truth; part = part->next) {
        struct chat_value right;
        RL_TRY(chat_eval(run, part->a, &right));
        RL_TRY(chat_compare(run, part->op, &left, &right, &truth));
        left = right;
    }
    *out = chat_bool(truth);
    return RL_OK;
}

static rl_status eval_slice(struct chat_run *run, const struct chat_node *node,
                            struct chat_value *out)
{
    const struct chat_node *parts[3] = {node->b, node->c, node->d};
    struct chat_value bounds[3];
    struct chat_value of;
    RL_TRY(chat_eval(run, node->a, &of));
    for (int i = 0; i < 3; i++) {
        bounds[i] = chat_none();
        if (parts[i] != NULL) {
            RL_TRY(chat_eval(run, parts[i], &bounds[i]));
        }
    }
    return chat_slice_of(run, &of, bounds, out);
}

static rl_status eval_two(struct chat_run *run, const struct chat_node *node,
                          struct chat_value *out)
{
    struct chat_value a;
    struct chat_value b;
    RL_TRY(chat_eval(run, node->a, &a));
    RL_TRY(chat_eval(run, node->b, &b));
    return node->kind == CHAT_NODE_ITEM ? chat_item(run, &a, &b, out)
                                        : chat_binary(run, node->op, &a, &b, out);
}

/* and, or, if-else: only one side is evaluated. */
static rl_status eval_choice(struct chat_run *run, const struct chat_node *node,
                             struct chat_value *out)
{
    struct chat_value first;
    RL_TRY(chat_eval(run, node->a, &first));
    bool truth = chat_truth(&first);
    if (node->kind == CHAT_NODE_CONDITION) {
        const struct chat_node *chosen = truth ? node->b : node->c;
        *out = chat_undefined();
        return chosen != NULL ? chat_eval(run, chosen, out) : RL_OK;
    }
    if (truth == (node->kind == CHAT_NODE_AND)) {
        return chat_eval(run, node->b, out);
    }
    *out = first;
    return RL_OK;
}

static rl_status eval_attribute(struct chat_run *run, const struct chat_node *node,
                                struct chat_value *out)
{
    struct chat_value of;
    RL_TRY(chat_eval(run, node->a, &of));
    return chat_attribute(run, &of, node->name, out);
}

rl_status chat_eval(struct chat_run *run, const struct chat_node *node, struct chat_value *out)
{
    RL_TRY(count_step(run));
    switch (node->kind) {
    case CHAT_NODE_CONST:
        *out = node->value;
        return RL_OK;
    case CHAT_NODE_NAME:
        lookup(run, node->name, out);
        return RL_OK;
    case CHAT_NODE_ATTRIBUTE:
        return eval_attribute(run, node, out);
    case CHAT_NODE_ITEM:
    case CHAT_NODE_BINARY:
        return eval_two(run, node, out);
    case CHAT_NODE_SLICE:
        return eval_slice(run, node, out);
    case CHAT_NODE_CALL:
        return eval_call(run, node, out);
    case CHAT_NODE_METHOD:
    case CHAT_NODE_FILTER:
    case CHAT_NODE_TEST:
        return eval_builtin(run, node, out);
    case CHAT_NODE_UNARY:
        return eval_unary(run, node, out);
    case CHAT_NODE_COMPARE:
        return eval_compare(run, node, out);
    case CHAT_NODE_AND:
    case CHAT_NODE_OR:
    case CHAT_NODE_CONDITION:
        return eval_choice(run, node, out);
    case CHAT_NODE_LIST:
    case CHAT_NODE_TUPLE:
        return eval_list(run, node, out);
    case CHAT_NODE_DICT:
        return eval_dict(run, node, out);
    default:
        return rl_fail(RL_INTERNAL, "chat template: not an expression");
    }
}

/* ---- statements ---- */

rl_status chat_iterate(struct chat_run *run, const struct chat_value *over, struct chat_list **out)
{
    struct chat_value list;
    if (over->kind == CHAT_LIST) {
        *out = over->as.list;
        return RL_OK;
    }
    RL_TRY(chat_list_new(run, &list));
    *out = list.as.list;
    if (over->kind == CHAT_UNDEFINED) {
        return RL_OK;
    }
    if (over->kind == CHAT_DICT && !over->as.dict->is_namespace && !over->as.dict->is_loop) {
        for (size_t i = 0; i < over->as.dict->count; i++) {
            RL_TRY(chat_list_push(run, *out, over->as.dict->entries[i].key));
        }
        return RL_OK;
    }
    if (over->kind != CHAT_STRING) {
        return chat_error(run, "a loop over a %s", chat_kind_name(over));
    }
    for (size_t at = 0; at < over->as.string.bytes;) {
        size_t length;
        (void)tok_utf8_get(over->as.string.data + at, &length);
        RL_TRY(chat_list_push(run, *out, chat_slice(&over->as.string, at, at + length)));
        at += length;
    }
    return RL_OK;
}

/* `loop` and the loop's own scope are made once and filled anew for each item. */
static rl_status loop_variable(struct chat_run *run, const struct chat_list *items, size_t index,
                               struct chat_value loop)
{
    struct chat_dict *dict = loop.as.dict;
    int64_t at = (int64_t)index;
    int64_t count = (int64_t)items->count;
    dict->count = 0;
    RL_TRY(chat_dict_put(run, dict, "index0", chat_int(at)));
    RL_TRY(chat_dict_put(run, dict, "index", chat_int(at + 1)));
    RL_TRY(chat_dict_put(run, dict, "first", chat_bool(at == 0)));
    RL_TRY(chat_dict_put(run, dict, "last", chat_bool(at + 1 == count)));
    RL_TRY(chat_dict_put(run, dict, "length", chat_int(count)));
    RL_TRY(chat_dict_put(run, dict, "revindex0", chat_int(count - at - 1)));
    RL_TRY(chat_dict_put(run, dict, "revindex", chat_int(count - at)));
    if (index > 0) {
        RL_TRY(chat_dict_put(run, dict, "previtem", items->items[index - 1]));
    }
    if (at + 1 < count) {
        RL_TRY(chat_dict_put(run, dict, "nextitem", items->items[index + 1]));
    }
    return chat_dict_put(run, &run->scope->names, "loop", loop);
}

/* Items for which the loop's "if" holds. */
static rl_status loop_filter(struct chat_run *run, const struct chat_node *node,
                             struct chat_list **items)
{
    struct chat_value kept;
    struct chat_scope *outer = run->scope;
    if (node->c == NULL) {
        return RL_OK;
    }
    RL_TRY(chat_list_new(run, &kept));
    RL_TRY(scope_push(run, outer));
    for (size_t i = 0; i < (*items)->count; i++) {
        struct chat_value truth;
        run->scope->names.count = 0;
        RL_TRY(assign(run, node->b, (*items)->items[i]));
        RL_TRY(chat_eval(run, node->c, &truth));
        if (chat_truth(&truth)) {
            RL_TRY(chat_list_push(run, kept.as.list, (*items)->items[i]));
        }
    }
    run->scope = outer;
    *items = kept.as.list;
    return RL_OK;
}

static rl_status run_for(struct chat_run *run, const struct chat_node *node)
{
    struct chat_value over;
    struct chat_value loop;
    struct chat_list *items;
    struct chat_scope *outer = run->scope;
    RL_TRY(chat_eval(run, node->a, &over));
    RL_TRY(chat_iterate(run, &over, &items));
    RL_TRY(loop_filter(run, node, &items));
    RL_TRY(chat_dict_new(run, &loop));
    loop.as.dict->is_loop = true;
    RL_TRY(scope_push(run, outer));
    for (size_t i = 0; i < items->count; i++) {
        RL_TRY(count_step(run));
        run->scope->names.count = 0;
        RL_TRY(assign(run, node->b, items->items[i]));
        RL_TRY(loop_variable(run, items, i, loop));
        RL_TRY(chat_run_statements(run, node->list));
        run->skipped = false;
        if (run->broken) {
            run->broken = false;
            break;
        }
    }
    run->scope = outer;
    return items->count == 0 ? chat_run_statements(run, node->orelse) : RL_OK;
}

/* What the statements write, as a string. */
static rl_status capture(struct chat_run *run, const struct chat_node *list, struct chat_value *out)
{
    struct tok_text text = {.marked = true};
    struct tok_text *held = run->out;
    run->out = &text;
    rl_status status = chat_run_statements(run, list);
    run->out = held;
    if (status == RL_OK) {
        status = chat_from_text(run, &text, out);
    }
    tok_text_fini(&text);
    return status;
}

static rl_status run_set(struct chat_run *run, const struct chat_node *node)
{
    struct chat_value value;
    RL_TRY(node->a != NULL ? chat_eval(run, node->a, &value) : capture(run, node->list, &value));
    return assign(run, node->b, value);
}

static rl_status run_macro_statement(struct chat_run *run, const struct chat_node *node)
{
    void *macro;
    RL_TRY(rl_arena_calloc(run->arena, 1, sizeof(struct chat_macro), &macro));
    *(struct chat_macro *)macro = (struct chat_macro){node, run->scope};
    return chat_dict_put(run, &run->scope->names, node->name,
                         (struct chat_value){.kind = CHAT_MACRO, .as.macro = macro});
}

static rl_status bind_parameters(struct chat_run *run, const struct chat_node *parameters,
                                 const struct chat_arguments *arguments)
{
    size_t position = 0;
    size_t used = 0;
    for (const struct chat_node *item = parameters; item != NULL; item = item->next, position++) {
        const struct chat_value *given = chat_argument(arguments, position, item->name);
        struct chat_value value = chat_undefined();
        if (given != NULL) {
            value = *given;
            used++;
        } else if (item->a != NULL) {
            RL_TRY(chat_eval(run, item->a, &value));
        }
        RL_TRY(chat_dict_put(run, &run->scope->names, item->name, value));
    }
    return used == arguments->count ? RL_OK : chat_error(run, "a macro with arguments too many");
}

static rl_status macro_body(struct chat_run *run, const struct chat_macro *macro,
                            const struct chat_arguments *arguments, struct chat_value *out)
{
    RL_TRY(scope_push(run, macro->scope));
    RL_TRY(bind_parameters(run, macro->node->b, arguments));
    return capture(run, macro->node->list, out);
}

rl_status chat_run_macro(struct chat_run *run, const struct chat_macro *macro,
                         const struct chat_arguments *arguments, struct chat_value *out)
{
    struct chat_scope *scope = run->scope;
    if (++run->depth > CHAT_DEPTH_LIMIT) {
        return chat_error(run, "macros called deeper than %d", CHAT_DEPTH_LIMIT);
    }
    rl_status status = macro_body(run, macro, arguments, out);
    run->depth--;
    run->scope = scope;
    return status;
}

static rl_status run_if(struct chat_run *run, const struct chat_node *node)
{
    struct chat_value truth;
    RL_TRY(chat_eval(run, node->a, &truth));
    return chat_run_statements(run, chat_truth(&truth) ? node->list : node->orelse);
}

static rl_status run_output(struct chat_run *run, const struct chat_node *node)
{
    struct chat_value value;
    RL_TRY(chat_eval(run, node->a, &value));
    return chat_print(run, &value, run->out);
}

static rl_status run_statement(struct chat_run *run, const struct chat_node *node)
{
    RL_TRY(count_step(run));
    run->line = node->line;
    switch (node->kind) {
    case CHAT_NODE_TEXT:
        return chat_append(run->out, &node->value.as.string);
    case CHAT_NODE_OUTPUT:
        return run_output(run, node);
    case CHAT_NODE_IF:
        return run_if(run, node);
    case CHAT_NODE_FOR:
        return run_for(run, node);
    case CHAT_NODE_SET:
        return run_set(run, node);
    case CHAT_NODE_MACRO:
        return run_macro_statement(run, node);
    case CHAT_NODE_BLOCK:
        return chat_run_statements(run, node->list);
    case CHAT_NODE_BREAK:
        run->broken = true;
        return RL_OK;
    case CHAT_NODE_CONTINUE:
        run->skipped = true;
        return RL_OK;
    default:
        return rl_fail(RL_INTERNAL, "chat template: not a statement");
    }
}

rl_status chat_run_statements(struct chat_run *run, const struct chat_node *first)
{
    for (const struct chat_node *node = first; node != NULL; node = node->next) {
        RL_TRY(run_statement(run, node));
        if (run->broken || run->skipped) {
            break;
        }
    }
    return RL_OK;
}
