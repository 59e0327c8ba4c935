#include "kernels/cpu/backend.hpp"

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "core/parallel.hpp"
#include "kernels/cpu/decode_attention.hpp"
#include "kernels/cpu/isa.hpp"
#include "kernels/cpu/row_attention.hpp"
#include "kernels/cpu/transition.hpp"
#include "kernels/cpu/walk.hpp"

namespace sw {
namespace {

/// Query heads [head_begin, head_end), which share a KV head and a row set, in one block row.
struct WorkItem {
  std::int64_t head_begin;
  std::int64_t head_end;
  std::int64_t row;
  std::int64_t keys;  ///< to visit, in whole blocks and single: the cost
};

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(const cpu::Isa& isa) : isa_(isa) {}

  std::string name() const override { return "cpu"; }
  std::string detail() const override {
    return std::string(isa_.name) + ", f32" +
           (isa_.has_bf16() ? " (products of bf16 tensors: bf16), " : ", ") +
           std::to_string(num_threads()) + " threads";
  }
  std::optional<std::string> unsupported(const AttentionProblem& problem) const override {
    if (problem.tokens() >= std::int64_t{1} << 31) return "more than 2^31 - 1 tokens";
    return {};
  }

  void attend(const AttentionProblem& problem, const BlockSelection& selection,
              AttentionOutput& output) const override {
    run(problem, selection, output, nullptr);
  }
  void attend_dense(const AttentionProblem& problem, const BlockGeometry& geometry,
                    AttentionOutput& output, BlockMass& mass) const override {
    mass.reserve(problem.num_heads(), geometry);
    run(problem, BlockSelection::dense(geometry), output, &mass);
  }
  Matrix transition(const AttentionProblem& problem, const SketchParams& params,
                    StageTimes* times) const override {
    return cpu::transition(problem, params, times, isa_);
  }
  Matrix damped_walk(const Matrix& a, const Matrix* previous, double damping,
                     std::int64_t degree) const override {
    return cpu::damped_walk(a, previous, damping, degree, *isa_.scores);
  }
  Matrix product_walk(const Matrix& a, const Matrix* previous) const override {
    return cpu::product_walk(a, previous, *isa_.scores);
  }
  void add_row_product(std::span<const double> x, const float* m, std::int64_t stride,
                       std::span<double> y) const override {
    isa_.scores->add_row_product(x.data(), m, stride, std::ssize(x), std::ssize(y), y.data());
  }
  double exponentials(std::span<double> x, double largest) const override {
    return isa_.scores->exponentials(x.data(), std::ssize(x), largest);
  }

 private:
  void run(const AttentionProblem& problem, const BlockSelection& selection,
           AttentionOutput& output, BlockMass* mass) const;

