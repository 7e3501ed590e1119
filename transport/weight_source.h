/* What a rollout rank reads weights from: the arena of its node, which may be replaced by another
 * when its node gets a new leader, and a helper thread that compares each version's hash before it
 * may be used for the first time (once a node: the mark is in the arena). Decoding never waits for
 * either: it goes on with what it has. One thread calls everything but weight_source_attach. */
#ifndef FORESIGHT_TRANSPORT_WEIGHT_SOURCE_H
#define FORESIGHT_TRANSPORT_WEIGHT_SOURCE_H

#include "transport/weight_arena.h"

struct weight_source;

/* `reader`: index in every arena that is attached. Caller owns *out. Errors: RL_NO_MEMORY,
 * RL_INTERNAL. */
rl_status weight_source_create(int reader, struct weight_source **out);

/* Ends the helper; the arenas stay whoever's they are. Takes NULL. */
void weight_source_destroy(struct weight_source *source);

/* From the next call on versions come from `arena` (borrowed until destroy; what was pinned in the
 * one before stays pinned there until then, so old images stay readable). Any thread. */
void weight_source_attach(struct weight_source *source, struct weight_arena *arena);

/* The newest verified version; RL_AGAIN (not logged) if there is none yet. *coming: a newer one is
 * published and being verified, and what has not begun should wait for it. Poll it before every
 * pass. RL_CORRUPT once a version did not have its hash (logged by the helper). */
rl_status weight_source_latest(struct weight_source *source, uint32_t *version, bool *coming);

/* As weight_arena_acquire_version, weight_arena_pin and weight_arena_unpin; RL_AGAIN also while the
 * version is being verified. */
rl_status weight_source_acquire(struct weight_source *source, uint32_t version,
                                struct weight_view *out);
rl_status weight_source_pin(struct weight_source *source, uint32_t version,
                            struct weight_view *out);
void weight_source_unpin(struct weight_source *source, uint32_t version);

/* Give back what acquire pinned, in the arena of now. */
void weight_source_release(struct weight_source *source);

#endif
