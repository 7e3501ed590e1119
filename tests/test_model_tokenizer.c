/* The tokenizer against the reference library's answers: small tokenizers of every construction
 * with recorded answers, the larger ones where their vectors lie beside the project, hostile texts.
 */
#include "tests/tokenizer_fixture.h"

#include <time.h>

static void check_row(const struct tokenizer *tokenizer, const json_t *row, const char *where)
{
    static const char *const keys[2][2] = {{"ids", "ids_special"},
                                           {"decoded", "decoded_skip_special"}};
    const json_t *text = json_object_get(row, "text");
    const json_t *list = json_object_get(row, "ids");
    struct token_buffer ids = {0};
    for (unsigned special = 0; special < 2 && text != NULL; special++) {
        ids.count = 0;
        ck_assert_int_eq(tokenizer_encode(tokenizer, json_string_value(text),
                                          json_string_length(text), special, &ids),
                         RL_OK);
        ck_assert_msg(same_ids(&ids, json_object_get(row, keys[0][special])), "%s: %s of \"%s\"",
                      where, keys[0][special], json_string_value(text));
    }
    ids.count = 0;
    token_buffer_fini(&ids);
    size_t count = json_array_size(list);
    int32_t *values = calloc(count + 1, sizeof(*values));
    for (size_t i = 0; i < count; i++) {
        values[i] = (int32_t)json_integer_value(json_array_get(list, i));
    }
    for (int skip = 0; skip < 2; skip++) {
        const json_t *expected = json_object_get(row, keys[1][skip]);
        char *decoded;
        size_t bytes;
        ck_assert_int_eq(tokenizer_decode(tokenizer, values, count, skip == 1, &decoded, &bytes),
                         RL_OK);
        ck_assert_msg(bytes == json_string_length(expected) &&
                          memcmp(decoded, json_string_value(expected), bytes) == 0,
                      "%s: %s: found \"%s\", expected \"%s\"", where, keys[1][skip], decoded,
                      json_string_value(expected));
        ck_assert_int_eq(decoded[bytes], '\0');
        free(decoded);
    }
    free(values);
}

static int check_vectors(const struct tokenizer *tokenizer, const char *path)
{
    struct rows rows;
    json_t *row;
    int count = 0;
    ck_assert_msg(rows_open(&rows, path), "%s", path);
    while ((row = rows_next(&rows)) != NULL) {
        check_row(tokenizer, row, path);
        json_decref(row);
        count++;
    }
    rows_close(&rows);
    return count;
}

START_TEST(small_tokenizers_answer_as_recorded)
{
    static const char *const names[] = {"byte_level", "metaspace", "words", "first"};
    char path[4096];
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        struct tokenizer *tokenizer;
        snprintf(path, sizeof(path), "%s/%s", DATA_DIR, names[i]);
        ck_assert_int_eq(tokenizer_load(path, &tokenizer), RL_OK);
        snprintf(path, sizeof(path), "%s/%s/vectors.jsonl", DATA_DIR, names[i]);
        ck_assert_int_ge(check_vectors(tokenizer, path), 40);
        tokenizer_destroy(tokenizer);
    }
}
END_TEST

START_TEST(large_tokenizers_answer_as_recorded)
{
    static const char *const names[] = {"gpt2",   "qwen2_5",          "qwen3",   "dolma2_olmo2",
                                        "smollm", "gpt_neox_20b_pii", "minimind"};
    char path[4096];
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        struct tokenizer *tokenizer;
        snprintf(path, sizeof(path), "%s/tokenizers/%s", SHARED_DIR, names[i]);
        if (access(path, R_OK) != 0) {
            continue;
        }
        ck_assert_int_eq(tokenizer_load(path, &tokenizer), RL_OK);
        snprintf(path, sizeof(path), "%s/vectors/%s.public.jsonl", SHARED_DIR, names[i]);
        ck_assert_int_eq(check_vectors(tokenizer, path), 500);
        snprintf(path, sizeof(path), "%s/vectors/%s.decode.public.jsonl", SHARED_DIR, names[i]);
        ck_assert_int_ge(check_vectors(tokenizer, path), 50);
        tokenizer_destroy(tokenizer);
    }
}
END_TEST

