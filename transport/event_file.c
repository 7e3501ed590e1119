/* See event_file.h. */
#include "transport/event_file.h"

#include "core/hash.h"
#include "core/log.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAGIC_BYTES = 8, HEAD_BYTES = 8, SUM_BYTES = 8, WRITE_BUFFER_BYTES = 256 * 1024 };
static const char magic[MAGIC_BYTES + 1] = "FSEVENT1";

static uint64_t first_sum(void)
{
    return rl_hash(magic, MAGIC_BYTES);
}

/* --- reading -------------------------------------------------------------------------------------
 */

struct event_file {
    FILE *file;
    char *path;
    struct rl_text payload; /* head and payload of the record being read */
    uint64_t sum;           /* of the record before */
    uint64_t record_offset, offset;
};

static rl_status corrupt(const struct event_file *file, const char *problem)
{
    return rl_fail(RL_CORRUPT, "%s: record at byte %" PRIu64 ": %s", file->path,
                   file->record_offset, problem);
}

/* Append exactly `bytes` bytes of the file to the payload. Memory follows what is really there. */
static rl_status read_more(struct event_file *file, size_t bytes)
{
    char piece[16384];
    while (bytes > 0) {
        size_t wanted = bytes < sizeof(piece) ? bytes : sizeof(piece);
        size_t got = fread(piece, 1, wanted, file->file);
        if (got < wanted) {
            return ferror(file->file)
                       ? rl_fail(RL_IO, "%s: cannot read: %s", file->path, strerror(errno))
                       : corrupt(file, "the file ends inside it");
        }
        RL_TRY(rl_text_append(&file->payload, piece, got));
        bytes -= got;
    }
    return RL_OK;
}

static rl_status read_magic(struct event_file *file)
{
    char found[MAGIC_BYTES];
    if (fread(found, 1, MAGIC_BYTES, file->file) != MAGIC_BYTES ||
        memcmp(found, magic, MAGIC_BYTES) != 0) {
        return rl_fail(RL_CORRUPT,
                       "%s: byte 0: does not begin with %s: no events file, or of "
                       "another format",
                       file->path, magic);
    }
    file->offset = MAGIC_BYTES;
    file->sum = first_sum();
    return RL_OK;
}

rl_status event_file_open(const char *path, struct event_file **out)
{
    struct stat info;
    struct event_file *file = calloc(1, sizeof(*file));
    if (file == NULL || rl_text_copy(path, &file->path) != RL_OK) {
        free(file);
        return rl_fail(RL_NO_MEMORY, "%s: out of memory", path);
    }
    rl_text_init(&file->payload, HEAD_BYTES + (size_t)EVENT_PAYLOAD_MAX);
    rl_status status = RL_OK;
    file->file = fopen(path, "rbe");
    if (file->file == NULL || fstat(fileno(file->file), &info) != 0) {
        status = rl_fail(RL_IO, "%s: cannot open: %s", path, strerror(errno));
    } else if (!S_ISREG(info.st_mode)) {
        status = rl_fail(RL_IO, "%s: not a regular file", path);
    } else {
        status = read_magic(file);
    }
    if (status != RL_OK) {
        event_file_close(file);
        return status;
    }
    *out = file;
    return RL_OK;
}

/* Read head, payload and checksum of the next record. */
static rl_status read_record(struct event_file *file, uint32_t *kind, uint32_t *bytes)
{
    uint64_t sum = 0;
    rl_text_clear(&file->payload);
    RL_TRY(read_more(file, HEAD_BYTES));
    memcpy(kind, file->payload.data, sizeof(*kind));
    memcpy(bytes, file->payload.data + sizeof(*kind), sizeof(*bytes));
    if (*bytes > EVENT_PAYLOAD_MAX) {
        return corrupt(file, "it claims to be longer than any record may be");
    }
    RL_TRY(read_more(file, *bytes));
    uint64_t expected = rl_hash_seeded(file->payload.data, file->payload.bytes, file->sum);
    if (fread(&sum, 1, SUM_BYTES, file->file) != SUM_BYTES) {
        return corrupt(file, "the file ends inside it");
    }
    if (sum != expected) {
        return corrupt(file, "its checksum is wrong: it is not what was written in this place");
    }
    file->sum = sum;
    return RL_OK;
}

