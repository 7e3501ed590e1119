/* What the files of sweep_plan share. */
#ifndef FORESIGHT_TRAINER_SWEEP_PLAN_INTERNAL_H
#define FORESIGHT_TRAINER_SWEEP_PLAN_INTERNAL_H

#include "trainer/sweep_plan.h"

/* Copy into the plan's arena. Errors: RL_NO_MEMORY. */
rl_status sweep_copy(const struct sweep_plan *plan, const char *text, const char **out);

/* Settings, options, axes, seeds and exclusions from SWEEP.yaml and the overrides, and the text of
 * the configuration. Nothing is expanded yet. */
rl_status sweep_file_read(struct sweep_plan *plan, const char *path, char *const *overrides,
                          int override_count);

/* config_text, then the plan's options, then `more` (may be NULL), into *config (initialised here,
 * the caller's to fini whatever is returned). Not validated. */
rl_status sweep_config_of(const struct sweep_plan *plan, const struct sweep_options *more,
                          struct rl_config *config);

/* Names of all trials, from labels and values. Errors: RL_INVALID (two trials are the same). */
rl_status sweep_names_make(struct sweep_plan *plan);

#endif
