#pragma once

#include <string>
#include <vector>

#include "common/cli.hpp"

/// The subcommands of sw-sweep, one file each.
namespace sw {

/// `argv` is what has to be typed again to go on.
void setup_trace(Program& program, const std::vector<std::string>& argv);
void setup_model(Program& program, const std::vector<std::string>& argv);
void setup_run(Program& program, const std::vector<std::string>& argv);
void setup_submit(Program& program);

}  // namespace sw
