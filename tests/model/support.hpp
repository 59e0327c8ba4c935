#pragma once

#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "gtest/gtest.h"

/// What the tests of lib/model share: golden files, and a writer of small GGUF files that checks
/// nothing, so that it can write wrong ones too.
namespace sw::test {

inline std::string golden_path(const std::string& name) {
  return std::string(SW_TEST_DIR) + "/model/golden/" + name;
}

inline nlohmann::json golden(const std::string& name) {
  std::ifstream file(golden_path(name));
  if (!file) throw std::runtime_error("cannot read " + golden_path(name));
  return nlohmann::json::parse(file);
}

/// A file of the test's own that is removed at the end.
class TemporaryFile {
 public:
  TemporaryFile() {
    path_ = ::testing::TempDir() + "sw_model_XXXXXX";
    const int fd = mkstemp(path_.data());
    if (fd < 0) throw std::runtime_error("cannot create " + path_);
    close(fd);
  }
  ~TemporaryFile() { std::remove(path_.c_str()); }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  const std::string& path() const { return path_; }
  void write(const std::string& bytes) const {
    std::remove(path_.c_str());  // some file systems flush a file that is cut and written again
    std::ofstream(path_, std::ios::binary) << bytes;
  }

 private:
  std::string path_;
};

/// A folder of the test's own that is removed at the end.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    path_ = ::testing::TempDir() + "sw_model_XXXXXX";
    if (!mkdtemp(path_.data())) throw std::runtime_error("cannot create " + path_);
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::string& path() const { return path_; }
  std::string file(const std::string& name) const { return path_ + "/" + name; }
  std::string read(const std::string& name) const {
    std::ifstream in(file(name), std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  void write(const std::string& name, const std::string& bytes) const {
    std::filesystem::remove(file(name));
    std::ofstream(file(name), std::ios::binary) << bytes;
  }

 private:
  std::string path_;
};

class GgufBuilder {
 public:
  std::uint32_t version = 3;
  std::uint64_t alignment = 32;

  template <class T>
  static void put(std::string& out, T value) {
    out.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  static void put_text(std::string& out, const std::string& text) {
    put<std::uint64_t>(out, text.size());
    out += text;
  }

  /// An entry whose value is given as stored, after its type code.
  void raw(const std::string& key, std::uint32_t type, const std::string& value) {
    put_text(metadata_, key);
    put(metadata_, type);
    metadata_ += value;
    ++entries_;
  }
  void u32(const std::string& key, std::uint32_t value) { scalar(key, 4, value); }
  void f32(const std::string& key, float value) { scalar(key, 6, value); }
  void text(const std::string& key, const std::string& value) {
    std::string stored;
    put_text(stored, value);
    raw(key, 8, stored);
  }
  void texts(const std::string& key, const std::vector<std::string>& values) {
    std::string stored;
    put<std::uint32_t>(stored, 8);
    put<std::uint64_t>(stored, values.size());
    for (const auto& v : values) put_text(stored, v);
    raw(key, 9, stored);
  }
  void i32s(const std::string& key, const std::vector<std::int32_t>& values) {
    std::string stored;
    put<std::uint32_t>(stored, 5);
    put<std::uint64_t>(stored, values.size());
    for (const auto v : values) put(stored, v);
    raw(key, 9, stored);
  }
  template <class T>
  void scalar(const std::string& key, std::uint32_t type, T value) {
    std::string stored;
    put(stored, value);
    raw(key, type, stored);
  }

  /// A tensor with `data` as stored; its info states `shape`, `type` and, unless given, the offset
  /// where the data is put.
  void tensor(const std::string& name, const std::vector<std::uint64_t>& shape, std::uint32_t type,
              const std::string& data, std::int64_t stated_offset = -1) {
    data_.resize((data_.size() + alignment - 1) / alignment * alignment);
    put_text(infos_, name);
    put<std::uint32_t>(infos_, static_cast<std::uint32_t>(shape.size()));
    for (const auto extent : shape) put(infos_, extent);
    put(infos_, type);
    put<std::uint64_t>(
        infos_, stated_offset < 0 ? data_.size() : static_cast<std::uint64_t>(stated_offset));
    data_ += data;
    ++tensors_;
  }
  /// An F32 tensor with small values that differ from element to element.
  void floats(const std::string& name, const std::vector<std::uint64_t>& shape) {
    std::uint64_t count = 1;
    for (const auto extent : shape) count *= extent;
    std::string data;
    for (std::uint64_t i = 0; i < count; ++i) {
      put(data, 0.1f * static_cast<float>(static_cast<int>((i * 7 + name.size()) % 11) - 5));
    }
    tensor(name, shape, 0, data);
  }

  std::string bytes() const {
    std::string out = "GGUF";
    put(out, version);
    put(out, tensors_);
    put(out, entries_);
    out += metadata_ + infos_;
    out.resize((out.size() + alignment - 1) / alignment * alignment);
    return out + data_;
  }

 private:
  std::string metadata_, infos_, data_;
  std::uint64_t entries_ = 0;
  std::uint64_t tensors_ = 0;
};

}  // namespace sw::test
