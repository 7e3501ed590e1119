/* Chat templates: messages to text, and to ids with or without trust in the messages' content. */
#ifndef FORESIGHT_MODEL_CHAT_H
#define FORESIGHT_MODEL_CHAT_H

#include "model/tokenizer.h"

#include <stdbool.h>

struct chat_template;

struct chat_message {
    const char *role;
    const char *content;
    const char *reasoning_content; /* NULL if none */
    const char *tool_calls_json;   /* JSON array or NULL */
};

struct chat_options {
    const char *tools_json;     /* JSON array or NULL */
    bool add_generation_prompt; /* end with the assistant's header */
    int enable_thinking;        /* -1: not passed to the template, else 0 or 1 */
    bool trust_content;         /* chat_encode: special tokens' spellings in contents are tokens */
};

/* Choose the template: `name` is "auto" (the tokenizer folder's own, if all of it is in the subset
 * of the language that we render exactly; *out NULL if the folder has none), "none" (*out = NULL),
 * or "chatml", "qwen2_5", "qwen3". Caller owns *out, which is immutable: any thread may render with
 * it. Errors: RL_UNSUPPORTED for a name or a construct that is not known: names data.chat_template.
 */
rl_status chat_template_create(const struct tokenizer *tokenizer, const char *name,
                               struct chat_template **out);

/* Takes NULL. */
void chat_template_destroy(struct chat_template *chat);

/* Render to text. Caller frees *text. Errors: RL_INVALID (a role the template refuses). */
rl_status chat_render(const struct chat_template *chat, const struct chat_message *messages,
                      size_t count, const struct chat_options *options, char **text);

/* Render and encode. options->trust_content: special tokens' spellings inside contents become the
 * tokens (what the library does with the rendered text); false: they stay ordinary text, and for
 * contents without such spellings the ids are the same as with true. Appends to `out`. */
rl_status chat_encode(const struct chat_template *chat, const struct tokenizer *tokenizer,
                      const struct chat_message *messages, size_t count,
                      const struct chat_options *options, struct token_buffer *out);

/* One JSON object {"messages": [...], "tools": [...] or null, "add_generation_prompt": bool,
 * "vars": {...}}: all members of messages reach the template, `vars` are further variables of it.
 * `text` (may be NULL) gets the rendering, caller frees, NUL-terminated, *text_bytes long without
 * the NUL; `out` (may be NULL) gets its ids appended, see chat_encode. Errors: RL_INVALID (broken
 * request, or the template refuses it), RL_TOO_LONG, RL_NO_MEMORY. */
struct chat_request {
    const char *json;
    size_t bytes;
    bool trust_content;
};
rl_status chat_request_run(const struct chat_template *chat, const struct tokenizer *tokenizer,
                           const struct chat_request *request, char **text, size_t *text_bytes,
                           struct token_buffer *out);

#endif
