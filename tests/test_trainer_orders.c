/* The orders ticket and fixed_lag: which tickets a batch is made of, refills and their numbers,
 * pinned versions, what a checkpoint keeps and refuses. */
#include "trainer/admission.h"
#include "trainer/partial_store.h"

#include <check.h>
#include <stdlib.h>

enum { PROMPTS = 7, SAMPLES = 2, B = 3 };

static rl_status next_prompt(void *arg, uint64_t number, uint64_t *prompt_id, uint32_t *epoch)
{
    (void)arg;
    *prompt_id = number % PROMPTS;
    *epoch = (uint32_t)(number / PROMPTS);
    return RL_OK;
}

static struct dispatcher *dispatcher_of(enum dispatcher_order order, uint32_t prompts, uint32_t eta)
{
    struct dispatcher_options options = {
        .prompts_per_step = prompts, .max_staleness = eta, .order = order, .next = next_prompt};
    struct dispatcher *dispatcher = NULL;
    ck_assert_int_eq(dispatcher_create(&options, &dispatcher), RL_OK);
    return dispatcher;
}

struct fixture {
    struct dispatcher *d;
    struct admission *a;
};

static struct fixture fixture_make(enum dispatcher_order order, uint32_t eta, uint32_t rounds)
{
    struct fixture f = {.d = dispatcher_of(order, B, eta)};
    struct admission_options options = {.prompts_per_step = B,
                                        .samples_per_prompt = SAMPLES,
                                        .max_staleness = eta,
                                        .order = order,
                                        .dynamic_sampling = rounds > 0,
                                        .dynamic_sampling_rounds = rounds};
    ck_assert_int_eq(admission_create(&options, f.d, &f.a), RL_OK);
    return f;
}

static void fixture_free(struct fixture *f)
{
    ck_assert_int_eq(dispatcher_check(f->d), RL_OK);
    admission_destroy(f->a);
    dispatcher_destroy(f->d);
}

static uint32_t issue_all(struct dispatcher *d)
{
    struct dispatcher_ticket ticket;
    uint32_t count = 0;
    while (dispatcher_issue(d, 1, UINT32_MAX, &ticket) == RL_OK) {
        count++;
    }
    ck_assert_int_eq(dispatcher_check(d), RL_OK);
    return count;
}

static uint64_t refill(uint64_t step, uint64_t index)
{
    return DISPATCHER_REFILL | step << DISPATCHER_REFILL_BITS | index;
}

/* A group of one token a sample; rewards `first` and 0. */
static struct trajectory_group *group_make(uint64_t number, uint32_t version, float first)
{
    struct trajectory_group *group = NULL;
    const int32_t tokens[2] = {1, 2};
    const float logprob[1] = {-0.5f};
    ck_assert_int_eq(trajectory_group_create(SAMPLES, &group), RL_OK);
    group->ticket = number;
    ck_assert_int_eq(next_prompt(NULL, number, &group->prompt_id, &group->epoch), RL_OK);
    for (uint32_t s = 0; s < SAMPLES; s++) {
        struct trajectory *sample = &group->samples[s];
        ck_assert_int_eq(trajectory_set_tokens(sample, tokens, logprob, &version, 1, 1), RL_OK);
        sample->sample_index = s;
        sample->finish = RL_FINISH_STOP;
        sample->reward_valid = true;
        sample->reward = sample->accuracy = s == 0 ? first : 0;
    }
    return group;
}

static void offer(struct fixture *f, uint64_t number, uint32_t version, float first)
{
    ck_assert_int_eq(admission_offer(f->a, group_make(number, version, first)), RL_OK);
}

/* The batch must be these tickets; train on it and move to the next version. */
static void train(struct fixture *f, const uint64_t *numbers)
{
    struct admission_batch batch = {0};
    ck_assert_int_eq(admission_take(f->a, &batch), RL_OK);
    ck_assert_uint_eq(batch.count, B);
    for (uint32_t i = 0; i < B; i++) {
        ck_assert_uint_eq(batch.groups[i]->ticket, numbers[i]);
    }
    ck_assert_int_eq(admission_trained(f->a, &batch), RL_OK);
    admission_batch_fini(&batch);
    ck_assert_int_eq(dispatcher_set_version(f->d, dispatcher_version(f->d) + 1), RL_OK);
}

