/* JSON fields with types and ranges. Owns no data. Invariant: an output is written only when the
 * field was there and valid, so defaults are simply what the caller put there before. */
#include "model/json_fields.h"

#include "core/log.h"
#include "core/text.h"

#include <math.h>
#include <stdlib.h>

rl_status json_fields_load(const char *path, size_t max_bytes, json_t **out)
{
    char *data = NULL;
    size_t bytes = 0;
    RL_TRY(rl_file_read(path, max_bytes, &data, &bytes));
    json_error_t error;
    json_t *root = json_loadb(data, bytes, JSON_REJECT_DUPLICATES, &error);
    free(data);
    if (root == NULL) {
        return rl_fail(RL_INVALID, "%s:%d: not valid JSON: %s", path, error.line, error.text);
    }
    if (!json_is_object(root)) {
        json_decref(root);
        return rl_fail(RL_INVALID, "%s: the top level must be a JSON object", path);
    }
    *out = root;
    return RL_OK;
}

const json_t *json_fields_get(const struct json_fields *fields, const char *key)
{
    const json_t *value = json_object_get(fields->object, key);
    return json_is_null(value) ? NULL : value;
}

rl_status json_fields_int(const struct json_fields *fields, const char *key, int64_t min,
                          int64_t max, int32_t *out)
{
    const json_t *value = json_fields_get(fields, key);
    if (value == NULL) {
        return RL_OK;
    }
    if (!json_is_integer(value)) {
        return rl_fail(RL_INVALID, "%s: %s%s must be an integer", fields->path, fields->prefix,
                       key);
    }
    int64_t number = json_integer_value(value);
    if (number < min || number > max) {
        return rl_fail(RL_INVALID, "%s: %s%s is %lld, must be in [%lld, %lld]", fields->path,
                       fields->prefix, key, (long long)number, (long long)min, (long long)max);
    }
    *out = (int32_t)number;
    return RL_OK;
}

rl_status json_fields_real(const struct json_fields *fields, const char *key, double min,
                           double max, double *out)
{
    const json_t *value = json_fields_get(fields, key);
    if (value == NULL) {
        return RL_OK;
    }
    if (!json_is_number(value)) {
        return rl_fail(RL_INVALID, "%s: %s%s must be a number", fields->path, fields->prefix, key);
    }
    double number = json_number_value(value);
    if (!isfinite(number) || number < min || number > max) {
        return rl_fail(RL_INVALID, "%s: %s%s is %g, must be in [%g, %g]", fields->path,
                       fields->prefix, key, number, min, max);
    }
    *out = number;
    return RL_OK;
}

rl_status json_fields_bool(const struct json_fields *fields, const char *key, bool *out)
{
    const json_t *value = json_fields_get(fields, key);
    if (value == NULL) {
        return RL_OK;
    }
    if (!json_is_boolean(value)) {
        return rl_fail(RL_INVALID, "%s: %s%s must be true or false", fields->path, fields->prefix,
                       key);
    }
    *out = json_is_true(value);
    return RL_OK;
}

rl_status json_fields_string(const struct json_fields *fields, const char *key, const char **out)
{
    const json_t *value = json_fields_get(fields, key);
    if (value == NULL) {
        return RL_OK;
    }
    if (!json_is_string(value)) {
        return rl_fail(RL_INVALID, "%s: %s%s must be a string", fields->path, fields->prefix, key);
    }
    *out = json_string_value(value);
    return RL_OK;
}

rl_status json_fields_require(const struct json_fields *fields, const char *key)
{
    if (json_fields_get(fields, key) == NULL) {
        return rl_fail(RL_INVALID, "%s: %s%s is missing", fields->path, fields->prefix, key);
    }
    return RL_OK;
}
