#include "commands.hpp"
#include "core/error.hpp"

namespace sw {

/// In builds without CUDA the command says so, whatever its options.
void setup_gpu(Program& program, const std::vector<std::string>&) {
  CLI::App& command = program.add_command(
      "gpu", "Time the CUDA kernels, which this build does not have", {},
      [](const CommonOptions&) -> int {
        throw Error(ErrorKind::kUnsupported, "this build has no CUDA kernels",
                    "sw-profile cpu times the CPU; for the GPU, build with the CUDA Toolkit");
      });
  command.allow_extras();
}

}  // namespace sw
