/* The scheduler under random programs. The test keeps what a KV cache would hold: for every place
 * of every page, which group, sample, position and weight version was written there last. Each
 * segment must then find all its earlier positions as they should be: by which version each was
 * computed follows from the versions that sampled the completion so far. */
#include "core/rng.h"
#include "kernels/kernels.h"
#include "rollout/scheduler.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

enum {
    PROGRAMS = 300,
    GROUPS = 24,
    GROUPS_INSIDE_MAX = 12,
    RUNNING_MAX = 9,
    LENGTH_MAX = 90,
    SAMPLES_MAX = 6,
    SWITCHES_MAX = 3,
    VERSIONS = 12,
    NOBODY = -1
};

struct place {
    int32_t uid, sample, position; /* sample NOBODY: part of the prompt */
    int32_t version;
};

struct live_group {
    int32_t uid, prompt_count, max_new, samples, finished;
    bool scheduled;
    bool skip[SAMPLES_MAX];
    struct rollout_schedule schedule[SAMPLES_MAX];
    struct rollout_switch switches[SAMPLES_MAX][SWITCHES_MAX];
};

struct world {
    struct rollout_scheduler_limits limits;
    struct rollout_scheduler *scheduler;
    struct rl_rng rng;
    struct place *places;                            /* [pages * 16] */
    struct live_group groups[GROUPS_INSIDE_MAX + 1]; /* by the scheduler's index, one refused */
    int32_t sampled[RUNNING_MAX][LENGTH_MAX];        /* by slot: version of each completion token */
    int32_t length[RUNNING_MAX];                     /* by slot: tokens of the completion */
    int32_t added, finished, version;
    uint32_t usable; /* bit v: passes may use version v */
    bool guesses;    /* passes are extended by guessed tokens */
    int broken_line; /* of the first expectation that failed; 0: none */
};

static int32_t draw(struct world *w, int32_t low, int32_t high)
{
    return low + (int32_t)rl_rng_next_below(&w->rng, (uint64_t)(high - low + 1));
}

/* Check's own assertions write to a pipe each time: far too slow for every place of every pass. */
static void expect(struct world *w, bool holds, int line)
{
    if (!holds && w->broken_line == 0) {
        w->broken_line = line;
    }
}

static bool is_usable(void *arg, uint32_t version)
{
    const struct world *w = arg;
    return (w->usable >> version & 1) != 0;
}

static struct place *place_of(struct world *w, const int32_t *pages, int32_t position)
{
    int32_t page = pages[position / KERNEL_PAGE_TOKENS];
    expect(w, page >= 0, __LINE__);
    expect(w, page < rollout_scheduler_page_count(w->scheduler), __LINE__);
    return &w->places[page * KERNEL_PAGE_TOKENS + position % KERNEL_PAGE_TOKENS];
}

static void world_create(struct world *w, uint64_t seed)
{
    *w = (struct world){.rng = rl_rng_make(seed, 5)};
    w->limits = (struct rollout_scheduler_limits){.max_running = draw(w, 1, RUNNING_MAX),
                                                  .max_groups = draw(w, 1, GROUPS_INSIDE_MAX),
                                                  .max_length = draw(w, 2, LENGTH_MAX),
                                                  .prefill_chunk = draw(w, 1, 40),
                                                  .recompute = draw(w, 0, 1) == 1};
    w->guesses = draw(w, 0, 1) == 1;
    if (draw(w, 0, 2) > 0) { /* fewer pages than would be of use */
        int32_t least = (int32_t)rollout_scheduler_pages_least(&w->limits);
        w->limits.pages = least + draw(w, 0, least);
    }
    ck_assert_int_eq(rollout_scheduler_create(&w->limits, &w->scheduler), RL_OK);
    rollout_scheduler_set_usable(w->scheduler, is_usable, w);
    size_t places = (size_t)rollout_scheduler_page_count(w->scheduler) * KERNEL_PAGE_TOKENS;
    w->places = malloc(places * sizeof(*w->places));
    ck_assert_ptr_nonnull(w->places);
    for (size_t i = 0; i < places; i++) {
        w->places[i] = (struct place){NOBODY, NOBODY, NOBODY, NOBODY};
    }
}

