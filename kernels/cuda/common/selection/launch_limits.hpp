#pragma once

namespace sw::cuda {

/// Multiprocessors of the current device.
int multiprocessors();

/// Whether the current device is a Hopper GPU, for which kernels with wgmma are built.
bool has_warpgroups();

/// Stages (2..8) of `stage_bytes` that fit in the shared memory of a CTA beside `other_bytes`.
/// Throws Error(kUnsupported) when not even two do.
int pipeline_stages(int stage_bytes, int other_bytes);

}  // namespace sw::cuda
