/* Entry of the program: finds the command and hands over. The only file that ends the process. */
#include "app/app.h"
#include "app/commands.h"

#include "core/log.h"
#include "core/metrics.h"
#include "core/text.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

static void print_usage(FILE *out)
{
    fprintf(out,
            "foresight %s: asynchronous reinforcement learning for language models\n\n"
            "usage: foresight COMMAND [arguments]\n\n",
            FORESIGHT_VERSION);
    for (size_t i = 0; i < app_command_count(); i++) {
        const struct app_command *command = app_command_at(i);
        fprintf(out, "  %-9s %s\n", command->name, command->summary);
    }
    fprintf(out, "\n  foresight COMMAND --help       what a command takes\n"
                 "  foresight help config [SECTION] every option with its default\n"
                 "  foresight --version\n");
}

static int unknown_command(const char *name)
{
    const char *names[64];
    size_t count = 0;
    while (count < app_command_count() && count < 64) {
        names[count] = app_command_at(count)->name;
        count++;
    }
    const char *nearest = rl_text_nearest(name, names, count);
    if (nearest != NULL) {
        fprintf(stderr, "foresight: no command '%s'; did you mean '%s'?\n", name, nearest);
    } else {
        fprintf(stderr, "foresight: no command '%s'; see foresight --help\n", name);
    }
    return APP_USAGE;
}

/* help | help COMMAND | help config [SECTION] | help markdown config|metrics */
static int help(int argc, char **argv)
{
    const char *topic = argc > 1 ? argv[1] : "";
    const char *detail = argc > 2 ? argv[2] : "";
    if (topic[0] == '\0') {
        print_usage(stdout);
    } else if (strcmp(topic, "config") == 0) {
        rl_config_help(stdout, argc > 2 ? detail : NULL);
    } else if (strcmp(topic, "markdown") == 0 && strcmp(detail, "config") == 0) {
        rl_config_markdown(stdout);
    } else if (strcmp(topic, "markdown") == 0 && strcmp(detail, "metrics") == 0) {
        rl_metrics_markdown(stdout);
    } else if (app_command_find(topic) != NULL) {
        app_command_help(app_command_find(topic));
    } else {
        return unknown_command(topic);
    }
    return APP_OK;
}

static bool is_help(const char *argument)
{
    return strcmp(argument, "--help") == 0 || strcmp(argument, "-h") == 0;
}

static int dispatch(int argc, char **argv)
{
    if (argc < 2) {
        print_usage(stderr);
        return APP_USAGE;
    }
    if (is_help(argv[1])) {
        print_usage(stdout);
        return APP_OK;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("foresight %s\n", FORESIGHT_VERSION);
        return APP_OK;
    }
    if (strcmp(argv[1], "help") == 0) {
        return help(argc - 1, argv + 1);
    }
    const struct app_command *command = app_command_find(argv[1]);
    if (command == NULL) {
        return unknown_command(argv[1]);
    }
    for (int i = 2; i < argc; i++) {
        if (is_help(argv[i])) {
            app_command_help(command);
            return APP_OK;
        }
    }
    return command->run(argc - 1, argv + 1);
}

int main(int argc, char **argv)
{
    signal(SIGPIPE, SIG_IGN); /* a reader that went away is an error to report, not a death */
    int exit_code = dispatch(argc, argv);
    if (fflush(stdout) != 0 || ferror(stdout)) {
        perror("foresight: standard output");
        return exit_code == APP_OK ? APP_FAILED : exit_code;
    }
    return exit_code;
}
