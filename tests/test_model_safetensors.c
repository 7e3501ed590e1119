/* The safetensors reader against hostile files, conversions, shards, and the writer. Files are made
 * here; a larger collection beside the source tree is used too where it exists. */
#include "core/log.h"
#include "core/text.h"
#include "model/safetensors.h"

#include <check.h>
#include <jansson.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[] = "safetensors_XXXXXX";

static void folder_make(void)
{
    snprintf(folder, sizeof folder, "safetensors_XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
}

static void folder_remove(void)
{
    static const char *const names[] = {"x.safetensors", "model.safetensors.index.json",
                                        "a.safetensors", "b.safetensors", "model.safetensors"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char path[256];
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        unlink(path);
    }
    ck_assert_int_eq(rmdir(folder), 0);
}

static void write_file(const char *name, const void *data, size_t bytes, char path[256])
{
    snprintf(path, 256, "%s/%s", folder, name);
    FILE *file = fopen(path, "wb");
    ck_assert_ptr_nonnull(file);
    ck_assert_uint_eq(fwrite(data, 1, bytes, file), bytes);
    ck_assert_int_eq(fclose(file), 0);
}

/* A file of this header and `data_bytes` bytes 0, 1, 2, ... */
static void write_safetensors(const char *name, const char *header, size_t data_bytes,
                              char path[256])
{
    size_t length = strlen(header);
    unsigned char *bytes = malloc(8 + length + data_bytes);
    for (int i = 0; i < 8; i++) {
        bytes[i] = (unsigned char)((uint64_t)length >> (8 * i));
    }
    memcpy(bytes + 8, header, length);
    for (size_t i = 0; i < data_bytes; i++) {
        bytes[8 + length + i] = (unsigned char)i;
    }
    write_file(name, bytes, 8 + length + data_bytes, path);
    free(bytes);
}

struct header_case {
    const char *header;
    size_t data_bytes;
    const char *expected; /* part of the error; NULL: must be accepted */
};

#define TENSOR(name, dtype, shape, begin, end)                                                     \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" begin "," end   \
    "]}"

static const struct header_case header_cases[] = {
    {"{}", 0, NULL},
    {"{}  \n", 0, NULL},
    {"{" TENSOR("a", "F32", "[2]", "0", "8") "}", 8, NULL},
    {"{ " TENSOR("b", "F32", "[1]", "8", "12") " , " TENSOR("a", "I64", "[1,1]", "0", "8") " }", 12,
     NULL},
    {"{" TENSOR("a", "F32", "[]", "0", "4") "}", 4, NULL},
    {"{" TENSOR("a", "F32", "[0,5]", "0", "0") "," TENSOR("b", "U8", "[0]", "0", "0") "}", 0, NULL},
    {"{" TENSOR("a", "F4", "[3,2]", "0", "3") "}", 3, NULL},
    {"{\"__metadata__\":{\"k\":\"\\u00e9\\ud83d\\ude00\\n\"}}", 0, NULL},
    {"{" TENSOR("\\u0041\\/", "U8", "[1]", "0", "1") "}", 1, NULL},
    {"", 0, "first byte"},
    {" {}", 0, "first byte"},
    {"[]", 0, "first byte"},
    {"{}x", 0, "garbage"},
    {"{", 0, "expected '\"'"},
    {"{\"a\":null}", 0, "expected '{'"},
    {"{\"a\":{}}", 0, "dtype is missing"},
    {"{" TENSOR("a", "F32", "[2]", "0", "8"), 8, "expected ','"},
    {"{" TENSOR("a", "F32", "[2]", "0", "8") ",}", 8, "expected '\"'"},
    {"{" TENSOR("a", "f32", "[2]", "0", "8") "}", 8, "unknown dtype f32"},
    {"{" TENSOR("a", "F32", "[3]", "0", "8") "}", 8, "do not span"},
    {"{" TENSOR("a", "F32", "[2]", "8", "0") "}", 8, "do not span"},
    {"{" TENSOR("a", "F4", "[3]", "0", "2") "}", 2, "whole number of bytes"},
    {"{" TENSOR("a", "F32", "[2]", "0", "8") "}", 9, "end at byte 8"},
    {"{" TENSOR("a", "F32", "[2]", "0", "8") "}", 7, "end at byte 8"},
    {"{" TENSOR("a", "U8", "[2]", "0", "2") "," TENSOR("b", "U8", "[2]", "1", "3") "}", 3,
     "overlap"},
    {"{" TENSOR("a", "U8", "[2]", "0", "2") "," TENSOR("b", "U8", "[1]", "3", "4") "}", 4, "hole"},
    {"{" TENSOR("a", "U8", "[1]", "1", "2") "}", 2, "hole"},
    {"{" TENSOR("a", "U8", "[1]", "0", "1") "," TENSOR("\\u0061", "U8", "[1]", "1", "2") "}", 2,
     "duplicate tensor name a"},
    {"{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
     "duplicate field dtype"},
    {"{\"__metadata__\":{},\"__metadata__\":{}}", 0, "duplicate __metadata__"},
    {"{\"__metadata__\":{\"a\":\"1\",\"a\":\"2\"}}", 0, "duplicate metadata key a"},
    {"{\"__metadata__\":{\"a\":1}}", 0, "expected '\"'"},
    {"{" TENSOR("a", "U8", "[-1]", "0", "1") "}", 1, "integer >= 0"},
    {"{" TENSOR("a", "U8", "[-0]", "0", "0") "}", 0, "integer >= 0"},
    {"{" TENSOR("a", "U8", "[1.0]", "0", "1") "}", 1, "real number"},
    {"{" TENSOR("a", "U8", "[1e0]", "0", "1") "}", 1, "real number"},
    {"{" TENSOR("a", "U8", "[01]", "0", "1") "}", 1, "leading zero"},
    {"{" TENSOR("a", "U8", "[\"1\"]", "0", "1") "}", 1, "integer >= 0"},
    {"{" TENSOR("a", "U8", "[1,]", "0", "1") "}", 1, "integer >= 0"},
    {"{" TENSOR("a", "U8", "[18446744073709551617]", "0", "1") "}", 1, "64 bits"},
    {"{" TENSOR("a", "U8", "[9223372036854775808]", "0", "1") "}", 1, "63 bits"},
    {"{" TENSOR("a", "U8", "[4294967296,4294967296]", "0", "0") "}", 0, "overflows"},
    {"{" TENSOR("a", "F32", "[4611686018427387904]", "0", "0") "}", 0, "whole number of bytes"},
    {"{" TENSOR("a", "U8", "[1]", "18446744073709551616", "18446744073709551617") "}", 1,
     "64 bits"},
    {"{" TENSOR("a", "U8", "[1,1,1,1,1,1,1,1,1]", "0", "1") "}", 1, "more than 8"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1,2]}}", 1, "expected ']'"},
    {"{" TENSOR("\\ud800", "U8", "[1]", "0", "1") "}", 1, "lone surrogate"},
    {"{" TENSOR("\\udc00", "U8", "[1]", "0", "1") "}", 1, "lone surrogate"},
    {"{" TENSOR("\\u0000", "U8", "[1]", "0", "1") "}", 1, "NUL"},
    {"{" TENSOR("\\x", "U8", "[1]", "0", "1") "}", 1, "unknown escape"},
    {"{" TENSOR("\xff", "U8", "[1]", "0", "1") "}", 1, "UTF-8"},
    {"{" TENSOR("\xc0\xaf", "U8", "[1]", "0", "1") "}", 1, "UTF-8"},
    {"{" TENSOR("\xed\xa0\x80", "U8", "[1]", "0", "1") "}", 1, "UTF-8"},
    {"{" TENSOR("\n", "U8", "[1]", "0", "1") "}", 1, "control character"},
};

