/* Fuzz targets: one function per reader of bytes that we do not control. Each takes any bytes and
 * returns true if they were accepted; it aborts where a promise of the reader is broken, everything
 * else is left to the sanitizers. Shared by the endless driver (fuzz_inputs.c) and by the short run
 * among the tests (test_fuzz_smoke.c). Owns a scratch folder in memory and the seeds to start from.
 */
#ifndef FORESIGHT_TESTS_FUZZ_TARGETS_H
#define FORESIGHT_TESTS_FUZZ_TARGETS_H

#include "core/config.h"
#include "model/architecture.h"
#include "model/chat.h"
#include "model/safetensors.h"
#include "model/tokenizer.h"
#include "rewards/expression.h"
#include "rewards/number_text.h"
#include "rewards/reward.h"
#include "rollout/prompt_row.h"
#include "transport/event_record.h"
#include "transport/weight_delta.h"
#include "transport/wire.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

static char fuzz_dir[64]; /* scratch folder; made on first use, removed by fuzz_clean */

static inline void fuzz_must(bool holds, const char *what)
{
    if (!holds) {
        fprintf(stderr, "fuzz: broken promise: %s\n", what);
        abort();
    }
}

/* The bytes as a string; caller frees it. */
static inline char *fuzz_string(const uint8_t *data, size_t bytes)
{
    char *text = malloc(bytes + 1);
    fuzz_must(text != NULL, "memory");
    memcpy(text, data, bytes);
    text[bytes] = '\0';
    return text;
}

/* Write a file into the scratch folder; its path is in `path` [128]. */
static inline void fuzz_file(const char *name, const void *data, size_t bytes, char *path)
{
    if (fuzz_dir[0] == '\0') {
        const char *base = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
        snprintf(fuzz_dir, sizeof(fuzz_dir), "%s/foresight-fuzz-XXXXXX", base);
        fuzz_must(mkdtemp(fuzz_dir) != NULL, "a scratch folder");
    }
    snprintf(path, 128, "%s/%s", fuzz_dir, name);
    FILE *file = fopen(path, "wb");
    fuzz_must(file != NULL && fwrite(data, 1, bytes, file) == bytes && fclose(file) == 0,
              "scratch file written");
}

static inline void fuzz_clean(void)
{
    static const char *const names[] = {"config.yaml",     "dump.yaml",
                                        "config.json",     "model.safetensors",
                                        "tokenizer.json",  "tokenizer_config.json",
                                        "back.safetensors"};
    char path[128];
    for (size_t i = 0; fuzz_dir[0] != '\0' && i < sizeof(names) / sizeof(names[0]); i++) {
        snprintf(path, sizeof(path), "%s/%s", fuzz_dir, names[i]);
        unlink(path);
    }
    if (fuzz_dir[0] != '\0') {
        rmdir(fuzz_dir);
        fuzz_dir[0] = '\0';
    }
}

/* --- frames between ranks ---------------------------------------------------------------------*/

/* What was decoded must encode to the same bytes again. */
static inline bool fuzz_wire_decode(const struct channel_message *message)
{
    struct wire_hello hello;
    struct wire_ticket ticket;
    struct wire_status progress;
    struct wire_stop stop;
    struct trajectory_group *group = NULL;
    struct channel_message back = {0};
    const void *data = NULL;
    size_t bytes = 0;
    uint64_t id = 0;
    rl_status again = RL_OK;
    if (wire_decode_group(message, &group) == RL_OK) {
        fuzz_must(trajectory_group_check(group) == RL_OK, "a decoded group is sound");
        again = wire_encode_group(group, &back);
        trajectory_group_destroy(group);
    } else if (wire_decode_hello(message, &hello) == RL_OK) {
        again = wire_encode_hello(&hello, &back);
    } else if (wire_decode_ticket(message, &ticket) == RL_OK) {
        again = wire_encode_ticket(&ticket, &back);
    } else if (wire_decode_status(message, &progress) == RL_OK) {
        again = wire_encode_status(&progress, &back);
    } else if (wire_decode_stop(message, &stop) == RL_OK) {
        again = wire_encode_stop(&stop, &back);
    } else if (wire_decode_snapshot(message, &id) == RL_OK) {
        again = wire_encode_snapshot(id, &back);
    } else if (wire_decode_partial(message, &id, &group) == RL_OK) {
        again = wire_encode_partial(id, group, &back);
        trajectory_group_destroy(group);
    } else if (wire_decode_bytes(message, &data, &bytes) == RL_OK) {
        again = wire_encode_bytes(data, bytes, &back);
    } else {
        return false;
    }
    fuzz_must(again == RL_OK && back.bytes == message->bytes, "a decoded frame encodes again");
    free(back.data);
    return true;
}

