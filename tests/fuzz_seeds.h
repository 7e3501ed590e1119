/* Where fuzzing starts: sound inputs of every target, and the words that mutations put in. */
#ifndef FORESIGHT_TESTS_FUZZ_SEEDS_H
#define FORESIGHT_TESTS_FUZZ_SEEDS_H

#include "tests/fuzz_targets.h"

/* A byte-level tokenizer with an added token, a split and a template. */
#define FUZZ_TOKENIZER                                                                             \
    "{\"version\":\"1.0\",\"added_tokens\":[{\"id\":12,\"content\":\"<|end|>\",\"single_word\":"   \
    "false,\"lstrip\":false,\"rstrip\":false,\"normalized\":false,\"special\":true}],"             \
    "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"},{\"type\":"         \
    "\"Replace\",\"pattern\":{\"String\":\"w\"},\"content\":\"v\"}]},\"pre_tokenizer\":{\"type\":" \
    "\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":"                  \
    "\"(?i:'s|'t)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}{1,3}|\\\\s+(?!\\\\S)\"},"       \
    "\"behavior\":\"Isolated\",\"invert\":false},{\"type\":\"ByteLevel\",\"add_prefix_space\":"    \
    "false,\"trim_offsets\":true,\"use_regex\":false}]},\"post_processor\":{\"type\":"             \
    "\"ByteLevel\",\"add_prefix_space\":true,\"trim_offsets\":false,\"use_regex\":true},"          \
    "\"decoder\":{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"trim_offsets\":true,"         \
    "\"use_regex\":true},\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":null,"         \
    "\"continuing_subword_prefix\":null,\"end_of_word_suffix\":null,\"fuse_unk\":false,"           \
    "\"byte_fallback\":false,\"vocab\":{\"H\":0,\"e\":1,\"l\":2,\"o\":3,\"1\":4,\"2\":5,\"3\":6,"  \
    "\"ll\":7,\"He\":8,\"12\":9,\"llo\":10,\"\\u0120\":11},\"merges\":[\"l l\",\"H e\","           \
    "\"1 2\",\"ll o\"]}}"

#define FUZZ_ARCHITECTURE                                                                          \
    "{\"architectures\":[\"Qwen3ForCausalLM\"],\"model_type\":\"qwen3\",\"vocab_size\":32,"        \
    "\"hidden_size\":32,\"intermediate_size\":64,\"num_hidden_layers\":2,"                         \
    "\"num_attention_heads\":4,\"num_key_value_heads\":2,\"head_dim\":16,\"hidden_act\":\"silu\"," \
    "\"max_position_embeddings\":128,\"rms_norm_eps\":1e-06,\"rope_theta\":10000.0,"               \
    "\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":4.0,"                                     \
    "\"original_max_position_embeddings\":32},\"tie_word_embeddings\":true,"                       \
    "\"attention_bias\":false,\"use_sliding_window\":false,\"sliding_window\":null,"               \
    "\"max_window_layers\":2,\"eos_token_id\":[0,3],\"pad_token_id\":1}"

struct fuzz_seed {
    const void *data;
    size_t bytes;
};

#define FUZZ_TEXT(text)                                                                            \
    {                                                                                              \
        text, sizeof(text) - 1                                                                     \
    }

static const struct fuzz_seed fuzz_config_seeds[] = {
    FUZZ_TEXT("run:\n  name: a\n  steps: 2\nrollout:\n  stop: [\"a\", 'b', c]\n"
              "optimizer:\n  learning_rate: 1e-5  # small\n"),
    FUZZ_TEXT("{run: {seed: 7}, loss: {loss_type: dapo, beta: 0.1, kl_in: reward}}\n"),
    FUZZ_TEXT("data:\n  prompt_template: |\n    Q: {prompt}\n    A:\n  shuffle: true\n"),
    {NULL, 0}};
static const struct fuzz_seed fuzz_override_seeds[] = {FUZZ_TEXT("optimizer.learning_rate=1e-5"),
                                                       FUZZ_TEXT("rollout.stop=a,b"),
                                                       FUZZ_TEXT("loss_type=dapo"),
                                                       FUZZ_TEXT("run.seed=9007199254740991"),
                                                       {NULL, 0}};
static const struct fuzz_seed fuzz_architecture_seeds[] = {FUZZ_TEXT(FUZZ_ARCHITECTURE), {NULL, 0}};
static const struct fuzz_seed fuzz_safetensors_seeds[] = {
    FUZZ_TEXT("\x6d\0\0\0\0\0\0\0{\"__metadata__\":{\"format\":\"pt\"},"
              "\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}"
              "                        }\0\0\x80\x3f\0\0\0\x40"),
    FUZZ_TEXT("\x6d\0\0\0\0\0\0\0{\"a\":{\"dtype\":\"BF16\",\"shape\":[1,2],"
              "\"data_offsets\":[0,4]},\"b\":{\"dtype\":\"F16\",\"shape\":[],"
              "\"data_offsets\":[4,6]}}\x80\x3f\0\x40\0\x3c"),
    FUZZ_TEXT("\2\0\0\0\0\0\0\0{}"),
    {NULL, 0}};
static const struct fuzz_seed fuzz_tokenizer_seeds[] = {FUZZ_TEXT(FUZZ_TOKENIZER), {NULL, 0}};
static const struct fuzz_seed fuzz_chat_seeds[] = {
    FUZZ_TEXT("{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m['content'] }}"
              "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}"),
    FUZZ_TEXT("{%- set ns = namespace(i=0) -%}{%- for m in messages[::-1] -%}{%- set ns.i = "
              "ns.i + 1 -%}{{ loop.index0 ~ m.content|trim|upper }}{%- endfor -%}{{ ns.i }}"),
    FUZZ_TEXT("{% macro f(a, b=2) %}{{ a * b }}{% endmacro %}{{ f(3) }}{{ range(3)|list|tojson }}"
              "{{ messages[0].content.split('x')[-1].strip() if messages is defined else '' }}"),
    {NULL, 0}};
static const struct fuzz_seed fuzz_row_seeds[] = {
    FUZZ_TEXT("{\"prompt\":\"1+1=\",\"answer\":\"2\",\"data_source\":\"x\"}"),
    FUZZ_TEXT("{\"prompt\":[{\"role\":\"user\",\"content\":\"\\u00e9\\ud83d\\ude00\"}],"
              "\"reward_model\":{\"ground_truth\":5}}"),
    FUZZ_TEXT("{\"question\":\"q\",\"solution\":[1,2.5,null,true]}"),
    {NULL, 0}};
static const struct fuzz_seed fuzz_expression_seeds[] = {
    FUZZ_TEXT("(3+8)*2-1/7"), FUZZ_TEXT("-(2 \\times 3) \\div 4"), FUZZ_TEXT("((1))"), {NULL, 0}};
static const struct fuzz_seed fuzz_number_seeds[] = {FUZZ_TEXT("-1,234.50"),
                                                     FUZZ_TEXT("\\frac{3}{4}"),
                                                     FUZZ_TEXT("$1.2 \\times 10^{-3}$ dollars"),
                                                     FUZZ_TEXT("2 1/2 % of 7e400"),
                                                     {NULL, 0}};
static const struct fuzz_seed fuzz_reward_seeds[] = {
    FUZZ_TEXT("so \\boxed{\\frac{1}{2}}.\0010.5"),
    FUZZ_TEXT("<think>a</think>#### 42\001#### 42"),
    FUZZ_TEXT("<answer>(3+4)*2 = 14</answer>\001{\"numbers\":[3,4,2],\"target\":14}"),
    {NULL, 0}};

static const char *const fuzz_json_words[] = {
    "{",       "}",          "[",         "]",
    ",",       ":",          "\"",        "null",
    "true",    "false",      "0",         "-1",
    "1e9",     "1e999",      "\"\"",      "18446744073709551616",
    "256",     "{}",         "[[[[[",     "\\u0000",
    "\\ud800", "2147483648", "\"type\":", NULL};
static const char *const fuzz_yaml_words[] = {
    "&a", "*a",  "!!int", "|\n",   ">\n",  "- ", ": ", "\n",    "  ",   "{",    "}",  "[",
    "]",  "nan", "1e999", "---\n", "<<: ", "'",  "\"", "steps", "loss", "true", "\t", NULL};
static const char *const fuzz_maths_words[] = {
    "\\frac{",  "\\boxed{", "}",    "{",       "####", "<answer>", "</answer>", "<think>",
    "</think>", "(",        ")",    "\\times", "+",    "-",        "*",         "/",
    "%",        "^",        "e999", "1e4096",  "0",    "99999999", ".",         ",",
    "=",        "\\text{",  "$",    "\001",    NULL};
static const char *const fuzz_chat_words[] = {"{%",         "%}",
                                              "{{",         "}}",
                                              "{#",         "#}",
                                              "for x in ",  "endfor",
                                              "if ",        "endif",
                                              "else",       "set x = ",
                                              "range(",     "99999999",
                                              "x",          "messages",
                                              "|tojson",    "|length",
                                              "loop.index", ".content",
                                              "[0]",        "[::-1]",
                                              "* 99999",    "~ ",
                                              "macro f()",  "endmacro",
                                              "f()",        "(((((((",
                                              "namespace(", "'a'",
                                              "none",       "|join",
                                              ".split('')", ".replace('', 'aaaaaaaa')",
                                              "not ",       " is defined",
                                              "-%}",        NULL};
static const char *const fuzz_no_words[] = {NULL};

/* Frames of every kind. */
static inline size_t fuzz_wire_seeds(struct fuzz_seed *out)
{
    static struct channel_message frames[7]; /* kept for the life of the process */
    struct trajectory_group *group = NULL;
    const int32_t tokens[5] = {1, 2, 3, 4, 5};
    const float logprob[3] = {-0.5F, 0.0F, -2.0F};
    const uint32_t version[3] = {4, 4, 5};
    if (frames[0].data == NULL) {
        fuzz_must(trajectory_group_create(2, &group) == RL_OK, "memory");
        for (int i = 0; i < 2; i++) {
            fuzz_must(trajectory_set_tokens(&group->samples[i], tokens, logprob, version, 2, 3) ==
                          RL_OK,
                      "memory");
        }
        struct wire_hello hello = {.rank = 1, .world_size = 2, .host = "host"};
        struct wire_ticket ticket = {.ticket = 9, .sample_count = 8, .version = 3, .pinned = true};
        struct wire_status progress = {.rank = 1, .version = 3};
        struct wire_stop stop = {.reason = WIRE_STOP_DONE};
        fuzz_must(wire_encode_group(group, &frames[0]) == RL_OK &&
                      wire_encode_hello(&hello, &frames[1]) == RL_OK &&
                      wire_encode_ticket(&ticket, &frames[2]) == RL_OK &&
                      wire_encode_status(&progress, &frames[3]) == RL_OK &&
                      wire_encode_stop(&stop, &frames[4]) == RL_OK &&
                      wire_encode_snapshot(3, &frames[5]) == RL_OK &&
                      wire_encode_partial(3, group, &frames[6]) == RL_OK,
                  "seed frames");
        trajectory_group_destroy(group);
    }
    for (size_t i = 0; i < 7; i++) {
        out[i] = (struct fuzz_seed){frames[i].data, frames[i].bytes};
    }
    return 7;
}

/* Deltas from the fixed base: nothing, a few elements, all of them. */
static inline size_t fuzz_delta_seeds(struct fuzz_seed *out)
{
    static void *deltas[3]; /* kept for the life of the process */
    static size_t sizes[3];
    static const uint8_t patterns[3] = {0, 0x81, 0xff};
    for (size_t i = 0; i < 3; i++) {
        uint8_t image[FUZZ_IMAGE_BYTES], changed[FUZZ_IMAGE_BYTES / 16];
        struct weight_delta_info info = {.base_version = 3,
                                         .version = 4,
                                         .element_bytes = i == 1 ? 4 : 2,
                                         .image_bytes = FUZZ_IMAGE_BYTES};
        fuzz_image(image);
        info.base_hash = XXH3_64bits(image, sizeof(image));
        memset(changed, patterns[i], sizeof(changed));
        for (size_t k = 0; k < FUZZ_IMAGE_BYTES; k++) {
            size_t element = k / info.element_bytes;
            image[k] = (uint8_t)(image[k] + (changed[element / 8] >> element % 8 & 1));
        }
        info.hash = XXH3_64bits(image, sizeof(image));
        fuzz_must(deltas[i] != NULL ||
                      weight_delta_encode(&info, changed, image, &deltas[i], &sizes[i]) == RL_OK,
                  "seed deltas");
        out[i] = (struct fuzz_seed){deltas[i], sizes[i]};
    }
    return 3;
}

/* --- chat templates ---------------------------------------------------------------------------*/

/* {"chat_template": "..."} with the bytes as a JSON string (those beyond ASCII as Latin-1); `out`
 * has room for 6 characters a byte and 64 more. Returns the length. */
static inline size_t fuzz_chat_json(const uint8_t *data, size_t bytes, char *out)
{
    size_t at = (size_t)snprintf(out, 64, "{\"chat_template\": \"");
    for (size_t i = 0; i < bytes; i++) {
        bool plain = data[i] >= ' ' && data[i] < 0x7f && data[i] != '"' && data[i] != '\\';
        at += (size_t)(plain ? snprintf(out + at, 2, "%c", data[i])
                             : snprintf(out + at, 7, "\\u%04x", data[i]));
    }
    return at + (size_t)snprintf(out + at, 4, "\"}");
}

/* The bytes are a template of a tokenizer's folder. */
static inline bool fuzz_chat(const uint8_t *data, size_t bytes)
{
    static const struct chat_message messages[] = {
        {.role = "system", .content = "be brief"},
        {.role = "user", .content = "x {{ 1 }} <|end|>"},
        {.role = "assistant", .content = "<think>y</think>z"}};
    const struct chat_options options = {.add_generation_prompt = true, .enable_thinking = 1};
    char *text = malloc(bytes * 6 + 64);
    char path[128];
    fuzz_must(text != NULL, "memory");
    size_t at = fuzz_chat_json(data, bytes, text);
    fuzz_file("tokenizer_config.json", text, at, path);
    fuzz_file("tokenizer.json", FUZZ_TOKENIZER, sizeof(FUZZ_TOKENIZER) - 1, path);
    free(text);
    struct tokenizer *tokenizer = NULL;
    struct chat_template *chat = NULL;
    char *rendered = NULL;
    bool accepted = tokenizer_load(fuzz_dir, &tokenizer) == RL_OK &&
                    chat_template_create(tokenizer, "auto", &chat) == RL_OK && chat != NULL;
    if (accepted && chat_render(chat, messages, 3, &options, &rendered) == RL_OK) {
        fuzz_must(rendered != NULL, "a rendering");
        free(rendered);
    }
    chat_template_destroy(chat);
    tokenizer_destroy(tokenizer);
    return accepted;
}

/* --- the table --------------------------------------------------------------------------------*/

/* Start, arrival, step of two groups, checkpoint, rollback. */
static const struct fuzz_seed fuzz_event_seeds[] = {
    FUZZ_TEXT("\1\0\0\7\2\1\1hash0001hash0002hash0003\4a: 1"),
    FUZZ_TEXT("\2\x80\x01\3\4"),
    FUZZ_TEXT("\3\5\6hash0001hash0002\2\0\2\x10\3\0digest01\2\x0e\3\1\2\2\3\2\1\0\x02\4\1"
              "digest02\1\x09\1\3"),
    FUZZ_TEXT("\4\x90\x4e"),
    FUZZ_TEXT("\5\x09\4\0\0\0\0\0\0\xe0\x3f"),
    {NULL, 0}};

struct fuzz_target {
    const char *name;
    bool (*run)(const uint8_t *data, size_t bytes);
    const struct fuzz_seed *seeds; /* ends with NULL; NULL: made by `make` */
    const char *const *words;      /* ends with NULL */
    size_t (*make)(struct fuzz_seed *out);
};

static const struct fuzz_target fuzz_targets[] = {
    {"wire", fuzz_wire, NULL, fuzz_no_words, fuzz_wire_seeds},
    {"delta", fuzz_delta, NULL, fuzz_no_words, fuzz_delta_seeds},
    {"config", fuzz_config, fuzz_config_seeds, fuzz_yaml_words, NULL},
    {"override", fuzz_override, fuzz_override_seeds, fuzz_yaml_words, NULL},
    {"architecture", fuzz_architecture, fuzz_architecture_seeds, fuzz_json_words, NULL},
    {"safetensors", fuzz_safetensors, fuzz_safetensors_seeds, fuzz_json_words, NULL},
    {"tokenizer", fuzz_tokenizer, fuzz_tokenizer_seeds, fuzz_json_words, NULL},
    {"chat", fuzz_chat, fuzz_chat_seeds, fuzz_chat_words, NULL},
    {"row", fuzz_row, fuzz_row_seeds, fuzz_json_words, NULL},
    {"event", fuzz_event, fuzz_event_seeds, fuzz_no_words, NULL},
    {"expression", fuzz_expression, fuzz_expression_seeds, fuzz_maths_words, NULL},
    {"number", fuzz_number, fuzz_number_seeds, fuzz_maths_words, NULL},
    {"reward", fuzz_reward, fuzz_reward_seeds, fuzz_maths_words, NULL},
};
enum { FUZZ_TARGETS = sizeof(fuzz_targets) / sizeof(fuzz_targets[0]) };

#endif
