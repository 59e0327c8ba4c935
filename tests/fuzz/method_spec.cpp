#include "fuzz.hpp"
#include "policy/list.hpp"
#include "policy/options.hpp"

/// A method SPEC. The canonical form of a method means the same method.
int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text = sw::fuzz::text_of(data, size);
  sw::fuzz::parse([&] {
    sw::MethodSpec::parse(text);
    const std::string spec = sw::make_policy(text, 1)->spec();
    sw::fuzz::require(sw::make_policy(spec, 1)->spec() == spec);
  });
  return 0;
}
