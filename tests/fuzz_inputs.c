/* Endless fuzzing of every reader of foreign bytes; see scripts/fuzz.
 *
 *   fuzz_inputs [SECONDS [SEED [TARGET]]]   each target for so long
 *   fuzz_inputs replay TARGET FILE          one input again, from the file that a crash left
 *
 * With clang, -DFUZZ_LIBFUZZER -fsanitize=fuzzer makes it a libFuzzer program; the environment
 * variable FUZZ_TARGET names the target. */
#include "core/log.h"
#include "tests/fuzz_driver.h"

static const struct fuzz_target *find_target(const char *name)
{
    for (int i = 0; i < FUZZ_TARGETS; i++) {
        if (name != NULL && strcmp(fuzz_targets[i].name, name) == 0) {
            return &fuzz_targets[i];
        }
    }
    fprintf(stderr, "fuzz_inputs: no target %s; there are", name != NULL ? name : "(null)");
    for (int i = 0; i < FUZZ_TARGETS; i++) {
        fprintf(stderr, " %s", fuzz_targets[i].name);
    }
    fprintf(stderr, "\n");
    return NULL;
}

#ifdef FUZZ_LIBFUZZER

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static const struct fuzz_target *target;
    if (target == NULL) {
        rl_log_set_level((enum rl_log_level) - 1);
        target = find_target(getenv("FUZZ_TARGET"));
        fuzz_must(target != NULL, "FUZZ_TARGET names a target");
    }
    target->run(data, bytes);
    return 0;
}

#else

static int replay(const struct fuzz_target *target, const char *path)
{
    static struct fuzz_input input;
    FILE *file = fopen(path, "rb");
    if (file == NULL || fread(&input, 1, sizeof(input), file) < sizeof(input.bytes) ||
        input.bytes > sizeof(input.data)) {
        fprintf(stderr, "fuzz_inputs: %s is not a file that a crash left\n", path);
        return 2;
    }
    fclose(file);
    fwrite(input.data, 1, input.bytes, stdout);
    printf("\n%s\n", target->run(input.data, input.bytes) ? "accepted" : "refused");
    fuzz_clean();
    return 0;
}

static void fuzz_target_for(const struct fuzz_target *target, uint64_t seed, double seconds)
{
    char path[64];
    snprintf(path, sizeof(path), "fuzz_%s.input", target->name);
    printf("%-13s", target->name);
    fflush(stdout);
    struct fuzz_result result = fuzz_run(target, seed, seconds, path);
    printf("%9llu inputs, %5.1f%% accepted, slowest %.1f ms\n", (unsigned long long)result.runs,
           100.0 * (double)result.accepted / (double)result.runs, 1e3 * result.slowest_s);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    if (argc == 4 && strcmp(argv[1], "replay") == 0) {
        const struct fuzz_target *target = find_target(argv[2]);
        return target != NULL ? replay(target, argv[3]) : 2;
    }
    double seconds = argc > 1 ? strtod(argv[1], NULL) : 10.0;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    if (seconds <= 0 || (argc > 3 && find_target(argv[3]) == NULL)) {
        fprintf(stderr, "usage: fuzz_inputs [SECONDS [SEED [TARGET]]]\n");
        return 2;
    }
    rl_log_set_level((enum rl_log_level) - 1);
    for (int i = 0; i < FUZZ_TARGETS; i++) {
        if (argc <= 3 || strcmp(argv[3], fuzz_targets[i].name) == 0) {
            fuzz_target_for(&fuzz_targets[i], seed, seconds);
        }
    }
    return 0;
}

#endif
