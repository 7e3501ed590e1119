/* From a row to ids: see prompt_encoder.h. */
#include "rollout/prompt_encoder.h"

#include "core/log.h"
#include "core/text.h"

#include <stdlib.h>
#include <string.h>

static const char placeholder[] = "{prompt}";
enum { TEXT_LIMIT_BYTES = 64 << 20 };

struct prompt_encoder {
    const struct rl_config *config;
    const struct tokenizer *tokenizer;
    const struct chat_template *chat;
    const char *head; /* of the prompt template, NULL: there is none; not NUL-terminated */
    size_t head_bytes;
    const char *tail;
};

static rl_status split_template(const char *text, struct prompt_encoder *encoder)
{
    if (text[0] == '\0') {
        return RL_OK;
    }
    const char *at = strstr(text, placeholder);
    if (at == NULL || strstr(at + 1, placeholder) != NULL) {
        return rl_fail(RL_INVALID, "data.prompt_template: expected %s exactly once, in \"%s\"",
                       placeholder, text);
    }
    encoder->head = text;
    encoder->head_bytes = (size_t)(at - text);
    encoder->tail = at + strlen(placeholder);
    return RL_OK;
}

rl_status prompt_encoder_create(const struct rl_config *config, const struct tokenizer *tokenizer,
                                const struct chat_template *chat, struct prompt_encoder **out)
{
    struct prompt_encoder made = {.config = config, .tokenizer = tokenizer, .chat = chat};
    RL_TRY(split_template(config->data.prompt_template, &made));
    if (config->data.system_prompt[0] != '\0' && (made.head != NULL || chat == NULL)) {
        return rl_fail(RL_INVALID, "data.system_prompt needs a chat template; without one put the "
                                   "text into data.prompt_template");
    }
    struct prompt_encoder *encoder = malloc(sizeof(*encoder));
    if (encoder == NULL) {
        return rl_fail(RL_NO_MEMORY, "prompt encoder: %zu bytes", sizeof(*encoder));
    }
    *encoder = made;
    *out = encoder;
    return RL_OK;
}

void prompt_encoder_destroy(struct prompt_encoder *encoder)
{
    free(encoder);
}

static bool content_is_plain(const struct prompt_encoder *encoder)
{
    return encoder->config->data.special_tokens_in_text == CONFIG_SPECIAL_PLAIN;
}

/* --- prompt template -----------------------------------------------------------------------------
 */

/* The template's own text may name special tokens, the content may not, unless it is trusted. One
 * encoding of the whole, so that tokens merge over the seams as in any other text. */
static rl_status encode_template(const struct prompt_encoder *encoder, const char *content,
                                 struct token_buffer *ids)
{
    struct rl_text text;
    unsigned char *plain = NULL;
    rl_status status;
    rl_text_init(&text, TEXT_LIMIT_BYTES);
    RL_TRY_GOTO(rl_text_append(&text, encoder->head, encoder->head_bytes), status, done);
    RL_TRY_GOTO(rl_text_append_str(&text, content), status, done);
    RL_TRY_GOTO(rl_text_append_str(&text, encoder->tail), status, done);
    plain = calloc(text.bytes + 1, 1);
    if (plain == NULL) {
        status = rl_fail(RL_NO_MEMORY, "prompt of %zu bytes", text.bytes);
        goto done;
    }
    if (content_is_plain(encoder)) {
        memset(plain + encoder->head_bytes, 1, strlen(content));
    }
    status = tokenizer_encode_masked(encoder->tokenizer, rl_text_str(&text), text.bytes, plain,
                                     TOKENIZER_ADD_SPECIAL, ids);
done:
    free(plain);
    rl_text_fini(&text);
    return status;
}

/* --- chat template
 * --------------------------------------------------------------------------------- */

static bool has_system(const struct prompt_row *row)
{
    return row->message_count > 0 && strcmp(row->messages[0].role, "system") == 0;
}

/* Messages with the system prompt in front where it is wanted. Caller frees. */
static rl_status gather_messages(const struct prompt_encoder *encoder, const struct prompt_row *row,
                                 struct chat_message **out, size_t *count)
{
    const char *system = encoder->config->data.system_prompt;
    bool add_system = system[0] != '\0' && !has_system(row);
    size_t given = row->messages != NULL ? row->message_count : 1;
    struct chat_message *messages = calloc(given + 1, sizeof(*messages));
    if (messages == NULL) {
        return rl_fail(RL_NO_MEMORY, "%zu messages", given + 1);
    }
    size_t used = 0;
    if (add_system) {
        messages[used++] = (struct chat_message){.role = "system", .content = system};
    }
    if (row->messages != NULL) {
        memcpy(messages + used, row->messages, given * sizeof(*messages));
    } else {
        messages[used] = (struct chat_message){.role = "user", .content = row->text};
    }
    *out = messages;
    *count = used + given;
    return RL_OK;
}

static rl_status encode_chat(const struct prompt_encoder *encoder, const struct prompt_row *row,
                             struct token_buffer *ids)
{
    struct chat_message *messages = NULL;
    size_t count = 0;
    RL_TRY(gather_messages(encoder, row, &messages, &count));
    struct chat_options options = {.add_generation_prompt = true,
                                   .enable_thinking = encoder->config->data.enable_thinking,
                                   .trust_content = !content_is_plain(encoder)};
    rl_status status =
        chat_encode(encoder->chat, encoder->tokenizer, messages, count, &options, ids);
    free(messages);
    return status;
}

bool prompt_encoder_takes_messages(const struct prompt_encoder *encoder)
{
    return encoder->head != NULL || encoder->chat != NULL;
}

rl_status prompt_encoder_run(const struct prompt_encoder *encoder, const struct prompt_row *row,
                             struct token_buffer *ids)
{
    ids->count = 0;
    if (encoder->head != NULL) {
        return encode_template(encoder, row->text, ids);
    }
    if (encoder->chat != NULL) {
        return encode_chat(encoder, row, ids);
    }
    unsigned flags = TOKENIZER_ADD_SPECIAL | (content_is_plain(encoder) ? TOKENIZER_PLAIN_TEXT : 0);
    return tokenizer_encode(encoder->tokenizer, row->text, strlen(row->text), flags, ids);
}
