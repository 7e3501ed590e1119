/* Encoding: a text through added tokens, normalizer, pre-tokenizer, words and post-processor. Owns
 * the working spaces, which are kept between calls. Invariant: a working space belongs to one call
 * at a time, so any number of threads may encode with one tokenizer. */
#include "model/tokenizer.h"

#include "core/log.h"
#include "model/tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>

enum {
    IDLE_SLOTS = 16,                 /* working spaces kept: threads that encode at once */
    IDLE_BYTES_MAX = 8 * 1024 * 1024 /* a working space that grew beyond is not kept */
};

struct encode_job {
    const struct tokenizer *tokenizer;
    bool plain;              /* no special tokens anywhere */
    struct tok_text input;   /* valid UTF-8; owned */
    struct tok_text segment; /* text between two added tokens, being normalized */
    struct tok_pieces raw;   /* the input cut at tokens found before normalization */
    struct tok_pieces cut;   /* a segment cut at tokens found after it */
    struct tok_work work;
    struct tok_words words;
};

struct tok_idle {
    _Atomic(struct encode_job *) jobs[IDLE_SLOTS];
};

/* ---- working spaces ---- */

static void job_texts_fini(struct encode_job *job)
{
    tok_text_fini(&job->input);
    tok_text_fini(&job->segment);
    tok_text_fini(&job->work.text);
    tok_text_fini(&job->work.text_next);
    tok_text_fini(&job->work.scratch);
}

static void job_destroy(struct encode_job *job)
{
    if (job == NULL) {
        return;
    }
    job_texts_fini(job);
    free(job->raw.items);
    free(job->cut.items);
    free(job->work.pieces.items);
    free(job->work.pieces_next.items);
    tok_words_fini(&job->words);
    free(job);
}

static size_t job_bytes(const struct encode_job *job)
{
    const struct tok_work *work = &job->work;
    size_t pieces =
        job->raw.capacity + job->cut.capacity + work->pieces.capacity + work->pieces_next.capacity;
    const struct tok_bpe_work *bpe = &job->words.work;
    return job->input.capacity + job->segment.capacity + work->text.capacity +
           work->text_next.capacity + work->scratch.capacity + job->words.spelled.capacity +
           pieces * sizeof(struct tok_piece) + bpe->symbol_capacity * sizeof(*bpe->symbols) +
           bpe->heap_capacity * sizeof(*bpe->heap);
}

rl_status tok_idle_create(struct tok_idle **out)
{
    *out = calloc(1, sizeof(**out));
    return *out != NULL ? RL_OK : rl_fail(RL_NO_MEMORY, "tokenizer: no memory");
}

void tok_idle_destroy(struct tok_idle *idle)
{
    for (int i = 0; idle != NULL && i < IDLE_SLOTS; i++) {
        job_destroy(atomic_load(&idle->jobs[i]));
    }
    free(idle);
}

static rl_status job_create(const struct tokenizer *tokenizer, struct encode_job **out)
{
    struct encode_job *job = calloc(1, sizeof(*job));
    if (job == NULL) {
        return rl_fail(RL_NO_MEMORY, "tokenizer: no memory to encode");
    }
    job->tokenizer = tokenizer;
    rl_status status =
        tok_words_init(&job->words, &tokenizer->bpe, tok_pretokenizer_raw(tokenizer->pretokenizer));
    if (status != RL_OK) {
        free(job);
        return status;
    }
    *out = job;
    return RL_OK;
}

/* An idle working space, else a new one. */
static rl_status job_acquire(const struct tokenizer *tokenizer, struct encode_job **out)
{
    for (int i = 0; i < IDLE_SLOTS; i++) {
        struct encode_job *job = atomic_exchange(&tokenizer->idle->jobs[i], NULL);
        if (job != NULL) {
            *out = job;
            return RL_OK;
        }
    }
    return job_create(tokenizer, out);
}

static void job_release(struct encode_job *job)
{
    struct tok_idle *idle = job->tokenizer->idle;
    for (int i = 0; i < IDLE_SLOTS && job_bytes(job) <= IDLE_BYTES_MAX; i++) {
        struct encode_job *none = NULL;
        if (atomic_compare_exchange_strong(&idle->jobs[i], &none, job)) {
            return;
        }
    }
    job_destroy(job);
}

/* ---- one text ---- */

/* Empty the working space; marks are kept only where something asks for them. */
static void job_start(struct encode_job *job, bool marked)
{
    struct tok_text *texts[] = {&job->input, &job->segment, &job->work.text, &job->work.text_next,
                                &job->work.scratch};
    if (job->input.marked != marked) {
        job_texts_fini(job);
    }
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        texts[i]->bytes = 0;
        texts[i]->marked = marked;
    }
    job->raw.count = 0;
    job->work.pieces.count = 0;
}

