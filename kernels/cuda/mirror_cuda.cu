/* Host arrays on the device: those that pass_begin named go up in one copy and are found by their
 * address; any other goes up when an op asks. All through pinned memory, ordered by the stream.
 *
 * The layout of a pass depends on its sizes alone, so that passes of one shape find their arrays in
 * the same places. */
#include "kernels/cuda/cuda_kernel.h"
#include "kernels/cuda/stream_cuda.h"

#include <string.h>

static size_t mirror_align(size_t bytes)
{
    return (bytes + 15) / 16 * 16;
}

static int32_t segment_pages(const struct kernel_segments *g, int64_t s)
{
    int32_t end = g->first_position[s] + g->segment_start[s + 1] - g->segment_start[s];
    return (end + KERNEL_PAGE_TOKENS - 1) / KERNEL_PAGE_TOKENS;
}

/* Where the parts of packed segments lie, in integers. */
struct segments_plan {
    int64_t count, tokens, pages, integers;
};

static struct segments_plan segments_measure(const struct kernel_segments *g)
{
    struct segments_plan plan = {g->count, g->segment_start[g->count], 0, 0};
    for (int64_t s = 0; s < g->count; s++) {
        plan.pages += segment_pages(g, s);
    }
    plan.integers = 4 * g->count + 2 + plan.tokens + plan.pages;
    return plan;
}

/* segment_start [S + 1], first_position [S], page_offset [S + 1], prefix [S], segment_of_token [N],
 * pages. */
static void segments_pack(const struct kernel_segments *g, const struct segments_plan *plan,
                          int32_t *out)
{
    int32_t *first = out + g->count + 1;
    int32_t *offset = first + g->count;
    int32_t *prefix = offset + g->count + 1;
    int32_t *owner = prefix + g->count;
    int32_t *pages = owner + plan->tokens;
    int32_t page = 0;
    memcpy(out, g->segment_start, (size_t)(g->count + 1) * sizeof *out);
    for (int64_t s = 0; s < g->count; s++) {
        int32_t need = segment_pages(g, s);
        first[s] = g->first_position[s];
        offset[s] = page;
        prefix[s] = g->prefix != nullptr ? g->prefix[s] : -1;
        for (int32_t t = g->segment_start[s]; t < g->segment_start[s + 1]; t++) {
            owner[t] = (int32_t)s;
        }
        memcpy(pages + page, g->page_table[s], (size_t)need * sizeof *pages);
        page += need;
    }
    offset[g->count] = page;
}

static struct cuda_segments segments_view(const struct segments_plan *plan, const char *data)
{
    const int32_t *start = reinterpret_cast<const int32_t *>(data);
    struct cuda_segments view = {};
    view.count = (int32_t)plan->count;
    view.tokens = (int32_t)plan->tokens;
    view.segment_start = start;
    view.first_position = start + plan->count + 1;
    view.page_offset = view.first_position + plan->count;
    view.prefix = view.page_offset + plan->count + 1;
    view.segment_of_token = view.prefix + plan->count;
    view.pages = view.segment_of_token + plan->tokens;
    return view;
}

/* --- a pass ----------------------------------------------------------------------------------- */

/* Fill the table of places; returns the bytes of all. */
static size_t pass_plan(struct cuda_pass *pass, const struct kernel_pass_args *a)
{
    size_t bytes = 0;
    pass->count = (int)a->count;
    for (int i = 0; i < pass->count; i++) {
        pass->entries[i] = {static_cast<const char *>(a->arrays[i].data), a->arrays[i].bytes,
                            bytes};
        bytes += mirror_align(a->arrays[i].bytes);
    }
    pass->segment_start = a->segments != nullptr ? a->segments->segment_start : nullptr;
    pass->segments_offset = bytes;
    return bytes;
}

static bool pass_grow(struct cuda_stream *stream, size_t bytes)
{
    struct cuda_pass *pass = &stream->pass;
    if (bytes <= pass->bytes) {
        return true;
    }
    if (cuda_recording(stream, "pass_begin")) {
        return false;
    }
    cuda_check(stream, cudaStreamSynchronize(stream->handle), "pass_begin");
    (void)cudaFree(pass->data);
    stream->moved++;
    pass->data = nullptr;
    pass->bytes = 0;
    size_t room = 2 * bytes;
    if (!cuda_stream_malloc(stream, room, "index arrays", &pass->data)) {
        return false;
    }
    pass->bytes = room;
    return true;
}

static void pass_forget(struct cuda_pass *pass)
{
    pass->count = 0;
    pass->segment_start = nullptr;
}

