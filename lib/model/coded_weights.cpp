#include "model/coded_weights.hpp"

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/parallel.hpp"

namespace sw {
namespace {

/// The fewest bits for the range of codes; 8 bits are signed.
CodedPanel panel_of(const CodeFormat& format) {
  const int range = format.highest - format.lowest;
  const int bits = range < 16 ? 4 : range < 32 ? 5 : 8;
  return {bits, bits == 8 ? 0 : -format.lowest, format.group, format.minimum};
}

/// Weights of a task: each thread reads a region of its own.
constexpr std::int64_t kTaskBytes = 1 << 20;

}  // namespace

CodedWeights::CodedWeights(const CodedKernel& kernel, std::int64_t inputs, std::int64_t outputs,
                           const CodeFormat& format, const LoadCodes& load_codes,
                           WeightArena& arena)
    : kernel_(kernel),
      layout_(panel_of(format)),
      inputs_(inputs),
      outputs_(outputs),
      panels_((outputs + kCodedOutputs - 1) / kCodedOutputs),
      panel_bytes_(inputs / layout_.group * layout_.group_bytes()),
      data_(arena.take(bytes())) {
  parallel_for(panels_, [&](std::int64_t panel, int) { fill(panel, load_codes); });
}

void CodedWeights::fill(std::int64_t panel, const LoadCodes& load_codes) {
  std::byte* to = data_ + panel * panel_bytes_;
  std::memset(to, 0, static_cast<std::size_t>(panel_bytes_));
  std::vector<std::int8_t> code(static_cast<std::size_t>(inputs_));
  std::vector<float> scale(static_cast<std::size_t>(inputs_ / kCodeGroup));
  std::vector<float> minimum(scale.size());
  const std::int64_t first = panel * kCodedOutputs;
  for (std::int64_t o = 0; o < std::min<std::int64_t>(kCodedOutputs, outputs_ - first); ++o) {
    load_codes(first + o, {code.data(), scale.data(), minimum.data()});
    for (std::int64_t g = 0; g < inputs_ / layout_.group; ++g) {
      std::byte* group = to + g * layout_.group_bytes();
      auto* scales = reinterpret_cast<float*>(group);
      const std::int64_t source = g * layout_.group / kCodeGroup;
      scales[o] = scale[source];
      if (layout_.minimum) scales[kCodedOutputs + o] = minimum[source];
      auto* codes =
          reinterpret_cast<std::uint8_t*>(scales + (layout_.minimum ? 2 : 1) * kCodedOutputs);
      std::uint8_t* fifth = codes + layout_.group * (kCodedOutputs / 2);
      for (std::int64_t i = 0; i < layout_.group; ++i) {
        const auto value = static_cast<std::uint8_t>(code[g * layout_.group + i] + layout_.offset);
        // Two inputs of an output lie next to each other.
        if (layout_.bits == 8) {
          codes[(i / 2 * kCodedOutputs + o) * 2 + i % 2] = value;
          continue;
        }
        const bool second = i % 4 >= 2;
        std::uint8_t& byte = codes[(i / 4 * kCodedOutputs + o) * 2 + i % 2];
        byte = static_cast<std::uint8_t>(byte | (value & 15) << (second ? 4 : 0));
        if (layout_.bits == 5 && value >= 16) {
          const std::int64_t bit = 2 * (o % 16) + i % 2;
          fifth[(i / 4 * 2 + o / 16) * 8 + (second ? 4 : 0) + bit / 8] |=
              static_cast<std::uint8_t>(1 << bit % 8);
        }
      }
    }
  }
}

void CodedWeights::multiply(const void* x, std::span<const float> bias, bool add, float* y) const {
  const std::int64_t groups = inputs_ / layout_.group;
  std::vector<std::int16_t> code(static_cast<std::size_t>(inputs_));
  std::vector<float> scale(static_cast<std::size_t>(groups));
  std::vector<float> sum(scale.size());
  std::vector<std::int32_t> code_sum(scale.size());
  const CodedVector vector{code.data(), scale.data(), sum.data(), code_sum.data()};
  kernel_.encode(x, inputs_, layout_.group, vector);
  const std::int64_t share = (panels_ + num_threads() - 1) / num_threads();
  const std::int64_t each = std::clamp<std::int64_t>(kTaskBytes / panel_bytes_, 1, share);
  parallel_for((panels_ + each - 1) / each, [&](std::int64_t task, int) {
    for (std::int64_t p = task * each; p < std::min((task + 1) * each, panels_); ++p) {
      const std::int64_t output = p * kCodedOutputs;
      kernel_.multiply({
          .layout = layout_,
          .x = vector,
          .weights = data_ + p * panel_bytes_,
          .bias = bias.empty() ? nullptr : bias.data() + output,
          .y = y + output,
          .inputs = inputs_,
          .outputs = static_cast<int>(std::min<std::int64_t>(kCodedOutputs, outputs_ - output)),
          .add = add,
      });
    }
  });
}

}  // namespace sw
