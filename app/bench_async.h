/* What the files of `foresight bench async` share: the workload, one measured row, its prediction.
 *
 * Two roles of one thread each: one generates, one learns. They are the program's own generator,
 * dispatcher, admission, learner and weight arena; only the loop around them differs from row to
 * row, and rewards and lengths are given. */
#ifndef FORESIGHT_APP_BENCH_ASYNC_H
#define FORESIGHT_APP_BENCH_ASYNC_H

#include "app/bench_async_path.h"
#include "app/simulate.h"
#include "core/config.h"
#include "model/params.h"
#include "rollout/generator.h"
#include "rollout/version_pins.h"
#include "trainer/admission.h"
#include "trainer/learner.h"
#include "transport/weight_arena.h"

#include <pthread.h>

/* Bound on age in admission: the admission rule alone bounds it here, nothing is thrown away. */
enum { BENCH_NEVER_STALE = 1 << 20 };

/* Of the learner's arena. */
enum { BENCH_ENGINE_READER, BENCH_SENDER_READER, BENCH_READERS };

/* The same for all rows. */
struct bench_workload {
    struct simulate_options shape; /* batch, lengths, eta; the costs are not read */
    struct rl_config config;       /* of the learner */
    struct model_layout *layout;
    const struct kernel_table *kernels;
    float *master;  /* weights that every row starts from */
    bool cpu_clock; /* see bench_async_turns.c */
};

/* A rung of the ladder. */
struct bench_rung {
    const char *row, *title;
    enum simulate_mode mode;
    bool ahead;     /* generation may run max_staleness versions ahead; else the roles take turns */
    bool remote;    /* weights reach the engine as between two nodes */
    bool fixed_lag; /* async.order=fixed_lag; else ready */
    bool own_costs; /* predicted from its own costs, not from the mean of rows like it */
};

/* Costs as the simulator takes them; doubles only. */
struct bench_costs {
    double pass_s, sequence_s, context_token_s, prefill_token_s;
    double train_s, train_token_s;
    double publish_s;  /* learner: for each version, beside the step itself */
    double transfer_s; /* of one update, taken from the engine's time */
};

/* What one run of a row showed, of the measured steps; gaps and passes of the whole run. */
struct bench_outcome {
    double seconds, tokens, tokens_per_second;
    double learner_idle, rollout_idle;               /* shares of the time */
    double learner_weight_wait, rollout_weight_wait; /* shares of the time */
    double staleness_mean;                           /* versions, per token */
    double pass_median_us;
    double *gap_us; /* [gap_count] owned: between two passes with a switch of weights in between */
    size_t gap_count;
    double bytes_per_update; /* that travelled to the engine */
    struct bench_costs costs;
};

/* Random weights, learner options. Release with bench_workload_fini (also after an error). */
rl_status bench_workload_init(struct bench_workload *workload);
void bench_workload_fini(struct bench_workload *workload);

/* Run one row. Release with bench_outcome_fini. */
rl_status bench_row_run(const struct bench_workload *workload, const struct bench_rung *rung,
                        struct bench_outcome *out);
void bench_outcome_fini(struct bench_outcome *outcome);

/* Tokens a second that the simulator expects of a row with such costs. */
rl_status bench_row_predict(const struct bench_workload *workload, const struct bench_rung *rung,
                            const struct bench_costs *costs, double *tokens_per_second);

/* --- results (bench_async_table.c) --------------------------------------------------------------
 */

enum { BENCH_REPEATS_MAX = 100, BENCH_RUNGS = 7 };
extern const struct bench_rung bench_rungs[BENCH_RUNGS];

struct bench_results {
    int repeats;
    struct bench_outcome outcomes[BENCH_RUNGS][BENCH_REPEATS_MAX];
    double predicted[BENCH_RUNGS][BENCH_REPEATS_MAX]; /* tokens a second */
};

/* Medians over the rounds, as a table or one JSON object. Errors: RL_NO_MEMORY, RL_IO. */
rl_status bench_results_print(const struct bench_workload *workload,
                              const struct bench_results *results, bool json);

/* --- between the two roles of a row (bench_async_row.c, bench_async_engine.c) -------------------
 */

/* What both threads touch; the mutex guards all of it but the arena, which needs none. */
struct bench_meeting {
    pthread_mutex_t mutex;
    pthread_cond_t changed; /* a group came, a version was published, or the end */
    uint64_t changes;       /* how often */
    struct dispatcher *dispatcher;
    struct admission *admission;
    struct weight_arena *arena;
    bool stop;
    rl_status status;                  /* first failure of the generating side */
    double busy_s, paused_s, beside_s; /* of the generating side so far */
};

