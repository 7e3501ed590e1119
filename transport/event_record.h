/* The records of RUN/events.bin as bytes: what an asynchronous run decided freely, so that it can
 * be computed again; and of RUN/deltas.bin. Pure: no file (event_file.h has the frames around
 * them). docs/replay.md has the layout byte by byte.
 *
 * Numbers are LEB128 varints (7 bits a byte, lowest first), signed ones zigzag; hashes and doubles
 * are 8 bytes, little-endian. A reader trusts no byte: counts are checked against the bytes that
 * are left before memory is asked for, and a payload must end where its record does. */
#ifndef FORESIGHT_TRANSPORT_EVENT_RECORD_H
#define FORESIGHT_TRANSPORT_EVENT_RECORD_H

#include "core/status.h"
#include "core/text.h"
#include "core/trajectory.h"

#include <stddef.h>
#include <stdint.h>

enum event_kind {
    EVENT_START = 1,  /* the program began or resumed: configuration, machine, weights */
    EVENT_ARRIVAL,    /* a group came in: which ticket, from whom, what became of it */
    EVENT_STEP,       /* a step was made: on what, with which weights at its end */
    EVENT_CHECKPOINT, /* the state of this place went into a checkpoint */
    EVENT_ROLLBACK,   /* the step whose record follows went back to an earlier step's weights */
    EVENT_END,        /* the program left in order; without it the file may lack its end */
    EVENT_DELTA,      /* deltas.bin: what a version of the weights changed (weight_delta.h) */
    EVENT_KIND_END
};

enum event_verdict {
    EVENT_QUEUED,
    EVENT_DUPLICATE,
    EVENT_UNKNOWN,
    EVENT_REJECTED,
    EVENT_STALE,
    EVENT_UNSCORABLE,
    EVENT_ZERO_VARIANCE,
    EVENT_VERDICT_COUNT
};

struct event_start {
    uint64_t step, version; /* where it goes on; 0, 0 for a new run */
    uint64_t seed;
    uint32_t isa; /* enum kernel_isa: bits are promised for one only */
    uint32_t threads, learners;
    uint64_t prompts_hash, image_hash, master_hash;
    const char *config; /* [config_bytes] resolved configuration as YAML; borrowed */
    uint32_t config_bytes;
};

struct event_arrival {
    uint64_t ticket;
    uint32_t worker;
    enum event_verdict verdict;
};

/* From completion token `position` on, `version` sampled. */
struct event_run {
    uint32_t position, version;
};

struct event_sample {
    uint32_t completion_count;
    bool unscored; /* its reward was not valid; scoring is no pure function where time ran out */
    uint32_t first_run, run_count; /* into event_step.runs */
};

struct event_group {
    uint64_t ticket, prompt_id;
    uint32_t epoch;
    uint64_t digest; /* event_group_digest */
    uint32_t first_sample, sample_count;
};

struct event_step {
    uint64_t step;
    uint32_t version; /* of the weights after the step */
    uint64_t image_hash, master_hash;
    uint64_t updates, skipped; /* minibatches that moved the weights, and that did not */
    struct event_group
        *groups; /* [group_count] in the order of training; owned by a decoded step */
    uint32_t group_count;
    struct event_sample *samples; /* [sample_count] */
    uint32_t sample_count;
    struct event_run *runs; /* [run_count] */
    uint32_t run_count;
};

/* Step `step`, whose record follows, found its weights unsound: masters, moments and update counter
 * became those after step `to_step` again (0: of the model), and what the step published is made of
 * them. From here on learning rates are `rate_scale` times what they would be. */
struct event_rollback {
    uint64_t step, to_step;
    double rate_scale;
};

struct event_delta {
    const void *data; /* [bytes] borrowed */
    size_t bytes;
};

struct event {
    enum event_kind kind;
    union {
        struct event_start start; /* `config` points into the decoded bytes */
        struct event_arrival arrival;
        struct event_step step;
        uint64_t checkpoint, end; /* the step */
        struct event_rollback rollback;
        struct event_delta delta; /* points into the decoded bytes; not looked into */
    };
};

/* Append a record's payload to `out`. Errors: RL_NO_MEMORY, RL_TOO_LONG (out's limit). */
rl_status event_encode_start(const struct event_start *start, struct rl_text *out);
rl_status event_encode_arrival(const struct event_arrival *arrival, struct rl_text *out);
rl_status event_encode_place(uint64_t step, struct rl_text *out); /* a checkpoint or an end */
rl_status event_encode_rollback(const struct event_rollback *rollback, struct rl_text *out);

/* A step with what it was trained on: of `step` only the scalars are read. */
rl_status event_encode_step(const struct event_step *step,
                            const struct trajectory_group *const *groups, uint32_t count,
                            struct rl_text *out);

/* Read a payload. *out borrows from `data` (start.config, delta) and owns the arrays of a step:
 * release with event_fini. `problem` [EVENT_PROBLEM_BYTES] says what is wrong on RL_CORRUPT (not
 * logged). Errors: RL_CORRUPT, RL_NO_MEMORY. */
enum { EVENT_PROBLEM_BYTES = 128 };
rl_status event_decode(uint32_t kind, const void *data, size_t bytes, struct event *out,
                       char *problem);

/* Free what a decoded event owns. Takes a zeroed struct; may be called twice. */
void event_fini(struct event *event);

/* One number for everything in a group that training sees: tokens, log-probs, versions, why each
 * sample ended, rewards. Not who made it and when. */
uint64_t event_group_digest(const struct trajectory_group *group);

#endif
