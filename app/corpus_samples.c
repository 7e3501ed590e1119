/* See corpus_samples.h. Parts are claimed one after the other, a little ahead of what the engine
 * runs, so that it stays full across prompts and parts and other ranks find work too; rewards are
 * scored and parts are written by other threads meanwhile. */
#include "app/corpus_samples.h"

#include "app/corpus_writer.h"
#include "app/signals.h"
#include "core/clock.h"
#include "core/log.h"
#include "core/rng.h"
#include "core/text.h"
#include "trainer/progress.h"
#include "transport/file_hash.h"
#include "transport/segment_file.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CORPUS_NAME_BYTES = 4096, CORPUS_SUBSAMPLE_TAG = 0x73 };
static const double corpus_poll_s = 0.01;

/* A part under our lock that is not complete. */
struct claimed_part {
    struct corpus_part data;
    uint64_t first; /* prompt */
    uint64_t submitted, filled;
};

struct fill {
    const struct corpus_request *request;
    struct corpus *corpus;
    struct sampler *sampler;
    struct corpus_writer *writer;
    struct claimed_part *claimed; /* [claimed_count], in order of claiming */
    size_t claimed_count, claimed_capacity;
    bool *ours_or_there; /* [parts] */
    uint64_t parts;
    uint64_t there_count; /* not written by us */
    uint64_t written;     /* by us */
    uint32_t samples;
    struct corpus_work *work;
};

/* --- identity
 * ------------------------------------------------------------------------------------------- */

uint64_t corpus_model_hash(const struct model_layout *layout, const float *master)
{
    const struct model_architecture *a = &layout->arch;
    char text[256];
    snprintf(text, sizeof(text), "%s %d %d %d %.9g %.9g %.9g %d", a->name, a->layers, a->heads,
             a->vocab, (double)a->norm_epsilon, a->rope_theta, a->rope_factor, a->window);
    return rl_hash_seeded(master, (size_t)layout->master_count * sizeof(float),
                          rl_hash(text, strlen(text)));
}

static uint64_t mix_text(uint64_t hash, const char *text)
{
    return rl_hash_seeded(text, strlen(text) + 1, hash);
}

static uint64_t hash_prompts(const struct prompts *prompts)
{
    uint64_t hash = prompts_hash(prompts);
    for (uint64_t i = 0; i < prompts_count(prompts); i++) {
        const struct prompt *prompt = prompts_at(prompts, i);
        hash = mix_text(hash, prompt->ground_truth);
        hash = mix_text(hash, prompt->data_source);
        hash = mix_text(hash, prompt->row_json); /* rewards may look at it */
    }
    return hash;
}

static rl_status hash_tokenizer(const struct rl_config *config, uint64_t *hash)
{
    static const char *const names[] = {"tokenizer.json", "tokenizer_config.json"};
    const char *folder =
        config->model.tokenizer[0] != '\0' ? config->model.tokenizer : config->model.path;
    *hash = 0;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        char path[CORPUS_NAME_BYTES];
        uint64_t bytes = 0;
        uint64_t found = 0;
        snprintf(path, sizeof(path), "%s/%s", folder, names[i]);
        if (access(path, F_OK) == 0) {
            RL_TRY(file_hash(path, &bytes, &found));
        }
        *hash = rl_hash_seeded(&found, sizeof(found), *hash);
    }
    return RL_OK;
}

rl_status corpus_folder(const struct rl_config *config, char **out)
{
    const char *given = config->distill.corpora;
    if (given[0] != '\0') {
        return rl_text_copy(given, out);
    }
    struct rl_text path;
    rl_text_init(&path, CORPUS_NAME_BYTES);
    rl_status status = rl_text_printf(&path, "%s/corpora", config->run.dir);
    size_t bytes = 0;
    if (status == RL_OK) {
        status = rl_text_take(&path, out, &bytes);
    }
    rl_text_fini(&path);
    return status;
}

static uint32_t samples_in_corpus(const struct rl_config *config)
{
    int64_t samples = config->distill.corpus_samples;
    return (uint32_t)(samples > 0 ? samples : config->distill.samples);
}

/* How the sampler stores what its samples' bits depend on. */
static const char *storage_name(const struct rl_config *config)
{
    static const char *const names[2][2][2] = {
        {{"fp32", "fp32, keys and values bf16"}, {"bf16", "bf16, keys and values bf16"}},
        {{"int8 of fp32", "int8 of fp32, keys and values bf16"},
         {"int8 of bf16", "int8 of bf16, keys and values bf16"}}};
    return names[config->rollout.quantize == CONFIG_QUANTIZE_INT8]
                [config->kernels.weights == CONFIG_WEIGHTS_BF16]
                [config->model.kv_dtype == CONFIG_KV_BF16];
}

