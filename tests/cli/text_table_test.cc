#include "cli/text_table.h"

#include <gtest/gtest.h>

#include <sstream>

namespace switchyard {
namespace {

TEST(TextTableTest, AlignsColumns) {
  TextTable table({{"name"}, {"bytes", TextTable::Align::kRight}, {"note"}});
  table.AddRow({"a", "1,024", ""});
  table.AddRow({"longer", "7", "x"});
  std::ostringstream out;
  table.Print(out, 1);
  EXPECT_EQ(out.str(),
            " name    bytes  note\n"
            " a       1,024\n"
            " longer      7  x\n");
}

TEST(TextTableTest, Numbers) {
  EXPECT_EQ(WithThousands(0), "0");
  EXPECT_EQ(WithThousands(999), "999");
  EXPECT_EQ(WithThousands(-1234567), "-1,234,567");
  EXPECT_EQ(HumanBytes(1023), "1023 B");
  EXPECT_EQ(HumanBytes(1536), "1.50 KiB");
  EXPECT_EQ(HumanBytes(int64_t{46} << 30), "46.00 GiB");
  EXPECT_EQ(HumanCount(4096), "4,096");
  EXPECT_EQ(HumanCount(24600000000), "24.60 B");
}

}  // namespace
}  // namespace switchyard
