// Decode on the GPU: time of one layer of a step, with selection and attention as a graph of
// several layers with caches of their own (so that nothing is in L2 from the step before), against
// dense attention with the same kernel.
//   decode_bench [tokens batch heads kv_heads head_dim layers]...
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "core/dtype.hpp"
#include "core/error.hpp"
#include "core/rng.hpp"
#include "kernels/cuda/common/decode/step.hpp"
#include "kernels/cuda/common/error.hpp"

namespace sw::cuda {
namespace {

struct Case {
  int tokens, batch, heads, kv_heads, dim, layers;
};

/// `count` normal bf16 values, a random run of 2^22 repeated at a shift.
DeviceBuffer<std::uint16_t> random_values(std::size_t count, std::uint64_t seed) {
  static const std::vector<std::uint16_t> run = [] {
    std::vector<std::uint16_t> values(1 << 22);
    SplitMix64 rng(1);
    for (auto& x : values) x = to_bf16(static_cast<float>(rng.normal())).bits;
    return values;
  }();
  DeviceBuffer<std::uint16_t> buffer(count);
  std::size_t at = 0;
  for (std::size_t shift = (seed * 7919) % 4096; at < count; shift = (shift * 31 + 17) % 4096) {
    const std::size_t part = std::min(count - at, run.size() - shift);
    check(cudaMemcpy(buffer.data() + at, run.data() + shift, 2 * part, cudaMemcpyHostToDevice),
          "copy to the GPU");
    at += part;
  }
  return buffer;
}

/// Median microseconds of one replay, over `layers`, and the smallest.
struct Time {
  double median, best;
};

template <class F>
Time time_graph(int layers, F&& record) {
  const DecodeGraph graph(record);
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "creation of a stream");
  cudaEvent_t start, stop;
  check(cudaEventCreate(&start), "creation of an event");
  check(cudaEventCreate(&stop), "creation of an event");
  std::vector<double> times;
  for (int i = 0; i < 33; ++i) {
    check(cudaEventRecord(start, stream), "event");
    graph.launch(stream);
    check(cudaEventRecord(stop, stream), "event");
    synchronize(stream, "decode graph");
    float milliseconds = 0.0f;
    check(cudaEventElapsedTime(&milliseconds, start, stop), "event");
    if (i >= 3) times.push_back(1e3 * milliseconds / layers);
  }
  cudaEventDestroy(start);
  cudaEventDestroy(stop);
  cudaStreamDestroy(stream);
  std::sort(times.begin(), times.end());
  return {times[times.size() / 2], times.front()};
}

struct Layer {
  DeviceBuffer<std::uint16_t> k, v, q, out;
  std::unique_ptr<DecodeSelector> selector;
  KvCache cache;
};

void bench(const Case& c) {
  const int block = 64;
  const int blocks = (c.tokens + block - 1) / block;
  std::vector<std::int32_t> lengths(c.batch, c.tokens - 1);
  DeviceBuffer<std::int32_t> device_lengths{std::span<const std::int32_t>(lengths)};

  SplitMix64 rng(3);
  std::vector<float> transition(static_cast<std::size_t>(c.batch) * blocks * blocks);
  for (std::size_t row = 0; row < transition.size(); row += blocks) {
    double total = 0.0;
    for (int j = 0; j < blocks; ++j) total += transition[row + j] = float(0.2 + rng.uniform());
    for (int j = 0; j < blocks; ++j) transition[row + j] = float(transition[row + j] / total);
  }
  std::vector<float> sums(static_cast<std::size_t>(c.batch) * c.kv_heads * blocks * c.dim);
  for (auto& x : sums) x = static_cast<float>(30.0 * rng.normal());
  std::vector<float> window(static_cast<std::size_t>(c.batch) * c.heads * 32 * c.dim);
  for (auto& x : window) x = static_cast<float>(rng.normal());
  const DeviceBuffer<float> transition_device{std::span<const float>(transition)};
  const DeviceBuffer<float> sums_device{std::span<const float>(sums)};
  const DeviceBuffer<float> window_device{std::span<const float>(window)};

  std::vector<Layer> layers(c.layers);
  for (int l = 0; l < c.layers; ++l) {
    Layer& layer = layers[l];
    const std::size_t cells = static_cast<std::size_t>(c.batch) * c.kv_heads * c.tokens * c.dim;
    layer.k = random_values(cells, 2 * l);
    layer.v = random_values(cells, 2 * l + 1);
    layer.q = random_values(static_cast<std::size_t>(c.batch) * c.heads * c.dim, 100 + l);
    layer.out = DeviceBuffer<std::uint16_t>(layer.q.size());
    layer.cache.batch = c.batch;
    layer.cache.kv_heads = c.kv_heads;
    layer.cache.head_dim = c.dim;
    layer.cache.k = layer.k.data();
    layer.cache.v = layer.v.data();
    layer.cache.token_stride = c.dim;
    layer.cache.head_stride = static_cast<std::int64_t>(c.tokens) * c.dim;
    layer.cache.sequence_stride = layer.cache.head_stride * c.kv_heads;
    layer.cache.lengths = device_lengths.data();
  }
  DecodeStep step(layers[0].cache, c.heads);
  const double dense_bytes = 4.0 * c.batch * c.kv_heads * c.tokens * c.dim;
  const Time dense = time_graph(c.layers, [&](cudaStream_t stream) {
    for (Layer& x : layers)
      step.enqueue(x.cache, x.q.data(), nullptr, x.out.data(), nullptr, stream);
  });
  std::printf("n %d batch %d heads %d/%d d %d: dense %.2f us (best %.2f, %.0f GB/s)\n", c.tokens,
              c.batch, c.heads, c.kv_heads, c.dim, dense.median, dense.best,
              dense_bytes / dense.median * 1e-3);

  for (const double density : {0.2, 0.1}) {
    check(cudaMemcpy(device_lengths.data(), lengths.data(), lengths.size() * 4,
                     cudaMemcpyHostToDevice),
          "copy to the GPU");
    SketchParams params;
    params.sketch_dim = 128;
    for (int l = 0; l < c.layers; ++l) {
      DecodeSelectorShape shape;
      shape.num_heads = c.heads;
      shape.capacity = blocks;
      shape.budget.density = density;
      layers[l].selector.reset();
      layers[l].selector = std::make_unique<DecodeSelector>(layers[l].cache, shape, params, l);
      layers[l].selector->load(
          layers[l].cache,
          {transition_device.data(), sums_device.data(), window_device.data(), blocks}, nullptr);
    }
    advance_lengths(device_lengths.data(), c.batch, nullptr);
    synchronize(nullptr, "load of the decode state");
    const Time select = time_graph(c.layers, [&](cudaStream_t stream) {
      for (Layer& x : layers) x.selector->run(x.cache, x.q.data(), stream);
    });
    const std::vector<std::int32_t> counts = [&] {
      std::vector<std::int32_t> host(c.batch);
      check(cudaMemcpy(host.data(), layers[0].selector->list().counts, host.size() * 4,
                       cudaMemcpyDeviceToHost),
            "copy from the GPU");
      return host;
    }();
    const auto attend = [&](DecodeBlocks::Kind kind) {
      return time_graph(c.layers, [&](cudaStream_t stream) {
        for (Layer& x : layers) {
          DecodeBlocks blocks_of;
          blocks_of.kind = kind;
          blocks_of.list = x.selector->list();
          blocks_of.budget = x.selector->budget();
          step.attention().run(x.cache, x.q.data(), blocks_of, x.out.data(), nullptr, stream);
        }
      });
    };
    const Time list = attend(DecodeBlocks::Kind::kList);
    const Time forced = attend(DecodeBlocks::Kind::kForced);
    const Time scored = attend(DecodeBlocks::Kind::kScored);
    const Time serial = time_graph(c.layers, [&](cudaStream_t stream) {
      for (Layer& x : layers) {
        DecodeBlocks blocks_of;
        blocks_of.kind = DecodeBlocks::Kind::kList;
        blocks_of.list = x.selector->list();
        x.selector->run(x.cache, x.q.data(), stream);
        step.attention().run(x.cache, x.q.data(), blocks_of, x.out.data(), nullptr, stream);
      }
    });
    const Time whole = time_graph(c.layers, [&](cudaStream_t stream) {
      for (Layer& x : layers) {
        step.enqueue(x.cache, x.q.data(), x.selector.get(), x.out.data(), nullptr, stream);
      }
    });
    const double bytes = dense_bytes * counts[0] / blocks;
    std::printf(
        "  %2.0f%% (%d of %d blocks): step %.2f us (best %.2f; %.2fx dense); selection %.2f, "
        "attention %.2f (%.0f GB/s), forced %.2f, scored %.2f; one after the other %.2f\n",
        100 * density, counts[0], blocks, whole.median, whole.best, dense.median / whole.median,
        select.median, list.median, bytes / list.median * 1e-3, forced.median, scored.median,
        serial.median);
  }
}

int run(int argc, char** argv) {
  std::vector<Case> cases;
  for (int i = 1; i + 5 < argc; i += 6) {
    cases.push_back({std::atoi(argv[i]), std::atoi(argv[i + 1]), std::atoi(argv[i + 2]),
                     std::atoi(argv[i + 3]), std::atoi(argv[i + 4]), std::atoi(argv[i + 5])});
  }
  if (cases.empty()) cases.push_back({131072, 1, 32, 8, 128, 8});
  for (const Case& c : cases) bench(c);
  return 0;
}

}  // namespace
}  // namespace sw::cuda

int main(int argc, char** argv) {
  try {
    return sw::cuda::run(argc, argv);
  } catch (const sw::Error& error) {
    std::fprintf(stderr, "decode_bench: %s\n  %s\n", error.what(), error.hint().c_str());
    return error.exit_code();
  }
}