rl_status corpus_of_request(const struct corpus_request *request, struct corpus **out)
{
    const struct rl_config *config = request->session->config;
    char rewards[CORPUS_NAME_BYTES];
    char *folder = NULL;
    snprintf(rewards, sizeof(rewards), "%s overlong %lld %.9g pattern %s",
             config->rewards.functions, (long long)config->rewards.overlong_buffer,
             config->rewards.overlong_factor, config->rewards.format_pattern);
    struct corpus_identity identity = {.model = request->model,
                                       .weights = storage_name(config),
                                       .prompts = hash_prompts(request->prompts),
                                       .prompt_count = prompts_count(request->prompts),
                                       .temperature = config->rollout.temperature,
                                       .top_p = config->rollout.top_p,
                                       .min_p = config->rollout.min_p,
                                       .top_k = config->rollout.top_k,
                                       .max_completion = config->rollout.max_completion_length,
                                       .stop = config->rollout.stop,
                                       .stop_token_ids = config->rollout.stop_token_ids,
                                       .samples = samples_in_corpus(config),
                                       .seed = (uint64_t)config->distill.corpus_seed,
                                       .rewards = rewards};
    RL_TRY(hash_tokenizer(config, &identity.tokenizer));
    RL_TRY(corpus_folder(config, &folder));
    rl_status status = corpus_open(folder, &identity, out);
    free(folder);
    return status;
}

/* --- generation
 * ----------------------------------------------------------------------------------------- */

static void note_there(struct fill *f, uint64_t part)
{
    f->there_count += !f->ours_or_there[part];
    f->ours_or_there[part] = true;
}

static bool is_complete(const struct fill *f)
{
    return f->there_count + f->written == f->parts;
}

static rl_status hold_part(struct fill *f, uint64_t part)
{
    if (f->claimed_count == f->claimed_capacity) {
        size_t capacity = f->claimed_capacity == 0 ? 8 : 2 * f->claimed_capacity;
        struct claimed_part *grown = realloc(f->claimed, capacity * sizeof(*grown));
        if (grown == NULL) {
            corpus_unlock(f->corpus, part);
            return rl_fail(RL_NO_MEMORY, "corpus: out of memory");
        }
        f->claimed = grown;
        f->claimed_capacity = capacity;
    }
    struct claimed_part *claimed = &f->claimed[f->claimed_count++];
    *claimed = (struct claimed_part){.data = {.part = part}};
    f->ours_or_there[part] = true;
    corpus_part_range(f->corpus, part, &claimed->first, &claimed->data.count);
    return RL_OK;
}

/* Lock one more part; RL_AGAIN if there is none to be had now. Ranks begin at different places. */
static rl_status claim(struct fill *f)
{
    uint64_t start = f->parts * (uint64_t)f->request->rank / (uint64_t)f->request->ranks;
    for (uint64_t i = 0; i < f->parts; i++) {
        uint64_t part = (start + i) % f->parts;
        if (f->ours_or_there[part]) {
            continue;
        }
        rl_status status = corpus_lock(f->corpus, part);
        if (status == RL_OK) {
            return hold_part(f, part);
        }
        if (status != RL_AGAIN) {
            return status;
        }
        if (corpus_has(f->corpus, part)) {
            note_there(f, part);
        }
    }
    return RL_AGAIN;
}

/* Prompts of claimed parts, as many as the engine takes. */
static rl_status submit_claimed(struct fill *f)
{
    for (size_t i = 0; i < f->claimed_count; i++) {
        struct claimed_part *c = &f->claimed[i];
        while (c->submitted < c->data.count) {
            uint64_t prompt = c->first + c->submitted;
            RL_TRY(sampler_submit(f->sampler, prompt, prompt, f->request->epoch, f->samples));
            c->submitted++;
        }
    }
    return RL_OK;
}

/* Keep the engine full, with a little in stock. RL_AGAIN: nothing more to be had. */
static rl_status feed(struct fill *f)
{
    int64_t running = f->request->session->config->rollout.max_running;
    for (;;) {
        rl_status status = submit_claimed(f);
        if (status != RL_OK) {
            return status == RL_AGAIN ? RL_OK : status;
        }
        if (sampler_unfinished(f->sampler) > (uint64_t)(running + running / 4)) {
            return RL_OK;
        }
        RL_TRY(claim(f));
    }
}