static inline bool fuzz_wire(const uint8_t *data, size_t bytes)
{
    struct channel_message message = {.bytes = bytes, .data = malloc(bytes + 1)};
    uint32_t kind = 0;
    uint8_t *frame = message.data;
    fuzz_must(frame != NULL, "memory");
    memcpy(frame, data, bytes);
    wire_frame_check(frame, bytes, &kind);
    if (bytes >= WIRE_HEADER_BYTES) { /* with sound sizes and hash, so that payloads are read */
        uint64_t payload = bytes - WIRE_HEADER_BYTES;
        memcpy(&kind, frame + 8, sizeof(kind));
        uint64_t hash = XXH3_64bits_withSeed(frame + WIRE_HEADER_BYTES, payload, kind);
        memcpy(frame + 16, &payload, sizeof(payload));
        memcpy(frame + 24, &hash, sizeof(hash));
    }
    message.kind = kind;
    bool accepted = fuzz_wire_decode(&message);
    free(message.data);
    return accepted;
}

/* --- weight deltas ----------------------------------------------------------------------------*/

enum { FUZZ_IMAGE_BYTES = 256 };

static inline void fuzz_image(uint8_t image[FUZZ_IMAGE_BYTES])
{
    for (int i = 0; i < FUZZ_IMAGE_BYTES; i++) {
        image[i] = (uint8_t)(i * 7);
    }
}

/* Against a fixed base, with a sound checksum so that the parts are read. Only an image with the
 * header's hash is accepted, and the same delta over the result changes nothing. */
static inline bool fuzz_delta(const uint8_t *data, size_t bytes)
{
    uint8_t base[FUZZ_IMAGE_BYTES], image[FUZZ_IMAGE_BYTES], again[FUZZ_IMAGE_BYTES];
    struct weight_delta_info info;
    struct weight_delta_base from = {.image = base, .image_bytes = sizeof(base), .version = 3};
    uint8_t *copy = malloc(bytes + 1);
    fuzz_must(copy != NULL, "memory");
    fuzz_image(base);
    memcpy(copy, data, bytes);
    from.hash = XXH3_64bits(base, sizeof(base));
    fuzz_must(weight_delta_apply(copy, bytes, &from, image) != RL_OK ||
                  weight_delta_inspect(copy, bytes, &info) == RL_OK,
              "what is applied can be inspected");
    if (bytes >= WEIGHT_DELTA_HEADER_BYTES) {
        uint64_t seed = XXH3_64bits(copy, WEIGHT_DELTA_HEADER_BYTES - 8);
        uint64_t sum = XXH3_64bits_withSeed(copy + WEIGHT_DELTA_HEADER_BYTES,
                                            bytes - WEIGHT_DELTA_HEADER_BYTES, seed);
        memcpy(copy + WEIGHT_DELTA_HEADER_BYTES - 8, &sum, sizeof(sum));
    }
    bool accepted = weight_delta_apply(copy, bytes, &from, image) == RL_OK;
    if (accepted) {
        fuzz_must(weight_delta_inspect(copy, bytes, &info) == RL_OK &&
                      XXH3_64bits(image, sizeof(image)) == info.hash,
                  "the image has the delta's hash");
        from.image = image;
        fuzz_must(weight_delta_apply(copy, bytes, &from, again) == RL_OK &&
                      memcmp(image, again, sizeof(image)) == 0,
                  "a delta is idempotent");
    }
    free(copy);
    return accepted;
}

/* --- configuration ----------------------------------------------------------------------------*/

static inline bool fuzz_config(const uint8_t *data, size_t bytes)
{
    struct rl_config config, back;
    char path[128];
    char *text = NULL;
    size_t text_bytes = 0;
    fuzz_file("config.yaml", data, bytes, path);
    fuzz_must(rl_config_init(&config) == RL_OK, "memory");
    bool accepted = rl_config_load(&config, path) == RL_OK && rl_config_validate(&config) == RL_OK;
    if (accepted) {
        FILE *memory = open_memstream(&text, &text_bytes);
        fuzz_must(memory != NULL && rl_config_dump(&config, memory) == RL_OK, "it is written");
        fclose(memory);
        fuzz_file("dump.yaml", text, text_bytes, path);
        fuzz_must(rl_config_init(&back) == RL_OK && rl_config_load(&back, path) == RL_OK,
                  "what was written is read");
        fuzz_must(strcmp(config.run.name, back.run.name) == 0 &&
                      strcmp(config.data.prompt_template, back.data.prompt_template) == 0 &&
                      memcmp(&config.loss, &back.loss, sizeof(config.loss)) == 0,
                  "and means the same");
        rl_config_fini(&back);
        free(text);
    }
    rl_config_fini(&config);
    return accepted;
}

