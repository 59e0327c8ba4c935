#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "commands.hpp"
#include "common/backend_choice.hpp"
#include "core/error.hpp"
#include "core/progress.hpp"
#include "core/text.hpp"
#include "gpu_roofline.hpp"
#include "gpu_timer.hpp"
#include "kernels/cuda/common/decode/step.hpp"
#include "kernels/cuda/common/device.hpp"
#include "kernels/cuda/common/selection/selector.hpp"
#include "kernels/cuda/sm80/prefill_attention.hpp"
#include "kernels/cuda/sm90/prefill_attention.hpp"
#include "policy/list.hpp"
#include "policy/sketchwalk.hpp"
#include "report/report.hpp"
#include "shared.hpp"

namespace sw {
namespace {

using cuda::DeviceBuffer;
using cuda::KernelCost;

/// Index of the timed layer; the walk state comes from the one before.
constexpr std::int64_t kLayer = 3;
/// Queries that the timed decode steps take in turn.
constexpr std::size_t kDecodeQueries = 8;
/// Above it, attention composed of library calls takes seconds a run.
constexpr std::int64_t kComposedLimit = 32768;

struct GpuOptions {
  ProfileOptions grid;
  std::vector<std::int64_t> batches{1};
  bool portable = false;
};

/// "1980 MHz, 3201 MHz, 0x0000000000000000": SM clock, memory clock and why they are held down, as
/// the driver says; nothing when it does not.
std::optional<std::string> clocks_now() {
  FILE* pipe = popen(
      "nvidia-smi --query-gpu=clocks.sm,clocks.mem,clocks_throttle_reasons.active,temperature.gpu "
      "--format=csv,noheader -i 0 2>/dev/null",
      "r");
  if (pipe == nullptr) return {};
  char line[256] = "";
  const bool read = fgets(line, sizeof line, pipe) != nullptr;
  if (pclose(pipe) != 0 || !read) return {};
  std::string text(line);
  while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.pop_back();
  return text;
}

/// Heads in device memory, contiguous.
class DeviceHeads {
 public:
  DeviceHeads(DType dtype, std::int64_t heads, std::int64_t tokens, std::int64_t dim,
              std::uint64_t seed)
      : tokens_(tokens), dim_(dim) {
    const HeadsTensor host = random_heads(dtype, heads, tokens, dim, seed);
    data_ = DeviceBuffer<std::byte>(std::span<const std::byte>(host.data(), host.bytes()));
  }
  cuda::HeadsPointer pointer() const { return {data_.data(), tokens_ * dim_, dim_}; }
  void* data() const { return data_.data(); }
  std::size_t bytes() const { return data_.bytes(); }

 private:
  std::int64_t tokens_;
  std::int64_t dim_;
  DeviceBuffer<std::byte> data_;
};

class GpuProfile {
 public:
  GpuProfile(const GpuOptions& options, std::uint64_t seed, ProfileReport& report)
      : options_(options),
        grid_(options.grid),
        seed_(seed),
        report_(report),
        dtype_(parse_dtype(options.grid.dtype)),
        element_(dtype_ == DType::kBf16 ? cuda::Element::kBf16 : cuda::Element::kF16),
        policy_(make_policy(options.grid.method, seed)),
        form_(sketchwalk_form(options.grid.method, seed)) {
    if (!form_ || form_->granularity != Granularity::kLayer || form_->query_stride != 1) {
      throw Error(ErrorKind::kUnsupported,
                  "sw-profile gpu has no device pipeline for '" + options.grid.method + "'",
                  "it times sketchwalk in its published forms; sw-profile cpu times all methods");
    }
  }

  GpuTimer& timer() { return timer_; }

