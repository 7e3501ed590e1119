/* What a training run left behind, read back and compared. Without arguments a Check program that
 * proves the comparisons themselves; with arguments a tool of the whole-program tests:
 *   state CHECKPOINT CHECKPOINT  equal weights, moments and counters, bit for bit
 *   once RUN                     no ticket and no (prompt, epoch) was trained on twice; prints how
 *                                many groups
 *   samples RUN RUN              equal tokens and log-probs of every sample that both runs have;
 *                                prints how many
 *   spread RUN                   prints how many rollout ranks made the samples */
#include "core/log.h"
#include "model/architecture.h"
#include "model/params.h"
#include "trainer/checkpoint.h"
#include "transport/segment_file.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct run_groups {
    struct trajectory_group **groups; /* owned */
    size_t count;
};

/* --- reading
 * ------------------------------------------------------------------------------------------ */

static rl_status append_segment(const char *path, struct run_groups *run)
{
    struct trajectory_group **groups = NULL;
    size_t count = 0;
    RL_TRY(segment_file_read(path, &groups, &count, NULL));
    struct trajectory_group **grown =
        realloc(run->groups, (run->count + count + 1) * sizeof(*grown));
    if (grown == NULL) {
        segment_groups_free(groups, count);
        return rl_fail(RL_NO_MEMORY, "out of memory");
    }
    memcpy(grown + run->count, groups, count * sizeof(*grown));
    run->groups = grown;
    run->count += count;
    free(groups);
    return RL_OK;
}

static int compare_groups(const void *left, const void *right)
{
    const struct trajectory_group *a = *(struct trajectory_group *const *)left;
    const struct trajectory_group *b = *(struct trajectory_group *const *)right;
    if (a->epoch != b->epoch) {
        return a->epoch < b->epoch ? -1 : 1;
    }
    return (a->prompt_id > b->prompt_id) - (a->prompt_id < b->prompt_id);
}

/* All groups of a run's segments in order of (epoch, prompt). */
static rl_status read_run(const char *dir, struct run_groups *run)
{
    char path[CHECKPOINT_PATH_MAX];
    *run = (struct run_groups){0};
    for (uint64_t number = 1;; number++) {
        RL_TRY(segment_file_path(dir, number, path, sizeof(path)));
        if (access(path, F_OK) != 0) {
            break;
        }
        RL_TRY(append_segment(path, run));
    }
    if (run->count == 0) {
        return rl_fail(RL_NOT_FOUND, "%s: no groups", dir);
    }
    qsort(run->groups, run->count, sizeof(*run->groups), compare_groups);
    return RL_OK;
}

static void free_run(struct run_groups *run)
{
    segment_groups_free(run->groups, run->count);
    *run = (struct run_groups){0};
}

/* --- comparing
 * ---------------------------------------------------------------------------------------- */

static rl_status check_once(const struct run_groups *run)
{
    for (size_t i = 0; i < run->count; i++) {
        const struct trajectory_group *group = run->groups[i];
        if (i > 0 && compare_groups(&run->groups[i - 1], &run->groups[i]) == 0) {
            return rl_fail(RL_INVALID, "prompt %llu of epoch %u was trained on twice",
                           (unsigned long long)group->prompt_id, group->epoch);
        }
        for (size_t j = 0; j < i; j++) {
            if (run->groups[j]->ticket == group->ticket) {
                return rl_fail(RL_INVALID, "ticket %llu was trained on twice",
                               (unsigned long long)group->ticket);
            }
        }
    }
    return RL_OK;
}

static bool same_sample(const struct trajectory *a, const struct trajectory *b)
{
    size_t tokens = (size_t)a->prompt_count + a->completion_count;
    return a->sample_index == b->sample_index && a->prompt_count == b->prompt_count &&
           a->completion_count == b->completion_count && a->finish == b->finish &&
           memcmp(a->tokens, b->tokens, tokens * sizeof(*a->tokens)) == 0 &&
           memcmp(a->logprob, b->logprob, a->completion_count * sizeof(*a->logprob)) == 0;
}

static rl_status check_group(const struct trajectory_group *a, const struct trajectory_group *b)
{
    bool same = a->sample_count == b->sample_count;
    for (uint32_t i = 0; same && i < a->sample_count; i++) {
        same = same_sample(&a->samples[i], &b->samples[i]);
    }
    return same ? RL_OK
                : rl_fail(RL_INVALID, "prompt %llu of epoch %u: other samples",
                          (unsigned long long)a->prompt_id, a->epoch);
}

