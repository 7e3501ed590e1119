/* The file driver under files being written. HDF5 (1.10 to 1.14) cannot give up a file whose last
 * writes fail: closing it fails too, and the library crashes when the program ends. So this driver
 * notes the first error, from then on drops what it is given, and tells HDF5 that all is well; the
 * owner asks for the note. Invariant: after an error nothing more reaches the disk. */
#include "core/log.h"
#include "transport/h5_internal.h"

#if H5_VERSION_GE(1, 13, 0)
#include <H5FDdevelop.h>
#endif

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct driver_file {
    H5FD_t base; /* HDF5's part, first */
    int fd;      /* the owner's */
    int *error;  /* the owner's note: errno of the first failure */
    haddr_t eoa; /* end of what HDF5 has allocated */
    haddr_t eof; /* end of what was written */
};

static const haddr_t driver_max = ((haddr_t)1 << 62) - 1;

static H5FD_t *driver_open(const char *name, unsigned flags, hid_t properties, haddr_t max)
{
    (void)name;
    (void)flags;
    (void)max;
    const struct h5_driver_info *info = H5Pget_driver_info(properties);
    struct driver_file *file = calloc(1, sizeof *file);
    if (info == NULL || file == NULL) {
        free(file);
        return NULL;
    }
    file->fd = info->fd;
    file->error = info->error;
    return &file->base;
}

static herr_t driver_close(H5FD_t *base)
{
    free(base);
    return 0;
}

static int driver_compare(const H5FD_t *a, const H5FD_t *b)
{
    return a < b ? -1 : a > b;
}

static herr_t driver_query(const H5FD_t *base, unsigned long *flags)
{
    (void)base;
    *flags = H5FD_FEAT_AGGREGATE_METADATA | H5FD_FEAT_ACCUMULATE_METADATA | H5FD_FEAT_DATA_SIEVE |
             H5FD_FEAT_AGGREGATE_SMALLDATA;
    return 0;
}

static haddr_t driver_eoa(const H5FD_t *base, H5FD_mem_t type)
{
    (void)type;
    return ((const struct driver_file *)base)->eoa;
}

static herr_t driver_set_eoa(H5FD_t *base, H5FD_mem_t type, haddr_t end)
{
    (void)type;
    ((struct driver_file *)base)->eoa = end;
    return 0;
}

static haddr_t driver_eof(const H5FD_t *base, H5FD_mem_t type)
{
    (void)type;
    return ((const struct driver_file *)base)->eof;
}

/* What was never written reads as zeros, here as in a file with holes. */
static herr_t driver_read(H5FD_t *base, H5FD_mem_t type, hid_t transfer, haddr_t at, size_t bytes,
                          void *buffer)
{
    (void)type;
    (void)transfer;
    struct driver_file *file = (struct driver_file *)base;
    unsigned char *to = buffer;
    while (bytes > 0) {
        ssize_t got = pread(file->fd, to, bytes, (off_t)at);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got <= 0) {
            *file->error = got < 0 && *file->error == 0 ? errno : *file->error;
            memset(to, 0, bytes);
            break;
        }
        to += got;
        at += (haddr_t)got;
        bytes -= (size_t)got;
    }
    return 0;
}

static herr_t driver_write(H5FD_t *base, H5FD_mem_t type, hid_t transfer, haddr_t at, size_t bytes,
                           const void *buffer)
{
    (void)type;
    (void)transfer;
    struct driver_file *file = (struct driver_file *)base;
    const unsigned char *from = buffer;
    file->eof = at + bytes > file->eof ? at + bytes : file->eof;
    while (bytes > 0 && *file->error == 0) {
        ssize_t put = pwrite(file->fd, from, bytes, (off_t)at);
        if (put < 0 && errno == EINTR) {
            continue;
        }
        if (put <= 0) {
            *file->error = put < 0 ? errno : EIO;
            break;
        }
        from += put;
        at += (haddr_t)put;
        bytes -= (size_t)put;
    }
    return 0;
}

/* The file ends where HDF5's allocation does. */
static herr_t driver_truncate(H5FD_t *base, hid_t transfer, hbool_t closing)
{
    (void)transfer;
    (void)closing;
    struct driver_file *file = (struct driver_file *)base;
    if (file->eoa != file->eof) {
        if (*file->error == 0 && ftruncate(file->fd, (off_t)file->eoa) != 0) {
            *file->error = errno;
        }
        file->eof = file->eoa;
    }
    return 0;
}

rl_status h5_driver_register(hid_t *out)
{
    const H5FD_class_t driver = {
#if H5_VERSION_GE(1, 13, 0)
        .version = H5FD_CLASS_VERSION,
        .value = (H5FD_class_value_t)600,
#endif
        .name = "foresight",
        .maxaddr = driver_max,
        .fc_degree = H5F_CLOSE_WEAK,
        .fapl_size = sizeof(struct h5_driver_info),
        .open = driver_open,
        .close = driver_close,
        .cmp = driver_compare,
        .query = driver_query,
        .get_eoa = driver_eoa,
        .set_eoa = driver_set_eoa,
        .get_eof = driver_eof,
        .read = driver_read,
        .write = driver_write,
        .truncate = driver_truncate,
        .fl_map = H5FD_FLMAP_DICHOTOMY,
    };
    hid_t id = H5FDregister(&driver);
    if (id < 0) {
        return rl_fail(RL_INTERNAL, "cannot set up HDF5's file driver");
    }
    *out = id;
    return RL_OK;
}
