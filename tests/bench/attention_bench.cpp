// Attention, decode and selection of the CPU backend for each instruction set and dtype, next to
// what this machine gives at best in the same process: oneDNN's matrix product of the same dtype
// and reading memory from one end to the other. Counters, of the best iteration:
//
//   FLOP/s    4 d for each visible (query, key) pair and head; never for pairs that are skipped
//   of_gemm   FLOP/s over those of the matrix product (f32 products for f16, computed likewise)
//   bytes/s   keys and values of the visible blocks, read once for the heads of a group
//   of_read   bytes/s over those of the plain read
//   cpu_*     the same with CPU time over threads in place of wall time: on a machine that others
//             use too, what an iteration takes while it has its CPUs (OMP_WAIT_POLICY=PASSIVE keeps
//             oneDNN's waiting out of it)
//
// SW_BENCH_THREADS sets the number of threads (oneDNN's is OMP_NUM_THREADS).
//
//   attention_bench --benchmark_filter='prefill/avx512_bf16/bf16/n8192/h9_3/d64'
#include <benchmark/benchmark.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <dnnl.hpp>
#include <map>
#include <string>
#include <vector>

#include "core/parallel.hpp"
#include "core/rng.hpp"
#include "kernels/cpu/backend.hpp"
#include "kernels/cpu/isa.hpp"
#include "policy/list.hpp"

namespace sw {
namespace {

struct Shape {
  std::int64_t tokens, heads, kv_heads, dim;

  std::string name() const {
    return "/n" + std::to_string(tokens) + "/h" + std::to_string(heads) + "_" +
           std::to_string(kv_heads) + "/d" + std::to_string(dim);
  }
};

HeadsTensor random_tensor(SplitMix64& rng, DType dtype, std::int64_t heads, std::int64_t tokens,
                          std::int64_t dim) {
  HeadsTensor x(dtype, heads, tokens, dim);
  // A normal sample is dear: a long one is repeated, at a length that no block size divides.
  std::vector<float> sample(99991);
  for (float& value : sample) value = static_cast<float>(rng.normal());
  const auto size = static_cast<std::int64_t>(sample.size());
  for (std::int64_t i = 0; i < x.elements(); i += size) {
    convert_from_float(sample.data(), dtype, std::min(size, x.elements() - i),
                       x.data() + static_cast<std::size_t>(i) * dtype_size(dtype));
  }
  return x;
}

struct Layer {
  HeadsTensor q, k, v;

  Layer(const Shape& shape, DType dtype, std::int64_t queries, std::uint64_t seed) {
    SplitMix64 rng(seed);
    q = random_tensor(rng, dtype, shape.heads, queries, shape.dim);
    k = random_tensor(rng, dtype, shape.kv_heads, shape.tokens, shape.dim);
    v = random_tensor(rng, dtype, shape.kv_heads, shape.tokens, shape.dim);
  }
  AttentionProblem problem() const { return {q.view(), k.view(), v.view(), 2}; }
};

double cpu_seconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

/// Shortest wall and CPU times of calls of `f`.
class Stopwatch {
 public:
  template <class F>
  void time(F&& f) {
    const double cpu = cpu_seconds();
    const auto start = std::chrono::steady_clock::now();
    f();
    const std::chrono::duration<double> wall = std::chrono::steady_clock::now() - start;
    wall_ = std::min(wall_, wall.count());
    cpu_ = std::min(cpu_, cpu_seconds() - cpu);
  }
  double wall() const { return wall_; }
  double cpu() const { return cpu_ / num_threads(); }

