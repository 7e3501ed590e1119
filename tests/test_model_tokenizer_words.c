/* What makes encoding fast gives what the plain way gives: hand-written matchers against the
 * regular expressions, remembered words against merged ones, many threads against one. */
#include "tests/tokenizer_fixture.h"

#include "core/rng.h"
#include "model/tokenizer_internal.h"

#include <pthread.h>

static const char *const patterns[] = {TOK_PATTERN_GPT2, TOK_PATTERN_CL100K, TOK_PATTERN_QWEN2};
enum { PATTERNS = sizeof(patterns) / sizeof(patterns[0]) };

/* Both cut `text` at the same places. */
static void check_cuts(size_t pattern, struct tok_view text)
{
    struct tok_view source = {patterns[pattern], strlen(patterns[pattern])};
    struct tok_regex *regex;
    struct tok_matcher matcher;
    struct tok_match match;
    rl_status status;
    size_t at = 0;
    tok_scan_fn scan = tok_scan_find(source);
    ck_assert(scan != NULL);
    ck_assert_int_eq(tok_regex_create(source.data, source.bytes, "pattern", &regex), RL_OK);
    ck_assert_int_eq(tok_matcher_init(&matcher, regex, text), RL_OK);
    while ((status = tok_matcher_next(&matcher, &match)) == RL_OK) {
        ck_assert_uint_eq(match.start, at);
        size_t end = scan(text.data, at, text.bytes);
        ck_assert_msg(end == match.end, "pattern %zu: \"%.*s\" expected, \"%.*s\" found", pattern,
                      (int)(match.end - at), text.data + at, (int)(end - at), text.data + at);
        at = end;
    }
    ck_assert_int_eq(status, RL_END);
    ck_assert_uint_eq(at, text.bytes);
    tok_matcher_fini(&matcher);
    tok_regex_destroy(regex);
}

static void put(struct tok_text *text, uint32_t code)
{
    ck_assert_int_eq(tok_text_put(text, code, 0), RL_OK);
}

/* Characters around which the patterns decide, and now and then any other. */
static uint32_t random_character(struct rl_rng *rng)
{
    static const uint32_t known[] = {
        ' ',   ' ',    ' ',   '\n',   '\r',   '\t',   '\'',   '\'',   's',     'T',    'r',
        'E',   'l',    'L',   'v',    'm',    'D',    'x',    '7',    '0',     '!',    '-',
        '_',   '\0',   '\v',  0x7F,   0x85,   0xA0,   0xAA,   0xB2,   0xE9,    0x17F,  0x212A,
        0x301, 0x3000, 0x664, 0x2028, 0x200B, 0xFEFF, 0x4ECA, 0x2167, 0x1F600, 0x2019, 0x180E};
    if (rl_rng_next_below(rng, 12) > 0) {
        return known[rl_rng_next_below(rng, sizeof(known) / sizeof(known[0]))];
    }
    uint32_t code = (uint32_t)rl_rng_next_below(rng, 0x20000);
    return tok_unicode_category(code) == 0 || (code >= 0xD800 && code < 0xE000) ? 'a' : code;
}

static void random_text(struct rl_rng *rng, size_t count, struct tok_text *text)
{
    text->bytes = 0;
    for (size_t i = 0; i < count; i++) {
        put(text, random_character(rng));
    }
}

START_TEST(matchers_cut_random_texts_like_the_patterns)
{
    struct rl_rng rng = rl_rng_make(11, 0);
    struct tok_text text = {0};
    for (size_t i = 0; i < 1500; i++) {
        random_text(&rng, 1 + rl_rng_next_below(&rng, i % 10 == 0 ? 400 : 12), &text);
        check_cuts(i % PATTERNS, (struct tok_view){text.data, text.bytes});
    }
    tok_text_fini(&text);
}
END_TEST

START_TEST(matchers_know_every_character)
{
    struct tok_text text = {0};
    for (uint32_t code = 0; code < 0x110000; code++) {
        bool surrogate = code >= 0xD800 && code < 0xE000;
        bool private = code >= 0xF0000 && code % 97 != 0;
        if (surrogate || private || tok_unicode_category(code) == 0) {
            continue;
        }
        put(&text, code);
        put(&text, 'a');
        put(&text, code);
        put(&text, code % 2 == 0 ? '1' : ' ');
    }
    for (size_t i = 0; i < PATTERNS; i++) {
        check_cuts(i, (struct tok_view){text.data, text.bytes});
    }
    tok_text_fini(&text);
    ck_assert(tok_scan_find((struct tok_view){"\\s+", 3}) == NULL);
}
END_TEST

