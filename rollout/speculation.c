/* See speculation.h. */
#include "rollout/speculation.h"

#include "core/log.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum {
    RUNS = 3,         /* kinds of runs indexed */
    MATCH_MAX = 40,   /* longer matches are no better */
    MATCH_KINDS = 10, /* lengths of matches told apart */
    INDEX_DELAY = 8,  /* tokens: a run is indexed when so many follow it */
    TABLE_MIN = 1 << 8,
    TABLE_MAX = 1 << 14,
    MEMORY = 256 /* matches that the learnt rates look back on, about */
};

static const int32_t run_length[RUNS] = {8, 4, 2};

/* A position in a sample's text, prompt included. */
struct place {
    int32_t sample, position;
};

struct slot {
    int32_t group, sample;
    int32_t *completion;
    int32_t match;     /* tokens before `next` that are also the slot's last ones; 0: no guess */
    struct place next; /* the token there is the guess */
};

struct rollout_speculation {
    struct rollout_speculation_limits limits;
    uint32_t table_places;                    /* power of two */
    struct rollout_speculation_group *groups; /* [max_groups] */
    struct slot *slots;                       /* [max_running] */
    struct place *tables;      /* [max_groups][RUNS][table_places]: where a run was followed last */
    float right[MATCH_KINDS];  /* share of guesses that were right */
    int32_t seen[MATCH_KINDS]; /* matches learnt from, up to MEMORY */
};

/* --- life cycle ---------------------------------------------------------------------------------
 */

static uint32_t table_places(const struct rollout_speculation_limits *limits)
{
    int64_t tokens = 2 * ((int64_t)limits->max_prompt + 2 * (int64_t)limits->max_completion);
    uint32_t places = TABLE_MIN;
    while (places < TABLE_MAX && places < tokens) {
        places *= 2;
    }
    return places;
}

static size_t table_bytes(const struct rollout_speculation_limits *limits)
{
    return RUNS * (size_t)table_places(limits) * sizeof(struct place);
}

size_t rollout_speculation_bytes(const struct rollout_speculation_limits *limits)
{
    return (size_t)limits->max_groups *
               (sizeof(struct rollout_speculation_group) + table_bytes(limits)) +
           (size_t)limits->max_running * sizeof(struct slot);
}

rl_status rollout_speculation_create(const struct rollout_speculation_limits *limits,
                                     struct rollout_speculation **out)
{
    struct rollout_speculation *s = calloc(1, sizeof(*s));
    if (s == NULL) {
        return rl_fail(RL_NO_MEMORY, "speculation: out of memory");
    }
    s->limits = *limits;
    s->table_places = table_places(limits);
    s->groups = calloc((size_t)limits->max_groups, sizeof(*s->groups));
    s->slots = calloc((size_t)limits->max_running, sizeof(*s->slots));
    s->tables = calloc((size_t)limits->max_groups, table_bytes(limits));
    if (s->groups == NULL || s->slots == NULL || s->tables == NULL) {
        rollout_speculation_destroy(s);
        return rl_fail(RL_NO_MEMORY, "speculation: out of memory");
    }
    for (int32_t i = 0; i < MATCH_KINDS; i++) {
        s->right[i] = 0.5F;
    }
    *out = s;
    return RL_OK;
}

void rollout_speculation_destroy(struct rollout_speculation *speculation)
{
    if (speculation == NULL) {
        return;
    }
    free(speculation->groups);
    free(speculation->slots);
    free(speculation->tables);
    free(speculation);
}

/* --- texts and their index ----------------------------------------------------------------------
 */

static inline int32_t token_at(const struct rollout_speculation_group *group, struct place place)
{
    return place.position < group->prompt_count
               ? group->prompt[place.position]
               : group->texts[place.sample].completion[place.position - group->prompt_count];
}

/* Where the run of `length` tokens before `end` is kept. */
static struct place *entry_of(const struct rollout_speculation *s, int32_t group, int32_t kind,
                              struct place end)
{
    const struct rollout_speculation_group *g = &s->groups[group];
    uint64_t hash = 0x9E3779B97F4A7C15U;
    for (int32_t i = 1; i <= run_length[kind]; i++) {
        struct place place = {end.sample, end.position - i};
        hash = (hash ^ (uint32_t)token_at(g, place)) * 0xD1342543DE82EF95U;
        hash ^= hash >> 32;
    }
    size_t table = (size_t)group * RUNS + (size_t)kind;
    return &s->tables[table * s->table_places + (hash & (s->table_places - 1))];
}

/* Note all runs that end before a position, whose token is known. */
static void index_place(struct rollout_speculation *s, int32_t group, struct place place)
{
    for (int32_t kind = 0; kind < RUNS; kind++) {
        if (place.position >= run_length[kind]) {
            *entry_of(s, group, kind, place) = place;
        }
    }
}

/* Index a completion up to its first `end` tokens. */
static void index_text(struct rollout_speculation *s, int32_t group, int32_t sample, int32_t end)
{
    struct rollout_speculation_text *text = &s->groups[group].texts[sample];
    for (; text->indexed < end; text->indexed++) {
        struct place place = {sample, s->groups[group].prompt_count + text->indexed};
        index_place(s, group, place);
    }
}

void rollout_speculation_open(struct rollout_speculation *speculation, int32_t group,
                              const struct rollout_speculation_group *args)
{
    assert(speculation->groups[group].prompt == NULL && args->prompt_count >= 1);
    speculation->groups[group] = *args;
    for (int32_t i = 0; i < args->prompt_count; i++) {
        index_place(speculation, group, (struct place){0, i});
    }
}

