// Grids, experiment files, units of work, shards and the layer entries of a journal.
#include "eval/sweep.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "core/base64.hpp"
#include "core/error.hpp"
#include "core/file.hpp"
#include "core/text.hpp"
#include "eval/experiment.hpp"
#include "eval/grid.hpp"
#include "eval/layer_entry.hpp"
#include "eval/trace_sweep.hpp"
#include "kernels/reference/backend.hpp"
#include "policy/list.hpp"
#include "support/tiny_trace.hpp"

namespace sw {
namespace {

using nlohmann::json;
using Texts = std::vector<std::string>;

std::string text_of(const std::vector<std::byte>& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

TEST(Base64, Rfc4648) {
  const std::pair<const char*, const char*> vectors[] = {{"", ""},
                                                         {"f", "Zg=="},
                                                         {"fo", "Zm8="},
                                                         {"foo", "Zm9v"},
                                                         {"foob", "Zm9vYg=="},
                                                         {"fooba", "Zm9vYmE="},
                                                         {"foobar", "Zm9vYmFy"}};
  for (const auto& [plain, coded] : vectors) {
    EXPECT_EQ(to_base64(std::as_bytes(std::span(std::string_view(plain)))), coded);
    ASSERT_TRUE(from_base64(coded).has_value()) << coded;
    EXPECT_EQ(text_of(*from_base64(coded)), plain);
  }
  for (const char* bad :
       {"Z", "Zg=", "Zg", "Zh==", "Zm9=", "Z===", "====", "Zm 9", "Zg==Zg==", "Zm9\n", "Zm9-"}) {
    EXPECT_FALSE(from_base64(bad).has_value()) << bad;
  }
}

TEST(Duration, UnitsAddUp) {
  EXPECT_DOUBLE_EQ(parse_duration("90", "t"), 90.0);
  EXPECT_DOUBLE_EQ(parse_duration("90s", "t"), 90.0);
  EXPECT_DOUBLE_EQ(parse_duration("30m", "t"), 1800.0);
  EXPECT_DOUBLE_EQ(parse_duration("1.5h", "t"), 5400.0);
  EXPECT_DOUBLE_EQ(parse_duration("1h30m10s", "t"), 5410.0);
  for (const char* bad : {"", "h", "1d", "-1m", "0", "1h-", "nan"}) {
    EXPECT_THROW(parse_duration(bad, "t"), Error) << bad;
  }
}

TEST(Grid, DensitiesAreNumbersListsAndRanges) {
  EXPECT_EQ(parse_densities({"0.2"}), std::vector<double>({0.2}));
  EXPECT_EQ(parse_densities({"0.3,0.1", "0.1"}), std::vector<double>({0.1, 0.3}));
  // Exactly what a person would have written.
  EXPECT_EQ(parse_densities({"0.05:0.5:0.05"}),
            std::vector<double>({0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5}));
  EXPECT_EQ(parse_densities({"0.1:0.25:0.1", "1"}), std::vector<double>({0.1, 0.2, 1.0}));
  for (const char* bad : {"", "x", "0", "1.1", "-0.1", "0.1:0.2", "0.2:0.1:0.1", "0.1:0.2:0",
                          "0.1:0.2:-1", "0.1:0.2:0.1:0.1", "0:0.2:0.1", "1e-9:1:1e-9"}) {
    EXPECT_THROW(parse_densities({bad}), Error) << bad;
  }
}

TEST(Grid, MethodsAreProducts) {
  EXPECT_EQ(expand_method("oracle"), Texts({"oracle"}));
  EXPECT_EQ(expand_method("a:x=1|2,y=3,z=4|5"),
            Texts({"a:x=1,y=3,z=4", "a:x=1,y=3,z=5", "a:x=2,y=3,z=4", "a:x=2,y=3,z=5"}));
  for (const char* bad : {"", ":x=1", "a:x=", "a:x=1|", "a:x=|1", "a:x=1,x=2", "a:x"}) {
    EXPECT_THROW(expand_method(bad), Error) << bad;
  }
  std::string many = "a:x=1";
  for (int i = 0; i < 200; ++i) many += "|" + std::to_string(i);
  EXPECT_THROW(expand_method(many + ",y" + many.substr(3) + ",z" + many.substr(3)), Error);
}

TEST(ExperimentFile, FieldsAreOptionsAndBack) {
  const Experiment experiment = parse_experiment(
      R"({"command": "trace", "description": "d", "files": "a.h5", "method": ["oracle"],
          "density": [0.1, "0.2:0.4:0.1"], "phase": "prefill", "no-attribution": true})",
      "x");
  const auto& trace = std::get<TraceExperiment>(experiment);
  EXPECT_EQ(trace.files, Texts({"a.h5"}));
  EXPECT_EQ(trace.densities, Texts({"0.1", "0.2:0.4:0.1"}));
  EXPECT_TRUE(trace.no_attribution);
  EXPECT_EQ(to_arguments(experiment),
            Texts({"trace", "a.h5", "--method", "oracle", "--density", "0.1", "0.2:0.4:0.1",
                   "--phase", "prefill", "--no-attribution"}));
  const Experiment model = parse_experiment(
      R"({"command": "model", "task": "niah", "limit": 3, "kl": true, "context": 100})", "x");
  EXPECT_EQ(std::get<ModelExperiment>(model).limit, 3);
  EXPECT_EQ(to_arguments(model).front(), "model");
}

TEST(ExperimentFile, IsStrict) {
  const auto message = [](const std::string& text) -> std::string {
    try {
      parse_experiment(text, "'x.json'");
    } catch (const Error& error) {
      return std::string(error.what()) + " | " + error.hint();
    }
    return "";
  };
  EXPECT_NE(message(R"({"command": "trace", "metod": "oracle"})").find("did you mean 'method'?"),
            std::string::npos);
  EXPECT_NE(message(R"({"command": "trace", "context": 5})").find("'context' is not a key"),
            std::string::npos);
  for (const char* bad :
       {"", "[]", "{}", R"({"command": "score"})", R"({"command": "trace", "phase": "x"})",
        R"({"command": "trace", "block": 0})", R"({"command": "trace", "block": "64"})",
        R"({"command": "trace", "density": []})", R"({"command": "trace", "density": [[0.1]]})",
        R"({"command": "trace", "method": {}})", R"({"command": "model", "limit": -1})",
        R"({"command": "model", "kl": 1})", R"({"command": "trace", "command": "model"})"}) {
    EXPECT_NE(message(bad), "") << bad;
  }
}

TEST(ExperimentFile, ThoseOfTheProjectAreRight) {
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(SW_EXPERIMENTS)) {
    SCOPED_TRACE(entry.path());
    const Experiment experiment = parse_experiment(read_file(entry.path()), entry.path().string());
    const auto [methods, densities] =
        std::visit([](const auto& e) { return std::pair(e.methods, e.densities); }, experiment);
    EXPECT_FALSE(parse_densities(densities).empty());
    for (const std::string& grid : methods) {
      for (const std::string& spec : expand_method(grid)) make_policy(spec, 0);
    }
    ++files;
  }
  EXPECT_GE(files, 5);
}

