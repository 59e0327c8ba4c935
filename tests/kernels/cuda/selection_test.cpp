// Block selection on the GPU against the fp64 reference: transition matrices, walks, and selections
// from the same scores; each bound is derived from the arithmetic, for the data at hand.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>

#include "attention/backend.hpp"
#include "core/error.hpp"
#include "device_test.hpp"
#include "kernels/cuda/common/selection/launch_limits.hpp"
#include "kernels/cuda/common/selection/selector.hpp"
#include "kernels/reference/backend.hpp"

namespace sw::cuda {
namespace {

using Aggregation = SketchParams::Aggregation;

/// Tokens of a block share a direction, as neighbouring tokens of a model do.
HeadsTensor random_tensor(DType dtype, std::int64_t heads, std::int64_t tokens, std::int64_t dim,
                          std::mt19937& rng, double common = 0.5) {
  HeadsTensor x(dtype, heads, tokens, dim);
  std::normal_distribution<float> normal;
  std::vector<float> direction(static_cast<std::size_t>(dim));
  for (std::int64_t h = 0; h < heads; ++h) {
    for (std::int64_t t = 0; t < tokens; ++t) {
      if (t % 48 == 0) {
        for (float& v : direction) v = static_cast<float>(common) * normal(rng);
      }
      for (std::int64_t j = 0; j < dim; ++j) {
        const float value = normal(rng) + direction[static_cast<std::size_t>(j)];
        if (dtype == DType::kBf16) {
          x.row<Bf16>(h, t)[j] = to_bf16(value);
        } else {
          x.row<F16>(h, t)[j] = to_f16(value);
        }
      }
    }
  }
  return x;
}

struct Shape {
  int heads;
  int kv_heads;
  int dim;
};

/// Queries and keys of a layer, on both sides.
struct Layer {
  HeadsTensor q;
  HeadsTensor k;
  DeviceBuffer<std::byte> device_q;
  DeviceBuffer<std::byte> device_k;
  Element element;
  std::int64_t index = 0;

