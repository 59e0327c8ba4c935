#pragma once

#include <cmath>
#include <cstdint>

#include "core/tensor.hpp"

/// One causal attention of one layer: the queries at the last positions of a context, and the keys
/// and values of the whole context. Prefill, chunked prefill and decode are the same problem with
/// different numbers of queries.
namespace sw {

/// Queries at positions [query_begin, tokens) over a context of `tokens` keys, cut into blocks of
/// `block` tokens (sketchwalk.md, Notation). Row r of a selection is the block row first_row() + r.
struct BlockGeometry {
  std::int64_t block = 64;
  std::int64_t query_begin = 0;
  std::int64_t tokens = 0;

  /// Key blocks b = ceil(n / B).
  std::int64_t key_blocks() const { return (tokens + block - 1) / block; }
  /// Block index of the first query.
  std::int64_t first_row() const { return query_begin / block; }
  /// Query block rows.
  std::int64_t rows() const { return key_blocks() - first_row(); }
  /// First query position of row r.
  std::int64_t row_begin(std::int64_t r) const {
    const std::int64_t begin = (first_row() + r) * block;
    return begin > query_begin ? begin : query_begin;
  }
  /// One past the last query position of row r.
  std::int64_t row_end(std::int64_t r) const {
    const std::int64_t end = (first_row() + r + 1) * block;
    return end < tokens ? end : tokens;
  }
  /// Tokens of key block j.
  std::int64_t block_tokens(std::int64_t j) const {
    const std::int64_t left = tokens - j * block;
    return left < block ? left : block;
  }

  bool operator==(const BlockGeometry&) const = default;
};

struct AttentionProblem {
  HeadsView q;  ///< [num_heads, queries, head_dim], after RoPE; the last `queries` positions
  HeadsView k;  ///< [num_kv_heads, tokens, head_dim], after RoPE
  HeadsView v;  ///< [num_kv_heads, tokens, head_dim]
  std::int64_t layer = 0;  ///< index of the layer in the model

  std::int64_t num_heads() const { return q.heads; }
  std::int64_t num_kv_heads() const { return k.heads; }
  std::int64_t group() const { return q.heads / k.heads; }
  std::int64_t head_dim() const { return q.dim; }
  std::int64_t queries() const { return q.tokens; }
  std::int64_t tokens() const { return k.tokens; }
  std::int64_t query_begin() const { return k.tokens - q.tokens; }
  double scale() const { return 1.0 / std::sqrt(static_cast<double>(q.dim)); }
  BlockGeometry geometry(std::int64_t block) const { return {block, query_begin(), tokens()}; }

  /// Throws Error(kInput) when the shapes do not belong together: no heads or tokens, num_heads not
  /// a multiple of num_kv_heads, different dims, more queries than keys.
  void validate() const;
};

}  // namespace sw
