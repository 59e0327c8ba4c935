// The Hopper prefill kernel against the fp64 reference, on sampled queries: its error must be that
// of any flash attention with probabilities rounded to the element type, which is emulated here.
#include "kernels/cuda/sm90/prefill_attention.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numbers>
#include <string>
#include <vector>

#include "core/parallel.hpp"
#include "core/rng.hpp"
#include "kernels/cuda/common/buffer.hpp"
#include "kernels/cuda/device_test.hpp"
#include "kernels/reference/backend.hpp"

namespace sw::cuda {
namespace {

struct Case {
  Element element = Element::kBf16;
  int heads = 2;
  int kv_heads = 1;
  int dim = 128;
  std::int64_t queries = 300;
  std::int64_t tokens = 300;
  int block = 64;
  int groups = 1;           // 0 = dense
  double density = 0.3;     // of the blocks before the diagonal; 0 = diagonal only
  std::int64_t window = 0;  // token-level parts
  std::int64_t sink = 0;
  double amplitude = 1.0;    // of q and k
  bool token_major = false;  // [tokens, heads, dim] in memory
  int samples = 12;          // queries to compare, beside those at edges
  std::uint64_t seed = 1;

  DType dtype() const { return element == Element::kBf16 ? DType::kBf16 : DType::kF16; }
  std::string text() const {
    return std::string(dtype_name(dtype())) + " heads " + std::to_string(heads) + "/" +
           std::to_string(kv_heads) + " dim " + std::to_string(dim) + " queries " +
           std::to_string(queries) + " of " + std::to_string(tokens) + " block " +
           std::to_string(block) + " groups " + std::to_string(groups) + " density " +
           std::to_string(density) + " window " + std::to_string(window) + " sink " +
           std::to_string(sink) + " amplitude " + std::to_string(amplitude) +
           (token_major ? " token-major" : "");
  }
};

/// Random [heads, tokens, dim], normal with the given amplitude, on both sides.
class Tensor {
 public:
  Tensor(const Case& c, int heads, std::int64_t tokens, double amplitude, std::uint64_t seed)
      : host_(static_cast<std::size_t>(heads * tokens * c.dim)) {
    view_ = {nullptr, c.dtype(), heads, tokens, c.dim, tokens * c.dim, c.dim};
    if (c.token_major) {
      view_.head_stride = c.dim;
      view_.token_stride = heads * static_cast<std::int64_t>(c.dim);
    }
    SplitMix64 rng(seed);
    for (std::uint16_t& x : host_) {
      const auto value = static_cast<float>(amplitude * rng.normal());
      x = c.element == Element::kBf16 ? to_bf16(value).bits : to_f16(value).bits;
    }
    view_.data = host_.data();
    device_ = DeviceBuffer<std::uint16_t>(std::span<const std::uint16_t>(host_));
  }
  const HeadsView& view() const { return view_; }
  HeadsPointer pointer() const { return {device_.data(), view_.head_stride, view_.token_stride}; }

