/* Tokenizer of the BPE kind, as `tokenizer.json` of the Hugging Face `tokenizers` library defines
 * it. Exact to the id, or refused at load: nothing in the file is silently ignored. Immutable after
 * load, so any number of threads may use one. */
#ifndef FORESIGHT_MODEL_TOKENIZER_H
#define FORESIGHT_MODEL_TOKENIZER_H

#include "core/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct tokenizer;

/* Growable array of ids; zero-initialise, release with token_buffer_fini. */
struct token_buffer {
    int32_t *ids; /* [count] */
    size_t count;
    size_t capacity;
};

/* Free the ids and zero the buffer. Takes a zeroed one. */
void token_buffer_fini(struct token_buffer *buffer);

enum tokenizer_encode_flags {
    TOKENIZER_ADD_SPECIAL = 1, /* run the post-processor: BOS, EOS, templates */
    TOKENIZER_PLAIN_TEXT = 2   /* special tokens' spellings in the text are ordinary text */
};

/* Load DIR/tokenizer.json (and tokenizer_config.json, special_tokens_map.json, chat_template.jinja,
 * generation_config.json where present). Caller owns *out.
 * Errors: RL_IO, RL_INVALID (names file and key), RL_UNSUPPORTED (names the part), RL_NO_MEMORY. */
rl_status tokenizer_load(const char *dir, struct tokenizer **out);

/* Takes NULL. */
void tokenizer_destroy(struct tokenizer *tokenizer);

/* Append the ids of `text` (`bytes` long, UTF-8; invalid sequences are replaced by U+FFFD as the
 * library's callers do) to `out`. `flags` of enum tokenizer_encode_flags. Errors: RL_NO_MEMORY. */
rl_status tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t bytes,
                           unsigned flags, struct token_buffer *out);

/* The same for a text of which parts are data: `plain` [bytes], non-zero where special tokens'
 * spellings are ordinary text (a special token that touches such a byte is not recognised). Where
 * the data holds no such spelling the ids are those of tokenizer_encode. NULL: all zero.
 * Errors: also RL_INVALID if the text is not valid UTF-8. */
rl_status tokenizer_encode_masked(const struct tokenizer *tokenizer, const char *text, size_t bytes,
                                  const unsigned char *plain, unsigned flags,
                                  struct token_buffer *out);

/* Text of ids [count]; unknown ids are skipped as the library does. Caller frees *text
 * (NUL-terminated, *bytes long without the NUL). Errors: RL_NO_MEMORY. */
rl_status tokenizer_decode(const struct tokenizer *tokenizer, const int32_t *ids, size_t count,
                           bool skip_special, char **text, size_t *bytes);

/* One past the largest id, added tokens included. */
int32_t tokenizer_vocab_count(const struct tokenizer *tokenizer);

/* Id of a token's exact spelling in the vocabulary or the added tokens, -1 if there is none. */
int32_t tokenizer_token_id(const struct tokenizer *tokenizer, const char *spelling);

/* True if the id is an added token marked special (what decoding skips on request). */
bool tokenizer_is_special(const struct tokenizer *tokenizer, int32_t id);

/* Text of the folder's chat template (chat_template.jinja, else of tokenizer_config.json; of
 * several named ones the one named default), NULL if it has none. Borrowed. */
const char *tokenizer_chat_template(const struct tokenizer *tokenizer);

/* Spelling of "bos_token", "eos_token", "pad_token" or "unk_token" as tokenizer_config.json sets
 * it, NULL if it does not. Borrowed. */
const char *tokenizer_special_text(const struct tokenizer *tokenizer, const char *role);

/* Ids by role from tokenizer_config.json and friends; -1 where not set. */
int32_t tokenizer_eos_id(const struct tokenizer *tokenizer);
int32_t tokenizer_bos_id(const struct tokenizer *tokenizer);
int32_t tokenizer_pad_id(const struct tokenizer *tokenizer);

/* Copy the tokenizer's files from the folder it was loaded from into `dir`, byte for byte. */
rl_status tokenizer_copy_files(const struct tokenizer *tokenizer, const char *dir);

#endif
