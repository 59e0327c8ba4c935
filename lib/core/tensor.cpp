#include "core/tensor.hpp"

#include <sys/mman.h>

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
  constexpr std::size_t kHugePage = std::size_t{2} << 20;
  std::size_t bytes = dtype_size(dtype);
  const std::string shape =
      std::to_string(heads) + " x " + std::to_string(tokens) + " x " + std::to_string(dim);
  for (std::int64_t extent : {heads, tokens, dim}) {
    if (__builtin_mul_overflow(bytes, static_cast<std::size_t>(extent), &bytes)) {
      throw Error(ErrorKind::kResource, "a tensor of " + shape + " elements exceeds 64-bit sizes");
    }
  }
  if (bytes > std::numeric_limits<std::size_t>::max() - kHugePage) {
    throw Error(ErrorKind::kResource, "a tensor of " + shape + " elements exceeds 64-bit sizes");
  }
  // Large tensors get huge pages where the system grants them: reading them is then bound by memory
  // and not by the translation of addresses (a factor of 2 on some machines).
  const std::size_t alignment = bytes >= kHugePage ? kHugePage : 64;
  // Whole ones: the last page would be of small ones else.
  const std::size_t rounded =
      std::max((bytes + alignment - 1) / alignment * alignment, std::size_t{64});
  void* memory = nullptr;
  if (posix_memalign(&memory, alignment, rounded) == 0) {
    data_.reset(static_cast<std::byte*>(memory));
    if (alignment == kHugePage) madvise(memory, rounded, MADV_HUGEPAGE);
  }
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