  Layer(const Shape& shape, std::int64_t tokens, Element type, unsigned seed, double common = 0.5)
      : element(type) {
    std::mt19937 rng(seed);
    const DType dtype = type == Element::kBf16 ? DType::kBf16 : DType::kF16;
    q = random_tensor(dtype, shape.heads, tokens, shape.dim, rng, common);
    k = random_tensor(dtype, shape.kv_heads, tokens, shape.dim, rng, common);
    device_q = DeviceBuffer<std::byte>(std::span<const std::byte>(q.data(), q.bytes()));
    device_k = DeviceBuffer<std::byte>(std::span<const std::byte>(k.data(), k.bytes()));
  }
  AttentionProblem problem() const { return {q.view(), k.view(), k.view(), index}; }
  static HeadsPointer pointer(const HeadsTensor& x, const DeviceBuffer<std::byte>& device) {
    return {device.data(), x.tokens() * x.dim(), x.dim()};
  }
  HeadsPointer q_pointer() const { return pointer(q, device_q); }
  HeadsPointer k_pointer() const { return pointer(k, device_k); }
};

/// Largest norms over the pools of a side: of the mean, and of the mean of magnitudes.
std::pair<double, double> pool_norms(const HeadsView& x, std::int64_t pool, bool partial) {
  double mean_norm = 0.0;
  double magnitude_norm = 0.0;
  std::vector<float> row(static_cast<std::size_t>(x.dim));
  for (std::int64_t h = 0; h < x.heads; ++h) {
    for (std::int64_t begin = 0; begin < x.tokens; begin += pool) {
      const std::int64_t end = std::min(begin + pool, x.tokens);
      const auto divisor = static_cast<double>(partial ? end - begin : pool);
      std::vector<double> mean(row.size());
      std::vector<double> magnitude(row.size());
      for (std::int64_t t = begin; t < end; ++t) {
        x.load_row(h, t, row.data());
        for (std::size_t j = 0; j < row.size(); ++j) {
          mean[j] += row[j] / divisor;
          magnitude[j] += std::fabs(row[j]) / divisor;
        }
      }
      double a = 0.0;
      double b = 0.0;
      for (std::size_t j = 0; j < row.size(); ++j) {
        a += mean[j] * mean[j];
        b += magnitude[j] * magnitude[j];
      }
      mean_norm = std::max(mean_norm, std::sqrt(a));
      magnitude_norm = std::max(magnitude_norm, std::sqrt(b));
    }
  }
  return {mean_norm, magnitude_norm};
}

/// Bound on the relative error of an element of A. A pooled element is an f32 sum of at most 64
/// terms (and at most 64 heads) over a transform of 8 stages; a logit is the sum of up to 3 * 16
/// tensor core steps that each truncate in f32; the split leaves 2^-22; a probability is the
/// quotient of two such exponentials.
double transition_bound(const Layer& layer, const SketchParams& params) {
  const Sketch sketch(params, layer.index, layer.q.dim());
  const auto padded = static_cast<double>(sketch.padded_dim());
  const double rank = static_cast<double>(sketch.dim());
  double scale = sketch.logit_scale() / params.temperature;
  // The transform stretches a norm by at most sqrt(d') times its scale.
  if (!params.exact) scale *= padded * (params.unbiased ? 1.0 / rank : rank / padded);
  const auto [qm, qa] = pool_norms(layer.q.view(), params.tokens_per_query(), params.partial_mean);
  const auto [km, ka] = pool_norms(layer.k.view(), params.tokens_per_key(), params.partial_mean);
  const bool mean = params.aggregation == Aggregation::kHeadMean;
  const double sum_error = (64 + (mean ? 64 : 0) + 8) * 0x1p-24;
  const double logit =
      scale * (sum_error * (qm * ka + qa * km) + (48 * 0x1p-23 + 0x1p-21) * qm * km);
  // 2^-21: the rounding of a logit and its exponential; terms and powers are rounded likewise.
  const double probability = 2.0 * (logit + 4.0 * scale * qm * km * 0x1p-24 + 0x1p-21);
  const double sums = static_cast<double>(layer.q.heads() + 64) * 0x1p-24;
  return 2.0 * params.sharpness * (probability + sums) + 16.0 * 0x1p-24;
}

double expect_close(const Matrix& got, const Matrix& want, double scale, double bound) {
  double largest = 0.0;
  for (std::int64_t i = 0; i < want.rows(); ++i) {
    for (std::int64_t j = 0; j < want.cols(); ++j) {
      const double expected = want(i, j) * scale;
      if (expected < 0x1p-100) {  // beyond f32 once multiplied
        EXPECT_LT(got(i, j), 0x1p-90);
        continue;
      }
      const double error = std::fabs(got(i, j) - expected) / expected;
      largest = std::isnan(error) ? INFINITY : std::max(largest, error);
    }
  }
  EXPECT_LE(largest, bound);
  return largest;
}

/// On Hopper the kernels for every GPU are tested too.
std::unique_ptr<PortableProducts> products(bool portable) {
  return portable ? std::make_unique<PortableProducts>() : nullptr;
}

struct Preset {
  const char* name;
  SketchParams sketch;
  WalkParams walk;
};

Preset release() {
  Preset p{"release", {}, {}};
  p.sketch.sketch_dim = 128;
  return p;
}
Preset preprint() {
  Preset p{"preprint", {}, {}};
  p.sketch.sketch_dim = 128;
  p.sketch.unbiased = true;
  p.sketch.temperature = 1.0;
  p.sketch.aggregation = Aggregation::kHeadMean;
  p.sketch.sharpness = 8.0;
  p.sketch.normalize = false;
  p.walk.kind = WalkParams::Kind::kProduct;
  return p;
}

std::vector<Preset> presets() {
  std::vector<Preset> all{release(), preprint()};
  const auto add = [&](const char* name, Preset p, auto change) {
    p.name = name;
    change(p.sketch);
    all.push_back(p);
  };
  add("small sketch", release(), [](SketchParams& s) { s.sketch_dim = 24; });
  add("small unbiased sketch", preprint(), [](SketchParams& s) { s.sketch_dim = 48; });
  add("exact causal", release(), [](SketchParams& s) {
    s.exact = true;
    s.causal = true;
    s.partial_mean = true;
    s.temperature = 10.0;
  });
  add("sharp and normalised", release(), [](SketchParams& s) { s.sharpness = 2.5; });
  add("keys of 16", release(), [](SketchParams& s) {
    s.key_pool = 16;
    s.causal = true;
  });
  add("queries of 8, keys of 4", release(), [](SketchParams& s) {
    s.query_pool = 8;
    s.key_pool = 4;
    s.sketch_dim = 16;
    s.partial_mean = true;
  });
  add("every key", preprint(), [](SketchParams& s) { s.key_pool = 1; });
  all.back().sketch.sharpness = 1.0;
  return all;
}

constexpr Shape kShapes[] = {{9, 3, 64}, {14, 2, 64}, {32, 8, 128}, {8, 8, 80}, {4, 1, 256}};
constexpr std::int64_t kMaxTokens = 5000;

TEST(CudaTransition, MatchesTheReference) {
  SW_REQUIRE_GPU(8);
  const auto reference = make_reference_backend();
  std::mt19937 rng(7);
  for (const Preset& preset : presets()) {
    for (const Shape& shape : kShapes) {
      Transition transition({shape.heads, shape.kv_heads, shape.dim, kMaxTokens, 6}, preset.sketch);
      const Split split =
          preset.walk.kind == WalkParams::Kind::kProduct ? Split::kBf16 : Split::kF16;
      SplitMatrix a((kMaxTokens + 63) / 64, split);
      double worst = 0.0;
      double bound = 0.0;
      for (int draw = 0; draw < 3; ++draw) {
        const std::int64_t n = draw == 0 ? 1 + static_cast<std::int64_t>(rng() % 80)
                                         : 1 + static_cast<std::int64_t>(rng() % kMaxTokens);
        SCOPED_TRACE(std::string(preset.name) + ", " + std::to_string(shape.heads) + "/" +
                     std::to_string(shape.kv_heads) + "/" + std::to_string(shape.dim) + ", n " +
                     std::to_string(n));
        Layer layer(shape, n, draw == 2 ? Element::kF16 : Element::kBf16, rng());
        layer.index = 2 + draw;
        const Matrix want = reference->transition(layer.problem(), preset.sketch, nullptr);
        const double limit = transition_bound(layer, preset.sketch);
        for (const bool portable : {false, true}) {
          SCOPED_TRACE(portable ? "portable" : "of this GPU");
          const auto guard = products(portable);
          transition.run(layer.q_pointer(), layer.k_pointer(), layer.element, n, layer.index, a,
                         nullptr);
          synchronize(nullptr, "transition");
          worst = std::max(worst, expect_close(a.download(), want, transition.out_scale(), limit));
        }
        bound = std::max(bound, limit);
      }
      std::printf("A   %-24s %2d/%d/%-3d relative error %.1e (bound %.1e)\n", preset.name,
                  shape.heads, shape.kv_heads, shape.dim, worst, bound);
    }
  }
}

TEST(StripPieces, HoldEveryItemOnce) {
  for (const int heads : {1, 3, 32}) {
    for (int strips = 1; strips <= 33; strips += 4) {
      for (int clusters = 1; clusters <= std::min(132, strips * heads); ++clusters) {
        const StripPieces pieces{heads, strips * heads, clusters};
        ASSERT_EQ(pieces.begin(0), 0);
        ASSERT_EQ(pieces.begin(clusters), pieces.items);
        std::vector<int> count(static_cast<std::size_t>(strips));
        for (int cluster = 0; cluster < clusters; ++cluster) {
          int strip = -1;
          for (int item = pieces.begin(cluster); item < pieces.begin(cluster + 1); ++item) {
            ASSERT_EQ(pieces.cluster_of(item), cluster);
            if (item / heads != strip) ++count[static_cast<std::size_t>(strip = item / heads)];
          }
          ASSERT_GE(strip, 0) << "a cluster without work";
        }
        for (int strip = 0; strip < strips; ++strip) {
          ASSERT_EQ(pieces.count(strip), count[static_cast<std::size_t>(strip)]);
        }
      }
    }
  }
}

/// Beyond 128 blocks Hopper's clusters of 2 to 8 CTAs hold the rows of scores, some of them only in
/// part.
void expect_clusters_match(const Shape& shape, std::int64_t blocks, const Preset& preset) {
  SCOPED_TRACE(std::string(preset.name) + ", blocks " + std::to_string(blocks));
  const auto reference = make_reference_backend();
  const std::int64_t n = blocks * 64 - 23;
  Layer layer(shape, n, Element::kBf16, static_cast<unsigned>(blocks));
  Transition transition({shape.heads, shape.kv_heads, shape.dim, n, 1}, preset.sketch);
  SplitMatrix a(static_cast<int>(blocks),
                preset.walk.kind == WalkParams::Kind::kProduct ? Split::kBf16 : Split::kF16);
  transition.run(layer.q_pointer(), layer.k_pointer(), layer.element, n, 0, a, nullptr);
  synchronize(nullptr, "transition");
  const Matrix want = reference->transition(layer.problem(), preset.sketch, nullptr);
  const double bound = transition_bound(layer, preset.sketch);
  const double worst = expect_close(a.download(), want, transition.out_scale(), bound);
  std::printf("A   %-24s b %4d relative error %.1e (bound %.1e)\n", preset.name,
              static_cast<int>(blocks), worst, bound);
}

TEST(CudaTransition, SmallClustersMatchTheReference) {
  SW_REQUIRE_GPU(8);
  for (const std::int64_t blocks : {129, 256, 300}) {
    expect_clusters_match({6, 2, 128}, blocks, release());
    expect_clusters_match({5, 5, 64}, blocks, presets()[4]);
  }
}

TEST(CudaTransition, LargeClustersMatchTheReference) {
  SW_REQUIRE_GPU(8);
  expect_clusters_match({8, 2, 128}, 700, release());
  expect_clusters_match({3, 1, 96}, 1025, presets()[4]);
  expect_clusters_match({4, 4, 64}, 1100, preprint());
  expect_clusters_match({2, 1, 128}, 2048, release());
  expect_clusters_match({2, 2, 64}, 2049, release());  // more than a cluster holds
}

TEST(CudaTransition, NotANumberReachesTheScores) {
  SW_REQUIRE_GPU(8);
  const Shape shape{4, 2, 64};
  for (const float value : {NAN, INFINITY}) {
    Layer layer(shape, 300, Element::kBf16, 3);
    layer.k.row<Bf16>(1, 70)[5] = to_bf16(value);
    layer.device_k =
        DeviceBuffer<std::byte>(std::span<const std::byte>(layer.k.data(), layer.k.bytes()));
    Selector selector({shape.heads, shape.kv_heads, shape.dim, 300, 1}, release().sketch,
                      release().walk, {});
    WalkMatrix state = selector.make_state();
    selector.transition(layer.q_pointer(), layer.k_pointer(), layer.element, 300, 0, nullptr);
    selector.walk(state, nullptr);
    selector.select(0.2, nullptr);
    EXPECT_TRUE(selector.budget_selector().saw_nan(nullptr));
    EXPECT_FALSE(selector.budget_selector().saw_nan(nullptr));
  }
}

Matrix multiply(const Matrix& x, const Matrix& y) {
  Matrix product(x.rows(), y.cols());
  for (std::int64_t i = 0; i < x.rows(); ++i) {
    for (std::int64_t k = 0; k < x.cols(); ++k) {
      for (std::int64_t j = 0; j < y.cols(); ++j) product(i, j) += x(i, k) * y(k, j);
    }
  }
  return product;
}

/// Rows with a few large entries, down to 1e-6 of them, that sum to 1 (times `total`).
Matrix random_stochastic(std::int64_t b, std::mt19937& rng, double spread) {
  std::normal_distribution<double> normal;
  Matrix a(b, b);
  for (std::int64_t i = 0; i < b; ++i) {
    double total = 0.0;
    for (double& x : a.row(i)) total += x = std::exp(spread * normal(rng));
    for (double& x : a.row(i)) x = static_cast<float>(x / total);
  }
  return a;
}

void upload(const Matrix& from, SplitMatrix& to) {
  const std::int64_t stride = (from.cols() + 3) / 4 * 4;
  std::vector<float> host(static_cast<std::size_t>(from.rows() * stride), NAN);
  for (std::int64_t i = 0; i < from.rows(); ++i) {
    for (std::int64_t j = 0; j < from.cols(); ++j) {
      host[static_cast<std::size_t>(i * stride + j)] = static_cast<float>(from(i, j));
    }
  }
  const DeviceBuffer<float> device{std::span<const float>(host)};
  to.resize(static_cast<int>(from.rows()));
  finish_rows(device.data(), stride, 1, 0, {}, {}, to, nullptr);
  synchronize(nullptr, "upload of a matrix");
}

/// Relative error of one product: rounding of the operands, and truncation in the tensor cores.
double product_error(bool single, std::int64_t b, Split split) {
  const double operand = split == Split::kBf16 ? 3 * 0x1p-16 : single ? 0x1p-10 : 3 * 0x1p-22;
  return operand + (b / 16.0 * (single ? 1 : 3) + 4) * 0x1p-23;
}

TEST(CudaWalk, DampedMatchesTheReference) {
  SW_REQUIRE_GPU(8);
  const auto reference = make_reference_backend();
  std::mt19937 rng(11);
  for (const bool portable : {false, true})
    for (const std::int64_t b : {1, 2, 31, 64, 79, 129, 300, 1290}) {
      for (const int degree : {0, 1, 2, 3, 5}) {
        if (b > 300 && degree != 3) continue;
        SCOPED_TRACE("b " + std::to_string(b) + ", degree " + std::to_string(degree));
        const auto guard = products(portable);
        const double beta = 0.25;
        const Matrix a = random_stochastic(b, rng, 1.5);
        SplitMatrix device_a(1300, Split::kF16);
        SplitMatrix state(1300, Split::kF16);
        Walk walk(1300, Split::kF16);
        upload(a, device_a);
        Matrix want = a;
        double worst = 0.0;
        for (int layer = 0; layer < (b > 300 ? 1 : 3); ++layer) {
          // The state as the device holds it, so that errors do not add up over layers.
          const Matrix previous = layer == 0 ? Matrix() : state.download();
          want = reference->damped_walk(a, layer == 0 ? nullptr : &previous, beta, degree);
          walk.damped(device_a, state, beta, degree, nullptr);
          synchronize(nullptr, "walk");
          // |dS'| <= beta (|dS| A + e S A), elementwise.
          Matrix error(b, b);
          Matrix s = layer == 0 ? a : previous;
          for (int step = 0; step < degree && b <= 300; ++step) {
            const double e = product_error(step + 1 < degree, b, Split::kF16);
            const Matrix carried = multiply(error, a);
            const Matrix product = multiply(s, a);
            for (std::int64_t i = 0; i < b; ++i) {
              for (std::int64_t j = 0; j < b; ++j) {
                error(i, j) = beta * (carried(i, j) + e * product(i, j) + 0x1p-36);
                s(i, j) = (1 - beta) * a(i, j) + beta * product(i, j);
              }
            }
          }
          const Matrix got = state.download();
          for (std::int64_t i = 0; i < b; ++i) {
            for (std::int64_t j = 0; j < b; ++j) {
              const double difference = std::fabs(got(i, j) - want(i, j));
              // Above 300 blocks: the bound of a row as a whole, with the product at most the
              // score.
              const double bound =
                  b <= 300 ? error(i, j)
                           : want(i, j) * (product_error(false, b, Split::kF16) +
                                           2 * beta * product_error(true, b, Split::kF16));
              ASSERT_LE(difference, bound + 4 * want(i, j) * 0x1p-24) << i << ", " << j;
              worst = std::max(worst, difference / want(i, j));
            }
          }
        }
        std::printf("S   damped  b %4d degree %d relative error %.1e\n", static_cast<int>(b),
                    degree, worst);
      }
    }
}

TEST(CudaWalk, ProductMatchesTheReference) {
  SW_REQUIRE_GPU(8);
  const auto reference = make_reference_backend();
  std::mt19937 rng(12);
  for (const bool portable : {false, true})
    for (const std::int64_t b : {1, 2, 31, 64, 79, 129, 300, 1290}) {
      SCOPED_TRACE("b " + std::to_string(b));
      const auto guard = products(portable);
      SplitMatrix device_a(1300, Split::kBf16);
      SplitMatrix state(1300, Split::kBf16);
      Walk walk(1300, Split::kBf16);
      double worst = 0.0;
      for (int layer = 0; layer < 3; ++layer) {
        Matrix a = random_stochastic(b, rng, 1.5);
        for (std::int64_t i = 0; i < b; ++i) {  // unnormalised rows of very different weight
          for (double& x : a.row(i))
            x = static_cast<float>(x * std::exp2(-static_cast<int>(rng() % 60)));
        }
        upload(a, device_a);
        const Matrix previous = layer == 0 ? Matrix() : state.download();
        const Matrix want = reference->product_walk(a, layer == 0 ? nullptr : &previous);
        walk.product(device_a, state, nullptr);
        synchronize(nullptr, "walk");
        // Rows are divided by their sum, which has the error of its terms.
        const double bound = 2 * product_error(false, b, Split::kBf16) + (b / 128.0 + 24) * 0x1p-24;
        worst = std::max(worst, expect_close(state.download(), want, 1.0, bound));
      }
      std::printf("R   product b %4d relative error %.1e\n", static_cast<int>(b), worst);
    }
}

void expect_same(const BlockSelection& got, const BlockSelection& want) {
  ASSERT_EQ(got.groups(), want.groups());
  ASSERT_EQ(got.rows(), want.rows());
  EXPECT_EQ(got.token_window(), want.token_window());
  EXPECT_EQ(got.token_sink(), want.token_sink());
  for (std::int64_t g = 0; g < want.groups(); ++g) {
    for (std::int64_t r = 0; r < want.rows(); ++r) {
      const auto a = got.blocks(g, r);
      const auto b = want.blocks(g, r);
      ASSERT_TRUE(std::equal(a.begin(), a.end(), b.begin(), b.end())) << "row " << g << ", " << r;
      const auto pa = got.parts(g, r);
      const auto pb = want.parts(g, r);
      ASSERT_TRUE(std::equal(pa.begin(), pa.end(), pb.begin(), pb.end()))
          << "parts " << g << ", " << r;
    }
  }
}

std::vector<Budget> budgets() {
  std::vector<Budget> all;
  for (const auto kind :
       {Budget::Kind::kAll, Budget::Kind::kMatched, Budget::Kind::kFixed, Budget::Kind::kRelease}) {
    all.push_back({});
    all.back().kind = kind;
  }
  for (const auto forced : {Budget::Forced::kDiagonal, Budget::Forced::kSinkAndRecent}) {
    all.push_back({});
    all.back().forced = forced;
  }
  all.push_back({});
  all.back().min_blocks = 5;
  all.push_back({});
  all.back().rounding = Budget::Rounding::kSteps;  // which a prefill does not ask for
  for (const std::int64_t tau : {1, 2, 7, 100000}) {
    all.push_back({});
    all.back().kind = Budget::Kind::kFixed;
    all.back().tau = tau;
  }
  for (const double kfrac : {0.0, 0.3, 1.0}) {
    all.push_back({});
    all.back().kind = Budget::Kind::kRelease;
    all.back().kfrac = kfrac;
    all.back().window_frac = 0.01;
    all.back().release_sink_bug = false;
  }
  return all;
}

TEST(CudaSelect, EqualsTheHostsForTheSameScores) {
  SW_REQUIRE_GPU(8);
  std::mt19937 rng(5);
  std::normal_distribution<float> normal;
  int cases = 0;
  for (const std::int64_t n : {1, 64, 65, 640, 5000, 8192, 20000, 131072, 140000}) {
    const std::int64_t block = n == 640 ? 16 : 64;
    for (const int groups : {1, 3}) {
      for (const bool tail : {false, true}) {  // the last rows of a longer context, as in decode
        const std::int64_t begin = tail         ? n - 1 - static_cast<std::int64_t>(rng() % n) / 3
                                   : n > 100000 ? n - 6400
                                                : 0;
        const BlockGeometry geometry{block, begin, n};
        const std::int64_t rows = geometry.rows();
        const std::int64_t cols = geometry.key_blocks();
        const std::int64_t stride = cols + 3;
        std::vector<float> host(static_cast<std::size_t>(groups * rows * stride));
        for (std::size_t i = 0; i < host.size(); ++i) {
          const float x = normal(rng);
          // Ties of many kinds: coarse values, zeros of both signs, infinities.
          switch (i / static_cast<std::size_t>(stride) % 4) {
            case 0:
              host[i] = x;
              break;
            case 1:
              host[i] = std::round(x * 2.0f) / 2.0f;
              break;
            case 2:
              host[i] = rng() % 3 == 0 ? std::exp(10.0f * x) : rng() % 2 ? 0.0f : -0.0f;
              break;
            default:
              host[i] = rng() % 50 == 0 ? -INFINITY : std::exp(x) * 1e-6f;
              break;
          }
        }
        const DeviceBuffer<float> device{std::span<const float>(host)};
        const ScoresView view{device.data(), groups, static_cast<int>(rows), static_cast<int>(cols),
                              stride};
        BlockScores scores{groups, Matrix(groups * rows, cols)};
        for (std::int64_t i = 0; i < groups * rows; ++i) {
          for (std::int64_t j = 0; j < cols; ++j) {
            scores.values(i, j) = host[static_cast<std::size_t>(i * stride + j)];
          }
        }
        BudgetSelector selector(groups, static_cast<int>(rows), static_cast<int>(cols));
        for (const Budget& budget : budgets()) {
          for (const Phase phase : {Phase::kPrefill, Phase::kDecode}) {
            const double density = std::exp2(-static_cast<double>(rng() % 50) / 10.0);
            SCOPED_TRACE("n " + std::to_string(n) + ", budget " +
                         std::to_string(static_cast<int>(budget.kind)) + ", density " +
                         std::to_string(density));
            if (budget.kind == Budget::Kind::kAll && groups > 1) continue;  // one row set
            if (phase == Phase::kDecode && budget.rounding == Budget::Rounding::kSteps) {
              EXPECT_THROW(selector.select(view, geometry, budget, density, phase, nullptr), Error);
              continue;
            }
            BlockSelection want = select_blocks(scores, geometry, budget, density, phase);
            selector.select(view, geometry, budget, density, phase, nullptr);
            expect_same(selector.download(geometry, nullptr), want);
            ++cases;
            if (HasFatalFailure()) return;
          }
        }
      }
    }
  }
  std::printf("selections compared: %d\n", cases);
}

TEST(CudaSelect, RefusesScoresThatAreNotNumbers) {
  SW_REQUIRE_GPU(8);
  const BlockGeometry geometry{64, 0, 640};
  std::vector<float> host(100, 1.0f);
  host[3 * 10 + 7] = NAN;  // after the row's own block: nobody looks
  BudgetSelector selector(1, 10, 10);
  DeviceBuffer<float> device{std::span<const float>(host)};
  const ScoresView view{device.data(), 1, 10, 10, 10};
  selector.select(view, geometry, {}, 0.5, Phase::kPrefill, nullptr);
  selector.download(geometry, nullptr);
  host[7 * 10 + 3] = NAN;
  device.upload(std::span<const float>(host));
  selector.select(view, geometry, {}, 0.5, Phase::kPrefill, nullptr);
  EXPECT_THROW(selector.download(geometry, nullptr), Error);
}

/// A few layers from queries and keys to selections: equal but for blocks whose score lies within
/// the measured error of the row's scores of the threshold.
TEST(CudaSelector, EqualsTheReferenceButForTies) {
  SW_REQUIRE_GPU(8);
  const auto reference = make_reference_backend();
  std::mt19937 rng(21);
  for (const Preset& preset : {release(), preprint()}) {
    std::int64_t blocks = 0;
    std::int64_t swapped = 0;
    double worst = 0.0;
    for (const Shape& shape : kShapes) {
      const std::int64_t n = 2000 + static_cast<std::int64_t>(rng() % 3000);
      Budget budget;
      Selector selector({shape.heads, shape.kv_heads, shape.dim, kMaxTokens, 5}, preset.sketch,
                        preset.walk, budget);
      WalkMatrix state = selector.make_state();
      Matrix want_state;
      for (int index = 2; index < 5; ++index) {
        Layer layer(shape, n, Element::kBf16, rng());
        layer.index = index;
        selector.transition(layer.q_pointer(), layer.k_pointer(), layer.element, n, index, nullptr);
        selector.walk(state, nullptr);
        selector.select(0.2, nullptr);
        const BlockGeometry geometry{64, 0, n};
        const BlockSelection got = selector.budget_selector().download(geometry, nullptr);
        const Matrix a = reference->transition(layer.problem(), preset.sketch, nullptr);
        const Matrix* previous = want_state.empty() ? nullptr : &want_state;
        want_state = preset.walk.kind == WalkParams::Kind::kDamped
                         ? reference->damped_walk(a, previous, 0.25, 3)
                         : reference->product_walk(a, previous);
        const BlockSelection want =
            select_blocks({1, want_state}, geometry, budget, 0.2, Phase::kPrefill);
        Matrix scores = state.download();
        for (std::int64_t i = 0; i < geometry.rows(); ++i) {
          double error = 0.0;
          double threshold = INFINITY;
          const auto kept = want.blocks(0, i);
          for (std::size_t at = 0; at < kept.size(); ++at) {
            if (want.parts(0, i)[at] == Part::kScored) {
              threshold = std::min(threshold, want_state(i, kept[at]));
            }
          }
          for (std::int64_t j = 0; j <= i; ++j) {
            const double e = std::fabs(scores(i, j) - want_state(i, j));
            error = std::max(error, e);
            worst = std::max(worst, e / want_state(i, j));
          }
          const auto mine = got.blocks(0, i);
          ASSERT_EQ(mine.size(), kept.size());
          blocks += static_cast<std::int64_t>(kept.size());
          for (const std::int32_t j : mine) {
            if (std::binary_search(kept.begin(), kept.end(), j)) continue;
            ++swapped;
            ASSERT_LE(threshold - want_state(i, j), 2 * error) << "row " << i << ", block " << j;
          }
        }
      }
    }
    std::printf("end to end, %s: %lld of %lld blocks differ, relative error of scores %.1e\n",
                preset.name, static_cast<long long>(swapped), static_cast<long long>(blocks),
                worst);
  }
}

TEST(CudaSelector, WalkAndSelectEqualsTheTwo) {
  SW_REQUIRE_GPU(8);
  const Shape shape{4, 2, 64};
  for (const std::int64_t n : {1, 64 * 5, 4777, 8192, 8193}) {
    for (Preset preset : {release(), preprint()}) {
      for (const Budget& budget : budgets()) {
        for (const int degree : {0, 3}) {
          preset.walk.degree = degree;
          const AttentionShape size{shape.heads, shape.kv_heads, shape.dim, n, 2};
          Selector apart(size, preset.sketch, preset.walk, budget);
          Selector joint(size, preset.sketch, preset.walk, budget);
          WalkMatrix states[] = {apart.make_state(), joint.make_state()};
          const Layer layer(shape, n, Element::kBf16, 31);
          for (int index = 0; index < 2; ++index) {
            for (Selector* selector : {&apart, &joint}) {
              selector->transition(layer.q_pointer(), layer.k_pointer(), layer.element, n, index,
                                   nullptr);
            }
            apart.walk(states[0], nullptr);
            apart.select(0.3, nullptr);
            joint.walk_and_select(states[1], 0.3, nullptr);
            const BlockGeometry geometry{64, 0, n};
            expect_same(joint.budget_selector().download(geometry, nullptr),
                        apart.budget_selector().download(geometry, nullptr));
            const Matrix scores[] = {states[0].download(), states[1].download()};
            EXPECT_TRUE(std::ranges::equal(scores[0].values(), scores[1].values()));
            if (HasFatalFailure()) return;
          }
        }
      }
    }
  }
}

TEST(CudaSelector, LargeContext) {
  SW_REQUIRE_GPU(8);
  const auto reference = make_reference_backend();
  const Shape shape{4, 2, 64};
  const std::int64_t n = 64 * 1400 - 17;
  const Preset preset = release();
  Selector selector({shape.heads, shape.kv_heads, shape.dim, n, 1}, preset.sketch, preset.walk, {});
  WalkMatrix state = selector.make_state();
  const Layer layer(shape, n, Element::kBf16, 5);
  const Matrix want = reference->transition(layer.problem(), preset.sketch, nullptr);
  double error = 0.0;
  for (const bool portable : {true, false}) {
    const auto guard = products(portable);
    const SplitMatrix& a =
        selector.transition(layer.q_pointer(), layer.k_pointer(), layer.element, n, 0, nullptr);
    synchronize(nullptr, "transition");
    error = expect_close(a.download(), want, 1.0, transition_bound(layer, preset.sketch));
  }
  selector.walk(state, nullptr);
  selector.select(0.2, nullptr);
  const BlockGeometry geometry{64, 0, n};
  const BlockSelection got = selector.budget_selector().download(geometry, nullptr);
  const Matrix s = reference->damped_walk(want, nullptr, 0.25, 3);
  const BlockSelection expected = select_blocks({1, s}, geometry, {}, 0.2, Phase::kPrefill);
  std::int64_t swapped = 0;
  std::int64_t all = 0;
  for (std::int64_t i = 0; i < geometry.rows(); ++i) {
    const auto kept = expected.blocks(0, i);
    all += static_cast<std::int64_t>(kept.size());
    for (const std::int32_t j : got.blocks(0, i)) {
      if (!std::binary_search(kept.begin(), kept.end(), j)) ++swapped;
    }
  }
  std::printf("b 1400: A's relative error %.1e, %lld of %lld blocks differ\n", error,
              static_cast<long long>(swapped), static_cast<long long>(all));
  EXPECT_LT(swapped, all / 1000);
}

TEST(CudaSelector, SameBitsFromRunToRunAndFromAGraph) {
  SW_REQUIRE_GPU(8);
  struct Case {
    Shape shape;
    std::int64_t n;
    bool portable;
  };
  for (const auto& [shape, n, portable] :
       {Case{{32, 8, 128}, 4777, false}, Case{{32, 8, 128}, 4777, true},
        Case{{6, 2, 128}, 64 * 300 - 5, false}, Case{{6, 2, 128}, 64 * 300 - 5, true}})
    for (const Preset& preset : {release(), preprint()}) {
      const auto guard = products(portable);
      const Layer layer(shape, n, Element::kBf16, 9);
      const auto run = [&](Selector& selector, WalkMatrix& state, cudaStream_t stream) {
        for (int index = 0; index < 2; ++index) {
          selector.transition(layer.q_pointer(), layer.k_pointer(), layer.element, n, index,
                              stream);
          selector.walk(state, stream);
          selector.select(0.2, stream);
        }
      };
      Selector selector({shape.heads, shape.kv_heads, shape.dim, n, 2}, preset.sketch, preset.walk,
                        {});
      cudaStream_t stream = nullptr;
      check(cudaStreamCreate(&stream), "stream");
      Matrix first;
      for (int repeat = 0; repeat < 3; ++repeat) {
        WalkMatrix state = selector.make_state();
        if (repeat < 2) {
          run(selector, state, stream);
        } else {
          cudaGraph_t graph = nullptr;
          cudaGraphExec_t exec = nullptr;
          check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
          run(selector, state, stream);
          check(cudaStreamEndCapture(stream, &graph), "capture");
          check(cudaGraphInstantiate(&exec, graph, 0), "graph");
          check(cudaGraphLaunch(exec, stream), "graph");
          check(cudaGraphLaunch(exec, stream), "graph");  // replays start afresh
          synchronize(stream, "graph");
          cudaGraphExecDestroy(exec);
          cudaGraphDestroy(graph);
        }
        synchronize(stream, "selection");
        const Matrix scores = state.download();
        if (repeat == 0) first = scores;
        for (std::int64_t i = 0; i < scores.rows(); ++i) {
          ASSERT_TRUE(std::equal(scores.row(i).begin(), scores.row(i).end(), first.row(i).begin()))
              << preset.name << ", run " << repeat << ", row " << i;
        }
      }
      cudaStreamDestroy(stream);
    }
}

TEST(CudaSelector, SaysWhatItDoesNotSupport) {
  SketchParams sketch;
  sketch.key_pool = 24;
  EXPECT_TRUE(Selector::unsupported({8, 2, 64, 4096, 1}, sketch, {}, {}));
  EXPECT_TRUE(Selector::unsupported({8, 2, 100, 4096, 1}, {}, {}, {}));
  EXPECT_TRUE(Selector::unsupported({8, 2, 512, 4096, 1}, {}, {}, {}));
  EXPECT_TRUE(Selector::unsupported({8, 2, 64, 64 * 20000, 1}, {}, {}, {}));
  EXPECT_FALSE(Selector::unsupported({8, 2, 64, 131072, 1}, {}, {}, {}));
}

}  // namespace
}  // namespace sw::cuda
