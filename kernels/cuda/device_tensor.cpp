#include "kernels/cuda/device_tensor.hpp"

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/parallel.hpp"

namespace sw::cuda {
namespace {

__extension__ using Product = unsigned __int128;

/// One step of a hash: both halves of the full product, folded.
std::uint64_t mix(std::uint64_t state, std::uint64_t word) {
  const Product product = Product{state ^ word ^ 0xD1B54A32D192ED03u} * 0x9E3779B97F4A7C15u;
  return static_cast<std::uint64_t>(product >> 64) ^ static_cast<std::uint64_t>(product);
}

/// Four chains side by side, so that memory and not the multiplier sets the pace.
std::uint64_t hash_bytes(const std::byte* data, std::size_t bytes, std::uint64_t seed) {
  std::uint64_t chain[4] = {mix(seed, 1), mix(seed, 2), mix(seed, 3), mix(seed, 4)};
  std::size_t at = 0;
  for (; at + 32 <= bytes; at += 32) {
    std::uint64_t words[4];
    std::memcpy(words, data + at, 32);
    for (int i = 0; i < 4; ++i) chain[i] = mix(chain[i], words[i]);
  }
  for (; at < bytes; at += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, data + at, std::min<std::size_t>(8, bytes - at));
    chain[0] = mix(chain[0], word);
  }
  return mix(mix(mix(chain[0], chain[1]), chain[2]), chain[3]);
}

std::uint64_t content_hash(const HeadsView& x) {
  constexpr std::int64_t kTokens = 4096;
  const std::int64_t parts = (x.tokens + kTokens - 1) / kTokens;
  const std::size_t row_bytes = static_cast<std::size_t>(x.dim) * dtype_size(x.dtype);
  std::vector<std::uint64_t> hashes(static_cast<std::size_t>(x.heads * parts));
  parallel_for(x.heads * parts, [&](std::int64_t index, int) {
    const std::int64_t head = index / parts;
    const std::int64_t begin = index % parts * kTokens;
    const std::int64_t end = std::min(begin + kTokens, x.tokens);
    const auto row = [&](std::int64_t t) { return static_cast<const std::byte*>(x.row(head, t)); };
    std::uint64_t hash = static_cast<std::uint64_t>(index);
    if (x.token_stride == x.dim) {
      hash = hash_bytes(row(begin), static_cast<std::size_t>(end - begin) * row_bytes, hash);
    } else {
      for (std::int64_t t = begin; t < end; ++t) hash = hash_bytes(row(t), row_bytes, hash);
    }
    hashes[static_cast<std::size_t>(index)] = hash;
  });
  std::uint64_t hash = 0;
  for (const std::uint64_t part : hashes) hash = mix(hash, part);
  return hash;
}

bool same_place_and_shape(const HeadsView& a, const HeadsView& b) {
  return a.data == b.data && a.dtype == b.dtype && a.heads == b.heads && a.tokens == b.tokens &&
         a.dim == b.dim && a.head_stride == b.head_stride && a.token_stride == b.token_stride;
}

}  // namespace

Element element_of(DType dtype) {
  return dtype == DType::kBf16  ? Element::kBf16
         : dtype == DType::kF16 ? Element::kF16
                                : Element::kF32;
}

HeadsPointer DeviceTensor::upload(const HeadsView& host) {
  const std::uint64_t hash = content_hash(host);
  if (!same_place_and_shape(host, copied_) || hash != hash_) {
    copied_ = {};  // what is there is lost from here on, also when a copy fails
    const std::size_t size = dtype_size(host.dtype);
    const auto head_bytes = static_cast<std::size_t>(host.tokens * host.dim) * size;
    const auto row_bytes = static_cast<std::size_t>(host.dim) * size;
    data_.reserve(head_bytes * static_cast<std::size_t>(host.heads));
    for (std::int64_t h = 0; h < host.heads; ++h) {
      std::byte* to = data_.data() + static_cast<std::size_t>(h) * head_bytes;
      if (host.token_stride == host.dim) {
        check(cudaMemcpy(to, host.row(h, 0), head_bytes, cudaMemcpyHostToDevice),
              "copy of a tensor to the GPU");
      } else {
        check(cudaMemcpy2D(to, row_bytes, host.row(h, 0),
                           static_cast<std::size_t>(host.token_stride) * size, row_bytes,
                           static_cast<std::size_t>(host.tokens), cudaMemcpyHostToDevice),
              "copy of a tensor to the GPU");
      }
    }
    copied_ = host;
    hash_ = hash;
  }
  return {data_.data(), host.tokens * host.dim, host.dim};
}

}  // namespace sw::cuda
