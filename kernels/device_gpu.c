/* The part of device.h that a GPU may answer: passes each call to the device's functions, or does
 * it on the CPU where there is no device. */
#include "kernels/device_ops.h"

#include "core/log.h"
#include "core/pool.h"

#include <stdio.h>
#include <string.h>

void device_gpu_survey(struct device_survey *out)
{
    memset(out, 0, sizeof *out);
#if FORESIGHT_HAVE_CUDA
    out->built = true;
    cuda_device_survey(out);
#else
    (void)snprintf(out->problem, sizeof out->problem, "this program was built without CUDA");
#endif
}

rl_status device_gpu_open(int index, struct device **out)
{
#if FORESIGHT_HAVE_CUDA
    return cuda_device_open(index, out);
#else
    (void)out;
    return rl_fail(RL_UNSUPPORTED, "GPU %d: this program was built without CUDA", index);
#endif
}

void device_close(struct device *device)
{
    if (device != NULL) {
        device->ops->close(device);
    }
}

const char *device_name(const struct device *device)
{
    return device != NULL ? device->name : device_cpu_name();
}

void device_gpu_memory(const struct device *device, size_t *free_bytes, size_t *total_bytes)
{
    device->ops->memory(device, free_bytes, total_bytes);
}

void device_gpu_uuid(const struct device *device, unsigned char out[DEVICE_UUID_BYTES])
{
    device->ops->uuid(device, out);
}

rl_status device_buffer_alloc(struct device *device, size_t bytes, const char *what, void **out)
{
    return device != NULL ? device->ops->alloc(device, bytes, what, out)
                          : device_alloc(bytes, what, out);
}

void device_buffer_free(struct device *device, void *data)
{
    if (device == NULL) {
        device_free(data);
    } else if (data != NULL) {
        device->ops->free(device, data);
    }
}

rl_status device_buffer_share(struct device *device, void *data, struct device_share *out,
                              char why[DEVICE_WHY_MAX])
{
    return device->ops->share(device, data, out, why);
}

rl_status device_buffer_map(struct device *device, const struct device_share *share,
                            struct device_source *out, char why[DEVICE_WHY_MAX])
{
    return device->ops->map(device, share, out, why);
}

void device_buffer_unmap(struct device *device, const void *data)
{
    device->ops->unmap(device, data);
}

rl_status device_stream_start(struct device *device, struct rl_pool *pool)
{
    if (device == NULL) {
        return RL_OK;
    }
    struct device_stream *stream = NULL;
    RL_TRY(device->ops->stream_open(device, &stream));
    rl_pool_set_device(pool, stream);
    return RL_OK;
}

void device_stream_stop(struct rl_pool *pool)
{
    struct device_stream *stream = rl_pool_device(pool);
    if (stream != NULL) {
        stream->ops->stream_close(stream);
        rl_pool_set_device(pool, NULL);
    }
}

rl_status device_wait(struct rl_pool *pool)
{
    struct device_stream *stream = rl_pool_device(pool);
    return stream != NULL ? stream->ops->wait(stream) : RL_OK;
}

rl_status device_poll(struct rl_pool *pool, bool *done)
{
    struct device_stream *stream = rl_pool_device(pool);
    if (stream == NULL) {
        *done = true;
        return RL_OK;
    }
    return stream->ops->poll(stream, done);
}

void *device_stream_native(struct rl_pool *pool)
{
    struct device_stream *stream = rl_pool_device(pool);
    return stream->ops->native(stream);
}

void device_write(struct rl_pool *pool, void *to, const void *host, size_t bytes)
{
    struct device_stream *stream = rl_pool_device(pool);
    if (stream != NULL) {
        stream->ops->write(stream, to, host, bytes);
    } else {
        memcpy(to, host, bytes);
    }
}

rl_status device_read(struct rl_pool *pool, void *host, const void *from, size_t bytes)
{
    struct device_stream *stream = rl_pool_device(pool);
    if (stream == NULL) {
        memcpy(host, from, bytes);
        return RL_OK;
    }
    stream->ops->read(stream, host, from, bytes);
    return stream->ops->wait(stream);
}

void device_clear(struct rl_pool *pool, void *to, size_t bytes)
{
    struct device_stream *stream = rl_pool_device(pool);
    if (stream != NULL) {
        stream->ops->clear(stream, to, bytes);
    } else {
        memset(to, 0, bytes);
    }
}

void device_copy(struct rl_pool *pool, void *to, const void *from, size_t bytes)
{
    struct device_stream *stream = rl_pool_device(pool);
    if (stream != NULL) {
        stream->ops->copy(stream, to, from, bytes);
    } else {
        memcpy(to, from, bytes);
    }
}

void device_replay(struct rl_pool *pool, const struct device_work *work)
{
    struct device_stream *stream = rl_pool_device(pool);
    if (stream != NULL) {
        stream->ops->replay(stream, work);
    } else {
        work->queue(work->arg);
    }
}

void device_replay_allow(struct rl_pool *pool, bool allowed)
{
    struct device_stream *stream = rl_pool_device(pool);
    if (stream != NULL) {
        stream->ops->replay_allow(stream, allowed);
    }
}

void device_mark(struct rl_pool *pool, enum device_mark mark)
{
    struct device_stream *stream = rl_pool_device(pool);
    if (stream != NULL) {
        stream->ops->mark(stream, mark);
    }
}

double device_marked_s(struct rl_pool *pool, enum device_mark from, enum device_mark to)
{
    struct device_stream *stream = rl_pool_device(pool);
    return stream != NULL ? stream->ops->marked_s(stream, from, to) : 0;
}
