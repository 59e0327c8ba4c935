#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "eval/statistics.hpp"

/// Next-token distributions of a sparse run against the dense run of the same tokens (metrics.md,
/// Model quality). Logits come in a row at a time; only a few numbers a token are kept.
namespace sw {

/// What one position says. Natural logarithms.
struct TokenComparison {
  float nll_dense = 0.0f;  ///< -ln p(token) under the dense run
  float nll_sparse = 0.0f;
  /// KL(dense || sparse); rounding below 0 is set to 0. A token that the dense run excludes (a
  /// logit of -infinity) adds nothing.
  float kl = 0.0f;
  float delta_p = 0.0f;   ///< p_sparse(token) - p_dense(token)
  bool same_top = false;  ///< the largest logit (the lowest index among equals) is the same token's
};

/// Compares two rows of logits [vocabulary] with the token that really follows. Exponentials in
/// float, sums in double; rows that are equal give exactly 0. Rounds as negative_log_likelihood
/// (model/transformer.hpp) does, so that an arm with dense logits has exactly the dense losses.
/// NaN, or an infinite largest logit, gives NaN: never a 0 that looks like agreement.
TokenComparison compare_logits(std::span<const float> dense, std::span<const float> sparse,
                               std::int32_t token);

/// The scored tokens of one window, in order. kl, delta_p and same_top may be empty together.
struct TokenStream {
  std::vector<float> nll_dense;
  std::vector<float> nll_sparse;
  std::vector<float> kl;
  std::vector<float> delta_p;
  std::vector<std::uint8_t> same_top;
};

struct DistributionSummary {
  double ppl_dense = 0.0;
  double ppl_sparse = 0.0;
  double ln_ratio = 0.0;     ///< mean of nll_sparse - nll_dense = ln(ppl_sparse / ppl_dense)
  double ln_ratio_se = 0.0;  ///< its standard error, tokens taken as independent
  /// Losses of neighbouring tokens are not independent: the intervals resample blocks of
  /// kTokenBlock consecutive tokens of a window.
  Interval ln_ratio_interval;
  Interval kl_mean;
  double kl_max = 0.0;
  double kl_min = 0.0;
  std::vector<std::pair<double, double>> kl_percentiles;  ///< (percent, value), descending
  Interval same_top;
  double delta_p_rms = 0.0;
  double delta_p_mean = 0.0;
};

inline constexpr std::int64_t kTokenBlock = 64;
inline constexpr double kKlPercents[] = {99.9, 99.0, 95.0, 90.0, 50.0, 10.0, 5.0, 1.0, 0.1};

/// Over all tokens of all windows. Throws std::invalid_argument when there are no tokens, the
/// arrays of a window differ in length, or a value is not finite.
DistributionSummary summarize_distribution(std::span<const TokenStream> windows);

}  // namespace sw
