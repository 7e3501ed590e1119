/* Statements of a template: tokens to a tree. Whatever is not known here is refused by name, so
 * that a template which loads renders exactly. */
#include "model/chat_internal.h"

#include "core/log.h"

#include <string.h>

rl_status chat_parser_refuse(const struct chat_parser *parser, const char *what, const char *name)
{
    return rl_fail(RL_UNSUPPORTED,
                   "%s, line %d: %s \"%.60s\" is not supported; name another template in "
                   "data.chat_template",
                   parser->where, parser->token->line, what, name != NULL ? name : "");
}

rl_status chat_parser_node(struct chat_parser *parser, enum chat_node_kind kind,
                           struct chat_node **out)
{
    void *node;
    RL_TRY(rl_arena_calloc(parser->arena, 1, sizeof(struct chat_node), &node));
    *out = node;
    (*out)->kind = kind;
    (*out)->line = parser->token->line;
    return RL_OK;
}

bool chat_parser_is(const struct chat_parser *parser, enum chat_token_kind kind, const char *text)
{
    return parser->token->kind == kind && (text == NULL || strcmp(parser->token->data, text) == 0);
}

bool chat_parser_take(struct chat_parser *parser, enum chat_token_kind kind, const char *text)
{
    if (!chat_parser_is(parser, kind, text)) {
        return false;
    }
    parser->token++;
    return true;
}

static const char *token_text(const struct chat_token *token)
{
    switch (token->kind) {
    case CHAT_TOKEN_VARIABLE_BEGIN:
        return "{{";
    case CHAT_TOKEN_VARIABLE_END:
        return "}}";
    case CHAT_TOKEN_BLOCK_BEGIN:
        return "{%";
    case CHAT_TOKEN_BLOCK_END:
        return "%}";
    case CHAT_TOKEN_INT:
    case CHAT_TOKEN_REAL:
        return "a number";
    case CHAT_TOKEN_EOF:
        return "the end";
    default:
        return token->data;
    }
}

rl_status chat_parser_expect(struct chat_parser *parser, enum chat_token_kind kind,
                             const char *text)
{
    if (chat_parser_take(parser, kind, text)) {
        return RL_OK;
    }
    const struct chat_token wanted = {.kind = kind, .data = "a name"};
    return rl_fail(RL_UNSUPPORTED,
                   "%s, line %d: expected %s, found \"%.60s\"; name another template in "
                   "data.chat_template",
                   parser->where, parser->token->line, text != NULL ? text : token_text(&wanted),
                   token_text(parser->token));
}

static rl_status block_end(struct chat_parser *parser)
{
    return chat_parser_expect(parser, CHAT_TOKEN_BLOCK_END, NULL);
}

static bool at_block(const struct chat_parser *parser, const char *const *names)
{
    for (; names != NULL && *names != NULL; names++) {
        if (parser->token[0].kind == CHAT_TOKEN_BLOCK_BEGIN &&
            parser->token[1].kind == CHAT_TOKEN_NAME &&
            strcmp(parser->token[1].data, *names) == 0) {
            return true;
        }
    }
    return false;
}

static rl_status parse_statement(struct chat_parser *parser, struct chat_node **out);

/* Statements up to one of the blocks named (not consumed), or to the end if names is NULL. */
static rl_status parse_body(struct chat_parser *parser, const char *const *until,
                            struct chat_node **out)
{
    struct chat_node *first = NULL;
    struct chat_node **link = &first;
    if (++parser->depth > CHAT_DEPTH_LIMIT) {
        return chat_parser_refuse(parser, "nesting", "too deep");
    }
    while (!at_block(parser, until)) {
        if (parser->token->kind == CHAT_TOKEN_EOF) {
            if (until == NULL) {
                break;
            }
            return chat_parser_refuse(parser, "a block without", until[0]);
        }
        RL_TRY(parse_statement(parser, link));
        link = &(*link)->next;
    }
    parser->depth--;
    *out = first;
    return RL_OK;
}

static rl_status parse_output(struct chat_parser *parser, struct chat_node **out)
{
    parser->token++;
    RL_TRY(chat_parser_node(parser, CHAT_NODE_OUTPUT, out));
    RL_TRY(chat_parse_tuple(parser, false, &(*out)->a));
    return chat_parser_expect(parser, CHAT_TOKEN_VARIABLE_END, NULL);
}

