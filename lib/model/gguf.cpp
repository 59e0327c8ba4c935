#include "model/gguf.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "core/error.hpp"
#include "core/text.hpp"

namespace sw {
namespace {

// Value type codes of the format.
enum ValueType : std::uint32_t {
  kU8 = 0,
  kI8 = 1,
  kU16 = 2,
  kI16 = 3,
  kU32 = 4,
  kI32 = 5,
  kF32 = 6,
  kBool = 7,
  kText = 8,
  kArray = 9,
  kU64 = 10,
  kI64 = 11,
  kF64 = 12,
};

constexpr std::string_view kDamagedHint = "the file is damaged or not a GGUF file; fetch it again";

/// Stored bytes of a number or boolean, 0 for the other types.
std::size_t scalar_bytes(std::uint32_t type) {
  switch (type) {
    case kU8:
    case kI8:
    case kBool:
      return 1;
    case kU16:
    case kI16:
      return 2;
    case kU32:
    case kI32:
    case kF32:
      return 4;
    case kU64:
    case kI64:
    case kF64:
      return 8;
    default:
      return 0;
  }
}

template <class T>
T load(const std::byte* p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

/// A number or boolean at `p`; `type` has scalar_bytes.
GgufValue load_scalar(std::uint32_t type, const std::byte* p) {
  switch (type) {
    case kU8:
      return std::uint64_t{load<std::uint8_t>(p)};
    case kI8:
      return std::int64_t{load<std::int8_t>(p)};
    case kU16:
      return std::uint64_t{load<std::uint16_t>(p)};
    case kI16:
      return std::int64_t{load<std::int16_t>(p)};
    case kU32:
      return std::uint64_t{load<std::uint32_t>(p)};
    case kI32:
      return std::int64_t{load<std::int32_t>(p)};
    case kF32:
      return double{load<float>(p)};
    case kBool:
      return load<std::uint8_t>(p) != 0;
    case kU64:
      return load<std::uint64_t>(p);
    case kI64:
      return load<std::int64_t>(p);
    default:
      return load<double>(p);
  }
}

/// An integer value as int64, or nothing when it is none or too large.
std::optional<std::int64_t> as_integer(const GgufValue& value) {
  if (const auto* i = std::get_if<std::int64_t>(&value)) return *i;
  if (const auto* u = std::get_if<std::uint64_t>(&value)) {
    if (*u <= static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
      return static_cast<std::int64_t>(*u);
    }
  }
  return std::nullopt;
}

/// Walks over the header; every read is checked against the end of the file.
class Reader {
 public:
  Reader(const std::string& path, std::span<const std::byte> bytes) : path_(path), bytes_(bytes) {}

  std::size_t position() const { return position_; }
  std::size_t left() const { return bytes_.size() - position_; }

  [[noreturn]] void fail(const std::string& what) const {
    throw Error(ErrorKind::kInput,
                "'" + path_ + "', byte " + std::to_string(position_) + ": " + what,
                std::string(kDamagedHint));
  }

  const std::byte* take(std::uint64_t count, const std::string& what) {
    if (count > left()) {
      fail(what + " needs " + std::to_string(count) + " bytes, but the file ends after " +
           std::to_string(left()));
    }
    const std::byte* p = bytes_.data() + position_;
    position_ += static_cast<std::size_t>(count);
    return p;
  }

  template <class T>
  T scalar(const std::string& what) {
    return load<T>(take(sizeof(T), what));
  }

  std::string_view text(const std::string& what) {
    const auto size = scalar<std::uint64_t>(what);
    return {reinterpret_cast<const char*>(take(size, what)), static_cast<std::size_t>(size)};
  }

  /// A count of items that take at least `item_bytes` each, so that it bounds what is allocated.
  std::uint64_t count(std::size_t item_bytes, const std::string& what) {
    const auto n = scalar<std::uint64_t>(what);
    if (n > left() / item_bytes) {
      fail("the file states " + std::to_string(n) + " " + what + ", more than its " +
           std::to_string(left()) + " remaining bytes can hold");
    }
    return n;
  }

  GgufValue value(const std::string& what) {
    const auto type = scalar<std::uint32_t>(what);
    if (const std::size_t size = scalar_bytes(type)) return load_scalar(type, take(size, what));
    if (type == kText) return text(what);
    if (type == kArray) return array(what);
    fail(what + " has the unknown type " + std::to_string(type));
  }

 private:
  GgufValue array(const std::string& what) {
    const auto type = scalar<std::uint32_t>(what);
    if (type == kText) {
      const std::uint64_t n = count(sizeof(std::uint64_t), "texts in " + what);
      std::vector<std::string_view> texts(static_cast<std::size_t>(n));
      for (auto& t : texts) t = text(what);
      return texts;
    }
    const std::size_t size = scalar_bytes(type);
    if (size == 0) fail(what + " is an array of the unknown type " + std::to_string(type));
    const std::uint64_t n = count(size, "elements in " + what);
    return GgufNumbers{type, n, {take(n * size, what), static_cast<std::size_t>(n * size)}};
  }

  const std::string& path_;
  std::span<const std::byte> bytes_;
  std::size_t position_ = 0;
};

/// A name from the file for messages: cut, and without control characters.
std::string printable(std::string_view name) {
  std::string text(name.substr(0, 64));
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  }
  return text;
}

struct TensorInfo {
  GgufTensor tensor;
  std::uint64_t offset = 0;
  std::uint64_t bytes = 0;
};

TensorInfo read_tensor_info(Reader& reader, const std::string& path) {
  TensorInfo info;
  GgufTensor& tensor = info.tensor;
  tensor.name = reader.text("a tensor name");
  const std::string what = "tensor '" + printable(tensor.name) + "'";
  const auto dimensions = reader.scalar<std::uint32_t>(what);
  if (dimensions < 1 || dimensions > 4) {
    reader.fail(what + " has " + std::to_string(dimensions) + " dimensions, not 1 to 4");
  }
  std::int64_t elements = 1;
  for (std::uint32_t i = 0; i < dimensions; ++i) {
    const auto extent = reader.scalar<std::int64_t>(what);
    if (extent < 1 || __builtin_mul_overflow(elements, extent, &elements)) {
      reader.fail(what + " has an impossible shape (dimension " + std::to_string(i) + " is " +
                  std::to_string(extent) + ")");
    }
    tensor.shape.push_back(extent);
  }
  const auto code = reader.scalar<std::uint32_t>(what);
  const QuantFormat* format = find_quant_format(code);
  if (!format) {
    throw Error(ErrorKind::kUnsupported,
                "'" + path + "': " + what + " has the storage type " + std::to_string(code) +
                    ", which is not read here",
                "use a file with the types " + quant_type_names());
  }
  tensor.type = static_cast<QuantType>(code);
  if (tensor.shape[0] % format->block_elements != 0) {
    reader.fail(what + " has rows of " + std::to_string(tensor.shape[0]) +
                " elements, not a multiple of the " + std::to_string(format->block_elements) +
                " of a " + format->name + " block");
  }
  if (__builtin_mul_overflow(static_cast<std::uint64_t>(elements / format->block_elements),
                             static_cast<std::uint64_t>(format->block_bytes), &info.bytes)) {
    reader.fail(what + " is larger than 64-bit sizes");
  }
  info.offset = reader.scalar<std::uint64_t>(what);
  return info;
}

}  // namespace

std::int64_t GgufTensor::rows() const {
  std::int64_t rows = 1;
  for (std::size_t i = 1; i < shape.size(); ++i) rows *= shape[i];
  return rows;
}

Gguf::Gguf(const std::string& path) : file_(path) {
  Reader reader(file_.path(), file_.bytes());
  if (reader.left() < 4 || std::memcmp(reader.take(4, "the magic"), "GGUF", 4) != 0) {
    throw Error(ErrorKind::kInput,
                "'" + path + "' is not a GGUF file (it does not begin with GGUF)",
                "give a .gguf model file");
  }
  const auto version = reader.scalar<std::uint32_t>("the version");
  if (version != 2 && version != 3) {
    const bool swapped = version == 0x02000000 || version == 0x03000000;
    throw Error(ErrorKind::kUnsupported,
                "'" + path + "' is " +
                    (swapped ? std::string("a big-endian GGUF file")
                             : "of GGUF version " + std::to_string(version)),
                "use a little-endian file of version 2 or 3");
  }
  const auto tensor_count = reader.scalar<std::uint64_t>("the tensor count");
  const std::uint64_t pairs = reader.count(8 + 4 + 1, "metadata entries");
  for (std::uint64_t i = 0; i < pairs; ++i) {
    const std::string key(reader.text("a metadata key"));
    GgufValue value = reader.value("metadata '" + printable(key) + "'");
    if (!metadata_.emplace(key, std::move(value)).second) {
      reader.fail("metadata '" + printable(key) + "' occurs twice");
    }
  }
  if (tensor_count > reader.left() / (8 + 4 + 8 + 4 + 8)) {
    reader.fail("the file states " + std::to_string(tensor_count) +
                " tensors, more than its remaining bytes can hold");
  }

  std::vector<TensorInfo> infos;
  for (std::uint64_t i = 0; i < tensor_count; ++i) infos.push_back(read_tensor_info(reader, path));

  const std::int64_t alignment = integer("general.alignment", 32);
  if (alignment < 8 || alignment % 8 != 0 || alignment > (1 << 20)) {
    reader.fail("general.alignment is " + std::to_string(alignment) + ", not a multiple of 8");
  }
  const auto align = static_cast<std::uint64_t>(alignment);
  const std::uint64_t data_begin = (reader.position() + align - 1) / align * align;
  const std::uint64_t data_bytes =
      file_.bytes().size() > data_begin ? file_.bytes().size() - data_begin : 0;
  std::vector<std::pair<std::uint64_t, std::uint64_t>> ranges;
  for (TensorInfo& info : infos) {
    const std::string what = "tensor '" + printable(info.tensor.name) + "'";
    if (info.offset % align != 0) {
      reader.fail(what + " begins at offset " + std::to_string(info.offset) +
                  ", not a multiple of the alignment " + std::to_string(align));
    }
    if (info.offset > data_bytes || info.bytes > data_bytes - info.offset) {
      reader.fail(what + " (" + std::to_string(info.bytes) + " bytes at offset " +
                  std::to_string(info.offset) + ") reaches beyond the " +
                  std::to_string(data_bytes) + " bytes of tensor data in the file");
    }
    info.tensor.data = file_.bytes().subspan(static_cast<std::size_t>(data_begin + info.offset),
                                             static_cast<std::size_t>(info.bytes));
    ranges.emplace_back(info.offset, info.offset + info.bytes);
    if (!tensor_index_.emplace(info.tensor.name, tensors_.size()).second) {
      reader.fail(what + " occurs twice");
    }
    tensors_.push_back(std::move(info.tensor));
  }
  std::sort(ranges.begin(), ranges.end());
  for (std::size_t i = 1; i < ranges.size(); ++i) {
    if (ranges[i].first < ranges[i - 1].second) {
      reader.fail("two tensors overlap at offset " + std::to_string(ranges[i].first) +
                  " of the tensor data");
    }
  }
}

const GgufValue* Gguf::find(std::string_view key) const {
  const auto it = metadata_.find(key);
  return it == metadata_.end() ? nullptr : &it->second;
}

const GgufTensor* Gguf::find_tensor(std::string_view name) const {
  const auto it = tensor_index_.find(name);
  return it == tensor_index_.end() ? nullptr : &tensors_[it->second];
}

void Gguf::fail_missing(std::string_view key) const {
  throw Error(ErrorKind::kInput, "'" + path() + "' has no metadata '" + std::string(key) + "'",
              "convert the model again with a current converter");
}

template <class T>
std::optional<T> Gguf::get(std::string_view key) const {
  const GgufValue* value = find(key);
  if (!value) return std::nullopt;
  if constexpr (std::is_same_v<T, std::int64_t>) {
    if (const auto i = as_integer(*value)) return i;
  } else if constexpr (std::is_same_v<T, double>) {
    if (const auto* d = std::get_if<double>(value)) return *d;
    if (const auto i = as_integer(*value)) return static_cast<double>(*i);
  } else {
    if (const T* v = std::get_if<T>(value)) return *v;
  }
  throw Error(ErrorKind::kInput,
              "'" + path() + "': metadata '" + std::string(key) + "' has another type or range",
              std::string(kDamagedHint));
}

std::string_view Gguf::text(std::string_view key) const {
  if (const auto v = get<std::string_view>(key)) return *v;
  fail_missing(key);
}

std::string_view Gguf::text(std::string_view key, std::string_view otherwise) const {
  return get<std::string_view>(key).value_or(otherwise);
}

std::int64_t Gguf::integer(std::string_view key) const {
  if (const auto v = get<std::int64_t>(key)) return *v;
  fail_missing(key);
}

std::int64_t Gguf::integer(std::string_view key, std::int64_t otherwise) const {
  return get<std::int64_t>(key).value_or(otherwise);
}

double Gguf::number(std::string_view key) const {
  if (const auto v = get<double>(key)) return *v;
  fail_missing(key);
}

double Gguf::number(std::string_view key, double otherwise) const {
  return get<double>(key).value_or(otherwise);
}

bool Gguf::boolean(std::string_view key, bool otherwise) const {
  return get<bool>(key).value_or(otherwise);
}

const std::vector<std::string_view>& Gguf::texts(std::string_view key) const {
  const GgufValue* value = find(key);
  if (!value) fail_missing(key);
  if (const auto* texts = std::get_if<std::vector<std::string_view>>(value)) return *texts;
  throw Error(ErrorKind::kInput,
              "'" + path() + "': metadata '" + std::string(key) + "' is not an array of texts",
              std::string(kDamagedHint));
}

std::vector<std::int64_t> Gguf::integers(std::string_view key) const {
  const GgufValue* value = find(key);
  if (!value) fail_missing(key);
  if (const auto* numbers = std::get_if<GgufNumbers>(value)) {
    const std::size_t size = scalar_bytes(numbers->type);
    std::vector<std::int64_t> out;
    for (std::uint64_t i = 0; i < numbers->count; ++i) {
      const auto item = as_integer(load_scalar(numbers->type, numbers->data.data() + i * size));
      if (!item) break;
      out.push_back(*item);
    }
    if (out.size() == numbers->count) return out;
  }
  throw Error(ErrorKind::kInput,
              "'" + path() + "': metadata '" + std::string(key) + "' is not an array of integers",
              std::string(kDamagedHint));
}

}  // namespace sw
