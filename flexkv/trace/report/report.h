// One self-contained HTML page about a trace: numbers, charts and advice. The chart library
// (Chart.js) and everything else is inside; a content security policy forbids fetching anything.
#pragma once

#include <string>
#include <vector>

#include "flexkv/trace/advice.h"
#include "flexkv/trace/analysis.h"
#include "flexkv/trace/simulate.h"

namespace flexkv::trace {

struct ReportInput {
  std::vector<std::string> files;  // shown as they are
  const Analysis* analysis = nullptr;
  std::vector<Advice> advice;
  std::vector<CellResult> cells;  // capacity curves: one tier, several sizes for each policy
};

std::string ReportHtml(const ReportInput& input);

// JSON that may stand inside a <script> element: nothing in it can end the element or start
// another.
std::string ScriptSafe(const std::string& json);

}  // namespace flexkv::trace