static struct tokenizer *load(const char *name)
{
    char path[4096];
    struct tokenizer *tokenizer;
    snprintf(path, sizeof(path), "%s/%s", DATA_DIR, name);
    ck_assert_int_eq(tokenizer_load(path, &tokenizer), RL_OK);
    return tokenizer;
}

static void encode(const struct tokenizer *tokenizer, const char *text, unsigned flags,
                   struct token_buffer *out)
{
    out->count = 0;
    ck_assert_int_eq(tokenizer_encode(tokenizer, text, strlen(text), flags, out), RL_OK);
}

static bool contains(const struct token_buffer *ids, int32_t id)
{
    for (size_t i = 0; i < ids->count; i++) {
        if (ids->ids[i] == id) {
            return true;
        }
    }
    return false;
}

START_TEST(roles_and_queries)
{
    struct tokenizer *tokenizer = load("byte_level");
    int32_t end = tokenizer_token_id(tokenizer, "<|im_end|>");
    ck_assert_int_ge(end, 0);
    ck_assert_int_eq(tokenizer_eos_id(tokenizer), end);
    ck_assert_int_eq(tokenizer_bos_id(tokenizer), tokenizer_token_id(tokenizer, "<|im_start|>"));
    ck_assert_int_eq(tokenizer_pad_id(tokenizer), tokenizer_token_id(tokenizer, "<|endoftext|>"));
    ck_assert_str_eq(tokenizer_special_text(tokenizer, "eos_token"), "<|im_end|>");
    ck_assert_ptr_null(tokenizer_special_text(tokenizer, "unk_token"));
    ck_assert_ptr_null(tokenizer_chat_template(tokenizer));
    ck_assert_int_eq(tokenizer_token_id(tokenizer, "no such token"), -1);
    ck_assert(tokenizer_is_special(tokenizer, end));
    ck_assert(!tokenizer_is_special(tokenizer, tokenizer_token_id(tokenizer, "<think>")));
    ck_assert(!tokenizer_is_special(tokenizer, -1));
    ck_assert(!tokenizer_is_special(tokenizer, INT32_MAX));
    ck_assert_int_gt(tokenizer_vocab_count(tokenizer), end);
    tokenizer_destroy(tokenizer);
    tokenizer = load("words");
    ck_assert_int_eq(tokenizer_eos_id(tokenizer), -1);
    tokenizer_destroy(tokenizer);
    tokenizer_destroy(NULL);
}
END_TEST

START_TEST(plain_text_hides_special_tokens_only)
{
    struct tokenizer *tokenizer = load("byte_level");
    int32_t end = tokenizer_token_id(tokenizer, "<|im_end|>");
    int32_t think = tokenizer_token_id(tokenizer, "<think>");
    struct token_buffer ids = {0};
    struct token_buffer plain = {0};
    char *text;
    size_t bytes;
    encode(tokenizer, "a<|im_end|><think>b", 0, &ids);
    ck_assert(contains(&ids, end) && contains(&ids, think));
    encode(tokenizer, "a<|im_end|><think>b", TOKENIZER_PLAIN_TEXT, &plain);
    ck_assert(!contains(&plain, end) && contains(&plain, think));
    ck_assert_int_eq(tokenizer_decode(tokenizer, plain.ids, plain.count, true, &text, &bytes),
                     RL_OK);
    ck_assert_str_eq(text, "a<|im_end|><think>b");
    free(text);
    encode(tokenizer, "the workers read", 0, &ids);
    encode(tokenizer, "the workers read", TOKENIZER_PLAIN_TEXT, &plain);
    ck_assert_uint_eq(ids.count, plain.count);
    ck_assert_mem_eq(ids.ids, plain.ids, ids.count * sizeof(int32_t));
    token_buffer_fini(&ids);
    token_buffer_fini(&plain);
    tokenizer_destroy(tokenizer);
}
END_TEST

