// Decode attention and selection on the GPU against the fp64 reference backend and the policy of
// lib/policy, which define what they must give.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "attention/backend.hpp"
#include "attention/budget.hpp"
#include "core/dtype.hpp"
#include "core/error.hpp"
#include "core/rng.hpp"
#include "kernels/cuda/common/decode/step.hpp"
#include "kernels/cuda/device_test.hpp"
#include "kernels/reference/backend.hpp"
#include "policy/list.hpp"
#include "policy/sketchwalk.hpp"

namespace sw::cuda {
namespace {

using Bits = std::vector<std::uint16_t>;

std::uint16_t to_bits(float x, DType dtype) {
  return dtype == DType::kBf16 ? to_bf16(x).bits : to_f16(x).bits;
}

float from_bits(std::uint16_t x, DType dtype) {
  return dtype == DType::kBf16 ? to_float(Bf16{x}) : to_float(F16{x});
}

Bits random_bits(SplitMix64& rng, std::size_t count, double scale, DType dtype) {
  Bits bits(count);
  for (auto& x : bits) x = to_bits(static_cast<float>(scale * rng.normal()), dtype);
  return bits;
}

Element element_of(DType dtype) { return dtype == DType::kBf16 ? Element::kBf16 : Element::kF16; }

/// A batch of sequences with random contents, [batch, kv_heads, capacity, dim].
struct Batch {
  DType dtype;
  int kv_heads, group, dim, block, capacity;
  std::vector<std::int32_t> lengths;
  Bits q, k, v;
  double largest_value = 0.0;
  DeviceBuffer<std::uint16_t> q_device, k_device, v_device;
  DeviceBuffer<std::int32_t> lengths_device;

  Batch(DType type, int kv, int g, int d, int b, int tokens, std::vector<std::int32_t> n,
        std::uint64_t seed, double logit_scale = 1.0)
      : dtype(type),
        kv_heads(kv),
        group(g),
        dim(d),
        block(b),
        capacity(tokens),
        lengths(std::move(n)) {
    SplitMix64 rng(seed);
    const std::size_t cells = lengths.size() * kv * capacity * d;
    q = random_bits(rng, lengths.size() * kv * g * d, std::sqrt(logit_scale), type);
    k = random_bits(rng, cells, std::sqrt(logit_scale), type);
    v = random_bits(rng, cells, 1.0, type);
    q_device = DeviceBuffer<std::uint16_t>(std::span<const std::uint16_t>(q));
    k_device = DeviceBuffer<std::uint16_t>(std::span<const std::uint16_t>(k));
    v_device = DeviceBuffer<std::uint16_t>(std::span<const std::uint16_t>(v));
    lengths_device = DeviceBuffer<std::int32_t>(std::span<const std::int32_t>(lengths));
    for (const auto x : v) {
      largest_value = std::max<double>(largest_value, std::abs(from_bits(x, dtype)));
    }
  }

  int batch() const { return static_cast<int>(lengths.size()); }
  int num_heads() const { return kv_heads * group; }
  KvCache cache() const {
    KvCache c;
    c.element = element_of(dtype);
    c.batch = batch();
    c.kv_heads = kv_heads;
    c.head_dim = dim;
    c.block = block;
    c.k = k_device.data();
    c.v = v_device.data();
    c.token_stride = dim;
    c.head_stride = static_cast<std::int64_t>(capacity) * dim;
    c.sequence_stride = c.head_stride * kv_heads;
    c.lengths = lengths_device.data();
    return c;
  }
  HeadsView view(const Bits& bits, int s, std::int64_t tokens) const {
    const auto stride = static_cast<std::int64_t>(capacity) * dim;
    return {bits.data() + s * kv_heads * stride, dtype, kv_heads, tokens, dim, stride, dim};
  }
  AttentionProblem problem(int s, std::int64_t tokens) const {
    AttentionProblem p;
    p.q = {q.data() + static_cast<std::size_t>(s) * num_heads() * dim,
           dtype,
           num_heads(),
           1,
           dim,
           dim,
           dim};
    p.k = view(k, s, tokens);
    p.v = view(v, s, tokens);
    return p;
  }
};

struct Result {
  Bits out;
  std::vector<float> lse;
};

Result run(DecodeAttention& attention, const Batch& batch, const KvCache& cache,
           const DecodeBlocks& blocks) {
  const auto heads = static_cast<std::size_t>(batch.batch() * batch.num_heads());
  DeviceBuffer<std::uint16_t> out(heads * batch.dim);
  DeviceBuffer<float> lse(heads);
  check(cudaMemset(out.data(), 0xff, out.bytes()), "poison");
  check(cudaMemset(lse.data(), 0xff, lse.bytes()), "poison");
  attention.run(cache, batch.q_device.data(), blocks, out.data(), lse.data(), nullptr);
  synchronize(nullptr, "decode attention");
  return {out.download(), lse.download()};
}

/// Error bounds: weights and output are rounded to the element type, logits to f32 (a sum of d
/// products, and the multiplication by the scale), which moves a weight by that much of itself.
void expect_near(const Batch& batch, int s, const Result& result, const AttentionOutput& expected,
                 double largest_logit) {
  const double unit = batch.dtype == DType::kBf16 ? 0x1p-9 : 0x1p-11;
  const double logit = std::max(1.0, largest_logit) * 0x1p-24 * (std::log2(batch.dim) + 4);
  const double tolerance = batch.largest_value * (2.0 * unit + 2.0 * logit + 0x1p-20);
  for (int h = 0; h < batch.num_heads(); ++h) {
    const auto head = static_cast<std::size_t>(s) * batch.num_heads() + h;
    ASSERT_NEAR(result.lse[head], expected.lse[h],
                2.0 * logit + 0x1p-20 * std::abs(expected.lse[h]))
        << "sequence " << s << " head " << h << " n " << batch.lengths[s];
    for (int i = 0; i < batch.dim; ++i) {
      ASSERT_NEAR(from_bits(result.out[head * batch.dim + i], batch.dtype),
                  expected.out.row<float>(h, 0)[i], tolerance)
          << "sequence " << s << " head " << h << " element " << i << " n " << batch.lengths[s];
    }
  }
}

/// Bound of any logit of a sequence, and of the terms that make it: |q| |k| over sqrt(d).
double largest_logit(const Batch& batch, int s) {
  const auto longest = [&](const HeadsView& x) {
    std::vector<float> row(batch.dim);
    double largest = 0.0;
    for (std::int64_t h = 0; h < x.heads; ++h) {
      for (std::int64_t t = 0; t < x.tokens; ++t) {
        x.load_row(h, t, row.data());
        double norm = 0.0;
        for (const float e : row) norm += static_cast<double>(e) * e;
        largest = std::max(largest, norm);
      }
    }
    return std::sqrt(largest);
  };
  const AttentionProblem p = batch.problem(s, batch.lengths[s]);
  return longest(p.q) * longest(p.k) * p.scale();
}

/// Random lists with the current block, one to all of the others, in random order.
struct Lists {
  int sets = 1;
  int capacity = 0;
  std::vector<std::int32_t> blocks;
  std::vector<std::int32_t> counts;
  std::vector<BlockSelection> selections;  ///< of each sequence
  DeviceBuffer<std::int32_t> blocks_device, counts_device;

