/* Attributes of an HDF5 file's root: numbers and short texts. */
#include "core/log.h"
#include "transport/h5_internal.h"

#include <stdlib.h>
#include <string.h>

static rl_status attribute_write(struct h5_file *file, const char *name, hid_t type,
                                 const void *value)
{
    hid_t space = H5Screate(H5S_SCALAR);
    hid_t attribute = H5Acreate2(file->id, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
    bool fine = attribute >= 0 && H5Awrite(attribute, type, value) >= 0;
    if (attribute >= 0) {
        H5Aclose(attribute);
    }
    H5Sclose(space);
    return fine ? RL_OK : h5_fail(RL_IO, file, name, "cannot write the attribute");
}

rl_status h5_file_write_u64(struct h5_file *file, const char *name, uint64_t value)
{
    rl_status status = h5_enter();
    if (status == RL_OK) {
        status = attribute_write(file, name, H5T_STD_U64LE, &value);
    }
    h5_leave();
    return status;
}

rl_status h5_file_write_f64(struct h5_file *file, const char *name, double value)
{
    rl_status status = h5_enter();
    if (status == RL_OK) {
        status = attribute_write(file, name, H5T_IEEE_F64LE, &value);
    }
    h5_leave();
    return status;
}

rl_status h5_file_write_text(struct h5_file *file, const char *name, const char *text)
{
    rl_status status = h5_enter();
    if (status == RL_OK) {
        hid_t type = H5Tcopy(H5T_C_S1);
        /* One byte more for the NUL, which also keeps an empty text from having size 0. */
        if (type < 0 || H5Tset_size(type, strlen(text) + 1) < 0 ||
            H5Tset_cset(type, H5T_CSET_UTF8) < 0) {
            status = h5_fail(RL_IO, file, name, "cannot write the attribute");
        } else {
            status = attribute_write(file, name, type, text);
        }
        H5Tclose(type);
    }
    h5_leave();
    return status;
}

/* Open a scalar attribute; the caller has the turn and closes *attribute and *type. */
static rl_status attribute_open(struct h5_file *file, const char *name, hid_t *attribute,
                                hid_t *type)
{
    if (H5Aexists(file->id, name) <= 0) {
        H5Eclear2(H5E_DEFAULT);
        return rl_fail(RL_NOT_FOUND, "%s: no attribute %s", file->path, name);
    }
    hid_t opened = H5Aopen(file->id, name, H5P_DEFAULT);
    hid_t space = opened >= 0 ? H5Aget_space(opened) : H5I_INVALID_HID;
    hid_t stored = opened >= 0 ? H5Aget_type(opened) : H5I_INVALID_HID;
    bool fine = space >= 0 && stored >= 0 && H5Sget_simple_extent_type(space) == H5S_SCALAR;
    if (space >= 0) {
        H5Sclose(space);
    }
    if (!fine) {
        H5Tclose(stored);
        H5Aclose(opened);
        return h5_fail(RL_CORRUPT, file, name, "not a scalar attribute");
    }
    *attribute = opened;
    *type = stored;
    return RL_OK;
}

static rl_status attribute_read(struct h5_file *file, const char *name, hid_t expected, void *value)
{
    hid_t attribute = H5I_INVALID_HID;
    hid_t type = H5I_INVALID_HID;
    RL_TRY(attribute_open(file, name, &attribute, &type));
    bool fine = H5Tequal(type, expected) > 0 && H5Aread(attribute, expected, value) >= 0;
    H5Tclose(type);
    H5Aclose(attribute);
    return fine ? RL_OK : h5_fail(RL_CORRUPT, file, name, "attribute of another type");
}

rl_status h5_file_read_u64(struct h5_file *file, const char *name, uint64_t *value)
{
    rl_status status = h5_enter();
    if (status == RL_OK) {
        status = attribute_read(file, name, H5T_STD_U64LE, value);
    }
    h5_leave();
    return status;
}

rl_status h5_file_read_f64(struct h5_file *file, const char *name, double *value)
{
    rl_status status = h5_enter();
    if (status == RL_OK) {
        status = attribute_read(file, name, H5T_IEEE_F64LE, value);
    }
    h5_leave();
    return status;
}

static rl_status text_read(struct h5_file *file, const char *name, size_t max_bytes, char **text)
{
    hid_t attribute = H5I_INVALID_HID;
    hid_t type = H5I_INVALID_HID;
    RL_TRY(attribute_open(file, name, &attribute, &type));
    rl_status status = RL_OK;
    char *memory = NULL;
    size_t bytes = H5Tget_size(type);
    if (H5Tget_class(type) != H5T_STRING || H5Tis_variable_str(type) != 0) {
        status = h5_fail(RL_CORRUPT, file, name, "not a text of fixed length");
    } else if (bytes > max_bytes) {
        status = rl_fail(RL_TOO_LONG, "%s: %s: a text of %zu bytes, the limit is %zu", file->path,
                         name, bytes, max_bytes);
    } else if ((memory = calloc(bytes + 1, 1)) == NULL) {
        status = rl_fail(RL_NO_MEMORY, "%s: %s: no memory", file->path, name);
    } else if (H5Aread(attribute, type, memory) < 0) {
        status = h5_fail(RL_CORRUPT, file, name, "cannot read the text");
    }
    H5Tclose(type);
    H5Aclose(attribute);
    if (status != RL_OK) {
        free(memory);
        return status;
    }
    *text = memory;
    return RL_OK;
}

rl_status h5_file_read_text(struct h5_file *file, const char *name, size_t max_bytes, char **text)
{
    rl_status status = h5_enter();
    if (status == RL_OK) {
        status = text_read(file, name, max_bytes, text);
    }
    h5_leave();
    return status;
}
