#include "model/weight_arena.hpp"

#include <algorithm>

namespace sw {

std::byte* WeightArena::take(std::size_t bytes) {
  constexpr std::size_t kChunkBytes = std::size_t{32} << 20;  // untouched ends cost nothing
  const std::size_t rounded = (bytes + 63) / 64 * 64;
  if (chunks_.empty() || chunks_.back().bytes() - used_ < rounded) {
    const std::size_t size = std::max(rounded, kChunkBytes);
    chunks_.emplace_back(DType::kF32, 1, 1, static_cast<std::int64_t>(size / sizeof(float)));
    used_ = 0;
  }
  std::byte* piece = chunks_.back().data() + used_;
  used_ += rounded;
  return piece;
}

}  // namespace sw
