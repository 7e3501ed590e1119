/* `foresight sft`: supervised fine-tuning of a model folder, or of a new model whose folder holds
 * only config.json and a tokenizer, into another model folder, or into a run folder with
 * checkpoints to go on from. */
#include "app/app.h"
#include "app/commands.h"
#include "app/sft_data.h"
#include "app/signals.h"
#include "app/summary.h"
#include "app/tune.h"

#include "core/clock.h"
#include "core/folder_make.h"
#include "core/log.h"
#include "kernels/device.h"
#include "model/folder.h"
#include "trainer/progress.h"
#include "transport/collective_gpu.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

struct sft_watch {
    struct progress_bar bar;
    struct sft_progress last;
    bool leader;
};

struct command {
    struct rl_config config;
    bool dry_run, json;
};

static bool watch(void *arg, const struct sft_progress *progress)
{
    struct sft_watch *w = arg;
    char note[64];
    w->last = *progress;
    if (w->leader) {
        snprintf(note, sizeof(note), "loss %.4f", progress->loss);
        progress_bar_update(&w->bar, (double)progress->update, note);
    }
    return signals_stop_requested() == 0;
}

/* Weights of the folder, or random ones where it has none. */
static rl_status initial_weights(const struct session *session, float **master)
{
    const struct rl_config *config = session->config;
    const char *dir = config->model.path;
    void *memory = NULL;
    if (model_folder_has(dir, "model.safetensors") ||
        model_folder_has(dir, "model.safetensors.index.json")) {
        return session_load_master(session, dir, master);
    }
    rl_log(RL_LOG_INFO, "%s has no weights: starting from random ones (run.seed %lld)", dir,
           (long long)config->run.seed);
    RL_TRY(device_alloc((size_t)session->layout->master_count * sizeof(float), "master weights",
                        &memory));
    *master = memory;
    model_params_init(session->layout, (uint64_t)config->run.seed, *master, session->pool);
    return RL_OK;
}

static rl_status save(const struct session *session, const float *master)
{
    const char *output = session->config->sft.output;
    RL_TRY(rl_folder_make(output));
    RL_TRY(model_params_save(session->layout, master, KERNEL_FP32, output));
    return tokenizer_copy_files(session->tokenizer, output);
}

/* Into sft.output: no run folder, nothing is kept before the end. */
static rl_status train_to_output(const struct session *session, const struct sft_data *data,
                                 const struct rank_team *team, struct sft_watch *w, double *loss)
{
    struct sft_args args = {.config = session->config,
                            .layout = session->layout,
                            .kernels = session->kernels,
                            .pool = session->pool,
                            .collective = team->collective,
                            .examples = data->examples,
                            .example_count = data->count,
                            .progress = watch,
                            .progress_arg = w};
    rl_status status = RL_OK;
    double tokens = 0;
    RL_TRY(initial_weights(session, &args.master));
    for (uint64_t i = 0; i < data->count; i++) {
        tokens += data->examples[i].count - 1;
    }
    double updates =
        tokens * session->config->sft.epochs / (double)session->config->sft.batch_tokens;
    w->leader = team->collective->rank == 0;
    w->bar = progress_bar_start(stderr, "sft", "updates", updates > 1 ? updates : 1);
    RL_TRY_GOTO(sft_run(&args, loss), status, done);
    if (w->leader) {
        progress_bar_finish(&w->bar);
        status = save(session, args.master);
    }
done:
    device_free(args.master);
    return status;
}

static void print_result(const struct sft_watch *w, const struct sft_data *data, double loss,
                         bool json)
{
    double rate = (double)w->last.tokens / (w->last.elapsed_s > 0 ? w->last.elapsed_s : 1);
    printf(
        "sft: %lld updates, %llu examples (%llu dropped), %llu tokens in %.1f s (%.0f tokens/s), "
        "loss %.4f\n",
        (long long)w->last.update, (unsigned long long)data->count,
        (unsigned long long)data->dropped, (unsigned long long)w->last.tokens, w->last.elapsed_s,
        rate, loss);
    if (!json) {
        return;
    }
    json_t *object =
        json_pack("{s:I, s:I, s:I, s:I, s:f, s:f, s:f, s:f}", "updates", (json_int_t)w->last.update,
                  "examples", (json_int_t)data->count, "dropped", (json_int_t)data->dropped,
                  "tokens", (json_int_t)w->last.tokens, "loss", loss, "tokens_per_second", rate,
                  "wall_seconds", w->last.elapsed_s, "cpu_seconds", rl_clock_process_cpu_s());
    char *text = object != NULL ? json_dumps(object, JSON_COMPACT) : NULL;
    printf("%s\n", text != NULL ? text : "{}");
    free(text);
    json_decref(object);
}

