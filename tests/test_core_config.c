/* Configuration files and overrides: what is accepted means what it says, what is not is refused
 * with place and name, and a dump reads back to the same bits. */
#include "core/config.h"
#include "core/log.h"
#include "core/rng.h"
#include "core/text.h"

#include <check.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct rl_config config;
static char path[64];

static void set_up(void)
{
    ck_assert_int_eq(rl_config_init(&config), RL_OK);
    snprintf(path, sizeof path, "/tmp/foresight_config_XXXXXX");
    int file = mkstemp(path);
    ck_assert_int_ge(file, 0);
    close(file);
}

static void tear_down(void)
{
    rl_config_fini(&config);
    unlink(path);
}

static rl_status load_bytes(const char *text, size_t bytes)
{
    FILE *file = fopen(path, "w");
    ck_assert_ptr_nonnull(file);
    ck_assert_uint_eq(fwrite(text, 1, bytes, file), bytes);
    fclose(file);
    return rl_config_load(&config, path);
}

static rl_status load(const char *text)
{
    return load_bytes(text, strlen(text));
}

START_TEST(defaults_are_sound)
{
    ck_assert_int_eq(rl_config_validate(&config), RL_OK);
    ck_assert_int_eq(config.run.seed, 1);
    ck_assert_str_eq(config.run.dir, "runs");
    ck_assert(config.async.enabled);
    ck_assert_double_eq(config.optimizer.learning_rate, 1e-6);
    ck_assert_int_eq(config.loss.kl_type, CONFIG_KL_K3);
    ck_assert(!rl_config_is_set(&config, "run.seed"));
    ck_assert(!rl_config_is_set(&config, "run.no_such"));
    ck_assert(!rl_config_is_set(&config, "seed"));
}
END_TEST

/* The names in config.h stand for the choices in config.def. */
START_TEST(choices_match_their_names)
{
    static const struct {
        const char *assignment;
        size_t offset;
        int value;
    } rows[] = {
        {"loss.loss_type=dr_grpo", offsetof(struct rl_config, loss.loss_type), CONFIG_LOSS_DR_GRPO},
        {"loss.loss_type=dapo", offsetof(struct rl_config, loss.loss_type), CONFIG_LOSS_DAPO},
        {"loss.aggregation=seq-mean-token-sum-norm", offsetof(struct rl_config, loss.aggregation),
         CONFIG_AGG_SEQ_MEAN_TOKEN_SUM_NORM},
        {"loss.aggregation=token-mean", offsetof(struct rl_config, loss.aggregation),
         CONFIG_AGG_TOKEN_MEAN},
        {"loss.kl_in=reward", offsetof(struct rl_config, loss.kl_in), CONFIG_KL_IN_REWARD},
        {"loss.old_logprob=recompute", offsetof(struct rl_config, loss.old_logprob),
         CONFIG_OLD_RECOMPUTE},
        {"loss.advantage=rloo", offsetof(struct rl_config, loss.advantage), CONFIG_ADV_RLOO},
        {"lr_scheduler_type=cosine", offsetof(struct rl_config, optimizer.lr_scheduler_type),
         CONFIG_LR_COSINE},
        {"resume=must", offsetof(struct rl_config, run.resume), CONFIG_RESUME_MUST},
        {"kv_on_update=recompute", offsetof(struct rl_config, rollout.kv_on_update),
         CONFIG_KV_RECOMPUTE},
        {"isa=avx512", offsetof(struct rl_config, kernels.isa), CONFIG_ISA_AVX512},
        {"weights=bf16", offsetof(struct rl_config, kernels.weights), CONFIG_WEIGHTS_BF16},
        {"special_tokens_in_text=allow", offsetof(struct rl_config, data.special_tokens_in_text),
         CONFIG_SPECIAL_ALLOW},
        {"bad_rows=skip", offsetof(struct rl_config, data.bad_rows), CONFIG_BAD_ROWS_SKIP},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        ck_assert_int_eq(rl_config_override(&config, rows[i].assignment), RL_OK);
        int value = *(const int *)((const unsigned char *)&config + rows[i].offset);
        ck_assert_msg(value == rows[i].value, "%s gave %d", rows[i].assignment, value);
    }
}
END_TEST