void pass_begin_cuda(const struct kernel_pass_args *a, struct rl_pool *pool)
{
    struct cuda_stream *stream = cuda_op_begin(pool, "pass_begin");
    struct cuda_pass *pass = &stream->pass;
    size_t bytes = pass_plan(pass, a);
    struct segments_plan plan = {};
    if (a->segments != nullptr) {
        plan = segments_measure(a->segments);
        bytes += (size_t)plan.integers * sizeof(int32_t);
    }
    pass->turn ^= 1;
    struct cuda_slot *slot = &pass->staging[pass->turn];
    if (!pass_grow(stream, bytes) || !cuda_slot_take(stream, slot, bytes)) {
        pass_forget(pass);
        return;
    }
    for (int i = 0; i < pass->count; i++) {
        memcpy(slot->data + pass->entries[i].offset, pass->entries[i].host, pass->entries[i].bytes);
    }
    if (a->segments != nullptr) {
        segments_pack(a->segments, &plan,
                      reinterpret_cast<int32_t *>(slot->data + pass->segments_offset));
    }
    cuda_slot_send(stream, slot, pass->data, bytes);
    cuda_op_end(stream);
}

/* --- lookups ---------------------------------------------------------------------------------- */

#if defined(CUDA_EMULATION)
/* Tests notice here that a caller changed what it had promised to leave alone during a pass. */
static void check_unchanged(const struct cuda_pass *pass, const void *host, size_t bytes,
                            size_t offset)
{
    if (memcmp(host, pass->staging[pass->turn].data + offset, bytes) != 0) {
        emulation_fail("a host array has changed since pass_begin named it");
    }
}
#else
static void check_unchanged(const struct cuda_pass *, const void *, size_t, size_t)
{
}
#endif

/* The next slot of staging, in turn. */
static struct cuda_slot *slot_next(struct cuda_stream *stream, size_t bytes)
{
    struct cuda_slot *slot = &stream->slots[stream->slot];
    stream->slot = (stream->slot + 1) % CUDA_SLOTS;
    return cuda_slot_take(stream, slot, bytes) ? slot : nullptr;
}

const void *cuda_mirror(struct cuda_stream *stream, const void *host, size_t bytes)
{
    const struct cuda_pass *pass = &stream->pass;
    const char *first = static_cast<const char *>(host);
    if (host == nullptr || !cuda_stream_good(stream)) {
        return nullptr;
    }
    for (int i = 0; i < pass->count; i++) {
        const struct cuda_mirror_entry *entry = &pass->entries[i];
        if (first >= entry->host && first + bytes <= entry->host + entry->bytes) {
            size_t offset = entry->offset + (size_t)(first - entry->host);
            check_unchanged(pass, host, bytes, offset);
            return pass->data + offset;
        }
    }
    void *copy = cuda_scratch(stream, bytes);
    struct cuda_slot *slot = slot_next(stream, bytes);
    if (copy == nullptr || slot == nullptr) {
        return nullptr;
    }
    memcpy(slot->data, host, bytes);
    cuda_slot_send(stream, slot, copy, bytes);
    return copy;
}

struct cuda_segments cuda_segments(struct cuda_stream *stream,
                                   const struct kernel_segments *segments)
{
    const struct cuda_pass *pass = &stream->pass;
    struct segments_plan plan = segments_measure(segments);
    size_t bytes = (size_t)plan.integers * sizeof(int32_t);
    if (!cuda_stream_good(stream)) {
        return {};
    }
    if (pass->segment_start == segments->segment_start) {
        check_unchanged(pass, segments->segment_start, (size_t)(plan.count + 1) * sizeof(int32_t),
                        pass->segments_offset);
        return segments_view(&plan, pass->data + pass->segments_offset);
    }
    void *copy = cuda_scratch(stream, bytes);
    struct cuda_slot *slot = slot_next(stream, bytes);
    if (copy == nullptr || slot == nullptr) {
        return {};
    }
    segments_pack(segments, &plan, reinterpret_cast<int32_t *>(slot->data));
    cuda_slot_send(stream, slot, copy, bytes);
    return segments_view(&plan, static_cast<char *>(copy));
}

void cuda_pass_fini(struct cuda_stream *stream)
{
    (void)cudaFree(stream->pass.data);
    cuda_slot_free(&stream->pass.staging[0]);
    cuda_slot_free(&stream->pass.staging[1]);
    for (int i = 0; i < CUDA_SLOTS; i++) {
        cuda_slot_free(&stream->slots[i]);
    }
    cuda_slot_free(&stream->landing);
}
