#pragma once

#include <cstdint>
#include <vector>

#include "core/tensor.hpp"
#include "kernels/cuda/common/buffer.hpp"

/// Square matrices of selection in device memory: block transition matrices and walk states.
namespace sw::cuda {

/// Row-major f32 scores in device memory: row (g, r) of row set g and query block row r begins at
/// data + (g * rows + r) * stride and holds `cols` key blocks.
struct ScoresView {
  const float* data = nullptr;
  int groups = 1;
  int rows = 0;
  int cols = 0;
  std::int64_t stride = 0;
};

/// How an element is split into two 16-bit numbers, the operands of tensor cores.
enum class Split {
  kF16,   ///< of 2^14 x: 22 bits for x >= 2^-18, absolute error below 2^-39 for smaller x in [0, 1]
  kBf16,  ///< 16 bits, with the range of f32
};

/// A b x b matrix as f32 and as split operands, with rows padded to a multiple of 128 elements; the
/// padding of the operands is zero. Holds up to max_blocks x max_blocks.
class SplitMatrix {
 public:
  SplitMatrix() = default;
  SplitMatrix(int max_blocks, Split split);

  int blocks() const { return blocks_; }
  /// Whether a kernel has been asked to fill it (an empty walk state has not).
  bool empty() const { return blocks_ == 0; }
  void clear() { blocks_ = 0; }
  /// Sets the size of what will be written next. Throws std::logic_error above max_blocks.
  void resize(int blocks);

  Split split() const { return split_; }
  std::int64_t stride() const { return padded(blocks_); }
  float* values() const { return values_.data(); }
  std::uint16_t* high() const { return operands_.data(); }
  std::uint16_t* low() const { return operands_.data() + operands_.size() / 2; }
  ScoresView view() const { return {values(), 1, blocks_, blocks_, stride()}; }
  /// Copies to the host; blocks the caller until the device is idle.
  Matrix download() const;

  static std::int64_t padded(std::int64_t blocks) { return (blocks + 127) / 128 * 128; }

 private:
  int max_blocks_ = 0;
  int blocks_ = 0;
  Split split_ = Split::kF16;
  DeviceBuffer<float> values_;
  DeviceBuffer<std::uint16_t> operands_;
};

/// What becomes of the rows of a matrix: x[i, j] = (sum over chunks of in[chunk][i, j]) * factor of
/// the row, to the power `sharpness`, zero for j > i if `causal`, divided by the sum of its row if
/// `normalize` (and the sum is not 0).
struct RowRule {
  float factor = 1.0f;
  float last_factor = 1.0f;  ///< of the last row
  float sharpness = 1.0f;
  bool causal = false;
  bool normalize = false;
};

inline constexpr int kStripRows = 64;  ///< of a matrix

/// How clusters share a matrix that is a sum over heads: an item is a strip of rows and a head, and
/// each cluster takes as many of them, in order. The items of a strip that one cluster has are a
/// piece; the pieces of a strip are numbered from 0.
struct StripPieces {
  int heads = 0;
  int items = 0;
  int clusters = 0;

  /// First item of a cluster.
  constexpr int begin(int cluster) const {
    return static_cast<int>(std::int64_t{cluster} * items / clusters);
  }
  constexpr int cluster_of(int item) const {
    return static_cast<int>(((item + std::int64_t{1}) * clusters - 1) / items);
  }
  /// Pieces of a strip.
  constexpr int count(int strip) const {
    return cluster_of((strip + 1) * heads - 1) - cluster_of(strip * heads) + 1;
  }
};

/// out := rule(in), in [chunks][blocks, in_stride] with `chunk_stride` elements between chunks
/// (both strides multiples of 4, in_stride at least blocks), on `stream`. With `pieces` (of any
/// heads) a row has as many chunks as its strip has pieces. Allocates nothing. out.blocks() rows;
/// one read of `in`, one write of `out`.
void finish_rows(const float* in, std::int64_t in_stride, int chunks, std::int64_t chunk_stride,
                 const StripPieces& pieces, const RowRule& rule, const SplitMatrix& out,
                 cudaStream_t stream);

}  // namespace sw::cuda
