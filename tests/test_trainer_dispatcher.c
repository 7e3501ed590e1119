/* Tickets: the admission rule, re-issue, duplicates, counters, bytes; and admission's choices. */
#include "trainer/admission.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

enum { PROMPTS = 7, SAMPLES = 2 };

/* Endless passes over PROMPTS prompts; `arg` is an offset that stands for another data set. */
static rl_status next_prompt(void *arg, uint64_t position, uint64_t *prompt_id, uint32_t *epoch)
{
    *prompt_id = (position + *(const uint64_t *)arg) % PROMPTS;
    *epoch = (uint32_t)(position / PROMPTS);
    return RL_OK;
}

static uint64_t same_data = 0;
static uint64_t other_data = 1;

static struct dispatcher *dispatcher_make(uint32_t prompts, uint32_t eta)
{
    struct dispatcher_options options = {.prompts_per_step = prompts,
                                         .max_staleness = eta,
                                         .next = next_prompt,
                                         .next_arg = &same_data};
    struct dispatcher *dispatcher = NULL;
    ck_assert_int_eq(dispatcher_create(&options, &dispatcher), RL_OK);
    return dispatcher;
}

/* Issue until nothing more comes; returns how many. */
static uint32_t issue_all(struct dispatcher *dispatcher, int32_t worker, uint32_t most)
{
    struct dispatcher_ticket ticket;
    uint32_t count = 0;
    while (dispatcher_issue(dispatcher, worker, most, &ticket) == RL_OK) {
        ck_assert_int_eq(ticket.worker, worker);
        ck_assert_int_eq(ticket.state, DISPATCHER_ISSUED);
        count++;
    }
    ck_assert_int_eq(dispatcher_check(dispatcher), RL_OK);
    return count;
}

static void train_one(struct dispatcher *dispatcher, uint64_t number)
{
    ck_assert_int_eq(dispatcher_deliver(dispatcher, number), DISPATCHER_ACCEPTED);
    ck_assert_int_eq(dispatcher_admit(dispatcher, number), RL_OK);
    ck_assert_int_eq(dispatcher_train(dispatcher, number), RL_OK);
}

/* --- dispatcher
 * ----------------------------------------------------------------------------------- */

START_TEST(the_rule_bounds_what_is_ahead)
{
    struct dispatcher *d = dispatcher_make(4, 1);
    ck_assert_uint_eq(dispatcher_capacity(d), 8);
    ck_assert_uint_eq(issue_all(d, 1, 100), 8);
    for (uint64_t number = 0; number < 4; number++) {
        train_one(d, number);
    }
    ck_assert_uint_eq(issue_all(d, 1, 100), 0); /* the version has not moved yet */
    ck_assert_int_eq(dispatcher_set_version(d, 1), RL_OK);
    ck_assert_uint_eq(issue_all(d, 1, 100), 4);
    ck_assert_int_eq(dispatcher_drop(d, 5, DISPATCHER_STALE), RL_OK);
    ck_assert_uint_eq(issue_all(d, 1, 100), 1); /* a drop makes room for its replacement */
    ck_assert_int_eq(dispatcher_set_version(d, 0), RL_INVALID);
    struct dispatcher_counters counters;
    dispatcher_count(d, &counters);
    ck_assert_uint_eq(counters.created, 13);
    ck_assert_uint_eq(counters.trained, 4);
    ck_assert_uint_eq(counters.dropped[DISPATCHER_STALE], 1);
    ck_assert_uint_eq(counters.live[DISPATCHER_ISSUED], 8);
    dispatcher_destroy(d);
}
END_TEST

