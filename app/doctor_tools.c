/* Checks of other programs and libraries: mpirun with two real ranks, a rollout segment written and
 * read back through HDF5 and zstd, git. */
#include "app/app.h"
#include "app/doctor.h"
#include "app/subprocess.h"

#include "core/log.h"
#include "core/text.h"
#include "core/trajectory.h"
#include "transport/segment_file.h"
#include "transport/world.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OUTPUT_BYTES = 4096, PROBE_RANKS = 2 };

#define VERSION_TIMEOUT_S 10.0
#define PROBE_TIMEOUT_S 60.0
#define CLOSE_TIMEOUT_S 20.0

/* --- programs --------------------------------------------------------------------------------- */

/* First line that a program prints, into line->found; true if it ended well. */
static bool first_line(struct doctor_line *line, char *const argv[])
{
    struct rl_text output;
    int code = 0;
    rl_text_init(&output, OUTPUT_BYTES);
    rl_status status = subprocess_run(argv, VERSION_TIMEOUT_S, &output, &code);
    const char *text = rl_text_str(&output);
    if (status != RL_OK) {
        doctor_found(line, "%s: %s", argv[0], rl_status_text(status));
    } else if (code == 127) {
        doctor_found(line, "%s is not installed", argv[0]);
    } else {
        doctor_found(line, "%.*s", (int)strcspn(text, "\n"), text);
    }
    rl_text_fini(&output);
    return status == RL_OK && code == 0;
}

void doctor_check_mpirun(struct doctor_line *line)
{
    char *argv[] = {"mpirun", "--version", NULL};
    if (!first_line(line, argv)) {
        doctor_advise(line, DOCTOR_FAIL, "install openmpi-bin (scripts/install_deps)");
    }
}

void doctor_check_git(struct doctor_line *line)
{
    char *argv[] = {"git", "--version", NULL};
    if (!first_line(line, argv)) {
        doctor_advise(line, DOCTOR_WARN, "only needed to work on the program itself");
    }
}

/* --- ranks ------------------------------------------------------------------------------------ */

int doctor_probe_rank(int argc, char **argv)
{
    struct world *world = NULL;
    if (world_open(&argc, &argv, &world) != RL_OK) {
        return APP_FAILED;
    }
    bool sound =
        world_has_mpi(world) && world_size(world) == PROBE_RANKS && world_form(world, 1) == RL_OK;
    if (sound) {
        printf("rank %d is a %s\n", world_rank(world),
               world_role_name(world_role(world, world_rank(world))));
        fflush(stdout);
    }
    int exit_code = sound ? APP_OK : APP_FAILED;
    world_close(world, exit_code, CLOSE_TIMEOUT_S);
    return exit_code;
}

/* What mpirun said, as one line without empty ones. */
static void found_output(struct doctor_line *line, const char *start, const struct rl_text *output)
{
    char flat[400];
    size_t used = 0;
    for (const char *c = rl_text_str(output); *c != '\0' && used + 1 < sizeof flat; c++) {
        bool space = *c == '\n' || *c == ' ' || *c == '\t' || *c == '-';
        if (!space || (used > 0 && flat[used - 1] != ' ')) {
            flat[used++] = space ? ' ' : *c;
        }
    }
    flat[used] = '\0';
    doctor_found(line, "%s: %s", start, flat);
}

void doctor_check_mpi_ranks(struct doctor_line *line)
{
    char self[4096] = "";
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    if (length <= 0) {
        doctor_found(line, "/proc/self/exe: %s", strerror(errno));
        doctor_advise(line, DOCTOR_WARN, "could not try");
        return;
    }
    if (geteuid() == 0) { /* Open MPI refuses root unless told */
        setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 1);
        setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 1);
    }
    setenv("OMPI_MCA_rmaps_base_oversubscribe", "1", 0);
    char *argv[] = {"mpirun", "-n", "2", self, "doctor", "--probe-rank", NULL};
    struct rl_text output;
    int code = 0;
    rl_text_init(&output, OUTPUT_BYTES);
    rl_status status = subprocess_run(argv, PROBE_TIMEOUT_S, &output, &code);
    if (status == RL_OK && code == 0 &&
        strstr(rl_text_str(&output), "rank 1 is a worker") != NULL) {
        doctor_found(line, "two ranks met and parted");
    } else {
        found_output(line, status == RL_OK ? "mpirun -n 2 failed" : rl_status_text(status),
                     &output);
        doctor_advise(line, DOCTOR_FAIL,
                      "mpirun -n 2 must work; until then only async.enabled=false runs");
    }
    rl_text_fini(&output);
}

/* --- storage ---------------------------------------------------------------------------------- */

static rl_status make_group(struct trajectory_group **out)
{
    static const int32_t tokens[] = {5, 6, 7, 8};
    static const float logprob[] = {-0.5F, -1.25F};
    static const uint32_t version[] = {3, 4};
    struct trajectory_group *group = NULL;
    RL_TRY(trajectory_group_create(1, &group));
    group->samples[0].finish = RL_FINISH_STOP;
    rl_status status = trajectory_set_tokens(&group->samples[0], tokens, logprob, version, 2, 2);
    if (status != RL_OK) {
        trajectory_group_destroy(group);
        return status;
    }
    *out = group;
    return RL_OK;
}

static bool same_tokens(const struct trajectory *a, const struct trajectory *b)
{
    size_t prompt = a->prompt_count;
    size_t completion = a->completion_count;
    return prompt == b->prompt_count && completion == b->completion_count &&
           memcmp(a->tokens, b->tokens, (prompt + completion) * sizeof *a->tokens) == 0 &&
           memcmp(a->logprob, b->logprob, completion * sizeof *a->logprob) == 0 &&
           memcmp(a->version, b->version, completion * sizeof *a->version) == 0;
}

static rl_status round_trip(const char *path)
{
    struct trajectory_group *group = NULL;
    struct trajectory_group **read = NULL;
    size_t count = 0;
    struct segment_info info = {.first_step = 1, .last_step = 1, .run = "doctor"};
    RL_TRY(make_group(&group));
    const struct trajectory_group *groups[] = {group};
    rl_status status = segment_file_write(path, &info, groups, 1);
    if (status == RL_OK) {
        status = segment_file_read(path, &read, &count, NULL);
    }
    if (status == RL_OK && (count != 1 || !same_tokens(&group->samples[0], &read[0]->samples[0]))) {
        status = rl_fail(RL_CORRUPT, "%s: what was read is not what was written", path);
    }
    segment_groups_free(read, count);
    trajectory_group_destroy(group);
    return status;
}

void doctor_check_storage(struct doctor_line *line)
{
    char folder[] = "/tmp/foresight_doctor_XXXXXX";
    char path[64];
    if (mkdtemp(folder) == NULL) {
        doctor_found(line, "%s: %s", folder, strerror(errno));
        doctor_advise(line, DOCTOR_FAIL, "no temporary folder can be made");
        return;
    }
    snprintf(path, sizeof path, "%s/seg_000001.h5", folder);
    if (round_trip(path) == RL_OK) {
        doctor_found(line, "built with HDF5 %s and zstd %s; a segment came back whole",
                     FORESIGHT_HDF5_VERSION, FORESIGHT_ZSTD_VERSION);
    } else {
        doctor_found(line, "%s", rl_log_last_error());
        doctor_advise(line, DOCTOR_FAIL, "rollout segments and checkpoints cannot be written");
    }
    unlink(path);
    rmdir(folder);
}
