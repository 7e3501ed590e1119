/* `foresight replay RUN`: the run computed again and compared, or one group of it looked into. */
#include "app/app.h"
#include "app/commands.h"
#include "app/replay.h"

#include "core/log.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

struct replay_args {
    struct replay_options options;
    uint64_t step, ticket;
    bool group, json;
};

static rl_status read_number(const char *flag, const char *text, uint64_t *out)
{
    char *end = NULL;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || text[0] == '-') {
        return rl_fail(RL_INVALID, "%s %s: not a number", flag, text);
    }
    *out = value;
    return RL_OK;
}

static rl_status take_number(int *argc, char **argv, const char *flag, uint64_t *out, bool *given)
{
    const char *text = NULL;
    RL_TRY(app_take_value(argc, argv, flag, &text));
    *given = text != NULL;
    return text != NULL ? read_number(flag, text, out) : RL_OK;
}

static rl_status read_args(int argc, char **argv, struct replay_args *out)
{
    bool until = false;
    bool from = false;
    bool step = false;
    bool ticket = false;
    out->json = app_take_flag(&argc, argv, "--json");
    out->options.recorded = app_take_flag(&argc, argv, "--recorded");
    RL_TRY(take_number(&argc, argv, "--until", &out->options.until, &until));
    RL_TRY(take_number(&argc, argv, "--from", &out->options.from, &from));
    RL_TRY(take_number(&argc, argv, "--step", &out->step, &step));
    RL_TRY(take_number(&argc, argv, "--ticket", &out->ticket, &ticket));
    if (argc != 2 || argv[1][0] == '-' || step != ticket || (step && (until || from)) ||
        (until && out->options.until == 0) || (step && out->step == 0)) {
        return rl_fail(RL_INVALID, "usage: foresight replay %s", app_command_find("replay")->usage);
    }
    out->options.run_dir = argv[1];
    out->options.quiet = out->json;
    out->options.keep = UINT32_MAX;
    out->group = step;
    return RL_OK;
}

static void print_json(const struct replay *r)
{
    const struct replay_totals *t = &r->totals;
    char master[32];
    char image[32];
    const struct replay_step *last = replay_index_find(&r->index, r->step);
    snprintf(master, sizeof(master), "%016" PRIx64, last != NULL ? last->master_hash : 0);
    snprintf(image, sizeof(image), "%016" PRIx64, last != NULL ? last->image_hash : 0);
    json_t *line = json_pack(
        "{s:s, s:b, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:s, s:s}", "run",
        r->options.run_dir, "equal", !r->difference.found, "steps", (json_int_t)t->steps,
        "last_step", (json_int_t)r->step, "groups_sampled", (json_int_t)t->groups_generated,
        "groups_recorded", (json_int_t)t->groups_recorded, "samples", (json_int_t)t->samples,
        "samples_switched", (json_int_t)t->switched, "tokens", (json_int_t)t->tokens, "arrivals",
        (json_int_t)r->index.arrivals, "events_bytes", (json_int_t)r->index.bytes, "master_hash",
        master, "image_hash", image);
    if (line != NULL && r->difference.found) {
        json_object_set_new(line, "step", json_integer((json_int_t)r->difference.step));
        json_object_set_new(line, "difference", json_string(r->difference.what));
    }
    json_dumpf(line, stdout, JSON_COMPACT | JSON_PRESERVE_ORDER);
    fputc('\n', stdout);
    json_decref(line);
}

static void print_text(const struct replay *r)
{
    const struct replay_totals *t = &r->totals;
    if (r->difference.found) {
        printf("%s: step %" PRIu64 " differs: %s\n", r->options.run_dir, r->difference.step,
               r->difference.what);
    }
    printf("%s: %" PRIu64 " steps computed again%s: %" PRIu64 " groups sampled, %" PRIu64
           " read, %" PRIu64 " samples (%" PRIu64 " of several versions), %" PRIu64 " tokens\n",
           r->options.run_dir, t->steps,
           r->difference.found ? " before it" : ", all weights equal bit for bit",
           t->groups_generated, t->groups_recorded, t->samples, t->switched, t->tokens);
}

static int replay_whole(const struct replay_args *args)
{
    struct replay r;
    rl_status status = replay_open(&args->options, &r);
    if (status == RL_OK && r.index.count > 0) {
        status = replay_advance(&r, r.index.steps[r.index.count - 1].step);
    }
    bool differs = r.difference.found;
    if (status == RL_OK && args->json) {
        print_json(&r);
    } else if (status == RL_OK) {
        print_text(&r);
    }
    replay_close(&r);
    return status == RL_OK && !differs ? APP_OK : APP_FAILED;
}

int cmd_replay(int argc, char **argv)
{
    struct replay_args args = {0};
    struct replay_group_report report;
    if (read_args(argc, argv, &args) != RL_OK) {
        return APP_USAGE;
    }
    if (!args.group) {
        return replay_whole(&args);
    }
    rl_status status =
        replay_group(args.options.run_dir, args.step, args.ticket, args.json, &report);
    return status == RL_OK && report.different == 0 ? APP_OK : APP_FAILED;
}
