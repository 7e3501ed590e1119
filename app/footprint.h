/* What the ranks of a run hold in the memory of GPUs, from the configuration alone; whether it
 * fits, and how many KV pages there is room for. Knows the rule which rank has which GPU (those of
 * a machine in turn). */
#ifndef FORESIGHT_APP_FOOTPRINT_H
#define FORESIGHT_APP_FOOTPRINT_H

#include "app/session.h"
#include "transport/world.h"

enum { FOOTPRINT_ITEMS = 16, FOOTPRINT_TEXT = 24 };

struct footprint_item {
    const char *what;
    const char *option; /* that makes it smaller; NULL: none */
    size_t bytes;
};

/* One rank. */
struct footprint {
    struct footprint_item items[FOOTPRINT_ITEMS];
    int count;
    size_t fixed;                      /* sum of the items */
    size_t page;                       /* of generation, in bytes; 0: it generates nothing */
    int64_t pages_wanted, pages_least; /* see rollout/scheduler.h */
};

struct footprint_run {
    const struct rl_config *config;
    const struct model_layout *layout;
    int ranks, learners; /* the first ones learn; 1 rank does both, or, without learners,
                            generates only */
    const struct rollout_generator_options *options; /* of generation; NULL: training's */
    const struct world *world;                       /* NULL: all ranks are on one machine */
    int gpus;                                        /* of a machine */
};

/* All ranks on one GPU. */
struct footprint_gpu {
    int index, ranks, rollout_ranks;
    int first;            /* lowest rank */
    size_t fixed;         /* of all of them, and so on */
    size_t least, wanted; /* KV pages, bytes */
    size_t available;     /* once every rank has its CUDA context; 0: unknown */
    size_t total;         /* 0: unknown */
};

/* Tokens, and pages of their keys and values, of the largest micro-batch that can come. */
struct footprint_microbatch {
    int64_t tokens, pages;
};
struct footprint_microbatch footprint_largest_microbatch(const struct rl_config *config);

/* *out = what `rank` holds. */
void footprint_of_rank(const struct footprint_run *run, int rank, struct footprint *out);

/* *out = what the ranks on GPU `index` of this machine hold. `device`: it, or NULL: none is here.
 */
void footprint_of_gpu(const struct footprint_run *run, int index, const struct device *device,
                      struct footprint_gpu *out);

/* Bytes as "1.234 GiB" or "56.7 MiB", in `text`, which is returned. */
const char *footprint_text(size_t bytes, char text[FOOTPRINT_TEXT]);

/* "rollout", "learner" or "learner and rollout". */
const char *footprint_role(const struct footprint_run *run, int rank);

/* KV pages that each rollout rank on the GPU gets, rollout.kv_memory_fraction of what is left or as
 * many as it can use; all of these if it is not known what there is. */
int64_t footprint_pages(const struct footprint_run *run, const struct footprint_gpu *gpu);

/* Does all of that fit? Errors: RL_NO_MEMORY; what it takes and what to change is logged if `log`.
 */
rl_status footprint_check(const struct footprint_run *run, const struct footprint_gpu *gpu,
                          const char *device_name, bool log);

/* Before this rank allocates anything on its GPU: check, log one line, and with `options` set
 * options->max_pages. Nothing on a CPU. Of the ranks on a GPU the first one tells an error that
 * all of them find. Errors: RL_NO_MEMORY. */
rl_status footprint_settle(const struct footprint_run *run, const struct session *session, int rank,
                           struct rollout_generator_options *options);

/* Print, or make an array of objects of, what each GPU of this machine holds. `device`: as of
 * footprint_of_gpu. Errors: RL_NO_MEMORY (it does not fit; said after it is printed). The caller
 * owns the array; NULL: out of memory. */
rl_status footprint_print(const struct footprint_run *run, const struct device *device);
struct json_t *footprint_json(const struct footprint_run *run, const struct device *device);

#endif
