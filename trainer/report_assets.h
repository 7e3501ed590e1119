/* Style sheet and script of the report page, and the colours that pictures share with it. Constant
 * text; the page loads nothing from anywhere. */
#ifndef FORESIGHT_TRAINER_REPORT_ASSETS_H
#define FORESIGHT_TRAINER_REPORT_ASSETS_H

/* Variables for light and dark, and the classes that trainer/report_svg.h uses. */
extern const char report_chart_style[];

/* The rest of the page's style. */
extern const char report_page_style[];

/* Tooltips of the charts. Reads the JSON beside each chart; works on nothing else. */
extern const char report_page_script[];

#endif
