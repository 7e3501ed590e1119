/* The pin protocol of weight slots: what may be written, what is being read. The mapping itself is
 * made in weight_arena_map.c.
 *
 * `newest` is one atomic word (valid bit, version, slot). acquire announces the slot in the
 * reader's own pin and then looks at `newest` again: unchanged means that the writer, which
 * publishes first and scans the pins afterwards, must see the pin before it could choose that slot.
 * Versions only grow, so an equal word means that nothing happened in between.
 *
 * pin does the same with the slot's own version word: the writer marks it as closing before it
 * looks for pins, so one of the two sees the other. A reader that finds the mark cannot know who
 * was first and says RL_AGAIN; the writer takes the mark away if it found a pin. All of this is in
 * sequentially consistent order, since each side writes one word and reads the other's. */
#include "transport/weight_arena_internal.h"

#include "core/clock.h"
#include "core/log.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <xxhash.h>

static uint64_t newest_pack(uint32_t version, int slot)
{
    return ARENA_VALID | (uint64_t)version << 8 | (uint64_t)slot;
}

static uint32_t newest_version(uint64_t newest)
{
    return (uint32_t)(newest >> 8);
}

static int newest_slot(uint64_t newest)
{
    return (int)(newest & 0xff);
}

static unsigned char *slot_image(const struct weight_arena *arena, int slot)
{
    const struct arena_header *header = arena->header;
    return arena->mapping + header->slot_offset + (uint64_t)slot * header->slot_stride;
}

/* `next` is read before `newest`: acquire_version fills the latter before it empties the former. */
static bool pin_holds(struct arena_pin *pin, uint32_t slot)
{
    return (atomic_load(&pin->held) >> slot & 1) != 0 || atomic_load(&pin->checked) == slot + 1 ||
           atomic_load(&pin->next) == slot + 1 || atomic_load(&pin->newest) == slot + 1;
}

static bool slot_is_pinned(struct arena_header *header, uint32_t slot)
{
    for (uint32_t i = 0; i < header->readers; i++) {
        if (pin_holds(&header->pins[i], slot)) {
            return true;
        }
    }
    return false;
}

/* Take an unpinned slot away from readers; false if it is pinned or its version must stay. */
static bool slot_close(const struct weight_arena *arena, uint32_t slot)
{
    struct arena_header *header = arena->header;
    uint64_t word = atomic_load(&header->version[slot]);
    bool kept = (word & ARENA_VALID) != 0 && (uint32_t)word >= atomic_load(&header->keep_from);
    if (kept || slot_is_pinned(header, slot)) {
        return false;
    }
    atomic_store(&header->version[slot], word | ARENA_CLOSING);
    bool pinned = slot_is_pinned(header, slot);
    atomic_store(&header->version[slot], pinned ? word : 0);
    return !pinned;
}

/* A slot that is neither newest nor pinned nor kept, -1 if there is none. */
static int arena_find_free(struct weight_arena *arena)
{
    struct arena_header *header = arena->header;
    uint64_t newest = atomic_load(&header->newest);
    for (uint32_t slot = 0; slot < header->slots; slot++) {
        bool is_newest = (newest & ARENA_VALID) != 0 && (uint32_t)newest_slot(newest) == slot;
        if (!is_newest && slot_close(arena, slot)) {
            return (int)slot;
        }
    }
    return -1;
}

static rl_status arena_fail_busy(struct weight_arena *arena, double waited_s)
{
    struct arena_header *header = arena->header;
    char holders[160] = "";
    size_t used = 0;
    for (uint32_t i = 0; i < header->readers; i++) {
        for (uint32_t slot = 0; slot < header->slots && used + 16 < sizeof holders; slot++) {
            if (pin_holds(&header->pins[i], slot)) {
                int length =
                    snprintf(holders + used, sizeof holders - used, " %u(slot %u)", i, slot);
                used += length > 0 ? (size_t)length : 0;
            }
        }
    }
    return rl_fail(RL_TIMEOUT, "no free weight slot of %u for %.1f s%s; readers that hold one:%s",
                   header->slots, waited_s,
                   atomic_load(&header->keep_from) <= UINT32_MAX ? " (a window of versions is kept)"
                                                                 : "",
                   holders);
}

void weight_arena_keep_from(struct weight_arena *arena, uint32_t version)
{
    atomic_store(&arena->header->keep_from, version);
}

bool weight_arena_kept_from(const struct weight_arena *arena, uint32_t *version)
{
    uint64_t kept = atomic_load(&arena->header->keep_from);
    if (kept > UINT32_MAX) {
        return false;
    }
    *version = (uint32_t)kept;
    return true;
}

int weight_arena_readers(const struct weight_arena *arena)
{
    return (int)arena->header->readers;
}

int weight_arena_slots(const struct weight_arena *arena)
{
    return (int)arena->header->slots;
}

