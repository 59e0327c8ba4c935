#pragma once

#include "common/cli.hpp"

/// The subcommands of sw-trace, one file each.
namespace sw {

void setup_capture(Program& program);
void setup_make(Program& program);
void setup_inspect(Program& program);
void setup_validate(Program& program);
void setup_import(Program& program);

}  // namespace sw
