/* `foresight inspect PATH`: finds out what a path is, looks into it, and prints what is there as
 * text or as one JSON line. Exit code 1, with the reason, if it is not sound. */
#include "app/app.h"
#include "app/commands.h"
#include "app/inspect.h"

#include "core/log.h"
#include "model/folder.h"
#include "transport/h5_file.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

/* --- what it is ------------------------------------------------------------------------------- */

static rl_status inspect_folder(const char *dir, json_t *out)
{
    if (model_folder_has(dir, "MANIFEST.json")) {
        return inspect_checkpoint(dir, out);
    }
    if (model_folder_has(dir, "metrics.jsonl") || model_folder_has(dir, "checkpoints") ||
        model_folder_has(dir, "rollouts")) {
        return inspect_run(dir, out);
    }
    if (model_folder_has(dir, "config.json")) {
        return inspect_model(dir, out);
    }
    if (model_folder_has(dir, "tokenizer.json")) {
        return inspect_tokenizer(dir, out);
    }
    return rl_fail(RL_UNSUPPORTED,
                   "%s: neither a checkpoint (MANIFEST.json), a run (metrics.jsonl, checkpoints/), "
                   "a model (config.json) nor a tokenizer (tokenizer.json)",
                   dir);
}

/* The folder of a file. */
static rl_status folder_of(const char *path, char out[MODEL_PATH_BYTES])
{
    const char *slash = strrchr(path, '/');
    int length = slash == NULL ? 1 : (int)(slash - path) + 1;
    if (length >= MODEL_PATH_BYTES) {
        return rl_fail(RL_TOO_LONG, "path of %d bytes is too long", length);
    }
    snprintf(out, MODEL_PATH_BYTES, "%.*s", length, slash == NULL ? "." : path);
    return RL_OK;
}

static bool ends_with(const char *path, const char *end)
{
    size_t length = strlen(path);
    return length >= strlen(end) && strcmp(path + length - strlen(end), end) == 0;
}

/* A rollout segment, or counts of an evaluation. */
static rl_status inspect_hdf5(const char *path, json_t *out)
{
    struct h5_file *file = NULL;
    RL_TRY(h5_file_open(path, &file));
    bool counts = h5_file_has(file, "cells/samples");
    h5_file_close(file);
    return counts ? inspect_counts(path, out) : inspect_segment(path, out);
}

static rl_status inspect_file(const char *path, json_t *out)
{
    static const unsigned char hdf5[8] = {0x89, 'H', 'D', 'F', '\r', '\n', 0x1a, '\n'};
    unsigned char start[9] = {0};
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        return rl_fail(RL_IO, "%s: %s", path, strerror(errno));
    }
    size_t bytes = fread(start, 1, sizeof start, file);
    fclose(file);
    if (ends_with(path, "tokenizer.json")) {
        char dir[MODEL_PATH_BYTES];
        RL_TRY(folder_of(path, dir));
        return inspect_tokenizer(dir, out);
    }
    if ((bytes >= 8 && memcmp(start, hdf5, 8) == 0) || ends_with(path, ".h5")) {
        return inspect_hdf5(path, out);
    }
    if (ends_with(path, ".safetensors") || (bytes == 9 && start[8] == '{')) {
        return inspect_safetensors(path, out);
    }
    return rl_fail(RL_UNSUPPORTED,
                   "%s: not a safetensors file, a rollout segment or counts of an evaluation "
                   "(HDF5) or a tokenizer.json",
                   path);
}

rl_status inspect_path(const char *path, json_t *out)
{
    struct stat info;
    if (stat(path, &info) != 0) {
        return rl_fail(RL_IO, "%s: %s", path, strerror(errno));
    }
    if (S_ISDIR(info.st_mode)) {
        return inspect_folder(path, out);
    }
    if (!S_ISREG(info.st_mode)) {
        return rl_fail(RL_UNSUPPORTED, "%s: neither a file nor a folder", path);
    }
    return inspect_file(path, out);
}

/* --- printing --------------------------------------------------------------------------------- */

/* A JSON string holds any text; a terminal must not be handed control characters. */
static void print_text(const char *text)
{
    for (const char *c = text; *c != '\0'; c++) {
        bool control = (unsigned char)*c < 0x20 || *c == 0x7f;
        if (control) {
            printf("\\x%02x", (unsigned char)*c);
        } else {
            putchar(*c);
        }
    }
}

static void print_scalar(json_t *value)
{
    if (json_is_string(value)) {
        print_text(json_string_value(value));
    } else if (json_is_integer(value)) {
        printf("%" JSON_INTEGER_FORMAT, json_integer_value(value));
    } else if (json_is_real(value)) {
        printf("%.6g", json_real_value(value));
    } else if (json_is_array(value)) {
        size_t index = 0;
        json_t *item = NULL;
        putchar('[');
        json_array_foreach(value, index, item)
        {
            printf("%s%" JSON_INTEGER_FORMAT, index > 0 ? ", " : "", json_integer_value(item));
        }
        putchar(']');
    } else {
        fputs(json_is_true(value) ? "yes" : "no", stdout);
    }
}

/* One item of a list on one line: the name, then what else there is. */
static void print_item(json_t *item)
{
    const char *key = NULL;
    json_t *value = NULL;
    json_object_foreach(item, key, value)
    {
        bool plain = strcmp(key, "name") == 0;
        printf("  %s%s", plain ? "" : key, plain ? "" : " ");
        print_scalar(value);
    }
    putchar('\n');
}

static void print_object(json_t *object, const char *prefix)
{
    const char *key = NULL;
    json_t *value = NULL;
    json_object_foreach(object, key, value)
    {
        size_t index = 0;
        json_t *item = NULL;
        char name[128];
        snprintf(name, sizeof name, "%s%s", prefix, key);
        if (json_is_object(value)) {
            char inner[132];
            snprintf(inner, sizeof inner, "%s.", name);
            print_object(value, inner);
        } else if (json_is_array(value)) {
            printf("%s: %zu\n", name, json_array_size(value));
            json_array_foreach(value, index, item)
            {
                print_item(item);
            }
        } else {
            printf("%-18s ", name);
            print_scalar(value);
            putchar('\n');
        }
    }
}

int cmd_inspect(int argc, char **argv)
{
    bool json = app_take_flag(&argc, argv, "--json");
    if (argc != 2) {
        rl_fail(RL_INVALID, "usage: foresight inspect %s", app_command_find("inspect")->usage);
        return APP_USAGE;
    }
    json_t *out = json_object();
    if (out == NULL) {
        rl_fail(RL_NO_MEMORY, "inspect: out of memory");
        return APP_FAILED;
    }
    json_object_set_new(out, "path", json_string(argv[1]));
    rl_status status = inspect_path(argv[1], out);
    json_object_set_new(out, "sound", json_boolean(status == RL_OK));
    if (status != RL_OK) {
        json_object_set_new(out, "status", json_string(rl_status_name(status)));
        json_object_set_new(out, "reason", json_string(rl_log_last_error()));
    }
    if (json) {
        json_dumpf(out, stdout, JSON_COMPACT);
        putchar('\n');
    } else {
        print_object(out, "");
    }
    json_decref(out);
    return status == RL_OK ? APP_OK : APP_FAILED;
}
