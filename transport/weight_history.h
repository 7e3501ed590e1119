/* The changed-element masks of the last published versions. A mask says what differs from the
 * version before; the union of several says what may differ from an older one, so a delta can start
 * at any recent base. Owns the masks' memory: one being written, `depth` finished ones. The writer
 * never waits for readers longer than one piece of a union takes. */
#ifndef FORESIGHT_TRANSPORT_WEIGHT_HISTORY_H
#define FORESIGHT_TRANSPORT_WEIGHT_HISTORY_H

#include "core/status.h"

#include <stddef.h>
#include <stdint.h>

struct weight_history;

/* Masks of `mask_bytes`, the last `depth` (>= 1) of them kept. Caller owns *out.
 * Errors: RL_NO_MEMORY, RL_INVALID. */
rl_status weight_history_create(size_t mask_bytes, int depth, struct weight_history **out);
void weight_history_destroy(struct weight_history *history);

/* The mask being written [mask_bytes]: of the next version against the last committed one. Borrowed
 * until the next commit; may be rewritten as often as the image is. Writer's thread. */
uint8_t *weight_history_pending(struct weight_history *history);

/* Bits set in the mask being written. Writer's thread. */
uint64_t weight_history_pending_count(const struct weight_history *history);

/* `version` is being published: the mask just written leads to it from the version committed
 * before. The first commit only fixes where masks start. Before the version is visible to whoever
 * asks for unions. Writer's thread. */
void weight_history_commit(struct weight_history *history, uint32_t version);

/* mask [mask_bytes] = what may differ between `base` and `version`. Any thread.
 * RL_NOT_FOUND (not logged): the masks between them are not all here. */
rl_status weight_history_union(struct weight_history *history, uint32_t base, uint32_t version,
                               uint8_t *mask);

#endif
