/* Arithmetic expressions: see expression.h.
 *   sum     = product { (+|-) product }
 *   product = factor { (*|/) factor }
 *   factor  = - factor | ( sum ) | digits
 * Invariant: the depth counter bounds the C stack, so no text can overflow it. */
#include "rewards/expression.h"

#include <ctype.h>
#include <string.h>

struct parser {
    const char *text;
    size_t bytes;
    size_t at;
    int depth;
    struct expression_numbers *numbers;
    const char *problem; /* first problem met; NULL while all is well */
};

static bool parse_sum(struct parser *parser, struct rational *value);

static bool fail(struct parser *parser, const char *problem)
{
    if (parser->problem == NULL) {
        parser->problem = problem;
    }
    return false;
}

static bool take(struct parser *parser, const char *word)
{
    size_t bytes = strlen(word);
    if (parser->bytes - parser->at < bytes || memcmp(parser->text + parser->at, word, bytes) != 0) {
        return false;
    }
    parser->at += bytes;
    return true;
}

static void skip_spaces(struct parser *parser)
{
    while (parser->at < parser->bytes && isspace((unsigned char)parser->text[parser->at])) {
        parser->at++;
    }
}

/* The next operator as one of + - * / ( ), or '\0' if something else follows. */
static char take_operator(struct parser *parser, const char *wanted)
{
    static const struct {
        const char *spelling;
        char symbol;
    } spellings[] = {{"+", '+'},        {"-", '-'},        {"\xe2\x88\x92", '-'}, {"*", '*'},
                     {"\xc3\x97", '*'}, {"\\times", '*'},  {"\\cdot", '*'},       {"\xc2\xb7", '*'},
                     {"/", '/'},        {"\xc3\xb7", '/'}, {"\\div", '/'},        {"(", '('},
                     {"\\left(", '('},  {")", ')'},        {"\\right)", ')'}};
    skip_spaces(parser);
    for (size_t i = 0; i < sizeof(spellings) / sizeof(spellings[0]); i++) {
        if (strchr(wanted, spellings[i].symbol) != NULL && take(parser, spellings[i].spelling)) {
            return spellings[i].symbol;
        }
    }
    return '\0';
}

static bool parse_literal(struct parser *parser, struct rational *value)
{
    int64_t number = 0;
    size_t start = parser->at;
    while (parser->at < parser->bytes && isdigit((unsigned char)parser->text[parser->at])) {
        int digit = parser->text[parser->at] - '0';
        if (number > (INT64_MAX - digit) / 10) {
            return fail(parser, "a number in the expression is too large");
        }
        number = number * 10 + digit;
        parser->at++;
    }
    if (parser->at == start) {
        return fail(parser, "the expression cannot be parsed");
    }
    if (parser->numbers->count == EXPRESSION_NUMBERS_MAX) {
        return fail(parser, "the expression has too many numbers");
    }
    parser->numbers->items[parser->numbers->count++] = number;
    rational_set_int(value, number);
    return true;
}

static bool parse_bracket(struct parser *parser, struct rational *value)
{
    if (!parse_sum(parser, value)) {
        return false;
    }
    return take_operator(parser, ")") != '\0' || fail(parser, "a parenthesis is not closed");
}

static bool parse_factor(struct parser *parser, struct rational *value)
{
    if (parser->depth == EXPRESSION_DEPTH_MAX) {
        return fail(parser, "the expression is nested too deeply");
    }
    parser->depth++;
    bool ok;
    switch (take_operator(parser, "-(")) {
    case '-':
        ok = parse_factor(parser, value);
        rational_negate(value);
        break;
    case '(':
        ok = parse_bracket(parser, value);
        break;
    default:
        ok = parse_literal(parser, value);
        break;
    }
    parser->depth--;
    return ok;
}

static bool apply(struct parser *parser, char symbol, struct rational *value,
                  const struct rational *right)
{
    bool ok = false;
    switch (symbol) {
    case '+':
        ok = rational_add(value, value, right);
        break;
    case '-':
        ok = rational_subtract(value, value, right);
        break;
    case '*':
        ok = rational_multiply(value, value, right);
        break;
    default:
        ok = rational_divide(value, value, right);
        break;
    }
    return ok || fail(parser, symbol == '/' ? "division by zero" : "a value is too large");
}

/* operand { operator operand } for one level of precedence. */
static bool parse_chain(struct parser *parser, const char *operators,
                        bool (*operand)(struct parser *, struct rational *), struct rational *value)
{
    struct rational *right = rational_create();
    if (right == NULL) {
        return fail(parser, "no memory for the expression");
    }
    bool ok = operand(parser, value);
    while (ok) {
        char symbol = take_operator(parser, operators);
        if (symbol == '\0') {
            break;
        }
        ok = operand(parser, right) && apply(parser, symbol, value, right);
    }
    rational_destroy(right);
    return ok;
}

static bool parse_product(struct parser *parser, struct rational *value)
{
    return parse_chain(parser, "*/", parse_factor, value);
}

static bool parse_sum(struct parser *parser, struct rational *value)
{
    return parse_chain(parser, "+-", parse_product, value);
}

const char *expression_evaluate(struct answer_span span, struct rational *value,
                                struct expression_numbers *numbers)
{
    if (span.bytes > EXPRESSION_BYTES_MAX) {
        return "the expression is too long";
    }
    struct parser parser = {span.text, span.bytes, 0, 0, numbers, NULL};
    numbers->count = 0;
    if (!parse_sum(&parser, value)) {
        return parser.problem;
    }
    skip_spaces(&parser);
    return parser.at == parser.bytes ? NULL : "the expression cannot be parsed";
}
