// What to do next about a hit rate or a slow transfer, each piece with its evidence in numbers.
// Never more memory where the curve says that it cannot help.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "flexkv/trace/analysis.h"

namespace flexkv::trace {

// The cache that a trace was recorded on, or that is looked at now.
struct CacheFacts {
  bool known = false;        // false: the fields below say nothing
  uint64_t block_bytes = 0;  // 0: not known, then the blocks are not either
  uint64_t cpu_bytes = 0, cpu_blocks = 0;
  bool ssd_enabled = false;
  uint64_t ssd_bytes = 0, ssd_blocks = 0;
  double evict_ratio = 0.01, evict_start_ratio = 0.98;
  std::string policy;
  std::string admission;
};
// From a configuration as ConfigToJson writes it (or the inner object). What cannot be read is left
// at its default; `known` says whether it was an object at all.
CacheFacts FactsOfConfig(std::string_view json, uint64_t block_bytes);
// From the trace's own configuration record and measured transfers.
CacheFacts FactsOf(const Analysis& analysis);

struct Advice {
  std::string title;     // what is wrong, or right
  std::string action;    // what to do
  std::string evidence;  // the numbers that say so
  double weight = 0;     // points of hit rate, or what they would be worth
};
// The most useful ones first.
std::vector<Advice> Advise(const Analysis& analysis, const CacheFacts& facts, size_t most = 3);

// The smallest LRU cache within `within` (0.005: half a point) of what an infinite one reaches.
uint64_t SufficientBlocks(const LruCurve& curve, double within = 0.005);
// The smallest LRU cache that reaches `rate`; kInfiniteBlocks: none does.
uint64_t BlocksForRate(const LruCurve& curve, double rate);

// "1,234,567" and "12.3 %".
std::string Grouped(uint64_t number);
std::string Percent(double share);

}  // namespace flexkv::trace
