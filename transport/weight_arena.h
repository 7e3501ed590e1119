/* Versioned weight images in a few slots of memory that a node's processes share. One writer
 * (a learner) fills a free slot and publishes it; any number of readers pin the newest slot and
 * read it in place. Invariant: a slot that is newest or pinned is never written. Readers take no
 * lock and never wait; the writer waits only for a slot, with a deadline. Versions coalesce: a
 * reader of the newest does not see each; a writer that must not skip any keeps a window of them.
 * A dead reader's pins are cleared by its rank.
 *
 * A writer that makes its images on a GPU has the same slots in that GPU's memory too, under the
 * same numbers, versions and pins. It fills both before it publishes: readers take the one that
 * their device reaches best. */
#ifndef FORESIGHT_TRANSPORT_WEIGHT_ARENA_H
#define FORESIGHT_TRANSPORT_WEIGHT_ARENA_H

#include "core/status.h"
#include "kernels/device.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { WEIGHT_ARENA_SLOTS_MAX = 64, WEIGHT_ARENA_NAME_MAX = 96 };

struct weight_arena;

struct weight_arena_options {
    bool shared;       /* POSIX shared memory; false: private memory of this process */
    int slots;         /* >= 2; 3 where readers are other processes; see keep_from */
    size_t slot_bytes; /* bytes of an image */
    int readers;       /* pins: reader indices 0 .. readers-1, by convention world ranks */
};

/* What a reader has pinned. */
struct weight_view {
    const void *image;            /* [bytes] the host's, 4096-aligned; valid while it is pinned */
    struct device_source nearest; /* the image that this process's device reaches best, as long */
    size_t bytes;
    uint32_t version;
    uint64_t hash; /* as given to publish */
};

/* Make the arena, pages reserved (a full /dev/shm is an error here, with needed and free bytes, not
 * a crash later). Removes arenas of dead processes first. Caller owns *out. Errors: RL_INVALID,
 * RL_IO, RL_NO_MEMORY. */
rl_status weight_arena_create(const struct weight_arena_options *options,
                              struct weight_arena **out);

/* Map the arena `name` of another process. Caller owns *out. Errors: RL_NOT_FOUND, RL_IO,
 * RL_CORRUPT (not an arena, or another build's), RL_INVALID (slot_bytes other than expected). */
rl_status weight_arena_attach(const char *name, size_t slot_bytes, struct weight_arena **out);

/* Make slots in the memory of `device` too (NULL: nothing is done), and let other processes of the
 * machine read them if the arena is shared and the device can. From here on whoever publishes fills
 * both. Creator only, once, before the first publish; the device outlives the arena. Errors:
 * RL_NO_MEMORY. */
rl_status weight_arena_add_device(struct weight_arena *arena, struct device *device);

/* Bytes that it takes of the device. */
size_t weight_arena_device_bytes(int slots, size_t slot_bytes);

/* The slot in the device's memory; NULL of an arena without. Creator only. */
void *weight_arena_device_slot(const struct weight_arena *arena, int slot);

/* Views have the images in the writer's GPU from here on, if `device` (NULL: nothing is done) is
 * that GPU or can copy from it; if not, one line says why. `reader` is who has them open. Attached
 * arenas only, before any view; the device outlives the arena. */
void weight_arena_map_device(struct weight_arena *arena, struct device *device, int reader);

/* Where views are nearest; DEVICE_PLACE_HOST without either of these. */
enum device_place weight_arena_place(const struct weight_arena *arena);

/* Name for weight_arena_attach; "" for a private arena. Borrowed. */
const char *weight_arena_name(const struct weight_arena *arena);

/* Unmap; the creator also removes the name. A GPU's slots that readers have open for two seconds
 * more are left to the end of the process, since they must not be freed. Takes NULL. */
void weight_arena_close(struct weight_arena *arena);

/* Remove the name now, so that nothing stays behind whatever happens; attached processes keep their
 * mapping, nobody can attach any more. Creator only. */
void weight_arena_unlink(struct weight_arena *arena);

/* Remove shared arenas whose creator is dead and that nobody has mapped. Returns how many. */
int weight_arena_remove_stale(void);

