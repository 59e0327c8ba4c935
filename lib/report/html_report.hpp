#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "report/report_file.hpp"

/// One HTML file that needs nothing else: what the reports say in sentences, figures, tables that
/// sort and filter, the commands and the environment. The page's data is JSON inside it; style,
/// scripts and the plotting library (D3's modules) are put into the program when it is built.
namespace sw {

/// What is missing for pages in this build; "" when nothing is.
std::string_view html_unavailable();

/// Reads the HDF5 files beside the reports, for heat maps and selections. Texts of reports never
/// become markup or script: they are escaped, and the page's policy allows only its own scripts, by
/// their hashes. Throws Error(kInput) when a report is damaged, Error(kUnsupported) when
/// html_unavailable() is not empty.
std::string html_text(const std::vector<ReportFile>& reports);

}  // namespace sw
