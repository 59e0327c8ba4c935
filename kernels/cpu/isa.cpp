#include "kernels/cpu/isa.hpp"

#include <string>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "core/error.hpp"
#include "core/text.hpp"

namespace sw::cpu {
namespace {

#ifdef SW_CPU_X86
/// Whether this process may use the matrix tiles: Linux gives their state, 8 KiB a thread, to those
/// who ask. Asked once, for all threads.
bool may_use_tiles() {
#ifdef __linux__
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;               // XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

std::vector<Isa> detect() {
  std::vector<Isa> isas;
#ifdef SW_CPU_X86
  __builtin_cpu_init();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
  if (bf16 && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("bmi2") &&
      __builtin_cpu_supports("amx-bf16") && may_use_tiles()) {
    isas.push_back({"amx_bf16", &kAvx512Tile, nullptr, &kAmxBf16Strip, &kAvx512Decode,
                    &kAvx512Bf16Decode, &kAvx512Scores});
  }
  if (bf16) {
    isas.push_back({"avx512_bf16", &kAvx512Tile, &kAvx512Bf16Tile, nullptr, &kAvx512Decode,
                    &kAvx512Bf16Decode, &kAvx512Scores});
  }
  if (avx512) {
    isas.push_back(
        {"avx512", &kAvx512Tile, nullptr, nullptr, &kAvx512Decode, nullptr, &kAvx512Scores});
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    isas.push_back({"avx2", &kAvx2Tile, nullptr, nullptr, &kAvx2Decode, nullptr, &kAvx2Scores});
  }
#endif
  isas.push_back(
      {"portable", &kPortableTile, nullptr, nullptr, &kPortableDecode, nullptr, &kPortableScores});
  return isas;
}

}  // namespace

bool all_bf16(const AttentionProblem& p) {
  return p.q.dtype == DType::kBf16 && p.k.dtype == DType::kBf16 && p.v.dtype == DType::kBf16;
}

const DecodeKernel& Isa::decode(const AttentionProblem& problem) const {
  return bf16_decode != nullptr && all_bf16(problem) ? *bf16_decode : *f32_decode;
}

const std::vector<Isa>& available_isas() {
  static const std::vector<Isa> isas = detect();
  return isas;
}

const Isa& find_isa(std::string_view name) {
  if (name == "auto") return available_isas().front();
  for (const Isa& isa : available_isas()) {
    if (isa.name == name) return isa;
  }
  const std::vector<std::string> names = {"amx_bf16", "avx512_bf16", "avx512", "avx2", "portable"};
  for (const std::string& known : names) {
    if (known == name) {
      throw Error(ErrorKind::kUnsupported, "this CPU does not run " + known, "use auto");
    }
  }
  throw Error(ErrorKind::kUsage, "unknown instruction set '" + std::string(name) + "'",
              suggestion(name, names));
}

}  // namespace sw::cpu
