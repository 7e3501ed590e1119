/* The checks of `foresight doctor`: each looks at one thing of the machine and gives one line. */
#ifndef FORESIGHT_APP_DOCTOR_H
#define FORESIGHT_APP_DOCTOR_H

#include <stddef.h>

enum doctor_level { DOCTOR_OK, DOCTOR_WARN, DOCTOR_FAIL };

struct doctor_line {
    enum doctor_level level;
    char found[512];  /* what is there */
    char advice[256]; /* what to do about it; "" if nothing */
};

struct doctor_check {
    const char *name;
    void (*run)(struct doctor_line *line); /* fills *line, which comes in as OK and empty */
};

/* The table of all checks, in order; static. */
const struct doctor_check *doctor_checks(size_t *count);

/* Say what was found. */
void doctor_found(struct doctor_line *line, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Raise the level and say what to do. A lower level than before changes nothing. */
void doctor_advise(struct doctor_line *line, enum doctor_level level, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Checks of the machine (doctor_machine.c) and of other programs and libraries (doctor_tools.c). */
void doctor_check_cpu(struct doctor_line *line);
void doctor_check_kernels(struct doctor_line *line);
void doctor_check_gpu(struct doctor_line *line);
void doctor_check_nccl(struct doctor_line *line);
void doctor_check_cores(struct doctor_line *line);
void doctor_check_memory(struct doctor_line *line);
void doctor_check_shm(struct doctor_line *line);
void doctor_check_open_files(struct doctor_line *line);
void doctor_check_disk(struct doctor_line *line);
void doctor_check_host_name(struct doctor_line *line);
void doctor_check_mpirun(struct doctor_line *line);
void doctor_check_mpi_ranks(struct doctor_line *line);
void doctor_check_storage(struct doctor_line *line);
void doctor_check_git(struct doctor_line *line);

/* Logical cores that this process may run on; bytes of memory that it could still get, negative if
 * the system does not say. */
int doctor_usable_cores(void);
double doctor_usable_memory(void);

/* The other side of doctor_check_mpi_ranks: what each of its two ranks runs. Returns enum app_exit.
 */
int doctor_probe_rank(int argc, char **argv);

#endif
