#pragma once

#include <gtest/gtest.h>

#include <string>

#include "kernels/cuda/common/device.hpp"

/// Skips the test, with the reason, on a machine without a GPU of at least this compute capability.
#define SW_REQUIRE_GPU(capability_major)                                                    \
  do {                                                                                      \
    std::string why = "no CUDA device";                                                     \
    const auto devices = sw::cuda::list_devices(why);                                       \
    if (devices.empty()) GTEST_SKIP() << "needs a GPU: " << why;                            \
    if (devices.front().major < (capability_major))                                         \
      GTEST_SKIP() << "needs compute capability " << (capability_major) << ".0: this is a " \
                   << devices.front().name;                                                 \
  } while (false)
