/* Checkpoints: what is loaded is what was saved, bit for bit; what was damaged, cut off or never
 * finished is refused with the reason and an older one taken; a full disk and a kill at any moment
 * leave the earlier ones as they were. */
#include "trainer/checkpoint.h"
#include "trainer/checkpoint_writer.h"

#include "core/clock.h"
#include "core/log.h"
#include "core/rng.h"
#include "transport/segment_file.h"

#include <check.h>
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char run_dir[64];
static struct model_layout *layout;
static float *slabs_memory; /* [3 * master_count] */

static void run_make(void)
{
    struct model_architecture arch = {.name = "Qwen3ForCausalLM",
                                      .layers = 2,
                                      .width = 32,
                                      .heads = 4,
                                      .kv_heads = 2,
                                      .head_dim = 8,
                                      .ffn = 48,
                                      .vocab = 101,
                                      .max_position = 64,
                                      .tied = true,
                                      .qk_norm = true,
                                      .norm_epsilon = 1e-6f,
                                      .activation = KERNEL_SILU,
                                      .rope_type = MODEL_ROPE_DEFAULT,
                                      .rope_theta = 10000.0,
                                      .bos_id = -1,
                                      .pad_id = -1,
                                      .eos_ids = {1},
                                      .eos_count = 1};
    snprintf(run_dir, sizeof run_dir, "/tmp/fs-test-ckpt-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(run_dir));
    ck_assert_int_eq(model_layout_create(&arch, KERNEL_FP32, 64, &layout), RL_OK);
    slabs_memory = calloc(3 * (size_t)layout->master_count, sizeof *slabs_memory);
    ck_assert_ptr_nonnull(slabs_memory);
}

static void run_remove(void)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", run_dir);
    ck_assert_int_eq(system(command), 0);
    model_layout_destroy(layout);
    free(slabs_memory);
}

/* Slabs that depend on the step; padding stays zero, as the layout promises. */
static struct checkpoint_slabs slabs_make(uint64_t step)
{
    int64_t count = layout->master_count;
    for (int32_t i = 0; i < layout->tensor_count; i++) {
        const struct model_tensor *tensor = &layout->tensors[i];
        for (int64_t k = tensor->offset; k < tensor->offset + tensor->rows * tensor->cols; k++) {
            struct rl_rng_key key = rl_rng_key_make(step, (uint64_t)k, 0);
            slabs_memory[k] = (float)rl_rng_normal(key, 0);
            slabs_memory[count + k] = (float)rl_rng_normal(key, 1) * 1e-3f;
            slabs_memory[2 * count + k] = (float)rl_rng_uniform(key, 2) * 1e-6f;
        }
    }
    return (struct checkpoint_slabs){
        .master = slabs_memory, .adam_m = slabs_memory + count, .adam_v = slabs_memory + 2 * count};
}

/* For what runs under a file limit or in a process that will be killed: every ck_assert writes to
 * the file by which the tests report, which neither may cut short. */
static void must(bool holds)
{
    if (!holds) {
        abort();
    }
}

static struct trajectory_group *pending_make(uint64_t ticket)
{
    struct trajectory_group *group = NULL;
    int32_t tokens[5] = {1, 2, 3, 4, (int32_t)ticket};
    float logprob[3] = {-0.1f, -0.2f, -0.3f};
    uint32_t version[3] = {7, 7, 8};
    must(trajectory_group_create(2, &group) == RL_OK);
    group->ticket = ticket;
    for (int i = 0; i < 2; i++) {
        must(trajectory_set_tokens(&group->samples[i], tokens, logprob, version, 2, 3) == RL_OK);
        group->samples[i].reward_valid = true;
        group->samples[i].reward = (float)i;
    }
    return group;
}

/* A group of which only the second sample is finished. */
static struct trajectory_group *partial_make(uint64_t ticket)
{
    struct trajectory_group *group = pending_make(ticket);
    struct trajectory_group *partial = NULL;
    must(trajectory_group_create(2, &partial) == RL_OK);
    must(trajectory_set_tokens(&partial->samples[1], group->samples[1].tokens,
                               group->samples[1].logprob, group->samples[1].version, 2,
                               3) == RL_OK);
    partial->ticket = ticket;
    partial->samples[1].sample_index = 1;
    trajectory_group_destroy(group);
    return partial;
}