START_TEST(synchronous_means_one_step_at_a_time)
{
    struct dispatcher *d = dispatcher_make(3, 0);
    for (uint32_t version = 1; version < 5; version++) {
        ck_assert_uint_eq(issue_all(d, 0, 100), 3);
        for (uint64_t i = 0; i < 3; i++) {
            train_one(d, (uint64_t)(version - 1) * 3 + i);
        }
        ck_assert_uint_eq(issue_all(d, 0, 100), 0);
        ck_assert_int_eq(dispatcher_set_version(d, version), RL_OK);
    }
    /* a step that was skipped keeps its version and must not eat the capacity */
    ck_assert_uint_eq(issue_all(d, 0, 100), 3);
    for (uint64_t i = 12; i < 15; i++) {
        train_one(d, i);
    }
    ck_assert_int_eq(dispatcher_set_version(d, 4), RL_OK);
    ck_assert_uint_eq(issue_all(d, 0, 100), 3);
    dispatcher_destroy(d);
}
END_TEST

START_TEST(prompts_come_in_their_order)
{
    struct dispatcher *d = dispatcher_make(20, 0);
    struct dispatcher_ticket ticket;
    for (uint64_t i = 0; i < 20; i++) {
        ck_assert_int_eq(dispatcher_issue(d, 0, 100, &ticket), RL_OK);
        ck_assert_uint_eq(ticket.number, i);
        ck_assert_uint_eq(ticket.prompt_id, i % PROMPTS);
        ck_assert_uint_eq(ticket.epoch, i / PROMPTS);
    }
    dispatcher_destroy(d);
}
END_TEST

START_TEST(workers_get_fair_shares)
{
    static const int32_t workers[3] = {4, 5, 6};
    struct dispatcher *d = dispatcher_make(8, 0);
    struct dispatcher_ticket ticket;
    for (int32_t worker; (worker = dispatcher_pick_worker(d, workers, 3, 3)) >= 0;) {
        if (dispatcher_issue(d, worker, 3, &ticket) != RL_OK) {
            break;
        }
    }
    ck_assert_uint_eq(dispatcher_outstanding(d, 4), 3);
    ck_assert_uint_eq(dispatcher_outstanding(d, 5), 3);
    ck_assert_uint_eq(dispatcher_outstanding(d, 6), 2);
    ck_assert_int_eq(dispatcher_issue(d, 4, 3, &ticket), RL_AGAIN);
    ck_assert_int_eq(dispatcher_pick_worker(d, workers, 2, 3), -1);
    dispatcher_destroy(d);
}
END_TEST

START_TEST(a_dead_workers_tickets_are_issued_again)
{
    struct dispatcher *d = dispatcher_make(4, 0);
    struct dispatcher_ticket ticket;
    for (int i = 0; i < 4; i++) {
        ck_assert_int_eq(dispatcher_issue(d, i % 2, 100, &ticket), RL_OK);
    }
    dispatcher_generated(d, 2, 0);
    ck_assert_int_eq(dispatcher_deliver(d, 0), DISPATCHER_ACCEPTED);
    ck_assert_uint_eq(dispatcher_worker_lost(d, 0), 1); /* 0 has arrived, 2 has not */
    ck_assert_uint_eq(dispatcher_outstanding(d, 0), 0);
    ck_assert_int_eq(dispatcher_issue(d, 1, 100, &ticket), RL_OK);
    ck_assert_uint_eq(ticket.number, 2);
    ck_assert_uint_eq(ticket.issue_count, 2);
    /* the dead one was only slow: its delivery counts, the second one does not */
    ck_assert_int_eq(dispatcher_deliver(d, 2), DISPATCHER_ACCEPTED);
    ck_assert_int_eq(dispatcher_deliver(d, 2), DISPATCHER_DUPLICATE);
    ck_assert_int_eq(dispatcher_admit(d, 2), RL_OK);
    ck_assert_int_eq(dispatcher_deliver(d, 2), DISPATCHER_DUPLICATE);
    ck_assert_int_eq(dispatcher_train(d, 2), RL_OK);
    ck_assert_int_eq(dispatcher_deliver(d, 2), DISPATCHER_DUPLICATE);
    ck_assert_int_eq(dispatcher_deliver(d, 99), DISPATCHER_UNKNOWN);
    struct dispatcher_counters counters;
    dispatcher_count(d, &counters);
    ck_assert_uint_eq(counters.reissues, 1);
    ck_assert_uint_eq(counters.duplicates, 3);
    ck_assert_uint_eq(counters.unknown, 1);
    ck_assert_int_eq(dispatcher_check(d), RL_OK);
    dispatcher_destroy(d);
}
END_TEST

