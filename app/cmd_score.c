/* `foresight score MODEL`: what a model thinks of given tokens. JSON lines in, {"ids": [...]} or
 * {"text": "..."}; JSON lines out, {"logprob": [...], "entropy": [...]}: one entry for each token
 * from the second on, since nothing precedes the first. Long sequences are fed in pieces over a KV
 * cache, which changes no bit. */
#include "app/app.h"
#include "app/commands.h"
#include "app/model_open.h"

#include "core/clock.h"
#include "core/log.h"
#include "core/text.h"
#include "kernels/device.h"
#include "model/kv_cache.h"
#include "model/tokenizer.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PIECE_TOKENS = 512, LINE_BYTES_MAX = 64 << 20, THREADS_MAX = 256 };

struct score_options {
    const char *dir;
    float temperature;
    int threads;
    int32_t max_length;
    bool json;
};

struct scorer {
    const char *dir;
    struct app_model model;
    struct tokenizer *tokenizer; /* loaded when the first text comes */
    struct model_workspace *workspace;
    struct model_kv kv;
    int32_t *pages; /* [kv.page_count] 0, 1, 2, ... */
    struct token_buffer ids;
    float *logprob, *entropy; /* [longest] */
    int64_t capacity;         /* tokens that kv, logprob and entropy hold */
    float inv_temperature;
    int64_t line, tokens;
    double logprob_sum;
};

static rl_status parse_number(const char *flag, const char *text, double min, double max,
                              double *out)
{
    char *end = NULL;
    errno = 0;
    double value = strtod(text, &end);
    if (end == text || *end != '\0' || errno != 0 || !(value >= min && value <= max)) {
        return rl_fail(RL_INVALID, "%s %s: must be a number in [%g, %g]", flag, text, min, max);
    }
    *out = value;
    return RL_OK;
}

static rl_status parse_options(int argc, char **argv, struct score_options *options)
{
    const char *temperature = "1";
    const char *threads = NULL;
    const char *length = "0";
    double value = 0.0;
    options->json = app_take_flag(&argc, argv, "--json");
    RL_TRY(app_take_value(&argc, argv, "--temperature", &temperature));
    RL_TRY(app_take_value(&argc, argv, "--threads", &threads));
    RL_TRY(app_take_value(&argc, argv, "--max-length", &length));
    RL_TRY(parse_number("--temperature", temperature, 1e-3, 1e3, &value));
    options->temperature = (float)value;
    RL_TRY(parse_number("--max-length", length, 0, 1 << 24, &value));
    options->max_length = (int32_t)value;
    value = device_cpu_count();
    if (threads != NULL) {
        RL_TRY(parse_number("--threads", threads, 1, THREADS_MAX, &value));
    }
    options->threads = (int)value;
    if (argc != 2 || argv[1][0] == '-') {
        return rl_fail(RL_INVALID, "usage: foresight score MODEL [--temperature T] [--threads N] "
                                   "[--max-length N] [--json] < LINES");
    }
    options->dir = argv[1];
    return RL_OK;
}

static rl_status scorer_open(const struct score_options *options, struct scorer *scorer)
{
    scorer->dir = options->dir;
    scorer->inv_temperature = 1.0F / options->temperature;
    RL_TRY(app_model_open(options->dir, options->threads, options->max_length, &scorer->model));
    return model_workspace_create(scorer->model.layout, PIECE_TOKENS, MODEL_KEEP_NOTHING,
                                  &scorer->workspace);
}

static void release_capacity(struct scorer *scorer)
{
    model_kv_fini(&scorer->kv);
    free(scorer->pages);
    device_free(scorer->logprob);
    device_free(scorer->entropy);
    scorer->pages = NULL;
    scorer->logprob = NULL;
    scorer->entropy = NULL;
    scorer->capacity = 0;
}

static void scorer_close(struct scorer *scorer)
{
    release_capacity(scorer);
    token_buffer_fini(&scorer->ids);
    model_workspace_destroy(scorer->workspace);
    tokenizer_destroy(scorer->tokenizer);
    app_model_close(&scorer->model);
}