static void not_yet(struct fixture *f)
{
    struct admission_batch batch;
    ck_assert_int_eq(admission_take(f->a, &batch), RL_AGAIN);
}

START_TEST(ticket_waits_for_the_head_of_the_line)
{
    struct fixture f = fixture_make(DISPATCHER_TICKET, 1, 10);
    ck_assert_uint_eq(issue_all(f.d), 6);
    for (uint64_t number = 5; number > 0; number--) {
        offer(&f, number, 0, 1);
    }
    not_yet(&f);        /* five groups wait for the straggler */
    offer(&f, 0, 0, 0); /* and it is of no use: the next in line take its place */
    train(&f, (const uint64_t[]){1, 2, 3});
    ck_assert_uint_eq(issue_all(f.d), 4); /* one for the dropped, three for the step */
    offer(&f, 7, 1, 1);
    not_yet(&f);
    offer(&f, 6, 1, 1);
    train(&f, (const uint64_t[]){4, 5, 6});
    fixture_free(&f);
}
END_TEST

START_TEST(fixed_lag_pins_a_version_to_each_step)
{
    struct dispatcher *d = dispatcher_of(DISPATCHER_FIXED_LAG, B, 2);
    struct dispatcher_ticket ticket;
    ck_assert_uint_eq(issue_all(d), 9); /* steps 0, 1, 2 */
    for (uint64_t number = 0; number < 9; number++) {
        ck_assert_int_eq(dispatcher_find(d, number, &ticket), RL_OK);
        ck_assert_uint_eq(ticket.version, 0);
    }
    ck_assert_int_eq(dispatcher_set_version(d, 1), RL_OK);
    ck_assert_uint_eq(issue_all(d), 3);
    ck_assert_int_eq(dispatcher_find(d, 9, &ticket), RL_OK);
    ck_assert_uint_eq(ticket.version, 1);
    ck_assert_int_eq(dispatcher_set_version(d, 2), RL_OK);
    ck_assert_uint_eq(dispatcher_worker_lost(d, 1), 12);
    for (uint64_t number = 0; number < 12; number++) { /* issued again, by the version of old */
        ck_assert_int_eq(dispatcher_issue(d, 2, UINT32_MAX, &ticket), RL_OK);
        ck_assert_uint_eq(ticket.number, number);
        ck_assert_uint_eq(ticket.version, number < 9 ? 0 : 1);
    }
    ck_assert_int_eq(dispatcher_set_max_staleness(d, 3), RL_INVALID);
    dispatcher_destroy(d);
}
END_TEST

START_TEST(fixed_lag_keeps_what_others_drop)
{
    struct fixture f = fixture_make(DISPATCHER_FIXED_LAG, 1, 0);
    struct dispatcher_counters counters;
    ck_assert_uint_eq(issue_all(f.d), 6);
    struct trajectory_group *unscorable = group_make(0, 0, 1);
    unscorable->samples[0].reward_valid = unscorable->samples[1].reward_valid = false;
    ck_assert_int_eq(admission_offer(f.a, unscorable), RL_OK);
    struct trajectory_group *empty = group_make(1, 0, 1);
    empty->samples[0].completion_count = empty->samples[1].completion_count = 0;
    ck_assert_int_eq(admission_offer(f.a, empty), RL_OK);
    offer(&f, 2, 1, 1); /* by another version than the ticket's: asked for again */
    not_yet(&f);
    dispatcher_count(f.d, &counters);
    ck_assert_uint_eq(counters.live[DISPATCHER_PENDING], 1);
    offer(&f, 2, 0, 1);
    train(&f, (const uint64_t[]){0, 1, 2});
    fixture_free(&f);
}
END_TEST

