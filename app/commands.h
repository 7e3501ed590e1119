/* Prototypes of all commands, made from commands.def, and the walk over the table. */
#ifndef FORESIGHT_APP_COMMANDS_H
#define FORESIGHT_APP_COMMANDS_H

#include "app/app.h"

#include <stddef.h>

/* int cmd_NAME(int argc, char **argv): argv[0] is NAME; returns enum app_exit. */
#define COMMAND(name, usage, summary, details) int cmd_##name(int argc, char **argv);
#include "app/commands.def"

/* Number of commands. */
size_t app_command_count(void);

/* One of them, index < app_command_count(), in the order of `foresight --help`; static. */
const struct app_command *app_command_at(size_t index);

#endif
