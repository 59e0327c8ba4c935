#pragma once

#include <hdf5.h>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/dtype.hpp"

/// The HDF5 C library behind owners and exceptions, for lib/trace and lib/report. The library's
/// error output is switched off: every failure is thrown as `hdf5::Failure` with the innermost
/// reason, and the callers, which know the file and what was being done, turn it into an
/// `sw::Error`.
namespace sw::hdf5 {

/// Why a call failed; `reason` is the library's or, where there is one, the system's text.
struct Failure {
  std::string reason;
};

/// Innermost reason on the library's error stack.
std::string last_reason();

/// Passes on what an HDF5 function returned, or throws a Failure when it is negative.
template <class T>
T check(T result) {
  if (result < 0) throw Failure{last_reason()};
  return result;
}

/// Switches the error output off, and the clean-up at exit too: after a full disk it would try to
/// write once more and print. Everything is closed by its owner anyway. To be called before any
/// use.
void initialise();

/// Owner of an identifier; throws a Failure when made from a failed call.
template <herr_t (*Close)(hid_t)>
class Handle {
 public:
  Handle() = default;
  explicit Handle(hid_t id) : id_(check(id)) {}
  ~Handle() {
    if (id_ >= 0) Close(id_);
  }
  Handle(Handle&& other) noexcept : id_(std::exchange(other.id_, -1)) {}
  Handle& operator=(Handle&& other) noexcept {
    std::swap(id_, other.id_);
    return *this;
  }
  hid_t get() const { return id_; }
  /// Closes now and throws a Failure when that fails: what was buffered is written only here.
  void close() {
    if (id_ >= 0) check(Close(std::exchange(id_, -1)));
  }

 private:
  hid_t id_ = -1;
};

using File = Handle<H5Fclose>;
using Group = Handle<H5Gclose>;
using Dataset = Handle<H5Dclose>;
using Attribute = Handle<H5Aclose>;
using Space = Handle<H5Sclose>;
using Type = Handle<H5Tclose>;
using PropertyList = Handle<H5Pclose>;

/// Type of the elements of q, k and v, in memory and in new files: uint16 for bf16, IEEE binary16
/// (as numpy's float16) for f16, float for f32; little-endian.
Type element_type(DType dtype);
/// Whether a stored type holds values of `dtype`, in either byte order.
bool holds(hid_t type, DType dtype);

/// UTF-8 string of variable length.
Type string_type();

/// Extents of a dataset or attribute.
std::vector<std::int64_t> extents(const Space& space);

/// One string or whole number (also an enumeration, as h5py stores booleans); nothing when `object`
/// has no such attribute. Throws a Failure when the attribute is something else.
std::optional<std::string> read_text_attribute(hid_t object, const std::string& name);
std::optional<std::int64_t> read_integer_attribute(hid_t object, const std::string& name);
void write_attribute(hid_t object, const std::string& name, const std::string& value);
void write_attribute(hid_t object, const std::string& name, std::int64_t value);

/// Whether `group` has a member of this name, in this file: throws a Failure for links, which may
/// lead elsewhere.
bool has_member(hid_t group, const std::string& name);
/// Opens a dataset and checks that its bytes can really be in this file of `file_bytes`, before
/// anything of their size is allocated. Throws a Failure when they cannot, when they are in other
/// files, and when they are stored in a way that is not read here.
Dataset open_dataset(hid_t group, const std::string& name, std::uint64_t file_bytes);

/// The string in a dataset that holds exactly one, of at most `max_bytes`.
std::string read_text(const Dataset& dataset, std::uint64_t max_bytes);

}  // namespace sw::hdf5
