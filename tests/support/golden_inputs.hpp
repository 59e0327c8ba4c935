#pragma once

#include <cstdint>
#include <vector>

#include "core/rng.hpp"
#include "core/tensor.hpp"

/// The inputs of the golden files, which are generated, not stored: a port of `make_input` in
/// tests/golden/make_goldens.py. Every consumer of a golden file builds its q, k and v here.
namespace sw::testing {

/// 24 random bits to a float in [-1, 1), as `unit` of make_goldens.py.
inline double golden_unit(SplitMix64& rng) {
  return static_cast<double>(rng.next() >> 40) / 16777216.0 * 2.0 - 1.0;
}

/// Tensor `which` (0 q, 1 k, 2 v) of a layer, f32 [heads, tokens, dim]: an offset shared by 16
/// consecutive tokens, scaled by `offset_scale`, plus noise scaled by `noise_scale`.
inline HeadsTensor golden_tensor(std::uint64_t seed, std::int64_t layer, int which,
                                 std::int64_t heads, std::int64_t tokens, std::int64_t dim,
                                 double offset_scale, double noise_scale) {
  constexpr std::int64_t kRun = 16;
  SplitMix64 rng(seed + 1000003u * static_cast<std::uint64_t>(layer + 1) +
                 101u * static_cast<std::uint64_t>(which));
  const std::int64_t runs = (tokens + kRun - 1) / kRun;
  std::vector<double> offsets(static_cast<std::size_t>(heads * runs * dim));
  for (double& offset : offsets) offset = golden_unit(rng) * offset_scale;
  HeadsTensor tensor(DType::kF32, heads, tokens, dim);
  for (std::int64_t h = 0; h < heads; ++h) {
    for (std::int64_t t = 0; t < tokens; ++t) {
      const double* offset = offsets.data() + (h * runs + t / kRun) * dim;
      float* row = tensor.row<float>(h, t);
      for (std::int64_t x = 0; x < dim; ++x) {
        row[x] = static_cast<float>(offset[x] + golden_unit(rng) * noise_scale);
      }
    }
  }
  return tensor;
}

}  // namespace sw::testing