/* ---- whole tokenizers ---- */

/* Load a tokenizer.json, which is released. */
static struct tokenizer *load_json(json_t *json)
{
    char dir[64];
    struct tokenizer *tokenizer;
    char *file = json_dumps(json, 0);
    scratch_create(dir);
    scratch_write(dir, "tokenizer.json", file, strlen(file));
    ck_assert_int_eq(tokenizer_load(dir, &tokenizer), RL_OK);
    scratch_remove(dir);
    free(file);
    json_decref(json);
    return tokenizer;
}

struct steps {
    const char *behavior;
    bool invert;
    bool prefix_space;
    bool use_regex;
};

/* The small byte-level tokenizer with other steps; a pattern in a group is not recognised and goes
 * through the regular expressions. */
static struct tokenizer *load_steps(const struct steps *steps, const char *pattern, bool grouped)
{
    char text[400];
    json_error_t error;
    snprintf(text, sizeof(text), grouped ? "(?:%s)" : "%s", pattern);
    json_t *json = json_load_file(DATA_DIR "/byte_level/tokenizer.json", JSON_ALLOW_NUL, &error);
    json_t *list = json_pack("[{s:s,s:{s:s},s:b,s:s},{s:s,s:b,s:b,s:b}]", "type", "Split",
                             "pattern", "Regex", text, "invert", steps->invert, "behavior",
                             steps->behavior, "type", "ByteLevel", "add_prefix_space",
                             steps->prefix_space, "trim_offsets", 1, "use_regex", steps->use_regex);
    json_object_set_new(json, "pre_tokenizer",
                        json_pack("{s:s,s:o}", "type", "Sequence", "pretokenizers", list));
    return load_json(json);
}

static void check_same(const struct tokenizer *a, const struct tokenizer *b, struct tok_view text)
{
    struct token_buffer ids[2] = {{0}, {0}};
    ck_assert_int_eq(tokenizer_encode(a, text.data, text.bytes, 0, &ids[0]), RL_OK);
    ck_assert_int_eq(tokenizer_encode(b, text.data, text.bytes, 0, &ids[1]), RL_OK);
    ck_assert_uint_eq(ids[0].count, ids[1].count);
    if (ids[0].count > 0) {
        ck_assert_mem_eq(ids[0].ids, ids[1].ids, ids[0].count * sizeof(int32_t));
    }
    token_buffer_fini(&ids[0]);
    token_buffer_fini(&ids[1]);
}

static const struct steps step_kinds[] = {
    {"Isolated", false, false, false},      {"Removed", true, false, false},
    {"Isolated", false, true, false},       {"Isolated", false, false, true},
    {"Removed", true, true, true},          {"Removed", false, false, false},
    {"MergedWithNext", false, false, false}};

START_TEST(recognised_patterns_change_no_id)
{
    struct rl_rng rng = rl_rng_make(12, 0);
    struct tok_text text = {0};
    for (size_t k = 0; k < sizeof(step_kinds) / sizeof(step_kinds[0]); k++) {
        for (size_t p = 0; p < PATTERNS; p++) {
            struct tokenizer *fast = load_steps(&step_kinds[k], patterns[p], false);
            struct tokenizer *plain = load_steps(&step_kinds[k], patterns[p], true);
            for (int i = 0; i < 40; i++) {
                random_text(&rng, 1 + rl_rng_next_below(&rng, 60), &text);
                for (int bad = i % 4; bad > 0; bad--) { /* broken UTF-8 too */
                    text.data[rl_rng_next_below(&rng, text.bytes)] = (char)(0x7F + bad * 60);
                }
                check_same(fast, plain, (struct tok_view){text.data, text.bytes});
            }
            tokenizer_destroy(fast);
            tokenizer_destroy(plain);
        }
    }
    tok_text_fini(&text);
}
END_TEST

