// Aligned columns of text for the terminal.
#ifndef SWITCHYARD_CLI_TEXT_TABLE_H_
#define SWITCHYARD_CLI_TEXT_TABLE_H_

#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

namespace switchyard {

// A header and rows of as many cells. Columns are as wide as their widest cell.
class TextTable {
 public:
  enum class Align { kLeft, kRight };
  struct Column {
    std::string title;
    Align align = Align::kLeft;
  };

  explicit TextTable(std::vector<Column> columns);

  // REQUIRES: one cell per column.
  void AddRow(std::vector<std::string> cells);

  // Each line begins with `indent` spaces and has none at its end.
  void Print(std::ostream& out, int indent = 2) const;

 private:
  std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;
};

// 9360968 -> "9,360,968".
std::string WithThousands(int64_t number);
// 9360968 -> "8.93 MiB"; exact below 1 KiB: "256 B".
std::string HumanBytes(int64_t bytes);
// 9360968 -> "9.36 M".
std::string HumanCount(int64_t number);

}  // namespace switchyard

#endif  // SWITCHYARD_CLI_TEXT_TABLE_H_
