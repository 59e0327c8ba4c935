#pragma once

/// What the current device offers to the kernels of selection.
namespace sw::cuda {

/// Multiprocessors.
int multiprocessors();

/// Whether it is a Hopper GPU, for which kernels with wgmma are built, and no PortableProducts
/// lives.
bool has_warpgroups();

/// While one lives, products are computed as on every GPU from sm_80: for tests on a newer one.
class PortableProducts {
 public:
  PortableProducts();
  ~PortableProducts();
  PortableProducts(const PortableProducts&) = delete;
  PortableProducts& operator=(const PortableProducts&) = delete;
};

/// Stages (2..8) of `stage_bytes` that fit in the shared memory of a CTA beside `other_bytes`.
/// Throws Error(kUnsupported) when not even two do.
int pipeline_stages(int stage_bytes, int other_bytes);

}  // namespace sw::cuda
