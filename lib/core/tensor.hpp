#pragma once

#include <cassert>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/dtype.hpp"

/// Tensors of attention: a non-owning view [heads, tokens, dim] with the element type known at run
/// time, its owner, and a dense double matrix for block scores. Nothing here allocates behind the
/// caller's back, and views never outlive what they look at.
namespace sw {

/// Row-major [heads, tokens, dim]; the dim axis is contiguous, strides are in elements.
struct HeadsView {
  const void* data = nullptr;
  DType dtype = DType::kF32;
  std::int64_t heads = 0;
  std::int64_t tokens = 0;
  std::int64_t dim = 0;
  std::int64_t head_stride = 0;
  std::int64_t token_stride = 0;

  /// Pointer to the `dim` elements of one token of one head.
  const void* row(std::int64_t head, std::int64_t token) const {
    assert(head >= 0 && head < heads && token >= 0 && token < tokens);
    const auto offset = static_cast<std::size_t>(head * head_stride + token * token_stride);
    return static_cast<const std::byte*>(data) + offset * dtype_size(dtype);
  }

  /// Tokens [begin, end) of every head, sharing the storage.
  HeadsView tokens_slice(std::int64_t begin, std::int64_t end) const {
    assert(0 <= begin && begin <= end && end <= tokens);
    HeadsView v = *this;
    v.data = static_cast<const std::byte*>(data) +
             static_cast<std::size_t>(begin * token_stride) * dtype_size(dtype);
    v.tokens = end - begin;
    return v;
  }

  /// Heads [begin, end), sharing the storage.
  HeadsView heads_slice(std::int64_t begin, std::int64_t end) const {
    assert(0 <= begin && begin <= end && end <= heads);
    HeadsView v = *this;
    v.data = static_cast<const std::byte*>(data) +
             static_cast<std::size_t>(begin * head_stride) * dtype_size(dtype);
    v.heads = end - begin;
    return v;
  }

  /// Copies one row to float.
  void load_row(std::int64_t head, std::int64_t token, float* out) const {
    convert_to_float(row(head, token), dtype, dim, out);
  }
};

/// Owner of a contiguous [heads, tokens, dim] tensor. The storage is 64-byte aligned and not
/// initialised: reading it before writing is the caller's bug.
class HeadsTensor {
 public:
  HeadsTensor() = default;
  /// Throws Error(kResource) when the memory cannot be had (the message states the bytes wanted).
  HeadsTensor(DType dtype, std::int64_t heads, std::int64_t tokens, std::int64_t dim);

  HeadsView view() const {
    return {data_.get(), dtype_, heads_, tokens_, dim_, tokens_ * dim_, dim_};
  }
  DType dtype() const { return dtype_; }
  std::int64_t heads() const { return heads_; }
  std::int64_t tokens() const { return tokens_; }
  std::int64_t dim() const { return dim_; }
  std::int64_t elements() const { return heads_ * tokens_ * dim_; }
  std::size_t bytes() const { return static_cast<std::size_t>(elements()) * dtype_size(dtype_); }
  std::byte* data() { return data_.get(); }
  const std::byte* data() const { return data_.get(); }

  template <class T>
  T* row(std::int64_t head, std::int64_t token) {
    assert(sizeof(T) == dtype_size(dtype_));
    return reinterpret_cast<T*>(data_.get()) + (head * tokens_ + token) * dim_;
  }
  template <class T>
  const T* row(std::int64_t head, std::int64_t token) const {
    return const_cast<HeadsTensor*>(this)->row<T>(head, token);
  }

 private:
  struct Free {
    void operator()(std::byte* p) const;
  };
  DType dtype_ = DType::kF32;
  std::int64_t heads_ = 0;
  std::int64_t tokens_ = 0;
  std::int64_t dim_ = 0;
  std::unique_ptr<std::byte[], Free> data_;
};

/// Row-major matrix of doubles: block scores, transition matrices.
class Matrix {
 public:
  Matrix() = default;
  Matrix(std::int64_t rows, std::int64_t cols, double value = 0.0)
      : rows_(rows), cols_(cols), values_(static_cast<std::size_t>(rows * cols), value) {}

  std::int64_t rows() const { return rows_; }
  std::int64_t cols() const { return cols_; }
  bool empty() const { return values_.empty(); }
  double& operator()(std::int64_t i, std::int64_t j) {
    return values_[static_cast<std::size_t>(i * cols_ + j)];
  }
  double operator()(std::int64_t i, std::int64_t j) const {
    return values_[static_cast<std::size_t>(i * cols_ + j)];
  }
  std::span<double> row(std::int64_t i) {
    return {values_.data() + i * cols_, static_cast<std::size_t>(cols_)};
  }
  std::span<const double> row(std::int64_t i) const {
    return {values_.data() + i * cols_, static_cast<std::size_t>(cols_)};
  }
  std::span<const double> values() const { return values_; }

 private:
  std::int64_t rows_ = 0;
  std::int64_t cols_ = 0;
  std::vector<double> values_;
};

/// "[2, 128, 64]".
std::string shape_text(const std::vector<std::int64_t>& shape);

/// The product of non-negative numbers, or nothing when it exceeds 2^62 or a number is negative.
std::optional<std::int64_t> checked_product(const std::vector<std::int64_t>& factors);

}  // namespace sw
