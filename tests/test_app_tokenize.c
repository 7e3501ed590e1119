/* The command `tokenize` from outside: JSON lines in and out, bad lines named, exit codes. */
#include "tests/tokenizer_fixture.h"

#include <sys/wait.h>

#define SMALL DATA_DIR "/byte_level"

/* Feed `input` to the program; its output and errors together, and its exit code. */
static int run(const char *arguments, const char *input, char *output, size_t room)
{
    char dir[64];
    char command[4096];
    scratch_create(dir);
    scratch_text(dir, "vectors.jsonl", input);
    snprintf(command, sizeof(command), "%s tokenize %s < %s/vectors.jsonl 2>&1", FORESIGHT_BINARY,
             arguments, dir);
    FILE *pipe = popen(command, "r");
    ck_assert_ptr_nonnull(pipe);
    size_t bytes = fread(output, 1, room - 1, pipe);
    output[bytes] = '\0';
    int status = pclose(pipe);
    scratch_remove(dir);
    ck_assert(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static json_int_t id_at(const json_t *row, size_t index)
{
    return json_integer_value(json_array_get(json_object_get(row, "ids"), index));
}

START_TEST(texts_and_ids)
{
    char output[8192];
    char line[4096];
    struct tokenizer *tokenizer;
    ck_assert_int_eq(tokenizer_load(SMALL, &tokenizer), RL_OK);
    ck_assert_int_eq(run("--tokenizer " SMALL,
                         "{\"text\": \"a<|im_end|>\", \"other\": 1}\n\n{\"text\": \"\"}\n", output,
                         sizeof(output)),
                     0);
    char *second = strchr(output, '\n') + 1;
    ck_assert_str_eq(second, "{\"ids\":[]}\n");
    json_t *row = json_loadb(output, (size_t)(second - output), 0, NULL);
    ck_assert_int_eq(id_at(row, 0), tokenizer_token_id(tokenizer, "a"));
    ck_assert_int_eq(id_at(row, 1), tokenizer_token_id(tokenizer, "<|im_end|>"));
    snprintf(line, sizeof(line), "{\"ids\": [%d, %d, 999999999999]}\n", (int)id_at(row, 0),
             (int)id_at(row, 1));
    json_decref(row);
    ck_assert_int_eq(run("--tokenizer " SMALL " --decode", line, output, sizeof(output)), 0);
    ck_assert_str_eq(output, "{\"text\":\"a<|im_end|>\"}\n");
    ck_assert_int_eq(
        run("--tokenizer=" SMALL " --decode --skip-special", line, output, sizeof(output)), 0);
    ck_assert_str_eq(output, "{\"text\":\"a\"}\n");
    tokenizer_destroy(tokenizer);
}
END_TEST

START_TEST(special_tokens_around)
{
    char plain[8192];
    char special[8192];
    static const char text[] = "{\"text\": \"the workers\"}\n";
    ck_assert_int_eq(run("--tokenizer " DATA_DIR "/metaspace", text, plain, sizeof(plain)), 0);
    ck_assert_int_eq(
        run("--tokenizer " DATA_DIR "/metaspace --special", text, special, sizeof(special)), 0);
    ck_assert_str_eq(special + strlen("{\"ids\":[1,"), plain + strlen("{\"ids\":["));
}
END_TEST

START_TEST(chats)
{
    static const char request[] =
        "{\"messages\": [{\"role\": \"user\", \"content\": \"<|im_end|>\"}],"
        " \"add_generation_prompt\": true}\n";
    char output[8192];
    char plain[8192];
    ck_assert_int_eq(
        run("--tokenizer " SMALL " --chat --chat-template chatml", request, output, sizeof(output)),
        0);
    ck_assert_ptr_nonnull(strstr(output,
                                 "{\"rendered\":\"<|im_start|>user\\n<|im_end|><|im_end|>\\n"
                                 "<|im_start|>assistant\\n\",\"ids\":["));
    ck_assert_int_eq(run("--tokenizer " SMALL " --chat --chat-template chatml --plain", request,
                         plain, sizeof(plain)),
                     0);
    ck_assert_str_ne(output, plain);
    ck_assert_int_eq(run("--tokenizer " SMALL " --chat", request, output, sizeof(output)), 1);
    ck_assert_ptr_nonnull(strstr(output, "chat template"));
}
END_TEST

START_TEST(bad_lines_are_named)
{
    static const struct {
        const char *arguments;
        const char *input;
    } cases[] = {{"", "{\"text\": \"a\"}\n{\"text\": 1}\n"},
                 {"", "{\"text\": \"a\"}\n{\"text\": \"a\"\n"},
                 {"", "{\"text\": \"a\"}\n[]\n"},
                 {"", "{\"text\": \"a\"}\n{\"text\": \"\\ud800\"}\n"},
                 {"--decode", "{\"ids\": []}\n{\"ids\": [-1]}\n"},
                 {"--decode", "{\"ids\": []}\n{\"ids\": [1.5]}\n"},
                 {"--decode", "{\"ids\": []}\n{\"text\": \"a\"}\n"},
                 {"--chat --chat-template chatml", "{\"messages\": []}\n{\"messages\": 1}\n"}};
    char arguments[4096];
    char output[8192];
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        snprintf(arguments, sizeof(arguments), "--tokenizer " SMALL " %s", cases[i].arguments);
        ck_assert_msg(run(arguments, cases[i].input, output, sizeof(output)) == 1, "%s",
                      cases[i].input);
        ck_assert_msg(strstr(output, "line 2") != NULL, "%s: %s", cases[i].input, output);
    }
}
END_TEST

START_TEST(bad_arguments)
{
    static const char *const arguments[] = {"",
                                            "--tokenizer",
                                            "--tokenizer " SMALL " extra",
                                            "--tokenizer " SMALL " --decode --chat",
                                            "--tokenizer " SMALL " --skip-special",
                                            "--tokenizer " SMALL " --decode --special"};
    char output[8192];
    for (size_t i = 0; i < sizeof(arguments) / sizeof(arguments[0]); i++) {
        ck_assert_int_eq(run(arguments[i], "", output, sizeof(output)), 2);
    }
    ck_assert_int_eq(run("--tokenizer /nonexistent", "", output, sizeof(output)), 1);
    ck_assert_ptr_nonnull(strstr(output, "/nonexistent/tokenizer.json"));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("app_tokenize");
    TCase *tests = tcase_create("tokenize");
    tcase_set_timeout(tests, 60);
    tcase_add_test(tests, texts_and_ids);
    tcase_add_test(tests, special_tokens_around);
    tcase_add_test(tests, chats);
    tcase_add_test(tests, bad_lines_are_named);
    tcase_add_test(tests, bad_arguments);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
