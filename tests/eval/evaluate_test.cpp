// The evaluation loop on small traces.
#include "eval/evaluate.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/error.hpp"
#include "eval/summary.hpp"
#include "kernels/cpu/backend.hpp"
#include "kernels/reference/backend.hpp"
#include "metric/mass_recall.hpp"
#include "policy/list.hpp"
#include "support/tiny_trace.hpp"
#include "trace/synthetic.hpp"

namespace sw {
namespace {

using Policies = std::vector<std::unique_ptr<Policy>>;

Policies policies_of(const std::vector<std::string>& specs) {
  Policies policies;
  for (const auto& spec : specs) policies.push_back(make_policy(spec, 0));
  return policies;
}

const std::vector<std::string> kAllMethods = {"dense",
                                              "sketchwalk",
                                              "sketchwalk:preset=preprint",
                                              "sketchwalk:budget=release",
                                              "oracle",
                                              "oracle:granularity=head",
                                              "sink_window",
                                              "random",
                                              "vertical_slash",
                                              "snapkv",
                                              "h2o",
                                              "tova:granularity=head"};

class Evaluate : public ::testing::Test {
 protected:
  Evaluate() : trace_(tiny_.write(folder_.file("tiny.h5"))), backend_(make_reference_backend()) {
    options_.block = 16;
    options_.densities = {0.2};
  }

  std::vector<CellRecord> run(const std::vector<std::string>& specs) const {
    return evaluate_trace(trace_, 0, policies_of(specs), options_, *backend_);
  }

