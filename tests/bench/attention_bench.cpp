// Attention and selection of the CPU backend, with the f32 matrix product of oneDNN in the same
// process as the ceiling to compare with. Counters: FLOP/s of the pairs that are really computed
// (4 d per visible pair), "of_gemm" the ratio to the matrix product.
//
//   attention_bench --benchmark_filter=8192
#include <benchmark/benchmark.h>
#include <dnnl.h>

#include <algorithm>
#include <chrono>
#include <string>
#include <vector>

#include "core/parallel.hpp"
#include "core/rng.hpp"
#include "kernels/cpu/backend.hpp"
#include "policy/list.hpp"

namespace sw {
namespace {

struct Shape {
  std::int64_t tokens, heads, kv_heads, dim;
};

HeadsTensor random_tensor(SplitMix64& rng, std::int64_t heads, std::int64_t tokens,
                          std::int64_t dim) {
  HeadsTensor x(DType::kBf16, heads, tokens, dim);
  for (std::int64_t i = 0; i < x.elements(); ++i) {
    x.row<Bf16>(0, 0)[i] = to_bf16(static_cast<float>(rng.normal()));
  }
  return x;
}

struct Data {
  HeadsTensor q, k, v;

  explicit Data(const Shape& shape) {
    SplitMix64 rng(1);
    q = random_tensor(rng, shape.heads, shape.tokens, shape.dim);
    k = random_tensor(rng, shape.kv_heads, shape.tokens, shape.dim);
    v = random_tensor(rng, shape.kv_heads, shape.tokens, shape.dim);
  }
  AttentionProblem problem() const { return {q.view(), k.view(), v.view(), 2}; }
};

/// FLOP/s of oneDNN's f32 matrix product, measured once: best of 5 products of 2048^3.
double gemm_flops() {
  static const double flops = [] {
    constexpr std::int64_t kSize = 2048;
    std::vector<float> a(kSize * kSize, 0.5f);
    std::vector<float> b(a);
    std::vector<float> c(a);
    double best = 1e9;
    for (int i = 0; i < 5; ++i) {
      const auto start = std::chrono::steady_clock::now();
      dnnl_sgemm('N', 'N', kSize, kSize, kSize, 1.0f, a.data(), kSize, b.data(), kSize, 0.0f,
                 c.data(), kSize);
      const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
      best = std::min(best, time.count());
    }
    return 2.0 * kSize * kSize * kSize / best;
  }();
  return flops;
}

void report(benchmark::State& state, double flop, double seconds) {
  state.counters["FLOP/s"] = flop / seconds;
  state.counters["of_gemm"] = flop / seconds / gemm_flops();
}

/// Selection with sketchwalk and attention at `density`; 1 is dense without a selection.
void attention(benchmark::State& state, const Shape& shape, double density) {
  const Data data(shape);
  const AttentionProblem problem = data.problem();
  const BlockGeometry geometry = problem.geometry(64);
  const auto backend = make_cpu_backend();
  const auto policy = make_policy("sketchwalk", 0);
  AttentionOutput output;
  double pairs = 0;
  double seconds = 0;
  for (auto _ : state) {
    const auto start = std::chrono::steady_clock::now();
    WalkState walk;
    const BlockSelection selection =
        density == 1.0
            ? BlockSelection::dense(geometry)
            : select_blocks(policy->score_prefill({problem, *backend, geometry}, walk, nullptr),
                            geometry, policy->budget(), density, Phase::kPrefill);
    backend->attend(problem, selection, output);
    benchmark::DoNotOptimize(output.out.data());
    seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    pairs += static_cast<double>(selection.count().kept_total());
  }
  report(state, 4.0 * static_cast<double>(shape.dim * shape.heads) * pairs, seconds);
  state.SetLabel(backend->detail());
}

void block_masses(benchmark::State& state, const Shape& shape) {
  const Data data(shape);
  const AttentionProblem problem = data.problem();
  const auto backend = make_cpu_backend();
  AttentionOutput output;
  BlockMass mass;
  for (auto _ : state) backend->attend_dense(problem, problem.geometry(64), output, mass);
}

void selection(benchmark::State& state, const Shape& shape, const std::string& spec) {
  const Data data(shape);
  const AttentionProblem problem = data.problem();
  const auto backend = make_cpu_backend();
  const auto policy = make_policy(spec, 0);
  for (auto _ : state) {
    WalkState walk;
    const BlockGeometry geometry = problem.geometry(64);
    benchmark::DoNotOptimize(
        select_blocks(policy->score_prefill({problem, *backend, geometry}, walk, nullptr), geometry,
                      policy->budget(), 0.2, Phase::kPrefill));
  }
}

const bool registered = [] {
  const Shape shapes[] = {{8192, 9, 3, 64}, {8192, 8, 2, 128}};
  for (const Shape& shape : shapes) {
    const std::string name = "/n" + std::to_string(shape.tokens) + "/h" +
                             std::to_string(shape.heads) + "/d" + std::to_string(shape.dim);
    const auto add = [&](const std::string& what, auto body) {
      benchmark::RegisterBenchmark((what + name).c_str(), body)
          ->Unit(benchmark::kMillisecond)
          ->UseRealTime()
          ->MeasureProcessCPUTime()
          ->MinTime(1.0);
    };
    for (const double density : {1.0, 0.2, 0.1}) {
      add("attention/density" + std::to_string(static_cast<int>(100 * density)),
          [=](benchmark::State& state) { attention(state, shape, density); });
    }
    add("dense_with_block_masses", [=](benchmark::State& state) { block_masses(state, shape); });
    for (const std::string spec :
         {"sketchwalk", "sketchwalk:preset=preprint",
          "sketchwalk:hadamard=unbiased,temperature=1,causal_sketch=true,key_pool=1,walk=none"}) {
      add("selection/" + spec, [=](benchmark::State& state) { selection(state, shape, spec); });
    }
  }
  return true;
}();

}  // namespace
}  // namespace sw
