#include "dataset/task.hpp"
#include "fuzz.hpp"
#include "report/gate.hpp"

/// The other small languages of the command line: --fail-if and --task (of which only needles need
/// no file).
int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text = sw::fuzz::text_of(data, size);
  sw::fuzz::parse([&] { sw::Gate::parse(text); });
  sw::fuzz::parse([&] {
    const auto task = sw::Task::open("niah:" + std::string(text), {});
    sw::fuzz::require(task.size() >= 1 && task.name() == "niah");
  });
  return 0;
}