START_TEST(mask_hides_what_it_covers)
{
    static const char text[] = "<|im_end|>x<|im_end|>";
    struct tokenizer *tokenizer = load("byte_level");
    int32_t end = tokenizer_token_id(tokenizer, "<|im_end|>");
    unsigned char mask[sizeof(text) - 1];
    struct token_buffer ids = {0};
    for (size_t covered = 0; covered < sizeof(mask); covered++) {
        memset(mask, 0, sizeof(mask));
        mask[covered] = 1; /* one byte is enough */
        ids.count = 0;
        ck_assert_int_eq(tokenizer_encode_masked(tokenizer, text, sizeof(mask), mask, 0, &ids),
                         RL_OK);
        int expected = covered == 10 ? 2 : 1;
        int found = (ids.ids[0] == end) + (ids.count > 1 && ids.ids[ids.count - 1] == end);
        ck_assert_int_eq(found, expected);
    }
    ids.count = 0;
    ck_assert_int_eq(tokenizer_encode_masked(tokenizer, "a\xFF", 2, mask, 0, &ids), RL_INVALID);
    ck_assert_uint_eq(ids.count, 0);
    token_buffer_fini(&ids);
    tokenizer_destroy(tokenizer);
}
END_TEST

/* A special token that is matched after normalization keeps its mask through the normalizer. */
START_TEST(mask_follows_the_normalizer)
{
    struct tokenizer *tokenizer =
        load("words"); /* NFD, marks removed, lower case; <s> normalized */
    int32_t special = tokenizer_token_id(tokenizer, "<s>");
    static const char text[] = "\xC3\x89<S>\xC3\x89<S>";
    unsigned char mask[sizeof(text) - 1] = {0};
    struct token_buffer ids = {0};
    memset(mask, 1, 5);
    ck_assert_int_eq(tokenizer_encode_masked(tokenizer, text, sizeof(mask), mask, 0, &ids), RL_OK);
    int found = 0;
    for (size_t i = 0; i < ids.count; i++) {
        found += ids.ids[i] == special;
    }
    ck_assert_int_eq(found, 1);
    ck_assert_int_eq(ids.ids[ids.count - 1], special);
    token_buffer_fini(&ids);
    tokenizer_destroy(tokenizer);
}
END_TEST

START_TEST(broken_utf8_becomes_replacement_characters)
{
    static const struct {
        const char *given;
        const char *same_as;
    } cases[] = {{"a\xFF"
                  "b",
                  "a\uFFFDb"},
                 {"\xE2\x82", "\uFFFD"},
                 {"\xE2\x82"
                  "a",
                  "\uFFFDa"},
                 {"\xC0\x80", "\uFFFD\uFFFD"},
                 {"\xED\xA0\x80", "\uFFFD\uFFFD\uFFFD"},
                 {"\xF4\x90\x80\x80", "\uFFFD\uFFFD\uFFFD\uFFFD"},
                 {"\xF0\x9F\x98", "\uFFFD"}};
    struct tokenizer *tokenizer = load("byte_level");
    struct token_buffer a = {0};
    struct token_buffer b = {0};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        encode(tokenizer, cases[i].given, 0, &a);
        encode(tokenizer, cases[i].same_as, 0, &b);
        ck_assert_uint_eq(a.count, b.count);
        ck_assert_mem_eq(a.ids, b.ids, a.count * sizeof(int32_t));
    }
    token_buffer_fini(&a);
    token_buffer_fini(&b);
    tokenizer_destroy(tokenizer);
}
END_TEST