  testing::TemporaryFolder folder_;
  testing::TinyTrace tiny_;
  TraceReader trace_;
  std::unique_ptr<Backend> backend_;
  EvalOptions options_;
};

void expect_all_near(const MetricArray& array, double value, double tolerance) {
  ASSERT_FALSE(array.empty());
  for (float x : array.values) ASSERT_NEAR(x, value, tolerance);
}

TEST_F(Evaluate, EverythingKeptIsDenseAttention) {
  options_.densities = {1.0};
  for (const CellRecord& cell : run({"dense", "sketchwalk", "sink_window", "oracle", "random"})) {
    ASSERT_EQ(cell.status, CellStatus::kOk) << cell.reason;
    SCOPED_TRACE(cell.method);
    expect_all_near(cell.metric(Metric::kMassRecall), 1.0, 1e-6);
    expect_all_near(cell.metric(Metric::kOracleGap), 0.0, 1e-6);
    expect_all_near(cell.metric(Metric::kOracleGapSet), 0.0, 1e-6);
    expect_all_near(cell.metric(Metric::kTopkRecall), 1.0, 0.0);
    expect_all_near(cell.metric(Metric::kOutputError), 0.0, 1e-6);
    expect_all_near(cell.metric(Metric::kCosine), 1.0, 1e-6);
    expect_all_near(cell.density_rows, 1.0, 0.0);
    expect_all_near(cell.answer_recall, 1.0, 0.0);
  }
}

TEST_F(Evaluate, ShapesFollowTheTrace) {
  const auto cells = run({"sketchwalk", "oracle:granularity=kv_head"});
  ASSERT_EQ(cells.size(), 4u);  // two methods, one density, two phases
  for (const CellRecord& cell : cells) {
    const bool prefill = cell.phase == Phase::kPrefill;
    EXPECT_EQ(cell.columns(), prefill ? 13 : 3);
    EXPECT_EQ(cell.heads(), 4);
    EXPECT_EQ(cell.row_sets, cell.name == "oracle" ? 2 : 1);
    EXPECT_EQ(cell.metric(Metric::kMassRecall).layers, 3);
    EXPECT_EQ(cell.metric(Metric::kTopkRecall).units, cell.row_sets);
    EXPECT_EQ(cell.answer_recall.columns, prefill ? 1 : 3);
    EXPECT_EQ(cell.times.size(), prefill ? 2u : 6u);
    ASSERT_EQ(cell.layers.size(), 3u);
    EXPECT_FALSE(cell.layers[0].sparse);  // layer 1 of the model
    EXPECT_TRUE(cell.layers[1].sparse);
    EXPECT_EQ(cell.layers[1].layer, 2);
    EXPECT_EQ(cell.attribution.has_value(), cell.name == "sketchwalk");
  }
}

TEST_F(Evaluate, DenseLayersHaveTheirValuesByIdentity) {
  const CellRecord cell = run({"sink_window"}).front();
  for (std::int64_t h = 0; h < 4; ++h) {
    for (std::int64_t c = 0; c < cell.columns(); ++c) {
      EXPECT_EQ(cell.metric(Metric::kMassRecall)(0, h, c), 1.0f);
      EXPECT_EQ(cell.metric(Metric::kOutputError)(0, h, c), 0.0f);
    }
  }
  EXPECT_EQ(cell.layers[0].pairs.kept_total(), cell.layers[0].pairs.causal);
  EXPECT_EQ(cell.layers[0].pairs.causal, 4 * 200 * 201 / 2);
  EXPECT_LT(cell.layers[1].pairs.kept_total(), cell.layers[1].pairs.causal);
}

void expect_same_values(const CellRecord& a, const CellRecord& b) {
  EXPECT_EQ(a.method, b.method);
  EXPECT_EQ(a.density, b.density);
  EXPECT_EQ(a.phase, b.phase);
  for (const MetricInfo& metric : list_metrics()) {
    EXPECT_EQ(a.metric(metric.metric).values, b.metric(metric.metric).values) << metric.name;
  }
  EXPECT_EQ(a.density_rows.values, b.density_rows.values);
  EXPECT_EQ(a.answer_recall.values, b.answer_recall.values);
}

TEST_F(Evaluate, ManyMethodsAtOnceEqualOneAtATime) {
  options_.densities = {0.1, 0.4};
  const auto together = run(kAllMethods);
  std::size_t next = 0;
  for (const std::string& spec : kAllMethods) {
    for (double density : {0.1, 0.4}) {
      EvalOptions single = options_;
      single.densities = {density};
      const Policies policies = policies_of({spec});
      for (const CellRecord& cell : evaluate_trace(trace_, 0, policies, single, *backend_)) {
        ASSERT_LT(next, together.size());
        expect_same_values(cell, together[next++]);
      }
      if (!policies.front()->takes_density()) break;
    }
  }
  EXPECT_EQ(next, together.size());
}

TEST_F(Evaluate, PhasesAloneEqualBoth) {
  const auto both = run(kAllMethods);
  options_.decode = false;
  const auto prefill = run(kAllMethods);
  options_.decode = true;
  options_.prefill = false;
  const auto decode = run(kAllMethods);
  ASSERT_EQ(both.size(), prefill.size() + decode.size());
  for (std::size_t i = 0; i < prefill.size(); ++i) {
    expect_same_values(both[2 * i], prefill[i]);
    expect_same_values(both[2 * i + 1], decode[i]);
  }
}

TEST_F(Evaluate, BackendsAgree) {
  const auto reference = run({"sketchwalk", "oracle"});
  backend_ = make_cpu_backend();
  const auto cpu = run({"sketchwalk", "oracle"});
  for (std::size_t i = 0; i < cpu.size(); ++i) {
    for (const MetricInfo& metric : list_metrics()) {
      const auto& a = reference[i].metric(metric.metric).values;
      const auto& b = cpu[i].metric(metric.metric).values;
      ASSERT_EQ(a.size(), b.size());
      for (std::size_t x = 0; x < a.size(); ++x) EXPECT_NEAR(a[x], b[x], 1e-4) << metric.name;
    }
  }
}

/// The reference with memory of its own: of outputs that are to be kept nothing but their
/// comparison comes out.
class KeepingBackend final : public Backend {
 public:
  struct Output final : KeptOutput {
    AttentionOutput inner;
  };

