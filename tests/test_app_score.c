/* `foresight score` and `foresight export` as a user runs them, on the golden models. */
#include "model/safetensors.h"

#include <check.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define GOLDEN FORESIGHT_SOURCE_DIR "/tests/golden/"

enum { OUTPUT_MAX = 1 << 20 };

static char folder[] = "score_XXXXXX";

static void setup(void)
{
    snprintf(folder, sizeof folder, "score_XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
}

static void teardown(void)
{
    char command[256];
    snprintf(command, sizeof command, "rm -r ./%s", folder);
    ck_assert_int_eq(system(command), 0);
}

/* Run `foresight ARGUMENTS < input`; both streams into `output`; returns the exit code. */
static int run(const char *arguments, const char *input, char *output)
{
    char command[4096];
    snprintf(command, sizeof command, "%s/in", folder);
    FILE *file = fopen(command, "w");
    ck_assert_ptr_nonnull(file);
    fputs(input, file);
    ck_assert_int_eq(fclose(file), 0);
    snprintf(command, sizeof command, "%s %s < %s/in 2>&1", FORESIGHT_BINARY, arguments, folder);
    FILE *pipe = popen(command, "r");
    ck_assert_ptr_nonnull(pipe);
    size_t bytes = fread(output, 1, OUTPUT_MAX - 1, pipe);
    output[bytes] = '\0';
    int status = pclose(pipe);
    ck_assert(WIFEXITED(status));
    return WEXITSTATUS(status);
}

struct expected {
    struct safetensors *file;
    const int32_t *ids;  /* of the first sequence */
    const float *logits; /* [count, vocab] */
    int32_t count;
    int64_t vocab;
};

static void expected_open(struct expected *e, const char *path)
{
    ck_assert_int_eq(safetensors_open(path, &e->file), RL_OK);
    const struct safetensors_entry *logits = safetensors_find(e->file, "logits");
    e->ids = safetensors_find(e->file, "tokens")->data;
    e->logits = logits->data;
    e->vocab = logits->shape[1];
    memcpy(&e->count, safetensors_find(e->file, "lengths")->data, sizeof e->count);
}

/* log softmax(logits / temperature)[id] and the entropy, in double. */
static double score_row(const struct expected *e, int32_t row, double temperature, double *entropy)
{
    const float *z = e->logits + row * e->vocab;
    double sum = 0.0;
    double weighted = 0.0;
    for (int64_t i = 0; i < e->vocab; i++) {
        double value = (double)z[i] / temperature;
        sum += exp(value);
        weighted += exp(value) * value;
    }
    *entropy = log(sum) - weighted / sum;
    return (double)z[e->ids[row + 1]] / temperature - log(sum);
}

static void check_scores(const struct expected *e, const char *line, double temperature)
{
    json_t *root = json_loads(line, JSON_DISABLE_EOF_CHECK, NULL);
    const json_t *logprob = json_object_get(root, "logprob");
    const json_t *entropy = json_object_get(root, "entropy");
    ck_assert_msg((int32_t)json_array_size(logprob) == e->count - 1, "%.300s", line);
    ck_assert_int_eq((int32_t)json_array_size(entropy), e->count - 1);
    for (int32_t i = 0; i < e->count - 1; i++) {
        double h = 0.0;
        double want = score_row(e, i, temperature, &h);
        double found = json_real_value(json_array_get(logprob, (size_t)i));
        ck_assert_msg(fabs(found - want) < 1e-4, "token %d: %.7g, expected %.7g", i + 1, found,
                      want);
        ck_assert(fabs(json_real_value(json_array_get(entropy, (size_t)i)) - h) < 1e-4);
    }
    json_decref(root);
}

static void put_ids(const struct expected *e, char *out, size_t room)
{
    size_t used = (size_t)snprintf(out, room, "{\"ids\":[");
    for (int32_t i = 0; i < e->count; i++) {
        used += (size_t)snprintf(out + used, room - used, "%s%d", i == 0 ? "" : ",", e->ids[i]);
    }
    snprintf(out + used, room - used, "]}\n");
}

START_TEST(scores_match_the_reference)
{
    static char output[OUTPUT_MAX];
    char line[2048];
    char input[8192];
    struct expected e;
    expected_open(&e, GOLDEN "qwen3_untied/expected.safetensors");
    put_ids(&e, line, sizeof line);
    snprintf(input, sizeof input, "%s\n%s{\"ids\":[5]}\n", line, line);
    ck_assert_msg(run("score " GOLDEN "qwen3_untied --temperature 0.7 --threads 2 --json", input,
                      output) == 0,
                  "%s", output);
    char *second = strchr(output, '\n') + 1;
    char *third = strchr(second, '\n') + 1;
    check_scores(&e, output, 0.7);
    check_scores(&e, second, 0.7);
    ck_assert_msg(strncmp(third, "{\"logprob\":[],\"entropy\":[]}\n", 28) == 0, "%s", third);
    ck_assert_ptr_nonnull(strstr(third, "\"perplexity\":"));
    safetensors_close(e.file);
}
END_TEST

START_TEST(bad_lines_are_named)
{
    static const struct {
        const char *input, *expected;
    } cases[] = {
        {"{\"ids\":[1]}\n{\"ids\":[1,70]}\n", "line 2: ids[1] is 70"},
        {"{\"ids\":[]}\n", "line 1: 0 tokens"},
        {"{\"ids\":[1,-1]}\n", "line 1: ids[1] must be an integer"},
        {"\n\n{\"ids\":[1,2.5]}\n", "line 3: ids[1] must be an integer"},
        {"{\"ids\":[1", "line 1: not valid JSON"},
        {"[1,2]\n", "line 1: must be an object"},
        {"{\"ids\":[1],\"text\":\"x\"}\n", "line 1: must be an object"},
        {"{\"text\":\"no tokenizer here\"}\n", "tokenizer.json"},
    };
    static char output[OUTPUT_MAX];
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        ck_assert_int_eq(run("score " GOLDEN "qwen2_tied", cases[i].input, output), 1);
        ck_assert_msg(strstr(output, cases[i].expected) != NULL, "wanted \"%s\", got: %s",
                      cases[i].expected, output);
    }
    char input[1024] = "{\"ids\":[1";
    for (int i = 0; i < 64; i++) {
        snprintf(input + strlen(input), sizeof input - strlen(input), ",1");
    }
    snprintf(input + strlen(input), sizeof input - strlen(input), "]}\n");
    ck_assert_int_eq(run("score " GOLDEN "qwen2_tied", input, output), 1);
    ck_assert_msg(strstr(output, "line 1: 65 tokens, must be 1 to 64") != NULL, "%s", output);
    ck_assert_int_eq(run("score", "", output), 2);
    ck_assert_int_eq(run("score " GOLDEN "qwen2_tied --temperature 0", "", output), 2);
    ck_assert_int_eq(run("score " GOLDEN "qwen2_tied --wat", "", output), 2);
    ck_assert_int_eq(run("score " GOLDEN "none", "", output), 1);
}
END_TEST

