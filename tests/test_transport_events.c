/* events.bin: what is written is read back; nothing else is accepted: every truncation, flips,
 * records that are missing, repeated or out of their place, counts that promise too much. */
#include "core/log.h"
#include "core/rng.h"
#include "transport/event_file.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char dir[64];
static char path[128];

static void make_folder(void)
{
    snprintf(dir, sizeof(dir), "/tmp/foresight-events-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/events.bin", dir);
    rl_log_set_level((enum rl_log_level) - 1);
}

static void remove_folder(void)
{
    unlink(path);
    rmdir(dir);
}

/* --- what is written
 * ---------------------------------------------------------------------------- */

enum { GROUPS = 3, SAMPLES = 2, STEPS = 4 };
static const char config_text[] = "run:\n  seed: 7\n";

static struct trajectory_group *make_group(uint64_t ticket, uint32_t version)
{
    static const int32_t tokens[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    static const float logprob[6] = {-0.5F, -1.0F, -0.25F, -2.0F, -0.125F, -3.0F};
    struct trajectory_group *group = NULL;
    ck_assert_int_eq(trajectory_group_create(SAMPLES, &group), RL_OK);
    group->ticket = ticket;
    group->prompt_id = ticket % 5;
    group->epoch = (uint32_t)ticket / 5;
    for (uint32_t s = 0; s < SAMPLES; s++) {
        uint32_t versions[6] = {version, version, version + 1, version + 1, version + 3, version};
        uint32_t count = s == 1 && ticket == 8 ? 0 : 6 - s;
        group->samples[s].sample_index = s;
        group->samples[s].reward_valid = s == 0;
        group->samples[s].reward = 1.0F;
        group->samples[s].finish = RL_FINISH_STOP;
        ck_assert_int_eq(
            trajectory_set_tokens(&group->samples[s], tokens, logprob, versions, 2, count), RL_OK);
    }
    return group;
}

static struct event_step step_head(uint64_t step)
{
    return (struct event_step){.step = step,
                               .version = (uint32_t)step + 1,
                               .image_hash = 0x1111 * step,
                               .master_hash = ~step,
                               .updates = 2,
                               .skipped = step % 2};
}

static void make_groups(struct trajectory_group **groups, uint64_t step)
{
    static const uint64_t tickets[GROUPS] = {300, 8, 9};
    for (int g = 0; g < GROUPS; g++) {
        groups[g] = make_group(tickets[g], (uint32_t)step);
    }
}

static void write_step(struct event_writer *writer, uint64_t number)
{
    struct trajectory_group *groups[GROUPS];
    struct event_step step = step_head(number);
    make_groups(groups, number);
    ck_assert_int_eq(
        event_write_step(writer, &step, (const struct trajectory_group *const *)groups, GROUPS),
        RL_OK);
    for (int g = 0; g < GROUPS; g++) {
        trajectory_group_destroy(groups[g]);
    }
}

static const struct event_start start_record = {.seed = UINT64_MAX,
                                                .isa = 2,
                                                .threads = 3,
                                                .learners = 1,
                                                .prompts_hash = 5,
                                                .image_hash = 6,
                                                .master_hash = 7,
                                                .config = config_text,
                                                .config_bytes = sizeof(config_text) - 1};
static const struct event_rollback rollback_record = {.step = 5, .to_step = 2, .rate_scale = 0.5};

/* start, then STEPS of (arrival, step, checkpoint), rollback, end */
static void write_all(struct event_writer *writer)
{
    ck_assert_int_eq(event_write_start(writer, &start_record), RL_OK);
    for (uint64_t step = 1; step <= STEPS; step++) {
        struct event_arrival arrival = {step << 40, (uint32_t)step, EVENT_STALE};
        ck_assert_int_eq(event_write_arrival(writer, &arrival), RL_OK);
        write_step(writer, step);
        ck_assert_int_eq(event_write_checkpoint(writer, step), RL_OK);
    }
    ck_assert_int_eq(event_write_rollback(writer, &rollback_record), RL_OK);
    ck_assert_int_eq(event_write_delta(writer, &(struct event_delta){"bytes", 5}), RL_OK);
    ck_assert_int_eq(event_write_end(writer, STEPS), RL_OK);
}

static void write_file(void)
{
    struct event_writer *writer = NULL;
    ck_assert_int_eq(event_writer_create(path, &writer), RL_OK);
    write_all(writer);
    event_writer_close(writer);
}

static void check_step(const struct event_step *step, uint64_t number)
{
    struct event_step head = step_head(number);
    struct trajectory_group *groups[GROUPS];
    make_groups(groups, number);
    ck_assert_uint_eq(step->step, number);
    ck_assert_uint_eq(step->version, head.version);
    ck_assert_uint_eq(step->image_hash, head.image_hash);
    ck_assert_uint_eq(step->master_hash, head.master_hash);
    ck_assert_uint_eq(step->updates, 2);
    ck_assert_uint_eq(step->skipped, number % 2);
    ck_assert_uint_eq(step->group_count, GROUPS);
    for (uint32_t g = 0; g < GROUPS; g++) {
        const struct event_group *group = &step->groups[g];
        ck_assert_uint_eq(group->ticket, groups[g]->ticket);
        ck_assert_uint_eq(group->prompt_id, groups[g]->prompt_id);
        ck_assert_uint_eq(group->epoch, groups[g]->epoch);
        ck_assert_uint_eq(group->digest, event_group_digest(groups[g]));
        ck_assert_uint_eq(group->sample_count, SAMPLES);
        for (uint32_t s = 0; s < SAMPLES; s++) {
            const struct event_sample *sample = &step->samples[group->first_sample + s];
            const struct trajectory *made = &groups[g]->samples[s];
            ck_assert_uint_eq(sample->completion_count, made->completion_count);
            ck_assert_int_eq(sample->unscored, !made->reward_valid);
            for (uint32_t r = 0, i = 0; i < made->completion_count; i++) {
                const struct event_run *runs = &step->runs[sample->first_run];
                r += r + 1 < sample->run_count && runs[r + 1].position == i;
                ck_assert_uint_eq(runs[r].version, made->version[i]);
            }
        }
        trajectory_group_destroy(groups[g]);
    }
}

/* Read all; the status that ended it. */
static rl_status read_all(uint64_t *records, uint64_t *last_end)
{
    struct event_file *file = NULL;
    struct event event = {0};
    rl_status status = event_file_open(path, &file);
    *records = 0;
    while (status == RL_OK && (status = event_file_next(file, &event)) == RL_OK) {
        (*records)++;
        *last_end = event_file_offset(file);
        event_fini(&event);
    }
    event_file_close(file);
    return status;
}

START_TEST(round_trip)
{
    struct event_file *file = NULL;
    struct event event = {0};
    uint64_t step = 0;
    uint64_t records = 0;
    write_file();
    ck_assert_int_eq(event_file_open(path, &file), RL_OK);
    while (event_file_next(file, &event) == RL_OK) {
        records++;
        switch (event.kind) {
        case EVENT_START:
            ck_assert_uint_eq(event.start.seed, UINT64_MAX);
            ck_assert_uint_eq(event.start.isa, 2);
            ck_assert_uint_eq(event.start.threads, 3);
            ck_assert_uint_eq(event.start.master_hash, 7);
            ck_assert_uint_eq(event.start.config_bytes, sizeof(config_text) - 1);
            ck_assert_int_eq(memcmp(event.start.config, config_text, sizeof(config_text) - 1), 0);
            break;
        case EVENT_ARRIVAL:
            step++;
            ck_assert_uint_eq(event.arrival.ticket, step << 40);
            ck_assert_uint_eq(event.arrival.worker, step);
            ck_assert_int_eq(event.arrival.verdict, EVENT_STALE);
            break;
        case EVENT_STEP:
            check_step(&event.step, step);
            break;
        case EVENT_ROLLBACK:
            ck_assert_uint_eq(event.rollback.to_step, 2);
            ck_assert(event.rollback.rate_scale == 0.5);
            break;
        case EVENT_DELTA:
            ck_assert_uint_eq(event.delta.bytes, 5);
            ck_assert_mem_eq(event.delta.data, "bytes", 5);
            break;
        default:
            ck_assert_uint_eq(event.checkpoint, step);
        }
        event_fini(&event);
    }
    ck_assert_uint_eq(records, 4 + 3 * STEPS);
    event_file_close(file);
}
END_TEST

/* --- what is refused
 * ---------------------------------------------------------------------------- */

static char *slurp(size_t *bytes)
{
    char *data = NULL;
    ck_assert_int_eq(rl_file_read(path, 1 << 20, &data, bytes), RL_OK);
    return data;
}

static void spit(const char *data, size_t bytes)
{
    FILE *file = fopen(path, "wb");
    ck_assert_ptr_nonnull(file);
    ck_assert_uint_eq(fwrite(data, 1, bytes, file), bytes);
    fclose(file);
}

START_TEST(every_truncation)
{
    size_t bytes = 0;
    uint64_t records = 0;
    uint64_t end = 0;
    uint64_t whole = 0;
    write_file();
    char *data = slurp(&bytes);
    for (size_t cut = 0; cut < bytes; cut++) {
        end = 8;
        spit(data, cut);
        rl_status status = read_all(&records, &end);
        ck_assert_int_eq(status, cut >= 8 && end == cut ? RL_END : RL_CORRUPT);
        ck_assert_uint_ge(records, whole);
        whole = records;
    }
    ck_assert_uint_eq(whole, 3 + 3 * STEPS);
    free(data);
}
END_TEST

START_TEST(every_flip)
{
    struct rl_rng rng = rl_rng_make(1, 2);
    size_t bytes = 0;
    uint64_t records = 0;
    uint64_t end = 0;
    write_file();
    char *data = slurp(&bytes);
    for (size_t at = 0; at < bytes; at++) {
        char flip = (char)(1U << rl_rng_next_below(&rng, 8));
        data[at] ^= flip;
        spit(data, bytes);
        ck_assert_int_eq(read_all(&records, &end), RL_CORRUPT);
        data[at] ^= flip;
    }
    free(data);
}
END_TEST

/* Offsets of all records and of the end. */
static size_t find_records(uint64_t *offsets)
{
    struct event_file *file = NULL;
    struct event event = {0};
    size_t count = 0;
    ck_assert_int_eq(event_file_open(path, &file), RL_OK);
    while (event_file_next(file, &event) == RL_OK) {
        offsets[count++] = event_file_record_offset(file);
        event_fini(&event);
    }
    offsets[count] = event_file_offset(file);
    event_file_close(file);
    return count;
}

START_TEST(missing_repeated_and_exchanged_records)
{
    uint64_t at[64];
    uint64_t records = 0;
    uint64_t end = 0;
    size_t bytes = 0;
    write_file();
    size_t count = find_records(at);
    char *data = slurp(&bytes);
    char *other = malloc(2 * bytes);
    for (size_t i = 0; i + 1 < count; i++) {
        size_t length = at[i + 1] - at[i];
        memcpy(other, data, at[i]);
        memcpy(other + at[i], data + at[i + 1], bytes - at[i + 1]);
        spit(other, bytes - length);
        ck_assert_int_eq(read_all(&records, &end), RL_CORRUPT);
        memcpy(other, data, at[i + 1]);
        memcpy(other + at[i + 1], data + at[i], bytes - at[i]);
        spit(other, bytes + length);
        ck_assert_int_eq(read_all(&records, &end), RL_CORRUPT);
        size_t next = at[i + 2 <= count ? i + 2 : count] - at[i + 1];
        memcpy(other, data, bytes);
        memcpy(other + at[i], data + at[i + 1], next);
        memcpy(other + at[i] + next, data + at[i], length);
        spit(other, bytes);
        ck_assert_int_eq(read_all(&records, &end), RL_CORRUPT);
    }
    free(other);
    free(data);
}
END_TEST

static void refuse(uint32_t kind, const void *data, size_t bytes)
{
    struct event event = {0};
    char problem[EVENT_PROBLEM_BYTES] = "";
    ck_assert_int_eq(event_decode(kind, data, bytes, &event, problem), RL_CORRUPT);
    ck_assert(problem[0] != '\0');
}

START_TEST(payloads_that_promise_too_much)
{
    unsigned char step[64] = {1, 2};
    static const unsigned char endless[11] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
                                              0xff, 0xff, 0xff, 0xff, 0x01};
    refuse(0, "", 0);
    refuse(EVENT_KIND_END, "", 0);
    refuse(99, "x", 1);
    refuse(EVENT_CHECKPOINT, endless, sizeof(endless));
    refuse(EVENT_CHECKPOINT, "\1\1", 2);
    refuse(EVENT_ARRIVAL, "\1\1\7", 3);
    memcpy(step + 20, "\xff\xff\xff\xff\x0f", 5); /* groups: 2^32 - 1 */
    refuse(EVENT_STEP, step, sizeof(step));
    memset(step + 20, 0, 5);
    step[20] = 1;
    memcpy(step + 32, "\xff\xff\xff\xff\x0f", 5); /* samples */
    refuse(EVENT_STEP, step, sizeof(step));
    memcpy(step + 32, "\1\x08\2\0\4\0", 6); /* a run that begins where the completion ends */
    refuse(EVENT_STEP, step, 38);
    memcpy(step + 32, "\1\x08\2\0\3\x09", 6); /* a version below 0 */
    refuse(EVENT_STEP, step, 38);
    step[37] = 0;
    struct event event = {0};
    char problem[EVENT_PROBLEM_BYTES];
    ck_assert_int_eq(event_decode(EVENT_STEP, step, 38, &event, problem), RL_OK);
    ck_assert_uint_eq(event.step.runs[1].position, 3);
    event_fini(&event);
}
END_TEST