 private:
  HeadsView view_;
  std::vector<std::uint16_t> host_;
  DeviceBuffer<std::uint16_t> device_;
};

BlockSelection random_selection(const Case& c, const BlockGeometry& geometry) {
  SplitMix64 rng(c.seed * 77 + 5);
  BlockSelection selection(geometry, std::max(c.groups, 1));
  for (int g = 0; g < std::max(c.groups, 1); ++g) {
    for (std::int64_t r = 0; r < geometry.rows(); ++r) {
      const std::int64_t own = geometry.first_row() + r;
      std::vector<std::int32_t> blocks;
      for (std::int64_t j = 0; j < own; ++j) {
        if (c.groups == 0 || rng.uniform() < c.density) {
          blocks.push_back(static_cast<std::int32_t>(j));
        }
      }
      blocks.push_back(static_cast<std::int32_t>(own));
      selection.append_row(blocks, std::vector<Part>(blocks.size(), Part::kScored));
    }
  }
  selection.set_token_parts(c.window, c.sink);
  return selection;
}

/// A BlockSelection in device memory, with its rows stored in a scattered order.
class DeviceSelection {
 public:
  explicit DeviceSelection(const BlockSelection& s) {
    const std::int64_t rows = s.groups() * s.rows();
    std::vector<std::int64_t> begin(static_cast<std::size_t>(rows));
    std::vector<std::int32_t> count(static_cast<std::size_t>(rows));
    std::vector<std::int32_t> blocks = {-1, -1, -1};  // what no row owns is never read
    for (std::int64_t i = rows - 1; i >= 0; --i) {
      const auto row = s.blocks(i / s.rows(), i % s.rows());
      begin[i] = static_cast<std::int64_t>(blocks.size());
      count[i] = static_cast<std::int32_t>(row.size());
      blocks.insert(blocks.end(), row.begin(), row.end());
      blocks.push_back(-1);
    }
    begin_ = DeviceBuffer<std::int64_t>(std::span<const std::int64_t>(begin));
    count_ = DeviceBuffer<std::int32_t>(std::span<const std::int32_t>(count));
    blocks_ = DeviceBuffer<std::int32_t>(std::span<const std::int32_t>(blocks));
    view = {begin_.data(),
            count_.data(),
            blocks_.data(),
            static_cast<int>(s.groups()),
            static_cast<int>(s.rows()),
            static_cast<int>(s.geometry().first_row()),
            static_cast<int>(s.geometry().block),
            s.token_window(),
            s.token_sink()};
  }
  SelectionView view;

