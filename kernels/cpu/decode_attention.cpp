#include "kernels/cpu/decode_attention.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>
#include <vector>

#include "core/parallel.hpp"
#include "kernels/cpu/aligned.hpp"
#include "kernels/cpu/gather.hpp"

namespace sw::cpu {
namespace {

/// Keys of a part: enough to hide the hand-over between threads, ...
constexpr std::int64_t kPartKeys = 512;
/// ... and so many that merging the parts of a head costs little. Parts are of about the same size
/// and even in number, so that few threads end together.
constexpr std::int64_t kMostParts = 32;

/// At most kTileKeys visible keys: consecutive ones, or single ones that have to be gathered.
struct Run {
  std::int64_t block;
  std::int64_t begin;
  std::int64_t count;
  const std::int32_t* singles = nullptr;  ///< [count], or null
};

/// A share of the keys of the query heads [head_begin, head_end), which have one KV head and one
/// row set in common.
struct Part {
  std::int64_t head_begin;
  std::int64_t head_end;
  std::int64_t row_set;
  std::int64_t run_begin;
  std::int64_t run_end;
};

/// Buffers of one thread.
struct Workspace {
  LineVector<std::byte> q, k, v, tail;
  LineVector<std::byte> gathered_k, gathered_v;
  LineVector<float> s;
};

std::vector<Run> visible_runs(const BlockSelection& selection, std::int64_t row_set) {
  const BlockGeometry& g = selection.geometry();
  const std::int64_t query = g.tokens - 1;
  const auto kept = selection.blocks(row_set, 0);
  std::vector<Run> runs;
  const auto add = [&](std::int64_t block, std::int64_t begin, std::int64_t end) {
    for (; begin < end; begin += kTileKeys) {
      runs.push_back({block, begin, std::min<std::int64_t>(end - begin, kTileKeys)});
    }
  };
  for (const std::int32_t j : selection.touched_blocks(row_set, 0)) {
    const std::int64_t begin = j * g.block;
    const std::int64_t end = begin + g.block_tokens(j);
    if (std::binary_search(kept.begin(), kept.end(), j)) {
      add(j, begin, end);
      continue;
    }
    const std::int64_t sink_end = std::clamp(selection.token_sink(), begin, end);
    const std::int64_t window = std::clamp(query - selection.token_window() + 1, sink_end, end);
    add(j, begin, sink_end);
    add(j, window, end);
  }
  const auto singles = selection.tokens(row_set, 0);
  for (std::size_t i = 0; i < singles.size(); i += kTileKeys) {
    const auto some = singles.subspan(i, std::min<std::size_t>(singles.size() - i, kTileKeys));
    const bool consecutive = some.back() - some.front() + 1 == std::ssize(some);
    runs.push_back({some.front() / g.block, some.front(), std::ssize(some),
                    consecutive ? nullptr : some.data()});
  }
  return runs;
}

}  // namespace

void attend_one_query(const AttentionProblem& problem, const BlockSelection& selection,
                      const Isa& isa, AttentionOutput& output, BlockMass* mass) {
  const DecodeKernel& kernel = isa.decode(problem);
  const std::size_t element = dtype_size(kernel.element);
  const std::int64_t dim = problem.head_dim();
  const std::int64_t padded = (dim + kDecodeStrip - 1) / kDecodeStrip * kDecodeStrip;
  const std::int64_t heads_per_set = problem.num_heads() / selection.groups();
  const std::int64_t heads_per_part = std::min(problem.group(), heads_per_set);

  std::vector<std::vector<Run>> runs;
  for (std::int64_t s = 0; s < selection.groups(); ++s) runs.push_back(visible_runs(selection, s));
  std::vector<Part> parts;
  for (std::int64_t h = 0; h < problem.num_heads(); h += heads_per_part) {
    const std::int64_t set = h / heads_per_set;
    const std::int64_t count = std::ssize(runs[static_cast<std::size_t>(set)]);
    const std::int64_t wanted = (count * kTileKeys + kPartKeys - 1) / kPartKeys;
    const std::int64_t pieces = std::min({(wanted + 1) / 2 * 2, kMostParts, count});
    for (std::int64_t p = 0; p < pieces; ++p) {
      parts.push_back({h, h + heads_per_part, set, p * count / pieces, (p + 1) * count / pieces});
    }
  }

  // State of every (part, head): base, sum, output; and sum and base of every tile for masses.
  const auto states = parts.size() * static_cast<std::size_t>(heads_per_part);
  LineVector<float> base(states, -std::numeric_limits<float>::infinity());
  LineVector<float> sum(states * kDecodeSums, 0.0f);
  LineVector<float> out(states * static_cast<std::size_t>(padded), 0.0f);
  // A part's are [run][head].
  std::vector<std::size_t> first_tile;
  std::size_t tile_states = 0;
  for (const Part& part : parts) {
    first_tile.push_back(tile_states);
    if (mass == nullptr) continue;
    tile_states += static_cast<std::size_t>((part.run_end - part.run_begin) * heads_per_part);
  }
  std::vector<float> tile_sums(tile_states);
  std::vector<float> tile_bases(tile_states);

  std::vector<Workspace> workspaces(static_cast<std::size_t>(num_threads()));
  parallel_for(std::ssize(parts), [&](std::int64_t index, int thread) {
    const Part& part = parts[static_cast<std::size_t>(index)];
    const Run* run = runs[static_cast<std::size_t>(part.row_set)].data();
    const std::int64_t heads = part.head_end - part.head_begin;
    const std::int64_t kv_head = part.head_begin / problem.group();
    Workspace& w = workspaces[static_cast<std::size_t>(thread)];
    w.q.resize(static_cast<std::size_t>(heads * padded * kPackedQueryBytes));
    w.s.resize(static_cast<std::size_t>(heads * kTileKeys));
    w.tail.resize(static_cast<std::size_t>(padded * kTailBytes));
    std::vector<float> converted(static_cast<std::size_t>(dim));
    for (std::int64_t h = 0; h < heads; ++h) {
      const void* row = problem.q.row(part.head_begin + h, 0);
      if (problem.q.dtype != kernel.element) {
        problem.q.load_row(part.head_begin + h, 0, converted.data());
        row = converted.data();
      }
      kernel.pack_query(row, static_cast<std::int32_t>(dim),
                        w.q.data() + h * padded * kPackedQueryBytes);
    }
    const auto state = static_cast<std::size_t>(index * heads_per_part);
    DecodeTile tile{};
    tile.q = w.q.data();
    tile.heads = static_cast<std::int32_t>(heads);
    tile.scale = static_cast<float>(problem.scale() * std::numbers::log2e);
    tile.s = w.s.data();
    tile.tail = w.tail.data();
    tile.m = base.data() + state;
    tile.l = sum.data() + state * kDecodeSums;
    tile.o = out.data() + state * static_cast<std::size_t>(padded);
    if (mass != nullptr) {
      tile.tile_sum = tile_sums.data() + first_tile[static_cast<std::size_t>(index)];
      tile.tile_base = tile_bases.data() + first_tile[static_cast<std::size_t>(index)];
    }
    // Rows in the elements of the kernel: where they are, gathered, or converted.
    const auto rows = [&](const HeadsView& x, const Run& r, LineVector<std::byte>& gathered,
                          LineVector<std::byte>& buffer) {
      TokenRows in{x.row(kv_head, r.begin), x.dtype, x.token_stride,
                   static_cast<std::int32_t>(r.count), static_cast<std::int32_t>(dim)};
      if (r.singles != nullptr) {
        const std::span<const std::int32_t> some(r.singles, static_cast<std::size_t>(r.count));
        in.data = gather_rows(x, kv_head, some, gathered).data;
        in.stride = dim;
      }
      if (x.dtype == kernel.element) return in;
      buffer.resize(static_cast<std::size_t>(kTileKeys * dim) * element);
      isa.f32_tile->pack_keys(in, buffer.data());
      return TokenRows{buffer.data(), kernel.element, dim, in.count, in.dim};
    };
    for (std::int64_t r = part.run_begin; r < part.run_end; ++r) {
      tile.k = rows(problem.k, run[r], w.gathered_k, w.k);
      tile.v = rows(problem.v, run[r], w.gathered_v, w.v);
      tile.next_count = 0;
      // Only rows that are read where they lie can be asked for.
      if (problem.k.dtype == kernel.element && r + 1 < part.run_end && run[r].singles == nullptr &&
          run[r + 1].singles == nullptr) {
        tile.next_k = problem.k.row(kv_head, run[r + 1].begin);
        tile.next_count = static_cast<std::int32_t>(run[r + 1].count);
      }
      kernel.run(tile);
      if (mass == nullptr) continue;
      tile.tile_sum += heads;
      tile.tile_base += heads;
    }
  });

  LineVector<float> merged(static_cast<std::size_t>(padded));
  for (std::int64_t h = 0; h < problem.num_heads(); ++h) {
    const std::int64_t within = h % heads_per_part;
    const auto of_head = [&](const Part& part) { return part.head_begin == h - within; };
    const auto state = [&](std::size_t p) {
      return p * static_cast<std::size_t>(heads_per_part) + static_cast<std::size_t>(within);
    };
    float top = -std::numeric_limits<float>::infinity();
    for (std::size_t p = 0; p < parts.size(); ++p) {
      if (of_head(parts[p])) top = std::max(top, base[state(p)]);
    }
    float total = 0.0f;
    float* row = output.out.row<float>(h, 0);
    std::fill(merged.begin(), merged.end(), 0.0f);
    for (std::size_t p = 0; p < parts.size(); ++p) {
      if (!of_head(parts[p])) continue;
      const float weight = std::exp2(base[state(p)] - top);
      const float* from = out.data() + state(p) * static_cast<std::size_t>(padded);
      const float* sums = sum.data() + state(p) * kDecodeSums;
      total += weight * std::accumulate(sums, sums + kDecodeSums, 0.0f);
      for (std::size_t j = 0; j < merged.size(); ++j) merged[j] += weight * from[j];
    }
    for (float& x : merged) x /= total;
    kernel.unpack_output(merged.data(), static_cast<std::int32_t>(dim), row);
    output.lse[static_cast<std::size_t>(h)] =
        (double{top} + std::log2(double{total})) * std::numbers::ln2;
    if (mass == nullptr) continue;
    for (std::size_t p = 0; p < parts.size(); ++p) {
      if (!of_head(parts[p])) continue;
      const Run* run = runs[static_cast<std::size_t>(parts[p].row_set)].data();
      for (std::int64_t r = parts[p].run_begin; r < parts[p].run_end; ++r) {
        const auto i = first_tile[p] +
                       static_cast<std::size_t>((r - parts[p].run_begin) * heads_per_part + within);
        mass->row(h, 0)[static_cast<std::size_t>(run[r].block)] +=
            tile_sums[i] * std::exp2(tile_bases[i] - top) / total;
      }
    }
  }
}

}  // namespace sw::cpu
