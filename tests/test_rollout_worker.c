/* A rollout worker against a learner played by the test: pinned tickets wait for their version and
 * hold it, a snapshot comes while groups are being generated, finished samples are gone on from. */
#include "core/log.h"
#include "rollout/worker.h"
#include "tests/model_fixture.h"
#include "trainer/task_generator.h"
#include "transport/channel_local.h"

#include <pthread.h>
#include <unistd.h>
#include <xxhash.h>

enum { SAMPLES = 3, COMPLETION = 20, VOCAB = 27, SLOTS = 4, SCORED_MAX = 64, WORKER = 1 };

static const double patience_s = 60;

/* Groups go through unscored, or stay until they are let go. */
struct passing {
    atomic_bool holds;
    struct trajectory_group *groups[SCORED_MAX];
    int count;
};

struct bench {
    struct model_fixture f;
    struct rl_config config;
    struct tokenizer *tokenizer;
    struct prompts *prompts;
    struct rollout_generator *generator;
    struct weight_arena *arena;
    struct weight_source *source;
    struct channel_hub *hub;
    struct channel *learner, *worker;
    struct passing passing;
    atomic_bool cancel;
    pthread_t thread;
    rl_status status; /* of the worker */
    struct wire_stop stop;
};

static rl_status pass_in(void *arg, struct trajectory_group *group)
{
    struct passing *passing = arg;
    if (passing->count == SCORED_MAX) {
        return RL_AGAIN;
    }
    passing->groups[passing->count++] = group;
    return RL_OK;
}

static rl_status pass_out(void *arg, struct trajectory_group **group)
{
    struct passing *passing = arg;
    if (passing->count == 0 || atomic_load(&passing->holds)) {
        return RL_AGAIN;
    }
    *group = passing->groups[--passing->count];
    return RL_OK;
}

static rl_status pass_copy(void *arg, struct trajectory_group ***groups, uint32_t *count)
{
    struct passing *passing = arg;
    *groups = calloc((size_t)passing->count + 1, sizeof(**groups));
    ck_assert_ptr_nonnull(*groups);
    for (int i = 0; i < passing->count; i++) {
        ck_assert_int_eq(trajectory_group_copy(passing->groups[i], &(*groups)[i]), RL_OK);
    }
    *count = (uint32_t)passing->count;
    return RL_OK;
}

static void deliver_nothing(void *arg, struct channel_message *message)
{
    (void)arg;
    (void)message;
}

static void load_data(struct bench *b)
{
    static const char *const files[] = {"train.jsonl", "eval.jsonl", "sft.jsonl", "tokenizer.json",
                                        "tokenizer_config.json"};
    char dir[] = "/tmp/test_worker_XXXXXX";
    char path[128];
    struct task_options task;
    ck_assert_ptr_nonnull(mkdtemp(dir));
    ck_assert_int_eq(task_options_default("chain", &task), RL_OK);
    task.train_count = 12;
    task.eval_count = task.sft_count = 2;
    ck_assert_int_eq(task_generate(&task, dir, NULL), RL_OK);
    ck_assert_int_eq(tokenizer_load(dir, &b->tokenizer), RL_OK);
    ck_assert_int_eq(rl_config_init(&b->config), RL_OK);
    snprintf(path, sizeof(path), "%s/train.jsonl", dir);
    ck_assert_int_eq(prompts_load(path, &b->config, b->tokenizer, NULL, &b->prompts), RL_OK);
    for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
        snprintf(path, sizeof(path), "%s/%s", dir, files[i]);
        ck_assert_int_eq(unlink(path), 0);
    }
    ck_assert_int_eq(rmdir(dir), 0);
}

/* The slot of a new image. */
static int write_image(struct bench *b, uint32_t version)
{
    int slot = 0;
    void *image = NULL;
    fixture_randomise(&b->f, 50 + version);
    ck_assert_int_eq(weight_arena_begin_write(b->arena, patience_s, &slot, &image), RL_OK);
    memcpy(image, b->f.image, b->f.layout->image_bytes);
    return slot;
}

static void publish(struct bench *b, uint32_t version)
{
    int slot = write_image(b, version);
    ck_assert_int_eq(weight_arena_publish_verified(b->arena, slot, version, version), RL_OK);
}

