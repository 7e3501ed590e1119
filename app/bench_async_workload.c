/* What all rows of `foresight bench async` share: the model, its weights, the learner's options. */
#include "app/bench_async.h"

#include "kernels/device.h"

#include <string.h>

enum { BENCH_WEIGHT_SEED = 1 };

static struct model_architecture bench_architecture(void)
{
    return (struct model_architecture){.name = "Qwen3ForCausalLM",
                                       .layers = 6,
                                       .width = 512,
                                       .heads = 8,
                                       .kv_heads = 4,
                                       .head_dim = 64,
                                       .ffn = 1408,
                                       .vocab = 512,
                                       .max_position = 4096,
                                       .tied = true,
                                       .qk_norm = true,
                                       .norm_epsilon = 1e-6F,
                                       .initializer_range = 0.02,
                                       .rope_theta = 10000.0,
                                       .rope_factor = 1.0,
                                       .rope_attention_factor = 1.0,
                                       .rope_original_max_position = 4096,
                                       .bos_id = -1,
                                       .pad_id = -1};
}

rl_status bench_workload_init(struct bench_workload *workload)
{
    static const char *const learner[] = {"loss.loss_type=grpo", "optimizer.learning_rate=1e-6",
                                          "optimizer.max_tokens_per_microbatch=2048",
                                          "kernels.weights=bf16"};
    struct model_architecture arch = bench_architecture();
    void *memory = NULL;
    memset(workload, 0, sizeof *workload);
    simulate_options_init(&workload->shape);
    RL_TRY(rl_config_init(&workload->config));
    for (size_t i = 0; i < sizeof learner / sizeof learner[0]; i++) {
        RL_TRY(rl_config_override(&workload->config, learner[i]));
    }
    RL_TRY(kernel_table_get(kernel_isa_best(), &workload->kernels));
    RL_TRY(model_layout_create(&arch, KERNEL_BF16, arch.max_position, &workload->layout));
    size_t bytes = (size_t)workload->layout->master_count * sizeof(float);
    RL_TRY(device_alloc(bytes, "weights", &memory));
    workload->master = memory;
    model_params_init(workload->layout, BENCH_WEIGHT_SEED, workload->master, NULL);
    return RL_OK;
}

void bench_workload_fini(struct bench_workload *workload)
{
    device_free(workload->master);
    model_layout_destroy(workload->layout);
    rl_config_fini(&workload->config);
}