rl_status weight_arena_begin_write(struct weight_arena *arena, double timeout_s, int *slot,
                                   void **image)
{
    if (!arena->creator) {
        return rl_fail(RL_INVALID, "%s: only its creator writes weights", arena->name);
    }
    double started_s = rl_clock_now_s(NULL);
    double pause_s = 50e-6;
    int found = arena->writing >= 0 ? arena->writing : arena_find_free(arena);
    while (found < 0) {
        double waited_s = rl_clock_now_s(NULL) - started_s;
        if (waited_s >= timeout_s) {
            return arena_fail_busy(arena, waited_s);
        }
        rl_clock_sleep_s(NULL, pause_s);
        pause_s = pause_s < 1e-3 ? pause_s * 2 : 2e-3;
        found = arena_find_free(arena);
    }
    arena->writing = found;
    *slot = found;
    *image = slot_image(arena, found);
    return RL_OK;
}

rl_status weight_arena_publish(struct weight_arena *arena, int slot, uint32_t version,
                               uint64_t hash)
{
    struct arena_header *header = arena->header;
    uint64_t newest = atomic_load(&header->newest);
    if (slot < 0 || slot != arena->writing) {
        return rl_fail(RL_INVALID, "publish of weight slot %d, which is not being written", slot);
    }
    if ((newest & ARENA_VALID) != 0 && version <= newest_version(newest)) {
        return rl_fail(RL_INVALID, "publish of weight version %u after %u", version,
                       newest_version(newest));
    }
    atomic_store(&header->hash[slot], hash);
    atomic_store(&header->version[slot], ARENA_VALID | version);
    atomic_store(&header->newest, newest_pack(version, slot));
    arena->writing = -1;
    return RL_OK;
}

rl_status weight_arena_publish_verified(struct weight_arena *arena, int slot, uint32_t version,
                                        uint64_t hash)
{
    if (slot >= 0 && slot == arena->writing) {
        atomic_store(&arena->header->verified[slot], ARENA_VALID | version);
    }
    return weight_arena_publish(arena, slot, version, hash);
}

bool weight_arena_latest(const struct weight_arena *arena, uint32_t *version)
{
    uint64_t newest = atomic_load_explicit(&arena->header->newest, memory_order_acquire);
    if ((newest & ARENA_VALID) == 0) {
        return false;
    }
    *version = newest_version(newest);
    return true;
}

rl_status weight_arena_wait(const struct weight_arena *arena, uint32_t version, double timeout_s)
{
    double started_s = rl_clock_now_s(NULL);
    double pause_s = 50e-6;
    uint32_t newest = 0;
    while (!weight_arena_latest(arena, &newest) || newest < version) {
        double waited_s = rl_clock_now_s(NULL) - started_s;
        if (waited_s >= timeout_s) {
            return rl_fail(RL_TIMEOUT, "weight version %u was not published within %.1f s", version,
                           waited_s);
        }
        rl_clock_sleep_s(NULL, pause_s);
        pause_s = pause_s < 1e-3 ? pause_s * 2 : 2e-3;
    }
    return RL_OK;
}

static rl_status arena_check_reader(const struct weight_arena *arena, int reader)
{
    if (reader < 0 || (uint32_t)reader >= arena->header->readers) {
        return rl_fail(RL_INVALID, "weight reader %d, the arena has %u", reader,
                       arena->header->readers);
    }
    return RL_OK;
}

static void fill_view(const struct weight_arena *arena, uint32_t slot, uint32_t version,
                      struct weight_view *out)
{
    out->image = slot_image(arena, (int)slot);
    out->nearest = arena_nearest(arena, (int)slot, out->image);
    out->bytes = arena->header->slot_bytes;
    out->version = version;
    out->hash = atomic_load(&arena->header->hash[slot]);
}

rl_status weight_arena_acquire(struct weight_arena *arena, int reader, struct weight_view *out)
{
    RL_TRY(arena_check_reader(arena, reader));
    struct arena_header *header = arena->header;
    uint64_t newest = atomic_load(&header->newest);
    for (;;) {
        if ((newest & ARENA_VALID) == 0) {
            return RL_AGAIN;
        }
        atomic_store(&header->pins[reader].newest, (uint32_t)newest_slot(newest) + 1);
        uint64_t again = atomic_load(&header->newest);
        if (again == newest) {
            break;
        }
        newest = again;
    }
    int slot = newest_slot(newest);
    if ((uint32_t)slot >= header->slots) {
        return rl_fail(RL_CORRUPT, "%s: newest slot is %d of %u", arena->name, slot, header->slots);
    }
    fill_view(arena, (uint32_t)slot, newest_version(newest), out);
    return RL_OK;
}

rl_status weight_arena_newest(const struct weight_arena *arena, struct weight_view *out)
{
    uint64_t newest = atomic_load(&arena->header->newest);
    if ((newest & ARENA_VALID) == 0) {
        return RL_AGAIN;
    }
    fill_view(arena, (uint32_t)newest_slot(newest), newest_version(newest), out);
    return RL_OK;
}

void weight_arena_release(struct weight_arena *arena, int reader)
{
    if (arena_check_reader(arena, reader) == RL_OK) {
        atomic_store(&arena->header->pins[reader].newest, 0);
    }
}

