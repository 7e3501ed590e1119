/* Reading and writing fields of frames, shared by wire.c (frames and small payloads) and
 * wire_group.c (groups). Nobody else includes this. */
#ifndef FORESIGHT_TRANSPORT_WIRE_INTERNAL_H
#define FORESIGHT_TRANSPORT_WIRE_INTERNAL_H

#include "core/cursor.h"
#include "transport/wire.h"

#include <string.h>

/* Where the next field is written. The frame is allocated in full beforehand. */
struct wire_writer {
    unsigned char *at;
};

static inline void put(struct wire_writer *writer, const void *data, size_t bytes)
{
    if (bytes > 0) {
        memcpy(writer->at, data, bytes);
        writer->at += bytes;
    }
}

static inline void put_u32(struct wire_writer *writer, uint32_t value)
{
    put(writer, &value, sizeof value);
}

static inline void put_u64(struct wire_writer *writer, uint64_t value)
{
    put(writer, &value, sizeof value);
}

static inline void put_f64(struct wire_writer *writer, double value)
{
    put(writer, &value, sizeof value);
}

/* Memory for header and payload; the writer starts at the payload. */
rl_status wire_frame_begin(size_t payload_bytes, unsigned char **frame, struct wire_writer *writer);

/* Write the header and hand the frame over to *out. */
void wire_frame_end(unsigned char *frame, uint32_t kind, size_t payload_bytes,
                    struct channel_message *out);

/* Check the frame and start reading its payload. */
rl_status wire_frame_open(const struct channel_message *message, uint32_t expected,
                          struct rl_cursor *reader);

/* The payload must end exactly where its last field does. */
rl_status wire_frame_done(const struct rl_cursor *reader, uint32_t kind);

#endif
