/* The rollout engine: takes groups of prompts, runs one forward pass a tick over all sequences that
 * are due, samples, and hands out finished groups. It owns the KV cache and the sequences' tokens;
 * it borrows weights (an image pinned by the caller) and may be given newer ones between two ticks.
 *
 * A sample is a function of (seed, prompt id, epoch, sample index, weights): its random numbers are
 * keyed by those, the counter is the position in the completion. Which weights it met is told by
 * its `version` array alone (see scheduler.h): a request with that as its schedule gives the same
 * sample again, bit for bit. */
#ifndef FORESIGHT_ROLLOUT_GENERATOR_H
#define FORESIGHT_ROLLOUT_GENERATOR_H

#include "core/histogram.h"
#include "core/trajectory.h"
#include "kernels/device.h"
#include "model/forward.h"
#include "model/tokenizer.h"
#include "rollout/switch_schedule.h"

struct rollout_generator;

/* Guessed tokens that a pass checks beside sampling (see speculation.h): never, where measured
 * times say that it pays, wherever there is a guess. Samples are the same, bit for bit. */
enum rollout_speculation_mode {
    ROLLOUT_SPECULATION_OFF,
    ROLLOUT_SPECULATION_AUTO,
    ROLLOUT_SPECULATION_ALWAYS
};

struct rollout_generator_options {
    int32_t max_running;      /* sequences decoded together */
    int32_t max_groups;       /* groups inside at a time */
    int32_t max_prompt;       /* tokens */
    int32_t max_completion;   /* tokens */
    int32_t prefill_chunk;    /* tokens */
    int32_t max_pages;        /* KV pages at most, see scheduler.h; 0: as many as are of use */
    bool recompute_on_update; /* rollout.kv_on_update */
    enum rollout_speculation_mode speculation;
    bool int8_weights; /* rollout.quantize: passes read int8 weights made from the images given */
    uint64_t seed;     /* run.seed */
    struct kernel_sampling sampling;
    const char *stop_strings;   /* comma-separated, "" for none; borrowed for create */
    const char *stop_token_ids; /* comma-separated ids beside the model's eos ids; "" for none */
};

struct rollout_request {
    uint64_t ticket, prompt_id;
    uint32_t epoch, samples;
    const int32_t *prompt; /* [prompt_count], copied */
    uint32_t prompt_count; /* 1 .. max_prompt */
    /* [samples], copied: the version that samples each token; NULL: the newest at every pass */
    const struct rollout_schedule *schedule;
    /* [samples], copied: tokens of each completion, whatever the stop rules say (0: the sample is
     * left out); NULL: as long as it gets */
    const uint32_t *lengths;
    /* samples finished earlier (completion_count > 0) are taken over, not sampled again; copied;
     * NULL: none */
    const struct trajectory_group *done;
};

/* Image of `version`, or NULL: not here (yet), sequences that need it wait. Called between passes;
 * valid until the next tick. */
typedef struct device_source (*rollout_image_fn)(void *arg, uint32_t version);

struct rollout_counters {
    uint64_t passes;           /* forward passes */
    uint64_t sampled_tokens;   /* completion tokens */
    uint64_t forwarded_tokens; /* tokens of all passes, prefill included, wrong guesses not */
    uint64_t finished_groups;
    uint64_t finished_samples, finished_tokens; /* with their completion tokens */
    uint64_t switches;                          /* weight switches with sequences running */
    uint64_t nonfinite; /* samples ended because a log-prob was not finite */
    /* wall time of passes: over prompts (and tokens computed again), over one token of each
     * sequence, split by tokens where a pass has both; vocabulary head and sampling */
    double prefill_s, decode_s, sample_s;
    struct rl_pass_times times; /* of passes, vocabulary head and sampling too */
};

/* `context` (its layout, kernels and pool) and `tokenizer` are borrowed for the generator's life;
 * `tokenizer` may be NULL when there are no stop strings. Caller owns *out.
 * Errors: RL_INVALID (limits, malformed stop ids), RL_UNSUPPORTED (int8 weights on a device),
 * RL_NO_MEMORY. */
rl_status rollout_generator_create(const struct model_context *context,
                                   const struct tokenizer *tokenizer,
                                   const struct rollout_generator_options *options,
                                   struct rollout_generator **out);
void rollout_generator_destroy(struct rollout_generator *generator);

/* What a generator with these options will hold, for the footprint. */
struct rollout_generator_bytes {
    size_t all;       /* with KV pages for max_running sequences: others stay untouched on a CPU */
    size_t workspace; /* of these */
    size_t page;      /* one KV page */
    int64_t pages_wanted, pages_least; /* see scheduler.h */
};
struct rollout_generator_bytes
rollout_generator_bytes(const struct model_layout *layout,
                        const struct rollout_generator_options *options);

/* The newest weights: use this image, in the memory of the layout's device, from the next tick on
 * for requests without a schedule; it must stay valid until the next call. */
void rollout_generator_set_weights(struct rollout_generator *generator, const void *image,
                                   uint32_t version);

/* The same with an image anywhere, of which a device that it is not on, or sampling with int8
 * weights, first needs a copy: RL_AGAIN (not logged) as long as that is being made, beside ticks
 * with the weights of before: call again with the same image. One that is on the device is read
 * where it is, and must be valid until a later one is in use. Errors: RL_NO_MEMORY, the device's.
 */
rl_status rollout_generator_load_weights(struct rollout_generator *generator,
                                         struct device_source image, uint32_t version);

/* Sleep until the copy is made that load_weights has said RL_AGAIN of. */
void rollout_generator_await_weights(struct rollout_generator *generator);

/* Where images of versions come from that requests with a schedule ask for, the newest excepted;
 * valid while a request inside names the version. No data: it is not here, or not yet. */
void rollout_generator_set_image_source(struct rollout_generator *generator, rollout_image_fn fn,
                                        void *arg);

/* Queue a group. Errors: RL_AGAIN (max_groups inside), RL_TOO_LONG, RL_INVALID (an id outside the
 * vocabulary, a malformed schedule, finished samples of something else), RL_NO_MEMORY. */
rl_status rollout_generator_submit(struct rollout_generator *generator,
                                   const struct rollout_request *request);

/* Run one forward pass with the weights of one version; passes take the versions that sequences
 * need in turn, from the oldest on. *busy is false when there was nothing to do, or nothing with
 * weights that are here. Errors: RL_NO_MEMORY, the device's. */
rl_status rollout_generator_tick(struct rollout_generator *generator, bool *busy);

/* Take a finished group, in order of finishing; RL_AGAIN if there is none. Caller owns *group;
 * rewards are not set. */
rl_status rollout_generator_take(struct rollout_generator *generator,
                                 struct trajectory_group **group);

/* Copies of the groups inside that have at least one finished sample (unfinished ones have
 * completion_count 0), finished groups not yet taken among them: `done` of a later request. The
 * caller owns the groups and frees the array. Errors: RL_NO_MEMORY. */
rl_status rollout_generator_partials(const struct rollout_generator *generator,
                                     struct trajectory_group ***groups, int32_t *count);

/* Does a group inside with a schedule name `version`? Looks at all schedules: not for every pass.
 */
bool rollout_generator_needs(const struct rollout_generator *generator, uint32_t version);

/* Sequences running now; groups inside, queued or running (finished ones not yet taken excluded).
 */
int32_t rollout_generator_running(const struct rollout_generator *generator);
int32_t rollout_generator_groups(const struct rollout_generator *generator);
const struct rollout_counters *
rollout_generator_counters(const struct rollout_generator *generator);

#endif
