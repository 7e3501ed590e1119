/* See sft_data.h. */
#include "app/sft_data.h"

#include "core/log.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

struct reader {
    const struct session *session;
    struct chat_options chat;
    int32_t eos;
    int64_t max_length;
    struct sft_data *data;
    uint64_t capacity;
};

static rl_status add_example(struct reader *r, const int32_t *tokens, size_t count, size_t prompt)
{
    struct sft_data *data = r->data;
    if ((int64_t)count > r->max_length) {
        data->dropped++;
        return RL_OK;
    }
    if (data->count == r->capacity) {
        uint64_t capacity = r->capacity == 0 ? 1024 : 2 * r->capacity;
        struct sft_example *grown = realloc(data->examples, capacity * sizeof(*grown));
        if (grown == NULL) {
            return rl_fail(RL_NO_MEMORY, "sft: out of memory for %llu examples",
                           (unsigned long long)capacity);
        }
        data->examples = grown;
        r->capacity = capacity;
    }
    int32_t *copy = malloc(count * sizeof(int32_t));
    if (copy == NULL) {
        return rl_fail(RL_NO_MEMORY, "sft: out of memory");
    }
    memcpy(copy, tokens, count * sizeof(int32_t));
    data->examples[data->count++] = (struct sft_example){
        .tokens = copy, .count = (uint32_t)count, .prompt_count = (uint32_t)prompt};
    data->completion_tokens += count - prompt;
    return RL_OK;
}

static rl_status add_completion(struct reader *r, const struct prompt *prompt, const char *text)
{
    struct token_buffer ids = {0};
    unsigned flags = r->chat.trust_content ? 0 : TOKENIZER_PLAIN_TEXT;
    rl_status status = tokenizer_encode(r->session->tokenizer, text, strlen(text), flags, &ids);
    size_t count = prompt->token_count + ids.count + (r->eos >= 0);
    int32_t *tokens = status == RL_OK ? malloc(count * sizeof(int32_t)) : NULL;
    if (tokens != NULL) {
        memcpy(tokens, prompt->tokens, prompt->token_count * sizeof(int32_t));
        if (ids.count > 0) {
            memcpy(tokens + prompt->token_count, ids.ids, ids.count * sizeof(int32_t));
        }
        if (r->eos >= 0) {
            tokens[count - 1] = r->eos;
        }
        status = add_example(r, tokens, count, prompt->token_count);
    } else if (status == RL_OK) {
        status = rl_fail(RL_NO_MEMORY, "sft: out of memory");
    }
    free(tokens);
    token_buffer_fini(&ids);
    return status;
}

/* Encode all messages, and all but the answer with the assistant's header: the first must begin
 * with the second, and what follows is the completion. */
static rl_status encode_dialogue(struct reader *r, const struct chat_message *messages,
                                 size_t count, int64_t line)
{
    struct token_buffer whole = {0};
    struct token_buffer prompt = {0};
    struct chat_options options = r->chat;
    rl_status status =
        chat_encode(r->session->chat, r->session->tokenizer, messages, count, &options, &whole);
    options.add_generation_prompt = true;
    if (status == RL_OK) {
        status = chat_encode(r->session->chat, r->session->tokenizer, messages, count - 1, &options,
                             &prompt);
    }
    if (status == RL_OK && (prompt.count >= whole.count ||
                            memcmp(prompt.ids, whole.ids, prompt.count * sizeof(int32_t)) != 0)) {
        status = rl_fail(RL_INVALID,
                         "sft.data: line %lld: the chat template renders the answer so "
                         "that it cannot be told from the prompt",
                         (long long)line);
    }
    if (status == RL_OK) {
        status = add_example(r, whole.ids, whole.count, prompt.count);
    }
    token_buffer_fini(&whole);
    token_buffer_fini(&prompt);
    return status;
}

static rl_status add_messages(struct reader *r, const json_t *list, int64_t line)
{
    size_t count = json_array_size(list);
    struct chat_message *messages = calloc(count + 1, sizeof(*messages));
    bool sound = messages != NULL;
    if (messages == NULL) {
        return rl_fail(RL_NO_MEMORY, "sft: out of memory");
    }
    for (size_t i = 0; i < count; i++) {
        const json_t *entry = json_array_get(list, i);
        messages[i].role = json_string_value(json_object_get(entry, "role"));
        messages[i].content = json_string_value(json_object_get(entry, "content"));
        sound = sound && messages[i].role != NULL && messages[i].content != NULL;
    }
    sound = sound && count >= 2 && strcmp(messages[count - 1].role, "assistant") == 0;
    rl_status status = sound
                           ? encode_dialogue(r, messages, count, line)
                           : rl_fail(RL_INVALID,
                                     "sft.data: line %lld: messages must end with the assistant's, "
                                     "each with role and content",
                                     (long long)line);
    free(messages);
    return status;
}

static rl_status add_row(struct reader *r, const struct prompt *prompt)
{
    json_error_t error;
    json_t *row = json_loads(prompt->row_json, 0, &error);
    const char *completion = json_string_value(json_object_get(row, "completion"));
    const json_t *messages = json_object_get(row, "messages");
    rl_status status = RL_OK;
    if (completion != NULL) {
        status = add_completion(r, prompt, completion);
    } else if (json_is_array(messages) && r->session->chat != NULL) {
        status = add_messages(r, messages, prompt->line);
    } else {
        status = rl_fail(RL_INVALID,
                         "sft.data: line %lld has neither a `completion` string nor "
                         "`messages` for the chat template",
                         (long long)prompt->line);
    }
    json_decref(row);
    return status;
}

rl_status sft_data_load(const struct session *session, const char *paths, int64_t max_length,
                        struct sft_data *out)
{
    struct prompts *prompts = NULL;
    struct sft_data data = {0};
    const struct model_architecture *arch = &session->layout->arch;
    int32_t eos = tokenizer_eos_id(session->tokenizer);
    struct reader reader = {
        .session = session,
        .chat = {.enable_thinking = session->config->data.enable_thinking,
                 .trust_content =
                     session->config->data.special_tokens_in_text == CONFIG_SPECIAL_ALLOW},
        .eos = eos >= 0 ? eos : (arch->eos_count > 0 ? arch->eos_ids[0] : -1),
        .max_length = max_length,
        .data = &data};
    RL_TRY(prompts_load(paths, session->config, session->tokenizer, session->chat, &prompts));
    rl_status status = RL_OK;
    for (uint64_t i = 0; i < prompts_count(prompts) && status == RL_OK; i++) {
        status = add_row(&reader, prompts_at(prompts, i));
    }
    data.dropped += prompts_dropped(prompts);
    prompts_destroy(prompts);
    if (status == RL_OK && data.count == 0) {
        status = rl_fail(RL_INVALID, "%s: no demonstration fits %lld tokens", paths,
                         (long long)max_length);
    }
    if (status != RL_OK) {
        sft_data_fini(&data);
        return status;
    }
    *out = data;
    return RL_OK;
}

void sft_data_fini(struct sft_data *data)
{
    for (uint64_t i = 0; i < data->count; i++) {
        free((int32_t *)(uintptr_t)data->examples[i].tokens);
    }
    free(data->examples);
    *data = (struct sft_data){0};
}