START_TEST(wrong_moves_are_refused)
{
    struct dispatcher *d = dispatcher_make(2, 0);
    ck_assert_uint_eq(issue_all(d, 0, 100), 2);
    ck_assert_int_eq(dispatcher_admit(d, 0), RL_INVALID);
    ck_assert_int_eq(dispatcher_train(d, 0), RL_INVALID);
    ck_assert_int_eq(dispatcher_drop(d, 7, DISPATCHER_STALE), RL_INVALID);
    ck_assert_int_eq(dispatcher_requeue(d, 7), RL_INVALID);
    train_one(d, 0);
    ck_assert_int_eq(dispatcher_drop(d, 0, DISPATCHER_STALE), RL_INVALID);
    ck_assert_uint_eq(dispatcher_drop_all(d), 1);
    ck_assert_int_eq(dispatcher_check(d), RL_OK);
    dispatcher_destroy(d);
}
END_TEST

/* A state with tickets in every stage. */
static struct dispatcher *busy_make(void)
{
    struct dispatcher *d = dispatcher_make(5, 2);
    ck_assert_uint_eq(issue_all(d, 3, 10), 10);
    dispatcher_generated(d, 9, 3);
    train_one(d, 1);
    ck_assert_int_eq(dispatcher_set_version(d, 1), RL_OK);
    ck_assert_int_eq(dispatcher_deliver(d, 2), DISPATCHER_ACCEPTED);
    ck_assert_int_eq(dispatcher_deliver(d, 4), DISPATCHER_ACCEPTED);
    ck_assert_int_eq(dispatcher_admit(d, 4), RL_OK);
    ck_assert_int_eq(dispatcher_drop(d, 0, DISPATCHER_UNSCORABLE), RL_OK);
    return d;
}

START_TEST(state_survives_as_bytes)
{
    struct dispatcher *saved = busy_make();
    uint8_t *data = NULL;
    size_t bytes = 0;
    ck_assert_int_eq(dispatcher_save(saved, &data, &bytes), RL_OK);
    struct dispatcher *loaded = dispatcher_make(5, 2);
    ck_assert_int_eq(dispatcher_load(loaded, data, bytes), RL_OK);
    ck_assert_int_eq(dispatcher_check(loaded), RL_OK);
    ck_assert_uint_eq(dispatcher_version(loaded), 1);
    struct dispatcher_counters was;
    struct dispatcher_counters is;
    dispatcher_count(saved, &was);
    dispatcher_count(loaded, &is);
    ck_assert_uint_eq(is.live[DISPATCHER_PENDING],
                      was.live[DISPATCHER_ISSUED] + was.live[DISPATCHER_GENERATED]);
    ck_assert_uint_eq(is.live[DISPATCHER_SCORED], was.live[DISPATCHER_SCORED]);
    ck_assert_uint_eq(is.live[DISPATCHER_ADMITTED], was.live[DISPATCHER_ADMITTED]);
    memcpy(was.live, is.live, sizeof(was.live));
    ck_assert_mem_eq(&was, &is, sizeof(was));
    struct dispatcher_ticket ticket;
    ck_assert_int_eq(dispatcher_issue(loaded, 0, 100, &ticket), RL_OK);
    ck_assert_uint_eq(ticket.number, 3); /* the lowest that was under way */
    free(data);
    dispatcher_destroy(loaded);
    dispatcher_destroy(saved);
}
END_TEST

