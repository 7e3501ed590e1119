/* Inside of a stream: shared by device_cuda.cu (devices, streams, errors), scratch_cuda.cu (device
 * memory of one op), mirror_cuda.cu (host arrays on the device) and replay_cuda.cu (work that comes
 * again). */
#ifndef FORESIGHT_KERNELS_CUDA_STREAM_CUDA_H
#define FORESIGHT_KERNELS_CUDA_STREAM_CUDA_H

#include "kernels/cuda/device_cuda.h"
#include "kernels/device_ops.h"

enum {
    CUDA_SLOTS = 4, /* of pinned staging: copies that can be under way before one is waited for */
    CUDA_FETCHES = 24,        /* between two waits */
    CUDA_SCRATCH_BLOCKS = 32, /* that one op can make the scratch grow by */
    CUDA_RECORDS = 64         /* kinds of work that are remembered */
};

/* Pinned host memory that a copy reads from; free again when `copied` has happened. */
struct cuda_slot {
    char *data;
    size_t bytes;
    cudaEvent_t copied;
    bool used; /* `copied` was recorded */
};

/* Bump allocation from block 0. What does not fit gets a block of its own, and the next op finds
 * one block that is large enough for all. */
struct cuda_arena {
    char *blocks[CUDA_SCRATCH_BLOCKS];
    size_t bytes[CUDA_SCRATCH_BLOCKS];
    int count;
    size_t used; /* of block 0 */
};

/* What the last pass_begin uploaded, in one piece. */
struct cuda_mirror_entry {
    const char *host;
    size_t bytes, offset;
};
struct cuda_pass {
    char *data; /* device */
    size_t bytes;
    struct cuda_slot staging[2]; /* taken in turn: the newest keeps what was uploaded */
    int turn;
    struct cuda_mirror_entry entries[KERNEL_PASS_ARRAYS];
    int count;
    const int32_t *segment_start; /* key of the segments, NULL: none */
    size_t segments_offset;
};

struct cuda_fetched {
    void *host;
    size_t offset, bytes; /* in `landing` */
};

/* Work that was queued with a key, and perhaps recorded. */
struct cuda_record {
    unsigned char key[DEVICE_KEY_BYTES];
    size_t key_bytes;
    uint64_t used;         /* number of its last call; 0: the record is free */
    cudaGraphExec_t graph; /* NULL: not recorded yet */
    struct cuda_fetched fetches[CUDA_FETCHES];
    int fetch_count;
    size_t landed;
};

struct cuda_replay {
    bool off;                    /* graphs are not wanted, or failed once */
    bool paused;                 /* by device_replay_allow */
    struct cuda_record *records; /* [CUDA_RECORDS], NULL before the first key */
    uint64_t calls;
    uint64_t places; /* cuda_places when the records were made */
    bool deferring;  /* results come with the next wait */
    bool recording;  /* what waits, allocates or uploads is an error */
    cudaEvent_t marks[DEVICE_MARKS];
};

struct cuda_stream {
    struct device_stream base;
    struct device *device;
    cudaStream_t handle;
    struct cuda_matmul *matmul;
    const char *op;
    rl_status failure; /* of the first error; RL_OK: none */
    bool reported;
    char text[400];
    struct cuda_arena scratch;
    struct cuda_slot slots[CUDA_SLOTS];
    int slot;
    struct cuda_pass pass;
    struct cuda_slot landing; /* pinned memory that fetches arrive in */
    size_t landed;
    struct cuda_fetched fetches[CUDA_FETCHES];
    int fetch_count;
    uint64_t moved; /* times that scratch, index arrays or `landing` changed their address */
    struct cuda_replay replay;
};

/* Device memory with the error kept in the stream; false after one. */
bool cuda_stream_malloc(struct cuda_stream *stream, size_t bytes, const char *what, char **out);

/* Make `slot` ready to be written with `bytes`: waits for its last copy, grows it. */
bool cuda_slot_take(struct cuda_stream *stream, struct cuda_slot *slot, size_t bytes);

/* Queue the copy of the slot's first `bytes` to device memory. */
void cuda_slot_send(struct cuda_stream *stream, struct cuda_slot *slot, void *to, size_t bytes);

/* Give the slot's memory back; its copies have been made. */
void cuda_slot_free(struct cuda_slot *slot);

/* Give back all memory; the stream is idle. */
void cuda_scratch_fini(struct cuda_stream *stream);
void cuda_pass_fini(struct cuda_stream *stream);
void cuda_replay_fini(struct cuda_stream *stream);

/* Events for marks; graphs unless the environment has FORESIGHT_CUDA_GRAPHS=0. */
void cuda_replay_init(struct cuda_stream *stream);

/* Is the stream's work being recorded? Then `what` cannot be done, and becomes its error. */
bool cuda_recording(struct cuda_stream *stream, const char *what);

/* Pinned memory for fetches, at least `bytes`; nothing has been fetched. False when the stream has
 * failed. */
bool cuda_landing_take(struct cuda_stream *stream, size_t bytes);

/* Make the stream good again, as before the first error. */
void cuda_forgive(struct cuda_stream *stream);

/* device.h, for a stream of CUDA. */
void cuda_replay_run(struct device_stream *base, const struct device_work *work);
void cuda_replay_allow(struct device_stream *base, bool allowed);
void cuda_replay_mark(struct device_stream *base, enum device_mark mark);
double cuda_replay_marked_s(struct device_stream *base, enum device_mark from, enum device_mark to);

#endif
