/* See corpus_file.h. Locks are byte ranges of KEY/lock, one byte a part, bound to the open file, so
 * that they end with the process whatever ends it. */
#include "transport/corpus_file.h"

#include "core/folder_make.h"
#include "core/log.h"
#include "core/text.h"
#include "transport/atomic_file.h"
#include "transport/h5_file.h"
#include "transport/segment_file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CORPUS_FORMAT = 2, CORPUS_PATH_MAX = 4096, CORPUS_KEY_BYTES = 64 };
static const size_t corpus_log_max = (size_t)1 << 30;

struct corpus {
    char path[CORPUS_PATH_MAX];
    char key[RL_HASH_TEXT_BYTES];
    struct corpus_identity identity; /* its texts are not kept */
    int lock;                        /* file descriptor */
};

/* --- identity
 * ------------------------------------------------------------------------------------------- */

static json_t *hash_json(uint64_t hash)
{
    char text[32];
    snprintf(text, sizeof text, "%016" PRIx64, hash);
    return json_string(text);
}

static json_t *identity_json(const struct corpus_identity *id)
{
    return json_pack("{s:i, s:i, s:o, s:s, s:o, s:o, s:I, s:f, s:f, s:f, s:I, s:I, s:s, s:s, s:I, "
                     "s:I, s:s}",
                     "format", CORPUS_FORMAT, "part_prompts", CORPUS_PART_PROMPTS, "model",
                     hash_json(id->model), "weights", id->weights, "tokenizer",
                     hash_json(id->tokenizer), "prompts", hash_json(id->prompts), "prompt_count",
                     (json_int_t)id->prompt_count, "temperature", id->temperature, "top_p",
                     id->top_p, "min_p", id->min_p, "top_k", (json_int_t)id->top_k,
                     "max_completion_length", (json_int_t)id->max_completion, "stop", id->stop,
                     "stop_token_ids", id->stop_token_ids, "samples", (json_int_t)id->samples,
                     "seed", (json_int_t)id->seed, "rewards", id->rewards);
}

static rl_status name_folder(struct corpus *c, const char *folder, const json_t *identity)
{
    char *text = json_dumps(identity, JSON_COMPACT | JSON_SORT_KEYS | JSON_REAL_PRECISION(17));
    if (text == NULL) {
        return rl_fail(RL_NO_MEMORY, "corpus: out of memory");
    }
    rl_hash_text(text, strlen(text), c->key);
    free(text);
    int length = snprintf(c->path, sizeof c->path, "%s/%s", folder, c->key);
    if (length < 0 || (size_t)length >= sizeof c->path - CORPUS_KEY_BYTES) {
        return rl_fail(RL_TOO_LONG, "corpus: the path %s is too long", folder);
    }
    return rl_folder_make(c->path);
}

/* Name the first field in which what is there differs. */
static rl_status compare_identity(const char *path, const json_t *found, const json_t *wanted)
{
    const char *field = NULL;
    json_t *value = NULL;
    json_object_foreach((json_t *)(uintptr_t)wanted, field, value)
    {
        json_t *there = json_object_get(found, field);
        if (there == NULL || !json_equal(there, value)) {
            char *is = there != NULL ? json_dumps(there, JSON_ENCODE_ANY) : NULL;
            char *expected = json_dumps(value, JSON_ENCODE_ANY);
            rl_status status = rl_fail(
                RL_INVALID,
                "%s: a corpus of something else: its %s is %s, expected %s; remove the "
                "folder and it is sampled anew",
                path, field, is != NULL ? is : "not there", expected != NULL ? expected : "?");
            free(is);
            free(expected);
            return status;
        }
    }
    return RL_OK;
}

static rl_status check_identity(const char *path, const json_t *wanted)
{
    json_error_t error;
    json_t *found = json_load_file(path, JSON_REJECT_DUPLICATES, &error);
    if (found == NULL) {
        return rl_fail(RL_CORRUPT, "%s: line %d: %s; remove the folder and it is sampled anew",
                       path, error.line, error.text);
    }
    rl_status status = compare_identity(path, found, wanted);
    json_decref(found);
    return status;
}

