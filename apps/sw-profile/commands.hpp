#pragma once

#include <string>
#include <vector>

#include "common/cli.hpp"

/// The subcommands of sw-profile, one file each.
namespace sw {

/// `argv` goes into reports.
void setup_cpu(Program& program, const std::vector<std::string>& argv);
void setup_gpu(Program& program, const std::vector<std::string>& argv);

}  // namespace sw
