/* Channel over MPI. Compute threads use channel.h (kinds below 16384); one thread, the pump (the
 * main thread: it opened the world), makes all MPI calls, non-blocking only. Rank 0 and every other
 * rank watch each other's heartbeats, learners watch learners; a watched rank that is silent for
 * dead_after_s is lost: CHANNEL_PEER_LOST, its pending traffic is cancelled or abandoned, later
 * messages from it are dropped and answered with "you are lost", which makes us lost to it too. On
 * the same node the end of a watched process is seen at once. A lost rank's index may be given to a
 * new process, which is reached over a socket; in a world that was joined in that way the channel
 * reaches rank 0 only. */
#ifndef FORESIGHT_TRANSPORT_CHANNEL_MPI_H
#define FORESIGHT_TRANSPORT_CHANNEL_MPI_H

#include "transport/channel.h"
#include "transport/collective.h"
#include "transport/world.h"

struct channel_mpi_options {
    size_t ring_messages; /* bound of the outbound and of the inbound queue */
    int credits;          /* unacknowledged messages per receiver */
    size_t message_bytes; /* largest message accepted or sent; 0: WIRE_BYTES_MAX */
    double heartbeat_s;
    double dead_after_s;    /* silence that makes a peer lost; > 2 * heartbeat_s */
    double first_contact_s; /* the same before its first sign of life; 0: 120 s */
};

/* After world_form; the world must have MPI, be joined or be
 * hosted (then all peers are lost until they join). Main thread. Caller closes *out
 * (channel_close, main thread, after the compute threads have stopped). Errors: RL_INVALID,
 * RL_NO_MEMORY. */
rl_status channel_mpi_create(struct world *world, const struct channel_mpi_options *options,
                             struct channel **out);

/* One round: take what arrived, send what is queued, heartbeats, deadlines; then a round of
 * `collective` (made by collective_mpi_create; may be NULL). Never blocks. Returns whether there
 * was work. Pump thread only. */
bool channel_mpi_pump_once(struct channel *channel, struct collective *collective);

/* Sleep as fits the traffic: not at all after work (`worked`, what pump_once returned), else 50 us
 * growing to 1 ms; a collective under way keeps it at 50 us, a send by another thread wakes it.
 * Pump thread. */
void channel_mpi_idle(struct channel *channel, bool worked);

/* Pump until done(context) is true or timeout_s has passed (RL_TIMEOUT; <= 0: no limit). */
rl_status channel_mpi_pump(struct channel *channel, struct collective *collective,
                           bool (*done)(void *context), void *context, double timeout_s);

/* Give the index of a lost peer, whose CHANNEL_PEER_LOST has been received, to a new process at the
 * other end of the socket `fd` (taken, closed on failure). Its end has the same `incarnation`,
 * above all that the index had before; what earlier incarnations still send is dropped. Pump
 * thread. Errors: RL_INVALID, RL_NO_MEMORY, RL_IO. */
rl_status channel_mpi_join(struct channel *channel, int rank, uint32_t incarnation, int fd);

/* Seconds since the last sign of life of a peer that is watched. Any thread. */
double channel_mpi_silence_s(const struct channel *channel, int rank);

/* True when nothing is queued or in flight to living peers. Any thread. */
bool channel_mpi_flushed(struct channel *channel);

#endif
