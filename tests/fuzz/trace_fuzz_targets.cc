// Traces as strangers may give them: the readers over lines, and over packed files.
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "flexkv/trace/json_cursor.h"
#include "flexkv/trace/line_parser.h"
#include "flexkv/trace/line_reader.h"
#include "flexkv/trace/trace_request.h"
#include "nlohmann/json.hpp"
#include "tests/fuzz/fuzz_targets.h"

namespace flexkv {
namespace {

void Require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "fuzz: %s\n", what);
  std::abort();
}

void CheckBatch(const trace::RequestBatch& batch, const trace::TraceInfo& info) {
  uint64_t next = 0;
  TimeNs last = 0;
  for (const trace::TraceRequest& request : batch.requests) {
    Require(request.first_block == next, "blocks of requests follow each other");
    Require(request.ns < info.namespaces.size(), "a request of a known namespace");
    Require(request.time_ns >= last, "times do not fall");
    Require(request.hint.valid(), "a valid hint");
    next += request.num_blocks;
    last = request.time_ns;
  }
  Require(next == batch.blocks.size(), "every block belongs to a request");
}

// What the parser takes as JSON, the other one takes, too, and the other way round.
void CompareWithOracle(const std::string& text) {
  const std::string line = text.substr(0, text.find('\n'));
  // To the oracle a zero byte is an end; a byte order mark is skipped before our parser sees it.
  if (line.find('\0') != std::string::npos || line.starts_with("\xEF\xBB\xBF")) return;
  const nlohmann::json oracle = nlohmann::json::parse(line, nullptr, false);
  std::string padded = line + "\n";
  padded.append(trace::kLinePadding, '1');
  trace::JsonCursor json(std::string_view(padded).substr(0, line.size()));
  for (std::string_view key; json.NextKey(&key);) json.SkipValue();
  const bool taken = json.Finish();
  if (taken) Require(oracle.is_object(), "taken, and no JSON object");
  const bool deep = json.reason() != nullptr && std::string(json.reason()) == "nested too deep";
  if (!taken && !deep) Require(!oracle.is_object(), "a JSON object, and not taken");
}

std::vector<std::string> TraceCorpus() {
  return {
      "{\"timestamp\": 1, \"input_length\": 1500, \"output_length\": 2, \"hash_ids\": [1, 2, 3]}\n"
      "{\"timestamp\": 2, \"input_length\": 1500, \"output_length\": 2, \"hash_ids\": "
      "[1,2,30000]}\n",
      "{\"chat_id\": 1, \"parent_chat_id\": -1, \"timestamp\": 6.5, \"input_length\": 40, "
      "\"output_length\": 1, \"type\": \"text\", \"turn\": 1, \"hash_ids\": [7, 8]}\n",
      "{\"timestamp\": 1.5, \"request_id\": \"a\", \"model_name\": \"m\", \"chunk_size\": 16, "
      "\"seq_len\": 32, \"dtypes\": [], \"shapes\": [[1]], \"chunk_hashes\": [\"0xab\", "
      "\"-0x1\"]}\n",
      "{\"k\":\"config\",\"flexkv_trace\":1,\"run\":\"aa\",\"unix_ms\":5,\"hashes\":\"short\","
      "\"config\":{\"a\":[1]}}\n{\"k\":\"ns\",\"ns\":1,\"label\":\"m\"}\n"
      "{\"k\":\"get\",\"t\":5,\"request\":1,\"ns\":1,\"tokens_per_block\":16,\"prompt\":40,"
      "\"continue_p\":0.5,\"hashes\":\"1111111111111111aaaaaaaaaaaaaaaa\"}\n"
      "{\"k\":\"put\",\"t\":6,\"request\":1,\"ns\":1,\"tokens_per_block\":16,\"first\":2,"
      "\"parent\":\"aaaaaaaaaaaaaaaa\",\"hashes\":\"bbbbbbbbbbbbbbbb\"}\n"
      "{\"k\":\"evict\",\"t\":7,\"tier\":\"ssd\",\"blocks\":3}\n{\"k\":\"reset\",\"ns\":1}\n"
      "{\"k\":\"drop\",\"records\":2}\n{\"k\":\"get\",\"t\":9,\"ns\":1,\"hashes\":\"\"}\n",
      std::string("\x1f\x8b\x08\0\0\0\0\0\0\3\xab\xae\5\0\x43\xbf\xa6\xa3\2\0\0\0", 22),
      std::string("\x28\xb5\x2f\xfd\x20\3\x19\0\0{}\n", 12),
      "{\"a\": \"\\ud83d\\ude00\\n\", \"b\": [1.5e-3, -0, true, null, {}]}\n",
  };
}

}  // namespace

void FuzzTrace(FuzzInput input) {
  const std::string text(reinterpret_cast<const char*>(input.data()), input.size());
  CompareWithOracle(text);
  const int fd = memfd_create("trace", MFD_CLOEXEC);
  Require(fd >= 0 && write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size()),
          "a file in memory");
  trace::OpenTraceOptions options;
  options.max_bad_share = 1;
  options.max_line_bytes = 4096;
  auto source = trace::OpenTrace({"/proc/self/fd/" + std::to_string(fd)}, options);
  uint64_t requests = 0;
  for (int pass = 0; source.ok() && pass < 2; ++pass) {
    trace::RequestBatch batch;
    uint64_t seen = 0;
    while (true) {
      const absl::StatusOr<bool> more = (*source)->Next(1 + input.size() % 7, &batch);
      if (!more.ok() || !*more) break;
      CheckBatch(batch, (*source)->info());
      seen += batch.requests.size();
    }
    Require(pass == 0 || seen == requests, "the second pass reads as much as the first");
    requests = seen;
    Require((*source)->Rewind().ok(), "a file can be read again");
  }
  close(fd);
}

std::span<const FuzzTarget> TraceFuzzTargets() {
  static const std::array<FuzzTarget, 1> kTargets = {{{"trace", &FuzzTrace, &TraceCorpus}}};
  return kTargets;
}

}  // namespace flexkv