  void prefill(std::int64_t tokens) {
    shape_ = {tokens, grid_.num_heads, grid_.num_kv_heads, grid_.head_dim, grid_.block,
              1,      grid_.dtype};
    const DeviceHeads q(dtype_, grid_.num_heads, tokens, grid_.head_dim, seed_ + 1);
    const DeviceHeads k(dtype_, grid_.num_kv_heads, tokens, grid_.head_dim, seed_ + 2);
    const DeviceHeads v(dtype_, grid_.num_kv_heads, tokens, grid_.head_dim, seed_ + 3);
    const DeviceBuffer<std::byte> out(q.bytes());
    const DeviceBuffer<int> counter(1);
    const auto attend = [&](const cuda::SelectionView* selection, cudaStream_t stream) {
      launch_attention(q, k, v, out.data(), counter.data(), selection, stream);
    };
    choose_kernel(q, k, v, out.data(), counter.data());

    const double causal = 0.5 * static_cast<double>(tokens) * static_cast<double>(tokens + 1) *
                          static_cast<double>(grid_.num_heads);
    std::vector<GpuTimer::Work> works;
    std::vector<std::size_t> rows;
    const auto time = [&](std::size_t row, const std::function<void(cudaStream_t)>& launch) {
      works.push_back(timer_.capture(launch));
      rows.push_back(row);
    };
    const std::size_t dense = add("prefill", "total", {});
    state(dense, attention_cost(causal));
    time(dense, [&](cudaStream_t stream) { attend(nullptr, stream); });

    std::unique_ptr<ComposedAttention> composed;
    const std::size_t library = add("prefill", "total", {}, "cuBLAS products and a softmax", true);
    if (dtype_ != DType::kBf16 || tokens > kComposedLimit) {
      report_.measurements[library].reason =
          dtype_ != DType::kBf16 ? "composed for bf16 only"
                                 : "left out above " + std::to_string(kComposedLimit) +
                                       " tokens, where a run takes seconds";
    } else {
      composed = std::make_unique<ComposedAttention>(static_cast<int>(grid_.num_heads),
                                                     static_cast<int>(grid_.num_kv_heads),
                                                     static_cast<int>(grid_.head_dim), tokens);
      state(library, attention_cost(causal));
      time(library, [&](cudaStream_t stream) {
        composed->launch(q.data(), k.data(), v.data(), out.data(), stream);
      });
    }

    const cuda::AttentionShape shape{static_cast<int>(grid_.num_heads),
                                     static_cast<int>(grid_.num_kv_heads),
                                     static_cast<int>(grid_.head_dim), tokens, kLayer + 1};
    cuda::Selector selector(shape, form_->sketch, walk_params(), form_->budget);
    cuda::WalkMatrix walk = selector.make_state();
    // State of the layer before.
    selector.transition(q.pointer(), k.pointer(), element_, tokens, kLayer - 1, timer_.stream());
    selector.walk(walk, timer_.stream());
    const auto select_all = [&](double density, cudaStream_t stream) {
      selector.transition(q.pointer(), k.pointer(), element_, tokens, kLayer, stream);
      return selector.walk_and_select(walk, density, stream);
    };
    for (const double density : grid_.densities) {
      const auto arm = [&](const char* part) { return add("prefill", part, density); };
      cuda::Transition& sketch = selector.sketch();
      const std::size_t first = arm("pool");
      state(first, sketch.pool_cost(tokens));
      time(first, [&](cudaStream_t stream) {
        sketch.pool(q.pointer(), k.pointer(), element_, tokens, kLayer, stream);
      });
      const std::size_t score = arm("sketch");
      state(score, sketch.score_cost(tokens));
      // Scores and their finish are one stage: the matrix A is done after both.
      time(score, [&](cudaStream_t stream) {
        selector.transition(q.pointer(), k.pointer(), element_, tokens, kLayer, stream);
      });
      const std::int64_t blocks = (tokens + grid_.block - 1) / grid_.block;
      const std::size_t walking = arm("walk");
      state(walking, cuda::Walk::cost(static_cast<int>(blocks), walk_products()));
      time(walking, [&](cudaStream_t stream) { selector.walk(walk, stream); });
      const std::size_t selecting = arm("select");
      state(selecting,
            cuda::BudgetSelector::cost(1, static_cast<int>(blocks), static_cast<int>(blocks)));
      time(selecting, [&, density](cudaStream_t stream) { selector.select(density, stream); });
      time(arm("selection"), [&, density](cudaStream_t stream) { select_all(density, stream); });
      const cuda::SelectionView view = select_all(density, timer_.stream());
      const BlockSelection kept = selector.budget_selector().download(
          BlockGeometry{grid_.block, 0, tokens}, timer_.stream());
      const double pairs = static_cast<double>(kept.count().kept_total()) *
                           static_cast<double>(grid_.num_heads) /
                           static_cast<double>(kept.groups());
      const std::size_t attention = arm("attention");
      state(attention, attention_cost(pairs));
      time(attention, [&, view](cudaStream_t stream) { attend(&view, stream); });
      const std::size_t total = arm("total");
      state(total, attention_cost(pairs));
      time(total, [&, density](cudaStream_t stream) {
        const cuda::SelectionView chosen = select_all(density, stream);
        attend(&chosen, stream);
      });
      for (std::size_t i = first; i <= total; ++i) {
        report_.measurements[i].realised_density = kept.count().density();
      }
    }
    run(works, rows);
    subtract_pool(dense);
  }

