/* Moments shared out among learners (optimizer.zero_stage): the very bits of learners that keep
 * them all, in weights, moments, image and figures; in checkpoints too, from which any number of
 * learners goes on, sharing or not. */
#include "tests/collective_threads.h"
#include "tests/model_fixture.h"
#include "tests/walled_device.h"
#include "trainer/checkpoint_writer.h"
#include "trainer/learner.h"

#include "core/folder_make.h"
#include "core/hash.h"
#include "core/log.h"

#include <ftw.h>
#include <stdio.h>
#include <unistd.h>

enum { GROUPS = 5, SAMPLES = 4, PROMPT = 3, TOKENS = 6, STEPS = 4, POISONED = 2 };

static struct model_fixture model;
static char folder[256];

static void folder_create(void)
{
    struct model_architecture arch = fixture_architecture(0);
    struct fixture_options options = {.isa = kernel_isa_best(), .dtype = KERNEL_BF16, .threads = 1};
    arch.width = 64;
    arch.ffn = 96;
    arch.vocab = 6200; /* 7 blocks: shares of 4 and 3, of 3, 3 and 1, and of 2, 2, 2 and 1 */
    fixture_create(&model, &arch, &options);
    fixture_randomise(&model, 11);
    snprintf(folder, sizeof(folder), "%s/foresight_zero_XXXXXX", P_tmpdir);
    ck_assert_ptr_nonnull(mkdtemp(folder));
}

static int remove_entry(const char *path, const struct stat *info, int kind, struct FTW *place)
{
    (void)info;
    (void)kind;
    (void)place;
    return remove(path);
}

static void folder_remove(void)
{
    nftw(folder, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    fixture_destroy(&model);
}

/* --- a run of several learners
 * -------------------------------------------------------------------------------- */

struct plan {
    int ranks;
    bool zero;
    bool walled;          /* on a device whose memory the host may not touch */
    const char *resume;   /* a checkpoint, or NULL */
    const char *save;     /* run folder of the one made at the end, or NULL */
    size_t reserve_bytes; /* of its writer */
};

/* What a run leaves: slabs of rank 0, and what every rank reports. */
struct result {
    float *slabs[4]; /* [master_count] masters, moments, the teacher's average */
    struct learner_report reports[TEAM_MAX][STEPS];
    uint64_t masters[TEAM_MAX], images[TEAM_MAX];
    int64_t kept[TEAM_MAX]; /* moments of each slab */
};

struct rank {
    struct plan plan;
    struct team *team;
    struct result *result;
    int rank;
    struct model_layout *layout;
    struct rl_pool *pool; /* NULL on the CPU */
    struct rl_config config;
    struct collective *collective;
    struct weight_arena *arena;
    struct weight_history *history;
    struct learner *learner;
    uint64_t first_step;
    uint32_t first_version;
};

/* The teacher sees the sample's own prompt twice. */
static rl_status twice(void *arg, const struct trajectory_group *group, uint32_t sample,
                       struct token_buffer *ids, bool *told)
{
    (void)arg;
    if (ids->capacity < 2 * PROMPT) {
        int32_t *grown = realloc(ids->ids, 2 * PROMPT * sizeof(*grown));
        MUST(grown != NULL);
        ids->ids = grown;
        ids->capacity = 2 * PROMPT;
    }
    for (size_t i = 0; i < 2 * PROMPT; i++) {
        ids->ids[i] = group->samples[sample].tokens[i % PROMPT];
    }
    ids->count = 2 * PROMPT;
    *told = true;
    return RL_OK;
}

static void set_config(struct rank *r)
{
    static const char *const options[] = {"optimizer.learning_rate=1e-2",
                                          "optimizer.max_grad_norm=0.05",
                                          "optimizer.weight_decay=0.1",
                                          "optimizer.updates_per_step=2",
                                          "loss.beta=0.01",
                                          "teacher.loss=rlsd",
                                          "teacher.policy=ema",
                                          "run.steps=20"};
    MUST(rl_config_init(&r->config) == RL_OK);
    for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++) {
        MUST(rl_config_override(&r->config, options[i]) == RL_OK);
    }
    MUST(rl_config_override(&r->config, r->plan.zero ? "optimizer.zero_stage=1"
                                                     : "optimizer.zero_stage=0") == RL_OK);
}