/* A state with something in every part. Release with state_free. */
static struct checkpoint_state state_make(uint64_t step)
{
    struct checkpoint_state state = {.step = step,
                                     .version = step + 1,
                                     .updates = 4 * step,
                                     .seed = UINT64_MAX - 5,
                                     .segment = 3,
                                     .tokens_trained = 1000 * step,
                                     .tokens_generated = 2000 * step,
                                     .samples_trained = 8 * step,
                                     .elapsed_s = 0.1 * (double)step,
                                     .cpu_s = 1.5,
                                     .dispatcher_bytes = 10,
                                     .pending_count = 2,
                                     .partial_count = 1,
                                     .image_count = 2};
    state.dispatcher = malloc(10);
    state.pending = calloc(2, sizeof *state.pending);
    state.partial = calloc(1, sizeof *state.partial);
    state.images = calloc(2, sizeof *state.images);
    state.config_text = malloc(64);
    must(state.dispatcher != NULL && state.pending != NULL && state.config_text != NULL);
    must(state.partial != NULL && state.images != NULL);
    state.partial[0] = partial_make(step + 99);
    for (size_t i = 0; i < 2; i++) {
        state.images[i] = (struct checkpoint_blob){malloc(100 + i), 100 + i};
        must(state.images[i].data != NULL);
        memset(state.images[i].data, (int)(step + i) & 0xff, 100 + i);
    }
    memcpy(state.dispatcher, "dispatcher", 10);
    snprintf(state.config_text, 64, "loss:\n  beta: %d\n", (int)step);
    state.pending[0] = pending_make(step);
    state.pending[1] = pending_make(step + 50);
    return state;
}

static struct checkpoint_target target_make(int64_t keep_last, int64_t keep_every)
{
    return (struct checkpoint_target){
        .run_dir = run_dir, .layout = layout, .keep_last = keep_last, .keep_every = keep_every};
}

static rl_status save_step(uint64_t step, int64_t keep_last, int64_t keep_every, char *path)
{
    struct checkpoint_target target = target_make(keep_last, keep_every);
    struct checkpoint_state state = state_make(step);
    struct checkpoint_slabs slabs = slabs_make(step);
    rl_status status = checkpoint_save(&target, &state, &slabs, path);
    checkpoint_state_fini(&state);
    return status;
}

/* Load `path` and compare everything with what save_step(step) saved. */
static void load_compare(const char *path, uint64_t step)
{
    size_t count = (size_t)layout->master_count;
    float *back = calloc(3 * count, sizeof *back);
    struct checkpoint_state state;
    struct checkpoint_moments moments = {
        .m = back + count, .v = back + 2 * count, .count = layout->master_count};
    ck_assert_int_eq(checkpoint_load(path, layout, back, &moments, &state), RL_OK);
    slabs_make(step);
    ck_assert_int_eq(memcmp(back, slabs_memory, 3 * count * sizeof *back), 0);
    free(back);
    struct checkpoint_state wanted = state_make(step);
    ck_assert_uint_eq(state.step, step);
    ck_assert_uint_eq(state.version, wanted.version);
    ck_assert_uint_eq(state.updates, wanted.updates);
    ck_assert_uint_eq(state.seed, wanted.seed);
    ck_assert_uint_eq(state.segment, wanted.segment);
    ck_assert_uint_eq(state.tokens_trained, wanted.tokens_trained);
    ck_assert_uint_eq(state.tokens_generated, wanted.tokens_generated);
    ck_assert_uint_eq(state.samples_trained, wanted.samples_trained);
    ck_assert(state.elapsed_s == wanted.elapsed_s && state.cpu_s == wanted.cpu_s);
    ck_assert_uint_eq(state.dispatcher_bytes, 10);
    ck_assert_int_eq(memcmp(state.dispatcher, "dispatcher", 10), 0);
    ck_assert_uint_eq(state.learner_bytes, 0);
    ck_assert_str_eq(state.config_text, wanted.config_text);
    ck_assert_uint_eq(state.pending_count, 2);
    for (size_t i = 0; i < 2; i++) {
        ck_assert_uint_eq(state.pending[i]->ticket, wanted.pending[i]->ticket);
        ck_assert_int_eq(memcmp(state.pending[i]->samples[1].tokens,
                                wanted.pending[i]->samples[1].tokens, 5 * sizeof(int32_t)),
                         0);
    }
    ck_assert_uint_eq(state.partial_count, 1);
    ck_assert_uint_eq(state.partial[0]->ticket, step + 99);
    ck_assert_uint_eq(state.partial[0]->samples[0].completion_count, 0);
    ck_assert_uint_eq(state.partial[0]->samples[1].completion_count, 3);
    ck_assert_uint_eq(state.partial[0]->samples[1].version[2], 8);
    ck_assert_uint_eq(state.image_count, 2);
    for (size_t i = 0; i < 2; i++) {
        ck_assert_uint_eq(state.images[i].bytes, 100 + i);
        ck_assert_int_eq(memcmp(state.images[i].data, wanted.images[i].data, 100 + i), 0);
    }
    checkpoint_state_fini(&wanted);
    checkpoint_state_fini(&state);
}