/* Whoever comes first writes corpus.json; equal texts, so it does not matter who. */
static rl_status write_identity(struct corpus *c, const json_t *identity)
{
    char path[CORPUS_PATH_MAX + CORPUS_KEY_BYTES];
    snprintf(path, sizeof path, "%s/corpus.json", c->path);
    if (access(path, F_OK) == 0) {
        return check_identity(path, identity);
    }
    char *text = json_dumps(identity, JSON_INDENT(2) | JSON_REAL_PRECISION(17));
    if (text == NULL) {
        return rl_fail(RL_NO_MEMORY, "%s: out of memory", path);
    }
    rl_status status = atomic_file_write_all(path, text, strlen(text));
    free(text);
    return status;
}

/* --- life
 * -----------------------------------------------------------------------------------------------
 */

static rl_status open_folder(struct corpus *c, const char *folder, const json_t *identity)
{
    char path[CORPUS_PATH_MAX + CORPUS_KEY_BYTES];
    RL_TRY(name_folder(c, folder, identity));
    RL_TRY(write_identity(c, identity));
    snprintf(path, sizeof path, "%s/lock", c->path);
    c->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    return c->lock >= 0 ? RL_OK : rl_fail(RL_IO, "%s: %s", path, strerror(errno));
}

rl_status corpus_open(const char *folder, const struct corpus_identity *identity,
                      struct corpus **out)
{
    struct corpus *c = calloc(1, sizeof *c);
    json_t *json = identity_json(identity);
    rl_status status = RL_OK;
    if (c == NULL || json == NULL) {
        status = rl_fail(RL_NO_MEMORY, "corpus: out of memory");
        goto fail;
    }
    c->lock = -1;
    c->identity = *identity;
    RL_TRY_GOTO(open_folder(c, folder, json), status, fail);
    json_decref(json);
    *out = c;
    return RL_OK;
fail:
    json_decref(json);
    corpus_close(c);
    return status;
}

void corpus_close(struct corpus *corpus)
{
    if (corpus == NULL) {
        return;
    }
    if (corpus->lock >= 0) {
        close(corpus->lock);
    }
    free(corpus);
}

const char *corpus_key(const struct corpus *corpus)
{
    return corpus->key;
}

const char *corpus_path(const struct corpus *corpus)
{
    return corpus->path;
}

/* --- parts
 * ---------------------------------------------------------------------------------------------- */

uint64_t corpus_part_count(const struct corpus *corpus)
{
    return (corpus->identity.prompt_count + CORPUS_PART_PROMPTS - 1) / CORPUS_PART_PROMPTS;
}

void corpus_part_range(const struct corpus *corpus, uint64_t part, uint64_t *first, uint64_t *count)
{
    uint64_t start = part * CORPUS_PART_PROMPTS;
    uint64_t left = corpus->identity.prompt_count - start;
    *first = start;
    *count = left < CORPUS_PART_PROMPTS ? left : CORPUS_PART_PROMPTS;
}

static void part_path(const struct corpus *c, uint64_t part,
                      char out[CORPUS_PATH_MAX + CORPUS_KEY_BYTES])
{
    snprintf(out, CORPUS_PATH_MAX + CORPUS_KEY_BYTES, "%s/part_%06" PRIu64 ".h5", c->path,
             part + 1);
}

bool corpus_has(const struct corpus *corpus, uint64_t part)
{
    char path[CORPUS_PATH_MAX + CORPUS_KEY_BYTES];
    part_path(corpus, part, path);
    return access(path, F_OK) == 0;
}

static int set_lock(const struct corpus *c, uint64_t part, short type)
{
    struct flock range = {.l_type = type, .l_whence = SEEK_SET, .l_start = (off_t)part, .l_len = 1};
    return fcntl(c->lock, F_OFD_SETLK, &range);
}

