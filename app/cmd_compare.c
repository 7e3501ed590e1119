/* `foresight compare`: two evaluations of the same problems, difference by difference. */
#include "app/app.h"
#include "app/commands.h"

#include "core/log.h"
#include "trainer/eval_compare.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct comparison {
    const char *left_temperature, *right_temperature; /* NULL: the file's default */
    const char *k, *set, *split;                      /* NULL: 1, "eval", both */
    bool json;
};

struct side {
    struct count_table *table;
    double *values;
    uint32_t count;
    double temperature, mean;
};

static rl_status find_set(const struct count_table *table, const char *name, uint32_t *out)
{
    const char *at = table->sets;
    for (uint32_t set = 0; *at != '\0'; set++) {
        size_t bytes = strcspn(at, "\n");
        if (strlen(name) == bytes && strncmp(at, name, bytes) == 0) {
            *out = set;
            return RL_OK;
        }
        at += bytes + (at[bytes] == '\n' ? 1 : 0);
    }
    return rl_fail(RL_NOT_FOUND, "--set %s: the evaluation has no such set", name);
}

static rl_status read_side(const char *path, const char *temperature, struct side *side, int *place)
{
    char *end = NULL;
    RL_TRY(count_file_read(path, &side->table));
    side->temperature = side->table->default_temperature;
    if (temperature != NULL) {
        side->temperature = strtod(temperature, &end);
        if (end == temperature || *end != '\0') {
            return rl_fail(RL_INVALID, "temperature %s: expected a number", temperature);
        }
    }
    *place = eval_find_temperature(side->table, side->temperature);
    if (*place < 0) {
        return rl_fail(RL_NOT_FOUND, "%s was not evaluated at temperature %g (--left, --right)",
                       path, side->temperature);
    }
    side->values = calloc(side->table->problem_count, sizeof *side->values);
    return side->values != NULL ? RL_OK : rl_fail(RL_NO_MEMORY, "%s: out of memory", path);
}

static rl_status read_values(struct side *side, struct eval_pick pick, int place)
{
    pick.temperature = (uint32_t)place;
    RL_TRY(eval_counts_values(side->table, &pick, side->values, &side->count));
    for (uint32_t i = 0; i < side->count; i++) {
        side->mean += side->values[i] / side->count;
    }
    return RL_OK;
}

static rl_status read_pick(const struct comparison *options, const struct count_table *table,
                           struct eval_pick *pick)
{
    *pick = (struct eval_pick){.scope = {.split = -1}, .k = 1};
    char *end = NULL;
    if (options->k != NULL && strcmp(options->k, "maj") == 0) {
        pick->figure = EVAL_MAJORITY;
    } else if (options->k != NULL) {
        unsigned long k = strtoul(options->k, &end, 10);
        if (options->k[0] < '1' || options->k[0] > '9' || *end != '\0' || k > UINT32_MAX) {
            return rl_fail(RL_INVALID, "--k %s: expected a number from 1 on, or maj", options->k);
        }
        pick->k = (uint32_t)k;
    }
    if (options->split != NULL) {
        if (strcmp(options->split, "A") != 0 && strcmp(options->split, "B") != 0) {
            return rl_fail(RL_INVALID, "--split %s: expected A or B", options->split);
        }
        pick->scope.split = options->split[0] == 'A' ? COUNT_SPLIT_A : COUNT_SPLIT_B;
    }
    return find_set(table, options->set != NULL ? options->set : "eval", &pick->scope.set);
}

static void print_result(const struct comparison *options, const struct side *sides,
                         const struct eval_interval *difference)
{
    if (options->json) {
        json_t *line = json_pack(
            "{s:I, s:f, s:f, s:f, s:f, s:f, s:[f,f]}", "problems", (json_int_t)sides[0].count,
            "left_temperature", sides[0].temperature, "right_temperature", sides[1].temperature,
            "left", sides[0].mean, "right", sides[1].mean, "difference", difference->mean,
            "difference_ci95", difference->low, difference->high);
        json_dumpf(line, stdout, JSON_COMPACT | JSON_PRESERVE_ORDER);
        fputc('\n', stdout);
        json_decref(line);
        return;
    }
    printf("%" PRIu32 " problems\n", sides[0].count);
    printf("left        %.4f   at temperature %g\n", sides[0].mean, sides[0].temperature);
    printf("right       %.4f   at temperature %g\n", sides[1].mean, sides[1].temperature);
    printf("difference  %+.4f  95%% [%+.4f, %+.4f]   (paired bootstrap over problems)\n",
           difference->mean, difference->low, difference->high);
}

static rl_status compare(char **paths, const struct comparison *options, struct side *sides)
{
    struct eval_pick pick;
    struct eval_interval difference;
    int places[2];
    RL_TRY(read_side(paths[0], options->left_temperature, &sides[0], &places[0]));
    RL_TRY(read_side(paths[1], options->right_temperature, &sides[1], &places[1]));
    RL_TRY(eval_same_problems(sides[0].table, sides[1].table));
    RL_TRY(read_pick(options, sides[0].table, &pick));
    RL_TRY(read_values(&sides[0], pick, places[0]));
    RL_TRY(read_values(&sides[1], pick, places[1]));
    RL_TRY(eval_paired_interval(sides[0].values, sides[1].values, sides[0].count,
                                sides[0].table->seed, &difference));
    print_result(options, sides, &difference);
    return RL_OK;
}

int cmd_compare(int argc, char **argv)
{
    struct comparison options = {.json = app_take_flag(&argc, argv, "--json")};
    struct side sides[2] = {{0}};
    if (app_take_value(&argc, argv, "--left", &options.left_temperature) != RL_OK ||
        app_take_value(&argc, argv, "--right", &options.right_temperature) != RL_OK ||
        app_take_value(&argc, argv, "--k", &options.k) != RL_OK ||
        app_take_value(&argc, argv, "--set", &options.set) != RL_OK ||
        app_take_value(&argc, argv, "--split", &options.split) != RL_OK) {
        return APP_USAGE;
    }
    if (argc != 3 || argv[1][0] == '-' || argv[2][0] == '-') {
        rl_fail(RL_INVALID, "usage: foresight compare %s", app_command_find("compare")->usage);
        return APP_USAGE;
    }
    rl_status status = compare(argv + 1, &options, sides);
    for (int i = 0; i < 2; i++) {
        count_table_destroy(sides[i].table);
        free(sides[i].values);
    }
    return status == RL_OK ? APP_OK : APP_FAILED;
}
