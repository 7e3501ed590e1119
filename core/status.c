/* Names, texts and scopes of the status codes, all from RL_STATUS_MAP. No state. */
#include "core/status.h"

#include <stddef.h>

struct status_row {
    const char *name;
    const char *text;
    enum rl_scope scope;
};

#define STATUS_ROW(code, reach, words) {.name = #code, .text = words, .scope = reach},
static const struct status_row status_rows[RL_STATUS_COUNT] = {RL_STATUS_MAP(STATUS_ROW)};
#undef STATUS_ROW

/* A code from a foreign cast is treated as an internal error instead of an index out of range. */
static const struct status_row *status_row_of(rl_status status)
{
    size_t index = (size_t)status;
    return index < RL_STATUS_COUNT ? &status_rows[index] : &status_rows[RL_INTERNAL];
}

const char *rl_status_name(rl_status status)
{
    return status_row_of(status)->name;
}

const char *rl_status_text(rl_status status)
{
    return status_row_of(status)->text;
}

enum rl_scope rl_status_scope(rl_status status)
{
    return status_row_of(status)->scope;
}
