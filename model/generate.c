/* A generation pass and how threads share it: each kernel call by itself, or whole segments. Owns
 * the shares' views of the workspace and the guess which is faster. Invariant (P1): a row's numbers
 * depend on its own inputs alone, so the choice changes no bit; and no segment reads what another
 * one of the pass writes, so shares need not wait for each other. */
#include "model/workspace.h"

#include "core/clock.h"
#include "core/log.h"
#include "kernels/device.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

/* A nominal machine, to tell which split is faster; nothing else depends on it. */
static const double thread_flops_s = 1.2e11;
static const double cache_read_s = 7e10;  /* bytes, each thread */
static const double memory_read_s = 1e11; /* bytes, all threads together */
static const double run_s = 3e-6;         /* handing one kernel call to the pool */
static const double meeting_share = 0.95; /* of time is left by waits for the slowest of a call */
enum { RUNS_PER_LAYER = 5 };

/* One thread's part of a pass. */
struct model_share {
    struct model_workspace view; /* owns its `layers` */
    struct kernel_segments segments;
    struct model_batch batch;
    struct model_decode_args decode;
    double cost; /* floating-point operations, about */
    double forward_s, head_s;
};

struct model_shares {
    int count;                              /* at most so many parts */
    struct model_share *parts;              /* [count] */
    int32_t *segment_start;                 /* [max_tokens + count] of all parts, each from 0 on */
    int32_t *hidden_rows;                   /* [max_tokens] of all parts, likewise */
    bool cached;                            /* the weights stay in the last-level cache */
    double weight_bytes;                    /* read in a pass */
    double token_cost, row_cost, pair_cost; /* of a token, of a sampled row, of a query and a key */
};

struct share_pass {
    struct model_context context; /* without a pool */
    const void *image;
    struct model_kv *kv;
    struct model_shares *shares;
};

/* --- life cycle --------------------------------------------------------------------------------
 */

void model_shares_destroy(struct model_shares *shares)
{
    if (shares == NULL) {
        return;
    }
    for (int i = 0; shares->parts != NULL && i < shares->count; i++) {
        free(shares->parts[i].view.layers);
    }
    free(shares->parts);
    free(shares->segment_start);
    free(shares->hidden_rows);
    free(shares);
}

static void weigh_model(const struct model_layout *layout, struct model_shares *shares)
{
    const struct model_architecture *a = &layout->arch;
    double body = 0;
    for (int32_t i = 0; i < layout->tensor_count; i++) {
        const struct model_tensor *tensor = &layout->tensors[i];
        body += tensor->matrix && tensor->layer >= 0 ? (double)(tensor->rows * tensor->cols) : 0;
    }
    double head = (double)a->vocab * a->width;
    double element = (double)kernel_packed_bytes(KERNEL_PANEL, a->width, layout->dtype) /
                     ((double)KERNEL_PANEL * a->width);
    shares->token_cost = 2 * body;
    shares->row_cost = 2 * head;
    shares->pair_cost = 4.0 * a->layers * a->heads * a->head_dim;
    shares->weight_bytes = element * (body + head);
    shares->cached = shares->weight_bytes < (double)device_cache_bytes();
}

static rl_status shares_init(const struct model_workspace *workspace,
                             const struct model_layout *layout, struct model_shares *shares)
{
    size_t count = (size_t)shares->count;
    size_t tokens = (size_t)workspace->max_tokens;
    bool enough = true;
    shares->parts = calloc(count, sizeof(*shares->parts));
    shares->segment_start = calloc(tokens + count, sizeof(int32_t));
    shares->hidden_rows = calloc(tokens, sizeof(int32_t));
    for (size_t i = 0; shares->parts != NULL && i < count; i++) {
        struct model_workspace *view = &shares->parts[i].view;
        view->layers = calloc((size_t)layout->arch.layers, sizeof(*view->layers));
        enough = enough && view->layers != NULL;
    }
    if (!enough || !shares->parts || !shares->segment_start || !shares->hidden_rows) {
        return rl_fail(RL_NO_MEMORY, "no memory to share passes among %d threads", shares->count);
    }
    weigh_model(layout, shares);
    return RL_OK;
}