START_TEST(a_file_is_read)
{
    ck_assert_int_eq(load("# comment\n"
                          "run: {name: 'first run', seed: 7, steps: 1e3}\n"
                          "data:\n"
                          "  train: [a.jsonl, \"b c.jsonl\"]\n"
                          "  prompt_template: \"Q: {prompt}\\nA:\"\n"
                          "  system_prompt: null\n"
                          "rollout:\n"
                          "  stop: []\n"
                          "  stop_token_ids: [1, 2]\n"
                          "  temperature: 5\n"
                          "  save: false\n"
                          "rewards:\n"
                          "  # all commented out\n"
                          "loss:\n"
                          "  loss_type: \"grpo\"\n"
                          "  epsilon_high: .25\n"
                          "  aggregation: seq-mean-token-sum\n"),
                     RL_OK);
    ck_assert_str_eq(config.run.name, "first run");
    ck_assert_int_eq(config.run.seed, 7);
    ck_assert_int_eq(config.run.steps, 1000);
    ck_assert_str_eq(config.data.train, "a.jsonl,b c.jsonl");
    ck_assert_str_eq(config.data.prompt_template, "Q: {prompt}\nA:");
    ck_assert_str_eq(config.data.system_prompt, "");
    ck_assert_str_eq(config.rollout.stop, "");
    ck_assert_str_eq(config.rollout.stop_token_ids, "1,2");
    ck_assert_double_eq(config.rollout.temperature, 5.0);
    ck_assert(!config.rollout.save);
    ck_assert_int_eq(config.loss.loss_type, CONFIG_LOSS_GRPO);
    ck_assert_double_eq(config.loss.epsilon_high, 0.25);
    ck_assert_int_eq(config.loss.aggregation, CONFIG_AGG_SEQ_MEAN_TOKEN_SUM);
    ck_assert(rl_config_is_set(&config, "run.seed"));
    ck_assert(rl_config_is_set(&config, "rollout.stop"));
    ck_assert(!rl_config_is_set(&config, "run.threads"));
}
END_TEST

START_TEST(later_sources_win)
{
    ck_assert_int_eq(load("run: {seed: 7, name: a}\n"), RL_OK);
    ck_assert_int_eq(load("run: {seed: 8}\n"), RL_OK);
    ck_assert_str_eq(config.run.name, "a");
    ck_assert_int_eq(rl_config_override(&config, "seed=9"), RL_OK);
    ck_assert_int_eq(rl_config_override(&config, "run.name=x=y"), RL_OK);
    ck_assert_int_eq(rl_config_override(&config, "data.system_prompt="), RL_OK);
    ck_assert_int_eq(config.run.seed, 9);
    ck_assert_str_eq(config.run.name, "x=y");
    ck_assert_str_eq(config.data.system_prompt, "");
    ck_assert(rl_config_is_set(&config, "data.system_prompt"));
}
END_TEST

START_TEST(empty_files_change_nothing)
{
    static const char *const texts[] = {"",      "\n\n", "# only a comment\n",
                                        "---\n", "~\n",  "--- {}\n...\n"};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        ck_assert_msg(load(texts[i]) == RL_OK, "refused: %s", texts[i]);
    }
    ck_assert(!rl_config_is_set(&config, "run.seed"));
}
END_TEST

struct broken {
    const char *text;
    const char *expected; /* must be part of the error's text */
};

