/* The manifest. Owns its text: a JSON object whose last member is the hash of all text before that
 * member. Invariant: what verify accepts is byte for byte what write made. */
#include "trainer/checkpoint_manifest.h"

#include "core/clock.h"
#include "core/hash.h"
#include "core/log.h"
#include "core/text.h"
#include "transport/atomic_file.h"
#include "transport/file_hash.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    MANIFEST_FORMAT = 1,
    MANIFEST_BYTES_MAX = 1024 * 1024,
    MANIFEST_FILES_MAX = 1000,
    MANIFEST_PATH_MAX = 4096
};
#define MANIFEST_NAME "MANIFEST.json"
#define MANIFEST_SEAL "\n \"xxh3\": \""

static rl_status path_join(const char *dir, const char *name, char *out)
{
    int length = snprintf(out, MANIFEST_PATH_MAX, "%s/%s", dir, name);
    if (length < 0 || length >= MANIFEST_PATH_MAX) {
        return rl_fail(RL_TOO_LONG, "%s/%s: the path is too long", dir, name);
    }
    return RL_OK;
}

/* Names that need no escaping in JSON and lead nowhere else. */
static bool name_is_plain(const char *name)
{
    if (name[0] == '\0' || name[0] == '.') {
        return false;
    }
    for (const char *c = name; *c != '\0'; c++) {
        bool fine = (*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') ||
                    (*c >= '0' && *c <= '9') || *c == '_' || *c == '-' || *c == '.';
        if (!fine) {
            return false;
        }
    }
    return true;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void names_free(char **names, size_t count)
{
    for (size_t i = 0; names != NULL && i < count; i++) {
        free(names[i]);
    }
    free(names);
}

/* Sorted names of what lies in the folder, the manifest apart. */
static rl_status names_collect(const char *dir, DIR *list, char **names, size_t *count)
{
    for (struct dirent *entry = readdir(list); entry != NULL; entry = readdir(list)) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0 ||
            strcmp(entry->d_name, MANIFEST_NAME) == 0) {
            continue;
        }
        if (!name_is_plain(entry->d_name) || *count >= MANIFEST_FILES_MAX) {
            return rl_fail(RL_INVALID, "%s: holds \"%s\", which no checkpoint has", dir,
                           entry->d_name);
        }
        RL_TRY(rl_text_copy(entry->d_name, &names[*count]));
        ++*count;
    }
    qsort(names, *count, sizeof *names, by_name);
    return RL_OK;
}

static rl_status names_list(const char *dir, char ***out, size_t *out_count)
{
    DIR *list = opendir(dir);
    if (list == NULL) {
        return rl_fail(RL_IO, "%s: cannot read the folder: %s", dir, strerror(errno));
    }
    char **names = calloc(MANIFEST_FILES_MAX, sizeof *names);
    size_t count = 0;
    rl_status status = names == NULL ? rl_fail(RL_NO_MEMORY, "%s: no memory to list it", dir)
                                     : names_collect(dir, list, names, &count);
    closedir(list);
    if (status != RL_OK) {
        names_free(names, count);
        return status;
    }
    *out = names;
    *out_count = count;
    return RL_OK;
}

static rl_status text_add_file(struct rl_text *text, const char *dir, const char *name, bool first)
{
    char path[MANIFEST_PATH_MAX];
    uint64_t bytes = 0;
    uint64_t hash = 0;
    RL_TRY(path_join(dir, name, path));
    RL_TRY(file_hash(path, &bytes, &hash));
    return rl_text_printf(
        text, "%s\n  {\"name\": \"%s\", \"bytes\": %" PRIu64 ", \"xxh3\": \"%016" PRIx64 "\"}",
        first ? "" : ",", name, bytes, hash);
}

static rl_status text_make(struct rl_text *text, const char *dir, uint64_t step, uint64_t version,
                           char *const *names, size_t count)
{
    RL_TRY(rl_text_printf(text,
                          "{\n \"format\": %d,\n \"step\": %" PRIu64 ",\n \"version\": %" PRIu64
                          ",\n \"written\": %.0f,\n \"files\": [",
                          MANIFEST_FORMAT, step, version, rl_clock_wall_s()));
    for (size_t i = 0; i < count; i++) {
        RL_TRY(text_add_file(text, dir, names[i], i == 0));
    }
    RL_TRY(rl_text_append_str(text, "\n ],"));
    uint64_t seal = rl_hash(text->data, text->bytes);
    return rl_text_printf(text, MANIFEST_SEAL "%016" PRIx64 "\"\n}\n", seal);
}

rl_status checkpoint_manifest_write(const char *dir, uint64_t step, uint64_t version)
{
    char path[MANIFEST_PATH_MAX];
    char **names = NULL;
    size_t count = 0;
    RL_TRY(path_join(dir, MANIFEST_NAME, path));
    RL_TRY(names_list(dir, &names, &count));
    struct rl_text text;
    rl_text_init(&text, MANIFEST_BYTES_MAX);
    rl_status status = text_make(&text, dir, step, version, names, count);
    if (status == RL_OK) {
        status = atomic_file_write_all(path, text.data, text.bytes);
    }
    rl_text_fini(&text);
    names_free(names, count);
    return status;
}