  void decode(std::int64_t tokens, std::int64_t batch) {
    shape_ = {tokens,      grid_.num_heads, grid_.num_kv_heads, grid_.head_dim,
              grid_.block, batch,           grid_.dtype};
    const std::int64_t d = grid_.head_dim;
    const std::int64_t kv = grid_.num_kv_heads;
    // Each round is one token and one query after the last, so that a step finds what the step
    // before it left, and selects by itself.
    const DeviceHeads queries(dtype_, batch * grid_.num_heads, kDecodeQueries, d, seed_ + 4);
    const DeviceBuffer<std::byte> q(queries.bytes() / kDecodeQueries);
    const DeviceHeads k(dtype_, batch * kv, tokens, d, seed_ + 5);
    const DeviceHeads v(dtype_, batch * kv, tokens, d, seed_ + 6);
    const DeviceBuffer<std::byte> out(q.bytes());
    std::size_t next_query = 0;
    const auto new_query = [&] {
      const std::byte* from =
          static_cast<const std::byte*>(queries.data()) + next_query * q.bytes();
      next_query = (next_query + 1) % kDecodeQueries;
      cuda::check(
          cudaMemcpyAsync(q.data(), from, q.bytes(), cudaMemcpyDeviceToDevice, timer_.stream()),
          "copy of a query");
    };
    new_query();
    // The last round ends with `tokens` in the cache.
    std::int64_t length = tokens - grid_.warmup - grid_.repeats - 1;
    if (length < 1) {
      throw Error(ErrorKind::kUsage,
                  "a decode of " + std::to_string(tokens) + " tokens is too short for " +
                      std::to_string(grid_.warmup + grid_.repeats) +
                      " runs, each of one token more than the last",
                  "give fewer --repeat or more --tokens");
    }
    const std::vector<std::int32_t> lengths(static_cast<std::size_t>(batch),
                                            static_cast<std::int32_t>(length));
    const DeviceBuffer<std::int32_t> device_lengths{std::span<const std::int32_t>(lengths)};
    cuda::KvCache cache;
    cache.element = element_;
    cache.batch = static_cast<int>(batch);
    cache.kv_heads = static_cast<int>(kv);
    cache.head_dim = static_cast<int>(d);
    cache.block = static_cast<int>(grid_.block);
    cache.k = k.data();
    cache.v = v.data();
    cache.sequence_stride = kv * tokens * d;
    cache.head_stride = tokens * d;
    cache.token_stride = d;
    cache.lengths = device_lengths.data();
    cuda::DecodeStep step(cache, static_cast<int>(grid_.num_heads));
    implementation_ = "sm80 decode";

    std::vector<GpuTimer::Work> works;
    std::vector<std::size_t> rows;
    const auto time = [&](std::size_t row, const std::function<void(cudaStream_t)>& launch) {
      works.push_back(timer_.capture(launch));
      rows.push_back(row);
    };
    const std::int64_t blocks = (tokens + grid_.block - 1) / grid_.block;
    // Of the blocks that all sequences keep, each for every KV head.
    const auto cost = [&](std::int64_t kept) { return step.attention().cost(kv * kept); };
    std::vector<DecodeArm> arms;
    for (const double density : grid_.densities) {
      arms.push_back(form_->walk == SketchWalkForm::Walk::kProduct
                         ? product_arm(cache, density, blocks, step, q.data(), out.data())
                         : window_arm(cache, density, blocks, step, q.data(), out.data()));
    }
    const auto new_token = [&] {
      new_query();
      ++length;
      cuda::advance_lengths(device_lengths.data(), cache.batch, timer_.stream());
      for (const DecodeArm& arm : arms) {
        if (arm.before) arm.before(timer_.stream());
      }
    };
    new_token();

    const std::size_t dense = add("decode", "total", {});
    state(dense, cost(batch * blocks));
    time(dense, [&](cudaStream_t stream) {
      step.enqueue(cache, q.data(), nullptr, out.data(), nullptr, stream);
    });

    for (std::size_t i = 0; i < arms.size(); ++i) {
      const double density = grid_.densities[i];
      const DecodeArm& arm = arms[i];
      arm.select(timer_.stream());
      const std::int64_t kept = kept_blocks(arm.blocks.list, length, batch);
      const std::int64_t present = (length + grid_.block - 1) / grid_.block;
      const double share =
          static_cast<double>(kept) / static_cast<double>(batch) / static_cast<double>(present);

      const std::size_t first = add("decode", "selection", density);
      time(first, arm.select);
      const std::size_t attention = add("decode", "attention", density);
      state(attention, cost(kept));
      time(attention, [&](cudaStream_t stream) {
        step.attention().run(cache, q.data(), arm.blocks, out.data(), nullptr, stream);
      });
      const std::size_t total = add("decode", "total", density);
      state(total, cost(kept));
      time(total, arm.step);
      for (std::size_t row = first; row <= total; ++row) {
        report_.measurements[row].realised_density = share;
      }
    }
    run(works, rows, new_token);
    for (std::size_t i = 0; i < arms.size(); ++i) {
      cuda::DecodeBlocks blocks_of_step = arms[i].blocks;
      blocks_of_step.kind = cuda::DecodeBlocks::Kind::kSelected;
      if (step.attention().reads_ahead(blocks_of_step)) {
        note_stay(arms[i].blocks.list, grid_.densities[i], length);
      }
    }
  }