/* One override: section.name=value. */
static inline bool fuzz_override(const uint8_t *data, size_t bytes)
{
    struct rl_config config;
    char *text = fuzz_string(data, bytes);
    fuzz_must(rl_config_init(&config) == RL_OK, "memory");
    bool accepted = rl_config_override(&config, text) == RL_OK;
    rl_config_fini(&config);
    free(text);
    return accepted;
}

/* --- model folder -----------------------------------------------------------------------------*/

static inline bool fuzz_architecture(const uint8_t *data, size_t bytes)
{
    struct model_architecture arch;
    char path[128];
    fuzz_file("config.json", data, bytes, path);
    if (model_architecture_load(fuzz_dir, &arch) != RL_OK) {
        return false;
    }
    fuzz_must(arch.layers > 0 && arch.heads > 0 && arch.kv_heads > 0 &&
                  arch.heads % arch.kv_heads == 0 && arch.head_dim > 0 &&
                  arch.head_dim <= KERNEL_HEAD_DIM_MAX && arch.head_dim % 2 == 0,
              "an accepted architecture can be computed");
    float tables[2][4 * KERNEL_HEAD_DIM_MAX];
    model_rope_tables(&arch, 4, tables[0], tables[1]);
    return true;
}

static inline bool fuzz_safetensors(const uint8_t *data, size_t bytes)
{
    struct safetensors *file = NULL;
    char path[128];
    volatile uint8_t sum = 0;
    fuzz_file("model.safetensors", data, bytes, path);
    if (safetensors_open(path, &file) != RL_OK) {
        return false;
    }
    for (int64_t i = 0; i < safetensors_count(file); i++) {
        const struct safetensors_entry *entry = safetensors_at(file, i);
        const uint8_t *raw = entry->data;
        fuzz_must(safetensors_find(file, entry->name) == entry, "found by name");
        for (size_t k = 0; k < entry->bytes; k++) {
            sum = (uint8_t)(sum + raw[k]);
        }
        int64_t elements = safetensors_elements(entry);
        fuzz_must(elements >= 0 && (entry->bytes > 0 || elements == 0), "sizes agree");
        float *values = malloc(((size_t)elements + 1) * sizeof(float));
        fuzz_must(values != NULL, "elements fit the file");
        if (safetensors_check_dtype(entry) == RL_OK) {
            safetensors_to_fp32(entry, 0, elements, values);
        }
        free(values);
    }
    safetensors_close(file);
    return true;
}

static inline bool fuzz_tokenizer(const uint8_t *data, size_t bytes)
{
    static const char text[] = "Hello, w\xc3\xb6rld 12345\n\n  3+4=7 <|end|>\xff\xe2\x82 it's";
    struct tokenizer *tokenizer = NULL;
    struct token_buffer ids = {0};
    char *back = NULL;
    size_t back_bytes = 0;
    char path[128];
    fuzz_file("tokenizer.json", data, bytes, path);
    if (tokenizer_load(fuzz_dir, &tokenizer) != RL_OK) {
        return false;
    }
    for (unsigned flags = 0; flags < 4; flags++) {
        ids.count = 0;
        if (tokenizer_encode(tokenizer, text, sizeof(text) - 1, flags, &ids) != RL_OK) {
            continue;
        }
        for (size_t i = 0; i < ids.count; i++) {
            fuzz_must(ids.ids[i] >= 0 && ids.ids[i] < tokenizer_vocab_count(tokenizer),
                      "an id within the vocabulary");
        }
        if (tokenizer_decode(tokenizer, ids.ids, ids.count, flags > 1, &back, &back_bytes) ==
            RL_OK) {
            fuzz_must(strlen(back) <= back_bytes, "the text ends");
            free(back);
        }
    }
    token_buffer_fini(&ids);
    tokenizer_destroy(tokenizer);
    return true;
}

/* --- data rows --------------------------------------------------------------------------------*/

