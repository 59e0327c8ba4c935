#include "attention/problem.hpp"

#include <string>

#include "core/error.hpp"

namespace sw {

void AttentionProblem::validate() const {
  const auto fail = [&](const std::string& what) {
    throw Error(ErrorKind::kInput, "layer " + std::to_string(layer) + ": " + what,
                "check the shapes with sw-trace validate");
  };
  if (q.heads <= 0 || k.heads <= 0 || q.dim <= 0) fail("no heads or an empty head dimension");
  if (q.tokens <= 0 || k.tokens <= 0) fail("no tokens");
  if (q.heads % k.heads != 0) {
    fail(std::to_string(q.heads) + " query heads are not a multiple of " + std::to_string(k.heads) +
         " KV heads");
  }
  if (k.heads != v.heads || k.tokens != v.tokens) fail("K and V differ in shape");
  if (q.dim != k.dim || q.dim != v.dim) fail("Q, K and V differ in head dimension");
  if (q.tokens > k.tokens) fail("more queries than keys");
}

}  // namespace sw
