/* Frames: what goes in comes out, and nothing but that gets through. Cut, flipped, forged and
 * random frames must be refused without reading past their end (run under ASan to see it). */
#include "transport/wire.h"

#include "core/log.h"
#include "core/rng.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

static struct trajectory_group *group_make(uint32_t samples, uint32_t longest, uint64_t seed)
{
    struct rl_rng rng = rl_rng_make(seed, 1);
    struct trajectory_group *group = NULL;
    ck_assert_int_eq(trajectory_group_create(samples, &group), RL_OK);
    group->ticket = 1000 + seed;
    group->prompt_id = 77;
    group->epoch = 3;
    group->worker = 2;
    group->started_s = 12.5;
    group->finished_s = 13.75;
    int32_t *tokens = calloc(2 * (size_t)longest + 2, sizeof *tokens);
    float *logprob = calloc((size_t)longest + 1, sizeof *logprob);
    uint32_t *version = calloc((size_t)longest + 1, sizeof *version);
    for (uint32_t i = 0; i < samples; i++) {
        uint32_t prompt = 1 + (uint32_t)rl_rng_next_below(&rng, longest);
        uint32_t completion = (uint32_t)rl_rng_next_below(&rng, longest + 1);
        for (uint32_t t = 0; t < prompt + completion; t++) {
            tokens[t] = (int32_t)rl_rng_next_below(&rng, 150000);
        }
        for (uint32_t t = 0; t < completion; t++) {
            logprob[t] = -(float)rl_rng_next_uniform(&rng) * 5.0f;
            version[t] = 40 + t / 4;
        }
        struct trajectory *sample = &group->samples[i];
        ck_assert_int_eq(
            trajectory_set_tokens(sample, tokens, logprob, version, prompt, completion), RL_OK);
        sample->finish = i % 2 == 0 ? RL_FINISH_STOP : RL_FINISH_LENGTH;
        sample->reward_valid = i != 1;
        sample->reward = i == 1 ? NAN : 0.25f * (float)i;
        sample->accuracy = i % 3 == 0 ? 1.0f : 0.0f;
        sample->kept_mass = 1.0f / (float)(i + 1);
        sample->reward_part_count = 2;
        sample->reward_part[0] = 1.0f;
        sample->reward_part[1] = -0.5f;
    }
    free(tokens);
    free(logprob);
    free(version);
    return group;
}

static void sample_compare(const struct trajectory *a, const struct trajectory *b)
{
    size_t tokens = (size_t)a->prompt_count + a->completion_count;
    ck_assert_uint_eq(a->sample_index, b->sample_index);
    ck_assert_uint_eq(a->prompt_count, b->prompt_count);
    ck_assert_uint_eq(a->completion_count, b->completion_count);
    ck_assert_int_eq(a->finish, b->finish);
    ck_assert_int_eq(a->reward_valid, b->reward_valid);
    ck_assert_int_eq(memcmp(&a->reward, &b->reward, sizeof a->reward), 0);
    ck_assert_int_eq(memcmp(&a->accuracy, &b->accuracy, sizeof a->accuracy), 0);
    ck_assert_uint_eq(a->reward_part_count, b->reward_part_count);
    ck_assert_int_eq(memcmp(a->reward_part, b->reward_part, sizeof a->reward_part), 0);
    if (a->prompt_count + a->completion_count == 0) {
        return; /* not finished: no arrays */
    }
    ck_assert_int_eq(memcmp(a->tokens, b->tokens, tokens * sizeof *a->tokens), 0);
    ck_assert_int_eq(memcmp(a->logprob, b->logprob, a->completion_count * sizeof *a->logprob), 0);
    ck_assert_int_eq(memcmp(a->version, b->version, a->completion_count * sizeof *a->version), 0);
}

static void group_compare(const struct trajectory_group *a, const struct trajectory_group *b)
{
    ck_assert_uint_eq(a->ticket, b->ticket);
    ck_assert_uint_eq(a->prompt_id, b->prompt_id);
    ck_assert_uint_eq(a->epoch, b->epoch);
    ck_assert_int_eq(a->worker, b->worker);
    ck_assert_uint_eq(a->sample_count, b->sample_count);
    ck_assert(a->started_s == b->started_s && a->finished_s == b->finished_s);
    for (uint32_t i = 0; i < a->sample_count; i++) {
        sample_compare(&a->samples[i], &b->samples[i]);
    }
}

