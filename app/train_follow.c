/* See train_follow.h. A command is a fixed header, then `bytes` bytes: a path, or the groups' wire
 * frames one after the other, each behind its length. */
#include "app/train_follow.h"
#include "app/teacher_prompts.h"
#include "app/train_guard.h"

#include "core/log.h"
#include "kernels/device.h"
#include "trainer/learner.h"
#include "transport/wire.h"

#include <stdlib.h>
#include <string.h>

enum follow_command {
    FOLLOW_START = 1,
    FOLLOW_BATCH = 2,
    FOLLOW_STOP = 3,
    FOLLOW_ROLL_BACK = 4, /* only right after a batch whose step asks for it */
    FOLLOW_SAVE = 5       /* moments are shared out: serve those that a checkpoint needs */
};

struct follow_header {
    uint64_t command, step, count, bytes;
};

static rl_status send_command(struct collective *collective, struct follow_header header,
                              void *payload)
{
    if (collective->size == 1) {
        return RL_OK;
    }
    RL_TRY(collective_broadcast(collective, &header, sizeof(header), 0));
    return header.bytes > 0 ? collective_broadcast(collective, payload, header.bytes, 0) : RL_OK;
}

static rl_status send_checkpoint(struct collective *collective, enum follow_command command,
                                 const char *checkpoint)
{
    struct follow_header header = {.command = command, .bytes = strlen(checkpoint) + 1};
    char *copy = strdup(checkpoint);
    if (copy == NULL) {
        return rl_fail(RL_NO_MEMORY, "learner: out of memory");
    }
    rl_status status = send_command(collective, header, copy);
    free(copy);
    return status;
}

rl_status train_follow_start(struct collective *collective, const char *checkpoint)
{
    return send_checkpoint(collective, FOLLOW_START, checkpoint);
}

rl_status train_follow_roll_back(struct collective *collective, const char *checkpoint)
{
    return send_checkpoint(collective, FOLLOW_ROLL_BACK, checkpoint);
}

rl_status train_follow_save(struct collective *collective)
{
    return send_command(collective, (struct follow_header){.command = FOLLOW_SAVE}, NULL);
}

rl_status train_follow_stop(struct collective *collective)
{
    return send_command(collective, (struct follow_header){.command = FOLLOW_STOP}, NULL);
}

/* Append one group's frame behind its length. */
static rl_status append_group(const struct trajectory_group *group, char **data, size_t *bytes)
{
    struct channel_message message = {0};
    RL_TRY(wire_encode_group(group, &message));
    uint64_t length = message.bytes;
    char *grown = realloc(*data, *bytes + sizeof(length) + message.bytes);
    if (grown == NULL) {
        channel_message_fini(&message);
        return rl_fail(RL_NO_MEMORY, "learner: out of memory for a batch");
    }
    memcpy(grown + *bytes, &length, sizeof(length));
    memcpy(grown + *bytes + sizeof(length), message.data, message.bytes);
    *data = grown;
    *bytes += sizeof(length) + message.bytes;
    channel_message_fini(&message);
    return RL_OK;
}

rl_status train_follow_batch(struct collective *collective, struct trajectory_group *const *groups,
                             uint32_t count, uint64_t step)
{
    struct follow_header header = {.command = FOLLOW_BATCH, .step = step, .count = count};
    char *data = NULL;
    size_t bytes = 0;
    rl_status status = RL_OK;
    if (collective->size == 1) {
        return RL_OK;
    }
    for (uint32_t i = 0; i < count && status == RL_OK; i++) {
        status = append_group(groups[i], &data, &bytes);
    }
    header.bytes = bytes;
    if (status == RL_OK) {
        status = send_command(collective, header, data);
    }
    free(data);
    return status;
}

/* --- the followers
 * ----------------------------------------------------------------------------------------- */

/* What a follower works with. Borrowed. */
struct follower {
    const struct rl_config *config;
    const struct session *session;
    struct collective *collective;
    struct learner *learner;
};

static rl_status decode_groups(const struct follow_header *header, const char *payload,
                               struct trajectory_group **groups)
{
    size_t at = 0;
    for (uint64_t i = 0; i < header->count; i++) {
        uint64_t length = 0;
        if (header->bytes - at < sizeof(length)) {
            return rl_fail(RL_CORRUPT, "learner: a batch ends early");
        }
        memcpy(&length, payload + at, sizeof(length));
        at += sizeof(length);
        if (header->bytes - at < length) {
            return rl_fail(RL_CORRUPT, "learner: a batch ends early");
        }
        struct channel_message message = {
            .kind = WIRE_GROUP, .bytes = length, .data = (void *)(uintptr_t)(payload + at)};
        RL_TRY(wire_decode_group(&message, &groups[i]));
        at += length;
    }
    return RL_OK;
}

static rl_status receive_command(struct collective *collective, struct follow_header *header,
                                 char **payload)
{
    *payload = NULL;
    RL_TRY(collective_broadcast(collective, header, sizeof(*header), 0));
    if (header->bytes == 0) {
        return RL_OK;
    }
    *payload = malloc(header->bytes);
    if (*payload == NULL) {
        return rl_fail(RL_NO_MEMORY, "learner: out of memory for %llu bytes of a batch",
                       (unsigned long long)header->bytes);
    }
    return collective_broadcast(collective, *payload, header->bytes, 0);
}