rl_status event_file_next(struct event_file *file, struct event *out)
{
    char problem[EVENT_PROBLEM_BYTES];
    uint32_t kind = 0;
    uint32_t bytes = 0;
    int ahead = getc(file->file);
    file->record_offset = file->offset;
    if (ahead == EOF && !ferror(file->file)) {
        return RL_END;
    }
    (void)ungetc(ahead, file->file);
    RL_TRY(read_record(file, &kind, &bytes));
    rl_status status = event_decode(kind, file->payload.data + HEAD_BYTES, bytes, out, problem);
    if (status == RL_CORRUPT) {
        return corrupt(file, problem);
    }
    RL_TRY(status);
    file->offset += HEAD_BYTES + (uint64_t)bytes + SUM_BYTES;
    return RL_OK;
}

uint64_t event_file_record_offset(const struct event_file *file)
{
    return file->record_offset;
}

uint64_t event_file_offset(const struct event_file *file)
{
    return file->offset;
}

void event_file_close(struct event_file *file)
{
    if (file == NULL) {
        return;
    }
    if (file->file != NULL) {
        (void)fclose(file->file);
    }
    rl_text_fini(&file->payload);
    free(file->path);
    free(file);
}

/* --- writing -------------------------------------------------------------------------------------
 */

struct event_writer {
    FILE *file;
    char *path;
    struct rl_text record; /* of the record being made */
    uint64_t sum, bytes;
    rl_status status; /* first failure */
};

static rl_status write_failed(struct event_writer *writer)
{
    writer->status = rl_fail(RL_IO, "%s: cannot write: %s", writer->path, strerror(errno));
    return writer->status;
}

static rl_status open_writer(const char *path, const char *mode, struct event_writer **out)
{
    struct event_writer *writer = calloc(1, sizeof(*writer));
    if (writer == NULL || rl_text_copy(path, &writer->path) != RL_OK) {
        free(writer);
        return rl_fail(RL_NO_MEMORY, "%s: out of memory", path);
    }
    rl_text_init(&writer->record, HEAD_BYTES + (size_t)EVENT_PAYLOAD_MAX);
    writer->file = fopen(path, mode);
    if (writer->file == NULL || setvbuf(writer->file, NULL, _IOFBF, WRITE_BUFFER_BYTES) != 0) {
        rl_status status = rl_fail(RL_IO, "%s: cannot open: %s", path, strerror(errno));
        event_writer_close(writer);
        return status;
    }
    *out = writer;
    return RL_OK;
}

rl_status event_writer_create(const char *path, struct event_writer **out)
{
    struct event_writer *writer = NULL;
    RL_TRY(open_writer(path, "wbe", &writer));
    writer->sum = first_sum();
    writer->bytes = MAGIC_BYTES;
    if (fwrite(magic, 1, MAGIC_BYTES, writer->file) != MAGIC_BYTES || fflush(writer->file) != 0) {
        rl_status status = write_failed(writer);
        event_writer_close(writer);
        return status;
    }
    *out = writer;
    return RL_OK;
}

/* Where a resumed file ends. */
struct resume_point {
    uint64_t offset, sum; /* 0: nowhere */
    bool complete;        /* behind the checkpoint's own record */
};

/* The last place that belongs to the state of `step`. The file's end may be torn: the process that
 * wrote it may have been killed. */
static rl_status find_resume_point(struct event_file *file, uint64_t step, struct resume_point *out)
{
    struct event event = {0};
    rl_status status = RL_OK;
    while ((status = event_file_next(file, &event)) == RL_OK) {
        bool here = event.kind == EVENT_CHECKPOINT && event.checkpoint == step;
        bool before = event.kind == EVENT_STEP && event.step.step <= step && !out->complete;
        if (here || before) {
            *out = (struct resume_point){file->offset, file->sum, here};
        }
        event_fini(&event);
    }
    return status == RL_END || status == RL_CORRUPT ? RL_OK : status;
}

static rl_status look_for(const char *path, uint64_t step, struct resume_point *out)
{
    struct event_file *file = NULL;
    rl_status status = access(path, F_OK) != 0 ? RL_CORRUPT : event_file_open(path, &file);
    if (status == RL_OK) {
        status = find_resume_point(file, step, out);
    }
    event_file_close(file);
    return status == RL_CORRUPT ? RL_OK : status;
}

