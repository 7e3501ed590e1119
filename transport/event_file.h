/* RUN/events.bin and deltas.bin: append-only files of records (event_record.h). It begins with 8
 * bytes "FSEVENT1"; each record is kind [u32], payload bytes [u32], payload, checksum [u64], all
 * little-endian. The checksum is the xxh3 of kind, length and payload seeded with the checksum of
 * the record before (the first: the magic's own xxh3), so that a record that is flipped, missing,
 * repeated or out of its place is found. */
#ifndef FORESIGHT_TRANSPORT_EVENT_FILE_H
#define FORESIGHT_TRANSPORT_EVENT_FILE_H

#include "transport/event_record.h"

/* Largest payload of a record. */
enum { EVENT_PAYLOAD_MAX = 1 << 30 };

/* --- writing: one owner, who serialises the calls */
struct event_writer;

/* Begin a new file (an old one is replaced). Caller owns *out. Errors: RL_IO, RL_NO_MEMORY. */
rl_status event_writer_create(const char *path, struct event_writer **out);

/* Go on behind the newest checkpoint record of `step`; what follows it is cut off, said in the log.
 * *complete is false if there is no such record: the file then ends behind its last sound record of
 * a step up to `step`, or is begun anew. Errors: RL_IO, RL_NO_MEMORY. */
rl_status event_writer_resume(const char *path, uint64_t step, struct event_writer **out,
                              bool *complete);

/* Append one record; a write at most, never a flush to the disk. After an error every further call
 * fails. Errors: RL_IO (path named), RL_NO_MEMORY, RL_TOO_LONG. */
rl_status event_write_start(struct event_writer *writer, const struct event_start *start);
rl_status event_write_arrival(struct event_writer *writer, const struct event_arrival *arrival);
rl_status event_write_step(struct event_writer *writer, const struct event_step *step,
                           const struct trajectory_group *const *groups, uint32_t count);
rl_status event_write_checkpoint(struct event_writer *writer, uint64_t step);
rl_status event_write_rollback(struct event_writer *writer, const struct event_rollback *rollback);
rl_status event_write_delta(struct event_writer *writer, const struct event_delta *delta);
rl_status event_write_end(struct event_writer *writer, uint64_t step);

/* Hand what is buffered to the operating system. Errors: RL_IO. */
rl_status event_writer_flush(struct event_writer *writer);

/* Bytes written so far, the file's own beginning included. */
uint64_t event_writer_bytes(const struct event_writer *writer);

/* Flush and close; failures are logged. Takes NULL. */
void event_writer_close(struct event_writer *writer);

/* --- reading */
struct event_file;

/* Caller owns *out. Errors: RL_IO, RL_CORRUPT (not an events file), RL_NO_MEMORY. */
rl_status event_file_open(const char *path, struct event_file **out);

/* The next record; release with event_fini before the next call. RL_END (not logged) at the end of
 * the file. Errors: RL_CORRUPT (file, offset and reason), RL_IO, RL_NO_MEMORY. */
rl_status event_file_next(struct event_file *file, struct event *out);

/* Where the last record read began, and where it ended. */
uint64_t event_file_record_offset(const struct event_file *file);
uint64_t event_file_offset(const struct event_file *file);

/* Takes NULL. */
void event_file_close(struct event_file *file);

#endif
