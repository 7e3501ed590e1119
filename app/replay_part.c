/* See replay.h: everything that a start record asks for: configuration, model, data, rewards,
 * learner, engine. A resumed run has one start record for each time it was started; weights and
 * moments go from one part to the next. */
#include "app/footprint.h"
#include "app/replay.h"
#include "app/teacher_prompts.h"
#include "app/train_run.h"

#include "core/hash.h"
#include "core/log.h"
#include "kernels/device.h"
#include "transport/collective.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* --- slabs
 * ------------------------------------------------------------------------------------------- */

void replay_slabs_fini(struct replay_slabs *slabs)
{
    device_free(slabs->master);
    device_free(slabs->m);
    device_free(slabs->v);
    device_free(slabs->teacher);
    *slabs = (struct replay_slabs){0};
}

static rl_status slabs_alloc(const struct model_layout *layout, struct replay_slabs *out)
{
    void *memory[3] = {0};
    rl_status status = RL_OK;
    replay_slabs_fini(out);
    out->bytes = (size_t)layout->master_count * sizeof(float);
    for (int i = 0; i < 3 && status == RL_OK; i++) {
        status = device_alloc(out->bytes, "weights to go on with", &memory[i]);
    }
    out->master = memory[0];
    out->m = memory[1];
    out->v = memory[2];
    return status;
}

/* Room for a teacher's average where the run has one. */
static rl_status teacher_alloc(const struct rl_config *config, struct replay_slabs *out)
{
    void *memory = NULL;
    if (config->teacher.loss == CONFIG_TEACHER_NONE ||
        config->teacher.policy != CONFIG_TEACHER_EMA) {
        return RL_OK;
    }
    RL_TRY(device_alloc(out->bytes, "the teacher's weights", &memory));
    out->teacher = memory;
    return RL_OK;
}

rl_status replay_slabs_keep(struct replay *r, struct replay_slabs *out)
{
    const struct optimizer_state *optimizer = learner_optimizer(r->learner);
    RL_TRY(learner_pull(r->learner));
    RL_TRY(slabs_alloc(r->session.layout, out));
    memcpy(out->master, learner_master(r->learner), out->bytes);
    memcpy(out->m, optimizer->m, out->bytes);
    memcpy(out->v, optimizer->v, out->bytes);
    RL_TRY(teacher_alloc(&r->config, out));
    if (out->teacher != NULL) {
        memcpy(out->teacher, learner_teacher_average(r->learner), out->bytes);
    }
    out->updates = optimizer->step;
    out->guard = *learner_guard(r->learner);
    out->step = r->step;
    return RL_OK;
}

void replay_slabs_put(struct replay *r, const struct replay_slabs *slabs)
{
    struct optimizer_state *optimizer = learner_optimizer(r->learner);
    memcpy(learner_master(r->learner), slabs->master, slabs->bytes);
    memcpy(optimizer->m, slabs->m, slabs->bytes);
    memcpy(optimizer->v, slabs->v, slabs->bytes);
    optimizer->step = slabs->updates;
}

/* --- configuration
 * ----------------------------------------------------------------------------------- */

static rl_status set_config(struct replay *r)
{
    static const char *const kernels[] = {"kernels.isa=ref", "kernels.isa=avx2",
                                          "kernels.isa=avx512", "kernels.device=cuda"};
    const struct event_start *start = &r->start;
    if (start->isa >= sizeof(kernels) / sizeof(kernels[0])) {
        return rl_fail(RL_UNSUPPORTED,
                       "replay: recorded with instruction set %" PRIu32 ", which this program does "
                       "not know",
                       start->isa);
    }
    if (start->learners != 1) {
        return rl_fail(RL_UNSUPPORTED,
                       "replay: the run had %" PRIu32 " learners, whose gradients are added in an "
                       "order of their own; only runs with one learner can be replayed",
                       start->learners);
    }
    rl_config_fini(&r->config);
    RL_TRY(rl_config_init(&r->config));
    RL_TRY(rl_config_load_text(&r->config, "events.bin: configuration", start->config,
                               start->config_bytes));
    /* The same bits need the same kernels, and here no sample runs out of time because the machine
     * is busy: those that did are recorded. */
    RL_TRY(rl_config_override(&r->config, "kernels.device=cpu"));
    RL_TRY(rl_config_override(&r->config, kernels[start->isa]));
    RL_TRY(rl_config_override(&r->config, "rewards.timeout_ms=3600000"));
    return rl_config_validate(&r->config);
}

