#include "kernels/cpu/decode.hpp"

#define SW_VECTOR_BYTES 64
#define SW_HEADS 4
#include "kernels/cpu/decode.inl"

namespace sw::cpu {

const DecodeKernel kAvx512Decode = kDecode;

}  // namespace sw::cpu
