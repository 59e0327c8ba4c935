#pragma once

namespace sw::cuda {

/// Multiprocessors of the current device.
int multiprocessors();

/// Stages (2..4) of `stage_bytes` that fit in the shared memory of a CTA beside `other_bytes`.
/// Throws Error(kUnsupported) when not even two do.
int pipeline_stages(int stage_bytes, int other_bytes);

}  // namespace sw::cuda
