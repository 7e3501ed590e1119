/* KV pages: the counts (struct model_pages) and the memory (struct model_kv). Invariant: a page is
 * on the free stack exactly when its count is 0. */
#include "model/kv_cache.h"

#include "core/log.h"
#include "model/forward.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

struct model_pages {
    int32_t page_count;
    int32_t free_count;
    int32_t *free_stack; /* [page_count], lowest numbers on top at first */
    int32_t *references; /* [page_count] */
};

rl_status model_pages_create(int32_t page_count, struct model_pages **out)
{
    if (page_count < 1) {
        return rl_fail(RL_INVALID, "KV cache of %d pages, must have at least 1", page_count);
    }
    struct model_pages *pages = calloc(1, sizeof(*pages));
    int32_t *numbers = calloc((size_t)page_count * 2, sizeof(*numbers));
    if (pages == NULL || numbers == NULL) {
        free(numbers);
        free(pages);
        return rl_fail(RL_NO_MEMORY, "no memory to keep count of %d KV pages", page_count);
    }
    pages->page_count = page_count;
    pages->free_count = page_count;
    pages->free_stack = numbers;
    pages->references = numbers + page_count;
    for (int32_t i = 0; i < page_count; i++) {
        pages->free_stack[i] = page_count - 1 - i;
    }
    *out = pages;
    return RL_OK;
}

void model_pages_destroy(struct model_pages *pages)
{
    if (pages == NULL) {
        return;
    }
    free(pages->free_stack);
    free(pages);
}

int32_t model_pages_free_count(const struct model_pages *pages)
{
    return pages->free_count;
}

int32_t model_pages_references(const struct model_pages *pages, int32_t page)
{
    assert(page >= 0 && page < pages->page_count);
    return pages->references[page];
}

int32_t model_pages_for_tokens(int64_t tokens)
{
    return (int32_t)((tokens + KERNEL_PAGE_TOKENS - 1) / KERNEL_PAGE_TOKENS);
}

rl_status model_pages_acquire(struct model_pages *pages, int32_t count, int32_t *ids)
{
    if (count > pages->free_count) {
        return RL_AGAIN;
    }
    for (int32_t i = 0; i < count; i++) {
        int32_t page = pages->free_stack[--pages->free_count];
        pages->references[page] = 1;
        ids[i] = page;
    }
    return RL_OK;
}

void model_pages_share(struct model_pages *pages, const int32_t *ids, int32_t count)
{
    for (int32_t i = 0; i < count; i++) {
        assert(ids[i] >= 0 && ids[i] < pages->page_count && pages->references[ids[i]] > 0);
        pages->references[ids[i]]++;
    }
}

void model_pages_release(struct model_pages *pages, const int32_t *ids, int32_t count)
{
    for (int32_t i = 0; i < count; i++) {
        int32_t page = ids[i];
        assert(page >= 0 && page < pages->page_count && pages->references[page] > 0);
        if (--pages->references[page] == 0) {
            pages->free_stack[pages->free_count++] = page;
        }
    }
}

rl_status model_pages_make_private(struct model_pages *pages, int32_t *page, int32_t *copy_from)
{
    int32_t old = *page;
    if (model_pages_references(pages, old) == 1) {
        *copy_from = -1;
        return RL_OK;
    }
    RL_TRY(model_pages_acquire(pages, 1, page));
    model_pages_release(pages, &old, 1);
    *copy_from = old;
    return RL_OK;
}

/* Bytes of one page of keys (or values) in one layer. */
static size_t page_bytes(const struct model_layout *layout)
{
    size_t number = layout->kv_dtype == KERNEL_BF16 ? sizeof(uint16_t) : sizeof(float);
    return (size_t)layout->arch.kv_heads * (size_t)layout->arch.head_dim * KERNEL_PAGE_TOKENS *
           number;
}

size_t model_kv_page_bytes(const struct model_layout *layout)
{
    return page_bytes(layout) * (size_t)layout->arch.layers * 2;
}

rl_status model_kv_create(const struct model_layout *layout, int32_t page_count,
                          struct model_kv *out)
{
    if (page_count < 1) {
        return rl_fail(RL_INVALID, "KV cache of %d pages, must have at least 1", page_count);
    }
    void *data = NULL;
    size_t bytes = model_kv_page_bytes(layout) * (size_t)page_count;
    RL_TRY(device_buffer_alloc(layout->device, bytes, "KV cache", &data));
    out->device = layout->device;
    out->layer_bytes = page_bytes(layout) * (size_t)page_count;
    out->page_count = page_count;
    out->k = data;
    out->v = out->k + out->layer_bytes * (size_t)layout->arch.layers;
    return RL_OK;
}

void model_kv_fini(struct model_kv *kv)
{
    device_buffer_free(kv->device, kv->k);
    memset(kv, 0, sizeof(*kv));
}

void model_kv_copy_page(const struct model_context *context, struct model_kv *kv, int32_t from,
                        int32_t to)
{
    const size_t bytes = page_bytes(context->layout);
    struct kernel_copy_args copy = {.to = kv->k + (size_t)to * bytes,
                                    .from = kv->k + (size_t)from * bytes,
                                    .rows = 2 * (int64_t)context->layout->arch.layers, /* v too */
                                    .bytes = bytes,
                                    .stride = kv->layer_bytes};
    context->kernels->copy_rows(&copy, context->pool);
}