/* A complete part goes to the writer. */
static rl_status hand_over(struct fill *f, size_t index)
{
    struct claimed_part *c = &f->claimed[index];
    rl_status status = corpus_writer_put(f->writer, &c->data);
    memmove(c, c + 1, (f->claimed_count - index - 1) * sizeof(*c));
    f->claimed_count--;
    return status;
}

/* File a scored group. Nothing that depends on time or place may stay in it. */
static rl_status file_group(struct fill *f, struct trajectory_group *group)
{
    group->worker = 0;
    group->started_s = 0;
    group->finished_s = 0;
    f->work->samples += group->sample_count;
    for (size_t i = 0; i < f->claimed_count; i++) {
        struct claimed_part *c = &f->claimed[i];
        if (group->prompt_id >= c->first && group->prompt_id < c->first + c->data.count) {
            c->data.groups[group->prompt_id - c->first] = group;
            return ++c->filled == c->data.count ? hand_over(f, i) : RL_OK;
        }
    }
    trajectory_group_destroy(group);
    return rl_fail(RL_INTERNAL, "corpus: a group that nobody asked for");
}

static rl_status take_groups(struct fill *f)
{
    struct trajectory_group *group = NULL;
    while (sampler_take(f->sampler, &group) == RL_OK) {
        RL_TRY(file_group(f, group));
    }
    return RL_OK;
}

/* Nothing to do but for others' parts: theirs come, or their locks fall to us. */
static void wait_for_others(struct fill *f)
{
    struct rl_wait wait = rl_wait_begin(f->request->waits, "distill waits for others' parts");
    rl_clock_sleep_s(NULL, corpus_poll_s);
    f->work->wall_s -= rl_wait_end(&wait);
}

/* One pass, or what else there is to do. */
static rl_status advance(struct fill *f)
{
    rl_status status = feed(f);
    if (status != RL_OK && status != RL_AGAIN) {
        return status;
    }
    bool sampling = sampler_pending(f->sampler) > 0;
    if (sampling) {
        RL_TRY(sampler_step(f->sampler));
        RL_TRY(take_groups(f));
    }
    RL_TRY(corpus_writer_written(f->writer, !sampling, &f->written));
    if (!sampling && !is_complete(f)) {
        wait_for_others(f);
    }
    return RL_OK;
}

static rl_status generate(struct fill *f)
{
    struct progress_bar bar = {0};
    if (f->request->label != NULL) {
        bar = progress_bar_start(stderr, f->request->label, "parts", (double)f->parts);
    }
    while (!is_complete(f)) {
        if (signals_stop_requested() != 0) {
            return RL_INTERRUPTED;
        }
        RL_TRY(advance(f));
        if (f->request->label != NULL) {
            progress_bar_update(&bar, (double)(f->there_count + f->written), NULL);
        }
    }
    if (f->request->label != NULL) {
        progress_bar_finish(&bar);
    }
    return RL_OK;
}

static rl_status open_sampler(struct fill *f)
{
    const struct corpus_request *r = f->request;
    const struct rl_config *config = r->session->config;
    const void *image = NULL;
    struct sampler_args args = {
        .session = r->session, .config = config, .prompts = r->prompts, .rewards = r->rewards};
    session_sampling_options(config, f->samples, &args.options);
    args.options.seed = (uint64_t)config->distill.corpus_seed;
    RL_TRY(r->image(r->image_arg, &image));
    RL_TRY(corpus_writer_create(f->corpus, r->run, r->waits, &f->writer));
    RL_TRY(sampler_create(&args, &f->sampler));
    return sampler_load_weights(f->sampler, (struct device_source){.data = image}, 0);
}

static rl_status fill_missing(struct fill *f)
{
    for (uint64_t i = 0; i < f->parts; i++) {
        if (corpus_has(f->corpus, i)) {
            note_there(f, i);
        }
    }
    if (is_complete(f)) {
        return RL_OK;
    }
    RL_TRY(open_sampler(f));
    double start = rl_clock_now_s(NULL);
    double cpu = rl_clock_process_cpu_s();
    rl_status status = generate(f);
    f->work->cpu_s += rl_clock_process_cpu_s() - cpu;
    f->work->wall_s += rl_clock_now_s(NULL) - start;
    f->work->busy_s += sampler_busy_s(f->sampler);
    f->work->tokens += sampler_counters(f->sampler)->sampled_tokens;
    f->work->passes += sampler_counters(f->sampler)->passes;
    return status;
}

