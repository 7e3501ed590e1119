/* The controller of max_staleness on a small model of the loop: a queue of groups, so many
 * generated at a time, a learner that takes the oldest B. Its choice is compared with the best
 * fixed bound, found by trying all. */
#include "trainer/staleness_control.h"

#include "core/rng.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>

enum { BATCH = 8, SLOTS_MAX = 256, LIVE_MAX = BATCH * (STALENESS_CONTROL_CAP + 2) };

struct loop {
    uint32_t slots;    /* groups generated at a time */
    double generate_s; /* median */
    double spread;     /* of the logarithm */
    double step_s;
    struct rl_rng rng;
    double now;
    double slot_free_s[SLOTS_MAX];
    double done_s[LIVE_MAX]; /* when each live group is finished */
    uint32_t live;
};

static void loop_init(struct loop *loop, uint32_t slots, double generate_s, double spread)
{
    *loop = (struct loop){.slots = slots,
                          .generate_s = generate_s,
                          .spread = spread,
                          .step_s = 1,
                          .rng = rl_rng_make(5, slots)};
}

static double duration(struct loop *loop)
{
    double u = rl_rng_next_uniform(&loop->rng);
    double v = rl_rng_next_uniform(&loop->rng);
    double normal = sqrt(-2 * log(1 - u)) * cos(6.283185307179586 * v);
    return loop->generate_s * exp(fmin(loop->spread * normal, 2.3));
}

/* Tickets as the rule allows, each to the slot that is free first. */
static void loop_issue(struct loop *loop, uint32_t eta)
{
    while (loop->live < (eta + 1) * BATCH) {
        uint32_t first = 0;
        for (uint32_t s = 1; s < loop->slots; s++) {
            first = loop->slot_free_s[s] < loop->slot_free_s[first] ? s : first;
        }
        double start = fmax(loop->now, loop->slot_free_s[first]);
        loop->slot_free_s[first] = start + duration(loop);
        loop->done_s[loop->live++] = loop->slot_free_s[first];
    }
}

static int compare(const void *left, const void *right)
{
    double a = *(const double *)left;
    double b = *(const double *)right;
    return (a > b) - (a < b);
}

/* One step; the time waited and the whole batches that were left over. */
static double loop_step(struct loop *loop, uint32_t eta, uint32_t *surplus)
{
    loop_issue(loop, eta);
    qsort(loop->done_s, loop->live, sizeof(double), compare);
    double ready = fmax(loop->now, loop->done_s[BATCH - 1]);
    double wait = ready - loop->now;
    uint32_t waiting = 0;
    while (waiting < loop->live && loop->done_s[waiting] <= ready) {
        waiting++;
    }
    *surplus = (waiting - BATCH) / BATCH;
    loop->now = ready + loop->step_s;
    loop->live -= BATCH;
    for (uint32_t i = 0; i < loop->live; i++) {
        loop->done_s[i] = loop->done_s[i + BATCH];
    }
    return wait;
}

/* Share of the time waited with a fixed bound. */
static double idle_at(const struct loop *start, uint32_t eta)
{
    struct loop loop = *start;
    double wait = 0;
    uint32_t surplus;
    for (int i = 0; i < 600; i++) {
        wait += loop_step(&loop, eta, &surplus);
    }
    return wait / loop.now;
}

/* Bound that the controller spends most of its later time with. */
static uint32_t chosen(const struct loop *start, uint32_t first, double *idle)
{
    struct loop loop = *start;
    struct staleness_control control;
    uint32_t often[STALENESS_CONTROL_CAP + 1] = {0};
    uint32_t best = 0;
    double wait_sum = 0;
    double time_sum = 0;
    staleness_control_init(&control, first);
    for (int i = 0; i < 6000; i++) {
        uint32_t surplus;
        double wait = loop_step(&loop, control.eta, &surplus);
        uint32_t before = control.eta;
        enum staleness_move move =
            staleness_control_step(&control, wait + loop.step_s, wait, surplus);
        ck_assert_uint_le(control.eta, STALENESS_CONTROL_CAP);
        ck_assert_uint_ge(control.limit, control.eta);
        ck_assert_int_eq(move == STALENESS_KEPT, control.eta == before);
        if (i >= 2000) {
            often[control.eta]++;
            wait_sum += wait;
            time_sum += wait + loop.step_s;
        }
    }
    for (uint32_t eta = 0; eta <= STALENESS_CONTROL_CAP; eta++) {
        best = often[eta] > often[best] ? eta : best;
    }
    *idle = wait_sum / time_sum;
    return best;
}

/* Enough slots: some bound removes the waiting, and the smallest such is found from above and from
 * below. */
START_TEST(finds_the_smallest_bound_without_waiting)
{
    static const double medians[] = {0.02, 0.5, 1.4, 2.6, 4.3};
    struct loop loop;
    loop_init(&loop, 200, medians[_i], 0.3);
    uint32_t best = 0;
    while (idle_at(&loop, best) > 0.03) {
        best++;
        ck_assert_uint_lt(best, STALENESS_CONTROL_CAP);
    }
    for (uint32_t first = 0; first <= 8; first += 4) {
        double idle;
        uint32_t eta = chosen(&loop, first, &idle);
        ck_assert_msg(eta == best, "median %g from %u: chose %u, the best is %u", medians[_i],
                      (unsigned)first, (unsigned)eta, (unsigned)best);
        ck_assert_double_lt(idle, 0.06); /* trials included */
    }
}
END_TEST

/* Too few slots: no bound removes the waiting, so it must not grow to the cap in search of one. */
START_TEST(does_not_fight_a_lack_of_workers)
{
    struct loop loop;
    double idle;
    loop_init(&loop, 4, 1, 0.3);
    double least = idle_at(&loop, STALENESS_CONTROL_CAP);
    ck_assert_double_gt(least, 0.4);
    uint32_t eta = chosen(&loop, 1, &idle);
    ck_assert_uint_le(eta, 2);
    ck_assert_double_lt(idle, least + 0.05);
}
END_TEST

/* What was issued under the larger bound may still be trained on after it was lowered. */
START_TEST(a_lower_bound_waits_for_older_tickets)
{
    struct staleness_control control;
    staleness_control_init(&control, 3);
    int steps = 0;
    while (staleness_control_step(&control, 1, 0, 5) == STALENESS_KEPT) {
        steps++;
    }
    ck_assert_uint_eq(control.eta, 2);
    ck_assert_uint_eq(control.limit, 3);
    for (int i = 0; i < 3; i++) {
        staleness_control_step(&control, 1, 0, 0);
        ck_assert_uint_eq(control.limit, 3);
    }
    staleness_control_step(&control, 1, 0, 0);
    ck_assert_uint_eq(control.limit, 2);
    ck_assert_int_ge(steps, STALENESS_CONTROL_WINDOW - 1);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("staleness control");
    TCase *tests = tcase_create("all");
    tcase_set_timeout(tests, 60);
    tcase_add_loop_test(tests, finds_the_smallest_bound_without_waiting, 0, 5);
    tcase_add_test(tests, does_not_fight_a_lack_of_workers);
    tcase_add_test(tests, a_lower_bound_waits_for_older_tickets);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
