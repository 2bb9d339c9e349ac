#include "flexkv/trace/report/report.h"

#include <array>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "flexkv/index/policies.h"
#include "flexkv/trace/analysis_json.h"
#include "flexkv/trace/report/embedded.h"

namespace flexkv::trace {
namespace {

OrderedJson CellsJson(const std::vector<CellResult>& results) {
  OrderedJson cells = OrderedJson::array();
  for (const CellResult& result : results) cells.push_back(CellJson(result));
  return cells;
}

}  // namespace

std::string ScriptSafe(const std::string& json) {
  std::string safe;
  safe.reserve(json.size());
  for (const char c : json) {
    switch (c) {
      case '<':
        safe += "\\u003c";
        break;
      case '>':
        safe += "\\u003e";
        break;
      case '&':
        safe += "\\u0026";
        break;
      default:
        safe.push_back(c);
    }
  }
  return safe;
}

std::string ReportHtml(const ReportInput& input) {
  OrderedJson data = AnalysisJson(*input.analysis, input.advice);
  data["files"] = input.files;
  data["cells"] = CellsJson(input.cells);
  data["default_policy"] = std::string(kDefaultPolicy);
  const std::string json = ScriptSafe(Dump(data));
  const std::array<std::pair<std::string_view, std::string_view>, 4> parts = {
      {{"{{style}}", PageStyle()},
       {"{{data}}", json},
       {"{{chart}}", ChartLibrary()},
       {"{{script}}", PageScript()}}};
  // In the order in which they stand in the page; what was put in is never looked at again.
  std::string_view rest = PageFrame();
  std::string page;
  for (const auto& [mark, text] : parts) {
    const size_t at = rest.find(mark);
    page.append(rest.substr(0, at));
    page.append(text);
    rest.remove_prefix(at + mark.size());
  }
  page.append(rest);
  return page;
}

}  // namespace flexkv::trace
