/* One-line log with level, rank and role. Errors are logged once, by whoever finds them first,
 * through rl_fail(), which also keeps the text for tests and for the last line of the program. */
#ifndef FORESIGHT_CORE_LOG_H
#define FORESIGHT_CORE_LOG_H

#include "core/status.h"

#ifdef __cplusplus
extern "C" {
#endif

enum rl_log_level { RL_LOG_ERROR, RL_LOG_WARN, RL_LOG_INFO, RL_LOG_DEBUG };

/* Identify this process in each line ("learner", 0). `role` is borrowed for the process's life. */
void rl_log_identify(const char *role, int rank);

/* Lines above `level` are dropped. Default RL_LOG_INFO on stderr. */
void rl_log_set_level(enum rl_log_level level);

/* Also append every line to `path` (created; parent must exist). Errors: RL_IO. */
rl_status rl_log_open_file(const char *path);

/* Close the file opened above, if any. */
void rl_log_close_file(void);

/* Write one line. Thread-safe; never fails. */
void rl_log(enum rl_log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Log an error and return `status`, so that `return rl_fail(RL_IO, "...")` reads as one step.
 * Say the file, the key or offset, what was found and what was expected. */
rl_status rl_fail(rl_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Text of the last rl_fail() of this thread, "" if none; borrowed until the next one. */
const char *rl_log_last_error(void);

#ifdef __cplusplus
}
#endif

#endif