static void device_open(struct rank *r)
{
    const struct model_layout *layout = model.layout;
    r->layout = model.layout;
    if (r->plan.walled) {
        MUST(rl_pool_create(1, &r->pool) == RL_OK);
        MUST(device_stream_start(walled_device(), r->pool) == RL_OK);
        MUST(model_layout_create_on(walled_device(), r->pool, &layout->arch, layout->dtype,
                                    layout->rope_positions, &r->layout) == RL_OK);
    }
}

static void device_end(struct rank *r)
{
    if (r->plan.walled) {
        model_layout_destroy(r->layout);
        device_stream_stop(r->pool);
        rl_pool_destroy(r->pool);
    }
}

static void rank_open(struct rank *r)
{
    static const struct learner_teacher teacher = {.prompt = twice};
    size_t bytes = (size_t)model.layout->master_count * sizeof(float);
    void *master = NULL;
    set_config(r);
    device_open(r);
    r->collective = team_join(r->team, r->rank);
    MUST(device_alloc(bytes, "weights", &master) == RL_OK);
    memcpy(master, model.master, bytes);
    if (r->rank == 0) {
        struct weight_arena_options arena = {
            .slots = 2, .slot_bytes = model.layout->image_bytes, .readers = 1};
        size_t mask = model.layout->image_bytes / model_image_element_bytes(model.layout) / 8;
        MUST(weight_arena_create(&arena, &r->arena) == RL_OK);
        MUST(weight_history_create(mask, 1, &r->history) == RL_OK);
    }
    struct learner_args args = {.config = &r->config,
                                .layout = r->layout,
                                .kernels = r->plan.walled ? walled_kernels() : model.kernels,
                                .pool = r->pool,
                                .collective = r->collective,
                                .arena = r->arena,
                                .history = r->history,
                                .master = master,
                                .reference_image = model.image,
                                .teacher = &teacher};
    MUST(learner_create(&args, &r->learner) == RL_OK);
}

static void rank_close(struct rank *r)
{
    learner_destroy(r->learner);
    weight_arena_close(r->arena);
    weight_history_destroy(r->history);
    collective_destroy(r->collective);
    device_end(r);
    rl_config_fini(&r->config);
}

static void resume(struct rank *r)
{
    struct checkpoint_state state = {0};
    struct optimizer_state *optimizer = learner_optimizer(r->learner);
    struct checkpoint_moments moments = checkpoint_moments_of(optimizer);
    if (r->plan.resume == NULL) {
        return;
    }
    MUST(checkpoint_load(r->plan.resume, model.layout, learner_master(r->learner), &moments,
                         &state) == RL_OK);
    MUST(checkpoint_load_teacher(r->plan.resume, model.layout,
                                 learner_teacher_average(r->learner)) == RL_OK);
    optimizer->step = (int64_t)state.updates;
    r->first_step = state.step;
    r->first_version = (uint32_t)state.version;
    checkpoint_state_fini(&state);
}