rl_status model_workspace_share(struct model_workspace *workspace,
                                const struct model_layout *layout, int threads)
{
    assert(!model_keep_trains(workspace->keep) && workspace->shares == NULL);
    int64_t count = threads < workspace->decode_rows ? threads : workspace->decode_rows;
    if (count < 2 || layout->device != NULL) {
        return RL_OK;
    }
    struct model_shares *shares = calloc(1, sizeof(*shares));
    if (shares == NULL) {
        return rl_fail(RL_NO_MEMORY, "no memory to share passes among %d threads", threads);
    }
    shares->count = (int)count;
    rl_status status = shares_init(workspace, layout, shares);
    if (status != RL_OK) {
        model_shares_destroy(shares);
        return status;
    }
    workspace->shares = shares;
    return RL_OK;
}

/* --- cutting -----------------------------------------------------------------------------------
 */

/* What a segment costs; *row moves past its sampled rows. */
static double segment_cost(const struct model_shares *shares,
                           const struct kernel_segments *segments, int64_t segment,
                           const struct model_decode_args *decode, int64_t *row)
{
    int32_t end = segments->segment_start[segment + 1];
    double tokens = end - segments->segment_start[segment];
    double first = segments->first_position[segment];
    int64_t before = *row;
    while (*row < decode->m && decode->hidden_rows[*row] < end) {
        (*row)++;
    }
    return tokens * (shares->token_cost + (first + tokens / 2) * shares->pair_cost) +
           (double)(*row - before) * shares->row_cost;
}

/* Cut the segments into runs of about equal cost; sets every part's range of segments (count may be
 * 0) and cost. Returns the largest cost. */
static double cut_segments(struct model_shares *shares, const struct kernel_segments *segments,
                           const struct model_decode_args *decode, double total)
{
    int64_t row = 0;
    double passed = 0;
    double largest = 0;
    for (int i = 0; i < shares->count; i++) {
        shares->parts[i].cost = 0;
        shares->parts[i].segments.count = 0;
    }
    for (int64_t s = 0; s < segments->count; s++) {
        double cost = segment_cost(shares, segments, s, decode, &row);
        int at = (int)((passed + cost / 2) / total * shares->count);
        struct model_share *part = &shares->parts[at < shares->count ? at : shares->count - 1];
        part->cost += cost;
        part->segments.count++;
        passed += cost;
        largest = part->cost > largest ? part->cost : largest;
    }
    return largest;
}

/* Does it take less time to split by segments? They are cut. */
static bool segments_pay(const struct model_shares *shares, int layers, double total,
                         double largest)
{
    double runs = run_s * RUNS_PER_LAYER * layers;
    double bytes = shares->weight_bytes;
    double threads = shares->count;
    /* threads that walk through the layers side by side find part of what another has fetched */
    double fetched = (1 + threads) / 2 * bytes;
    double each = shares->cached ? bytes / cache_read_s : fetched / memory_read_s;
    double once = shares->cached ? bytes / (threads * cache_read_s) : bytes / memory_read_s;
    return largest / thread_flops_s + each <
           total / (threads * thread_flops_s * meeting_share) + once + runs;
}

/* A row that is asked for more than once: a part has room for as many rows as it has tokens. */
static bool repeats_rows(const struct model_decode_args *decode)
{
    int64_t row = 1;
    while (row < decode->m && decode->hidden_rows[row] != decode->hidden_rows[row - 1]) {
        row++;
    }
    return row < decode->m;
}

static bool choose_segments(const struct model_context *context, struct model_shares *shares,
                            const struct kernel_segments *segments,
                            const struct model_decode_args *decode)
{
    if (shares == NULL || context->split == MODEL_SPLIT_OUTPUTS || segments->count < 2 ||
        repeats_rows(decode)) {
        return false;
    }
    int64_t row = 0;
    double total = 0;
    for (int64_t s = 0; s < segments->count; s++) {
        total += segment_cost(shares, segments, s, decode, &row);
    }
    double largest = cut_segments(shares, segments, decode, total);
    return context->split == MODEL_SPLIT_SEQUENCES ||
           segments_pay(shares, context->layout->arch.layers, total, largest);
}

/* --- running -----------------------------------------------------------------------------------
 */

