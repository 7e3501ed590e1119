/* Private to model/chat*.c: a small interpreter for the template language of chat templates (the
 * subset of Jinja that they use, with the settings of the `transformers` library). Source ->
 * tokens -> tree (checked whole: unknown constructs are refused at load) -> text with, for each
 * byte, whether it came from the caller's data. */
#ifndef FORESIGHT_MODEL_CHAT_INTERNAL_H
#define FORESIGHT_MODEL_CHAT_INTERNAL_H

#include "core/arena.h"
#include "model/chat.h"
#include "model/tokenizer_internal.h"

enum {
    CHAT_SOURCE_LIMIT = 1 << 20,      /* bytes of a template */
    CHAT_DEPTH_LIMIT = 100,           /* nesting of expressions, blocks and macro calls */
    CHAT_STEP_LIMIT = 5 * 1000 * 1000 /* evaluations of one rendering */
};
#define CHAT_TREE_BYTES ((size_t)256 << 20)
#define CHAT_RUN_BYTES ((size_t)1 << 30)
#define CHAT_OUTPUT_BYTES ((size_t)64 << 20)

/* ---- values (chat_value.c, chat_print.c) ---- */

/* CHAT_FUNCTION with CHAT_OPAQUE is a bound method that nobody calls: defined and true. */
enum { CHAT_OPAQUE = -1 };

enum chat_kind {
    CHAT_UNDEFINED,
    CHAT_NONE,
    CHAT_BOOL,
    CHAT_INT,
    CHAT_REAL,
    CHAT_STRING,
    CHAT_LIST,
    CHAT_DICT,
    CHAT_MACRO,
    CHAT_FUNCTION
};

/* Bytes with where they came from: taint[i] non-zero for the caller's data; NULL: all template. */
struct chat_string {
    const char *data;
    const unsigned char *taint;
    size_t bytes;
};

struct chat_value {
    enum chat_kind kind;
    union {
        bool truth;
        int64_t integer;
        double real;
        struct chat_string string;
        struct chat_list *list;
        struct chat_dict *dict;
        const struct chat_macro *macro;
        int function;
    } as;
};

struct chat_list {
    struct chat_value *items; /* [count] */
    size_t count;
    size_t capacity;
    bool tuple;
};

struct chat_entry {
    struct chat_value key;
    struct chat_value value;
};

struct chat_dict {
    struct chat_entry *entries; /* [count] in order of insertion */
    size_t count;
    size_t capacity;
    bool is_namespace; /* members may be assigned */
    bool is_loop;      /* not a mapping: attributes only */
};

struct chat_node;

/* Variables of a scope; looked up outwards. */
struct chat_scope {
    struct chat_dict names;
    struct chat_scope *outer;
};

struct chat_macro {
    const struct chat_node *node;
    struct chat_scope *scope; /* where it was defined */
};

/* One rendering. */
struct chat_run {
    struct rl_arena *arena;
    struct chat_scope *scope;
    struct tok_text *out; /* marked; TOK_MARK_PLAIN is the taint */
    size_t steps;
    int depth;
    int line;     /* of the statement being run, for errors */
    bool broken;  /* {% break %} */
    bool skipped; /* {% continue %} */
};

struct chat_value chat_none(void);
struct chat_value chat_undefined(void);
struct chat_value chat_bool(bool truth);
struct chat_value chat_int(int64_t integer);
struct chat_value chat_real(double real);

/* A string that borrows NUL-terminated `text` (untainted). */
struct chat_value chat_literal(const char *text);

/* Slice of a string. */
struct chat_value chat_slice(const struct chat_string *string, size_t start, size_t end);

/* Copy a text with its marks into the arena. */
rl_status chat_from_text(struct chat_run *run, const struct tok_text *text, struct chat_value *out);

/* Append a string and its taint. */
rl_status chat_append(struct tok_text *text, const struct chat_string *string);

rl_status chat_list_new(struct chat_run *run, struct chat_value *out);
rl_status chat_list_push(struct chat_run *run, struct chat_list *list, struct chat_value item);
rl_status chat_dict_new(struct chat_run *run, struct chat_value *out);
rl_status chat_dict_set(struct chat_run *run, struct chat_dict *dict, struct chat_value key,
                        struct chat_value value);
rl_status chat_dict_put(struct chat_run *run, struct chat_dict *dict, const char *key,
                        struct chat_value value);
/* NULL if absent. */
const struct chat_value *chat_dict_get(const struct chat_dict *dict, const struct chat_value *key);
const struct chat_value *chat_dict_find(const struct chat_dict *dict, const char *key);

/* JSON as a value, every string tainted. */
rl_status chat_from_json(struct chat_run *run, const json_t *json, int depth,
                         struct chat_value *out);

bool chat_truth(const struct chat_value *value);
bool chat_equal(const struct chat_value *a, const struct chat_value *b);
bool chat_is_string(const struct chat_value *value, const char *text);
const char *chat_kind_name(const struct chat_value *value);

