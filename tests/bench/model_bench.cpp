// Whole models on the CPU backend: prefill of a text and decode after it, dense and sparse, against
// the ceilings of the same process: oneDNN's bf16 matrix product and the reading of memory.
// And the kernels that they are made of, each with its own operations and bytes: products with
// packed weights of every kernel and of oneDNN, lone rows with quantised weights, norms, RoPE,
// SwiGLU. Counters: tokens/s; the milliseconds a layer stack spends in attention, in the selection
// and in the rest (products, norms, RoPE); FLOP/s of products and visible pairs ("of_gemm") in
// prefill, bytes/s of weights and read keys and values ("of_stream") in decode.
//
//   SW_MODEL_DIR=... SW_DATA_DIR=... SW_BENCH_TOKENS=8122 model_bench --benchmark_filter=smollm2
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <memory>
#include <oneapi/dnnl/dnnl.hpp>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "core/file.hpp"
#include "core/parallel.hpp"
#include "eval/arm.hpp"
#include "kernels/cpu/backend.hpp"
#include "model/coded_weights.hpp"
#include "model/packed_weights.hpp"
#include "model/row_kernels.hpp"
#include "model/transformer.hpp"
#include "policy/list.hpp"

namespace sw {
namespace {

constexpr std::int64_t kDecodeSteps = 48;

class Stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

std::string variable(const char* name, const std::string& otherwise) {
  const char* value = std::getenv(name);
  return value && *value ? value : otherwise;
}

std::int64_t prompt_tokens() { return std::stoll(variable("SW_BENCH_TOKENS", "8122")); }

/// FLOP/s of a bf16 product of 2048^3, the best of 5; 0 where oneDNN has none.
double gemm_flops() {
  static const double flops = [] {
    try {
      using Memory = dnnl::memory;
      constexpr std::int64_t kSize = 2048;
      const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
      const Memory::desc x({kSize, kSize}, Memory::data_type::bf16, Memory::format_tag::ab);
      const Memory::desc y({kSize, kSize}, Memory::data_type::f32, Memory::format_tag::ab);
#if DNNL_VERSION_MAJOR >= 3
      const dnnl::matmul::primitive_desc description(engine, x, x, y);
#else
      const dnnl::matmul::primitive_desc description(dnnl::matmul::desc(x, x, y), engine);
#endif
      const dnnl::matmul product(description);
      std::vector<Bf16> a(kSize * kSize, to_bf16(0.5f));
      std::vector<Bf16> b(a);
      std::vector<float> c(a.size());
      dnnl::stream stream(engine);
      double best = 1e9;
      for (int i = 0; i < 5; ++i) {
        const Stopwatch watch;
        product.execute(stream, {{DNNL_ARG_SRC, Memory(x, engine, a.data())},
                                 {DNNL_ARG_WEIGHTS, Memory(x, engine, b.data())},
                                 {DNNL_ARG_DST, Memory(y, engine, c.data())}});
        stream.wait();
        best = std::min(best, watch.seconds());
      }
      return 2.0 * kSize * kSize * kSize / best;
    } catch (const dnnl::error&) {
      return 0.0;
    }
  }();
  return flops;
}

/// Bytes/s of reading 256 MiB with all threads, the best of 8.
double stream_bytes() {
  static const double rate = [] {
    constexpr std::int64_t kPieces = 256;
    constexpr std::int64_t kWords = (1 << 20) / 8;
    HeadsTensor memory(DType::kF32, 1, kPieces, 2 * kWords);
    std::fill_n(memory.row<float>(0, 0), memory.elements(), 1.0f);
    double best = 1e9;
    for (int i = 0; i < 8; ++i) {
      const Stopwatch watch;
      parallel_for(kPieces, [&](std::int64_t piece, int) {
        const auto* words = reinterpret_cast<const std::uint64_t*>(memory.row<float>(0, piece));
        std::uint64_t sum = 0;
        for (std::int64_t w = 0; w < kWords; ++w) sum += words[w];
        benchmark::DoNotOptimize(sum);
      });
      best = std::min(best, watch.seconds());
    }
    return static_cast<double>(memory.bytes()) / best;
  }();
  return rate;
}

/// A loaded model and the first tokens of the text.
struct Loaded {
  std::unique_ptr<const Model> model;
  std::vector<std::int32_t> ids;
};

/// Null with the reason in `state` where a file is missing.
const Loaded* load(benchmark::State& state, const std::string& name) {
  static std::map<std::string, Loaded> loaded;
  Loaded& entry = loaded[name];
  if (entry.model) return &entry;
  const std::string home = variable("HOME", "");
  const std::string path =
      variable("SW_MODEL_DIR", home + "/.cache/sketchwalk/models") + "/" + name + ".gguf";
  const std::string text = variable("SW_DATA_DIR", std::string(SW_SOURCE_DIR) + "/shared/data") +
                           "/text/war_and_peace.pg2600.txt";
  for (const std::string& file : {path, text}) {
    if (std::filesystem::exists(file)) continue;
    state.SkipWithError(("there is no " + file).c_str());
    return nullptr;
  }
  const auto checkpoint = Checkpoint::open(path);
  entry.ids = checkpoint->tokenizer().encode(read_file(text), SpecialText::kPlain);
  entry.ids.resize(static_cast<std::size_t>(prompt_tokens() + kDecodeSteps));
  entry.model = std::make_unique<const Model>(checkpoint, DType::kBf16);
  return &entry;
}

/// Multiply-adds of all products for one token, without the vocabulary.
double products_per_token(const ModelConfig& c) {
  return static_cast<double>(c.layers * c.hidden) *
         static_cast<double>(2 * c.q_rows() + 2 * c.kv_rows() + 3 * c.ffn);
}

void report_parts(benchmark::State& state, const StageTimes& times, double seconds, double runs) {
  double selection = 0.0;
  for (const Stage stage : {Stage::kPool, Stage::kSketch, Stage::kWalk, Stage::kSelect}) {
    selection += times.seconds[static_cast<std::size_t>(stage)];
  }
  const double attention = times.seconds[static_cast<std::size_t>(Stage::kAttention)];
  state.counters["attention_ms"] = 1e3 * attention / runs;
  state.counters["selection_ms"] = 1e3 * selection / runs;
  state.counters["rest_ms"] = 1e3 * (seconds - attention - selection) / runs;
}

/// One model, one arm. The prompt is one chunk where its attention is sparse.
class Run {
 public:
  Run(const Loaded& loaded, const std::string& method, double density)
      : loaded_(loaded),
        arm_{make_policy(method, 0), std::nullopt, SparsePhase::kBoth},
        backend_(make_cpu_backend()) {
    if (arm_.policy->takes_density() && !arm_.dense()) arm_.density = density;
    attention_ = std::make_unique<ArmAttention>(arm_, *backend_, 64, config().layers);
    SessionOptions options{.capacity = std::ssize(loaded.ids)};
    if (!arm_.dense()) options.chunk_tokens = options.capacity;
    session_ = std::make_unique<Session>(
        *loaded.model,
        [this](const AttentionProblem& p, AttentionOutput& out) { (*attention_)(p, out); },
        std::move(options));
  }

