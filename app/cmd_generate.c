/* `foresight generate`: complete prompts of a file, or one given on the command line. */
#include "app/app.h"
#include "app/commands.h"
#include "app/sample_set.h"

#include "core/log.h"
#include "kernels/device.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { GENERATE_EPOCH = 0x3ffffd };

struct generate_request {
    const char *prompt; /* NULL: the prompts of data.eval, or of data.train */
    uint32_t samples;
    uint64_t limit;
    bool json;
};

/* Write a one-line data set for a prompt given on the command line; the caller removes it. */
static rl_status write_prompt_file(const char *prompt, char *path, size_t path_bytes)
{
    const char *folder = getenv("TMPDIR"); /* as every program that makes a temporary file */
    snprintf(path, path_bytes, "%s/foresight_prompt_XXXXXX",
             folder != NULL && folder[0] != '\0' ? folder : "/tmp");
    int fd = mkstemp(path);
    json_t *row = json_pack("{s:s}", "prompt", prompt);
    char *text = row != NULL ? json_dumps(row, JSON_COMPACT | JSON_ENSURE_ASCII) : NULL;
    json_decref(row);
    bool ok = fd >= 0 && text != NULL && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
    free(text);
    if (fd >= 0) {
        ok = close(fd) == 0 && ok;
    }
    return ok ? RL_OK : rl_fail(RL_IO, "--prompt: not UTF-8, or no room for a temporary file");
}

static rl_status print_groups(const struct session *session, const struct prompts *prompts,
                              const struct sample_set *set, bool json)
{
    for (uint64_t i = 0; i < set->count; i++) {
        const char *prompt = prompts_at(prompts, i)->text;
        for (uint32_t s = 0; s < set->groups[i]->sample_count; s++) {
            const struct trajectory *sample = &set->groups[i]->samples[s];
            const char *finish = sample->finish == RL_FINISH_STOP     ? "stop"
                                 : sample->finish == RL_FINISH_LENGTH ? "length"
                                                                      : "aborted";
            char *text = NULL;
            RL_TRY(sample_set_text(session, sample, &text));
            if (json) {
                json_t *row = json_pack("{s:s, s:i, s:s, s:i, s:s}", "prompt", prompt, "sample",
                                        (int)s, "completion", text, "tokens",
                                        (int)sample->completion_count, "finish", finish);
                char *line = row != NULL ? json_dumps(row, JSON_COMPACT | JSON_ENSURE_ASCII) : NULL;
                printf("%s\n", line != NULL ? line : "{}");
                free(line);
                json_decref(row);
            } else {
                printf("--- prompt %llu, sample %u (%u tokens, %s)\n%s%s\n", (unsigned long long)i,
                       s, sample->completion_count, finish, prompt, text);
            }
            free(text);
        }
    }
    return RL_OK;
}

static void print_totals(const struct sample_set *set)
{
    json_t *totals =
        json_pack("{s:I, s:I, s:f, s:f}", "prompts", (json_int_t)set->count, "tokens",
                  (json_int_t)set->sampled_tokens, "wall_seconds", set->wall_s, "tokens_per_second",
                  set->wall_s > 0 ? set->sampled_tokens / set->wall_s : 0.0);
    char *text = totals != NULL ? json_dumps(totals, JSON_COMPACT) : NULL;
    printf("%s\n", text != NULL ? text : "{}");
    free(text);
    json_decref(totals);
}

static rl_status run(const struct rl_config *config, const char *paths,
                     const struct generate_request *request)
{
    struct session session = {0};
    struct prompts *prompts = NULL;
    struct sample_set set = {0};
    void *image = NULL;
    rl_status status = RL_OK;
    RL_TRY_GOTO(session_open(config, session_max_length(config), 0, &session), status, done);
    RL_TRY_GOTO(prompts_load(paths, config, session.tokenizer, session.chat, &prompts), status,
                done);
    struct sample_set_args args = {.session = &session,
                                   .prompts = prompts,
                                   .label = "generate",
                                   .limit = request->limit,
                                   .samples = request->samples,
                                   .epoch = GENERATE_EPOCH};
    session_sampling_options(config, request->samples, &args.options);
    RL_TRY_GOTO(sample_set_load(&session, &image), status, done);
    RL_TRY_GOTO(sample_set_run(&args, image, &set), status, done);
    RL_TRY_GOTO(print_groups(&session, prompts, &set, request->json), status, done);
    if (request->json) {
        print_totals(&set);
    }
done:
    sample_set_fini(&set);
    device_free(image);
    prompts_destroy(prompts);
    session_close(&session);
    return status;
}

static rl_status take_count(int *argc, char **argv, const char *flag, uint64_t *out)
{
    const char *value = NULL;
    char *end = NULL;
    RL_TRY(app_take_value(argc, argv, flag, &value));
    if (value == NULL) {
        return RL_OK;
    }
    unsigned long long number = strtoull(value, &end, 10);
    if (*value < '0' || *value > '9' || *end != '\0' || number < 1 || number > 1000000) {
        return rl_fail(RL_INVALID, "%s %s: expected a number from 1 to 1000000", flag, value);
    }
    *out = number;
    return RL_OK;
}

int cmd_generate(int argc, char **argv)
{
    struct rl_config config;
    struct generate_request request = {0};
    uint64_t samples = 1;
    char file[4096] = "";
    request.json = app_take_flag(&argc, argv, "--json");
    if (app_take_value(&argc, argv, "--prompt", &request.prompt) != RL_OK ||
        take_count(&argc, argv, "--samples", &samples) != RL_OK ||
        take_count(&argc, argv, "--limit", &request.limit) != RL_OK) {
        return APP_USAGE;
    }
    request.samples = (uint32_t)samples;
    rl_status status = app_config_from_args(&argc, argv, &config);
    if (status == RL_OK) {
        const char *paths = config.data.eval[0] != '\0' ? config.data.eval : config.data.train;
        rl_log_set_level((enum rl_log_level)config.run.log_level);
        if (request.prompt != NULL) {
            status = write_prompt_file(request.prompt, file, sizeof(file));
            paths = file;
        } else if (paths[0] == '\0') {
            status = rl_fail(RL_INVALID, "give --prompt TEXT, or set data.eval");
        }
        status = status == RL_OK ? run(&config, paths, &request) : status;
    }
    if (file[0] != '\0') {
        (void)unlink(file);
    }
    rl_config_fini(&config);
    return status == RL_OK ? APP_OK : status == RL_INTERRUPTED ? APP_INTERRUPTED : APP_FAILED;
}