START_TEST(fixed_lag_refills_a_step_from_its_own_numbers)
{
    struct fixture f = fixture_make(DISPATCHER_FIXED_LAG, 1, 3);
    struct dispatcher_ticket ticket;
    ck_assert_uint_eq(issue_all(f.d), 6);
    offer(&f, 4, 0, 0); /* of step 1 */
    offer(&f, 1, 0, 0); /* of step 0 */
    ck_assert_int_eq(dispatcher_issue(f.d, 1, UINT32_MAX, &ticket), RL_OK);
    ck_assert_uint_eq(ticket.number, refill(0, 0)); /* the earlier step's first */
    ck_assert_uint_eq(ticket.version, 0);
    ck_assert_uint_eq(issue_all(f.d), 1);
    offer(&f, 0, 0, 1);
    offer(&f, refill(0, 0), 0, 0); /* of no use either */
    ck_assert_uint_eq(issue_all(f.d), 1);
    ck_assert_int_eq(dispatcher_deliver(f.d, refill(0, 0)), DISPATCHER_DUPLICATE);
    ck_assert_int_eq(dispatcher_deliver(f.d, refill(0, 2)), DISPATCHER_UNKNOWN);
    ck_assert_int_eq(dispatcher_deliver(f.d, refill(2, 0)), DISPATCHER_UNKNOWN);
    offer(&f, refill(0, 1), 0, 1);
    not_yet(&f);
    offer(&f, 2, 0, 1);
    train(&f, (const uint64_t[]){0, 2, refill(0, 1)});
    ck_assert_int_eq(dispatcher_deliver(f.d, refill(0, 7)), DISPATCHER_DUPLICATE); /* long past */
    ck_assert_uint_eq(dispatcher_refills(f.d), 1);
    struct dispatcher_counters counters;
    dispatcher_count(f.d, &counters);
    ck_assert_uint_eq(counters.created, 6 + 3);
    ck_assert_uint_eq(counters.dropped[DISPATCHER_ZERO_VARIANCE], 3);
    fixture_free(&f);
}
END_TEST

START_TEST(fixed_lag_gives_up_refilling)
{
    struct fixture f = fixture_make(DISPATCHER_FIXED_LAG, 0, 2);
    struct admission_batch batch;
    ck_assert_uint_eq(issue_all(f.d), 3);
    offer(&f, 0, 0, 0);
    offer(&f, refill(0, 0), 0, 0);
    not_yet(&f);
    offer(&f, refill(0, 1), 0, 0);
    ck_assert_int_eq(admission_take(f.a, &batch), RL_NOT_FOUND); /* 6 asked for = 2 rounds */
    fixture_free(&f);
}
END_TEST

/* A saved state goes on only where its tickets mean the same. */
START_TEST(fixed_lag_state_is_bound_to_its_options)
{
    struct dispatcher *saved = dispatcher_of(DISPATCHER_FIXED_LAG, B, 2);
    uint8_t *data = NULL;
    size_t bytes = 0;
    struct dispatcher_ticket ticket;
    issue_all(saved);
    ck_assert_int_eq(dispatcher_set_version(saved, 1), RL_OK);
    ck_assert_int_eq(dispatcher_drop(saved, 4, DISPATCHER_ZERO_VARIANCE), RL_OK);
    ck_assert_int_eq(dispatcher_drop(saved, 8, DISPATCHER_ZERO_VARIANCE), RL_OK);
    issue_all(saved);
    ck_assert_int_eq(dispatcher_save(saved, &data, &bytes), RL_OK);
    static const struct {
        enum dispatcher_order order;
        uint32_t prompts, eta;
        rl_status expected;
    } cases[] = {{DISPATCHER_FIXED_LAG, B, 2, RL_OK},
                 {DISPATCHER_FIXED_LAG, B, 1, RL_INVALID},
                 {DISPATCHER_FIXED_LAG, B + 1, 2, RL_INVALID},
                 {DISPATCHER_READY, B + 1, 1, RL_OK},
                 {DISPATCHER_TICKET, B, 3, RL_OK}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct dispatcher *d = dispatcher_of(cases[i].order, cases[i].prompts, cases[i].eta);
        ck_assert_int_eq(dispatcher_load(d, data, bytes), cases[i].expected);
        if (cases[i].expected == RL_OK) {
            ck_assert_int_eq(dispatcher_check(d), RL_OK);
            ck_assert_int_eq(dispatcher_find(d, refill(2, 0), &ticket), RL_OK);
            ck_assert_uint_eq(ticket.version, 0);
        }
        dispatcher_destroy(d);
    }
    struct dispatcher *d = dispatcher_of(DISPATCHER_FIXED_LAG, B, 2);
    ck_assert_int_eq(dispatcher_load(d, data, bytes), RL_OK);
    ck_assert_uint_eq(dispatcher_refills(d), 1); /* of step 1; step 2 has its own */
    ck_assert_int_eq(dispatcher_drop(d, 5, DISPATCHER_ZERO_VARIANCE), RL_OK);
    ck_assert_int_eq(dispatcher_find(d, refill(1, 1), &ticket), RL_OK);
    ck_assert_int_eq(dispatcher_find(d, refill(1, 0), &ticket), RL_OK);
    dispatcher_destroy(d);
    free(data);
    dispatcher_destroy(saved);
    saved = dispatcher_of(DISPATCHER_READY, B, 2);
    d = dispatcher_of(DISPATCHER_FIXED_LAG, B, 2);
    ck_assert_int_eq(dispatcher_save(saved, &data, &bytes), RL_OK);
    ck_assert_int_eq(dispatcher_load(d, data, bytes), RL_INVALID);
    free(data);
    dispatcher_destroy(d);
    dispatcher_destroy(saved);
}
END_TEST