START_TEST(broken_bytes_are_refused)
{
    struct dispatcher *saved = busy_make();
    struct dispatcher *target = dispatcher_make(5, 2);
    uint8_t *data = NULL;
    size_t bytes = 0;
    ck_assert_int_eq(dispatcher_save(saved, &data, &bytes), RL_OK);
    for (size_t cut = 0; cut < bytes; cut++) {
        ck_assert_int_eq(dispatcher_load(target, data, cut), RL_CORRUPT);
    }
    for (size_t i = 0; i < bytes; i++) {
        data[i] ^= (uint8_t)(1u << (i % 8));
        ck_assert_int_eq(dispatcher_load(target, data, bytes), RL_CORRUPT);
        data[i] ^= (uint8_t)(1u << (i % 8));
    }
    struct dispatcher_counters counters;
    dispatcher_count(target, &counters);
    ck_assert_uint_eq(counters.created, 0);
    struct dispatcher_options options = {
        .prompts_per_step = 5, .max_staleness = 2, .next = next_prompt, .next_arg = &other_data};
    struct dispatcher *other = NULL;
    ck_assert_int_eq(dispatcher_create(&options, &other), RL_OK);
    ck_assert_int_eq(dispatcher_load(other, data, bytes), RL_INVALID); /* another data set */
    ck_assert_int_eq(dispatcher_load(target, data, bytes), RL_OK);
    free(data);
    dispatcher_destroy(other);
    dispatcher_destroy(target);
    dispatcher_destroy(saved);
}
END_TEST

/* --- admission
 * ------------------------------------------------------------------------------------ */

/* Groups are made of one token a sample. */
static struct trajectory_group *group_make(uint64_t ticket, uint32_t version, float first,
                                           float second)
{
    struct trajectory_group *group = NULL;
    const int32_t tokens[2] = {1, 2};
    const float logprob[1] = {-0.5f};
    const float reward[SAMPLES] = {first, second};
    ck_assert_int_eq(trajectory_group_create(SAMPLES, &group), RL_OK);
    group->ticket = ticket;
    group->prompt_id = ticket % PROMPTS;
    group->epoch = (uint32_t)(ticket / PROMPTS);
    for (uint32_t s = 0; s < SAMPLES; s++) {
        struct trajectory *sample = &group->samples[s];
        ck_assert_int_eq(trajectory_set_tokens(sample, tokens, logprob, &version, 1, 1), RL_OK);
        sample->sample_index = s;
        sample->finish = RL_FINISH_STOP;
        sample->reward_valid = true;
        sample->reward = sample->accuracy = reward[s];
    }
    return group;
}

static struct admission *admission_make(struct dispatcher *dispatcher, uint32_t prompts,
                                        uint32_t eta, uint32_t rounds)
{
    struct admission_options options = {.prompts_per_step = prompts,
                                        .samples_per_prompt = SAMPLES,
                                        .max_staleness = eta,
                                        .dynamic_sampling = rounds > 0,
                                        .dynamic_sampling_rounds = rounds};
    struct admission *admission = NULL;
    ck_assert_int_eq(admission_create(&options, dispatcher, &admission), RL_OK);
    return admission;
}

static void offer(struct admission *admission, struct trajectory_group *group)
{
    ck_assert_int_eq(admission_offer(admission, group), RL_OK);
}

START_TEST(batches_are_oldest_first_in_ticket_order)
{
    struct dispatcher *d = dispatcher_make(2, 3);
    struct admission *a = admission_make(d, 2, 3, 0);
    struct admission_batch batch = {0};
    ck_assert_int_eq(dispatcher_set_version(d, 2), RL_OK);
    ck_assert_uint_eq(issue_all(d, 0, 4), 4);
    offer(a, group_make(3, 0, 1, 0));
    ck_assert_int_eq(admission_take(a, &batch), RL_AGAIN);
    offer(a, group_make(2, 2, 1, 0));
    offer(a, group_make(1, 1, 1, 0));
    ck_assert_int_eq(admission_take(a, &batch), RL_OK);
    ck_assert_uint_eq(batch.count, 2);
    ck_assert_uint_eq(batch.groups[0]->ticket, 1);
    ck_assert_uint_eq(batch.groups[1]->ticket, 3);
    ck_assert_uint_eq(batch.staleness_max, 2);
    ck_assert_double_eq(batch.staleness_mean, 1.5);
    ck_assert_uint_eq(batch.counts.queued, 3);
    uint32_t waiting = 0;
    ck_assert_uint_eq(admission_waiting(a, &waiting)[0]->ticket, 2);
    ck_assert_uint_eq(waiting, 1);
    ck_assert_int_eq(admission_trained(a, &batch), RL_OK);
    ck_assert_int_eq(admission_trained(a, &batch), RL_INVALID); /* never twice */
    admission_batch_fini(&batch);
    admission_batch_fini(&batch);
    ck_assert_int_eq(dispatcher_check(d), RL_OK);
    admission_destroy(a);
    dispatcher_destroy(d);
}
END_TEST

