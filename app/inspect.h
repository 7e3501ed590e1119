/* What `foresight inspect` finds in each kind of file and folder. Every function fills a JSON
 * object that the command prints as text or as one line; a status other than RL_OK means that the
 * thing is not sound, and the log's last error says why. The object then holds what was found until
 * there. */
#ifndef FORESIGHT_APP_INSPECT_H
#define FORESIGHT_APP_INSPECT_H

#include "core/status.h"

#include <jansson.h>

/* One safetensors file: tensors with shape, dtype, bytes, hash. Errors: as safetensors_open. */
rl_status inspect_safetensors(const char *path, json_t *out);

/* A Hugging Face model folder: architecture, parameters, tokenizer; every tensor of the
 * architecture must be there with its shape, and no other. Loads no weights. */
rl_status inspect_model(const char *dir, json_t *out);

/* A tokenizer's folder (tokenizer.json and what lies beside it). */
rl_status inspect_tokenizer(const char *dir, json_t *out);

/* Counts of an evaluation (transport/count_file.h). */
rl_status inspect_counts(const char *path, json_t *out);

/* A rollout segment. */
rl_status inspect_segment(const char *path, json_t *out);

/* A checkpoint folder: its manifest and the model inside. */
rl_status inspect_checkpoint(const char *dir, json_t *out);

/* A run folder: metrics, every checkpoint, every segment. All are looked at even if one is unsound;
 * the status is that of the first that is not. */
rl_status inspect_run(const char *dir, json_t *out);

/* What PATH is, by its content; then one of the above. Errors: RL_IO, RL_UNSUPPORTED (nothing that
 * we know), and theirs. */
rl_status inspect_path(const char *path, json_t *out);

#endif
