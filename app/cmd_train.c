/* `foresight train`: roles of the ranks, then each to its loop. */
#include "app/app.h"
#include "app/commands.h"
#include "app/train.h"

#include "core/log.h"
#include "core/text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A rank that has failed shall not be held long; one that is done may have slow peers. */
static const double close_failed_s = 10, close_done_s = 60;

static rl_status train_alone(const struct rl_config *config)
{
    struct session session = {0};
    struct prompts *prompts = NULL;
    struct rl_waits *waits = NULL;
    rl_status status = rl_waits_create(NULL, &waits);
    if (status == RL_OK) {
        status = session_open(config, session_learner_length(config), 0, &session);
    }
    if (status == RL_OK) {
        status =
            prompts_load(config->data.train, config, session.tokenizer, session.chat, &prompts);
    }
    if (status == RL_OK) {
        status = train_local(config, &session, prompts, waits);
    }
    prompts_destroy(prompts);
    session_close(&session);
    rl_waits_destroy(waits);
    return status;
}

static rl_status train_in_world(struct rl_config *config, struct world *world)
{
    if (world_size(world) == 1) {
        if (config->async.enabled) {
            rl_log(RL_LOG_INFO,
                   "one process: generating and learning by turns; for an asynchronous "
                   "run start with mpirun -n 2 or more");
            RL_TRY(rl_config_override(config, "async.enabled=false"));
        }
        return train_alone(config);
    }
    if (!config->async.enabled) {
        return rl_fail(RL_INVALID, "async.enabled=false runs in one process; mpirun started %d",
                       world_size(world));
    }
    RL_TRY(world_form(world, (int)config->cluster.learners));
    enum world_role role = world_role(world, world_rank(world));
    rl_log_identify(world_role_name(role), world_rank(world));
    return role == WORLD_LEARNER ? train_learner_rank(config, world)
                                 : train_worker_rank(config, world);
}

static int ranks_of_dry_run(const struct rl_config *config)
{
    const char *size = getenv("OMPI_COMM_WORLD_SIZE"); /* launch code: what mpirun says */
    int ranks = size != NULL ? (int)strtol(size, NULL, 10) : 0;
    if (ranks > 0) {
        return ranks;
    }
    return config->async.enabled ? (int)config->cluster.learners + 1 : 1;
}

int cmd_train(int argc, char **argv)
{
    struct rl_config config;
    struct world *world = NULL;
    bool dry_run = app_take_flag(&argc, argv, "--dry-run");
    bool json = app_take_flag(&argc, argv, "--json");
    rl_status status = app_config_from_args(&argc, argv, &config);
    if (status == RL_OK) {
        rl_log_set_level((enum rl_log_level)config.run.log_level);
        status = app_name_run(&config, argc, argv);
    }
    if (status != RL_OK || dry_run) {
        status = status == RL_OK ? train_dry_run(&config, ranks_of_dry_run(&config), json) : status;
        rl_config_fini(&config);
        return status == RL_OK ? APP_OK : APP_FAILED;
    }
    status = world_open(&argc, &argv, &world);
    if (status == RL_OK) {
        bool leader = world_rank(world) == 0;
        status = train_in_world(&config, world);
        if (json && leader && status == RL_OK) {
            char path[4096 + 32];
            char *text = NULL;
            size_t bytes = 0;
            snprintf(path, sizeof(path), "%s/%s/summary.json", config.run.dir, config.run.name);
            status = rl_file_read(path, 1 << 20, &text, &bytes);
            for (size_t i = 0; status == RL_OK && i < bytes; i++) {
                text[i] = text[i] == '\n' ? ' ' : text[i];
            }
            printf("%s\n", status == RL_OK ? text : "");
            free(text);
        }
    }
    rl_config_fini(&config);
    int exit_code = status == RL_OK ? APP_OK : APP_FAILED;
    fflush(stdout);
    world_close(world, exit_code, status == RL_OK ? close_done_s : close_failed_s);
    return exit_code;
}
