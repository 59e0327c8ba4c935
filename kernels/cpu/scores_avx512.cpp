#include "kernels/cpu/scores.hpp"

#define SW_VECTOR_BYTES 64
#define SW_ROWS 6
#define SW_VECTORS 4
#include "kernels/cpu/scores.inl"

namespace sw::cpu {

const ScoreKernel kAvx512Scores = kScores;

}  // namespace sw::cpu
