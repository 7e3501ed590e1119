/* Messages over a connected stream socket between two processes of one node: framed, in order, both
 * directions, never blocking. Every frame carries the incarnation that both ends were made with;
 * one of another incarnation is refused. Owns the descriptor and what is queued. One thread. */
#ifndef FORESIGHT_TRANSPORT_SOCKET_STREAM_H
#define FORESIGHT_TRANSPORT_SOCKET_STREAM_H

#include "core/status.h"
#include "transport/channel.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct socket_stream;

/* Take the connected socket `fd` (closed by destroy, and on failure). `message_bytes`: largest
 * message accepted. Caller owns *out. Errors: RL_NO_MEMORY, RL_IO. */
rl_status socket_stream_create(int fd, uint32_t incarnation, size_t message_bytes,
                               struct socket_stream **out);

/* Close it; queued messages are freed. Takes NULL. */
void socket_stream_destroy(struct socket_stream *stream);

/* Queue a message and take its data on RL_OK (`message` is zeroed; its peer plays no part). The
 * bound of the queue is the caller's affair. Errors: RL_NO_MEMORY. */
rl_status socket_stream_send(struct socket_stream *stream, struct channel_message *message);

/* Write what the socket takes now. Returns whether anything moved. An error shows as RL_CLOSED from
 * the next receive. */
bool socket_stream_flush(struct socket_stream *stream);

/* Messages queued and not yet wholly written. */
size_t socket_stream_queued(const struct socket_stream *stream);

/* The next whole message, its data owned by the caller, `peer` left alone. Not logged: RL_AGAIN
 * (none yet), RL_CLOSED (the other end is gone and all that it sent was received). Errors:
 * RL_CORRUPT (magic, incarnation or size), RL_NO_MEMORY; nothing can be received after these. */
rl_status socket_stream_receive(struct socket_stream *stream, struct channel_message *out);

#endif