/* Copy the text in. */
static rl_status job_input(struct encode_job *job, const char *text, size_t bytes,
                           const unsigned char *mask)
{
    job_start(job, mask != NULL || job->tokenizer->needs_origin);
    if (mask == NULL) {
        RL_TRY(tok_text_append_lossy(&job->input, text, bytes));
    } else {
        size_t good = tok_utf8_valid(text, bytes);
        if (good != bytes) {
            return rl_fail(RL_INVALID, "tokenizer: text is not UTF-8 at byte %zu", good);
        }
        RL_TRY(tok_text_append(&job->input, text, bytes, 0));
        for (size_t i = 0; i < bytes; i++) {
            job->input.mark[i] = mask[i] != 0 ? TOK_MARK_PLAIN : 0;
        }
    }
    if (job->input.marked && job->input.bytes > 0) {
        size_t first;
        (void)tok_utf8_get(job->input.data, &first);
        for (size_t i = 0; i < first; i++) {
            job->input.mark[i] |= TOK_MARK_ORIGIN;
        }
    }
    return RL_OK;
}

/* Normalize one stretch of text and cut it at the tokens that are matched after that. */
static rl_status job_segment(struct encode_job *job, const struct tok_piece *piece)
{
    const struct tok_added *added = &job->tokenizer->added;
    struct tok_work *work = &job->work;
    job->segment.bytes = 0;
    RL_TRY(tok_text_copy(&job->segment, &job->input, piece->start, piece->bytes));
    RL_TRY(tok_normalizer_run(job->tokenizer->normalizer, &job->segment, &work->scratch));
    struct tok_added_scan scan = {.added = added,
                                  .trie = &added->normalized,
                                  .text = &job->segment,
                                  .bytes = job->segment.bytes,
                                  .plain = job->plain};
    job->cut.count = 0;
    RL_TRY(tok_added_split(&scan, &job->cut));
    size_t base = work->text.bytes;
    RL_TRY(tok_text_copy(&work->text, &job->segment, 0, job->segment.bytes));
    for (size_t i = 0; i < job->cut.count; i++) {
        const struct tok_piece *item = &job->cut.items[i];
        RL_TRY(tok_pieces_add(&work->pieces, base + item->start, item->bytes, item->token));
    }
    return RL_OK;
}

static rl_status job_pieces(struct encode_job *job)
{
    const struct tok_added *added = &job->tokenizer->added;
    struct tok_added_scan scan = {.added = added,
                                  .trie = &added->raw,
                                  .text = &job->input,
                                  .bytes = job->input.bytes,
                                  .plain = job->plain};
    RL_TRY(tok_added_split(&scan, &job->raw));
    for (size_t i = 0; i < job->raw.count; i++) {
        const struct tok_piece *piece = &job->raw.items[i];
        if (piece->token >= 0) {
            RL_TRY(tok_pieces_add(&job->work.pieces, 0, 0, piece->token));
        } else {
            RL_TRY(job_segment(job, piece));
        }
    }
    return RL_OK;
}

/* Ids of the pieces; text is cut by `scan` as it goes, or is a word already where that is NULL. */
static rl_status job_ids(struct encode_job *job, tok_scan_fn scan, struct token_buffer *out)
{
    struct tok_work *work = &job->work;
    RL_TRY(tok_text_reserve(&work->text, TOK_WORD_SLACK));
    for (size_t i = 0; i < work->pieces.count; i++) {
        const struct tok_piece *piece = &work->pieces.items[i];
        struct tok_view text = {work->text.data + piece->start, piece->bytes};
        if (piece->token >= 0) {
            RL_TRY(tok_buffer_push(out, piece->token));
        } else if (scan != NULL) {
            RL_TRY(tok_words_scan(&job->words, scan, text, out));
        } else {
            RL_TRY(tok_words_encode(&job->words, text, out));
        }
    }
    return RL_OK;
}

static rl_status job_run(struct encode_job *job, bool add_special, struct token_buffer *out)
{
    const struct tokenizer *tokenizer = job->tokenizer;
    tok_scan_fn scan = tok_pretokenizer_scan(tokenizer->pretokenizer);
    size_t from = out->count;
    RL_TRY(job_pieces(job));
    if (scan == NULL) {
        RL_TRY(tok_pretokenizer_run(tokenizer->pretokenizer, &job->work));
    }
    RL_TRY(job_ids(job, scan, out));
    return tok_post_run(&tokenizer->post, add_special, from, out);
}

rl_status tokenizer_encode_masked(const struct tokenizer *tokenizer, const char *text, size_t bytes,
                                  const unsigned char *plain, unsigned flags,
                                  struct token_buffer *out)
{
    struct encode_job *job = NULL;
    size_t before = out->count;
    RL_TRY(job_acquire(tokenizer, &job));
    job->plain = (flags & TOKENIZER_PLAIN_TEXT) != 0;
    rl_status status = job_input(job, text, bytes, plain);
    if (status == RL_OK) {
        status = job_run(job, (flags & TOKENIZER_ADD_SPECIAL) != 0, out);
    }
    if (status != RL_OK) {
        out->count = before;
    }
    job_release(job);
    return status;
}

rl_status tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t bytes,
                           unsigned flags, struct token_buffer *out)
{
    return tokenizer_encode_masked(tokenizer, text, bytes, NULL, flags, out);
}
