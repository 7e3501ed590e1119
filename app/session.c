/* See session.h. */
#include "app/session.h"

#include "app/session_numerics.h"
#include "core/log.h"
#include "kernels/device.h"
#include "model/slab.h"

#include <stdlib.h>
#include <string.h>

/* Times that its samples' mean length goes into the longest one's, about, over groups of one
 * prompt. */
enum { SESSION_GROUP_LIVES = 4 };

int64_t session_max_length(const struct rl_config *config)
{
    int64_t both = config->data.max_prompt_length + config->rollout.max_completion_length;
    return config->model.max_length > 0 ? config->model.max_length : both;
}

int64_t session_learner_length(const struct rl_config *config)
{
    int64_t own = session_max_length(config);
    int64_t taught = config->teacher.prompt_limit + config->rollout.max_completion_length;
    return config->teacher.loss != CONFIG_TEACHER_NONE && taught > own ? taught : own;
}

rl_status session_agreement(const struct session *session, const struct prompts *prompts,
                            uint64_t *out)
{
    uint64_t numerics = 0;
    RL_TRY(session_numerics(session, &numerics));
    *out = prompts_hash(prompts) ^ numerics ^ (session->device != NULL ? UINT64_MAX : 0);
    return RL_OK;
}

/* The GPU that kernels.device asks for, in turn among those of this machine; NULL: the CPU. */
static rl_status choose_device(const struct rl_config *config, int local_rank,
                               struct session *session)
{
    struct device_survey survey;
    if (config->kernels.device == CONFIG_DEVICE_CPU) {
        return RL_OK;
    }
    device_gpu_survey(&survey);
    if (survey.count > 0) {
        session->gpus = survey.count;
        return device_gpu_open(local_rank % survey.count, &session->device);
    }
    if (config->kernels.device == CONFIG_DEVICE_CUDA) {
        return rl_fail(RL_UNSUPPORTED, "kernels.device is cuda, but there is no GPU: %s",
                       survey.problem);
    }
    return RL_OK;
}

static rl_status choose_kernels(const struct rl_config *config, const struct device *device,
                                const struct kernel_table **out)
{
    if (device != NULL) {
        return kernel_table_get(KERNEL_ISA_CUDA, out);
    }
    switch (config->kernels.isa) {
    case CONFIG_ISA_REF:
        return kernel_table_get(KERNEL_ISA_REF, out);
    case CONFIG_ISA_AVX2:
        return kernel_table_get(KERNEL_ISA_AVX2, out);
    case CONFIG_ISA_AVX512:
        return kernel_table_get(KERNEL_ISA_AVX512, out);
    default:
        return kernel_table_get(kernel_isa_best(), out);
    }
}

static rl_status open_model(const struct rl_config *config, int64_t max_length,
                            struct session *session)
{
    struct model_architecture arch;
    enum kernel_dtype dtype =
        config->kernels.weights == CONFIG_WEIGHTS_BF16 ? KERNEL_BF16 : KERNEL_FP32;
    RL_TRY(model_architecture_load(config->model.path, &arch));
    if (max_length > arch.max_position) {
        rl_log(RL_LOG_WARN, "sequences of %lld tokens, but %s/config.json says %d positions",
               (long long)max_length, config->model.path, arch.max_position);
    }
    if (tokenizer_vocab_count(session->tokenizer) > arch.vocab) {
        return rl_fail(RL_INVALID, "the tokenizer has ids up to %d, the model's vocabulary is %d",
                       tokenizer_vocab_count(session->tokenizer) - 1, arch.vocab);
    }
    RL_TRY(model_layout_create_on(session->device, session->pool, &arch, dtype, (int32_t)max_length,
                                  &session->layout));
    session->layout->kv_dtype =
        config->model.kv_dtype == CONFIG_KV_BF16 ? KERNEL_BF16 : KERNEL_FP32;
    return RL_OK;
}