rl_status corpus_lock(struct corpus *corpus, uint64_t part)
{
    if (corpus_has(corpus, part)) {
        return RL_AGAIN;
    }
    if (set_lock(corpus, part, F_WRLCK) != 0) {
        return errno == EAGAIN || errno == EACCES
                   ? RL_AGAIN
                   : rl_fail(RL_IO, "%s/lock: %s", corpus->path, strerror(errno));
    }
    if (corpus_has(corpus, part)) { /* done between the look and the lock */
        corpus_unlock(corpus, part);
        return RL_AGAIN;
    }
    return RL_OK;
}

void corpus_unlock(struct corpus *corpus, uint64_t part)
{
    (void)set_lock(corpus, part, F_UNLCK);
}

/* One line in one write: lines of several processes do not mix. It comes before the part, so that
 * no part is without one. */
static rl_status log_part(const struct corpus *c, uint64_t part, uint64_t samples, const char *run)
{
    char path[CORPUS_PATH_MAX + CORPUS_KEY_BYTES];
    snprintf(path, sizeof path, "%s/log.jsonl", c->path);
    json_t *line = json_pack("{s:I, s:s, s:I}", "part", (json_int_t)(part + 1), "run", run,
                             "samples", (json_int_t)samples);
    char *text = line != NULL ? json_dumps(line, JSON_COMPACT) : NULL;
    json_decref(line);
    if (text == NULL) {
        return rl_fail(RL_NO_MEMORY, "%s: out of memory", path);
    }
    size_t bytes = strlen(text);
    text[bytes] = '\n'; /* in place of the NUL */
    int file = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    bool written = file >= 0 && write(file, text, bytes + 1) == (ssize_t)(bytes + 1);
    rl_status status = written ? RL_OK : rl_fail(RL_IO, "%s: %s", path, strerror(errno));
    if (file >= 0) {
        close(file);
    }
    free(text);
    return status;
}

/* Are these the part's groups, and complete? */
static rl_status check_groups(const struct corpus *c, uint64_t part,
                              const struct trajectory_group *const *groups, size_t count)
{
    uint64_t first = 0;
    uint64_t expected = 0;
    corpus_part_range(c, part, &first, &expected);
    if (count != expected) {
        return rl_fail(RL_INVALID, "%zu prompts, expected %" PRIu64, count, expected);
    }
    for (uint64_t i = 0; i < count; i++) {
        if (groups[i]->prompt_id != first + i || groups[i]->sample_count != c->identity.samples) {
            return rl_fail(
                RL_INVALID,
                "prompt %" PRIu64 " with %u samples where prompt %" PRIu64 " with %u is expected",
                groups[i]->prompt_id, groups[i]->sample_count, first + i, c->identity.samples);
        }
    }
    return RL_OK;
}

static rl_status write_part(const struct corpus *c, struct h5_file *file, uint64_t part,
                            const struct trajectory_group *const *groups)
{
    uint64_t first = 0;
    uint64_t count = 0;
    corpus_part_range(c, part, &first, &count);
    RL_TRY(h5_file_write_text(file, "corpus", c->key));
    RL_TRY(h5_file_write_u64(file, "part", part + 1));
    return segment_groups_write(file, "", groups, count);
}

rl_status corpus_write(struct corpus *corpus, uint64_t part,
                       const struct trajectory_group *const *groups, const char *run)
{
    char path[CORPUS_PATH_MAX + CORPUS_KEY_BYTES];
    struct h5_file *file = NULL;
    uint64_t first = 0;
    uint64_t count = 0;
    corpus_part_range(corpus, part, &first, &count);
    RL_TRY(check_groups(corpus, part, groups, count));
    part_path(corpus, part, path);
    RL_TRY(h5_file_create(path, &file));
    rl_status status = write_part(corpus, file, part, groups);
    if (status == RL_OK) {
        status = log_part(corpus, part, count * corpus->identity.samples, run);
    }
    if (status != RL_OK) {
        h5_file_abort(file);
        return status;
    }
    return h5_file_commit(file);
}

