#pragma once

#include <memory>

#include "attention/backend.hpp"

/// Attention, block masses and block scores on the first GPU, for the evaluator: host tensors in,
/// host results out. Every result is computed on the GPU, or the call throws; copies of the last
/// problem are kept there, so that many selections of it cost one upload. One thread at a time.
namespace sw {

/// Throws Error(kUnsupported), with the reason, when there is no GPU of compute capability 8.0 or
/// more, or no driver that runs it.
std::unique_ptr<Backend> make_cuda_backend();

}  // namespace sw