rl_status event_writer_resume(const char *path, uint64_t step, struct event_writer **out,
                              bool *complete)
{
    struct resume_point point = {0};
    struct event_writer *writer = NULL;
    struct stat info;
    RL_TRY(look_for(path, step, &point));
    *complete = point.complete;
    if (!point.complete) {
        rl_log(RL_LOG_WARN, "%s does not reach the checkpoint of step %" PRIu64, path, step);
    }
    if (point.offset == 0) {
        return event_writer_create(path, out);
    }
    RL_TRY(open_writer(path, "r+be", &writer));
    if (fstat(fileno(writer->file), &info) != 0 ||
        ftruncate(fileno(writer->file), (off_t)point.offset) != 0 ||
        fseeko(writer->file, 0, SEEK_END) != 0) {
        rl_status status = write_failed(writer);
        event_writer_close(writer);
        return status;
    }
    if ((uint64_t)info.st_size > point.offset) {
        rl_log(RL_LOG_INFO, "%s: %" PRIu64 " bytes behind the checkpoint of step %" PRIu64 " cut",
               path, (uint64_t)info.st_size - point.offset, step);
    }
    writer->sum = point.sum;
    writer->bytes = point.offset;
    *out = writer;
    return RL_OK;
}

/* Start a record of `kind`; its payload is appended to writer->record. */
static rl_status begin(struct event_writer *writer, uint32_t kind)
{
    uint32_t head[2] = {kind, 0};
    if (writer->status != RL_OK) {
        return writer->status;
    }
    rl_text_clear(&writer->record);
    return rl_text_append(&writer->record, head, sizeof(head));
}

/* Write the record if its payload could be made. */
static rl_status end(struct event_writer *writer, rl_status encoded)
{
    RL_TRY(encoded);
    uint32_t bytes = (uint32_t)(writer->record.bytes - HEAD_BYTES);
    memcpy(writer->record.data + sizeof(uint32_t), &bytes, sizeof(bytes));
    uint64_t sum = rl_hash_seeded(writer->record.data, writer->record.bytes, writer->sum);
    if (fwrite(writer->record.data, 1, writer->record.bytes, writer->file) !=
            writer->record.bytes ||
        fwrite(&sum, 1, SUM_BYTES, writer->file) != SUM_BYTES) {
        return write_failed(writer);
    }
    writer->sum = sum;
    writer->bytes += writer->record.bytes + SUM_BYTES;
    return RL_OK;
}

rl_status event_write_start(struct event_writer *writer, const struct event_start *start)
{
    RL_TRY(begin(writer, EVENT_START));
    return end(writer, event_encode_start(start, &writer->record));
}

rl_status event_write_arrival(struct event_writer *writer, const struct event_arrival *arrival)
{
    RL_TRY(begin(writer, EVENT_ARRIVAL));
    return end(writer, event_encode_arrival(arrival, &writer->record));
}

rl_status event_write_step(struct event_writer *writer, const struct event_step *step,
                           const struct trajectory_group *const *groups, uint32_t count)
{
    RL_TRY(begin(writer, EVENT_STEP));
    return end(writer, event_encode_step(step, groups, count, &writer->record));
}

rl_status event_write_checkpoint(struct event_writer *writer, uint64_t step)
{
    RL_TRY(begin(writer, EVENT_CHECKPOINT));
    return end(writer, event_encode_place(step, &writer->record));
}

rl_status event_write_rollback(struct event_writer *writer, const struct event_rollback *rollback)
{
    RL_TRY(begin(writer, EVENT_ROLLBACK));
    return end(writer, event_encode_rollback(rollback, &writer->record));
}

rl_status event_write_delta(struct event_writer *writer, const struct event_delta *delta)
{
    RL_TRY(begin(writer, EVENT_DELTA));
    return end(writer, rl_text_append(&writer->record, delta->data, delta->bytes));
}

rl_status event_write_end(struct event_writer *writer, uint64_t step)
{
    RL_TRY(begin(writer, EVENT_END));
    return end(writer, event_encode_place(step, &writer->record));
}

rl_status event_writer_flush(struct event_writer *writer)
{
    if (writer->status != RL_OK) {
        return writer->status;
    }
    return fflush(writer->file) == 0 ? RL_OK : write_failed(writer);
}

uint64_t event_writer_bytes(const struct event_writer *writer)
{
    return writer->bytes;
}

void event_writer_close(struct event_writer *writer)
{
    if (writer == NULL) {
        return;
    }
    if (writer->file != NULL && fclose(writer->file) != 0) {
        rl_log(RL_LOG_ERROR, "%s: cannot write: %s", writer->path, strerror(errno));
    }
    rl_text_fini(&writer->record);
    free(writer->path);
    free(writer);
}
