/* What a device other than the CPU must be able to do; kernels/device.h says what each means. */
#ifndef FORESIGHT_KERNELS_DEVICE_OPS_H
#define FORESIGHT_KERNELS_DEVICE_OPS_H

#include "kernels/device.h"

#include <stdint.h>

/* The functions of one kind of device. */
struct device_ops {
    void (*close)(struct device *device);
    void (*memory)(const struct device *device, size_t *free_bytes, size_t *total_bytes);
    rl_status (*alloc)(struct device *device, size_t bytes, const char *what, void **out);
    void (*free)(struct device *device, void *data);
    rl_status (*share)(struct device *device, void *data, struct device_share *out,
                       char why[DEVICE_WHY_MAX]);
    rl_status (*map)(struct device *device, const struct device_share *share,
                     struct device_source *out, char why[DEVICE_WHY_MAX]);
    void (*unmap)(struct device *device, const void *data);
    rl_status (*stream_open)(struct device *device, struct device_stream **out);
    void (*stream_close)(struct device_stream *stream);
    rl_status (*wait)(struct device_stream *stream);
    void (*write)(struct device_stream *stream, void *to, const void *host, size_t bytes);
    void (*read)(struct device_stream *stream, void *host, const void *from, size_t bytes);
    void (*clear)(struct device_stream *stream, void *to, size_t bytes);
    void (*copy)(struct device_stream *stream, void *to, const void *from, size_t bytes);
    void (*uuid)(const struct device *device, unsigned char out[DEVICE_UUID_BYTES]);
    rl_status (*poll)(struct device_stream *stream, bool *done);
    void *(*native)(struct device_stream *stream);
    void (*replay)(struct device_stream *stream, const struct device_work *work);
    void (*replay_allow)(struct device_stream *stream, bool allowed);
    void (*mark)(struct device_stream *stream, enum device_mark mark);
    double (*marked_s)(struct device_stream *stream, enum device_mark from, enum device_mark to);
};

/* First member of every device and of every stream. */
struct device {
    const struct device_ops *ops;
    char name[128];
    int index; /* among the machine's devices of its kind */
    /* Buffers and mappings given back so far, atomic: recorded addresses may be wrong after it */
    uint64_t freed;
};

struct device_stream {
    const struct device_ops *ops;
};

#ifdef __cplusplus
extern "C" {
#endif

/* device_gpu_survey and device_gpu_open of the CUDA back end, in programs that have it. */
void cuda_device_survey(struct device_survey *out);
rl_status cuda_device_open(int index, struct device **out);

#ifdef __cplusplus
}
#endif

#endif