START_TEST(decoding_skips_ids_that_do_not_exist)
{
    struct tokenizer *tokenizer = load("byte_level");
    int32_t ids[] = {-1, tokenizer_token_id(tokenizer, "a"), INT32_MAX, INT32_MIN, 1 << 24};
    char *text;
    size_t bytes;
    ck_assert_int_eq(tokenizer_decode(tokenizer, ids, 5, false, &text, &bytes), RL_OK);
    ck_assert_str_eq(text, "a");
    free(text);
    ck_assert_int_eq(tokenizer_decode(tokenizer, NULL, 0, false, &text, &bytes), RL_OK);
    ck_assert_str_eq(text, "");
    free(text);
    tokenizer_destroy(tokenizer);
}
END_TEST

static double cpu_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* One million bytes without a place to cut: quadratic work would take hours. */
START_TEST(long_words_cost_no_quadratic_time)
{
    static const char *const units[] = {"a", "ab",  "e\u0301\u0323", " ", "\u0301\u0323",
                                        "1", "\n ", "<|im_",         "!", "\u4eca"};
    static const char *const names[] = {"byte_level", "metaspace", "words", "first"};
    size_t bytes = 300000;
    char *text = malloc(bytes + 8);
    double start = cpu_seconds();
    for (size_t n = 0; n < 4; n++) {
        struct tokenizer *tokenizer = load(names[n]);
        for (size_t u = 0; u < sizeof(units) / sizeof(units[0]); u++) {
            struct token_buffer ids = {0};
            size_t unit = strlen(units[u]);
            size_t used = 0;
            for (; used + unit <= bytes; used += unit) {
                memcpy(text + used, units[u], unit);
            }
            ck_assert_int_eq(tokenizer_encode(tokenizer, text, used, 0, &ids), RL_OK);
            token_buffer_fini(&ids);
        }
        tokenizer_destroy(tokenizer);
    }
    free(text);
    ck_assert_msg(cpu_seconds() - start < 60.0, "took %.1f s", cpu_seconds() - start);
}
END_TEST

START_TEST(files_are_copied_byte_for_byte)
{
    char dir[64];
    char line[512];
    char copy[512];
    struct tokenizer *tokenizer = load("byte_level");
    struct tokenizer *again;
    scratch_create(dir);
    ck_assert_int_eq(tokenizer_copy_files(tokenizer, dir), RL_OK);
    static const char *const names[] = {"tokenizer.json", "tokenizer_config.json"};
    for (int i = 0; i < 2; i++) {
        char path[4096];
        snprintf(path, sizeof(path), "%s/byte_level/%s", DATA_DIR, names[i]);
        FILE *a = fopen(path, "rb");
        snprintf(path, sizeof(path), "%s/%s", dir, names[i]);
        FILE *b = fopen(path, "rb");
        ck_assert(a != NULL && b != NULL);
        size_t count;
        while ((count = fread(line, 1, sizeof(line), a)) > 0) {
            ck_assert_uint_eq(fread(copy, 1, count, b), count);
            ck_assert_mem_eq(line, copy, count);
        }
        ck_assert_int_eq(fgetc(b), EOF);
        fclose(a);
        fclose(b);
    }
    ck_assert_int_eq(tokenizer_load(dir, &again), RL_OK);
    tokenizer_destroy(again);
    tokenizer_destroy(tokenizer);
    scratch_remove(dir);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("model_tokenizer");
    TCase *tests = tcase_create("tokenizer");
    tcase_set_timeout(tests, 300);
    tcase_add_test(tests, small_tokenizers_answer_as_recorded);
    tcase_add_test(tests, large_tokenizers_answer_as_recorded);
    tcase_add_test(tests, roles_and_queries);
    tcase_add_test(tests, plain_text_hides_special_tokens_only);
    tcase_add_test(tests, mask_hides_what_it_covers);
    tcase_add_test(tests, mask_follows_the_normalizer);
    tcase_add_test(tests, broken_utf8_becomes_replacement_characters);
    tcase_add_test(tests, decoding_skips_ids_that_do_not_exist);
    tcase_add_test(tests, long_words_cost_no_quadratic_time);
    tcase_add_test(tests, files_are_copied_byte_for_byte);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