  const cpu::Isa& isa_;
};

/// The key ranges of one row: kept blocks, and blocks that token-level parts reach into.
std::vector<cpu::KeyRange> key_ranges(const BlockSelection& selection, std::int64_t group,
                                      std::int64_t row) {
  const BlockGeometry& g = selection.geometry();
  const auto kept = selection.blocks(group, row);
  std::vector<cpu::KeyRange> ranges;
  for (const std::int64_t j : selection.touched_blocks(group, row)) {
    const bool is_kept = std::binary_search(kept.begin(), kept.end(), static_cast<std::int32_t>(j));
    const cpu::Mask mask = !is_kept                   ? cpu::Mask::kTokenParts
                           : j == g.first_row() + row ? cpu::Mask::kCausal
                                                      : cpu::Mask::kNone;
    ranges.push_back({j, j * g.block, j * g.block + g.block_tokens(j), mask});
  }
  return ranges;
}

/// The single keys of one row whose queries begin at `begin`: runs of those from there on, which
/// may hide from some queries, and the earlier ones, which all queries see.
struct SingleKeys {
  std::vector<cpu::KeyRange> runs;
  std::span<const std::int32_t> before;
};

SingleKeys single_keys(std::span<const std::int32_t> tokens, std::int64_t begin) {
  SingleKeys keys;
  const auto first = std::lower_bound(tokens.begin(), tokens.end(), begin);
  keys.before = tokens.first(static_cast<std::size_t>(first - tokens.begin()));
  for (auto t = first; t != tokens.end(); ++t) {
    if (keys.runs.empty() || keys.runs.back().end != *t) {
      keys.runs.push_back({0, *t, *t, cpu::Mask::kCausal});
    }
    ++keys.runs.back().end;
  }
  return keys;
}

void CpuBackend::run(const AttentionProblem& problem, const BlockSelection& selection,
                     AttentionOutput& output, BlockMass* mass) const {
  problem.validate();
  output.reserve(problem);
  if (problem.queries() == 1) {
    return cpu::attend_one_query(problem, selection, isa_, output, mass);
  }
  const BlockGeometry& g = selection.geometry();
  const std::int64_t queries = problem.queries();
  const std::int64_t heads_per_set = problem.num_heads() / selection.groups();
  const std::int64_t heads_per_item = std::min(problem.group(), heads_per_set);

  std::vector<WorkItem> items;
  for (std::int64_t h = 0; h < problem.num_heads(); h += heads_per_item) {
    for (std::int64_t r = 0; r < g.rows(); ++r) {
      const std::int64_t set = h / heads_per_set;
      items.push_back({h, h + heads_per_item, r,
                       std::ssize(selection.touched_blocks(set, r)) * g.block +
                           std::ssize(selection.tokens(set, r))});
    }
  }
  std::stable_sort(items.begin(), items.end(),
                   [](const WorkItem& a, const WorkItem& b) { return a.keys > b.keys; });

  const auto workspaces =
      cpu::make_row_attention(isa_, cpu::all_bf16(problem), problem.k, problem.v, num_threads());
  parallel_for(static_cast<std::int64_t>(items.size()), [&](std::int64_t index, int thread) {
    const WorkItem& item = items[static_cast<std::size_t>(index)];
    cpu::RowAttention& rows = *workspaces[static_cast<std::size_t>(thread)];
    const std::int64_t begin = g.row_begin(item.row);
    const std::int64_t count = g.row_end(item.row) - begin;
    rows.begin(item.head_end - item.head_begin, count, problem.head_dim(), problem.scale());
    rows.set_token_parts(selection.token_window(), selection.token_sink());
    if (mass != nullptr) rows.want_masses();
    if (mass == nullptr && output.out_only) rows.want_output_only();
    const std::int64_t first = begin - problem.query_begin();
    for (std::int64_t h = item.head_begin; h < item.head_end; ++h) {
      rows.set_queries(h - item.head_begin, problem.q, h, first, begin);
    }
    const std::int64_t kv_head = item.head_begin / problem.group();
    const std::int64_t set = item.head_begin / heads_per_set;
    for (const cpu::KeyRange& keys : key_ranges(selection, set, item.row)) {
      rows.visit(kv_head, keys);
    }
    const SingleKeys singles = single_keys(selection.tokens(set, item.row), begin);
    rows.visit_singles(kv_head, singles.before);
    for (const cpu::KeyRange& keys : singles.runs) {
      rows.visit(kv_head, keys);
    }
    rows.end();
    for (std::int64_t h = item.head_begin; h < item.head_end; ++h) {
      rows.finish(h - item.head_begin, output.out.row<float>(h, first),
                  output.out_only ? nullptr : output.lse.data() + h * queries + first);
      if (mass == nullptr) continue;
      std::vector<double> sum(static_cast<std::size_t>(mass->cols), 0.0);
      rows.add_masses(h - item.head_begin, 0, count, sum);
      const std::span<float> row = mass->row(h, item.row);
      for (std::size_t j = 0; j < row.size(); ++j) {
        row[j] = static_cast<float>(sum[j] / static_cast<double>(count));
      }
    }
  });
}

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(std::string_view isa) {
  return std::make_unique<CpuBackend>(cpu::find_isa(isa));
}

}  // namespace sw
