/* Expressions of a template, by the precedences of Jinja: if-else, or, and, not, comparisons, + and
 * -, ~, * / // %, **, then unary signs, postfixes and filters. Names of filters, tests, methods and
 * functions are looked up here: what is not known is refused at load. */
#include "model/chat_internal.h"

#include "core/log.h"

#include <string.h>

static bool is_operator(const struct chat_parser *parser, const char *text)
{
    return chat_parser_is(parser, CHAT_TOKEN_OPERATOR, text);
}

static bool take_operator(struct chat_parser *parser, const char *text)
{
    return chat_parser_take(parser, CHAT_TOKEN_OPERATOR, text);
}

static bool take_word(struct chat_parser *parser, const char *text)
{
    return chat_parser_take(parser, CHAT_TOKEN_NAME, text);
}

static rl_status expect_operator(struct chat_parser *parser, const char *text)
{
    return chat_parser_expect(parser, CHAT_TOKEN_OPERATOR, text);
}

/* ---- primaries ---- */

/* Items up to `close`, separated by commas. */
static rl_status parse_items(struct chat_parser *parser, const char *close, struct chat_node **out)
{
    struct chat_node **link = out;
    while (!take_operator(parser, close)) {
        if (link != out) {
            RL_TRY(expect_operator(parser, ","));
            if (take_operator(parser, close)) {
                break;
            }
        }
        RL_TRY(chat_parse_expression(parser, link));
        link = &(*link)->next;
    }
    return RL_OK;
}

static rl_status parse_dict(struct chat_parser *parser, struct chat_node **out)
{
    RL_TRY(chat_parser_node(parser, CHAT_NODE_DICT, out));
    struct chat_node **link = &(*out)->list;
    while (!take_operator(parser, "}")) {
        if (link != &(*out)->list) {
            RL_TRY(expect_operator(parser, ","));
            if (take_operator(parser, "}")) {
                break;
            }
        }
        RL_TRY(chat_parse_expression(parser, link));
        link = &(*link)->next;
        RL_TRY(expect_operator(parser, ":"));
        RL_TRY(chat_parse_expression(parser, link));
        link = &(*link)->next;
    }
    return RL_OK;
}

static rl_status parse_constant(struct chat_parser *parser, struct chat_node **out)
{
    const struct chat_token *token = parser->token;
    struct tok_text text = {0};
    rl_status status = RL_OK;
    RL_TRY(chat_parser_node(parser, CHAT_NODE_CONST, out));
    parser->token++;
    if (token->kind == CHAT_TOKEN_INT) {
        (*out)->value = chat_int(token->integer);
        return RL_OK;
    }
    if (token->kind == CHAT_TOKEN_REAL) {
        (*out)->value = chat_real(token->real);
        return RL_OK;
    }
    (*out)->value = chat_literal(token->data);
    (*out)->value.as.string.bytes = token->bytes;
    if (parser->token->kind != CHAT_TOKEN_STRING) {
        return RL_OK;
    }
    status = tok_text_append(&text, token->data, token->bytes, 0);
    while (status == RL_OK && parser->token->kind == CHAT_TOKEN_STRING) { /* 'a' 'b' is 'ab' */
        status = tok_text_append(&text, parser->token->data, parser->token->bytes, 0);
        parser->token++;
    }
    void *copy = NULL;
    if (status == RL_OK) {
        status = rl_arena_alloc(parser->arena, text.bytes, 1, &copy);
    }
    if (status == RL_OK && text.bytes > 0) {
        memcpy(copy, text.data, text.bytes);
    }
    (*out)->value.as.string = (struct chat_string){copy, NULL, text.bytes};
    tok_text_fini(&text);
    return status;
}

static rl_status parse_name(struct chat_parser *parser, struct chat_node **out)
{
    static const struct {
        const char *name;
        struct chat_value value;
    } constants[] = {{"true", {.kind = CHAT_BOOL, .as.truth = true}},
                     {"True", {.kind = CHAT_BOOL, .as.truth = true}},
                     {"false", {.kind = CHAT_BOOL}},
                     {"False", {.kind = CHAT_BOOL}},
                     {"none", {.kind = CHAT_NONE}},
                     {"None", {.kind = CHAT_NONE}}};
    const char *name = parser->token->data;
    for (size_t i = 0; i < sizeof(constants) / sizeof(constants[0]); i++) {
        if (strcmp(name, constants[i].name) == 0) {
            RL_TRY(chat_parser_node(parser, CHAT_NODE_CONST, out));
            (*out)->value = constants[i].value;
            parser->token++;
            return RL_OK;
        }
    }
    RL_TRY(chat_parser_node(parser, CHAT_NODE_NAME, out));
    (*out)->name = name;
    parser->token++;
    return RL_OK;
}

