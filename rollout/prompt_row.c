/* One row of a data set: see prompt_row.h. The only file of rollout that sees jansson.h. */
#include "rollout/prompt_row.h"

#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const prompt_fields[] = {"prompt", "question", "messages", "input"};

/* Where a ground truth may stand; a dot steps into an object. */
static const char *const gold_fields[] = {
    "answer", "solution", "ground_truth", "reward_model.ground_truth", "output", "target"};

static rl_status bad_row(char *problem, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static rl_status bad_row(char *problem, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(problem, PROMPT_PROBLEM_BYTES, format, args);
    va_end(args);
    return RL_INVALID;
}

static const char *type_name(const json_t *value)
{
    static const char *const names[] = {"an object", "an array", "a string", "an integer",
                                        "a real",    "true",     "false",    "null"};
    return names[json_typeof(value)];
}

/* The value of a field, NULL if it is missing or null. */
static json_t *field(const json_t *object, const char *name)
{
    json_t *value = json_object_get(object, name);
    return json_is_null(value) ? NULL : value;
}

static json_t *field_at(const json_t *row, const char *path)
{
    const char *dot = strchr(path, '.');
    if (dot == NULL) {
        return field(row, path);
    }
    char head[32];
    snprintf(head, sizeof(head), "%.*s", (int)(dot - path), path);
    return field(field(row, head), dot + 1);
}

/* --- ground truth -------------------------------------------------------------------------------
 */

/* The shortest decimal that reads back as the same double: 0.28 must not become
 * 0.28000000000000003. */
static char *real_text(double value)
{
    char text[40];
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(text, sizeof(text), "%.*g", digits, value);
        if (strtod(text, NULL) == value) {
            break;
        }
    }
    return strdup(text);
}

static char *value_text(const json_t *value)
{
    if (json_is_string(value)) {
        return strdup(json_string_value(value));
    }
    if (json_is_real(value)) {
        return real_text(json_real_value(value));
    }
    return json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(15));
}

static rl_status read_gold(const json_t *json, struct prompt_row *row, char *problem)
{
    const json_t *value = NULL;
    for (size_t i = 0; value == NULL && i < sizeof(gold_fields) / sizeof(gold_fields[0]); i++) {
        value = field_at(json, gold_fields[i]);
    }
    row->ground_truth = value != NULL ? value_text(value) : strdup("");
    if (row->ground_truth == NULL) {
        bad_row(problem, "no memory for the ground truth");
        return RL_NO_MEMORY;
    }
    return RL_OK;
}

/* --- messages ------------------------------------------------------------------------------------
 */

static rl_status optional_string(const json_t *message, const char *name, size_t index,
                                 const char **out, char *problem)
{
    const json_t *value = field(message, name);
    if (value != NULL && !json_is_string(value)) {
        return bad_row(problem, "message %zu: \"%s\" is %s; expected a string", index, name,
                       type_name(value));
    }
    *out = value != NULL ? json_string_value(value) : NULL;
    return RL_OK;
}

static rl_status read_tool_calls(const json_t *message, size_t index, struct chat_message *out,
                                 char *problem)
{
    const json_t *calls = field(message, "tool_calls");
    if (calls == NULL) {
        return RL_OK;
    }
    if (!json_is_array(calls)) {
        return bad_row(problem, "message %zu: \"tool_calls\" is %s; expected an array", index,
                       type_name(calls));
    }
    out->tool_calls_json = json_dumps(calls, JSON_COMPACT);
    if (out->tool_calls_json == NULL) {
        bad_row(problem, "no memory for the tool calls");
        return RL_NO_MEMORY;
    }
    return RL_OK;
}

