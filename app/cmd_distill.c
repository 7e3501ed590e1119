/* `foresight distill`: rounds of sampling, selecting and training. */
#include "app/app.h"
#include "app/commands.h"
#include "app/distill.h"

#include "core/clock.h"
#include "core/log.h"
#include "kernels/device.h"
#include "kernels/sampling.h"
#include "transport/collective_gpu.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct command {
    struct rl_config config;
    bool json, dry_run;
};

/* --- a round
 * --------------------------------------------------------------------------------------------- */

/* Image of the model that samples this round. A run that was resumed inside of training has that
 * model no more, unless it is the base. */
static rl_status sampling_image(void *arg, const void **image)
{
    struct distill *d = arg;
    float *base = NULL;
    if (d->image == NULL && !d->master_samples) {
        if (d->round > 0) {
            return rl_fail(RL_NOT_FOUND,
                           "the corpus of round %llu is not complete any more, and the model that "
                           "made it is gone; start anew under another run.name",
                           (unsigned long long)d->round + 1);
        }
        RL_TRY(session_load_master(&d->session, d->config->model.path, &base));
    }
    if (d->image == NULL) {
        rl_status status =
            session_make_image(&d->session, base != NULL ? base : d->master, &d->image);
        device_free(base);
        RL_TRY(status);
    }
    *image = d->image;
    return RL_OK;
}

void distill_request(struct distill *d, const struct prompts *prompts, uint32_t epoch,
                     struct corpus_request *out)
{
    *out = (struct corpus_request){.session = &d->session,
                                   .prompts = prompts,
                                   .rewards = d->rewards,
                                   .waits = d->team.waits,
                                   .model = d->model,
                                   .epoch = epoch,
                                   .run = d->tune.dir,
                                   .label = d->tune.leader ? "sample" : NULL,
                                   .rank = d->team.collective->rank,
                                   .ranks = d->team.collective->size,
                                   .image = sampling_image,
                                   .image_arg = d};
}

rl_status distill_sample(struct distill *d, const struct corpus_request *request,
                         struct corpus_samples *out)
{
    rl_status worst = RL_OK;
    rl_status mine = corpus_samples_get(request, out, &d->work);
    if (mine == RL_OK || mine == RL_INTERRUPTED) {
        RL_TRY(collective_agree(d->team.collective, mine, &worst));
        mine = worst;
    }
    return mine;
}

/* pass@1, pass@n, surprise, kept mass and lengths of what the model said, before any hint. */
static rl_status note_samples(struct distill *d, const struct corpus_samples *samples)
{
    double right = 0;
    double solved = 0;
    double count = 0;
    double tokens = 0;
    double surprise = 0;
    double kept = 0;
    for (uint64_t g = 0; g < samples->count; g++) {
        double before = right;
        for (uint32_t i = 0; i < samples->groups[g]->sample_count; i++) {
            const struct trajectory *sample = &samples->groups[g]->samples[i];
            right += sample->reward_valid && sample->accuracy >= 1;
            tokens += sample->completion_count;
            kept += (double)sample->kept_mass * sample->completion_count;
            for (uint32_t t = 0; t < sample->completion_count; t++) {
                surprise -= (double)sample->logprob[t];
            }
            count++;
        }
        solved += right > before;
    }
    json_t *part = json_pack("{s:s, s:I, s:f, s:f, s:f, s:f, s:f}", "corpus", samples->key,
                             "prompts", (json_int_t)samples->count, "pass_at_1", right / count,
                             "pass_at_n", solved / (double)samples->count, "mean_length",
                             tokens / count, "surprise", tokens > 0 ? surprise / tokens : 0.0,
                             "kept_mass", tokens > 0 ? kept / tokens : 1.0);
    int failed = part == NULL ? -1 : json_object_update(d->figures, part);
    json_decref(part);
    return failed == 0 ? RL_OK : rl_fail(RL_NO_MEMORY, "distill: out of memory");
}

