/* Chat templates from the outside: choosing one, rendering messages with it, and turning the
 * rendering into ids with or without trust in what the messages say. The language is interpreted by
 * model/chat_*.c. Invariant: a template is immutable; each rendering has its own memory. */
#include "model/chat.h"

#include "core/log.h"
#include "model/chat_internal.h"

#include <stdlib.h>
#include <string.h>

enum { ROLE_COUNT = 4 };
static const char *const roles[ROLE_COUNT] = {"bos_token", "eos_token", "pad_token", "unk_token"};

struct chat_template {
    struct rl_arena *arena; /* of the tree */
    struct chat_node *root;
    const char *special[ROLE_COUNT]; /* in the arena; NULL where not set */
};

/* Written to give the same text as the models' own templates. */
static const char chatml_source[] =
    "{%- for message in messages -%}\n"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}";

/* What both Qwen templates share: a macro for the list of tools and for runs of tool results. */
#define QWEN_MACROS                                                                                \
    "{%- macro tool_list() -%}\n"                                                                  \
    "{{- '# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\n' "  \
    "'You are provided with function signatures within <tools></tools> XML tags:\\n<tools>' }}\n"  \
    "{%- for tool in tools -%}{{ '\\n' }}{{ tool | tojson }}{%- endfor -%}\n"                      \
    "{{- '\\n</tools>\\n\\nFor each function call, return a json object with function name and '"  \
    "'arguments within <tool_call></tool_call> XML tags:\\n<tool_call>\\n{\"name\": "              \
    "<function-name>, \"arguments\": <args-json-object>}\\n</tool_call><|im_end|>\\n' }}\n"        \
    "{%- endmacro -%}\n"                                                                           \
    "{%- macro tool_result(content, opens, closes) -%}\n"                                          \
    "{{- '<|im_start|>user' if opens else '' }}\n"                                                 \
    "{{- '\\n<tool_response>\\n' ~ content ~ '\\n</tool_response>' }}\n"                           \
    "{{- '<|im_end|>\\n' if closes else '' }}\n"                                                   \
    "{%- endmacro -%}\n"

#define QWEN_TOOL_TURN                                                                             \
    "{%- elif message.role == 'tool' -%}\n"                                                        \
    "{{- tool_result(message.content,\n"                                                           \
    "    loop.first or loop.previtem.role != 'tool',\n"                                            \
    "    loop.last or loop.nextitem.role != 'tool') }}\n"

static const char qwen2_5_source[] = QWEN_MACROS
    "{%- set standard = 'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.' "
    "-%}\n"
    "{%- set system = messages[0].content if messages[0].role == 'system' else standard -%}\n"
    "{{- '<|im_start|>system\\n' + system }}\n"
    "{{- '\\n\\n' + tool_list() if tools else '<|im_end|>\\n' }}\n"
    "{%- for message in messages -%}\n"
    "{%- if message.role == 'user' or (message.role == 'system' and not loop.first)\n"
    "    or (message.role == 'assistant' and not message.tool_calls) -%}\n"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}\n"
    "{%- elif message.role == 'assistant' -%}\n"
    "{{- '<|im_start|>assistant' }}\n"
    "{{- '\\n' + message.content if message.content else '' }}\n"
    "{%- for call in message.tool_calls -%}\n"
    "{%- set call = call.function if call.function is defined else call -%}\n"
    "{{- '\\n<tool_call>\\n{\"name\": \"' }}{{ call.name }}{{ '\", \"arguments\": ' }}\n"
    "{{- call.arguments | tojson }}{{ '}\\n</tool_call>' }}\n"
    "{%- endfor -%}\n"
    "{{- '<|im_end|>\\n' }}\n" QWEN_TOOL_TURN "{%- endif -%}\n"
    "{%- endfor -%}\n"
    "{{- '<|im_start|>assistant\\n' if add_generation_prompt else '' }}";

