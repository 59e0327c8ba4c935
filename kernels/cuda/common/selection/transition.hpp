#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "attention/sketch.hpp"
#include "kernels/cuda/common/buffer.hpp"
#include "kernels/cuda/common/launch.hpp"
#include "kernels/cuda/common/selection/matrix.hpp"

/// The block transition matrix of a prefill (sketchwalk.md sections 1 and 9): queries and keys are
/// pooled in one pass over memory, transformed, and scored on tensor cores; softmax and head sum
/// are fused with the scores, so that no b x b matrix of a head is ever written.
namespace sw::cuda {

struct AttentionShape {
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  std::int64_t max_tokens = 0;
  int layers = 1;  ///< layer indices 0 .. layers - 1 may be asked for
};

/// Owns its device memory; a call allocates nothing and can be captured in a graph.
class Transition {
 public:
  /// Why these options cannot be computed, or nothing.
  static std::optional<std::string> unsupported(const AttentionShape& shape,
                                                const SketchParams& params);

  /// Throws Error(kUnsupported) with that reason, Error(kResource) without memory.
  Transition(const AttentionShape& shape, const SketchParams& params);

  /// out := A for queries q [num_heads, tokens, head_dim] and keys k [num_kv_heads, tokens,
  /// head_dim] of one layer, both at positions 0 .. tokens - 1, 16-byte aligned. Without
  /// `normalize`, out holds A * out_scale(). A NaN or an infinity in q or k makes rows of NaN.
  /// Error of an element: about 2^-20 of its logit's terms, relative (mma.cuh).
  void run(const HeadsPointer& q, const HeadsPointer& k, Element element, std::int64_t tokens,
           std::int64_t layer, SplitMatrix& out, cudaStream_t stream);

  /// The three parts of run(), for timing: pooled and transformed operands; per-head softmax and
  /// their sum over heads; the rows of A.
  void pool(const HeadsPointer& q, const HeadsPointer& k, Element element, std::int64_t tokens,
            std::int64_t layer, cudaStream_t stream);
  void score(cudaStream_t stream);
  void finish(SplitMatrix& out, cudaStream_t stream);

  /// Power of two that keeps powers of small probabilities in range; 1 when rows are normalised.
  double out_scale() const;

  KernelCost pool_cost(std::int64_t tokens) const;
  KernelCost score_cost(std::int64_t tokens) const;

 private:
  /// Pooled vectors of one side as split operands [2 planes][heads][padded pools][padded dim], each
  /// vector times a power of two that `scale` [heads][padded pools] undoes.
  struct Side {
    int heads = 0;  ///< of the operands: 1 after a mean over heads
    int input_heads = 0;
    int pool = 0;  ///< tokens
    DeviceBuffer<std::uint16_t> operands;
    DeviceBuffer<float> scale;
    DeviceBuffer<float> means;  ///< [input heads][pools][head_dim], before a mean over heads
    std::int64_t plane = 0;

    int count(std::int64_t tokens) const { return static_cast<int>((tokens + pool - 1) / pool); }
  };

  AttentionShape shape_;
  SketchParams params_;
  bool transformed_ = false;
  int dim_ = 0;         ///< of an operand: r, or head_dim
  int padded_dim_ = 0;  ///< a multiple of the pipeline step
  std::int64_t tokens_ = 0;
  Side queries_;
  Side keys_;
  DeviceBuffer<float> lse_;   ///< [heads][padded query pools], log2 of the softmax denominators
  DeviceBuffer<float> sums_;  ///< [head chunks, or pieces][blocks, padded blocks]
  int head_chunks_ = 1;
  StripPieces pieces_;                      ///< without heads where there are head chunks
  DeviceBuffer<float> signs_;               ///< [layers][d']
  DeviceBuffer<std::int32_t> permutation_;  ///< [layers][d']
};

}  // namespace sw::cuda
