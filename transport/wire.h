/* Frames between ranks: a fixed header (magic, format, kind, payload bytes, xxh3 of the payload)
 * and a little-endian payload. Owns the layout and the limits, not the way they travel. Both ends
 * check: an encoder refuses what its decoder would, a decoder trusts no byte, never reads past
 * `bytes` and allocates no more than a small multiple of it. Pure; any thread. */
#ifndef FORESIGHT_TRANSPORT_WIRE_H
#define FORESIGHT_TRANSPORT_WIRE_H

#include "core/histogram.h"
#include "core/role_times.h"
#include "core/status.h"
#include "core/trajectory.h"
#include "transport/channel.h"

#include <stddef.h>
#include <stdint.h>

enum wire_kind {
    WIRE_HELLO = 1,  /* both ways, once: who am I, where are the weights */
    WIRE_TICKET = 2, /* learner 0 to worker: generate this group */
    WIRE_GROUP = 3,  /* worker to learner 0: a generated, scored group */
    WIRE_STATUS = 4, /* worker to learner 0: progress, for metrics and admission */
    WIRE_STOP = 5,   /* learner 0 to worker: finish up and leave */
    WIRE_BYTES = 6,  /* anything else between own modules: opaque, first word tells which */
    /* learner 0 to worker: send the finished samples of unfinished groups, as WIRE_PARTIAL */
    WIRE_SNAPSHOT = 7,
    /* worker to learner 0: one such group (unfinished samples are empty), an empty frame after the
     * last; learner 0 to worker: the same, right before the ticket that goes on from it */
    WIRE_PARTIAL = 8
};

enum {
    WIRE_HEADER_BYTES = 32,
    WIRE_NAME_MAX = 96,                /* bytes of a name, the NUL included */
    WIRE_SAMPLES_MAX = 65536,          /* G */
    WIRE_SAMPLE_TOKENS_MAX = 16777216, /* prompt + completion of one sample */
    WIRE_BYTES_MAX = 1073741824        /* payload of one frame */
};

struct wire_hello {
    uint32_t rank;
    uint32_t world_size;
    uint64_t pid;
    uint64_t config_hash;           /* of the resolved configuration; ranks must agree */
    uint64_t slot_bytes;            /* bytes of a weight image; 0 from a worker */
    char arena_name[WIRE_NAME_MAX]; /* weight_arena_attach; "" from a worker */
    char host[WIRE_NAME_MAX];
};

struct wire_ticket {
    uint64_t ticket; /* number, unique in the run */
    uint64_t prompt_id;
    uint32_t epoch;
    uint32_t sample_count; /* G, >= 1 */
    uint64_t seed;         /* run seed: with prompt, epoch and sample index it fixes the samples */
    uint32_t version;      /* pinned: the one version that generates the whole group; else the
                              newest when it was issued: with no older one it begins if that is
                              about to be there */
    bool pinned;           /* false: by the newest weights there are at each pass */
};

struct wire_status {
    uint32_t rank;
    uint32_t version;                /* weights in use */
    uint32_t running_sequences;      /* being decoded */
    uint32_t waiting_sequences;      /* admitted, not yet running */
    uint64_t tickets_open;           /* received, not yet sent back */
    uint64_t tokens_generated;       /* since the start */
    uint64_t prompt_tokens;          /* prefilled since the start */
    uint64_t weight_switches;        /* since the start */
    double decode_busy_s;            /* time in forward passes since the start */
    double idle_s;                   /* time without anything to decode since the start */
    double cpu_s;                    /* CPU time of the process */
    double time_s[RL_ROLLOUT_TIMES]; /* wall time since the start, by what it was spent on */
    struct rl_pass_times passes;     /* since the start */
};

struct wire_stop {
    uint32_t reason; /* enum wire_stop_reason */
    int32_t exit_code;
};

enum wire_stop_reason { WIRE_STOP_DONE, WIRE_STOP_INTERRUPTED, WIRE_STOP_FAILED };

/* Encode into a new frame: fills kind, bytes and data of *out (data owned by the caller, who
 * normally gives it to channel_send) and leaves `peer` alone.
 * Errors: RL_INVALID (field named), RL_TOO_LONG, RL_NO_MEMORY. */
rl_status wire_encode_hello(const struct wire_hello *hello, struct channel_message *out);
rl_status wire_encode_ticket(const struct wire_ticket *ticket, struct channel_message *out);
rl_status wire_encode_group(const struct trajectory_group *group, struct channel_message *out);
rl_status wire_encode_status(const struct wire_status *status, struct channel_message *out);
rl_status wire_encode_stop(const struct wire_stop *stop, struct channel_message *out);
rl_status wire_encode_bytes(const void *data, size_t bytes, struct channel_message *out);
rl_status wire_encode_snapshot(uint64_t id, struct channel_message *out);
/* `id`: of the WIRE_SNAPSHOT that this answers, from a learner 0; `group` NULL: no more come. */
rl_status wire_encode_partial(uint64_t id, const struct trajectory_group *group,
                              struct channel_message *out);

/* Decode a whole frame of the kind asked for. Errors: RL_CORRUPT (what is wrong is named),
 * RL_NO_MEMORY. The group is the caller's (trajectory_group_destroy) and has passed
 * trajectory_group_check. wire_decode_bytes borrows from the message. A partial group
 * is NULL where no more come. */
rl_status wire_decode_hello(const struct channel_message *message, struct wire_hello *out);
rl_status wire_decode_ticket(const struct channel_message *message, struct wire_ticket *out);
rl_status wire_decode_group(const struct channel_message *message, struct trajectory_group **out);
rl_status wire_decode_status(const struct channel_message *message, struct wire_status *out);
rl_status wire_decode_stop(const struct channel_message *message, struct wire_stop *out);
rl_status wire_decode_bytes(const struct channel_message *message, const void **data,
                            size_t *bytes);
rl_status wire_decode_snapshot(const struct channel_message *message, uint64_t *id);
rl_status wire_decode_partial(const struct channel_message *message, uint64_t *id,
                              struct trajectory_group **out);

/* Check header, size and hash of a frame and say its kind. Errors: RL_CORRUPT. */
rl_status wire_frame_check(const void *data, size_t bytes, uint32_t *kind);

const char *wire_kind_name(uint32_t kind); /* static; "unknown" for others */

#endif