/* A megabyte of what the matchers run along or look back over. */
START_TEST(hostile_texts_give_the_same_ids)
{
    static const char *const units[] = {"a",  " ",   "\n ", " \n", "'", "1", "\xFF",
                                        "\0", "\t9", "!\r", "'s",  "=", "z "};
    char *text = malloc(1 << 20);
    struct tokenizer *fast = load_steps(&step_kinds[0], patterns[1], false);
    struct tokenizer *plain = load_steps(&step_kinds[0], patterns[1], true);
    for (size_t u = 0; u < sizeof(units) / sizeof(units[0]); u++) {
        size_t unit = units[u][0] == '\0' ? 1 : strlen(units[u]);
        size_t bytes = u < 2 ? 1 << 20 : 1 << 17;
        for (size_t i = 0; i < bytes; i++) {
            text[i] = units[u][i % unit];
        }
        text[bytes - 1] = 'b';
        /* the engine itself takes quadratic time over long runs of white space */
        check_same(fast, plain, (struct tok_view){text, u < 4 ? 3000 : bytes});
        struct token_buffer ids = {0};
        ck_assert_int_eq(tokenizer_encode(fast, text, bytes, 0, &ids), RL_OK);
        token_buffer_fini(&ids);
    }
    tokenizer_destroy(fast);
    tokenizer_destroy(plain);
    free(text);
}
END_TEST

/* ---- remembered words ---- */

/* The word without memory: spelled and merged. */
static void merge_plainly(const struct tokenizer *tokenizer, struct tok_view word,
                          struct token_buffer *out)
{
    struct tok_bpe_work work = {0};
    struct tok_text spelled = {0};
    out->count = 0;
    ck_assert_int_eq(tok_bytes_spell_view(&spelled, word), RL_OK);
    word = (struct tok_view){spelled.data, spelled.bytes};
    ck_assert_int_eq(tok_bpe_encode(&tokenizer->bpe, word, &work, out), RL_OK);
    tok_bpe_work_fini(&work);
    tok_text_fini(&spelled);
}

/* Words of 1 to 40 bytes, NULs and all, several times as many as can be remembered; half of them
 * come again. */
START_TEST(words_are_the_same_remembered_or_not)
{
    char word[40 + TOK_WORD_SLACK];
    struct tok_words words;
    struct token_buffer found = {0};
    struct token_buffer expected = {0};
    struct tokenizer *tokenizer = load_steps(&step_kinds[0], patterns[0], false);
    ck_assert_int_eq(tok_words_init(&words, &tokenizer->bpe, true), RL_OK);
    memset(word, 'Z', sizeof(word));
    for (uint64_t i = 0; i < 4 * TOK_WORD_SLOTS; i++) {
        struct rl_rng rng = rl_rng_make(13, i % 2 == 0 ? i : i / 2 % 3000);
        size_t bytes = 1 + rl_rng_next_below(&rng, 40);
        for (size_t k = 0; k < bytes; k++) {
            word[k] = "the andin\0\n\xC3"[rl_rng_next_below(&rng, 12)];
        }
        found.count = 0;
        ck_assert_int_eq(tok_words_encode(&words, (struct tok_view){word, bytes}, &found), RL_OK);
        merge_plainly(tokenizer, (struct tok_view){word, bytes}, &expected);
        ck_assert_uint_eq(found.count, expected.count);
        ck_assert_mem_eq(found.ids, expected.ids, found.count * sizeof(int32_t));
    }
    tok_words_fini(&words);
    tokenizer_destroy(tokenizer);
    token_buffer_fini(&found);
    token_buffer_fini(&expected);
}
END_TEST

/* ---- texts without a pre-tokenizer, cut where no merge reaches over ---- */

/* The small tokenizer with space marks, with or without the merges that reach over their start. */
static struct tokenizer *load_marks(bool reaching)
{
    json_error_t error;
    json_t *json = json_load_file(DATA_DIR "/metaspace/tokenizer.json", JSON_ALLOW_NUL, &error);
    json_t *model = json_object_get(json, "model");
    json_t *kept = json_array();
    size_t index;
    json_t *merge;
    json_array_foreach(json_object_get(model, "merges"), index, merge)
    {
        const char *left = json_string_value(json_array_get(merge, 0));
        const char *right = json_string_value(json_array_get(merge, 1));
        bool reaches = strncmp(right, TOK_SPACE_MARK, TOK_SPACE_MARK_BYTES) == 0 &&
                       strspn(left, TOK_SPACE_MARK) < strlen(left);
        if (reaching || !reaches) {
            json_array_append(kept, merge);
        }
    }
    json_object_set_new(model, "merges", kept);
    return load_json(json);
}