static void describe(void *arg, struct rl_metrics *metrics)
{
    const struct distill *d = arg;
    const struct {
        enum rl_metric_id id;
        const char *name;
    } rows[] = {
        {RL_METRIC_DISTILL_SAMPLES, "samples"},   {RL_METRIC_DISTILL_KEPT, "kept"},
        {RL_METRIC_DISTILL_PASS_1, "pass_at_1"},  {RL_METRIC_DISTILL_PASS_N, "pass_at_n"},
        {RL_METRIC_DISTILL_SURPRISE, "surprise"}, {RL_METRIC_DISTILL_KEPT_MASS, "kept_mass"}};
    const char *reason = NULL;
    json_t *value = NULL;
    rl_metrics_add(metrics, RL_METRIC_DISTILL_ROUND, (double)d->round + 1);
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        rl_metrics_add(metrics, rows[i].id,
                       json_number_value(json_object_get(d->figures, rows[i].name)));
    }
    json_object_foreach(json_object_get(d->figures, "dropped"), reason, value)
    {
        char name[RL_METRIC_NAME_BYTES];
        snprintf(name, sizeof(name), "distill/dropped/%s", reason);
        rl_metrics_set_named(metrics, name, json_number_value(value));
    }
}

static void finish(void *arg, double loss, int64_t updates)
{
    struct distill *d = arg;
    json_object_set_new(d->figures, "train_loss", json_real(loss));
    json_object_set_new(d->figures, "updates", json_integer(updates));
}

/* Loss with importance ratios: GRPO's clip, a mean over tokens, and nothing else. */
static rl_status ratio_objective(const struct rl_config *config, struct objective_options *out)
{
    struct objective_options known;
    RL_TRY(objective_options_from_config(config, &known));
    *out = (struct objective_options){.loss_type = CONFIG_LOSS_GRPO,
                                      .aggregation = OBJECTIVE_TOKEN_MEAN,
                                      .epsilon_low = known.epsilon_low,
                                      .epsilon_high = known.epsilon_high,
                                      .fipo_decay_rate = known.fipo_decay_rate,
                                      .kl_type = known.kl_type,
                                      .correction = CONFIG_CORRECTION_NONE};
    return RL_OK;
}

static rl_status train(struct distill *d, const struct distill_examples *examples)
{
    struct objective_options objective;
    struct kernel_sampling sampling = {.temperature = (float)d->config->rollout.temperature};
    bool ratios = d->config->distill.weight == CONFIG_WEIGHT_IMPORTANCE;
    double loss = 0;
    RL_TRY(ratio_objective(d->config, &objective));
    struct tune_job job = {.label = "train",
                           .examples = examples->examples,
                           .example_count = examples->count,
                           .number = d->round,
                           .objective = ratios ? &objective : NULL,
                           .inv_temperature = kernel_sampling_inverse_temperature(&sampling),
                           .master = d->master,
                           .describe = describe,
                           .finish = finish,
                           .arg = d};
    return tune_job(&d->tune, &job, &loss);
}

/* The weights that training starts from, if they are not there already. */
static rl_status starting_weights(struct distill *d)
{
    if (d->tune.in_job || d->round == 0 || d->config->distill.restart == CONFIG_RESTART_CONTINUE) {
        return RL_OK;
    }
    device_free(d->master);
    d->master = NULL;
    return session_load_master(&d->session, d->config->model.path, &d->master);
}

static rl_status make_examples(struct distill *d, struct distill_examples *examples)
{
    struct corpus_request request;
    struct corpus_samples samples = {0};
    distill_request(d, d->prompts, DISTILL_EPOCH, &request);
    rl_status status = distill_sample(d, &request, &samples);
    if (status == RL_OK) {
        status = note_samples(d, &samples);
    }
    if (status == RL_OK && d->config->distill.hint_retry) {
        status = distill_retry(d, &samples);
    }
    if (status == RL_OK) {
        status = distill_select(d, &samples, examples);
    }
    corpus_samples_fini(&samples);
    device_free(d->image);
    d->image = NULL;
    return status;
}