START_TEST(group_round_trip)
{
    struct trajectory_group *group = group_make(1 + (uint32_t)_i, 1 + 7 * (uint32_t)_i, 5);
    struct channel_message message = {.peer = 1};
    ck_assert_int_eq(wire_encode_group(group, &message), RL_OK);
    ck_assert_uint_eq(message.kind, WIRE_GROUP);
    struct trajectory_group *back = NULL;
    ck_assert_int_eq(wire_decode_group(&message, &back), RL_OK);
    group_compare(group, back);
    trajectory_group_destroy(back);
    trajectory_group_destroy(group);
    channel_message_fini(&message);
}
END_TEST

START_TEST(small_round_trips)
{
    struct channel_message message = {0};
    struct wire_hello hello = {.rank = 3,
                               .world_size = 9,
                               .pid = 12345,
                               .config_hash = 0x1234567890abcdefu,
                               .slot_bytes = UINT64_C(1) << 40,
                               .arena_name = "/foresight-1-0",
                               .host = "node7"};
    struct wire_hello hello_back;
    ck_assert_int_eq(wire_encode_hello(&hello, &message), RL_OK);
    ck_assert_int_eq(wire_decode_hello(&message, &hello_back), RL_OK);
    ck_assert_uint_eq(hello_back.slot_bytes, hello.slot_bytes);
    ck_assert_uint_eq(hello_back.config_hash, hello.config_hash);
    ck_assert_str_eq(hello_back.arena_name, hello.arena_name);
    ck_assert_str_eq(hello_back.host, hello.host);
    channel_message_fini(&message);

    struct wire_ticket ticket = {UINT64_MAX, 5, 6, 8, 99, 7, true};
    struct wire_ticket ticket_back;
    ck_assert_int_eq(wire_encode_ticket(&ticket, &message), RL_OK);
    ck_assert_int_eq(wire_decode_ticket(&message, &ticket_back), RL_OK);
    ck_assert_uint_eq(ticket_back.ticket, ticket.ticket);
    ck_assert_uint_eq(ticket_back.prompt_id, ticket.prompt_id);
    ck_assert_uint_eq(ticket_back.epoch, ticket.epoch);
    ck_assert_uint_eq(ticket_back.sample_count, ticket.sample_count);
    ck_assert_uint_eq(ticket_back.seed, ticket.seed);
    ck_assert_uint_eq(ticket_back.version, ticket.version);
    ck_assert(ticket_back.pinned);
    channel_message_fini(&message);

    struct wire_status status = {.rank = 1,
                                 .version = 2,
                                 .tickets_open = 5,
                                 .weight_switches = 8,
                                 .decode_busy_s = 0.5,
                                 .cpu_s = 2.5,
                                 .time_s = {4.5, 5.5},
                                 .passes = {{1, 2}, {3}, 6.5, 7, 9}};
    struct wire_status status_back;
    ck_assert_int_eq(wire_encode_status(&status, &message), RL_OK);
    ck_assert_int_eq(wire_decode_status(&message, &status_back), RL_OK);
    ck_assert_int_eq(memcmp(&status, &status_back, sizeof status), 0);
    channel_message_fini(&message);

    struct wire_stop stop = {WIRE_STOP_INTERRUPTED, -3};
    struct wire_stop stop_back;
    ck_assert_int_eq(wire_encode_stop(&stop, &message), RL_OK);
    ck_assert_int_eq(wire_decode_stop(&message, &stop_back), RL_OK);
    ck_assert_int_eq(stop_back.exit_code, -3);
    channel_message_fini(&message);

    const void *data = NULL;
    size_t bytes = 0;
    ck_assert_int_eq(wire_encode_bytes("abc", 3, &message), RL_OK);
    ck_assert_int_eq(wire_decode_bytes(&message, &data, &bytes), RL_OK);
    ck_assert_uint_eq(bytes, 3);
    ck_assert_int_eq(memcmp(data, "abc", 3), 0);
    channel_message_fini(&message);
}
END_TEST

