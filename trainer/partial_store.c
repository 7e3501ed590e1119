/* See partial_store.h. */
#include "trainer/partial_store.h"

#include "core/log.h"

#include <inttypes.h>
#include <stdlib.h>

static uint32_t finished(const struct trajectory_group *group)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < group->sample_count; i++) {
        count += group->samples[i].completion_count > 0 ? 1 : 0;
    }
    return count;
}

static uint32_t place_of(const struct partial_store *store, uint64_t ticket)
{
    uint32_t place = 0;
    while (place < store->count && store->groups[place]->ticket != ticket) {
        place++;
    }
    return place;
}

static void remove_at(struct partial_store *store, uint32_t place)
{
    trajectory_group_destroy(store->groups[place]);
    store->groups[place] = store->groups[--store->count];
}

void partial_store_fini(struct partial_store *store)
{
    for (uint32_t i = 0; i < store->count; i++) {
        trajectory_group_destroy(store->groups[i]);
    }
    free(store->groups);
    *store = (struct partial_store){0};
}

static rl_status grow(struct partial_store *store)
{
    if (store->count < store->reserved) {
        return RL_OK;
    }
    uint32_t reserved = store->reserved > 0 ? 2 * store->reserved : 16;
    struct trajectory_group **groups =
        realloc(store->groups, (size_t)reserved * sizeof(struct trajectory_group *));
    if (groups == NULL) {
        return rl_fail(RL_NO_MEMORY, "partial groups: no memory for %" PRIu32, reserved);
    }
    store->groups = groups;
    store->reserved = reserved;
    return RL_OK;
}

rl_status partial_store_put(struct partial_store *store, const struct admission *admission,
                            struct trajectory_group *group)
{
    uint32_t place = place_of(store, group->ticket);
    bool known = place < store->count;
    rl_status status = RL_OK;
    if (finished(group) == 0 || admission_check_partial(admission, group) != RL_OK ||
        (known && finished(group) <= finished(store->groups[place]))) {
        trajectory_group_destroy(group);
        return RL_OK;
    }
    if (known) {
        remove_at(store, place);
    }
    status = grow(store);
    if (status != RL_OK) {
        trajectory_group_destroy(group);
        return status;
    }
    store->groups[store->count++] = group;
    return RL_OK;
}

const struct trajectory_group *partial_store_find(const struct partial_store *store,
                                                  const struct admission *admission,
                                                  uint64_t ticket)
{
    uint32_t place = place_of(store, ticket);
    if (place == store->count || !admission_young(admission, store->groups[place])) {
        return NULL;
    }
    return store->groups[place];
}

void partial_store_prune(struct partial_store *store, const struct admission *admission)
{
    for (uint32_t i = store->count; i > 0; i--) {
        const struct trajectory_group *group = store->groups[i - 1];
        if (!admission_awaits(admission, group->ticket) || !admission_young(admission, group)) {
            remove_at(store, i - 1);
        }
    }
}
