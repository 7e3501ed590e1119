/* Broken and unsupported tokenizer files: each is refused with the right code and an error that
 * names what is wrong; none crashes, hangs or loads with a silent difference. */
#include "tests/tokenizer_fixture.h"

#define MODEL                                                                                      \
    "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2,\" \":3},\"merges\":[\"a "    \
    "b\"]}"
#define ADDED(id, content)                                                                         \
    "{\"id\":" id ",\"content\":\"" content "\",\"single_word\":false,\"lstrip\":false,"           \
    "\"rstrip\":false,\"normalized\":false,\"special\":true}"
#define SPLIT(regex)                                                                               \
    "{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" regex                       \
    "\"},\"behavior\":\"Isolated\",\"invert\":false}," MODEL "}"

struct bad_file {
    const char *text;
    rl_status status;
    const char *named; /* what the error must mention */
};

static const struct bad_file bad_files[] = {
    {"", RL_INVALID, "line 1"},
    {"{", RL_INVALID, "line 1"},
    {"[]", RL_INVALID, "object"},
    {"null", RL_INVALID, "line 1"},
    {"{\"model\":1}", RL_INVALID, "model"},
    {"{}", RL_INVALID, "model"},
    {"{" MODEL "} x", RL_INVALID, "line 1"},
    {"{" MODEL "," MODEL "}", RL_INVALID, "duplicate"},
    {"{\"version\":\"2.0\"," MODEL "}", RL_UNSUPPORTED, "version"},
    {"{\"surprise\":1," MODEL "}", RL_UNSUPPORTED, "surprise"},
    {"{\"truncation\":{\"max_length\":8}," MODEL "}", RL_UNSUPPORTED, "truncation"},
    {"{\"padding\":{\"strategy\":\"BatchLongest\"}," MODEL "}", RL_UNSUPPORTED, "padding"},
    {"{\"model\":{\"type\":\"Unigram\",\"vocab\":[]}}", RL_UNSUPPORTED, "Unigram"},
    {"{\"model\":{\"type\":\"WordPiece\",\"vocab\":{}}}", RL_UNSUPPORTED, "WordPiece"},
    {"{\"model\":{\"vocab\":{}}}", RL_UNSUPPORTED, "merges"},
    {"{\"model\":{\"type\":\"BPE\",\"merges\":[]}}", RL_INVALID, "vocab"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0}}}", RL_INVALID, "merges"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":[],\"merges\":[]}}", RL_INVALID, "vocab"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":-1},\"merges\":[]}}", RL_INVALID, "vocab.a"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":1.5},\"merges\":[]}}", RL_INVALID, "vocab.a"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":\"0\"},\"merges\":[]}}", RL_INVALID, "vocab.a"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":4000000000},\"merges\":[]}}", RL_INVALID,
     "out of range"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":99999999999999999999},\"merges\":[]}}",
     RL_INVALID, "line 1"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}}", RL_INVALID,
     "two tokens"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"a\":1},\"merges\":[]}}", RL_INVALID,
     "duplicate"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"a c\"]}}", RL_INVALID,
     "merges[0]"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"a a\"]}}", RL_INVALID,
     "\"aa\""},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"a\"]}}", RL_INVALID,
     "merges[0]"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"a b c\"]}}", RL_INVALID,
     "merges[0]"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[[\"a\"]]}}", RL_INVALID,
     "merges[0]"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[[\"a\",1]]}}", RL_INVALID,
     "merges[0]"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"aa\":1},\"merges\":[[\"a\",\"a\"],\"a "
     "a\"]}}",
     RL_INVALID, "merges[1]"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[],\"dropout\":0.1}}",
     RL_UNSUPPORTED, "dropout"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[],\"later\":1}}", RL_UNSUPPORTED,
     "later"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[],\"fuse_unk\":1}}", RL_INVALID,
     "fuse_unk"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"\\ud800\":1},\"merges\":[]}}", RL_INVALID,
     "line 1"},
    {"{\"added_tokens\":{}," MODEL "}", RL_INVALID, "added_tokens"},
    {"{\"added_tokens\":[1]," MODEL "}", RL_INVALID, "added_tokens[0]"},
    {"{\"added_tokens\":[{\"id\":4}]," MODEL "}", RL_INVALID, "added_tokens[0]"},
    {"{\"added_tokens\":[" ADDED("4", "") "]," MODEL "}", RL_INVALID, "empty"},
    {"{\"added_tokens\":[" ADDED("9", "x") "]," MODEL "}", RL_INVALID, "has id 9"},
    {"{\"added_tokens\":[" ADDED("1", "a") "]," MODEL "}", RL_INVALID, "has id 1"},
    {"{\"added_tokens\":[" ADDED("4", "x") "," ADDED("4", "y") "]," MODEL "}", RL_INVALID,
     "already"},
    {"{\"added_tokens\":[" ADDED("4", "x") "," ADDED("5", "x") "]," MODEL "}", RL_INVALID, "twice"},
    {"{\"added_tokens\":[" ADDED("-4", "x") "]," MODEL "}", RL_INVALID, "out of range"},
    {"{\"normalizer\":{\"type\":\"Precompiled\"}," MODEL "}", RL_UNSUPPORTED, "Precompiled"},
    {"{\"normalizer\":{\"type\":1}," MODEL "}", RL_INVALID, "normalizer.type"},
    {"{\"normalizer\":\"NFC\"," MODEL "}", RL_INVALID, "normalizer"},
    {"{\"normalizer\":{\"type\":\"NFC\",\"x\":1}," MODEL "}", RL_UNSUPPORTED, "normalizer.x"},
    {"{\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[null]}," MODEL "}", RL_INVALID,
     "normalizers[0]"},
    {"{\"normalizer\":{\"type\":\"Replace\",\"content\":\"\"}," MODEL "}", RL_INVALID, "pattern"},
    {"{\"normalizer\":{\"type\":\"Strip\"}," MODEL "}", RL_INVALID, "strip_left"},
    {"{\"pre_tokenizer\":{\"type\":\"UnicodeScripts\"}," MODEL "}", RL_UNSUPPORTED,
     "UnicodeScripts"},
    {"{\"pre_tokenizer\":{\"type\":\"Metaspace\"}," MODEL "}", RL_INVALID, "replacement"},
    {"{\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"ab\"}," MODEL "}", RL_INVALID,
     "replacement"},
    {"{\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"_\",\"add_prefix_space\":false},"
     "" MODEL "}",
     RL_INVALID, "add_prefix_space"},
    {"{\"pre_tokenizer\":{\"type\":\"FixedLength\",\"length\":0}," MODEL "}", RL_INVALID, "length"},
    {"{\"pre_tokenizer\":{\"type\":\"Punctuation\",\"behavior\":\"Sideways\"}," MODEL "}",
     RL_INVALID, "Sideways"},
    {SPLIT("("), RL_UNSUPPORTED, "pattern"},
    {SPLIT("[a"), RL_UNSUPPORTED, "unclosed"},
    {SPLIT("*a"), RL_UNSUPPORTED, "operand"},
    {SPLIT("\\\\p{Nonsense}"), RL_UNSUPPORTED, "pattern"},
    {SPLIT("\\\\p{Cn}"), RL_UNSUPPORTED, "property"},
    {SPLIT("(a)\\\\1"), RL_UNSUPPORTED, "back-reference"},
    {SPLIT("(?i:ss)"), RL_UNSUPPORTED, "fold"},
    {SPLIT("\\\\K"), RL_UNSUPPORTED, "escape"},
    {SPLIT("(?x) a"), RL_UNSUPPORTED, "option"},
    {SPLIT("(?R)"), RL_UNSUPPORTED, "option"},
    {SPLIT("[z-a]"), RL_UNSUPPORTED, "range"},
    {"{\"post_processor\":{\"type\":\"Other\"}," MODEL "}", RL_UNSUPPORTED, "Other"},
    {"{\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":"
     "\"x\",\"type_id\":0}}],\"pair\":[],\"special_tokens\":{}}," MODEL "}",
     RL_INVALID, "\"x\""},
    {"{\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"Sequence\":{\"id\":\"B\"}"
     "}],"
     "\"pair\":[],\"special_tokens\":{}}," MODEL "}",
     RL_UNSUPPORTED, "single[0]"},
    {"{\"post_processor\":{\"type\":\"BertProcessing\",\"sep\":[\"a\",0],\"cls\":0}," MODEL "}",
     RL_INVALID, "cls"},
    {"{\"decoder\":{\"type\":\"CTC\"}," MODEL "}", RL_UNSUPPORTED, "CTC"},
    {"{\"decoder\":{\"type\":\"Strip\",\"content\":\" \",\"start\":-1,\"stop\":0}," MODEL "}",
     RL_INVALID, "start"},
    {"{\"decoder\":{\"type\":\"Sequence\",\"decoders\":{}}," MODEL "}", RL_INVALID, "decoders"},
};

static rl_status load_text(const char *dir, const char *text, size_t bytes)
{
    struct tokenizer *tokenizer = NULL;
    scratch_write(dir, "tokenizer.json", text, bytes);
    rl_status status = tokenizer_load(dir, &tokenizer);
    tokenizer_destroy(tokenizer);
    return status;
}

START_TEST(bad_files_are_refused_by_name)
{
    char dir[64];
    scratch_create(dir);
    for (size_t i = 0; i < sizeof(bad_files) / sizeof(bad_files[0]); i++) {
        const struct bad_file *bad = &bad_files[i];
        rl_status status = load_text(dir, bad->text, strlen(bad->text));
        ck_assert_msg(status == bad->status, "%s: %s", bad->text, rl_status_name(status));
        ck_assert_msg(strstr(rl_log_last_error(), bad->named) != NULL, "%s: \"%s\" not in \"%s\"",
                      bad->text, bad->named, rl_log_last_error());
        ck_assert_msg(strstr(rl_log_last_error(), "tokenizer.json") != NULL, "%s: \"%s\"",
                      bad->text, rl_log_last_error());
    }
    scratch_remove(dir);
}
END_TEST

START_TEST(the_smallest_file_loads)
{
    char dir[64];
    scratch_create(dir);
    ck_assert_int_eq(load_text(dir, "{" MODEL "}", strlen("{" MODEL "}")), RL_OK);
    scratch_remove(dir);
    struct tokenizer *tokenizer;
    ck_assert_int_eq(tokenizer_load("/nonexistent", &tokenizer), RL_IO);
    ck_assert_ptr_nonnull(strstr(rl_log_last_error(), "/nonexistent/tokenizer.json"));
}
END_TEST

START_TEST(deep_nesting_is_refused)
{
    char dir[64];
    size_t depth = 3000;
    char *text = malloc(depth * 64 + 4096);
    scratch_create(dir);
    int used = snprintf(text, 64, "{\"normalizer\":");
    for (size_t i = 0; i < depth; i++) {
        used += snprintf(text + used, 64, "{\"type\":\"Sequence\",\"normalizers\":[");
    }
    ck_assert_int_ne(load_text(dir, text, (size_t)used), RL_OK);
    used = snprintf(text, 64, "{\"normalizer\":");
    for (size_t i = 0; i < 20; i++) {
        used += snprintf(text + used, 64, "{\"type\":\"Sequence\",\"normalizers\":[");
    }
    for (size_t i = 0; i < 20; i++) {
        used += snprintf(text + used, 64, "]}");
    }
    used += snprintf(text + used, 4096, "," MODEL "}");
    ck_assert_int_eq(load_text(dir, text, (size_t)used), RL_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(rl_log_last_error(), "nested"));
    free(text);
    scratch_remove(dir);
}
END_TEST

/* Every truncation, and bytes overwritten here and there, of a real file: an error or a load. */
START_TEST(damaged_files_never_crash)
{
    char dir[64];
    char path[4096];
    char *text = malloc(1 << 20);
    scratch_create(dir);
    snprintf(path, sizeof(path), "%s/metaspace/tokenizer.json", DATA_DIR);
    FILE *file = fopen(path, "rb");
    ck_assert_ptr_nonnull(file);
    size_t bytes = fread(text, 1, 1 << 20, file);
    fclose(file);
    rl_log_set_level(RL_LOG_ERROR);
    for (size_t cut = 0; cut + 1 < bytes; cut += 61) {
        ck_assert_int_eq(load_text(dir, text, cut), RL_INVALID);
    }
    unsigned state = 12345;
    for (int round = 0; round < 400; round++) {
        state = state * 1103515245U + 12345U;
        size_t at = (state >> 8) % bytes;
        char held = text[at];
        text[at] = "{}[]\",:0a\\\x01\xFF"[(state >> 4) % 12];
        (void)load_text(dir, text, bytes);
        text[at] = held;
    }
    ck_assert_int_eq(load_text(dir, text, bytes), RL_OK);
    free(text);
    scratch_remove(dir);
}
END_TEST

START_TEST(an_unknown_token_that_is_missing_is_an_error_when_needed)
{
    static const char text[] = "{\"model\":{\"type\":\"BPE\",\"unk_token\":\"<unk>\","
                               "\"vocab\":{\"a\":0},\"merges\":[]}}";
    char dir[64];
    struct tokenizer *tokenizer;
    struct token_buffer ids = {0};
    scratch_create(dir);
    scratch_text(dir, "tokenizer.json", text);
    ck_assert_int_eq(tokenizer_load(dir, &tokenizer), RL_OK);
    ck_assert_int_eq(tokenizer_encode(tokenizer, "aa", 2, 0, &ids), RL_OK);
    ck_assert_uint_eq(ids.count, 2);
    ck_assert_int_eq(tokenizer_encode(tokenizer, "az", 2, 0, &ids), RL_INVALID);
    ck_assert_uint_eq(ids.count, 2);
    ck_assert_ptr_nonnull(strstr(rl_log_last_error(), "<unk>"));
    token_buffer_fini(&ids);
    tokenizer_destroy(tokenizer);
    scratch_remove(dir);
}
END_TEST

/* A pattern that backtracks without end hits a limit instead. */
START_TEST(runaway_patterns_are_stopped)
{
    static const char text[] = SPLIT("(?:x+x+)+y");
    char dir[64];
    char letters[64];
    struct tokenizer *tokenizer;
    struct token_buffer ids = {0};
    memset(letters, 'x', sizeof(letters));
    scratch_create(dir);
    scratch_text(dir, "tokenizer.json", text);
    ck_assert_int_eq(tokenizer_load(dir, &tokenizer), RL_OK);
    rl_status status = tokenizer_encode(tokenizer, letters, sizeof(letters), 0, &ids);
    ck_assert(status == RL_TOO_LONG || status == RL_OK);
    token_buffer_fini(&ids);
    tokenizer_destroy(tokenizer);
    scratch_remove(dir);
}
END_TEST

START_TEST(roles_come_from_the_files_beside)
{
    char dir[64];
    struct tokenizer *tokenizer;
    scratch_create(dir);
    scratch_text(dir, "tokenizer.json", "{" MODEL "}");
    scratch_text(dir, "special_tokens_map.json",
                 "{\"bos_token\":\"a\",\"eos_token\":{\"content\":\"b\"}}");
    scratch_text(dir, "generation_config.json", "{\"eos_token_id\":[2,1],\"pad_token_id\":3}");
    scratch_text(dir, "tokenizer_config.json",
                 "{\"eos_token\":\"ab\",\"unk_token\":\"zz\",\"model_max_length\":"
                 "1000000000000000019884624838656,\"chat_template\":[{\"name\":\"rag\","
                 "\"template\":\"R\"},{\"name\":\"default\",\"template\":\"D\"}]}");
    ck_assert_int_eq(tokenizer_load(dir, &tokenizer), RL_OK);
    ck_assert_int_eq(tokenizer_bos_id(tokenizer), 0);
    ck_assert_int_eq(tokenizer_eos_id(tokenizer), 2);
    ck_assert_int_eq(tokenizer_pad_id(tokenizer), 3);
    ck_assert_str_eq(tokenizer_chat_template(tokenizer), "D");
    tokenizer_destroy(tokenizer);
    scratch_text(dir, "chat_template.jinja", "J");
    ck_assert_int_eq(tokenizer_load(dir, &tokenizer), RL_OK);
    ck_assert_str_eq(tokenizer_chat_template(tokenizer), "J");
    tokenizer_destroy(tokenizer);
    scratch_text(dir, "tokenizer_config.json", "{\"eos_token\":");
    ck_assert_int_eq(tokenizer_load(dir, &tokenizer), RL_INVALID);
    ck_assert_ptr_nonnull(strstr(rl_log_last_error(), "tokenizer_config.json"));
    scratch_remove(dir);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("model_tokenizer_files");
    TCase *tests = tcase_create("files");
    tcase_set_timeout(tests, 120);
    tcase_add_test(tests, bad_files_are_refused_by_name);
    tcase_add_test(tests, the_smallest_file_loads);
    tcase_add_test(tests, deep_nesting_is_refused);
    tcase_add_test(tests, damaged_files_never_crash);
    tcase_add_test(tests, an_unknown_token_that_is_missing_is_an_error_when_needed);
    tcase_add_test(tests, runaway_patterns_are_stopped);
    tcase_add_test(tests, roles_come_from_the_files_beside);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