static void world_destroy(struct world *w)
{
    rollout_scheduler_destroy(w->scheduler);
    free(w->places);
}

/* Switches at ascending positions to versions in any order. */
static void draw_schedules(struct world *w, struct live_group *group)
{
    group->scheduled = draw(w, 0, 1) == 1;
    for (int32_t s = 0; s < group->samples; s++) {
        uint32_t position = 0;
        group->skip[s] = s > 0 && draw(w, 0, 4) == 0;
        group->schedule[s].count = (uint32_t)draw(w, 1, SWITCHES_MAX);
        for (uint32_t i = 0; i < group->schedule[s].count; i++) {
            group->switches[s][i] =
                (struct rollout_switch){position, (uint32_t)draw(w, 0, VERSIONS / 4)};
            position += (uint32_t)draw(w, 1, 7);
        }
    }
}

static void add_group(struct world *w)
{
    int32_t max_new = draw(w, 1, w->limits.max_length - 1);
    struct live_group group = {.uid = w->added,
                               .prompt_count = draw(w, 1, w->limits.max_length - max_new),
                               .max_new = max_new,
                               .samples = draw(w, 1, SAMPLES_MAX)};
    int32_t index = 0;
    int32_t inside = rollout_scheduler_groups(w->scheduler);
    draw_schedules(w, &group);
    while (index < w->limits.max_groups - 1 && w->groups[index].samples > 0) {
        index++; /* arrays must lie where they stay: guess the index */
    }
    if (inside == w->limits.max_groups) {
        index = GROUPS_INSIDE_MAX;
    }
    w->groups[index] = group;
    struct live_group *place = &w->groups[index];
    for (int32_t s = 0; s < group.samples; s++) {
        place->schedule[s].switches = place->switches[s];
        place->finished += place->skip[s];
    }
    struct rollout_scheduler_group args = {.prompt_count = group.prompt_count,
                                           .max_new = group.max_new,
                                           .samples = group.samples,
                                           .schedule = group.scheduled ? place->schedule : NULL,
                                           .skip = place->skip};
    int32_t given = NOBODY;
    rl_status status = rollout_scheduler_add(w->scheduler, &args, &given);
    expect(w, status == (inside == w->limits.max_groups ? RL_AGAIN : RL_OK), __LINE__);
    if (status == RL_OK) {
        expect(w, given == index, __LINE__);
        w->added++;
    }
}

static void run_copies(struct world *w, const struct rollout_plan *plan)
{
    for (int32_t i = 0; i < plan->copy_count; i++) {
        memcpy(w->places + plan->copies[i].to * KERNEL_PAGE_TOKENS,
               w->places + plan->copies[i].from * KERNEL_PAGE_TOKENS,
               KERNEL_PAGE_TOKENS * sizeof(*w->places));
    }
}

/* Write the segment's own positions. */
static void write_segment(struct world *w, const struct rollout_segment *segment, uint32_t version)
{
    int32_t index =
        segment->prefix ? segment->index : rollout_scheduler_group_of(w->scheduler, segment->index);
    int32_t sample =
        segment->prefix ? NOBODY : rollout_scheduler_sample_of(w->scheduler, segment->index);
    const struct live_group *group = &w->groups[index];
    const int32_t *pages = rollout_scheduler_pages(w->scheduler, segment);
    for (int32_t p = segment->first; p < segment->first + segment->count; p++) {
        *place_of(w, pages, p) = (struct place){.uid = group->uid,
                                                .sample = p < group->prompt_count ? NOBODY : sample,
                                                .position = p,
                                                .version = (int32_t)version};
    }
}

/* The version that must have computed what lies at `position` when token `count` of the completion
 * is due by `version`. */
static int32_t version_due(const struct world *w, const struct rollout_segment *segment,
                           int32_t position, int32_t version)
{
    if (segment->prefix || w->limits.recompute) {
        return version;
    }
    int32_t group = rollout_scheduler_group_of(w->scheduler, segment->index);
    int32_t token = position - w->groups[group].prompt_count + 1; /* sampled after this position */
    token = token > 0 ? token : 0;
    return token < w->length[segment->index] ? w->sampled[segment->index][token] : version;
}