/* Names in RUN/checkpoints, everything but . and .. */
static int checkpoints_count(void)
{
    char path[128];
    int count = 0;
    snprintf(path, sizeof path, "%s/checkpoints", run_dir);
    DIR *list = opendir(path);
    ck_assert_ptr_nonnull(list);
    for (struct dirent *entry = readdir(list); entry != NULL; entry = readdir(list)) {
        count += strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
    }
    closedir(list);
    return count;
}

START_TEST(round_trip)
{
    char path[CHECKPOINT_PATH_MAX];
    char newest[CHECKPOINT_PATH_MAX];
    ck_assert_int_eq(checkpoint_find_newest(run_dir, newest), RL_NOT_FOUND);
    ck_assert_int_eq(save_step(100, 3, 0, path), RL_OK);
    ck_assert_ptr_nonnull(strstr(path, "/checkpoints/step_000100"));
    ck_assert_int_eq(checkpoint_find_newest(run_dir, newest), RL_OK);
    ck_assert_str_eq(path, newest);
    load_compare(path, 100);
    uint64_t step = 0;
    ck_assert_int_eq(checkpoint_verify(path, &step), RL_OK);
    ck_assert_uint_eq(step, 100);
    ck_assert_int_eq(save_step(100, 3, 0, path), RL_OK); /* again: it stays as it is */
    ck_assert_int_eq(checkpoints_count(), 1);
    struct checkpoint_state state;
    struct model_layout other = *layout;
    other.master_count += 16;
    ck_assert_int_eq(checkpoint_load(path, &other, NULL, NULL, &state), RL_INVALID);
}
END_TEST

START_TEST(pruning)
{
    char path[CHECKPOINT_PATH_MAX];
    for (uint64_t step = 1; step <= 12; step++) {
        ck_assert_int_eq(save_step(step, 2, 5, path), RL_OK);
    }
    ck_assert_int_eq(checkpoints_count(), 4); /* 12, 11 and for ever 10, 5 */
    for (uint64_t step = 5; step <= 10; step += 5) {
        snprintf(path, sizeof path, "%s/checkpoints/step_%06d", run_dir, (int)step);
        ck_assert_int_eq(checkpoint_verify(path, NULL), RL_OK);
    }
    ck_assert_int_eq(checkpoint_find_newest(run_dir, path), RL_OK);
    load_compare(path, 12);
}
END_TEST

static void byte_flip(const char *path, long at)
{
    FILE *file = fopen(path, "r+b");
    ck_assert_ptr_nonnull(file);
    ck_assert_int_eq(fseek(file, at, SEEK_SET), 0);
    int byte = fgetc(file);
    ck_assert_int_ne(byte, EOF);
    ck_assert_int_eq(fseek(file, at, SEEK_SET), 0);
    ck_assert_int_eq(fputc(byte ^ 0x20, file), byte ^ 0x20);
    ck_assert_int_eq(fclose(file), 0);
}

/* One flipped bit anywhere in any file, the manifest too: skipped, and the older one is taken.
 * Small files byte by byte. */
