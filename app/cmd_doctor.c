/* `foresight doctor`: runs all checks, prints a line each, exit code 1 if one failed. */
#include "app/app.h"
#include "app/commands.h"
#include "app/doctor.h"

#include "core/log.h"

#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const struct doctor_check checks[] = {
    {"processor", doctor_check_cpu},     {"kernels", doctor_check_kernels},
    {"gpu", doctor_check_gpu},           {"nccl", doctor_check_nccl},
    {"cores", doctor_check_cores},       {"memory", doctor_check_memory},
    {"shared memory", doctor_check_shm}, {"open files", doctor_check_open_files},
    {"disk", doctor_check_disk},         {"host name", doctor_check_host_name},
    {"mpirun", doctor_check_mpirun},     {"two ranks", doctor_check_mpi_ranks},
    {"storage", doctor_check_storage},   {"git", doctor_check_git},
};

const struct doctor_check *doctor_checks(size_t *count)
{
    *count = sizeof checks / sizeof checks[0];
    return checks;
}

void doctor_found(struct doctor_line *line, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(line->found, sizeof line->found, format, args);
    va_end(args);
}

void doctor_advise(struct doctor_line *line, enum doctor_level level, const char *format, ...)
{
    if (level <= line->level) {
        return;
    }
    line->level = level;
    va_list args;
    va_start(args, format);
    vsnprintf(line->advice, sizeof line->advice, format, args);
    va_end(args);
}

static const char *const level_names[] = {"OK", "WARN", "FAIL"};

static void print_line(const struct doctor_check *check, const struct doctor_line *line)
{
    static const char *const colors[] = {"\x1b[32m", "\x1b[33m", "\x1b[31m"};
    bool color = isatty(STDOUT_FILENO) == 1;
    printf("%s%-4s%s  %-14s %s\n", color ? colors[line->level] : "", level_names[line->level],
           color ? "\x1b[0m" : "", check->name, line->found);
    if (line->advice[0] != '\0') {
        printf("      %-14s -> %s\n", "", line->advice);
    }
    fflush(stdout);
}

static void note_line(json_t *list, const struct doctor_check *check,
                      const struct doctor_line *line)
{
    json_array_append_new(list, json_pack("{s:s, s:s, s:s%, s:s%}", "check", check->name, "level",
                                          level_names[line->level], "found", line->found,
                                          strlen(line->found), "advice", line->advice,
                                          strlen(line->advice)));
}

static void print_json(json_t *list, size_t failed)
{
    json_t *out = json_pack("{s:b, s:o}", "sound", failed == 0, "checks", list);
    if (out != NULL) {
        json_dumpf(out, stdout, JSON_COMPACT);
        putchar('\n');
    }
    json_decref(out);
}

int cmd_doctor(int argc, char **argv)
{
    if (app_take_flag(&argc, argv, "--probe-rank")) {
        return doctor_probe_rank(argc, argv);
    }
    bool json = app_take_flag(&argc, argv, "--json");
    if (argc != 1) {
        rl_fail(RL_INVALID, "usage: foresight doctor %s", app_command_find("doctor")->usage);
        return APP_USAGE;
    }
    size_t count = 0;
    size_t failed = 0;
    const struct doctor_check *table = doctor_checks(&count);
    json_t *list = json_array();
    for (size_t i = 0; i < count; i++) {
        struct doctor_line line = {.level = DOCTOR_OK};
        table[i].run(&line);
        failed += line.level == DOCTOR_FAIL;
        if (!json) {
            print_line(&table[i], &line);
        }
        note_line(list, &table[i], &line);
    }
    if (json) {
        print_json(list, failed);
    } else {
        json_decref(list);
    }
    return failed == 0 ? APP_OK : APP_FAILED;
}