TEST(Shards, EveryUnitIsInOneAndTheyAreBalanced) {
  std::vector<SweepUnit> units;
  for (int i = 0; i < 97; ++i) units.push_back({"u", 1.0 + i % 7});
  double total = 0.0;
  for (const SweepUnit& unit : units) total += unit.cost;
  for (const std::int64_t count : {1, 2, 4, 13, 200}) {
    std::vector<std::size_t> all;
    for (std::int64_t i = 1; i <= count; ++i) {
      const auto own = shard_units(units, {i, count});
      double cost = 0.0;
      for (std::size_t unit : own) cost += units[unit].cost;
      // At most one unit away from its share.
      EXPECT_NEAR(cost, total / static_cast<double>(count), 7.0);
      all.insert(all.end(), own.begin(), own.end());
    }
    ASSERT_EQ(all.size(), units.size());
    for (std::size_t i = 0; i < all.size(); ++i) EXPECT_EQ(all[i], i);
  }
  EXPECT_EQ(Shard::parse("2/4").index, 2);
  for (const char* bad : {"", "2", "0/4", "5/4", "1/0", "a/b", "1/2/3", "1/1000000"}) {
    EXPECT_THROW(Shard::parse(bad), Error) << bad;
  }
}

/// A small trace with methods that walk, that do not, and that fail.
class TraceUnits : public ::testing::Test {
 protected:
  TraceUnits() : backend_(make_reference_backend()) {
    tiny_.layers = 5;
    tiny_.first_layer = 0;
    tiny_.prefill = 120;
    trace_.emplace_back(tiny_.write(folder_.file("tiny.h5")));
    for (const char* spec : {"sketchwalk", "sketchwalk:preset=preprint", "sink_window",
                             "oracle:granularity=head", "sketchwalk:query_pool=7", "twilight"}) {
      policies_.push_back(make_policy(spec, 0));
    }
    options_.block = 16;
    options_.densities = {0.2, 0.5};
    options_.save_selection = true;
  }

