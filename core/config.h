/* Configuration: one struct made from config.def, read from YAML, overridden from the command line,
 * validated as a whole before anything is allocated. Immutable once a run has started. */
#ifndef FORESIGHT_CORE_CONFIG_H
#define FORESIGHT_CORE_CONFIG_H

#include "core/objectives.def"
#include "core/status.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

/* Enumerated options hold the index of their choice; these names mirror config.def. */
#define CONFIG_LOSS_ID(id, ...) CONFIG_LOSS_##id,
enum config_loss_type { RL_OBJECTIVES(CONFIG_LOSS_ID) CONFIG_LOSS_COUNT };
#undef CONFIG_LOSS_ID
#define CONFIG_CORRECTION_ID(id, ...) CONFIG_CORRECTION_##id,
enum config_correction {
    CONFIG_CORRECTION_AUTO,
    CONFIG_CORRECTION_NONE,
    RL_CORRECTIONS(CONFIG_CORRECTION_ID) CONFIG_CORRECTION_COUNT
};
#undef CONFIG_CORRECTION_ID
enum config_aggregation {
    CONFIG_AGG_AUTO,
    CONFIG_AGG_TOKEN_MEAN,
    CONFIG_AGG_SEQ_MEAN_TOKEN_SUM,
    CONFIG_AGG_SEQ_MEAN_TOKEN_MEAN,
    CONFIG_AGG_SEQ_MEAN_TOKEN_SUM_NORM
};
enum config_kl_type {
    CONFIG_KL_K1,
    CONFIG_KL_K2,
    CONFIG_KL_K3,
    CONFIG_KL_K3_PLUS,
    CONFIG_KL_K3_UNBIASED,
    CONFIG_KL_COUNT
};
enum config_pin { CONFIG_PIN_AUTO, CONFIG_PIN_OFF };
enum config_kl_in { CONFIG_KL_IN_LOSS, CONFIG_KL_IN_REWARD };
enum config_old_logprob { CONFIG_OLD_BEHAVIOUR, CONFIG_OLD_RECOMPUTE, CONFIG_OLD_LOGLINEAR };
enum config_advantage {
    CONFIG_ADV_GROUP,
    CONFIG_ADV_GROUP_NO_STD,
    CONFIG_ADV_BATCH,
    CONFIG_ADV_RLOO,
    CONFIG_ADV_MAXRL,
    CONFIG_ADV_REINFORCE_PLUS_PLUS,
    CONFIG_ADV_REINFORCE_PLUS_PLUS_BASELINE,
    CONFIG_ADV_VTRACE
};
enum config_teacher_loss {
    CONFIG_TEACHER_NONE,
    CONFIG_TEACHER_RLSD,
    CONFIG_TEACHER_SDPO,
    CONFIG_TEACHER_OPD,
    CONFIG_TEACHER_SDAR
};
enum config_teacher_weights { CONFIG_TEACHER_LIVE, CONFIG_TEACHER_EMA, CONFIG_TEACHER_INITIAL };
enum config_teacher_logits {
    CONFIG_TEACHER_SAMPLED_TOKEN,
    CONFIG_TEACHER_FULL,
    CONFIG_TEACHER_TOP_K
};
enum config_lr_schedule { CONFIG_LR_CONSTANT, CONFIG_LR_LINEAR, CONFIG_LR_COSINE };
enum config_recompute { CONFIG_RECOMPUTE_SELECTIVE, CONFIG_RECOMPUTE_FULL, CONFIG_RECOMPUTE_OFF };
enum config_resume { CONFIG_RESUME_AUTO, CONFIG_RESUME_NEVER, CONFIG_RESUME_MUST };
enum config_kv_on_update { CONFIG_KV_KEEP, CONFIG_KV_RECOMPUTE };
enum config_speculation {
    CONFIG_SPECULATION_AUTO,
    CONFIG_SPECULATION_OFF,
    CONFIG_SPECULATION_ALWAYS
};
enum config_order { CONFIG_ORDER_READY, CONFIG_ORDER_TICKET, CONFIG_ORDER_FIXED_LAG };
enum config_record { CONFIG_RECORD_EVENTS, CONFIG_RECORD_DELTAS };
enum config_on_mismatch { CONFIG_MISMATCH_WARN, CONFIG_MISMATCH_STOP };
enum config_restart { CONFIG_RESTART_BASE, CONFIG_RESTART_CONTINUE };
enum config_select {
    CONFIG_SELECT_NONE,
    CONFIG_SELECT_CORRECT,
    CONFIG_SELECT_BEST_OF_N,
    CONFIG_SELECT_NOT_ALL_WRONG,
    CONFIG_SELECT_MIXED_ONLY
};
enum config_weight {
    CONFIG_WEIGHT_ONE,
    CONFIG_WEIGHT_REWARD,
    CONFIG_WEIGHT_ADVANTAGE,
    CONFIG_WEIGHT_IMPORTANCE
};
enum config_dedupe { CONFIG_DEDUPE_NONE, CONFIG_DEDUPE_TEXT, CONFIG_DEDUPE_PATTERN };
enum config_degenerate { CONFIG_DEGENERATE_NONE, CONFIG_DEGENERATE_EMPTY, CONFIG_DEGENERATE_STUB };
enum config_device { CONFIG_DEVICE_AUTO, CONFIG_DEVICE_CPU, CONFIG_DEVICE_CUDA };
enum config_isa { CONFIG_ISA_AUTO, CONFIG_ISA_REF, CONFIG_ISA_AVX2, CONFIG_ISA_AVX512 };
enum config_weights { CONFIG_WEIGHTS_FP32, CONFIG_WEIGHTS_BF16 };
enum config_kv { CONFIG_KV_FP32, CONFIG_KV_BF16 };
enum config_quantize { CONFIG_QUANTIZE_OFF, CONFIG_QUANTIZE_INT8 };
enum config_special_in_text { CONFIG_SPECIAL_PLAIN, CONFIG_SPECIAL_ALLOW };
enum config_sweep_command { CONFIG_SWEEP_TRAIN, CONFIG_SWEEP_DISTILL, CONFIG_SWEEP_EVAL };
enum config_sweep_evaluate { CONFIG_SWEEP_LAST, CONFIG_SWEEP_EVERY, CONFIG_SWEEP_NONE };
enum config_bad_rows { CONFIG_BAD_ROWS_ERROR, CONFIG_BAD_ROWS_SKIP };