/* Whose hash the worker has to compare first. */
static void publish_unverified(struct bench *b, uint32_t version)
{
    int slot = write_image(b, version);
    uint64_t hash = XXH3_64bits(b->f.image, b->f.layout->image_bytes);
    ck_assert_int_eq(weight_arena_publish(b->arena, slot, version, hash), RL_OK);
}

static void *run_worker(void *arg)
{
    struct bench *b = arg;
    struct rollout_worker_args args = {.rank = WORKER,
                                       .channel = b->worker,
                                       .weights = b->source,
                                       .deliver = deliver_nothing,
                                       .generator = b->generator,
                                       .prompts = b->prompts,
                                       .scorer = {pass_in, pass_out, pass_copy, &b->passing},
                                       .cancel = &b->cancel,
                                       .status_every_s = 0.01};
    b->status = rollout_worker_run(&args, &b->stop);
    return NULL;
}

static void open_ends(struct bench *b)
{
    struct weight_arena_options arena = {
        .slots = SLOTS, .slot_bytes = b->f.layout->image_bytes, .readers = WORKER + 1};
    struct channel_hub_options hub = {.size = 2, .credits = 2};
    ck_assert_int_eq(weight_arena_create(&arena, &b->arena), RL_OK);
    ck_assert_int_eq(weight_source_create(WORKER, &b->source), RL_OK);
    weight_source_attach(b->source, b->arena);
    ck_assert_int_eq(channel_hub_create(&hub, &b->hub), RL_OK);
    ck_assert_int_eq(channel_local_open(b->hub, 0, &b->learner), RL_OK);
    ck_assert_int_eq(channel_local_open(b->hub, WORKER, &b->worker), RL_OK);
}

static void bench_create(struct bench *b)
{
    struct model_architecture arch = fixture_architecture(0);
    struct fixture_options fixture = {kernel_isa_best(), KERNEL_FP32, 1};
    struct rollout_generator_options options = {.max_running = 7,
                                                .max_groups = 16,
                                                .max_prompt = 64,
                                                .max_completion = COMPLETION,
                                                .prefill_chunk = 32,
                                                .seed = 5,
                                                .sampling = {.temperature = 1, .top_p = 1},
                                                .stop_strings = "",
                                                .stop_token_ids = ""};
    memset(b, 0, sizeof(*b));
    load_data(b);
    arch.vocab = VOCAB;
    fixture_create(&b->f, &arch, &fixture);
    ck_assert_int_eq(rollout_generator_create(&b->f.context, NULL, &options, &b->generator), RL_OK);
    open_ends(b);
}

static void start(struct bench *b)
{
    ck_assert_int_eq(pthread_create(&b->thread, NULL, run_worker, b), 0);
}

static void send_message(struct bench *b, struct channel_message *message)
{
    message->peer = WORKER;
    ck_assert_int_eq(channel_send_wait(b->learner, message, patience_s), RL_OK);
}

static void send_ticket_of(struct bench *b, uint64_t number, uint32_t version, bool pinned)
{
    struct channel_message message = {0};
    struct wire_ticket ticket = {.ticket = number,
                                 .prompt_id = number,
                                 .sample_count = SAMPLES,
                                 .version = version,
                                 .pinned = pinned};
    ck_assert_int_eq(wire_encode_ticket(&ticket, &message), RL_OK);
    send_message(b, &message);
}

static void send_ticket(struct bench *b, uint64_t number, int pinned)
{
    send_ticket_of(b, number, pinned >= 0 ? (uint32_t)pinned : 0, pinned >= 0);
}

/* The next message but for status reports, which go into *status. */
static void receive(struct bench *b, struct channel_message *message, struct wire_status *status)
{
    for (;;) {
        ck_assert_int_eq(channel_receive(b->learner, patience_s, message), RL_OK);
        if (message->kind != WIRE_STATUS) {
            return;
        }
        ck_assert_int_eq(wire_decode_status(message, status), RL_OK);
        channel_message_fini(message);
    }
}

