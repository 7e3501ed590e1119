/* The options table for people: terminal help and docs/config.md. Output depends on the table
 * alone. */
#include "core/config_table.h"

#include <string.h>

enum { CONFIG_HELP_BYTES = 1 << 16, CONFIG_RANGE_BYTES = 64 };

static const char *config_type_name(enum config_type type)
{
    static const char *const names[] = {"true|false", "whole number", "whole number or auto",
                                        "number",     "text",         "choice"};
    return names[type];
}

/* Default as text; "?" only where memory is out, in which case the help is the least worry. */
static const char *config_default_text(const struct config_row *row, struct rl_text *buffer)
{
    rl_text_clear(buffer);
    return config_print_default(row, buffer) == RL_OK ? rl_text_str(buffer) : "?";
}

/* Words of `text` in lines of at most 92 columns, each indented by 6. */
static void config_print_wrapped(FILE *out, const char *text)
{
    int column = 0;
    while (*text != '\0') {
        int length = (int)strcspn(text, " ");
        if (column == 0 || column + 1 + length > 92) {
            fprintf(out, "%s      %.*s", column > 0 ? "\n" : "", length, text);
            column = 6 + length;
        } else {
            fprintf(out, " %.*s", length, text);
            column += 1 + length;
        }
        text += length;
        text += strspn(text, " ");
    }
    fputc('\n', out);
}

static void config_help_row(FILE *out, const struct config_row *row, struct rl_text *buffer)
{
    char range[CONFIG_RANGE_BYTES];
    fprintf(out, "  %s.%s = %s", row->section, row->name, config_default_text(row, buffer));
    if (row->type == CONFIG_ENUM) {
        fprintf(out, "  (%s)\n", row->choices);
    } else if (config_is_number(row)) {
        config_range_text(row, range, sizeof range);
        fprintf(out, "  (%s, %s%s%s)\n", config_type_name(row->type), range,
                row->unit[0] != '\0' ? " " : "", row->unit);
    } else {
        fprintf(out, "  (%s)\n", row->unit[0] != '\0' ? row->unit : config_type_name(row->type));
    }
    config_print_wrapped(out, row->help);
}

void rl_config_help(FILE *out, const char *section)
{
    if (section != NULL && !config_section_exists(section)) {
        fprintf(out, "There is no section %s.\n", section);
        return;
    }
    struct rl_text buffer;
    rl_text_init(&buffer, CONFIG_HELP_BYTES);
    for (size_t s = 0; s < config_section_count(); s++) {
        const char *name = config_section_of(s)->name;
        if (section != NULL && strcmp(section, name) != 0) {
            continue;
        }
        fprintf(out, "%s: %s\n", name, config_section_of(s)->help);
        for (size_t i = 0; i < config_row_count(); i++) {
            if (strcmp(config_row_of(i)->section, name) == 0) {
                config_help_row(out, config_row_of(i), &buffer);
            }
        }
        fputc('\n', out);
    }
    rl_text_fini(&buffer);
}

/* A bar would end the table's cell. */
static void config_markdown_text(FILE *out, const char *text)
{
    for (; *text != '\0'; text++) {
        if (*text == '|') {
            fputc('\\', out);
        }
        fputc(*text, out);
    }
}

static void config_markdown_row(FILE *out, const struct config_row *row, struct rl_text *buffer)
{
    char range[CONFIG_RANGE_BYTES];
    fprintf(out, "| `%s` | ", row->name);
    if (row->type == CONFIG_ENUM) {
        config_markdown_text(out, row->choices);
    } else if (config_is_number(row)) {
        config_range_text(row, range, sizeof range);
        fputs(range, out);
    } else {
        config_markdown_text(out, config_type_name(row->type));
    }
    fputs(" | `", out);
    config_markdown_text(out, config_default_text(row, buffer));
    fprintf(out, "` | %s | ", row->unit);
    config_markdown_text(out, row->help);
    fputs(" |\n", out);
}

void rl_config_markdown(FILE *out)
{
    struct rl_text buffer;
    rl_text_init(&buffer, CONFIG_HELP_BYTES);
    fputs(
        "# Options\n\nGenerated from `core/config.def`. In a YAML file: `section: {name: value}`; "
        "on the command line:\n`section.name=value`, or `name=value` where only one section has "
        "the name. A list is joined by commas.\n",
        out);
    for (size_t s = 0; s < config_section_count(); s++) {
        const struct config_section *section = config_section_of(s);
        fprintf(out, "\n## %s\n\n%s\n\n", section->name, section->help);
        fputs("| option | values | default | unit | meaning |\n|---|---|---|---|---|\n", out);
        for (size_t i = 0; i < config_row_count(); i++) {
            if (strcmp(config_row_of(i)->section, section->name) == 0) {
                config_markdown_row(out, config_row_of(i), &buffer);
            }
        }
    }
    rl_text_fini(&buffer);
}
