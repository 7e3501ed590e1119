/* `foresight bench tokenizer`: how fast one thread turns text into ids: a file's, or made text that
 * looks like English or like program code. Documents end at the first line end after so many bytes,
 * as a data set would hand them over; medians over whole passes of the text. */
#include "app/app.h"
#include "app/bench.h"
#include "app/bench_machine.h"

#include "core/clock.h"
#include "core/log.h"
#include "kernels/device.h"
#include "model/tokenizer.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { TEXT_BYTES = 10000000, TEXT_BYTES_MAX = 1 << 30, TEXT_RUNS = 5, TEXT_DOCUMENT = 4096 };
enum { TEXT_WORDS = 30000 };

struct tokenizer_bench {
    const char *folder, *file, *kind; /* borrowed from argv; file NULL: made text of `kind` */
    int64_t bytes, document, runs;
    bool json;
    struct tokenizer *tokenizer;
    char *text; /* [bytes] */
    struct token_buffer ids;
};

/* --- made text ----------------------------------------------------------------------------------
 */

struct maker {
    uint64_t state;
    char *text;
    size_t used, size;
};

static uint32_t maker_below(struct maker *m, uint32_t bound)
{
    m->state = m->state * 6364136223846793005ULL + 1442695040888963407ULL;
    return (uint32_t)((m->state >> 33) % bound);
}

static void maker_put(struct maker *m, const char *piece)
{
    for (; *piece != '\0' && m->used < m->size; piece++) {
        m->text[m->used++] = *piece;
    }
}

/* Words by rank, common ones first: spelled from the rank's digits in syllables, so that the rarer
 * is the longer. */
static void maker_word(struct maker *m)
{
    static const char *const syllables[] = {
        "the", "in",   "re",  "con",  "ing", "er",  "ter", "al",  "ed",  "es",  "tion",
        "com", "ment", "de",  "en",   "ty",  "ver", "is",  "or",  "ex",  "ple", "un",
        "to",  "an",   "pro", "ment", "per", "st",  "man", "ble", "ful", "di"};
    uint32_t rank = maker_below(m, TEXT_WORDS);
    rank = maker_below(m, rank + 1); /* twice: low ranks are many times likelier */
    rank = maker_below(m, rank + 1);
    do {
        maker_put(m, syllables[rank % 32]);
        rank /= 32;
    } while (rank > 0);
}

static void maker_sentence(struct maker *m)
{
    uint32_t words = 4 + maker_below(m, 20);
    maker_put(m, "The ");
    for (uint32_t i = 0; i < words; i++) {
        maker_word(m);
        maker_put(m, maker_below(m, 12) == 0 ? ", " : (i + 1 < words ? " " : ""));
    }
    maker_put(m, maker_below(m, 6) == 0 ? ".\n" : ". ");
}

static void maker_statement(struct maker *m)
{
    static const char *const openings[] = {"    return ", "    if (",          "        ",
                                           "    int ",    "}\n\nstatic void ", "    // "};
    static const char *const middles[] = {" = ", "(", " + ", "->", "[", ", ", " == ", "_"};
    char number[16];
    maker_put(m, openings[maker_below(m, 6)]);
    for (uint32_t i = 0, parts = 2 + maker_below(m, 5); i < parts; i++) {
        maker_word(m);
        maker_put(m, middles[maker_below(m, 8)]);
    }
    snprintf(number, sizeof number, "%u);\n", maker_below(m, 1000));
    maker_put(m, number);
}

static rl_status make_text(struct tokenizer_bench *b)
{
    bool code = strcmp(b->kind, "code") == 0;
    if (!code && strcmp(b->kind, "english") != 0) {
        return rl_fail(RL_INVALID, "bench: --text %s: expected english or code", b->kind);
    }
    struct maker maker = {.state = 1, .text = malloc((size_t)b->bytes), .size = (size_t)b->bytes};
    if (maker.text == NULL) {
        return rl_fail(RL_NO_MEMORY, "bench: out of memory for the text");
    }
    while (maker.used < maker.size) {
        if (code) {
            maker_statement(&maker);
        } else {
            maker_sentence(&maker);
        }
    }
    b->text = maker.text;
    return RL_OK;
}

/* --- a file -------------------------------------------------------------------------------------
 */

static rl_status read_text(struct tokenizer_bench *b)
{
    struct stat info;
    FILE *file = fopen(b->file, "re");
    if (file == NULL || fstat(fileno(file), &info) != 0 || !S_ISREG(info.st_mode)) {
        if (file != NULL) {
            fclose(file);
        }
        return rl_fail(RL_IO, "%s: cannot be read", b->file);
    }
    b->bytes = (int64_t)info.st_size < b->bytes ? (int64_t)info.st_size : b->bytes;
    b->text = malloc((size_t)b->bytes + 1);
    size_t got = b->text != NULL ? fread(b->text, 1, (size_t)b->bytes, file) : 0;
    fclose(file);
    if (b->text == NULL || got != (size_t)b->bytes || got == 0) {
        return rl_fail(RL_IO, "%s: cannot be read, or is empty", b->file);
    }
    return RL_OK;
}