START_TEST(a_flipped_byte_is_noticed)
{
    char older[CHECKPOINT_PATH_MAX];
    char newer[CHECKPOINT_PATH_MAX];
    char found[CHECKPOINT_PATH_MAX];
    ck_assert_int_eq(save_step(1, 3, 0, older), RL_OK);
    ck_assert_int_eq(save_step(2, 3, 0, newer), RL_OK);
    DIR *list = opendir(newer);
    int files = 0;
    for (struct dirent *entry = readdir(list); entry != NULL; entry = readdir(list)) {
        if (entry->d_name[0] == '.') {
            continue;
        }
        char path[2 * CHECKPOINT_PATH_MAX];
        struct stat info;
        snprintf(path, sizeof path, "%s/%s", newer, entry->d_name);
        ck_assert_int_eq(stat(path, &info), 0);
        long step = info.st_size < 2048 ? 1 : 1 + (long)info.st_size / 23;
        for (long at = 0; at < (long)info.st_size; at += step) {
            byte_flip(path, at);
            ck_assert_int_eq(checkpoint_find_newest(run_dir, found), RL_OK);
            ck_assert_msg(strcmp(found, older) == 0, "%s, byte %ld: not noticed", path, at);
            byte_flip(path, at);
        }
        files++;
    }
    closedir(list);
    ck_assert_int_ge(files, 4);
    ck_assert_int_eq(checkpoint_find_newest(run_dir, found), RL_OK);
    ck_assert_str_eq(found, newer);
}
END_TEST

START_TEST(missing_parts)
{
    static const char *const names[] = {"MANIFEST.json", "state.h5", "model.safetensors",
                                        "config.json"};
    char older[CHECKPOINT_PATH_MAX];
    char newer[CHECKPOINT_PATH_MAX];
    char found[CHECKPOINT_PATH_MAX];
    char path[2 * CHECKPOINT_PATH_MAX];
    ck_assert_int_eq(save_step(1, 3, 0, older), RL_OK);
    ck_assert_int_eq(save_step(2, 3, 0, newer), RL_OK);
    snprintf(path, sizeof path, "%s/%s", newer, names[_i]);
    ck_assert_int_eq(unlink(path), 0);
    ck_assert_int_eq(checkpoint_verify(newer, NULL), RL_CORRUPT);
    ck_assert_ptr_nonnull(strstr(rl_log_last_error(), _i == 0 ? "manifest" : names[_i]));
    ck_assert_int_eq(checkpoint_find_newest(run_dir, found), RL_OK);
    ck_assert_str_eq(found, older);
    /* The same step again takes the damaged one's place. */
    ck_assert_int_eq(save_step(2, 3, 0, newer), RL_OK);
    ck_assert_int_eq(checkpoint_find_newest(run_dir, found), RL_OK);
    load_compare(found, 2);
    /* A checkpoint under another step's name is not that step's. */
    snprintf(path, sizeof path, "%s/checkpoints/step_000009", run_dir);
    ck_assert_int_eq(rename(newer, path), 0);
    ck_assert_int_eq(checkpoint_verify(path, NULL), RL_CORRUPT);
}
END_TEST

/* No room at any point of a save: a clear error, the earlier checkpoint whole, nothing left. */
START_TEST(disk_full)
{
    signal(SIGXFSZ, SIG_IGN);
    char path[CHECKPOINT_PATH_MAX];
    char found[CHECKPOINT_PATH_MAX];
    ck_assert_int_eq(save_step(1, 3, 0, path), RL_OK);
    int failures = 0;
    bool clean = true;
    bool codes = true;
    for (rlim_t most = 0; most < 200000; most = most * 3 / 2 + 100) {
        struct rlimit limit = {most, RLIM_INFINITY};
        int limited = setrlimit(RLIMIT_FSIZE, &limit); /* no ck_assert until lifted */
        rl_status status = save_step(2, 3, 0, path);
        limit.rlim_cur = RLIM_INFINITY;
        int lifted = setrlimit(RLIMIT_FSIZE, &limit);
        ck_assert(limited == 0 && lifted == 0);
        if (status == RL_OK) {
            break;
        }
        failures++;
        codes = codes && status == RL_IO;
        clean = clean && checkpoints_count() == 1;
    }
    ck_assert_int_gt(failures, 5);
    ck_assert(codes && clean);
    ck_assert_int_eq(checkpoint_find_newest(run_dir, found), RL_OK);
    load_compare(found, 2); /* the last try had room */
}
END_TEST