 private:
  std::size_t add(const std::string& phase, const std::string& part, std::optional<double> density,
                  std::string implementation = {}, bool peer = false) {
    Measurement m;
    m.phase = phase;
    m.part = part;
    m.implementation = implementation.empty() ? implementation_ : std::move(implementation);
    m.peer = peer;
    m.shape = shape_;
    m.method = density ? policy_->spec() : "dense";
    m.density = density;
    report_.measurements.push_back(std::move(m));
    return report_.measurements.size() - 1;
  }

  void state(std::size_t row, const KernelCost& cost) {
    report_.measurements[row].flops = cost.flops;
    report_.measurements[row].bytes = cost.bytes;
  }

  /// `before` is called ahead of each round, out of its time.
  void run(
      const std::vector<GpuTimer::Work>& works, const std::vector<std::size_t>& rows,
      const std::function<void()>& before = [] {}) {
    std::vector<Piece> pieces{[&](std::int64_t, bool) { before(); }};
    for (std::size_t i = 0; i < works.size(); ++i) {
      pieces.emplace_back([&, i](std::int64_t, bool timed) {
        Measurement& m = report_.measurements[rows[i]];
        const double seconds = works[i].seconds((m.phase + " " + m.part).c_str());
        if (timed) m.seconds.push_back(seconds);
      });
    }
    run_rounds(pieces, grid_);
  }