/* Room for a sequence of `tokens`. */
static rl_status reserve(struct scorer *scorer, int64_t tokens)
{
    if (tokens <= scorer->capacity) {
        return RL_OK;
    }
    void *floats = NULL;
    int64_t capacity = tokens < 2 * scorer->capacity ? 2 * scorer->capacity : tokens;
    release_capacity(scorer);
    int32_t pages = model_pages_for_tokens(capacity);
    RL_TRY(model_kv_create(scorer->model.layout, pages, &scorer->kv));
    RL_TRY(device_alloc((size_t)capacity * sizeof(float), "log-probs", &floats));
    scorer->logprob = floats;
    RL_TRY(device_alloc((size_t)capacity * sizeof(float), "entropies", &floats));
    scorer->entropy = floats;
    scorer->pages = malloc((size_t)pages * sizeof *scorer->pages);
    if (scorer->pages == NULL) {
        return rl_fail(RL_NO_MEMORY, "no memory for %d KV pages", pages);
    }
    for (int32_t i = 0; i < pages; i++) {
        scorer->pages[i] = i;
    }
    scorer->capacity = capacity;
    return RL_OK;
}

/* Tokens first .. first + count - 1; `targets` of them have a successor to score. */
static void score_piece(struct scorer *scorer, int64_t first, int64_t count, int64_t targets)
{
    int32_t positions[PIECE_TOKENS];
    int32_t rows[PIECE_TOKENS];
    for (int32_t i = 0; i < (int32_t)count; i++) {
        positions[i] = (int32_t)first + i;
        rows[i] = i;
    }
    const int32_t segment_start[2] = {0, (int32_t)count};
    const int32_t first_position = (int32_t)first;
    const int32_t *page_table = scorer->pages;
    struct kernel_segments segments = {1, segment_start, &first_position, &page_table, NULL};
    struct model_batch batch = {count, scorer->ids.ids + first, positions, &segments};
    const float *hidden = NULL;
    model_forward(&scorer->model.context, scorer->model.image, &scorer->kv, &batch,
                  scorer->workspace, &hidden);
    model_head_forward(&scorer->model.context, scorer->model.image, scorer->workspace,
                       &(struct model_head_args){rows, scorer->ids.ids + first + 1, targets,
                                                 scorer->inv_temperature, scorer->logprob + first,
                                                 scorer->entropy + first});
}

static rl_status score_ids(struct scorer *scorer)
{
    int64_t count = (int64_t)scorer->ids.count;
    if (count < 1 || count > scorer->model.layout->rope_positions) {
        return rl_fail(RL_INVALID, "line %lld: %lld tokens, must be 1 to %d (see --max-length)",
                       (long long)scorer->line, (long long)count,
                       scorer->model.layout->rope_positions);
    }
    for (int64_t i = 0; i < count; i++) {
        if (scorer->ids.ids[i] < 0 || scorer->ids.ids[i] >= scorer->model.layout->arch.vocab) {
            return rl_fail(RL_INVALID, "line %lld: ids[%lld] is %d, must be in [0, %d)",
                           (long long)scorer->line, (long long)i, scorer->ids.ids[i],
                           scorer->model.layout->arch.vocab);
        }
    }
    RL_TRY(reserve(scorer, count));
    for (int64_t first = 0; first < count - 1; first += PIECE_TOKENS) {
        int64_t left = count - first;
        int64_t piece = left < PIECE_TOKENS ? left : PIECE_TOKENS;
        score_piece(scorer, first, piece, piece < left ? piece : piece - 1);
    }
    for (int64_t i = 0; i < count - 1; i++) {
        scorer->logprob_sum += (double)scorer->logprob[i];
    }
    scorer->tokens += count - 1;
    return RL_OK;
}

static rl_status take_ids(struct scorer *scorer, const json_t *list)
{
    size_t count = json_array_size(list);
    if (count > scorer->ids.capacity) {
        int32_t *grown = realloc(scorer->ids.ids, count * sizeof *grown);
        if (grown == NULL) {
            return rl_fail(RL_NO_MEMORY, "line %lld: no memory for %zu ids",
                           (long long)scorer->line, count);
        }
        scorer->ids.ids = grown;
        scorer->ids.capacity = count;
    }
    for (size_t i = 0; i < count; i++) {
        const json_t *id = json_array_get(list, i);
        json_int_t value = json_integer_value(id);
        if (!json_is_integer(id) || value < 0 || value > INT32_MAX) {
            return rl_fail(RL_INVALID, "line %lld: ids[%zu] must be an integer >= 0",
                           (long long)scorer->line, i);
        }
        scorer->ids.ids[i] = (int32_t)value;
    }
    scorer->ids.count = count;
    return RL_OK;
}

static rl_status take_text(struct scorer *scorer, const json_t *text)
{
    if (scorer->tokenizer == NULL) {
        RL_TRY(tokenizer_load(scorer->dir, &scorer->tokenizer));
    }
    return tokenizer_encode(scorer->tokenizer, json_string_value(text), json_string_length(text),
                            TOKENIZER_ADD_SPECIAL, &scorer->ids);
}

