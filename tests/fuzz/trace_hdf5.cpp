#include "fuzz.hpp"
#include "trace/trace.hpp"

/// A trace as HDF5. A file that crashes the HDF5 library crashes a child of this process, as it
/// does in the programs; what is found here is our own.
int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const sw::fuzz::Folder folder;
  const std::string path = folder.write("trace.h5", sw::fuzz::text_of(data, size));
  sw::validate_trace(path);
  return 0;
}