static const struct broken broken_files[] = {
    /* structure */
    {"run\n", ":1: expected `section: {name: value}`"},
    {"[run]\n", ":1: expected `section: {name: value}`"},
    {"run: 5\n", "section run: expected `name: value` lines"},
    {"run: [a]\n", "section run: expected `name: value` lines"},
    {"run: {seed: {a: 1}}\n", "run.seed: a mapping where a value"},
    {"run: {seed: [1]}\n", "run.seed: a list where one value"},
    {"data: {train: [[a]]}\n", "data.train: a list may hold single values only"},
    {"data: {train: [a, {b: c}]}\n", "data.train: a list may hold single values only"},
    {"data: {train: ['a,b']}\n", "holds a comma"},
    {"? [a]\n: b\n", "a key must be a plain name"},
    {"run:\n  ? {a: b}\n  : c\n", "a key must be a plain name"},
    {"'': {}\n", "is not a name"},
    {"run: {seed: 1}\n---\nrun: {seed: 2}\n", "a second document"},
    {"[[[[[[[[[[[[\n", ":1: expected"},
    {"data: {train: [[[[[[a]]]]]]}\n", "single values only"},
    /* names */
    {"rnu: {seed: 1}\n", ":1: unknown section \"rnu\"; did you mean run?"},
    {"seed: 1\n", "it is an option: run.seed"},
    {"zzzzzzzzz: {}\n", "unknown section \"zzzzzzzzz\"; `foresight"},
    {"run:\n  sede: 1\n", ":2: unknown option run.sede; did you mean run.seed?"},
    {"loss:\n  learning_rate: 1\n", "did you mean optimizer.learning_rate?"},
    {"run:\n  xxxxxxxxx: 1\n", "unknown option run.xxxxxxxxx"},
    {"run: {seed: 1}\nrun: {steps: 1}\n", ":2: section run is given twice"},
    {"run:\n  seed: 1\n  seed: 2\n", ":3: run.seed is given twice"},
    {"<<: {a: b}\n", "unknown section \"<<\""},
    /* what YAML can do and we do not want */
    {"run: &x {seed: 1}\n", "anchor &x"},
    {"run: {seed: &y 1}\n", "anchor &y"},
    {"run: {name: *z}\n", "alias *z"},
    {"run: {seed: !!int 1}\n", "tag tag:yaml.org,2002:int"},
    {"run: {name: !foo bar}\n", "tag !foo"},
    {"--- !bar {run: {}}\n", "tag !bar"},
    /* syntax */
    {"run: {seed: 1\n", "column"},
    {"run:\n\tseed: 1\n", ":2: column 1"},
    {"run: {name: \"abc}\n", "column"},
    {"run: {name: \"\\q\"}\n", "unknown escape"},
    {"run:\n  seed: 1\n steps: 2\n", ":3: column 2"},
    {"%YAML 9.9\n---\nrun: {}\n", "incompatible YAML document"},
    {"run: {name: \"a\xff\"}\n", "invalid leading UTF-8"},
    {"run: {name: \"a\x01\"}\n", "control characters"},
    {"run: {name: \"a\\0b\"}\n", "NUL"},
    /* types */
    {"run: {seed: 1.5}\n", "run.seed: \"1.5\" is not a whole number"},
    {"run: {seed: one}\n", "\"one\" is not a whole number"},
    {"run: {seed: '1'}\n", "is not a whole number (without quotes)"},
    {"run: {seed: 0x10}\n", "is not a whole number"},
    {"run: {seed: 1_000}\n", "is not a whole number"},
    {"run: {seed: 1e400}\n", "is not a whole number"},
    {"run: {seed: --1}\n", "is not a whole number"},
    {"run: {seed: }\n", "run.seed: no value"},
    {"run: {seed: null}\n", "run.seed: no value"},
    {"run: {seed: -1}\n", "run.seed: -1 is out of range, expected 0 .. 9007199254740991"},
    {"run: {seed: 9007199254740992}\n", "is out of range"},
    {"run: {steps: 0}\n", "run.steps: 0 is out of range, expected 1 .."},
    {"loss: {beta: nan}\n", "loss.beta: \"nan\" is not a finite number"},
    {"loss: {beta: .inf}\n", "is not a finite number"},
    {"loss: {beta: 1e999}\n", "is not a finite number"},
    {"loss: {beta: 1,5}\n", "unknown option loss.5"},
    {"loss: {beta: \"1.5\"}\n", "is not a finite number (without quotes)"},
    {"loss: {beta: -0.1}\n", "loss.beta: -0.1 is out of range"},
    {"async: {enabled: yes}\n", "async.enabled: \"yes\" is not a truth value"},
    {"async: {enabled: 1}\n", "write true or false"},
    {"async: {enabled: 'true'}\n", "write true or false"},
    {"loss: {loss_type: gropo}\n",
     "not one of fipo|grpo|dapo|dr_grpo|gspo|gspo_token|cispo|reinforce|rloo|sapo|dppo|vespo; "
     "did you mean grpo?"},
    {"loss: {loss_type: 0}\n", "not one of fipo|grpo|dapo|dr_grpo|gspo"},
};

START_TEST(broken_files_are_refused)
{
    const struct broken *row = &broken_files[_i];
    rl_status status = load(row->text);
    ck_assert_msg(status == RL_INVALID, "status %s for: %s", rl_status_name(status), row->text);
    const char *error = rl_log_last_error();
    ck_assert_msg(strstr(error, row->expected) != NULL, "expected \"%s\" in \"%s\"", row->expected,
                  error);
    ck_assert_msg(strstr(error, path) != NULL, "no file name in \"%s\"", error);
}
END_TEST