static rl_status parse_parenthesis(struct chat_parser *parser, struct chat_node **out)
{
    if (take_operator(parser, ")")) {
        return chat_parser_node(parser, CHAT_NODE_TUPLE, out);
    }
    RL_TRY(chat_parse_tuple(parser, false, out));
    return expect_operator(parser, ")");
}

static rl_status parse_primary(struct chat_parser *parser, struct chat_node **out)
{
    switch (parser->token->kind) {
    case CHAT_TOKEN_NAME:
        return parse_name(parser, out);
    case CHAT_TOKEN_STRING:
    case CHAT_TOKEN_INT:
    case CHAT_TOKEN_REAL:
        return parse_constant(parser, out);
    default:
        break;
    }
    if (take_operator(parser, "(")) {
        return parse_parenthesis(parser, out);
    }
    if (take_operator(parser, "[")) {
        RL_TRY(chat_parser_node(parser, CHAT_NODE_LIST, out));
        return parse_items(parser, "]", &(*out)->list);
    }
    if (take_operator(parser, "{")) {
        return parse_dict(parser, out);
    }
    return chat_parser_expect(parser, CHAT_TOKEN_NAME, "(an expression)");
}

/* ---- postfixes ---- */

rl_status chat_parse_arguments(struct chat_parser *parser, struct chat_node **out)
{
    struct chat_node **link = out;
    bool keywords = false;
    RL_TRY(expect_operator(parser, "("));
    while (!take_operator(parser, ")")) {
        if (link != out) {
            RL_TRY(expect_operator(parser, ","));
            if (take_operator(parser, ")")) {
                break;
            }
        }
        if (is_operator(parser, "*") || is_operator(parser, "**")) {
            return chat_parser_refuse(parser, "unpacking of arguments with", "*");
        }
        if (parser->token->kind == CHAT_TOKEN_NAME &&
            parser->token[1].kind == CHAT_TOKEN_OPERATOR &&
            strcmp(parser->token[1].data, "=") == 0) {
            RL_TRY(chat_parser_node(parser, CHAT_NODE_KEYWORD, link));
            (*link)->name = parser->token->data;
            parser->token += 2;
            keywords = true;
            RL_TRY(chat_parse_expression(parser, &(*link)->a));
        } else if (keywords) {
            return chat_parser_refuse(parser, "an argument behind", "name=value");
        } else {
            RL_TRY(chat_parse_expression(parser, link));
        }
        link = &(*link)->next;
    }
    return RL_OK;
}

/* Does the template define a macro of this name anywhere? */
static bool is_macro(const struct chat_parser *parser, const char *name)
{
    for (const struct chat_token *token = parser->first; token->kind != CHAT_TOKEN_EOF; token++) {
        if (token[0].kind == CHAT_TOKEN_NAME && strcmp(token[0].data, "macro") == 0 &&
            token[1].kind == CHAT_TOKEN_NAME && strcmp(token[1].data, name) == 0) {
            return true;
        }
    }
    return false;
}

static rl_status parse_call(struct chat_parser *parser, struct chat_node **node)
{
    struct chat_node *call;
    RL_TRY(chat_parser_node(parser, CHAT_NODE_CALL, &call));
    call->a = *node;
    if ((*node)->kind == CHAT_NODE_ATTRIBUTE) {
        int method = chat_method_find((*node)->name);
        if (method < 0) {
            return chat_parser_refuse(parser, "method", (*node)->name);
        }
        call->kind = CHAT_NODE_METHOD;
        call->builtin = method;
        call->a = (*node)->a;
    } else if ((*node)->kind != CHAT_NODE_NAME) {
        return chat_parser_refuse(parser, "a call of", "an expression");
    } else if (chat_function_find((*node)->name) < 0 && !is_macro(parser, (*node)->name)) {
        return chat_parser_refuse(parser, "function", (*node)->name);
    }
    *node = call;
    return chat_parse_arguments(parser, &call->list);
}

