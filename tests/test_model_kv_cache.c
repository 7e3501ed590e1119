/* KV pages: counts, sharing, copy on write, and the copy itself. */
#include "model/kv_cache.h"
#include "tests/model_fixture.h"

START_TEST(acquire_is_all_or_nothing)
{
    struct model_pages *pages = NULL;
    int32_t ids[8];
    ck_assert_int_eq(model_pages_create(5, &pages), RL_OK);
    ck_assert_int_eq(model_pages_acquire(pages, 3, ids), RL_OK);
    ck_assert_int_eq(ids[0], 0);
    ck_assert_int_eq(ids[2], 2);
    ck_assert_int_eq(model_pages_free_count(pages), 2);
    ck_assert_int_eq(model_pages_acquire(pages, 3, ids + 3), RL_AGAIN);
    ck_assert_int_eq(model_pages_free_count(pages), 2);
    ck_assert_int_eq(model_pages_acquire(pages, 2, ids + 3), RL_OK);
    ck_assert_int_eq(model_pages_free_count(pages), 0);
    model_pages_release(pages, ids, 5);
    ck_assert_int_eq(model_pages_free_count(pages), 5);
    model_pages_destroy(pages);
    model_pages_destroy(NULL);
}
END_TEST

START_TEST(shared_pages_outlive_one_holder)
{
    struct model_pages *pages = NULL;
    int32_t ids[2];
    ck_assert_int_eq(model_pages_create(4, &pages), RL_OK);
    ck_assert_int_eq(model_pages_acquire(pages, 2, ids), RL_OK);
    model_pages_share(pages, ids, 2);
    ck_assert_int_eq(model_pages_references(pages, ids[1]), 2);
    model_pages_release(pages, ids, 2);
    ck_assert_int_eq(model_pages_free_count(pages), 2);
    model_pages_release(pages, ids, 2);
    ck_assert_int_eq(model_pages_free_count(pages), 4);
    ck_assert_int_eq(model_pages_references(pages, ids[0]), 0);
    model_pages_destroy(pages);
}
END_TEST

START_TEST(copy_on_write_only_when_shared)
{
    struct model_pages *pages = NULL;
    int32_t page = -1;
    int32_t from = 7;
    ck_assert_int_eq(model_pages_create(2, &pages), RL_OK);
    ck_assert_int_eq(model_pages_acquire(pages, 1, &page), RL_OK);
    ck_assert_int_eq(model_pages_make_private(pages, &page, &from), RL_OK);
    ck_assert_int_eq(from, -1);
    int32_t mine = page;
    model_pages_share(pages, &page, 1);
    ck_assert_int_eq(model_pages_make_private(pages, &mine, &from), RL_OK);
    ck_assert_int_eq(from, page);
    ck_assert_int_ne(mine, page);
    ck_assert_int_eq(model_pages_references(pages, page), 1);
    ck_assert_int_eq(model_pages_references(pages, mine), 1);
    model_pages_share(pages, &page, 1);
    int32_t full = page;
    ck_assert_int_eq(model_pages_make_private(pages, &full, &from), RL_AGAIN);
    ck_assert_int_eq(full, page);
    ck_assert_int_eq(model_pages_references(pages, page), 2);
    model_pages_destroy(pages);
}
END_TEST

/* Random holders against a plain model of what they hold. */
START_TEST(counts_add_up)
{
    enum { PAGES = 24, HOLDERS = 9, EACH = 6 };
    struct model_pages *pages = NULL;
    struct rl_rng rng = rl_rng_make(1, 2);
    int32_t held[HOLDERS][EACH];
    int32_t count[HOLDERS] = {0};
    ck_assert_int_eq(model_pages_create(PAGES, &pages), RL_OK);
    for (int step = 0; step < 20000; step++) {
        int h = (int)rl_rng_next_below(&rng, HOLDERS);
        int other = (int)rl_rng_next_below(&rng, HOLDERS);
        int32_t wanted = (int32_t)rl_rng_next_below(&rng, EACH) + 1;
        int32_t from = -1;
        if (count[h] == 0 && h != other && count[other] > 0) {
            memcpy(held[h], held[other], sizeof held[h]);
            count[h] = count[other];
            model_pages_share(pages, held[h], count[h]);
        } else if (count[h] == 0) {
            bool fits = wanted <= model_pages_free_count(pages);
            rl_status status = model_pages_acquire(pages, wanted, held[h]);
            ck_assert_int_eq(status, fits ? RL_OK : RL_AGAIN);
            count[h] = fits ? wanted : 0;
        } else if (wanted % 2 == 0) {
            rl_status status = model_pages_make_private(pages, &held[h][count[h] - 1], &from);
            ck_assert(status == RL_OK || model_pages_free_count(pages) == 0);
        } else {
            model_pages_release(pages, held[h], count[h]);
            count[h] = 0;
        }
        int32_t references[PAGES] = {0};
        int32_t used = 0;
        for (int i = 0; i < HOLDERS; i++) {
            for (int32_t j = 0; j < count[i]; j++) {
                used += references[held[i][j]]++ == 0 ? 1 : 0;
            }
        }
        ck_assert_int_eq(model_pages_free_count(pages), PAGES - used);
        for (int32_t i = 0; i < PAGES; i++) {
            ck_assert_int_eq(model_pages_references(pages, i), references[i]);
        }
    }
    model_pages_destroy(pages);
}
END_TEST

