#include "core/text.hpp"

#include <gtest/gtest.h>

#include "core/error.hpp"
#include "core/progress.hpp"
#include "core/rng.hpp"

namespace sw {
namespace {

TEST(Text, Split) {
  EXPECT_EQ(split("a,,b", ','), (std::vector<std::string>{"a", "", "b"}));
  EXPECT_EQ(split("", ','), (std::vector<std::string>{""}));
}

TEST(Text, NearestName) {
  const std::vector<std::string> names = {"dense", "oracle", "sink_window"};
  EXPECT_EQ(nearest_name("orcale", names), "oracle");
  EXPECT_EQ(nearest_name("sinkwindow", names), "sink_window");
  EXPECT_EQ(nearest_name("flash", names), "");
  EXPECT_EQ(suggestion("flash", names), "known: dense, oracle, sink_window");
}

TEST(Text, NumbersAreParsedWhole) {
  EXPECT_EQ(parse_double("0.25", "x"), 0.25);
  EXPECT_EQ(parse_int("-7", "x"), -7);
  for (const char* bad : {"", " 1", "1 ", "1x", "nan", "inf", "1e999", "0x10"}) {
    EXPECT_THROW(parse_double(bad, "x"), Error) << bad;
  }
  for (const char* bad : {"", "1.0", "9223372036854775808", "+1"}) {
    EXPECT_THROW(parse_int(bad, "x"), Error) << bad;
  }
}

TEST(Text, Formats) {
  EXPECT_EQ(format_double(0.2), "0.2");
  EXPECT_EQ(format_bytes(17), "17 bytes");
  EXPECT_EQ(format_bytes(1536), "1.5 KiB");
  EXPECT_EQ(format_duration(4.21), "4.2 s");
  EXPECT_EQ(format_duration(185), "3 min 05 s");
  EXPECT_EQ(format_duration(7805), "2 h 10 min");
}

TEST(SplitMix64, KnownStream) {
  // First outputs for seed 1234567, published with the algorithm's test vectors.
  SplitMix64 rng(1234567);
  EXPECT_EQ(rng.next(), 6457827717110365317u);
  EXPECT_EQ(rng.next(), 3203168211198807973u);
  EXPECT_EQ(rng.next(), 9817491932198370423u);
}

}  // namespace
}  // namespace sw
