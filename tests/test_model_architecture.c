/* config.json in its old and new spellings, what is refused and how, and the rotary tables. */
#include "core/log.h"
#include "model/params.h"
#include "tests/model_fixture.h"

#include <math.h>
#include <unistd.h>

static char folder[] = "architecture_XXXXXX";

static void folder_make(void)
{
    snprintf(folder, sizeof folder, "architecture_XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
}

static void folder_remove(void)
{
    static const char *const names[] = {"config.json", "generation_config.json"};
    for (int i = 0; i < 2; i++) {
        char path[256];
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        unlink(path);
    }
    ck_assert_int_eq(rmdir(folder), 0);
}

static void write_text(const char *name, const char *text)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "w");
    ck_assert_ptr_nonnull(file);
    fputs(text, file);
    ck_assert_int_eq(fclose(file), 0);
}

/* Load a config of this architecture: the required sizes, then `fields`. */
static rl_status load(const char *name, const char *fields, struct model_architecture *arch)
{
    char text[4096];
    snprintf(text, sizeof text,
             "{\"architectures\":[\"%s\"],\"hidden_size\":64,\"intermediate_size\":96,"
             "\"num_attention_heads\":4,\"num_key_value_heads\":2,\"num_hidden_layers\":4,"
             "\"vocab_size\":100,\"max_position_embeddings\":128%s%s}",
             name, fields[0] == '\0' ? "" : ",", fields);
    write_text("config.json", text);
    return model_architecture_load(folder, arch);
}

static const char llama[] = "LlamaForCausalLM";
static const char qwen2[] = "Qwen2ForCausalLM";
static const char qwen3[] = "Qwen3ForCausalLM";

START_TEST(families_have_their_features)
{
    struct model_architecture a;
    folder_make();
    ck_assert_int_eq(load(llama, "", &a), RL_OK);
    ck_assert(!a.qkv_bias && !a.o_bias && !a.mlp_bias && !a.qk_norm && !a.tied);
    ck_assert_int_eq(a.head_dim, 16);
    ck_assert_int_eq(a.bos_id, 1);
    ck_assert_int_eq(a.eos_count, 1);
    ck_assert_int_eq(a.eos_ids[0], 2);
    ck_assert(a.norm_epsilon == 1e-6F && a.initializer_range == 0.02);
    ck_assert_int_eq(load(llama, "\"attention_bias\":true,\"mlp_bias\":true,\"head_dim\":32", &a),
                     RL_OK);
    ck_assert(a.qkv_bias && a.o_bias && a.mlp_bias);
    ck_assert_int_eq(a.head_dim, 32);
    ck_assert_int_eq(load(qwen2, "\"tie_word_embeddings\":true,\"initializer_range\":0.1", &a),
                     RL_OK);
    ck_assert(a.qkv_bias && !a.o_bias && !a.qk_norm && a.tied);
    ck_assert(a.initializer_range == 0.1);
    ck_assert_int_eq(a.bos_id, -1);
    ck_assert_int_eq(a.eos_count, 0);
    ck_assert_int_eq(load(qwen3, "", &a), RL_OK);
    ck_assert(!a.qkv_bias && a.qk_norm);
    ck_assert_int_eq(a.head_dim, 128);
    ck_assert_int_eq(
        load(qwen3, "\"attention_bias\":true,\"hidden_act\":\"gelu_pytorch_tanh\"", &a), RL_OK);
    ck_assert(a.qkv_bias && a.o_bias);
    ck_assert_int_eq(a.activation, KERNEL_GELU_TANH);
    folder_remove();
}
END_TEST