static rl_status fill_corpus(const struct corpus_request *request, struct corpus *corpus,
                             struct corpus_work *work)
{
    struct fill f = {.request = request,
                     .corpus = corpus,
                     .parts = corpus_part_count(corpus),
                     .samples = samples_in_corpus(request->session->config),
                     .work = work};
    f.ours_or_there = calloc(f.parts + 1, sizeof(*f.ours_or_there));
    rl_status status =
        f.ours_or_there != NULL ? fill_missing(&f) : rl_fail(RL_NO_MEMORY, "corpus: out of memory");
    for (size_t i = 0; i < f.claimed_count; i++) {
        for (uint64_t j = 0; j < f.claimed[i].data.count; j++) {
            trajectory_group_destroy(f.claimed[i].data.groups[j]);
        }
    }
    sampler_destroy(f.sampler);
    corpus_writer_destroy(f.writer);
    free(f.claimed);
    free(f.ours_or_there);
    return status;
}

/* --- reading
 * -------------------------------------------------------------------------------------------- */

static int by_number(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a;
    uint64_t y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* Which `wanted` of `have` samples of a prompt are used: order [have]'s first ones, rising. */
static void choose(uint64_t seed, uint64_t prompt, uint32_t have, uint32_t wanted, uint64_t *order)
{
    struct rl_rng_key key = rl_rng_key_make(seed, prompt, (uint64_t)CORPUS_SUBSAMPLE_TAG << 56);
    rl_rng_permutation(key, have, order);
    qsort(order, wanted, sizeof(*order), by_number);
}

/* Keep the chosen samples of a group, numbered anew. */
static void keep_chosen(struct trajectory_group *group, const uint64_t *order, uint32_t wanted)
{
    for (uint32_t i = 0, next = 0; i < group->sample_count; i++) {
        if (next == wanted || order[next] != i) {
            free(group->samples[i].tokens);
            continue;
        }
        group->samples[next] = group->samples[i];
        group->samples[next].sample_index = next;
        next++;
    }
    group->sample_count = wanted;
}

static rl_status subsample(const struct rl_config *config, struct corpus_samples *samples)
{
    uint32_t have = samples_in_corpus(config);
    uint32_t wanted = (uint32_t)config->distill.samples;
    if (have == wanted) {
        return RL_OK;
    }
    uint64_t *order = calloc(have, sizeof(*order));
    if (order == NULL) {
        return rl_fail(RL_NO_MEMORY, "corpus: out of memory");
    }
    for (uint64_t i = 0; i < samples->count; i++) {
        choose((uint64_t)config->run.seed, i, have, wanted, order);
        keep_chosen(samples->groups[i], order, wanted);
    }
    free(order);
    return RL_OK;
}

static rl_status read_all(const struct corpus *corpus, struct corpus_samples *samples)
{
    for (uint64_t part = 0; part < corpus_part_count(corpus); part++) {
        struct trajectory_group **groups = NULL;
        size_t count = 0;
        RL_TRY(corpus_read(corpus, part, &groups, &count));
        memcpy(samples->groups + samples->count, groups, count * sizeof(*groups));
        samples->count += count;
        free(groups);
    }
    return RL_OK;
}

rl_status corpus_samples_get(const struct corpus_request *request, struct corpus_samples *out,
                             struct corpus_work *work)
{
    struct corpus_samples samples = {0};
    struct corpus *corpus = NULL;
    rl_status status = corpus_of_request(request, &corpus);
    if (status == RL_OK) {
        status = fill_corpus(request, corpus, work);
    }
    if (status == RL_OK) {
        memcpy(samples.key, corpus_key(corpus), sizeof(samples.key));
        samples.groups = calloc(prompts_count(request->prompts) + 1, sizeof(*samples.groups));
        status = samples.groups != NULL ? read_all(corpus, &samples)
                                        : rl_fail(RL_NO_MEMORY, "corpus: out of memory");
    }
    if (status == RL_OK) {
        status = subsample(request->session->config, &samples);
    }
    corpus_close(corpus);
    if (status != RL_OK) {
        corpus_samples_fini(&samples);
        return status;
    }
    *out = samples;
    return RL_OK;
}

void corpus_samples_fini(struct corpus_samples *samples)
{
    segment_groups_free(samples->groups, samples->count);
    *samples = (struct corpus_samples){0};
}
