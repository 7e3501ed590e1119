/* STaR's hint-and-retry: a second prompt set with the answers in the prompts, written to
 * RUN/hints/round_000001.jsonl, sampled as a corpus of its own. */
#include "app/distill.h"

#include "core/folder_make.h"
#include "core/log.h"
#include "core/text.h"
#include "transport/atomic_file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HINT_LIMIT_BYTES = 1 << 22, HINT_PATH_BYTES = CHECKPOINT_PATH_MAX + 64 };
static const char hint_index_field[] = "distill_prompt"; /* of a hinted row: the prompt it is of */

static bool is_solved(const struct trajectory_group *group)
{
    for (uint32_t i = 0; i < group->sample_count; i++) {
        if (group->samples[i].reward_valid && group->samples[i].accuracy >= 1) {
            return true;
        }
    }
    return false;
}

/* The template with the row's texts in it. */
static rl_status hinted_text(const char *template, const struct prompt *prompt, struct rl_text *out)
{
    static const char *const names[] = {"{prompt}", "{answer}"};
    const char *values[] = {prompt->text, prompt->ground_truth};
    rl_text_clear(out);
    for (const char *at = template; *at != '\0';) {
        int which = strncmp(at, names[0], strlen(names[0])) == 0   ? 0
                    : strncmp(at, names[1], strlen(names[1])) == 0 ? 1
                                                                   : -1;
        if (which >= 0) {
            RL_TRY(rl_text_append_str(out, values[which]));
            at += strlen(names[which]);
        } else {
            RL_TRY(rl_text_append_byte(out, *at++));
        }
    }
    return RL_OK;
}

/* The messages with another text for the user's last one; NULL if the row has none. */
static json_t *hinted_messages(const json_t *row, const char *text)
{
    static const char *const names[] = {"prompt", "messages"};
    for (size_t n = 0; n < sizeof(names) / sizeof(names[0]); n++) {
        const json_t *list = json_object_get(row, names[n]);
        if (!json_is_array(list)) {
            continue;
        }
        json_t *copy = json_deep_copy(list);
        for (size_t i = json_array_size(copy); i-- > 0;) {
            json_t *message = json_array_get(copy, i);
            const char *role = json_string_value(json_object_get(message, "role"));
            if (role != NULL && strcmp(role, "user") == 0) {
                json_object_set_new(message, "content", json_string(text));
                return copy;
            }
        }
        json_decref(copy);
    }
    return NULL;
}

static rl_status write_row(const struct distill *d, uint64_t index, struct rl_text *text, FILE *out)
{
    const struct prompt *prompt = prompts_at(d->prompts, index);
    RL_TRY(hinted_text(d->config->distill.hint_template, prompt, text));
    json_t *row = json_loads(prompt->row_json, 0, NULL);
    json_t *hinted = hinted_messages(row, rl_text_str(text));
    if (hinted == NULL) {
        hinted = json_string(rl_text_str(text));
    }
    bool ok = row != NULL && json_object_set_new(row, "prompt", hinted) == 0 &&
              json_object_set_new(row, hint_index_field, json_integer((json_int_t)index)) == 0 &&
              json_dumpf(row, out, JSON_COMPACT) == 0 && fputc('\n', out) != EOF;
    json_decref(row);
    return ok ? RL_OK : rl_fail(RL_NO_MEMORY, "distill: out of memory for hints");
}

static rl_status write_rows(const struct distill *d, const struct corpus_samples *samples,
                            const char *path)
{
    struct rl_text text;
    char *data = NULL;
    size_t bytes = 0;
    FILE *memory = open_memstream(&data, &bytes);
    rl_status status =
        memory != NULL ? RL_OK : rl_fail(RL_NO_MEMORY, "distill: out of memory for hints");
    rl_text_init(&text, HINT_LIMIT_BYTES);
    for (uint64_t i = 0; i < samples->count && status == RL_OK; i++) {
        if (!is_solved(samples->groups[i])) {
            status = write_row(d, i, &text, memory);
        }
    }
    rl_text_fini(&text);
    if (memory != NULL && fclose(memory) != 0 && status == RL_OK) {
        status = rl_fail(RL_NO_MEMORY, "distill: out of memory for hints");
    }
    if (status == RL_OK) {
        status = atomic_file_write_all(path, data, bytes);
    }
    free(data);
    return status;
}

