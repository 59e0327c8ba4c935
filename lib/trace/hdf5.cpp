#include "trace/hdf5.hpp"

#include <algorithm>
#include <array>
#include <cstring>

#include "core/tensor.hpp"

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SW_ADDRESS_SANITIZER 1  // clang's way to say it
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(SW_ADDRESS_SANITIZER)
/// The library itself loses memory when a file is damaged or cannot be flushed.
extern "C" const char* __lsan_default_suppressions() { return "leak:libhdf5"; }
#endif

namespace sw::hdf5 {
namespace {

constexpr std::uint64_t kMaxAttributeBytes = std::uint64_t{1} << 20;
/// deflate packs at most 1032 bytes into one; more than this cannot be stored data.
constexpr std::uint64_t kMaxRatio = 1100;
constexpr std::uint64_t kMaxChunkBytes = std::uint64_t{1} << 28;

/// Reads the single string of an attribute or dataset; `read(memory type, buffer)` is H5Aread or
/// H5Dread.
template <class Read>
std::string read_string(hid_t type, hid_t space, std::uint64_t max_bytes, Read&& read) {
  if (check(H5Tget_class(type)) != H5T_STRING || check(H5Sget_simple_extent_npoints(space)) != 1) {
    throw Failure{"it is not one string"};
  }
  const Type memory(H5Tcopy(H5T_C_S1));
  check(H5Tset_cset(memory.get(), H5Tget_cset(type)));
  if (check(H5Tis_variable_str(type)) > 0) {
    check(H5Tset_size(memory.get(), H5T_VARIABLE));
    char* text = nullptr;
    read(memory.get(), static_cast<void*>(&text));
    const std::string copy = text ? std::string(text) : std::string();
    H5free_memory(text);
    return copy;
  }
  const std::size_t size = H5Tget_size(type);
  if (size == 0 || size > max_bytes) throw Failure{"its length is out of bounds"};
  check(H5Tset_size(memory.get(), size));
  check(H5Tset_strpad(memory.get(), H5T_STR_NULLPAD));
  std::string text(size, '\0');
  read(memory.get(), static_cast<void*>(text.data()));
  text.resize(std::min(text.find('\0'), text.size()));
  return text;
}

Attribute open_attribute(hid_t object, const std::string& name) {
  return check(H5Aexists(object, name.c_str())) > 0
             ? Attribute(H5Aopen(object, name.c_str(), H5P_DEFAULT))
             : Attribute();
}

void write_attribute(hid_t object, const std::string& name, hid_t type, const void* value) {
  const Space space(H5Screate(H5S_SCALAR));
  Attribute attribute(
      H5Acreate2(object, name.c_str(), type, space.get(), H5P_DEFAULT, H5P_DEFAULT));
  check(H5Awrite(attribute.get(), type, value));
  attribute.close();
}

struct FloatLayout {
  std::size_t sign, exponent_at, exponent_bits, mantissa_at, mantissa_bits;
  bool operator==(const FloatLayout&) const = default;
};
constexpr FloatLayout kHalf{15, 10, 5, 0, 10};
constexpr FloatLayout kSingle{31, 23, 8, 0, 23};

}  // namespace

std::string last_reason() {
  std::string reason;
  const auto visit = [](unsigned, const H5E_error2_t* entry, void* data) -> herr_t {
    auto& text = *static_cast<std::string*>(data);
    const std::string description = entry->desc ? entry->desc : "";
    // The drivers print errno into a longer line; the system's text is what a user understands.
    static constexpr const char* kSystem = "error message = '";
    if (const auto at = description.find(kSystem); at != std::string::npos) {
      const auto begin = at + std::strlen(kSystem);
      text = description.substr(begin, description.find('\'', begin) - begin);
      return 1;
    }
    if (text.empty()) text = description;
    return 0;
  };
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, visit, &reason);
  return reason.empty() ? "unknown HDF5 error" : reason;
}

void initialise() {
  static const bool done = [] {
    H5dont_atexit();
    H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
    return true;
  }();
  static_cast<void>(done);
}

Type element_type(DType dtype) {
  if (dtype == DType::kBf16) return Type(H5Tcopy(H5T_STD_U16LE));
  Type type(H5Tcopy(H5T_IEEE_F32LE));
  if (dtype == DType::kF16) {
    check(H5Tset_fields(type.get(), kHalf.sign, kHalf.exponent_at, kHalf.exponent_bits,
                        kHalf.mantissa_at, kHalf.mantissa_bits));
    check(H5Tset_size(type.get(), 2));
    check(H5Tset_ebias(type.get(), 15));
  }
  return type;
}

bool holds(hid_t type, DType dtype) {
  const H5T_class_t kind = check(H5Tget_class(type));
  if (H5Tget_size(type) != dtype_size(dtype)) return false;
  if (dtype == DType::kBf16) return kind == H5T_INTEGER && H5Tget_sign(type) == H5T_SGN_NONE;
  if (kind != H5T_FLOAT) return false;
  FloatLayout layout{};
  check(H5Tget_fields(type, &layout.sign, &layout.exponent_at, &layout.exponent_bits,
                      &layout.mantissa_at, &layout.mantissa_bits));
  const bool half = dtype == DType::kF16;
  return layout == (half ? kHalf : kSingle) && H5Tget_ebias(type) == (half ? 15 : 127) &&
         H5Tget_norm(type) == H5T_NORM_IMPLIED;
}

Type string_type() {
  Type type(H5Tcopy(H5T_C_S1));
  check(H5Tset_size(type.get(), H5T_VARIABLE));
  check(H5Tset_cset(type.get(), H5T_CSET_UTF8));
  return type;
}