START_TEST(headers_are_judged)
{
    const struct header_case *c = &header_cases[_i];
    struct safetensors *file = NULL;
    char path[256];
    folder_make();
    write_safetensors("x.safetensors", c->header, c->data_bytes, path);
    rl_status status = safetensors_open(path, &file);
    if (c->expected == NULL) {
        ck_assert_msg(status == RL_OK, "%s: %s", c->header, rl_log_last_error());
        safetensors_close(file);
    } else {
        ck_assert_msg(status == RL_CORRUPT, "accepted: %s", c->header);
        ck_assert_msg(strstr(rl_log_last_error(), c->expected) != NULL,
                      "%s: wanted \"%s\", got: %s", c->header, c->expected, rl_log_last_error());
        ck_assert_msg(strstr(rl_log_last_error(), path) != NULL, "no path in the error");
        ck_assert_ptr_null(file);
    }
    folder_remove();
}
END_TEST

START_TEST(lengths_are_judged)
{
    static const struct {
        const char *bytes;
        size_t count;
    } files[] = {
        {"", 0},
        {"\2\0\0\0\0\0\0", 7},
        {"\2\0\0\0\0\0\0\0", 8},
        {"\0\0\0\0\0\0\0\0{}", 10},
        {"\3\0\0\0\0\0\0\0{}", 10},
        {"\1\0\0\0\0\0\0\0{}", 10},
        {"\2\0\0\0\1\0\0\0{}", 10},
        {"\xff\xff\xff\xff\xff\xff\xff\xff{}", 10},
        {"\2\0\0\0\0\0\0\x80{}", 10},
        {"\0\0\0\0\0\0\0\2{}", 10},
    };
    struct safetensors *file = NULL;
    char path[256];
    folder_make();
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        write_file("x.safetensors", files[i].bytes, files[i].count, path);
        ck_assert_msg(safetensors_open(path, &file) == RL_CORRUPT, "file %zu accepted", i);
    }
    ck_assert_int_eq(safetensors_open(folder, &file), RL_IO);
    ck_assert_int_eq(unlink(path), 0);
    ck_assert_int_eq(safetensors_open(path, &file), RL_IO);
    ck_assert_int_eq(mkfifo(path, 0600), 0);
    ck_assert_int_eq(safetensors_open(path, &file), RL_IO); /* and does not wait for a writer */
    folder_remove();
}
END_TEST

