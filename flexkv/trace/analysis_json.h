// An analysis as JSON: what `flexkv trace analyze --json` prints and what the report's page draws.
#pragma once

#include <nlohmann/json.hpp>
#include <vector>

#include "flexkv/trace/advice.h"
#include "flexkv/trace/analysis.h"

namespace flexkv::trace {

using OrderedJson = nlohmann::ordered_json;

OrderedJson AnalysisJson(const Analysis& analysis, const std::vector<Advice>& advice);
// At most `points` of the curve, evenly spread by the logarithm of the capacity: [[blocks, rate]].
OrderedJson CurveJson(const LruCurve& curve, size_t points);
// The keys of `flexkv trace simulate --json`; an infinite size is the string "inf".
OrderedJson CellJson(const CellResult& result);

// On one line; bytes that are not UTF-8 are replaced, all else than ASCII is escaped.
std::string Dump(const OrderedJson& json, int indent = -1);

}  // namespace flexkv::trace