/* *common: samples that both have. */
static rl_status check_samples(const struct run_groups *a, const struct run_groups *b,
                               uint64_t *common)
{
    size_t i = 0;
    size_t j = 0;
    *common = 0;
    while (i < a->count && j < b->count) {
        int order = compare_groups(&a->groups[i], &b->groups[j]);
        if (order == 0) {
            RL_TRY(check_group(a->groups[i], b->groups[j]));
            *common += a->groups[i]->sample_count;
        }
        i += order <= 0;
        j += order >= 0;
    }
    return RL_OK;
}

static size_t count_workers(const struct run_groups *run)
{
    bool seen[64] = {false};
    size_t workers = 0;
    for (size_t i = 0; i < run->count; i++) {
        int32_t worker = run->groups[i]->worker;
        if (worker >= 0 && worker < 64 && !seen[worker]) {
            seen[worker] = true;
            workers++;
        }
    }
    return workers;
}

struct saved {
    float *slabs[3]; /* masters and both moments */
    struct checkpoint_state state;
};

static rl_status load_checkpoint(const char *dir, const struct model_layout *layout,
                                 struct saved *out)
{
    for (int i = 0; i < 3; i++) {
        out->slabs[i] = calloc((size_t)layout->master_count, sizeof(float));
        if (out->slabs[i] == NULL) {
            return rl_fail(RL_NO_MEMORY, "out of memory");
        }
    }
    struct checkpoint_moments moments = {
        .m = out->slabs[1], .v = out->slabs[2], .count = layout->master_count};
    return checkpoint_load(dir, layout, out->slabs[0], &moments, &out->state);
}

static rl_status check_saved(const struct saved *a, const struct saved *b, int64_t count)
{
    static const char *const names[] = {"weights", "first moments", "second moments"};
    for (int i = 0; i < 3; i++) {
        if (memcmp(a->slabs[i], b->slabs[i], (size_t)count * sizeof(float)) != 0) {
            return rl_fail(RL_INVALID, "%s differ", names[i]);
        }
    }
    if (a->state.step != b->state.step || a->state.version != b->state.version ||
        a->state.updates != b->state.updates) {
        return rl_fail(RL_INVALID, "step, version or number of updates differ");
    }
    return RL_OK;
}

static rl_status compare_state(const char *left, const char *right)
{
    struct model_architecture arch;
    struct model_layout *layout = NULL;
    struct saved saved[2] = {0};
    RL_TRY(model_architecture_load(left, &arch));
    RL_TRY(model_layout_create(&arch, KERNEL_FP32, 64, &layout));
    rl_status status = load_checkpoint(left, layout, &saved[0]);
    if (status == RL_OK) {
        status = load_checkpoint(right, layout, &saved[1]);
    }
    if (status == RL_OK) {
        status = check_saved(&saved[0], &saved[1], layout->master_count);
    }
    for (int i = 0; i < 2; i++) {
        checkpoint_state_fini(&saved[i].state);
        for (int j = 0; j < 3; j++) {
            free(saved[i].slabs[j]);
        }
    }
    model_layout_destroy(layout);
    return status;
}

/* --- the tool
 * ----------------------------------------------------------------------------------------- */

static rl_status look_at_run(const char *what, const char *dir, uint64_t *figure)
{
    struct run_groups run;
    rl_status status = read_run(dir, &run);
    if (status == RL_OK && strcmp(what, "once") == 0) {
        status = check_once(&run);
        *figure = run.count;
    } else if (status == RL_OK) {
        *figure = count_workers(&run);
    }
    free_run(&run);
    return status;
}

static rl_status compare_runs(const char *left, const char *right, uint64_t *figure)
{
    struct run_groups a;
    struct run_groups b = {0};
    rl_status status = read_run(left, &a);
    if (status == RL_OK) {
        status = read_run(right, &b);
    }
    if (status == RL_OK) {
        status = check_samples(&a, &b, figure);
    }
    free_run(&a);
    free_run(&b);
    return status;
}

static int tool(int argc, char **argv)
{
    uint64_t figure = 0;
    rl_status status = RL_INVALID;
    if (argc == 3 && (strcmp(argv[1], "once") == 0 || strcmp(argv[1], "spread") == 0)) {
        status = look_at_run(argv[1], argv[2], &figure);
    } else if (argc == 4 && strcmp(argv[1], "samples") == 0) {
        status = compare_runs(argv[2], argv[3], &figure);
    } else if (argc == 4 && strcmp(argv[1], "state") == 0) {
        status = compare_state(argv[2], argv[3]);
    }
    printf("%llu\n", (unsigned long long)figure);
    return status == RL_OK ? 0 : 1;
}

/* --- proof of the comparisons
 * --------------------------------------------------------------------------- */