/* The seal must be the last thing in the text and match everything before it. */
static rl_status seal_check(const char *path, const char *text, size_t bytes)
{
    size_t tail = strlen(MANIFEST_SEAL) + 16 + strlen("\"\n}\n");
    if (bytes <= tail) {
        return rl_fail(RL_CORRUPT, "%s: too short for a manifest", path);
    }
    char expected[64];
    snprintf(expected, sizeof expected, MANIFEST_SEAL "%016" PRIx64 "\"\n}\n",
             rl_hash(text, bytes - tail));
    if (memcmp(text + bytes - tail, expected, tail) != 0) {
        return rl_fail(RL_CORRUPT, "%s: its text does not match its own hash", path);
    }
    return RL_OK;
}

/* One entry against its file. */
static rl_status file_check(const char *dir, const json_t *entry)
{
    const char *name = json_string_value(json_object_get(entry, "name"));
    const char *hash = json_string_value(json_object_get(entry, "xxh3"));
    const json_t *bytes = json_object_get(entry, "bytes");
    char path[MANIFEST_PATH_MAX];
    uint64_t found_bytes = 0;
    uint64_t found_hash = 0;
    if (name == NULL || hash == NULL || !json_is_integer(bytes) || !name_is_plain(name)) {
        return rl_fail(RL_CORRUPT, "%s: the manifest has a malformed entry", dir);
    }
    RL_TRY(path_join(dir, name, path));
    if (file_hash(path, &found_bytes, &found_hash) != RL_OK) {
        return RL_CORRUPT;
    }
    if (found_bytes != (uint64_t)json_integer_value(bytes)) {
        return rl_fail(RL_CORRUPT, "%s: %" PRIu64 " bytes, the manifest says %" JSON_INTEGER_FORMAT,
                       path, found_bytes, json_integer_value(bytes));
    }
    char text[17];
    snprintf(text, sizeof text, "%016" PRIx64, found_hash);
    if (strcmp(text, hash) != 0) {
        return rl_fail(RL_CORRUPT, "%s: hash %s, the manifest says %s", path, text, hash);
    }
    return RL_OK;
}

static bool files_include(const json_t *files, const char *name)
{
    for (size_t i = 0; i < json_array_size(files); i++) {
        const char *entry = json_string_value(json_object_get(json_array_get(files, i), "name"));
        if (entry != NULL && strcmp(entry, name) == 0) {
            return true;
        }
    }
    return false;
}

static rl_status files_check(const char *dir, const json_t *files)
{
    static const char *const needed[] = {"config.json", "model.safetensors", "state.h5"};
    for (size_t i = 0; i < sizeof needed / sizeof needed[0]; i++) {
        if (!files_include(files, needed[i])) {
            return rl_fail(RL_CORRUPT, "%s: the manifest does not name %s", dir, needed[i]);
        }
    }
    for (size_t i = 0; i < json_array_size(files); i++) {
        RL_TRY(file_check(dir, json_array_get(files, i)));
    }
    return RL_OK;
}

static rl_status manifest_check(const char *dir, const char *path, const json_t *root,
                                uint64_t *step)
{
    const json_t *format = json_object_get(root, "format");
    const json_t *number = json_object_get(root, "step");
    const json_t *files = json_object_get(root, "files");
    if (json_integer_value(format) != MANIFEST_FORMAT || !json_is_integer(number) ||
        json_integer_value(number) < 0 || !json_is_array(files)) {
        return rl_fail(RL_CORRUPT, "%s: not a manifest of format %d", path, MANIFEST_FORMAT);
    }
    RL_TRY(files_check(dir, files));
    *step = (uint64_t)json_integer_value(number);
    return RL_OK;
}

rl_status checkpoint_manifest_verify(const char *dir, uint64_t *step)
{
    char path[MANIFEST_PATH_MAX];
    char *text = NULL;
    size_t bytes = 0;
    RL_TRY(path_join(dir, MANIFEST_NAME, path));
    if (access(path, F_OK) != 0) {
        return rl_fail(RL_NOT_FOUND, "%s: no manifest, so it was never finished", dir);
    }
    RL_TRY(rl_file_read(path, MANIFEST_BYTES_MAX, &text, &bytes));
    rl_status status = seal_check(path, text, bytes);
    if (status == RL_OK) {
        json_error_t error;
        json_t *root = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &error);
        status = root == NULL ? rl_fail(RL_CORRUPT, "%s: line %d: %s", path, error.line, error.text)
                              : manifest_check(dir, path, root, step);
        json_decref(root);
    }
    free(text);
    return status;
}
