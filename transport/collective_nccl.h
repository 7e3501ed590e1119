/* Sums and gatherings of learners' GPUs by NCCL, which is loaded when it is wanted: the program
 * also starts where it is not installed. Who uses it goes through collective_gpu.h, which sees to
 * it that every learner can, and no two of them on one GPU. */
#ifndef FORESIGHT_TRANSPORT_COLLECTIVE_NCCL_H
#define FORESIGHT_TRANSPORT_COLLECTIVE_NCCL_H

#include "transport/collective.h"

#include "kernels/device.h"

enum {
    COLLECTIVE_NCCL_TEXT = 160,
    COLLECTIVE_NCCL_STAGING = 64 << 20 /* bytes on the GPU, at most, for all ranks' pieces */
};

/* What NCCL there is. */
struct collective_nccl_survey {
    int version;                        /* 10000 * major + 100 * minor + patch; 0: none */
    char problem[COLLECTIVE_NCCL_TEXT]; /* why it is 0; "" otherwise */
};

/* Load the library, if that has not been done, and ask it. Any thread. */
void collective_nccl_survey(struct collective_nccl_survey *out);

/* Connect the GPUs of all learners of `c` (made by collective_mpi_create; borrowed for life, as is
 * the pool with its stream on `device`). No operation outlives `timeout_s`, nor the loss of a
 * learner: the communicator is aborted then, and `c` broken with it. Collective; compute thread,
 * pumped. Caller owns *out, released with collective_nccl_disconnect. RL_AGAIN: NCCL would not, on
 * one rank or more, as was logged there; `c` is sound. Other errors: of `c`, RL_NO_MEMORY. */
rl_status collective_nccl_connect(struct collective *c, struct device *device, struct rl_pool *pool,
                                  double timeout_s, struct collective_device **out);

/* Before the device's stream is stopped. Takes NULL. Compute thread. */
void collective_nccl_disconnect(struct collective_device *device);

#endif
