// Seeded traffic of known families, to judge caches and policies on more than one recorded day.
//
// Requests come from *sessions*: a session asks once or several times, each prompt being the one
// before it, the answer to it and something new. Sessions of five kinds arrive at random and are
// mixed by weight:
//   chat       turns with heavy-tailed gaps on a system prompt shared by Zipf's law
//   agent      steps seconds apart on a long shared prefix; a step may start sub-agents, which
//   share
//              the prompt so far
//   document   a few questions about one of many long documents, popular ones first
//   flood      one prompt that nobody asks for again
//   scan       the next of a fixed set of long prompts, over and over in the same order
// Memory: 8 bytes a block of every prompt of the batch. Equal options give equal traffic on every
// machine with IEEE doubles.
#pragma once

#include <cstdint>
#include <ostream>
#include <span>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "flexkv/trace/trace_request.h"

namespace flexkv::trace {

// How long until a session asks again.
struct GapShape {
  enum class Law : uint8_t { kLogNormal, kPareto } law = Law::kLogNormal;
  double median_s = 45;
  double sigma = 1.2;        // kLogNormal: of the logarithm
  double alpha = 1.3;        // kPareto: tail index; below 1 the mean is infinite
  double longest_s = 14400;  // cut here
};

// Log-normal lengths.
struct LengthShape {
  double median_tokens = 1000;
  double sigma = 1.0;
  uint32_t longest_tokens = 131072;
};

struct ChatShape {
  double weight = 0;      // share of requests, relative to the other kinds
  double mean_turns = 4;  // geometric, at least 1
  GapShape gap;           // from the request before to this one, the answer's time included
  uint32_t system_prompts = 50;
  double zipf = 1.0;  // popularity of system prompts
  LengthShape system{.median_tokens = 1500, .sigma = 0.8};
  LengthShape first{.median_tokens = 2500, .sigma = 1.3};  // what the user brings, files included
  LengthShape turn{.median_tokens = 300, .sigma = 1.0};
  LengthShape answer{.median_tokens = 400, .sigma = 0.8, .longest_tokens = 8192};
};

struct AgentShape {
  double weight = 0;
  double mean_steps = 12;
  GapShape gap{.median_s = 4, .sigma = 1.0};
  uint32_t prefixes = 8;  // long instructions and tool lists
  double zipf = 0.8;
  LengthShape prefix{.median_tokens = 10000, .sigma = 0.4};
  LengthShape task{.median_tokens = 2000, .sigma = 1.0};
  LengthShape observation{.median_tokens = 1200, .sigma = 1.2};
  LengthShape answer{.median_tokens = 150, .sigma = 0.7, .longest_tokens = 4096};
  double branch_p = 0.05;  // a step starts a sub-agent of half the mean steps
};

struct DocumentShape {
  double weight = 0;
  uint32_t documents = 2000;
  double zipf = 0.9;
  LengthShape document{.median_tokens = 12000, .sigma = 0.7};
  double mean_questions = 1.5;  // of one session about one document
  GapShape gap{.median_s = 60, .sigma = 1.0};
  LengthShape question{.median_tokens = 200, .sigma = 0.8};
  LengthShape answer{.median_tokens = 300, .sigma = 0.7, .longest_tokens = 8192};
};

struct FloodShape {
  double weight = 0;
  LengthShape prompt{.median_tokens = 6000, .sigma = 1.0};
};

struct ScanShape {
  double weight = 0;
  uint32_t items = 1000;
  LengthShape item{.median_tokens = 8000, .sigma = 0.5};
};

struct TrafficOptions {
  uint64_t seed = 1;
  uint64_t requests = 20000;
  uint32_t tokens_per_block = 512;
  // With the shapes above, hit rates move between 1,000 and 30,000 blocks at this rate.
  double requests_per_s = 5;
  // Sessions start at a rate of 1 + day_swing * sin(2 pi t / day_s).
  double day_swing = 0;  // 0..1
  double day_s = 3600;
  // Every burst_every_s sessions start burst_factor times as fast, for burst_s; on top of the rate.
  double burst_every_s = 0, burst_s = 30, burst_factor = 8;  // 0: no bursts
  // Each with prompts and documents of its own (nothing is shared between two); one is chosen by
  // Zipf's law with this exponent.
  uint32_t tenants = 1;
  double tenant_zipf = 1.0;
  ChatShape chat;
  AgentShape agent;
  DocumentShape document;
  FloodShape flood;
  ScanShape scan;
};

// Families by name: chat, chat-pareto, chat-long, agents, documents, flood, scan, mixed, bursts,
// tenants. NotFound names them all.
absl::StatusOr<TrafficOptions> NamedTraffic(std::string_view name);
std::span<const std::string_view> TrafficNames();

// Sessions are numbered from 1 (TraceRequest::session); `ns` is the tenant. InvalidArgument: no
// kind has a weight, or a number is outside what its comment says.
absl::StatusOr<RequestBatch> GenerateTraffic(const TrafficOptions& options);

// One JSON line a request in Mooncake's layout: block ids are numbers in order of first appearance,
// the partial last block has one of its own. Unavailable: the stream failed.
absl::Status WriteMooncake(const RequestBatch& batch, std::ostream* out);

}  // namespace flexkv::trace
