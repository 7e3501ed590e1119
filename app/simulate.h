/* An asynchronous run on a virtual clock: the real scheduler, dispatcher and admission, made-up
 * engines and a made-up learner that only cost time. Answers "how fast would it be with so many
 * workers, such lengths, this bound on staleness" in seconds. Pure: no files, no threads, the same
 * options give the same result.
 *
 * To be fast at the size of clusters, one token of the simulated scheduler stands for as many real
 * ones as `resolution` asks for; a pass over it costs as much as so many passes. */
#ifndef FORESIGHT_APP_SIMULATE_H
#define FORESIGHT_APP_SIMULATE_H

#include "core/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* How sequences enter an engine and new weights reach it. With max_staleness 0 generation and
 * learning take turns in each of them. */
enum simulate_mode {
    SIMULATE_STATIC, /* waves: the next one enters, with the newest weights, when one is done */
    SIMULATE_DRAIN,  /* a finished sequence makes room; for new weights the engine runs empty */
    SIMULATE_PAUSE,  /* new weights between two passes; decoding stops for the transfer */
    SIMULATE_SLOTS,  /* new weights between two passes; the transfer goes on beside decoding */
    SIMULATE_MODE_COUNT
};

struct simulate_options {
    enum simulate_mode mode;
#define SIMULATE_OPTION(name, initial, least, most, help) double name;
#include "app/simulate.def"
#undef SIMULATE_OPTION
};

/* Of the measured steps. Shares are 0 .. 1. */
struct simulate_result {
    double seconds, tokens; /* virtual time; completion tokens trained on */
    double tokens_per_second;
    double step_s;
    double learner_idle, rollout_idle; /* waiting for samples; for tickets or a drained engine */
    double rollout_paused;             /* waiting for the transfer or the switch of weights */
    double running_mean;               /* sequences decoded together, over busy time */
    double staleness_mean;             /* versions, per token, when trained */
    double staleness_max;              /* oldest token */
    double length_mean;
    uint64_t dropped; /* groups too old */
    uint64_t passes;  /* simulated passes, for the cost of the simulation itself */
};

/* Defaults of simulate.def; mode slots. */
void simulate_options_init(struct simulate_options *options);

/* Set one `name=value`, mode included. Errors: RL_INVALID (unknown name, with the nearest one; not
 * a number; out of range). */
rl_status simulate_options_set(struct simulate_options *options, const char *assignment);

/* Set a list "name=value name=value ...". Errors: as simulate_options_set. */
rl_status simulate_options_set_all(struct simulate_options *options, const char *assignments);

/* Name of a mode, static. */
const char *simulate_mode_name(enum simulate_mode mode);

/* One line for each option. */
void simulate_options_help(FILE *out);

/* Length of a completion: log-normal with the options' median and tail, capped, keyed by (seed,
 * prompt, sample). At least 1. */
uint32_t simulate_length(const struct simulate_options *options, uint64_t prompt, uint32_t sample);

/* Is this sample right? A coin with right_share, keyed likewise. */
bool simulate_right(const struct simulate_options *options, uint64_t prompt, uint32_t sample);

/* Run. Errors: RL_INVALID (options that cannot work together), RL_NO_MEMORY. */
rl_status simulate_run(const struct simulate_options *options, struct simulate_result *out);

#endif
