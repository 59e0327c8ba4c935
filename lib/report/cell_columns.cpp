#include "report/cell_columns.hpp"

namespace sw {

const std::vector<CellColumn>& cell_columns(ReportKind kind) {
  static const std::vector<CellColumn> kTrace = {
      {"kept", "Kept", "realised_density.sparse", "", 1, 3,
       "share of the causal pairs really kept at the sparse layers"},
      {"read", "KV read", "realised_density.decode", "", 1, 3,
       "share of the KV cache really read in decode"},
      {"recall", "Mass recall", "metrics.mass_recall.mean", "metrics.mass_recall", 1, 4,
       "share of the dense attention mass on kept keys, with its 95% interval"},
      {"plain", "vs sink_window", "versus_sink_window.mass_recall_difference.mean",
       "versus_sink_window.mass_recall_difference", 1, 4,
       "paired difference of mass recall to keeping only the first and latest blocks"},
      {"verdict", "Verdict", "versus_sink_window.verdict", "", 1, 0,
       "better or worse when the interval of the difference excludes 0", true},
      {"gap", "Oracle gap", "metrics.oracle_gap.mean", "metrics.oracle_gap", 1, 4,
       "mass of the best selection with as many blocks, minus the method's own"},
      {"topk", "Top-k", "metrics.topk_recall.mean", "metrics.topk_recall", 1, 3,
       "share of the selected blocks that the best selection has too"},
      {"error", "Output error", "metrics.output_error.mean", "metrics.output_error", 1, 4,
       "relative Frobenius error of the attention output"},
      {"cosine", "Cosine", "metrics.cosine.mean", "metrics.cosine", 1, 4,
       "cosine of sparse and dense attention output"},
      {"answer", "Answer", "metrics.answer_recall.mean", "metrics.answer_recall", 1, 3,
       "share of layers at which the last query block keeps all blocks of the answer"},
      {"select_ms", "Select ms", "latency.selection.median", "", 1e3, -4,
       "median of one layer: pool, sketch, walk and select"},
      {"attend_ms", "Attend ms", "latency.attention.median", "", 1e3, -4,
       "median of one layer: sparse attention"},
      {"dense_ms", "Dense ms", "latency.dense_attention.median", "", 1e3, -4,
       "median of one layer: dense attention of the same run"},
      {"speed", "× dense", "latency.speed_ratio", "", 1, 2,
       "dense attention over selection and attention: above 1, sparse is quicker"}};
  static const std::vector<CellColumn> kModel = {
      {"samples", "Samples", "samples", "", 1, 0, "replies or windows"},
      {"kept", "Kept", "realised_density.sparse", "", 1, 3,
       "share of the causal pairs really kept in the prefill"},
      {"read", "KV read", "realised_density.decode", "", 1, 3,
       "share of the KV cache really read in decode"},
      {"score", "Score", "score.mean", "score", 100, 1, "mean of 100, with its 95% interval"},
      {"versus", "vs dense", "versus_dense.difference.mean", "versus_dense.difference", 100, 1,
       "paired difference of the scores to dense, in points"},
      {"p", "p (Holm)", "versus_dense.p_holm", "", 1, 4, "corrected over the tasks"},
      {"verdict", "Verdict", "versus_dense.verdict", "", 1, 0, "against dense", true},
      {"perplexity", "Perplexity", "perplexity", "", 1, 3, ""},
      {"ln_ratio", "ln ratio", "versus_dense.ln_ratio", "versus_dense.ln_ratio_interval", 1, 4,
       "ln of perplexity over dense perplexity, paired by token"},
      {"kl", "Mean KL", "versus_dense.kl.mean.mean", "versus_dense.kl.mean", 1, 4,
       "KL(dense || method) of the next token, nats"},
      {"top", "Same top", "versus_dense.kl.same_top_1.mean", "versus_dense.kl.same_top_1", 1, 4,
       "share of positions with the same first choice"},
      {"prefill_s", "Prefill s", "latency.prefill.median", "", 1, 2, "median of a sample"},
      {"token_ms", "ms/token", "latency.decode_token.median", "", 1e3, 1,
       "median of a decode step"}};
  static const std::vector<CellColumn> kProfile = {
      {"tokens", "Tokens", "shape.tokens", "", 1, 0, "of the context"},
      {"kept", "Kept", "realised_density", "", 1, 3, "share really kept"},
      {"time_ms", "Time ms", "time.median", "", 1e3, -4, "median of the timed runs"},
      {"mad_ms", "MAD ms", "time.mad", "", 1e3, -3, "median absolute deviation"},
      {"product", "of product", "of_product", "", 100, 1,
       "% of the matrix product speed measured in the same run"},
      {"copy", "of copy", "of_copy", "", 100, 1, "% of the copy speed measured in the same run"}};
  static const std::vector<CellColumn> kScore = {
      {"samples", "Samples", "samples", "", 1, 0, ""},
      {"metric", "Metric", "metric", "", 1, 0, "", true},
      {"score", "Score", "score", "interval", 1, 2, "of 100, as the benchmark rounds it"}};
  switch (kind) {
    case ReportKind::kTrace:
      return kTrace;
    case ReportKind::kModel:
      return kModel;
    case ReportKind::kProfile:
      return kProfile;
    default:
      return kScore;
  }
}

}  // namespace sw