void rollout_speculation_close(struct rollout_speculation *speculation, int32_t group)
{
    speculation->groups[group] = (struct rollout_speculation_group){0};
}

void rollout_speculation_add(struct rollout_speculation *speculation, int32_t group, int32_t sample,
                             const int32_t *completion, int32_t count)
{
    speculation->groups[group].texts[sample] =
        (struct rollout_speculation_text){.completion = completion, .count = count};
    index_text(speculation, group, sample, count);
}

/* --- matches ------------------------------------------------------------------------------------
 */

/* Tokens that a slot knows: position of the one to come. */
static struct place slot_end(const struct rollout_speculation *s, const struct slot *slot)
{
    const struct rollout_speculation_group *g = &s->groups[slot->group];
    return (struct place){slot->sample, g->prompt_count + g->texts[slot->sample].count};
}

/* Is there a token at `place`? Entries may be left over from a group closed long ago. */
static bool place_exists(const struct rollout_speculation_group *g, struct place place)
{
    return place.sample < g->samples &&
           place.position < g->prompt_count + g->texts[place.sample].count;
}

/* How many tokens before the two places are the same, up to MATCH_MAX. */
static int32_t common_run(const struct rollout_speculation_group *g, struct place a, struct place b)
{
    int32_t limit = a.position < b.position ? a.position : b.position;
    limit = limit < MATCH_MAX ? limit : MATCH_MAX;
    int32_t run = 0;
    while (run < limit && token_at(g, (struct place){a.sample, a.position - run - 1}) ==
                              token_at(g, (struct place){b.sample, b.position - run - 1})) {
        run++;
    }
    return run;
}

/* Look for an earlier place that the slot's last tokens led to. A match followed so far is kept
 * unless there is a longer one. */
static void find_match(const struct rollout_speculation *s, struct slot *slot)
{
    const struct rollout_speculation_group *g = &s->groups[slot->group];
    struct place end = slot_end(s, slot);
    for (int32_t kind = 0; kind < RUNS && slot->match < run_length[kind]; kind++) {
        if (end.position < run_length[kind]) {
            continue;
        }
        struct place place = *entry_of(s, slot->group, kind, end);
        int32_t run = place_exists(g, place) ? common_run(g, place, end) : 0;
        if (run >= run_length[kind]) {
            slot->match = run;
            slot->next = place;
        }
    }
}

static int32_t match_kind(int32_t match)
{
    static const int32_t from[MATCH_KINDS] = {0, 3, 4, 6, 8, 12, 16, 20, 28, 36};
    int32_t kind = MATCH_KINDS - 1;
    while (match < from[kind]) {
        kind--;
    }
    return kind;
}

static void learn(struct rollout_speculation *s, int32_t match, bool right)
{
    int32_t kind = match_kind(match);
    s->seen[kind] += s->seen[kind] < MEMORY;
    s->right[kind] += ((right ? 1.0F : 0.0F) - s->right[kind]) / (float)(s->seen[kind] + 2);
}

void rollout_speculation_start(struct rollout_speculation *speculation, int32_t slot,
                               const struct rollout_speculation_start *args)
{
    struct slot *started = &speculation->slots[slot];
    struct rollout_speculation_group *g = &speculation->groups[args->group];
    g->texts[args->sample] = (struct rollout_speculation_text){.completion = args->completion};
    *started =
        (struct slot){.group = args->group, .sample = args->sample, .completion = args->completion};
    find_match(speculation, started);
}

void rollout_speculation_append(struct rollout_speculation *speculation, int32_t slot)
{
    struct slot *s = &speculation->slots[slot];
    struct rollout_speculation_group *g = &speculation->groups[s->group];
    struct rollout_speculation_text *text = &g->texts[s->sample];
    int32_t token = text->completion[text->count];
    if (s->match > 0 && place_exists(g, s->next)) {
        bool right = token_at(g, s->next) == token;
        learn(speculation, s->match, right);
        s->match = right ? s->match + (s->match < MATCH_MAX) : 0;
        s->next.position++;
    }
    text->count++;
    index_text(speculation, s->group, s->sample, text->count - INDEX_DELAY);
    if (!place_exists(g, s->next)) {
        s->match = 0;
    }
    find_match(speculation, s);
}

void rollout_speculation_finish(struct rollout_speculation *speculation, int32_t slot,
                                const int32_t *completion)
{
    struct slot *s = &speculation->slots[slot];
    struct rollout_speculation_text *text = &speculation->groups[s->group].texts[s->sample];
    text->completion = completion;
    index_text(speculation, s->group, s->sample, text->count);
}

int32_t rollout_speculation_guess(struct rollout_speculation *speculation, int32_t slot,
                                  int32_t max, float *chance)
{
    const struct slot *s = &speculation->slots[slot];
    const struct rollout_speculation_group *g = &speculation->groups[s->group];
    const struct rollout_speculation_text *text = &g->texts[s->sample];
    struct place next = s->next;
    float all = 1.0F;
    int32_t count = 0;
    for (; s->match > 0 && count < max; count++, next.position++) {
        /* Its own text goes on with the guesses. */
        if (next.sample != s->sample && !place_exists(g, next)) {
            break;
        }
        s->completion[text->count + count] = token_at(g, next);
        all *= speculation->right[match_kind(s->match + count)];
        chance[count] = all;
    }
    return count;
}
