#include "fuzz.hpp"
#include "policy/list.hpp"
#include "policy/method_file.hpp"
#include "policy/options.hpp"

/// A method SPEC, or the file of a method when it begins with a brace. The canonical form of a
/// method means the same method.
int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text = sw::fuzz::text_of(data, size);
  sw::fuzz::parse([&] {
    const std::string given =
        text.starts_with('{') ? sw::parse_method_file(text, "'method'") : std::string(text);
    sw::MethodSpec::parse(given);
    const std::string spec = sw::make_policy(given, 1)->spec();
    sw::fuzz::require(sw::make_policy(spec, 1)->spec() == spec);
  });
  return 0;
}
