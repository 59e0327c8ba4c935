#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "core/tensor.hpp"
#include "kernels/cpu/aligned.hpp"

namespace sw::cpu {

/// The rows `tokens` of one head of x, copied one after the other into `buffer`: [1, count, dim] of
/// the same elements, valid as long as the buffer is.
inline HeadsView gather_rows(const HeadsView& x, std::int64_t head,
                             std::span<const std::int32_t> tokens, LineVector<std::byte>& buffer) {
  const std::size_t row_bytes = static_cast<std::size_t>(x.dim) * dtype_size(x.dtype);
  buffer.resize(tokens.size() * row_bytes);
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    std::memcpy(buffer.data() + i * row_bytes, x.row(head, tokens[i]), row_bytes);
  }
  const auto count = static_cast<std::int64_t>(tokens.size());
  return {buffer.data(), x.dtype, 1, count, x.dim, count * x.dim, x.dim};
}

}  // namespace sw::cpu