START_TEST(windows_are_read)
{
    struct model_architecture a;
    folder_make();
    ck_assert_int_eq(load(qwen2, "\"use_sliding_window\":false,\"sliding_window\":8", &a), RL_OK);
    ck_assert_int_eq(a.window, 0);
    ck_assert_int_eq(
        load(qwen2, "\"use_sliding_window\":true,\"sliding_window\":8,\"max_window_layers\":3", &a),
        RL_OK);
    ck_assert_int_eq(a.window, 8);
    ck_assert_int_eq(a.window_first_layer, 3);
    ck_assert_int_eq(
        load(qwen2, "\"use_sliding_window\":true,\"sliding_window\":8,\"max_window_layers\":4", &a),
        RL_OK);
    ck_assert_int_eq(a.window, 0);
    ck_assert_int_eq(load(qwen3,
                          "\"use_sliding_window\":true,\"sliding_window\":8,\"layer_types\":["
                          "\"full_attention\",\"sliding_attention\",\"sliding_attention\","
                          "\"sliding_attention\"]",
                          &a),
                     RL_OK);
    ck_assert_int_eq(a.window, 8);
    ck_assert_int_eq(a.window_first_layer, 1);
    ck_assert_int_eq(load(qwen3, "\"use_sliding_window\":false,\"sliding_window\":null", &a),
                     RL_OK);
    ck_assert_int_eq(load(llama, "\"sliding_window\":8", &a), RL_OK);
    ck_assert_int_eq(a.window, 0);
    folder_remove();
}
END_TEST

START_TEST(rope_spellings_agree)
{
    struct model_architecture a;
    folder_make();
    static const char *const spellings[] = {
        "\"rope_theta\":5e5,\"rope_scaling\":{\"type\":\"llama3\",\"factor\":8,"
        "\"low_freq_factor\":1,\"high_freq_factor\":4,\"original_max_position_embeddings\":32}",
        "\"rope_theta\":500000,\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8.0,"
        "\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,\"original_max_position_embeddings\":32}",
        "\"rope_parameters\":{\"rope_type\":\"llama3\",\"rope_theta\":500000.0,\"factor\":8.0,"
        "\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,\"original_max_position_embeddings\":32}",
    };
    for (int i = 0; i < 3; i++) {
        ck_assert_int_eq(load(llama, spellings[i], &a), RL_OK);
        ck_assert_int_eq(a.rope_type, MODEL_ROPE_LLAMA3);
        ck_assert(a.rope_theta == 500000.0 && a.rope_factor == 8.0);
        ck_assert(a.rope_low_freq_factor == 1.0 && a.rope_high_freq_factor == 4.0);
        ck_assert_int_eq(a.rope_original_max_position, 32);
    }
    ck_assert_int_eq(load(qwen2, "\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4}", &a), RL_OK);
    ck_assert_int_eq(a.rope_original_max_position, 128);
    ck_assert(fabs(a.rope_attention_factor - (0.1 * log(4.0) + 1.0)) < 1e-15);
    ck_assert(a.rope_beta_fast == 32.0 && a.rope_beta_slow == 1.0 && a.rope_truncate);
    ck_assert_int_eq(load(qwen2,
                          "\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":4,\"mscale\":1.0,"
                          "\"mscale_all_dim\":0.5,\"truncate\":false}",
                          &a),
                     RL_OK);
    ck_assert(fabs(a.rope_attention_factor - (0.1 * log(4.0) + 1.0) / (0.05 * log(4.0) + 1.0)) <
              1e-15);
    ck_assert(!a.rope_truncate);
    ck_assert_int_eq(load(qwen2, "\"rope_scaling\":null,\"rope_theta\":1e6", &a), RL_OK);
    ck_assert_int_eq(a.rope_type, MODEL_ROPE_DEFAULT);
    ck_assert(a.rope_theta == 1e6);
    folder_remove();
}
END_TEST

START_TEST(special_ids_are_read)
{
    struct model_architecture a;
    folder_make();
    ck_assert_int_eq(load(qwen2, "\"eos_token_id\":7,\"bos_token_id\":6,\"pad_token_id\":5", &a),
                     RL_OK);
    ck_assert_int_eq(a.eos_ids[0], 7);
    ck_assert_int_eq(a.bos_id, 6);
    ck_assert_int_eq(a.pad_id, 5);
    ck_assert_int_eq(load(qwen2, "\"eos_token_id\":[3,4]", &a), RL_OK);
    ck_assert_int_eq(a.eos_count, 2);
    ck_assert_int_eq(a.eos_ids[1], 4);
    write_text("generation_config.json", "{\"eos_token_id\":[9,8,7],\"pad_token_id\":1}");
    ck_assert_int_eq(model_architecture_load(folder, &a), RL_OK);
    ck_assert_int_eq(a.eos_count, 3);
    ck_assert_int_eq(a.eos_ids[0], 9);
    ck_assert_int_eq(a.pad_id, 1);
    write_text("generation_config.json", "{\"eos_token_id\":\"x\"}");
    ck_assert_int_eq(model_architecture_load(folder, &a), RL_INVALID);
    folder_remove();
}
END_TEST