START_TEST(snapshot_and_partial_round_trips)
{
    struct channel_message message = {0};
    uint64_t id = 0;
    ck_assert_int_eq(wire_encode_snapshot(UINT64_MAX - 3, &message), RL_OK);
    ck_assert_int_eq(wire_decode_snapshot(&message, &id), RL_OK);
    ck_assert_uint_eq(id, UINT64_MAX - 3);
    channel_message_fini(&message);

    struct trajectory_group *group = group_make(3, 9, 2);
    struct trajectory_group *back = NULL;
    free(group->samples[1].tokens); /* not finished */
    group->samples[1] = (struct trajectory){.sample_index = 1};
    ck_assert_int_eq(wire_encode_partial(8, group, &message), RL_OK);
    ck_assert_int_eq(wire_decode_partial(&message, &id, &back), RL_OK);
    ck_assert_uint_eq(id, 8);
    ck_assert_uint_eq(back->samples[1].completion_count, 0);
    group_compare(group, back);
    trajectory_group_destroy(back);
    trajectory_group_destroy(group);
    channel_message_fini(&message);

    ck_assert_int_eq(wire_encode_partial(9, NULL, &message), RL_OK);
    ck_assert_int_eq(wire_decode_partial(&message, &id, &back), RL_OK);
    ck_assert_uint_eq(id, 9);
    ck_assert_ptr_null(back);
    channel_message_fini(&message);
}
END_TEST

START_TEST(encoders_refuse)
{
    struct channel_message message = {0};
    struct wire_hello hello = {.rank = 1, .world_size = 1};
    ck_assert_int_eq(wire_encode_hello(&hello, &message), RL_INVALID);
    hello.world_size = 2;
    hello.host[0] = '\n';
    ck_assert_int_eq(wire_encode_hello(&hello, &message), RL_INVALID);
    struct wire_ticket ticket = {.sample_count = 0};
    ck_assert_int_eq(wire_encode_ticket(&ticket, &message), RL_INVALID);
    ticket.sample_count = WIRE_SAMPLES_MAX + 1;
    ck_assert_int_eq(wire_encode_ticket(&ticket, &message), RL_INVALID);
    struct wire_status status = {.idle_s = NAN};
    ck_assert_int_eq(wire_encode_status(&status, &message), RL_INVALID);
    status = (struct wire_status){.time_s = {[RL_ROLLOUT_TIME_DECODE] = -1}};
    ck_assert_int_eq(wire_encode_status(&status, &message), RL_INVALID);
    struct wire_stop stop = {.reason = 17};
    ck_assert_int_eq(wire_encode_stop(&stop, &message), RL_INVALID);
    struct trajectory_group *group = group_make(2, 4, 1);
    group->started_s = INFINITY;
    ck_assert_int_eq(wire_encode_group(group, &message), RL_INVALID);
    group->started_s = 0;
    group->samples[0].reward = NAN;
    ck_assert_int_eq(wire_encode_group(group, &message), RL_INVALID);
    trajectory_group_destroy(group);
    ck_assert_ptr_null(message.data);
}
END_TEST

/* Decode bytes as every kind, from memory of exactly that size. */
static int decode_any(const unsigned char *data, size_t bytes)
{
    unsigned char *exact = malloc(bytes > 0 ? bytes : 1);
    ck_assert_ptr_nonnull(exact);
    memcpy(exact, data, bytes);
    struct channel_message message = {.bytes = bytes, .data = exact};
    struct wire_hello hello;
    struct wire_ticket ticket;
    struct wire_status status;
    struct wire_stop stop;
    struct trajectory_group *group = NULL;
    const void *payload = NULL;
    size_t payload_bytes = 0;
    uint64_t id = 0;
    int accepted = wire_decode_hello(&message, &hello) == RL_OK;
    accepted += wire_decode_ticket(&message, &ticket) == RL_OK;
    accepted += wire_decode_status(&message, &status) == RL_OK;
    accepted += wire_decode_stop(&message, &stop) == RL_OK;
    accepted += wire_decode_bytes(&message, &payload, &payload_bytes) == RL_OK;
    accepted += wire_decode_snapshot(&message, &id) == RL_OK;
    if (wire_decode_partial(&message, &id, &group) == RL_OK) {
        accepted++;
        trajectory_group_destroy(group);
    }
    if (wire_decode_group(&message, &group) == RL_OK) {
        accepted++;
        trajectory_group_destroy(group);
    }
    free(exact);
    return accepted;
}

