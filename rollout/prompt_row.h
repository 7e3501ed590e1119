/* One row of a data set: a line of JSON becomes a prompt (text or messages), a ground truth and a
 * source. Knows the spellings of the fields; knows no tokenizer and no file. */
#ifndef FORESIGHT_ROLLOUT_PROMPT_ROW_H
#define FORESIGHT_ROLLOUT_PROMPT_ROW_H

#include "model/chat.h"

#include <stdbool.h>
#include <stddef.h>

struct prompt_row {
    void *json;                    /* the parsed row; strings below point into it */
    const char *text;              /* the prompt, or the last user message */
    const char *data_source;       /* "" if none */
    char *ground_truth;            /* owned; "" if none */
    struct chat_message *messages; /* [message_count], owned; NULL: the prompt was a string */
    size_t message_count;
};

enum { PROMPT_PROBLEM_BYTES = 320 };

/* Parse one line. On failure `problem` [PROMPT_PROBLEM_BYTES] says which field is wrong and what
 * was expected; nothing is logged, since bad rows may be skipped. Release with prompt_row_fini.
 * Errors: RL_INVALID (the row), RL_NO_MEMORY. */
rl_status prompt_row_parse(const char *line, size_t bytes, struct prompt_row *row, char *problem);

/* Takes a zeroed struct. */
void prompt_row_fini(struct prompt_row *row);

#endif