static rl_status one_round(struct distill *d)
{
    struct distill_examples examples = {0};
    RL_TRY(make_examples(d, &examples));
    rl_status status = tune_check_examples(&d->tune, examples.examples, examples.count);
    if (status == RL_OK) {
        d->master_samples = false;
        status = starting_weights(d);
    }
    if (status == RL_OK) {
        status = train(d, &examples);
    }
    distill_examples_fini(&examples);
    return status;
}

/* --- the run
 * --------------------------------------------------------------------------------------------- */

/* The round's figures in the note: where a resumed round stands already, or a new entry. */
static rl_status begin_round(struct distill *d)
{
    json_t *rounds = json_object_get(d->tune.note, "rounds");
    char model[32];
    if (d->tune.in_job) {
        d->figures = json_array_get(rounds, json_array_size(rounds) - 1);
        const char *text = json_string_value(json_object_get(d->figures, "model"));
        if (text == NULL) {
            return rl_fail(RL_CORRUPT, "%s: a checkpoint without its model", d->tune.dir);
        }
        d->model = strtoull(text, NULL, 16);
        return RL_OK;
    }
    d->model = corpus_model_hash(d->session.layout, d->master);
    d->master_samples = true;
    snprintf(model, sizeof(model), "%016llx", (unsigned long long)d->model);
    d->figures = json_pack("{s:I, s:s}", "round", (json_int_t)d->round + 1, "model", model);
    if (d->figures == NULL || json_array_append_new(rounds, d->figures) != 0) {
        return rl_fail(RL_NO_MEMORY, "distill: out of memory");
    }
    return RL_OK;
}

/* Where the checkpoint stands: the round at work, and the weights. */
static rl_status start(struct distill *d)
{
    json_t *rounds = json_object_get(d->tune.note, "rounds");
    if (rounds == NULL) {
        rounds = json_array();
        json_object_set_new(d->tune.note, "rounds", rounds);
    }
    d->round = json_array_size(rounds) - (d->tune.in_job ? 1 : 0);
    if (d->tune.resumed) {
        d->master = tune_take_master(&d->tune);
        return RL_OK;
    }
    return session_load_master(&d->session, d->config->model.path, &d->master);
}

static rl_status open_all(struct distill *d)
{
    const struct rl_config *config = d->config;
    if (config->data.train[0] == '\0') {
        return rl_fail(RL_INVALID, "data.train is not set: the prompts to sample");
    }
    RL_TRY(session_open(config, session_max_length(config), d->team.local_rank, &d->session));
    RL_TRY(prompts_load(config->data.train, config, d->session.tokenizer, d->session.chat,
                        &d->prompts));
    return reward_set_create(config, &d->rewards);
}

static rl_status run_rounds(struct distill *d)
{
    RL_TRY(collective_gpu_start(d->team.collective, d->session.device, d->session.pool,
                                d->team.timeout_s));
    RL_TRY(tune_open(d->config, &d->session, &d->team, &d->tune));
    RL_TRY(start(d));
    while (d->round < (uint64_t)d->config->distill.rounds) {
        RL_TRY(begin_round(d));
        RL_TRY(one_round(d));
        d->round++;
    }
    return RL_OK;
}

static void close_all(struct distill *d)
{
    device_free(d->image);
    device_free(d->master);
    tune_close(&d->tune);
    reward_set_destroy(d->rewards);
    prompts_destroy(d->prompts);
    collective_gpu_stop(d->team.collective);
    session_close(&d->session);
}

