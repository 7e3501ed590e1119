/* Self-distillation: rounds of sampling, selecting and training (docs/distill.md). */
#ifndef FORESIGHT_APP_DISTILL_H
#define FORESIGHT_APP_DISTILL_H

#include "app/corpus_samples.h"
#include "app/tune.h"
#include "rewards/reward.h"
#include "rollout/prompts.h"
#include "trainer/selection.h"

/* Parts of the sampling keys, beside those of the other commands. */
enum { DISTILL_EPOCH = 0x3ffffc, DISTILL_HINT_EPOCH = 0x3ffffb };

struct distill {
    const struct rl_config *config;
    struct session session;
    struct rank_team team;
    struct tune tune;
    struct prompts *prompts;
    struct reward_set *rewards;
    float *master;           /* of the model that samples, then of the one that is trained */
    bool master_samples;     /* master still holds the model that samples this round */
    void *image;             /* of it, made when it is needed */
    uint64_t model;          /* its hash */
    uint64_t round;          /* 0-based */
    struct corpus_work work; /* of this process, all rounds */
    json_t *figures;         /* of the round at work; borrowed from the tune's note */
};

/* What a round trains on. Tokens are borrowed from `samples`. */
struct distill_examples {
    struct corpus_samples samples;
    struct sft_example *examples; /* [count] */
    uint64_t count;
};

/* Options of sampling with the weights of this round; `prompts` and `epoch` say what. */
void distill_request(struct distill *d, const struct prompts *prompts, uint32_t epoch,
                     struct corpus_request *out);

/* corpus_samples_get by all ranks together: a stop that one rank was asked for is one of all. */
rl_status distill_sample(struct distill *d, const struct corpus_request *request,
                         struct corpus_samples *out);

/* STaR: sample the prompts of which no sample is correct once more, with a hint, and put the new
 * samples, the hint taken out of their prompts, in the place of the old. Notes in the round's
 * figures. Collective. Errors: those of loading and sampling. */
rl_status distill_retry(struct distill *d, struct corpus_samples *samples);

/* Judge and weigh the samples, note the round's figures. Takes `samples` over, also after an error.
 * Release with distill_examples_fini.
 * Errors: RL_INVALID (nothing was kept: how many fell to what), RL_NO_MEMORY. */
rl_status distill_select(struct distill *d, struct corpus_samples *samples,
                         struct distill_examples *out);
void distill_examples_fini(struct distill_examples *examples);

/* Merge what the run came to into RUN/summary.json. */
rl_status distill_summarize(struct distill *d, bool completed);

#endif