/* Parser behind "if" or "elif". */
static rl_status parse_if(struct chat_parser *parser, struct chat_node **out)
{
    static const char *const until[] = {"elif", "else", "endif", NULL};
    static const char *const end[] = {"endif", NULL};
    struct chat_node *node;
    RL_TRY(chat_parser_node(parser, CHAT_NODE_IF, &node));
    RL_TRY(chat_parse_tuple(parser, false, &node->a));
    RL_TRY(block_end(parser));
    RL_TRY(parse_body(parser, until, &node->list));
    parser->token++;
    *out = node;
    if (chat_parser_take(parser, CHAT_TOKEN_NAME, "elif")) {
        if (++parser->depth > CHAT_DEPTH_LIMIT) {
            return chat_parser_refuse(parser, "nesting", "too many elif");
        }
        RL_TRY(parse_if(parser, &node->orelse));
        parser->depth--;
        return RL_OK;
    }
    if (chat_parser_take(parser, CHAT_TOKEN_NAME, "else")) {
        RL_TRY(block_end(parser));
        RL_TRY(parse_body(parser, end, &node->orelse));
        parser->token++;
    }
    RL_TRY(chat_parser_expect(parser, CHAT_TOKEN_NAME, "endif"));
    return block_end(parser);
}

static rl_status parse_for(struct chat_parser *parser, struct chat_node **out)
{
    static const char *const until[] = {"else", "endfor", NULL};
    static const char *const end[] = {"endfor", NULL};
    struct chat_node *node;
    RL_TRY(chat_parser_node(parser, CHAT_NODE_FOR, &node));
    RL_TRY(chat_parse_tuple(parser, true, &node->b));
    RL_TRY(chat_parser_expect(parser, CHAT_TOKEN_NAME, "in"));
    RL_TRY(chat_parse_iterable(parser, &node->a));
    if (chat_parser_take(parser, CHAT_TOKEN_NAME, "if")) {
        RL_TRY(chat_parse_expression(parser, &node->c));
    }
    if (chat_parser_is(parser, CHAT_TOKEN_NAME, "recursive")) {
        return chat_parser_refuse(parser, "a loop that is", "recursive");
    }
    RL_TRY(block_end(parser));
    parser->loops++;
    RL_TRY(parse_body(parser, until, &node->list));
    parser->loops--;
    parser->token++;
    if (chat_parser_take(parser, CHAT_TOKEN_NAME, "else")) {
        RL_TRY(block_end(parser));
        RL_TRY(parse_body(parser, end, &node->orelse));
        parser->token++;
    }
    RL_TRY(chat_parser_expect(parser, CHAT_TOKEN_NAME, "endfor"));
    *out = node;
    return block_end(parser);
}

/* name, name.attribute, or names with commas. */
static rl_status parse_target(struct chat_parser *parser, struct chat_node **out)
{
    struct chat_node *owner;
    RL_TRY(chat_parse_tuple(parser, true, &owner));
    *out = owner;
    if (owner->kind != CHAT_NODE_NAME || !chat_parser_take(parser, CHAT_TOKEN_OPERATOR, ".")) {
        return RL_OK;
    }
    RL_TRY(chat_parser_node(parser, CHAT_NODE_ATTRIBUTE, out));
    (*out)->a = owner;
    (*out)->name = parser->token->data;
    return chat_parser_expect(parser, CHAT_TOKEN_NAME, NULL);
}

static rl_status parse_set(struct chat_parser *parser, struct chat_node **out)
{
    static const char *const end[] = {"endset", NULL};
    struct chat_node *node;
    RL_TRY(chat_parser_node(parser, CHAT_NODE_SET, &node));
    RL_TRY(parse_target(parser, &node->b));
    *out = node;
    if (chat_parser_take(parser, CHAT_TOKEN_OPERATOR, "=")) {
        RL_TRY(chat_parse_tuple(parser, false, &node->a));
        return block_end(parser);
    }
    if (chat_parser_is(parser, CHAT_TOKEN_OPERATOR, "|")) {
        return chat_parser_refuse(parser, "a block assignment with a", "filter");
    }
    RL_TRY(block_end(parser));
    RL_TRY(parse_body(parser, end, &node->list));
    parser->token += 2;
    return block_end(parser);
}

