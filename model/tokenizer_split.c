/* Pieces and the cutting of one piece at the matches of a pattern, by the library's five
 * behaviours. Invariant: the ranges of a piece arrive in order and cover it; empty pieces are never
 * kept. */
#include "model/tokenizer_json.h"

#include "core/log.h"

#include <stdlib.h>
#include <string.h>

rl_status tok_pieces_add(struct tok_pieces *pieces, size_t start, size_t bytes, int32_t token)
{
    if (bytes == 0 && token < 0) {
        return RL_OK;
    }
    if (pieces->count == pieces->capacity) {
        size_t capacity = pieces->capacity * 2 + 32;
        struct tok_piece *items = realloc(pieces->items, capacity * sizeof(*items));
        if (items == NULL) {
            return rl_fail(RL_NO_MEMORY, "tokenizer: no memory for %zu pieces", capacity);
        }
        pieces->items = items;
        pieces->capacity = capacity;
    }
    pieces->items[pieces->count++] = (struct tok_piece){start, bytes, token};
    return RL_OK;
}

void tok_splitter_start(struct tok_splitter *splitter, size_t base)
{
    splitter->base = base;
    splitter->covered = 0;
    splitter->previous_match = false;
    splitter->pending_valid = false;
}

static rl_status pending_emit(struct tok_splitter *splitter)
{
    if (!splitter->pending_valid) {
        return RL_OK;
    }
    splitter->pending_valid = false;
    return tok_pieces_add(splitter->out, splitter->pending.start, splitter->pending.bytes, -1);
}

static bool grows_pending(const struct tok_splitter *splitter, bool match)
{
    switch (splitter->behavior) {
    case TOK_MERGED_PREVIOUS:
        return match && !splitter->previous_match;
    case TOK_MERGED_NEXT:
        return !match && splitter->previous_match;
    case TOK_CONTIGUOUS:
        return match == splitter->previous_match;
    default:
        return false;
    }
}

static rl_status splitter_range(struct tok_splitter *splitter, size_t start, size_t end, bool match)
{
    match = match != splitter->invert;
    size_t absolute = splitter->base + start;
    if (splitter->behavior == TOK_ISOLATED || splitter->behavior == TOK_REMOVED) {
        bool dropped = match && splitter->behavior == TOK_REMOVED;
        return dropped ? RL_OK : tok_pieces_add(splitter->out, absolute, end - start, -1);
    }
    if (splitter->pending_valid && grows_pending(splitter, match)) {
        splitter->pending.bytes += end - start;
    } else {
        RL_TRY(pending_emit(splitter));
        splitter->pending = (struct tok_piece){absolute, end - start, -1};
        splitter->pending_valid = true;
    }
    splitter->previous_match = match;
    return RL_OK;
}

rl_status tok_splitter_match(struct tok_splitter *splitter, size_t start, size_t end)
{
    if (start > splitter->covered) {
        RL_TRY(splitter_range(splitter, splitter->covered, start, false));
    }
    splitter->covered = end;
    return splitter_range(splitter, start, end, true);
}

rl_status tok_splitter_finish(struct tok_splitter *splitter, size_t bytes)
{
    if (splitter->covered < bytes) {
        RL_TRY(splitter_range(splitter, splitter->covered, bytes, false));
    }
    return pending_emit(splitter);
}

rl_status tok_behavior_parse(const json_t *object, const struct tok_where *where,
                             const char *fallback, enum tok_behavior *out)
{
    static const char *const names[] = {"Removed", "Isolated", "MergedWithPrevious",
                                        "MergedWithNext", "Contiguous"};
    struct tok_view name;
    RL_TRY(tok_json_optional_string(object, where, "behavior", &name));
    const char *wanted = name.data != NULL ? name.data : fallback;
    for (int i = 0; wanted != NULL && i < 5; i++) {
        if (strcmp(wanted, names[i]) == 0) {
            *out = (enum tok_behavior)i;
            return RL_OK;
        }
    }
    return rl_fail(RL_INVALID,
                   "%s: %s.behavior: expected Removed, Isolated, MergedWithPrevious, "
                   "MergedWithNext or Contiguous, found %s",
                   where->file, where->key, wanted != NULL ? wanted : "nothing");
}