static struct trajectory_group *receive_group(struct bench *b, struct wire_status *status)
{
    struct channel_message message = {0};
    struct trajectory_group *group = NULL;
    receive(b, &message, status);
    ck_assert_int_eq(wire_decode_group(&message, &group), RL_OK);
    channel_message_fini(&message);
    return group;
}

static void all_by(const struct trajectory_group *group, int first_sample, uint32_t version)
{
    for (int s = first_sample; s < SAMPLES; s++) {
        ck_assert_uint_eq(group->samples[s].completion_count, COMPLETION);
        for (int t = 0; t < COMPLETION; t++) {
            ck_assert_uint_eq(group->samples[s].version[t], version);
        }
    }
}

static void finish(struct bench *b, enum wire_stop_reason reason)
{
    struct channel_message message = {0};
    struct wire_stop stop = {.reason = reason};
    ck_assert_int_eq(wire_encode_stop(&stop, &message), RL_OK);
    send_message(b, &message);
    ck_assert_int_eq(pthread_join(b->thread, NULL), 0);
}

static void bench_destroy(struct bench *b)
{
    channel_close(b->worker);
    channel_close(b->learner);
    channel_hub_destroy(b->hub);
    weight_source_destroy(b->source);
    weight_arena_close(b->arena);
    while (b->passing.count > 0) {
        trajectory_group_destroy(b->passing.groups[--b->passing.count]);
    }
    rollout_generator_destroy(b->generator);
    fixture_destroy(&b->f);
    prompts_destroy(b->prompts);
    rl_config_fini(&b->config);
    tokenizer_destroy(b->tokenizer);
}

START_TEST(pinned_tickets_are_generated_whole_by_their_version)
{
    struct bench b;
    struct wire_status status = {0};
    bench_create(&b);
    publish(&b, 0);
    start(&b);
    send_ticket(&b, 3, 1); /* of a version to come */
    for (uint64_t n = 0; n < 3; n++) {
        send_ticket(&b, n, n == 1 ? -1 : 0);
    }
    for (int i = 0; i < 3; i++) {
        struct trajectory_group *group = receive_group(&b, &status);
        ck_assert_uint_lt(group->ticket, 3);
        all_by(group, 0, 0);
        trajectory_group_destroy(group);
    }
    publish(&b, 1);
    struct trajectory_group *late = receive_group(&b, &status);
    ck_assert_uint_eq(late->ticket, 3);
    all_by(late, 0, 1);
    trajectory_group_destroy(late);
    for (uint32_t v = 2; v < 12; v++) { /* more than the slots: pins must have been let go */
        publish(&b, v);
        send_ticket(&b, 4, (int)v);
        struct trajectory_group *group = receive_group(&b, &status);
        all_by(group, 0, v);
        trajectory_group_destroy(group);
    }
    while (rl_histogram_quantile_us(status.passes.pass_us, 1) <= 0) {
        struct channel_message message = {0};
        ck_assert_int_eq(channel_receive(b.learner, patience_s, &message), RL_OK);
        ck_assert_int_eq(wire_decode_status(&message, &status), RL_OK);
        channel_message_fini(&message);
    }
    finish(&b, WIRE_STOP_DONE);
    ck_assert_int_eq(b.status, RL_OK);
    bench_destroy(&b);
}
END_TEST

/* However long its hash takes: a ticket issued after a version was published begins with no older
 * one; those that were issued before it are generated too, by whatever there is. */
START_TEST(groups_begin_with_no_older_weights_than_their_tickets)
{
    struct bench b;
    struct wire_status status = {0};
    bench_create(&b);
    publish(&b, 0);
    start(&b);
    for (uint32_t v = 1; v < 30; v++) {
        send_ticket_of(&b, 0, v - 1, false);
        publish_unverified(&b, v);
        send_ticket_of(&b, 1, v, false);
        for (int i = 0; i < 2; i++) {
            struct trajectory_group *group = receive_group(&b, &status);
            for (int s = 0; s < SAMPLES; s++) {
                ck_assert_uint_ge(group->samples[s].version[0], v - 1 + group->ticket);
            }
            trajectory_group_destroy(group);
        }
    }
    finish(&b, WIRE_STOP_DONE);
    ck_assert_int_eq(b.status, RL_OK);
    bench_destroy(&b);
}
END_TEST

