#include "metric/list.hpp"

namespace sw {
namespace {

constexpr MetricInfo kMetrics[kNumMetrics] = {
    {Metric::kMassRecall, "mass_recall", false, false, 1.0f,
     "dense softmax probability on the kept keys"},
    {Metric::kOracleGap, "oracle_gap", false, false, 0.0f,
     "mass of the best selection of the same size minus mass_recall, a head"},
    {Metric::kOutputError, "output_error", false, true, 0.0f,
     "relative Frobenius error of the attention output"},
    {Metric::kCosine, "cosine", false, true, 1.0f, "cosine of the flattened attention outputs"},
    {Metric::kOracleGapSet, "oracle_gap_set", true, false, 0.0f,
     "oracle_gap, mean over the heads of a row set; never negative"},
    {Metric::kTopkRecall, "topk_recall", true, false, 1.0f,
     "share of the kept blocks that the best selection keeps too"},
};

}  // namespace

std::span<const MetricInfo> list_metrics() { return kMetrics; }

const MetricInfo& metric_info(Metric metric) { return kMetrics[static_cast<int>(metric)]; }

}  // namespace sw