/* 20,000 levels of nesting, and 100,000 tensors: neither the stack nor time runs out. */
START_TEST(large_headers_are_handled)
{
    struct rl_text text;
    struct safetensors *file = NULL;
    char path[256];
    folder_make();
    rl_text_init(&text, 1 << 26);
    ck_assert_int_eq(rl_text_append_str(&text, "{\"a\":"), RL_OK);
    for (int i = 0; i < 20000; i++) {
        ck_assert_int_eq(rl_text_append_str(&text, "[{"), RL_OK);
    }
    write_safetensors("x.safetensors", rl_text_str(&text), 0, path);
    ck_assert_int_eq(safetensors_open(path, &file), RL_CORRUPT);
    rl_text_clear(&text);
    for (int i = 0; i < 100000; i++) {
        ck_assert_int_eq(rl_text_printf(&text, "%c" TENSOR("t%d", "U8", "[1]", "%d", "%d"),
                                        i == 0 ? '{' : ',', (i * 7919) % 100000, i, i + 1),
                         RL_OK);
    }
    ck_assert_int_eq(rl_text_append_str(&text, "}"), RL_OK);
    write_safetensors("x.safetensors", rl_text_str(&text), 100000, path);
    ck_assert_int_eq(safetensors_open(path, &file), RL_OK);
    ck_assert_int_eq(safetensors_count(file), 100000);
    for (int i = 0; i < 100000; i += 997) {
        char name[16];
        snprintf(name, sizeof name, "t%d", (i * 7919) % 100000);
        const struct safetensors_entry *entry = safetensors_find(file, name);
        ck_assert_ptr_nonnull(entry);
        ck_assert_int_eq(*(const unsigned char *)entry->data, i % 256);
    }
    ck_assert_ptr_null(safetensors_find(file, "t100000"));
    safetensors_close(file);
    rl_text_fini(&text);
    folder_remove();
}
END_TEST

START_TEST(values_are_converted)
{
    static const struct {
        uint16_t half;
        float value;
    } halves[] = {{0x0000, 0.0F},     {0x8000, -0.0F},    {0x3c00, 1.0F},
                  {0xc000, -2.0F},    {0x0001, 0x1p-24F}, {0x03ff, 0x1.ff8p-15F},
                  {0x0400, 0x1p-14F}, {0x7bff, 65504.0F}, {0x7c00, INFINITY},
                  {0xfc00, -INFINITY}};
    struct safetensors_entry entry = {.name = "h", .dtype = "F16", .rank = 1, .shape = {1}};
    unsigned char odd[9];
    float value = 0.0F;
    for (size_t i = 0; i < sizeof halves / sizeof halves[0]; i++) {
        memcpy(odd + 1, &halves[i].half, 2); /* an odd address */
        entry.data = odd + 1;
        ck_assert_int_eq(safetensors_check_dtype(&entry), RL_OK);
        safetensors_to_fp32(&entry, 0, 1, &value);
        ck_assert_msg(memcmp(&value, &halves[i].value, 4) == 0, "half %04x gives %g",
                      halves[i].half, (double)value);
    }
    const float third = -1.0F / 3.0F;
    memcpy(odd + 1, (const unsigned char *)&third + 2, 2);
    entry.dtype = "BF16";
    ck_assert_int_eq(safetensors_check_dtype(&entry), RL_OK);
    safetensors_to_fp32(&entry, 0, 1, &value);
    ck_assert_float_eq_tol(value, third, 1e-2F);
    memcpy(odd + 1, &third, 4);
    entry.dtype = "F32";
    ck_assert_int_eq(safetensors_check_dtype(&entry), RL_OK);
    safetensors_to_fp32(&entry, 0, 1, &value);
    ck_assert(value == third);
    entry.dtype = "I64";
    ck_assert_int_eq(safetensors_check_dtype(&entry), RL_UNSUPPORTED);
}
END_TEST

