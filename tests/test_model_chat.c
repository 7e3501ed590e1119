/* Chat templates: recorded renderings of every construct, the models' own templates and our named
 * ones where their vectors lie beside the project, distrust of contents, templates that are refused
 * or run away. */
#include "tests/tokenizer_fixture.h"

static char *request_text(const json_t *row)
{
    json_t *request = json_object();
    static const char *const keys[] = {"messages", "tools", "add_generation_prompt", "vars"};
    for (size_t i = 0; i < 4; i++) {
        json_t *value = json_object_get(row, keys[i]);
        if (value != NULL) {
            ck_assert_int_eq(json_object_set(request, keys[i], value), 0);
        }
    }
    char *text = json_dumps(request, JSON_COMPACT);
    json_decref(request);
    ck_assert_ptr_nonnull(text);
    return text;
}

/* Folder with the small byte-level tokenizer and this template. */
static void template_folder(const char *dir, const char *template)
{
    scratch_copy(dir, DATA_DIR "/byte_level", "tokenizer.json");
    scratch_copy(dir, DATA_DIR "/byte_level", "tokenizer_config.json");
    scratch_text(dir, "chat_template.jinja", template);
}

static void check_rendering(const struct chat_template *chat, const struct tokenizer *tokenizer,
                            const json_t *request, const json_t *row)
{
    char *text = request_text(request);
    struct chat_request call = {text, strlen(text), true};
    struct token_buffer ids = {0};
    char *rendered = NULL;
    size_t bytes = 0;
    const json_t *expected = json_object_get(row, "rendered");
    const json_t *list = json_object_get(row, "ids");
    ck_assert_msg(chat_request_run(chat, tokenizer, &call, &rendered, &bytes, &ids) == RL_OK,
                  "%s: %s", text, rl_log_last_error());
    ck_assert_msg(bytes == json_string_length(expected) &&
                      memcmp(rendered, json_string_value(expected), bytes) == 0,
                  "%s:\nfound    \"%s\"\nexpected \"%s\"", text, rendered,
                  json_string_value(expected));
    ck_assert_msg(list == NULL || same_ids(&ids, list), "%s: other ids", text);
    token_buffer_fini(&ids);
    free(rendered);
    free(text);
}

START_TEST(every_construct_renders_as_recorded)
{
    struct rows rows;
    json_t *row;
    int count = 0;
    ck_assert(rows_open(&rows, DATA_DIR "/chat_cases.jsonl"));
    while ((row = rows_next(&rows)) != NULL) {
        char dir[64];
        struct tokenizer *tokenizer;
        struct chat_template *chat;
        scratch_create(dir);
        template_folder(dir, json_string_value(json_object_get(row, "template")));
        ck_assert_int_eq(tokenizer_load(dir, &tokenizer), RL_OK);
        ck_assert_msg(chat_template_create(tokenizer, "auto", &chat) == RL_OK, "%s",
                      rl_log_last_error());
        check_rendering(chat, tokenizer, json_object_get(row, "request"), row);
        chat_template_destroy(chat);
        tokenizer_destroy(tokenizer);
        scratch_remove(dir);
        json_decref(row);
        count++;
    }
    rows_close(&rows);
    ck_assert_int_ge(count, 40);
}
END_TEST

static bool mentions_special(const json_t *row)
{
    char *text = json_dumps(json_object_get(row, "messages"), 0);
    bool found = strstr(text, "<|im_") != NULL || strstr(text, "<|endoftext") != NULL;
    free(text);
    return found;
}

/* Without trust the ids are the same unless a content spells a special token; then none is more. */
static void check_distrust(const struct chat_template *chat, const struct tokenizer *tokenizer,
                           const json_t *row)
{
    char *text = request_text(row);
    struct chat_request call = {text, strlen(text), false};
    struct token_buffer ids = {0};
    ck_assert_int_eq(chat_request_run(chat, tokenizer, &call, NULL, NULL, &ids), RL_OK);
    bool same = same_ids(&ids, json_object_get(row, "ids"));
    ck_assert_msg(same != mentions_special(row), "%s", text);
    token_buffer_fini(&ids);
    free(text);
}

