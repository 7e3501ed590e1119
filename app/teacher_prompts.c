/* See teacher_prompts.h. A text is put together in order of the template; the first placeholder
 * that the sample has nothing for ends it: that sample has no teacher. */
#include "app/teacher_prompts.h"

#include "core/log.h"
#include "core/text.h"
#include "kernels/device.h"
#include "rollout/prompt_encoder.h"

#include <stdlib.h>
#include <string.h>

enum { TEACHER_TEXT_MAX = 64 << 20 };

struct teacher_prompts {
    const struct session *session;
    const struct prompts *prompts;
    struct prompt_encoder *encoder;
    struct rl_text text;
    void *image;
    struct learner_teacher teacher;
};

/* One sample on its way to a prompt. */
struct teacher_case {
    struct teacher_prompts *of;
    const struct prompt *prompt;
    const struct trajectory_group *group;
    uint32_t sample;
};

/* --- what the placeholders stand for
 * ------------------------------------------------------------------------ */

/* Each appends to the text; *told is false if there is nothing to append. */
typedef rl_status (*teacher_tell_fn)(const struct teacher_case *c, bool *told);

static rl_status tell_prompt(const struct teacher_case *c, bool *told)
{
    *told = true;
    return rl_text_append_str(&c->of->text, c->prompt->text);
}

static rl_status tell_reference(const struct teacher_case *c, bool *told)
{
    *told = c->prompt->ground_truth[0] != '\0';
    return rl_text_append_str(&c->of->text, c->prompt->ground_truth);
}

/* "accepted, reward 1" or "not accepted, reward 0.2". */
static rl_status tell_feedback(const struct teacher_case *c, bool *told)
{
    const struct trajectory *sample = &c->group->samples[c->sample];
    *told = sample->reward_valid;
    return *told ? rl_text_printf(&c->of->text, "%s, reward %g",
                                  sample->accuracy >= 1 ? "accepted" : "not accepted",
                                  (double)sample->reward)
                 : RL_OK;
}

static bool is_right(const struct trajectory *sample)
{
    return sample->reward_valid && sample->accuracy >= 1 && sample->completion_count > 0 &&
           sample->finish == RL_FINISH_STOP;
}

/* The next right sample of the group after this one, beginning again at the first. */
static rl_status tell_sibling(const struct teacher_case *c, bool *told)
{
    uint32_t count = c->group->sample_count;
    *told = false;
    for (uint32_t k = 1; k < count && !*told; k++) {
        const struct trajectory *sibling = &c->group->samples[(c->sample + k) % count];
        char *text = NULL;
        size_t bytes = 0;
        if (!is_right(sibling)) {
            continue;
        }
        RL_TRY(tokenizer_decode(c->of->session->tokenizer, sibling->tokens + sibling->prompt_count,
                                sibling->completion_count, true, &text, &bytes));
        rl_status status = rl_text_append(&c->of->text, text, bytes);
        free(text);
        RL_TRY(status);
        *told = true;
    }
    return RL_OK;
}

static const struct {
    const char *name;
    teacher_tell_fn tell;
} placeholders[] = {{"{prompt}", tell_prompt},
                    {"{reference}", tell_reference},
                    {"{feedback}", tell_feedback},
                    {"{sibling}", tell_sibling}};
enum { PLACEHOLDERS = sizeof(placeholders) / sizeof(placeholders[0]) };

/* Append what begins at `at`: a placeholder's text, or one byte. *used: bytes of the template. */
static rl_status tell_next(const struct teacher_case *c, const char *at, size_t *used, bool *told)
{
    for (int i = 0; i < PLACEHOLDERS; i++) {
        size_t bytes = strlen(placeholders[i].name);
        if (strncmp(at, placeholders[i].name, bytes) == 0) {
            *used = bytes;
            return placeholders[i].tell(c, told);
        }
    }
    *used = 1;
    *told = true;
    return rl_text_append_byte(&c->of->text, *at);
}

static rl_status tell_all(const struct teacher_case *c, bool *told)
{
    const char *at = c->of->session->config->teacher.template;
    size_t used = 0;
    rl_text_clear(&c->of->text);
    *told = true;
    for (; *at != '\0' && *told; at += used) {
        RL_TRY(tell_next(c, at, &used, told));
    }
    return RL_OK;
}

/* --- from text to ids
 * ---------------------------------------------------------------------------------------- */

/* The row with the text in place of its prompt, or of its last user message. */
static rl_status encode(const struct teacher_case *c, struct token_buffer *ids)
{
    struct prompt_row row = {0};
    char problem[PROMPT_PROBLEM_BYTES];
    const char *text = rl_text_str(&c->of->text);
    if (prompt_row_parse(c->prompt->row_json, strlen(c->prompt->row_json), &row, problem) !=
        RL_OK) {
        return rl_fail(RL_INVALID, "teacher: line %lld: %s", (long long)c->prompt->line, problem);
    }
    for (size_t i = row.message_count; i-- > 0;) {
        if (strcmp(row.messages[i].role, "user") == 0) {
            row.messages[i].content = text;
            break;
        }
    }
    row.text = text;
    rl_status status = prompt_encoder_run(c->of->encoder, &row, ids);
    prompt_row_fini(&row);
    return status;
}

static rl_status make_prompt(void *arg, const struct trajectory_group *group, uint32_t sample,
                             struct token_buffer *ids, bool *told)
{
    struct teacher_prompts *of = arg;
    int64_t limit = of->session->config->teacher.prompt_limit;
    struct teacher_case c = {of, prompts_at(of->prompts, group->prompt_id), group, sample};
    bool all = false;
    RL_TRY(tell_all(&c, &all));
    if (all) {
        RL_TRY(encode(&c, ids));
    }
    *told = all && (int64_t)ids->count <= limit;
    return RL_OK;
}

/* --- life cycle
 * ---------------------------------------------------------------------------------------------- */

static rl_status open_weights(struct teacher_prompts *teacher)
{
    const struct rl_config *config = teacher->session->config;
    if (config->teacher.policy != CONFIG_TEACHER_INITIAL) {
        return RL_OK;
    }
    return session_load_image(teacher->session, config->model.path, &teacher->image);
}

rl_status teacher_prompts_create(const struct session *session, const struct prompts *prompts,
                                 struct teacher_prompts **out)
{
    *out = NULL;
    if (session->config->teacher.loss == CONFIG_TEACHER_NONE) {
        return RL_OK;
    }
    struct teacher_prompts *teacher = calloc(1, sizeof(*teacher));
    if (teacher == NULL) {
        return rl_fail(RL_NO_MEMORY, "teacher: out of memory");
    }
    teacher->session = session;
    teacher->prompts = prompts;
    rl_text_init(&teacher->text, TEACHER_TEXT_MAX);
    rl_status status = prompt_encoder_create(session->config, session->tokenizer, session->chat,
                                             &teacher->encoder);
    if (status == RL_OK) {
        status = open_weights(teacher);
    }
    if (status != RL_OK) {
        teacher_prompts_destroy(teacher);
        return status;
    }
    teacher->teacher =
        (struct learner_teacher){.prompt = make_prompt, .arg = teacher, .image = teacher->image};
    *out = teacher;
    return RL_OK;
}

void teacher_prompts_destroy(struct teacher_prompts *teacher)
{
    if (teacher == NULL) {
        return;
    }
    device_free(teacher->image);
    rl_text_fini(&teacher->text);
    prompt_encoder_destroy(teacher->encoder);
    free(teacher);
}

const struct learner_teacher *teacher_prompts_get(const struct teacher_prompts *teacher)
{
    return teacher != NULL ? &teacher->teacher : NULL;
}