START_TEST(truncation_and_flips)
{
    struct trajectory_group *group = group_make(3, 6, 9);
    struct channel_message message = {0};
    ck_assert_int_eq(wire_encode_group(group, &message), RL_OK);
    unsigned char *frame = message.data;
    ck_assert_int_eq(decode_any(frame, message.bytes), 1);
    for (size_t bytes = 0; bytes < message.bytes; bytes++) {
        ck_assert_int_eq(decode_any(frame, bytes), 0);
    }
    for (size_t bit = 0; bit < message.bytes * 8; bit++) {
        frame[bit / 8] ^= (unsigned char)(1u << bit % 8);
        ck_assert_msg(decode_any(frame, message.bytes) == 0, "bit %zu got through", bit);
        frame[bit / 8] ^= (unsigned char)(1u << bit % 8);
    }
    trajectory_group_destroy(group);
    channel_message_fini(&message);
}
END_TEST

/* A sender with the right hash and wrong contents: the fields' own checks must hold. */
START_TEST(forged_payloads)
{
    struct trajectory_group *group = group_make(3, 6, 11);
    struct channel_message message = {0};
    ck_assert_int_eq(wire_encode_group(group, &message), RL_OK);
    struct rl_rng rng = rl_rng_make(4, 4);
    unsigned char *copy = malloc(message.bytes);
    int refused = 0;
    for (int round = 0; round < 20000; round++) {
        size_t bytes = message.bytes;
        memcpy(copy, message.data, bytes);
        int changes = 1 + (int)rl_rng_next_below(&rng, 4);
        for (int i = 0; i < changes; i++) {
            size_t at = WIRE_HEADER_BYTES + rl_rng_next_below(&rng, bytes - WIRE_HEADER_BYTES);
            copy[at] = (unsigned char)rl_rng_next_bits(&rng);
        }
        if (round % 3 == 0) {
            bytes -= rl_rng_next_below(&rng, bytes - WIRE_HEADER_BYTES);
        }
        uint32_t kind = 1 + (uint32_t)rl_rng_next_below(&rng, WIRE_PARTIAL);
        kind = round % 2 == 0 ? WIRE_GROUP : kind;
        uint64_t payload = bytes - WIRE_HEADER_BYTES;
        uint64_t hash = XXH3_64bits_withSeed(copy + WIRE_HEADER_BYTES, payload, kind);
        memcpy(copy + 8, &kind, sizeof kind);
        memcpy(copy + 16, &payload, sizeof payload);
        memcpy(copy + 24, &hash, sizeof hash);
        refused += decode_any(copy, bytes) == 0;
    }
    ck_assert_int_gt(refused, 5000);
    free(copy);
    trajectory_group_destroy(group);
    channel_message_fini(&message);
}
END_TEST

START_TEST(random_bytes)
{
    struct rl_rng rng = rl_rng_make(8, 8);
    unsigned char data[300];
    for (int round = 0; round < 20000; round++) {
        size_t bytes = rl_rng_next_below(&rng, sizeof data + 1);
        for (size_t i = 0; i < bytes; i++) {
            data[i] = (unsigned char)rl_rng_next_bits(&rng);
        }
        ck_assert_int_eq(decode_any(data, bytes), 0);
    }
}
END_TEST

int main(void)
{
    rl_log_set_level((enum rl_log_level) - 1); /* thousands of refusals are expected */
    Suite *suite = suite_create("wire");
    TCase *tests = tcase_create("frames");
    tcase_add_loop_test(tests, group_round_trip, 0, 9);
    tcase_add_test(tests, small_round_trips);
    tcase_add_test(tests, snapshot_and_partial_round_trips);
    tcase_add_test(tests, encoders_refuse);
    tcase_add_test(tests, truncation_and_flips);
    tcase_add_test(tests, forged_payloads);
    tcase_add_test(tests, random_bytes);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
