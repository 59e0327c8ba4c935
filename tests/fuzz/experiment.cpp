#include "eval/experiment.hpp"

#include "eval/grid.hpp"
#include "fuzz.hpp"

/// An experiment file, its grid of densities and methods, and its command line.
int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  sw::fuzz::parse([&] {
    const auto experiment = sw::parse_experiment(sw::fuzz::text_of(data, size), "'experiment'");
    sw::fuzz::require(!sw::to_arguments(experiment).empty());
    std::visit(
        [](const auto& e) {
          sw::fuzz::parse([&] { sw::parse_densities(e.densities); });
          for (const std::string& method : e.methods) {
            sw::fuzz::parse([&] { sw::expand_method(method); });
          }
        },
        experiment);
  });
  return 0;
}
