#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "support/command.hpp"

/// Programs as MPI jobs in tests: several ranks on this machine, however few cores it has.
namespace sw::testing {

/// The command that starts `ranks` processes of what follows it. Open MPI refuses root and more
/// ranks than cores unless it is told; its warnings about absent networks are left out.
inline std::string mpirun(int ranks) {
  return "env OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 "
         "OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_btl=self,vader "
         "OMPI_MCA_btl_vader_single_copy_mechanism=none mpirun -n " +
         std::to_string(ranks) + " ";
}

/// Why MPI jobs cannot be started here, or "".
inline std::string why_no_mpirun() {
  if (run_command("command -v mpirun").code != 0) {
    return "mpirun is not installed (Debian: openmpi-bin)";
  }
  const CommandResult tried = run_command(mpirun(3) + "true");
  return tried.code == 0 ? "" : "mpirun does not start here: " + tried.output;
}

}  // namespace sw::testing

#define SW_REQUIRE_MPIRUN()                                  \
  do {                                                       \
    const std::string sw_why = sw::testing::why_no_mpirun(); \
    if (!sw_why.empty()) GTEST_SKIP() << sw_why;             \
  } while (false)
