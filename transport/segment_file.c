/* Segments: groups to flat columns and back. Owns the columns' names, types and lengths. Invariant:
 * every length is derived from counts that were read and checked before, so a column of another
 * length is an error and never an allocation. */
#include "transport/segment_file.h"

#include "core/log.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum {
    SEGMENT_FORMAT = 1,
    SEGMENT_LEVEL = 3, /* zstd */
    SEGMENT_NAME_BYTES = 64,
    SEGMENT_GROUPS_MAX = 1048576,
    SEGMENT_SAMPLES_MAX = 4194304,
    SEGMENT_RUN_BYTES = 4096
};
#define SEGMENT_TOKENS_MAX (UINT64_C(1) << 28)

/* One column: where it lies and what it is. Arrays are owned by struct segment_columns. */
enum segment_column {
    COLUMN_TICKET,
    COLUMN_PROMPT_ID,
    COLUMN_EPOCH,
    COLUMN_SAMPLE_COUNT,
    COLUMN_WORKER,
    COLUMN_STARTED,
    COLUMN_FINISHED,
    COLUMN_PROMPT_COUNT,
    COLUMN_COMPLETION_COUNT,
    COLUMN_FINISH,
    COLUMN_REWARD_VALID,
    COLUMN_REWARD,
    COLUMN_ACCURACY,
    COLUMN_KEPT_MASS,
    COLUMN_PART_COUNT,
    COLUMN_REWARD_PART,
    COLUMN_TOKEN_OFFSET,
    COLUMN_TOKEN,
    COLUMN_LOGPROB,
    COLUMN_VERSION,
    COLUMN_COUNT
};

/* Which count gives a column's length. */
enum segment_length { PER_GROUP, PER_SAMPLE, PER_PART, PER_TOKEN, PER_COMPLETION };

static const struct {
    const char *name;
    enum h5_type type;
    enum segment_length length;
} segment_columns[COLUMN_COUNT] = {
    [COLUMN_TICKET] = {"groups/ticket", H5_U64, PER_GROUP},
    [COLUMN_PROMPT_ID] = {"groups/prompt_id", H5_U64, PER_GROUP},
    [COLUMN_EPOCH] = {"groups/epoch", H5_U32, PER_GROUP},
    [COLUMN_SAMPLE_COUNT] = {"groups/sample_count", H5_U32, PER_GROUP},
    [COLUMN_WORKER] = {"groups/worker", H5_I32, PER_GROUP},
    [COLUMN_STARTED] = {"groups/started_s", H5_F64, PER_GROUP},
    [COLUMN_FINISHED] = {"groups/finished_s", H5_F64, PER_GROUP},
    [COLUMN_PROMPT_COUNT] = {"samples/prompt_count", H5_U32, PER_SAMPLE},
    [COLUMN_COMPLETION_COUNT] = {"samples/completion_count", H5_U32, PER_SAMPLE},
    [COLUMN_FINISH] = {"samples/finish", H5_U8, PER_SAMPLE},
    [COLUMN_REWARD_VALID] = {"samples/reward_valid", H5_U8, PER_SAMPLE},
    [COLUMN_REWARD] = {"samples/reward", H5_F32, PER_SAMPLE},
    [COLUMN_ACCURACY] = {"samples/accuracy", H5_F32, PER_SAMPLE},
    [COLUMN_KEPT_MASS] = {"samples/kept_mass", H5_F32, PER_SAMPLE},
    [COLUMN_PART_COUNT] = {"samples/part_count", H5_U32, PER_SAMPLE},
    [COLUMN_REWARD_PART] = {"samples/reward_part", H5_F32, PER_PART},
    [COLUMN_TOKEN_OFFSET] = {"samples/token_offset", H5_U64, PER_SAMPLE},
    [COLUMN_TOKEN] = {"tokens/id", H5_I32, PER_TOKEN},
    [COLUMN_LOGPROB] = {"tokens/logprob", H5_F32, PER_COMPLETION},
    [COLUMN_VERSION] = {"tokens/version", H5_U32, PER_COMPLETION},
};

