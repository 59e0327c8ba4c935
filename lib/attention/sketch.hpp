#pragma once

#include <cstdint>
#include <span>
#include <vector>

/// The feature-space sketch (sketchwalk.md section 1): a subsampled randomised Hadamard transform,
/// and the parameters of the block transition matrix that is built from it.
namespace sw {

/// How block scores are formed from pooled queries and keys.
///
/// How the queries x of a block are split (an extension of this project). The parts are on either
/// side of the mean m along the direction in which they spread most, of which one step of power
/// iteration gives an estimate: f is the query farthest from m (the first of equals), v = sum_x
/// ((x - m).(f - m)) (x - m), and the first part has (x - m).v > 0. Each part is scored by its own
/// mean and weighted by its share of the queries. The gain of a head is the variance of logits that
/// the split removes as far as block means of keys show it: with parts of shares p and 1 - p and
/// means m1 and m0, p (1 - p) times the variance over the blocks j (of the row, if `causal`) of
/// (m1 - m0).mean of keys j. Of equal gains the lower head comes first.
struct SketchParams {
  enum class Aggregation {
    kPerHead,   ///< softmax a head, then the sum over heads (the authors' release)
    kHeadMean,  ///< mean over heads first, one softmax (the preprint)
  };
  bool exact = false;           ///< score the pooled vectors without the transform
  std::int64_t sketch_dim = 0;  ///< r; 0 or more than d' means d'
  bool unbiased = false;        ///< H normalised so that y_q.y_k estimates q.k; else r/d' scaling
  double temperature = 100.0;   ///< logits are divided by it
  bool causal = false;          ///< mask key blocks j > i before the softmax
  bool partial_mean = false;    ///< divide a pool by the tokens present instead of its size
  Aggregation aggregation = Aggregation::kPerHead;
  double sharpness = 1.0;       ///< elementwise power after the softmax
  bool normalize = true;        ///< divide each row of the transition matrix by its sum
  std::int64_t block = 64;      ///< B
  std::int64_t query_pool = 0;  ///< tokens a pooled query, a divisor of B; 0 = B
  std::int64_t key_pool = 0;    ///< tokens a pooled key, a divisor of B; 0 = B
  /// Share of the query heads whose queries of a block are pooled in two parts instead of one, the
  /// number rounded down: in each block row those that gain most by it (above). Needs exact scores
  /// for each head, queries pooled by blocks, and keys pooled more finely.
  double split_heads = 0.0;
  std::uint64_t seed = 0;

  /// Heads of `heads` that are split.
  std::int64_t splits(std::int64_t heads) const {
    return static_cast<std::int64_t>(split_heads * static_cast<double>(heads));
  }
  std::int64_t tokens_per_query() const { return query_pool > 0 ? query_pool : block; }
  std::int64_t tokens_per_key() const { return key_pool > 0 ? key_pool : block; }
};

/// Smallest power of two >= n (n >= 1).
std::int64_t next_power_of_two(std::int64_t n);

/// x [size] := H x, the unnormalised Sylvester-Hadamard matrix; size is a power of two.
template <class Real>
void hadamard(Real* x, std::int64_t size) {
  for (std::int64_t half = 1; half < size; half *= 2) {
    for (std::int64_t begin = 0; begin < size; begin += 2 * half) {
      for (std::int64_t i = begin; i < begin + half; ++i) {
        const Real a = x[i];
        const Real b = x[i + half];
        x[i] = a + b;
        x[i + half] = a - b;
      }
    }
  }
}

/// Signs, row sample and scales of one layer. Queries and keys of a layer, and all of its heads,
/// share one transform.
class Sketch {
 public:
  Sketch(const SketchParams& params, std::int64_t layer, std::int64_t head_dim);

  /// Whether no score is lost: the sketch is exact, or keeps all d' rows.
  bool is_full() const { return exact_ || rank_ == padded_; }
  /// d', the padded dimension.
  std::int64_t padded_dim() const { return padded_; }
  /// Length of a transformed vector: r, or head_dim when the sketch is exact.
  std::int64_t dim() const { return exact_ ? head_dim_ : rank_; }
  std::span<const double> signs() const { return signs_; }
  std::span<const std::int64_t> permutation() const { return permutation_; }

  /// x [head_dim] -> y [dim()], with y(q).y(k) * logit_scale() the logit before the temperature.
  void apply(const double* x, double* y) const;
  double logit_scale() const { return logit_scale_; }

 private:
  std::int64_t head_dim_;
  std::int64_t padded_;
  std::int64_t rank_;
  bool exact_;
  double vector_scale_;
  double logit_scale_;
  std::vector<double> signs_;
  std::vector<std::int64_t> permutation_;
};

}  // namespace sw
