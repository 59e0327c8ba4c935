// Every trace metric against values of an independent implementation (tests/golden/metrics.json).
// Attention is computed here, from its definition, so that only the metrics are under test.
#include <gtest/gtest.h>

#include <cmath>

#include "metric/answer_recall.hpp"
#include "metric/cosine.hpp"
#include "metric/density.hpp"
#include "metric/mass_recall.hpp"
#include "metric/oracle_gap.hpp"
#include "metric/output_error.hpp"
#include "metric/topk_recall.hpp"
#include "support/golden_file.hpp"

namespace sw {
namespace {

using nlohmann::json;

Part part_of(char tag) {
  switch (tag) {
    case 'w':
      return Part::kWindow;
    case 's':
      return Part::kSink;
    case 'k':
      return Part::kScored;
    default:
      return Part::kForced;
  }
}

BlockSelection selection_of(const json& test_case, const BlockGeometry& geometry) {
  const json& given = test_case.at("selection");
  BlockSelection selection(geometry, given.at("groups"));
  for (std::size_t g = 0; g < given.at("rows").size(); ++g) {
    for (std::size_t r = 0; r < given.at("rows")[g].size(); ++r) {
      const auto blocks = given.at("rows")[g][r].get<std::vector<std::int32_t>>();
      std::vector<Part> parts;
      for (char tag : given.at("parts")[g][r].get<std::string>()) parts.push_back(part_of(tag));
      selection.append_row(blocks, parts);
    }
  }
  selection.set_token_parts(given.at("token_window"), given.at("token_sink"));
  return selection;
}

/// Softmax attention of one problem by its definition; with a selection only over what it keeps.
struct Attention {
  AttentionOutput output;
  BlockMass mass;