/* Rank 0 writes the rows, all ranks read them. */
static rl_status load_hints(struct distill *d, const struct corpus_samples *samples,
                            struct prompts **out)
{
    char path[HINT_PATH_BYTES];
    rl_status worst = RL_OK;
    rl_status mine = RL_OK;
    snprintf(path, sizeof(path), "%s/hints", d->tune.dir);
    if (d->tune.leader) {
        mine = rl_folder_make(path);
    }
    snprintf(path, sizeof(path), "%s/hints/round_%06llu.jsonl", d->tune.dir,
             (unsigned long long)d->round + 1);
    if (d->tune.leader && mine == RL_OK) {
        mine = write_rows(d, samples, path);
    }
    RL_TRY(collective_agree(d->team.collective, mine, &worst));
    RL_TRY(worst);
    return prompts_load(path, d->config, d->session.tokenizer, d->session.chat, out);
}

/* The sample's completion behind the prompt as it was without the hint. */
static rl_status take_hint_out(const struct prompt *prompt, struct trajectory *sample)
{
    size_t count = (size_t)prompt->token_count + sample->completion_count;
    int32_t *tokens = malloc(count * sizeof(*tokens));
    if (tokens == NULL) {
        return rl_fail(RL_NO_MEMORY, "distill: out of memory");
    }
    memcpy(tokens, prompt->tokens, prompt->token_count * sizeof(*tokens));
    if (sample->completion_count > 0) {
        memcpy(tokens + prompt->token_count, sample->tokens + sample->prompt_count,
               sample->completion_count * sizeof(*tokens));
    }
    rl_status status = trajectory_set_tokens(sample, tokens, sample->logprob, sample->version,
                                             prompt->token_count, sample->completion_count);
    free(tokens);
    return status;
}

/* Put the hinted group in the place of the one of the prompt that its row names. */
static rl_status replace_group(const struct distill *d, const struct prompts *hinted,
                               struct corpus_samples *samples, struct trajectory_group **group,
                               uint64_t *rescued)
{
    json_t *row = json_loads(prompts_at(hinted, (*group)->prompt_id)->row_json, 0, NULL);
    const json_t *field = json_object_get(row, hint_index_field);
    uint64_t index = json_is_integer(field) ? (uint64_t)json_integer_value(field) : UINT64_MAX;
    json_decref(row);
    if (index >= samples->count) {
        return rl_fail(RL_CORRUPT, "distill: a hinted row names no prompt");
    }
    for (uint32_t i = 0; i < (*group)->sample_count; i++) {
        RL_TRY(take_hint_out(prompts_at(d->prompts, index), &(*group)->samples[i]));
    }
    (*group)->prompt_id = index;
    *rescued += is_solved(*group);
    trajectory_group_destroy(samples->groups[index]);
    samples->groups[index] = *group;
    *group = NULL;
    return RL_OK;
}

static rl_status note_retry(struct distill *d, const struct corpus_samples *retried,
                            uint64_t rescued)
{
    json_t *part = json_pack("{s:{s:s, s:I, s:I}}", "retry", "corpus", retried->key, "prompts",
                             (json_int_t)retried->count, "solved", (json_int_t)rescued);
    int failed = part == NULL ? -1 : json_object_update(d->figures, part);
    json_decref(part);
    return failed == 0 ? RL_OK : rl_fail(RL_NO_MEMORY, "distill: out of memory");
}

rl_status distill_retry(struct distill *d, struct corpus_samples *samples)
{
    struct corpus_request request;
    struct corpus_samples retried = {0};
    struct prompts *hinted = NULL;
    uint64_t failed = 0;
    uint64_t rescued = 0;
    rl_status status = RL_OK;
    for (uint64_t i = 0; i < samples->count; i++) {
        failed += !is_solved(samples->groups[i]);
    }
    if (failed == 0) {
        return RL_OK;
    }
    RL_TRY(load_hints(d, samples, &hinted));
    distill_request(d, hinted, DISTILL_HINT_EPOCH, &request);
    RL_TRY_GOTO(distill_sample(d, &request, &retried), status, done);
    for (uint64_t i = 0; i < retried.count; i++) {
        RL_TRY_GOTO(replace_group(d, hinted, samples, &retried.groups[i], &rescued), status, done);
    }
    status = note_retry(d, &retried, rescued);
done:
    corpus_samples_fini(&retried);
    prompts_destroy(hinted);
    return status;
}
