/* See sft_data.h. */
#include "app/sft_data.h"

#include "core/log.h"
#include "core/text.h"
#include "rollout/prompt_encoder.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

static const size_t file_limit_bytes = (size_t)1 << 36;

struct reader {
    const struct session *session;
    struct chat_options chat;
    int32_t eos;
    int64_t max_length;
    struct prompt_encoder *encoder;
    const char *path; /* where we are, for messages */
    int64_t line;
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
        .tokens = copy, .count = (uint32_t)count, .prompt_count = (uint32_t)prompt, .weight = 1.0F};
    data->completion_tokens += count - prompt;
    return RL_OK;
}

static rl_status add_completion(struct reader *r, const struct token_buffer *prompt,
                                const char *text)
{
    struct token_buffer ids = {0};
    unsigned flags = r->chat.trust_content ? 0 : TOKENIZER_PLAIN_TEXT;
    rl_status status = tokenizer_encode(r->session->tokenizer, text, strlen(text), flags, &ids);
    size_t count = prompt->count + ids.count + (r->eos >= 0);
    int32_t *tokens = status == RL_OK ? malloc(count * sizeof(int32_t)) : NULL;
    if (tokens != NULL) {
        memcpy(tokens, prompt->ids, prompt->count * sizeof(int32_t));
        if (ids.count > 0) {
            memcpy(tokens + prompt->count, ids.ids, ids.count * sizeof(int32_t));
        }
        if (r->eos >= 0) {
            tokens[count - 1] = r->eos;
        }
        status = add_example(r, tokens, count, prompt->count);
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
                                 size_t count)
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
                         "%s:%lld: the chat template renders the answer so "
                         "that it cannot be told from the prompt",
                         r->path, (long long)r->line);
    }
    if (status == RL_OK) {
        status = add_example(r, whole.ids, whole.count, prompt.count);
    }
    token_buffer_fini(&whole);
    token_buffer_fini(&prompt);
    return status;
}

static rl_status add_messages(struct reader *r, const json_t *list)
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
    rl_status status = sound ? encode_dialogue(r, messages, count)
                             : rl_fail(RL_INVALID,
                                       "%s:%lld: messages must end with the assistant's, each with "
                                       "role and content",
                                       r->path, (long long)r->line);
    free(messages);
    return status;
}

/* The row's prompt as training data has it, then its completion. */
static rl_status add_prompted(struct reader *r, const char *line, size_t bytes,
                              const char *completion)
{
    struct prompt_row row = {0};
    struct token_buffer ids = {0};
    char problem[PROMPT_PROBLEM_BYTES] = "";
    rl_status status = prompt_row_parse(line, bytes, &row, problem);
    if (status == RL_INVALID) {
        rl_log(RL_LOG_ERROR, "%s:%lld: %s", r->path, (long long)r->line, problem);
    }
    if (status == RL_OK && row.messages != NULL && !prompt_encoder_takes_messages(r->encoder)) {
        status = rl_fail(RL_INVALID,
                         "%s:%lld: the prompt is a list of messages, but there is no chat "
                         "template (data.chat_template)",
                         r->path, (long long)r->line);
    }
    if (status == RL_OK) {
        status = prompt_encoder_run(r->encoder, &row, &ids);
    }
    if (status == RL_OK) {
        status = add_completion(r, &ids, completion);
    }
    token_buffer_fini(&ids);
    prompt_row_fini(&row);
    return status;
}

static rl_status add_line(struct reader *r, const char *line, size_t bytes)
{
    json_error_t error;
    if (strspn(line, " \t\r") >= bytes) {
        return RL_OK;
    }
    json_t *row = json_loadb(line, bytes, JSON_REJECT_DUPLICATES, &error);
    const char *completion = json_string_value(json_object_get(row, "completion"));
    const json_t *messages = json_object_get(row, "messages");
    rl_status status = RL_OK;
    if (row == NULL) {
        status = rl_fail(RL_INVALID, "%s:%lld: not JSON, at byte %d: %s", r->path,
                         (long long)r->line, error.position, error.text);
    } else if (completion != NULL) {
        status = add_prompted(r, line, bytes, completion);
    } else if (json_is_array(messages) && r->session->chat != NULL) {
        status = add_messages(r, messages);
    } else {
        status = rl_fail(RL_INVALID,
                         "%s:%lld: neither a `completion` string nor `messages` for a "
                         "chat template",
                         r->path, (long long)r->line);
    }
    json_decref(row);
    if (status == RL_INVALID && r->session->config->data.bad_rows == CONFIG_BAD_ROWS_SKIP) {
        r->data->dropped++;
        return RL_OK;
    }
    return status;
}

static rl_status add_file(struct reader *r, const char *path)
{
    char *text = NULL;
    size_t bytes = 0;
    rl_status status = rl_file_read(path, file_limit_bytes, &text, &bytes);
    r->path = path;
    r->line = 0;
    for (size_t at = 0; status == RL_OK && at < bytes;) {
        const char *end = memchr(text + at, '\n', bytes - at);
        size_t length = end != NULL ? (size_t)(end - text) - at : bytes - at;
        r->line++;
        text[at + length] = '\0'; /* in place of the newline, or the NUL behind the file */
        status = add_line(r, text + at, length);
        at += length + 1;
    }
    free(text);
    return status;
}

/* Files of a comma-separated list, in its order. */
static rl_status add_files(struct reader *r, const char *paths)
{
    rl_status status = RL_OK;
    while (*paths != '\0' && status == RL_OK) {
        size_t bytes = strcspn(paths, ",");
        char *path = strndup(paths, bytes);
        if (path == NULL) {
            return rl_fail(RL_NO_MEMORY, "sft: out of memory");
        }
        status = bytes > 0 ? add_file(r, path) : RL_OK;
        free(path);
        paths += bytes + (paths[bytes] == ',');
    }
    return status;
}

rl_status sft_data_load(const struct session *session, const char *paths, int64_t max_length,
                        struct sft_data *out)
{
    const struct rl_config *config = session->config;
    const struct model_architecture *arch = &session->layout->arch;
    struct sft_data data = {0};
    int32_t eos = tokenizer_eos_id(session->tokenizer);
    struct reader reader = {
        .session = session,
        .chat = {.enable_thinking = config->data.enable_thinking,
                 .trust_content = config->data.special_tokens_in_text == CONFIG_SPECIAL_ALLOW},
        .eos = eos >= 0 ? eos : (arch->eos_count > 0 ? arch->eos_ids[0] : -1),
        .max_length = max_length,
        .data = &data};
    RL_TRY(prompt_encoder_create(config, session->tokenizer, session->chat, &reader.encoder));
    rl_status status = add_files(&reader, paths);
    prompt_encoder_destroy(reader.encoder);
    if (status == RL_OK && data.count == 0) {
        status = rl_fail(RL_INVALID, "%s: no demonstration of at most %lld tokens", paths,
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
