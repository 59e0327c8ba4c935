#include "trace/synthetic.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/parallel.hpp"
#include "core/rng.hpp"
#include "core/text.hpp"

namespace sw {
namespace {

constexpr std::int64_t kSinkTokens = 4;
constexpr std::int64_t kFirstChainLayer = 2;

/// What a random stream is for; the parts of its address make streams independent.
enum class Stream : std::uint64_t { kPlan, kBlock, kHidden, kSink, kNoise };

template <class... Parts>
SplitMix64 stream(std::uint64_t seed, Stream purpose, Parts... parts) {
  std::uint64_t state = SplitMix64(seed ^ static_cast<std::uint64_t>(purpose)).next();
  ((state = SplitMix64(state ^ static_cast<std::uint64_t>(parts)).next()), ...);
  return SplitMix64(state);
}

/// Nearly normal with variance 1: the sum of four uniform 16-bit numbers from one draw.
float bell(SplitMix64& random) {
  const std::uint64_t x = random.next();
  const auto sum =
      static_cast<std::int32_t>((x & 0xffff) + (x >> 16 & 0xffff) + (x >> 32 & 0xffff) + (x >> 48));
  return static_cast<float>(sum - 2 * 65535) * static_cast<float>(std::numbers::sqrt3 / 65536);
}

/// out += weight * (random unit vector).
void add_unit(SplitMix64 random, double weight, std::vector<float>& out) {
  std::vector<float> direction(out.size());
  double norm = 0;
  for (float& x : direction) {
    x = bell(random);
    norm += double{x} * x;
  }
  const auto scale = static_cast<float>(weight / std::sqrt(norm));
  for (std::size_t i = 0; i < out.size(); ++i) out[i] += scale * direction[i];
}

std::int64_t width(const SyntheticOptions& options) {
  return options.heavy_blocks + (options.hops > 1 ? 1 : 0);
}

void check(const SyntheticOptions& options) {
  const auto require = [](bool good, const std::string& message) {
    if (!good) throw Error(ErrorKind::kUsage, message);
  };
  constexpr std::int64_t kMost = std::int64_t{1} << 40;
  for (const std::int64_t value :
       {options.num_layers, options.num_heads, options.num_kv_heads, options.head_dim,
        options.prefill_tokens, options.block, options.hops}) {
    require(value >= 1 && value <= kMost,
            "layers, heads, head dim, tokens, block and hops must be positive numbers");
  }
  require(options.decode_tokens >= 0 && options.decode_tokens <= kMost,
          "decode tokens must be zero or more");
  require(options.first_layer >= 0 && options.heavy_blocks >= 0,
          "the first layer and the number of heavy blocks must be zero or more");
  require(options.heavy_blocks >= 1 || options.hops == 1,
          "chains of hops need at least one heavy block");
  require(options.num_heads % options.num_kv_heads == 0,
          "the number of heads must be a multiple of the number of KV heads");
  const std::int64_t rows = (options.prefill_tokens + options.decode_tokens) / options.block + 1;
  require(rows < (std::int64_t{1} << 31) && options.heavy_blocks <= 1024 &&
              options.num_layers <= (std::int64_t{1} << 30) / (rows * (options.heavy_blocks + 1)),
          "that many blocks, heavy blocks and layers cannot be planned");
  for (const double strength :
       {options.heavy_strength, options.sink_strength, options.local_strength, options.noise}) {
    require(strength >= 0 && strength <= 1000, "strengths and noise must be in 0 .. 1000");
  }
}

/// Chooses up to `count` different blocks of 1 .. row - 2 that are not `taken`; -1 for the rest.
void choose_blocks(SplitMix64 random, std::int64_t row, std::int64_t count, std::int32_t taken,
                   std::int32_t* out) {
  const std::int64_t candidates = std::max<std::int64_t>(row - 2, 0);
  const bool collides = taken >= 1 && taken <= candidates;
  const std::int64_t available = std::min(count, candidates - (collides ? 1 : 0));
  for (std::int64_t chosen = 0; chosen < available;) {
    const auto block =
        static_cast<std::int32_t>(1 + random.below(static_cast<std::uint64_t>(candidates)));
    if (block == taken || std::find(out, out + chosen, block) != out + chosen) continue;
    out[chosen++] = block;
  }
  std::fill(out + std::max<std::int64_t>(available, 0), out + count, -1);
}

PlantedBlocks plan_blocks(const SyntheticOptions& options, std::int64_t total_tokens) {
  PlantedBlocks planted;
  planted.block = options.block;
  planted.layers = options.num_layers;
  planted.rows = (total_tokens + options.block - 1) / options.block;
  planted.width = width(options);
  planted.blocks.resize(static_cast<std::size_t>(planted.layers * planted.rows * planted.width));
  const std::int64_t start = std::max(options.first_layer, kFirstChainLayer);
  std::vector<std::int32_t> chain(static_cast<std::size_t>(planted.rows), -1);
  for (std::int64_t l = 0; l < planted.layers; ++l) {
    const std::int64_t layer = options.first_layer + l;
    const bool hidden = options.hops > 1 && layer > start && (layer - start) % options.hops != 0;
    std::int32_t* rows = planted.blocks.data() + l * planted.rows * planted.width;
    for (std::int64_t i = 0; i < planted.rows; ++i) {
      std::int32_t* row = rows + i * planted.width;
      auto& at = chain[static_cast<std::size_t>(i)];
      // `at` < i, so that the row of that block has been chosen already.
      at = hidden && at >= 0 ? rows[at * planted.width] : -1;
      choose_blocks(stream(options.seed, Stream::kPlan, layer, i), i, options.heavy_blocks, at,
                    row);
      if (options.hops > 1) row[options.heavy_blocks] = at;
      if (options.hops > 1 && !hidden) at = row[0];
    }
  }
  return planted;
}

}  // namespace

std::vector<std::string> synthetic_presets() { return {"small", "medium", "l8b-128k"}; }

SyntheticOptions synthetic_preset(const std::string& name) {
  SyntheticOptions options;
  if (name == "small") return options;
  options.num_heads = 8;
  options.head_dim = 128;
  if (name == "medium") {
    options.num_layers = 8;
    options.prefill_tokens = 8192;
    options.heavy_strength = 9;
    options.decode_tokens = 64;
    return options;
  }
  if (name == "l8b-128k") {
    options.num_layers = 1;
    options.first_layer = kFirstChainLayer;
    options.num_heads = 32;
    options.num_kv_heads = 8;
    options.prefill_tokens = 131072;
    options.heavy_strength = 10;
    options.decode_tokens = 0;
    return options;
  }
  throw Error(ErrorKind::kUsage, "unknown preset '" + name + "'",
              suggestion(name, synthetic_presets()));
}

TraceInfo plan_synthetic_trace(const SyntheticOptions& options) {
  check(options);
  TraceInfo info;
  info.model = "synthetic";
  info.first_layer = options.first_layer;
  info.num_layers = options.num_layers;
  info.num_heads = options.num_heads;
  info.num_kv_heads = options.num_kv_heads;
  info.head_dim = options.head_dim;
  info.prefill_tokens = options.prefill_tokens;
  info.total_tokens = options.prefill_tokens + options.decode_tokens;
  info.dtype = options.dtype;
  info.planted = plan_blocks(options, info.total_tokens);
  info.source = "synthetic: seed " + std::to_string(options.seed) + ", block " +
                std::to_string(options.block) + ", heavy blocks " +
                std::to_string(options.heavy_blocks) + ", heavy strength " +
                format_double(options.heavy_strength) + ", hops " + std::to_string(options.hops) +
                ", sink strength " + format_double(options.sink_strength) + ", local strength " +
                format_double(options.local_strength) + ", noise " + format_double(options.noise);
  return info;
}

HeadsTensor synthetic_tokens(const SyntheticOptions& options, const TraceInfo& plan,
                             std::int64_t layer, TraceTensor tensor, std::int64_t begin,
                             std::int64_t end) {
  const std::int64_t heads = plan.heads(tensor);
  const std::int64_t d = plan.head_dim;
  const PlantedBlocks& planted = *plan.planted;
  HeadsTensor out(plan.dtype, heads, end - begin, d);
  const std::int64_t first_block = begin / options.block;
  const std::int64_t blocks = begin == end ? 0 : (end - 1) / options.block + 1 - first_block;
  const auto scale =
      tensor == TraceTensor::kV ? 1.0f : static_cast<float>(std::sqrt(std::sqrt(double(d))));
  const auto noise = static_cast<float>(options.noise / std::sqrt(static_cast<double>(d)));

  parallel_for(heads * blocks, [&](std::int64_t index, int) {
    const std::int64_t head = index / blocks;
    const std::int64_t i = first_block + index % blocks;
    const std::int64_t kv_head =
        tensor == TraceTensor::kQ ? head / (plan.num_heads / plan.num_kv_heads) : head;
    const auto direction = [&](Stream kind, std::int64_t block) {
      return stream(options.seed, kind, layer, kv_head, block);
    };
    std::vector<float> even(static_cast<std::size_t>(d));  // what all tokens of the block share
    std::vector<float> odd(even.size());                   // what alternates in sign
    std::vector<float> sink(even.size());                  // what the sink tokens have on top
    if (tensor == TraceTensor::kQ) {
      const std::int32_t* row =
          planted.blocks.data() + ((layer - plan.first_layer) * planted.rows + i) * planted.width;
      for (std::int64_t n = 0; n < options.heavy_blocks; ++n) {
        if (row[n] >= 0) add_unit(direction(Stream::kBlock, row[n]), options.heavy_strength, even);
      }
      if (options.hops > 1 && row[options.heavy_blocks] >= 0) {
        add_unit(direction(Stream::kHidden, row[options.heavy_blocks]),
                 options.heavy_strength + std::numbers::ln2, odd);
      }
      add_unit(direction(Stream::kBlock, i), options.local_strength, even);
      if (i > 0) {
        add_unit(direction(Stream::kBlock, i - 1),
                 std::max(options.local_strength - std::numbers::ln2, 0.0), even);
      }
      add_unit(direction(Stream::kSink, 0), options.sink_strength, even);
    } else {
      add_unit(direction(Stream::kBlock, i), 1, even);
      if (tensor == TraceTensor::kK && options.hops > 1) {
        add_unit(direction(Stream::kHidden, i), 1, odd);
      }
      if (tensor == TraceTensor::kK) add_unit(direction(Stream::kSink, 0), 1, sink);
    }
    std::vector<float> values(even.size());
    for (std::int64_t t = std::max(begin, i * options.block);
         t < std::min(end, (i + 1) * options.block); ++t) {
      SplitMix64 random =
          stream(options.seed, Stream::kNoise, layer, static_cast<int>(tensor), head, t);
      const float sign = t % 2 == 0 ? 1.0f : -1.0f;
      const float sunk = t < kSinkTokens ? 1.0f : 0.0f;
      for (std::size_t c = 0; c < values.size(); ++c) {
        values[c] = scale * (even[c] + sign * odd[c] + sunk * sink[c] + noise * bell(random));
      }
      const std::int64_t offset = (head * (end - begin) + t - begin) * d;
      convert_from_float(values.data(), plan.dtype, d,
                         out.data() + static_cast<std::size_t>(offset) * dtype_size(plan.dtype));
    }
  });
  return out;
}

}  // namespace sw
