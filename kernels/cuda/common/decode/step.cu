#include "kernels/cuda/common/decode/step.hpp"
#include "kernels/cuda/common/error.hpp"

namespace sw::cuda {
namespace {

__global__ void advance_lengths_kernel(std::int32_t* lengths, int batch) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < batch) lengths[i] += 1;
}

}  // namespace

void advance_lengths(std::int32_t* lengths, int batch, cudaStream_t stream) {
  advance_lengths_kernel<<<(batch + 31) / 32, 32, 0, stream>>>(lengths, batch);
  check_launch("advance_lengths_kernel");
}

DecodeStep::DecodeStep(const KvCache& shape, int num_heads) : attention_(shape, num_heads) {}

void DecodeStep::enqueue(const KvCache& cache, const void* q, DecodeSelector* selector, void* out,
                         float* lse, cudaStream_t stream) {
  DecodeBlocks blocks;
  if (selector != nullptr) {
    selector->run(cache, q, stream);
    blocks.kind = DecodeBlocks::Kind::kSelected;
    blocks.budget = selector->budget();
    blocks.list = selector->list();
  }
  attention_.run(cache, q, blocks, out, lse, stream);
}

void DecodeStep::enqueue(const KvCache& cache, const void* q, ProductSelector& selector,
                         const ProductSelector* below, void* out, float* lse, cudaStream_t stream) {
  selector.run(cache, q, below, stream);
  DecodeBlocks blocks;
  blocks.kind = DecodeBlocks::Kind::kList;
  blocks.budget = selector.budget();
  blocks.list = selector.list();
  blocks.token_sink = blocks.budget.kind == Budget::Kind::kRelease;
  attention_.run(cache, q, blocks, out, lse, stream);
}

void DecodeGraph::begin() {
  check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creation of a stream");
  check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal),
        "start of a graph capture");
}

void DecodeGraph::end() {
  cudaGraph_t graph = nullptr;
  check(cudaStreamEndCapture(stream_, &graph), "end of a graph capture");
  const cudaError_t status = cudaGraphInstantiate(&graph_, graph, 0);
  cudaGraphDestroy(graph);
  check(status, "instantiation of a graph");
}

DecodeGraph::~DecodeGraph() {
  if (graph_ != nullptr) cudaGraphExecDestroy(graph_);
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

void DecodeGraph::launch(cudaStream_t stream) const {
  check(cudaGraphLaunch(graph_, stream), "launch of a graph");
}

}  // namespace sw::cuda