/* Versions >= `version` are not overwritten from here on (nothing is kept before the first call).
 * A window of n versions needs n + 2 slots. Creator only, begin_write's thread. */
void weight_arena_keep_from(struct weight_arena *arena, uint32_t version);

/* What keep_from was given last; false: nothing is kept. Any thread, any process. */
bool weight_arena_kept_from(const struct weight_arena *arena, uint32_t *version);

/* What it was made with. */
int weight_arena_slots(const struct weight_arena *arena);

/* The same of its reader indices. */
int weight_arena_readers(const struct weight_arena *arena);

/* Get a slot that is neither newest nor pinned nor kept; waits up to timeout_s. *image [slot_bytes]
 * may be written until publish; begin_write before that gives the same slot again. Creator only,
 * one thread. Errors: RL_INVALID, RL_TIMEOUT (names the readers that hold slots). */
rl_status weight_arena_begin_write(struct weight_arena *arena, double timeout_s, int *slot,
                                   void **image);

/* Make the written slot the newest. `version` must be above the newest so far (any number the first
 * time). Errors: RL_INVALID. */
rl_status weight_arena_publish(struct weight_arena *arena, int slot, uint32_t version,
                               uint64_t hash);

/* The same for a writer that has compared the image with its hash itself: readers need not. */
rl_status weight_arena_publish_verified(struct weight_arena *arena, int slot, uint32_t version,
                                        uint64_t hash);

/* The newest image without a pin: for the writer, between two publications of its own.
 * RL_AGAIN (not logged): nothing is published. */
rl_status weight_arena_newest(const struct weight_arena *arena, struct weight_view *out);

/* Newest version; false if nothing is published yet. Two loads: poll it before every pass. */
bool weight_arena_latest(const struct weight_arena *arena, uint32_t *version);

/* Sleep until a version >= `version` is published. Errors: RL_TIMEOUT. */
rl_status weight_arena_wait(const struct weight_arena *arena, uint32_t version, double timeout_s);

/* Pin the newest slot for `reader` in place of what it had pinned. Lock-free. One thread per reader
 * index. Errors: RL_AGAIN (nothing published; not logged), RL_INVALID (reader index). */
rl_status weight_arena_acquire(struct weight_arena *arena, int reader, struct weight_view *out);

/* Unpin what acquire pinned. The view is invalid from here on, unless pin holds the version too. */
void weight_arena_release(struct weight_arena *arena, int reader);

/* Pin `version` for `reader` in place of what acquire or this pinned before; that stays pinned if
 * this fails. Lock-free; acquire's thread. Not logged: RL_AGAIN, RL_NOT_FOUND as for pin. Errors:
 * RL_INVALID. */
rl_status weight_arena_acquire_version(struct weight_arena *arena, int reader, uint32_t version,
                                       struct weight_view *out);

/* Compare the hash of the image of `version` with the one it was published with, and mark it as
 * verified for all who map the arena. Reads the whole image; holds it meanwhile by a pin of its
 * own, so that it may run beside the reader's other calls (one thread per reader index).
 * Not logged: RL_AGAIN, RL_NOT_FOUND as for pin. Errors: RL_CORRUPT, RL_INVALID. */
rl_status weight_arena_verify(struct weight_arena *arena, int reader, uint32_t version);

/* Has anybody verified `version`, and is it still here? A few loads. */
bool weight_arena_is_verified(const struct weight_arena *arena, uint32_t version);

/* Pin exactly `version` for `reader`, beside what else it holds; a reader may hold as many versions
 * as there are slots. Pins do not count: twice pinned is once. Lock-free. One thread per reader
 * index. Not logged, both are answers: RL_AGAIN (not published yet, or the writer is looking at
 * that very slot: ask again), RL_NOT_FOUND (gone, or never published). Errors: RL_INVALID. */
rl_status weight_arena_pin(struct weight_arena *arena, int reader, uint32_t version,
                           struct weight_view *out);

/* Undo weight_arena_pin; nothing happens if `version` is not pinned. */
void weight_arena_unpin(struct weight_arena *arena, int reader, uint32_t version);

/* Forget all pins of a reader whose process is dead. */
void weight_arena_clear_reader(struct weight_arena *arena, int reader);

#endif