/* [a], [a:b], [a:b:c]; parser behind the bracket. */
static rl_status parse_subscript(struct chat_parser *parser, struct chat_node **node)
{
    struct chat_node *item;
    struct chat_node *bounds[3] = {NULL, NULL, NULL};
    int colons = 0;
    RL_TRY(chat_parser_node(parser, CHAT_NODE_ITEM, &item));
    item->a = *node;
    while (!take_operator(parser, "]")) {
        if (take_operator(parser, ":")) {
            if (++colons > 2) {
                return chat_parser_refuse(parser, "slice with", "three colons");
            }
        } else if (bounds[colons] == NULL) {
            RL_TRY(chat_parse_expression(parser, &bounds[colons]));
        } else {
            return chat_parser_refuse(parser, "subscript with", ",");
        }
    }
    if (colons == 0 && bounds[0] == NULL) {
        return chat_parser_refuse(parser, "subscript without", "an index");
    }
    item->kind = colons > 0 ? CHAT_NODE_SLICE : CHAT_NODE_ITEM;
    item->b = bounds[0];
    item->c = bounds[1];
    item->d = bounds[2];
    *node = item;
    return RL_OK;
}

static rl_status parse_attribute(struct chat_parser *parser, struct chat_node **node)
{
    struct chat_node *attribute;
    RL_TRY(chat_parser_node(parser, CHAT_NODE_ATTRIBUTE, &attribute));
    attribute->a = *node;
    *node = attribute;
    if (parser->token->kind == CHAT_TOKEN_INT) { /* a.0 is a[0] */
        attribute->kind = CHAT_NODE_ITEM;
        return parse_constant(parser, &attribute->b);
    }
    attribute->name = parser->token->data;
    return chat_parser_expect(parser, CHAT_TOKEN_NAME, NULL);
}

static rl_status parse_postfix(struct chat_parser *parser, struct chat_node **node)
{
    int count = 0;
    for (;;) {
        if (++count > CHAT_DEPTH_LIMIT) {
            return chat_parser_refuse(parser, "nesting", "too many postfixes");
        }
        if (take_operator(parser, ".")) {
            RL_TRY(parse_attribute(parser, node));
        } else if (take_operator(parser, "[")) {
            RL_TRY(parse_subscript(parser, node));
        } else if (is_operator(parser, "(")) {
            RL_TRY(parse_call(parser, node));
        } else {
            return RL_OK;
        }
    }
}

static rl_status parse_filter(struct chat_parser *parser, struct chat_node **node)
{
    struct chat_node *filter;
    RL_TRY(chat_parser_node(parser, CHAT_NODE_FILTER, &filter));
    filter->a = *node;
    filter->name = parser->token->data;
    if (parser->token->kind == CHAT_TOKEN_NAME) {
        filter->builtin = chat_filter_find(parser->token->data);
        if (filter->builtin < 0) {
            return chat_parser_refuse(parser, "filter", parser->token->data);
        }
    }
    RL_TRY(chat_parser_expect(parser, CHAT_TOKEN_NAME, NULL));
    *node = filter;
    return is_operator(parser, "(") ? chat_parse_arguments(parser, &filter->list) : RL_OK;
}

/* A test may have one argument without parentheses. */
static bool bare_argument_follows(const struct chat_parser *parser)
{
    static const char *const words[] = {"else", "or", "and", "if", "is", "in", "not"};
    switch (parser->token->kind) {
    case CHAT_TOKEN_STRING:
    case CHAT_TOKEN_INT:
    case CHAT_TOKEN_REAL:
        return true;
    case CHAT_TOKEN_NAME:
        for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
            if (strcmp(parser->token->data, words[i]) == 0) {
                return false;
            }
        }
        return true;
    default:
        return is_operator(parser, "[") || is_operator(parser, "{");
    }
}

static rl_status parse_test(struct chat_parser *parser, struct chat_node **node)
{
    struct chat_node *test;
    bool negated = take_word(parser, "not");
    RL_TRY(chat_parser_node(parser, CHAT_NODE_TEST, &test));
    test->a = *node;
    test->name = parser->token->data;
    if (parser->token->kind == CHAT_TOKEN_NAME) {
        test->builtin = chat_test_find(parser->token->data);
        if (test->builtin < 0) {
            return chat_parser_refuse(parser, "test", parser->token->data);
        }
    }
    RL_TRY(chat_parser_expect(parser, CHAT_TOKEN_NAME, NULL));
    if (is_operator(parser, "(")) {
        RL_TRY(chat_parse_arguments(parser, &test->list));
    } else if (bare_argument_follows(parser)) {
        RL_TRY(parse_primary(parser, &test->list));
        RL_TRY(parse_postfix(parser, &test->list));
    }
    *node = test;
    if (!negated) {
        return RL_OK;
    }
    struct chat_node * not ;
    RL_TRY(chat_parser_node(parser, CHAT_NODE_UNARY, &not ));
    not ->op = CHAT_OP_NOT;
    not ->a = test;
    *node = not ;
    return RL_OK;
}

