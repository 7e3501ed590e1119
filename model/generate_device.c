/* A generation pass on a device: what it uploads, when it is one that the device has seen before,
 * and the head's part of its time. Invariant: the key of a pass holds everything that its launches
 * depend on; numbers that change from pass to pass (ids, positions, pages, counters) are read from
 * the device's memory, where pass_begin puts them in the same places for the same sizes. */
#include "model/workspace.h"

#include "kernels/device.h"

#include <string.h>

/* What makes two passes alike. */
struct generate_key {
    const void *image, *k, *v, *workspace, *layout;
    const int32_t *ids;
    const float *logprob, *kept;
    int64_t rows, context;
    struct kernel_sampling sampling;
    bool forced;
};

struct generate_pass {
    const struct model_pass *pass;
    const struct model_decode_args *decode;
};

/* All that the pass's kernels read of the host's memory. */
static void begin_pass(const struct generate_pass *p)
{
    const struct model_batch *batch = p->pass->batch;
    const struct model_decode_args *d = p->decode;
    const size_t tokens = (size_t)batch->token_count * sizeof(int32_t);
    const size_t rows = (size_t)d->m;
    const struct kernel_pass_array arrays[] = {{batch->tokens, tokens},
                                               {batch->positions, tokens},
                                               {d->hidden_rows, rows * sizeof *d->hidden_rows},
                                               {d->keys, rows * sizeof *d->keys},
                                               {d->counters, rows * sizeof *d->counters},
                                               {d->forced, rows * sizeof *d->forced}};
    const struct kernel_pass_args begin = {
        .segments = batch->segments, .arrays = arrays, .count = d->forced != NULL ? 6 : 5};
    p->pass->kernels->pass_begin(&begin, p->pass->context->pool);
}

/* Only where each sequence has one token, which is sampled from: the next passes look the same. */
static bool make_key(const struct generate_pass *p, struct generate_key *key)
{
    const struct model_batch *batch = p->pass->batch;
    const struct model_decode_args *d = p->decode;
    int64_t longest = 0;
    if (batch->segments->count != d->m || batch->token_count != d->m) {
        return false;
    }
    for (int64_t s = 0; s < d->m; s++) {
        const int64_t tokens = batch->segments->first_position[s] + 1;
        longest = tokens > longest ? tokens : longest;
    }
    memset(key, 0, sizeof *key); /* padding too */
    key->image = p->pass->image;
    key->k = p->pass->kv->k;
    key->v = p->pass->kv->v;
    key->workspace = p->pass->workspace->slab;
    key->layout = p->pass->layout;
    key->ids = d->ids;
    key->logprob = d->logprob;
    key->kept = d->kept;
    key->rows = d->m;
    key->context = kernel_context_bucket(longest);
    key->sampling = *d->sampling;
    key->forced = d->forced != NULL;
    return true;
}

static void queue_pass(void *arg)
{
    const struct generate_pass *p = arg;
    const struct model_context *context = p->pass->context;
    device_mark(context->pool, DEVICE_MARK_BEGIN);
    model_forward_begun(p->pass);
    device_mark(context->pool, DEVICE_MARK_MIDDLE);
    model_head_decode(context, p->pass->image, p->pass->workspace, p->decode);
    device_mark(context->pool, DEVICE_MARK_END);
}

double model_generate_on_device(const struct model_pass *pass,
                                const struct model_decode_args *decode)
{
    struct rl_pool *pool = pass->context->pool;
    struct generate_pass p = {pass, decode};
    struct generate_key key;
    struct device_work work = {.queue = queue_pass, .arg = &p};
    if (make_key(&p, &key)) {
        work.key = &key;
        work.key_bytes = sizeof key;
    }
    begin_pass(&p);
    device_replay(pool, &work);
    if (device_wait(pool) != RL_OK) {
        return 0; /* whoever uses the results asks again */
    }
    const double all_s = device_marked_s(pool, DEVICE_MARK_BEGIN, DEVICE_MARK_END);
    return all_s > 0 ? device_marked_s(pool, DEVICE_MARK_MIDDLE, DEVICE_MARK_END) / all_s : 0;
}