static rl_status open_data(struct replay *r)
{
    const struct rl_config *config = &r->config;
    RL_TRY(prompts_load(config->data.train, config, r->session.tokenizer, r->session.chat,
                        &r->prompts));
    if (prompts_hash(r->prompts) != r->start.prompts_hash) {
        return rl_fail(RL_INVALID,
                       "replay: %s does not hold the prompts that the run was made "
                       "with, or the tokenizer or a template has changed",
                       config->data.train);
    }
    return reward_set_create(config, &r->rewards);
}

/* Before the learner takes its part of a GPU. */
static rl_status size_engine(struct replay *r, struct rollout_generator_options *options)
{
    struct footprint_run here = {
        .config = &r->config, .layout = r->session.layout, .ranks = 1, .learners = 1};
    session_training_options(&r->config, true, options);
    return footprint_settle(&here, &r->session, 0, options);
}

static rl_status open_engine(struct replay *r, const struct rollout_generator_options *options)
{
    struct sampler_args args = {.session = &r->session,
                                .config = &r->config,
                                .prompts = r->prompts,
                                .rewards = r->rewards,
                                .options = *options};
    return sampler_create(&args, &r->sampler);
}

static rl_status open_reference(struct replay *r)
{
    const char *path = r->config.model.reference;
    if (!objective_needs_reference(&r->config)) {
        return RL_OK;
    }
    return session_load_image(&r->session, path[0] != '\0' ? path : r->config.model.path,
                              &r->reference_image);
}

/* Masters, moments and guard are copied into the new learner. */
static rl_status open_learner(struct replay *r, const struct replay_slabs *slabs)
{
    void *master = NULL;
    RL_TRY(device_alloc(slabs->bytes, "master weights", &master));
    struct learner_args args = {.config = &r->config,
                                .layout = r->session.layout,
                                .kernels = r->session.kernels,
                                .pool = r->session.pool,
                                .collective = r->alone,
                                .master = master,
                                .reference_image = r->reference_image,
                                .teacher = teacher_prompts_get(r->teacher)};
    RL_TRY(learner_create(&args, &r->learner));
    replay_slabs_put(r, slabs);
    if (slabs->teacher != NULL && learner_teacher_average(r->learner) != NULL) {
        memcpy(learner_teacher_average(r->learner), slabs->teacher, slabs->bytes);
    }
    return learner_restore_guard(r->learner, &slabs->guard);
}

/* --- weights
 * ----------------------------------------------------------------------------------------- */

static rl_status load_checkpoint(struct replay *r, uint64_t step, struct replay_slabs *out)
{
    char path[CHECKPOINT_PATH_MAX];
    uint64_t found = 0;
    struct checkpoint_state state = {0};
    struct train_totals totals = {0};
    if (snprintf(path, sizeof(path), "%s/checkpoints/step_%06" PRIu64, r->options.run_dir, step) >=
        (int)sizeof(path)) {
        return rl_fail(RL_TOO_LONG, "replay: the run's path is too long");
    }
    RL_TRY(checkpoint_verify(path, &found));
    RL_TRY(slabs_alloc(r->session.layout, out));
    struct checkpoint_moments moments = {
        .m = out->m, .v = out->v, .count = r->session.layout->master_count};
    RL_TRY(checkpoint_load(path, r->session.layout, out->master, &moments, &state));
    rl_status status = teacher_alloc(&r->config, out);
    if (status == RL_OK) {
        status = checkpoint_load_teacher(path, r->session.layout, out->teacher);
    }
    if (status == RL_OK) {
        status = train_totals_read(&state, &totals);
    }
    out->updates = (int64_t)state.updates;
    out->guard = totals.guard;
    checkpoint_state_fini(&state);
    return status;
}