/* The run's threads, on cores of their own where there are enough. */
static rl_status start_threads(const struct rl_config *config, struct session *session)
{
    int threads = (int)config->run.threads;
    int cores = threads > 1 ? rl_cores_allowed() : 1;
    if (threads > cores) {
        rl_log(RL_LOG_WARN,
               "run.threads is %d, but this process may use %d core%s: they will take turns "
               "(mpirun binds ranks to cores unless told --bind-to none)",
               threads, cores, cores == 1 ? "" : "s");
    }
    RL_TRY(rl_pool_create(threads, &session->pool));
    return config->run.pin == CONFIG_PIN_OFF ? RL_OK
                                             : rl_cores_bind(session->pool, &session->cores);
}

rl_status session_open(const struct rl_config *config, int64_t max_length, int local_rank,
                       struct session *session)
{
    *session = (struct session){.config = config};
    const char *tokenizer =
        config->model.tokenizer[0] != '\0' ? config->model.tokenizer : config->model.path;
    if (config->model.path[0] == '\0') {
        return rl_fail(RL_INVALID, "model.path is not set: the folder of the model");
    }
    if (max_length < 2 || max_length > INT32_MAX) {
        return rl_fail(RL_INVALID, "sequences of %lld tokens", (long long)max_length);
    }
    RL_TRY(choose_device(config, local_rank, session));
    RL_TRY(choose_kernels(config, session->device, &session->kernels));
    RL_TRY(tokenizer_load(tokenizer, &session->tokenizer));
    RL_TRY(chat_template_create(session->tokenizer, config->data.chat_template, &session->chat));
    RL_TRY(start_threads(config, session));
    RL_TRY(device_stream_start(session->device, session->pool));
    RL_TRY(open_model(config, max_length, session));
    session->context = (struct model_context){
        .layout = session->layout, .kernels = session->kernels, .pool = session->pool};
    return RL_OK;
}

void session_close(struct session *session)
{
    model_layout_destroy(session->layout);
    device_stream_stop(session->pool);
    rl_pool_destroy(session->pool);
    rl_cores_release(session->cores);
    device_close(session->device);
    chat_template_destroy(session->chat);
    tokenizer_destroy(session->tokenizer);
    *session = (struct session){0};
}

rl_status session_load_master(const struct session *session, const char *dir, float **master)
{
    void *memory = NULL;
    size_t bytes = (size_t)session->layout->master_count * sizeof(float);
    RL_TRY(device_alloc(bytes, "master weights", &memory));
    rl_status status = model_params_load(session->layout, dir, memory, session->pool);
    if (status != RL_OK) {
        device_free(memory);
        return status;
    }
    *master = memory;
    return RL_OK;
}

/* Make the image on the device by `make` and bring it to the host's memory. */
static rl_status image_from_device(const struct session *session, rl_status (*make)(void *, void *),
                                   void *arg, void *host)
{
    void *image = NULL;
    size_t bytes = session->layout->image_bytes;
    RL_TRY(device_buffer_alloc(session->device, bytes, "weight image", &image));
    rl_status status = make(arg, image);
    if (status == RL_OK) {
        status = model_download(session->pool, host, image, bytes);
    }
    device_buffer_free(session->device, image);
    return status;
}

/* An image in the host's memory that `make` fills in the memory of the session's device. */
static rl_status image_create(const struct session *session, rl_status (*make)(void *, void *),
                              void *arg, void **out)
{
    void *image = NULL;
    RL_TRY(device_alloc(session->layout->image_bytes, "weight image", &image));
    rl_status status =
        session->device == NULL ? make(arg, image) : image_from_device(session, make, arg, image);
    if (status != RL_OK) {
        device_free(image);
        return status;
    }
    *out = image;
    return RL_OK;
}

struct image_source {
    const struct session *session;
    const char *dir;
    const float *master;
};

static rl_status image_load(void *arg, void *image)
{
    const struct image_source *from = arg;
    const struct session *s = from->session;
    return model_image_load(s->layout, s->kernels, from->dir, image, s->pool);
}

static rl_status image_publish(void *arg, void *image)
{
    const struct image_source *from = arg;
    const struct session *s = from->session;
    void *master = NULL;
    size_t bytes = (size_t)s->layout->master_count * sizeof(float);
    if (s->device == NULL) {
        model_params_publish(s->layout, s->kernels, from->master, image, s->pool);
        return RL_OK;
    }
    RL_TRY(device_buffer_alloc(s->device, bytes, "master weights", &master));
    model_upload(s->pool, master, from->master, bytes);
    model_params_publish(s->layout, s->kernels, master, image, s->pool);
    rl_status status = device_wait(s->pool);
    device_buffer_free(s->device, master);
    return status;
}