struct refusal {
    const char *name, *fields;
    rl_status status;
    const char *expected; /* in the error */
};

static const struct refusal refusals[] = {
    {"GPT2LMHeadModel", "", RL_UNSUPPORTED, "GPT2LMHeadModel"},
    {"Qwen3MoeForCausalLM", "", RL_UNSUPPORTED, "Qwen3MoeForCausalLM"},
    {llama, "\"quantization_config\":{\"bits\":4}", RL_UNSUPPORTED, "quantization_config"},
    {llama, "\"attention_dropout\":0.1", RL_UNSUPPORTED, "attention_dropout"},
    {llama, "\"hidden_act\":\"relu\"", RL_UNSUPPORTED, "relu"},
    {llama, "\"partial_rotary_factor\":0.5", RL_UNSUPPORTED, "partial_rotary_factor"},
    {llama, "\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2}", RL_UNSUPPORTED, "dynamic"},
    {llama, "\"rope_scaling\":{\"rope_type\":\"longrope\",\"factor\":2}", RL_UNSUPPORTED,
     "longrope"},
    {llama, "\"rope_parameters\":{\"partial_rotary_factor\":0.5}", RL_UNSUPPORTED,
     "rope_parameters.partial_rotary_factor"},
    {llama, "\"rope_parameters\":{\"full_attention\":{}}", RL_UNSUPPORTED, "by layer type"},
    {llama, "\"rope_scaling\":{\"type\":\"linear\"}", RL_INVALID, "rope_scaling.factor is missing"},
    {llama, "\"rope_scaling\":{\"type\":\"llama3\",\"factor\":2}", RL_INVALID, "low_freq_factor"},
    {llama,
     "\"rope_scaling\":{\"type\":\"llama3\",\"factor\":2,\"low_freq_factor\":4,"
     "\"high_freq_factor\":4}",
     RL_INVALID, "high_freq_factor"},
    {llama, "\"rope_scaling\":[1]", RL_INVALID, "rope_scaling must be an object"},
    {llama, "\"rope_theta\":\"big\"", RL_INVALID, "rope_theta must be a number"},
    {llama, "\"rope_theta\":-1", RL_INVALID, "rope_theta is -1"},
    {llama, "\"rms_norm_eps\":-1e-6", RL_INVALID, "rms_norm_eps"},
    {llama, "\"head_dim\":7", RL_INVALID, "head_dim is 7"},
    {llama, "\"head_dim\":100000", RL_INVALID, "head_dim is 100000"},
    {llama, "\"mlp_bias\":1", RL_INVALID, "mlp_bias must be true or false"},
    {llama, "\"eos_token_id\":1.5", RL_INVALID, "eos_token_id"},
    {llama, "\"eos_token_id\":[1,2,3,4,5,6,7,8,9]", RL_INVALID, "9 ids"},
    {llama, "\"bos_token_id\":99999999999", RL_INVALID, "bos_token_id"},
    {qwen2, "\"sliding_window\":-4", RL_INVALID, "sliding_window"},
    {qwen2, "\"layer_types\":[\"full_attention\"]", RL_INVALID, "layer_types"},
    {qwen2,
     "\"use_sliding_window\":true,\"layer_types\":[\"sliding_attention\",\"full_attention\","
     "\"full_attention\",\"full_attention\"]",
     RL_UNSUPPORTED, "layer_types[1]"},
    {qwen2,
     "\"use_sliding_window\":true,\"layer_types\":[\"chunked_attention\",\"full_attention\","
     "\"full_attention\",\"full_attention\"]",
     RL_UNSUPPORTED, "layer_types[0]"},
};

START_TEST(unknown_things_are_refused_by_name)
{
    const struct refusal *r = &refusals[_i];
    struct model_architecture a;
    folder_make();
    rl_status status = load(r->name, r->fields, &a);
    ck_assert_msg(status == r->status, "%s: %s, wanted %s", r->fields, rl_status_name(status),
                  rl_status_name(r->status));
    ck_assert_msg(strstr(rl_log_last_error(), r->expected) != NULL, "%s: wanted \"%s\", got: %s",
                  r->fields, r->expected, rl_log_last_error());
    ck_assert_msg(strstr(rl_log_last_error(), "config.json") != NULL, "file not named: %s",
                  rl_log_last_error());
    folder_remove();
}
END_TEST