rl_status replay_slabs_model(struct replay *r, struct replay_slabs *out)
{
    RL_TRY(slabs_alloc(r->session.layout, out));
    RL_TRY(
        model_params_load(r->session.layout, r->config.model.path, out->master, r->session.pool));
    memset(out->m, 0, out->bytes);
    memset(out->v, 0, out->bytes);
    guard_init(&out->guard);
    if (rl_hash(out->master, out->bytes) != r->index.first_master_hash) {
        return rl_fail(RL_INVALID,
                       "replay: the weights in %s (model.path) are not those that the run began "
                       "with",
                       r->config.model.path);
    }
    return RL_OK;
}

/* What this part is to begin with, if not with what the part before left. */
static rl_status find_weights(struct replay *r, uint64_t step, struct replay_slabs *out,
                              uint32_t *version)
{
    const struct replay_step *entry = replay_index_find(&r->index, step);
    uint64_t expected = r->start.master_hash;
    *version = (uint32_t)r->start.version;
    if (step == 0) {
        return replay_slabs_model(r, out);
    }
    if (step != r->start.step) {
        if (entry == NULL) {
            return rl_fail(RL_NOT_FOUND, "replay: there is no step %" PRIu64 " to begin at", step);
        }
        *version = entry->version;
        expected = entry->master_hash;
    }
    RL_TRY(load_checkpoint(r, step, out));
    if (rl_hash(out->master, out->bytes) != expected) {
        return rl_fail(RL_CORRUPT,
                       "replay: the checkpoint of step %" PRIu64 " does not hold the weights that "
                       "events.bin names",
                       step);
    }
    return RL_OK;
}

/* --- the part
 * ---------------------------------------------------------------------------------------- */

void replay_part_close(struct replay *r)
{
    sampler_destroy(r->sampler);
    learner_destroy(r->learner);
    device_free(r->reference_image);
    teacher_prompts_destroy(r->teacher);
    reward_set_destroy(r->rewards);
    prompts_destroy(r->prompts);
    session_close(&r->session);
    r->sampler = NULL;
    r->learner = NULL;
    r->reference_image = NULL;
    r->teacher = NULL;
    r->rewards = NULL;
    r->prompts = NULL;
    r->open = false;
}

static rl_status open_parts(struct replay *r, struct replay_slabs *slabs, bool go_on, uint64_t step)
{
    uint32_t version = (uint32_t)r->start.version;
    struct rollout_generator_options options;
    RL_TRY(set_config(r));
    RL_TRY(session_open(&r->config, session_learner_length(&r->config), 0, &r->session));
    RL_TRY(open_data(r));
    RL_TRY(open_reference(r));
    RL_TRY(teacher_prompts_create(&r->session, r->prompts, &r->teacher));
    if (!go_on) {
        RL_TRY(find_weights(r, step, slabs, &version));
    } else if (slabs->bytes != (size_t)r->session.layout->master_count * sizeof(float)) {
        return rl_fail(RL_INVALID, "replay: model.path was another model after the resume");
    }
    RL_TRY(size_engine(r, &options));
    RL_TRY(open_learner(r, slabs));
    RL_TRY(open_engine(r, &options));
    r->step = step;
    r->open = true;
    return learner_publish_first(r->learner, version);
}

rl_status replay_part_open(struct replay *r)
{
    struct replay_slabs slabs = {0};
    bool go_on = r->open && r->step == r->start.step;
    uint64_t step = r->start.step > r->options.from ? r->start.step : r->options.from;
    rl_status status = RL_OK;
    if (go_on) {
        status = replay_slabs_keep(r, &slabs);
    }
    replay_part_close(r);
    if (status == RL_OK) {
        status = open_parts(r, &slabs, go_on, step);
    }
    replay_slabs_fini(&slabs);
    return status;
}
