/* See collective_gpu.h. */
#include "transport/collective_gpu.h"

#include "core/log.h"
#include "kernels/device.h"
#include "transport/collective_nccl.h"

#include <stdlib.h>
#include <string.h>

/* What a learner tells the others about itself. */
struct offer {
    int32_t version; /* of NCCL; 0: none, see `problem` */
    int32_t has_gpu;
    unsigned char uuid[DEVICE_UUID_BYTES];
    char problem[COLLECTIVE_NCCL_TEXT];
};

static struct offer own_offer(const struct device *device)
{
    struct offer offer = {.has_gpu = device != NULL};
    struct collective_nccl_survey survey = {0};
    if (device != NULL) {
        device_gpu_uuid(device, offer.uuid);
        collective_nccl_survey(&survey);
        offer.version = survey.version;
        memcpy(offer.problem, survey.problem, sizeof offer.problem);
    }
    return offer;
}

static rl_status exchange(struct collective *c, const struct offer *mine, struct offer *offers)
{
    int64_t *bounds = calloc((size_t)c->size + 1, sizeof *bounds);
    if (bounds == NULL) {
        return rl_fail(RL_NO_MEMORY, "no memory for %d learners", c->size);
    }
    for (int rank = 0; rank < c->size; rank++) {
        bounds[rank + 1] = bounds[rank] + (int64_t)sizeof *mine;
    }
    rl_status status = collective_gather(c, mine, bounds, offers, COLLECTIVE_ALL);
    free(bounds);
    return status;
}

/* The first learner before `rank` on the same GPU, or -1. */
static int neighbour_on_gpu(const struct offer *offers, int rank)
{
    for (int other = 0; other < rank; other++) {
        if (memcmp(offers[other].uuid, offers[rank].uuid, DEVICE_UUID_BYTES) == 0) {
            return other;
        }
    }
    return -1;
}

/* Whether all can; every rank comes to the same end. Rank 0 says what is in the way. */
static bool all_fit(const struct collective *c, const struct offer *offers)
{
    static const char way[] = "learners' GPUs sum by way of the host's memory";
    enum rl_log_level level = c->rank == 0 ? RL_LOG_INFO : RL_LOG_DEBUG;
    for (int rank = 0; rank < c->size; rank++) {
        if (!offers[rank].has_gpu) {
            return false; /* who mixes them is told so elsewhere */
        }
    }
    for (int rank = 0; rank < c->size; rank++) {
        int other = neighbour_on_gpu(offers, rank);
        if (offers[rank].version == 0) {
            rl_log(level, "%s: learner %d: %.*s", way, rank, COLLECTIVE_NCCL_TEXT,
                   offers[rank].problem);
            return false;
        }
        if (offers[rank].version != offers[0].version) {
            rl_log(level, "%s: learner 0 has NCCL %d, learner %d has %d", way, offers[0].version,
                   rank, offers[rank].version);
            return false;
        }
        if (other >= 0) {
            rl_log(level, "%s: learners %d and %d share a GPU, which NCCL refuses", way, other,
                   rank);
            return false;
        }
    }
    return true;
}

static rl_status connect_gpus(struct collective *c, struct device *device, struct rl_pool *pool,
                              double timeout_s)
{
    rl_status status = collective_nccl_connect(c, device, pool, timeout_s, &c->device);
    if (status == RL_AGAIN) {
        rl_log(RL_LOG_WARN, "learners' GPUs sum by way of the host's memory: NCCL did not start");
        return RL_OK;
    }
    return status;
}

rl_status collective_gpu_start(struct collective *c, struct device *device, struct rl_pool *pool,
                               double timeout_s)
{
    if (c->size == 1) {
        return RL_OK;
    }
    struct offer mine = own_offer(device);
    struct offer *offers = calloc((size_t)c->size, sizeof *offers);
    if (offers == NULL) {
        return rl_fail(RL_NO_MEMORY, "no memory for %d learners", c->size);
    }
    rl_status status = exchange(c, &mine, offers);
    bool fit = status == RL_OK && all_fit(c, offers);
    free(offers);
    return fit ? connect_gpus(c, device, pool, timeout_s) : status;
}

size_t collective_gpu_bytes(int learners, size_t bytes)
{
    const size_t most = COLLECTIVE_NCCL_STAGING; /* pieces have the longest part's length */
    return learners <= 1 ? 0 : bytes < most / (size_t)learners ? bytes * (size_t)learners : most;
}

void collective_gpu_stop(struct collective *c)
{
    if (c != NULL) {
        collective_nccl_disconnect(c->device);
        c->device = NULL;
    }
}