  void prefill() {
    session_->rewind(0);
    attention_->begin();
    session_->run(std::span(loaded_.ids).first(static_cast<std::size_t>(prompt_tokens())));
  }
  /// Runs the next token and computes the logits that choose the one after it.
  void decode() {
    session_->run({&loaded_.ids[static_cast<std::size_t>(session_->position())], 1});
    benchmark::DoNotOptimize(session_->last_logits());
  }
  const ModelConfig& config() const { return loaded_.model->config(); }
  const ArmUsage& usage() const { return attention_->usage(); }

 private:
  const Loaded& loaded_;
  Arm arm_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<ArmAttention> attention_;
  std::unique_ptr<Session> session_;
};

void prefill(benchmark::State& state, const std::string& name, const std::string& method,
             double density) {
  const Loaded* loaded = load(state, name);
  if (!loaded) return;
  Run run(*loaded, method, density);
  double seconds = 0.0;
  for (auto _ : state) {
    const Stopwatch watch;
    run.prefill();
    seconds = watch.seconds();
  }
  const ModelConfig& c = run.config();
  double flop = 2.0 * products_per_token(c) * static_cast<double>(prompt_tokens());
  for (const LayerUsage& layer : run.usage().layers) {
    flop += 4.0 * static_cast<double>(c.head_dim) * static_cast<double>(layer.pairs.kept_total());
  }
  state.counters["tokens/s"] = static_cast<double>(prompt_tokens()) / seconds;
  state.counters["FLOP/s"] = flop / seconds;
  state.counters["of_gemm"] = gemm_flops() > 0.0 ? flop / seconds / gemm_flops() : 0.0;
  report_parts(state, run.usage().prefill_times, seconds, 1.0);
}

void decode(benchmark::State& state, const std::string& name, const std::string& method,
            double density) {
  const Loaded* loaded = load(state, name);
  if (!loaded) return;
  Run run(*loaded, method, density);
  run.prefill();
  std::vector<double> steps;
  for (auto _ : state) {
    const Stopwatch watch;
    run.decode();
    steps.push_back(watch.seconds());
  }
  double total = 0.0;
  for (const double s : steps) total += s;
  std::nth_element(steps.begin(), steps.begin() + std::ssize(steps) / 2, steps.end());
  const double median = steps[steps.size() / 2];
  const auto count = static_cast<double>(steps.size());
  std::int64_t tokens_read = 0;
  for (const LayerUsage& layer : run.usage().layers) tokens_read += layer.kv_tokens_read;
  const double bytes =
      static_cast<double>(loaded->model->decode_weight_bytes()) +
      static_cast<double>(tokens_read * run.config().head_dim * 2) * sizeof(Bf16) / count;
  state.counters["median_ms"] = 1e3 * median;
  state.counters["tokens/s"] = 1.0 / median;
  state.counters["bytes/s"] = bytes / median;
  state.counters["of_stream"] = bytes / median / stream_bytes();
  report_parts(state, run.usage().decode_times, total, count);
}

/// Runs `body` and reports what it does at best: operations, and bytes read and written.
template <class F>
void time_kernel(benchmark::State& state, double flop, double bytes, const F& body) {
  double best = 1e9;
  for (auto _ : state) {
    const Stopwatch watch;
    body();
    best = std::min(best, watch.seconds());
  }
  if (flop > 0.0) {
    state.counters["FLOP/s"] = flop / best;
    state.counters["of_gemm"] = gemm_flops() > 0.0 ? flop / best / gemm_flops() : 0.0;
  }
  state.counters["bytes/s"] = bytes / best;
  state.counters["of_stream"] = bytes / best / stream_bytes();
}

/// `kernel` null: oneDNN. Each run takes other weights, of 64 MiB, as the layers of a model do.
void product(benchmark::State& state, const PanelKernel* kernel, DType dtype, std::int64_t inputs,
             std::int64_t outputs, std::int64_t rows) {
  const LoadRow load_row = [&](std::int64_t row, float* out) {
    for (std::int64_t i = 0; i < inputs; ++i) out[i] = static_cast<float>((row + i) % 7 - 3);
  };
  WeightArena arena;
  std::vector<std::unique_ptr<const PackedWeights>> weights;
  std::uint64_t stored = 0;
  try {
    while (stored < std::uint64_t{64} << 20) {
      weights.push_back(kernel != nullptr
                            ? pack_panels(*kernel, inputs, outputs, dtype, load_row, arena)
                            : pack_onednn(inputs, outputs, dtype, load_row, arena));
      stored += weights.back()->bytes();
    }
  } catch (const Error& error) {
    return state.SkipWithError(error.what());
  }
  const std::vector<float> ones(static_cast<std::size_t>(rows * inputs), 1.0f);
  std::vector<std::byte> x(ones.size() * dtype_size(dtype));
  convert_from_float(ones.data(), dtype, std::ssize(ones), x.data());
  std::vector<float> y(static_cast<std::size_t>(rows * outputs));
  std::size_t next = 0;
  time_kernel(state, 2.0 * static_cast<double>(rows * inputs * outputs),
              static_cast<double>(weights.front()->bytes() + x.size() + y.size() * sizeof(float)),
              [&] {
                weights[next]->multiply(x.data(), rows, {}, false, y.data());
                next = (next + 1) % weights.size();
              });
}

void coded_product(benchmark::State& state, QuantType type, std::int64_t inputs,
                   std::int64_t outputs) {
  const CodedKernel* kernel = find_coded_kernel();
  if (kernel == nullptr) return state.SkipWithError("no kernel for quantised weights on this CPU");
  const LoadCodes load_codes = [&](std::int64_t row, const CodedRow& out) {
    for (std::int64_t i = 0; i < inputs; ++i) out.code[i] = static_cast<std::int8_t>((row + i) % 7);
    std::fill_n(out.scale, inputs / kCodeGroup, 0.01f);
    std::fill_n(out.minimum, inputs / kCodeGroup, 0.0f);
  };
  WeightArena arena;
  std::vector<CodedWeights> weights;
  std::uint64_t stored = 0;
  while (stored < std::uint64_t{64} << 20) {
    weights.emplace_back(*kernel, inputs, outputs, *code_format(type), load_codes, arena);
    stored += weights.back().bytes();
  }
  const std::vector<Bf16> x(static_cast<std::size_t>(inputs), to_bf16(1.0f));
  std::vector<float> y(static_cast<std::size_t>(outputs));
  std::size_t next = 0;
  time_kernel(state, 2.0 * static_cast<double>(inputs * outputs),
              static_cast<double>(weights.front().bytes()), [&] {
                weights[next].multiply(x.data(), {}, false, y.data());
                next = (next + 1) % weights.size();
              });
}

/// One of norm, RoPE and SwiGLU over as many rows as make 64 MiB of f32, one thread.
void row_kernel(benchmark::State& state, const RowKernels& kernels, const std::string& step) {
  constexpr std::int64_t kWidth = 1536;
  constexpr std::int64_t kRows = (std::int64_t{64} << 20) / (kWidth * 4);
  const std::vector<float> x(static_cast<std::size_t>(kRows * kWidth), 0.5f);
  const std::vector<float> weight(static_cast<std::size_t>(kWidth), 0.5f);
  std::vector<Bf16> out(static_cast<std::size_t>(kWidth));
  const double in_rows = step == "swiglu" ? 2.0 : 1.0;
  const std::int64_t rows = step == "swiglu" ? kRows / 2 : kRows;
  time_kernel(state, 0.0, static_cast<double>(rows * kWidth) * (4.0 * in_rows + 2.0), [&] {
    for (std::int64_t r = 0; r < rows; ++r) {
      const float* row = x.data() + r * kWidth;
      if (step == "norm") {
        kernels.rms_norm(row, weight.data(), kWidth, 1e-5, DType::kBf16, out.data());
      } else if (step == "rope") {
        kernels.rotate(row, weight.data(), weight.data(), kWidth / 2, DType::kBf16, out.data());
      } else {
        kernels.swiglu(row, row + rows * kWidth, kWidth, DType::kBf16, out.data());
      }
    }
    benchmark::DoNotOptimize(out.data());
  });
}

void register_kernels() {
  const auto add = [](const std::string& name, auto body) {
    benchmark::RegisterBenchmark(name.c_str(), body)
        ->Unit(benchmark::kMillisecond)
        ->UseRealTime()
        ->MinTime(0.3);
  };
  std::vector<const PanelKernel*> kernels = available_panel_kernels();
  kernels.push_back(nullptr);
  const std::pair<std::int64_t, std::int64_t> shapes[] = {{576, 1536}, {896, 4864}};
  for (const PanelKernel* kernel : kernels) {
    for (const DType dtype : {DType::kBf16, DType::kF32}) {
      for (const auto& [inputs, outputs] : shapes) {
        for (const std::int64_t rows : {1, 512}) {
          add("product/" + std::string(kernel != nullptr ? kernel->name : "onednn") + "/" +
                  std::string(dtype_name(dtype)) + "/" + std::to_string(inputs) + "x" +
                  std::to_string(outputs) + "/rows" + std::to_string(rows),
              [=, inputs = inputs, outputs = outputs](benchmark::State& state) {
                product(state, kernel, dtype, inputs, outputs, rows);
              });
        }
      }
    }
  }
  const std::pair<const char*, QuantType> types[] = {
      {"q4_1", QuantType::kQ41}, {"q5_0", QuantType::kQ50}, {"q8_0", QuantType::kQ80}};
  for (const auto& [name, type] : types) {
    for (const auto& [inputs, outputs] : shapes) {
      add("coded_product/" + std::string(name) + "/" + std::to_string(inputs) + "x" +
              std::to_string(outputs),
          [=, type = type, inputs = inputs, outputs = outputs](benchmark::State& state) {
            coded_product(state, type, inputs, outputs);
          });
    }
  }
  // The widest first, the portable one last.
  const std::vector<const RowKernels*> rows = available_row_kernels();
  const std::vector<std::string> names = {"avx512", "avx2", "portable"};
  for (std::size_t i = 0; i < rows.size(); ++i) {
    for (const std::string step : {"norm", "rope", "swiglu"}) {
      add("row/" + names[names.size() - rows.size() + i] + "/" + step,
          [=](benchmark::State& state) { row_kernel(state, *rows[i], step); });
    }
  }
}

const bool registered = [] {
  if (const std::string threads = variable("SW_BENCH_THREADS", ""); !threads.empty()) {
    set_num_threads(std::stoi(threads));
  }
  struct Method {
    const char* spec;
    const char* label;
    double density;
  };
  const Method methods[] = {{"dense", "dense", 1.0},
                            {"sketchwalk", "sketchwalk@0.2", 0.2},
                            {"sink_window", "sink_window@0.2", 0.2}};
  register_kernels();
  for (const std::string name : {"smollm2", "qwen2.5-coder-0.5b"}) {
    for (const Method& m : methods) {
      const auto add = [&](const std::string& phase, auto body, int iterations) {
        benchmark::RegisterBenchmark(
            (phase + "/" + name + "/" + m.label).c_str(),
            [=](benchmark::State& state) { body(state, name, m.spec, m.density); })
            ->Unit(benchmark::kMillisecond)
            ->UseRealTime()
            ->Iterations(iterations);
      };
      add("prefill", prefill, 1);
      add("decode", decode, kDecodeSteps);
    }
  }
  return true;
}();

}  // namespace
}  // namespace sw