struct segment_data {
    uint64_t lengths[PER_COMPLETION + 1];
    void *columns[COLUMN_COUNT]; /* owned */
};

static uint64_t column_length(const struct segment_data *data, int column)
{
    return data->lengths[segment_columns[column].length];
}

static void data_fini(struct segment_data *data)
{
    for (int i = 0; i < COLUMN_COUNT; i++) {
        free(data->columns[i]);
    }
}

static rl_status data_alloc_column(struct segment_data *data, int column)
{
    size_t bytes =
        (size_t)column_length(data, column) * h5_type_bytes(segment_columns[column].type);
    data->columns[column] = calloc(bytes > 0 ? bytes : 1, 1);
    if (data->columns[column] == NULL) {
        return rl_fail(RL_NO_MEMORY, "%s: no memory for %zu bytes", segment_columns[column].name,
                       bytes);
    }
    return RL_OK;
}

/* Count what the groups hold; each must be sound. */
static rl_status data_measure(struct segment_data *data,
                              const struct trajectory_group *const *groups, size_t count)
{
    data->lengths[PER_GROUP] = count;
    for (size_t g = 0; g < count; g++) {
        RL_TRY(trajectory_group_check(groups[g]));
        data->lengths[PER_SAMPLE] += groups[g]->sample_count;
        for (uint32_t i = 0; i < groups[g]->sample_count; i++) {
            const struct trajectory *sample = &groups[g]->samples[i];
            data->lengths[PER_TOKEN] += (uint64_t)sample->prompt_count + sample->completion_count;
            data->lengths[PER_COMPLETION] += sample->completion_count;
        }
    }
    data->lengths[PER_PART] = data->lengths[PER_SAMPLE] * RL_REWARD_PARTS_MAX;
    return RL_OK;
}

/* Element i of a column, by the column's type. */
#define COLUMN_AT(data, column, type, i) (((type *)(data)->columns[column])[i])

static void fill_group(struct segment_data *data, uint64_t g, const struct trajectory_group *group)
{
    COLUMN_AT(data, COLUMN_TICKET, uint64_t, g) = group->ticket;
    COLUMN_AT(data, COLUMN_PROMPT_ID, uint64_t, g) = group->prompt_id;
    COLUMN_AT(data, COLUMN_EPOCH, uint32_t, g) = group->epoch;
    COLUMN_AT(data, COLUMN_SAMPLE_COUNT, uint32_t, g) = group->sample_count;
    COLUMN_AT(data, COLUMN_WORKER, int32_t, g) = group->worker;
    COLUMN_AT(data, COLUMN_STARTED, double, g) = group->started_s;
    COLUMN_AT(data, COLUMN_FINISHED, double, g) = group->finished_s;
}

/* Where the next sample's arrays go. */
struct segment_cursor {
    uint64_t sample, token, completion;
};

static void fill_array(struct segment_data *data, int column, uint64_t at, const void *from,
                       uint64_t count)
{
    size_t width = h5_type_bytes(segment_columns[column].type);
    if (count > 0) {
        memcpy((unsigned char *)data->columns[column] + at * width, from, count * width);
    }
}

static void fill_sample(struct segment_data *data, struct segment_cursor *cursor,
                        const struct trajectory *sample)
{
    uint64_t s = cursor->sample;
    uint64_t tokens = (uint64_t)sample->prompt_count + sample->completion_count;
    COLUMN_AT(data, COLUMN_PROMPT_COUNT, uint32_t, s) = sample->prompt_count;
    COLUMN_AT(data, COLUMN_COMPLETION_COUNT, uint32_t, s) = sample->completion_count;
    COLUMN_AT(data, COLUMN_FINISH, uint8_t, s) = (uint8_t)sample->finish;
    COLUMN_AT(data, COLUMN_REWARD_VALID, uint8_t, s) = sample->reward_valid ? 1 : 0;
    COLUMN_AT(data, COLUMN_REWARD, float, s) = sample->reward;
    COLUMN_AT(data, COLUMN_ACCURACY, float, s) = sample->accuracy;
    COLUMN_AT(data, COLUMN_KEPT_MASS, float, s) = sample->kept_mass;
    COLUMN_AT(data, COLUMN_PART_COUNT, uint32_t, s) = sample->reward_part_count;
    COLUMN_AT(data, COLUMN_TOKEN_OFFSET, uint64_t, s) = cursor->token;
    fill_array(data, COLUMN_REWARD_PART, s * RL_REWARD_PARTS_MAX, sample->reward_part,
               RL_REWARD_PARTS_MAX);
    fill_array(data, COLUMN_TOKEN, cursor->token, sample->tokens, tokens);
    fill_array(data, COLUMN_LOGPROB, cursor->completion, sample->logprob, sample->completion_count);
    fill_array(data, COLUMN_VERSION, cursor->completion, sample->version, sample->completion_count);
    cursor->sample++;
    cursor->token += tokens;
    cursor->completion += sample->completion_count;
}