/* Characters (not bytes) of a string. */
size_t chat_string_length(const struct chat_string *string);

/* Python's str(), repr() and json.dumps(ensure_ascii=False). `indent` < 0: on one line. */
rl_status chat_print(struct chat_run *run, const struct chat_value *value, struct tok_text *out);
rl_status chat_print_repr(struct chat_run *run, const struct chat_value *value, int depth,
                          struct tok_text *out);
rl_status chat_print_json(struct chat_run *run, const struct chat_value *value, int indent,
                          int depth, struct tok_text *out);
rl_status chat_print_real(double real, struct tok_text *out);

/* ---- tokens (chat_lex.c) ---- */

enum chat_token_kind {
    CHAT_TOKEN_TEXT,
    CHAT_TOKEN_VARIABLE_BEGIN,
    CHAT_TOKEN_VARIABLE_END,
    CHAT_TOKEN_BLOCK_BEGIN,
    CHAT_TOKEN_BLOCK_END,
    CHAT_TOKEN_NAME,
    CHAT_TOKEN_STRING,
    CHAT_TOKEN_INT,
    CHAT_TOKEN_REAL,
    CHAT_TOKEN_OPERATOR,
    CHAT_TOKEN_EOF
};

struct chat_token {
    enum chat_token_kind kind;
    const char *data; /* NUL-terminated for names, strings and operators */
    size_t bytes;
    int64_t integer;
    double real;
    int line;
};

struct chat_tokens {
    struct chat_token *items;
    size_t count;
    size_t capacity;
};

/* Cut a template into tokens; strings live in the arena, items are the caller's to free. */
rl_status chat_lex(const char *source, size_t bytes, struct rl_arena *arena,
                   struct chat_tokens *out);

/* ---- tree (chat_parse.c, chat_parse_expression.c) ---- */

enum chat_node_kind {
    /* expressions */
    CHAT_NODE_CONST,
    CHAT_NODE_NAME,
    CHAT_NODE_ATTRIBUTE, /* a.name */
    CHAT_NODE_ITEM,      /* a[b] */
    CHAT_NODE_SLICE,     /* a[b:c:d], each may be NULL */
    CHAT_NODE_CALL,      /* a(list) */
    CHAT_NODE_METHOD,    /* a.name(list) */
    CHAT_NODE_FILTER,    /* a|name(list) */
    CHAT_NODE_TEST,      /* a is name(list) */
    CHAT_NODE_UNARY,     /* op a */
    CHAT_NODE_BINARY,    /* a op b */
    CHAT_NODE_COMPARE,   /* a (op b)...: list of unary nodes that hold op and operand */
    CHAT_NODE_AND,
    CHAT_NODE_OR,
    CHAT_NODE_CONDITION, /* b if a else c */
    CHAT_NODE_LIST,      /* [list] */
    CHAT_NODE_TUPLE,
    CHAT_NODE_DICT,    /* {list}: keys and values in turn */
    CHAT_NODE_KEYWORD, /* name=a, in arguments */
    /* statements */
    CHAT_NODE_TEXT,
    CHAT_NODE_OUTPUT, /* a */
    CHAT_NODE_IF,     /* a, list, orelse */
    CHAT_NODE_FOR,    /* targets b, over a, if c; list, orelse */
    CHAT_NODE_SET,    /* b = a, or b = the output of list */
    CHAT_NODE_MACRO,  /* name, arguments (names and keywords) in b->list; list */
    CHAT_NODE_BREAK,
    CHAT_NODE_CONTINUE,
    CHAT_NODE_BLOCK /* list */
};

enum chat_operator {
    CHAT_OP_ADD,
    CHAT_OP_SUBTRACT,
    CHAT_OP_MULTIPLY,
    CHAT_OP_DIVIDE,
    CHAT_OP_FLOOR_DIVIDE,
    CHAT_OP_REMAINDER,
    CHAT_OP_POWER,
    CHAT_OP_CONCATENATE,
    CHAT_OP_NOT,
    CHAT_OP_NEGATE,
    CHAT_OP_PLUS,
    CHAT_OP_EQUAL,
    CHAT_OP_UNEQUAL,
    CHAT_OP_LESS,
    CHAT_OP_LESS_EQUAL,
    CHAT_OP_GREATER,
    CHAT_OP_GREATER_EQUAL,
    CHAT_OP_IN,
    CHAT_OP_NOT_IN
};

struct chat_node {
    enum chat_node_kind kind;
    enum chat_operator op;
    int line;
    const char *name; /* NUL-terminated */
    int builtin;      /* filters, tests, methods: index into their table */
    struct chat_value value;
    struct chat_node *a;
    struct chat_node *b;
    struct chat_node *c;
    struct chat_node *d;
    struct chat_node *list;   /* first child */
    struct chat_node *orelse; /* first statement of the else branch */
    struct chat_node *next;   /* sibling */
};

struct chat_parser {
    struct rl_arena *arena;
    const struct chat_token *first;
    const struct chat_token *token; /* current */
    const char *where;              /* file or name of the template, for errors */
    int depth;
    int loops;
};

