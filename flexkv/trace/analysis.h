// What a trace says about a cache: what was found and what could have been found, how long
// transfers took, how prompts share prefixes. One pass over the trace; memory is bounded by the
// options, whatever the trace's size (see prefix_table.h for what gives way then).
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "flexkv/trace/log_histogram.h"
#include "flexkv/trace/simulate.h"
#include "flexkv/trace/trace_request.h"

namespace flexkv::trace {

struct AnalyzeOptions {
  uint64_t max_memory_bytes = 4ull << 30;  // half for the table of blocks, half for the curve
  bool curve = true;
  uint32_t top = 10;                     // shared prefixes, slow operations
  uint32_t tree_segments = 60;           // of the tree of shared prefixes
  std::function<void(double)> progress;  // 0..1; may be empty
};

// Tokens of lookups, by where they were found.
struct TokenCounts {
  uint64_t requests = 0, prompt_tokens = 0;
  uint64_t engine_tokens = 0;  // in the engine's own cache
  uint64_t cpu_tokens = 0, ssd_tokens = 0, remote_tokens = 0;
  uint64_t reachable_tokens = 0;  // an infinite cache would have found them

  uint64_t hit_tokens() const { return cpu_tokens + ssd_tokens + remote_tokens; }
  double RateOf(uint64_t tokens) const {
    return prompt_tokens == 0 ? 0
                              : static_cast<double>(tokens) / static_cast<double>(prompt_tokens);
  }
  double hit_rate() const { return RateOf(hit_tokens()); }
  double reachable_rate() const { return RateOf(reachable_tokens); }
  void Add(const TokenCounts& other);
};

struct TimeBucket {
  TimeNs start_ns = 0;
  TokenCounts tokens;
  uint64_t evicted_blocks = 0;
};

enum class Leg : uint8_t { kLoad, kStore, kSsd, kRemote };
inline constexpr size_t kNumLegs = 4;

struct LegStats {
  LogHistogram ns_per_block;  // of each operation: its time divided by its blocks
  uint64_t operations = 0, blocks = 0, bytes = 0, total_ns = 0;
  uint64_t late_operations = 0;  // above the target
  double bytes_per_s() const {
    return total_ns == 0 ? 0 : static_cast<double>(bytes) * 1e9 / static_cast<double>(total_ns);
  }
};
const char* NameOf(Leg leg);   // "load", "store", "ssd", "remote"
const char* TitleOf(Leg leg);  // "CPU to GPU"
uint64_t TargetNs(Leg leg);    // a block

struct SlowOperation {
  uint64_t ordinal = 0;  // of the trace's requests, from 1
  TimeNs time_ns = 0;
  RequestKind kind = RequestKind::kGet;
  uint32_t ns = 0;
  uint32_t prompt_tokens = 0, blocks = 0;
  uint64_t match_ns = 0, queue_ns = 0, load_ns = 0, ssd_ns = 0, store_ns = 0;
  uint64_t total_ns() const { return match_ns + queue_ns + load_ns + ssd_ns + store_ns; }
};

// A run of blocks that several prompts begin with, and where it hangs in the tree.
struct SharedPrefix {
  uint64_t id = 0;  // of its last block
  int parent = -1;  // index into the same list
  uint32_t depth_blocks = 0, blocks = 0;
  uint64_t uses = 0, saved_tokens = 0;
  uint32_t branches = 0;  // all that hang off it, shown or not
};

struct ReuseDistance {
  uint64_t to_blocks = 0;  // from the bucket before (or 0), up to this LRU capacity
  uint64_t hits = 0;       // block accesses found only with a cache at least that large
};

struct PutResults {
  uint64_t puts = 0, accepted_blocks = 0, held_blocks = 0, refused_blocks = 0;
};

enum class Verdict : uint8_t { kExcellent, kGood, kNeedsWork, kNothingToFind };
const char* WordsOf(Verdict verdict);

struct Analysis {
  TraceInfo info;
  TimeNs duration_ns = 0;
  uint64_t records = 0;   // lookups and puts
  bool measured = false;  // the trace says what really happened
  TokenCounts total;
  std::vector<TokenCounts> by_namespace;  // index as in info.namespaces
  TimeNs bucket_ns = 0;
  std::vector<TimeBucket> over_time;

  std::optional<LruCurve> curve;
  std::string no_curve;  // why not
  std::vector<ReuseDistance> reuse_distance;
  LogHistogram reuse_gap_ns;

  std::array<uint64_t, 5> results{};  // of lookups and puts, by Result
  PutResults puts;
  std::array<uint64_t, 4> evicted_blocks{};  // by Tier
  std::array<LegStats, kNumLegs> legs;
  LogHistogram match_ns, queue_ns;  // of lookups
  std::vector<SlowOperation> slowest;

  LogHistogram prompt_blocks, fan_out;
  uint64_t block_accesses = 0, unique_blocks = 0, roots = 0;
  uint64_t never_read_blocks = 0;          // by any later request, even from an infinite cache
  uint32_t sample_shift = 0;               // the last three and the tree: from one block in 2^shift
  uint64_t partial_tokens = 0;             // in last blocks that are not full: never found
  std::vector<SharedPrefix> top_prefixes;  // most saved first
  std::vector<SharedPrefix> tree;          // parents before children
  double top_share = 0;                    // of all reachable tokens: in top_prefixes

  // Of what was measured, else of what an infinite cache reaches.
  double rate() const { return measured ? total.hit_rate() : reachable_rate(); }
  double reachable_rate() const;
  Verdict verdict() const;
  const LegStats& leg(Leg which) const { return legs[static_cast<size_t>(which)]; }
  uint64_t block_bytes() const;  // as measured by the transfers; 0: not known
};

// Errors of the source. A curve that cannot be had (no hashes recorded, too little memory) is no
// error: `no_curve` says why.
absl::StatusOr<Analysis> Analyze(TraceSource* source, const AnalyzeOptions& options = {});

}  // namespace flexkv::trace