START_TEST(written_files_are_read_back)
{
    const float first[6] = {1, 2, 3, 4, 5, 6};
    const uint16_t second[3] = {7, 8, 9};
    const struct safetensors_entry entries[2] = {
        {"z \"quoted\\\" \xc3\xa9\n", "F32", 2, {2, 3}, first, sizeof first},
        {"a", "BF16", 1, {3}, second, sizeof second},
    };
    struct safetensors *file = NULL;
    char path[256];
    folder_make();
    snprintf(path, sizeof path, "%s/x.safetensors", folder);
    ck_assert_int_eq(safetensors_write(path, entries, 2), RL_OK);
    ck_assert_int_eq(safetensors_open(path, &file), RL_OK);
    ck_assert_int_eq(safetensors_count(file), 2);
    ck_assert_str_eq(safetensors_metadata(file, "format"), "pt");
    ck_assert_ptr_null(safetensors_metadata(file, "other"));
    const struct safetensors_entry *entry = safetensors_find(file, entries[0].name);
    ck_assert_ptr_nonnull(entry);
    ck_assert_int_eq(entry->rank, 2);
    ck_assert_int_eq(entry->shape[1], 3);
    ck_assert_mem_eq(entry->data, first, sizeof first);
    ck_assert_uint_eq((uintptr_t)entry->data % 8, 0);
    entry = safetensors_find(file, "a");
    ck_assert_mem_eq(entry->data, second, sizeof second);
    safetensors_close(file);
    /* A wrong entry is refused and leaves the file that is there alone. */
    struct safetensors_entry wrong = entries[0];
    wrong.bytes = 20;
    ck_assert_int_eq(safetensors_write(path, &wrong, 1), RL_INVALID);
    ck_assert_int_eq(safetensors_open(path, &file), RL_OK);
    safetensors_close(file);
    folder_remove();
}
END_TEST

struct index_case {
    const char *index;
    const char *expected; /* NULL: accepted */
};

#define SHARD_A TENSOR("p", "U8", "[2]", "0", "2")
#define SHARD_B TENSOR("q", "U8", "[1]", "0", "1") "," TENSOR("r", "U8", "[1]", "1", "2")

static const struct index_case index_cases[] = {
    {"{\"metadata\":{\"total_size\":4},\"weight_map\":{\"p\":\"a.safetensors\",\"q\":\"b."
     "safetensors\",\"r\":\"b.safetensors\"}}",
     NULL},
    {"{\"weight_map\":{\"p\":\"a.safetensors\",\"q\":\"b.safetensors\"}}", "r is in b.safetensors"},
    {"{\"weight_map\":{\"p\":\"a.safetensors\",\"q\":\"b.safetensors\",\"r\":\"a.safetensors\"}}",
     "r is in b.safetensors"},
    {"{\"weight_map\":{\"p\":\"a.safetensors\",\"s\":\"a.safetensors\"}}",
     "s is not in its shard a.safetensors"},
    {"{\"weight_map\":{\"p\":\"c.safetensors\"}}", "cannot open"},
    {"{\"weight_map\":{\"p\":\"../a.safetensors\"}}", "same folder"},
    {"{\"weight_map\":{\"p\":\"/etc/passwd\"}}", "same folder"},
    {"{\"weight_map\":{\"p\":\"..\"}}", "same folder"},
    {"{\"weight_map\":{\"p\":\"\"}}", "same folder"},
    {"{\"weight_map\":{\"p\":3}}", "must be a file name"},
    {"{\"weight_map\":{}}", "names 0 shards"},
    {"{\"weight_map\":[]}", "weight_map must be an object"},
    {"{}", "weight_map must be an object"},
    {"[]", "must be a JSON object"},
    {"{\"weight_map\":{\"p\":\"a.saf", "not valid JSON"},
    {"{\"weight_map\":{\"p\":\"a.safetensors\",\"p\":\"a.safetensors\"}}", "not valid JSON"},
};