static inline bool fuzz_row(const uint8_t *data, size_t bytes)
{
    struct prompt_row row = {0};
    char problem[PROMPT_PROBLEM_BYTES] = "";
    if (prompt_row_parse((const char *)data, bytes, &row, problem) != RL_OK) {
        fuzz_must(problem[0] != '\0' && strlen(problem) < sizeof(problem), "says what is wrong");
        return false;
    }
    fuzz_must(row.text != NULL && row.ground_truth != NULL && row.data_source != NULL,
              "an accepted row has its fields");
    for (size_t i = 0; i < row.message_count; i++) {
        fuzz_must(row.messages[i].role != NULL && row.messages[i].content != NULL,
                  "a message has role and content");
    }
    prompt_row_fini(&row);
    return true;
}

/* --- records of a run -------------------------------------------------------------------------*/

static inline void fuzz_event_step(const struct event_step *step)
{
    for (uint32_t g = 0; g < step->group_count; g++) {
        const struct event_group *group = &step->groups[g];
        fuzz_must(group->first_sample + group->sample_count <= step->sample_count,
                  "samples within the step");
    }
    for (uint32_t s = 0; s < step->sample_count; s++) {
        const struct event_sample *sample = &step->samples[s];
        fuzz_must(sample->first_run + sample->run_count <= step->run_count, "runs within the step");
        for (uint32_t r = 0; r < sample->run_count; r++) {
            const struct event_run *run = &step->runs[sample->first_run + r];
            fuzz_must(run->position < sample->completion_count, "a run within its completion");
            fuzz_must(r == 0 ? run->position == 0 : run->position > run[-1].position,
                      "runs in order");
        }
    }
}

/* One byte for the kind, then the payload. */
static inline bool fuzz_event(const uint8_t *data, size_t bytes)
{
    struct event event = {0};
    char problem[EVENT_PROBLEM_BYTES] = "";
    uint32_t kind = bytes > 0 ? data[0] : 0;
    rl_status status = event_decode(kind, data + (bytes > 0), bytes - (bytes > 0), &event, problem);
    if (status != RL_OK) {
        fuzz_must(status == RL_CORRUPT && problem[0] != '\0', "says what is wrong");
        return false;
    }
    if (event.kind == EVENT_STEP) {
        fuzz_event_step(&event.step);
    }
    event_fini(&event);
    return true;
}

/* --- answers ----------------------------------------------------------------------------------*/

static inline bool fuzz_expression(const uint8_t *data, size_t bytes)
{
    struct answer_span span = {(const char *)data, bytes};
    struct expression_numbers numbers = {.count = 0};
    struct rational *value = rational_create();
    fuzz_must(value != NULL, "memory");
    const char *problem = expression_evaluate(span, value, &numbers);
    fuzz_must(numbers.count <= EXPRESSION_NUMBERS_MAX, "numbers within their bound");
    rational_destroy(value);
    return problem == NULL;
}

static inline bool fuzz_number(const uint8_t *data, size_t bytes)
{
    struct answer_span span = {(const char *)data, bytes};
    struct number number = {.value = rational_create()};
    fuzz_must(number.value != NULL, "memory");
    bool whole = number_read_whole(span, &number);
    bool last = number_read_last(span, &number);
    bool first = number_read_first(span, &number);
    fuzz_must(!last || number_same(&number, &number), "a number equals itself");
    rational_destroy(number.value);
    return whole || last || first;
}

/* Completion and gold answer, separated by the byte 1, through whole reward functions. */
static inline bool fuzz_reward(const uint8_t *data, size_t bytes)
{
    static const char *const functions[] = {"numeric", "countdown", "exact"};
    char *text = fuzz_string(data, bytes);
    bool accepted = false;
    char *gold = text + strcspn(text, "\001");
    if (*gold != '\0') {
        *gold++ = '\0';
    }
    struct reward_input input = {"", text, gold, "", "{}", false};
    for (size_t i = 0; i < 3; i++) {
        struct rl_config config;
        struct reward_set *set = NULL;
        struct reward_output out = {0};
        fuzz_must(rl_config_init(&config) == RL_OK, "memory");
        free(config.rewards.functions);
        config.rewards.functions = strdup(functions[i]);
        fuzz_must(reward_set_create(&config, &set) == RL_OK, "known functions");
        reward_set_evaluate(set, &input, &out);
        fuzz_must(!out.valid || (out.value >= 0.0 && out.value <= 1.0), "a value in [0, 1]");
        accepted = accepted || (out.valid && out.value > 0.0);
        reward_set_destroy(set);
        rl_config_fini(&config);
    }
    free(text);
    return accepted;
}

#endif