 private:
  double wall_ = 1e30;
  double cpu_ = 1e30;
};

/// What an amount of work (FLOP or bytes) took at best.
struct Ceiling {
  double work;
  Stopwatch watch;
};

/// FLOP of oneDNN's matrix product of 2048^3, f32 accumulation and result: best of 15, once.
const Ceiling& gemm(DType dtype) {
  static std::map<DType, Ceiling> known;
  if (known.contains(dtype)) return known[dtype];
  constexpr dnnl::memory::dim kSize = 2048;
  using Memory = dnnl::memory;
  const auto type = dtype == DType::kBf16 ? Memory::data_type::bf16 : Memory::data_type::f32;
  const Memory::desc in({kSize, kSize}, type, Memory::format_tag::ab);
  const Memory::desc any({kSize, kSize}, type, Memory::format_tag::any);
  const Memory::desc out({kSize, kSize}, Memory::data_type::f32, Memory::format_tag::ab);
  const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  dnnl::stream stream(engine);
  const dnnl::matmul::primitive_desc description(dnnl::matmul::desc(in, any, out), engine);
  const dnnl::matmul product(description);
  Memory a(in, engine);
  Memory b(description.weights_desc(), engine);
  Memory c(out, engine);
  for (const Memory& x : {a, b}) {
    const std::size_t bytes = x.get_desc().get_size();
    if (dtype == DType::kBf16) {
      std::fill_n(static_cast<std::uint16_t*>(x.get_data_handle()), bytes / 2, to_bf16(0.37f).bits);
    } else {
      std::fill_n(static_cast<float*>(x.get_data_handle()), bytes / 4, 0.37f);
    }
  }
  Stopwatch watch;
  for (int i = 0; i < 15; ++i) {
    watch.time([&] {
      product.execute(stream, {{DNNL_ARG_SRC, a}, {DNNL_ARG_WEIGHTS, b}, {DNNL_ARG_DST, c}});
      stream.wait();
    });
  }
  return known[dtype] = {2.0 * kSize * kSize * kSize, watch};
}

/// Bytes of reading 256 MiB with all threads, in the pages that tensors have: best of 15, once.
const Ceiling& plain_read() {
  static const Ceiling ceiling = [] {
    constexpr std::int64_t kParts = 256;
    constexpr std::int64_t kPart = (1 << 20) / 8;
    HeadsTensor data(DType::kF32, 1, kParts, 2 * kPart);
    std::fill_n(data.row<float>(0, 0), data.elements(), 1.0f);
    std::vector<std::uint64_t> sums(kParts);
    Stopwatch watch;
    for (int i = 0; i < 15; ++i) {
      watch.time([&] {
        parallel_for(kParts, [&](std::int64_t part, int) {
          const auto* x = reinterpret_cast<const std::uint64_t*>(data.row<float>(0, part));
          std::uint64_t sum[16] = {};
          for (std::int64_t j = 0; j < kPart; j += 16) {
            for (int u = 0; u < 16; ++u) sum[u] += x[j + u];
          }
          for (const std::uint64_t s : sum) sums[static_cast<std::size_t>(part)] += s;
        });
      });
      benchmark::DoNotOptimize(sums.data());
    }
    return Ceiling{static_cast<double>(data.bytes()), watch};
  }();
  return ceiling;
}

/// Counters of one kind of work: its rate and the share of the ceiling, by wall and by CPU time.
void report(benchmark::State& state, const Stopwatch& watch, const std::string& unit, double work,
            const std::string& share, const Ceiling& ceiling) {
  state.counters[unit] = work / watch.wall();
  state.counters["cpu_" + unit] = work / watch.cpu();
  state.counters[share] = work / watch.wall() / (ceiling.work / ceiling.watch.wall());
  state.counters["cpu_" + share] = work / watch.cpu() / (ceiling.work / ceiling.watch.cpu());
  state.counters["ms"] = 1e3 * watch.wall();
  state.counters["cpu_ms"] = 1e3 * watch.cpu();
}

BlockSelection select(const Policy& policy, const Backend& backend, const AttentionProblem& problem,
                      double density) {
  const BlockGeometry geometry = problem.geometry(64);
  WalkState walk;
  return select_blocks(policy.score_prefill({problem, backend, geometry}, walk, nullptr), geometry,
                       policy.budget(), density, Phase::kPrefill);
}

/// Selection with sketchwalk and attention at `density`; 1 is dense without a selection.
void prefill(benchmark::State& state, const Shape& shape, const std::string& isa, DType dtype,
             double density) {
  const Layer layer(shape, dtype, shape.tokens, 1);
  const AttentionProblem problem = layer.problem();
  const auto backend = make_cpu_backend(isa);
  const auto policy = make_policy("sketchwalk", 0);
  BlockSelection selection = BlockSelection::dense(problem.geometry(64));
  AttentionOutput output;
  output.out_only = true;
  backend->attend(problem, selection, output);
  Stopwatch watch;
  for (auto _ : state) {
    watch.time([&] {
      if (density < 1.0) selection = select(*policy, *backend, problem, density);
      backend->attend(problem, selection, output);
    });
  }
  const auto pairs = static_cast<double>(selection.count().kept_total());
  report(state, watch, "FLOP/s", 4.0 * static_cast<double>(shape.dim * shape.heads) * pairs,
         "of_gemm", gemm(dtype));
}

void block_masses(benchmark::State& state, const Shape& shape, const std::string& isa,
                  DType dtype) {
  const Layer layer(shape, dtype, shape.tokens, 1);
  const AttentionProblem problem = layer.problem();
  const auto backend = make_cpu_backend(isa);
  AttentionOutput output;
  BlockMass mass;
  Stopwatch watch;
  for (auto _ : state) {
    watch.time([&] { backend->attend_dense(problem, problem.geometry(64), output, mass); });
  }
  const double n = static_cast<double>(shape.tokens);
  report(state, watch, "FLOP/s", 2.0 * n * (n + 1.0) * static_cast<double>(shape.dim * shape.heads),
         "of_gemm", gemm(dtype));
}

/// One query token against caches of as many layers as make it read 128 MiB, one after the other,
/// as in a model; blocks spread evenly at `density`.
void decode(benchmark::State& state, const Shape& shape, const std::string& isa, DType dtype,
            double density) {
  const double bytes_per_token = 2.0 * static_cast<double>(shape.kv_heads * shape.dim) *
                                 static_cast<double>(dtype_size(dtype));
  const double layer_bytes = bytes_per_token * static_cast<double>(shape.tokens);
  std::vector<Layer> layers;
  for (double bytes = 0.0; bytes < 128.0 * (1 << 20); bytes += density * layer_bytes) {
    layers.emplace_back(shape, dtype, 1, layers.size());
  }
  const BlockGeometry geometry = layers.front().problem().geometry(64);
  BlockSelection selection(geometry, 1);
  std::vector<std::int32_t> blocks;
  const std::int64_t last = geometry.key_blocks() - 1;
  for (std::int64_t j = 0; j <= last; ++j) {
    const auto share = [&](std::int64_t i) { return std::floor(density * static_cast<double>(i)); };
    if (j == last || share(j + 1) > share(j)) blocks.push_back(static_cast<std::int32_t>(j));
  }
  selection.append_row(blocks, std::vector<Part>(blocks.size(), Part::kScored));
  const auto pairs = static_cast<double>(selection.count().kept_total());
  const auto backend = make_cpu_backend(isa);
  AttentionOutput output;
  Stopwatch watch;
  for (auto _ : state) {
    watch.time([&] {
      for (const Layer& layer : layers) backend->attend(layer.problem(), selection, output);
    });
  }
  const auto count = static_cast<double>(layers.size());
  report(state, watch, "bytes/s", count * pairs * bytes_per_token, "of_read", plain_read());
  state.counters["us/layer"] = 1e6 * watch.wall() / count;
}

/// Decode steps with sketchwalk at 20%, over as many layers as make 192 MiB: selection and
/// attention.
void decode_step(benchmark::State& state, const Shape& shape, const std::string& isa, DType dtype) {
  Shape all = shape;
  all.tokens += state.max_iterations + 1;
  const auto layer_bytes = static_cast<double>(2 * all.kv_heads * all.dim * all.tokens) *
                           static_cast<double>(dtype_size(dtype));
  const auto backend = make_cpu_backend(isa);
  const auto policy = make_policy("sketchwalk", 0);
  std::vector<Layer> layers;
  std::vector<DecodeCache> caches;
  for (double bytes = 0.0; bytes < 256.0 * (1 << 20); bytes += layer_bytes) {
    layers.emplace_back(all, dtype, all.tokens, layers.size());
    AttentionProblem problem = layers.back().problem();
    for (HeadsView* x : {&problem.q, &problem.k, &problem.v}) {
      *x = x->tokens_slice(0, shape.tokens);
    }
    WalkState walk;
    caches.emplace_back();
    policy->score_prefill({problem, *backend, problem.geometry(64)}, walk, &caches.back());
  }
  AttentionOutput output;
  StageTimes times;
  Stopwatch watch;
  std::int64_t tokens = shape.tokens;
  for (auto _ : state) {
    ++tokens;
    watch.time([&] {
      WalkState walk;
      for (std::size_t i = 0; i < layers.size(); ++i) {
        AttentionProblem problem = layers[i].problem();
        problem.q = problem.q.tokens_slice(tokens - 1, tokens);
        problem.k = problem.k.tokens_slice(0, tokens);
        problem.v = problem.v.tokens_slice(0, tokens);
        const BlockGeometry geometry = problem.geometry(64);
        const BlockScores scores =
            policy->score_decode({problem, *backend, geometry, nullptr, &times}, walk, caches[i]);
        BlockSelection selection;
        {
          const StageTimer timer(&times, Stage::kSelect);
          selection = select_blocks(scores, geometry, policy->budget(), 0.2, Phase::kDecode);
        }
        const StageTimer timer(&times, Stage::kAttention);
        backend->attend(problem, selection, output);
      }
    });
  }
  const auto count = static_cast<double>(layers.size());
  const auto steps = static_cast<double>(state.iterations());
  state.counters["us/layer"] = 1e6 * watch.wall() / count;
  state.counters["cpu_us/layer"] = 1e6 * watch.cpu() / count;
  for (int i = 0; i < kNumStages; ++i) {
    state.counters[std::string(kStageNames[static_cast<std::size_t>(i)]) + "_us"] =
        1e6 * times.seconds[static_cast<std::size_t>(i)] / count / steps;
  }
}

void selection(benchmark::State& state, const Shape& shape, const std::string& isa, DType dtype,
               const std::string& spec) {
  const Layer layer(shape, dtype, shape.tokens, 1);
  const AttentionProblem problem = layer.problem();
  const auto backend = make_cpu_backend(isa);
  const auto policy = make_policy(spec, 0);
  Stopwatch watch;
  for (auto _ : state) {
    watch.time([&] { benchmark::DoNotOptimize(select(*policy, *backend, problem, 0.2)); });
  }
  // What has to be read at least.
  const auto bytes = static_cast<double>(layer.q.bytes() + layer.k.bytes());
  report(state, watch, "bytes/s", bytes, "of_read", plain_read());
}

/// Every method that scores a prefill by itself, and the presets of sketchwalk.
std::vector<std::string> selecting_methods() {
  std::vector<std::string> specs = {"sketchwalk:preset=preprint", "sketchwalk:preset=tuned",
                                    "sketchwalk:preset=tuned,split_heads=0.25",
                                    "sketchwalk:preset=tuned,split_heads=1"};
  for (const MethodInfo& method : list_methods()) {
    const auto policy = make_policy(method.name, 0);
    const Budget budget = policy->budget();
    if (policy->needs_mass() || budget.kind == Budget::Kind::kAll ||
        budget.dense_phase == Phase::kPrefill) {
      continue;
    }
    specs.push_back(method.name);
  }
  return specs;
}

/// Three steps of the damped walk, or one of the product walk, over b x b matrices in fp64.
void walk(benchmark::State& state, const std::string& isa, std::int64_t b, bool damped) {
  SplitMix64 rng(1);
  Matrix a(b, b);
  for (std::int64_t i = 0; i < b; ++i) {
    for (double& x : a.row(i)) x = rng.uniform() / static_cast<double>(b);
  }
  const auto backend = make_cpu_backend(isa);
  Stopwatch watch;
  for (auto _ : state) {
    watch.time([&] {
      benchmark::DoNotOptimize(damped ? backend->damped_walk(a, &a, 0.25, 3)
                                      : backend->product_walk(a, &a));
    });
  }
  const auto size = static_cast<double>(b);
  Ceiling f64 = gemm(DType::kF32);
  f64.work /= 2.0;
  report(state, watch, "FLOP/s", (damped ? 6.0 : 2.0) * size * size * size, "of_gemm", f64);
}

template <class F>
void add(const std::string& name, F body) {
  benchmark::RegisterBenchmark(name.c_str(), body)
      ->Unit(benchmark::kMillisecond)
      ->UseRealTime()
      ->MinTime(1.0);
}

const bool registered = [] {
  const Shape prefill_shapes[] = {
      {8192, 9, 3, 64}, {16384, 9, 3, 64}, {16384, 14, 2, 64}, {8192, 8, 2, 128}};
  const Shape decode_shapes[] = {
      {8192, 9, 3, 64}, {32768, 9, 3, 64}, {16384, 14, 2, 64}, {32768, 8, 1, 128}};
  if (const char* threads = std::getenv("SW_BENCH_THREADS")) set_num_threads(std::atoi(threads));
  for (const cpu::Isa& which : cpu::available_isas()) {
    const std::string isa = which.name;
    for (const DType dtype : {DType::kBf16, DType::kF16, DType::kF32}) {
      const std::string tail = "/" + isa + "/" + std::string(dtype_name(dtype));
      const auto percent = [](double density) {
        return "/density" + std::to_string(static_cast<int>(100.0 * density));
      };
      for (const Shape& shape : prefill_shapes) {
        for (const double density : {1.0, 0.2, 0.1}) {
          add("prefill" + tail + shape.name() + percent(density),
              [=](benchmark::State& state) { prefill(state, shape, isa, dtype, density); });
        }
      }
      for (const Shape& shape : decode_shapes) {
        for (const double density : {1.0, 0.2}) {
          add("decode" + tail + shape.name() + percent(density),
              [=](benchmark::State& state) { decode(state, shape, isa, dtype, density); });
        }
        benchmark::RegisterBenchmark(
            ("decode_step" + tail + shape.name()).c_str(),
            [=](benchmark::State& state) { decode_step(state, shape, isa, dtype); })
            ->Unit(benchmark::kMillisecond)
            ->UseRealTime()
            ->Iterations(48);
      }
      const Shape& shape = prefill_shapes[0];
      add("block_masses" + tail + shape.name(),
          [=](benchmark::State& state) { block_masses(state, shape, isa, dtype); });
      for (const Shape& selected : {prefill_shapes[0], prefill_shapes[2]}) {
        for (const std::string& spec : selecting_methods()) {
          add("selection" + tail + selected.name() + "/" + spec,
              [=](benchmark::State& state) { selection(state, selected, isa, dtype, spec); });
        }
      }
    }
    for (const std::int64_t b : {128, 512, 2048}) {
      for (const bool damped : {true, false}) {
        add(std::string(damped ? "damped" : "product") + "_walk/" + isa + "/b" + std::to_string(b),
            [=](benchmark::State& state) { walk(state, isa, b, damped); });
      }
    }
  }
  return true;
}();

}  // namespace
}  // namespace sw
