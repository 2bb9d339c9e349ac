// `flexkv trace info` and `flexkv trace analyze` for people.
#pragma once

#include <string>
#include <vector>

#include "flexkv/trace/advice.h"
#include "flexkv/trace/analysis.h"

namespace flexkv::cli {

std::string AnalysisText(const trace::Analysis& analysis, const std::vector<trace::Advice>& advice);

// Bad lines by number, or nothing.
std::string BadLinesText(const trace::TraceInfo& info);
std::string AdviceText(const std::vector<trace::Advice>& advice);

}  // namespace flexkv::cli