/* What the run came to, for people and machines; a run that was complete before says it again. */
static rl_status summarize(struct tune *t, const struct sft_data *data, bool json)
{
    char path[CHECKPOINT_PATH_MAX + 32];
    char checkpoint[64];
    tune_checkpoint_name(t, checkpoint);
    double rate = t->busy_s > 0 ? (double)t->busy_tokens / t->wall_s : 0;
    double loss = json_number_value(json_object_get(t->note, "loss"));
    json_t *summary = json_pack(
        "{s:s, s:b, s:I, s:I, s:I, s:I, s:I, s:f, s:s, s:{s:f}, s:{s:f}, s:{s:f}}", "command",
        "sft", "completed", 1, "updates", (json_int_t)t->step, "examples", (json_int_t)data->count,
        "dropped", (json_int_t)data->dropped, "tokens_trained", (json_int_t)t->job_tokens,
        "skipped_updates", (json_int_t)t->skipped, "loss", loss, "checkpoint", checkpoint,
        "wall_seconds", "training", t->wall_s, "cpu_seconds", "sft", rl_clock_process_cpu_s(),
        "rates", "training_tokens_per_second", rate);
    snprintf(path, sizeof(path), "%s/summary.json", t->dir);
    rl_status status = summary != NULL ? summary_merge(path, summary)
                                       : rl_fail(RL_NO_MEMORY, "%s: out of memory", path);
    char *text = status == RL_OK && json ? json_dumps(summary, JSON_COMPACT) : NULL;
    json_decref(summary);
    if (status == RL_OK) {
        printf("sft: %llu updates, %llu tokens, loss %.4f, %s/%s\n", (unsigned long long)t->step,
               (unsigned long long)t->job_tokens, loss, t->dir, checkpoint);
    }
    if (text != NULL) {
        printf("%s\n", text);
    }
    free(text);
    return status;
}

static void note_loss(void *arg, double loss, int64_t updates)
{
    struct tune *t = arg;
    (void)updates;
    json_object_set_new(t->note, "loss", json_real(loss));
}

/* Into the run folder, with checkpoints. */
static rl_status train_in_run(const struct session *session, const struct sft_data *data,
                              const struct rank_team *team, bool json)
{
    struct tune tune = {0};
    struct tune_job job = {.label = "sft",
                           .examples = data->examples,
                           .example_count = data->count,
                           .finish = note_loss,
                           .arg = &tune};
    double loss = 0;
    rl_status status = RL_OK;
    RL_TRY_GOTO(tune_open(session->config, session, team, &tune), status, done);
    job.master = tune_take_master(&tune);
    if (job.master == NULL) {
        RL_TRY_GOTO(initial_weights(session, &job.master), status, done);
    }
    if (!tune.resumed || tune.in_job) {
        RL_TRY_GOTO(tune_check_examples(&tune, data->examples, data->count), status, done);
        RL_TRY_GOTO(tune_job(&tune, &job, &loss), status, done);
    }
    status = tune.leader ? summarize(&tune, data, json) : RL_OK;
done:
    device_free(job.master);
    tune_close(&tune);
    return status;
}

static rl_status open_data(const struct rl_config *config, int local_rank, struct session *session,
                           struct sft_data *data)
{
    int64_t max_length = session_max_length(config);
    RL_TRY(session_open(config, max_length, local_rank, session));
    return sft_data_load(session, config->sft.data, max_length, data);
}

/* On every rank. */
static rl_status work(void *arg, const struct rank_team *team)
{
    const struct command *command = arg;
    const struct rl_config *config = &command->config;
    struct session session = {0};
    struct sft_data data = {0};
    struct sft_watch w = {0};
    double loss = 0;
    bool to_output = config->sft.output[0] != '\0';
    rl_status status = open_data(config, team->local_rank, &session, &data);
    if (status == RL_OK) {
        status =
            collective_gpu_start(team->collective, session.device, session.pool, team->timeout_s);
    }
    if (status == RL_OK && to_output) {
        status = train_to_output(&session, &data, team, &w, &loss);
        if (status == RL_OK && w.leader) {
            print_result(&w, &data, loss, command->json);
        }
    } else if (status == RL_OK) {
        status = train_in_run(&session, &data, team, command->json);
    }
    if (status == RL_INTERRUPTED && team->collective->rank == 0) {
        rl_log(RL_LOG_WARN, "sft: stopped by a signal; %s",
               to_output ? "nothing was written" : "the same command goes on");
    }
    sft_data_fini(&data);
    collective_gpu_stop(team->collective);
    session_close(&session);
    return status;
}

static rl_status dry_run(const struct rl_config *config)
{
    struct session session = {0};
    struct sft_data data = {0};
    rl_status status = open_data(config, 0, &session, &data);
    if (status == RL_OK) {
        printf("sft: %llu examples, %llu completion tokens, %llu dropped, %lld parameters\n",
               (unsigned long long)data.count, (unsigned long long)data.completion_tokens,
               (unsigned long long)data.dropped, (long long)session.layout->param_count);
    }
    sft_data_fini(&data);
    session_close(&session);
    return status;
}

static rl_status prepare(struct command *command, int argc, char **argv)
{
    RL_TRY(app_config_from_args(&argc, argv, &command->config));
    rl_log_set_level((enum rl_log_level)command->config.run.log_level);
    if (command->config.sft.data[0] == '\0') {
        return rl_fail(RL_INVALID, "sft.data is not set: the demonstrations");
    }
    return command->config.sft.output[0] == '\0' && !command->dry_run
               ? app_name_run(&command->config, argc, argv)
               : RL_OK;
}

int cmd_sft(int argc, char **argv)
{
    struct command command = {0};
    command.dry_run = app_take_flag(&argc, argv, "--dry-run");
    command.json = app_take_flag(&argc, argv, "--json");
    int exit_code = APP_FAILED;
    rl_status status = prepare(&command, argc, argv);
    if (status == RL_OK && command.dry_run) {
        exit_code = dry_run(&command.config) == RL_OK ? APP_OK : APP_FAILED;
    } else if (status == RL_OK) {
        double timeout_s = (double)command.config.async.wait_timeout_ms / 1000.0;
        exit_code = rank_team_run(argc, argv, timeout_s, work, &command);
    }
    rl_config_fini(&command.config);
    return exit_code;
}