static rl_status check_part(const struct corpus *c, struct h5_file *file, uint64_t part)
{
    char *key = NULL;
    uint64_t number = 0;
    RL_TRY(h5_file_read_text(file, "corpus", CORPUS_KEY_BYTES, &key));
    bool own = strcmp(key, c->key) == 0;
    rl_status status =
        own ? RL_OK : rl_fail(RL_CORRUPT, "a part of corpus %s, expected %s", key, c->key);
    free(key);
    RL_TRY(status);
    RL_TRY(h5_file_read_u64(file, "part", &number));
    return number == part + 1 ? RL_OK
                              : rl_fail(RL_CORRUPT, "it says that it is part %" PRIu64, number);
}

rl_status corpus_read(const struct corpus *corpus, uint64_t part, struct trajectory_group ***groups,
                      size_t *count)
{
    char path[CORPUS_PATH_MAX + CORPUS_KEY_BYTES];
    struct h5_file *file = NULL;
    struct trajectory_group **read = NULL;
    size_t found = 0;
    part_path(corpus, part, path);
    rl_status status = h5_file_open(path, &file);
    if (status == RL_OK) {
        status = check_part(corpus, file, part);
        if (status == RL_OK) {
            status = segment_groups_read(file, "", &read, &found);
        }
        h5_file_close(file);
    }
    if (status == RL_OK) {
        status = check_groups(corpus, part, (const struct trajectory_group *const *)read, found);
    }
    if (status == RL_OK) {
        *groups = read;
        *count = found;
        return RL_OK;
    }
    segment_groups_free(read, found);
    if (status == RL_NO_MEMORY || status == RL_IO) {
        return status;
    }
    return rl_fail(RL_CORRUPT,
                   "%s is damaged or not of this corpus (%s); remove it and it is "
                   "sampled anew",
                   path, rl_log_last_error());
}

/* --- the log
 * -------------------------------------------------------------------------------------------- */

/* Samples of one line, 0 if it is another's. The last line of a part counts: before it comes what
 * a run logged that was killed before the part was there. */
static void count_line(const char *line, size_t bytes, const char *run, uint64_t *part_samples,
                       uint64_t parts)
{
    json_t *object = json_loadb(line, bytes, 0, NULL);
    json_int_t part = json_integer_value(json_object_get(object, "part"));
    const char *maker = json_string_value(json_object_get(object, "run"));
    if (part >= 1 && (uint64_t)part <= parts && maker != NULL) {
        bool own = strcmp(maker, run) == 0;
        json_int_t samples = json_integer_value(json_object_get(object, "samples"));
        part_samples[part - 1] = own ? (uint64_t)samples : 0;
    }
    json_decref(object);
}

rl_status corpus_made_by(const struct corpus_name *corpus, const char *run, uint64_t *samples)
{
    char path[CORPUS_PATH_MAX + CORPUS_KEY_BYTES];
    uint64_t parts = (corpus->prompt_count + CORPUS_PART_PROMPTS - 1) / CORPUS_PART_PROMPTS;
    char *text = NULL;
    size_t bytes = 0;
    snprintf(path, sizeof path, "%s/%s/log.jsonl", corpus->folder, corpus->key);
    *samples = 0;
    if (access(path, F_OK) != 0) {
        return RL_OK;
    }
    RL_TRY(rl_file_read(path, corpus_log_max, &text, &bytes));
    uint64_t *part_samples = calloc(parts + 1, sizeof *part_samples);
    if (part_samples == NULL) {
        free(text);
        return rl_fail(RL_NO_MEMORY, "%s: out of memory", path);
    }
    for (size_t at = 0; at < bytes;) {
        const char *end = memchr(text + at, '\n', bytes - at);
        size_t length = end != NULL ? (size_t)(end - text) - at : bytes - at;
        count_line(text + at, length, run, part_samples, parts);
        at += length + 1;
    }
    for (uint64_t i = 0; i < parts; i++) {
        *samples += part_samples[i];
    }
    free(part_samples);
    free(text);
    return RL_OK;
}
