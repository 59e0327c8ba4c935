#include "kernels/cuda/backend.hpp"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "core/parallel.hpp"
#include "kernels/cuda/common/buffer.hpp"
#include "kernels/cuda/common/device.hpp"
#include "kernels/cuda/device_tensor.hpp"
#include "kernels/cuda/sm80/block_mass.hpp"
#include "kernels/cuda/sm80/output_sums.hpp"
#include "kernels/cuda/sm80/prefill_attention.hpp"
#include "kernels/cuda/transition.hpp"

namespace sw {
namespace {

using cuda::DeviceBuffer;
using cuda::HeadsPointer;
using cuda::sm80::kSums;

/// An output [heads, queries, dim] in device memory.
struct DeviceOutput final : KeptOutput {
  DeviceBuffer<float> values;
  std::int64_t heads = 0;
  std::int64_t queries = 0;
  std::int64_t dim = 0;
};

/// Throws std::invalid_argument for an output that is not kept, or not by this backend.
const DeviceOutput& device_output(const AttentionOutput& output) {
  const auto* kept = dynamic_cast<const DeviceOutput*>(output.kept.get());
  if (kept == nullptr)
    throw std::invalid_argument("comparison of an output that is not on the GPU");
  return *kept;
}

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(cuda::DeviceInfo device) : device_(std::move(device)) {}

  std::string name() const override { return "cuda"; }
  std::string detail() const override {
    return device_.name + " (sm_" + std::to_string(device_.major) + std::to_string(device_.minor) +
           "), sm80 kernels; block scores and walks in fp64 there, transform on the host; times "
           "include copies";
  }
  std::optional<std::string> unsupported(const AttentionProblem& problem) const override {
    if (problem.q.dtype != problem.k.dtype || problem.q.dtype != problem.v.dtype) {
      return "Q, K and V of different element types";
    }
    return cuda::sm80::unsupported(describe(problem, 64));
  }

  void attend(const AttentionProblem& problem, const BlockSelection& selection,
              AttentionOutput& output) const override;
  void attend_dense(const AttentionProblem& problem, const BlockGeometry& geometry,
                    AttentionOutput& output, BlockMass& mass) const override;
  OutputComparison compare(const AttentionOutput& dense, const AttentionOutput& sparse,
                           const BlockGeometry& geometry) const override;
  Matrix transition(const AttentionProblem& problem, const SketchParams& params,
                    StageTimes* times) const override;
  Matrix damped_walk(const Matrix& a, const Matrix* previous, double damping,
                     std::int64_t degree) const override;
  Matrix product_walk(const Matrix& a, const Matrix* previous) const override;

 private:
  static cuda::sm80::PrefillAttention describe(const AttentionProblem& problem, std::int64_t block);
  /// Inputs and results in device memory, those that `output` is to keep in its own; the selection
  /// is still to be set.
  cuda::sm80::PrefillAttention prepare(const AttentionProblem& problem, std::int64_t block,
                                       AttentionOutput& output) const;
  void run(cuda::sm80::PrefillAttention& attention) const;
  void fetch(const AttentionProblem& problem, AttentionOutput& output) const;