static const char *const broken[] = {
    "",
    "{",
    "[]",
    "{\"architectures\":[\"LlamaForCausalLM\"]}",
    "{\"architectures\":\"Llama\"}",
    "{\"architectures\":[]}",
    "{}",
    "{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":0,"
    "\"intermediate_size\":1,\"num_attention_heads\":1,\"num_hidden_layers\":1,\"vocab_size\":1}",
    "{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":64,\"intermediate_size\":9000000000,"
    "\"num_attention_heads\":1,\"num_hidden_layers\":1,\"vocab_size\":1}",
    "{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":65,\"intermediate_size\":8,"
    "\"num_attention_heads\":4,\"num_hidden_layers\":1,\"vocab_size\":1}",
    "{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":64,\"intermediate_size\":8,"
    "\"num_attention_heads\":4,\"num_key_value_heads\":3,\"num_hidden_layers\":1,\"vocab_size\":1}",
};

START_TEST(broken_files_are_refused)
{
    struct model_architecture a;
    folder_make();
    write_text("config.json", broken[_i]);
    ck_assert_msg(model_architecture_load(folder, &a) == RL_INVALID, "accepted: %s", broken[_i]);
    folder_remove();
}
END_TEST

START_TEST(saved_files_are_read_back)
{
    struct model_architecture a;
    struct model_architecture b;
    folder_make();
    ck_assert_int_eq(load(llama,
                          "\"rope_theta\":1234567.125,\"rms_norm_eps\":1e-5,\"head_dim\":24,"
                          "\"attention_bias\":true,\"eos_token_id\":[5,6],\"pad_token_id\":9,"
                          "\"initializer_range\":0.05,\"rope_scaling\":{\"type\":\"yarn\","
                          "\"factor\":3,\"beta_fast\":20,\"truncate\":false}",
                          &a),
                     RL_OK);
    ck_assert_int_eq(model_architecture_save(&a, folder, "bfloat16"), RL_OK);
    ck_assert_int_eq(model_architecture_load(folder, &b), RL_OK);
    ck_assert(a.rope_theta == b.rope_theta && a.rope_beta_fast == b.rope_beta_fast);
    ck_assert(a.rope_attention_factor == b.rope_attention_factor);
    ck_assert(a.norm_epsilon == b.norm_epsilon && a.initializer_range == b.initializer_range);
    ck_assert(!b.rope_truncate && b.o_bias && !b.mlp_bias);
    ck_assert_int_eq(b.head_dim, 24);
    ck_assert_int_eq(b.eos_count, 2);
    ck_assert_int_eq(b.eos_ids[1], 6);
    ck_assert_int_eq(b.pad_id, 9);
    ck_assert_int_eq(b.bos_id, 1);
    folder_remove();
}
END_TEST

START_TEST(missing_folder_is_an_error)
{
    struct model_architecture a;
    ck_assert_int_eq(model_architecture_load("/nowhere/at/all", &a), RL_IO);
}
END_TEST