  /// What was timed as "sketch" is pooling and scores; the stages are apart in reports.
  void subtract_pool(std::size_t first) {
    for (std::size_t i = first + 1; i < report_.measurements.size(); ++i) {
      Measurement& sketch = report_.measurements[i];
      const Measurement& pool = report_.measurements[i - 1];
      if (sketch.part != "sketch" || pool.part != "pool") continue;
      for (std::size_t run = 0; run < sketch.seconds.size(); ++run) {
        sketch.seconds[run] = std::max(0.0, sketch.seconds[run] - pool.seconds[run]);
      }
    }
  }

  cuda::WalkParams walk_params() const {
    cuda::WalkParams params;
    params.kind = form_->walk == SketchWalkForm::Walk::kDamped    ? cuda::WalkParams::Kind::kDamped
                  : form_->walk == SketchWalkForm::Walk::kProduct ? cuda::WalkParams::Kind::kProduct
                                                                  : cuda::WalkParams::Kind::kNone;
    params.damping = form_->damping;
    params.degree = static_cast<int>(form_->degree);
    return params;
  }

  int walk_products() const {
    switch (form_->walk) {
      case SketchWalkForm::Walk::kDamped:
        return form_->damping == 0.0 ? 0 : static_cast<int>(form_->degree);
      case SketchWalkForm::Walk::kProduct:
        return 1;
      default:
        return 0;
    }
  }

  cuda::PrefillAttention hopper_problem(const DeviceHeads& q, const DeviceHeads& k,
                                        const DeviceHeads& v, void* out, int* counter) const {
    cuda::PrefillAttention a;
    a.element = element_;
    a.num_heads = static_cast<int>(grid_.num_heads);
    a.num_kv_heads = static_cast<int>(grid_.num_kv_heads);
    a.head_dim = static_cast<int>(grid_.head_dim);
    a.queries = a.tokens = shape_.tokens;
    a.q = q.pointer();
    a.k = k.pointer();
    a.v = v.pointer();
    a.out = out;
    a.out_head_stride = shape_.tokens * grid_.head_dim;
    a.out_token_stride = grid_.head_dim;
    a.scale = 1.0f / std::sqrt(static_cast<float>(grid_.head_dim));
    a.tile_counter = counter;
    return a;
  }

  /// The Hopper kernel where it can, the portable one else; which one is named in the report.
  void choose_kernel(const DeviceHeads& q, const DeviceHeads& k, const DeviceHeads& v, void* out,
                     int* counter) {
    std::string why;
    const auto devices = cuda::list_devices(why);
    hopper_ = !options_.portable && !devices.empty() && devices.front().major == 9;
    if (hopper_) {
      if (const auto reason =
              cuda::prefill_attention_unsupported(hopper_problem(q, k, v, out, counter))) {
        report_.notes.push_back("portable kernel instead of Hopper's: " + *reason);
        hopper_ = false;
      }
    }
    implementation_ = hopper_ ? "sm90" : "sm80";
  }

  void launch_attention(const DeviceHeads& q, const DeviceHeads& k, const DeviceHeads& v, void* out,
                        int* counter, const cuda::SelectionView* selection, cudaStream_t stream) {
    const cuda::PrefillAttention a = [&] {
      cuda::PrefillAttention problem = hopper_problem(q, k, v, out, counter);
      problem.selection = selection;
      return problem;
    }();
    if (hopper_) return cuda::launch_prefill_attention(a, stream);
    cuda::sm80::PrefillAttention p;
    p.q = a.q;
    p.k = a.k;
    p.v = a.v;
    p.element = element_;
    p.num_heads = a.num_heads;
    p.num_kv_heads = a.num_kv_heads;
    p.head_dim = a.head_dim;
    p.tokens = p.queries = a.tokens;
    p.scale = a.scale;
    if (selection != nullptr) p.selection = *selection;
    p.selection.block = static_cast<int>(grid_.block);
    p.out = out;
    p.out_head_stride = a.out_head_stride;
    p.out_token_stride = a.out_token_stride;
    p.out_f32 = false;
    workspace_.reserve(cuda::sm80::workspace_bytes(p));
    p.workspace = workspace_.data();
    if (const auto reason = cuda::sm80::unsupported(p)) {
      throw Error(ErrorKind::kUnsupported, *reason, "choose another shape");
    }
    cuda::sm80::prefill_attention(p, stream);
  }

