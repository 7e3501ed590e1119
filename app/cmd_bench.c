/* `foresight bench NAME`: finds the benchmark and hands over. */
#include "app/app.h"
#include "app/bench.h"
#include "app/commands.h"

#include "core/log.h"

#include <string.h>

int cmd_bench(int argc, char **argv)
{
    static const struct {
        const char *name;
        int (*run)(int argc, char **argv);
    } benches[] = {{"kernels", bench_kernels},     {"decode", bench_decode},
                   {"prefill", bench_prefill},     {"train", bench_train},
                   {"tokenizer", bench_tokenizer}, {"async", bench_async},
                   {"distill", bench_distill},     {"speculation", bench_speculation}};

    for (size_t i = 0; argc > 1 && i < sizeof benches / sizeof benches[0]; i++) {
        if (strcmp(argv[1], benches[i].name) == 0) {
            return benches[i].run(argc - 1, argv + 1);
        }
    }
    (void)rl_fail(RL_INVALID,
                  "usage: foresight bench "
                  "kernels|decode|prefill|speculation|train|tokenizer|async|distill [options]");
    return APP_USAGE;
}
