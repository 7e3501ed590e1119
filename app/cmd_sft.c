/* `foresight sft`: supervised fine-tuning of a model folder, or of a new model whose folder holds
 * only config.json and a tokenizer, into another model folder. */
#include "app/app.h"
#include "app/commands.h"
#include "app/sft_data.h"
#include "app/signals.h"

#include "core/clock.h"
#include "core/folder_make.h"
#include "core/log.h"
#include "kernels/device.h"
#include "model/folder.h"
#include "trainer/progress.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

struct sft_watch {
    struct progress_bar bar;
    struct sft_progress last;
};

static bool watch(void *arg, const struct sft_progress *progress)
{
    struct sft_watch *w = arg;
    char note[64];
    w->last = *progress;
    snprintf(note, sizeof(note), "loss %.4f", progress->loss);
    progress_bar_update(&w->bar, (double)progress->update, note);
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
    model_params_init(session->layout, (uint64_t)config->run.seed, *master);
    return RL_OK;
}

static rl_status train(const struct session *session, const struct sft_data *data, float *master,
                       struct sft_watch *w, double *loss)
{
    struct sft_args args = {.config = session->config,
                            .layout = session->layout,
                            .kernels = session->kernels,
                            .pool = session->pool,
                            .examples = data->examples,
                            .example_count = data->count,
                            .master = master,
                            .progress = watch,
                            .progress_arg = w};
    double tokens = 0;
    for (uint64_t i = 0; i < data->count; i++) {
        tokens += data->examples[i].count - 1;
    }
    double updates =
        tokens * session->config->sft.epochs / (double)session->config->sft.batch_tokens;
    w->bar = progress_bar_start(stderr, "sft", "updates", updates > 1 ? updates : 1);
    rl_status status = sft_run(&args, loss);
    progress_bar_finish(&w->bar);
    return status;
}

static rl_status save(const struct session *session, const float *master)
{
    const char *output = session->config->sft.output;
    RL_TRY(rl_folder_make(output));
    RL_TRY(model_params_save(session->layout, master, KERNEL_FP32, output));
    return tokenizer_copy_files(session->tokenizer, output);
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

static rl_status run(const struct rl_config *config, bool dry_run, bool json)
{
    struct session session = {0};
    struct sft_data data = {0};
    struct sft_watch w = {0};
    float *master = NULL;
    double loss = 0;
    int64_t max_length = session_max_length(config);
    rl_status status = RL_OK;
    if (config->sft.data[0] == '\0' || (config->sft.output[0] == '\0' && !dry_run)) {
        return rl_fail(RL_INVALID, "sft.data and sft.output must be set");
    }
    RL_TRY_GOTO(signals_install(), status, done);
    RL_TRY_GOTO(session_open(config, max_length, &session), status, done);
    RL_TRY_GOTO(sft_data_load(&session, config->sft.data, max_length, &data), status, done);
    if (dry_run) {
        printf("sft: %llu examples, %llu completion tokens, %llu dropped, %lld parameters\n",
               (unsigned long long)data.count, (unsigned long long)data.completion_tokens,
               (unsigned long long)data.dropped, (long long)session.layout->param_count);
        goto done;
    }
    RL_TRY_GOTO(initial_weights(&session, &master), status, done);
    RL_TRY_GOTO(train(&session, &data, master, &w, &loss), status, done);
    RL_TRY_GOTO(save(&session, master), status, done);
    print_result(&w, &data, loss, json);
done:
    device_free(master);
    sft_data_fini(&data);
    session_close(&session);
    return status;
}

int cmd_sft(int argc, char **argv)
{
    struct rl_config config;
    bool dry_run = app_take_flag(&argc, argv, "--dry-run");
    bool json = app_take_flag(&argc, argv, "--json");
    rl_status status = app_config_from_args(argc, argv, &config);
    if (status == RL_OK) {
        rl_log_set_level((enum rl_log_level)config.run.log_level);
        status = run(&config, dry_run, json);
    }
    rl_config_fini(&config);
    if (status == RL_INTERRUPTED) {
        rl_log(RL_LOG_WARN, "sft: stopped by a signal; nothing was written");
        return APP_INTERRUPTED;
    }
    return status == RL_OK ? APP_OK : APP_FAILED;
}