static struct trajectory_group *group_make(uint64_t step, uint32_t g, uint32_t version, bool poison)
{
    struct trajectory_group *group = NULL;
    MUST(trajectory_group_create(SAMPLES, &group) == RL_OK);
    for (uint32_t s = 0; s < SAMPLES; s++) {
        struct trajectory *sample = &group->samples[s];
        int32_t tokens[PROMPT + TOKENS];
        float logprob[TOKENS];
        uint32_t versions[TOKENS];
        for (uint32_t i = 0; i < PROMPT + TOKENS; i++) {
            uint32_t own = i < PROMPT ? 0 : 5 * s; /* the prompt is the group's */
            tokens[i] = (int32_t)((701 * g + 31 * step + own + 37 * i) % 6000);
        }
        for (uint32_t i = 0; i < TOKENS; i++) {
            logprob[i] = poison && s == 2 ? NAN : -8.5F;
            versions[i] = version;
        }
        MUST(trajectory_set_tokens(sample, tokens, logprob, versions, PROMPT, TOKENS) == RL_OK);
        sample->sample_index = s;
        sample->finish = RL_FINISH_STOP;
        sample->reward_valid = true;
        sample->reward = sample->accuracy = (float)((s + g) % 2);
    }
    return group;
}

static void train(struct rank *r)
{
    MUST(learner_publish_first(r->learner, r->first_version) == RL_OK);
    for (uint64_t i = 0; i < STEPS; i++) {
        struct trajectory_group *groups[GROUPS];
        struct learner_report *report = &r->result->reports[r->rank][i];
        uint64_t step = r->first_step + i + 1;
        for (uint32_t g = 0; g < GROUPS; g++) {
            groups[g] = group_make(step, g, learner_version(r->learner), i == POISONED && g == 3);
        }
        MUST(learner_step(r->learner, groups, GROUPS, step, report) == RL_OK);
        MUST(learner_publish(r->learner, report) == RL_OK);
        for (uint32_t g = 0; g < GROUPS; g++) {
            trajectory_group_destroy(groups[g]);
        }
    }
}

/* The moments of all ranks to rank 0, in windows that fit no share. */
static void collect(struct rank *r)
{
    struct optimizer *shared = learner_shared_optimizer(r->learner);
    const struct optimizer_state *state = learner_optimizer(r->learner);
    int64_t count = model.layout->master_count;
    MUST((shared != NULL) == r->plan.zero);
    if (r->rank > 0) {
        MUST(shared == NULL || optimizer_serve(shared) == RL_OK);
        return;
    }
    for (int slab = 0; slab < 2; slab++) {
        float *out = r->result->slabs[1 + slab];
        if (shared == NULL) {
            memcpy(out, slab == 0 ? state->m : state->v, (size_t)count * sizeof(float));
            continue;
        }
        for (int64_t first = 0; first < count; first += 100003) {
            int64_t left = count - first;
            struct optimizer_window window = {slab, first, left < 100003 ? left : 100003,
                                              out + first};
            MUST(optimizer_fetch(shared, &window) == RL_OK);
        }
        struct optimizer_window beyond = {slab, count - 1, 2, out};
        MUST(optimizer_fetch(shared, &beyond) == RL_INVALID); /* before anybody is asked */
    }
    MUST(shared == NULL || optimizer_fetch_end(shared) == RL_OK);
}

static void save(struct rank *r)
{
    struct optimizer *shared = learner_shared_optimizer(r->learner);
    const struct optimizer_state *optimizer = learner_optimizer(r->learner);
    struct checkpoint_target target = {
        .run_dir = r->plan.save, .layout = model.layout, .keep_last = 1};
    struct checkpoint_state state = {.step = r->first_step + STEPS,
                                     .version = learner_version(r->learner),
                                     .updates = (uint64_t)optimizer->step};
    struct checkpoint_slabs slabs = {.master = learner_master(r->learner),
                                     .adam_m = shared == NULL ? optimizer->m : NULL,
                                     .adam_v = shared == NULL ? optimizer->v : NULL,
                                     .teacher = learner_teacher_average(r->learner),
                                     .shared = shared};
    struct checkpoint_writer *writer = NULL;
    if (r->plan.save == NULL) {
        return;
    }
    if (r->rank > 0) {
        MUST(shared == NULL || optimizer_serve(shared) == RL_OK);
        return;
    }
    MUST(rl_folder_make(r->plan.save) == RL_OK);
    MUST(checkpoint_writer_start(&target, r->plan.reserve_bytes, &writer) == RL_OK);
    MUST(checkpoint_writer_submit(writer, &state, &slabs) == RL_OK);
    MUST(shared == NULL || optimizer_fetch_end(shared) == RL_OK);
    MUST(checkpoint_writer_wait(writer, 60) == RL_OK);
    checkpoint_writer_stop(writer);
}

