/* What channel_mpi.c (queues, compute threads' side) and channel_mpi_pump.c (MPI's side) share. */
#ifndef FORESIGHT_TRANSPORT_CHANNEL_MPI_INTERNAL_H
#define FORESIGHT_TRANSPORT_CHANNEL_MPI_INTERNAL_H

#include "transport/channel_mpi.h"
#include "transport/mpi_internal.h"
#include "transport/socket_stream.h"

#include <pthread.h>
#include <stdatomic.h>

/* A queued message. */
struct mpi_item {
    struct mpi_item *next;
    struct channel_message message; /* peer: receiver in the outbox, sender in the inbox */
};

struct mpi_queue {
    struct mpi_item *head, *tail;
    size_t count;
};

/* A message that MPI is moving. Pump thread only. */
struct mpi_flight {
    struct mpi_flight *next;
    MPI_Request request;
    struct mpi_item *item; /* receiving: message.peer is the sender */
    bool done;
};

struct mpi_flights {
    struct mpi_flight *head, *tail;
    size_t count;
};

/* Travels on MPI_TAG_CONTROL: a sign of life and the acknowledgements, cumulative, so that one may
 * be skipped but none can be wrong. */
struct mpi_control {
    uint32_t magic;
    uint32_t flags;
    uint64_t consumed; /* messages of the receiver that the sender has taken out of its channel */
};

enum {
    MPI_CONTROL_MAGIC = 0x46534342,
    MPI_CONTROL_KIND = 0x7fffffff, /* of a control message on a socket */
    MPI_CONTROL_LOST = 1,          /* you were silent for too long: you are lost to me */
    MPI_CONTROL_GOODBYE = 2,       /* I am leaving as agreed */
    MPI_CONTROL_TORN = 4           /* somebody is lost: do not wait for all ranks at the end */
};

/* The other end. Its process is the one that mpirun started (incarnation 0), reached over MPI, or a
 * successor of it, reached over `link`. MPI knows only the former: whatever comes over MPI from a
 * rank with a successor is late, and never reaches the inbox. */
struct mpi_peer {
    /* Guarded by channel_mpi.mutex. */
    bool lost;
    uint64_t sent;     /* messages accepted for it */
    uint64_t acked;    /* of those, consumed by it */
    uint64_t consumed; /* messages of it that were received here by channel_receive */
    /* Pump thread only. */
    bool watched;
    bool met;        /* gave a sign of life */
    bool told;       /* a lost process of mpirun's has been told so */
    bool leaving;    /* it said goodbye; lost once all that it sent is here */
    double gone_s;   /* since when its process is known to have ended; 0: it has not */
    double looked_s; /* when its process was last looked for */
    uint32_t incarnation;
    struct socket_stream *link; /* NULL: MPI */
    _Atomic double heard_s;     /* last sign of life; other threads read it */
    double beat_s;              /* last control message to it */
    uint64_t consumed_told;
    MPI_Request control; /* the control message on its way, MPI_REQUEST_NULL: none */
    struct mpi_control *control_data;
    struct mpi_flights receiving; /* in order of arrival */
};

struct channel_mpi {
    struct channel base;
    struct world *world;
    struct channel_mpi_options options;
    MPI_Comm comm;
    struct mpi_peer *peers; /* [size] */
    pthread_mutex_t mutex;  /* guards outbox, inbox, counters, closed and parts of peers */
    pthread_cond_t arrived; /* for receivers */
    pthread_cond_t wake;    /* for the sleeping pump */
    bool woken;
    bool closed;
    struct mpi_queue outbox, inbox;
    size_t inbox_coming; /* messages being received: they have a place in the inbox */
    size_t unsent;       /* queued or on their way to living peers */
    struct channel_counters counters;
    /* Pump thread only. */
    struct mpi_flights sending;
    double round_s;                /* start of the last round */
    double idle_s;                 /* length of the next sleep */
    struct collective *collective; /* of this round, to be told of losses; may be NULL */
};

/* Queue operations; the caller holds the mutex. */
void mpi_queue_push(struct mpi_queue *queue, struct mpi_item *item);
struct mpi_item *mpi_queue_pop(struct mpi_queue *queue);
void mpi_item_free(struct mpi_item *item);

/* Leave politely and give back what MPI still holds. Pump thread. */
void channel_mpi_drain(struct channel_mpi *channel);

/* channel_mpi_life.c's, for the pump and the sockets. Pump thread. */

/* From now on `rank` does not exist: announced once, in the stream of messages. `agreed`: it said
 * that it leaves. */
void channel_mpi_lose(struct channel_mpi *channel, int rank, const char *why, bool agreed);

/* A control message has come from the process that has the rank. */
void channel_mpi_control(struct channel_mpi *channel, int rank, const struct mpi_control *control);

/* Send one with these flags, if that is possible now. */
void channel_mpi_control_send(struct channel_mpi *channel, int rank, uint32_t flags);

/* Whether what comes over MPI from this peer is from the process that has the rank now. */
bool channel_mpi_is_current(const struct mpi_peer *peer);

/* Something came over MPI: a sign of life, or a lost process that must learn that it is lost. */
void channel_mpi_heard(struct channel_mpi *channel, int rank);

/* Beats, acknowledgements, deadlines of one peer. */
void channel_mpi_peer_round(struct channel_mpi *channel, int rank);

/* Start a round. Silence counts only while we listen: after a stop of our own, everybody gets the
 * time back. */
void channel_mpi_clock(struct channel_mpi *channel);

/* channel_mpi_pump.c's: whether the inbox may take another message. */
bool channel_mpi_has_room(struct channel_mpi *channel);

/* channel_mpi_link.c's, for the pump: a round of a peer's socket, in both directions; a message or
 * a control message for it (taken on RL_OK); the last words, and the end of the socket. */
bool channel_link_round(struct channel_mpi *channel, int rank);
rl_status channel_link_send(struct channel_mpi *channel, struct channel_message *message);
rl_status channel_link_control(struct channel_mpi *channel, int rank,
                               const struct mpi_control *control);
void channel_link_close(struct channel_mpi *channel, int rank);

#endif
