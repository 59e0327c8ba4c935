#include "core/cpu_isa.hpp"

#include <array>
#include <atomic>
#include <utility>

namespace sw {
namespace {

constexpr std::array<std::pair<std::string_view, CpuIsa>, 5> kNames = {{
    {"portable", CpuIsa::kPortable},
    {"avx2", CpuIsa::kAvx2},
    {"avx512", CpuIsa::kAvx512},
    {"avx512_bf16", CpuIsa::kAvx512Bf16},
    {"amx_bf16", CpuIsa::kAmxBf16},
}};
std::atomic<CpuIsa> limit{CpuIsa::kAmxBf16};

}  // namespace

std::optional<CpuIsa> parse_cpu_isa(std::string_view name) {
  for (const auto& [known, isa] : kNames) {
    if (known == name) return isa;
  }
  return {};
}

void limit_cpu_isa(CpuIsa widest) { limit = widest; }

CpuIsa cpu_isa_limit() { return limit; }

}  // namespace sw
