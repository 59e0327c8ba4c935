// Reports: JSON and HDF5 give back the records, the JSON follows the schema, files appear whole or
// not at all.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "core/sha256.hpp"
#include "eval/evaluate.hpp"
#include "eval/summary.hpp"
#include "kernels/cpu/backend.hpp"
#include "policy/list.hpp"
#include "report/files.hpp"
#include "report/json_report.hpp"
#include "report/table.hpp"
#include "support/command.hpp"
#include "support/tiny_trace.hpp"
#include "trace/hdf5.hpp"

namespace sw {
namespace {

using nlohmann::json;

class ReportFixture : public ::testing::Test {
 protected:
  ReportFixture() {
    const testing::TinyTrace tiny;
    std::vector<std::unique_ptr<Policy>> policies;
    for (const char* spec : {"dense", "sketchwalk", "sketchwalk:budget=release", "sink_window",
                             "oracle:granularity=head", "random", "vertical_slash", "snapkv",
                             "twilight", "sketchwalk:query_pool=7"}) {
      policies.push_back(make_policy(spec, 0));
      report_.protocol.methods.push_back(policies.back()->spec());
    }
    EvalOptions options;
    options.block = 16;
    options.densities = {0.1, 0.3};
    options.save_selection = true;
    for (std::size_t i = 0; i < 2; ++i) {
      const TraceReader trace(tiny.write(folder_.file("trace" + std::to_string(i) + ".h5")));
      report_.inputs.push_back(
          {trace.path(), "HDF5", sha256_of_file(trace.path()), 1, trace.info()});
      const auto backend = make_cpu_backend();
      for (CellRecord& cell : evaluate_trace(trace, i, policies, options, *backend)) {
        report_.cells.push_back(std::move(cell));
      }
    }
    report_.created = utc_now();
    report_.command = {"sw-eval", "trace"};
    report_.environment = current_environment();
    report_.environment.backend = "reference";
    report_.protocol.phase = "both";
    report_.protocol.densities = options.densities;
    report_.protocol.block = 16;
    report_.protocol.save_selection = true;
    paths_ = report_paths(folder_.file("out"));
  }

  json read_json() const {
    std::ifstream file(paths_.json);
    return json::parse(file);
  }