static const struct broken broken_overrides[] = {
    {"seed", "expected section.name=value"},
    {"=3", "expected section.name=value"},
    {"", "expected section.name=value"},
    {"run.seed=", "run.seed: no value"},
    {"run.seed=x", "run.seed: \"x\" is not a whole number"},
    {"run.seed= 3", "is not a whole number"},
    {"run.sead=3", "did you mean run.seed?"},
    {"rnu.seed=3", "did you mean run?"},
    {"temperature=1", "write rollout.temperature or eval.temperature"},
    {"learning_rat=1", "did you mean learning_rate?"},
    {".seed=1", "unknown section"},
    {"run.=1", "unknown option run."},
    {"run.seed.x=1", "unknown option run.seed.x"},
    {"data.train=\xc3\x28", "not UTF-8"},
    {"data.train=\xed\xa0\x80", "not UTF-8"},
    {"data.train=\xf4\x90\x80\x80", "not UTF-8"},
    {"data.train=abc\xe2\x82", "not UTF-8"},
};

START_TEST(broken_overrides_are_refused)
{
    const struct broken *row = &broken_overrides[_i];
    ck_assert_int_eq(rl_config_override(&config, row->text), RL_INVALID);
    ck_assert_msg(strstr(rl_log_last_error(), row->expected) != NULL, "expected \"%s\" in \"%s\"",
                  row->expected, rl_log_last_error());
    ck_assert_int_eq(config.run.seed, 1);
    ck_assert_str_eq(config.data.train, "");
}
END_TEST

START_TEST(sizes_are_bounded)
{
    enum { BYTES = (1 << 20) + 10 };
    char *text = malloc(BYTES);
    ck_assert_ptr_nonnull(text);
    memset(text, ' ', BYTES);
    text[0] = '#';
    ck_assert_int_eq(load_bytes(text, 1 << 20), RL_OK);
    ck_assert_int_eq(load_bytes(text, BYTES), RL_INVALID);
    memset(text, '[', 1 << 20);
    ck_assert_int_eq(load_bytes(text, 1 << 20), RL_INVALID); /* and soon */
    int head = snprintf(text, BYTES, "run: {name: \"");
    memset(text + head, 'n', 100000);
    memcpy(text + head + 100000, "\"}\n", 3);
    ck_assert_int_eq(load_bytes(text, (size_t)head + 100003), RL_INVALID);
    ck_assert_ptr_nonnull(strstr(rl_log_last_error(), "run.name: 100000 bytes"));
    memset(text, 'k', 100000);
    memcpy(text + 100000, "=1", 3);
    ck_assert_int_eq(rl_config_override(&config, text), RL_INVALID);
    free(text);
    ck_assert_int_eq(rl_config_load(&config, "/nonexistent.yaml"), RL_IO);
    ck_assert_int_eq(rl_config_load(&config, "/tmp"), RL_IO);
}
END_TEST

struct rule {
    const char *assignments[3];
    const char *expected;
};

static const struct rule rules[] = {
    {{"run.name=a/b"}, "run.name"},
    {{"run.name=.."}, "run.name"},
    {{"rollout.top_p=0"}, "rollout.top_p"},
    {{"eval.top_p=0"}, "eval.top_p"},
    {{"rewards.overlong_buffer=600"}, "rewards.overlong_buffer"},
    {{"optimizer.updates_per_step=33"}, "optimizer.updates_per_step"},
    {{"async.enabled=false", "cluster.learners=2"}, "cluster.learners"},
    {{"async.heartbeat_ms=10000"}, "async.dead_after_ms"},
    {{"async.wait_timeout_ms=7000"}, "async.wait_timeout_ms"},
    {{"loss.delta=0.5"}, "loss.delta"},
    {{"loss.fipo_safety_threshold=0.5"}, "loss.fipo_safety_threshold"},
    {{"rollout.samples_per_prompt=1"}, "rollout.samples_per_prompt"},
    {{"loss.kl_in=reward"}, "loss.kl_in"},
    {{"loss.gamma=0.9"}, "loss.gamma"},
    {{"loss.advantage=reinforce_plus_plus_baseline", "rollout.samples_per_prompt=1"},
     "rollout.samples_per_prompt"},
    {{"loss.correction=tis"}, "loss.old_logprob"},
    {{"loss.advantage=vtrace"}, "loss.old_logprob"},
    {{"loss.advantage=vtrace", "loss.old_logprob=recompute", "loss.correction=tis"},
     "loss.correction"},
    {{"loss.correction_high=2"}, "loss.correction_high"},
    {{"loss.old_logprob=recompute", "loss.correction=mis", "loss.correction_low=1.5"},
     "loss.correction_low"},
    {{"loss.old_logprob=recompute", "loss.correction_high=0.5"}, "loss.correction_high"},
    {{"loss.old_logprob=recompute", "loss.correction=k3_mis", "loss.correction_low=0.5"},
     "loss.correction_low"},
    {{"loss.correction_normalize=true"}, "loss.correction_normalize"},
    {{"loss.old_logprob=loglinear", "loss.correction_normalize=true"}, "loss.correction_normalize"},
    {{"loss.old_logprob=loglinear", "loss.m2po_threshold=0.04"}, "loss.m2po_threshold"},
    {{"loss.veto_threshold=1e-4"}, "loss.veto_threshold"},
};