/* --- figures ------------------------------------------------------------------------------------
 */

static size_t document_end(const struct tokenizer_bench *b, size_t from)
{
    size_t bytes = (size_t)b->bytes;
    size_t least = from + (size_t)b->document;
    const char *line = least < bytes ? memchr(b->text + least, '\n', bytes - least) : NULL;
    return line != NULL ? (size_t)(line - b->text) + 1 : bytes;
}

/* The whole text once. */
static rl_status encode_all(struct tokenizer_bench *b, size_t *tokens, double *seconds)
{
    double begin = rl_clock_now_s(NULL);
    *tokens = 0;
    for (size_t from = 0; from < (size_t)b->bytes;) {
        size_t end = document_end(b, from);
        b->ids.count = 0;
        RL_TRY(tokenizer_encode(b->tokenizer, b->text + from, end - from, 0, &b->ids));
        *tokens += b->ids.count;
        from = end;
    }
    *seconds = rl_clock_now_s(NULL) - begin;
    return RL_OK;
}

static rl_status print_figures(const struct tokenizer_bench *b, size_t tokens, double *rates)
{
    double median = bench_median(rates, (size_t)b->runs);
    double best = rates[b->runs - 1]; /* sorted by now */
    const char *text = b->file != NULL ? b->file : b->kind;
    double per_byte = (double)tokens / (double)b->bytes;
    if (!b->json) {
        printf("%s, one thread: %s, %.1f MB in %zu tokens, medians of %lld passes\n"
               "%.1f MB/s, %.2f million tokens/s; best %.1f MB/s\n",
               device_cpu_name(), text, (double)b->bytes * 1e-6, tokens, (long long)b->runs,
               median * 1e-6, median * per_byte * 1e-6, best * 1e-6);
        return RL_OK;
    }
    json_t *out =
        json_pack("{s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:f, s:f, s:f}", "bench", "tokenizer", "cpu",
                  device_cpu_name(), "tokenizer", b->folder, "text", text, "bytes",
                  (json_int_t)b->bytes, "tokens", (json_int_t)tokens, "runs", (json_int_t)b->runs,
                  "mbytes_per_second", median * 1e-6, "best_mbytes_per_second", best * 1e-6,
                  "tokens_per_second", median * per_byte);
    bool written = out != NULL && json_dumpf(out, stdout, JSON_COMPACT) == 0;
    json_decref(out);
    return written && putchar('\n') != EOF ? RL_OK
                                           : rl_fail(RL_IO, "bench: cannot write the results");
}

/* The first pass only warms up. */
static rl_status run_passes(struct tokenizer_bench *b)
{
    double rates[BENCH_RUNS_MAX];
    size_t tokens = 0;
    for (int64_t i = -1; i < b->runs; i++) {
        double seconds;
        RL_TRY(encode_all(b, &tokens, &seconds));
        if (i >= 0) {
            rates[i] = (double)b->bytes / seconds;
        }
    }
    return print_figures(b, tokens, rates);
}

/* --- options ------------------------------------------------------------------------------------
 */

static rl_status read_options(struct tokenizer_bench *b, int *argc, char **argv)
{
    b->json = app_take_flag(argc, argv, "--json");
    RL_TRY(app_take_value(argc, argv, "--file", &b->file));
    RL_TRY(app_take_value(argc, argv, "--text", &b->kind));
    RL_TRY(bench_take_count(argc, argv, "--bytes", TEXT_BYTES_MAX, &b->bytes));
    RL_TRY(bench_take_count(argc, argv, "--document", TEXT_BYTES_MAX, &b->document));
    RL_TRY(bench_take_count(argc, argv, "--runs", BENCH_RUNS_MAX, &b->runs));
    if (*argc != 2) {
        return rl_fail(RL_INVALID, "usage: foresight bench tokenizer FOLDER [--file TEXT | --text "
                                   "english|code] [--bytes N] [--document N] [--runs N] [--json]");
    }
    b->folder = argv[1];
    return RL_OK;
}

int bench_tokenizer(int argc, char **argv)
{
    struct tokenizer_bench b = {
        .kind = "english", .bytes = TEXT_BYTES, .document = TEXT_DOCUMENT, .runs = TEXT_RUNS};
    int exit_code = APP_USAGE;
    rl_status status = RL_OK;
    RL_TRY_GOTO(read_options(&b, &argc, argv), status, out);
    exit_code = APP_FAILED;
    RL_TRY_GOTO(tokenizer_load(b.folder, &b.tokenizer), status, out);
    RL_TRY_GOTO(b.file != NULL ? read_text(&b) : make_text(&b), status, out);
    RL_TRY_GOTO(run_passes(&b), status, out);
    exit_code = APP_OK;
out:
    token_buffer_fini(&b.ids);
    free(b.text);
    tokenizer_destroy(b.tokenizer);
    return exit_code;
}