static rl_status parse_filters(struct chat_parser *parser, struct chat_node **node)
{
    int count = 0;
    for (;;) {
        if (++count > CHAT_DEPTH_LIMIT) {
            return chat_parser_refuse(parser, "nesting", "too many filters");
        }
        if (take_operator(parser, "|")) {
            RL_TRY(parse_filter(parser, node));
        } else if (take_word(parser, "is")) {
            RL_TRY(parse_test(parser, node));
        } else if (is_operator(parser, "(")) {
            RL_TRY(parse_call(parser, node));
        } else {
            return RL_OK;
        }
    }
}

/* ---- operators ---- */

static rl_status parse_unary(struct chat_parser *parser, bool filters, struct chat_node **out)
{
    bool negate = is_operator(parser, "-");
    if (++parser->depth > CHAT_DEPTH_LIMIT) {
        return chat_parser_refuse(parser, "nesting", "too deep");
    }
    if (negate || is_operator(parser, "+")) {
        RL_TRY(chat_parser_node(parser, CHAT_NODE_UNARY, out));
        (*out)->op = negate ? CHAT_OP_NEGATE : CHAT_OP_PLUS;
        parser->token++;
        RL_TRY(parse_unary(parser, false, &(*out)->a));
    } else {
        RL_TRY(parse_primary(parser, out));
    }
    RL_TRY(parse_postfix(parser, out));
    parser->depth--;
    return filters ? parse_filters(parser, out) : RL_OK;
}

struct binary_level {
    const char *symbols[5];
    enum chat_operator operators[5];
};

static const struct binary_level levels[] = {
    {{"+", "-", NULL}, {CHAT_OP_ADD, CHAT_OP_SUBTRACT}},
    {{"~", NULL}, {CHAT_OP_CONCATENATE}},
    {{"*", "/", "//", "%", NULL},
     {CHAT_OP_MULTIPLY, CHAT_OP_DIVIDE, CHAT_OP_FLOOR_DIVIDE, CHAT_OP_REMAINDER}},
    {{"**", NULL}, {CHAT_OP_POWER}},
};

enum { LEVEL_COUNT = sizeof(levels) / sizeof(levels[0]) };

static int level_operator(const struct chat_parser *parser, int level)
{
    for (int i = 0; levels[level].symbols[i] != NULL; i++) {
        if (is_operator(parser, levels[level].symbols[i])) {
            return i;
        }
    }
    return -1;
}

static rl_status parse_binary(struct chat_parser *parser, int level, struct chat_node **out)
{
    if (level == LEVEL_COUNT) {
        return parse_unary(parser, true, out);
    }
    RL_TRY(parse_binary(parser, level + 1, out));
    for (int index = level_operator(parser, level); index >= 0;
         index = level_operator(parser, level)) {
        struct chat_node *node;
        RL_TRY(chat_parser_node(parser, CHAT_NODE_BINARY, &node));
        node->op = levels[level].operators[index];
        parser->token++;
        node->a = *out;
        RL_TRY(parse_binary(parser, level + 1, &node->b));
        *out = node;
    }
    return RL_OK;
}

/* The comparison at the parser, consumed; -1 if there is none. */
static int take_comparison(struct chat_parser *parser)
{
    static const char *const symbols[] = {"==", "!=", "<", "<=", ">", ">="};
    static const int operators[] = {CHAT_OP_EQUAL,      CHAT_OP_UNEQUAL, CHAT_OP_LESS,
                                    CHAT_OP_LESS_EQUAL, CHAT_OP_GREATER, CHAT_OP_GREATER_EQUAL};
    for (size_t i = 0; i < sizeof(symbols) / sizeof(symbols[0]); i++) {
        if (take_operator(parser, symbols[i])) {
            return operators[i];
        }
    }
    if (take_word(parser, "in")) {
        return CHAT_OP_IN;
    }
    if (chat_parser_is(parser, CHAT_TOKEN_NAME, "not") &&
        parser->token[1].kind == CHAT_TOKEN_NAME && strcmp(parser->token[1].data, "in") == 0) {
        parser->token += 2;
        return CHAT_OP_NOT_IN;
    }
    return -1;
}

