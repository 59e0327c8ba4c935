#include "report/gate.hpp"

#include <gtest/gtest.h>

#include "core/error.hpp"

namespace sw {
namespace {

Summary summary_of(const std::string& name, std::optional<double> density, double recall) {
  Summary summary;
  summary.method = name + ":preset=release";
  summary.name = name;
  summary.density = density;
  summary.inputs = 1;
  summary.metrics[static_cast<std::size_t>(Metric::kMassRecall)] =
      MetricSummary{{recall, std::nullopt, std::nullopt}, {}};
  return summary;
}

TEST(Gate, Parses) {
  const Gate gate = Gate::parse("mass_recall<=0.8@sketchwalk:preset=preprint,damping=0@0.2");
  EXPECT_EQ(gate.metric, "mass_recall");
  EXPECT_EQ(gate.op, Gate::Op::kLessEqual);
  EXPECT_DOUBLE_EQ(gate.value, 0.8);
  EXPECT_EQ(gate.method, "sketchwalk:preset=preprint,damping=0");
  EXPECT_DOUBLE_EQ(*gate.density, 0.2);
  EXPECT_EQ(Gate::parse("output_error>1e-3").op, Gate::Op::kGreater);
  EXPECT_EQ(Gate::parse("output_error>=1").op, Gate::Op::kGreaterEqual);
}

TEST(Gate, RefusesWhatIsNotAGate) {
  for (const char* text : {"", "mass_recall", "mass_recall=0.8", "mass_recall<", "mass_recall<x",
                           "mass_recall<0.8@a@b@c", "mass_recall<0.8@a@b", "<0.8"}) {
    EXPECT_THROW(Gate::parse(text), Error) << text;
  }
  try {
    Gate::parse("mass_recal<0.8");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.exit_code(), 2);
    EXPECT_NE(error.hint().find("mass_recall"), std::string::npos);
  }
}

TEST(Gate, HoldsForTheCellsInScope) {
  std::vector<Summary> cells = {summary_of("sketchwalk", 0.1, 0.5),
                                summary_of("sketchwalk", 0.2, 0.8), summary_of("random", 0.2, 0.3)};
  EXPECT_EQ(unmet(Gate::parse("mass_recall<0.9"), cells).size(), 3u);
  EXPECT_EQ(unmet(Gate::parse("mass_recall<0.6"), cells).size(), 2u);
  EXPECT_EQ(unmet(Gate::parse("mass_recall<0.6@sketchwalk"), cells).size(), 1u);
  EXPECT_EQ(unmet(Gate::parse("mass_recall<0.6@sketchwalk:preset=release@0.2"), cells).size(), 0u);
  EXPECT_EQ(unmet(Gate::parse("mass_recall<0.8@sketchwalk@0.2"), cells).size(), 0u);
  EXPECT_EQ(unmet(Gate::parse("mass_recall<=0.8@sketchwalk@0.2"), cells).size(), 1u);
  EXPECT_EQ(unmet(Gate::parse("mass_recall>0.7"), cells).size(), 1u);
}

TEST(Gate, ValuesThatAreMissingDoNotPass) {
  std::vector<Summary> cells = {summary_of("sketchwalk", 0.1, 0.5)};
  EXPECT_EQ(unmet(Gate::parse("mass_recall<0.1@oracle"), cells).size(), 1u);  // no such cell
  EXPECT_EQ(unmet(Gate::parse("cosine<0.1@sketchwalk"), cells).size(), 1u);   // not measured
  cells[0].inputs = 0;                                                        // failed
  EXPECT_EQ(unmet(Gate::parse("mass_recall<0.1"), cells).size(), 1u);
}

}  // namespace
}  // namespace sw