  std::string name() const override { return "keeping"; }
  std::string detail() const override { return {}; }
  std::optional<std::string> unsupported(const AttentionProblem& problem) const override {
    return inner_->unsupported(problem);
  }
  void attend(const AttentionProblem& problem, const BlockSelection& selection,
              AttentionOutput& output) const override {
    inner_->attend(problem, selection, output);
    keep(output);
  }
  void attend_dense(const AttentionProblem& problem, const BlockGeometry& geometry,
                    AttentionOutput& output, BlockMass& mass) const override {
    inner_->attend_dense(problem, geometry, output, mass);
    keep(output);
  }
  OutputComparison compare(const AttentionOutput& dense, const AttentionOutput& sparse,
                           const BlockGeometry& geometry) const override {
    ++comparisons;
    const auto inner = [](const AttentionOutput& output) -> const AttentionOutput& {
      EXPECT_EQ(output.out.elements(), 0);
      return dynamic_cast<const Output&>(*output.kept).inner;
    };
    return compare_outputs(inner(dense), inner(sparse), geometry);
  }
  Matrix transition(const AttentionProblem& problem, const SketchParams& params,
                    StageTimes* times) const override {
    return inner_->transition(problem, params, times);
  }

  mutable int comparisons = 0;

 private:
  static void keep(AttentionOutput& output) {
    if (!output.keep) return;
    auto kept = std::make_unique<Output>();
    kept->inner.out = std::move(output.out);
    output.out = HeadsTensor();
    output.kept = std::move(kept);
  }
  std::unique_ptr<Backend> inner_ = make_reference_backend();
};

TEST_F(Evaluate, ComparesOutputsWhereTheBackendKeepsThem) {
  const std::vector<std::string> specs = {"dense", "sketchwalk", "sketchwalk:budget=release",
                                          "twilight"};
  const auto want = run(specs);
  auto keeping = std::make_unique<KeepingBackend>();
  const int& comparisons = keeping->comparisons;
  backend_ = std::move(keeping);
  const auto got = run(specs);
  ASSERT_EQ(got.size(), want.size());
  for (std::size_t i = 0; i < got.size(); ++i) expect_same_values(got[i], want[i]);
  EXPECT_GT(comparisons, 0);
}

TEST_F(Evaluate, DecodeCountsKvTokensOnce) {
  for (const CellRecord& cell : run({"dense", "oracle:granularity=head", "sink_window"})) {
    if (cell.phase != Phase::kDecode) continue;
    const LayerRecord& layer = cell.layers.back();
    EXPECT_EQ(layer.kv_tokens_context, 2 * (201 + 202 + 203));
    if (cell.name == "dense") {
      EXPECT_EQ(layer.kv_tokens_read, layer.kv_tokens_context);
    } else {
      EXPECT_LT(layer.kv_tokens_read, layer.kv_tokens_context);
    }
    if (cell.name == "sink_window") {  // one selection: pairs a head = tokens a KV head
      EXPECT_EQ(2 * layer.kv_tokens_read, layer.pairs.kept_total());
    }
  }
}

TEST_F(Evaluate, OracleBoundsEveryMethod) {
  const auto cells = run({"oracle", "sketchwalk", "sink_window", "random"});
  for (const CellRecord& cell : cells) {
    const auto& oracle = cells[cell.phase == Phase::kPrefill ? 0 : 1];
    for (std::int64_t layer = 1; layer < 3; ++layer) {
      for (std::int64_t c = 0; c < cell.columns(); ++c) {
        EXPECT_LE(cell.metric(Metric::kMassRecall).unit_mean(layer, c),
                  oracle.metric(Metric::kMassRecall).unit_mean(layer, c) + 1e-6);
        EXPECT_GE(cell.metric(Metric::kOracleGapSet)(layer, 0, c), 0.0f);
      }
    }
  }
}

const std::vector<std::string> kAttributed = {
    "sketchwalk", "sketchwalk:preset=preprint,sketch_dim=4",
    "sketchwalk:key_pool=1,causal_sketch=true,temperature=8,walk=none",
    "sketchwalk:budget=release,key_pool=4", "sketchwalk:granularity=head,preset=tuned"};

TEST_F(Evaluate, AttributionVariantsAreTheMethodsTheyName) {
  for (const std::string& spec : kAttributed) {
    const auto cells = run({spec});
    for (const CellRecord& cell : cells) {
      ASSERT_TRUE(cell.attribution.has_value());
      const std::size_t phase = cell.phase == Phase::kPrefill ? 0 : 1;
      for (std::size_t v = 0; v < kNumVariants; ++v) {
        if (cell.attribution->specs[v].empty()) continue;
        SCOPED_TRACE(cell.attribution->specs[v]);
        EXPECT_EQ(run({cell.attribution->specs[v]})[phase].metric(Metric::kMassRecall).values,
                  cell.attribution->recall[v].values);
      }
    }
  }
  options_.attribution = false;
  EXPECT_FALSE(run({"sketchwalk"}).front().attribution.has_value());
}

TEST_F(Evaluate, AttributionStartsAtTheOracles) {
  const auto oracles = run({"oracle:granularity=head", "oracle:forced=true", "oracle"});
  const auto cells = run({"sketchwalk"});
  for (std::size_t phase = 0; phase < 2; ++phase) {
    const AttributionRecord& record = *cells[phase].attribution;
    EXPECT_EQ(record[Variant::kBestPerHead].values,
              oracles[phase].metric(Metric::kMassRecall).values);
    EXPECT_EQ(record[Variant::kForced].values,
              oracles[2 + phase].metric(Metric::kMassRecall).values);
  }
}

TEST_F(Evaluate, AttributionSumsToTheLossOfEveryLayerAndHead) {
  options_.densities = {0.1, 0.3};
  for (const CellRecord& cell : run(kAttributed)) {
    SCOPED_TRACE(cell.method);
    const auto layers = summarize_cells({&cell, 1}).front().attribution->per_layer;
    for (std::size_t i = 0; i < layers.size(); ++i) {
      const auto& parts = layers[i].part;
      double gap = 0.0;
      for (std::int64_t c = 0; c < cell.columns(); ++c) {
        gap += cell.metric(Metric::kOracleGap).unit_mean(static_cast<std::int64_t>(i), c);
      }
      EXPECT_NEAR(std::accumulate(parts.begin() + 1, parts.end(), 0.0),
                  gap / static_cast<double>(cell.columns()), 1e-6);
      if (!cell.layers[i].sparse) {
        for (const double part : parts) EXPECT_EQ(part, 0.0);
      }
    }
    for (const auto& parts : loss_of_heads(cell)) {
      EXPECT_NEAR(std::accumulate(parts.part.begin() + 1, parts.part.end(), 0.0), parts.total,
                  1e-6);
    }
  }
}

TEST_F(Evaluate, APartThatAMethodDoesNotHaveCostsNothing) {
  // Token keys at the scale of attention, causal, per head, without transform and walk.
  const auto cells =
      run({"sketchwalk:key_pool=1,causal_sketch=true,hadamard=unbiased,"
           "temperature=1,sketch=exact,walk=none"});
  for (const CellRecord& cell : cells) {
    const auto parts = summarize_cells({&cell, 1}).front().attribution->mean;
    for (std::size_t p = 0; p < kNumLossParts; ++p) {
      const auto part = static_cast<LossPart>(p);
      if (part == LossPart::kSharing || part == LossPart::kForced ||
          part == LossPart::kQueryPooling) {
        continue;
      }
      EXPECT_EQ(parts[part], 0.0) << loss_part_name(part);
    }
    EXPECT_GE(parts[LossPart::kSharing], 0.0);
    EXPECT_GE(parts[LossPart::kForced], 0.0);
  }
}

TEST_F(Evaluate, WithoutOutputErrorTheRecallIsTheSame) {
  const auto full = run({"sketchwalk", "sketchwalk:budget=release"});
  options_.output_error = false;
  const auto masses = run({"sketchwalk", "sketchwalk:budget=release"});
  for (std::size_t i = 0; i < full.size(); ++i) {
    EXPECT_EQ(full[i].metric(Metric::kMassRecall).values,
              masses[i].metric(Metric::kMassRecall).values);
    EXPECT_TRUE(masses[i].metric(Metric::kOutputError).empty());
  }
  EXPECT_FALSE(masses[0].times.front().attended);
  EXPECT_TRUE(masses[2].times.front().attended);  // token-level parts need the attention
}

TEST_F(Evaluate, TokenLevelPartsAddToTheBlocks) {
  options_.save_selection = true;
  options_.decode = false;
  const CellRecord cell = run({"sketchwalk:budget=release"}).front();
  ASSERT_EQ(cell.status, CellStatus::kOk) << cell.reason;
  ASSERT_EQ(cell.saved.size(), 2u);
  const SavedLayer& saved = cell.saved.back();
  ASSERT_TRUE(saved.selections.front().has_token_parts());
  const TraceLayer data = trace_.layer(saved.layer);
  const AttentionProblem problem{data.q.view().tokens_slice(0, 200),
                                 data.k.view().tokens_slice(0, 200),
                                 data.v.view().tokens_slice(0, 200), saved.layer};
  AttentionOutput output;
  BlockMass mass;
  backend_->attend_dense(problem, problem.geometry(16), output, mass);
  const BlockGrid blocks = mass_recall(mass, saved.selections.front());
  double added = 0.0;
  for (std::int64_t h = 0; h < 4; ++h) {
    for (std::int64_t r = 0; r < 13; ++r) {
      const double all = cell.metric(Metric::kMassRecall)(2, h, r);
      EXPECT_GE(all, blocks(h, r) - 1e-6);
      EXPECT_LE(all, 1.0 + 1e-6);
      added += all - blocks(h, r);
    }
  }
  EXPECT_GT(added, 0.1);
}

// What selects single keys is measured as what selects blocks is, from the probability of each key.
TEST_F(Evaluate, SingleKeysAreMeasuredByTheirProbabilities) {
  options_.save_selection = true;
  for (const CellRecord& cell :
       run({"vertical_slash", "snapkv", "h2o:granularity=kv_head", "oracle:unit=token"})) {
    ASSERT_EQ(cell.status, CellStatus::kOk) << cell.reason;
    SCOPED_TRACE(cell.method);
    const bool prefill = cell.phase == Phase::kPrefill;
    if (prefill != (cell.name == "vertical_slash")) {
      EXPECT_FALSE(cell.selects_keys);
      continue;
    }
    EXPECT_TRUE(cell.selects_keys);
    for (const SavedLayer& saved : cell.saved) {
      const TraceLayer data = trace_.layer(saved.layer);
      for (std::size_t s = 0; s < saved.selections.size(); ++s) {
        const BlockSelection& selection = saved.selections[s];
        const std::int64_t end = selection.geometry().tokens;
        const AttentionProblem problem{
            data.q.view().tokens_slice(selection.geometry().query_begin, end),
            data.k.view().tokens_slice(0, end), data.v.view().tokens_slice(0, end), saved.layer};
        AttentionOutput output;
        BlockMass mass;  // [heads, queries, keys]
        backend_->attend_dense(problem, problem.geometry(1), output, mass);
        for (std::int64_t h = 0; h < 4; ++h) {
          const std::int64_t g = selection.group_of_head(h, 4);
          for (std::int64_t r = 0; r < selection.rows(); ++r) {
            double kept = 0.0;
            const std::int64_t first = selection.geometry().row_begin(r);
            const std::int64_t last = selection.geometry().row_end(r);
            for (std::int64_t p = first; p < last; ++p) {
              const auto row = mass.row(h, p - selection.geometry().query_begin);
              for (const std::int32_t j : selection.blocks(g, r)) {
                for (std::int64_t t = j * 16; t < std::min<std::int64_t>(j * 16 + 16, p + 1); ++t) {
                  kept += row[static_cast<std::size_t>(t)];
                }
              }
              for (const std::int32_t t : selection.tokens(g, r)) {
                if (t <= p) kept += row[static_cast<std::size_t>(t)];
              }
            }
            // Probabilities are summed in f32.
            EXPECT_NEAR(cell.metric(Metric::kMassRecall)(
                            saved.layer - 1, h, prefill ? r : static_cast<std::int64_t>(s)),
                        kept / static_cast<double>(last - first), 1e-5);
          }
        }
      }
    }
    if (prefill) {
      EXPECT_TRUE(cell.metric(Metric::kOracleGap).empty());
      EXPECT_TRUE(cell.metric(Metric::kOracleGapSet).empty());
      EXPECT_TRUE(cell.metric(Metric::kTopkRecall).empty());
      EXPECT_NEAR(cell.layers[1].pairs.density(), 0.2, 0.005);
      continue;
    }
    EXPECT_NEAR(cell.layers[1].pairs.density(), 0.2, 0.5 / 201);
    const bool best = cell.name == "oracle";
    for (const float gap : cell.metric(Metric::kOracleGapSet).values) {
      EXPECT_GE(gap, 0.0f);
      EXPECT_LE(gap, best ? 1e-5f : 1.0f);
    }
    double top = 0.0;
    for (const float x : cell.metric(Metric::kTopkRecall).values) top += x;
    top /= static_cast<double>(cell.metric(Metric::kTopkRecall).values.size());
    EXPECT_EQ(top == 1.0, best);
    EXPECT_LT(cell.layers[1].kv_tokens_read, cell.layers[1].kv_tokens_context);
  }
}

TEST_F(Evaluate, SavedSelectionsHaveTheCountedPairs) {
  options_.save_selection = true;
  for (const CellRecord& cell : run({"sketchwalk", "oracle:granularity=head"})) {
    ASSERT_EQ(cell.saved.size(), 2u);
    for (std::size_t i = 0; i < 2; ++i) {
      EXPECT_EQ(cell.saved[i].layer, static_cast<std::int64_t>(i) + 2);
      std::int64_t pairs = 0;
      for (const BlockSelection& selection : cell.saved[i].selections) {
        pairs += selection.count().kept_total() * 4 / selection.groups();
      }
      EXPECT_EQ(pairs, cell.layers[i + 1].pairs.kept_total());
      EXPECT_EQ(cell.saved[i].scores != nullptr, cell.phase == Phase::kPrefill);
    }
  }
}

TEST_F(Evaluate, AFailingMethodFailsAlone) {
  const auto cells = run({"sketchwalk:query_pool=7", "sink_window"});
  ASSERT_EQ(cells.size(), 4u);
  for (std::size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(cells[i].status, CellStatus::kFailed);
    EXPECT_NE(cells[i].reason.find("query_pool"), std::string::npos) << cells[i].reason;
    EXPECT_NE(cells[i].reason.find("layer 2"), std::string::npos) << cells[i].reason;
    EXPECT_EQ(cells[i + 2].status, CellStatus::kOk);
  }
}

TEST_F(Evaluate, ADamagedLayerFailsTheCellsWithItsReason) {
  tiny_.nan_layer = 2;
  const TraceReader trace(tiny_.write(folder_.file("nan.h5")));
  for (const CellRecord& cell :
       evaluate_trace(trace, 0, policies_of({"dense", "oracle"}), options_, *backend_)) {
    EXPECT_EQ(cell.status, CellStatus::kFailed);
    EXPECT_NE(cell.reason.find("layer 2"), std::string::npos) << cell.reason;
    EXPECT_TRUE(cell.metric(Metric::kMassRecall).empty());
  }
}

TEST_F(Evaluate, MethodsThatAreDenseInAllLayersAreSkipped) {
  options_.end_layer = 2;  // layer 1 alone
  const auto cells = run({"sketchwalk", "sketchwalk:dense_layers=0", "dense"});
  EXPECT_EQ(cells[0].status, CellStatus::kSkipped);
  EXPECT_NE(cells[0].reason.find("dense_layers"), std::string::npos);
  EXPECT_EQ(cells[2].status, CellStatus::kOk);
  EXPECT_EQ(cells[4].status, CellStatus::kOk);
}

TEST_F(Evaluate, RefusesWhatCannotBe) {
  for (double density : {0.0, -1.0, 1.5, std::nan("")}) {
    options_.densities = {density};
    EXPECT_THROW(run({"oracle"}), Error) << density;
  }
  options_.densities = {0.2};
  options_.first_layer = 4;
  EXPECT_THROW(run({"oracle"}), Error);
  options_.first_layer = 0;
  options_.end_layer = 1;
  EXPECT_THROW(run({"oracle"}), Error);
}

TEST_F(Evaluate, DecodeNeedsDecodeSteps) {
  tiny_.decode = 0;
  const TraceReader trace(tiny_.write(folder_.file("prefill.h5")));
  const Policies policies = policies_of({"oracle"});
  EXPECT_EQ(evaluate_trace(trace, 0, policies, options_, *backend_).size(), 1u);
  options_.prefill = false;
  EXPECT_THROW(evaluate_trace(trace, 0, policies, options_, *backend_), Error);
}

TEST_F(Evaluate, ContainersGiveTheSameNumbers) {
  const auto hdf5 = run(kAllMethods);
  const TraceReader trace(tiny_.write(folder_.file("tiny.safetensors")));
  const auto other = evaluate_trace(trace, 0, policies_of(kAllMethods), options_, *backend_);
  ASSERT_EQ(hdf5.size(), other.size());
  for (std::size_t i = 0; i < hdf5.size(); ++i) expect_same_values(hdf5[i], other[i]);
}

TEST_F(Evaluate, OneBlockAndOneTokenAreDense) {
  for (const std::int64_t tokens : {1, 16}) {
    tiny_.prefill = tokens;
    tiny_.decode = 0;
    tiny_.answers = false;
    const TraceReader trace(tiny_.write(folder_.file("n" + std::to_string(tokens) + ".h5")));
    for (const CellRecord& cell :
         evaluate_trace(trace, 0, policies_of(kAllMethods), options_, *backend_)) {
      ASSERT_EQ(cell.status, CellStatus::kOk) << cell.method << ": " << cell.reason;
      expect_all_near(cell.metric(Metric::kMassRecall), 1.0, 1e-6);
      expect_all_near(cell.metric(Metric::kOutputError), 0.0, 1e-6);
      EXPECT_TRUE(cell.answer_recall.empty());
    }
  }
}

TEST(EvaluatePlanted, PlantedBlocksAreFound) {
  SyntheticOptions synthetic;
  synthetic.num_layers = 1;
  synthetic.first_layer = 2;
  synthetic.prefill_tokens = 1024;
  synthetic.decode_tokens = 0;
  synthetic.block = 32;
  const TraceInfo info = plan_synthetic_trace(synthetic);
  const testing::TemporaryFolder folder;
  TraceWriter writer(folder.file("planted.h5"), info);
  for (const TraceTensor tensor : kTraceTensors) {
    writer.append(2, tensor, synthetic_tokens(synthetic, info, 2, tensor, 0, 1024).view());
  }
  writer.commit();
  EvalOptions options;
  options.block = 32;
  options.densities = {0.3};
  options.decode = false;
  const TraceReader trace(folder.file("planted.h5"));
  const auto cells =
      evaluate_trace(trace, 0, policies_of({"oracle", "sketchwalk:walk=none", "sink_window"}),
                     options, *make_cpu_backend());
  const auto recall = [&](std::size_t cell) {
    double sum = 0.0;
    for (float x : cells[cell].metric(Metric::kMassRecall).values) sum += x;
    return sum / static_cast<double>(cells[cell].metric(Metric::kMassRecall).values.size());
  };
  EXPECT_GT(recall(0), 0.8);
  EXPECT_GT(recall(1), recall(2) + 0.1);
  EXPECT_GE(recall(0), recall(1));
}

}  // namespace
}  // namespace sw
