/* How new weights reach the generating role of `foresight bench async`: copied into its only place
 * for them while it stands still, or through the program's weight source, whose helper compares the
 * hash while decoding goes on. */
#include "app/bench_async.h"

#include "core/log.h"
#include "kernels/device.h"

#include <string.h>

rl_status bench_engine_open_weights(struct bench_engine *engine)
{
    if (engine->rung->mode != SIMULATE_SLOTS) {
        return device_alloc(engine->workload->layout->image_bytes, "engine's weights",
                            &engine->own_image);
    }
    RL_TRY(weight_source_create(BENCH_ENGINE_READER, &engine->source));
    engine->pins.source = engine->source;
    if (!engine->rung->remote) {
        weight_source_attach(engine->source, engine->meeting->arena);
    }
    if (engine->rung->fixed_lag) {
        rollout_generator_set_image_source(engine->generator, version_pins_image, &engine->pins);
    }
    return RL_OK;
}

void bench_engine_close_weights(struct bench_engine *engine)
{
    if (engine->source != NULL) {
        version_pins_trim(&engine->pins, NULL);
        weight_source_release(engine->source);
        weight_source_destroy(engine->source);
    }
    device_free(engine->own_image);
}

static void use(struct bench_engine *e, const struct weight_view *view, double began_s)
{
    rollout_generator_set_weights(e->generator, view->image, view->version);
    e->switched = rollout_generator_running(e->generator) > 0;
    e->draining = false;
    if (e->has_weights) {
        e->paused_s += bench_now_s(e->workload) - began_s;
        e->transfers++;
    }
    e->has_weights = true;
    e->version = view->version;
}

/* The engine's only place for weights is overwritten: it cannot decode meanwhile. */
static rl_status copy_newest(struct bench_engine *e)
{
    struct weight_arena *arena = e->meeting->arena;
    struct weight_view view;
    uint32_t newest;
    if (!weight_arena_latest(arena, &newest) || (e->has_weights && newest == e->version)) {
        return RL_OK;
    }
    if (e->rung->mode != SIMULATE_PAUSE && rollout_generator_groups(e->generator) > 0) {
        e->draining = e->rung->mode == SIMULATE_DRAIN;
        return RL_OK;
    }
    double begin = bench_now_s(e->workload);
    RL_TRY(weight_arena_acquire(arena, BENCH_ENGINE_READER, &view));
    memcpy(e->own_image, view.image, view.bytes);
    weight_arena_release(arena, BENCH_ENGINE_READER);
    if (model_image_hash(e->workload->layout, e->own_image) != view.hash) {
        return rl_fail(RL_CORRUPT, "bench: version %u arrived damaged", view.version);
    }
    view.image = e->own_image;
    use(e, &view, begin);
    return RL_OK;
}

/* In virtual time there is no helper beside this thread: its work is done here and takes the
 * engine's core as long, but stops no decoding; *again: a pass with the old weights comes first. */
static rl_status verify_here(struct bench_engine *e, bool *again)
{
    struct weight_arena *arena = e->meeting->arena;
    uint32_t newest;
    *again = false;
    if (!e->workload->cpu_clock || e->rung->remote || !weight_arena_latest(arena, &newest) ||
        weight_arena_is_verified(arena, newest)) {
        return RL_OK;
    }
    double begin = bench_now_s(e->workload);
    RL_TRY(weight_arena_verify(arena, BENCH_ENGINE_READER, newest));
    e->beside_s += bench_now_s(e->workload) - begin;
    *again = rollout_generator_running(e->generator) > 0;
    return RL_OK;
}

static rl_status take_slot(struct bench_engine *e)
{
    struct weight_view view;
    uint32_t newest = 0;
    bool again;
    RL_TRY(verify_here(e, &again));
    double begin = bench_now_s(e->workload);
    if (again) {
        return RL_OK;
    }
    rl_status status = weight_source_latest(e->source, &newest, &e->coming);
    if (status == RL_AGAIN || (status == RL_OK && e->has_weights && newest == e->version)) {
        return RL_OK;
    }
    RL_TRY(status);
    status = weight_source_acquire(e->source, newest, &view);
    if (status == RL_AGAIN || status == RL_NOT_FOUND) {
        e->coming = true; /* a newer one has taken its place */
        return RL_OK;
    }
    RL_TRY(status);
    use(e, &view, begin);
    return RL_OK;
}

rl_status bench_engine_adopt(struct bench_engine *engine)
{
    return engine->own_image != NULL ? copy_newest(engine) : take_slot(engine);
}
