/* Status codes shared by every module. A code carries a scope that says how far the damage goes:
 * an *item* is dropped and counted, a *peer* is isolated, the *run* stops with a checkpoint. */
#ifndef FORESIGHT_CORE_STATUS_H
#define FORESIGHT_CORE_STATUS_H

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

/* name, scope, text */
#define RL_STATUS_MAP(X)                                                                           \
    X(RL_OK, RL_SCOPE_NONE, "ok")                                                                  \
    X(RL_AGAIN, RL_SCOPE_NONE, "would block")                                                      \
    X(RL_CLOSED, RL_SCOPE_NONE, "closed")                                                          \
    X(RL_END, RL_SCOPE_NONE, "end of data")                                                        \
    X(RL_INTERRUPTED, RL_SCOPE_NONE, "asked to stop")                                              \
    X(RL_INVALID, RL_SCOPE_ITEM, "invalid input")                                                  \
    X(RL_NOT_FOUND, RL_SCOPE_ITEM, "not found")                                                    \
    X(RL_TOO_LONG, RL_SCOPE_ITEM, "longer than the limit")                                         \
    X(RL_UNSUPPORTED, RL_SCOPE_ITEM, "not supported")                                              \
    X(RL_CORRUPT, RL_SCOPE_ITEM, "corrupt data")                                                   \
    X(RL_TIMEOUT, RL_SCOPE_PEER, "deadline passed")                                                \
    X(RL_PEER_LOST, RL_SCOPE_PEER, "peer lost")                                                    \
    X(RL_IO, RL_SCOPE_RUN, "input/output error")                                                   \
    X(RL_NO_MEMORY, RL_SCOPE_RUN, "out of memory")                                                 \
    X(RL_NONFINITE, RL_SCOPE_RUN, "value is not finite")                                           \
    X(RL_INTERNAL, RL_SCOPE_RUN, "internal error")

enum rl_scope { RL_SCOPE_NONE, RL_SCOPE_ITEM, RL_SCOPE_PEER, RL_SCOPE_RUN };

#define RL_STATUS_ENUM(name, scope, text) name,
typedef enum { RL_STATUS_MAP(RL_STATUS_ENUM) RL_STATUS_COUNT } rl_status;
#undef RL_STATUS_ENUM

/* Forward a failure to the caller; the function that first found it has already logged it. */
#define RL_TRY(call)                                                                               \
    do {                                                                                           \
        rl_status rl_try_status_ = (call);                                                         \
        if (rl_try_status_ != RL_OK) {                                                             \
            return rl_try_status_;                                                                 \
        }                                                                                          \
    } while (0)

/* The same for functions with one clean-up ladder: keeps the code in `status`, jumps to `label`. */
#define RL_TRY_GOTO(call, status, label)                                                           \
    do {                                                                                           \
        (status) = (call);                                                                         \
        if ((status) != RL_OK) {                                                                   \
            goto label;                                                                            \
        }                                                                                          \
    } while (0)

/* Name of a code as written above ("RL_IO"); borrowed, static. Any thread. */
const char *rl_status_name(rl_status status);

/* Short English text of a code; borrowed, static. Any thread. */
const char *rl_status_text(rl_status status);

/* How far a failure with this code reaches. */
enum rl_scope rl_status_scope(rl_status status);

#ifdef __cplusplus
}
#endif

#endif