  testing::TemporaryFolder folder_;
  Report report_;
  ReportPaths paths_;
};

template <class T>
std::vector<T> read_dataset(hid_t file, const std::string& path, hid_t type,
                            std::vector<std::int64_t>* shape = nullptr) {
  const hdf5::Dataset dataset(H5Dopen2(file, path.c_str(), H5P_DEFAULT));
  const hdf5::Space space(H5Dget_space(dataset.get()));
  std::vector<T> values(static_cast<std::size_t>(H5Sget_simple_extent_npoints(space.get())));
  hdf5::check(H5Dread(dataset.get(), type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()));
  if (shape != nullptr) *shape = hdf5::extents(space);
  return values;
}

TEST_F(ReportFixture, JsonHasTheNumbersOfTheRecords) {
  write_report(report_, summarize_report(report_), paths_, false);
  const json report = read_json();
  EXPECT_EQ(report.at("schema_version"), 1);
  EXPECT_EQ(report.at("environment").at("git_sha"), report_.environment.git_sha);
  EXPECT_EQ(report.at("inputs").at(0).at("sha256"), report_.inputs[0].sha256);
  EXPECT_EQ(report.at("inputs").at(0).at("answer_spans"), json::parse("[[40, 50]]"));
  const auto summaries = summarize_cells(report_.cells);
  ASSERT_EQ(report.at("cells").size(), report_.cells.size());
  for (std::size_t i = 0; i < summaries.size(); ++i) {
    const json& cell = report.at("cells")[i];
    const CellRecord& record = report_.cells[i];
    EXPECT_EQ(cell.at("method"), record.method);
    EXPECT_EQ(cell.at("density").is_null(), !record.density.has_value());
    EXPECT_EQ(cell.at("status"), status_name(record.status));
    if (record.status != CellStatus::kOk) {
      EXPECT_EQ(cell.at("reason"), record.reason);
      EXPECT_FALSE(cell.contains("metrics"));
      continue;
    }
    const json& recall = cell.at("metrics").at("mass_recall");
    const auto& expected = summaries[i].metric(Metric::kMassRecall)->overall;
    EXPECT_EQ(recall.at("mean").get<double>(), expected.mean);
    EXPECT_EQ(recall.at("low").get<double>(), *expected.low);
    EXPECT_EQ(recall.at("high").get<double>(), *expected.high);
    EXPECT_LE(recall.at("low"), recall.at("mean"));
    EXPECT_LE(recall.at("mean"), recall.at("high"));
    const bool prefill = record.phase == Phase::kPrefill;
    const bool lines = prefill && record.name == "vertical_slash";
    EXPECT_EQ(cell.at("oracle"),
              lines ? json(nullptr)
              : !prefill && (record.name == "snapkv" || record.name == "twilight")
                  ? json("keys")
                  : json("blocks"));
    EXPECT_EQ(cell.at("metrics").at("topk_recall").is_null(), lines);
    const json& calibration = cell.at("calibration");
    ASSERT_EQ(calibration.is_object(), !prefill && record.name == "twilight");
    if (calibration.is_object()) {
      // Four heads share out the keys of about 200: to within half of one.
      EXPECT_NEAR(cell.at("realised_density").at("sparse").get<double>(), *record.density,
                  0.5 / (4 * 200));
      EXPECT_TRUE(calibration.at("per_layer")[0].is_null());  // layer 1 attends densely
      EXPECT_LE(calibration.at("low"), calibration.at("per_layer")[1]);
      EXPECT_LE(calibration.at("per_layer")[1], calibration.at("high"));
    }
    const json& parts = cell.at("realised_density").at("parts");
    EXPECT_NEAR(parts.at("window").get<double>() + parts.at("sink").get<double>() +
                    parts.at("scored").get<double>() + parts.at("forced").get<double>(),
                cell.at("realised_density").at("sparse").get<double>(), 1e-12);
    EXPECT_EQ(cell.at("latency").at("samples").at("attention").size(), record.times.size());
    EXPECT_EQ(cell.at("realised_density").at("decode").is_null(), record.phase == Phase::kPrefill);
  }
  EXPECT_EQ(report.at("summary").size() * 2, report.at("cells").size());
}

TEST_F(ReportFixture, JsonFollowsTheSchema) {
  write_report(report_, summarize_report(report_), paths_, false);
  if (!testing::python_has("jsonschema"))
    GTEST_SKIP() << testing::python() << " has no module jsonschema";
  const auto result = testing::validate_json(SW_SCHEMA, paths_.json);
  EXPECT_EQ(result.code, 0);
  EXPECT_EQ(result.output, "");
  // The schema must not accept everything.
  json broken = read_json();
  broken["cells"][0].erase("status");
  broken["inputs"][0]["sha256"] = "x";
  std::ofstream(folder_.file("broken.json")) << broken;
  EXPECT_NE(testing::validate_json(SW_SCHEMA, folder_.file("broken.json")).output, "");
}

/// The part of JSON Schema that says which keys an object must and may have, followed through.
void expect_keys(const json& schema, const json& rule, const json& value, const std::string& at) {
  if (rule.contains("$ref")) {
    const std::string name = rule.at("$ref").get<std::string>().substr(8);
    expect_keys(schema, schema.at("$defs").at(name), value, at);
  }
  for (const json& option : rule.value("anyOf", json::array())) {
    const bool wanted = option.value("type", json()) == "null" ? false : !value.is_null();
    if (wanted) expect_keys(schema, option, value, at);
  }
  if (rule.contains("items") && value.is_array()) {
    for (const json& item : value) expect_keys(schema, rule.at("items"), item, at + "[]");
  }
  if (!value.is_object() || !rule.contains("properties")) return;
  for (const json& key : rule.value("required", json::array())) {
    EXPECT_TRUE(value.contains(key.get<std::string>())) << at << " lacks " << key;
  }
  // The whole report has two forms, of models and of traces; this is the second.
  const json second = at == "report" ? rule.at("else").at("properties") : json::object();
  for (const auto& [key, member] : value.items()) {
    ASSERT_TRUE(rule.at("properties").contains(key)) << at << " has an unknown key " << key;
    expect_keys(schema, rule.at("properties").at(key), member, at + "." + key);
    if (second.contains(key)) expect_keys(schema, second.at(key), member, at + "." + key);
  }
}

TEST_F(ReportFixture, JsonHasTheKeysOfTheSchema) {
  std::ifstream file(SW_SCHEMA);
  const json schema = json::parse(file);
  expect_keys(schema, schema, json::parse(to_json_text(report_, summarize_report(report_))),
              "report");
}

TEST_F(ReportFixture, Hdf5HasTheArraysOfTheRecords) {
  write_report(report_, summarize_report(report_), paths_, false);
  hdf5::initialise();
  const hdf5::File file(H5Fopen(paths_.hdf5.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT));
  EXPECT_EQ(hdf5::read_text_attribute(file.get(), "format"), "sketchwalk-report");
  for (std::size_t i = 0; i < report_.cells.size(); ++i) {
    const CellRecord& record = report_.cells[i];
    char name[32];
    std::snprintf(name, sizeof name, "/cells/%04zu", i);
    if (record.status != CellStatus::kOk) {
      EXPECT_EQ(H5Lexists(file.get(), name, H5P_DEFAULT), 0);
      continue;
    }
    const hdf5::Group group(H5Gopen2(file.get(), name, H5P_DEFAULT));
    EXPECT_EQ(hdf5::read_text_attribute(group.get(), "method"), record.method);
    EXPECT_EQ(hdf5::read_text_attribute(group.get(), "input"), report_.inputs[record.input].path);
    EXPECT_EQ(hdf5::read_text_attribute(group.get(), "phase"), phase_name(record.phase));
    const std::string prefix = std::string(name) + "/";
    std::vector<std::int64_t> shape;
    for (const MetricInfo& metric : list_metrics()) {
      const MetricArray& array = record.metric(metric.metric);
      if (array.empty()) {
        EXPECT_EQ(record.name, "vertical_slash") << metric.name;
        EXPECT_EQ(H5Lexists(group.get(), std::string(metric.name).c_str(), H5P_DEFAULT), 0);
        continue;
      }
      EXPECT_EQ(read_dataset<float>(file.get(), prefix + std::string(metric.name), H5T_NATIVE_FLOAT,
                                    &shape),
                array.values);
      EXPECT_EQ(shape, (std::vector<std::int64_t>{array.layers, array.units, array.columns}));
    }
    EXPECT_EQ(read_dataset<float>(file.get(), prefix + "density", H5T_NATIVE_FLOAT),
              record.density_rows.values);
    for (const SavedLayer& saved : record.saved) {
      const std::string at = prefix + "selection/0" + std::to_string(saved.layer) + "/";
      const auto row_ptr = read_dataset<std::int64_t>(file.get(), at + "row_ptr", H5T_NATIVE_INT64);
      const auto blocks = read_dataset<std::int32_t>(file.get(), at + "block", H5T_NATIVE_INT32);
      EXPECT_EQ(static_cast<std::int64_t>(row_ptr.size()), record.row_sets * record.columns() + 1);
      EXPECT_EQ(row_ptr.back(), static_cast<std::int64_t>(blocks.size()));
      if (record.phase == Phase::kPrefill) {
        EXPECT_TRUE(std::ranges::equal(blocks, saved.selections.front().all_blocks()));
        EXPECT_TRUE(std::ranges::equal(row_ptr, saved.selections.front().row_ptr()));
      }
      std::vector<std::int64_t> token_ptr = {0};
      std::vector<std::int32_t> tokens;
      for (std::int64_t g = 0; g < record.row_sets; ++g) {
        for (const BlockSelection& selection : saved.selections) {
          for (std::int64_t r = 0; r < selection.rows(); ++r) {
            const auto singles = selection.tokens(g, r);
            tokens.insert(tokens.end(), singles.begin(), singles.end());
            token_ptr.push_back(static_cast<std::int64_t>(tokens.size()));
          }
        }
      }
      EXPECT_EQ(tokens.empty(), !record.selects_keys);
      if (tokens.empty()) {
        EXPECT_EQ(H5Lexists(file.get(), (at + "token").c_str(), H5P_DEFAULT), 0);
      } else {
        EXPECT_EQ(read_dataset<std::int64_t>(file.get(), at + "token_ptr", H5T_NATIVE_INT64),
                  token_ptr);
        EXPECT_EQ(read_dataset<std::int32_t>(file.get(), at + "token", H5T_NATIVE_INT32), tokens);
      }
      if (saved.scores == nullptr) continue;
      const auto scores = read_dataset<float>(file.get(), at + "score", H5T_NATIVE_FLOAT);
      const auto values = saved.scores->values.values();
      ASSERT_EQ(scores.size(), values.size());
      for (std::size_t x = 0; x < scores.size(); ++x) {
        EXPECT_EQ(scores[x], static_cast<float>(values[x]));
      }
    }
  }
}

TEST_F(ReportFixture, H5pyOpensIt) {
  write_report(report_, summarize_report(report_), paths_, false);
  if (!testing::python_has("h5py")) GTEST_SKIP() << testing::python() << " has no module h5py";
  const auto result = testing::run_command(
      testing::python() +
      " -c 'import h5py, sys; f = h5py.File(sys.argv[1]); c = f[\"cells/0002\"]; "
      "print(c.attrs[\"method\"], c[\"mass_recall\"].shape, c[\"mass_recall\"].dtype, "
      "round(float(c.attrs[\"density\"]), 3), sorted(c[\"selection\"]))' '" +
      paths_.hdf5 + "'");
  EXPECT_EQ(result.output, "sketchwalk:preset=release (3, 4, 13) float32 0.1 ['02', '03']\n");
}

TEST_F(ReportFixture, TableNamesEveryMethodAndFailure) {
  const std::string table = report_table(report_, summarize_report(report_));
  for (const std::string& method : report_.protocol.methods) {
    EXPECT_NE(table.find(method), std::string::npos) << method;
  }
  EXPECT_NE(table.find("failed: sketchwalk:preset=release,query_pool=7"), std::string::npos);
  EXPECT_NE(table.find("mean over 2 inputs"), std::string::npos);
  EXPECT_NE(table.find("not measured where a prefill mixes"), std::string::npos);
}

TEST_F(ReportFixture, NothingIsReplacedWithoutForce) {
  std::ofstream(paths_.hdf5) << "mine";
  EXPECT_THROW(check_report_paths(paths_, false), Error);
  EXPECT_THROW(write_report(report_, summarize_report(report_), paths_, false), Error);
  EXPECT_FALSE(std::filesystem::exists(paths_.json));
  EXPECT_EQ(std::filesystem::file_size(paths_.hdf5), 4u);
  write_report(report_, summarize_report(report_), paths_, true);
  EXPECT_GT(std::filesystem::file_size(paths_.hdf5), 4u);
}

TEST_F(ReportFixture, OnlyTheTwoFilesStay) {
  const auto count = [&] {
    return std::distance(std::filesystem::directory_iterator(folder_.path()), {});
  };
  const auto before = count();
  check_report_paths(paths_, false);
  EXPECT_EQ(count(), before);
  write_report(report_, summarize_report(report_), paths_, false);
  EXPECT_EQ(count(), before + 2);
}

TEST_F(ReportFixture, PathsThatAreNotUtf8) {
  report_.inputs[0].path = "bad\xff.h5";
  EXPECT_NO_THROW(json::parse(to_json_text(report_, summarize_report(report_))));
}

TEST(ReportPaths, TakeExtensionsOff) {
  EXPECT_EQ(report_paths("a/b").json, "a/b.json");
  EXPECT_EQ(report_paths("a/b").hdf5, "a/b.h5");
  EXPECT_EQ(report_paths("b.json").hdf5, "b.h5");
  EXPECT_EQ(report_paths("b.h5").json, "b.json");
  EXPECT_EQ(report_paths("b.v2").json, "b.v2.json");
}

TEST(Sha256, KnownValues) {
  const std::string abc = "abc";
  EXPECT_EQ(sha256(std::as_bytes(std::span(abc))),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(sha256({}), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  const testing::TemporaryFolder folder;
  std::ofstream(folder.file("abc")) << abc;
  EXPECT_EQ(sha256_of_file(folder.file("abc")), sha256(std::as_bytes(std::span(abc))));
  EXPECT_THROW(sha256_of_file(folder.file("none")), Error);
}

}  // namespace
}  // namespace sw