static rl_status data_fill(struct segment_data *data, const struct trajectory_group *const *groups,
                           size_t count)
{
    for (int column = 0; column < COLUMN_COUNT; column++) {
        RL_TRY(data_alloc_column(data, column));
    }
    struct segment_cursor cursor = {0};
    for (size_t g = 0; g < count; g++) {
        fill_group(data, g, groups[g]);
        for (uint32_t i = 0; i < groups[g]->sample_count; i++) {
            fill_sample(data, &cursor, &groups[g]->samples[i]);
        }
    }
    return RL_OK;
}

static rl_status column_name(const char *prefix, int column, char *out)
{
    int length = snprintf(out, SEGMENT_NAME_BYTES, "%s%s", prefix, segment_columns[column].name);
    if (length < 0 || length >= SEGMENT_NAME_BYTES) {
        return rl_fail(RL_TOO_LONG, "prefix \"%s\" is too long", prefix);
    }
    return RL_OK;
}

static rl_status data_write(struct segment_data *data, struct h5_file *file, const char *prefix)
{
    char name[SEGMENT_NAME_BYTES];
    for (int column = 0; column < COLUMN_COUNT; column++) {
        RL_TRY(column_name(prefix, column, name));
        RL_TRY(h5_file_write(file, name, segment_columns[column].type, data->columns[column],
                             column_length(data, column), SEGMENT_LEVEL));
    }
    return RL_OK;
}

rl_status segment_groups_write(struct h5_file *file, const char *prefix,
                               const struct trajectory_group *const *groups, size_t count)
{
    struct segment_data data = {0};
    rl_status status = data_measure(&data, groups, count);
    if (status == RL_OK) {
        status = data_fill(&data, groups, count);
    }
    if (status == RL_OK) {
        status = data_write(&data, file, prefix);
    }
    data_fini(&data);
    return status;
}

/* Read the columns of one length, which must be known. */
static rl_status data_read_columns(struct segment_data *data, struct h5_file *file,
                                   const char *prefix, enum segment_length length)
{
    char name[SEGMENT_NAME_BYTES];
    for (int column = 0; column < COLUMN_COUNT; column++) {
        if (segment_columns[column].length != length) {
            continue;
        }
        RL_TRY(column_name(prefix, column, name));
        uint64_t found = 0;
        RL_TRY(h5_file_count(file, name, segment_columns[column].type, &found));
        if (found != data->lengths[length]) {
            return rl_fail(RL_CORRUPT, "%s: %" PRIu64 " elements, expected %" PRIu64, name, found,
                           data->lengths[length]);
        }
        RL_TRY(data_alloc_column(data, column));
        RL_TRY(
            h5_file_read(file, name, segment_columns[column].type, data->columns[column], found));
    }
    return RL_OK;
}

static rl_status data_bound(const char *what, uint64_t found, uint64_t limit)
{
    if (found > limit) {
        return rl_fail(RL_TOO_LONG, "segment of %" PRIu64 " %s, the limit is %" PRIu64, found, what,
                       limit);
    }
    return RL_OK;
}