START_TEST(stale_groups_are_dropped_on_arrival_and_while_waiting)
{
    struct dispatcher *d = dispatcher_make(2, 1);
    struct admission *a = admission_make(d, 2, 1, 0);
    struct admission_batch batch = {0};
    ck_assert_uint_eq(issue_all(d, 0, 4), 4);
    offer(a, group_make(0, 0, 1, 0));
    ck_assert_int_eq(dispatcher_set_version(d, 1), RL_OK);
    ck_assert_int_eq(admission_take(a, &batch), RL_AGAIN); /* age 1 is allowed */
    ck_assert_int_eq(dispatcher_set_version(d, 2), RL_OK);
    offer(a, group_make(1, 0, 1, 0));
    offer(a, group_make(2, 1, 1, 0));
    ck_assert_int_eq(admission_take(a, &batch), RL_AGAIN);
    struct dispatcher_counters counters;
    dispatcher_count(d, &counters);
    ck_assert_uint_eq(counters.dropped[DISPATCHER_STALE], 2);
    ck_assert_uint_eq(issue_all(d, 0, 100), 2);
    offer(a, group_make(3, 2, 1, 0));
    ck_assert_int_eq(admission_take(a, &batch), RL_OK);
    ck_assert_uint_eq(batch.counts.stale, 2);
    ck_assert_uint_eq(batch.staleness_max, 1);
    ck_assert_int_eq(admission_rejected(a, &batch), RL_OK);
    admission_batch_fini(&batch);
    dispatcher_count(d, &counters);
    ck_assert_uint_eq(counters.dropped[DISPATCHER_REJECTED], 2);
    ck_assert_int_eq(dispatcher_check(d), RL_OK);
    admission_destroy(a);
    dispatcher_destroy(d);
}
END_TEST

START_TEST(dynamic_sampling_refills_and_gives_up)
{
    struct dispatcher *d = dispatcher_make(2, 1);
    struct admission *a = admission_make(d, 2, 1, 3);
    struct admission_batch batch = {0};
    ck_assert_uint_eq(issue_all(d, 0, 2), 2);
    offer(a, group_make(0, 0, 1, 0));
    for (uint64_t ticket = 1; ticket < 5; ticket++) {
        offer(a, group_make(ticket, 0, ticket % 2 == 0 ? 1 : 0, ticket % 2 == 0 ? 1 : 0));
        ck_assert_int_eq(admission_take(a, &batch), RL_AGAIN);
        ck_assert_uint_eq(issue_all(d, 0, 1), 1);
    }
    offer(a, group_make(5, 0, 0, 0));
    ck_assert_int_eq(admission_take(a, &batch), RL_NOT_FOUND); /* 6 groups seen = 3 rounds */
    ck_assert_uint_eq(issue_all(d, 0, 1), 1);
    offer(a, group_make(6, 0, 0, 1));
    ck_assert_int_eq(admission_take(a, &batch), RL_OK);
    ck_assert_uint_eq(batch.counts.filtered_solved, 2);
    ck_assert_uint_eq(batch.counts.filtered_unsolved, 3);
    ck_assert_uint_eq(batch.groups[0]->ticket, 0);
    ck_assert_uint_eq(batch.groups[1]->ticket, 6);
    admission_batch_fini(&batch);
    ck_assert_int_eq(dispatcher_check(d), RL_OK);
    admission_destroy(a);
    dispatcher_destroy(d);
}
END_TEST

