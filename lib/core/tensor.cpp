#include "core/tensor.hpp"

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <string>

#include "core/error.hpp"

namespace sw {

void HeadsTensor::Free::operator()(std::byte* p) const { std::free(p); }

HeadsTensor::HeadsTensor(DType dtype, std::int64_t heads, std::int64_t tokens, std::int64_t dim)
    : dtype_(dtype), heads_(heads), tokens_(tokens), dim_(dim) {
  assert(heads >= 0 && tokens >= 0 && dim >= 0);
  std::size_t bytes = dtype_size(dtype);
  const std::string shape =
      std::to_string(heads) + " x " + std::to_string(tokens) + " x " + std::to_string(dim);
  for (std::int64_t extent : {heads, tokens, dim}) {
    if (__builtin_mul_overflow(bytes, static_cast<std::size_t>(extent), &bytes)) {
      throw Error(ErrorKind::kResource, "a tensor of " + shape + " elements exceeds 64-bit sizes");
    }
  }
  if (bytes > std::numeric_limits<std::size_t>::max() - 64) {
    throw Error(ErrorKind::kResource, "a tensor of " + shape + " elements exceeds 64-bit sizes");
  }
  const std::size_t rounded = std::max<std::size_t>((bytes + 63) / 64 * 64, 64);
  data_.reset(static_cast<std::byte*>(std::aligned_alloc(64, rounded)));
  if (!data_) {
    throw Error(ErrorKind::kResource,
                "out of memory: a tensor of " + shape + " elements needs " + std::to_string(bytes) +
                    " bytes",
                "use fewer tokens or fewer heads, or a machine with more memory");
  }
}

std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

std::optional<std::int64_t> checked_product(const std::vector<std::int64_t>& factors) {
  constexpr std::int64_t kLimit = std::int64_t{1} << 62;
  std::int64_t product = 1;
  bool zero = false;
  for (const std::int64_t factor : factors) {
    if (factor < 0) return std::nullopt;
    if (factor == 0) {
      zero = true;
    } else if (product > kLimit / factor) {
      return std::nullopt;
    } else {
      product *= factor;
    }
  }
  return zero ? 0 : product;
}

}  // namespace sw
