#include "kernels/cpu/scores.hpp"

#define SW_VECTOR_BYTES 16
#define SW_ROWS 4
#define SW_VECTORS 2
#include "kernels/cpu/scores.inl"

namespace sw::cpu {

const ScoreKernel kPortableScores = kScores;

}  // namespace sw::cpu
