// Times the stages of block selection on the GPU (sketchwalk.md sections 1 to 3) for 32 query
// heads, 8 KV heads, head_dim 128, bf16, by CUDA events around replays of a graph that holds
// several repetitions; the inputs rotate among sets larger than the L2 cache. Medians of 15
// replays.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <random>
#include <vector>

#include "core/dtype.hpp"
#include "kernels/cuda/common/device.hpp"
#include "kernels/cuda/common/selection/selector.hpp"

namespace sw::cuda {
namespace {

constexpr int kHeads = 32;
constexpr int kKvHeads = 8;
constexpr int kDim = 128;

/// Median milliseconds of one call of `work(i)`.
double time_graph(cudaStream_t stream, int repetitions, const std::function<void(int)>& work) {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  for (int i = 0; i < repetitions; ++i) work(i);
  check(cudaStreamEndCapture(stream, &graph), "capture");
  check(cudaGraphInstantiate(&exec, graph, 0), "graph");
  cudaEvent_t begin = nullptr;
  cudaEvent_t end = nullptr;
  check(cudaEventCreate(&begin), "event");
  check(cudaEventCreate(&end), "event");
  std::vector<float> times;
  for (int i = 0; i < 18; ++i) {
    check(cudaEventRecord(begin, stream), "event");
    check(cudaGraphLaunch(exec, stream), "graph");
    check(cudaEventRecord(end, stream), "event");
    synchronize(stream, "benchmark");
    float ms = 0.0f;
    check(cudaEventElapsedTime(&ms, begin, end), "event");
    if (i >= 3) times.push_back(ms / static_cast<float>(repetitions));
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
  return times[times.size() / 2];
}

struct Inputs {
  DeviceBuffer<std::uint16_t> q;
  DeviceBuffer<std::uint16_t> k;
};

DeviceBuffer<std::uint16_t> random_bf16(std::int64_t elements, unsigned seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  std::vector<std::uint16_t> pattern(1 << 22);
  for (auto& x : pattern) x = to_bf16(normal(rng)).bits;
  DeviceBuffer<std::uint16_t> device(static_cast<std::size_t>(elements));
  for (std::int64_t at = 0; at < elements;) {
    const auto shift = static_cast<std::int64_t>(rng() % (1 << 20)) * 2;
    const std::int64_t count =
        std::min(elements - at, static_cast<std::int64_t>(pattern.size()) - shift);
    check(cudaMemcpy(device.data() + at, pattern.data() + shift,
                     static_cast<std::size_t>(count) * 2, cudaMemcpyHostToDevice),
          "copy of random values");
    at += count;
  }
  return device;
}

void run(std::int64_t n, cudaStream_t stream) {
  const int sets = n <= 16384 ? 4 : 2;
  std::vector<Inputs> inputs;
  for (int i = 0; i < sets; ++i) {
    inputs.push_back({random_bf16(n * kHeads * kDim, static_cast<unsigned>(2 * i + 1)),
                      random_bf16(n * kKvHeads * kDim, static_cast<unsigned>(2 * i + 2))});
  }
  const auto q = [&](int i) {
    return HeadsPointer{inputs[static_cast<std::size_t>(i % sets)].q.data(), n * kDim, kDim};
  };
  const auto k = [&](int i) {
    return HeadsPointer{inputs[static_cast<std::size_t>(i % sets)].k.data(), n * kDim, kDim};
  };
  SketchParams sketch;
  sketch.sketch_dim = 128;
  const AttentionShape shape{kHeads, kKvHeads, kDim, n, 4};
  Selector selector(shape, sketch, {}, {});
  WalkMatrix state = selector.make_state();
  selector.transition(q(0), k(0), Element::kBf16, n, 2, stream);
  selector.walk(state, stream);
  selector.select(0.2, stream);
  synchronize(stream, "selection");

  SplitMatrix a(static_cast<int>((n + 63) / 64), Split::kF16);
  const int reps = 4;
  const double pool = time_graph(stream, reps, [&](int i) {
    selector.sketch().pool(q(i), k(i), Element::kBf16, n, 2, stream);
  });
  const double score = time_graph(stream, reps, [&](int) { selector.sketch().score(stream); });
  const double finish = time_graph(stream, reps, [&](int) { selector.sketch().finish(a, stream); });
  const double walk = time_graph(stream, reps, [&](int) { selector.walk(state, stream); });
  const double select = time_graph(stream, reps, [&](int) { selector.select(0.2, stream); });
  const double all = time_graph(stream, reps, [&](int i) {
    selector.transition(q(i), k(i), Element::kBf16, n, 2, stream);
    selector.walk(state, stream);
    selector.select(0.2, stream);
  });
  const KernelCost pool_cost = selector.sketch().pool_cost(n);
  const KernelCost score_cost = selector.sketch().score_cost(n);
  const KernelCost walk_cost = Walk::cost(static_cast<int>((n + 63) / 64), 3);
  std::printf(
      "%7lld  %.4f (%4.2f TB/s)  %.4f (%3.0f TFLOP/s)  %.4f  %.4f (%3.0f TFLOP/s)  %.4f  "
      "all %.4f ms\n",
      static_cast<long long>(n), pool, pool_cost.bytes / pool * 1e-9, score,
      score_cost.flops / score * 1e-9, finish, walk, walk_cost.flops / walk * 1e-9, select, all);
  std::fflush(stdout);
}

}  // namespace
}  // namespace sw::cuda

int main() {
  std::string why;
  const auto devices = sw::cuda::list_devices(why);
  if (devices.empty()) {
    std::printf("no GPU: %s\n", why.c_str());
    return 0;
  }
  std::printf(
      "%s\n tokens  pool                 score                  finish  walk"
      "                   select\n",
      devices.front().name.c_str());
  cudaStream_t stream = nullptr;
  sw::cuda::check(cudaStreamCreate(&stream), "stream");
  for (const std::int64_t n : {8192, 32768, 65536, 131072}) sw::cuda::run(n, stream);
  cudaStreamDestroy(stream);
  return 0;
}