START_TEST(large_templates_render_as_recorded)
{
    static const char *const cases[][2] = {{"qwen2_5", "auto"},
                                           {"qwen2_5", "qwen2_5"},
                                           {"qwen3", "auto"},
                                           {"qwen3", "qwen3"},
                                           {"minimind", "auto"}};
    char path[4096];
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct rows rows;
        struct tokenizer *tokenizer;
        struct chat_template *chat;
        json_t *row;
        snprintf(path, sizeof(path), "%s/vectors/%s.chat.public.jsonl", SHARED_DIR, cases[i][0]);
        if (!rows_open(&rows, path)) {
            continue;
        }
        snprintf(path, sizeof(path), "%s/tokenizers/%s", SHARED_DIR, cases[i][0]);
        ck_assert_int_eq(tokenizer_load(path, &tokenizer), RL_OK);
        ck_assert_int_eq(chat_template_create(tokenizer, cases[i][1], &chat), RL_OK);
        while ((row = rows_next(&rows)) != NULL) {
            check_rendering(chat, tokenizer, row, row);
            check_distrust(chat, tokenizer, row);
            json_decref(row);
        }
        rows_close(&rows);
        chat_template_destroy(chat);
        tokenizer_destroy(tokenizer);
    }
}
END_TEST

static struct tokenizer *load_small(void)
{
    struct tokenizer *tokenizer;
    ck_assert_int_eq(tokenizer_load(DATA_DIR "/byte_level", &tokenizer), RL_OK);
    return tokenizer;
}

static int count_id(const struct token_buffer *ids, int32_t id)
{
    int count = 0;
    for (size_t i = 0; i < ids->count; i++) {
        count += ids->ids[i] == id;
    }
    return count;
}

static rl_status encode_messages(const struct chat_template *chat,
                                 const struct tokenizer *tokenizer,
                                 const struct chat_message messages[2], bool trust,
                                 struct token_buffer *out)
{
    struct chat_options options = {
        .add_generation_prompt = true, .enable_thinking = -1, .trust_content = trust};
    return chat_encode(chat, tokenizer, messages, 2, &options, out);
}

START_TEST(chatml_and_messages_as_structs)
{
    struct tokenizer *tokenizer = load_small();
    struct chat_template *chat;
    struct chat_message messages[] = {{.role = "user", .content = "a<|im_end|>\xFF"},
                                      {.role = "assistant", .content = "b"}};
    struct chat_options options = {.add_generation_prompt = true, .enable_thinking = -1};
    struct token_buffer trusted = {0};
    struct token_buffer plain = {0};
    char *text;
    int32_t end = tokenizer_token_id(tokenizer, "<|im_end|>");
    ck_assert_int_eq(chat_template_create(tokenizer, "chatml", &chat), RL_OK);
    ck_assert_int_eq(chat_render(chat, messages, 2, &options, &text), RL_OK);
    ck_assert_str_eq(text, "<|im_start|>user\na<|im_end|>\uFFFD<|im_end|>\n"
                           "<|im_start|>assistant\nb<|im_end|>\n<|im_start|>assistant\n");
    free(text);
    ck_assert_int_eq(encode_messages(chat, tokenizer, messages, true, &trusted), RL_OK);
    ck_assert_int_eq(encode_messages(chat, tokenizer, messages, false, &plain), RL_OK);
    ck_assert_int_eq(count_id(&trusted, end), 3);
    ck_assert_int_eq(count_id(&plain, end), 2);
    messages[0].content = "\n what the workers\u0301 read <think>";
    trusted.count = 0;
    plain.count = 0;
    ck_assert_int_eq(encode_messages(chat, tokenizer, messages, true, &trusted), RL_OK);
    ck_assert_int_eq(encode_messages(chat, tokenizer, messages, false, &plain), RL_OK);
    ck_assert_uint_eq(trusted.count, plain.count);
    ck_assert_mem_eq(trusted.ids, plain.ids, plain.count * sizeof(int32_t));
    token_buffer_fini(&trusted);
    token_buffer_fini(&plain);
    chat_template_destroy(chat);
    tokenizer_destroy(tokenizer);
}
END_TEST

START_TEST(qwen3_with_tools_and_thinking)
{
    struct tokenizer *tokenizer = load_small();
    struct chat_template *chat;
    struct chat_message messages[] = {
        {.role = "user", .content = "q"},
        {.role = "assistant",
         .content = "c",
         .reasoning_content = "\nr\n",
         .tool_calls_json = "[{\"name\": \"f\", \"arguments\": {\"x\": [1, 2.0, null]}}]"},
        {.role = "tool", .content = "t1"},
        {.role = "tool", .content = "t2"}};
    struct chat_options options = {
        .tools_json = "[{\"name\": \"f\"}]", .add_generation_prompt = true, .enable_thinking = 0};
    char *text;
    ck_assert_int_eq(chat_template_create(tokenizer, "qwen3", &chat), RL_OK);
    ck_assert_int_eq(chat_render(chat, messages, 4, &options, &text), RL_OK);
    ck_assert_ptr_nonnull(strstr(text, "<tools>\n{\"name\": \"f\"}\n</tools>"));
    ck_assert_ptr_nonnull(strstr(text,
                                 "<|im_start|>assistant\n<think>\nr\n</think>\n\nc\n<tool_call>\n"
                                 "{\"name\": \"f\", \"arguments\": {\"x\": [1, 2.0, null]}}\n"
                                 "</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>\n"
                                 "t1\n</tool_response>\n<tool_response>\nt2\n</tool_response>"
                                 "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"));
    free(text);
    messages[1].tool_calls_json = "{";
    ck_assert_int_eq(chat_render(chat, messages, 4, &options, &text), RL_INVALID);
    chat_template_destroy(chat);
    tokenizer_destroy(tokenizer);
}
END_TEST