/* The part's share of the decode rows: those below token `end`. Returns the first row beyond. */
static int64_t part_rows(struct model_share *part, int32_t *hidden_rows, int64_t row, int64_t end,
                         const struct model_decode_args *decode, int64_t token)
{
    int64_t first = row;
    for (; row < decode->m && decode->hidden_rows[row] < end; row++) {
        hidden_rows[row] = decode->hidden_rows[row] - (int32_t)token;
    }
    part->decode = *decode;
    part->decode.hidden_rows = hidden_rows + first;
    part->decode.keys += first;
    part->decode.counters += first;
    part->decode.forced += decode->forced != NULL ? first : 0;
    part->decode.ids += first;
    part->decode.logprob += first;
    part->decode.kept += decode->kept != NULL ? first : 0;
    part->decode.m = row - first;
    return row;
}

/* Give every part its tokens, rows and memory, as cut_segments has cut. */
static void lay_out_parts(const struct model_workspace *workspace,
                          const struct model_layout *layout, const struct model_batch *batch,
                          const struct model_decode_args *decode)
{
    struct model_shares *shares = workspace->shares;
    const struct kernel_segments *all = batch->segments;
    int64_t segment = 0;
    int64_t row = 0;
    for (int i = 0; i < shares->count; i++) {
        struct model_share *part = &shares->parts[i];
        int64_t count = part->segments.count;
        int32_t token = all->segment_start[segment];
        int32_t *start = shares->segment_start + segment + i;
        for (int64_t s = 0; s <= count; s++) {
            start[s] = all->segment_start[segment + s] - token;
        }
        part->segments = (struct kernel_segments){.count = count,
                                                  .segment_start = start,
                                                  .first_position = all->first_position + segment,
                                                  .page_table = all->page_table + segment};
        part->batch = (struct model_batch){.token_count = start[count],
                                           .tokens = batch->tokens + token,
                                           .positions = batch->positions + token,
                                           .segments = &part->segments};
        int64_t rows = workspace->decode_rows / shares->count;
        struct model_view place = {.token = token, .decode_row = i * rows, .decode_rows = rows};
        model_workspace_view(workspace, layout, &place, &part->view);
        segment += count;
        row = part_rows(part, shares->hidden_rows, row, token + start[count], decode, token);
    }
}

static void run_part(void *arg, int index)
{
    struct share_pass *pass = arg;
    struct model_share *part = &pass->shares->parts[index];
    const float *hidden = NULL;
    double start = rl_clock_now_s(NULL);
    model_forward(&pass->context, pass->image, pass->kv, &part->batch, &part->view, &hidden);
    double forwarded = rl_clock_now_s(NULL);
    model_head_decode(&pass->context, pass->image, &part->view, &part->decode);
    part->forward_s = forwarded - start;
    part->head_s = rl_clock_now_s(NULL) - forwarded;
}

static double head_part(double forward_s, double head_s)
{
    return head_s > 0 ? head_s / (forward_s + head_s) : 0;
}

static double run_parts(struct share_pass *pass, struct rl_pool *pool)
{
    double forward_s = 0;
    double head_s = 0;
    rl_pool_run(pool, pass->shares->count, run_part, pass);
    for (int i = 0; i < pass->shares->count; i++) {
        forward_s += pass->shares->parts[i].forward_s;
        head_s += pass->shares->parts[i].head_s;
    }
    return head_part(forward_s, head_s);
}

double model_generate(const struct model_context *context, const void *image, struct model_kv *kv,
                      const struct model_batch *batch, struct model_workspace *workspace,
                      const struct model_decode_args *decode)
{
    if (choose_segments(context, workspace->shares, batch->segments, decode)) {
        struct share_pass pass = {
            .context = *context, .image = image, .kv = kv, .shares = workspace->shares};
        pass.context.pool = NULL;
        lay_out_parts(workspace, context->layout, batch, decode);
        return run_parts(&pass, context->pool);
    }
    if (context->layout->device != NULL) {
        struct model_pass pass = {context, context->layout, context->kernels, image,
                                  kv,      batch,           workspace,        NULL};
        return model_generate_on_device(&pass, decode);
    }
    const float *hidden = NULL;
    double start = rl_clock_now_s(NULL);
    model_forward(context, image, kv, batch, workspace, &hidden);
    double forwarded = rl_clock_now_s(NULL);
    model_head_decode(context, image, workspace, decode);
    return head_part(forwarded - start, rl_clock_now_s(NULL) - forwarded);
}
