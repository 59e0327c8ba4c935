#include "fuzz.hpp"
#include "report/html_report.hpp"

/// The HTML page of a report: nothing of a report closes the page's own script.
int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const sw::fuzz::Folder folder;
  const std::string path = folder.write("report.json", sw::fuzz::text_of(data, size));
  sw::fuzz::parse([&] { sw::html_text({sw::ReportFile::read(path)}); });
  return 0;
}
