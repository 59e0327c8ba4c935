#include <omp.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <map>
#include <mutex>
#include <new>
#include <oneapi/dnnl/dnnl.hpp>
#include <string>

#include "core/error.hpp"
#include "core/parallel.hpp"
#include "core/tensor.hpp"
#include "model/packed_weights.hpp"

namespace sw {
namespace {

constexpr std::int64_t kTileRows = 128;
constexpr std::int64_t kWidestPanel = 256;

using Memory = dnnl::memory;

const dnnl::engine& engine() {
  static const dnnl::engine cpu(dnnl::engine::kind::cpu, 0);
  return cpu;
}

Memory::data_type data_type(DType dtype) {
  assert(dtype != DType::kF16);
  return dtype == DType::kF32 ? Memory::data_type::f32 : Memory::data_type::bf16;
}

/// oneDNN of the usual packages runs on OpenMP. Inside this scope the calling thread computes
/// alone.
class OneThread {
 public:
  OneThread() : previous_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~OneThread() { omp_set_num_threads(previous_); }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  int previous_;
};

[[noreturn]] void fail(const dnnl::error& error, DType dtype) {
  if (error.status == dnnl_unimplemented) {
    throw Error(ErrorKind::kUnsupported,
                "oneDNN has no " + std::string(dtype_name(dtype)) + " matrix product for this CPU",
                "compute in f32");
  }
  throw Error(ErrorKind::kResource, std::string("oneDNN: ") + error.what(),
              "use a smaller model, or compute in bf16");
}

/// dst [rows, outputs] (row stride `stride`) = src [rows, inputs] * weights [inputs, outputs], or
/// += with `add`.
dnnl::matmul::primitive_desc matmul_desc(DType dtype, std::int64_t rows, std::int64_t inputs,
                                         std::int64_t outputs, std::int64_t stride, bool add,
                                         const Memory::desc& weights) {
  const Memory::desc src({rows, inputs}, data_type(dtype), Memory::format_tag::ab);
  const Memory::desc dst({rows, outputs}, Memory::data_type::f32, Memory::dims{stride, 1});
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  if (add) {
    dnnl::post_ops sum;
    sum.append_sum(1.0f);
    attributes.set_post_ops(sum);
  }
#if DNNL_VERSION_MAJOR >= 3
  return {engine(), src, weights, dst, attributes};
#else
  return {dnnl::matmul::desc(src, weights, dst), attributes, engine()};
#endif
}

/// Layout that oneDNN prefers for the weights of a panel when whole tiles are multiplied.
Memory::desc weights_desc(DType dtype, std::int64_t inputs, std::int64_t outputs,
                          std::int64_t stride) {
  const Memory::desc any({inputs, outputs}, data_type(dtype), Memory::format_tag::any);
  return matmul_desc(dtype, kTileRows, inputs, outputs, stride, false, any).weights_desc();
}

/// Primitives are created one at a time: oneDNN shares them between threads through a cache of its
/// own, whose locks thread sanitizers cannot see.
std::mutex creation_mutex;

struct Product {
  dnnl::matmul primitive;
  Memory::desc src, dst;
  Memory scratchpad;
};

/// The primitive for a shape. Each thread keeps its own, because scratchpads are not shared; there
/// are as many as a model has shapes of panels, times the numbers of rows that occur.
const Product& product(DType dtype, std::int64_t rows, std::int64_t inputs, std::int64_t outputs,
                       std::int64_t stride, bool add, const Memory::desc& weights) {
  thread_local std::map<std::array<std::int64_t, 6>, Product> cache;
  const std::array<std::int64_t, 6> key{
      static_cast<std::int64_t>(dtype), rows, inputs, outputs, stride, add ? 1 : 0};
  const auto it = cache.find(key);
  if (it != cache.end()) return it->second;
  const std::lock_guard lock(creation_mutex);
  const auto desc = matmul_desc(dtype, rows, inputs, outputs, stride, add, weights);
  return cache
      .emplace(key, Product{dnnl::matmul(desc), desc.src_desc(), desc.dst_desc(),
                            Memory(desc.scratchpad_desc(), engine())})
      .first->second;
}

/// Panels of equal width, the last one narrower, one after the other.
class OnednnWeights final : public PackedWeights {
 public:
  OnednnWeights(std::int64_t inputs, std::int64_t outputs, DType dtype, const LoadRow& load_row,
                WeightArena& arena);

  std::uint64_t bytes() const override { return bytes_; }
  bool lone_rows_equal_others() const override { return false; }
  void multiply(const void* x, std::int64_t rows, std::span<const float> bias, bool add,
                float* y) const override;

 private:
  std::int64_t rows_of(std::int64_t panel) const {
    return std::min(width_, outputs_ - panel * width_);
  }