START_TEST(rules_between_options)
{
    const struct rule *rule = &rules[_i];
    for (size_t i = 0; i < 3 && rule->assignments[i] != NULL; i++) {
        ck_assert_int_eq(rl_config_override(&config, rule->assignments[i]), RL_OK);
    }
    ck_assert_int_eq(rl_config_validate(&config), RL_INVALID);
    ck_assert_msg(strstr(rl_log_last_error(), rule->expected) != NULL, "%s", rl_log_last_error());
}
END_TEST

START_TEST(values_set_by_hand_are_validated)
{
    config.run.steps = 0;
    ck_assert_int_eq(rl_config_validate(&config), RL_INVALID);
    config.run.steps = 1;
    config.loss.beta = (double)__builtin_nan("");
    ck_assert_int_eq(rl_config_validate(&config), RL_INVALID);
    config.loss.beta = 0.0;
    config.loss.loss_type = 99;
    ck_assert_int_eq(rl_config_validate(&config), RL_INVALID);
    config.loss.loss_type = -1;
    ck_assert_int_eq(rl_config_validate(&config), RL_INVALID);
    config.loss.loss_type = CONFIG_LOSS_GRPO;
    ck_assert_int_eq(rl_config_validate(&config), RL_OK);
}
END_TEST

static void dump_to(const char *to, const struct rl_config *from)
{
    FILE *file = fopen(to, "w");
    ck_assert_ptr_nonnull(file);
    ck_assert_int_eq(rl_config_dump(from, file), RL_OK);
    fclose(file);
}

/* Every option, compared bit by bit. */
static void assert_same(const struct rl_config *a, const struct rl_config *b)
{
#define SAME_BOOL(m) ck_assert_msg(a->m == b->m, #m)
#define SAME_INT(m) ck_assert_msg(a->m == b->m, #m)
#define SAME_AUTO_INT(m) SAME_INT(m)
#define SAME_REAL(m) ck_assert_msg(memcmp(&a->m, &b->m, sizeof a->m) == 0, #m " %a %a", a->m, b->m)
#define SAME_STR(m) ck_assert_msg(strcmp(a->m, b->m) == 0, #m " \"%s\" \"%s\"", a->m, b->m)
#define SAME_ENUM(choices) SAME_INT
#define SECTION_BEGIN(section, help)
#define SECTION_END(section)
#define OPTION(section, name, type, def, min, max, unit, help) SAME_##type(section.name);
#include "core/config.def"
}

static void assert_round_trip(void)
{
    struct rl_config again;
    dump_to(path, &config);
    ck_assert_int_eq(rl_config_init(&again), RL_OK);
    ck_assert_int_eq(rl_config_load(&again, path), RL_OK);
    assert_same(&config, &again);
    ck_assert(rl_config_is_set(&again, "run.seed"));
    rl_config_fini(&again);
}

static void set_string(char **member, const char *value)
{
    char *copy = NULL;
    ck_assert_int_eq(rl_text_copy(value, &copy), RL_OK);
    free(*member);
    *member = copy;
}