static const char qwen3_source[] = QWEN_MACROS
    "{%- set leads = messages[0].role == 'system' -%}\n"
    "{%- if tools -%}\n"
    "{{- '<|im_start|>system\\n' }}{{ messages[0].content + '\\n\\n' if leads else '' }}\n"
    "{{- tool_list() }}\n"
    "{%- elif leads -%}\n"
    "{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}\n"
    "{%- endif -%}\n"
    "{%- set last = namespace(query=messages | length - 1, found=false) -%}\n"
    "{%- for message in messages[::-1] -%}\n"
    "{%- if not last.found and message.role == 'user'\n"
    "    and not (message.content.startswith('<tool_response>')\n"
    "    and message.content.endswith('</tool_response>')) -%}\n"
    "{%- set last.found = true -%}{%- set last.query = loop.revindex0 -%}\n"
    "{%- endif -%}\n"
    "{%- endfor -%}\n"
    "{%- for message in messages -%}\n"
    "{%- if message.role == 'user' or (message.role == 'system' and not loop.first) -%}\n"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}\n"
    "{%- elif message.role == 'assistant' -%}\n"
    "{%- set content = message.content -%}{%- set thought = '' -%}\n"
    "{%- if message.reasoning_content is defined and message.reasoning_content is not none -%}\n"
    "{%- set thought = message.reasoning_content -%}\n"
    "{%- elif '</think>' in content -%}\n"
    "{%- set parts = content.split('</think>') -%}\n"
    "{%- set content = parts[-1].lstrip('\\n') -%}\n"
    "{%- set thought = parts[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') -%}\n"
    "{%- endif -%}\n"
    "{{- '<|im_start|>assistant\\n' }}\n"
    "{%- if loop.index0 > last.query and (loop.last or thought) -%}\n"
    "{{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}\n"
    "{%- else -%}{{- content }}{%- endif -%}\n"
    "{%- for call in message.tool_calls or [] -%}\n"
    "{{- '\\n' if content or not loop.first else '' }}\n"
    "{%- set call = call.function if call.function else call -%}\n"
    "{{- '<tool_call>\\n{\"name\": \"' }}{{ call.name }}{{ '\", \"arguments\": ' }}\n"
    "{{- call.arguments if call.arguments is string else call.arguments | tojson }}\n"
    "{{- '}\\n</tool_call>' }}\n"
    "{%- endfor -%}\n"
    "{{- '<|im_end|>\\n' }}\n" QWEN_TOOL_TURN "{%- endif -%}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}\n"
    "{{- '<|im_start|>assistant\\n' }}\n"
    "{{- '<think>\\n\\n</think>\\n\\n' if enable_thinking is defined and enable_thinking is false\n"
    "    else '' }}\n"
    "{%- endif -%}";

static const struct {
    const char *name;
    const char *source;
} builtins[] = {{"chatml", chatml_source}, {"qwen2_5", qwen2_5_source}, {"qwen3", qwen3_source}};

/* ---- creating ---- */

void chat_template_destroy(struct chat_template *chat)
{
    if (chat == NULL) {
        return;
    }
    rl_arena_destroy(chat->arena);
    free(chat);
}

static rl_status template_specials(struct chat_template *chat, const struct tokenizer *tokenizer)
{
    for (int i = 0; i < ROLE_COUNT; i++) {
        const char *text = tokenizer_special_text(tokenizer, roles[i]);
        void *copy;
        if (text != NULL) {
            RL_TRY(rl_arena_alloc(chat->arena, strlen(text) + 1, 1, &copy));
            memcpy(copy, text, strlen(text) + 1);
            chat->special[i] = copy;
        }
    }
    return RL_OK;
}

static rl_status template_parse(struct chat_template *chat, const char *source)
{
    struct chat_tokens tokens = {0};
    size_t bytes = strlen(source);
    if (bytes > CHAT_SOURCE_LIMIT) {
        return rl_fail(RL_UNSUPPORTED,
                       "chat template: longer than %d bytes; name another in "
                       "data.chat_template",
                       CHAT_SOURCE_LIMIT);
    }
    rl_status status = chat_lex(source, bytes, chat->arena, &tokens);
    if (status == RL_OK) {
        struct chat_parser parser = {.arena = chat->arena,
                                     .first = tokens.items,
                                     .token = tokens.items,
                                     .where = "chat template"};
        status = chat_parse(&parser, &chat->root);
    }
    free(tokens.items);
    return status;
}