START_TEST(indices_are_judged)
{
    const struct index_case *c = &index_cases[_i];
    struct safetensors *file = NULL;
    char path[256];
    folder_make();
    write_safetensors("a.safetensors", "{" SHARD_A "}", 2, path);
    write_safetensors("b.safetensors", "{" SHARD_B "}", 2, path);
    write_file("model.safetensors.index.json", c->index, strlen(c->index), path);
    rl_status status = safetensors_open_folder(folder, &file);
    if (c->expected == NULL) {
        ck_assert_msg(status == RL_OK, "%s: %s", c->index, rl_log_last_error());
        ck_assert_int_eq(safetensors_count(file), 3);
        const struct safetensors_entry *entry = safetensors_find(file, "r");
        ck_assert_int_eq(*(const unsigned char *)entry->data, 1);
        safetensors_close(file);
    } else {
        ck_assert_msg(status != RL_OK, "accepted: %s", c->index);
        ck_assert_msg(strstr(rl_log_last_error(), c->expected) != NULL,
                      "%s: wanted \"%s\", got: %s", c->index, c->expected, rl_log_last_error());
    }
    folder_remove();
}
END_TEST

/* Collection beside the source tree: {valid, malformed: [{file, must_reject, level}]}. */
static void judge_listed(const char *base, const json_t *item, bool malformed)
{
    char path[1024];
    struct safetensors *file = NULL;
    const char *name = json_string_value(json_object_get(item, "file"));
    const char *level = json_string_value(json_object_get(item, "level"));
    bool optional = json_is_true(json_object_get(item, "optional")) ||
                    (malformed && !json_is_true(json_object_get(item, "must_reject")));
    snprintf(path, sizeof path, "%s/%s", base, name);
    rl_status status = RL_OK;
    if (level != NULL && strcmp(level, "index") == 0) {
        *strrchr(path, '/') = '\0';
        status = safetensors_open_folder(path, &file);
    } else {
        status = safetensors_open(path, &file);
    }
    if (status == RL_OK) {
        safetensors_close(file);
    }
    ck_assert_msg(optional || (status == RL_OK) != malformed, "%s: %s", name,
                  status == RL_OK ? "accepted" : rl_log_last_error());
}

START_TEST(collection_is_judged)
{
    static const char base[] = FORESIGHT_SOURCE_DIR "/../shared/data/safetensors";
    struct safetensors *file = NULL;
    json_t *manifest =
        json_load_file(FORESIGHT_SOURCE_DIR "/../shared/data/safetensors/manifest.json", 0, NULL);
    if (manifest == NULL) {
        return;
    }
    size_t i;
    json_t *item;
    json_array_foreach(json_object_get(manifest, "valid"), i, item)
    {
        judge_listed(base, item, false);
    }
    json_array_foreach(json_object_get(manifest, "malformed"), i, item)
    {
        judge_listed(base, item, true);
    }
    json_decref(manifest);
    ck_assert_int_eq(safetensors_open_folder(
                         FORESIGHT_SOURCE_DIR "/../shared/data/safetensors/valid/sharded", &file),
                     RL_OK);
    ck_assert_int_gt(safetensors_count(file), 0);
    safetensors_close(file);
}
END_TEST

static Suite *safetensors_suite(void)
{
    Suite *suite = suite_create("model_safetensors");
    TCase *tcase = tcase_create("files");
    rl_log_set_level(RL_LOG_ERROR);
    tcase_add_loop_test(tcase, headers_are_judged, 0,
                        (int)(sizeof header_cases / sizeof header_cases[0]));
    tcase_add_test(tcase, lengths_are_judged);
    tcase_add_test(tcase, large_headers_are_handled);
    tcase_add_test(tcase, values_are_converted);
    tcase_add_test(tcase, written_files_are_read_back);
    tcase_add_loop_test(tcase, indices_are_judged, 0,
                        (int)(sizeof index_cases / sizeof index_cases[0]));
    tcase_add_test(tcase, collection_is_judged);
    suite_add_tcase(suite, tcase);
    return suite;
}

int main(void)
{
    SRunner *runner = srunner_create(safetensors_suite());
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