static rl_status parse_comparison(struct chat_parser *parser, struct chat_node **out)
{
    struct chat_node *compare = NULL;
    struct chat_node **link = NULL;
    RL_TRY(parse_binary(parser, 0, out));
    for (int op = take_comparison(parser); op >= 0; op = take_comparison(parser)) {
        if (compare == NULL) {
            RL_TRY(chat_parser_node(parser, CHAT_NODE_COMPARE, &compare));
            compare->a = *out;
            link = &compare->list;
            *out = compare;
        }
        RL_TRY(chat_parser_node(parser, CHAT_NODE_UNARY, link));
        (*link)->op = (enum chat_operator)op;
        RL_TRY(parse_binary(parser, 0, &(*link)->a));
        link = &(*link)->next;
    }
    return RL_OK;
}

static rl_status parse_not(struct chat_parser *parser, struct chat_node **out)
{
    if (!take_word(parser, "not")) {
        return parse_comparison(parser, out);
    }
    if (++parser->depth > CHAT_DEPTH_LIMIT) {
        return chat_parser_refuse(parser, "nesting", "too deep");
    }
    RL_TRY(chat_parser_node(parser, CHAT_NODE_UNARY, out));
    (*out)->op = CHAT_OP_NOT;
    RL_TRY(parse_not(parser, &(*out)->a));
    parser->depth--;
    return RL_OK;
}

static rl_status parse_logical(struct chat_parser *parser, bool any, struct chat_node **out)
{
    RL_TRY(any ? parse_logical(parser, false, out) : parse_not(parser, out));
    while (take_word(parser, any ? "or" : "and")) {
        struct chat_node *node;
        RL_TRY(chat_parser_node(parser, any ? CHAT_NODE_OR : CHAT_NODE_AND, &node));
        node->a = *out;
        RL_TRY(any ? parse_logical(parser, false, &node->b) : parse_not(parser, &node->b));
        *out = node;
    }
    return RL_OK;
}

/* Without `conditional` an "if" is left for the caller: `for x in list if x`. */
static rl_status parse_condition(struct chat_parser *parser, bool conditional,
                                 struct chat_node **out)
{
    if (++parser->depth > CHAT_DEPTH_LIMIT) {
        return chat_parser_refuse(parser, "nesting", "too deep");
    }
    RL_TRY(parse_logical(parser, true, out));
    while (conditional && take_word(parser, "if")) {
        struct chat_node *node;
        RL_TRY(chat_parser_node(parser, CHAT_NODE_CONDITION, &node));
        node->b = *out;
        RL_TRY(parse_logical(parser, true, &node->a));
        if (take_word(parser, "else")) {
            RL_TRY(parse_condition(parser, true, &node->c));
        }
        *out = node;
    }
    parser->depth--;
    return RL_OK;
}

rl_status chat_parse_expression(struct chat_parser *parser, struct chat_node **out)
{
    return parse_condition(parser, true, out);
}

rl_status chat_parse_iterable(struct chat_parser *parser, struct chat_node **out)
{
    return parse_condition(parser, false, out);
}

static rl_status parse_element(struct chat_parser *parser, bool names, struct chat_node **out)
{
    if (!names) {
        return chat_parse_expression(parser, out);
    }
    RL_TRY(chat_parser_node(parser, CHAT_NODE_NAME, out));
    (*out)->name = parser->token->data;
    return chat_parser_expect(parser, CHAT_TOKEN_NAME, NULL);
}

static bool tuple_ends(const struct chat_parser *parser)
{
    return parser->token->kind == CHAT_TOKEN_VARIABLE_END ||
           parser->token->kind == CHAT_TOKEN_BLOCK_END || is_operator(parser, ")") ||
           is_operator(parser, "=") || chat_parser_is(parser, CHAT_TOKEN_NAME, "in");
}

rl_status chat_parse_tuple(struct chat_parser *parser, bool names, struct chat_node **out)
{
    bool brackets = names && take_operator(parser, "(");
    RL_TRY(parse_element(parser, names, out));
    if (!is_operator(parser, ",")) {
        return brackets ? expect_operator(parser, ")") : RL_OK;
    }
    struct chat_node *tuple;
    RL_TRY(chat_parser_node(parser, CHAT_NODE_TUPLE, &tuple));
    tuple->list = *out;
    struct chat_node **link = &tuple->list->next;
    while (take_operator(parser, ",") && !tuple_ends(parser)) {
        RL_TRY(parse_element(parser, names, link));
        link = &(*link)->next;
    }
    *out = tuple;
    return brackets ? expect_operator(parser, ")") : RL_OK;
}
