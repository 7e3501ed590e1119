/* The command table and what the commands share: flags, help, the configuration of a run. Owns the
 * static table made from commands.def; holds no state. */
#include "app/app.h"
#include "app/commands.h"

#include "core/log.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

#define COMMAND(name, usage, summary, details) {#name, usage, summary, details, cmd_##name},
static const struct app_command commands[] = {
#include "app/commands.def"
};

size_t app_command_count(void)
{
    return sizeof commands / sizeof commands[0];
}

const struct app_command *app_command_at(size_t index)
{
    return &commands[index];
}

const struct app_command *app_command_find(const char *name)
{
    for (size_t i = 0; i < app_command_count(); i++) {
        if (strcmp(commands[i].name, name) == 0) {
            return &commands[i];
        }
    }
    return NULL;
}

void app_command_help(const struct app_command *command)
{
    printf("usage: foresight %s %s\n\n%s.\n", command->name, command->usage, command->summary);
    if (command->details[0] != '\0') {
        printf("\n%s", command->details);
    }
    if (strncmp(command->usage, "CONFIG.yaml", 11) == 0) {
        printf("\n--threads N  compute threads of each rank (run.threads)\n"
               "--device D   auto, cpu or cuda (kernels.device)\n"
               "Options, with their defaults: foresight help config [SECTION]\n");
    }
}

/* Take `count` entries out of argv at `at`; the closing NULL moves along. */
static void remove_arguments(int *argc, char **argv, int at, int count)
{
    for (int i = at; i + count <= *argc; i++) {
        argv[i] = argv[i + count];
    }
    *argc -= count;
}

bool app_take_flag(int *argc, char **argv, const char *flag)
{
    bool found = false;
    for (int i = 1; i < *argc;) {
        if (strcmp(argv[i], flag) == 0) {
            remove_arguments(argc, argv, i, 1);
            found = true;
        } else {
            i++;
        }
    }
    return found;
}

rl_status app_take_value(int *argc, char **argv, const char *flag, const char **value)
{
    size_t length = strlen(flag);
    const char *taken = NULL;
    for (int i = 1; i < *argc;) {
        if (strncmp(argv[i], flag, length) != 0 ||
            (argv[i][length] != '\0' && argv[i][length] != '=')) {
            i++;
            continue;
        }
        bool joined = argv[i][length] == '=';
        if (taken != NULL) {
            return rl_fail(RL_INVALID, "%s is given twice", flag);
        }
        if (!joined && (i + 1 >= *argc || strncmp(argv[i + 1], "--", 2) == 0)) {
            return rl_fail(RL_INVALID, "%s needs a value", flag);
        }
        taken = joined ? argv[i] + length + 1 : argv[i + 1];
        remove_arguments(argc, argv, i, joined ? 1 : 2);
    }
    if (taken != NULL) {
        *value = taken;
    }
    return RL_OK;
}

/* --threads N is run.threads=N, said last; --device D is kernels.device=D. */
static rl_status apply_option(const char *name, const char *value, struct rl_config *config)
{
    char assignment[64];
    if (value == NULL) {
        return RL_OK;
    }
    snprintf(assignment, sizeof(assignment), "%s=%s", name, value);
    return rl_config_override(config, assignment);
}

rl_status app_config_from_args(int *argc, char **argv, struct rl_config *config)
{
    const char *threads = NULL;
    const char *device = NULL;
    RL_TRY(rl_config_init(config));
    RL_TRY(app_take_value(argc, argv, "--threads", &threads));
    RL_TRY(app_take_value(argc, argv, "--device", &device));
    int first = 1;
    if (*argc > 1 && strchr(argv[1], '=') == NULL) {
        if (argv[1][0] == '-') {
            return rl_fail(RL_INVALID, "unknown option %s of command %s", argv[1], argv[0]);
        }
        RL_TRY(rl_config_load(config, argv[1]));
        first = 2;
    }
    for (int i = first; i < *argc; i++) {
        if (strchr(argv[i], '=') == NULL) {
            return rl_fail(RL_INVALID, "argument '%s' of command %s: expected section.name=value",
                           argv[i], argv[0]);
        }
        RL_TRY(rl_config_override(config, argv[i]));
    }
    RL_TRY(apply_option("run.threads", threads, config));
    RL_TRY(apply_option("kernels.device", device, config));
    RL_TRY(rl_config_validate(config));
    rl_config_resolve(config);
    return RL_OK;
}

rl_status app_name_run(struct rl_config *config, int argc, char **argv)
{
    char assignment[512];
    if (config->run.name[0] != '\0') {
        return RL_OK;
    }
    if (argc < 2 || strchr(argv[1], '=') != NULL) {
        return rl_fail(RL_INVALID, "run.name is not set and there is no configuration file to name "
                                   "the run after");
    }
    const char *base = strrchr(argv[1], '/');
    base = base != NULL ? base + 1 : argv[1];
    size_t bytes = strcspn(base, ".");
    snprintf(assignment, sizeof(assignment), "run.name=%.*s", (int)bytes, base);
    return rl_config_override(config, assignment);
}