/* Groups give the number of samples, samples that of tokens. */
static rl_status data_read(struct segment_data *data, struct h5_file *file, const char *prefix)
{
    char name[SEGMENT_NAME_BYTES];
    RL_TRY(column_name(prefix, COLUMN_TICKET, name));
    RL_TRY(h5_file_count(file, name, H5_U64, &data->lengths[PER_GROUP]));
    RL_TRY(data_bound("groups", data->lengths[PER_GROUP], SEGMENT_GROUPS_MAX));
    RL_TRY(data_read_columns(data, file, prefix, PER_GROUP));
    for (uint64_t g = 0; g < data->lengths[PER_GROUP]; g++) {
        data->lengths[PER_SAMPLE] += COLUMN_AT(data, COLUMN_SAMPLE_COUNT, uint32_t, g);
    }
    RL_TRY(data_bound("samples", data->lengths[PER_SAMPLE], SEGMENT_SAMPLES_MAX));
    data->lengths[PER_PART] = data->lengths[PER_SAMPLE] * RL_REWARD_PARTS_MAX;
    RL_TRY(data_read_columns(data, file, prefix, PER_SAMPLE));
    RL_TRY(data_read_columns(data, file, prefix, PER_PART));
    for (uint64_t s = 0; s < data->lengths[PER_SAMPLE]; s++) {
        uint64_t completion = COLUMN_AT(data, COLUMN_COMPLETION_COUNT, uint32_t, s);
        data->lengths[PER_TOKEN] += COLUMN_AT(data, COLUMN_PROMPT_COUNT, uint32_t, s) + completion;
        data->lengths[PER_COMPLETION] += completion;
    }
    RL_TRY(data_bound("tokens", data->lengths[PER_TOKEN], SEGMENT_TOKENS_MAX));
    RL_TRY(data_read_columns(data, file, prefix, PER_TOKEN));
    return data_read_columns(data, file, prefix, PER_COMPLETION);
}

static rl_status take_sample(const struct segment_data *data, struct segment_cursor *cursor,
                             struct trajectory *sample)
{
    uint64_t s = cursor->sample;
    uint32_t prompt = COLUMN_AT(data, COLUMN_PROMPT_COUNT, uint32_t, s);
    uint32_t completion = COLUMN_AT(data, COLUMN_COMPLETION_COUNT, uint32_t, s);
    uint8_t finish = COLUMN_AT(data, COLUMN_FINISH, uint8_t, s);
    uint32_t parts = COLUMN_AT(data, COLUMN_PART_COUNT, uint32_t, s);
    if (COLUMN_AT(data, COLUMN_TOKEN_OFFSET, uint64_t, s) != cursor->token ||
        finish > RL_FINISH_ABORTED || parts > RL_REWARD_PARTS_MAX) {
        return rl_fail(RL_CORRUPT,
                       "segment: sample %" PRIu64 ": token_offset, finish or part_count is wrong",
                       s);
    }
    RL_TRY(trajectory_set_tokens(sample, &COLUMN_AT(data, COLUMN_TOKEN, int32_t, cursor->token),
                                 &COLUMN_AT(data, COLUMN_LOGPROB, float, cursor->completion),
                                 &COLUMN_AT(data, COLUMN_VERSION, uint32_t, cursor->completion),
                                 prompt, completion));
    sample->finish = (enum rl_finish)finish;
    sample->reward_valid = COLUMN_AT(data, COLUMN_REWARD_VALID, uint8_t, s) != 0;
    sample->reward = COLUMN_AT(data, COLUMN_REWARD, float, s);
    sample->accuracy = COLUMN_AT(data, COLUMN_ACCURACY, float, s);
    sample->kept_mass = COLUMN_AT(data, COLUMN_KEPT_MASS, float, s);
    sample->reward_part_count = parts;
    memcpy(sample->reward_part, &COLUMN_AT(data, COLUMN_REWARD_PART, float, s *RL_REWARD_PARTS_MAX),
           sizeof sample->reward_part);
    cursor->sample++;
    cursor->token += (uint64_t)prompt + completion;
    cursor->completion += completion;
    return RL_OK;
}

