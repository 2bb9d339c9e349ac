// What every benchmark shares: clock, seeded generator, order statistics, and the JSON line that
// sets a result beside the limit measured in the same run. Header only.
//
//   flexkv::bench::Args args(argc, argv);                 // --json FILE, --name=value or --name
//   value flexkv::bench::JsonSink sink(args.Get("json", "")); sink.Add({.name = "index.match_ns",
//   .unit = "ns", .limit_name = "open addressing",
//             .value = Median(ours), .limit = Median(table), .repeats = ours});
#pragma once

#include <time.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

namespace flexkv::bench {

inline uint64_t NowNs() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1000000000u + static_cast<uint64_t>(now.tv_nsec);
}

// Processor time of the calling thread.
inline uint64_t ThreadCpuNs() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1000000000u + static_cast<uint64_t>(now.tv_nsec);
}

// Processor time of all threads of the process.
inline uint64_t ProcessCpuNs() {
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1000000000u + static_cast<uint64_t>(now.tv_nsec);
}

inline uint64_t SplitMix(uint64_t x) {
  uint64_t z = x + 0x9E3779B97F4A7C15ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

// splitmix64: small, seeded, the same on every machine.
class Rng {
 public:
  explicit Rng(uint64_t seed) : state_(seed) {}
  uint64_t Next() {
    const uint64_t out = SplitMix(state_);
    state_ += 0x9E3779B97F4A7C15ull;
    return out;
  }
  // Uniform in [0, bound); bound > 0.
  uint64_t Below(uint64_t bound) {
    __extension__ using Wide = unsigned __int128;
    return static_cast<uint64_t>((static_cast<Wide>(Next()) * bound) >> 64);
  }

 private:
  uint64_t state_;
};

// Keeps the compiler from dropping a computation whose result nobody reads.
template <typename T>
inline void KeepAlive(const T& value) {
  asm volatile("" : : "g"(&value) : "memory");
}

// `p` in [0, 1]; nearest rank. 0 of nothing.
template <typename T>
double Percentile(std::vector<T> samples, double p) {
  if (samples.empty()) return 0;
  const size_t rank =
      std::min(samples.size() - 1, static_cast<size_t>(p * static_cast<double>(samples.size())));
  std::nth_element(samples.begin(), samples.begin() + static_cast<std::ptrdiff_t>(rank),
                   samples.end());
  return static_cast<double>(samples[rank]);
}

template <typename T>
double Median(const std::vector<T>& samples) {
  return Percentile(samples, 0.5);
}

// (max - min) / median over repeats: how far one run of the benchmark may be trusted.
template <typename T>
double Spread(const std::vector<T>& repeats) {
  const double median = Median(repeats);
  if (repeats.empty() || median == 0) return 0;
  const auto [low, high] = std::minmax_element(repeats.begin(), repeats.end());
  return static_cast<double>(*high - *low) / median;
}

// Command line of the form --name value or --name=value; a name without a value is "1".
class Args {
 public:
  Args(int argc, char** argv) {
    for (int i = 1; i < argc; ++i) args_.emplace_back(argv[i]);
  }
  std::string Get(std::string_view name, std::string_view fallback) const {
    for (size_t i = 0; i < args_.size(); ++i) {
      std::string_view arg = args_[i];
      if (arg.substr(0, 2) != "--") continue;
      arg.remove_prefix(2);
      if (arg == name) {
        const bool has_value = i + 1 < args_.size() && args_[i + 1].substr(0, 2) != "--";
        return has_value ? args_[i + 1] : "1";
      }
      if (arg.size() > name.size() && arg.substr(0, name.size()) == name &&
          arg[name.size()] == '=') {
        return std::string(arg.substr(name.size() + 1));
      }
    }
    return std::string(fallback);
  }
  uint64_t GetInt(std::string_view name, uint64_t fallback) const {
    const std::string text = Get(name, "");
    return text.empty() ? fallback : std::strtoull(text.c_str(), nullptr, 10);
  }

 private:
  std::vector<std::string> args_;
};

struct Result {
  std::string name;
  std::string unit;
  std::string limit_name;        // what the limit is, "goal" when it is a fixed number
  std::string better = "lower";  // or "higher"
  double value = 0;
  double limit = 0;
  uint64_t n = 0;               // single measurements behind the value
  std::vector<double> repeats;  // the value in each repeat: p50 and spread
};

// Prints each result as one JSON line on stdout and appends it to a file when one was named.
class JsonSink {
 public:
  explicit JsonSink(const std::string& path) {
    if (path.empty()) return;
    file_ = std::fopen(path.c_str(), "a");
    if (file_ == nullptr) {
      std::perror(path.c_str());
      std::exit(2);
    }
  }
  ~JsonSink() {
    if (file_ != nullptr) std::fclose(file_);
  }
  JsonSink(const JsonSink&) = delete;
  JsonSink& operator=(const JsonSink&) = delete;

  void Add(const Result& result) {
    Print(stdout, result);
    if (file_ != nullptr) Print(file_, result);
  }

 private:
  // Names are our own identifiers: nothing in them needs escaping.
  static void Print(std::FILE* out, const Result& r) {
    const double p50 = r.repeats.empty() ? r.value : Median(r.repeats);
    std::fprintf(
        out,
        "{\"name\":\"%s\",\"value\":%.6g,\"unit\":\"%s\",\"limit\":%.6g,\"limit_name\":\"%s\","
        "\"ratio\":%.4g,\"better\":\"%s\",\"n\":%llu,\"p50\":%.6g,\"spread\":%.3g}\n",
        r.name.c_str(), r.value, r.unit.c_str(), r.limit, r.limit_name.c_str(),
        r.limit == 0 ? 0.0 : r.value / r.limit, r.better.c_str(),
        static_cast<unsigned long long>(r.n), p50, Spread(r.repeats));
    std::fflush(out);
  }

  std::FILE* file_ = nullptr;
};

}  // namespace flexkv::bench
