#include <algorithm>
#include <cstring>
#include <vector>

#include "core/parallel.hpp"
#include "model/packed_weights.hpp"

namespace sw {
namespace {

/// Rows of a task: a panel is read from memory once for as many.
constexpr std::int64_t kTileRows = 96;
/// Weights of a task: little where rows are multiplied, for balance; much for a lone row, which is
/// bound by memory and reads it faster when each thread keeps to a region of its own.
constexpr std::int64_t kTaskBytes = 64 << 10;
constexpr std::int64_t kLoneRowTaskBytes = 2 << 20;

class PanelWeights final : public PackedWeights {
 public:
  PanelWeights(const PanelKernel& kernel, std::int64_t inputs, std::int64_t outputs, DType dtype,
               const LoadRow& load_row, WeightArena& arena)
      : product_(dtype == DType::kBf16 ? kernel.bf16 : kernel.f32),
        widens_(dtype == DType::kBf16 && kernel.bf16_x == DType::kF32),
        inputs_(inputs),
        outputs_(outputs),
        element_bytes_(static_cast<std::int64_t>(dtype_size(dtype))),
        group_(dtype == DType::kBf16 ? 2 : 1),
        panels_((outputs + kPanelOutputs - 1) / kPanelOutputs),
        panel_bytes_((inputs + group_ - 1) / group_ * group_ * kPanelOutputs * element_bytes_),
        data_(arena.take(bytes())) {
    parallel_for(panels_, [&](std::int64_t panel, int) {
      dtype == DType::kBf16 ? fill<Bf16>(panel, load_row) : fill<float>(panel, load_row);
    });
  }

  std::uint64_t bytes() const override {
    return static_cast<std::uint64_t>(panels_ * panel_bytes_);
  }
  bool lone_rows_equal_others() const override { return true; }

  void multiply(const void* x, std::int64_t rows, std::span<const float> bias, bool add,
                float* y) const override {
    std::unique_ptr<float[]> wide;
    if (widens_) {
      wide.reset(new float[static_cast<std::size_t>(rows * inputs_)]);
      parallel_for(rows, [&](std::int64_t row, int) {
        convert_to_float(static_cast<const Bf16*>(x) + row * inputs_, DType::kBf16, inputs_,
                         wide.get() + row * inputs_);
      });
      x = wide.get();
    }
    const std::int64_t x_row_bytes =
        inputs_ * (widens_ ? std::int64_t{sizeof(float)} : element_bytes_);
    const std::int64_t task_bytes = rows == 1 ? kLoneRowTaskBytes : kTaskBytes;
    const std::int64_t share = (panels_ + num_threads() - 1) / num_threads();
    const std::int64_t panels = std::clamp<std::int64_t>(task_bytes / panel_bytes_, 1, share);
    const std::int64_t tiles = (rows + kTileRows - 1) / kTileRows;
    const std::int64_t tasks = (panels_ + panels - 1) / panels;
    parallel_for(tasks * tiles, [&](std::int64_t index, int) {
      const std::int64_t row = index % tiles * kTileRows;
      const std::int64_t begin = index / tiles * panels;
      for (std::int64_t p = begin; p < std::min(begin + panels, panels_); ++p) {
        const std::int64_t output = p * kPanelOutputs;
        product_({
            .x = static_cast<const std::byte*>(x) + row * x_row_bytes,
            .weights = data_ + p * panel_bytes_,
            .bias = bias.empty() ? nullptr : bias.data() + output,
            .y = y + row * outputs_ + output,
            .y_stride = outputs_,
            .rows = std::min(kTileRows, rows - row),
            .inputs = inputs_,
            .outputs = static_cast<int>(std::min<std::int64_t>(kPanelOutputs, outputs_ - output)),
            .add = add,
        });
      }
    });
  }

 private:
  template <class T>
  void fill(std::int64_t panel, const LoadRow& load_row) {
    T* out = reinterpret_cast<T*>(data_ + panel * panel_bytes_);
    std::memset(out, 0, static_cast<std::size_t>(panel_bytes_));
    std::vector<float> row(static_cast<std::size_t>(inputs_));
    const std::int64_t first = panel * kPanelOutputs;
    for (std::int64_t o = 0; o < std::min<std::int64_t>(kPanelOutputs, outputs_ - first); ++o) {
      load_row(first + o, row.data());
      for (std::int64_t i = 0; i < inputs_; ++i) {
        out[(i / group_ * kPanelOutputs + o) * group_ + i % group_] = from_float<T>(row[i]);
      }
    }
  }

  void (*product_)(const PanelProduct&);
  bool widens_;  // x to float, once for all panels
  std::int64_t inputs_;
  std::int64_t outputs_;
  std::int64_t element_bytes_;
  std::int64_t group_;  // inputs that lie together
  std::int64_t panels_;
  std::int64_t panel_bytes_;
  std::byte* data_;  // [panels, inputs / group, kPanelOutputs, group]
};

}  // namespace

std::unique_ptr<const PackedWeights> pack_panels(const PanelKernel& kernel, std::int64_t inputs,
                                                 std::int64_t outputs, DType dtype,
                                                 const LoadRow& load_row, WeightArena& arena) {
  return std::make_unique<PanelWeights>(kernel, inputs, outputs, dtype, load_row, arena);
}

}  // namespace sw
