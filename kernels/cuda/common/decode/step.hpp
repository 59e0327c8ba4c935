#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/common/decode/attention.hpp"
#include "kernels/cuda/common/decode/product_selector.hpp"
#include "kernels/cuda/common/decode/selector.hpp"

/// A decode step as one CUDA graph. The context lengths live on the device and advance there, and
/// everything that follows from them (current block, alpha, budget, tiles) is worked out by the
/// kernels, so the same graph serves every step and the host never waits.
namespace sw::cuda {

/// lengths[0..batch) += 1: one more token in each cache. Launches one kernel.
void advance_lengths(std::int32_t* lengths, int batch, cudaStream_t stream);

class DecodeStep {
 public:
  /// Workspace of the attention (see DecodeAttention).
  DecodeStep(const KvCache& shape, int num_heads);

  /// Selection and attention of one layer, for capture or direct launch: the sink and window
  /// blocks, which follow from the length, are attended to while the other blocks are scored. With
  /// no selector the layer is dense. Buffers as in DecodeAttention::run.
  void enqueue(const KvCache& cache, const void* q, DecodeSelector* selector, void* out, float* lse,
               cudaStream_t stream);

  /// The same with the walk of the preprint; `below` as in ProductSelector::run. Nothing overlaps.
  void enqueue(const KvCache& cache, const void* q, ProductSelector& selector,
               const ProductSelector* below, void* out, float* lse, cudaStream_t stream);

  DecodeAttention& attention() { return attention_; }

 private:
  DecodeAttention attention_;
};

/// An instantiated graph.
class DecodeGraph {
 public:
  /// Records what `record(stream)` enqueues. Throws Error(kResource) when the capture fails.
  template <class F>
  explicit DecodeGraph(F&& record) {
    begin();
    record(stream_);
    end();
  }
  ~DecodeGraph();
  DecodeGraph(const DecodeGraph&) = delete;
  DecodeGraph& operator=(const DecodeGraph&) = delete;

  void launch(cudaStream_t stream) const;

 private:
  void begin();
  void end();
  cudaStream_t stream_ = nullptr;
  cudaGraphExec_t graph_ = nullptr;
};

}  // namespace sw::cuda
