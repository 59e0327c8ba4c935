#pragma once

#include "core/dtype.hpp"
#include "report/profile_report.hpp"

namespace sw {

/// What this CPU does at best with the threads of this process: oneDNN's matrix product of `dtype`
/// (f16 has none of its own here: f32) and a copy of 256 MiB by all threads, the best of several.
Roofline measure_cpu_roofline(DType dtype);

}  // namespace sw