/* Finished samples of unfinished groups: the most of each ticket, nothing from elsewhere. */
START_TEST(parts_of_groups_are_kept_while_they_are_awaited)
{
    struct fixture f = fixture_make(DISPATCHER_READY, 1, 0);
    struct partial_store store = {0};
    ck_assert_uint_eq(issue_all(f.d), 6);
    struct trajectory_group *whole = group_make(0, 0, 1);
    struct trajectory_group *part = group_make(0, 0, 1);
    ck_assert_int_eq(trajectory_set_tokens(&part->samples[1], NULL, NULL, NULL, 0, 0), RL_OK);
    ck_assert_int_eq(partial_store_put(&store, f.a, whole), RL_OK);
    ck_assert_int_eq(partial_store_put(&store, f.a, part), RL_OK); /* less than what is here */
    ck_assert_ptr_eq(partial_store_find(&store, f.a, 0), whole);
    struct trajectory_group *empty = group_make(1, 0, 1);
    for (uint32_t i = 0; i < SAMPLES; i++) {
        ck_assert_int_eq(trajectory_set_tokens(&empty->samples[i], NULL, NULL, NULL, 0, 0), RL_OK);
    }
    ck_assert_int_eq(partial_store_put(&store, f.a, empty), RL_OK);
    ck_assert_int_eq(partial_store_put(&store, f.a, group_make(99, 0, 1)), RL_OK); /* no ticket */
    ck_assert_int_eq(partial_store_put(&store, f.a, group_make(2, 7, 1)), RL_OK);  /* future */
    ck_assert_uint_eq(store.count, 1);
    ck_assert_int_eq(partial_store_put(&store, f.a, group_make(3, 0, 1)), RL_OK);
    offer(&f, 0, 0, 1); /* arrived whole: nothing to go on from any more */
    partial_store_prune(&store, f.a);
    ck_assert_uint_eq(store.count, 1);
    ck_assert_ptr_null(partial_store_find(&store, f.a, 0));
    ck_assert_ptr_nonnull(partial_store_find(&store, f.a, 3));
    ck_assert_int_eq(dispatcher_set_version(f.d, 2), RL_OK); /* its tokens are too old by now */
    ck_assert_ptr_null(partial_store_find(&store, f.a, 3));
    partial_store_fini(&store);
    fixture_free(&f);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("orders");
    TCase *tests = tcase_create("all");
    tcase_add_test(tests, ticket_waits_for_the_head_of_the_line);
    tcase_add_test(tests, fixed_lag_pins_a_version_to_each_step);
    tcase_add_test(tests, fixed_lag_keeps_what_others_drop);
    tcase_add_test(tests, fixed_lag_refills_a_step_from_its_own_numbers);
    tcase_add_test(tests, fixed_lag_gives_up_refilling);
    tcase_add_test(tests, fixed_lag_state_is_bound_to_its_options);
    tcase_add_test(tests, parts_of_groups_are_kept_while_they_are_awaited);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