/* Size of Qwen2.5-0.5B, known from its published checkpoint: 494,032,768 parameters. */
START_TEST(tables_have_the_published_size)
{
    struct model_architecture a = {.name = "Qwen2ForCausalLM",
                                   .layers = 24,
                                   .width = 896,
                                   .heads = 14,
                                   .kv_heads = 2,
                                   .head_dim = 64,
                                   .ffn = 4864,
                                   .vocab = 151936,
                                   .max_position = 32768,
                                   .tied = true,
                                   .qkv_bias = true,
                                   .rope_theta = 1e6,
                                   .rope_factor = 1,
                                   .rope_attention_factor = 1};
    struct model_layout *layout = NULL;
    ck_assert_int_eq(model_layout_create(&a, KERNEL_FP32, 16, &layout), RL_OK);
    ck_assert_int_eq(layout->param_count, 494032768);
    ck_assert_int_eq(model_layout_find(layout, "lm_head.weight"), -1);
    int32_t index = model_layout_find(layout, "model.layers.23.self_attn.k_proj.bias");
    ck_assert_int_ge(index, 0);
    ck_assert_int_eq(layout->tensors[index].cols, 128);
    ck_assert_ptr_eq(model_layout_tensor(layout, MODEL_PARAM_HEAD, -1), &layout->tensors[0]);
    ck_assert_ptr_null(model_layout_tensor(layout, MODEL_PARAM_Q_NORM, 0));
    for (int32_t i = 0; i < layout->tensor_count; i++) {
        ck_assert_int_eq(layout->tensors[i].offset % 16, 0);
        ck_assert_uint_eq(layout->tensors[i].image_offset % 64, 0);
    }
    /* The footprint of training on 1,024 tokens stays in the gigabytes. */
    ck_assert_uint_le(model_workspace_bytes(layout, 1024, MODEL_KEEP_COSTLY), (size_t)3 << 30);
    model_layout_destroy(layout);
    a.layers = 1024;
    a.width = a.ffn = 1 << 17;
    a.vocab = 1 << 22;
    ck_assert_int_eq(model_layout_create(&a, KERNEL_FP32, 16, &layout), RL_INVALID);
}
END_TEST

START_TEST(random_weights_are_keyed_and_scaled)
{
    struct model_architecture arch = fixture_architecture(2);
    struct model_fixture f;
    struct fixture_options options = {KERNEL_ISA_REF, KERNEL_FP32, 1};
    arch.initializer_range = 0.05;
    arch.vocab = 2000; /* a matrix of more than one thread's piece */
    struct rl_pool *pool = NULL;
    ck_assert_int_eq(rl_pool_create(2, &pool), RL_OK);
    fixture_create(&f, &arch, &options);
    size_t bytes = (size_t)f.layout->master_count * sizeof(float);
    float *again = fixture_floats(f.layout->master_count);
    model_params_init(f.layout, 5, f.master, NULL);
    model_params_init(f.layout, 5, again, pool);
    ck_assert_mem_eq(f.master, again, bytes);
    model_params_init(f.layout, 6, again, NULL);
    ck_assert_int_ne(memcmp(f.master, again, bytes), 0);
    for (int32_t i = 0; i < f.layout->tensor_count; i++) {
        const struct model_tensor *t = &f.layout->tensors[i];
        const float *w = f.master + t->offset;
        int64_t count = t->rows * t->cols;
        double sum = 0.0;
        double squares = 0.0;
        for (int64_t j = 0; j < count; j++) {
            sum += (double)w[j];
            squares += (double)w[j] * (double)w[j];
        }
        if (t->kind == MODEL_KIND_MATRIX) { /* within five standard errors */
            double n = (double)count;
            ck_assert_double_le(fabs(sum / n), 5.0 * 0.05 / sqrt(n));
            ck_assert_double_le(fabs(sqrt(squares / n) - 0.05), 5.0 * 0.05 / sqrt(2.0 * n));
        } else {
            ck_assert(sum == (t->kind == MODEL_KIND_SCALE ? (double)count : 0.0));
        }
    }
    device_free(again);
    rl_pool_destroy(pool);
    fixture_destroy(&f);
}
END_TEST

static Suite *architecture_suite(void)
{
    Suite *suite = suite_create("model_architecture");
    TCase *tcase = tcase_create("config.json");
    tcase_add_test(tcase, families_have_their_features);
    tcase_add_test(tcase, windows_are_read);
    tcase_add_test(tcase, rope_spellings_agree);
    tcase_add_test(tcase, special_ids_are_read);
    tcase_add_loop_test(tcase, unknown_things_are_refused_by_name, 0,
                        (int)(sizeof refusals / sizeof refusals[0]));
    tcase_add_loop_test(tcase, broken_files_are_refused, 0,
                        (int)(sizeof broken / sizeof broken[0]));
    tcase_add_test(tcase, saved_files_are_read_back);
    tcase_add_test(tcase, missing_folder_is_an_error);
    tcase_add_test(tcase, tables_have_the_published_size);
    tcase_add_test(tcase, random_weights_are_keyed_and_scaled);
    suite_add_tcase(suite, tcase);
    return suite;
}

int main(void)
{
    SRunner *runner = srunner_create(architecture_suite());
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