static rl_status print_result(const struct distill *d, bool json)
{
    char path[CHECKPOINT_PATH_MAX + 32];
    snprintf(path, sizeof(path), "%s/summary.json", d->tune.dir);
    json_t *summary = json_load_file(path, 0, NULL);
    if (summary == NULL) {
        return rl_fail(RL_IO, "%s cannot be read back", path);
    }
    json_t *round = NULL;
    size_t i = 0;
    json_array_foreach(json_object_get(summary, "rounds"), i, round)
    {
        printf("round %zu: %lld of %lld samples kept, pass@1 %.4f, %lld updates, loss %.4f\n",
               i + 1, (long long)json_integer_value(json_object_get(round, "kept")),
               (long long)json_integer_value(json_object_get(round, "samples")),
               json_number_value(json_object_get(round, "pass_at_1")),
               (long long)json_integer_value(json_object_get(round, "updates")),
               json_number_value(json_object_get(round, "train_loss")));
    }
    char *text = json ? json_dumps(summary, JSON_COMPACT) : NULL;
    if (text != NULL) {
        printf("%s\n", text);
    }
    free(text);
    json_decref(summary);
    return RL_OK;
}

/* On every rank. */
static rl_status work(void *arg, const struct rank_team *team)
{
    struct command *command = arg;
    struct distill d = {.config = &command->config, .team = *team};
    rl_status status = open_all(&d);
    if (status == RL_OK) {
        status = run_rounds(&d);
    }
    if (d.tune.leader && (status == RL_OK || status == RL_INTERRUPTED)) {
        rl_status summarized = distill_summarize(&d, status == RL_OK);
        status = summarized != RL_OK ? summarized : status;
    }
    if (status == RL_OK && d.tune.leader) {
        status = print_result(&d, command->json);
    }
    if (status == RL_INTERRUPTED && d.tune.leader) {
        rl_log(RL_LOG_WARN, "distill: stopped by a signal; the same command goes on");
    }
    close_all(&d);
    return status;
}

/* --- the command
 * ----------------------------------------------------------------------------------------- */

static rl_status dry_run(const struct rl_config *config)
{
    struct distill d = {.config = config};
    struct corpus_request request = {.session = &d.session, .ranks = 1};
    struct corpus *corpus = NULL;
    float *master = NULL;
    uint64_t there = 0;
    rl_status status = RL_OK;
    RL_TRY_GOTO(open_all(&d), status, done);
    RL_TRY_GOTO(session_load_master(&d.session, config->model.path, &master), status, done);
    request.prompts = d.prompts;
    request.model = corpus_model_hash(d.session.layout, master);
    RL_TRY_GOTO(corpus_of_request(&request, &corpus), status, done);
    for (uint64_t part = 0; part < corpus_part_count(corpus); part++) {
        there += corpus_has(corpus, part);
    }
    printf("distill: %llu prompts x %lld samples, %lld round(s), %lld parameters\n"
           "first corpus %s: %llu of %llu parts are there\n",
           (unsigned long long)prompts_count(d.prompts), (long long)config->distill.samples,
           (long long)config->distill.rounds, (long long)d.session.layout->param_count,
           corpus_path(corpus), (unsigned long long)there,
           (unsigned long long)corpus_part_count(corpus));
done:
    corpus_close(corpus);
    device_free(master);
    close_all(&d);
    return status;
}

int cmd_distill(int argc, char **argv)
{
    struct command command = {0};
    command.dry_run = app_take_flag(&argc, argv, "--dry-run");
    command.json = app_take_flag(&argc, argv, "--json");
    rl_status status = app_config_from_args(&argc, argv, &command.config);
    if (status == RL_OK) {
        rl_log_set_level((enum rl_log_level)command.config.run.log_level);
        status = app_name_run(&command.config, argc, argv);
    }
    int exit_code = APP_FAILED;
    if (status == RL_OK && command.dry_run) {
        exit_code = dry_run(&command.config) == RL_OK ? APP_OK : APP_FAILED;
    } else if (status == RL_OK) {
        double timeout_s = (double)command.config.async.wait_timeout_ms / 1000.0;
        exit_code = rank_team_run(argc, argv, timeout_s, work, &command);
    }
    rl_config_fini(&command.config);
    return exit_code;
}
