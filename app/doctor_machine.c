/* Checks of the machine: processor, memory, limits, disk, names. Reads /proc and asks the kernel;
 * changes nothing but a file of one page in /dev/shm that it removes again. */
#include "app/doctor.h"

#include "core/log.h"
#include "core/text.h"
#include "kernels/device.h"
#include "kernels/kernels.h"
#include "transport/collective_nccl.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define GIB ((double)(1 << 30))

/* First line of a small file in /proc or /sys that starts with `key`; "" if there is none. */
static void proc_line(const char *path, const char *key, char *out, size_t bytes)
{
    char line[8192];
    out[0] = '\0';
    FILE *file = fopen(path, "r");
    if (file == NULL) {
        return;
    }
    while (fgets(line, sizeof line, file) != NULL) {
        if (strncmp(line, key, strlen(key)) == 0) {
            line[strcspn(line, "\n")] = '\0';
            snprintf(out, bytes, "%s", line);
            break;
        }
    }
    fclose(file);
}

/* --- processor -------------------------------------------------------------------------------- */

void doctor_check_cpu(struct doctor_line *line)
{
    static const char *const features[] = {"avx2",    "fma",      "f16c",
                                           "avx512f", "avx512bw", "avx512vl"};
    char line_text[8192];
    char flags[8200];
    char have[128] = "";
    proc_line("/proc/cpuinfo", "flags", line_text, sizeof line_text);
    snprintf(flags, sizeof flags, "%s ", line_text); /* every word now stands between spaces */
    for (size_t i = 0; i < sizeof features / sizeof features[0]; i++) {
        char word[24];
        snprintf(word, sizeof word, " %s ", features[i]);
        if (strstr(flags, word) != NULL) {
            size_t used = strlen(have);
            snprintf(have + used, sizeof have - used, " %s", features[i]);
        }
    }
    doctor_found(line, "%s;%s", device_cpu_name(), have[0] != '\0' ? have : " no AVX2");
}

void doctor_check_kernels(struct doctor_line *line)
{
    const struct kernel_table *table = NULL;
    enum kernel_isa best = kernel_isa_best();
    if (kernel_table_get(best, &table) != RL_OK) {
        doctor_found(line, "%s", rl_log_last_error());
        doctor_advise(line, DOCTOR_FAIL, "the build and the machine do not fit; build it here");
        return;
    }
    doctor_found(line, "%s", table->name);
    if (best == KERNEL_ISA_REF) {
        doctor_advise(
            line, DOCTOR_WARN,
            "only the plain C kernels run here: right, but slow; AVX2 and FMA are wanted");
    }
}

void doctor_check_gpu(struct doctor_line *line)
{
    struct device_survey survey;
    device_gpu_survey(&survey);
    int runtime = survey.runtime;
    if (survey.count == 0) {
        doctor_found(line, "none: %s%s", survey.problem, runtime > 0 ? " (built with CUDA)" : "");
        return;
    }
    doctor_found(line, "%d: %s; built with CUDA %d.%d, driver for %d.%d", survey.count, survey.name,
                 runtime / 1000, runtime % 1000 / 10, survey.driver / 1000,
                 survey.driver % 1000 / 10);
}

/* Only learners on several GPUs want it. */
void doctor_check_nccl(struct doctor_line *line)
{
    struct collective_nccl_survey survey;
    collective_nccl_survey(&survey);
    if (survey.version == 0) {
        doctor_found(line, "none: %s", survey.problem);
        return;
    }
    doctor_found(line, "%d.%d.%d", survey.version / 10000, survey.version / 100 % 100,
                 survey.version % 100);
}

/* Cores that the container's CPU quota allows; 0: no quota. */
static double quota_cores(void)
{
    char text[64];
    proc_line("/sys/fs/cgroup/cpu.max", "", text, sizeof text);
    char *end = NULL;
    double quota = strtod(text, &end);
    double period = end == text ? 0 : strtod(end, NULL);
    return period > 0 ? quota / period : 0;
}

int doctor_usable_cores(void)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : device_cpu_count();
}

void doctor_check_cores(struct doctor_line *line)
{
    int usable = doctor_usable_cores();
    double quota = quota_cores();
    if (quota > 0 && quota < usable) {
        doctor_found(line, "%d logical, quota of %.1f", usable, quota);
    } else {
        doctor_found(line, "%d logical", usable);
    }
    if (usable < 2 || (quota > 0 && quota < 1.5)) {
        doctor_advise(
            line, DOCTOR_WARN,
            "a learner and a worker want a core each; async.enabled=false suits one core");
    }
}

/* --- memory and limits ------------------------------------------------------------------------ */

static double meminfo_bytes(const char *key)
{
    char text[128];
    proc_line("/proc/meminfo", key, text, sizeof text);
    const char *colon = strchr(text, ':');
    return colon == NULL ? -1 : strtod(colon + 1, NULL) * 1024;
}