/* --- going on
 * ----------------------------------------------------------------------------------- */

START_TEST(resume_behind_a_checkpoint)
{
    uint64_t before[64];
    uint64_t after[64];
    struct event_writer *writer = NULL;
    bool complete = false;
    size_t bytes = 0;
    write_file();
    size_t count = find_records(before);
    char *data = slurp(&bytes);
    spit(data, bytes - 3); /* torn */
    ck_assert_int_eq(event_writer_resume(path, 2, &writer, &complete), RL_OK);
    ck_assert(complete);
    ck_assert_uint_eq(event_writer_bytes(writer), before[7]); /* start, 2 x 3 */
    write_step(writer, 3);
    event_writer_close(writer);
    ck_assert_uint_eq(find_records(after), 8);
    ck_assert_mem_eq(before, after, 8 * sizeof(before[0]));
    ck_assert_uint_gt(count, 8);
    ck_assert_int_eq(event_writer_resume(path, 3, &writer, &complete), RL_OK);
    ck_assert(!complete); /* its step is there, its checkpoint is not */
    event_writer_close(writer);
    ck_assert_uint_eq(find_records(after), 8);
    unlink(path);
    ck_assert_int_eq(event_writer_resume(path, 3, &writer, &complete), RL_OK);
    ck_assert(!complete);
    event_writer_close(writer);
    ck_assert_uint_eq(find_records(after), 0);
    free(data);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("events");
    TCase *tests = tcase_create("events");
    tcase_add_checked_fixture(tests, make_folder, remove_folder);
    tcase_add_test(tests, round_trip);
    tcase_add_test(tests, every_truncation);
    tcase_add_test(tests, every_flip);
    tcase_add_test(tests, missing_repeated_and_exchanged_records);
    tcase_add_test(tests, payloads_that_promise_too_much);
    tcase_add_test(tests, resume_behind_a_checkpoint);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
