#include "dataset/ruler.hpp"

#include <filesystem>
#include <nlohmann/json.hpp>

namespace sw {

Sample read_ruler(const JsonlFile& file, std::int64_t index) {
  const nlohmann::json json = file.record(index);
  const std::string where = file.where(index);
  Sample sample;
  sample.dataset =
      text_field(json, "task", where, std::filesystem::path(file.path()).stem().string());
  sample.id = std::to_string(int_field(json, "index", where, index));
  sample.answers = texts_field(json, "outputs", where);
  if (json.contains("context")) {
    sample.question = text_field(json, "question", where);
    sample.prompt = text_field(json, "context", where) + sample.question;
    sample.answer_prefix = text_field(json, "answer_prefix", where, "");
  } else {
    sample.prompt = text_field(json, "input", where);
  }
  return sample;
}

}  // namespace sw