static rl_status read_message(const json_t *message, size_t index, struct chat_message *out,
                              char *problem)
{
    if (!json_is_object(message)) {
        return bad_row(problem, "message %zu is %s; expected an object with role and content",
                       index, type_name(message));
    }
    RL_TRY(optional_string(message, "role", index, &out->role, problem));
    RL_TRY(optional_string(message, "content", index, &out->content, problem));
    RL_TRY(optional_string(message, "reasoning_content", index, &out->reasoning_content, problem));
    RL_TRY(read_tool_calls(message, index, out, problem));
    if (out->role == NULL) {
        return bad_row(problem, "message %zu has no \"role\"", index);
    }
    if (out->content == NULL && out->tool_calls_json == NULL) {
        return bad_row(problem, "message %zu has no \"content\"", index);
    }
    out->content = out->content != NULL ? out->content : "";
    return RL_OK;
}

static rl_status read_messages(const json_t *array, const char *name, struct prompt_row *row,
                               char *problem)
{
    size_t count = json_array_size(array);
    if (count == 0) {
        return bad_row(problem, "\"%s\" is an empty list of messages", name);
    }
    row->messages = calloc(count, sizeof(*row->messages));
    if (row->messages == NULL) {
        bad_row(problem, "no memory for %zu messages", count);
        return RL_NO_MEMORY;
    }
    row->message_count = count;
    for (size_t i = 0; i < count; i++) {
        RL_TRY(read_message(json_array_get(array, i), i, &row->messages[i], problem));
        if (strcmp(row->messages[i].role, "user") == 0) {
            row->text = row->messages[i].content;
        }
    }
    if (row->text == NULL) {
        return bad_row(problem, "\"%s\" has no message with role \"user\"", name);
    }
    if (strcmp(row->messages[count - 1].role, "assistant") == 0) {
        return bad_row(problem,
                       "the last message of \"%s\" has role \"assistant\"; a prompt must end with "
                       "the user's (or a tool's) turn",
                       name);
    }
    return RL_OK;
}

/* --- the row
 * --------------------------------------------------------------------------------------- */

static rl_status read_prompt(const json_t *json, struct prompt_row *row, char *problem)
{
    const char *name = NULL;
    const json_t *value = NULL;
    for (size_t i = 0; value == NULL && i < sizeof(prompt_fields) / sizeof(prompt_fields[0]); i++) {
        name = prompt_fields[i];
        value = field(json, name);
    }
    if (value == NULL) {
        return bad_row(problem,
                       "no prompt; expected one of the fields prompt, question, messages, input");
    }
    if (json_is_array(value)) {
        return read_messages(value, name, row, problem);
    }
    if (!json_is_string(value)) {
        return bad_row(problem, "\"%s\" is %s; expected a string or a list of messages", name,
                       type_name(value));
    }
    row->text = json_string_value(value);
    if (row->text[0] == '\0') {
        return bad_row(problem, "\"%s\" is empty", name);
    }
    return RL_OK;
}

static rl_status read_fields(const json_t *json, struct prompt_row *row, char *problem)
{
    if (!json_is_object(json)) {
        return bad_row(problem, "the row is %s; expected an object", type_name(json));
    }
    const json_t *source = field(json, "data_source");
    if (source != NULL && !json_is_string(source)) {
        return bad_row(problem, "\"data_source\" is %s; expected a string", type_name(source));
    }
    row->data_source = source != NULL ? json_string_value(source) : "";
    RL_TRY(read_prompt(json, row, problem));
    return read_gold(json, row, problem);
}

rl_status prompt_row_parse(const char *line, size_t bytes, struct prompt_row *row, char *problem)
{
    struct prompt_row parsed = {0};
    json_error_t error;
    json_t *json = json_loadb(line, bytes, JSON_REJECT_DUPLICATES, &error);
    if (json == NULL) {
        return bad_row(problem, "not valid JSON at byte %d: %s", error.position, error.text);
    }
    parsed.json = json;
    rl_status status = read_fields(json, &parsed, problem);
    if (status != RL_OK) {
        prompt_row_fini(&parsed);
        return status;
    }
    *row = parsed;
    return RL_OK;
}

void prompt_row_fini(struct prompt_row *row)
{
    for (size_t i = 0; i < row->message_count; i++) {
        free((char *)(uintptr_t)row->messages[i].tool_calls_json);
    }
    free(row->messages);
    free(row->ground_truth);
    json_decref(row->json);
    *row = (struct prompt_row){0};
}