rl_status chat_parse(struct chat_parser *parser, struct chat_node **out);
rl_status chat_parse_expression(struct chat_parser *parser, struct chat_node **out);
/* An expression whose "if" belongs to the loop around it. */
rl_status chat_parse_iterable(struct chat_parser *parser, struct chat_node **out);
/* Comma-separated expressions are a tuple. `names`: only names, for targets. */
rl_status chat_parse_tuple(struct chat_parser *parser, bool names, struct chat_node **out);
/* "(a, b, c=d)", parser at the parenthesis; *out is the first of the list. */
rl_status chat_parse_arguments(struct chat_parser *parser, struct chat_node **out);
rl_status chat_parser_node(struct chat_parser *parser, enum chat_node_kind kind,
                           struct chat_node **out);
bool chat_parser_is(const struct chat_parser *parser, enum chat_token_kind kind, const char *text);
bool chat_parser_take(struct chat_parser *parser, enum chat_token_kind kind, const char *text);
rl_status chat_parser_expect(struct chat_parser *parser, enum chat_token_kind kind,
                             const char *text);
rl_status chat_parser_refuse(const struct chat_parser *parser, const char *what, const char *name);

/* ---- evaluation (chat_eval.c, chat_operators.c, chat_filters.c, chat_tests.c, chat_methods.c)
 * ---- */

/* Evaluated arguments of a call. */
struct chat_arguments {
    struct chat_value *values; /* [count], positional ones first */
    const char **names;        /* [count] NULL: positional */
    size_t count;
};

rl_status chat_eval(struct chat_run *run, const struct chat_node *node, struct chat_value *out);
rl_status chat_eval_arguments(struct chat_run *run, const struct chat_node *list,
                              struct chat_arguments *out);
rl_status chat_run_statements(struct chat_run *run, const struct chat_node *first);

/* Call a macro; the result is its output. */
rl_status chat_run_macro(struct chat_run *run, const struct chat_macro *macro,
                         const struct chat_arguments *arguments, struct chat_value *out);

/* Error of the template or its data, with the line. */
rl_status chat_error(const struct chat_run *run, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Argument by position or name; NULL if it was not given. */
const struct chat_value *chat_argument(const struct chat_arguments *arguments, size_t position,
                                       const char *name);

/* Fail if there are more positional arguments than `most` or names outside the list. */
rl_status chat_arguments_check(const struct chat_run *run, const struct chat_arguments *arguments,
                               size_t most, const char *names, const char *what);

rl_status chat_binary(struct chat_run *run, enum chat_operator op, const struct chat_value *a,
                      const struct chat_value *b, struct chat_value *out);
rl_status chat_compare(struct chat_run *run, enum chat_operator op, const struct chat_value *a,
                       const struct chat_value *b, bool *out);
rl_status chat_item(struct chat_run *run, const struct chat_value *of,
                    const struct chat_value *index, struct chat_value *out);
rl_status chat_slice_of(struct chat_run *run, const struct chat_value *of,
                        const struct chat_value bounds[3], struct chat_value *out);
rl_status chat_attribute(struct chat_run *run, const struct chat_value *of, const char *name,
                         struct chat_value *out);

/* The items that a for loop sees. */
rl_status chat_iterate(struct chat_run *run, const struct chat_value *over, struct chat_list **out);

/* Index of a builtin by name, -1 if there is none. */
int chat_filter_find(const char *name);
int chat_test_find(const char *name);
int chat_method_find(const char *name);
int chat_function_find(const char *name);

/* One call of a builtin; the subject is what it is applied to (NULL for functions). */
struct chat_call {
    const struct chat_value *subject;
    const struct chat_arguments *arguments;
};
rl_status chat_filter_call(struct chat_run *run, int filter, const struct chat_call *call,
                           struct chat_value *out);
rl_status chat_test_call(struct chat_run *run, int test, const struct chat_call *call, bool *out);
rl_status chat_method_call(struct chat_run *run, int method, const struct chat_call *call,
                           struct chat_value *out);
rl_status chat_function_call(struct chat_run *run, int function,
                             const struct chat_arguments *arguments, struct chat_value *out);

/* Python's str.strip family: `chars` NULL: white space. */
struct chat_value chat_strip(const struct chat_string *string, const struct chat_string *chars,
                             bool left, bool right);
rl_status chat_replace(struct chat_run *run, const struct chat_string *string,
                       const struct chat_string *old, const struct chat_string *fresh,
                       struct chat_value *out);
/* Offset of `wanted` in string at or after `from`; SIZE_MAX if it is not there. */
size_t chat_find(const struct chat_string *string, const struct chat_string *wanted, size_t from);
enum chat_case { CHAT_CASE_UPPER, CHAT_CASE_LOWER, CHAT_CASE_CAPITALIZE, CHAT_CASE_TITLE };
rl_status chat_recase(struct chat_run *run, const struct chat_string *string, enum chat_case wanted,
                      struct chat_value *out);

#endif