/* The slot that holds `version`, being closed or not; -1: none. */
static int find_version(struct arena_header *header, uint32_t version)
{
    for (uint32_t slot = 0; slot < header->slots; slot++) {
        if ((atomic_load(&header->version[slot]) & ~ARENA_CLOSING) == (ARENA_VALID | version)) {
            return (int)slot;
        }
    }
    return -1;
}

/* Which slot holds `version`, before it is pinned. */
static rl_status seek_version(const struct weight_arena *arena, uint32_t version, uint32_t *slot)
{
    uint64_t newest = atomic_load(&arena->header->newest); /* before the slots: marked earlier */
    if ((newest & ARENA_VALID) == 0 || newest_version(newest) < version) {
        return RL_AGAIN;
    }
    int found = find_version(arena->header, version);
    if (found < 0) {
        return RL_NOT_FOUND;
    }
    *slot = (uint32_t)found;
    return RL_OK;
}

/* The slot has just been pinned: did the pin come in time? */
static rl_status confirm_version(const struct weight_arena *arena, uint32_t version, uint32_t slot)
{
    uint64_t word = atomic_load(&arena->header->version[slot]);
    if (word == (ARENA_VALID | version)) {
        return RL_OK;
    }
    return word == (ARENA_VALID | ARENA_CLOSING | version) ? RL_AGAIN : RL_NOT_FOUND;
}

/* Pin by one of a reader's slot words, which holds nothing yet. */
static rl_status hold_version(const struct weight_arena *arena, uint32_t version,
                              _Atomic uint32_t *word, uint32_t *slot)
{
    RL_TRY(seek_version(arena, version, slot));
    atomic_store(word, *slot + 1);
    rl_status status = confirm_version(arena, version, *slot);
    if (status != RL_OK) {
        atomic_store(word, 0);
    }
    return status;
}

rl_status weight_arena_acquire_version(struct weight_arena *arena, int reader, uint32_t version,
                                       struct weight_view *out)
{
    RL_TRY(arena_check_reader(arena, reader));
    struct arena_pin *pin = &arena->header->pins[reader];
    uint32_t slot = 0;
    RL_TRY(hold_version(arena, version, &pin->next, &slot));
    atomic_store(&pin->newest, slot + 1);
    atomic_store(&pin->next, 0);
    fill_view(arena, slot, version, out);
    return RL_OK;
}

rl_status weight_arena_pin(struct weight_arena *arena, int reader, uint32_t version,
                           struct weight_view *out)
{
    RL_TRY(arena_check_reader(arena, reader));
    struct arena_pin *pin = &arena->header->pins[reader];
    uint32_t slot = 0;
    RL_TRY(seek_version(arena, version, &slot));
    uint64_t bit = UINT64_C(1) << slot;
    uint64_t before = atomic_fetch_or(&pin->held, bit);
    rl_status status = confirm_version(arena, version, slot);
    if (status != RL_OK && (before & bit) == 0) {
        atomic_fetch_and(&pin->held, ~bit);
        return status;
    }
    fill_view(arena, slot, version, out);
    return RL_OK;
}

bool weight_arena_is_verified(const struct weight_arena *arena, uint32_t version)
{
    int slot = find_version(arena->header, version);
    return slot >= 0 && atomic_load(&arena->header->verified[slot]) == (ARENA_VALID | version);
}

rl_status weight_arena_verify(struct weight_arena *arena, int reader, uint32_t version)
{
    RL_TRY(arena_check_reader(arena, reader));
    struct arena_header *header = arena->header;
    _Atomic uint32_t *word = &header->pins[reader].checked;
    uint32_t slot = 0;
    RL_TRY(hold_version(arena, version, word, &slot));
    uint64_t hash = XXH3_64bits(slot_image(arena, (int)slot), header->slot_bytes);
    uint64_t expected = atomic_load(&header->hash[slot]);
    if (hash == expected) {
        atomic_store(&header->verified[slot], ARENA_VALID | version);
    }
    atomic_store(word, 0);
    return hash == expected ? RL_OK
                            : rl_fail(RL_CORRUPT,
                                      "weight version %u in slot %u has the hash %016" PRIx64
                                      ", it was published with %016" PRIx64,
                                      version, slot, hash, expected);
}

void weight_arena_unpin(struct weight_arena *arena, int reader, uint32_t version)
{
    if (arena_check_reader(arena, reader) != RL_OK) {
        return;
    }
    int slot = find_version(arena->header, version);
    if (slot >= 0) {
        atomic_fetch_and(&arena->header->pins[reader].held, ~(UINT64_C(1) << slot));
    }
}

void weight_arena_clear_reader(struct weight_arena *arena, int reader)
{
    if (arena_check_reader(arena, reader) == RL_OK) {
        struct arena_pin *pin = &arena->header->pins[reader];
        atomic_store(&pin->held, 0);
        atomic_store(&pin->newest, 0);
        atomic_store(&pin->next, 0);
        atomic_store(&pin->checked, 0);
        atomic_store(&pin->mapped, 0);
    }
}