  cuda::DeviceInfo device_;
  // Device memory, kept from call to call.
  mutable cuda::DeviceTensor q_;
  mutable cuda::DeviceTensor k_;
  mutable cuda::DeviceTensor v_;
  mutable DeviceBuffer<float> out_;
  mutable DeviceBuffer<float> lse_;
  mutable DeviceBuffer<float> mass_;
  mutable DeviceBuffer<double> sums_;
  mutable DeviceBuffer<std::int64_t> row_begin_;
  mutable DeviceBuffer<std::int32_t> row_count_;
  mutable DeviceBuffer<std::int32_t> blocks_;
  mutable DeviceBuffer<std::byte> workspace_;
};

cuda::sm80::PrefillAttention CudaBackend::describe(const AttentionProblem& problem,
                                                   std::int64_t block) {
  cuda::sm80::PrefillAttention attention;
  attention.element = cuda::element_of(problem.q.dtype);
  attention.num_heads = static_cast<int>(problem.num_heads());
  attention.num_kv_heads = static_cast<int>(problem.num_kv_heads());
  attention.head_dim = static_cast<int>(problem.head_dim());
  attention.tokens = problem.tokens();
  attention.queries = problem.queries();
  attention.scale = static_cast<float>(problem.scale());
  const BlockGeometry geometry = problem.geometry(block);
  attention.selection.block = static_cast<int>(block);
  attention.selection.rows = static_cast<int>(geometry.rows());
  attention.selection.first_row = static_cast<int>(geometry.first_row());
  return attention;
}

cuda::sm80::PrefillAttention CudaBackend::prepare(const AttentionProblem& problem,
                                                  std::int64_t block,
                                                  AttentionOutput& output) const {
  problem.validate();
  require_supported(*this, problem);
  cuda::sm80::PrefillAttention attention = describe(problem, block);
  if (const auto reason = cuda::sm80::unsupported(attention)) {
    throw Error(ErrorKind::kUnsupported, "the backend 'cuda' cannot compute this: " + *reason,
                "use --backend cpu, or another --block");
  }
  attention.q = q_.upload(problem.q);
  attention.k = k_.upload(problem.k);
  attention.v = v_.upload(problem.v);
  const auto rows = static_cast<std::size_t>(problem.num_heads() * problem.queries());
  const std::size_t elements = rows * static_cast<std::size_t>(problem.head_dim());
  if (output.keep) {
    if (dynamic_cast<DeviceOutput*>(output.kept.get()) == nullptr) {
      output.kept = std::make_unique<DeviceOutput>();
    }
    auto& kept = static_cast<DeviceOutput&>(*output.kept);
    kept.values.reserve(elements);
    kept.heads = problem.num_heads();
    kept.queries = problem.queries();
    kept.dim = problem.head_dim();
    attention.out = kept.values.data();
  } else {
    output.kept.reset();
    out_.reserve(elements);
    attention.out = out_.data();
  }
  lse_.reserve(rows);
  attention.out_head_stride = problem.queries() * problem.head_dim();
  attention.out_token_stride = problem.head_dim();
  attention.lse = lse_.data();
  return attention;
}

/// The one place that chooses among the attention kernels of a GPU.
void CudaBackend::run(cuda::sm80::PrefillAttention& attention) const {
  workspace_.reserve(cuda::sm80::workspace_bytes(attention));
  attention.workspace = workspace_.data();
  cuda::sm80::prefill_attention(attention, nullptr);
  cuda::synchronize(nullptr, "attention kernel");
}

void CudaBackend::fetch(const AttentionProblem& problem, AttentionOutput& output) const {
  if (output.kept) {
    output.out = HeadsTensor();
  } else {
    output.reserve(problem);
    cuda::check(
        cudaMemcpy(output.out.data(), out_.data(), output.out.bytes(), cudaMemcpyDeviceToHost),
        "copy of the attention output from the GPU");
  }
  const std::vector<float> lse =
      lse_.download(static_cast<std::size_t>(problem.num_heads() * problem.queries()));
  output.lse.assign(lse.begin(), lse.end());
}

void CudaBackend::attend(const AttentionProblem& problem, const BlockSelection& selection,
                         AttentionOutput& output) const {
  if (selection.has_tokens()) {
    throw Error(ErrorKind::kUnsupported,
                "the backend 'cuda' cannot compute this: its kernels take whole blocks, and this "
                "selection keeps single keys",
                "use --backend cpu, or the method with unit=block");
  }
  cuda::sm80::PrefillAttention attention = prepare(problem, selection.geometry().block, output);
  const std::span<const std::int64_t> row_ptr = selection.row_ptr();
  std::vector<std::int32_t> counts(row_ptr.size() - 1);
  for (std::size_t i = 0; i < counts.size(); ++i) {
    counts[i] = static_cast<std::int32_t>(row_ptr[i + 1] - row_ptr[i]);
  }
  row_begin_.reserve(counts.size());
  row_begin_.upload(row_ptr.first(counts.size()));
  row_count_.reserve(counts.size());
  row_count_.upload(counts);
  blocks_.reserve(selection.all_blocks().size());
  blocks_.upload(selection.all_blocks());
  attention.selection.row_begin = row_begin_.data();
  attention.selection.row_count = row_count_.data();
  attention.selection.blocks = blocks_.data();
  attention.selection.groups = static_cast<int>(selection.groups());
  attention.selection.token_window = selection.token_window();
  attention.selection.token_sink = selection.token_sink();
  run(attention);
  fetch(problem, output);
}

void CudaBackend::attend_dense(const AttentionProblem& problem, const BlockGeometry& geometry,
                               AttentionOutput& output, BlockMass& mass) const {
  cuda::sm80::PrefillAttention attention = prepare(problem, geometry.block, output);
  run(attention);
  fetch(problem, output);

  mass.heads = problem.num_heads();
  mass.rows = geometry.rows();
  mass.cols = geometry.key_blocks();
  mass.values.resize(static_cast<std::size_t>(mass.heads * mass.rows * mass.cols));
  mass_.reserve(mass.values.size());
  cuda::sm80::BlockMasses masses;
  masses.q = attention.q;
  masses.k = attention.k;
  masses.element = attention.element;
  masses.num_heads = attention.num_heads;
  masses.num_kv_heads = attention.num_kv_heads;
  masses.head_dim = attention.head_dim;
  masses.tokens = attention.tokens;
  masses.queries = attention.queries;
  masses.scale = attention.scale;
  masses.lse = attention.lse;
  masses.block = static_cast<int>(geometry.block);
  masses.mass = mass_.data();
  cuda::sm80::block_masses(masses, nullptr);
  cuda::synchronize(nullptr, "block mass kernel");
  cuda::check(cudaMemcpy(mass.values.data(), mass_.data(), mass.values.size() * sizeof(float),
                         cudaMemcpyDeviceToHost),
              "copy of the block masses from the GPU");
}

OutputComparison CudaBackend::compare(const AttentionOutput& dense, const AttentionOutput& sparse,
                                      const BlockGeometry& geometry) const {
  const DeviceOutput& a = device_output(dense);
  const DeviceOutput& b = device_output(sparse);
  if (a.heads != b.heads || a.queries != b.queries || a.dim != b.dim ||
      a.queries != geometry.tokens - geometry.query_begin) {
    throw std::invalid_argument("comparison of outputs of another shape");
  }
  OutputComparison comparison(a.heads, geometry.rows());
  sums_.reserve(comparison.values.size() * kSums);
  cuda::sm80::OutputPair problem;
  problem.dense = a.values.data();
  problem.sparse = b.values.data();
  problem.heads = static_cast<int>(a.heads);
  problem.head_dim = static_cast<int>(a.dim);
  problem.tokens = geometry.tokens;
  problem.queries = a.queries;
  problem.block = static_cast<int>(geometry.block);
  problem.sums = sums_.data();
  cuda::sm80::output_sums(problem, nullptr);
  const std::vector<double> sums = sums_.download(comparison.values.size() * kSums);
  for (std::size_t i = 0; i < comparison.values.size(); ++i) {
    const double* x = sums.data() + i * kSums;
    comparison.values[i] = {x[0], x[1], x[2], x[3]};
  }
  return comparison;
}

Matrix CudaBackend::transition(const AttentionProblem& problem, const SketchParams& params,
                               StageTimes* times) const {
  problem.validate();
  require_supported(*this, problem);
  if (problem.query_begin() != 0) {
    throw Error(ErrorKind::kUnsupported,
                "block scores of a prefill need the queries of all tokens");
  }
  return cuda::transition(problem, q_.upload(problem.q), k_.upload(problem.k), params, times);
}

Matrix CudaBackend::damped_walk(const Matrix& a, const Matrix* previous, double damping,
                                std::int64_t degree) const {
  if (damping == 0.0 || degree == 0) return a;
  return cuda::walk(a, previous ? *previous : a, damping, 1.0 - damping, degree);
}

Matrix CudaBackend::product_walk(const Matrix& a, const Matrix* previous) const {
  Matrix state = previous ? cuda::walk(a, *previous, 1.0, 0.0, 1) : a;
  parallel_for(a.rows(), [&](std::int64_t i, int) {
    const std::span<double> row = state.row(i);
    std::fill(row.begin() + i + 1, row.end(), 0.0);
    const double total = std::accumulate(row.begin(), row.end(), 0.0);
    if (total > 0.0) {
      for (double& x : row) x /= total;
    }
  });
  return state;
}

}  // namespace

std::unique_ptr<Backend> make_cuda_backend() {
  std::string why = "no CUDA device";
  const std::vector<cuda::DeviceInfo> devices = cuda::list_devices(why);
  if (devices.empty()) {
    throw Error(ErrorKind::kUnsupported, "there is no GPU to use: " + why, "use --backend cpu");
  }
  const cuda::DeviceInfo& device = devices.front();
  if (device.major < 8) {
    throw Error(ErrorKind::kUnsupported,
                "the GPU " + device.name + " has compute capability " +
                    std::to_string(device.major) + "." + std::to_string(device.minor) +
                    "; the CUDA kernels need 8.0 or more (Ampere and later)",
                "use --backend cpu");
  }
  return std::make_unique<CudaBackend>(device);
}

}  // namespace sw
