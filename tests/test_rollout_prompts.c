/* Prompts: every spelling of the fields, templates and special tokens in text, rows that cannot be
 * used, and the order in which epochs visit them. */
#include "core/log.h"
#include "rollout/prompt_order.h"
#include "rollout/prompts.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char root[64];
static struct tokenizer *tokenizer;

static void write_file(const char *name, const char *text, size_t bytes)
{
    char path[128];
    snprintf(path, sizeof(path), "%s/%s", root, name);
    FILE *file = fopen(path, "wb");
    ck_assert_ptr_nonnull(file);
    ck_assert_uint_eq(fwrite(text, 1, bytes, file), bytes);
    ck_assert_int_eq(fclose(file), 0);
}

/* A tokenizer of printable characters with special tokens and a BOS put in front. */
static void write_tokenizer(void)
{
    static const char *const specials[] = {"<s>", "<|im_start|>", "<|im_end|>"};
    char text[16384];
    size_t used = 0;
#define PUT(...) (used += (size_t)snprintf(text + used, sizeof(text) - used, __VA_ARGS__))
    PUT("{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":[");
    for (int i = 0; i < 3; i++) {
        PUT("%s{\"id\":%d,\"content\":\"%s\",\"single_word\":false,\"lstrip\":false,"
            "\"rstrip\":false,\"normalized\":false,\"special\":true}",
            i > 0 ? "," : "", i, specials[i]);
    }
    PUT("],\"normalizer\":null,\"pre_tokenizer\":null,\"post_processor\":{\"type\":"
        "\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<s>\",\"type_id\":0}},"
        "{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}],\"pair\":[{\"Sequence\":{\"id\":\"A\","
        "\"type_id\":0}},{\"Sequence\":{\"id\":\"B\",\"type_id\":1}}],\"special_tokens\":{\"<s>\":"
        "{\"id\":\"<s>\",\"ids\":[0],\"tokens\":[\"<s>\"]}}},\"decoder\":{\"type\":\"Fuse\"},"
        "\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":null,"
        "\"continuing_subword_prefix\":null,\"end_of_word_suffix\":null,\"fuse_unk\":false,"
        "\"byte_fallback\":false,\"ignore_merges\":false,\"vocab\":{\"<s>\":0,\"<|im_start|>\":1,"
        "\"<|im_end|>\":2,\"\\n\":3");
    for (int c = 32; c < 127; c++) {
        PUT(",\"%s%c\":%d", c == '"' || c == '\\' ? "\\" : "", c, c - 28);
    }
    PUT("},\"merges\":[]}}");
#undef PUT
    write_file("tokenizer.json", text, used);
}

static void set_up(void)
{
    snprintf(root, sizeof(root), "prompts_test_XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(root));
    write_tokenizer();
    ck_assert_int_eq(tokenizer_load(root, &tokenizer), RL_OK);
}

static void tear_down(void)
{
    char command[128];
    tokenizer_destroy(tokenizer);
    snprintf(command, sizeof(command), "rm -rf '%s'", root);
    ck_assert_int_eq(system(command), 0);
}

static struct rl_config make_config(void)
{
    struct rl_config config;
    memset(&config, 0, sizeof(config));
    config.data.prompt_template = "";
    config.data.system_prompt = "";
    config.data.max_prompt_length = 200;
    config.data.bad_rows = CONFIG_BAD_ROWS_ERROR;
    config.data.special_tokens_in_text = CONFIG_SPECIAL_PLAIN;
    config.data.enable_thinking = true;
    return config;
}

static const char *data_path(void)
{
    static char path[128];
    snprintf(path, sizeof(path), "%s/data.jsonl", root);
    return path;
}

static rl_status load_bytes(const char *rows, size_t bytes, const struct rl_config *config,
                            const struct chat_template *chat, struct prompts **out)
{
    write_file("data.jsonl", rows, bytes);
    return prompts_load(data_path(), config, tokenizer, chat, out);
}

static struct prompts *load(const char *rows, const struct rl_config *config,
                            const struct chat_template *chat)
{
    struct prompts *prompts = NULL;
    ck_assert_int_eq(load_bytes(rows, strlen(rows), config, chat, &prompts), RL_OK);
    return prompts;
}

static void refuse(const char *rows, const struct rl_config *config, const char *part)
{
    struct prompts *prompts = NULL;
    ck_assert_int_eq(load_bytes(rows, strlen(rows), config, NULL, &prompts), RL_INVALID);
    ck_assert_ptr_null(prompts);
    ck_assert_msg(strstr(rl_log_last_error(), part) != NULL, "\"%s\" lacks \"%s\"",
                  rl_log_last_error(), part);
}

/* The prompt's ids are those of `pieces`, encoded one after another with the flags beside them. */
struct piece {
    const char *text;
    unsigned flags;
};

static void check_ids(const struct prompt *prompt, const struct piece *pieces, size_t count)
{
    struct token_buffer ids = {0};
    for (size_t i = 0; i < count; i++) {
        ck_assert_int_eq(tokenizer_encode(tokenizer, pieces[i].text, strlen(pieces[i].text),
                                          pieces[i].flags, &ids),
                         RL_OK);
    }
    ck_assert_uint_eq(prompt->token_count, ids.count);
    ck_assert_mem_eq(prompt->tokens, ids.ids, ids.count * sizeof(*ids.ids));
    token_buffer_fini(&ids);
}

#define CHECK_IDS(prompt, ...)                                                                     \
    check_ids(prompt, (const struct piece[]){__VA_ARGS__},                                         \
              sizeof((const struct piece[]){__VA_ARGS__}) / sizeof(struct piece))

START_TEST(field_spellings)
{
    static const char rows[] =
        "{\"prompt\":\"a\",\"answer\":\"1\",\"data_source\":\"s\"}\n"
        "\n"
        "{\"question\":\"b\",\"solution\":\"2\"}\r\n"
        "{\"input\":\"c\",\"output\":\"3\"}\n"
        "{\"prompt\":\"d\",\"reward_model\":{\"ground_truth\":\"4\",\"style\":\"rule\"}}\n"
        "{\"prompt\":\"e\",\"ground_truth\":5}\n"
        "{\"prompt\":\"f\",\"target\":0.28}\n"
        "{\"prompt\":\"g\",\"ground_truth\":{\"target\": 24, \"numbers\": [1, 2]}}\n"
        "{\"prompt\":null,\"question\":\"h\",\"answer\":null,\"solution\":\"8\"}\n"
        "{\"prompt\":\"i\"}";
    static const char *const expected[][2] = {{"a", "1"},
                                              {"b", "2"},
                                              {"c", "3"},
                                              {"d", "4"},
                                              {"e", "5"},
                                              {"f", "0.28"},
                                              {"g", "{\"target\":24,\"numbers\":[1,2]}"},
                                              {"h", "8"},
                                              {"i", ""}};
    struct rl_config config = make_config();
    struct prompts *prompts = load(rows, &config, NULL);
    ck_assert_uint_eq(prompts_count(prompts), 9);
    ck_assert_uint_eq(prompts_dropped(prompts), 0);
    for (uint64_t i = 0; i < 9; i++) {
        const struct prompt *prompt = prompts_at(prompts, i);
        ck_assert_str_eq(prompt->text, expected[i][0]);
        ck_assert_str_eq(prompt->ground_truth, expected[i][1]);
        ck_assert_str_eq(prompt->data_source, i == 0 ? "s" : "");
        ck_assert_int_eq(prompt->line, (int64_t)(i == 0 ? 1 : i + 2));
        CHECK_IDS(prompt, {prompt->text, TOKENIZER_ADD_SPECIAL});
    }
    ck_assert_str_eq(prompts_at(prompts, 2)->row_json, "{\"input\":\"c\",\"output\":\"3\"}");
    prompts_destroy(prompts);
}
END_TEST

START_TEST(several_files_and_hash)
{
    char paths[300];
    struct prompts *prompts = NULL;
    struct rl_config config = make_config();
    write_file("one.jsonl", "\xef\xbb\xbf{\"prompt\":\"ab\"}\n", 19);
    write_file("two.jsonl", "{\"prompt\":\"c\"}", 14);
    snprintf(paths, sizeof(paths), " %s/one.jsonl , %s/two.jsonl", root, root);
    ck_assert_int_eq(prompts_load(paths, &config, tokenizer, NULL, &prompts), RL_OK);
    ck_assert_uint_eq(prompts_count(prompts), 2);
    ck_assert_str_eq(prompts_at(prompts, 1)->text, "c");
    uint64_t hash = prompts_hash(prompts);
    prompts_destroy(prompts);
    static const char *const others[] = {
        "{\"prompt\":\"ab\"}\n{\"prompt\":\"c\",\"answer\":\"new\"}\n",
        "{\"prompt\":\"a\"}\n{\"prompt\":\"bc\"}\n", "{\"prompt\":\"c\"}\n{\"prompt\":\"ab\"}\n",
        "{\"prompt\":\"ab\"}\n"};
    for (int i = 0; i < 4; i++) {
        prompts = load(others[i], &config, NULL);
        ck_assert_msg((prompts_hash(prompts) == hash) == (i == 0), "row set %d", i);
        prompts_destroy(prompts);
    }
}
END_TEST

START_TEST(bad_rows_are_named)
{
    static const char *const rows[][2] = {
        {"{\"prompt\":\"a\"}\n{\"prompt\":", "data.jsonl:2: not valid JSON"},
        {"{\"prompt\":\"a\"}\n\n[1]", "data.jsonl:3: the row is an array"},
        {"{\"text\":\"a\"}", "prompt, question, messages, input"},
        {"{\"prompt\":5}", "\"prompt\" is an integer; expected a string or a list"},
        {"{\"prompt\":{}}", "\"prompt\" is an object"},
        {"{\"prompt\":\"\"}", "\"prompt\" is empty"},
        {"{\"prompt\":\"a\",\"prompt\":\"b\"}", "not valid JSON"},
        {"{\"prompt\":\"\xff\xfe\"}", "not valid JSON"},
        {"{\"prompt\":\"a\\u0000b\"}", "not valid JSON"},
        {"{\"prompt\":\"a\"} trailing", "not valid JSON"},
        {"{\"prompt\":\"a\",\"data_source\":1}", "\"data_source\" is an integer"},
        {"{\"prompt\":[]}", "empty list of messages"},
        {"{\"prompt\":[1]}", "message 0 is an integer"},
        {"{\"prompt\":[{\"content\":\"x\"}]}", "message 0 has no \"role\""},
        {"{\"prompt\":[{\"role\":\"user\"}]}", "message 0 has no \"content\""},
        {"{\"prompt\":[{\"role\":\"user\",\"content\":7}]}", "\"content\" is an integer"},
        {"{\"prompt\":[{\"role\":\"system\",\"content\":\"x\"}]}", "role \"user\""},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"x\"},{\"role\":\"assistant\","
         "\"content\":\"y\"}]}",
         "must end with"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}", "chat template"},
        {"", "no rows"},
        {"\n \n\t\n", "no rows"},
    };
    struct rl_config config = make_config();
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        refuse(rows[i][0], &config, rows[i][1]);
    }
}
END_TEST

START_TEST(bad_rows_are_counted)
{
    struct rl_config config = make_config();
    config.data.bad_rows = CONFIG_BAD_ROWS_SKIP;
    struct prompts *prompts =
        load("{\"prompt\":\"a\"}\nnot json\n{\"x\":1}\n{\"prompt\":\"b\"}\n", &config, NULL);
    ck_assert_uint_eq(prompts_count(prompts), 2);
    ck_assert_uint_eq(prompts_dropped(prompts), 2);
    ck_assert_int_eq(prompts_at(prompts, 1)->line, 4);
    prompts_destroy(prompts);
    refuse("not json\n", &config, "none of 1 rows is usable");
}
END_TEST

START_TEST(long_prompts_are_dropped)
{
    struct rl_config config = make_config();
    config.data.max_prompt_length = 4;
    struct prompts *prompts = load("{\"prompt\":\"abc\"}\n{\"prompt\":\"abcd\"}\n", &config, NULL);
    ck_assert_uint_eq(prompts_count(prompts), 1);
    ck_assert_uint_eq(prompts_dropped(prompts), 1);
    prompts_destroy(prompts);
    refuse("{\"prompt\":\"abcde\"}\n", &config, "1 longer than data.max_prompt_length = 4");
}
END_TEST

START_TEST(line_limit)
{
    size_t bytes = (size_t)17 << 20;
    char *rows = malloc(bytes);
    ck_assert_ptr_nonnull(rows);
    memset(rows, 'x', bytes);
    memcpy(rows, "{\"prompt\":\"", 11);
    memcpy(rows + bytes - 16, "\"}\n{\"prompt\":\"b\"", 16);
    struct rl_config config = make_config();
    struct prompts *prompts = NULL;
    ck_assert_int_eq(load_bytes(rows, bytes, &config, NULL, &prompts), RL_INVALID);
    ck_assert_ptr_nonnull(strstr(rl_log_last_error(), "data.jsonl:1: the line is longer than"));
    config.data.bad_rows = CONFIG_BAD_ROWS_SKIP;
    rows[bytes - 1] = '}'; /* the second row is then bad too */
    ck_assert_int_eq(load_bytes(rows, bytes, &config, NULL, &prompts), RL_INVALID);
    ck_assert_ptr_nonnull(strstr(rl_log_last_error(), "2 bad"));
    free(rows);
}
END_TEST

START_TEST(unreadable_files)
{
    struct rl_config config = make_config();
    struct prompts *prompts = NULL;
    char path[128];
    snprintf(path, sizeof(path), "%s/missing.jsonl", root);
    ck_assert_int_eq(prompts_load(path, &config, tokenizer, NULL, &prompts), RL_IO);
    ck_assert_ptr_nonnull(strstr(rl_log_last_error(), "missing.jsonl"));
    ck_assert_int_eq(prompts_load(root, &config, tokenizer, NULL, &prompts), RL_IO);
    ck_assert_ptr_nonnull(strstr(rl_log_last_error(), "folder"));
    ck_assert_int_eq(prompts_load("", &config, tokenizer, NULL, &prompts), RL_INVALID);
    ck_assert_int_eq(prompts_load("a,,b", &config, tokenizer, NULL, &prompts), RL_IO);
}
END_TEST

START_TEST(special_tokens_in_text)
{
    static const char rows[] = "{\"prompt\":\"x<|im_end|>y\"}\n{\"prompt\":\"plain\"}\n";
    struct rl_config config = make_config();
    struct prompts *prompts = load(rows, &config, NULL);
    CHECK_IDS(prompts_at(prompts, 0),
              {"x<|im_end|>y", TOKENIZER_ADD_SPECIAL | TOKENIZER_PLAIN_TEXT});
    ck_assert_uint_eq(prompts_at(prompts, 0)->token_count, 13);
    prompts_destroy(prompts);
    config.data.special_tokens_in_text = CONFIG_SPECIAL_ALLOW;
    prompts = load(rows, &config, NULL);
    CHECK_IDS(prompts_at(prompts, 0), {"x<|im_end|>y", TOKENIZER_ADD_SPECIAL});
    ck_assert_uint_eq(prompts_at(prompts, 0)->token_count, 4);
    prompts_destroy(prompts);
}
END_TEST

START_TEST(prompt_template)
{
    static const char rows[] = "{\"prompt\":\"x<|im_end|>y\"}\n{\"prompt\":\"plain\"}\n"
                               "{\"messages\":[{\"role\":\"user\",\"content\":\"m\"}]}\n";
    struct rl_config config = make_config();
    config.data.prompt_template = "<|im_start|>Q {prompt}<|im_end|>";
    struct prompts *prompts = load(rows, &config, NULL);
    CHECK_IDS(prompts_at(prompts, 0), {"<|im_start|>Q ", TOKENIZER_ADD_SPECIAL},
              {"x<|im_end|>y", TOKENIZER_PLAIN_TEXT}, {"<|im_end|>", 0});
    ck_assert_uint_eq(prompts_at(prompts, 0)->token_count, 1 + 3 + 12 + 1);
    CHECK_IDS(prompts_at(prompts, 1), {"<|im_start|>Q plain<|im_end|>", TOKENIZER_ADD_SPECIAL});
    ck_assert_str_eq(prompts_at(prompts, 2)->text, "m");
    prompts_destroy(prompts);
    config.data.special_tokens_in_text = CONFIG_SPECIAL_ALLOW;
    prompts = load(rows, &config, NULL);
    CHECK_IDS(prompts_at(prompts, 0),
              {"<|im_start|>Q x<|im_end|>y<|im_end|>", TOKENIZER_ADD_SPECIAL});
    prompts_destroy(prompts);
    config.data.prompt_template = "Q {promt}";
    refuse(rows, &config, "data.prompt_template: expected {prompt} exactly once");
    config.data.prompt_template = "{prompt}{prompt}";
    refuse(rows, &config, "exactly once");
    config.data.prompt_template = "{prompt}";
    config.data.system_prompt = "Be brief.";
    refuse(rows, &config, "data.system_prompt needs a chat template");
    config.data.prompt_template = "";
    refuse(rows, &config, "data.system_prompt needs a chat template");
}
END_TEST

START_TEST(chat_prompts)
{
    static const char rows[] =
        "{\"prompt\":\"hi <|im_end|>\"}\n"
        "{\"prompt\":[{\"role\":\"system\",\"content\":\"own\"},{\"role\":\"user\",\"content\":"
        "\"u\"}]"
        "}\n"
        "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":"
        "\"b\"},{\"role\":\"user\",\"content\":\"c\"}]}\n";
    struct rl_config config = make_config();
    struct chat_template *chat = NULL;
    config.data.system_prompt = "S";
    ck_assert_int_eq(chat_template_create(tokenizer, "chatml", &chat), RL_OK);
    struct prompts *prompts = load(rows, &config, chat);
    CHECK_IDS(prompts_at(prompts, 0), {"<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n", 0},
              {"hi <|im_end|>", TOKENIZER_PLAIN_TEXT}, {"<|im_end|>\n<|im_start|>assistant\n", 0});
    CHECK_IDS(prompts_at(prompts, 1), {"<|im_start|>system\nown<|im_end|>\n<|im_start|>user\n"
                                       "u<|im_end|>\n<|im_start|>assistant\n",
                                       0});
    CHECK_IDS(prompts_at(prompts, 2),
              {"<|im_start|>system\nS<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>"
               "assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n",
               0});
    ck_assert_str_eq(prompts_at(prompts, 2)->text, "c");
    prompts_destroy(prompts);
    chat_template_destroy(chat);
}
END_TEST

START_TEST(order_is_a_permutation)
{
    enum { COUNT = 100, EPOCHS = 3 };
    struct prompt_order *order = NULL;
    ck_assert_int_eq(prompt_order_create(COUNT, 7, true, &order), RL_OK);
    uint64_t ids[EPOCHS][COUNT];
    for (uint64_t epoch = 0; epoch < EPOCHS; epoch++) {
        bool seen[COUNT] = {false};
        for (uint64_t i = 0; i < COUNT; i++) {
            uint32_t got = 99;
            ck_assert_int_eq(prompt_order_at(order, epoch * COUNT + i, &ids[epoch][i], &got),
                             RL_OK);
            ck_assert_uint_eq(got, epoch);
            ck_assert_uint_lt(ids[epoch][i], COUNT);
            ck_assert(!seen[ids[epoch][i]]);
            seen[ids[epoch][i]] = true;
        }
    }
    ck_assert_mem_ne(ids[0], ids[1], sizeof(ids[0]));
    ck_assert_mem_ne(ids[1], ids[2], sizeof(ids[0]));
    prompt_order_destroy(order);
    /* a fresh one, asked out of order, agrees: the position alone decides */
    ck_assert_int_eq(prompt_order_create(COUNT, 7, true, &order), RL_OK);
    for (uint64_t i = EPOCHS * COUNT; i > 0; i -= 37 < i ? 37 : i) {
        uint64_t id = 0;
        uint32_t epoch = 0;
        ck_assert_int_eq(prompt_order_at(order, i - 1, &id, &epoch), RL_OK);
        ck_assert_uint_eq(id, ids[(i - 1) / COUNT][(i - 1) % COUNT]);
    }
    prompt_order_destroy(order);
}
END_TEST

START_TEST(order_seed_and_plain)
{
    struct prompt_order *a = NULL;
    struct prompt_order *b = NULL;
    struct prompt_order *plain = NULL;
    ck_assert_int_eq(prompt_order_create(50, 1, true, &a), RL_OK);
    ck_assert_int_eq(prompt_order_create(50, 2, true, &b), RL_OK);
    ck_assert_int_eq(prompt_order_create(50, 1, false, &plain), RL_OK);
    int different = 0;
    for (uint64_t i = 0; i < 120; i++) {
        uint64_t id[3];
        uint32_t epoch = 0;
        ck_assert_int_eq(prompt_order_at(a, i, &id[0], &epoch), RL_OK);
        ck_assert_int_eq(prompt_order_at(b, i, &id[1], &epoch), RL_OK);
        ck_assert_int_eq(prompt_order_at(plain, i, &id[2], &epoch), RL_OK);
        different += id[0] != id[1];
        ck_assert_uint_eq(id[2], i % 50);
        ck_assert_uint_eq(epoch, i / 50);
    }
    ck_assert_int_gt(different, 80);
    uint64_t id = 0;
    uint32_t epoch = 0;
    ck_assert_int_eq(prompt_order_at(a, UINT64_MAX, &id, &epoch), RL_INVALID);
    prompt_order_destroy(plain);
    prompt_order_destroy(b);
    prompt_order_destroy(a);
    prompt_order_destroy(NULL);
    ck_assert_int_eq(prompt_order_create(0, 1, true, &a), RL_INVALID);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("rollout_prompts");
    TCase *tcase = tcase_create("prompts");
    tcase_set_timeout(tcase, 60);
    tcase_add_checked_fixture(tcase, set_up, tear_down);
    tcase_add_test(tcase, field_spellings);
    tcase_add_test(tcase, several_files_and_hash);
    tcase_add_test(tcase, bad_rows_are_named);
    tcase_add_test(tcase, bad_rows_are_counted);
    tcase_add_test(tcase, long_prompts_are_dropped);
    tcase_add_test(tcase, line_limit);
    tcase_add_test(tcase, unreadable_files);
    tcase_add_test(tcase, special_tokens_in_text);
    tcase_add_test(tcase, prompt_template);
    tcase_add_test(tcase, chat_prompts);
    suite_add_tcase(suite, tcase);
    TCase *order = tcase_create("order");
    tcase_add_test(order, order_is_a_permutation);
    tcase_add_test(order, order_seed_and_plain);
    suite_add_tcase(suite, order);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
