#pragma once

#include <cstdint>

#include "kernels/cpu/tile.hpp"

/// What selection computes, in fp64 throughout: sums of pooled tokens, matrix products for scores
/// and walks, exponentials of softmax rows.
namespace sw::cpu {

/// Row-major, rows `stride` elements apart.
struct ConstMatrix {
  const double* data;
  std::int64_t stride;
};

struct ScoreKernel {
  /// sum[dim] += the rows, one after the other: the same in every instruction set.
  void (*add_rows)(const TokenRows& rows, double* sum);
  /// The same in f32, for sums that are rounded to fewer bits afterwards.
  void (*add_rows_f32)(const TokenRows& rows, float* sum);
  /// Splits rows as SketchParams says, in f32: sums of the parts' differences to `mean` [dim] to
  /// sums [2][dim], of the part along the spread first. Returns how many rows that one has.
  /// `scratch` is [count + 1][dim].
  std::int64_t (*split_rows)(const TokenRows& rows, const float* mean, float* scratch, float* sums);
  /// c [rows][cols] := a [rows][depth] b [depth][cols]. Each element is a sum in ascending order of
  /// depth within groups of 256, so that it does not depend on how the rows are dealt out.
  void (*multiply)(ConstMatrix a, ConstMatrix b, std::int64_t rows, std::int64_t depth,
                   std::int64_t cols, double* c, std::int64_t c_stride);
  /// y [cols] += x [rows] m [rows][cols] in ascending order of rows; m has rows `stride` apart.
  void (*add_row_product)(const double* x, const float* m, std::int64_t stride, std::int64_t rows,
                          std::int64_t cols, double* y);
  /// x[i] := exp(x[i] - largest), with x[i] <= largest; returns their sum. Relative error below
  /// 1e-15 each, and exactly 0 where x[i] - largest < -708.
  double (*exponentials)(double* x, std::int64_t count, double largest);
};

extern const ScoreKernel kPortableScores;
extern const ScoreKernel kAvx2Scores;
extern const ScoreKernel kAvx512Scores;

}  // namespace sw::cpu
