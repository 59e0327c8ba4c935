#include "report/files.hpp"

#include <string_view>

#include "core/file.hpp"
#include "report/hdf5_report.hpp"
#include "report/json_report.hpp"

namespace sw {

ReportPaths report_paths(const std::string& out) {
  std::string stem = out;
  for (const std::string_view extension : {".json", ".h5"}) {
    if (stem.size() > extension.size() && stem.ends_with(extension)) {
      stem.resize(stem.size() - extension.size());
      break;
    }
  }
  return {stem + ".json", stem + ".h5"};
}

void check_report_paths(const ReportPaths& paths, bool force) {
  const PendingFile json(paths.json, force);
  const PendingFile hdf5(paths.hdf5, force);
}

void write_report_files(const ReportPaths& paths, bool force,
                        const std::function<void(const std::string& place)>& write_hdf5,
                        const std::string& json_text) {
  PendingFile json(paths.json, force);
  PendingFile hdf5(paths.hdf5, force);
  write_hdf5(hdf5.temporary_path());
  json.write(json_text);
  PendingFile::commit_all({&hdf5, &json});
}

void write_report(const Report& report, const ReportSummary& summaries, const ReportPaths& paths,
                  bool force) {
  const auto write = [&](const std::string& place) { write_hdf5(report, place, paths.hdf5); };
  write_report_files(paths, force, write, to_json_text(report, summaries));
}

}  // namespace sw