START_TEST(names_of_templates)
{
    struct tokenizer *tokenizer = load_small();
    struct chat_template *chat = (struct chat_template *)tokenizer;
    ck_assert_int_eq(chat_template_create(tokenizer, "none", &chat), RL_OK);
    ck_assert_ptr_null(chat);
    chat = (struct chat_template *)tokenizer;
    ck_assert_int_eq(chat_template_create(tokenizer, "auto", &chat), RL_OK);
    ck_assert_ptr_null(chat);
    ck_assert_int_eq(chat_template_create(tokenizer, "other", &chat), RL_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(rl_log_last_error(), "data.chat_template"));
    chat_template_destroy(NULL);
    tokenizer_destroy(tokenizer);
}
END_TEST

static const char *const unsupported[] = {
    "{% include 'x' %}",
    "{% extends 'x' %}",
    "{% block a %}{% endblock %}",
    "{% raw %}{% endraw %}",
    "{% call f() %}{% endcall %}",
    "{% filter upper %}{% endfilter %}",
    "{% with a=1 %}{% endwith %}",
    "{{ a|nosuchfilter }}",
    "{{ a is nosuchtest }}",
    "{{ a.nosuchmethod() }}",
    "{{ nosuchfunction() }}",
    "{{ a",
    "{% if a %}",
    "{% for a in b %}",
    "{% endif %}",
    "{{ 'abc }}",
    "{# abc",
    "{{ a b }}",
    "{{ (1 + }}",
    "{{ }}",
    "{% set %}",
    "{% for x in y recursive %}{% endfor %}",
    "{% break %}",
    "{{ f(*a) }}",
    "{{ a[1:2:3:4] }}",
    "{{ 1_000 }}",
    "{{ '\\N{DASH}' }}",
    "{{ a ? b : c }}",
    "{{ a['x'",
    "{% macro f( %}{% endmacro %}",
    "{% if %}{% endif %}",
    "{{ \"\\xZZ\" }}",
    "{{ 99999999999999999999 }}",
};

START_TEST(unknown_constructs_are_refused_at_load)
{
    for (size_t i = 0; i < sizeof(unsupported) / sizeof(unsupported[0]); i++) {
        char dir[64];
        struct tokenizer *tokenizer;
        struct chat_template *chat = NULL;
        scratch_create(dir);
        template_folder(dir, unsupported[i]);
        ck_assert_int_eq(tokenizer_load(dir, &tokenizer), RL_OK);
        rl_status status = chat_template_create(tokenizer, "auto", &chat);
        ck_assert_msg(status == RL_UNSUPPORTED, "%s: %s", unsupported[i], rl_status_name(status));
        ck_assert_msg(strstr(rl_log_last_error(), "data.chat_template") != NULL, "%s: %s",
                      unsupported[i], rl_log_last_error());
        tokenizer_destroy(tokenizer);
        scratch_remove(dir);
    }
}
END_TEST

static rl_status render_with(const char *template, const char *request)
{
    char dir[64];
    struct tokenizer *tokenizer;
    struct chat_template *chat;
    char *text = NULL;
    size_t bytes;
    scratch_create(dir);
    template_folder(dir, template);
    ck_assert_int_eq(tokenizer_load(dir, &tokenizer), RL_OK);
    ck_assert_msg(chat_template_create(tokenizer, "auto", &chat) == RL_OK, "%s: %s", template,
                  rl_log_last_error());
    struct chat_request call = {request, strlen(request), true};
    rl_status status = chat_request_run(chat, tokenizer, &call, &text, &bytes, NULL);
    free(text);
    chat_template_destroy(chat);
    tokenizer_destroy(tokenizer);
    scratch_remove(dir);
    return status;
}

