/* The tokenizer of generated tasks: a BPE model whose vocabulary is single characters and two
 * special tokens, without merges, so that a token is a character. */
#include "core/log.h"
#include "trainer/task_problem.h"
#include "transport/atomic_file.h"

#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const specials[] = {"<|endoftext|>", "<|pad|>"};
static const char alphabet[] = "0123456789+-*/=;#,:()\n ?.";
enum { SPECIAL_COUNT = 2 };

static rl_status write_json(const char *dir, const char *name, json_t *value)
{
    char path[PATH_MAX];
    int bytes = snprintf(path, sizeof(path), "%s/%s", dir, name);
    char *text = value != NULL ? json_dumps(value, JSON_INDENT(2)) : NULL;
    json_decref(value);
    if (text == NULL) {
        return rl_fail(RL_NO_MEMORY, "text of %s", name);
    }
    rl_status status = bytes > 0 && (size_t)bytes < sizeof(path)
                           ? atomic_file_write_all(path, text, strlen(text))
                           : rl_fail(RL_TOO_LONG, "path of %s in %s", name, dir);
    free(text);
    return status;
}

static json_t *make_vocabulary(void)
{
    json_t *vocabulary = json_object();
    int failed = vocabulary == NULL;
    for (int i = 0; i < SPECIAL_COUNT && !failed; i++) {
        failed = json_object_set_new(vocabulary, specials[i], json_integer(i));
    }
    for (size_t i = 0; alphabet[i] != '\0' && !failed; i++) {
        char key[2] = {alphabet[i], '\0'};
        failed = json_object_set_new(vocabulary, key, json_integer((json_int_t)i + SPECIAL_COUNT));
    }
    if (failed) {
        json_decref(vocabulary);
        return NULL;
    }
    return vocabulary;
}

static json_t *make_added_tokens(void)
{
    json_t *tokens = json_array();
    for (int i = 0; i < SPECIAL_COUNT && tokens != NULL; i++) {
        json_t *token =
            json_pack("{s:i,s:s,s:b,s:b,s:b,s:b,s:b}", "id", i, "content", specials[i],
                      "single_word", 0, "lstrip", 0, "rstrip", 0, "normalized", 0, "special", 1);
        if (json_array_append_new(tokens, token) != 0) {
            json_decref(tokens);
            return NULL;
        }
    }
    return tokens;
}

static json_t *make_tokenizer(void)
{
    json_t *vocabulary = make_vocabulary();
    json_t *added = make_added_tokens();
    if (vocabulary == NULL || added == NULL) {
        json_decref(added);
        json_decref(vocabulary);
        return NULL;
    }
    json_t *model =
        json_pack("{s:s,s:n,s:n,s:n,s:n,s:b,s:b,s:b,s:o,s:[]}", "type", "BPE", "dropout",
                  "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", 0,
                  "byte_fallback", 0, "ignore_merges", 0, "vocab", vocabulary, "merges");
    return json_pack("{s:s,s:n,s:n,s:o,s:n,s:n,s:n,s:{s:s},s:o}", "version", "1.0", "truncation",
                     "padding", "added_tokens", added, "normalizer", "pre_tokenizer",
                     "post_processor", "decoder", "type", "Fuse", "model", model);
}

rl_status task_tokenizer_write(const char *dir, uint32_t *count)
{
    RL_TRY(write_json(dir, "tokenizer.json", make_tokenizer()));
    RL_TRY(write_json(dir, "tokenizer_config.json",
                      json_pack("{s:s,s:n,s:s,s:s,s:b,s:i}", "tokenizer_class",
                                "PreTrainedTokenizerFast", "bos_token", "eos_token", specials[0],
                                "pad_token", specials[1], "clean_up_tokenization_spaces", 0,
                                "model_max_length", 4096)));
    *count = SPECIAL_COUNT + (uint32_t)strlen(alphabet);
    return RL_OK;
}