  KernelCost attention_cost(double pairs) const {
    const auto d = static_cast<double>(grid_.head_dim);
    const auto tokens = static_cast<double>(shape_.tokens);
    const double rows = 2.0 * static_cast<double>(grid_.num_heads + grid_.num_kv_heads);
    return {4.0 * d * pairs, rows * tokens * d * static_cast<double>(dtype_size(dtype_))};
  }

  /// One density of a decode step.
  struct DecodeArm {
    std::function<void(cudaStream_t)> before;  ///< of each token, not timed; may be empty
    std::function<void(cudaStream_t)> select;
    std::function<void(cudaStream_t)> step;  ///< selection and attention
    cuda::DecodeBlocks blocks;               ///< what was selected, as a list
  };

  DecodeArm window_arm(const cuda::KvCache& cache, double density, std::int64_t blocks,
                       cuda::DecodeStep& step, const void* q, void* out) {
    cuda::DecodeSelectorShape shape;
    shape.num_heads = static_cast<int>(grid_.num_heads);
    shape.capacity = static_cast<int>(blocks);
    shape.query_window = static_cast<int>(form_->query_window);
    shape.damping = form_->damping;
    shape.degree = walk_products();
    shape.budget = cuda::make_decode_budget(form_->budget, density);
    const auto selector =
        std::make_shared<cuda::DecodeSelector>(cache, shape, form_->sketch, kLayer);
    load_state(cache, *selector, blocks);
    return {{},
            [=](cudaStream_t stream) { selector->run(cache, q, stream); },
            [=, &step](cudaStream_t stream) {
              step.enqueue(cache, q, selector.get(), out, nullptr, stream);
            },
            list_of(*selector)};
  }

  DecodeArm product_arm(const cuda::KvCache& cache, double density, std::int64_t blocks,
                        cuda::DecodeStep& step, const void* q, void* out) {
    cuda::ProductSelectorShape shape;
    shape.num_heads = static_cast<int>(grid_.num_heads);
    shape.capacity = static_cast<int>(blocks);
    shape.budget = cuda::make_decode_budget(form_->budget, density);
    const DeviceHeads queries(DType::kF32, cache.batch * grid_.num_heads, blocks, cache.head_dim,
                              seed_ + 7);
    const DeviceHeads keys(DType::kF32, cache.batch * cache.kv_heads, blocks, cache.head_dim,
                           seed_ + 8);
    const auto make = [&](std::int64_t layer) {
      auto selector = std::make_shared<cuda::ProductSelector>(cache, shape, form_->sketch, layer);
      selector->load(cache,
                     {static_cast<const float*>(queries.data()),
                      static_cast<const float*>(keys.data()), static_cast<int>(blocks)},
                     timer_.stream());
      return selector;
    };
    const auto below = make(kLayer - 1);
    const auto selector = make(kLayer);
    cuda::synchronize(timer_.stream(), "load of a decode state");
    return {[=](cudaStream_t stream) { below->run(cache, q, nullptr, stream); },
            [=](cudaStream_t stream) { selector->run(cache, q, below.get(), stream); },
            [=, &step](cudaStream_t stream) {
              step.enqueue(cache, q, *selector, below.get(), out, nullptr, stream);
            },
            list_of(*selector)};
  }

  template <class Selector>
  static cuda::DecodeBlocks list_of(const Selector& selector) {
    cuda::DecodeBlocks blocks;
    blocks.kind = cuda::DecodeBlocks::Kind::kList;
    blocks.list = selector.list();
    blocks.budget = selector.budget();
    blocks.token_sink = blocks.budget.kind == Budget::Kind::kRelease;
    return blocks;
  }

