#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "report/report.hpp"

namespace sw {

/// The report as results/schema.json describes it.
nlohmann::ordered_json to_json(const Report& report, const ReportSummary& summaries);

/// The same as text. Bytes that are not UTF-8 (of paths, say) become U+FFFD, and numbers that are
/// not finite become null.
std::string to_json_text(const Report& report, const ReportSummary& summaries);

}  // namespace sw
