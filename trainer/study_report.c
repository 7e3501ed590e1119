/* Reading a sweep, writing page and tables. See study_report.h. */
#include "trainer/study_report.h"

#include "core/log.h"
#include "transport/atomic_file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { STUDY_PAGE_BYTES = 256 << 20, STUDY_PATH = 4096 };

static rl_status write_file(const struct study *study, const char *name, const char *text,
                            size_t bytes)
{
    char path[STUDY_PATH];
    if (snprintf(path, sizeof path, "%s/%s", study->dir, name) >= STUDY_PATH) {
        return rl_fail(RL_TOO_LONG, "%s/%s: the path is too long", study->dir, name);
    }
    return atomic_file_write_all(path, text, bytes);
}

static rl_status write_tables(const struct study *study, const json_t *document)
{
    struct rl_text csv;
    rl_text_init(&csv, STUDY_PAGE_BYTES);
    rl_status status = study_csv_append(&csv, json_object_get(document, "cells"));
    if (status == RL_OK) {
        status = write_file(study, "cells.csv", csv.data, csv.bytes);
    }
    rl_text_fini(&csv);
    RL_TRY(status);
    char *json = json_dumps(document, JSON_INDENT(1) | JSON_REAL_PRECISION(12));
    if (json == NULL) {
        return rl_fail(RL_NO_MEMORY, "report: out of memory");
    }
    status = write_file(study, "cells.json", json, strlen(json));
    free(json);
    return status;
}

static rl_status write_page(const struct study_cells *cells, const json_t *document,
                            const char *html_path, bool timings, size_t *bytes)
{
    struct rl_text page;
    rl_text_init(&page, STUDY_PAGE_BYTES);
    rl_status status = study_page_append(&page, cells, document, timings);
    if (status == RL_OK) {
        *bytes = page.bytes;
        status = html_path != NULL ? atomic_file_write_all(html_path, page.data, page.bytes)
                                   : write_file(cells->study, "report.html", page.data, page.bytes);
    }
    rl_text_fini(&page);
    return status;
}

static rl_status write_all(const struct study_cells *cells, const char *html_path, bool timings,
                           struct study_facts *facts)
{
    json_t *document = NULL;
    RL_TRY(study_document_make(cells, &document));
    rl_status status = write_tables(cells->study, document);
    if (status == RL_OK) {
        status = write_page(cells, document, html_path, timings, &facts->bytes);
    }
    const json_t *spent = json_object_get(document, "spent");
    facts->trials = cells->study->trial_count;
    facts->cells = cells->count;
    facts->done = (uint32_t)json_integer_value(json_object_get(spent, "done"));
    facts->failed = (uint32_t)json_integer_value(json_object_get(spent, "failed"));
    json_decref(document);
    return status;
}

rl_status study_report_write(const char *dir, const char *html_path, bool timings,
                             struct study_facts *facts)
{
    struct study *study = NULL;
    struct study_cells cells = {0};
    struct study_facts found = {0};
    RL_TRY(study_load(dir, &study));
    rl_status status = study_cells_make(study, &cells);
    if (status == RL_OK) {
        status = write_all(&cells, html_path, timings, &found);
    }
    study_cells_fini(&cells);
    study_destroy(study);
    if (status == RL_OK && facts != NULL) {
        *facts = found;
    }
    return status;
}
