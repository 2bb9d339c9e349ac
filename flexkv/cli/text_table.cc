#include "flexkv/cli/text_table.h"

#include <algorithm>

namespace flexkv::cli {

std::string TextTable::Text(size_t indent) const {
  std::vector<size_t> widths;
  for (const auto& row : rows_) {
    if (widths.size() < row.size()) widths.resize(row.size());
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string text;
  for (size_t r = 0; r < rows_.size(); ++r) {
    std::string line(indent, ' ');
    for (size_t i = 0; i < rows_[r].size(); ++i) {
      const std::string& cell = rows_[r][i];
      const std::string pad(widths[i] - cell.size(), ' ');
      if (i != 0) line += "  ";
      line += i == 0 ? cell + pad : pad + cell;
    }
    line.resize(line.find_last_not_of(' ') + 1);
    text += line + "\n";
    if (r != 0) continue;
    text += std::string(indent, ' ');
    for (size_t i = 0; i < widths.size(); ++i) {
      text += (i == 0 ? "" : "  ") + std::string(widths[i], '-');
    }
    text += "\n";
  }
  return text;
}

std::string Printable(const std::string& text, size_t most) {
  std::string shown = text.substr(0, most);
  for (char& c : shown) {
    if (c < 0x20 || c > 0x7e) c = '?';
  }
  if (text.size() > most) shown += "...";
  return shown;
}

}  // namespace flexkv::cli
