/* `foresight report`: one self-contained page (and one picture) from a run folder. Reads what the
 * run wrote and writes the page; takes no part in the run. */
#ifndef FORESIGHT_TRAINER_REPORT_H
#define FORESIGHT_TRAINER_REPORT_H

#include "core/text.h"
#include "trainer/report_data.h"

/* What was drawn, for the command's last line. */
struct report_facts {
    size_t steps;         /* rows of metrics.jsonl */
    size_t charts;        /* drawn */
    size_t bytes;         /* of the page */
    size_t rows_replaced; /* see report_table */
    bool torn_tail;
    bool has_summary;
};

/* Read RUN and write the page to `html_path` (NULL: RUN/report.html), atomically; if `curve_path`
 * is not NULL also the picture of report_curve_svg there. `facts` may be NULL. Errors: RL_IO,
 * RL_INVALID, RL_NOT_FOUND, RL_TOO_LONG, RL_NO_MEMORY. */
rl_status report_write(const char *run_dir, const char *html_path, const char *curve_path,
                       struct report_facts *facts);

/* Append the page of a loaded run; merges rows of long runs (report_table_thin). `facts` may be
 * NULL. Errors: RL_TOO_LONG, RL_NO_MEMORY. */
rl_status report_page_append(struct rl_text *out, struct report_run *run,
                             struct report_facts *facts);

/* Append a stand-alone SVG picture of reward and accuracy over the steps, with title, legend and
 * its own colours for light and dark pages. Errors: RL_NOT_FOUND if no line has either;
 * RL_TOO_LONG, RL_NO_MEMORY. */
rl_status report_curve_svg(struct rl_text *out, const struct report_run *run);

#endif
