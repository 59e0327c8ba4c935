#include "kernels/cpu/scores.hpp"

#define SW_VECTOR_BYTES 32
#define SW_ROWS 6
#define SW_VECTORS 2
#include "kernels/cpu/scores.inl"

namespace sw::cpu {

const ScoreKernel kAvx2Scores = kScores;

}  // namespace sw::cpu
