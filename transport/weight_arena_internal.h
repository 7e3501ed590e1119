/* What weight_arena.c (the pin protocol), weight_arena_map.c (the mapping) and
 * weight_arena_device.c (slots in a GPU's memory) share. */
#ifndef FORESIGHT_TRANSPORT_WEIGHT_ARENA_INTERNAL_H
#define FORESIGHT_TRANSPORT_WEIGHT_ARENA_INTERNAL_H

#include "transport/weight_arena.h"

#include <stdatomic.h>

#define ARENA_VALID (UINT64_C(1) << 63)
#define ARENA_CLOSING (UINT64_C(1) << 62)

/* What a reader holds; one cache line each, so that polling readers do not disturb one another. */
struct arena_pin {
    _Alignas(64) _Atomic uint64_t held; /* pin: one bit a slot */
    _Atomic uint32_t newest;            /* acquire: slot + 1; 0: none */
    _Atomic uint32_t next;              /* acquire_version, on its way to `newest` */
    _Atomic uint32_t checked;           /* verify */
    _Atomic uint32_t mapped;            /* it has the GPU's slots open */
};

/* The slots in a GPU's memory, one after the other. */
struct arena_device {
    _Atomic uint32_t shared; /* `share` is written before and does not change */
    struct device_share share;
};

/* Start of the mapping; the pins follow, then the slots at slot_offset. */
struct arena_header {
    uint64_t magic;
    uint32_t format;
    uint32_t slots;
    uint64_t slot_bytes;
    uint64_t slot_stride;
    uint64_t slot_offset;
    uint32_t readers;
    uint32_t reserved;
    _Alignas(64) _Atomic uint64_t newest; /* ARENA_VALID | version << 8 | slot */
    /* ARENA_VALID | version; ARENA_CLOSING beside it while the writer looks for pins; 0: empty. */
    _Alignas(64) _Atomic uint64_t version[WEIGHT_ARENA_SLOTS_MAX];
    _Alignas(64) _Atomic uint64_t hash[WEIGHT_ARENA_SLOTS_MAX];
    _Atomic uint64_t
        verified[WEIGHT_ARENA_SLOTS_MAX]; /* ARENA_VALID | version: hash was compared */
    _Atomic uint64_t keep_from; /* versions from here on are not overwritten; UINT64_MAX: none */
    struct arena_device device;
    struct arena_pin pins[];
};

struct weight_arena {
    struct arena_header *header;
    unsigned char *mapping;
    size_t mapping_bytes;
    int fd; /* -1: private */
    bool creator;
    bool named;  /* the name still exists */
    int writing; /* slot between begin_write and publish; -1: none */
    char name[WEIGHT_ARENA_NAME_MAX];
    struct device *device;             /* of the slots in a GPU's memory, or that reads them */
    unsigned char *writable_slots;     /* the creator's, on the device; NULL: none */
    struct device_source device_slots; /* the same, or another process's; data NULL: none */
    size_t device_stride;
    int device_reader; /* the attached one's index */
};

/* Where a slot's image is nearest to this process's device. */
struct device_source arena_nearest(const struct weight_arena *arena, int slot, const void *image);

/* Give back the GPU's slots, or the mapping of another process's. */
void arena_device_close(struct weight_arena *arena);

#endif