/* The step asks for it, so the next command says where to. */
static rl_status follow_roll_back(const struct follower *f, struct learner_report *report)
{
    struct follow_header header = {0};
    uint64_t step = 0;
    char *payload = NULL;
    rl_status status = receive_command(f->collective, &header, &payload);
    if (status == RL_OK && (header.command != FOLLOW_ROLL_BACK || payload == NULL)) {
        status = rl_fail(RL_INTERNAL, "learner: command %llu where a rollback was due",
                         (unsigned long long)header.command);
    }
    if (status == RL_OK) {
        status = train_guard_roll_back(f->session, f->config, f->learner, payload, report, &step);
    }
    free(payload);
    return status;
}

/* Rank 0 stops a run whose guard says so: nothing is left to publish then. */
static rl_status end_step(const struct follower *f, struct learner_report *report)
{
    if (report->action == GUARD_STOP) {
        return RL_OK;
    }
    if (report->action == GUARD_ROLL_BACK) {
        RL_TRY(follow_roll_back(f, report));
    }
    return learner_publish(f->learner, report);
}

static rl_status follow_batch(const struct follower *f, const struct follow_header *header,
                              const char *payload)
{
    struct learner_report report;
    struct trajectory_group **groups = calloc(header->count, sizeof(*groups));
    if (groups == NULL) {
        return rl_fail(RL_NO_MEMORY, "learner: out of memory for a batch");
    }
    rl_status status = decode_groups(header, payload, groups);
    if (status == RL_OK) {
        status = learner_step(f->learner, groups, (uint32_t)header->count, header->step, &report);
    }
    if (status == RL_OK) {
        status = end_step(f, &report);
    }
    for (uint64_t i = 0; i < header->count; i++) {
        trajectory_group_destroy(groups[i]);
    }
    free(groups);
    return status;
}

static rl_status follow_start(const struct follower *f, const char *checkpoint)
{
    struct checkpoint_state state = {0};
    struct train_totals totals;
    struct optimizer_state *optimizer = learner_optimizer(f->learner);
    if (checkpoint[0] == '\0') {
        return learner_publish_first(f->learner, 0);
    }
    struct checkpoint_moments moments = checkpoint_moments_of(optimizer);
    RL_TRY(checkpoint_load(checkpoint, f->session->layout, learner_master(f->learner), &moments,
                           &state));
    optimizer->step = (int64_t)state.updates;
    rl_status status = checkpoint_load_teacher(checkpoint, f->session->layout,
                                               learner_teacher_average(f->learner));
    if (status == RL_OK) {
        status = train_totals_read(&state, &totals);
    }
    if (status == RL_OK) {
        status = learner_restore_guard(f->learner, &totals.guard);
    }
    if (status == RL_OK) {
        status = learner_publish_first(f->learner, (uint32_t)state.version);
    }
    checkpoint_state_fini(&state);
    return status;
}

static rl_status obey(const struct follower *f)
{
    for (;;) {
        struct follow_header header = {0};
        char *payload = NULL;
        rl_status status = receive_command(f->collective, &header, &payload);
        if (status == RL_OK && header.command == FOLLOW_START) {
            status = follow_start(f, payload);
        } else if (status == RL_OK && header.command == FOLLOW_BATCH) {
            status = follow_batch(f, &header, payload);
        } else if (status == RL_OK && header.command == FOLLOW_SAVE) {
            struct optimizer *shared = learner_shared_optimizer(f->learner);
            status = shared != NULL ? optimizer_pull(shared, f->session->pool) : RL_OK;
            status = status == RL_OK ? optimizer_serve(shared) : status;
            learner_forget(f->learner);
        }
        free(payload);
        RL_TRY(status);
        if (header.command == FOLLOW_STOP) {
            return RL_OK;
        }
    }
}

rl_status train_follow_run(const struct rl_config *config, struct session *session,
                           struct collective *collective, struct rl_waits *waits)
{
    struct learner *learner = NULL;
    struct learner_args args = {.config = config,
                                .layout = session->layout,
                                .kernels = session->kernels,
                                .pool = session->pool,
                                .collective = collective,
                                .waits = waits};
    void *image = NULL;
    struct prompts *prompts = NULL;
    struct teacher_prompts *teacher = NULL;
    const char *path = config->model.reference;
    rl_status status = RL_OK;
    if (objective_needs_reference(config)) {
        RL_TRY(session_load_image(session, path[0] != '\0' ? path : config->model.path, &image));
        args.reference_image = image;
    }
    if (status == RL_OK && config->teacher.loss != CONFIG_TEACHER_NONE) {
        status =
            prompts_load(config->data.train, config, session->tokenizer, session->chat, &prompts);
    }
    if (status == RL_OK) {
        status = teacher_prompts_create(session, prompts, &teacher);
        args.teacher = teacher_prompts_get(teacher);
    }
    if (status == RL_OK) {
        status = session_load_master(session, config->model.path, &args.master);
    }
    if (status == RL_OK) {
        status = learner_create(&args, &learner);
    }
    if (status == RL_OK) {
        status = obey(&(struct follower){config, session, collective, learner});
    }
    learner_destroy(learner);
    teacher_prompts_destroy(teacher);
    prompts_destroy(prompts);
    device_free(image);
    return status;
}