START_TEST(equal_rewards_are_kept_without_dynamic_sampling)
{
    struct dispatcher *d = dispatcher_make(1, 0);
    struct admission *a = admission_make(d, 1, 0, 0);
    struct admission_batch batch = {0};
    ck_assert_uint_eq(issue_all(d, 0, 9), 1);
    offer(a, group_make(0, 0, 1, 1));
    ck_assert_int_eq(admission_take(a, &batch), RL_OK);
    ck_assert_uint_eq(batch.counts.zero_variance, 1);
    ck_assert_uint_eq(batch.counts.filtered_solved, 0);
    admission_batch_fini(&batch);
    admission_destroy(a);
    dispatcher_destroy(d);
}
END_TEST

/* Each spoils a group in another way. */
static void spoil(struct trajectory_group *group, int how)
{
    switch (how) {
    case 0:
        group->prompt_id++;
        break;
    case 1:
        group->samples[1].sample_index = 0;
        break;
    case 2:
        group->samples[0].version[0] = 9; /* from the future */
        break;
    case 3:
        group->samples[0].completion_count = group->samples[1].completion_count = 0;
        break;
    default:
        group->epoch++;
        break;
    }
}

START_TEST(malformed_and_unscorable_groups_are_counted)
{
    struct dispatcher *d = dispatcher_make(10, 0);
    struct admission *a = admission_make(d, 10, 0, 0);
    ck_assert_uint_eq(issue_all(d, 0, 100), 10);
    for (int how = 0; how < 5; how++) {
        struct trajectory_group *group = group_make((uint64_t)how, 0, 1, 0);
        spoil(group, how);
        offer(a, group);
    }
    struct trajectory_group *null = group_make(5, 0, 0, 0);
    null->samples[0].reward_valid = null->samples[1].reward_valid = false;
    offer(a, null);
    offer(a, group_make(5, 0, 1, 0));  /* duplicate of a dropped one */
    offer(a, group_make(77, 0, 1, 0)); /* never issued */
    struct dispatcher_counters counters;
    dispatcher_count(d, &counters);
    ck_assert_uint_eq(counters.dropped[DISPATCHER_REJECTED], 5);
    ck_assert_uint_eq(counters.dropped[DISPATCHER_UNSCORABLE], 1);
    ck_assert_uint_eq(counters.duplicates, 1);
    ck_assert_uint_eq(counters.unknown, 1);
    ck_assert_int_eq(dispatcher_check(d), RL_OK);
    admission_destroy(a);
    dispatcher_destroy(d);
}
END_TEST

/* A ticket not made yet, and tokens of a version not made yet: refused with a reason, nothing lost.
 */
START_TEST(a_ticket_from_the_future_is_refused)
{
    struct dispatcher *d = dispatcher_make(4, 0);
    struct admission *a = admission_make(d, 4, 0, 0);
    struct dispatcher_counters counters;
    struct admission_batch batch = {0};
    ck_assert_uint_eq(issue_all(d, 0, 100), 4);
    offer(a, group_make(4, 0, 1, 0)); /* the next to be made */
    offer(a, group_make(UINT64_MAX, 0, 1, 0));
    dispatcher_count(d, &counters);
    ck_assert_uint_eq(counters.unknown, 2);
    ck_assert_uint_eq(counters.live[DISPATCHER_ISSUED], 4);
    offer(a, group_make(0, 1, 1, 0)); /* by version 1 of a learner at version 0 */
    dispatcher_count(d, &counters);
    ck_assert_uint_eq(counters.dropped[DISPATCHER_REJECTED], 1);
    ck_assert_uint_eq(issue_all(d, 0, 100), 1); /* replaced */
    for (uint64_t number = 1; number < 5; number++) {
        offer(a, group_make(number, 0, 1, 0));
    }
    ck_assert_int_eq(admission_take(a, &batch), RL_OK);
    ck_assert_uint_eq(batch.count, 4);
    ck_assert_int_eq(admission_trained(a, &batch), RL_OK);
    ck_assert_int_eq(dispatcher_check(d), RL_OK);
    admission_batch_fini(&batch);
    admission_destroy(a);
    dispatcher_destroy(d);
}
END_TEST

