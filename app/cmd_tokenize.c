/* `foresight tokenize`: JSON lines in, JSON lines out. {"text": ...} -> {"ids": [...]}; with
 * --decode
 * {"ids": [...]} -> {"text": ...}; with --chat {"messages": [...]} -> {"rendered": ..., "ids":
 * ...}. Other members of a line are ignored. The first bad line ends the program, naming it. */
#include "app/app.h"
#include "app/commands.h"

#include "core/log.h"
#include "core/text.h"
#include "model/chat.h"
#include "model/tokenizer.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TOKENIZE_LINE_BYTES = 256 << 20 };

struct tokenize_options {
    const char *dir;
    const char *template_name;
    bool special;
    bool decode;
    bool chat;
    bool skip_special;
    bool plain;
};

struct tokenize_job {
    struct tokenize_options options;
    struct tokenizer *tokenizer;
    struct chat_template *chat;
    struct token_buffer ids;
    long long line;
};

static rl_status parse_options(int argc, char **argv, struct tokenize_options *options)
{
    options->template_name = "auto";
    RL_TRY(app_take_value(&argc, argv, "--tokenizer", &options->dir));
    RL_TRY(app_take_value(&argc, argv, "--chat-template", &options->template_name));
    options->special = app_take_flag(&argc, argv, "--special");
    options->decode = app_take_flag(&argc, argv, "--decode");
    options->chat = app_take_flag(&argc, argv, "--chat");
    options->skip_special = app_take_flag(&argc, argv, "--skip-special");
    options->plain = app_take_flag(&argc, argv, "--plain");
    if (argc > 1) {
        return rl_fail(RL_INVALID, "tokenize: unexpected \"%s\"", argv[1]);
    }
    if (options->dir == NULL) {
        return rl_fail(RL_INVALID, "tokenize: --tokenizer DIR is missing");
    }
    if (options->decode && options->chat) {
        return rl_fail(RL_INVALID, "tokenize: --decode and --chat exclude each other");
    }
    if (options->skip_special && !options->decode) {
        return rl_fail(RL_INVALID, "tokenize: --skip-special goes with --decode");
    }
    if (options->special && (options->decode || options->chat)) {
        return rl_fail(RL_INVALID, "tokenize: --special goes with texts only");
    }
    return RL_OK;
}

static rl_status bad_line(const struct tokenize_job *job, const char *what)
{
    return rl_fail(RL_INVALID, "line %lld: %s", job->line, what);
}

/* ---- output ---- */

static void print_ids(const struct token_buffer *ids)
{
    fputs("\"ids\":[", stdout);
    for (size_t i = 0; i < ids->count; i++) {
        printf(i > 0 ? ",%d" : "%d", ids->ids[i]);
    }
    fputs("]", stdout);
}

static rl_status print_text(const struct tokenize_job *job, const char *name, const char *text,
                            size_t bytes)
{
    json_t *value = json_stringn(text, bytes);
    char *printed = value != NULL ? json_dumps(value, JSON_ENCODE_ANY | JSON_ENSURE_ASCII) : NULL;
    json_decref(value);
    if (printed == NULL) {
        return rl_fail(RL_NO_MEMORY, "line %lld: no memory to print %zu bytes", job->line, bytes);
    }
    printf("\"%s\":%s", name, printed);
    free(printed);
    return RL_OK;
}

/* ---- the three kinds of line ---- */

static rl_status encode_line(struct tokenize_job *job, const json_t *root)
{
    const json_t *text = json_object_get(root, "text");
    unsigned flags = (job->options.special ? TOKENIZER_ADD_SPECIAL : 0U) |
                     (job->options.plain ? TOKENIZER_PLAIN_TEXT : 0U);
    if (!json_is_string(text)) {
        return bad_line(job, "expected an object with a string \"text\"");
    }
    RL_TRY(tokenizer_encode(job->tokenizer, json_string_value(text), json_string_length(text),
                            flags, &job->ids));
    fputs("{", stdout);
    print_ids(&job->ids);
    fputs("}\n", stdout);
    return RL_OK;
}

/* Ids that no tokenizer has (too large) are skipped by decoding like other unknown ones. */
static rl_status read_ids(struct tokenize_job *job, const json_t *list)
{
    size_t count = json_array_size(list);
    if (count > job->ids.capacity) {
        int32_t *grown = realloc(job->ids.ids, count * sizeof(*grown));
        if (grown == NULL) {
            return rl_fail(RL_NO_MEMORY, "line %lld: no memory for %zu ids", job->line, count);
        }
        job->ids.ids = grown;
        job->ids.capacity = count;
    }
    for (size_t i = 0; i < count; i++) {
        const json_t *item = json_array_get(list, i);
        json_int_t id = json_integer_value(item);
        if (!json_is_integer(item) || id < 0) {
            return bad_line(job, "\"ids\" must be whole numbers, none below 0");
        }
        job->ids.ids[i] = id > INT32_MAX ? INT32_MAX : (int32_t)id;
    }
    job->ids.count = count;
    return RL_OK;
}