START_TEST(a_version_that_is_gone_is_an_error)
{
    struct bench b;
    bench_create(&b);
    publish(&b, 5);
    start(&b);
    send_ticket(&b, 0, 3);
    ck_assert_int_eq(pthread_join(b.thread, NULL), 0);
    ck_assert_int_eq(b.status, RL_NOT_FOUND);
    bench_destroy(&b);
}
END_TEST

/* One sample of `ticket`, finished earlier. */
static struct trajectory_group *make_partial(struct bench *b, uint64_t ticket)
{
    const struct prompt *prompt = prompts_at(b->prompts, ticket);
    struct trajectory_group *group = NULL;
    int32_t tokens[80];
    float logprob = -0.75F;
    uint32_t version = 9;
    memcpy(tokens, prompt->tokens, prompt->token_count * sizeof(int32_t));
    tokens[prompt->token_count] = 4;
    ck_assert_int_eq(trajectory_group_create(SAMPLES, &group), RL_OK);
    group->ticket = group->prompt_id = ticket;
    group->samples[0].finish = RL_FINISH_STOP;
    ck_assert_int_eq(trajectory_set_tokens(&group->samples[0], tokens, &logprob, &version,
                                           prompt->token_count, 1),
                     RL_OK);
    return group;
}

static void send_partial(struct bench *b, uint64_t ticket)
{
    struct channel_message message = {0};
    struct trajectory_group *group = make_partial(b, ticket);
    ck_assert_int_eq(wire_encode_partial(0, group, &message), RL_OK);
    trajectory_group_destroy(group);
    send_message(b, &message);
}

static void is_given(const struct trajectory *sample)
{
    ck_assert_uint_eq(sample->completion_count, 1);
    ck_assert_int_eq(sample->tokens[sample->prompt_count], 4);
    ck_assert_uint_eq(sample->version[0], 9);
    ck_assert_int_eq(sample->finish, RL_FINISH_STOP);
}

/* Until the empty frame; groups that come in between are counted. Returns how many were partial. */
static int receive_snapshot(struct bench *b, uint64_t id, int *groups)
{
    struct wire_status status;
    int partials = 0;
    for (;;) {
        struct channel_message message = {0};
        struct trajectory_group *group = NULL;
        uint64_t found = id;
        receive(b, &message, &status);
        bool partial = message.kind == WIRE_PARTIAL;
        if (partial) {
            ck_assert_int_eq(wire_decode_partial(&message, &found, &group), RL_OK);
        } else {
            ck_assert_int_eq(wire_decode_group(&message, &group), RL_OK);
            (*groups)++;
        }
        channel_message_fini(&message);
        ck_assert_uint_eq(found, id);
        if (group == NULL) {
            return partials;
        }
        if (partial && group->ticket >= 6) {
            is_given(&group->samples[0]);
            ck_assert_uint_eq(group->samples[1].completion_count, 0);
            partials++;
        }
        trajectory_group_destroy(group);
    }
}

START_TEST(snapshots_tell_what_is_finished_and_tickets_go_on_from_it)
{
    struct bench b;
    struct wire_status status;
    struct channel_message message = {0};
    int groups = 0;
    bench_create(&b);
    publish(&b, 0);
    start(&b);
    for (uint64_t n = 0; n < 6; n++) {
        send_ticket(&b, n, -1);
    }
    for (uint64_t n = 6; n < 9; n++) {
        send_partial(&b, n);
        send_ticket(&b, n, 1); /* not here yet: it stays as it is */
    }
    send_partial(&b, 11); /* without its ticket: dropped */
    for (uint64_t id = 70; id < 72; id++) {
        ck_assert_int_eq(wire_encode_snapshot(id, &message), RL_OK);
        send_message(&b, &message);
        ck_assert_int_eq(receive_snapshot(&b, id, &groups), 3);
    }
    for (; groups < 6; groups++) {
        trajectory_group_destroy(receive_group(&b, &status));
    }
    publish(&b, 1);
    for (int i = 0; i < 3; i++) {
        struct trajectory_group *group = receive_group(&b, &status);
        ck_assert_uint_ge(group->ticket, 6);
        is_given(&group->samples[0]);
        all_by(group, 1, 1);
        trajectory_group_destroy(group);
    }
    finish(&b, WIRE_STOP_INTERRUPTED);
    ck_assert_int_eq(b.status, RL_OK);
    ck_assert_int_eq((int)b.stop.reason, WIRE_STOP_INTERRUPTED);
    bench_destroy(&b);
}
END_TEST

