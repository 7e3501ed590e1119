/* See socket_stream.h. Both ends run on one machine and from one build: frames are in its own byte
 * order. Invariant: a frame that was begun is finished before the next one, in both directions. */
#include "transport/socket_stream.h"

#include "core/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { STREAM_MAGIC = 0x46535352 };

struct stream_header {
    uint32_t magic;
    uint32_t incarnation;
    uint32_t kind;
    uint32_t reserved;
    uint64_t bytes;
};

struct stream_frame {
    struct stream_frame *next;
    struct stream_header header;
    void *data;
};

struct socket_stream {
    int fd;
    uint32_t incarnation;
    size_t message_bytes;
    bool broken;                      /* a write failed: the other end is gone */
    struct stream_frame *head, *tail; /* to be written */
    size_t queued, written;           /* frames; bytes of the first that have left */
    struct stream_header header;      /* of the message that is coming */
    size_t header_read, data_read;    /* bytes of it that are here */
    unsigned char *data;
};

rl_status socket_stream_create(int fd, uint32_t incarnation, size_t message_bytes,
                               struct socket_stream **out)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0 ||
        fcntl(fd, F_SETFD, FD_CLOEXEC) != 0) {
        rl_status status = rl_fail(RL_IO, "socket %d: %s", fd, strerror(errno));
        close(fd);
        return status;
    }
    struct socket_stream *stream = calloc(1, sizeof *stream);
    if (stream == NULL) {
        close(fd);
        return rl_fail(RL_NO_MEMORY, "no memory for a stream of messages");
    }
    stream->fd = fd;
    stream->incarnation = incarnation;
    stream->message_bytes = message_bytes;
    *out = stream;
    return RL_OK;
}

static void frame_pop(struct socket_stream *stream)
{
    struct stream_frame *frame = stream->head;
    stream->head = frame->next;
    stream->tail = stream->head == NULL ? NULL : stream->tail;
    stream->written = 0;
    stream->queued--;
    free(frame->data);
    free(frame);
}

void socket_stream_destroy(struct socket_stream *stream)
{
    if (stream == NULL) {
        return;
    }
    while (stream->head != NULL) {
        frame_pop(stream);
    }
    close(stream->fd);
    free(stream->data);
    free(stream);
}

rl_status socket_stream_send(struct socket_stream *stream, struct channel_message *message)
{
    struct stream_frame *frame = calloc(1, sizeof *frame);
    if (frame == NULL) {
        return rl_fail(RL_NO_MEMORY, "no memory to queue a message");
    }
    frame->header = (struct stream_header){.magic = STREAM_MAGIC,
                                           .incarnation = stream->incarnation,
                                           .kind = message->kind,
                                           .bytes = message->bytes};
    frame->data = message->data;
    if (stream->tail != NULL) {
        stream->tail->next = frame;
    } else {
        stream->head = frame;
    }
    stream->tail = frame;
    stream->queued++;
    memset(message, 0, sizeof *message);
    return RL_OK;
}

size_t socket_stream_queued(const struct socket_stream *stream)
{
    return stream->queued;
}

/* Write a part of the first frame; bytes that left, or -1. */
static ssize_t frame_write(struct socket_stream *stream)
{
    struct stream_frame *frame = stream->head;
    size_t header_left =
        stream->written < sizeof frame->header ? sizeof frame->header - stream->written : 0;
    size_t data_done = header_left > 0 ? 0 : stream->written - sizeof frame->header;
    struct iovec parts[2] = {
        {(unsigned char *)&frame->header + sizeof frame->header - header_left, header_left},
        {frame->data != NULL ? (unsigned char *)frame->data + data_done : NULL,
         frame->header.bytes - data_done}};
    struct msghdr what = {.msg_iov = parts, .msg_iovlen = 2};
    return sendmsg(stream->fd, &what, MSG_NOSIGNAL | MSG_DONTWAIT);
}

bool socket_stream_flush(struct socket_stream *stream)
{
    bool moved = false;
    while (stream->head != NULL && !stream->broken) {
        ssize_t bytes = frame_write(stream);
        if (bytes < 0) {
            stream->broken = errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR;
            break;
        }
        moved = true;
        stream->written += (size_t)bytes;
        if (stream->written == sizeof stream->head->header + stream->head->header.bytes) {
            frame_pop(stream);
        }
    }
    return moved;
}

/* Fill `into` up to `bytes`. RL_OK: full. */
static rl_status stream_fill(struct socket_stream *stream, void *into, size_t bytes, size_t *have)
{
    while (*have < bytes) {
        ssize_t got = recv(stream->fd, (unsigned char *)into + *have, bytes - *have, MSG_DONTWAIT);
        if (got == 0) {
            return RL_CLOSED;
        }
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got < 0) {
            return errno == EAGAIN || errno == EWOULDBLOCK ? RL_AGAIN : RL_CLOSED;
        }
        *have += (size_t)got;
    }
    return RL_OK;
}

static rl_status header_check(struct socket_stream *stream)
{
    const struct stream_header *header = &stream->header;
    if (header->magic != STREAM_MAGIC || header->incarnation != stream->incarnation ||
        header->bytes > stream->message_bytes) {
        return rl_fail(RL_CORRUPT,
                       "stream: a frame with magic %#x, incarnation %u, %llu bytes; expected %#x, "
                       "%u, at most %zu",
                       header->magic, header->incarnation, (unsigned long long)header->bytes,
                       STREAM_MAGIC, stream->incarnation, stream->message_bytes);
    }
    if (header->bytes > 0) {
        stream->data = malloc(header->bytes);
        if (stream->data == NULL) {
            return rl_fail(RL_NO_MEMORY, "no memory for a message of %llu bytes",
                           (unsigned long long)header->bytes);
        }
    }
    return RL_OK;
}

rl_status socket_stream_receive(struct socket_stream *stream, struct channel_message *out)
{
    bool begun = stream->header_read == sizeof stream->header;
    if (!begun) {
        RL_TRY(stream_fill(stream, &stream->header, sizeof stream->header, &stream->header_read));
        RL_TRY(header_check(stream));
    }
    RL_TRY(stream_fill(stream, stream->data, stream->header.bytes, &stream->data_read));
    out->kind = stream->header.kind;
    out->bytes = stream->header.bytes;
    out->data = stream->data;
    stream->data = NULL;
    stream->header_read = 0;
    stream->data_read = 0;
    return RL_OK;
}