static void *rank_main(void *arg)
{
    struct rank *r = arg;
    struct result *result = r->result;
    size_t bytes = (size_t)model.layout->master_count * sizeof(float);
    rank_open(r);
    resume(r);
    train(r);
    MUST(learner_pull(r->learner) == RL_OK);
    collect(r);
    save(r);
    result->masters[r->rank] = rl_hash(learner_master(r->learner), bytes);
    result->images[r->rank] = learner_image_hash(r->learner);
    result->kept[r->rank] = learner_optimizer(r->learner)->count;
    if (r->rank == 0) {
        memcpy(result->slabs[0], learner_master(r->learner), bytes);
        memcpy(result->slabs[3], learner_teacher_average(r->learner), bytes);
    }
    rank_close(r);
    return NULL;
}

static void run(struct plan plan, struct result *result)
{
    struct team team = {.size = plan.ranks};
    struct rank ranks[TEAM_MAX] = {0};
    memset(result, 0, sizeof(*result));
    for (int i = 0; i < 4; i++) {
        result->slabs[i] = fixture_floats(model.layout->master_count);
    }
    ck_assert_int_eq(pthread_barrier_init(&team.barrier, NULL, (unsigned)plan.ranks), 0);
    for (int i = 0; i < plan.ranks; i++) {
        ranks[i] = (struct rank){.plan = plan, .team = &team, .result = result, .rank = i};
    }
    team_run(plan.ranks, rank_main, ranks, sizeof(ranks[0]));
    pthread_barrier_destroy(&team.barrier);
}

static void result_free(struct result *result)
{
    for (int i = 0; i < 4; i++) {
        device_free(result->slabs[i]);
    }
}

/* --- comparing
 * ------------------------------------------------------------------------------------------------
 */

static void check_report(const struct learner_report *a, const struct learner_report *b)
{
    ck_assert(a->loss == b->loss);
    ck_assert(a->grad_norm == b->grad_norm);
    ck_assert(a->learning_rate == b->learning_rate);
    ck_assert(a->changed_fraction == b->changed_fraction);
    ck_assert_int_eq(a->updates, b->updates);
    ck_assert_int_eq(a->skipped, b->skipped);
    ck_assert_uint_eq(a->faults, b->faults);
    ck_assert_uint_eq(a->version, b->version);
    ck_assert_uint_eq(a->hash, b->hash);
    ck_assert_int_eq(a->action, b->action);
}

static void check_slabs(const struct result *a, const struct result *b)
{
    for (int i = 0; i < 4; i++) {
        ck_assert_mem_eq(a->slabs[i], b->slabs[i],
                         (size_t)model.layout->master_count * sizeof(float));
    }
}

static void check_same(const struct result *a, const struct result *b, int ranks)
{
    check_slabs(a, b);
    for (int rank = 0; rank < ranks; rank++) {
        ck_assert_uint_eq(a->masters[rank], a->masters[0]);
        ck_assert_uint_eq(b->masters[rank], a->masters[0]);
        ck_assert_uint_eq(a->images[rank], a->images[0]);
        if (rank == 0 || b->images[rank] != 0) { /* who publishes has a device's on the host */
            ck_assert_uint_eq(b->images[rank], a->images[0]);
        }
        for (int step = 0; step < STEPS; step++) {
            check_report(&a->reports[rank][step], &b->reports[rank][step]);
        }
    }
}

/* It was what it is meant to be: clipped, and one step without an update. */
static void check_run(const struct result *result)
{
    for (int step = 0; step < STEPS; step++) {
        const struct learner_report *report = &result->reports[0][step];
        ck_assert_int_eq(report->skipped, step == POISONED ? 1 : 0);
        ck_assert_int_eq(report->updates, step == POISONED ? 1 : 2);
        ck_assert_double_gt(report->grad_norm, 0.05);
    }
}

