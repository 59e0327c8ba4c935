#pragma once

#include <memory>

#include "attention/backend.hpp"

/// The definition of correct: scalar, fp64 accumulation, as short as it can be. Other backends are
/// tested against it; it is tested against golden values of an independent implementation.
namespace sw {

std::unique_ptr<Backend> make_reference_backend();

}  // namespace sw