std::vector<std::int64_t> extents(const Space& space) {
  if (check(H5Sget_simple_extent_type(space.get())) == H5S_NULL) return {0};
  const int rank = check(H5Sget_simple_extent_ndims(space.get()));
  std::vector<hsize_t> dims(static_cast<std::size_t>(rank));
  check(H5Sget_simple_extent_dims(space.get(), dims.data(), nullptr));
  return {dims.begin(), dims.end()};
}

std::optional<std::string> read_text_attribute(hid_t object, const std::string& name) {
  const Attribute attribute = open_attribute(object, name);
  if (attribute.get() < 0) return std::nullopt;
  const Type type(H5Aget_type(attribute.get()));
  const Space space(H5Aget_space(attribute.get()));
  return read_string(type.get(), space.get(), kMaxAttributeBytes, [&](hid_t memory, void* out) {
    check(H5Aread(attribute.get(), memory, out));
  });
}

std::optional<std::int64_t> read_integer_attribute(hid_t object, const std::string& name) {
  const Attribute attribute = open_attribute(object, name);
  if (attribute.get() < 0) return std::nullopt;
  const Type type(H5Aget_type(attribute.get()));
  const Space space(H5Aget_space(attribute.get()));
  const H5T_class_t kind = check(H5Tget_class(type.get()));
  if ((kind != H5T_INTEGER && kind != H5T_ENUM) ||
      check(H5Sget_simple_extent_npoints(space.get())) != 1) {
    throw Failure{"it is not one whole number"};
  }
  std::int64_t value = 0;
  check(H5Aread(attribute.get(), H5T_NATIVE_INT64, &value));
  return value;
}

void write_attribute(hid_t object, const std::string& name, const std::string& value) {
  const char* text = value.c_str();
  write_attribute(object, name, string_type().get(), &text);
}

void write_attribute(hid_t object, const std::string& name, std::int64_t value) {
  write_attribute(object, name, H5T_NATIVE_INT64, &value);
}

bool has_member(hid_t group, const std::string& name) {
  if (check(H5Lexists(group, name.c_str(), H5P_DEFAULT)) == 0) return false;
  H5L_info_t link{};
  check(H5Lget_info(group, name.c_str(), &link, H5P_DEFAULT));
  if (link.type != H5L_TYPE_HARD) {
    throw Failure{"'" + name + "' is a link; links are not followed"};
  }
  return true;
}

Dataset open_dataset(hid_t group, const std::string& name, std::uint64_t file_bytes) {
  Dataset dataset(H5Dopen2(group, name.c_str(), H5P_DEFAULT));
  const PropertyList properties(H5Dget_create_plist(dataset.get()));
  const Type type(H5Dget_type(dataset.get()));
  const H5D_layout_t layout = check(H5Pget_layout(properties.get()));
  if (layout != H5D_CHUNKED && layout != H5D_CONTIGUOUS && layout != H5D_COMPACT) {
    throw Failure{"its data are in other files"};
  }
  if (layout == H5D_CONTIGUOUS && check(H5Pget_external_count(properties.get())) > 0) {
    throw Failure{"its data are in other files"};
  }
  const int filters = check(H5Pget_nfilters(properties.get()));
  bool compressed = false;
  for (int i = 0; i < filters; ++i) {
    unsigned flags = 0;
    std::size_t parameters = 0;
    const H5Z_filter_t filter =
        check(H5Pget_filter2(properties.get(), static_cast<unsigned>(i), &flags, &parameters,
                             nullptr, 0, nullptr, nullptr));
    if (filter != H5Z_FILTER_DEFLATE && filter != H5Z_FILTER_SHUFFLE &&
        filter != H5Z_FILTER_FLETCHER32) {
      throw Failure{"it is compressed with filter " + std::to_string(filter) +
                    "; deflate and shuffle are known"};
    }
    compressed = compressed || filter == H5Z_FILTER_DEFLATE;
  }

  const auto shape = extents(Space(H5Dget_space(dataset.get())));
  const std::size_t element = H5Tget_size(type.get());
  const auto elements = checked_product(shape);
  const std::uint64_t limit = file_bytes * (compressed ? kMaxRatio : 1);
  if (!elements || element == 0 || static_cast<std::uint64_t>(*elements) > limit / element ||
      static_cast<std::uint64_t>(*elements) * element >
          H5Dget_storage_size(dataset.get()) * (compressed ? kMaxRatio : 1)) {
    throw Failure{"its shape " + shape_text(shape) + " is more than the file holds"};
  }
  if (layout == H5D_CHUNKED) {
    std::array<hsize_t, H5S_MAX_RANK> chunk{};
    const int rank = check(H5Pget_chunk(properties.get(), H5S_MAX_RANK, chunk.data()));
    std::vector<std::int64_t> factors(chunk.begin(), chunk.begin() + rank);
    factors.push_back(static_cast<std::int64_t>(element));
    const auto bytes = checked_product(factors);
    if (!bytes || static_cast<std::uint64_t>(*bytes) > kMaxChunkBytes) {
      throw Failure{"its chunks are larger than 256 MiB"};
    }
  }
  return dataset;
}

std::string read_text(const Dataset& dataset, std::uint64_t max_bytes) {
  const Type type(H5Dget_type(dataset.get()));
  const Space space(H5Dget_space(dataset.get()));
  return read_string(type.get(), space.get(), max_bytes, [&](hid_t memory, void* out) {
    check(H5Dread(dataset.get(), memory, H5S_ALL, H5S_ALL, H5P_DEFAULT, out));
  });
}

}  // namespace sw::hdf5