static rl_status take_group(const struct segment_data *data, uint64_t g,
                            struct segment_cursor *cursor, struct trajectory_group **out)
{
    struct trajectory_group *group = NULL;
    RL_TRY(trajectory_group_create(COLUMN_AT(data, COLUMN_SAMPLE_COUNT, uint32_t, g), &group));
    group->ticket = COLUMN_AT(data, COLUMN_TICKET, uint64_t, g);
    group->prompt_id = COLUMN_AT(data, COLUMN_PROMPT_ID, uint64_t, g);
    group->epoch = COLUMN_AT(data, COLUMN_EPOCH, uint32_t, g);
    group->worker = COLUMN_AT(data, COLUMN_WORKER, int32_t, g);
    group->started_s = COLUMN_AT(data, COLUMN_STARTED, double, g);
    group->finished_s = COLUMN_AT(data, COLUMN_FINISHED, double, g);
    *out = group; /* the caller frees it, also after an error below */
    for (uint32_t i = 0; i < group->sample_count; i++) {
        RL_TRY(take_sample(data, cursor, &group->samples[i]));
    }
    return trajectory_group_check(group) == RL_OK ? RL_OK : RL_CORRUPT;
}

static rl_status take_groups(const struct segment_data *data, struct trajectory_group ***groups,
                             size_t *count)
{
    uint64_t total = data->lengths[PER_GROUP];
    struct trajectory_group **list = calloc(total > 0 ? total : 1, sizeof *list);
    if (list == NULL) {
        return rl_fail(RL_NO_MEMORY, "no memory for %" PRIu64 " groups", total);
    }
    struct segment_cursor cursor = {0};
    for (uint64_t g = 0; g < total; g++) {
        rl_status status = take_group(data, g, &cursor, &list[g]);
        if (status != RL_OK) {
            segment_groups_free(list, total);
            return status;
        }
    }
    *groups = list;
    *count = total;
    return RL_OK;
}

rl_status segment_groups_read(struct h5_file *file, const char *prefix,
                              struct trajectory_group ***groups, size_t *count)
{
    struct segment_data data = {0};
    rl_status status = data_read(&data, file, prefix);
    if (status == RL_OK) {
        status = take_groups(&data, groups, count);
    }
    data_fini(&data);
    return status == RL_NOT_FOUND ? RL_CORRUPT : status;
}

void segment_groups_free(struct trajectory_group **groups, size_t count)
{
    for (size_t i = 0; groups != NULL && i < count; i++) {
        trajectory_group_destroy(groups[i]);
    }
    free(groups);
}

rl_status segment_file_path(const char *run_dir, uint64_t number, char *out, size_t out_bytes)
{
    int length = snprintf(out, out_bytes, "%s/rollouts/seg_%06" PRIu64 ".h5", run_dir, number);
    if (length < 0 || (size_t)length >= out_bytes) {
        return rl_fail(RL_TOO_LONG, "%s: the path of segment %" PRIu64 " is too long", run_dir,
                       number);
    }
    return RL_OK;
}

/* Number in "seg_000001.h5", 0 for other names. */
static uint64_t name_number(const char *name)
{
    if (strncmp(name, "seg_", 4) != 0 || name[4] < '0' || name[4] > '9') {
        return 0;
    }
    char *end = NULL;
    errno = 0;
    unsigned long long number = strtoull(name + 4, &end, 10);
    return errno == 0 && strcmp(end, ".h5") == 0 ? number : 0;
}

rl_status segment_file_next(const char *run_dir, uint64_t *number)
{
    char folder[4096];
    int length = snprintf(folder, sizeof folder, "%s/rollouts", run_dir);
    if (length < 0 || (size_t)length >= sizeof folder) {
        return rl_fail(RL_TOO_LONG, "%s: the path is too long", run_dir);
    }
    if (mkdir(folder, 0777) != 0 && errno != EEXIST) {
        return rl_fail(RL_IO, "%s: cannot make the folder: %s", folder, strerror(errno));
    }
    DIR *list = opendir(folder);
    if (list == NULL) {
        return rl_fail(RL_IO, "%s: cannot read the folder: %s", folder, strerror(errno));
    }
    uint64_t highest = 0;
    for (struct dirent *entry = readdir(list); entry != NULL; entry = readdir(list)) {
        uint64_t found = name_number(entry->d_name);
        highest = found > highest ? found : highest;
    }
    closedir(list);
    *number = highest + 1;
    return RL_OK;
}