/* Killed at random moments of saving: the newest is always whole, and the next save cleans up. */
START_TEST(killed_while_saving)
{
    char found[CHECKPOINT_PATH_MAX];
    ck_assert_int_eq(save_step(1, 3, 0, found), RL_OK);
    struct rl_rng rng = rl_rng_make(77, 0);
    for (int round = 0; round < 25; round++) {
        pid_t pid = fork();
        ck_assert_int_ge(pid, 0);
        if (pid == 0) {
            for (uint64_t step = 2;; step++) {
                if (save_step(step, 2, 0, NULL) != RL_OK) {
                    _exit(1);
                }
            }
        }
        rl_clock_sleep_s(NULL, 0.1 * rl_rng_next_uniform(&rng));
        kill(pid, SIGKILL);
        int status = 0;
        ck_assert_int_eq(waitpid(pid, &status, 0), pid);
        ck_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        uint64_t step = 0;
        ck_assert_int_eq(checkpoint_find_newest(run_dir, found), RL_OK);
        ck_assert_int_eq(checkpoint_verify(found, &step), RL_OK);
        load_compare(found, step);
    }
    ck_assert_int_eq(save_step(100000, 1, 0, NULL), RL_OK);
    ck_assert_int_eq(checkpoints_count(), 1);
}
END_TEST

/* The writer saves what was there at submit, whatever the learner does to it meanwhile. */
START_TEST(writer_snapshots)
{
    size_t reserve = _i == 0 ? 0 : SIZE_MAX / 2; /* the second time there is no memory for a copy */
    struct checkpoint_target target = target_make(3, 0);
    struct checkpoint_writer *writer = NULL;
    ck_assert_int_eq(checkpoint_writer_start(&target, reserve, &writer), RL_OK);
    for (uint64_t step = 10; step <= 13; step++) {
        struct checkpoint_state state = state_make(step);
        struct checkpoint_slabs slabs = slabs_make(step);
        ck_assert_int_eq(checkpoint_writer_submit(writer, &state, &slabs), RL_OK);
        checkpoint_state_fini(&state);
        memset(slabs_memory, 0x55, 3 * (size_t)layout->master_count * sizeof *slabs_memory);
        memset(slabs_memory, 0, 3 * (size_t)layout->master_count * sizeof *slabs_memory);
    }
    ck_assert_int_eq(checkpoint_writer_wait(writer, 100.0), RL_OK);
    double stall_s = -1;
    double save_s = -1;
    checkpoint_writer_times(writer, &stall_s, &save_s);
    ck_assert(stall_s >= 0 && save_s > 0);
    checkpoint_writer_stop(writer);
    char path[CHECKPOINT_PATH_MAX];
    ck_assert_int_eq(checkpoint_find_newest(run_dir, path), RL_OK);
    load_compare(path, 13);
    snprintf(path, sizeof path, "%s/checkpoints/step_000012", run_dir);
    load_compare(path, 12);
}
END_TEST

START_TEST(writer_reports)
{
    struct checkpoint_target target = target_make(3, 0);
    target.run_dir = "/nonexistent/run";
    struct checkpoint_writer *writer = NULL;
    ck_assert_int_eq(checkpoint_writer_start(&target, 0, &writer), RL_OK);
    struct checkpoint_state state = state_make(1);
    struct checkpoint_slabs slabs = slabs_make(1);
    ck_assert_int_eq(checkpoint_writer_submit(writer, &state, &slabs), RL_OK);
    ck_assert_int_eq(checkpoint_writer_wait(writer, 100.0), RL_IO);
    ck_assert_int_eq(checkpoint_writer_wait(writer, 100.0), RL_OK); /* said once */
    ck_assert_int_eq(checkpoint_writer_submit(writer, &state, &slabs), RL_OK);
    ck_assert_int_eq(checkpoint_writer_submit(writer, &state, &slabs), RL_IO);
    checkpoint_state_fini(&state);
    checkpoint_writer_stop(writer);
    checkpoint_writer_stop(NULL);
}
END_TEST

int main(void)
{
    rl_log_set_level((enum rl_log_level) - 1);
    Suite *suite = suite_create("checkpoint");
    TCase *tests = tcase_create("folders");
    tcase_set_timeout(tests, 120);
    tcase_add_checked_fixture(tests, run_make, run_remove);
    tcase_add_test(tests, round_trip);
    tcase_add_test(tests, pruning);
    tcase_add_test(tests, a_flipped_byte_is_noticed);
    tcase_add_loop_test(tests, missing_parts, 0, 4);
    tcase_add_test(tests, disk_full);
    tcase_add_test(tests, killed_while_saving);
    tcase_add_loop_test(tests, writer_snapshots, 0, 2);
    tcase_add_test(tests, writer_reports);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