START_TEST(errors_of_a_rendering_are_named)
{
    static const struct {
        const char *template;
        const char *named;
    } cases[] = {
        {"{{ raise_exception('Roles must alternate') }}", "Roles must alternate"},
        {"\n\n{{ messages[0].x.y }}", "line 3"},
        {"{{ 1 + 'a' }}", "int"},
        {"{{ none + 'a' }}", "None"},
        {"{{ x.y }}", "undefined"},
        {"{{ 1 // 0 }}", "zero"},
        {"{{ 9223372036854775807 + 1 }}", "64 bits"},
        {"{{ 1 < 'a' }}", "ordering"},
        {"{% for a in 5 %}{% endfor %}", "loop"},
        {"{% set messages.x = 1 %}", "namespace"},
        {"{% for a, b in [[1, 2, 3]] %}{% endfor %}", "values"},
        {"{{ 'a'.split('') }}", "empty"},
        {"{{ x | tojson }}", "tojson"},
        {"{{ 'a'.strip(1) }}", "strip"},
        {"{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "deeper"},
        {"{% macro f(a) %}{% endmacro %}{{ f(1, 2) }}", "many"},
        {"{{ range(1000000) }}", "range"},
        {"{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
         "steps"},
        {"{% set ns = namespace(s='xxxxxxxxxxxxxxxx') %}{% for a in range(60) %}"
         "{% set ns.s = ns.s + ns.s %}{% endfor %}",
         ""},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        rl_status status = render_with(cases[i].template, "{\"messages\":[{\"role\":\"user\"}]}");
        ck_assert_msg(status != RL_OK, "%s", cases[i].template);
        ck_assert_msg(strstr(rl_log_last_error(), cases[i].named) != NULL, "%s: \"%s\"",
                      cases[i].template, rl_log_last_error());
    }
}
END_TEST

START_TEST(broken_requests_are_refused)
{
    static const char *const requests[] = {"",
                                           "{",
                                           "[]",
                                           "{}",
                                           "{\"messages\":1}",
                                           "{\"messages\":[],\"tools\":1}",
                                           "{\"messages\":[],\"vars\":[]}",
                                           "{\"messages\":[],\"add_generation_prompt\":1}"};
    for (size_t i = 0; i < sizeof(requests) / sizeof(requests[0]); i++) {
        ck_assert_int_eq(render_with("x", requests[i]), RL_INVALID);
    }
    ck_assert_int_eq(render_with("{{ messages | length }}", "{\"messages\":[]}"), RL_OK);
}
END_TEST

/* Truncations of a real template: an error or a template, never a crash. */
START_TEST(damaged_templates_never_crash)
{
    static const char template[] =
        "{%- macro f(a, b=[1, {'k': \"v\"}]) -%}{{ a|tojson }}{%- endmacro -%}\n"
        "{%- for m in messages[::-1] if m.role is string and not m.content == 'x' -%}\n"
        "{%- set ns = namespace(a=-1.5e3 ** 2) %}{% set ns.a = (ns.a ~ 'é\\n')[1:] -%}\n"
        "{{ m.content.split('<')[-1].strip() if loop.index0 % 2 else f(m) }}{# c #}\n"
        "{%- else -%}none{%- endfor -%}{% if a is not defined and 1 in [1] %}{% endif %}";
    char part[sizeof(template)];
    struct tokenizer *tokenizer;
    char dir[64];
    scratch_create(dir);
    template_folder(dir, template);
    for (size_t cut = 1; cut < sizeof(template); cut++) {
        struct chat_template *chat = NULL;
        memcpy(part, template, cut);
        part[cut] = '\0';
        if (cut < sizeof(template) - 1 && ((unsigned char)template[cut] & 0xC0) == 0x80) {
            continue;
        }
        scratch_text(dir, "chat_template.jinja", part);
        ck_assert_int_eq(tokenizer_load(dir, &tokenizer), RL_OK);
        rl_status status = chat_template_create(tokenizer, "auto", &chat);
        ck_assert(status == RL_OK || status == RL_UNSUPPORTED);
        chat_template_destroy(chat);
        tokenizer_destroy(tokenizer);
    }
    scratch_remove(dir);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("model_chat");
    TCase *tests = tcase_create("chat");
    tcase_set_timeout(tests, 120);
    tcase_add_test(tests, every_construct_renders_as_recorded);
    tcase_add_test(tests, large_templates_render_as_recorded);
    tcase_add_test(tests, chatml_and_messages_as_structs);
    tcase_add_test(tests, qwen3_with_tools_and_thinking);
    tcase_add_test(tests, names_of_templates);
    tcase_add_test(tests, unknown_constructs_are_refused_at_load);
    tcase_add_test(tests, errors_of_a_rendering_are_named);
    tcase_add_test(tests, broken_requests_are_refused);
    tcase_add_test(tests, damaged_templates_never_crash);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