  TraceEvaluation evaluation() const {
    return TraceEvaluation(trace_.front(), 0, policies_, options_, *backend_,
                           [](std::int64_t, const std::string&) {});
  }
  LayerShape shape() const { return LayerShape::of(trace_.front().info(), options_.block); }
  /// Everything of a part but its seconds.
  static json values(const LayerPart& part) {
    json entry = to_json(LayerEntry{0, part});
    entry.erase("seconds");
    for (json& cell : entry.at("cells")) cell.erase("times");
    return entry;
  }

  testing::TemporaryFolder folder_;
  testing::TinyTrace tiny_;
  std::vector<TraceReader> trace_;
  std::unique_ptr<Backend> backend_;
  std::vector<std::unique_ptr<Policy>> policies_;
  EvalOptions options_;
};

TEST_F(TraceUnits, ALayerAloneIsThatOfTheWhole) {
  TraceEvaluation whole = evaluation();
  EXPECT_EQ(whole.layers(), std::vector<std::int64_t>({0, 1, 2, 3, 4}));
  EXPECT_EQ(whole.num_cells(), 2u * 2u * 6u);
  for (std::int64_t layer : whole.layers()) {
    const LayerPart part = whole.evaluate(layer);
    EXPECT_EQ(values(evaluation().evaluate(layer)), values(part)) << layer;
  }
  // And in any order.
  const json fourth = values(evaluation().evaluate(4));
  TraceEvaluation other = evaluation();
  other.evaluate(3);
  other.evaluate(1);
  EXPECT_EQ(values(other.evaluate(4)), fourth);
}

TEST_F(TraceUnits, TheWalkIsWhatIsComputedAgain) {
  // Without the layers below, the scores of layer 4 would be others: the test could fail.
  options_.first_layer = 4;
  const json alone = values(evaluation().evaluate(4));
  options_.first_layer = 0;
  const json walked = values(evaluation().evaluate(4));
  ASSERT_EQ(alone.at("cells")[0].at("method"), policies_[0]->spec());
  EXPECT_NE(alone.at("scores"), walked.at("scores"));
}

TEST_F(TraceUnits, PartsAreJoinedToTheWholeAndEntriesAreExact) {
  const auto expected = evaluate_trace(trace_.front(), 0, policies_, options_, *backend_);
  std::vector<LayerPart> parts;
  for (std::int64_t layer = 0; layer < 5; ++layer) {
    const json entry = json::parse(to_json(LayerEntry{0, evaluation().evaluate(layer)}).dump());
    EXPECT_EQ(layer_entry_unit(entry), std::pair(std::size_t{0}, layer));
    parts.push_back(layer_entry_from_json(entry, shape()).part);
  }
  const auto cells = join_layers(std::move(parts));
  ASSERT_EQ(cells.size(), expected.size());
  for (std::size_t c = 0; c < cells.size(); ++c) {
    SCOPED_TRACE(cells[c].method);
    EXPECT_EQ(cells[c].status, expected[c].status);
    EXPECT_EQ(cells[c].reason, expected[c].reason);
    EXPECT_EQ(cells[c].row_sets, expected[c].row_sets);
    EXPECT_EQ(cells[c].times.size(), expected[c].times.size());
    for (const MetricInfo& metric : list_metrics()) {
      EXPECT_EQ(cells[c].metric(metric.metric).values, expected[c].metric(metric.metric).values);
    }
    EXPECT_EQ(cells[c].answer_recall.values, expected[c].answer_recall.values);
    ASSERT_EQ(cells[c].attribution.has_value(), expected[c].attribution.has_value());
    if (cells[c].attribution) {
      EXPECT_EQ(cells[c].attribution->specs, expected[c].attribution->specs);
      for (std::size_t v = 0; v < kNumVariants; ++v) {
        EXPECT_EQ(cells[c].attribution->recall[v].values,
                  expected[c].attribution->recall[v].values);
      }
    }
    ASSERT_EQ(cells[c].saved.size(), expected[c].saved.size());
    for (std::size_t l = 0; l < cells[c].saved.size(); ++l) {
      const auto& selections = cells[c].saved[l].selections;
      ASSERT_EQ(selections.size(), expected[c].saved[l].selections.size());
      for (std::size_t s = 0; s < selections.size(); ++s) {
        EXPECT_TRUE(std::ranges::equal(selections[s].all_blocks(),
                                       expected[c].saved[l].selections[s].all_blocks()));
        EXPECT_EQ(selections[s].count().kept, expected[c].saved[l].selections[s].count().kept);
      }
      ASSERT_EQ(cells[c].saved[l].scores != nullptr, expected[c].saved[l].scores != nullptr);
    }
  }
  // Densities share their scores after the journal as before it.
  EXPECT_EQ(cells[0].saved[0].scores, cells[2].saved[0].scores);
}

