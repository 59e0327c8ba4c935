#pragma once

#include <optional>
#include <string_view>

/// The instruction sets that CPU code is written for, and the widest that may be chosen: a setting
/// of the process, as the number of threads is.
namespace sw {

/// Each with those before it.
enum class CpuIsa { kPortable, kAvx2, kAvx512, kAvx512Bf16, kAmxBf16 };

/// Of "portable", "avx2", "avx512", "avx512_bf16" and "amx_bf16".
std::optional<CpuIsa> parse_cpu_isa(std::string_view name);

/// From now on no kernel for a wider one is chosen; those that were chosen stay.
void limit_cpu_isa(CpuIsa widest);
/// Initially the widest of all, whatever this CPU has.
CpuIsa cpu_isa_limit();

}  // namespace sw
