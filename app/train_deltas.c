/* See train_deltas.h. */
#include "app/train_deltas.h"

#include "core/log.h"
#include "transport/weight_delta.h"

#include <stdlib.h>

struct delta_record {
    struct event_writer *writer;
    uint8_t *mask; /* [one bit an element] */
    uint32_t version;
    uint64_t hash; /* of its image */
};

rl_status train_deltas_open(struct train_run *run)
{
    char path[CHECKPOINT_PATH_MAX + 32];
    const struct model_layout *layout = run->session->layout;
    bool complete = true;
    if (run->config->async.record != CONFIG_RECORD_DELTAS) {
        return RL_OK;
    }
    struct delta_record *d = calloc(1, sizeof(*d));
    if (d == NULL) {
        return rl_fail(RL_NO_MEMORY, "deltas.bin: out of memory");
    }
    run->deltas = d;
    d->mask = malloc(layout->image_bytes / model_image_element_bytes(layout) / 8);
    if (d->mask == NULL) {
        return rl_fail(RL_NO_MEMORY, "deltas.bin: out of memory for a mask");
    }
    d->version = learner_version(run->learner);
    d->hash = run->image_hash;
    snprintf(path, sizeof(path), "%s/deltas.bin", run->dir);
    return run->step > 0 ? event_writer_resume(path, run->step, &d->writer, &complete)
                         : event_writer_create(path, &d->writer);
}

rl_status train_deltas_step(struct train_run *run)
{
    struct delta_record *d = run->deltas;
    uint32_t version = learner_version(run->learner);
    void *data = NULL;
    size_t bytes = 0;
    if (d == NULL || version == d->version) {
        return RL_OK;
    }
    struct weight_delta_info info = {.base_version = d->version,
                                     .version = version,
                                     .element_bytes =
                                         (uint32_t)model_image_element_bytes(run->session->layout),
                                     .image_bytes = run->session->layout->image_bytes,
                                     .base_hash = d->hash,
                                     .hash = run->image_hash};
    rl_status status = weight_history_union(run->history, d->version, version, d->mask);
    if (status == RL_NOT_FOUND) {
        return rl_fail(RL_INTERNAL, "deltas.bin: no mask from version %u to %u", d->version,
                       version);
    }
    RL_TRY(status);
    RL_TRY(weight_delta_encode(&info, d->mask, learner_image(run->learner), &data, &bytes));
    status = event_write_delta(d->writer, &(struct event_delta){data, bytes});
    free(data);
    d->version = version;
    d->hash = run->image_hash;
    return status;
}

rl_status train_deltas_checkpoint(struct train_run *run)
{
    if (run->deltas == NULL) {
        return RL_OK;
    }
    RL_TRY(event_write_checkpoint(run->deltas->writer, run->step));
    return event_writer_flush(run->deltas->writer);
}

void train_deltas_close(struct delta_record *deltas)
{
    if (deltas == NULL) {
        return;
    }
    event_writer_close(deltas->writer);
    free(deltas->mask);
    free(deltas);
}
