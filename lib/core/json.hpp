#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

/// JSON of others' files: objects whose nesting is bounded and whose keys are unique, so that a
/// hostile text makes neither a deep nor an ambiguous value.
namespace sw {

/// Reads an object. `what` begins the messages ("'config.json'"). Throws Error(kInput) for a text
/// that is no JSON object, for objects and arrays nested more than `max_depth` deep (the object
/// itself is the first), and for a key that occurs twice in an object.
nlohmann::json parse_json_object(std::string_view text, const std::string& what, int max_depth);

/// The fields of an object, with their types checked; messages name the object and the key. A null
/// counts as absent. The functions throw Error(kInput) when a value has another type or does not
/// fit, and those without a default when it is absent.
class JsonFields {
 public:
  /// `title` begins the messages ("'config.json'"); `json` is an object.
  JsonFields(nlohmann::json json, std::string title);

  const std::string& title() const { return title_; }
  /// "'config.json': 'rope_scaling.factor'", as messages name a field.
  std::string name(std::string_view key) const;
  std::vector<std::string> keys() const;
  /// nullptr when the key is absent or its value null.
  const nlohmann::json* find(std::string_view key) const;

  std::optional<std::string> text(std::string_view key) const;
  std::optional<std::int64_t> integer(std::string_view key) const;
  std::int64_t required_integer(std::string_view key) const;
  std::optional<double> number(std::string_view key) const;
  double required_number(std::string_view key) const;
  bool boolean(std::string_view key, bool otherwise) const;
  std::optional<std::vector<std::string>> texts(std::string_view key) const;
  std::optional<JsonFields> object(std::string_view key) const;

 private:
  JsonFields(std::shared_ptr<const nlohmann::json> json, std::string title, std::string prefix);

  std::shared_ptr<const nlohmann::json> json_;
  std::string title_;
  std::string prefix_;  // "rope_scaling."
};

}  // namespace sw
