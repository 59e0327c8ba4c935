#include "model/linear.hpp"

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

namespace sw {
namespace {

constexpr std::int64_t kTileRows = 128;
constexpr std::int64_t kPanelOutputs = 256;

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

/// dst [rows, outputs] (row stride `stride`) = src [rows, inputs] * weights [inputs, outputs].
dnnl::matmul::primitive_desc matmul_desc(DType dtype, std::int64_t rows, std::int64_t inputs,
                                         std::int64_t outputs, std::int64_t stride,
                                         const Memory::desc& weights) {
  const Memory::desc src({rows, inputs}, data_type(dtype), Memory::format_tag::ab);
  const Memory::desc dst({rows, outputs}, Memory::data_type::f32, Memory::dims{stride, 1});
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
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
  return matmul_desc(dtype, kTileRows, inputs, outputs, stride, any).weights_desc();
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
                       std::int64_t stride, const Memory::desc& weights) {
  thread_local std::map<std::array<std::int64_t, 5>, Product> cache;
  const std::array<std::int64_t, 5> key{static_cast<std::int64_t>(dtype), rows, inputs, outputs,
                                        stride};
  const auto it = cache.find(key);
  if (it != cache.end()) return it->second;
  const std::lock_guard lock(creation_mutex);
  const auto desc = matmul_desc(dtype, rows, inputs, outputs, stride, weights);
  return cache
      .emplace(key, Product{dnnl::matmul(desc), desc.src_desc(), desc.dst_desc(),
                            Memory(desc.scratchpad_desc(), engine())})
      .first->second;
}

}  // namespace

/// Panels of equal width, the last one narrower, one after the other in one allocation.
struct Linear::Panels {
  std::int64_t width = 0;       // outputs of a panel
  HeadsTensor storage;          // [1, panels, floats of the widest]
  std::vector<Memory> weights;  // looks into storage

  std::int64_t count() const { return static_cast<std::int64_t>(weights.size()); }
};

Linear::~Linear() = default;
Linear::Linear(Linear&&) noexcept = default;
Linear& Linear::operator=(Linear&&) noexcept = default;

Linear::Linear(std::int64_t inputs, std::int64_t outputs, DType dtype,
               const std::function<void(std::int64_t, float*)>& load_row, std::vector<float> bias)
    : inputs_(inputs), outputs_(outputs), dtype_(dtype), bias_(std::move(bias)) {
  assert(bias_.empty() || static_cast<std::int64_t>(bias_.size()) == outputs);
  auto panels = std::make_unique<Panels>();
  const std::int64_t wanted = (outputs + kPanelOutputs - 1) / kPanelOutputs;
  panels->width = ((outputs + wanted - 1) / wanted + 15) / 16 * 16;  // 16: floats of a vector
  const std::int64_t count = (outputs + panels->width - 1) / panels->width;
  const auto rows_of = [&](std::int64_t panel) {
    return std::min(panels->width, outputs - panel * panels->width);
  };
  try {
    const OneThread one_thread;
    const Memory::desc widest = weights_desc(dtype, inputs, rows_of(0), outputs);
    const Memory::desc last = weights_desc(dtype, inputs, rows_of(count - 1), outputs);
    const std::size_t bytes = (std::max(widest.get_size(), last.get_size()) + 63) / 64 * 64;
    panels->storage =
        HeadsTensor(DType::kF32, 1, count, static_cast<std::int64_t>(bytes / sizeof(float)));
    for (std::int64_t p = 0; p < count; ++p) {
      panels->weights.emplace_back(p + 1 < count ? widest : last, engine(),
                                   panels->storage.row<float>(0, p));
    }
  } catch (const dnnl::error& error) {
    fail(error, dtype);
  }
  // Allocated after the storage and freed before the next one, so that no holes are left between.
  std::vector<HeadsTensor> plain(static_cast<std::size_t>(num_threads()));
  for (HeadsTensor& p : plain) p = HeadsTensor(dtype, 1, rows_of(0), inputs);
  parallel_for(count, [&](std::int64_t p, int thread) {
    const OneThread one_thread;
    std::byte* rows = plain[static_cast<std::size_t>(thread)].data();
    std::vector<float> row(static_cast<std::size_t>(inputs));
    for (std::int64_t r = 0; r < rows_of(p); ++r) {
      load_row(p * panels->width + r, row.data());
      convert_from_float(row.data(), dtype, inputs,
                         rows + static_cast<std::size_t>(r * inputs) * dtype_size(dtype));
    }
    try {
      Memory source({{inputs, rows_of(p)}, data_type(dtype), Memory::format_tag::ba}, engine(),
                    rows);
      Memory& packed = panels->weights[static_cast<std::size_t>(p)];
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
  panels_ = std::move(panels);
}

std::uint64_t Linear::bytes() const {
  return panels_->storage.bytes() + bias_.size() * sizeof(float);
}

void Linear::apply(const void* x, std::int64_t rows, float* y) const {
  const std::int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  parallel_for(tiles * panels_->count(), [&](std::int64_t index, int) {
    const OneThread one_thread;
    const std::int64_t panel = index / tiles;
    const std::int64_t row = index % tiles * kTileRows;
    const std::int64_t tile_rows = std::min(kTileRows, rows - row);
    const std::int64_t first = panel * panels_->width;
    const std::int64_t width = std::min(panels_->width, outputs_ - first);
    const Memory& weights = panels_->weights[static_cast<std::size_t>(panel)];
    const auto* src = static_cast<const std::byte*>(x) +
                      static_cast<std::size_t>(row * inputs_) * dtype_size(dtype_);
    float* dst = y + row * outputs_ + first;
    try {
      const Product& matmul =
          product(dtype_, tile_rows, inputs_, width, outputs_, weights.get_desc());
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
    if (bias_.empty()) return;
    for (std::int64_t r = 0; r < tile_rows; ++r) {
      for (std::int64_t j = 0; j < width; ++j) dst[r * outputs_ + j] += bias_[first + j];
    }
  });
}

}  // namespace sw
