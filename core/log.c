/* Owns the process's log: level, identity, the optional file, and each thread's last error text.
 * One line is one write(2), so lines of several ranks on one terminal never mix. The state below is
 * process-wide on purpose (log.h says so); `log_lock` guards all of it. */
#include "core/log.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { LOG_LINE_BYTES = 4096, LOG_ERROR_BYTES = 2048 };

static pthread_mutex_t log_lock = PTHREAD_MUTEX_INITIALIZER;
static const char *log_role = "";
static int log_rank = 0;
static int log_file = -1;
static atomic_int log_level = RL_LOG_INFO;
static _Thread_local char log_last_error[LOG_ERROR_BYTES];

void rl_log_identify(const char *role, int rank)
{
    pthread_mutex_lock(&log_lock);
    log_role = role != NULL ? role : "";
    log_rank = rank;
    pthread_mutex_unlock(&log_lock);
}

void rl_log_set_level(enum rl_log_level level)
{
    atomic_store(&log_level, (int)level);
}

rl_status rl_log_open_file(const char *path)
{
    int file = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NONBLOCK, 0644);
    if (file < 0) {
        return rl_fail(RL_IO, "%s: cannot open the log file: %s", path, strerror(errno));
    }
    pthread_mutex_lock(&log_lock);
    int previous = log_file;
    log_file = file;
    pthread_mutex_unlock(&log_lock);
    if (previous >= 0) {
        close(previous);
    }
    return RL_OK;
}

void rl_log_close_file(void)
{
    pthread_mutex_lock(&log_lock);
    int file = log_file;
    log_file = -1;
    pthread_mutex_unlock(&log_lock);
    if (file >= 0) {
        close(file);
    }
}

/* A log that cannot be written must not stop a run: give up on this line. */
static void log_write_all(int file, const char *line, size_t bytes)
{
    while (bytes > 0) {
        ssize_t written = write(file, line, bytes);
        if (written < 0 && errno == EINTR) {
            continue;
        }
        if (written <= 0) {
            return;
        }
        line += written;
        bytes -= (size_t)written;
    }
}

/* Start of a line: time of day, role and rank, level. Returns its length. */
static size_t log_prefix(char *line, size_t capacity, enum rl_log_level level)
{
    static const char letters[] = "EWID";
    struct timespec now = {0, 0};
    struct tm parts;
    clock_gettime(CLOCK_REALTIME, &now);
    memset(&parts, 0, sizeof parts);
    localtime_r(&now.tv_sec, &parts);
    int length = snprintf(line, capacity, "%02d:%02d:%02d.%03d %s%s%d %c ", parts.tm_hour,
                          parts.tm_min, parts.tm_sec, (int)(now.tv_nsec / 1000000), log_role,
                          log_role[0] != '\0' ? " " : "", log_rank, letters[level & 3]);
    if (length < 0) {
        return 0;
    }
    return (size_t)length < capacity ? (size_t)length : capacity - 1;
}

/* Text from files may hold control bytes; a line stays one line. */
static void log_flatten(char *text)
{
    for (; *text != '\0'; text++) {
        unsigned char byte = (unsigned char)*text;
        if (byte < 0x20 || byte == 0x7f) {
            *text = ' ';
        }
    }
}

static void log_emit(enum rl_log_level level, const char *text)
{
    char line[LOG_LINE_BYTES];
    pthread_mutex_lock(&log_lock);
    size_t start = log_prefix(line, sizeof line - 1, level);
    size_t room = sizeof line - 1 - start;
    int length = snprintf(line + start, room, "%s", text);
    size_t used = length < 0 ? 0 : (size_t)length;
    size_t end = start + (used < room ? used : room - 1);
    line[end] = '\0';
    log_flatten(line);
    line[end] = '\n';
    log_write_all(STDERR_FILENO, line, end + 1);
    if (log_file >= 0) {
        log_write_all(log_file, line, end + 1);
    }
    pthread_mutex_unlock(&log_lock);
}

void rl_log(enum rl_log_level level, const char *format, ...)
{
    if ((int)level > atomic_load(&log_level)) {
        return;
    }
    int saved = errno;
    char text[LOG_LINE_BYTES];
    va_list args;
    va_start(args, format);
    int length = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (length >= 0) {
        log_emit(level, text);
    }
    errno = saved;
}

rl_status rl_fail(rl_status status, const char *format, ...)
{
    int saved = errno;
    /* Through a second buffer: an argument may be the last error itself. */
    char text[LOG_ERROR_BYTES];
    va_list args;
    va_start(args, format);
    int length = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (length < 0) {
        snprintf(text, sizeof text, "%s (its message could not be formatted)",
                 rl_status_text(status));
    }
    memcpy(log_last_error, text, sizeof text);
    rl_log(RL_LOG_ERROR, "%s [%s]", text, rl_status_text(status));
    errno = saved;
    return status;
}

const char *rl_log_last_error(void)
{
    return log_last_error;
}