static rl_status template_source(const struct tokenizer *tokenizer, const char *name,
                                 const char **source)
{
    *source = NULL;
    if (strcmp(name, "none") == 0) {
        return RL_OK;
    }
    if (strcmp(name, "auto") == 0) {
        *source = tokenizer_chat_template(tokenizer);
        return RL_OK;
    }
    for (size_t i = 0; i < sizeof(builtins) / sizeof(builtins[0]); i++) {
        if (strcmp(name, builtins[i].name) == 0) {
            *source = builtins[i].source;
            return RL_OK;
        }
    }
    return rl_fail(RL_UNSUPPORTED,
                   "data.chat_template: \"%.60s\": expected auto, none, chatml, qwen2_5 or qwen3",
                   name);
}

rl_status chat_template_create(const struct tokenizer *tokenizer, const char *name,
                               struct chat_template **out)
{
    const char *source;
    RL_TRY(template_source(tokenizer, name, &source));
    if (source == NULL) {
        *out = NULL;
        return RL_OK;
    }
    struct chat_template *chat = calloc(1, sizeof(*chat));
    if (chat == NULL) {
        return rl_fail(RL_NO_MEMORY, "chat template: no memory");
    }
    rl_status status = rl_arena_create("chat template", CHAT_TREE_BYTES, &chat->arena);
    if (status == RL_OK) {
        status = template_specials(chat, tokenizer);
    }
    if (status == RL_OK) {
        status = template_parse(chat, source);
    }
    if (status != RL_OK) {
        chat_template_destroy(chat);
        return status;
    }
    *out = chat;
    return RL_OK;
}

/* ---- rendering ---- */

/* The variables of one rendering, as JSON. */
struct chat_input {
    const json_t *messages;
    const json_t *tools; /* NULL or null: none */
    const json_t *vars;  /* NULL: none */
    bool add_generation_prompt;
};

static rl_status define(struct chat_run *run, const char *name, struct chat_value value)
{
    return chat_dict_put(run, &run->scope->names, name, value);
}

static rl_status define_json(struct chat_run *run, const char *name, const json_t *json)
{
    struct chat_value value = chat_none();
    if (json != NULL) {
        RL_TRY(chat_from_json(run, json, 0, &value));
    }
    return define(run, name, value);
}

static rl_status define_all(const struct chat_template *chat, struct chat_run *run,
                            const struct chat_input *input)
{
    const char *name;
    json_t *value;
    RL_TRY(define_json(run, "messages", input->messages));
    RL_TRY(define_json(run, "tools", input->tools));
    RL_TRY(define(run, "documents", chat_none()));
    RL_TRY(define(run, "add_generation_prompt", chat_bool(input->add_generation_prompt)));
    for (int i = 0; i < ROLE_COUNT; i++) {
        if (chat->special[i] != NULL) {
            RL_TRY(define(run, roles[i], chat_literal(chat->special[i])));
        }
    }
    json_object_foreach((json_t *)input->vars, name, value)
    {
        RL_TRY(define_json(run, name, value));
    }
    return RL_OK;
}

/* Render into `out`, which is marked: TOK_MARK_PLAIN where a byte came from the input. */
static rl_status render(const struct chat_template *chat, const struct chat_input *input,
                        struct tok_text *out)
{
    struct chat_scope scope = {0};
    struct chat_run run = {.scope = &scope, .out = out, .line = 1};
    RL_TRY(rl_arena_create("chat rendering", CHAT_RUN_BYTES, &run.arena));
    rl_status status = define_all(chat, &run, input);
    if (status == RL_OK) {
        status = chat_run_statements(&run, chat->root);
    }
    rl_arena_destroy(run.arena);
    return status;
}