static struct trajectory_group *make_group(uint64_t ticket, uint64_t prompt, float logprob)
{
    static const int32_t tokens[] = {1, 2, 3, 4};
    const float logprobs[] = {-0.5f, logprob};
    const uint32_t versions[] = {0, 1};
    struct trajectory_group *group = NULL;
    ck_assert_int_eq(trajectory_group_create(2, &group), RL_OK);
    group->ticket = ticket;
    group->prompt_id = prompt;
    for (uint32_t i = 0; i < 2; i++) {
        group->samples[i].sample_index = i;
        group->samples[i].finish = RL_FINISH_STOP;
        ck_assert_int_eq(
            trajectory_set_tokens(&group->samples[i], tokens, logprobs, versions, 2, 2), RL_OK);
    }
    return group;
}

/* A run folder of two segments: prompts 7 and `prompt`, the latter with this ticket and log-prob.
 */
static void make_run(char *dir, uint64_t ticket, uint64_t prompt, float logprob)
{
    struct segment_info info = {.first_step = 1, .last_step = 1, .run = "test"};
    char path[CHECKPOINT_PATH_MAX];
    struct trajectory_group *groups[2] = {make_group(0, 7, -1),
                                          make_group(ticket, prompt, logprob)};
    ck_assert_ptr_nonnull(mkdtemp(dir));
    for (uint64_t i = 0; i < 2; i++) {
        const struct trajectory_group *one = groups[i];
        uint64_t next = 0;
        ck_assert_int_eq(segment_file_next(dir, &next), RL_OK);
        ck_assert_uint_eq(next, i + 1);
        ck_assert_int_eq(segment_file_path(dir, next, path, sizeof(path)), RL_OK);
        ck_assert_int_eq(segment_file_write(path, &info, &one, 1), RL_OK);
        trajectory_group_destroy(groups[i]);
    }
}

static void remove_run(const char *dir)
{
    char path[CHECKPOINT_PATH_MAX];
    for (uint64_t i = 1; i <= 2; i++) {
        ck_assert_int_eq(segment_file_path(dir, i, path, sizeof(path)), RL_OK);
        ck_assert_int_eq(unlink(path), 0);
    }
    snprintf(path, sizeof(path), "%s/rollouts", dir);
    ck_assert_int_eq(rmdir(path), 0);
    ck_assert_int_eq(rmdir(dir), 0);
}

START_TEST(equal_samples_are_equal)
{
    char a[] = "/tmp/check_run_XXXXXX";
    char b[] = "/tmp/check_run_XXXXXX";
    uint64_t figure = 0;
    make_run(a, 1, 3, -2);
    make_run(b, 5, 3, -2);
    ck_assert_int_eq(compare_runs(a, b, &figure), RL_OK);
    ck_assert_uint_eq(figure, 4);
    ck_assert_int_eq(look_at_run("once", a, &figure), RL_OK);
    ck_assert_uint_eq(figure, 2);
    remove_run(a);
    remove_run(b);
}
END_TEST

START_TEST(one_bit_is_seen)
{
    char a[] = "/tmp/check_run_XXXXXX";
    char b[] = "/tmp/check_run_XXXXXX";
    uint64_t figure = 0;
    make_run(a, 1, 3, -2);
    make_run(b, 1, 3, -2.0000002f);
    ck_assert_int_eq(compare_runs(a, b, &figure), RL_INVALID);
    remove_run(a);
    remove_run(b);
}
END_TEST

START_TEST(twice_is_seen)
{
    char same_ticket[] = "/tmp/check_run_XXXXXX";
    char same_prompt[] = "/tmp/check_run_XXXXXX";
    uint64_t figure = 0;
    make_run(same_ticket, 0, 3, -2);
    make_run(same_prompt, 1, 7, -2);
    ck_assert_int_eq(look_at_run("once", same_ticket, &figure), RL_INVALID);
    ck_assert_int_eq(look_at_run("once", same_prompt, &figure), RL_INVALID);
    remove_run(same_ticket);
    remove_run(same_prompt);
}
END_TEST

START_TEST(one_changed_moment_is_seen)
{
    float values[3] = {1, 2, 3};
    float others[3] = {1, 2, 3};
    struct saved a = {.slabs = {values, values, values}};
    struct saved b = {.slabs = {values, values, others}};
    ck_assert_int_eq(check_saved(&a, &b, 3), RL_OK);
    others[2] = 3.0000002f;
    ck_assert_int_eq(check_saved(&a, &b, 3), RL_INVALID);
    others[2] = 3;
    b.state.updates = 1;
    ck_assert_int_eq(check_saved(&a, &b, 3), RL_INVALID);
}
END_TEST

int main(int argc, char **argv)
{
    if (argc > 1) {
        return tool(argc, argv);
    }
    Suite *suite = suite_create("run_files");
    TCase *tests = tcase_create("comparisons");
    tcase_add_test(tests, equal_samples_are_equal);
    tcase_add_test(tests, one_bit_is_seen);
    tcase_add_test(tests, twice_is_seen);
    tcase_add_test(tests, one_changed_moment_is_seen);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failures = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