  /// A random state of a decode selection: a row-stochastic matrix, block sums, a query window.
  void load_state(const cuda::KvCache& cache, cuda::DecodeSelector& selector, std::int64_t blocks) {
    const HeadsTensor noise = random_heads(DType::kF32, cache.batch, blocks, blocks, seed_ + 7);
    std::vector<float> a(static_cast<std::size_t>(noise.elements()));
    const auto* z = noise.row<float>(0, 0);
    for (std::int64_t row = 0; row < cache.batch * blocks; ++row) {
      double sum = 0.0;
      for (std::int64_t j = 0; j < blocks; ++j) sum += std::exp(z[row * blocks + j]);
      for (std::int64_t j = 0; j < blocks; ++j) {
        a[static_cast<std::size_t>(row * blocks + j)] =
            static_cast<float>(std::exp(z[row * blocks + j]) / sum);
      }
    }
    const DeviceBuffer<float> transition{std::span<const float>(a)};
    const DeviceHeads sums(DType::kF32, cache.batch * cache.kv_heads, blocks, cache.head_dim,
                           seed_ + 8);
    const DeviceHeads window(DType::kF32, cache.batch * grid_.num_heads, form_->query_window,
                             cache.head_dim, seed_ + 9);
    selector.load(cache,
                  {transition.data(), static_cast<const float*>(sums.data()),
                   static_cast<const float*>(window.data()), static_cast<int>(blocks)},
                  timer_.stream());
    cuda::synchronize(timer_.stream(), "load of a decode state");
  }

  /// The list of one sequence of `length` tokens (one set), of the last step.
  std::vector<std::int32_t> download(const cuda::DecodeList& list, std::int64_t length,
                                     std::int64_t batch, std::int64_t sequence) {
    const std::int64_t index = sequence + (list.twice ? length % 2 * batch : 0);
    cuda::synchronize(timer_.stream(), "decode selection");
    const auto copy = [](std::int32_t* to, const std::int32_t* from, std::int64_t count) {
      cuda::check(cudaMemcpy(to, from, static_cast<std::size_t>(count) * sizeof *to,
                             cudaMemcpyDeviceToHost),
                  "copy of a list of blocks");
    };
    std::int32_t count = 0;
    copy(&count, list.counts + index, 1);
    std::vector<std::int32_t> blocks(static_cast<std::size_t>(count));
    copy(blocks.data(), list.blocks + index * list.capacity, count);
    return blocks;
  }

  /// Blocks of a list, over all sequences.
  std::int64_t kept_blocks(const cuda::DecodeList& list, std::int64_t length, std::int64_t batch) {
    std::int64_t kept = 0;
    for (std::int64_t s = 0; s < batch; ++s) kept += std::ssize(download(list, length, batch, s));
    return kept;
  }

  /// How many blocks the last timed step of one sequence had in common with the step before it, on
  /// which its time depends.
  void note_stay(const cuda::DecodeList& list, double density, std::int64_t length) {
    std::vector<std::int32_t> now = download(list, length, 1, 0);
    std::vector<std::int32_t> last = download(list, length - 1, 1, 0);
    std::vector<std::int32_t> both;
    std::sort(now.begin(), now.end());
    std::sort(last.begin(), last.end());
    std::set_intersection(now.begin(), now.end(), last.begin(), last.end(),
                          std::back_inserter(both));
    report_.notes.push_back("decode of " + std::to_string(length) + " tokens, density " +
                            format_double(density) + ": the last step kept " +
                            std::to_string(both.size()) + " of " + std::to_string(now.size()) +
                            " blocks of the step before, whose blocks it read ahead");
  }

