#pragma once

#include <string>
#include <vector>

#include "report/report_file.hpp"

/// What a report says, in sentences for readers who do not read tables. Every sentence is computed
/// from the numbers, and a method that shows no advantage over `sink_window` is said to have none.
namespace sw {

enum class Tone { kGood, kBad, kMixed, kNeutral, kWarning };
/// "good", "bad", "mixed", "neutral" or "warning".
const char* tone_name(Tone tone);

struct Finding {
  Tone tone = Tone::kNeutral;
  std::string text;                       ///< names of methods stand in back quotes
  std::vector<std::string> details = {};  ///< the numbers behind it, in the same form
};

/// The most important one first. Throws Error(kInput) when a value has another type.
std::vector<Finding> findings(const ReportFile& report);

}  // namespace sw