static rl_status take_line(struct scorer *scorer, const struct rl_text *line)
{
    json_error_t error;
    json_t *root = json_loadb(rl_text_str(line), line->bytes, JSON_REJECT_DUPLICATES, &error);
    const json_t *ids = json_object_get(root, "ids");
    const json_t *text = json_object_get(root, "text");
    rl_status status = RL_OK;
    scorer->ids.count = 0;
    if (root == NULL) {
        status = rl_fail(RL_INVALID, "line %lld: not valid JSON: %s", (long long)scorer->line,
                         error.text);
    } else if (json_is_array(ids) && text == NULL) {
        status = take_ids(scorer, ids);
    } else if (json_is_string(text) && ids == NULL) {
        status = take_text(scorer, text);
    } else {
        status = rl_fail(RL_INVALID,
                         "line %lld: must be an object with either \"ids\" (a list) or \"text\" "
                         "(a string)",
                         (long long)scorer->line);
    }
    json_decref(root);
    return status;
}

static void print_list(const char *name, const float *values, int64_t count)
{
    printf("\"%s\":[", name);
    for (int64_t i = 0; i < count; i++) {
        /* A model with huge weights may overflow; JSON has no word for it but null. */
        if (isfinite(values[i])) {
            printf("%s%.9g", i == 0 ? "" : ",", (double)values[i]);
        } else {
            printf("%snull", i == 0 ? "" : ",");
        }
    }
    printf("]");
}

static rl_status print_scores(const struct scorer *scorer)
{
    int64_t count = (int64_t)scorer->ids.count - 1;
    printf("{");
    print_list("logprob", scorer->logprob, count);
    printf(",");
    print_list("entropy", scorer->entropy, count);
    printf("}\n");
    if (ferror(stdout)) {
        return rl_fail(RL_IO, "cannot write the scores of line %lld: %s", (long long)scorer->line,
                       strerror(errno));
    }
    return RL_OK;
}

/* One line without its end; RL_END after the last. */
static rl_status read_line(FILE *in, struct rl_text *line)
{
    rl_text_clear(line);
    int c = getc_unlocked(in);
    if (c == EOF) {
        return ferror(in) ? rl_fail(RL_IO, "cannot read standard input") : RL_END;
    }
    for (; c != EOF && c != '\n'; c = getc_unlocked(in)) {
        RL_TRY(rl_text_append_byte(line, (char)c));
    }
    return RL_OK;
}

static bool is_blank(const struct rl_text *line)
{
    return strspn(rl_text_str(line), " \t\r") == line->bytes;
}

static rl_status score_lines(struct scorer *scorer, FILE *in)
{
    struct rl_text line;
    rl_text_init(&line, LINE_BYTES_MAX);
    rl_status status = RL_OK;
    while (status == RL_OK) {
        status = read_line(in, &line);
        scorer->line++;
        if (status != RL_OK || is_blank(&line)) {
            continue;
        }
        RL_TRY_GOTO(take_line(scorer, &line), status, done);
        RL_TRY_GOTO(score_ids(scorer), status, done);
        RL_TRY_GOTO(print_scores(scorer), status, done);
    }
done:
    rl_text_fini(&line);
    return status == RL_END ? RL_OK : status;
}

static void print_summary(const struct scorer *scorer, double seconds)
{
    double tokens = (double)scorer->tokens;
    double mean = scorer->tokens > 0 ? scorer->logprob_sum / tokens : 0.0;
    printf("{\"tokens\":%lld,\"mean_logprob\":%.9g,\"perplexity\":%.9g,\"seconds\":%.3f,"
           "\"tokens_per_second\":%.1f}\n",
           (long long)scorer->tokens, mean, exp(-mean), seconds,
           seconds > 0.0 ? tokens / seconds : 0.0);
}

int cmd_score(int argc, char **argv)
{
    struct score_options options = {0};
    struct scorer scorer = {0};
    if (parse_options(argc, argv, &options) != RL_OK) {
        return APP_USAGE;
    }
    rl_status status = scorer_open(&options, &scorer);
    if (status == RL_OK) {
        double start = rl_clock_now_s(NULL);
        status = score_lines(&scorer, stdin);
        if (status == RL_OK && options.json) {
            print_summary(&scorer, rl_clock_now_s(NULL) - start);
        }
    }
    scorer_close(&scorer);
    if (fflush(stdout) != 0 && status == RL_OK) {
        status = rl_fail(RL_IO, "cannot write to standard output: %s", strerror(errno));
    }
    return status == RL_OK ? APP_OK : APP_FAILED;
}
