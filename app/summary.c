/* See summary.h. */
#include "app/summary.h"

#include "core/log.h"
#include "transport/atomic_file.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static rl_status read_existing(const char *path, json_t **out)
{
    json_error_t error;
    if (access(path, F_OK) != 0) {
        *out = json_object();
    } else {
        *out = json_load_file(path, JSON_REJECT_DUPLICATES, &error);
        if (*out == NULL || !json_is_object(*out)) {
            json_decref(*out);
            return rl_fail(RL_INVALID, "%s: line %d: %s; expected a JSON object", path, error.line,
                           error.text);
        }
    }
    return *out != NULL ? RL_OK : rl_fail(RL_NO_MEMORY, "%s: out of memory", path);
}

rl_status summary_merge(const char *path, const json_t *part)
{
    json_t *whole = NULL;
    RL_TRY(read_existing(path, &whole));
    json_t *copy = json_deep_copy(part);
    int failed = copy == NULL ? -1 : json_object_update_recursive(whole, copy);
    char *text = failed ? NULL : json_dumps(whole, JSON_INDENT(2) | JSON_REAL_PRECISION(12));
    json_decref(copy);
    json_decref(whole);
    if (text == NULL) {
        return rl_fail(RL_NO_MEMORY, "%s: out of memory", path);
    }
    rl_status status = atomic_file_write_all(path, text, strlen(text));
    free(text);
    return status;
}