START_TEST(cuts_at_space_marks_change_no_id)
{
    static const uint32_t letters[] = {' ', ' ', 0x2581, 0x2581, 't', 'h', 'e',   'a',
                                       'n', 's', '\n',   '.',    'i', 'r', 0x4ECA};
    struct rl_rng rng = rl_rng_make(15, 0);
    struct tok_text text = {0};
    struct tokenizer *cut = load_marks(false);
    struct tokenizer *whole = load_marks(false);
    struct tokenizer *reaching = load_marks(true);
    ck_assert(cut->bpe.mark_cuts && !reaching->bpe.mark_cuts);
    whole->bpe.mark_cuts = false;
    for (int i = 0; i < 400; i++) {
        text.bytes = 0;
        for (uint64_t k = rl_rng_next_below(&rng, 80); k > 0; k--) {
            bool any = rl_rng_next_below(&rng, 20) == 0;
            put(&text, any ? random_character(&rng) : letters[rl_rng_next_below(&rng, 15)]);
        }
        check_same(cut, whole, (struct tok_view){text.data, text.bytes});
    }
    tok_text_fini(&text);
    tokenizer_destroy(cut);
    tokenizer_destroy(whole);
    tokenizer_destroy(reaching);
}
END_TEST

/* ---- threads ---- */

enum { THREADS = 4, TEXTS = 60 };

struct crowd {
    const struct tokenizer *tokenizer;
    struct tok_text texts[TEXTS];
    struct token_buffer expected[TEXTS];
};

static void *crowd_encode(void *argument)
{
    struct crowd *crowd = argument;
    struct token_buffer ids = {0};
    for (int i = 0; i < 10 * TEXTS; i++) {
        const struct tok_text *text = &crowd->texts[i % TEXTS];
        const struct token_buffer *expected = &crowd->expected[i % TEXTS];
        ids.count = 0;
        rl_status status = tokenizer_encode(crowd->tokenizer, text->data, text->bytes, 0, &ids);
        if (status != RL_OK || ids.count != expected->count ||
            memcmp(ids.ids, expected->ids, ids.count * sizeof(int32_t)) != 0) {
            token_buffer_fini(&ids);
            return crowd;
        }
    }
    token_buffer_fini(&ids);
    return NULL;
}

START_TEST(threads_share_a_tokenizer)
{
    static struct crowd crowd;
    pthread_t threads[THREADS];
    void *failed;
    struct rl_rng rng = rl_rng_make(14, 0);
    struct tokenizer *tokenizer = load_steps(&step_kinds[0], patterns[2], false);
    struct tokenizer *alone = load_steps(&step_kinds[0], patterns[2], true);
    crowd.tokenizer = tokenizer;
    for (int i = 0; i < TEXTS; i++) {
        random_text(&rng, 200, &crowd.texts[i]);
        ck_assert_int_eq(tokenizer_encode(alone, crowd.texts[i].data, crowd.texts[i].bytes, 0,
                                          &crowd.expected[i]),
                         RL_OK);
    }
    for (int t = 0; t < THREADS; t++) {
        ck_assert_int_eq(pthread_create(&threads[t], NULL, crowd_encode, &crowd), 0);
    }
    for (int t = 0; t < THREADS; t++) {
        pthread_join(threads[t], &failed);
        ck_assert_ptr_null(failed);
    }
    for (int i = 0; i < TEXTS; i++) {
        tok_text_fini(&crowd.texts[i]);
        token_buffer_fini(&crowd.expected[i]);
    }
    tokenizer_destroy(tokenizer);
    tokenizer_destroy(alone);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("model_tokenizer_words");
    TCase *tests = tcase_create("words");
    tcase_set_timeout(tests, 120);
    tcase_add_test(tests, matchers_cut_random_texts_like_the_patterns);
    tcase_add_test(tests, matchers_know_every_character);
    tcase_add_test(tests, recognised_patterns_change_no_id);
    tcase_add_test(tests, hostile_texts_give_the_same_ids);
    tcase_add_test(tests, words_are_the_same_remembered_or_not);
    tcase_add_test(tests, cuts_at_space_marks_change_no_id);
    tcase_add_test(tests, threads_share_a_tokenizer);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
