#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "attention/budget.hpp"
#include "attention/problem.hpp"
#include "attention/selection.hpp"
#include "attention/sketch.hpp"
#include "attention/stage.hpp"
#include "core/tensor.hpp"

/// What computes attention and block scores. Applications choose one implementation (kernels/) and
/// inject it; nothing in lib links a kernel, and no backend hands work to another one in silence.
namespace sw {

/// An attention output in memory that only its backend reads.
class KeptOutput {
 public:
  virtual ~KeptOutput() = default;
};

/// Attention output of a problem.
struct AttentionOutput {
  HeadsTensor out;          ///< f32 [num_heads, queries, head_dim]
  std::vector<double> lse;  ///< [num_heads, queries], ln of the sum of exp(logits) of visible keys

  /// Set by a caller who does not read `lse`. A backend may then leave it empty, and divide by the
  /// sum of weights as it rounds them for the product with V.
  bool out_only = false;

  /// Set by a caller who wants of `out` no more than Backend::compare() tells. A backend with
  /// memory of its own leaves the output there, in `kept`, and `out` empty; the others fill `out`.
  bool keep = false;
  std::unique_ptr<KeptOutput> kept;

  /// Allocates `out` and `lse` for `problem` unless the shapes already fit. Every backend that
  /// fills `out` begins with it: an output that another backend kept before is given up.
  void reserve(const AttentionProblem& problem);
};

/// Sums over one query block of one head that compare two outputs, in double.
struct OutputSums {
  double difference = 0.0;  ///< ||dense - sparse||^2
  double dense = 0.0;       ///< ||dense||^2
  double sparse = 0.0;      ///< ||sparse||^2
  double product = 0.0;     ///< <dense, sparse>
};

/// These sums for [heads, rows].
struct OutputComparison {
  std::int64_t heads = 0;
  std::int64_t rows = 0;
  std::vector<OutputSums> values;

  OutputComparison(std::int64_t num_heads, std::int64_t num_rows)
      : heads(num_heads), rows(num_rows), values(static_cast<std::size_t>(num_heads * num_rows)) {}
};

/// Compares two outputs in host memory, both of the problem that `geometry` describes, query block
/// by query block: the definition of Backend::compare().
OutputComparison compare_outputs(const AttentionOutput& dense, const AttentionOutput& sparse,
                                 const BlockGeometry& geometry);

/// Dense softmax probability of each key block: mean over the queries of a block row, for
/// [num_heads, rows, key blocks]; 0 for blocks after the row's own.
struct BlockMass {
  std::int64_t heads = 0;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::vector<float> values;

  void reserve(std::int64_t num_heads, const BlockGeometry& geometry);
  std::span<float> row(std::int64_t head, std::int64_t r) {
    return {values.data() + (head * rows + r) * cols, static_cast<std::size_t>(cols)};
  }
  std::span<const float> row(std::int64_t head, std::int64_t r) const {
    return const_cast<BlockMass*>(this)->row(head, r);
  }
};

/// Dense masses summed over the heads of each of `groups` row sets, as scores.
BlockScores scores_of_mass(const BlockMass& mass, std::int64_t groups);

/// Sums of consecutive tokens, kept in double so that one token can be added at a time: what decode
/// keeps of K (and, in the preprint's form, of Q). [heads, pools, dim] with `pool` tokens each.
class TokenPools {
 public:
  TokenPools() = default;
  TokenPools(std::int64_t heads, std::int64_t dim, std::int64_t pool)
      : heads_(heads), dim_(dim), pool_(pool), sums_(static_cast<std::size_t>(heads)) {}

  /// Appends the tokens of x [heads, count, dim].
  void append(const HeadsView& x);
  std::int64_t heads() const { return heads_; }
  std::int64_t dim() const { return dim_; }
  std::int64_t pool() const { return pool_; }
  std::int64_t tokens() const { return tokens_; }
  std::int64_t count() const { return pool_ == 0 ? 0 : (tokens_ + pool_ - 1) / pool_; }
  /// Mean of pool u: its sum over the pool size, or over the tokens present.
  void mean(std::int64_t head, std::int64_t u, bool partial_mean, double* out) const;

 private:
  std::int64_t heads_ = 0;
  std::int64_t dim_ = 0;
  std::int64_t pool_ = 0;
  std::int64_t tokens_ = 0;
  std::vector<std::vector<double>> sums_;  // per head, [count, dim]
};

class Backend {
 public:
  virtual ~Backend() = default;

  /// "reference", "cpu", ..., as given to --backend.
  virtual std::string name() const = 0;
  /// What runs underneath, for reports, e.g. the instruction set that was chosen.
  virtual std::string detail() const = 0;
  /// The reason why this backend cannot compute `problem`, or nothing when it can.
  virtual std::optional<std::string> unsupported(const AttentionProblem& problem) const = 0;

  /// Exact softmax attention over the visible keys of `selection` (sketchwalk.md section 4),
  /// causal at token level. A query that sees no key gets zeros and lse = -infinity.
  virtual void attend(const AttentionProblem& problem, const BlockSelection& selection,
                      AttentionOutput& output) const = 0;

  /// Dense causal attention, and the block masses in the same pass.
  virtual void attend_dense(const AttentionProblem& problem, const BlockGeometry& geometry,
                            AttentionOutput& output, BlockMass& mass) const = 0;

  /// compare_outputs() of two outputs that this backend computed with `keep` set, wherever it keeps
  /// them. Throws std::invalid_argument for others.
  virtual OutputComparison compare(const AttentionOutput& dense, const AttentionOutput& sparse,
                                   const BlockGeometry& geometry) const;

  /// Block transition matrix A (b x b) of a prefill (sketchwalk.md sections 1 and 9). Adds to the
  /// stages pool and sketch of `times` (may be null). Throws Error(kUnsupported) when the queries
  /// do not start at position 0.
  virtual Matrix transition(const AttentionProblem& problem, const SketchParams& params,
                            StageTimes* times) const = 0;

  /// `degree` times S := (1 - damping) A + damping S A, from S = previous (A when null).
  virtual Matrix damped_walk(const Matrix& a, const Matrix* previous, double damping,
                             std::int64_t degree) const;

  /// R = previous A (A when null), entries j > i zeroed, rows rescaled to sum 1 where they can be.
  virtual Matrix product_walk(const Matrix& a, const Matrix* previous) const;

  /// y [cols] += x [rows] m in fp64, rows of m `stride` apart: what the scores and the walk of a
  /// decode step consist of. Bound by reading m, so m is f32. Each y is a sum in the order of rows.
  virtual void add_row_product(std::span<const double> x, const float* m, std::int64_t stride,
                               std::span<double> y) const;

  /// x := exp(x - largest), where no x is larger; returns their sum.
  virtual double exponentials(std::span<double> x, double largest) const;
};

/// Throws Error(kUnsupported) with the backend's reason when it cannot compute `problem`.
void require_supported(const Backend& backend, const AttentionProblem& problem);

}  // namespace sw
