/* Typed, range-checked fields of a JSON object; every error names the file and the field. */
#ifndef FORESIGHT_MODEL_JSON_FIELDS_H
#define FORESIGHT_MODEL_JSON_FIELDS_H

#include "core/status.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

/* Read a JSON object from a file of at most `max_bytes`; duplicate keys refused. Release with
 * json_decref. Errors: RL_IO, RL_TOO_LONG, RL_NO_MEMORY, RL_INVALID (line and reason). */
rl_status json_fields_load(const char *path, size_t max_bytes, json_t **out);

/* An object with where it came from: `path` and `prefix` ("" or "rope_scaling.") are for errors. */
struct json_fields {
    const char *path;
    const char *prefix;
    const json_t *object; /* borrowed */
};

/* The field, or NULL if it is absent or null. */
const json_t *json_fields_get(const struct json_fields *fields, const char *key);

/* Read a field into *out, which keeps its value where the field is absent or null.
 * Integers must be written as such and lie in [min, max]; reals must be finite and in [min, max].
 * Errors: RL_INVALID. */
rl_status json_fields_int(const struct json_fields *fields, const char *key, int64_t min,
                          int64_t max, int32_t *out);
rl_status json_fields_real(const struct json_fields *fields, const char *key, double min,
                           double max, double *out);
rl_status json_fields_bool(const struct json_fields *fields, const char *key, bool *out);

/* The same for strings; borrowed from the object. */
rl_status json_fields_string(const struct json_fields *fields, const char *key, const char **out);

/* Errors: RL_INVALID if the field is absent or null. */
rl_status json_fields_require(const struct json_fields *fields, const char *key);

#endif