static rl_status write_into(struct h5_file *file, const struct segment_info *info,
                            const struct trajectory_group *const *groups, size_t count)
{
    RL_TRY(h5_file_write_u64(file, "format", SEGMENT_FORMAT));
    RL_TRY(h5_file_write_u64(file, "first_step", info->first_step));
    RL_TRY(h5_file_write_u64(file, "last_step", info->last_step));
    RL_TRY(h5_file_write_text(file, "run", info->run != NULL ? info->run : ""));
    return segment_groups_write(file, "", groups, count);
}

rl_status segment_file_write(const char *path, const struct segment_info *info,
                             const struct trajectory_group *const *groups, size_t count)
{
    struct h5_file *file = NULL;
    RL_TRY(h5_file_create(path, &file));
    rl_status status = write_into(file, info, groups, count);
    if (status != RL_OK) {
        h5_file_abort(file);
        return status;
    }
    return h5_file_commit(file);
}

/* Totals over groups that were read. */
static void summarise(struct trajectory_group *const *groups, size_t count,
                      struct segment_summary *out)
{
    double reward = 0.0;
    uint64_t valid = 0;
    out->groups = count;
    for (size_t g = 0; g < count; g++) {
        uint32_t oldest = 0;
        uint32_t newest = 0;
        trajectory_group_versions(groups[g], &oldest, &newest);
        out->oldest_version = g == 0 || oldest < out->oldest_version ? oldest : out->oldest_version;
        out->newest_version = newest > out->newest_version ? newest : out->newest_version;
        out->samples += groups[g]->sample_count;
        for (uint32_t i = 0; i < groups[g]->sample_count; i++) {
            const struct trajectory *sample = &groups[g]->samples[i];
            out->prompt_tokens += sample->prompt_count;
            out->completion_tokens += sample->completion_count;
            reward += sample->reward_valid ? (double)sample->reward : 0.0;
            valid += sample->reward_valid ? 1 : 0;
        }
    }
    out->reward_mean = valid > 0 ? reward / (double)valid : 0.0;
}

static rl_status read_open(struct h5_file *file, const char *path, struct segment_summary *summary)
{
    uint64_t format = 0;
    RL_TRY(h5_file_read_u64(file, "format", &format));
    if (format != SEGMENT_FORMAT) {
        return rl_fail(RL_CORRUPT, "%s: format %" PRIu64 ", expected %d", path, format,
                       SEGMENT_FORMAT);
    }
    RL_TRY(h5_file_read_u64(file, "first_step", &summary->first_step));
    RL_TRY(h5_file_read_u64(file, "last_step", &summary->last_step));
    char *run = NULL;
    RL_TRY(h5_file_read_text(file, "run", SEGMENT_RUN_BYTES, &run));
    free(run);
    return RL_OK;
}

rl_status segment_file_read(const char *path, struct trajectory_group ***groups, size_t *count,
                            struct segment_summary *summary)
{
    struct h5_file *file = NULL;
    RL_TRY(h5_file_open(path, &file));
    struct segment_summary found = {0};
    rl_status status = read_open(file, path, &found);
    if (status == RL_OK) {
        status = segment_groups_read(file, "", groups, count);
    }
    h5_file_close(file);
    if (status != RL_OK) {
        return status == RL_NOT_FOUND ? RL_CORRUPT : status;
    }
    if (summary != NULL) {
        summarise(*groups, *count, &found);
        *summary = found;
    }
    return RL_OK;
}

rl_status segment_file_verify(const char *path, struct segment_summary *summary)
{
    struct trajectory_group **groups = NULL;
    size_t count = 0;
    RL_TRY(segment_file_read(path, &groups, &count, summary));
    segment_groups_free(groups, count);
    return RL_OK;
}