TEST_F(TraceUnits, BrokenEntriesAreRefused) {
  const json good = to_json(LayerEntry{0, evaluation().evaluate(3)});
  layer_entry_from_json(good, shape());
  std::vector<json> broken(12, good);
  broken[0].erase("cells");
  broken[1]["unit"] = "x";
  broken[2]["unit"] = {0, -1};
  broken[3]["cells"][0]["density_rows"][0] = 1 << 30;
  broken[4]["cells"][0]["density_rows"] = {1 << 20, 1 << 20, 0.5};
  broken[5]["cells"][0]["metrics"].erase("cosine");
  broken[6]["cells"][0]["metrics"]["cosine"][2] = "****";
  broken[7]["cells"][0]["phase"] = "sideways";
  broken[8]["cells"][0]["saved"]["scores"] = 99;
  broken[9]["cells"][0]["saved"]["selections"][0]["block"] = "";
  broken[10]["cells"][0]["saved"]["selections"][0]["geometry"] = {16, 0, 1 << 30};
  broken[11]["cells"][0]["layer"][1] = 1.5;
  for (std::size_t i = 0; i < broken.size(); ++i) {
    EXPECT_THROW(layer_entry_from_json(broken[i], shape()), Error) << i;
  }
}

// A number stands for all values of an array, so that a short entry can declare a long one: its
// size is checked against the input's heads and blocks, and the sum of all, before any is
// allocated.
TEST_F(TraceUnits, ArraysLargerThanTheInputAreNotAllocated) {
  json entry = to_json(LayerEntry{0, evaluation().evaluate(3)});
  json& array = entry.at("cells").at(0).at("density_rows");
  const auto refused = [&](const LayerShape& limit) -> std::string {
    try {
      layer_entry_from_json(entry, limit);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kInput);
      return error.what();
    }
    return "";
  };
  array = {shape().heads, shape().columns, 0.5};
  EXPECT_EQ(refused(shape()), "");
  array = {shape().heads + 1, shape().columns, 0.5};
  EXPECT_NE(refused(shape()).find("is larger than the"), std::string::npos);
  array = {shape().heads, shape().columns + 1, 0.5};
  EXPECT_NE(refused(shape()).find("is larger than the"), std::string::npos);
  // 64 Ki heads x 4 Ki blocks of four bytes are the 1 GiB that is allowed, and other arrays come
  // before; the input's shape is as hostile as the entry here.
  array = {1 << 16, 1 << 12, 0.5};
  EXPECT_NE(refused({1 << 16, 1 << 12}).find("more than 1 GiB"), std::string::npos);
}

TEST_F(TraceUnits, PartsOfOtherCellsDoNotJoin) {
  std::vector<LayerPart> parts;
  parts.push_back(evaluation().evaluate(2));
  parts.push_back(evaluation().evaluate(3));
  parts[1].cells.pop_back();
  EXPECT_THROW(join_layers(parts), Error);
  parts[1] = evaluation().evaluate(3);
  parts[1].cells[0].method = "other";
  EXPECT_THROW(join_layers(parts), Error);
  parts[1] = evaluation().evaluate(3);
  parts[1].cells[0].density_rows.columns = 2;
  EXPECT_THROW(join_layers(parts), Error);
  EXPECT_THROW(join_layers({}), Error);
}

TEST_F(TraceUnits, ARunStopsWhereItIsToldAndGoesOn) {
  TraceSweep sweep(trace_, policies_, options_, *backend_);
  ASSERT_EQ(sweep.units().size(), 5u);
  Journal journal(folder_.file("j"), {{"kind", "test"}}, [&](json&& entry) { sweep.note(entry); });
  const std::vector<std::size_t> units = {0, 1, 2, 3, 4};
  SweepRunOptions options;
  options.quiet = true;
  options.stop = [&] { return sweep.finished(1); };
  EXPECT_EQ(run_sweep(sweep, units, journal, options), SweepEnd::kStopped);
  EXPECT_TRUE(sweep.finished(1));
  EXPECT_FALSE(sweep.finished(2));
  options.stop = {};
  options.max_seconds = 1e-9;
  EXPECT_EQ(run_sweep(sweep, units, journal, options), SweepEnd::kOutOfTime);
  EXPECT_FALSE(sweep.finished(2));
  options.max_seconds = 1e9;
  EXPECT_EQ(run_sweep(sweep, units, journal, options), SweepEnd::kDone);
  EXPECT_GT(sweep.seconds(4), 0.0);
  EXPECT_THROW(sweep.note({{"unit", {1, 0}}, {"seconds", {{"total", 1.0}}}}), Error);
}

}  // namespace
}  // namespace sw
