#pragma once

#include <cstddef>
#include <cstring>
#include <utility>
#include <vector>

#include "attention/problem.hpp"
#include "attention/selection.hpp"
#include "kernels/cuda/common/buffer.hpp"
#include "kernels/cuda/common/launch.hpp"
#include "kernels/cuda/common/selection.hpp"

/// Host problems and selections in device memory, for tests of kernels.
namespace sw::testing {

/// A device copy of a host tensor, as [heads, tokens, dim] or as [tokens, heads, dim].
class DeviceHeads {
 public:
  DeviceHeads(const HeadsView& x, bool tokens_first) {
    const std::size_t row = static_cast<std::size_t>(x.dim) * dtype_size(x.dtype);
    std::vector<std::byte> bytes(static_cast<std::size_t>(x.heads * x.tokens) * row);
    pointer_.head_stride = tokens_first ? x.dim : x.tokens * x.dim;
    pointer_.token_stride = tokens_first ? x.heads * x.dim : x.dim;
    for (std::int64_t h = 0; h < x.heads; ++h) {
      for (std::int64_t t = 0; t < x.tokens; ++t) {
        const std::int64_t at = h * pointer_.head_stride + t * pointer_.token_stride;
        std::memcpy(bytes.data() + static_cast<std::size_t>(at) * dtype_size(x.dtype), x.row(h, t),
                    row);
      }
    }
    data_ = cuda::DeviceBuffer<std::byte>(std::span<const std::byte>(bytes));
    pointer_.data = data_.data();
  }
  const cuda::HeadsPointer& pointer() const { return pointer_; }

 private:
  cuda::DeviceBuffer<std::byte> data_;
  cuda::HeadsPointer pointer_;
};

class DeviceSelection {
 public:
  explicit DeviceSelection(const BlockSelection& selection) {
    const auto row_ptr = selection.row_ptr();
    std::vector<std::int32_t> counts;
    for (std::size_t i = 0; i + 1 < row_ptr.size(); ++i) {
      counts.push_back(static_cast<std::int32_t>(row_ptr[i + 1] - row_ptr[i]));
    }
    begin_ = cuda::DeviceBuffer<std::int64_t>(row_ptr);
    count_ = cuda::DeviceBuffer<std::int32_t>(std::span<const std::int32_t>(counts));
    blocks_ = cuda::DeviceBuffer<std::int32_t>(selection.all_blocks());
    view_.row_begin = begin_.data();
    view_.row_count = count_.data();
    view_.blocks = blocks_.data();
    view_.groups = static_cast<int>(selection.groups());
    view_.rows = static_cast<int>(selection.rows());
    view_.first_row = static_cast<int>(selection.geometry().first_row());
    view_.block = static_cast<int>(selection.geometry().block);
    view_.token_window = selection.token_window();
    view_.token_sink = selection.token_sink();
  }
  const cuda::SelectionView& view() const { return view_; }

 private:
  cuda::DeviceBuffer<std::int64_t> begin_;
  cuda::DeviceBuffer<std::int32_t> count_;
  cuda::DeviceBuffer<std::int32_t> blocks_;
  cuda::SelectionView view_;
};

}  // namespace sw::testing
