/* Demonstrations for fine-tuning as token sequences: rows with a prompt (any spelling that training
 * data may use) and a `completion`, or with `messages` whose last one is the assistant's. */
#ifndef FORESIGHT_APP_SFT_DATA_H
#define FORESIGHT_APP_SFT_DATA_H

#include "app/session.h"
#include "trainer/sft.h"

struct sft_data {
    struct sft_example *examples; /* [count], tokens owned by this struct */
    uint64_t count;
    uint64_t completion_tokens;
    uint64_t dropped; /* longer than the limit */
};

/* Read the JSONL files `paths`. A completion is encoded by itself and ends with the eos token; for
 * messages the template renders both. Sequences longer than `max_length` are dropped and counted.
 * Release with sft_data_fini. Errors: RL_IO, RL_INVALID (file, line, field), RL_NO_MEMORY. */
rl_status sft_data_load(const struct session *session, const char *paths, int64_t max_length,
                        struct sft_data *out);
void sft_data_fini(struct sft_data *data);

#endif