/* The word auto of an AUTO_INT; the largest async.max_staleness in the order fixed_lag. */
enum { CONFIG_AUTO = -1, CONFIG_FIXED_LAG_MAX = 60 };

/* One member struct per section, e.g. config->rollout.temperature:
 * BOOL bool, INT and AUTO_INT int64_t, REAL double, STR char * (owned, never NULL), ENUM int. */
#define CONFIG_FIELD_BOOL(name) bool name;
#define CONFIG_FIELD_INT(name) int64_t name;
#define CONFIG_FIELD_AUTO_INT(name) int64_t name;
#define CONFIG_FIELD_REAL(name) double name;
#define CONFIG_FIELD_STR(name) char *name;
#define CONFIG_FIELD_ENUM(choices) CONFIG_FIELD_ENUM_NAMED
#define CONFIG_FIELD_ENUM_NAMED(name) int name;
struct rl_config {
#define SECTION_BEGIN(section, help) struct {
#define OPTION(section, name, type, def, min, max, unit, help) CONFIG_FIELD_##type(name)
#define SECTION_END(section)                                                                       \
    }                                                                                              \
    section;
#include "core/config.def"
    unsigned char *set_flags; /* one per option in table order: given by file or override */
};

/* Fill with the defaults. Release with rl_config_fini. Errors: RL_NO_MEMORY. */
rl_status rl_config_init(struct rl_config *config);

/* Free owned strings. Takes a zeroed struct. */
void rl_config_fini(struct rl_config *config);

/* Read a YAML file of `section: {name: value}` over what is there. Unknown keys (with the nearest
 * name), duplicate keys, anchors and aliases, wrong types, nesting and size limits are errors that
 * name file, line and key; what stood before the error is stored. Errors: RL_IO, RL_INVALID,
 * RL_NO_MEMORY. */
rl_status rl_config_load(struct rl_config *config, const char *path);

/* The same from memory; `name` stands for the file's in messages. */
rl_status rl_config_load_text(struct rl_config *config, const char *name, const char *text,
                              size_t bytes);

/* Apply one `section.name=value` (a bare `name=value` is accepted where only one section has the
 * name). The value is taken as it stands, without YAML quoting; lists are joined by commas. Errors:
 * RL_INVALID, RL_NO_MEMORY. */
rl_status rl_config_override(struct rl_config *config, const char *assignment);

/* The same with key and value apart; `where` begins messages. */
rl_status rl_config_assign(struct rl_config *config, const char *where, const char *key,
                           const char *value);

/* "section.name" of a key that rl_config_assign takes, into out [CONFIG_KEY_BYTES]. Errors:
 * RL_INVALID. */
enum { CONFIG_KEY_BYTES = 128 };
rl_status rl_config_key(const char *where, const char *key, char *out);

/* The value of an option as text that rl_config_assign reads back to the same; two values are the
 * same if their texts are. Caller frees *out. Errors: RL_INVALID (no such option), RL_NO_MEMORY. */
rl_status rl_config_value(const struct rl_config *config, const char *key, char **out);

/* Ranges of each option and rules between options. Errors: RL_INVALID, each problem logged. */
rl_status rl_config_validate(const struct rl_config *config);

/* What options of the loss come to once loss_type, old_logprob and correction have filled in those
 * that were not given. */
struct rl_loss_settings {
    double epsilon_low, epsilon_high, delta;
    enum config_advantage advantage;
    enum config_correction correction; /* never AUTO */
    double correction_low, correction_high;
};
void rl_config_loss_settings(const struct rl_config *config, struct rl_loss_settings *out);

/* Write into options that were not given what other options make of them: rl_config_loss_settings,
 * kl_type of a KL term in the reward. They count as given afterwards, so that a dump
 * of `config` means the same run when it is read again. Call once, after validation. */
void rl_config_resolve(struct rl_config *config);

/* eta at the beginning of a run: 0 if async.enabled is false, 1 with async.max_staleness auto. */
uint32_t rl_config_first_staleness(const struct rl_config *config);

/* True if the option "section.name" was set by a file or an override (not a default). */
bool rl_config_is_set(const struct rl_config *config, const char *key);

/* Write every option as YAML that rl_config_load reads back to the same values. */
rl_status rl_config_dump(const struct rl_config *config, FILE *out);

/* The table as help text (terminal) or as Markdown (docs/config.md). `section` NULL: all. */
void rl_config_help(FILE *out, const char *section);
void rl_config_markdown(FILE *out);

#endif