  std::int64_t inputs_;
  std::int64_t outputs_;
  DType dtype_;
  std::int64_t width_ = 0;  // outputs of a panel
  std::uint64_t bytes_ = 0;
  std::vector<Memory> weights_;  // looks into the arena
};

OnednnWeights::OnednnWeights(std::int64_t inputs, std::int64_t outputs, DType dtype,
                             const LoadRow& load_row, WeightArena& arena)
    : inputs_(inputs), outputs_(outputs), dtype_(dtype) {
  const std::int64_t wanted = (outputs + kWidestPanel - 1) / kWidestPanel;
  width_ = ((outputs + wanted - 1) / wanted + 15) / 16 * 16;  // 16: floats of a vector
  const std::int64_t count = (outputs + width_ - 1) / width_;
  try {
    const OneThread one_thread;
    const Memory::desc widest = weights_desc(dtype, inputs, rows_of(0), outputs);
    const Memory::desc last = weights_desc(dtype, inputs, rows_of(count - 1), outputs);
    const std::size_t bytes = (std::max(widest.get_size(), last.get_size()) + 63) / 64 * 64;
    bytes_ = static_cast<std::uint64_t>(count) * bytes;
    std::byte* storage = arena.take(bytes_);
    for (std::int64_t p = 0; p < count; ++p) {
      weights_.emplace_back(p + 1 < count ? widest : last, engine(),
                            storage + static_cast<std::size_t>(p) * bytes);
    }
  } catch (const dnnl::error& error) {
    fail(error, dtype);
  }
  std::vector<HeadsTensor> plain(static_cast<std::size_t>(num_threads()));
  for (HeadsTensor& p : plain) p = HeadsTensor(dtype, 1, rows_of(0), inputs);
  parallel_for(count, [&](std::int64_t p, int thread) {
    const OneThread one_thread;
    std::byte* rows = plain[static_cast<std::size_t>(thread)].data();
    std::vector<float> row(static_cast<std::size_t>(inputs));
    for (std::int64_t r = 0; r < rows_of(p); ++r) {
      load_row(p * width_ + r, row.data());
      convert_from_float(row.data(), dtype, inputs,
                         rows + static_cast<std::size_t>(r * inputs) * dtype_size(dtype));
    }
    try {
      Memory source({{inputs, rows_of(p)}, data_type(dtype), Memory::format_tag::ba}, engine(),
                    rows);
      Memory& packed = weights_[static_cast<std::size_t>(p)];
      dnnl::stream stream(engine());
      const dnnl::reorder reorder = [&] {
        const std::lock_guard lock(creation_mutex);
        return dnnl::reorder(source, packed);
      }();
      reorder.execute(stream, source, packed);
      stream.wait();
    } catch (const dnnl::error& error) {
      fail(error, dtype);
    }
  });
}

void OnednnWeights::multiply(const void* x, std::int64_t rows, std::span<const float> bias,
                             bool add, float* y) const {
  const std::int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  parallel_for(tiles * std::ssize(weights_), [&](std::int64_t index, int) {
    const OneThread one_thread;
    const std::int64_t panel = index / tiles;
    const std::int64_t row = index % tiles * kTileRows;
    const std::int64_t tile_rows = std::min(kTileRows, rows - row);
    const std::int64_t first = panel * width_;
    const Memory& weights = weights_[static_cast<std::size_t>(panel)];
    const auto* src = static_cast<const std::byte*>(x) +
                      static_cast<std::size_t>(row * inputs_) * dtype_size(dtype_);
    float* dst = y + row * outputs_ + first;
    try {
      const Product& matmul =
          product(dtype_, tile_rows, inputs_, rows_of(panel), outputs_, add, weights.get_desc());
      dnnl::stream stream(engine());
      matmul.primitive.execute(
          stream, {{DNNL_ARG_SRC, Memory(matmul.src, engine(), const_cast<std::byte*>(src))},
                   {DNNL_ARG_WEIGHTS, weights},
                   {DNNL_ARG_DST, Memory(matmul.dst, engine(), dst)},
                   {DNNL_ARG_SCRATCHPAD, matmul.scratchpad}});
      stream.wait();
    } catch (const dnnl::error& error) {
      fail(error, dtype_);
    }
    if (bias.empty()) return;
    for (std::int64_t r = 0; r < tile_rows; ++r) {
      for (std::int64_t j = 0; j < rows_of(panel); ++j) dst[r * outputs_ + j] += bias[first + j];
    }
  });
}

}  // namespace

std::unique_ptr<const PackedWeights> pack_onednn(std::int64_t inputs, std::int64_t outputs,
                                                 DType dtype, const LoadRow& load_row,
                                                 WeightArena& arena) {
  return std::make_unique<OnednnWeights>(inputs, outputs, dtype, load_row, arena);
}

}  // namespace sw
