/* The samples of a corpus: what is not there yet is generated, by this process beside others that
 * fill the same corpus, then everything is read. */
#ifndef FORESIGHT_APP_CORPUS_SAMPLES_H
#define FORESIGHT_APP_CORPUS_SAMPLES_H

#include "app/sampler.h"
#include "core/wait.h"
#include "transport/corpus_file.h"

struct corpus_request {
    const struct session *session; /* its config: rollout.*, rewards.*, distill.* */
    const struct prompts *prompts;
    const struct reward_set *rewards;
    struct rl_waits *waits;
    uint64_t model;    /* hash of the weights */
    uint32_t epoch;    /* part of the random numbers' key */
    const char *run;   /* who is noted as the maker */
    const char *label; /* of the progress bar; NULL: none */
    int rank, ranks;   /* where to begin looking for work */
    /* Image of the weights, called only if something has to be generated. */
    rl_status (*image)(void *arg, const void **image);
    void *image_arg;
};

/* Work of this process. */
struct corpus_work {
    uint64_t samples, tokens, passes;
    double wall_s; /* from the first request to the last part, waits for others left out */
    double busy_s; /* of it in forward passes and sampling */
    double cpu_s;  /* of all threads, meanwhile */
};

struct corpus_samples {
    struct trajectory_group **groups; /* [count], in order of prompt; distill.samples each */
    uint64_t count;
    char key[RL_HASH_TEXT_BYTES];
};

/* Folder of corpora: distill.corpora, or run.dir/corpora. Caller frees *out. */
rl_status corpus_folder(const struct rl_config *config, char **out);

/* Open the request's corpus. Caller closes *out. Errors: those of corpus_open. */
rl_status corpus_of_request(const struct corpus_request *request, struct corpus **out);

/* Fill, wait until others have filled the rest, read, and take distill.samples of each prompt's
 * samples, chosen by run.seed. Adds to *work. Release with corpus_samples_fini.
 * Errors: RL_INTERRUPTED by a signal (what is complete stays); those of the engine and the files.
 */
rl_status corpus_samples_get(const struct corpus_request *request, struct corpus_samples *out,
                             struct corpus_work *work);
void corpus_samples_fini(struct corpus_samples *samples);

/* Hash of weights, and of the architecture that they belong to. */
uint64_t corpus_model_hash(const struct model_layout *layout, const float *master);

#endif