static void load(const char *path, struct result *out)
{
    struct checkpoint_state state = {0};
    memset(out, 0, sizeof(*out));
    for (int i = 0; i < 4; i++) {
        out->slabs[i] = fixture_floats(model.layout->master_count);
    }
    struct checkpoint_moments moments = {
        .m = out->slabs[1], .v = out->slabs[2], .count = model.layout->master_count};
    ck_assert_int_eq(checkpoint_load(path, model.layout, out->slabs[0], &moments, &state), RL_OK);
    ck_assert_int_eq(checkpoint_load_teacher(path, model.layout, out->slabs[3]), RL_OK);
    checkpoint_state_fini(&state);
}

/* Two, three and four learners; checkpoints written from a copy and in place. */
START_TEST(the_bits_of_whole_moments)
{
    int ranks = 2 + _i;
    struct result whole;
    struct result shared;
    struct result saved;
    char save[300];
    char path[400];
    int64_t kept = 0;
    snprintf(save, sizeof(save), "%s/run", folder);
    snprintf(path, sizeof(path), "%s/checkpoints/step_%06d", save, STEPS);
    run((struct plan){.ranks = ranks}, &whole);
    run((struct plan){.ranks = ranks,
                      .zero = true,
                      .save = save,
                      .reserve_bytes = _i == 1 ? SIZE_MAX / 2 : 0},
        &shared);
    check_run(&whole);
    check_same(&whole, &shared, ranks);
    load(path, &saved);
    check_slabs(&whole, &saved);
    for (int rank = 0; rank < ranks; rank++) {
        ck_assert_int_eq(whole.kept[rank], model.layout->master_count);
        ck_assert_int_lt(shared.kept[rank], model.layout->master_count);
        kept += shared.kept[rank];
    }
    ck_assert_int_eq(kept, model.layout->master_count);
    result_free(&saved);
    result_free(&shared);
    result_free(&whole);
}
END_TEST

/* Learners on devices: of each sort the bits of the CPU's. */
START_TEST(the_same_on_devices)
{
    struct result whole;
    struct result there[2];
    run((struct plan){.ranks = 3}, &whole);
    for (int i = 0; i < 2; i++) {
        run((struct plan){.ranks = 3, .zero = i == 1, .walled = true}, &there[i]);
        check_same(&whole, &there[i], 3);
        result_free(&there[i]);
    }
    result_free(&whole);
    ck_assert_int_eq(walled_held(), 0);
}
END_TEST

/* From checkpoints of two learners, sharing and not, three go on, not sharing and sharing. */
START_TEST(resumed_by_others)
{
    static const bool zero[2] = {false, true};
    struct result first;
    struct result next[2];
    char save[2][300];
    char path[2][400];
    for (int i = 0; i < 2; i++) {
        snprintf(save[i], sizeof(save[i]), "%s/run_%d", folder, i);
        snprintf(path[i], sizeof(path[i]), "%s/checkpoints/step_%06d", save[i], STEPS);
        run((struct plan){.ranks = 2, .zero = zero[i], .save = save[i]}, &first);
        result_free(&first);
    }
    for (int i = 0; i < 2; i++) {
        run((struct plan){.ranks = 3, .zero = zero[1 - i], .resume = path[i]}, &next[i]);
    }
    check_run(&next[0]);
    check_same(&next[0], &next[1], 3);
    result_free(&next[0]);
    result_free(&next[1]);
}
END_TEST

/* --- one rank's weights overflow
 * ------------------------------------------------------------------------------ */

struct overflow {
    struct team *team;
    int rank;
    bool finite;
};