START_TEST(dump_reads_back)
{
    static const char *const strings[] = {
        "plain",
        " spaces at both ends ",
        "true",
        "null",
        "12",
        "a: b # c",
        "- [x, {y}]",
        "quote \" back \\ slash",
        "tab\tnewline\nreturn\r bell\a escape\x1b delete\x7f",
        "\xc3\xa9 \xe2\x82\xac \xf0\x9f\x8c\xb1",
        "nel\xc2\x85 ls\xe2\x80\xa8 ps\xe2\x80\xa9 bom\xef\xbb\xbf fffe\xef\xbf\xbe",
        "\xef\xbb\xbf",
        "%percent %s",
        "\xf4\x8f\xbf\xbf",
    };
    assert_round_trip();
    for (size_t i = 0; i < sizeof strings / sizeof strings[0]; i++) {
        set_string(&config.data.prompt_template, strings[i]);
        assert_round_trip();
    }
    struct rl_rng rng = rl_rng_make(3, 0);
    for (int i = 0; i < 200; i++) {
        config.optimizer.learning_rate = rl_rng_next_uniform(&rng) * 1e-5;
        config.loss.beta = rl_rng_next_uniform(&rng) * 1000.0;
        config.loss.entropy_coef = rl_rng_next_uniform(&rng) * 20.0 - 10.0;
        config.run.seed = (int64_t)rl_rng_next_below(&rng, UINT64_C(9007199254740992));
        config.async.enabled = rl_rng_next_below(&rng, 2) != 0;
        config.loss.loss_type = (int)rl_rng_next_below(&rng, CONFIG_LOSS_COUNT);
        assert_round_trip();
    }
    config.loss.beta = 5e-324;
    config.loss.entropy_coef = -0.0;
    assert_round_trip();
}
END_TEST

/* What an objective and old_logprob stand for, unless it was given. */
START_TEST(loss_settings_come_from_the_tables)
{
    struct rl_loss_settings loss;
    rl_config_loss_settings(&config, &loss);
    ck_assert_int_eq(loss.correction, CONFIG_CORRECTION_NONE);
    ck_assert_double_eq(loss.epsilon_high, 0.28);
    ck_assert_int_eq(rl_config_override(&config, "loss_type=gspo"), RL_OK);
    ck_assert_int_eq(rl_config_override(&config, "old_logprob=recompute"), RL_OK);
    rl_config_loss_settings(&config, &loss);
    ck_assert_double_eq(loss.epsilon_low, 3e-4);
    ck_assert_double_eq(loss.epsilon_high, 4e-4);
    ck_assert_double_eq(loss.delta, 0);
    ck_assert_int_eq(loss.correction, CONFIG_CORRECTION_TIS);
    ck_assert_double_eq(loss.correction_high, 2);
    ck_assert_int_eq(rl_config_override(&config, "old_logprob=loglinear"), RL_OK);
    ck_assert_int_eq(rl_config_override(&config, "correction_high=7"), RL_OK);
    ck_assert_int_eq(rl_config_override(&config, "loss_type=rloo"), RL_OK);
    rl_config_resolve(&config);
    ck_assert_int_eq(config.loss.correction, CONFIG_CORRECTION_DECOUPLED);
    ck_assert_double_eq(config.loss.correction_low, 0);
    ck_assert_double_eq(config.loss.correction_high, 7);
    ck_assert_int_eq(config.loss.advantage, CONFIG_ADV_RLOO);
    ck_assert_double_eq(config.loss.epsilon_high, 0.2);
    ck_assert_int_eq(rl_config_validate(&config), RL_OK);
}
END_TEST

/* A resolved dump means the same run, though every option now counts as given. */
START_TEST(resolve_fixes_what_loss_type_implies)
{
    ck_assert_int_eq(rl_config_override(&config, "loss_type=dr_grpo"), RL_OK);
    ck_assert_int_eq(rl_config_override(&config, "epsilon_low=0.3"), RL_OK);
    rl_config_resolve(&config);
    ck_assert_double_eq(config.loss.epsilon_high, 0.3);
    ck_assert_double_eq(config.loss.delta, 0.0);
    ck_assert_int_eq(config.loss.advantage, CONFIG_ADV_GROUP_NO_STD);
    ck_assert(rl_config_is_set(&config, "loss.delta"));
    dump_to(path, &config);
    struct rl_config again;
    ck_assert_int_eq(rl_config_init(&again), RL_OK);
    ck_assert_int_eq(rl_config_load(&again, path), RL_OK);
    rl_config_resolve(&again);
    assert_same(&config, &again);
    rl_config_fini(&again);
    ck_assert_int_eq(rl_config_override(&config, "loss_type=grpo"), RL_OK);
    ck_assert_int_eq(rl_config_override(&config, "epsilon_high=0.5"), RL_OK);
    ck_assert_int_eq(rl_config_override(&config, "delta=4"), RL_OK);
    rl_config_resolve(&config);
    ck_assert_double_eq(config.loss.epsilon_high, 0.5);
    ck_assert_double_eq(config.loss.delta, 4.0);
}
END_TEST