/* One snapshot into `groups`, by ticket; returns how many of them are whole. */
static int take_snapshot(struct bench *b, uint64_t id, struct trajectory_group **groups, int count)
{
    struct wire_status status;
    struct channel_message message = {0};
    int whole = 0;
    ck_assert_int_eq(wire_encode_snapshot(id, &message), RL_OK);
    send_message(b, &message);
    for (;;) {
        struct trajectory_group *group = NULL;
        uint64_t found = 0;
        receive(b, &message, &status);
        ck_assert_int_eq(wire_decode_partial(&message, &found, &group), RL_OK);
        channel_message_fini(&message);
        if (group == NULL) {
            return whole;
        }
        ck_assert_uint_lt(group->ticket, (uint64_t)count);
        bool full = true;
        for (int s = 0; s < SAMPLES; s++) {
            full = full && group->samples[s].completion_count == COMPLETION;
        }
        whole += full;
        trajectory_group_destroy(groups[group->ticket]);
        groups[group->ticket] = group;
    }
}

static void same_tokens(const struct trajectory_group *a, const struct trajectory_group *b)
{
    for (int s = 0; s < SAMPLES; s++) {
        size_t tokens = (size_t)a->samples[s].prompt_count + COMPLETION;
        ck_assert_uint_eq(b->samples[s].prompt_count, a->samples[s].prompt_count);
        ck_assert_mem_eq(b->samples[s].tokens, a->samples[s].tokens, tokens * sizeof(int32_t));
        ck_assert_mem_eq(b->samples[s].logprob, a->samples[s].logprob, COMPLETION * sizeof(float));
    }
}

/* Whole groups whose rewards are not there are part of a snapshot, and a ticket that comes with
 * such a group has it scored, not generated again. */
START_TEST(groups_that_wait_for_rewards_are_in_snapshots)
{
    enum { TICKETS = 3 };
    struct bench b;
    struct wire_status status = {0};
    struct trajectory_group *saved[TICKETS] = {0};
    struct channel_message message = {0};
    bench_create(&b);
    atomic_store(&b.passing.holds, true);
    publish(&b, 0);
    start(&b);
    for (uint64_t n = 0; n < TICKETS; n++) {
        send_ticket(&b, n, 0);
    }
    for (uint64_t id = 1; take_snapshot(&b, id, saved, TICKETS) < TICKETS; id++) {
    }
    publish(&b, 1);
    for (uint64_t n = 0; n < TICKETS; n++) { /* as after a resume, by a version that makes others */
        ck_assert_int_eq(wire_encode_partial(0, saved[n], &message), RL_OK);
        send_message(&b, &message);
        send_ticket(&b, n, 1);
    }
    atomic_store(&b.passing.holds, false);
    for (int i = 0; i < 2 * TICKETS; i++) {
        struct trajectory_group *group = receive_group(&b, &status);
        same_tokens(saved[group->ticket], group);
        all_by(group, 0, 0);
        trajectory_group_destroy(group);
    }
    for (int n = 0; n < TICKETS; n++) {
        trajectory_group_destroy(saved[n]);
    }
    finish(&b, WIRE_STOP_DONE);
    ck_assert_int_eq(b.status, RL_OK);
    bench_destroy(&b);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("rollout_worker");
    TCase *tests = tcase_create("worker");
    tcase_add_test(tests, pinned_tickets_are_generated_whole_by_their_version);
    tcase_add_test(tests, groups_begin_with_no_older_weights_than_their_tickets);
    tcase_add_test(tests, a_version_that_is_gone_is_an_error);
    tcase_add_test(tests, snapshots_tell_what_is_finished_and_tickets_go_on_from_it);
    tcase_add_test(tests, groups_that_wait_for_rewards_are_in_snapshots);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failures = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
