#pragma once

#include "common/cli.hpp"

/// The subcommands of sw-report, one file each. All of them only read reports.
namespace sw {

void setup_html(Program& program);
void setup_plot(Program& program);
void setup_compare(Program& program);
void setup_csv(Program& program);

}  // namespace sw
