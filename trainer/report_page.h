// Style and script of report.html, kept in files of their own. They are put into the page as they are.
#pragma once

namespace levin {

extern const char* const report_style;         // CSS
extern const char* const report_script;        // JavaScript: reads the data, builds the page
extern const char* const report_chart_script;  // JavaScript: one chart as SVG

}  // namespace levin