static void *overflow_main(void *arg)
{
    struct overflow *o = arg;
    int64_t count = model.layout->master_count;
    struct collective *collective = team_join(o->team, o->rank);
    struct optimizer_options options = {.schedule = {.peak = 1e-3, .total_updates = 10},
                                        .beta1 = 0.9,
                                        .beta2 = 0.99,
                                        .epsilon = 1e-8,
                                        .share_among = collective};
    struct optimizer *optimizer = NULL;
    struct optimizer_report report;
    float *slabs[2] = {fixture_floats(count), fixture_floats(count)};
    struct optimizer_weights weights = {
        .master = slabs[0], .grad = slabs[1], .image = fixture_floats(count)};
    memcpy(slabs[0], model.master, (size_t)count * sizeof(float));
    slabs[0][count - 16] = INFINITY; /* of the last rank */
    slabs[1][0] = 1;
    MUST(optimizer_create(&options, model.layout, model.kernels, &optimizer) == RL_OK);
    slabs[1][count - 16] = NAN; /* seen by all, too */
    MUST(optimizer_measure(optimizer, weights.grad, 1, NULL, &report) == RL_OK);
    MUST(report.outcome == OPTIMIZER_SKIPPED_NONFINITE);
    slabs[1][count - 16] = 0;
    MUST(optimizer_measure(optimizer, weights.grad, 1, NULL, &report) == RL_OK);
    MUST(report.outcome == OPTIMIZER_UPDATED && report.grad_norm == 1);
    MUST(optimizer_apply(optimizer, &weights, &report, NULL, &o->finite) == RL_OK);
    optimizer_destroy(optimizer);
    device_free(weights.image);
    device_free(slabs[1]);
    device_free(slabs[0]);
    collective_destroy(collective);
    return NULL;
}

START_TEST(every_rank_learns_of_an_overflow)
{
    struct team team = {.size = 3};
    struct overflow ranks[3];
    ck_assert_int_eq(pthread_barrier_init(&team.barrier, NULL, 3), 0);
    for (int i = 0; i < 3; i++) {
        ranks[i] = (struct overflow){&team, i, true};
    }
    team_run(3, overflow_main, ranks, sizeof(ranks[0]));
    pthread_barrier_destroy(&team.barrier);
    for (int i = 0; i < 3; i++) {
        ck_assert(!ranks[i].finite);
    }
}
END_TEST

/* --- shares alone
 * -------------------------------------------------------------------------------------------- */

START_TEST(shares_cover_everything_once)
{
    static const int64_t counts[] = {16,     65536,      65552,      7 * 65536 - 16,
                                     655360, 494032768l, 1543714304l};
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
        for (int ranks = 1; ranks <= 9; ranks++) {
            int64_t bounds[10];
            optimizer_share_bounds(counts[i], ranks, bounds);
            ck_assert_int_eq(bounds[0], 0);
            ck_assert_int_eq(bounds[ranks], counts[i]);
            for (int rank = 0; rank < ranks; rank++) {
                int64_t length = bounds[rank + 1] - bounds[rank];
                ck_assert_int_ge(length, 0);
                ck_assert_int_le(length, optimizer_share_largest(counts[i], ranks));
                ck_assert(bounds[rank] % OPTIMIZER_NORM_BLOCK == 0 || length == 0);
            }
            ck_assert_int_eq(bounds[1], optimizer_share_largest(counts[i], ranks));
        }
    }
}
END_TEST

int main(void)
{
    rl_log_set_level((enum rl_log_level) - 1);
    Suite *suite = suite_create("zero");
    TCase *tests = tcase_create("learners");
    tcase_set_timeout(tests, 200);
    tcase_add_checked_fixture(tests, folder_create, folder_remove);
    tcase_add_loop_test(tests, the_bits_of_whole_moments, 0, 3);
    tcase_add_test(tests, the_same_on_devices);
    tcase_add_test(tests, resumed_by_others);
    tcase_add_test(tests, every_rank_learns_of_an_overflow);
    tcase_add_test(tests, shares_cover_everything_once);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