 private:
  DeviceBuffer<std::int64_t> begin_;
  DeviceBuffer<std::int32_t> count_;
  DeviceBuffer<std::int32_t> blocks_;
};

float round_to(Element element, float x) {
  return element == Element::kBf16 ? to_float(to_bf16(x)) : to_float(to_f16(x));
}

/// Flash attention of a problem with one head and one query as a plain kernel computes it: f32
/// logits and sums, exponentials by one multiply-add and exp2, probabilities rounded to the element
/// type for the product with V.
std::vector<float> emulate(const Case& c, const AttentionProblem& one, const BlockSelection& row) {
  const std::int64_t p = one.query_begin();
  const auto kept = row.blocks(0, 0);
  const auto scale_log2 = static_cast<float>(one.scale() * std::numbers::log2e);
  std::vector<float> q(static_cast<std::size_t>(c.dim));
  std::vector<float> x(static_cast<std::size_t>(c.dim));
  std::vector<float> out(static_cast<std::size_t>(c.dim), 0.0f);
  one.q.load_row(0, 0, q.data());
  std::vector<float> s(static_cast<std::size_t>(p + 1), -std::numeric_limits<float>::infinity());
  float top = -std::numeric_limits<float>::infinity();
  for (std::int64_t t = 0; t <= p; ++t) {
    if (!row.token_visible(p, t) &&
        !std::binary_search(kept.begin(), kept.end(), static_cast<std::int32_t>(t / c.block))) {
      continue;
    }
    one.k.load_row(0, t, x.data());
    float sum = 0.0f;
    for (int j = 0; j < c.dim; ++j) sum += q[j] * x[j];
    s[t] = sum;
    top = std::max(top, sum);
  }
  const float reference = top * scale_log2;
  float total = 0.0f;
  for (std::int64_t t = 0; t <= p; ++t) {
    if (s[t] == -std::numeric_limits<float>::infinity()) continue;
    const float probability = std::exp2(std::fma(s[t], scale_log2, -reference));
    total += probability;
    one.v.load_row(0, t, x.data());
    for (int j = 0; j < c.dim; ++j) out[j] += round_to(c.element, probability) * x[j];
  }
  for (float& o : out) o = round_to(c.element, o / total);
  return out;
}

void check_case(const Case& c) {
  SCOPED_TRACE(c.text());
  const Tensor q(c, c.heads, c.queries, c.amplitude, c.seed * 3 + 1);
  const Tensor k(c, c.kv_heads, c.tokens, c.amplitude, c.seed * 3 + 2);
  const Tensor v(c, c.kv_heads, c.tokens, 1.0, c.seed * 3 + 3);
  const AttentionProblem problem{q.view(), k.view(), v.view()};
  const BlockGeometry geometry = problem.geometry(c.block);
  const BlockSelection selection = random_selection(c, geometry);
  const DeviceSelection device_selection(selection);

  // Rows of the output lie 8 elements apart; all of it is poisoned with NaN.
  const std::int64_t token_stride = (c.token_major ? c.heads * c.dim : c.dim) + 8;
  const std::int64_t head_stride = c.token_major ? c.dim : c.queries * token_stride;
  const auto out_size = static_cast<std::size_t>(c.heads * c.queries * (c.dim + 8));
  const std::vector<std::uint16_t> poison(out_size, 0xffff);
  const std::vector<float> lse_poison(static_cast<std::size_t>(c.heads * c.queries), NAN);
  DeviceBuffer<std::uint16_t> out(out_size);
  DeviceBuffer<float> lse(lse_poison.size());
  DeviceBuffer<int> counter(1);

  PrefillAttention a;
  a.element = c.element;
  a.num_heads = c.heads;
  a.num_kv_heads = c.kv_heads;
  a.head_dim = c.dim;
  a.queries = c.queries;
  a.tokens = c.tokens;
  a.q = q.pointer();
  a.k = k.pointer();
  a.v = v.pointer();
  a.out = out.data();
  a.out_head_stride = head_stride;
  a.out_token_stride = token_stride;
  a.lse = lse.data();
  a.scale = static_cast<float>(problem.scale());
  a.selection = c.groups == 0 ? nullptr : &device_selection.view;
  a.tile_counter = counter.data();

  std::vector<std::uint16_t> results[2];
  std::vector<float> lses[2];
  for (int run = 0; run < 2; ++run) {
    out.upload(poison);
    lse.upload(lse_poison);
    launch_prefill_attention(a, nullptr);
    synchronize(nullptr, "prefill attention");
    results[run] = out.download();
    lses[run] = lse.download();
  }
  ASSERT_TRUE(results[0] == results[1]) << "differs from run to run";
  ASSERT_EQ(std::memcmp(lses[0].data(), lses[1].data(), lses[0].size() * sizeof(float)), 0);

  const auto value = [&](std::int64_t head, std::int64_t query, int j) {
    const std::uint16_t bits = results[0][head * head_stride + query * token_stride + j];
    return c.element == Element::kBf16 ? to_float(Bf16{bits}) : to_float(F16{bits});
  };
  std::size_t written = 0;
  for (std::uint16_t x : results[0]) written += x != 0xffff;
  EXPECT_EQ(written, static_cast<std::size_t>(c.heads * c.queries * c.dim));

  // Sampled queries: the edges of blocks and of the problem, and random ones.
  std::vector<std::int64_t> sample = {0, c.queries - 1};
  const std::int64_t begin = problem.query_begin();
  for (std::int64_t edge : {std::int64_t{63}, std::int64_t{64}, std::int64_t{128}}) {
    if (edge >= begin && edge < c.tokens) sample.push_back(edge - begin);
  }
  SplitMix64 rng(c.seed + 99);
  for (int i = 0; i < c.samples; ++i) {
    sample.push_back(static_cast<std::int64_t>(rng.below(c.queries)));
  }

  // Each sampled query for two heads, in turn.
  const int heads_each = std::min(c.heads, 2);
  const auto pairs = static_cast<std::int64_t>(sample.size()) * heads_each;
  const auto reference = make_reference_backend();
  struct Sums {
    double error = 0.0;
    double emulated = 0.0;
    double norm = 0.0;
    double lse_error = 0.0;  // beyond what f32 explains
  };
  std::vector<Sums> sums(static_cast<std::size_t>(pairs));
  parallel_for(pairs, [&](std::int64_t i, int) {
    const std::int64_t query = sample[i / heads_each];
    const std::int64_t h = i % c.heads;
    const std::int64_t kv = h / problem.group();
    // The query alone, at the end of the context that it sees.
    const std::int64_t p = begin + query;
    const AttentionProblem one{q.view().heads_slice(h, h + 1).tokens_slice(query, query + 1),
                               k.view().heads_slice(kv, kv + 1).tokens_slice(0, p + 1),
                               v.view().heads_slice(kv, kv + 1).tokens_slice(0, p + 1)};
    BlockSelection row(one.geometry(c.block), 1);
    const auto blocks =
        selection.blocks(selection.group_of_head(h, c.heads), p / c.block - geometry.first_row());
    row.append_row(blocks, std::vector<Part>(blocks.size(), Part::kScored));
    row.set_token_parts(c.window, c.sink);
    AttentionOutput expected;
    reference->attend(one, row, expected);

    const std::vector<float> flash = emulate(c, one, row);
    const float* want = expected.out.row<float>(0, 0);
    Sums& sum = sums[i];
    for (int j = 0; j < c.dim; ++j) {
      const double w = want[j];
      sum.error += (value(h, query, j) - w) * (value(h, query, j) - w);
      sum.emulated += (flash[j] - w) * (flash[j] - w);
      sum.norm += w * w;
    }
    // A dot product of f32 terms errs by at most dim * 2^-24 of the sum of their magnitudes, and
    // the matrix unit truncates where f32 rounds, hence twice that; exponentials and their sums err
    // by 2^-20.
    double largest = 0.0;
    std::vector<float> x(static_cast<std::size_t>(c.dim));
    std::vector<float> y(static_cast<std::size_t>(c.dim));
    one.q.load_row(0, 0, x.data());
    for (std::int64_t t = 0; t <= p; ++t) {
      one.k.load_row(0, t, y.data());
      double terms = 0.0;
      for (int j = 0; j < c.dim; ++j) terms += std::abs(static_cast<double>(x[j]) * y[j]);
      largest = std::max(largest, terms * problem.scale());
    }
    const double allowed =
        largest * c.dim * 0x1p-23 + std::abs(expected.lse[0]) * 0x1p-22 + 0x1p-20;
    sum.lse_error = std::abs(lses[0][h * c.queries + query] - expected.lse[0]) / allowed;
  });
  double error = 0.0;
  double emulated = 0.0;
  double norm = 0.0;
  for (const Sums& sum : sums) {
    error += sum.error;
    emulated += sum.emulated;
    norm += sum.norm;
    EXPECT_LE(sum.lse_error, 1.0);  // NaN fails
  }
  error = std::sqrt(error / norm);
  emulated = std::sqrt(emulated / norm);
  EXPECT_LE(error, 1.5 * emulated + 1e-6) << "flash emulation: " << emulated;
}

TEST(PrefillAttention, EveryShape) {
  SW_REQUIRE_GPU(9);
  std::uint64_t seed = 1;
  for (const Element element : {Element::kBf16, Element::kF16}) {
    for (const int dim : {64, 128, 256}) {
      for (const int group : {1, 2, 3, 4, 7, 16}) {
        for (const int block : {64, 128}) {
          for (const int groups : {0, 1, 2, 2 * group}) {
            Case c;
            c.element = element;
            c.dim = dim;
            c.kv_heads = 2;
            c.heads = 2 * group;
            c.block = block;
            c.groups = groups;
            c.tokens = c.queries = 330 + static_cast<std::int64_t>(seed % 200);
            c.token_major = seed % 2 == 0;
            c.seed = seed++;
            check_case(c);
            if (HasFailure()) return;
          }
        }
      }
    }
  }
}

TEST(PrefillAttention, RaggedLengths) {
  SW_REQUIRE_GPU(9);
  std::uint64_t seed = 1000;
  for (const std::int64_t tokens : {1, 2, 63, 64, 65, 127, 128, 129, 191, 193, 1023, 1025}) {
    for (const int dim : {64, 128, 256}) {
      for (const int group : {1, 2}) {
        for (const int block : {64, 128}) {
          for (const double density : {0.0, 0.2, 1.0}) {
            Case c;
            c.dim = dim;
            c.heads = group;
            c.block = block;
            c.tokens = c.queries = tokens;
            c.density = density;
            c.seed = seed++;
            check_case(c);
            if (HasFailure()) return;
          }
        }
      }
    }
  }
}

TEST(PrefillAttention, QueriesAtTheEndOfAContext) {
  SW_REQUIRE_GPU(9);
  std::uint64_t seed = 2000;
  for (const std::int64_t queries : {1, 3, 64, 100, 500}) {
    for (const std::int64_t tokens : {500, 640, 1000}) {
      for (const int group : {1, 2, 3}) {
        for (const int block : {64, 128}) {
          for (const int groups : {0, 1}) {
            for (const std::int64_t window : {0, 50}) {
              if (groups == 0 && window > 0) continue;
              Case c;
              c.heads = group;
              c.queries = queries;
              c.tokens = tokens;
              c.block = block;
              c.groups = groups;
              c.window = window;
              c.seed = seed++;
              check_case(c);
              if (HasFailure()) return;
            }
          }
        }
      }
    }
  }
}

TEST(PrefillAttention, TokenLevelParts) {
  SW_REQUIRE_GPU(9);
  struct Parts {
    std::int64_t window;
    std::int64_t sink;
    double density;
  };
  std::uint64_t seed = 3000;
  for (const int dim : {64, 128, 256}) {
    for (const int group : {1, 2, 4}) {
      for (const int block : {64, 128}) {
        for (const Parts& parts :
             {Parts{1, 1, 0.3}, Parts{64, 0, 0.0}, Parts{0, 70, 0.3}, Parts{100, 130, 0.3},
              Parts{333, 400, 0.1}, Parts{0, 1, 0.0}, Parts{5000, 5000, 0.2}}) {
          Case c;
          c.element = seed % 2 == 0 ? Element::kBf16 : Element::kF16;
          c.dim = dim;
          c.heads = group;
          c.block = block;
          c.tokens = c.queries = 700;
          c.window = parts.window;
          c.sink = parts.sink;
          c.density = parts.density;
          c.seed = seed++;
          check_case(c);
          if (HasFailure()) return;
        }
      }
    }
  }
}

TEST(PrefillAttention, LargeLogits) {
  SW_REQUIRE_GPU(9);
  std::uint64_t seed = 4000;
  for (const Element element : {Element::kBf16, Element::kF16}) {
    for (const int dim : {64, 128, 256}) {
      for (const double amplitude : {0.0, 4.0, 60.0}) {  // logits of 60^2, up to 1e4 and beyond
        Case c;
        c.element = element;
        c.dim = dim;
        c.tokens = c.queries = 777;
        c.samples = 200;  // few keys of a row matter, and which do is chance
        c.amplitude = amplitude;
        c.seed = seed++;
        check_case(c);
        if (HasFailure()) return;
      }
    }
  }
}

TEST(PrefillAttention, LongContexts) {
  SW_REQUIRE_GPU(9);
  std::uint64_t seed = 5000;
  for (const std::int64_t tokens : {8191, 16384}) {
    for (const int dim : {64, 128}) {
      for (const int group : {1, 4}) {
        for (const int groups : {0, 1, group}) {
          Case c;
          c.dim = dim;
          c.heads = group;
          c.tokens = c.queries = tokens;
          c.groups = groups;
          c.density = 0.2;
          c.samples = 6;
          c.seed = seed++;
          check_case(c);
          if (HasFailure()) return;
        }
      }
    }
  }
}

TEST(PrefillAttention, RefusesWithTheReason) {
  PrefillAttention a;
  a.num_heads = a.num_kv_heads = 1;
  a.head_dim = 80;
  a.queries = a.tokens = 64;
  EXPECT_NE(prefill_attention_unsupported(a)->find("head_dim 80"), std::string::npos);
  a.head_dim = 64;
  a.scale = 0.125f;
  a.q.token_stride = 65;
  EXPECT_NE(prefill_attention_unsupported(a)->find("16 bytes"), std::string::npos);
  a.q.token_stride = 64;
  SelectionView selection;
  selection.block = 32;
  a.selection = &selection;
  EXPECT_NE(prefill_attention_unsupported(a)->find("blocks of 32"), std::string::npos);
}

}  // namespace
}  // namespace sw::cuda