struct bench_pass {
    double seconds;
    uint32_t sampled, prefill; /* tokens */
    double context;            /* tokens in the caches of the sequences decoded */
};

/* Fill the pass costs of *out, the rest with 0, from `passes` [count] by least squares. */
void bench_costs_fit(const struct bench_pass *passes, size_t count, struct bench_costs *out);

/* The generating role. */
struct bench_engine {
    const struct bench_workload *workload;
    const struct bench_rung *rung;
    struct bench_meeting *meeting;
    struct rollout_generator *generator;
    void *own_image;              /* rows without slots: the weights' only place; else NULL */
    struct weight_source *source; /* rows with slots; else NULL */
    struct version_pins pins;     /* fixed_lag */
    bool has_weights, draining, switched;
    bool coming; /* a newer version is being verified */
    uint32_t version;
    uint64_t seen;        /* changes seen */
    uint64_t submitted;   /* samples */
    double round_began_s; /* this round */
    double tail_s;        /* of the round before, after its pass */
    double paused_s;      /* standing still for weights */
    double beside_s;      /* cpu clock: work of other threads that took this core */
    double offset_s;      /* cpu clock: virtual time - this thread's */
    uint32_t transfers;
    struct bench_pass *passes; /* [pass_count] */
    size_t pass_count, pass_reserved;
    double *gap_us; /* [gap_count] */
    size_t gap_count, gap_reserved;
};

/* All but `engine` borrowed. Release with bench_engine_fini (also after an error).
 * Errors: RL_NO_MEMORY. */
rl_status bench_engine_init(struct bench_engine *engine, const struct bench_workload *workload,
                            const struct bench_rung *rung, struct bench_meeting *meeting);

/* Its thread must have ended. */
void bench_engine_fini(struct bench_engine *engine);

/* The ways that its rung's weights come: set up, look for newer ones between two passes, take
 * down. Errors: RL_NO_MEMORY, RL_INTERNAL; RL_CORRUPT. */
rl_status bench_engine_open_weights(struct bench_engine *engine);
rl_status bench_engine_adopt(struct bench_engine *engine);
void bench_engine_close_weights(struct bench_engine *engine);

/* New weights if they may come in, groups in, one pass, groups out; *busy: there was a pass. */
rl_status bench_engine_round(struct bench_engine *engine, bool *busy);

/* Rounds until meeting->stop; a thread of its own. Failures end in meeting->status. */
void bench_engine_run(struct bench_engine *engine);

/* Totals of both roles at some moment. */
struct bench_mark {
    double time_s, tokens, learner_busy_s, age_tokens, busy_s, paused_s, beside_s, slot_wait_s;
    double sends, sent_bytes; /* remote path */
};

/* The learning role, and all that a row owns. */
struct bench_row {
    const struct bench_workload *workload;
    const struct bench_rung *rung;
    struct bench_meeting meeting;
    struct bench_engine engine;
    struct collective *alone;
    struct rl_waits *waits;
    struct learner *learner;
    struct weight_history *history;
    struct bench_path *path;      /* remote; else NULL */
    struct admission_batch batch; /* in training */
    struct learner_report report; /* of the step that is not settled yet */
    struct bench_mark totals;     /* tokens, age_tokens, learner_busy_s; the rest when it is read */
    double fixed_s, token_s, publish_s, trained_tokens; /* learner's costs, summed */
    uint32_t trainings;
};

/* Take a batch if there is one. RL_AGAIN: not yet. The mutex must be held. */
rl_status bench_row_take(struct bench_row *row);

/* Train on it, but show nobody; *seconds by the workload's clock. */
rl_status bench_row_train(struct bench_row *row, uint64_t step, double *seconds);

/* Tickets, version and weights of the step just trained; over the remote path they are on their way
 * then. */
rl_status bench_row_settle(struct bench_row *row);

/* Totals now. Takes the mutex for a moment. */
struct bench_mark bench_row_mark(struct bench_row *row);

/* Both roles in one thread, on a clock that only their own computing moves; *from and *to are the
 * marks of the measured steps. */
rl_status bench_row_run_in_turns(struct bench_row *row, struct bench_mark *from,
                                 struct bench_mark *to);

/* Seconds by the workload's clock. */
double bench_now_s(const struct bench_workload *workload);

#endif