rl_status session_load_image(const struct session *session, const char *dir, void **image)
{
    struct image_source from = {.session = session, .dir = dir};
    return image_create(session, image_load, &from, image);
}

rl_status session_make_image(const struct session *session, const float *master, void **image)
{
    struct image_source from = {.session = session, .master = master};
    return image_create(session, image_publish, &from, image);
}

static enum rollout_speculation_mode speculation_mode(const struct rl_config *config)
{
    static const enum rollout_speculation_mode modes[] = {
        [CONFIG_SPECULATION_AUTO] = ROLLOUT_SPECULATION_AUTO,
        [CONFIG_SPECULATION_OFF] = ROLLOUT_SPECULATION_OFF,
        [CONFIG_SPECULATION_ALWAYS] = ROLLOUT_SPECULATION_ALWAYS};
    return modes[config->rollout.speculation];
}

/* With room for max_groups groups. */
static void generator_options(const struct rl_config *config, int32_t max_groups,
                              struct rollout_generator_options *out)
{
    int64_t prompt = session_max_length(config) - config->rollout.max_completion_length;
    *out = (struct rollout_generator_options){
        .max_running = (int32_t)config->rollout.max_running,
        .max_groups = max_groups,
        .max_prompt = (int32_t)prompt,
        .max_completion = (int32_t)config->rollout.max_completion_length,
        .prefill_chunk = (int32_t)config->rollout.prefill_chunk,
        .recompute_on_update = config->rollout.kv_on_update == CONFIG_KV_RECOMPUTE,
        .speculation = speculation_mode(config),
        .int8_weights = config->rollout.quantize == CONFIG_QUANTIZE_INT8,
        .seed = (uint64_t)config->run.seed,
        .sampling = {.temperature = (float)config->rollout.temperature,
                     .top_p = (float)config->rollout.top_p,
                     .min_p = (float)config->rollout.min_p,
                     .top_k = (int32_t)config->rollout.top_k},
        .stop_strings = config->rollout.stop,
        .stop_token_ids = config->rollout.stop_token_ids};
}

void session_training_options(const struct rl_config *config, bool together,
                              struct rollout_generator_options *out)
{
    int64_t samples = config->rollout.samples_per_prompt;
    int64_t groups = (config->rollout.max_running + samples - 1) / samples + 2;
    /* Groups with stragglers stay inside beside new ones: room for twice as many. */
    int64_t room = together ? config->rollout.prompts_per_step + 1 : 2 * groups;
    generator_options(config, (int32_t)room, out);
}

void session_sampling_options(const struct rl_config *config, uint32_t samples,
                              struct rollout_generator_options *out)
{
    int64_t groups = config->rollout.max_running / (int64_t)samples + 2;
    generator_options(config, (int32_t)(SESSION_GROUP_LIVES * groups), out);
}

/* --- texts for scoring
 * -------------------------------------------------------------------------------- */

static rl_status acquire_text(void *arg, const struct trajectory_group *group, uint32_t index,
                              struct reward_input *input)
{
    const struct session_texts *texts = arg;
    const struct trajectory *sample = &group->samples[index];
    const struct prompt *prompt = prompts_at(texts->prompts, group->prompt_id);
    char *text = NULL;
    size_t bytes = 0;
    RL_TRY(tokenizer_decode(texts->tokenizer, sample->tokens + sample->prompt_count,
                            sample->completion_count, true, &text, &bytes));
    *input = (struct reward_input){.prompt = prompt->text,
                                   .completion = text,
                                   .ground_truth = prompt->ground_truth,
                                   .data_source = prompt->data_source,
                                   .extra_json = prompt->row_json,
                                   .truncated = sample->finish == RL_FINISH_LENGTH};
    return RL_OK;
}

static void release_text(void *arg, struct reward_input *input)
{
    (void)arg;
    free((char *)(uintptr_t)input->completion);
    input->completion = NULL;
}

struct reward_text_ops session_reward_texts(struct session_texts *texts)
{
    return (struct reward_text_ops){.acquire = acquire_text, .release = release_text, .arg = texts};
}
