/* The commands of the program. Each cmd_*.c owns one; main.c only dispatches. app/ is the
 * composition root: the one folder that may include every other. */
#ifndef FORESIGHT_APP_APP_H
#define FORESIGHT_APP_APP_H

#include "core/config.h"

/* Exit codes of the program. */
enum app_exit { APP_OK = 0, APP_FAILED = 1, APP_USAGE = 2, APP_INTERRUPTED = 3 };

struct app_command {
    const char *name;
    const char *usage;                 /* after "foresight NAME" */
    const char *summary;               /* one line */
    const char *details;               /* more lines for `foresight NAME --help`, "" if none */
    int (*run)(int argc, char **argv); /* argv[0] is the command's name; returns enum app_exit */
};

/* Find by name; NULL if there is none. */
const struct app_command *app_command_find(const char *name);

/* Print usage, summary and details of one command. */
void app_command_help(const struct app_command *command);

/* Remove `flag` (e.g. "--json") from argv if it is there; true if it was. */
bool app_take_flag(int *argc, char **argv, const char *flag);

/* Remove `flag VALUE` or `flag=VALUE`; *value is borrowed from argv, unchanged if absent.
 * Errors: RL_INVALID if the value is missing. */
rl_status app_take_value(int *argc, char **argv, const char *flag, const char **value);

/* Defaults, then argv[1] as YAML file if it has no '=', then every section.name=value, then
 * --threads (which is removed from argv); validated. Release with rl_config_fini (also after an
 * error). */
rl_status app_config_from_args(int *argc, char **argv, struct rl_config *config);

/* Without run.name take the configuration file's base name. Errors: RL_INVALID (there is neither).
 */
rl_status app_name_run(struct rl_config *config, int argc, char **argv);

#endif
