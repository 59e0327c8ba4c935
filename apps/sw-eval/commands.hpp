#pragma once

#include <string>
#include <vector>

#include "common/cli.hpp"

/// The subcommands of sw-eval, one file each.
namespace sw {

/// `argv` goes into reports.
void setup_trace(Program& program, const std::vector<std::string>& argv);
void setup_model(Program& program, const std::vector<std::string>& argv);
void setup_score(Program& program, const std::vector<std::string>& argv);
void setup_methods(Program& program);

}  // namespace sw