/* Everything that the segment attends to is what it should be. */
static void read_segment(struct world *w, const struct rollout_segment *segment, int32_t version)
{
    int32_t index =
        segment->prefix ? segment->index : rollout_scheduler_group_of(w->scheduler, segment->index);
    const struct live_group *group = &w->groups[index];
    const int32_t *pages = rollout_scheduler_pages(w->scheduler, segment);
    for (int32_t p = 0; p < segment->first + segment->count; p++) {
        const struct place *place = place_of(w, pages, p);
        expect(w, place->uid == group->uid, __LINE__);
        expect(w, place->position == p, __LINE__);
        if (p >= group->prompt_count) {
            expect(w, place->sample == rollout_scheduler_sample_of(w->scheduler, segment->index),
                   __LINE__);
        }
        expect(w, place->version == version_due(w, segment, p, version), __LINE__);
    }
}

/* The version that token `position` of a sample must be sampled by. */
static int32_t scheduled_version(const struct world *w, int32_t slot, int32_t position)
{
    const struct live_group *group = &w->groups[rollout_scheduler_group_of(w->scheduler, slot)];
    const struct rollout_schedule *schedule =
        &group->schedule[rollout_scheduler_sample_of(w->scheduler, slot)];
    int32_t version = w->version;
    for (uint32_t i = 0; group->scheduled && i < schedule->count; i++) {
        if (schedule->switches[i].position <= (uint32_t)position) {
            version = (int32_t)schedule->switches[i].version;
        }
    }
    return version;
}

/* What the last `wrong` tokens of the segment left in the cache is not to be read. */
static void forget_guesses(struct world *w, const struct rollout_segment *segment, int32_t wrong)
{
    const int32_t *pages = rollout_scheduler_pages(w->scheduler, segment);
    int32_t end = segment->first + segment->count;
    for (int32_t p = end - wrong; p < end; p++) {
        *place_of(w, pages, p) = (struct place){NOBODY, NOBODY, NOBODY, NOBODY};
    }
}

/* Add guesses to some of the plan's decode steps, as many as there may be at most. */
static void extend_plan(struct world *w, struct rollout_plan *plan)
{
    for (int32_t i = 0; i < plan->segment_count; i++) {
        const struct rollout_segment *segment = &plan->segments[i];
        if (!segment->sample || segment->count > 1 || draw(w, 0, 1) == 0) {
            continue;
        }
        int32_t room = rollout_scheduler_room(w->scheduler, segment->index);
        expect(w, room >= 1, __LINE__);
        rollout_scheduler_extend(w->scheduler, plan, i, draw(w, 0, room - 1));
    }
}

static void append_tokens(struct world *w, const struct rollout_plan *plan)
{
    for (int32_t i = 0; i < plan->segment_count; i++) {
        const struct rollout_segment *segment = &plan->segments[i];
        if (segment->prefix || !segment->sample) {
            continue;
        }
        struct live_group *group =
            &w->groups[rollout_scheduler_group_of(w->scheduler, segment->index)];
        int32_t length = segment->first + segment->count + 1 - group->prompt_count;
        int32_t wrong = draw(w, 0, segment->guessed);
        length -= wrong;
        bool finished = length == group->max_new || draw(w, 0, 9) == 0;
        bool group_done = false;
        expect(w, length == w->length[segment->index] + 1 + segment->guessed - wrong, __LINE__);
        expect(w, !group->skip[rollout_scheduler_sample_of(w->scheduler, segment->index)],
               __LINE__);
        for (int32_t k = w->length[segment->index]; k < length; k++) {
            expect(w, scheduled_version(w, segment->index, k) == (int32_t)plan->version, __LINE__);
            w->sampled[segment->index][k] = (int32_t)plan->version;
        }
        forget_guesses(w, segment, wrong);
        w->length[segment->index] = finished ? 0 : length;
        rollout_scheduler_append(w->scheduler, segment->index, 1 + segment->guessed - wrong,
                                 finished, &group_done);
        group->finished += finished;
        expect(w, group_done == (finished && group->finished == group->samples), __LINE__);
        w->finished += group_done;
        group->samples = group_done ? 0 : group->samples;
    }
}

