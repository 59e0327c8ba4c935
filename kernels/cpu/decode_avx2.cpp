#include "kernels/cpu/decode.hpp"

#define SW_VECTOR_BYTES 32
#define SW_HEADS 2
#include "kernels/cpu/decode.inl"

namespace sw::cpu {

const DecodeKernel kAvx2Decode = kDecode;

}  // namespace sw::cpu