static rl_status encode(const struct tokenizer *tokenizer, const struct tok_text *text,
                        bool trust_content, struct token_buffer *out)
{
    const char *data = text->bytes > 0 ? text->data : "";
    const unsigned char *plain = text->bytes > 0 ? text->mark : NULL;
    return tokenizer_encode_masked(tokenizer, data, text->bytes, trust_content ? NULL : plain, 0,
                                   out);
}

static rl_status release_text(struct tok_text *text, char **out, size_t *bytes)
{
    RL_TRY(tok_text_append(text, "", 1, 0));
    *out = text->data;
    *bytes = text->bytes - 1;
    text->data = NULL;
    return RL_OK;
}

/* Where the outcome goes; NULL: not wanted. */
struct chat_result {
    char **text;
    size_t *bytes;
    struct token_buffer *ids;
};

static rl_status deliver(const struct tokenizer *tokenizer, struct tok_text *rendered,
                         bool trust_content, const struct chat_result *result)
{
    if (result->ids != NULL) {
        RL_TRY(encode(tokenizer, rendered, trust_content, result->ids));
    }
    return result->text != NULL ? release_text(rendered, result->text, result->bytes) : RL_OK;
}

static rl_status input_run(const struct chat_template *chat, const struct tokenizer *tokenizer,
                           const struct chat_input *input, bool trust_content,
                           const struct chat_result *result)
{
    struct tok_text rendered = {.marked = true};
    rl_status status = render(chat, input, &rendered);
    if (status == RL_OK) {
        status = deliver(tokenizer, &rendered, trust_content, result);
    }
    tok_text_fini(&rendered);
    return status;
}

/* ---- messages as structs ---- */

/* Text that need not be UTF-8 as a JSON string; NULL without memory. */
static json_t *lossy_string(const char *data)
{
    struct tok_text text = {0};
    json_t *value = NULL;
    if (tok_text_append_lossy(&text, data, strlen(data)) == RL_OK) {
        value = json_stringn(text.data != NULL ? text.data : "", text.bytes);
    }
    tok_text_fini(&text);
    return value;
}

static rl_status set_member(json_t *object, const char *name, json_t *value)
{
    if (value == NULL || json_object_set_new(object, name, value) != 0) {
        return rl_fail(RL_NO_MEMORY, "chat: no memory for a message");
    }
    return RL_OK;
}

static rl_status parse_list(const char *text, const char *what, json_t **out)
{
    json_error_t error;
    json_t *list = json_loads(text, JSON_ALLOW_NUL, &error);
    if (list == NULL || !json_is_array(list)) {
        json_decref(list);
        return rl_fail(RL_INVALID, "chat: %s is not a JSON array: %s", what,
                       list == NULL ? error.text : "another type");
    }
    *out = list;
    return RL_OK;
}

static rl_status message_fill(const struct chat_message *message, json_t *object)
{
    json_t *calls = NULL;
    RL_TRY(set_member(object, "role", lossy_string(message->role)));
    RL_TRY(set_member(object, "content",
                      message->content != NULL ? lossy_string(message->content) : json_null()));
    if (message->reasoning_content != NULL) {
        RL_TRY(set_member(object, "reasoning_content", lossy_string(message->reasoning_content)));
    }
    if (message->tool_calls_json == NULL) {
        return RL_OK;
    }
    RL_TRY(parse_list(message->tool_calls_json, "tool_calls_json", &calls));
    return set_member(object, "tool_calls", calls);
}

static rl_status messages_fill(const struct chat_message *messages, size_t count, json_t *list)
{
    for (size_t i = 0; i < count; i++) {
        json_t *object = json_object();
        if (object == NULL || json_array_append_new(list, object) != 0) {
            return rl_fail(RL_NO_MEMORY, "chat: no memory for %zu messages", count);
        }
        RL_TRY(message_fill(&messages[i], object));
    }
    return RL_OK;
}

