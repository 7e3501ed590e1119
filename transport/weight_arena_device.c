/* Weight slots in a GPU's memory: the writer's own, as one buffer that other processes may map.
 * Which version a slot holds and who reads it is in the arena's header alone (weight_arena.c), so
 * nothing here waits for another process and no collective joins writer and readers: a dead reader
 * is one whose pins its rank clears. The one thing to watch is the end, because memory that is
 * mapped elsewhere must not be freed. */
#include "transport/weight_arena_internal.h"

#include "core/clock.h"
#include "core/log.h"

enum { DEVICE_ALIGN = 256, DEVICE_SHARED_UNIT = 2 * 1024 * 1024 };
static const double unmapped_within_s = 2;

static size_t round_up(size_t value, size_t unit)
{
    return (value + unit - 1) / unit * unit;
}

static size_t slot_stride(size_t slot_bytes)
{
    return round_up(slot_bytes, DEVICE_ALIGN);
}

size_t weight_arena_device_bytes(int slots, size_t slot_bytes)
{
    return round_up(slot_stride(slot_bytes) * (size_t)slots, DEVICE_SHARED_UNIT);
}

static void share_slots(struct weight_arena *arena)
{
    struct arena_device *shared = &arena->header->device;
    char why[DEVICE_WHY_MAX];
    if (device_buffer_share(arena->device, arena->writable_slots, &shared->share, why) != RL_OK) {
        rl_log(RL_LOG_INFO, "new weights go by the host's memory: %s", why);
        return;
    }
    atomic_store(&shared->shared, 1);
}

rl_status weight_arena_add_device(struct weight_arena *arena, struct device *device)
{
    void *slots = NULL;
    if (device == NULL) {
        return RL_OK;
    }
    size_t bytes = weight_arena_device_bytes((int)arena->header->slots, arena->header->slot_bytes);
    RL_TRY(device_buffer_alloc(device, bytes, "weight slots", &slots));
    arena->device = device;
    arena->writable_slots = slots;
    arena->device_stride = slot_stride(arena->header->slot_bytes);
    arena->device_slots = (struct device_source){.data = slots, .place = DEVICE_PLACE_HERE};
    if (arena->fd >= 0) {
        share_slots(arena);
    }
    return RL_OK;
}

void *weight_arena_device_slot(const struct weight_arena *arena, int slot)
{
    return arena->writable_slots != NULL
               ? arena->writable_slots + (size_t)slot * arena->device_stride
               : NULL;
}

void weight_arena_map_device(struct weight_arena *arena, struct device *device, int reader)
{
    const struct arena_device *shared = &arena->header->device;
    char why[DEVICE_WHY_MAX] = "the learner shares no memory of a GPU";
    if (device == NULL || reader < 0 || (uint32_t)reader >= arena->header->readers) {
        return; /* such a reader gets no view either */
    }
    struct arena_pin *pin = &arena->header->pins[reader];
    atomic_store(&pin->mapped, 1); /* before it is, so that the writer frees nothing in between */
    if (atomic_load(&shared->shared) == 0 ||
        device_buffer_map(device, &shared->share, &arena->device_slots, why) != RL_OK) {
        atomic_store(&pin->mapped, 0);
        rl_log(RL_LOG_INFO, "weights: copied from the host's memory (%s)", why);
        return;
    }
    arena->device = device;
    arena->device_stride = slot_stride(arena->header->slot_bytes);
    arena->device_reader = reader;
    rl_log(RL_LOG_INFO, "weights: %s",
           arena->device_slots.place == DEVICE_PLACE_HERE
               ? "read where the learner makes them, on the same GPU"
               : "copied from the learner's GPU to this rank's");
}

enum device_place weight_arena_place(const struct weight_arena *arena)
{
    return arena->device_slots.place;
}

struct device_source arena_nearest(const struct weight_arena *arena, int slot, const void *image)
{
    struct device_source source = arena->device_slots;
    if (source.data == NULL) {
        return (struct device_source){.data = image};
    }
    source.data = (const unsigned char *)source.data + (size_t)slot * arena->device_stride;
    return source;
}

static bool anybody_maps(const struct weight_arena *arena)
{
    for (uint32_t i = 0; i < arena->header->readers; i++) {
        if (atomic_load(&arena->header->pins[i].mapped) != 0) {
            return true;
        }
    }
    return false;
}

static void free_slots(struct weight_arena *arena)
{
    double end_s = rl_clock_now_s(NULL) + unmapped_within_s;
    while (anybody_maps(arena) && rl_clock_now_s(NULL) < end_s) {
        rl_clock_sleep_s(NULL, 1e-3);
    }
    if (anybody_maps(arena)) {
        rl_log(RL_LOG_INFO,
               "weight slots on %s are left to the end of this process: a rollout "
               "rank still has them open",
               device_name(arena->device));
        return;
    }
    device_buffer_free(arena->device, arena->writable_slots);
}

void arena_device_close(struct weight_arena *arena)
{
    if (arena->writable_slots != NULL) {
        free_slots(arena);
    } else if (arena->device_slots.data != NULL) {
        device_buffer_unmap(arena->device, arena->device_slots.data);
        atomic_store(&arena->header->pins[arena->device_reader].mapped, 0);
    }
}
