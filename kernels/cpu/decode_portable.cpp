#include "kernels/cpu/decode.hpp"

#define SW_VECTOR_BYTES 16
#define SW_HEADS 2
#include "kernels/cpu/decode.inl"

namespace sw::cpu {

const DecodeKernel kPortableDecode = kDecode;

}  // namespace sw::cpu
