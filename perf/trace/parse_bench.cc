// How fast traces are read: from a file in memory to requests with chained ids, on one core, beside
// a loop that only reads the same bytes.
//
//   flexkv_trace_parse_bench [--mb 256] [--repeats 7] [--trace FILE] [--json FILE]
//
// Times are processor time of the one thread, so that neighbours on the machine disturb less. With
// --trace the text is that file over and over, else generated in Mooncake's layout.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>
#include <string>
#include <vector>

#include "flexkv/trace/record_json.h"
#include "flexkv/trace/trace_request.h"
#include "perf/bench_util.h"

namespace flexkv::trace {
namespace {

constexpr uint64_t kBlocksAtOnce = 1 << 16;

[[noreturn]] void Die(const std::string& why) {
  std::fprintf(stderr, "%s\n", why.c_str());
  std::exit(1);
}

// Chats that grow, in Mooncake's layout: ids mostly count upwards, as in the published traces.
void AppendMooncakeLine(bench::Rng* rng, uint64_t number, std::string* out) {
  const uint64_t shared = rng->Below(24), own = 1 + rng->Below(36), start = rng->Below(40000);
  out->append("{\"timestamp\": ").append(std::to_string(number * 250));
  out->append(", \"input_length\": ").append(std::to_string((shared + own) * 512 + 100));
  out->append(", \"output_length\": ").append(std::to_string(1 + rng->Below(900)));
  out->append(", \"hash_ids\": [");
  for (uint64_t i = 0; i < shared + own; ++i) {
    if (i > 0) out->append(", ");
    out->append(std::to_string(i < shared ? i : start + i));
  }
  out->append("]}\n");
}

void AppendFlexkvLine(bench::Rng* rng, uint64_t number, std::string* out) {
  std::vector<uint64_t> words(20 + rng->Below(80));
  for (uint64_t& word : words) word = rng->Next();
  TraceRecord record;
  record.time_ns = number * 1000000;
  record.request = number;
  record.tokens_per_block = 16;
  record.prompt_tokens = static_cast<uint32_t>(words.size() * 16 + 5);
  record.matched_cpu_tokens = record.loaded_tokens = record.prompt_tokens / 32 * 16;
  record.match_ns = 1234;
  record.load_ns = 456789;
  record.load_bytes = 12345678;
  AppendRecordLine({&record, words}, {}, out);
}

std::string Generated(uint64_t bytes, const std::string& head,
                      void (*append)(bench::Rng*, uint64_t, std::string*)) {
  bench::Rng rng(7);
  std::string text = head;
  text.reserve(bytes + (1 << 16));
  for (uint64_t i = 0; text.size() < bytes; ++i) append(&rng, i, &text);
  return text;
}

std::string Repeated(const std::string& path, uint64_t bytes) {
  std::ifstream file(path, std::ios::binary);
  const std::string once((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (once.empty()) Die("nothing in " + path);
  std::string text;
  while (text.size() < bytes) text += once;
  return text;
}

// A file that is nowhere but in memory.
std::string MemoryFile(const std::string& text) {
  const int fd = memfd_create("trace", MFD_CLOEXEC);
  for (size_t done = 0; done < text.size();) {
    const ssize_t written = write(fd, text.data() + done, text.size() - done);
    if (written <= 0) Die("cannot fill a memory file");
    done += static_cast<size_t>(written);
  }
  return "/proc/self/fd/" + std::to_string(fd);
}

uint64_t ReadBytes(const std::string& text) {
  uint64_t sum[8] = {};
  for (size_t i = 0; i + sizeof(sum) <= text.size(); i += sizeof(sum)) {
    uint64_t words[8];
    std::memcpy(words, text.data() + i, sizeof(words));
    for (int k = 0; k < 8; ++k) sum[k] += words[k];
  }
  return sum[0] ^ sum[1] ^ sum[2] ^ sum[3] ^ sum[4] ^ sum[5] ^ sum[6] ^ sum[7];
}

uint64_t ReadTrace(const std::string& path) {
  auto source = OpenTrace({path});
  if (!source.ok()) Die(std::string(source.status().message()));
  RequestBatch batch;
  uint64_t blocks = 0;
  while (true) {
    const absl::StatusOr<bool> more = (*source)->Next(kBlocksAtOnce, &batch);
    if (!more.ok()) Die(std::string(more.status().message()));
    if (!*more) return blocks;
    blocks += batch.blocks.size();
  }
}

double GbPerSecond(uint64_t bytes, const std::function<uint64_t()>& run) {
  const uint64_t start = bench::ThreadCpuNs();
  const uint64_t result = run();
  bench::KeepAlive(result);
  return static_cast<double>(bytes) / static_cast<double>(bench::ThreadCpuNs() - start);
}

void Measure(const char* name, const std::string& text, uint64_t repeats, bench::JsonSink* sink) {
  const std::string path = MemoryFile(text);
  std::vector<double> parse, limit;
  for (uint64_t i = 0; i <= repeats; ++i) {
    const double read = GbPerSecond(text.size(), [&] { return ReadBytes(text); });
    const double parsed = GbPerSecond(text.size(), [&] { return ReadTrace(path); });
    if (i == 0) continue;  // warm-up
    limit.push_back(read);
    parse.push_back(parsed);
  }
  sink->Add({.name = name,
             .unit = "GB/s",
             .limit_name = "reading the same bytes from memory",
             .better = "higher",
             .value = bench::Median(parse),
             .limit = bench::Median(limit),
             .n = text.size(),
             .repeats = parse});
  close(std::stoi(path.substr(path.rfind('/') + 1)));
}

int Main(int argc, char** argv) {
  const bench::Args args(argc, argv);
  bench::JsonSink sink(args.Get("json", ""));
  const uint64_t bytes = args.GetInt("mb", 256) << 20, repeats = args.GetInt("repeats", 7);
  const std::string trace = args.Get("trace", "");
  Measure("trace.parse",
          trace.empty() ? Generated(bytes, "", AppendMooncakeLine) : Repeated(trace, bytes),
          repeats, &sink);
  std::string head;
  AppendConfigLine({.run = 1, .config_json = "{}"}, &head);
  Measure("trace.parse_flexkv", Generated(bytes, head, AppendFlexkvLine), repeats, &sink);
  return 0;
}

}  // namespace
}  // namespace flexkv::trace

int main(int argc, char** argv) { return flexkv::trace::Main(argc, argv); }
