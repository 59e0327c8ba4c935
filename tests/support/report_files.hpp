#pragma once

#include <hdf5.h>

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/file.hpp"
#include "trace/hdf5.hpp"

/// Comparing reports of runs that did the same work at other times.
namespace sw::testing {

/// A report without the fields that hold times, as text in the order of the file.
inline std::string without_times(const std::string& path) {
  const auto strip = [](auto&& self, nlohmann::ordered_json& json) -> void {
    if (json.is_object()) {
      for (const char* key : {"created", "seconds", "latency", "work"}) json.erase(key);
    }
    if (!json.is_structured()) return;
    for (auto& value : json) self(self, value);
  };
  auto json = nlohmann::ordered_json::parse(read_file(path));
  strip(strip, json);
  return json.dump(1);
}

using Hdf5Contents = std::map<std::string, std::string>;

/// Where the attributes of an object go.
struct AttributePlace {
  Hdf5Contents& contents;
  std::string object;
};

inline herr_t take_attribute(hid_t object, const char* name, const H5A_info_t*, void* data) {
  const auto& to = *static_cast<AttributePlace*>(data);
  const hdf5::Attribute attribute(H5Aopen(object, name, H5P_DEFAULT));
  const hdf5::Type type(H5Aget_type(attribute.get()));
  std::string value;
  if (H5Tis_variable_str(type.get()) > 0) {
    char* text = nullptr;
    hdf5::check(H5Aread(attribute.get(), type.get(), static_cast<void*>(&text)));
    value = text;
    H5free_memory(text);
  } else {
    value.resize(H5Tget_size(type.get()));
    hdf5::check(H5Aread(attribute.get(), type.get(), value.data()));
  }
  if (std::string(name) != "created") to.contents[to.object + "@" + name] = value;
  return 0;
}

inline herr_t take_object(hid_t root, const char* path, const H5O_info_t* info, void* data) {
  auto& contents = *static_cast<Hdf5Contents*>(data);
  const hid_t id = hdf5::check(H5Oopen(root, path, H5P_DEFAULT));
  std::string& value = contents[path];
  if (info->type == H5O_TYPE_DATASET) {
    const hdf5::Space space(H5Dget_space(id));
    for (const auto extent : hdf5::extents(space)) value += std::to_string(extent) + " ";
    const hdf5::Type type(H5Dget_type(id));
    const auto points = static_cast<std::size_t>(H5Sget_simple_extent_npoints(space.get()));
    std::string bytes(points * H5Tget_size(type.get()), '\0');
    if (points > 0) {
      hdf5::check(H5Dread(id, type.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, bytes.data()));
    }
    const std::string name = std::string(path).substr(std::string(path).rfind('/') + 1);
    const bool times = name == "seconds" || name == "prefill_seconds" || name == "decode_seconds";
    if (!times) value += bytes;
  }
  AttributePlace place{contents, path};
  hsize_t start = 0;
  hdf5::check(H5Aiterate2(id, H5_INDEX_NAME, H5_ITER_INC, &start, take_attribute, &place));
  H5Oclose(id);
  return 0;
}

/// Shape and bytes of everything in an HDF5 file by its name, but for times: the attribute
/// `created`, and the values of datasets of seconds.
inline Hdf5Contents hdf5_contents(const std::string& path) {
  hdf5::initialise();
  const hdf5::File file(H5Fopen(path.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT));
  Hdf5Contents contents;
  hdf5::check(
      H5Ovisit2(file.get(), H5_INDEX_NAME, H5_ITER_INC, take_object, &contents, H5O_INFO_BASIC));
  return contents;
}

}  // namespace sw::testing