/* Damage to a sound file is refused or accepted, never a crash; run under sanitizers in CI. */
START_TEST(damaged_files_never_crash)
{
    char *text = NULL;
    size_t bytes = 0;
    rl_log_set_level((enum rl_log_level) - 1);
    dump_to(path, &config);
    ck_assert_int_eq(rl_file_read(path, 1 << 20, &text, &bytes), RL_OK);
    char *damaged = malloc(bytes);
    ck_assert_ptr_nonnull(damaged);
    struct rl_rng rng = rl_rng_make(17, 0);
    static const char alphabet[] = "{}[]:,-?!&*#|>%@'\"\\\n\t 01e.~<\xff\xc3";
    int refused = 0;
    for (int round = 0; round < 1500; round++) {
        memcpy(damaged, text, bytes);
        for (uint64_t i = rl_rng_next_below(&rng, 4) + 1; i > 0; i--) {
            damaged[rl_rng_next_below(&rng, bytes)] =
                alphabet[rl_rng_next_below(&rng, sizeof alphabet)];
        }
        size_t length = round % 3 == 0 ? rl_rng_next_below(&rng, bytes) : bytes;
        rl_status status = load_bytes(damaged, length);
        ck_assert(status == RL_OK || status == RL_INVALID);
        refused += status == RL_INVALID;
    }
    ck_assert_int_gt(refused, 300);
    free(damaged);
    free(text);
}
END_TEST

static char *print_with(void (*print)(FILE *))
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    ck_assert_ptr_nonnull(out);
    print(out);
    fclose(out);
    return text;
}

static void print_help(FILE *out)
{
    rl_config_help(out, NULL);
}

START_TEST(help_names_every_option)
{
    char *help = print_with(print_help);
    char *markdown = print_with(rl_config_markdown);
    char *again = print_with(rl_config_markdown);
#define SECTION_BEGIN(section, text)                                                               \
    ck_assert_ptr_nonnull(strstr(help, #section ": " text));                                       \
    ck_assert_ptr_nonnull(strstr(markdown, "## " #section "\n\n" text));
#define SECTION_END(section)
#define OPTION(section, name, type, def, min, max, unit, text)                                     \
    ck_assert_ptr_nonnull(strstr(help, "  " #section "." #name " = "));                            \
    ck_assert_ptr_nonnull(strstr(markdown, "| `" #name "` |"));
#include "core/config.def"
    ck_assert_str_eq(markdown, again);
    ck_assert_ptr_nonnull(strstr(markdown, "| k1\\|k2\\|k3\\|k3+\\|k3_unbiased | `k3` |"));
    free(help);
    free(markdown);
    free(again);
}
END_TEST

static int count_of_rules(void)
{
    return sizeof rules / sizeof rules[0];
}

int main(void)
{
    TCase *tcase = tcase_create("config");
    tcase_add_checked_fixture(tcase, set_up, tear_down);
    tcase_add_test(tcase, defaults_are_sound);
    tcase_add_test(tcase, choices_match_their_names);
    tcase_add_test(tcase, a_file_is_read);
    tcase_add_test(tcase, later_sources_win);
    tcase_add_test(tcase, empty_files_change_nothing);
    tcase_add_loop_test(tcase, broken_files_are_refused, 0,
                        sizeof broken_files / sizeof broken_files[0]);
    tcase_add_loop_test(tcase, broken_overrides_are_refused, 0,
                        sizeof broken_overrides / sizeof broken_overrides[0]);
    tcase_add_test(tcase, sizes_are_bounded);
    tcase_add_loop_test(tcase, rules_between_options, 0, count_of_rules());
    tcase_add_test(tcase, values_set_by_hand_are_validated);
    tcase_add_test(tcase, dump_reads_back);
    tcase_add_test(tcase, resolve_fixes_what_loss_type_implies);
    tcase_add_test(tcase, loss_settings_come_from_the_tables);
    tcase_add_test(tcase, damaged_files_never_crash);
    tcase_add_test(tcase, help_names_every_option);
    Suite *suite = suite_create("core config");
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