static bool run_pass(struct world *w)
{
    struct rollout_plan plan;
    int32_t tokens = 0;
    int32_t prefill = 0;
    rollout_scheduler_plan(w->scheduler, &plan);
    expect(w, rollout_scheduler_check(w->scheduler) == RL_OK, __LINE__);
    expect(w, plan.segment_count <= w->limits.max_running + w->limits.max_groups, __LINE__);
    if (w->guesses) {
        extend_plan(w, &plan);
    }
    run_copies(w, &plan);
    for (int32_t i = 0; i < plan.segment_count; i++) {
        expect(w, plan.segments[i].count > 0, __LINE__);
        tokens += plan.segments[i].count;
        prefill += plan.segments[i].prefix || plan.segments[i].count > 1 + plan.segments[i].guessed
                       ? plan.segments[i].count
                       : 0;
        write_segment(w, &plan.segments[i], plan.version);
    }
    expect(w, tokens == 0 || is_usable(w, plan.version), __LINE__);
    expect(w, tokens == plan.token_count, __LINE__);
    expect(w, prefill <= w->limits.prefill_chunk, __LINE__);
    for (int32_t i = 0; i < plan.segment_count; i++) {
        read_segment(w, &plan.segments[i], (int32_t)plan.version);
    }
    rollout_scheduler_commit(w->scheduler, &plan);
    append_tokens(w, &plan);
    expect(w, rollout_scheduler_check(w->scheduler) == RL_OK, __LINE__);
    return plan.segment_count > 0;
}

static void run_program(uint64_t seed)
{
    struct world w;
    int32_t passes = 0;
    world_create(&w, seed);
    while (w.finished < GROUPS) {
        if (w.added < GROUPS && draw(&w, 0, 2) == 0) {
            add_group(&w);
        }
        if (w.version < VERSIONS && draw(&w, 0, 6) == 0) { /* without end, nothing would finish */
            rollout_scheduler_switch(w.scheduler, (uint32_t)++w.version);
        }
        w.usable = draw(&w, 0, 2) == 0 ? (uint32_t)draw(&w, 0, INT32_MAX - 1) : UINT32_MAX;
        bool busy = run_pass(&w);
        expect(&w, busy || rollout_scheduler_groups(w.scheduler) == 0 || w.usable != UINT32_MAX,
               __LINE__);
        expect(&w, ++passes < 100000, __LINE__);
        if (w.broken_line != 0) {
            ck_abort_msg("program %llu, pass %d: line %d", (unsigned long long)seed, passes,
                         w.broken_line);
        }
    }
    ck_assert_int_eq(rollout_scheduler_groups(w.scheduler), 0);
    ck_assert_int_eq(rollout_scheduler_running(w.scheduler), 0);
    ck_assert_int_eq(rollout_scheduler_free_pages(w.scheduler),
                     rollout_scheduler_page_count(w.scheduler));
    world_destroy(&w);
}

START_TEST(random_programs_finish_and_keep_the_cache_right)
{
    for (uint64_t seed = 1; seed <= PROGRAMS; seed++) {
        run_program(seed);
    }
}
END_TEST

START_TEST(limits_are_checked)
{
    struct rollout_scheduler_limits limits = {
        .max_running = 0, .max_groups = 1, .max_length = 8, .prefill_chunk = 4};
    struct rollout_scheduler *scheduler = NULL;
    struct rollout_scheduler_group group = {.prompt_count = 5, .max_new = 4, .samples = 1};
    int32_t index = 0;
    ck_assert_int_eq(rollout_scheduler_create(&limits, &scheduler), RL_INVALID);
    limits.max_running = INT32_MAX;
    ck_assert_int_eq(rollout_scheduler_create(&limits, &scheduler), RL_INVALID);
    limits.max_running = 2;
    limits.pages = (int32_t)rollout_scheduler_pages_least(&limits) - 1;
    ck_assert_int_eq(rollout_scheduler_create(&limits, &scheduler), RL_INVALID);
    limits.pages = (int32_t)rollout_scheduler_pages_wanted(&limits) + 1; /* more are of no use */
    ck_assert_int_eq(rollout_scheduler_create(&limits, &scheduler), RL_OK);
    ck_assert_int_eq(rollout_scheduler_page_count(scheduler), limits.pages - 1);
    ck_assert_int_eq(rollout_scheduler_add(scheduler, &group, &index), RL_TOO_LONG);
    group.prompt_count = 4;
    ck_assert_int_eq(rollout_scheduler_add(scheduler, &group, &index), RL_OK);
    ck_assert_int_eq(rollout_scheduler_add(scheduler, &group, &index), RL_AGAIN);
    rollout_scheduler_destroy(scheduler);
    rollout_scheduler_destroy(NULL);
}
END_TEST