START_TEST(useless_groups_without_end_are_an_error)
{
    struct dispatcher *d = dispatcher_make(2, 0);
    struct admission *a = admission_make(d, 2, 0, 0);
    struct admission_batch batch = {0};
    rl_status status = RL_AGAIN;
    uint64_t ticket = 0;
    while (status == RL_AGAIN && ticket < 1000) {
        ck_assert_uint_eq(issue_all(d, 0, 1), 1);
        struct trajectory_group *group = group_make(ticket++, 0, 1, 0);
        group->samples[0].reward_valid = group->samples[1].reward_valid = false;
        offer(a, group);
        status = admission_take(a, &batch);
    }
    ck_assert_int_eq(status, RL_NOT_FOUND);
    ck_assert_uint_eq(ticket, 20);
    admission_destroy(a);
    dispatcher_destroy(d);
}
END_TEST

START_TEST(waiting_groups_survive_a_checkpoint)
{
    struct dispatcher *d = dispatcher_make(3, 1);
    struct admission *a = admission_make(d, 3, 1, 0);
    ck_assert_uint_eq(issue_all(d, 0, 4), 4);
    offer(a, group_make(2, 0, 1, 0));
    offer(a, group_make(1, 0, 1, 0));
    uint8_t *data = NULL;
    size_t bytes = 0;
    ck_assert_int_eq(dispatcher_save(d, &data, &bytes), RL_OK);
    struct dispatcher *d2 = dispatcher_make(3, 1);
    ck_assert_int_eq(dispatcher_load(d2, data, bytes), RL_OK);
    struct admission *a2 = admission_make(d2, 3, 1, 0);
    uint32_t count = 0;
    struct trajectory_group *const *waiting = admission_waiting(a, &count);
    for (uint32_t i = 0; i < count; i++) {
        struct trajectory_group *copy = NULL;
        ck_assert_int_eq(trajectory_group_copy(waiting[i], &copy), RL_OK);
        ck_assert_int_eq(admission_restore(a2, copy), RL_OK);
        ck_assert_int_eq(admission_restore(a2, copy), RL_INVALID);
    }
    struct admission_batch batch = {0};
    ck_assert_int_eq(admission_take(a2, &batch), RL_AGAIN);
    ck_assert_uint_eq(issue_all(d2, 1, 9), 4); /* two under way before, two new */
    offer(a2, group_make(0, 0, 1, 0));
    ck_assert_int_eq(admission_take(a2, &batch), RL_OK);
    for (uint64_t i = 0; i < 3; i++) {
        ck_assert_uint_eq(batch.groups[i]->ticket, i);
    }
    admission_batch_fini(&batch);
    free(data);
    admission_destroy(a2);
    dispatcher_destroy(d2);
    admission_destroy(a);
    dispatcher_destroy(d);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("dispatcher");
    TCase *tests = tcase_create("all");
    tcase_add_test(tests, the_rule_bounds_what_is_ahead);
    tcase_add_test(tests, synchronous_means_one_step_at_a_time);
    tcase_add_test(tests, prompts_come_in_their_order);
    tcase_add_test(tests, workers_get_fair_shares);
    tcase_add_test(tests, a_dead_workers_tickets_are_issued_again);
    tcase_add_test(tests, wrong_moves_are_refused);
    tcase_add_test(tests, state_survives_as_bytes);
    tcase_add_test(tests, broken_bytes_are_refused);
    tcase_add_test(tests, batches_are_oldest_first_in_ticket_order);
    tcase_add_test(tests, stale_groups_are_dropped_on_arrival_and_while_waiting);
    tcase_add_test(tests, dynamic_sampling_refills_and_gives_up);
    tcase_add_test(tests, equal_rewards_are_kept_without_dynamic_sampling);
    tcase_add_test(tests, malformed_and_unscorable_groups_are_counted);
    tcase_add_test(tests, a_ticket_from_the_future_is_refused);
    tcase_add_test(tests, useless_groups_without_end_are_an_error);
    tcase_add_test(tests, waiting_groups_survive_a_checkpoint);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