  Attention(const AttentionProblem& problem, const BlockGeometry& geometry,
            const BlockSelection* selection) {
    output.reserve(problem);
    mass.reserve(problem.num_heads(), geometry);
    const std::int64_t dim = problem.head_dim();
    std::vector<float> q(dim), k(dim), v(dim);
    for (std::int64_t h = 0; h < problem.num_heads(); ++h) {
      const std::int64_t kv = h / problem.group();
      for (std::int64_t p = geometry.query_begin; p < geometry.tokens; ++p) {
        const std::int64_t r = p / geometry.block - geometry.first_row();
        problem.q.load_row(h, p - geometry.query_begin, q.data());
        std::vector<double> weight(p + 1, 0.0);
        double total = 0.0;
        for (std::int64_t t = 0; t <= p; ++t) {
          bool visible = selection == nullptr;
          if (!visible) {
            const auto kept =
                selection->blocks(selection->group_of_head(h, problem.num_heads()), r);
            visible = std::find(kept.begin(), kept.end(), t / geometry.block) != kept.end() ||
                      t > p - selection->token_window() || t < selection->token_sink();
          }
          if (!visible) continue;
          problem.k.load_row(kv, t, k.data());
          double dot = 0.0;
          for (std::int64_t x = 0; x < dim; ++x) dot += double{q[x]} * k[x];
          total += weight[t] = std::exp(dot / std::sqrt(double(dim)));
        }
        std::vector<double> out(dim, 0.0);
        for (std::int64_t t = 0; t <= p; ++t) {
          problem.v.load_row(kv, t, v.data());
          for (std::int64_t x = 0; x < dim; ++x) out[x] += weight[t] / total * v[x];
          mass.row(h, r)[t / geometry.block] += static_cast<float>(
              weight[t] / total / double(geometry.row_end(r) - geometry.row_begin(r)));
        }
        float* row = output.out.row<float>(h, p - geometry.query_begin);
        for (std::int64_t x = 0; x < dim; ++x) row[x] = static_cast<float>(out[x]);
        output.lse[h * problem.queries() + p - geometry.query_begin] = std::log(total);
      }
    }
  }
};

/// Expected values are [units][rows], or [units] in decode cases.
void expect_grid(const BlockGrid& grid, const json& expected, const std::string& what) {
  ASSERT_EQ(grid.units, static_cast<std::int64_t>(expected.size())) << what;
  for (std::int64_t u = 0; u < grid.units; ++u) {
    for (std::int64_t r = 0; r < grid.rows; ++r) {
      const json& value = expected[u].is_array() ? expected[u][r] : expected[u];
      EXPECT_NEAR(grid(u, r), value.get<double>(), 5e-6) << what << " unit " << u << " row " << r;
    }
  }
}

std::vector<std::int32_t> row_of(const json& rows, std::int64_t group, std::int64_t row,
                                 bool decode) {
  return decode ? rows[group].get<std::vector<std::int32_t>>()
                : rows[group][row].get<std::vector<std::int32_t>>();
}

const json& golden_cases() {
  static const json cases = testing::golden_file("metrics.json").at("cases");
  return cases;
}

/// The parameter is the index of the case.
class MetricGolden : public ::testing::TestWithParam<std::size_t> {};

TEST_P(MetricGolden, Agrees) {
  const json& c = golden_cases()[GetParam()];
  const json& expected = c.at("expected");
  const std::int64_t tokens = c.at("shape").at("tokens");
  const std::int64_t block = c.at("shape").at("block");
  const bool decode = c.at("decode");
  const testing::GoldenLayer inputs(c, c.at("layer"), tokens);
  const AttentionProblem problem = inputs.problem(c.at("layer"), decode ? tokens - 1 : 0, tokens);
  const BlockGeometry geometry = problem.geometry(block);
  const BlockSelection selection = selection_of(c, geometry);
  const Attention dense(problem, geometry, nullptr);
  const Attention sparse(problem, geometry, &selection);

  const BlockGrid recall = mass_recall(dense.output.lse, sparse.output.lse, geometry);
  expect_grid(recall, expected.at("mass_recall"), "mass_recall by lse");
  if (!selection.has_token_parts()) {
    expect_grid(mass_recall(dense.mass, selection), expected.at("mass_recall"),
                "mass_recall by block masses");
  }
  const BlockSelection best = best_selection(dense.mass, selection);
  for (std::int64_t g = 0; g < selection.groups(); ++g) {
    for (std::int64_t r = 0; r < selection.rows(); ++r) {
      const auto blocks = best.blocks(g, r);
      EXPECT_EQ(std::vector<std::int32_t>(blocks.begin(), blocks.end()),
                row_of(expected.at("oracle_rows"), g, r, decode));
      EXPECT_EQ(selection.touched_blocks(g, r), row_of(expected.at("touched_rows"), g, r, decode));
    }
  }
  const BlockGrid gap = oracle_gap(dense.mass, best, recall);
  expect_grid(gap, expected.at("oracle_gap"), "oracle_gap");
  const BlockGrid set_gap = oracle_gap_of_sets(gap, selection.groups());
  expect_grid(set_gap, expected.at("oracle_gap_set"), "oracle_gap_set");
  for (float value : set_gap.values) EXPECT_GE(value, 0.0f);
  expect_grid(topk_recall(selection, best), expected.at("topk_recall"), "topk_recall");
  const OutputComparison outputs = compare_outputs(dense.output, sparse.output, geometry);
  expect_grid(output_error(outputs), expected.at("output_error"), "output_error");
  expect_grid(output_cosine(outputs), expected.at("cosine"), "cosine");

  std::vector<std::pair<std::int64_t, std::int64_t>> spans;
  for (const json& span : c.at("spans")) spans.emplace_back(span[0], span[1]);
  const auto answer = answer_recall(selection, spans);
  ASSERT_TRUE(answer.has_value());
  EXPECT_NEAR(*answer, expected.at("answer_recall").get<double>(), 1e-12);

  const DensityCount count = selection.count();
  const json& pairs = decode ? expected.at("tokens") : expected.at("pairs");
  for (int part = 0; part < kNumParts; ++part) {
    const char* name = part_name(static_cast<Part>(part));
    EXPECT_EQ(count.kept[part], pairs.at(name).get<std::int64_t>()) << name;
  }
  EXPECT_EQ(count.causal, pairs.at(decode ? "context" : "causal").get<std::int64_t>());
  if (decode) {
    const auto read = kv_tokens_read(selection, problem.num_heads(), problem.num_kv_heads());
    EXPECT_EQ(read, expected.at("kv_tokens_read").get<std::vector<std::int64_t>>());
    std::int64_t sum = 0;
    for (std::int64_t tokens_read : read) sum += tokens_read;
    EXPECT_NEAR(double(sum) / double(tokens * problem.num_kv_heads()),
                expected.at("density_decode").get<double>(), 1e-9);
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, MetricGolden,
                         ::testing::Range(std::size_t{0}, golden_cases().size()),
                         [](const auto& c) {
                           return golden_cases()[c.param].at("name").template get<std::string>();
                         });

}  // namespace
}  // namespace sw