/* The container's limit; a large number if there is none. */
static double cgroup_memory_bytes(void)
{
    char text[64];
    proc_line("/sys/fs/cgroup/memory.max", "", text, sizeof text);
    char *end = NULL;
    double limit = strtod(text, &end);
    return end == text || limit <= 0 ? 1e18 : limit;
}

double doctor_usable_memory(void)
{
    double free_bytes = meminfo_bytes("MemAvailable");
    double limit = cgroup_memory_bytes();
    return limit < free_bytes ? limit : free_bytes;
}

void doctor_check_memory(struct doctor_line *line)
{
    double total = meminfo_bytes("MemTotal");
    double free_bytes = meminfo_bytes("MemAvailable");
    double limit = cgroup_memory_bytes();
    if (total < 0 || free_bytes < 0) {
        doctor_found(line, "/proc/meminfo cannot be read");
        doctor_advise(line, DOCTOR_WARN, "memory is not known");
        return;
    }
    if (limit < total) {
        doctor_found(line, "%.1f GiB free of %.1f, limited to %.1f", free_bytes / GIB, total / GIB,
                     limit / GIB);
    } else {
        doctor_found(line, "%.1f GiB free of %.1f", free_bytes / GIB, total / GIB);
    }
    double usable = doctor_usable_memory();
    if (usable < 0.5 * GIB) {
        doctor_advise(line, DOCTOR_FAIL, "0.5 GiB is the least for the quickstart");
    } else if (usable < 2 * GIB) {
        doctor_advise(line, DOCTOR_WARN, "enough for the quickstart, not for a 0.5 B model");
    }
}

/* Whether a page of shared memory can be made, written and removed. */
static bool shm_works(void)
{
    char name[64];
    snprintf(name, sizeof name, "/foresight_doctor_%ld", (long)getpid());
    int fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
    if (fd < 0) {
        return false;
    }
    bool works = posix_fallocate(fd, 0, 4096) == 0;
    close(fd);
    shm_unlink(name);
    return works;
}

void doctor_check_shm(struct doctor_line *line)
{
    struct statvfs info;
    if (statvfs("/dev/shm", &info) != 0) {
        doctor_found(line, "/dev/shm: %s", strerror(errno));
        doctor_advise(line, DOCTOR_FAIL, "mount a tmpfs on /dev/shm: weights travel through it");
        return;
    }
    double free_bytes = (double)info.f_bavail * (double)info.f_frsize;
    doctor_found(line, "%.2f GiB free of %.2f in /dev/shm", free_bytes / GIB,
                 (double)info.f_blocks * (double)info.f_frsize / GIB);
    if (!shm_works()) {
        doctor_advise(line, DOCTOR_FAIL, "shared memory cannot be created: %s", strerror(errno));
    } else if (free_bytes < 0.0625 * GIB) {
        doctor_advise(line, DOCTOR_FAIL, "too small for any model (container: --shm-size=1g)");
    } else if (free_bytes < 1 * GIB) {
        doctor_advise(line, DOCTOR_WARN,
                      "three images of the weights must fit: enough for small models only "
                      "(container: --shm-size)");
    }
}

void doctor_check_open_files(struct doctor_line *line)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) {
        doctor_found(line, "%s", strerror(errno));
        doctor_advise(line, DOCTOR_WARN, "the limit is not known");
        return;
    }
    doctor_found(line, "%llu", (unsigned long long)limit.rlim_cur);
    if (limit.rlim_cur < 256) {
        doctor_advise(line, DOCTOR_WARN, "raise it: ulimit -n 1024");
    }
}

/* --- disk and names --------------------------------------------------------------------------- */

void doctor_check_disk(struct doctor_line *line)
{
    struct statvfs info;
    if (statvfs(".", &info) != 0) {
        doctor_found(line, "%s", strerror(errno));
        doctor_advise(line, DOCTOR_WARN, "free space of this folder is not known");
        return;
    }
    double free_bytes = (double)info.f_bavail * (double)info.f_frsize;
    doctor_found(line, "%.1f GiB free in this folder", free_bytes / GIB);
    if (free_bytes < 0.25 * GIB) {
        doctor_advise(line, DOCTOR_FAIL, "no room for checkpoints");
    } else if (free_bytes < 2 * GIB) {
        doctor_advise(line, DOCTOR_WARN, "a checkpoint takes 12 bytes a parameter");
    }
}

void doctor_check_host_name(struct doctor_line *line)
{
    char name[256] = "";
    if (gethostname(name, sizeof name - 1) != 0) {
        doctor_found(line, "%s", strerror(errno));
        doctor_advise(line, DOCTOR_WARN, "the host has no name");
        return;
    }
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    struct addrinfo *found = NULL;
    int code = getaddrinfo(name, NULL, &hints, &found);
    if (code != 0) {
        doctor_found(line, "%s: %s", name, gai_strerror(code));
        doctor_advise(line, DOCTOR_WARN, "fine on one machine; for several add it to /etc/hosts");
        return;
    }
    freeaddrinfo(found);
    doctor_found(line, "%s resolves", name);
}
