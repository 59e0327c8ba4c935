// The HDF5 file beside a report is not trusted: sizes that it cannot hold and links out of it.
#include "report/report_arrays.hpp"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "core/file.hpp"
#include "support/tiny_trace.hpp"
#include "trace/hdf5.hpp"

namespace sw {
namespace {

using nlohmann::json;

class HostileArrays : public ::testing::Test {
 protected:
  HostileArrays() {
    const json report = {{"schema_version", 1},
                         {"created", "now"},
                         {"command", json::array()},
                         {"environment", json::object()},
                         {"protocol", {{"kind", "trace"}}},
                         {"inputs", {{{"path", "a.h5"}}}},
                         {"cells",
                          {{{"id", "0000"},
                            {"status", "ok"},
                            {"method", "dense"},
                            {"phase", "prefill"},
                            {"input", 0}}}}};
    write_file(folder_.file("out.json"), report.dump(), false);
    hdf5::initialise();
    file_ = hdf5::File(
        H5Fcreate(folder_.file("out.h5").c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT));
    hdf5::write_attribute(file_.get(), "created", std::string("now"));
    hdf5::Group(H5Gcreate2(file_.get(), "cells", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
    cell_ =
        hdf5::Group(H5Gcreate2(file_.get(), "cells/0000", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
  }

  /// A dataset of `count` floats that is not written.
  void declare(const char* name, hsize_t count, hsize_t chunk) {
    const hdf5::Space space(H5Screate_simple(1, &count, nullptr));
    const hdf5::PropertyList creation(H5Pcreate(H5P_DATASET_CREATE));
    hdf5::check(H5Pset_chunk(creation.get(), 1, &chunk));
    hdf5::Dataset(H5Dcreate2(cell_.get(), name, H5T_IEEE_F32LE, space.get(), H5P_DEFAULT,
                             creation.get(), H5P_DEFAULT));
  }

  /// The message of the error that reading gives.
  std::string refusal(const std::string& name) {
    cell_.close();
    file_.close();
    const ReportFile report = ReportFile::read(folder_.file("out.json"));
    try {
      ReportArrays(report).read(report.cells().front(), name);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kInput);
      return error.what();
    }
    return "";
  }

  testing::TemporaryFolder folder_;
  hdf5::File file_;
  hdf5::Group cell_;
};

TEST_F(HostileArrays, SizesAreThoseOfTheFile) {
  declare("mass_recall", hsize_t{1} << 26, 1024);
  EXPECT_NE(refusal("mass_recall").find("more than the file holds"), std::string::npos);
}

TEST_F(HostileArrays, LinksAreNotFollowed) {
  hdf5::check(H5Lcreate_external("/etc/passwd", "/x", cell_.get(), "mass_recall", H5P_DEFAULT,
                                 H5P_DEFAULT));
  EXPECT_NE(refusal("mass_recall").find("links are not followed"), std::string::npos);
}

}  // namespace
}  // namespace sw