/* Everything of a call as one object: {"messages", "tools", "vars"}. Caller releases *out. */
static rl_status call_fill(const struct chat_message *messages, size_t count,
                           const struct chat_options *options, json_t *root)
{
    json_t *tools = json_null();
    RL_TRY(set_member(root, "messages", json_array()));
    RL_TRY(messages_fill(messages, count, json_object_get(root, "messages")));
    if (options->tools_json != NULL) {
        RL_TRY(parse_list(options->tools_json, "tools_json", &tools));
    }
    RL_TRY(set_member(root, "tools", tools));
    RL_TRY(set_member(root, "vars", json_object()));
    if (options->enable_thinking < 0) {
        return RL_OK;
    }
    return set_member(json_object_get(root, "vars"), "enable_thinking",
                      json_boolean(options->enable_thinking != 0));
}

struct chat_call_input {
    const struct chat_message *messages;
    size_t count;
    const struct chat_options *options;
    bool trust_content;
};

static rl_status call_run(const struct chat_template *chat, const struct tokenizer *tokenizer,
                          const struct chat_call_input *call, const struct chat_result *result)
{
    json_t *root = json_object();
    if (root == NULL) {
        return rl_fail(RL_NO_MEMORY, "chat: no memory");
    }
    rl_status status = call_fill(call->messages, call->count, call->options, root);
    if (status == RL_OK) {
        struct chat_input input = {.messages = json_object_get(root, "messages"),
                                   .tools = json_object_get(root, "tools"),
                                   .vars = json_object_get(root, "vars"),
                                   .add_generation_prompt = call->options->add_generation_prompt};
        status = input_run(chat, tokenizer, &input, call->trust_content, result);
    }
    json_decref(root);
    return status;
}

rl_status chat_render(const struct chat_template *chat, const struct chat_message *messages,
                      size_t count, const struct chat_options *options, char **text)
{
    size_t bytes;
    struct chat_call_input call = {messages, count, options, true};
    struct chat_result result = {.text = text, .bytes = &bytes};
    return call_run(chat, NULL, &call, &result);
}

rl_status chat_encode(const struct chat_template *chat, const struct tokenizer *tokenizer,
                      const struct chat_message *messages, size_t count,
                      const struct chat_options *options, struct token_buffer *out)
{
    struct chat_call_input call = {messages, count, options, options->trust_content};
    struct chat_result result = {.ids = out};
    return call_run(chat, tokenizer, &call, &result);
}

/* ---- requests as JSON ---- */

static rl_status request_input(const json_t *root, struct chat_input *input)
{
    const json_t *prompt = json_object_get(root, "add_generation_prompt");
    const json_t *vars = json_object_get(root, "vars");
    input->messages = json_object_get(root, "messages");
    input->tools = json_object_get(root, "tools");
    input->vars = json_is_null(vars) ? NULL : vars;
    input->add_generation_prompt = json_is_true(prompt);
    if (!json_is_array(input->messages)) {
        return rl_fail(RL_INVALID, "chat: messages: expected an array");
    }
    if (input->tools != NULL && !json_is_null(input->tools) && !json_is_array(input->tools)) {
        return rl_fail(RL_INVALID, "chat: tools: expected an array or null");
    }
    if (input->vars != NULL && !json_is_object(input->vars)) {
        return rl_fail(RL_INVALID, "chat: vars: expected an object or null");
    }
    if (prompt != NULL && !json_is_boolean(prompt) && !json_is_null(prompt)) {
        return rl_fail(RL_INVALID, "chat: add_generation_prompt: expected true or false");
    }
    return RL_OK;
}

rl_status chat_request_run(const struct chat_template *chat, const struct tokenizer *tokenizer,
                           const struct chat_request *request, char **text, size_t *text_bytes,
                           struct token_buffer *out)
{
    json_error_t error;
    struct chat_input input;
    struct chat_result result = {text, text_bytes, out};
    json_t *root = json_loadb(request->json, request->bytes, JSON_ALLOW_NUL, &error);
    if (root == NULL) {
        return rl_fail(RL_INVALID, "chat: not JSON, at byte %d: %s", error.position, error.text);
    }
    rl_status status = request_input(root, &input);
    if (status == RL_OK) {
        status = input_run(chat, tokenizer, &input, request->trust_content, &result);
    }
    json_decref(root);
    return status;
}