START_TEST(copied_pages_are_equal_in_every_layer)
{
    struct model_architecture arch = fixture_architecture(0);
    struct model_layout *layout = NULL;
    struct model_context context = {0};
    struct model_kv kv;
    ck_assert_int_eq(model_layout_create(&arch, KERNEL_FP32, 64, &layout), RL_OK);
    ck_assert_int_eq(kernel_table_get(kernel_isa_best(), &context.kernels), RL_OK);
    context.layout = layout;
    layout->kv_dtype = _i == 0 ? KERNEL_FP32 : KERNEL_BF16;
    ck_assert_int_eq(model_kv_create(layout, 3, &kv), RL_OK);
    size_t page = (size_t)arch.kv_heads * (size_t)arch.head_dim * KERNEL_PAGE_TOKENS *
                  (_i == 0 ? sizeof(float) : sizeof(uint16_t));
    size_t bytes = kv.layer_bytes * (size_t)arch.layers;
    ck_assert_uint_eq(model_kv_page_bytes(layout), page * 2 * (size_t)arch.layers);
    ck_assert_uint_eq(kv.layer_bytes, page * 3);
    for (size_t i = 0; i < bytes; i++) {
        kv.k[i] = (unsigned char)(i % 251);
        kv.v[i] = (unsigned char)(i % 241);
    }
    model_kv_copy_page(&context, &kv, 2, 0);
    for (size_t layer = 0; layer < (size_t)arch.layers; layer++) {
        const unsigned char *k = kv.k + layer * kv.layer_bytes;
        const unsigned char *v = kv.v + layer * kv.layer_bytes;
        ck_assert_mem_eq(k, k + 2 * page, page);
        ck_assert_mem_eq(v, v + 2 * page, page);
        /* the middle one untouched */
        ck_assert_uint_eq(k[page], (layer * kv.layer_bytes + page) % 251);
    }
    model_kv_fini(&kv);
    model_layout_destroy(layout);
}
END_TEST

START_TEST(packing_stops_at_its_limits)
{
    struct model_packing *packing = NULL;
    int32_t tokens[40];
    int64_t row = -1;
    for (int32_t i = 0; i < 40; i++) {
        tokens[i] = i;
    }
    ck_assert_int_eq(model_packing_create(40, 3, &packing), RL_OK);
    ck_assert_int_eq(model_packing_add(packing, tokens, 41, &row), RL_AGAIN);
    ck_assert_int_eq(model_packing_add(packing, tokens, 17, &row), RL_OK);
    ck_assert_int_eq(row, 0);
    ck_assert_int_eq(model_packing_add(packing, tokens, 1, &row), RL_OK);
    ck_assert_int_eq(row, 17);
    ck_assert_int_eq(model_packing_add(packing, tokens, 23, &row), RL_AGAIN);
    ck_assert_int_eq(model_packing_add(packing, tokens, 22, &row), RL_OK);
    ck_assert_int_eq(packing->batch.token_count, 40);
    ck_assert_int_eq(packing->batch.segments->count, 3);
    ck_assert_int_eq(packing->page_count, 5);
    ck_assert_int_eq(packing->page_table[2][0], 3);
    ck_assert_int_eq(packing->positions[17], 0);
    ck_assert_int_eq(packing->positions[39], 21);
    ck_assert_int_le(packing->page_count, model_packing_pages(40, 3));
    model_packing_reset(packing);
    for (int i = 0; i < 3; i++) {
        ck_assert_int_eq(model_packing_add(packing, tokens, 2, &row), RL_OK);
    }
    ck_assert_int_eq(model_packing_add(packing, tokens, 2, &row), RL_AGAIN);
    model_packing_destroy(packing);
    ck_assert_int_eq(model_packing_create(0, 3, &packing), RL_INVALID);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("model_kv_cache");
    TCase *tcase = tcase_create("pages");
    tcase_add_test(tcase, acquire_is_all_or_nothing);
    tcase_add_test(tcase, shared_pages_outlive_one_holder);
    tcase_add_test(tcase, copy_on_write_only_when_shared);
    tcase_add_test(tcase, counts_add_up);
    tcase_add_loop_test(tcase, copied_pages_are_equal_in_every_layer, 0, 2);
    tcase_add_test(tcase, packing_stops_at_its_limits);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