  Lists(const Batch& batch, int set_count, double density, std::uint64_t seed) : sets(set_count) {
    SplitMix64 rng(seed);
    capacity = (batch.capacity + batch.block - 1) / batch.block;
    for (const std::int32_t n : batch.lengths) {
      const BlockGeometry geometry{batch.block, n - 1, n};
      BlockSelection selection(geometry, sets);
      for (int set = 0; set < sets; ++set) {
        std::vector<std::int32_t> row;
        for (int j = 0; j + 1 < geometry.key_blocks(); ++j) {
          if (rng.uniform() < density) row.push_back(j);
        }
        row.push_back(static_cast<std::int32_t>(geometry.key_blocks() - 1));
        selection.append_row(row, std::vector<Part>(row.size(), Part::kScored));
        for (std::size_t i = row.size() - 1; i > 0; --i) std::swap(row[i], row[rng.below(i + 1)]);
        counts.push_back(static_cast<std::int32_t>(row.size()));
        row.resize(capacity, -7);
        blocks.insert(blocks.end(), row.begin(), row.end());
      }
      selections.push_back(std::move(selection));
    }
    blocks_device = DeviceBuffer<std::int32_t>(std::span<const std::int32_t>(blocks));
    counts_device = DeviceBuffer<std::int32_t>(std::span<const std::int32_t>(counts));
  }
  DecodeBlocks decode_blocks() const {
    DecodeBlocks b;
    b.kind = DecodeBlocks::Kind::kList;
    b.list = {blocks_device.data(), counts_device.data(), sets, capacity};
    return b;
  }
};

void expect_matches(const Batch& batch, const Result& result,
                    const std::vector<BlockSelection>& selections) {
  const auto reference = make_reference_backend();
  for (int s = 0; s < batch.batch(); ++s) {
    const AttentionProblem problem = batch.problem(s, batch.lengths[s]);
    AttentionOutput expected;
    reference->attend(problem, selections[s], expected);
    expect_near(batch, s, result, expected, largest_logit(batch, s));
    if (testing::Test::HasFatalFailure()) return;
  }
}

void check_attention(DType dtype, int kv_heads, int group, int dim, int block,
                     const std::vector<std::int32_t>& lengths, double logit_scale,
                     std::uint64_t seed) {
  SCOPED_TRACE(testing::Message() << dtype_name(dtype) << " kv " << kv_heads << " group " << group
                                  << " dim " << dim << " block " << block << " logits "
                                  << logit_scale);
  const int capacity = *std::max_element(lengths.begin(), lengths.end()) + 5;
  const Batch batch(dtype, kv_heads, group, dim, block, capacity, lengths, seed, logit_scale);
  DecodeAttention attention(batch.cache(), batch.num_heads());

  std::vector<BlockSelection> dense;
  for (const std::int32_t n : lengths) dense.push_back(BlockSelection::dense({block, n - 1, n}));
  expect_matches(batch, run(attention, batch, batch.cache(), {}), dense);
  for (const int sets : {1, kv_heads, kv_heads * group}) {
    for (const double density : {0.0, 0.3, 1.0}) {
      const Lists lists(batch, sets, density, seed + 17);
      const Result first = run(attention, batch, batch.cache(), lists.decode_blocks());
      expect_matches(batch, first, lists.selections);
      const Result again = run(attention, batch, batch.cache(), lists.decode_blocks());
      EXPECT_EQ(first.out, again.out) << "not the same bits twice";
      EXPECT_EQ(0, std::memcmp(first.lse.data(), again.lse.data(), 4 * first.lse.size()));
    }
  }
}

const std::vector<std::int32_t> kRagged = {1, 63, 64, 65, 127, 128, 129, 200, 1000, 17};

TEST(CudaDecodeAttention, MatchesTheReference) {
  SW_REQUIRE_GPU(8);
  std::uint64_t seed = 1;
  for (const DType dtype : {DType::kBf16, DType::kF16}) {
    for (const int dim : {64, 128, 256}) {
      for (const int group : {1, 4, 7, 16}) {
        for (const int block : {64, 128}) {
          check_attention(dtype, 2, group, dim, block, kRagged, 1.0, ++seed);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST(CudaDecodeAttention, LongContextOfOneSequenceIsSplit) {
  SW_REQUIRE_GPU(8);
  check_attention(DType::kBf16, 1, 8, 128, 64, {8191}, 1.0, 91);
  check_attention(DType::kBf16, 8, 4, 128, 128, {8192, 100}, 1.0, 92);
}

TEST(CudaDecodeAttention, HugeLogits) {
  SW_REQUIRE_GPU(8);
  for (const DType dtype : {DType::kBf16, DType::kF16}) {
    check_attention(dtype, 2, 4, 128, 64, kRagged, 1e4, 51);
  }
}

TEST(CudaDecodeAttention, ManySequences) {
  SW_REQUIRE_GPU(8);
  std::vector<std::int32_t> lengths;
  for (int s = 0; s < 64; ++s) lengths.push_back(1 + (s * 97) % 700);
  check_attention(DType::kBf16, 2, 4, 64, 64, lengths, 1.0, 61);
}

/// The keys and values of a batch in shuffled pages, each with all heads: [page, kv_heads, block,
/// dim].
struct Paged {
  DeviceBuffer<std::uint16_t> k, v;
  DeviceBuffer<std::int32_t> table;
  KvCache cache;

  explicit Paged(const Batch& batch) : cache(batch.cache()) {
    const int pages = batch.capacity / batch.block;
    const int total = pages * batch.batch();
    SplitMix64 rng(3);
    std::vector<std::int32_t> order(total);
    for (int i = 0; i < total; ++i) order[i] = i;
    for (int i = total - 1; i > 0; --i) std::swap(order[i], order[rng.below(i + 1)]);
    Bits k_pages(batch.k.size());
    Bits v_pages(batch.v.size());
    const std::size_t run_length = static_cast<std::size_t>(batch.block) * batch.dim;
    for (int s = 0; s < batch.batch(); ++s) {
      for (int j = 0; j < pages; ++j) {
        for (int g = 0; g < batch.kv_heads; ++g) {
          const std::size_t from =
              ((static_cast<std::size_t>(s) * batch.kv_heads + g) * batch.capacity +
               j * batch.block) *
              batch.dim;
          const std::size_t to =
              (static_cast<std::size_t>(order[s * pages + j]) * batch.kv_heads + g) * run_length;
          std::copy_n(batch.k.begin() + from, run_length, k_pages.begin() + to);
          std::copy_n(batch.v.begin() + from, run_length, v_pages.begin() + to);
        }
      }
    }
    k = DeviceBuffer<std::uint16_t>{std::span<const std::uint16_t>(k_pages)};
    v = DeviceBuffer<std::uint16_t>{std::span<const std::uint16_t>(v_pages)};
    table = DeviceBuffer<std::int32_t>{std::span<const std::int32_t>(order)};
    cache.k = k.data();
    cache.v = v.data();
    cache.pages = table.data();
    cache.pages_stride = pages;
    cache.head_stride = static_cast<std::int64_t>(run_length);
    cache.page_stride = cache.head_stride * batch.kv_heads;
  }
};

/// Those of one sequence as [tokens, kv_heads, dim].
struct Interleaved {
  DeviceBuffer<std::uint16_t> k, v;
  KvCache cache;

  explicit Interleaved(const Batch& batch) : cache(batch.cache()) {
    const auto turn = [&](const Bits& from) {
      Bits to(from.size());
      for (int g = 0; g < batch.kv_heads; ++g) {
        for (int t = 0; t < batch.capacity; ++t) {
          std::copy_n(from.begin() + (static_cast<std::size_t>(g) * batch.capacity + t) * batch.dim,
                      batch.dim,
                      to.begin() + (static_cast<std::size_t>(t) * batch.kv_heads + g) * batch.dim);
        }
      }
      return DeviceBuffer<std::uint16_t>{std::span<const std::uint16_t>(to)};
    };
    k = turn(batch.k);
    v = turn(batch.v);
    cache.k = k.data();
    cache.v = v.data();
    cache.head_stride = batch.dim;
    cache.token_stride = static_cast<std::int64_t>(batch.kv_heads) * batch.dim;
  }
};

TEST(CudaDecodeAttention, ShuffledPagesGiveTheSameBits) {
  SW_REQUIRE_GPU(8);
  for (const int block : {64, 128}) {
    const Batch batch(DType::kBf16, 2, 4, 128, block, 1024, {1000, 65, 1, 512}, 7);
    const Paged paged(batch);
    DecodeAttention attention(batch.cache(), batch.num_heads());
    const Lists lists(batch, 1, 0.4, 11);
    for (const DecodeBlocks& blocks : {DecodeBlocks{}, lists.decode_blocks()}) {
      const Result contiguous = run(attention, batch, batch.cache(), blocks);
      const Result shuffled = run(attention, batch, paged.cache, blocks);
      EXPECT_EQ(contiguous.out, shuffled.out);
      EXPECT_EQ(contiguous.lse, shuffled.lse);
    }
  }
}

/// What the step before has left is only a hint: whatever it says, the result is that of the list.
TEST(CudaDecodeAttention, AnyLastListGivesTheSameResult) {
  SW_REQUIRE_GPU(8);
  struct Shape {
    DType dtype;
    int kv_heads, group, dim, block, tokens;
    double logit_scale = 1.0;
  };
  bool read_ahead = false;
  SplitMix64 rng(77);
  for (const Shape shape : {Shape{DType::kBf16, 8, 4, 128, 64, 8191},
                            {DType::kF16, 2, 7, 64, 64, 3000},
                            {DType::kBf16, 1, 16, 128, 128, 5121},
                            {DType::kBf16, 3, 1, 256, 64, 2048},
                            {DType::kF16, 2, 2, 64, 128, 129},
                            {DType::kBf16, 2, 4, 128, 64, 65},
                            {DType::kBf16, 2, 5, 128, 64, 4000},
                            {DType::kF16, 1, 8, 128, 64, 16384},
                            {DType::kBf16, 4, 6, 64, 64, 8192, 1e4},
                            {DType::kBf16, 66, 1, 64, 64, 5000},
                            {DType::kBf16, 132, 1, 64, 64, 2560},
                            {DType::kBf16, 2, 4, 128, 64, 1}}) {
    const Batch batch(shape.dtype, shape.kv_heads, shape.group, shape.dim, shape.block,
                      (shape.tokens / shape.block + 1) * shape.block, {shape.tokens}, 5,
                      shape.logit_scale);
    const Paged paged(batch);
    const Interleaved interleaved(batch);
    DecodeAttention attention(batch.cache(), batch.num_heads());
    const int candidates = (shape.tokens + shape.block - 1) / shape.block;
    for (const double density : {0.0, 0.2, 1.0}) {
      const int count = std::max(1, static_cast<int>(density * candidates));
      const auto random_list = [&] {  // the current block, then others
        std::vector<std::int32_t> list(candidates - 1);
        for (int j = 0; j + 1 < candidates; ++j) list[j] = j;
        for (int i = candidates - 2; i > 0; --i) std::swap(list[i], list[rng.below(i + 1)]);
        list.insert(list.begin(), candidates - 1);
        return list;
      };
      const std::vector<std::int32_t> now = random_list();
      std::vector<std::int32_t> half = now;
      std::rotate(half.begin() + 1, half.begin() + 1 + count / 2, half.end());
      std::vector<std::int32_t> gone = random_list();  // blocks that are no more, and part of one
      for (std::size_t i = 1; i < gone.size(); i += 3) gone[i] += candidates;
      if (gone.size() > 2) gone[2] = ~gone[2];
      const std::vector<std::pair<std::vector<std::int32_t>, int>> lasts = {
          {now, 0}, {now, count}, {half, count}, {random_list(), candidates}, {gone, candidates}};
      BlockSelection selection({shape.block, shape.tokens - 1, shape.tokens}, 1);
      std::vector<std::int32_t> row(now.begin(), now.begin() + count);
      std::sort(row.begin(), row.end());
      selection.append_row(row, std::vector<Part>(row.size(), Part::kScored));
      for (const auto& [last, last_count] : lasts) {
        SCOPED_TRACE(testing::Message() << "tokens " << shape.tokens << " dim " << shape.dim
                                        << " list of " << count << ", before " << last_count);
        std::vector<std::int32_t> lists;
        std::vector<std::int32_t> counts;
        for (int parity = 0; parity < 2; ++parity) {
          const bool is_now = parity == shape.tokens % 2;
          lists.insert(lists.end(), is_now ? now.begin() : last.begin(),
                       is_now ? now.end() : last.end());
          counts.push_back(is_now ? count : last_count);
        }
        const DeviceBuffer<std::int32_t> lists_device{std::span<const std::int32_t>(lists)};
        const DeviceBuffer<std::int32_t> counts_device{std::span<const std::int32_t>(counts)};
        DecodeBlocks blocks;
        blocks.kind = DecodeBlocks::Kind::kSelected;
        blocks.list = {lists_device.data(), counts_device.data(), 1, candidates, true};
        blocks.budget.kind = Budget::Kind::kFixed;
        blocks.budget.tau = count;
        read_ahead |= attention.reads_ahead(blocks);
        const Result result = run(attention, batch, batch.cache(), blocks);
        expect_matches(batch, result, {selection});
        EXPECT_EQ(result.out, run(attention, batch, batch.cache(), blocks).out);
        EXPECT_EQ(result.out, run(attention, batch, paged.cache, blocks).out);
        EXPECT_EQ(result.out, run(attention, batch, interleaved.cache, blocks).out);
        if (HasFatalFailure()) return;
      }
    }
  }
  std::string why;
  EXPECT_EQ(read_ahead, list_devices(why).front().major == 9) << "the kernel for it did not run";
}

TEST(CudaDecodeAttention, RefusesWhatItHasNoKernelFor) {
  SW_REQUIRE_GPU(8);
  KvCache shape;
  shape.head_dim = 96;
  EXPECT_THROW(DecodeAttention(shape, 4), Error);
  shape.head_dim = 64;
  shape.block = 32;
  EXPECT_THROW(DecodeAttention(shape, 4), Error);
  shape.block = 64;
  EXPECT_THROW(DecodeAttention(shape, 17), Error);
}

/// Moves all keys of a block together, so that scores differ by much more than rounding.
void drift_blocks(Batch& batch, SplitMix64& rng) {
  const int dim = batch.dim;
  const int block = batch.block;
  for (int s = 0; s < batch.batch() * batch.kv_heads; ++s) {
    for (int j = 0; j * block < batch.capacity; ++j) {
      std::vector<double> shift(dim);
      for (double& x : shift) x = 0.7 * rng.normal();
      for (int t = j * block; t < std::min((j + 1) * block, batch.capacity); ++t) {
        for (int i = 0; i < dim; ++i) {
          auto& x = batch.k[(static_cast<std::size_t>(s) * batch.capacity + t) * dim + i];
          x = to_bits(static_cast<float>(from_bits(x, batch.dtype) + shift[i]), batch.dtype);
        }
      }
    }
  }
}

/// One layer in decode on the GPU and, for each sequence, in the policy with the reference backend.
class Decoding {
 public:
  Decoding(const std::string& spec, double density, DType dtype, int kv_heads, int group, int dim,
           int block, std::vector<std::int32_t> prefill, int steps, std::uint64_t seed)
      : density_(density),
        batch_(dtype, kv_heads, group, dim, block,
               (*std::max_element(prefill.begin(), prefill.end()) + steps + block) / block * block,
               prefill, seed),
        reference_(make_reference_backend()),
        policy_(make_policy(spec, 5)) {
    SplitMix64 rng(seed + 1);
    drift_blocks(batch_, rng);
    batch_.k_device.upload(batch_.k);
    params_.sketch_dim = 128;
    params_.block = block;
    params_.seed = 5;
    const int capacity = batch_.capacity / block;
    DecodeSelectorShape shape;
    shape.num_heads = batch_.num_heads();
    shape.capacity = capacity;
    shape.budget = make_decode_budget(policy_->budget(), density);
    selector_ = std::make_unique<DecodeSelector>(batch_.cache(), shape, params_, kLayer);
    prefill_all(rng, shape.query_window, capacity);
  }

  const Batch& batch() const { return batch_; }
  DecodeSelector& selector() { return *selector_; }
  double density() const { return density_; }

  /// A new query for each sequence; one more token (its key and value are in the cache already).
  void new_token(SplitMix64& rng) {
    batch_.q = random_bits(rng, batch_.q.size(), 1.0, batch_.dtype);
    batch_.q_device.upload(batch_.q);
    for (auto& n : batch_.lengths) ++n;
  }
  BlockScores policy_scores(int s) {
    AttentionProblem problem = batch_.problem(s, batch_.lengths[s]);
    problem.layer = kLayer;
    WalkState walk;
    return policy_->score_decode({problem, *reference_, problem.geometry(batch_.block)}, walk,
                                 caches_[s]);
  }
  BlockSelection policy_selection(int s, const BlockScores& scores) const {
    return select_blocks(scores, {batch_.block, batch_.lengths[s] - 1, batch_.lengths[s]},
                         policy_->budget(), density_, Phase::kDecode);
  }
  /// Relative error of a score: a window query and a block mean, which counts from the mean of all
  /// at the load, lose at most 2^-11 of each entry, so a logit at most twice temperature-scaled
  /// |q| |k| 2^-11, in numerator and denominator; entries of A carry that and 2^-11 of their own,
  /// and enter with the damping.
  double tolerance() const {
    const double damping = 0.25;
    const double logit = 2.0 * std::sqrt(static_cast<double>(std::min(batch_.dim, 128))) /
                         params_.temperature * largest_query_ * largest_key_ * 0x1p-11;
    return (2.0 * logit + 0x1p-11 * damping) / (1.0 - damping) + 0x1p-18;
  }

 private:
  static constexpr std::int64_t kLayer = 3;

  void prefill_all(SplitMix64& rng, int window, int capacity) {
    const int heads = batch_.num_heads();
    const int dim = batch_.dim;
    std::vector<float> a(static_cast<std::size_t>(batch_.batch()) * capacity * capacity);
    std::vector<float> sums(static_cast<std::size_t>(batch_.batch()) * batch_.kv_heads * capacity *
                            dim);
    std::vector<float> queries(static_cast<std::size_t>(batch_.batch()) * heads * window * dim);
    caches_.resize(batch_.batch());
    for (int s = 0; s < batch_.batch(); ++s) {
      const int n = batch_.lengths[s];
      const Bits q = random_bits(rng, static_cast<std::size_t>(heads) * n * dim, 1.0, batch_.dtype);
      AttentionProblem problem = batch_.problem(s, n);
      problem.layer = kLayer;
      problem.q = {q.data(), batch_.dtype, heads, n, dim, static_cast<std::int64_t>(n) * dim, dim};
      WalkState walk;
      const BlockGeometry geometry = problem.geometry(batch_.block);
      policy_->score_prefill({problem, *reference_, geometry}, walk, &caches_[s]);
      const Matrix transition = reference_->transition(problem, params_, nullptr);
      for (std::int64_t i = 0; i < transition.rows(); ++i) {
        for (std::int64_t j = 0; j < transition.cols(); ++j) {
          a[(static_cast<std::size_t>(s) * capacity + i) * capacity + j] =
              static_cast<float>(transition(i, j));
        }
      }
      std::vector<float> row(dim);
      for (int g = 0; g < batch_.kv_heads; ++g) {
        for (int t = 0; t < batch_.capacity; ++t) {
          batch_.view(batch_.k, s, batch_.capacity).load_row(g, t, row.data());
          if (t >= n) continue;
          for (int i = 0; i < dim; ++i) {
            sums[((static_cast<std::size_t>(s) * batch_.kv_heads + g) * capacity +
                  t / batch_.block) *
                     dim +
                 i] += row[i];
          }
        }
        largest_key_ = std::max(largest_key_, largest_mean(s, g, n));
      }
      const int count = std::min(window, n);
      for (int h = 0; h < heads; ++h) {
        for (int w = 0; w < count; ++w) {
          problem.q.load_row(
              h, n - count + w,
              &queries[((static_cast<std::size_t>(s) * heads + h) * window + w) * dim]);
        }
      }
    }
    largest_query_ = std::sqrt(dim) + 5.0;  // of normal entries: 7 standard deviations
    a_.emplace(std::span<const float>(a));
    sums_.emplace(std::span<const float>(sums));
    queries_.emplace(std::span<const float>(queries));
    selector_->load(batch_.cache(), {a_->data(), sums_->data(), queries_->data(), capacity},
                    nullptr);
    synchronize(nullptr, "load of the decode state");
  }

  /// Length of the longest block mean, of whole blocks and while they fill, counted from the mean
  /// of the means of the first n tokens.
  double largest_mean(int s, int g, int n) const {
    const HeadsView keys = batch_.view(batch_.k, s, batch_.capacity);
    const int block = batch_.block;
    std::vector<float> row(batch_.dim);
    std::vector<double> origin(batch_.dim);
    for (int t = 0; t < n; ++t) {
      keys.load_row(g, t, row.data());
      for (int i = 0; i < batch_.dim; ++i) origin[i] += row[i] / ((n + block - 1) / block * block);
    }
    std::vector<double> mean;
    double largest = 0.0;
    for (int t = 0; t < batch_.capacity; ++t) {
      if (t % block == 0) mean.assign(batch_.dim, 0.0);
      keys.load_row(g, t, row.data());
      double norm = 0.0;
      for (int i = 0; i < batch_.dim; ++i) {
        mean[i] += row[i] / block;
        norm += (mean[i] - origin[i]) * (mean[i] - origin[i]);
      }
      largest = std::max(largest, std::sqrt(norm));
    }
    return largest;
  }

  double density_;
  Batch batch_;
  std::unique_ptr<Backend> reference_;
  std::unique_ptr<Policy> policy_;
  SketchParams params_;
  std::unique_ptr<DecodeSelector> selector_;
  std::vector<DecodeCache> caches_;
  std::optional<DeviceBuffer<float>> a_, sums_, queries_;
  double largest_query_ = 0.0;
  double largest_key_ = 0.0;
};

struct Selected {
  std::vector<double> scores;
  std::vector<std::int32_t> blocks, counts;
  bool operator==(const Selected&) const = default;
};

/// `lengths` choose between the lists of the last step and the one before, where both are kept.
template <class Selector>
Selected download(const Selector& selector, const std::vector<std::int32_t>& lengths) {
  const auto batch = static_cast<int>(lengths.size());
  Selected result;
  const auto cells = static_cast<std::size_t>(batch) * selector.capacity();
  result.scores.resize(cells);
  result.blocks.resize(cells);
  result.counts.resize(batch);
  const auto copy = [](void* to, const void* from, std::size_t bytes) {
    check(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost), "copy from the GPU");
  };
  std::vector<std::remove_cvref_t<decltype(*selector.scores())>> scores(cells);
  copy(scores.data(), selector.scores(), cells * sizeof scores[0]);
  result.scores.assign(scores.begin(), scores.end());
  const DecodeList list = selector.list();
  for (int s = 0; s < batch; ++s) {
    const std::int64_t index = s + (list.twice ? lengths[s] % 2 * batch : 0);
    copy(&result.blocks[s * selector.capacity()], list.blocks + index * selector.capacity(),
         selector.capacity() * 4);
    copy(&result.counts[s], list.counts + index, 4);
    // What lies beyond a list is not part of it.
    std::fill(result.blocks.begin() + s * selector.capacity() + result.counts[s],
              result.blocks.begin() + (s + 1) * selector.capacity(), 0);
  }
  return result;
}

/// The device's list as a selection; `sink` is the token-level part.
BlockSelection selection_of(const Batch& batch, int s, const Selected& selected, int capacity,
                            std::int64_t sink) {
  BlockSelection selection({batch.block, batch.lengths[s] - 1, batch.lengths[s]}, 1);
  std::vector<std::int32_t> row;
  for (int i = 0; i < selected.counts[s]; ++i) {
    const std::int32_t j = selected.blocks[s * capacity + i];
    if (j >= 0) row.push_back(j);
  }
  std::sort(row.begin(), row.end());
  selection.append_row(row, std::vector<Part>(row.size(), Part::kScored));
  selection.set_token_parts(0, sink);
  return selection;
}

template <class Selector>
void expect_no_faults(const Selector& selector, int batch) {
  std::vector<std::int32_t> faults(batch, -1);
  check(cudaMemcpy(faults.data(), selector.faults(), faults.size() * 4, cudaMemcpyDeviceToHost),
        "copy from the GPU");
  EXPECT_EQ(faults, std::vector<std::int32_t>(batch, 0));
}

/// Scores within `tolerance` of themselves, and the same blocks but for those whose scores cannot
/// be told apart, which count as ties. Returns the device's selection.
BlockSelection expect_selected(const Batch& batch, int s, const Selected& selected, int capacity,
                               const BlockScores& expected, const BlockSelection& wanted,
                               double tolerance, int* ties) {
  BlockSelection mine = selection_of(batch, s, selected, capacity, wanted.token_sink());
  const auto scores = expected.values.row(0);
  const std::int64_t b = expected.values.cols();
  const auto compare = [&] {
    for (std::int64_t j = 0; j < b; ++j) {
      ASSERT_NEAR(selected.scores[s * capacity + j], scores[j], tolerance * std::abs(scores[j]))
          << "length " << batch.lengths[s] << " sequence " << s << " block " << j << " of " << b;
    }
    // The device lists blocks that the token-level sink covers whole; those are compared as what is
    // visible.
    const auto touched = mine.touched_blocks(0, 0);
    const auto theirs = wanted.touched_blocks(0, 0);
    std::vector<std::int32_t> differ;
    std::set_symmetric_difference(touched.begin(), touched.end(), theirs.begin(), theirs.end(),
                                  std::back_inserter(differ));
    double cut = std::numeric_limits<double>::infinity();
    const auto parts = wanted.parts(0, 0);
    for (std::size_t k = 0; k < parts.size(); ++k) {
      if (parts[k] == Part::kScored) cut = std::min(cut, scores[wanted.blocks(0, 0)[k]]);
    }
    for (const std::int32_t j : differ) {
      ASSERT_NEAR(scores[j], cut, 2.0 * tolerance * cut)
          << "length " << batch.lengths[s] << " sequence " << s << " block " << j;
      ++*ties;
    }
  };
  compare();
  return mine;
}

void check_decoding(const std::string& spec, double density, DType dtype, int kv_heads, int group,
                    int dim, int block, std::vector<std::int32_t> prefill, int steps) {
  SCOPED_TRACE(testing::Message() << spec << " " << density << " " << dtype_name(dtype) << " kv "
                                  << kv_heads << " group " << group << " dim " << dim << " block "
                                  << block);
  Decoding decoding(spec, density, dtype, kv_heads, group, dim, block, std::move(prefill), steps,
                    23);
  const Batch& batch = decoding.batch();
  DecodeStep step(batch.cache(), batch.num_heads());
  DeviceBuffer<std::uint16_t> out(batch.q.size());
  DeviceBuffer<float> lse(static_cast<std::size_t>(batch.batch() * batch.num_heads()));
  SplitMix64 rng(99);
  int ties = 0;
  for (int i = 0; i < steps; ++i) {
    decoding.new_token(rng);
    advance_lengths(batch.lengths_device.data(), batch.batch(), nullptr);
    step.enqueue(batch.cache(), batch.q_device.data(), &decoding.selector(), out.data(), lse.data(),
                 nullptr);
    synchronize(nullptr, "decode step");
    const int capacity = decoding.selector().capacity();
    const Selected selected = download(decoding.selector(), batch.lengths);
    const Result result{out.download(), lse.download()};
    std::vector<BlockSelection> selections;
    for (int s = 0; s < batch.batch(); ++s) {
      const BlockScores expected = decoding.policy_scores(s);
      selections.push_back(expect_selected(batch, s, selected, capacity, expected,
                                           decoding.policy_selection(s, expected),
                                           decoding.tolerance(), &ties));
      if (testing::Test::HasFatalFailure()) return;
    }
    // One sequence reads what the step before chose: that is looked at in every step.
    if (batch.batch() == 1 || i % 9 == 0) expect_matches(batch, result, selections);
    if (testing::Test::HasFatalFailure()) return;
  }
  EXPECT_LE(ties, steps) << "more ties than steps: the scores do not separate the blocks";
  expect_no_faults(decoding.selector(), batch.batch());
}

/// Two sparse layers with the walk of the preprint, the second above the first, on the GPU and in
/// the policy. Both see the same queries and keys, through sketches of their own.
class ProductDecoding {
 public:
  static constexpr int kLayers = 2;

  ProductDecoding(const std::string& spec, double density, DType dtype, int kv_heads, int group,
                  int dim, int block, std::vector<std::int32_t> prefill, int steps)
      : density_(density),
        batch_(dtype, kv_heads, group, dim, block,
               (*std::max_element(prefill.begin(), prefill.end()) + steps + block) / block * block,
               prefill, 41),
        rng_(42),
        reference_(make_reference_backend()),
        policy_(make_policy(spec, 5)),
        params_(sketchwalk_form(spec, 5)->sketch) {
    params_.block = block;
    drift_blocks(batch_, rng_);
    batch_.k_device.upload(batch_.k);
    const int heads = batch_.num_heads();
    const int blocks = batch_.capacity / block;
    const auto sequences = static_cast<std::size_t>(batch_.batch());
    // The queries of a block drift, too.
    shifts_.resize(sequences * blocks * dim);
    for (double& x : shifts_) x = 0.7 * rng_.normal();
    std::vector<float> query_sums(sequences * heads * blocks * dim);
    std::vector<float> key_sums(sequences * kv_heads * blocks * dim);
    caches_.resize(sequences * kLayers);
    for (std::size_t s = 0; s < sequences; ++s) {
      const int n = batch_.lengths[s];
      Bits q(static_cast<std::size_t>(heads) * n * dim);
      for (int h = 0; h < heads; ++h) {
        for (int t = 0; t < n; ++t) {
          for (int i = 0; i < dim; ++i) {
            q[(static_cast<std::size_t>(h) * n + t) * dim + i] = query(s, t, i);
          }
        }
      }
      AttentionProblem problem = batch_.problem(s, n);
      problem.q = {q.data(), dtype, heads, n, dim, static_cast<std::int64_t>(n) * dim, dim};
      WalkState walk;
      for (int layer = 0; layer < kLayers; ++layer) {
        problem.layer = kFirstLayer + layer;
        policy_->score_prefill({problem, *reference_, problem.geometry(block)}, walk,
                               &caches_[s * kLayers + layer]);
      }
      add_sums(problem.q, n, blocks, &query_sums[s * heads * blocks * dim]);
      add_sums(problem.k, n, blocks, &key_sums[s * kv_heads * blocks * dim]);
    }
    const DeviceBuffer<float> device_queries{std::span<const float>(query_sums)};
    const DeviceBuffer<float> device_keys{std::span<const float>(key_sums)};
    ProductSelectorShape shape;
    shape.num_heads = heads;
    shape.capacity = blocks;
    shape.budget = make_decode_budget(policy_->budget(), density);
    for (int layer = 0; layer < kLayers; ++layer) {
      selectors_.push_back(
          std::make_unique<ProductSelector>(batch_.cache(), shape, params_, kFirstLayer + layer));
      selectors_.back()->load(batch_.cache(), {device_queries.data(), device_keys.data(), blocks},
                              nullptr);
    }
    synchronize(nullptr, "load of the decode state");
  }

  const Batch& batch() const { return batch_; }
  ProductSelector& selector(int layer) { return *selectors_[layer]; }
  const ProductSelector* below(int layer) const {
    return layer == 0 ? nullptr : selectors_[layer - 1].get();
  }

  /// A new query for each sequence; one more token (its key and value are in the cache already).
  void new_token() {
    const std::size_t row = static_cast<std::size_t>(batch_.num_heads()) * batch_.dim;
    for (std::size_t s = 0; s < batch_.lengths.size(); ++s) {
      const int t = batch_.lengths[s]++;
      for (std::size_t i = 0; i < row; ++i) {
        batch_.q[s * row + i] = query(s, t, static_cast<int>(i) % batch_.dim);
      }
    }
    batch_.q_device.upload(batch_.q);
    walks_.assign(batch_.lengths.size(), {});
  }
  /// Layer by layer, from the first on.
  BlockScores policy_scores(int s, int layer) {
    AttentionProblem problem = batch_.problem(s, batch_.lengths[s]);
    problem.layer = kFirstLayer + layer;
    return policy_->score_decode({problem, *reference_, problem.geometry(batch_.block)}, walks_[s],
                                 caches_[s * kLayers + layer]);
  }
  BlockSelection policy_selection(int s, const BlockScores& scores) const {
    return select_blocks(scores, {batch_.block, batch_.lengths[s] - 1, batch_.lengths[s]},
                         policy_->budget(), density_, Phase::kDecode);
  }
  /// Relative error of R at a layer. In units u = 2^-24: a block mean, a sum of H heads and B
  /// tokens and a transform of log2 d steps, is off by (B + H + log2 d + 4) u times the longest
  /// token; a product of r terms, summed over lanes, by (r / 32 + 8) u |q| |k|; a stored logit and
  /// the row's sum by another 4 u of the largest logit. A weight is the power `sharpness` of a
  /// probability, whose logit and sum are each off by as much, and an error of R is handed on.
  double tolerance(int layer) const {
    const double u = 0x1p-24;
    const double mean = (batch_.block + batch_.num_heads() + std::log2(batch_.dim) + 4) * u;
    const double product = (params_.sketch_dim / 32.0 + 8) * u;
    const double longest = longest_ * longest_ / std::sqrt(batch_.dim);
    const double logit = longest * (2.0 * mean + product + 4.0 * u);
    return (layer + 1) * params_.sharpness * 2.0 * logit + 0x1p-20;
  }

 private:
  static constexpr int kFirstLayer = 3;

  std::uint16_t query(std::size_t s, int t, int i) {
    const auto blocks = static_cast<std::size_t>(batch_.capacity / batch_.block);
    const double shift = shifts_[(s * blocks + t / batch_.block) * batch_.dim + i];
    return to_bits(static_cast<float>(rng_.normal() + shift), batch_.dtype);
  }
  void add_sums(const HeadsView& x, int n, int blocks, float* sums) {
    std::vector<float> row(batch_.dim);
    for (std::int64_t h = 0; h < x.heads; ++h) {
      for (int t = 0; t < n; ++t) {
        x.load_row(h, t, row.data());
        double norm = 0.0;
        for (int i = 0; i < batch_.dim; ++i) {
          sums[(h * blocks + t / batch_.block) * batch_.dim + i] += row[i];
          norm += static_cast<double>(row[i]) * row[i];
        }
        longest_ = std::max(longest_, std::sqrt(norm));
      }
    }
  }

  double density_;
  Batch batch_;
  SplitMix64 rng_;
  std::unique_ptr<Backend> reference_;
  std::unique_ptr<Policy> policy_;
  SketchParams params_;
  std::vector<double> shifts_;  ///< of the queries of each block
  std::vector<std::unique_ptr<ProductSelector>> selectors_;
  std::vector<DecodeCache> caches_;  ///< [sequence, layer]
  std::vector<WalkState> walks_;     ///< of each sequence, from layer to layer
  double longest_ = 0.0;             ///< query or key
};

void check_product(const std::string& spec, double density, DType dtype, int kv_heads, int group,
                   int dim, int block, std::vector<std::int32_t> prefill, int steps) {
  SCOPED_TRACE(testing::Message() << spec << " " << density << " " << dtype_name(dtype) << " kv "
                                  << kv_heads << " group " << group << " dim " << dim << " block "
                                  << block);
  ProductDecoding decoding(spec, density, dtype, kv_heads, group, dim, block, std::move(prefill),
                           steps);
  const Batch& batch = decoding.batch();
  DecodeStep step(batch.cache(), batch.num_heads());
  DeviceBuffer<std::uint16_t> out(batch.q.size());
  DeviceBuffer<float> lse(static_cast<std::size_t>(batch.batch() * batch.num_heads()));
  int ties = 0;
  for (int i = 0; i < steps; ++i) {
    decoding.new_token();
    advance_lengths(batch.lengths_device.data(), batch.batch(), nullptr);
    for (int layer = 0; layer < ProductDecoding::kLayers; ++layer) {
      ProductSelector& selector = decoding.selector(layer);
      const auto enqueue = [&] {
        step.enqueue(batch.cache(), batch.q_device.data(), selector, decoding.below(layer),
                     out.data(), lse.data(), nullptr);
        synchronize(nullptr, "decode step");
        return download(selector, batch.lengths);
      };
      const Selected selected = enqueue();
      EXPECT_TRUE(i > 0 || enqueue() == selected) << "a step again gives something else";
      std::vector<BlockSelection> selections;
      for (int s = 0; s < batch.batch(); ++s) {
        const BlockScores expected = decoding.policy_scores(s, layer);
        selections.push_back(expect_selected(batch, s, selected, selector.capacity(), expected,
                                             decoding.policy_selection(s, expected),
                                             decoding.tolerance(layer), &ties));
        if (testing::Test::HasFatalFailure()) return;
      }
      if (i % 9 == 0) expect_matches(batch, {out.download(), lse.download()}, selections);
      if (testing::Test::HasFatalFailure()) return;
    }
  }
  EXPECT_LE(ties, steps) << "more ties than steps: the scores do not separate the blocks";
  for (int layer = 0; layer < ProductDecoding::kLayers; ++layer) {
    expect_no_faults(decoding.selector(layer), batch.batch());
  }
}

TEST(CudaProductSelection, FollowsThePolicy) {
  SW_REQUIRE_GPU(8);
  check_product("sketchwalk:preset=preprint", 0.3, DType::kBf16, 2, 4, 64, 64, {500, 960}, 70);
  check_product("sketchwalk:preset=preprint,partial_mean=true", 0.2, DType::kF16, 1, 8, 128, 128,
                {900}, 20);
  check_product("sketchwalk:preset=preprint,budget=fixed,tau=5", 0.2, DType::kBf16, 2, 1, 256, 64,
                {640, 20}, 66);
  check_product("sketchwalk:preset=preprint,budget=release,sketch_dim=32", 0.2, DType::kBf16, 2, 2,
                64, 64, {1500}, 30);
}

/// Few enough steps for the sanitizers, which take seconds for each.
TEST(CudaDecodeSelection, ABlockBegins) {
  SW_REQUIRE_GPU(8);
  check_decoding("sketchwalk", 0.5, DType::kBf16, 1, 2, 64, 64, {383}, 3);
  check_product("sketchwalk:preset=preprint", 0.5, DType::kBf16, 1, 2, 64, 64, {383}, 3);
}

TEST(CudaDecodeSelection, MatchedBudgetFollowsThePolicy) {
  SW_REQUIRE_GPU(8);
  check_decoding("sketchwalk", 0.3, DType::kBf16, 2, 4, 64, 64, {500, 960}, 140);
  check_decoding("sketchwalk:min_blocks=4", 0.2, DType::kF16, 2, 8, 128, 128, {300, 900}, 80);
}

TEST(CudaDecodeSelection, FixedBudgetFollowsThePolicy) {
  SW_REQUIRE_GPU(8);
  check_decoding("sketchwalk:budget=fixed", 0.4, DType::kBf16, 2, 1, 64, 64, {640, 70}, 80);
  check_decoding("sketchwalk:budget=fixed,tau=5", 0.2, DType::kBf16, 1, 16, 256, 64, {700}, 70);
}

TEST(CudaDecodeSelection, ReleaseBudgetFollowsThePolicy) {
  SW_REQUIRE_GPU(8);
  check_decoding("sketchwalk:budget=release", 0.2, DType::kBf16, 2, 4, 64, 64, {1500, 640, 20},
                 140);
  check_decoding("sketchwalk:budget=release,release_sink_bug=false", 0.2, DType::kBf16, 2, 4, 64,
                 64, {1500}, 70);
}

TEST(CudaDecodeSelection, OneSequence) {
  SW_REQUIRE_GPU(8);
  check_decoding("sketchwalk", 0.3, DType::kBf16, 2, 4, 128, 64, {4000}, 100);
  check_decoding("sketchwalk", 0.2, DType::kF16, 1, 8, 64, 128, {3900}, 50);
}

TEST(CudaDecodeSelection, ManySequencesShareTheGpu) {
  SW_REQUIRE_GPU(8);
  std::vector<std::int32_t> prefill;
  for (int s = 0; s < 24; ++s) prefill.push_back(100 + 37 * s);
  check_decoding("sketchwalk", 0.3, DType::kBf16, 2, 4, 64, 64, prefill, 20);
}

// As many sequences as an H100 has multiprocessors: a thread block then scores several heads, and
// of the longest sequence several parts of the keys, and its columns of A stay in global memory.
TEST(CudaDecodeSelection, AThreadBlockForEachSequence) {
  SW_REQUIRE_GPU(8);
  std::vector<std::int32_t> prefill(132, 100);
  for (int s = 0; s < 132; ++s) prefill[s] += 3 * s;
  check_decoding("sketchwalk", 0.3, DType::kBf16, 2, 8, 64, 64, prefill, 10);
  prefill[1] = 16381;
  check_decoding("sketchwalk", 0.3, DType::kF16, 1, 1, 64, 64, prefill, 6);
}

TEST(CudaDecodeSelection, GraphReplayEqualsDirectLaunches) {
  SW_REQUIRE_GPU(8);
  const auto decode = [](const std::vector<std::int32_t>& prefill, bool replay) {
    Decoding decoding("sketchwalk", 0.3, DType::kBf16, 2, 4, 64, 64, prefill, 80, 23);
    const Batch& batch = decoding.batch();
    DecodeStep step(batch.cache(), batch.num_heads());
    DeviceBuffer<std::uint16_t> out(batch.q.size());
    const auto record = [&](cudaStream_t stream) {
      advance_lengths(batch.lengths_device.data(), batch.batch(), stream);
      step.enqueue(batch.cache(), batch.q_device.data(), &decoding.selector(), out.data(), nullptr,
                   stream);
    };
    const DecodeGraph graph(record);
    SplitMix64 rng(99);
    std::vector<std::pair<Selected, Bits>> results;
    for (int i = 0; i < 75; ++i) {
      decoding.new_token(rng);
      if (replay) {
        graph.launch(nullptr);
      } else {
        record(nullptr);
      }
      synchronize(nullptr, "decode step");
      results.emplace_back(download(decoding.selector(), batch.lengths), out.download());
    }
    return results;
  };
  for (const std::vector<std::int32_t>& prefill : {std::vector{500, 960}, {960}}) {
    const auto direct = decode(prefill, false);
    const auto replayed = decode(prefill, true);
    const auto again = decode(prefill, true);
    for (std::size_t i = 0; i < direct.size(); ++i) {
      ASSERT_TRUE(direct[i] == replayed[i]) << "step " << i;
      ASSERT_TRUE(again[i] == replayed[i]) << "step " << i;
    }
  }
}

}  // namespace
}  // namespace sw::cuda
