/* `foresight audit RUN`: where the time of a run went. The simulator predicts what a change would
 * bring. */
#include "app/app.h"
#include "app/commands.h"
#include "app/simulate.h"

#include "core/log.h"
#include "trainer/audit.h"
#include "transport/atomic_file.h"

#include <math.h>
#include <stdio.h>

enum { AUDIT_PAGE_MAX_BYTES = 16 << 20, AUDIT_TEXT_MAX_BYTES = 1 << 20 };

/* 99th percentile over the median of a log-normal with this 95th percentile over its median. */
static double tail_ratio(const struct audit_plan *plan)
{
    double sigma = log(fmax(1.01, plan->length_p95 / plan->length_median)) / 1.6449;
    return exp(2.3263 * sigma);
}

/* All work of a rollout rank is put on its tokens, all work of the learner on its steps. */
static rl_status predict(void *arg, const struct audit_plan *plan, double *tokens_per_second)
{
    struct simulate_options options;
    struct simulate_result result;
    (void)arg;
    simulate_options_init(&options);
    options.mode = SIMULATE_SLOTS;
    options.workers = fmin(4096, plan->rollout_ranks);
    options.prompts_per_step = plan->prompts_per_step;
    options.samples_per_prompt = fmin(4096, plan->samples_per_prompt);
    options.max_staleness = plan->by_turns ? 0 : fmin(1000, plan->max_staleness);
    options.max_running = plan->max_running;
    options.prompt_tokens = 1;
    options.length_median = plan->length_median;
    options.length_ratio = fmin(1e4, tail_ratio(plan));
    options.length_max = plan->length_max;
    options.pass_s = 0;
    options.sequence_s = plan->token_s;
    options.train_s = plan->step_s;
    options.train_token_s = 0;
    RL_TRY(simulate_run(&options, &result));
    *tokens_per_second = result.tokens_per_second;
    return RL_OK;
}

static rl_status write_page(const char *path, const struct audit *audit, struct report_run *run)
{
    struct rl_text page;
    rl_text_init(&page, AUDIT_PAGE_MAX_BYTES);
    rl_status status = audit_page_append(&page, audit, run);
    if (status == RL_OK) {
        status = atomic_file_write_all(path, page.data, page.bytes);
    }
    rl_text_fini(&page);
    return status;
}

static rl_status print_audit(const struct audit *audit, bool json)
{
    struct rl_text text;
    if (json) {
        json_t *line = audit_json(audit);
        if (line == NULL) {
            return rl_fail(RL_NO_MEMORY, "audit: out of memory");
        }
        json_dumpf(line, stdout, JSON_COMPACT | JSON_PRESERVE_ORDER);
        fputc('\n', stdout);
        json_decref(line);
        return RL_OK;
    }
    rl_text_init(&text, AUDIT_TEXT_MAX_BYTES);
    rl_status status = audit_text_append(&text, audit);
    if (status == RL_OK) {
        fputs(rl_text_str(&text), stdout);
    }
    rl_text_fini(&text);
    return status;
}

static rl_status load(const char *dir, struct report_run *run, struct rl_config *config)
{
    char path[4096];
    int length = snprintf(path, sizeof(path), "%s/config.yaml", dir);
    RL_TRY(report_run_load(dir, run));
    if (run->config == NULL) {
        return rl_fail(RL_NOT_FOUND, "%s has no config.yaml: not the folder of a run", dir);
    }
    return length < 0 || (size_t)length >= sizeof(path)
               ? rl_fail(RL_TOO_LONG, "path %s/config.yaml is too long", dir)
               : rl_config_load(config, path);
}

int cmd_audit(int argc, char **argv)
{
    bool json = app_take_flag(&argc, argv, "--json");
    const char *page = NULL;
    if (app_take_value(&argc, argv, "--html", &page) != RL_OK) {
        return APP_USAGE;
    }
    if (argc != 2 || argv[1][0] == '-') {
        rl_fail(RL_INVALID, "usage: foresight audit %s", app_command_find("audit")->usage);
        return APP_USAGE;
    }
    struct report_run run = {0};
    struct rl_config config;
    struct audit audit;
    rl_status status = rl_config_init(&config);
    if (status == RL_OK) {
        status = load(argv[1], &run, &config);
    }
    if (status == RL_OK) {
        status = audit_make(&run, &config, predict, NULL, &audit);
    }
    if (status == RL_OK && page != NULL) {
        status = write_page(page, &audit, &run);
    }
    if (status == RL_OK) {
        status = print_audit(&audit, json);
    }
    report_run_fini(&run);
    rl_config_fini(&config);
    return status == RL_OK ? APP_OK : APP_FAILED;
}
