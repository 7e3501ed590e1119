/* See stop_rules.h. Stop strings are looked for in the text of the last few tokens only. */
#include "rollout/stop_rules.h"

#include "core/log.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static rl_status add_id(struct stop_rules *rules, int32_t id)
{
    for (int32_t i = 0; i < rules->id_count; i++) {
        if (rules->ids[i] == id) {
            return RL_OK;
        }
    }
    if (rules->id_count == STOP_IDS_MAX) {
        return rl_fail(RL_INVALID, "more than %d stop ids", STOP_IDS_MAX);
    }
    rules->ids[rules->id_count++] = id;
    return RL_OK;
}

static rl_status add_listed_ids(struct stop_rules *rules, const char *token_ids)
{
    const char *at = token_ids;
    while (*at != '\0') {
        char *end = NULL;
        errno = 0;
        long id = strtol(at, &end, 10);
        if (end == at || errno != 0 || id < 0 || id > INT32_MAX || (*end != '\0' && *end != ',')) {
            return rl_fail(RL_INVALID, "rollout.stop_token_ids: '%s' is not a list of token ids",
                           token_ids);
        }
        RL_TRY(add_id(rules, (int32_t)id));
        at = *end == ',' ? end + 1 : end;
    }
    return RL_OK;
}

static rl_status add_strings(struct stop_rules *rules, const char *strings)
{
    const char *at = strings;
    while (*at != '\0') {
        size_t bytes = strcspn(at, ",");
        if (bytes > 0) {
            if (rules->string_count == STOP_STRINGS_MAX || rules->tokenizer == NULL) {
                return rl_fail(RL_INVALID, "rollout.stop: at most %d strings, and a tokenizer",
                               STOP_STRINGS_MAX);
            }
            char *copy = strndup(at, bytes);
            if (copy == NULL) {
                return rl_fail(RL_NO_MEMORY, "rollout.stop: out of memory");
            }
            rules->strings[rules->string_count++] = copy;
            rules->longest_bytes = bytes > rules->longest_bytes ? bytes : rules->longest_bytes;
        }
        at += bytes + (at[bytes] == ',');
    }
    return RL_OK;
}

rl_status stop_rules_init(struct stop_rules *rules, const struct model_architecture *arch,
                          const struct tokenizer *tokenizer, const char *token_ids,
                          const char *strings)
{
    rl_status status = RL_OK;
    *rules = (struct stop_rules){.tokenizer = tokenizer};
    for (int32_t i = 0; i < arch->eos_count; i++) {
        RL_TRY_GOTO(add_id(rules, arch->eos_ids[i]), status, fail);
    }
    if (tokenizer != NULL && tokenizer_eos_id(tokenizer) >= 0) {
        RL_TRY_GOTO(add_id(rules, tokenizer_eos_id(tokenizer)), status, fail);
    }
    RL_TRY_GOTO(add_listed_ids(rules, token_ids), status, fail);
    RL_TRY_GOTO(add_strings(rules, strings), status, fail);
    return RL_OK;
fail:
    stop_rules_fini(rules);
    return status;
}

void stop_rules_fini(struct stop_rules *rules)
{
    for (int32_t i = 0; i < rules->string_count; i++) {
        free(rules->strings[i]);
    }
    *rules = (struct stop_rules){0};
}

static rl_status text_has_stop(const struct stop_rules *rules, const int32_t *ids, int32_t count,
                               bool *stop)
{
    char *text = NULL;
    size_t bytes = 0;
    RL_TRY(tokenizer_decode(rules->tokenizer, ids, (size_t)count, false, &text, &bytes));
    for (int32_t i = 0; i < rules->string_count && !*stop; i++) {
        *stop = memmem(text, bytes, rules->strings[i], strlen(rules->strings[i])) != NULL;
    }
    free(text);
    return RL_OK;
}

rl_status stop_rules_check(const struct stop_rules *rules, const int32_t *completion, int32_t count,
                           bool *stop)
{
    bool found = false;
    for (int32_t i = 0; i < rules->id_count; i++) {
        found = found || completion[count - 1] == rules->ids[i];
    }
    if (!found && rules->string_count > 0) {
        /* A token is at least one byte, but for rare empty ones: twice the bytes is ample. */
        int32_t tail = (int32_t)(2 * rules->longest_bytes + 4);
        tail = tail < count ? tail : count;
        RL_TRY(text_has_stop(rules, completion + count - tail, tail, &found));
    }
    *stop = found;
    return RL_OK;
}
