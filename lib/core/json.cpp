#include "core/json.hpp"

#include <cassert>
#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "core/error.hpp"

namespace sw {

nlohmann::json parse_json_object(std::string_view text, const std::string& what, int max_depth) {
  using Event = nlohmann::json::parse_event_t;
  const auto fail = [&](const std::string& message) {
    return Error(ErrorKind::kInput, what + " " + message,
                 "the file is damaged or incomplete; copy or export it again");
  };
  std::vector<std::set<std::string>> names;  // of the objects that are open
  const auto watch = [&](int depth, Event event, nlohmann::json& value) {
    if (event == Event::object_start || event == Event::array_start) {
      if (depth >= max_depth) throw fail("is nested too deeply");
      if (event == Event::object_start) names.emplace_back();
    } else if (event == Event::object_end) {
      names.pop_back();
    } else if (event == Event::key && !names.back().insert(value.get<std::string>()).second) {
      throw fail("names '" + value.get<std::string>().substr(0, 60) + "' twice");
    }
    return true;
  };
  std::string reason;
  try {
    auto json = nlohmann::json::parse(text, watch);
    if (json.is_object()) return json;
  } catch (const nlohmann::json::exception& error) {
    reason = std::string(", because it is not JSON: ") + error.what();
  }
  throw fail("is not a JSON object" + reason.substr(0, 200));
}

JsonFields::JsonFields(nlohmann::json json, std::string title)
    : JsonFields(std::make_shared<const nlohmann::json>(std::move(json)), std::move(title), "") {}

JsonFields::JsonFields(std::shared_ptr<const nlohmann::json> json, std::string title,
                       std::string prefix)
    : json_(std::move(json)), title_(std::move(title)), prefix_(std::move(prefix)) {
  assert(json_->is_object());
}

std::string JsonFields::name(std::string_view key) const {
  return title_ + ": '" + prefix_ + std::string(key.substr(0, 60)) + "'";
}

std::vector<std::string> JsonFields::keys() const {
  std::vector<std::string> keys;
  for (const auto& item : json_->items()) keys.push_back(item.key());
  return keys;
}

const nlohmann::json* JsonFields::find(std::string_view key) const {
  const auto it = json_->find(key);
  return it == json_->end() || it->is_null() ? nullptr : &*it;
}

namespace {

Error wrong_field(const std::string& name, const std::string& what) {
  return Error(ErrorKind::kInput, name + " " + what,
               "the file is damaged or incomplete; copy or export it again");
}

}  // namespace

std::optional<std::string> JsonFields::text(std::string_view key) const {
  const nlohmann::json* value = find(key);
  if (!value) return std::nullopt;
  if (!value->is_string()) throw wrong_field(name(key), "is not a text");
  return value->get<std::string>();
}

std::optional<std::int64_t> JsonFields::integer(std::string_view key) const {
  const nlohmann::json* value = find(key);
  if (!value) return std::nullopt;
  if (!value->is_number_integer() ||
      (value->is_number_unsigned() && value->get<std::uint64_t>() > INT64_MAX)) {
    throw wrong_field(name(key), "is not a whole number of 64 bits");
  }
  return value->get<std::int64_t>();
}

std::int64_t JsonFields::required_integer(std::string_view key) const {
  if (const auto value = integer(key)) return *value;
  throw wrong_field(name(key), "is missing");
}

std::optional<double> JsonFields::number(std::string_view key) const {
  const nlohmann::json* value = find(key);
  if (!value) return std::nullopt;
  if (!value->is_number()) throw wrong_field(name(key), "is not a number");
  return value->get<double>();
}

double JsonFields::required_number(std::string_view key) const {
  if (const auto value = number(key)) return *value;
  throw wrong_field(name(key), "is missing");
}

bool JsonFields::boolean(std::string_view key, bool otherwise) const {
  const nlohmann::json* value = find(key);
  if (!value) return otherwise;
  if (!value->is_boolean()) throw wrong_field(name(key), "is neither true nor false");
  return value->get<bool>();
}

std::optional<std::vector<std::string>> JsonFields::texts(std::string_view key) const {
  const nlohmann::json* value = find(key);
  if (!value) return std::nullopt;
  if (!value->is_array()) throw wrong_field(name(key), "is not a list");
  std::vector<std::string> texts;
  for (const auto& entry : *value) {
    if (!entry.is_string()) throw wrong_field(name(key), "is not a list of texts");
    texts.push_back(entry.get<std::string>());
  }
  return texts;
}

std::optional<JsonFields> JsonFields::object(std::string_view key) const {
  const nlohmann::json* value = find(key);
  if (!value) return std::nullopt;
  if (!value->is_object()) throw wrong_field(name(key), "is not an object");
  return JsonFields(std::shared_ptr<const nlohmann::json>(json_, value), title_,
                    prefix_ + std::string(key) + ".");
}

}  // namespace sw
