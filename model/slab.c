/* See slab.h. */
#include "model/slab.h"

/* What crosses over at a time: the device's staging memory grows to it. */
enum { SLAB_PIECE = 16 << 20 };

rl_status model_slab_take(const struct model_layout *layout, float *host, int64_t count,
                          const char *what, struct model_slab *out)
{
    struct model_slab slab = {.data = host, .host = host, .bytes = (size_t)count * sizeof(float)};
    if (layout->device != NULL) {
        void *memory = NULL;
        rl_status status = device_buffer_alloc(layout->device, slab.bytes, what, &memory);
        if (status != RL_OK) {
            device_free(host);
            return status;
        }
        slab.data = memory;
    }
    *out = slab;
    return RL_OK;
}

rl_status model_slab_create(const struct model_layout *layout, int64_t count, const char *what,
                            struct model_slab *out)
{
    void *host = NULL;
    RL_TRY(device_alloc((size_t)count * sizeof(float), what, &host));
    return model_slab_take(layout, host, count, what, out);
}

void model_slab_fini(const struct model_layout *layout, struct model_slab *slab)
{
    if (slab->data != slab->host) {
        device_buffer_free(layout->device, slab->data);
    }
    device_free(slab->host);
    *slab = (struct model_slab){0};
}

void model_slab_push(const struct model_slab *slab, struct rl_pool *pool)
{
    if (slab->data != slab->host) {
        model_upload(pool, slab->data, slab->host, slab->bytes);
    }
}

rl_status model_slab_pull(const struct model_slab *slab, struct rl_pool *pool)
{
    return slab->data != slab->host ? model_download(pool, slab->host, slab->data, slab->bytes)
                                    : RL_OK;
}

void model_slab_forget(const struct model_slab *slab)
{
    if (slab->data != slab->host) {
        device_forget(slab->host);
    }
}

void model_upload(struct rl_pool *pool, void *to, const void *host, size_t bytes)
{
    for (size_t at = 0; at < bytes; at += SLAB_PIECE) {
        size_t left = bytes - at;
        device_write(pool, (char *)to + at, (const char *)host + at,
                     left < SLAB_PIECE ? left : SLAB_PIECE);
    }
}

rl_status model_download(struct rl_pool *pool, void *host, const void *from, size_t bytes)
{
    for (size_t at = 0; at < bytes; at += SLAB_PIECE) {
        size_t left = bytes - at;
        RL_TRY(device_read(pool, (char *)host + at, (const char *)from + at,
                           left < SLAB_PIECE ? left : SLAB_PIECE));
    }
    return RL_OK;
}
