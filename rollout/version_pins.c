/* See version_pins.h. */
#include "rollout/version_pins.h"

#include "core/log.h"

struct device_source version_pins_image(void *arg, uint32_t version)
{
    const struct device_source none = {.data = NULL};
    struct version_pins *pins = arg;
    for (int i = 0; i < pins->count; i++) {
        if (pins->views[i].version == version) {
            return pins->views[i].nearest;
        }
    }
    if (pins->count == WEIGHT_ARENA_SLOTS_MAX || pins->status != RL_OK) {
        return none;
    }
    struct weight_view *view = &pins->views[pins->count];
    rl_status status = weight_source_pin(pins->source, version, view);
    if (status == RL_AGAIN) {
        return none;
    }
    if (status != RL_OK) {
        pins->status =
            rl_fail(status, "worker: version %u, which a ticket names, cannot be had", version);
        return none;
    }
    pins->count++;
    return view->nearest;
}

void version_pins_trim(struct version_pins *pins, const struct rollout_generator *generator)
{
    int kept = 0;
    for (int i = 0; i < pins->count; i++) {
        struct weight_view view = pins->views[i];
        if (generator != NULL && rollout_generator_needs(generator, view.version)) {
            pins->views[kept++] = view;
        } else {
            weight_source_unpin(pins->source, view.version);
        }
    }
    pins->count = kept;
}