  const GpuOptions& options_;
  const ProfileOptions& grid_;
  std::uint64_t seed_;
  ProfileReport& report_;
  DType dtype_;
  cuda::Element element_;
  std::unique_ptr<Policy> policy_;
  std::optional<SketchWalkForm> form_;
  GpuTimer timer_;
  DeviceBuffer<std::byte> workspace_;
  ProfileShape shape_;
  std::string implementation_;
  bool hopper_ = false;
};

int run_gpu(const GpuOptions& options, const CommonOptions& common,
            const std::vector<std::string>& argv) {
  check_profile_options(options.grid, common.force);
  if (common.backend != "auto" && common.backend != "cuda") {
    throw Error(ErrorKind::kUsage,
                "sw-profile gpu times CUDA kernels, not --backend " + common.backend,
                "use sw-profile cpu");
  }
  std::string why;
  const auto devices = cuda::list_devices(why);
  if (devices.empty() || devices.front().major < 8) {
    throw Error(ErrorKind::kUnsupported,
                devices.empty()
                    ? "there is no GPU: " + why
                    : devices.front().name + " has compute capability " +
                          std::to_string(devices.front().major) + "." +
                          std::to_string(devices.front().minor) + "; the kernels need 8.0",
                "sw-profile cpu times the CPU");
  }
  ProfileReport report;
  report.created = utc_now();
  report.command = argv;
  report.warmup = options.grid.warmup;
  report.repeats = options.grid.repeats;
  report.timer = "CUDA events around one launch of a graph";
  report.cache = "256 MiB of other device memory read before each run";
  report.environment = current_environment();
  report.environment.backend = "cuda";
  report.environment.backend_detail = "device pipeline";
  report.environment.libraries.emplace_back("CLI11", CLI11_VERSION);
  if (const auto gpu = describe_gpu()) {
    report.environment.gpu = gpu->name;
    report.environment.driver = gpu->driver;
    report.environment.clocks = gpu->clocks;
  }
  const auto note_clocks = [&](const char* when) {
    report.notes.push_back(
        std::string("clocks ") + when +
        " (SM, memory, reasons of throttling, temperature): " + clocks_now().value_or("not known"));
  };
  const ProfileOptions& grid = options.grid;
  const bool prefill = grid.has_phase("prefill");
  const bool decode = grid.has_phase("decode");
  Progress progress("timing",
                    std::ssize(grid.tokens) * (prefill + decode * std::ssize(options.batches)) + 2,
                    common.quiet);
  {
    GpuProfile profile(options, common.seed, report);
    report.roofline = measure_gpu_roofline(profile.timer());
    note_clocks("before");
    progress.advance(1, "roofline");
    for (const std::int64_t tokens : grid.tokens) {
      const std::string label = std::to_string(tokens) + " tokens";
      if (prefill) {
        profile.prefill(tokens);
        progress.advance(1, "prefill of " + label);
      }
      for (const std::int64_t batch : decode ? options.batches : std::vector<std::int64_t>()) {
        profile.decode(tokens, batch);
        progress.advance(1, "decode at " + label);
      }
    }
    note_clocks("after");
  }
  add_peers(grid, report);
  if (!grid.peer.empty()) {
    note_clocks("after the peers");
    report.notes.push_back("peers are timed by their own command, after ours and without graphs");
  }
  progress.advance(1, "peers");
  finish_report(grid, common, report);
  return 0;
}

}  // namespace

void setup_gpu(Program& program, const std::vector<std::string>& argv) {
  const auto options = std::make_shared<GpuOptions>();
  options->grid.tokens = {8192, 32768, 131072};
  options->grid.num_heads = 32;
  options->grid.num_kv_heads = 8;
  options->grid.head_dim = 128;
  options->grid.warmup = 3;
  options->grid.repeats = 15;
  CLI::App& command = program.add_command(
      "gpu", "Time dense and sparse attention, selection and decode steps on this GPU",
      {"sw-profile gpu -o profile",
       "sw-profile gpu --tokens 8192 32768 --head-dim 64 --density 0.1 0.2 0.3 -o d64",
       "sw-profile gpu --phase decode --batch 1 8 64 --tokens 32768 -o decode",
       "sw-profile gpu --peer \"python3 tests/bench/sdpa_peer.py --device cuda\" -o against-torch"},
      [options, argv](const CommonOptions& common) { return run_gpu(*options, common, argv); });
  add_profile_options(command, options->grid);
  command.add_option("--dtype", options->grid.dtype, "Type of q, k and v")
      ->check(CLI::IsMember({"bf16", "f16"}))
      ->capture_default_str();
  command.add_option("--batch", options->batches, "Sequences of a decode step")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  command.add_flag("--portable", options->portable,
                   "Time the portable kernels where Hopper's would run");
}

}  // namespace sw