static rl_status decode_line(struct tokenize_job *job, const json_t *root)
{
    const json_t *list = json_object_get(root, "ids");
    char *text = NULL;
    size_t bytes = 0;
    if (!json_is_array(list)) {
        return bad_line(job, "expected an object with a list \"ids\"");
    }
    RL_TRY(read_ids(job, list));
    RL_TRY(tokenizer_decode(job->tokenizer, job->ids.ids, job->ids.count, job->options.skip_special,
                            &text, &bytes));
    fputs("{", stdout);
    rl_status status = print_text(job, "text", text, bytes);
    fputs("}\n", stdout);
    free(text);
    return status;
}

static rl_status chat_line(struct tokenize_job *job, const struct rl_text *line)
{
    struct chat_request request = {rl_text_str(line), line->bytes, !job->options.plain};
    char *text = NULL;
    size_t bytes = 0;
    rl_status status =
        chat_request_run(job->chat, job->tokenizer, &request, &text, &bytes, &job->ids);
    if (status != RL_OK) {
        rl_log(RL_LOG_ERROR, "line %lld: cannot be rendered", job->line);
        return status;
    }
    fputs("{", stdout);
    status = print_text(job, "rendered", text, bytes);
    fputs(",", stdout);
    print_ids(&job->ids);
    fputs("}\n", stdout);
    free(text);
    return status;
}

static rl_status run_line(struct tokenize_job *job, const struct rl_text *line)
{
    json_error_t error;
    job->ids.count = 0;
    if (job->options.chat) {
        return chat_line(job, line);
    }
    json_t *root = json_loadb(rl_text_str(line), line->bytes, JSON_ALLOW_NUL, &error);
    if (root == NULL) {
        return rl_fail(RL_INVALID, "line %lld: not JSON, at byte %d: %s", job->line, error.position,
                       error.text);
    }
    rl_status status = job->options.decode ? decode_line(job, root) : encode_line(job, root);
    json_decref(root);
    return status;
}

/* ---- the loop ---- */

/* One line without its end; RL_END behind the last. */
static rl_status read_line(struct rl_text *line)
{
    rl_text_clear(line);
    int c = getc_unlocked(stdin);
    if (c == EOF) {
        return ferror(stdin) ? rl_fail(RL_IO, "cannot read standard input") : RL_END;
    }
    for (; c != EOF && c != '\n'; c = getc_unlocked(stdin)) {
        RL_TRY(rl_text_append_byte(line, (char)c));
    }
    return RL_OK;
}

static rl_status run_lines(struct tokenize_job *job, struct rl_text *line)
{
    rl_status status = RL_OK;
    while (status == RL_OK) {
        status = read_line(line);
        job->line++;
        if (status == RL_OK && strspn(rl_text_str(line), " \t\r") < line->bytes) {
            status = run_line(job, line);
        }
    }
    if (status == RL_END) {
        status = RL_OK;
    }
    if ((fflush(stdout) != 0 || ferror(stdout)) && status == RL_OK) {
        return rl_fail(RL_IO, "cannot write to standard output: %s", strerror(errno));
    }
    return status;
}

static rl_status open_tokenizer(struct tokenize_job *job)
{
    RL_TRY(tokenizer_load(job->options.dir, &job->tokenizer));
    if (!job->options.chat) {
        return RL_OK;
    }
    RL_TRY(chat_template_create(job->tokenizer, job->options.template_name, &job->chat));
    if (job->chat == NULL) {
        return rl_fail(RL_INVALID,
                       "%s: has no chat template; choose one: --chat-template chatml, qwen2_5 or "
                       "qwen3",
                       job->options.dir);
    }
    return RL_OK;
}

int cmd_tokenize(int argc, char **argv)
{
    struct tokenize_job job = {0};
    struct rl_text line;
    if (parse_options(argc, argv, &job.options) != RL_OK) {
        return APP_USAGE;
    }
    rl_text_init(&line, TOKENIZE_LINE_BYTES);
    rl_status status = open_tokenizer(&job);
    if (status == RL_OK) {
        status = run_lines(&job, &line);
    }
    rl_text_fini(&line);
    chat_template_destroy(job.chat);
    tokenizer_destroy(job.tokenizer);
    token_buffer_fini(&job.ids);
    return status == RL_OK ? APP_OK : APP_FAILED;
}