START_TEST(a_prefix_is_computed_once)
{
    struct rollout_scheduler_limits limits = {
        .max_running = 8, .max_groups = 2, .max_length = 64, .prefill_chunk = 64};
    struct rollout_scheduler *scheduler = NULL;
    struct rollout_plan plan;
    struct rollout_scheduler_group group = {.prompt_count = 40, .max_new = 8, .samples = 8};
    int32_t index = 0;
    ck_assert_int_eq(rollout_scheduler_create(&limits, &scheduler), RL_OK);
    ck_assert_int_eq(rollout_scheduler_add(scheduler, &group, &index), RL_OK);
    rollout_scheduler_plan(scheduler, &plan);
    ck_assert_int_eq(plan.segment_count, 1);
    ck_assert(plan.segments[0].prefix);
    ck_assert_int_eq(plan.token_count, 39);
    rollout_scheduler_commit(scheduler, &plan);
    rollout_scheduler_plan(scheduler, &plan);
    ck_assert_int_eq(plan.segment_count, 8);
    ck_assert_int_eq(plan.token_count, 8);
    ck_assert_int_eq(plan.copy_count, 8); /* positions 32 .. 38 are a partial page */
    const int32_t *first = rollout_scheduler_pages(scheduler, &plan.segments[0]);
    const int32_t *last = rollout_scheduler_pages(scheduler, &plan.segments[7]);
    ck_assert_int_eq(first[0], last[0]);
    ck_assert_int_eq(first[1], last[1]);
    ck_assert_int_ne(first[2], last[2]);
    rollout_scheduler_destroy(scheduler);
}
END_TEST

static bool all_but_seven(void *arg, uint32_t version)
{
    (void)arg;
    return version != 7;
}

START_TEST(versions_take_turns_and_absent_ones_wait)
{
    static const uint32_t turns[] = {3, 5, 7, 3, 5, 7, 3};
    static const uint32_t without[] = {5, 3, 5, 3};
    struct rollout_scheduler_limits limits = {
        .max_running = 8, .max_groups = 4, .max_length = 64, .prefill_chunk = 64};
    struct rollout_scheduler *scheduler = NULL;
    struct rollout_switch switches[] = {{0, 7}, {0, 3}};
    struct rollout_schedule schedules[] = {{1, &switches[0]}, {1, &switches[1]}};
    struct rollout_plan plan;
    bool done = false;
    ck_assert_int_eq(rollout_scheduler_create(&limits, &scheduler), RL_OK);
    rollout_scheduler_switch(scheduler, 5);
    for (int i = 0; i < 3; i++) {
        struct rollout_scheduler_group group = {.prompt_count = 1,
                                                .max_new = 32,
                                                .samples = 1,
                                                .schedule = i < 2 ? &schedules[i] : NULL};
        int32_t index = 0;
        ck_assert_int_eq(rollout_scheduler_add(scheduler, &group, &index), RL_OK);
    }
    for (size_t i = 0; i < 7 + 4; i++) {
        if (i == 7) {
            rollout_scheduler_set_usable(scheduler, all_but_seven, NULL);
        }
        rollout_scheduler_plan(scheduler, &plan);
        ck_assert_uint_eq(plan.version, i < 7 ? turns[i] : without[i - 7]);
        ck_assert_int_eq(plan.segment_count, 1);
        rollout_scheduler_commit(scheduler, &plan);
        rollout_scheduler_append(scheduler, plan.segments[0].index, 1, false, &done);
    }
    rollout_scheduler_destroy(scheduler);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("rollout_scheduler");
    TCase *tests = tcase_create("scheduler");
    tcase_add_test(tests, random_programs_finish_and_keep_the_cache_right);
    tcase_add_test(tests, versions_take_turns_and_absent_ones_wait);
    tcase_add_test(tests, limits_are_checked);
    tcase_add_test(tests, a_prefix_is_computed_once);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failures = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
