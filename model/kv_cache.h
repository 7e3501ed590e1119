/* Bookkeeping of KV pages: which are free, and how many sequences hold each. A prefix is shared by
 * sharing its pages; the page where two sequences part is copied on write. Knows page numbers only;
 * the data is in struct model_kv. One thread at a time. */
#ifndef FORESIGHT_MODEL_KV_CACHE_H
#define FORESIGHT_MODEL_KV_CACHE_H

#include "core/status.h"

#include <stdint.h>

struct model_pages;

/* All pages free. page_count >= 1. Caller owns *out. Errors: RL_NO_MEMORY, RL_INVALID. */
rl_status model_pages_create(int32_t page_count, struct model_pages **out);
void model_pages_destroy(struct model_pages *pages);

/* Pages that nobody holds. */
int32_t model_pages_free_count(const struct model_pages *pages);

/* Holders of a page; 0: free. */
int32_t model_pages_references(const struct model_pages *pages, int32_t page);

/* Pages for `tokens` tokens. */
int32_t model_pages_for_tokens(int64_t tokens);

/* Take `count` free pages, one reference each, into ids [count]. All or none: returns RL_AGAIN,
 * silently, if fewer are free. */
rl_status model_pages_acquire(struct model_pages *pages, int32_t count, int32_t *ids);

/* One more holder for each of ids [count], which must be held already. */
void model_pages_share(struct model_pages *pages, const int32_t *ids, int32_t count);

/* One holder less; a page without holders is free again. */
void model_pages_release(struct model_pages *pages, const int32_t *ids, int32_t count);

/* Before writing into *page: if others hold it too, replace it by a free page and set *copy_from
 * to the old one, whose data the caller must copy (model_kv_copy_page); else *copy_from = -1.
 * Returns RL_AGAIN, silently and unchanged, if no page is free. */
rl_status model_pages_make_private(struct model_pages *pages, int32_t *page, int32_t *copy_from);

#endif
