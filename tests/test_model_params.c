/* Loading weights: what is missing, misshaped, left over or not finite is refused by name; dtypes
 * and tied heads are taken as they come; the image follows the master. */
#include "core/log.h"
#include "model/safetensors.h"
#include "tests/model_fixture.h"

#include <math.h>
#include <unistd.h>

enum { ENTRIES_MAX = 64 };

/* A model folder in the making: the entries of a sound file, to be spoilt by a test. */
struct folder {
    char dir[32];
    struct model_fixture f;
    struct safetensors_entry entries[ENTRIES_MAX];
    int64_t count;
};

static void folder_create(struct folder *folder, bool tied)
{
    struct model_architecture arch = fixture_architecture(0);
    struct fixture_options options = {KERNEL_ISA_REF, KERNEL_FP32, 1};
    memset(folder, 0, sizeof *folder);
    snprintf(folder->dir, sizeof folder->dir, "params_XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder->dir));
    arch.tied = tied;
    fixture_create(&folder->f, &arch, &options);
    fixture_randomise(&folder->f, 1);
    folder->count = folder->f.layout->tensor_count;
    for (int64_t i = 0; i < folder->count; i++) {
        const struct model_tensor *t = &folder->f.layout->tensors[i];
        struct safetensors_entry *entry = &folder->entries[i];
        entry->name = t->name;
        entry->dtype = "F32";
        entry->rank = t->matrix ? 2 : 1;
        entry->shape[0] = t->matrix ? t->rows : t->cols;
        entry->shape[1] = t->cols;
        entry->data = folder->f.master + t->offset;
        entry->bytes = (size_t)(t->rows * t->cols) * sizeof(float);
    }
}

static void folder_destroy(struct folder *folder)
{
    char path[128];
    snprintf(path, sizeof path, "%s/model.safetensors", folder->dir);
    unlink(path);
    ck_assert_int_eq(rmdir(folder->dir), 0);
    fixture_destroy(&folder->f);
}

static rl_status folder_load(const struct folder *folder, float *master)
{
    char path[128];
    snprintf(path, sizeof path, "%s/model.safetensors", folder->dir);
    ck_assert_int_eq(safetensors_write(path, folder->entries, folder->count), RL_OK);
    return model_params_load(folder->f.layout, folder->dir, master, folder->f.pool);
}

static void expect_refusal(const struct folder *folder, rl_status expected, const char *words)
{
    float *master = fixture_floats(folder->f.layout->master_count);
    ck_assert_int_eq(folder_load(folder, master), expected);
    ck_assert_msg(strstr(rl_log_last_error(), words) != NULL, "wanted \"%s\", got: %s", words,
                  rl_log_last_error());
    device_free(master);
}

static struct safetensors_entry *find(struct folder *folder, const char *name)
{
    for (int64_t i = 0; i < folder->count; i++) {
        if (strcmp(folder->entries[i].name, name) == 0) {
            return &folder->entries[i];
        }
    }
    ck_abort_msg("no tensor %s", name);
    return NULL;
}

START_TEST(a_sound_file_is_loaded)
{
    struct folder folder;
    folder_create(&folder, true);
    size_t bytes = (size_t)folder.f.layout->master_count * sizeof(float);
    float *master = fixture_floats(folder.f.layout->master_count);
    memset(master, 0x7f, bytes); /* padding must become 0 */
    ck_assert_int_eq(folder_load(&folder, master), RL_OK);
    ck_assert_mem_eq(master, folder.f.master, bytes);
    device_free(master);
    folder_destroy(&folder);
}
END_TEST

/* Without a master slab between, by any number of threads: the same bytes. */
START_TEST(an_image_is_loaded)
{
    struct folder folder;
    void *image = NULL;
    struct rl_pool *pool = NULL;
    folder_create(&folder, true);
    size_t bytes = folder.f.layout->image_bytes;
    ck_assert_int_eq(rl_pool_create(3, &pool), RL_OK);
    ck_assert_int_eq(device_alloc(bytes, "image", &image), RL_OK);
    ck_assert_int_eq(folder_load(&folder, folder.f.master), RL_OK);
    fixture_publish(&folder.f);
    for (int threads = 1; threads <= 3; threads += 2) {
        memset(image, 0x7f, bytes);
        ck_assert_int_eq(model_image_load(folder.f.layout, folder.f.kernels, folder.dir, image,
                                          threads == 1 ? NULL : pool),
                         RL_OK);
        ck_assert_mem_eq(image, folder.f.image, bytes);
    }
    device_free(image);
    rl_pool_destroy(pool);
    folder_destroy(&folder);
}
END_TEST

START_TEST(missing_tensors_are_named)
{
    struct folder folder;
    folder_create(&folder, true);
    *find(&folder, "model.layers.1.self_attn.q_norm.weight") = folder.entries[folder.count - 1];
    folder.count--;
    expect_refusal(&folder, RL_INVALID, "model.layers.1.self_attn.q_norm.weight is missing");
    folder_destroy(&folder);
}
END_TEST

START_TEST(wrong_shapes_are_named)
{
    struct folder folder;
    folder_create(&folder, true);
    struct safetensors_entry *entry = find(&folder, "model.layers.0.mlp.up_proj.weight");
    int64_t rows = entry->shape[0];
    entry->shape[0] = entry->shape[1];
    entry->shape[1] = rows; /* transposed: the same size */
    expect_refusal(&folder, RL_INVALID,
                   "model.layers.0.mlp.up_proj.weight has shape [48, 56], config.json wants "
                   "[56, 48]");
    entry->shape[1] = entry->shape[0];
    entry->shape[0] = rows;
    entry = find(&folder, "model.norm.weight");
    entry->rank = 2;
    entry->shape[0] = 1;
    entry->shape[1] = 48;
    expect_refusal(&folder, RL_INVALID, "model.norm.weight has shape [1, 48]");
    folder_destroy(&folder);
}
END_TEST

START_TEST(left_over_tensors_are_named)
{
    struct folder folder;
    folder_create(&folder, true);
    struct safetensors_entry *extra = &folder.entries[folder.count++];
    *extra = *find(&folder, "model.norm.weight");
    extra->name = "model.layers.0.self_attn.q_proj.bias";
    expect_refusal(&folder, RL_INVALID, "model.layers.0.self_attn.q_proj.bias does not belong");
    extra->name = "model.layers.0.self_attn.rotary_emb.inv_freq"; /* old files carry it */
    float *master = fixture_floats(folder.f.layout->master_count);
    ck_assert_int_eq(folder_load(&folder, master), RL_OK);
    device_free(master);
    folder_destroy(&folder);
}
END_TEST

START_TEST(tied_heads_must_agree)
{
    struct folder folder;
    folder_create(&folder, true);
    struct safetensors_entry *head = &folder.entries[folder.count++];
    float *master = fixture_floats(folder.f.layout->master_count);
    *head = folder.entries[0];
    head->name = "lm_head.weight";
    ck_assert_int_eq(folder_load(&folder, master), RL_OK);
    float *other = malloc(head->bytes);
    memcpy(other, head->data, head->bytes);
    other[11] += 1.0F;
    head->data = other;
    expect_refusal(&folder, RL_INVALID, "lm_head.weight differs");
    free(other);
    device_free(master);
    folder_destroy(&folder);
    folder_create(&folder, false); /* untied: the head is a parameter like any other */
    folder.count--;
    expect_refusal(&folder, RL_INVALID, "lm_head.weight is missing");
    folder_destroy(&folder);
}
END_TEST

START_TEST(odd_values_and_dtypes_are_named)
{
    struct folder folder;
    folder_create(&folder, true);
    const struct model_tensor *norm =
        model_layout_tensor(folder.f.layout, MODEL_PARAM_FINAL_NORM, -1);
    folder.f.master[norm->offset + 5] = NAN;
    expect_refusal(&folder, RL_NONFINITE, "model.norm.weight: element 5");
    folder.f.master[norm->offset + 5] = 1.0F;
    find(&folder, "model.norm.weight")->dtype = "I32";
    expect_refusal(&folder, RL_UNSUPPORTED, "model.norm.weight: dtype I32");
    folder_destroy(&folder);
}
END_TEST

START_TEST(missing_weights_are_an_error)
{
    struct folder folder;
    folder_create(&folder, true);
    ck_assert_int_eq(model_params_load(folder.f.layout, folder.dir, folder.f.master, NULL), RL_IO);
    ck_assert_ptr_nonnull(strstr(rl_log_last_error(), "model.safetensors.index.json"));
    folder_destroy(&folder);
}
END_TEST

/* Padding of the master never shows, a changed weight always does. */
START_TEST(images_follow_the_master)
{
    struct folder folder;
    folder_create(&folder, true);
    struct model_fixture *f = &folder.f;
    uint64_t before = model_image_hash(f->layout, f->image);
    memset(f->image, 0x55, f->layout->image_bytes);
    fixture_publish(f);
    ck_assert(model_image_hash(f->layout, f->image) == before);
    for (int32_t i = 0; i < f->layout->tensor_count; i++) {
        const struct model_tensor *t = &f->layout->tensors[i];
        float *last = f->master + t->offset + t->rows * t->cols - 1;
        *last += 0.25F;
        fixture_publish(f);
        ck_assert_msg(model_image_hash(f->layout, f->image) != before, "%s is not in the image",
                      t->name);
        *last -= 0.25F;
    }
    folder_destroy(&folder);
}
END_TEST

/* The diff is exactly the elements whose bits differ, for every back end and both storages. */
START_TEST(diffs_are_exact)
{
    enum kernel_dtype dtype = _i == 0 ? KERNEL_FP32 : KERNEL_BF16;
    struct folder folder;
    folder_create(&folder, true);
    struct model_fixture *f = &folder.f;
    struct model_layout *layout = NULL;
    ck_assert_int_eq(model_layout_create(&f->layout->arch, dtype, 16, &layout), RL_OK);
    size_t bytes = layout->image_bytes;
    size_t width = model_image_element_bytes(layout);
    char *before = aligned_alloc(64, bytes);
    char *after = aligned_alloc(64, bytes);
    uint8_t *changed = malloc(bytes / width / 8);
    const struct kernel_table *table = NULL;
    for (int isa = 0; isa <= (int)kernel_isa_best(); isa++) {
        ck_assert_int_eq(kernel_table_get((enum kernel_isa)isa, &table), RL_OK);
        model_params_publish(layout, table, f->master, before, f->pool);
        for (int64_t i = isa; i < layout->master_count; i += 7) {
            f->master[i] *= 1.0F + (i % 3 == 0 ? 0x1p-20F : 0x1p-7F);
        }
        struct model_image_diff diff = {.previous = before, .changed = changed};
        memset(changed, 0xa5, bytes / width / 8);
        model_params_publish_diff(layout, table, f->master, after, &diff, f->pool);
        size_t marked = 0;
        for (size_t i = 0; i < bytes / width; i++) {
            bool differs = memcmp(before + i * width, after + i * width, width) != 0;
            ck_assert_msg(differs == ((changed[i / 8] >> (i % 8) & 1) != 0), "%s: element %zu",
                          table->name, i);
            marked += differs;
        }
        ck_assert_uint_gt(marked, 0);
        ck_assert_uint_lt(marked, bytes / width / 2);
    }
    free(before);
    free(after);
    free(changed);
    model_layout_destroy(layout);
    folder_destroy(&folder);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("model_params");
    TCase *tcase = tcase_create("folders");
    tcase_add_test(tcase, a_sound_file_is_loaded);
    tcase_add_test(tcase, an_image_is_loaded);
    tcase_add_test(tcase, missing_tensors_are_named);
    tcase_add_test(tcase, wrong_shapes_are_named);
    tcase_add_test(tcase, left_over_tensors_are_named);
    tcase_add_test(tcase, tied_heads_must_agree);
    tcase_add_test(tcase, odd_values_and_dtypes_are_named);
    tcase_add_test(tcase, missing_weights_are_an_error);
    tcase_add_test(tcase, images_follow_the_master);
    tcase_add_loop_test(tcase, diffs_are_exact, 0, 2);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
