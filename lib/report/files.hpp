#pragma once

#include <functional>
#include <string>

#include "report/report.hpp"

namespace sw {

/// The two files of a report, named after what was given with -o: a trailing .json or .h5 is taken
/// off first.
struct ReportPaths {
  std::string json;
  std::string hdf5;
};
ReportPaths report_paths(const std::string& out);

/// Throws Error(kOutput) when a file exists and `force` is false, or when the folder cannot be
/// written to. To be called before hours of work, not after.
void check_report_paths(const ReportPaths& paths, bool force);

/// Writes both files aside, the HDF5 file by write_hdf5(place), and renames them once both are
/// complete, the JSON file last. Throws Error(kOutput).
void write_report_files(const ReportPaths& paths, bool force,
                        const std::function<void(const std::string& place)>& write_hdf5,
                        const std::string& json_text);

/// The two files of a trace evaluation. Throws Error(kOutput).
void write_report(const Report& report, const ReportSummary& summaries, const ReportPaths& paths,
                  bool force);

}  // namespace sw