static uint64_t file_fingerprint(const char *path, size_t *tensors)
{
    struct safetensors *file = NULL;
    uint64_t sum = 14695981039346656037U;
    ck_assert_int_eq(safetensors_open_folder(path, &file), RL_OK);
    for (int64_t i = 0; i < safetensors_count(file); i++) {
        const struct safetensors_entry *entry = safetensors_at(file, i);
        const unsigned char *data = entry->data;
        for (size_t j = 0; j < entry->bytes; j++) {
            sum = (sum ^ data[j]) * 1099511628211U;
        }
    }
    *tensors = (size_t)safetensors_count(file);
    safetensors_close(file);
    return sum;
}

START_TEST(exports_score_the_same)
{
    static char before[OUTPUT_MAX];
    static char after[OUTPUT_MAX];
    static const char input[] = "{\"ids\":[3,1,4,1,5,9,2,6,5,3,5,8,9,7,9,3,2,3,8,4]}\n";
    char arguments[512];
    ck_assert_int_eq(run("score " GOLDEN "llama3_rope", input, before), 0);
    snprintf(arguments, sizeof arguments, "export " GOLDEN "llama3_rope %s/out --json", folder);
    ck_assert_msg(run(arguments, "", after) == 0, "%s", after);
    ck_assert_ptr_nonnull(strstr(after, "\"dtype\":\"fp32\""));
    snprintf(arguments, sizeof arguments, "score %s/out", folder);
    ck_assert_int_eq(run(arguments, input, after), 0);
    ck_assert_str_eq(before, after);
    /* A folder that holds a model is not overwritten. */
    snprintf(arguments, sizeof arguments, "export " GOLDEN "qwen2_tied %s/out", folder);
    ck_assert_int_eq(run(arguments, "", after), 1);
    ck_assert_ptr_nonnull(strstr(after, "holds a model already"));
    /* bf16 of a model that was stored in bf16 loses nothing. */
    snprintf(arguments, sizeof arguments, "export " GOLDEN "qwen3_tied %s/bf --dtype bf16", folder);
    ck_assert_msg(run(arguments, "", after) == 0, "%s", after);
    ck_assert_int_eq(run("score " GOLDEN "qwen3_tied", input, before), 0);
    snprintf(arguments, sizeof arguments, "score %s/bf", folder);
    ck_assert_int_eq(run(arguments, input, after), 0);
    ck_assert_str_eq(before, after);
}
END_TEST

START_TEST(random_models_depend_on_the_seed_alone)
{
    static char output[OUTPUT_MAX];
    char arguments[512];
    char path[64];
    uint64_t sums[3];
    static const int seeds[3] = {1, 1, 2};
    size_t tensors = 0;
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/%d", folder, i);
        snprintf(arguments, sizeof arguments, "export " GOLDEN "qwen3_tied %s --random %d", path,
                 seeds[i]);
        ck_assert_msg(run(arguments, "", output) == 0, "%s", output);
        sums[i] = file_fingerprint(path, &tensors);
        ck_assert_uint_gt(tensors, 20);
    }
    ck_assert(sums[0] == sums[1]);
    ck_assert(sums[0] != sums[2]);
    ck_assert_int_eq(run("export " GOLDEN "qwen3_tied x --random -1", "", output), 2);
    ck_assert_int_eq(run("export " GOLDEN "qwen3_tied x --dtype fp8", "", output), 2);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("app_score");
    TCase *tcase = tcase_create("commands");
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, scores_match_the_reference);
    tcase_add_test(tcase, bad_lines_are_named);
    tcase_add_test(tcase, exports_score_the_same);
    tcase_add_test(tcase, random_models_depend_on_the_seed_alone);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