/* "(a, b=1)" of a macro: names and keywords. */
static rl_status parse_parameters(struct chat_parser *parser, struct chat_node **out)
{
    struct chat_node **link = out;
    RL_TRY(chat_parser_expect(parser, CHAT_TOKEN_OPERATOR, "("));
    while (!chat_parser_take(parser, CHAT_TOKEN_OPERATOR, ")")) {
        if (link != out) {
            RL_TRY(chat_parser_expect(parser, CHAT_TOKEN_OPERATOR, ","));
        }
        RL_TRY(chat_parser_node(parser, CHAT_NODE_KEYWORD, link));
        (*link)->name = parser->token->data;
        RL_TRY(chat_parser_expect(parser, CHAT_TOKEN_NAME, NULL));
        if (chat_parser_take(parser, CHAT_TOKEN_OPERATOR, "=")) {
            RL_TRY(chat_parse_expression(parser, &(*link)->a));
        }
        link = &(*link)->next;
    }
    return RL_OK;
}

static rl_status parse_macro(struct chat_parser *parser, struct chat_node **out)
{
    static const char *const end[] = {"endmacro", NULL};
    struct chat_node *node;
    int loops = parser->loops;
    RL_TRY(chat_parser_node(parser, CHAT_NODE_MACRO, &node));
    node->name = parser->token->data;
    RL_TRY(chat_parser_expect(parser, CHAT_TOKEN_NAME, NULL));
    RL_TRY(parse_parameters(parser, &node->b));
    RL_TRY(block_end(parser));
    parser->loops = 0;
    RL_TRY(parse_body(parser, end, &node->list));
    parser->loops = loops;
    parser->token += 2;
    (void)chat_parser_take(parser, CHAT_TOKEN_NAME, node->name);
    *out = node;
    return block_end(parser);
}

/* The span that a trainer would mask in; it renders as what is in it. */
static rl_status parse_generation(struct chat_parser *parser, struct chat_node **out)
{
    static const char *const end[] = {"endgeneration", NULL};
    RL_TRY(block_end(parser));
    RL_TRY(chat_parser_node(parser, CHAT_NODE_BLOCK, out));
    RL_TRY(parse_body(parser, end, &(*out)->list));
    parser->token += 2;
    return block_end(parser);
}

static rl_status parse_jump(struct chat_parser *parser, enum chat_node_kind kind,
                            struct chat_node **out)
{
    if (parser->loops == 0) {
        return chat_parser_refuse(parser, "outside of a loop", "break or continue");
    }
    RL_TRY(chat_parser_node(parser, kind, out));
    return block_end(parser);
}

static rl_status parse_block(struct chat_parser *parser, struct chat_node **out)
{
    parser->token++;
    if (chat_parser_take(parser, CHAT_TOKEN_NAME, "if")) {
        return parse_if(parser, out);
    }
    if (chat_parser_take(parser, CHAT_TOKEN_NAME, "for")) {
        return parse_for(parser, out);
    }
    if (chat_parser_take(parser, CHAT_TOKEN_NAME, "set")) {
        return parse_set(parser, out);
    }
    if (chat_parser_take(parser, CHAT_TOKEN_NAME, "macro")) {
        return parse_macro(parser, out);
    }
    if (chat_parser_take(parser, CHAT_TOKEN_NAME, "generation")) {
        return parse_generation(parser, out);
    }
    if (chat_parser_take(parser, CHAT_TOKEN_NAME, "break")) {
        return parse_jump(parser, CHAT_NODE_BREAK, out);
    }
    if (chat_parser_take(parser, CHAT_TOKEN_NAME, "continue")) {
        return parse_jump(parser, CHAT_NODE_CONTINUE, out);
    }
    return chat_parser_refuse(parser, "statement", token_text(parser->token));
}

static rl_status parse_statement(struct chat_parser *parser, struct chat_node **out)
{
    switch (parser->token->kind) {
    case CHAT_TOKEN_TEXT:
        RL_TRY(chat_parser_node(parser, CHAT_NODE_TEXT, out));
        (*out)->value = chat_literal(parser->token->data);
        (*out)->value.as.string.bytes = parser->token->bytes;
        parser->token++;
        return RL_OK;
    case CHAT_TOKEN_VARIABLE_BEGIN:
        return parse_output(parser, out);
    default:
        return parse_block(parser, out);
    }
}

rl_status chat_parse(struct chat_parser *parser, struct chat_node **out)
{
    return parse_body(parser, NULL, out);
}
