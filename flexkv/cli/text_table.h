// Columns of text for a terminal: the first column to the left, all others to the right.
#pragma once

#include <string>
#include <vector>

namespace flexkv::cli {

class TextTable {
 public:
  explicit TextTable(std::vector<std::string> head) { Add(std::move(head)); }
  void Add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  // Each line starts with `indent` spaces; the head is underlined by dashes.
  std::string Text(size_t indent = 0) const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

// Printable, on one line, cut to `most` bytes: labels and paths come from files.
std::string Printable(const std::string& text, size_t most = 48);

}  // namespace flexkv::cli
