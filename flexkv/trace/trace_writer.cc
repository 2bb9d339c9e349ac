// The two threads share the ring, the labels of namespaces (under a mutex: they change when an
// engine attaches, not by request), counters, and the order to stop. What the writer's thread
// formats is lost as a whole when its file fails; the next file starts with what readers need
// (configuration and namespaces), so each file stands alone.
#include "flexkv/trace/trace_writer.h"

#include <sys/random.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "flexkv/base/thread_setup.h"
#include "flexkv/trace/record_json.h"
#include "flexkv/trace/trace_output.h"
#include "nlohmann/json.hpp"

namespace flexkv::trace {
namespace {

using SteadyClock = std::chrono::steady_clock;

constexpr auto kIdleWait = std::chrono::milliseconds(100);
constexpr size_t kMaxLabelBytes = 512;

uint64_t WallClockMs() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::milliseconds>(now).count());
}

struct Secrets {
  uint64_t run = 0;
  HashKey key;
};

absl::StatusOr<Secrets> MakeSecrets() {
  Secrets secrets;
  if (getrandom(&secrets, sizeof(secrets), 0) != static_cast<ssize_t>(sizeof(secrets))) {
    return absl::UnavailableError("no random bytes for the trace's salt");
  }
  return secrets;
}

absl::Status CheckOptions(TraceWriterOptions* options) {
  if (options->path.empty() || options->path.back() == '/') {
    return absl::InvalidArgumentError("the trace needs the path of a file");
  }
  if (options->ring_bytes < 64 << 10) {
    return absl::InvalidArgumentError("the trace's ring needs at least 64 KiB");
  }
  const auto config = nlohmann::json::parse(options->config_json, nullptr, false);
  if (!config.is_object()) {
    return absl::InvalidArgumentError("the trace's configuration is no JSON object");
  }
  options->config_json = config.dump();  // one line
  options->ring_bytes = std::bit_ceil(options->ring_bytes);
  if (options->start_unix_ms == 0) options->start_unix_ms = WallClockMs();
  return absl::OkStatus();
}

// Everything that the writer's thread uses. Shared with it, because a thread that hangs in a broken
// disk outlives the writer.
struct State {
  explicit State(const TraceWriterOptions& given)
      : options(given),
        ring(given.ring_bytes, WordsPerHash(given.hashes)),
        output(options, [this](uint64_t file) { return ConfigText(file); }) {}

  std::string ConfigText(uint64_t file) const {
    std::string text;
    AppendConfigLine({.run = run,
                      .file = file,
                      .unix_ms = options.start_unix_ms,
                      .hashes = options.hashes,
                      .config_json = options.config_json},
                     &text);
    return text;
  }

  const TraceWriterOptions options;
  RecordStyle style;
  uint64_t run = 0;
  RecordRing ring;
  TraceOutput output;  // the thread's, once it runs

  std::mutex mutex;
  std::unordered_map<NamespaceId, std::string> labels;  // under mutex
  bool done = false;                                    // under mutex: the thread has ended
  SteadyClock::time_point deadline;  // under mutex until `stop` is set, then constant
  std::condition_variable wake, ended;

  std::atomic<bool> stop{false};
  std::atomic<uint64_t> records{0}, dropped{0}, lost{0};
  std::atomic<uint64_t> written_bytes{0}, files{0}, disk_errors{0};
};

class WriterThread {
 public:
  explicit WriterThread(std::shared_ptr<State> state)
      : state_(std::move(state)), buffer_limit_(BufferLimit(state_->options)) {}

  void Run() {
    SetUpThread("flexkv-trace");
    setpriority(PRIO_PROCESS, static_cast<id_t>(syscall(SYS_gettid)), 10);
    flushed_at_ = SteadyClock::now();
    while (true) {
      const bool stop = state_->stop.load(std::memory_order_acquire);
      const bool drained = Drain(stop);
      Publish();
      if (stop) break;
      const auto age = SteadyClock::now() - flushed_at_;
      if (age >= std::chrono::nanoseconds(state_->options.flush_every_ns)) FlushAll();
      if (!drained) Wait();
    }
    WriteBuffer();
    WriteDrops();
    state_->output.Close();
    Publish();
    std::lock_guard<std::mutex> lock(state_->mutex);
    state_->done = true;
    state_->ended.notify_all();
  }

 private:
  static constexpr int kRecordsAtOnce = 256;

  static size_t BufferLimit(const TraceWriterOptions& options) {
    const uint64_t limit = options.rotate_bytes == 0 ? UINT64_MAX : options.rotate_bytes / 8;
    return static_cast<size_t>(std::clamp<uint64_t>(limit, 1, 256 << 10));
  }

  // True: there were records. When stopping: all of them, or as far as the deadline allows.
  bool Drain(bool stop) {
    RecordRing::Entry entry;
    int count = 0;
    while (state_->ring.Front(&entry)) {
      if (stop && SteadyClock::now() > state_->deadline) {
        ++too_late_;
      } else {
        Format(entry);
      }
      state_->ring.Pop();
      if (++count >= kRecordsAtOnce && !stop) break;
    }
    return count > 0;
  }

  void Format(const RecordRing::Entry& entry) {
    NameOnce(entry.record->ns);
    AppendRecordLine(entry, state_->style, &buffer_);
    ++buffered_;
    if (buffer_.size() >= buffer_limit_) {
      WriteBuffer();
      WriteDrops();
    }
  }

  // Readers need the label before the first record of the namespace in this file.
  void NameOnce(NamespaceId id) {
    if (!named_.insert(id).second) return;
    std::string label;
    {
      std::lock_guard<std::mutex> lock(state_->mutex);
      const auto found = state_->labels.find(id);
      label = found != state_->labels.end() ? found->second : absl::StrCat("namespace ", id);
    }
    AppendNamespaceLine(id, label, &buffer_);
  }

  void WriteBuffer() {
    if (buffer_.empty()) return;
    state_->output.Append(buffer_, buffered_);
    PublishLost();
    buffer_.clear();
    buffered_ = 0;
    ForgetNamesOfClosedFile();
  }

  void ForgetNamesOfClosedFile() {
    if (!state_->output.has_file()) named_.clear();
  }

  void WriteDrops() {
    const uint64_t missing = state_->dropped.load(std::memory_order_relaxed) +
                             state_->lost.load(std::memory_order_relaxed);
    if (missing == said_missing_) return;
    std::string line;
    AppendDropLine(missing - said_missing_, &line);
    if (state_->output.Append(line, 0)) said_missing_ = missing;
    ForgetNamesOfClosedFile();
  }

  void FlushAll() {
    WriteBuffer();
    WriteDrops();
    state_->output.Flush();
    ForgetNamesOfClosedFile();
    flushed_at_ = SteadyClock::now();
  }

  void Wait() {
    std::unique_lock<std::mutex> lock(state_->mutex);
    if (state_->stop.load(std::memory_order_acquire)) return;
    state_->wake.wait_for(lock, kIdleWait);
  }

  void PublishLost() {
    state_->lost.store(state_->output.lost() + too_late_, std::memory_order_relaxed);
  }

  void Publish() {
    PublishLost();
    state_->written_bytes.store(state_->output.written_bytes(), std::memory_order_relaxed);
    state_->files.store(state_->output.files(), std::memory_order_relaxed);
    state_->disk_errors.store(state_->output.errors(), std::memory_order_relaxed);
  }

  const std::shared_ptr<State> state_;
  const size_t buffer_limit_;
  std::string buffer_;                     // lines
  uint64_t buffered_ = 0;                  // records in it
  std::unordered_set<NamespaceId> named_;  // in the present file
  uint64_t too_late_ = 0;                  // records left when the time to close was over
  uint64_t said_missing_ = 0;
  SteadyClock::time_point flushed_at_;
};

class TraceWriterImpl : public TraceWriter {
 public:
  explicit TraceWriterImpl(std::shared_ptr<State> state)
      : state_(std::move(state)), thread_([shared = state_] { WriterThread(shared).Run(); }) {}
  ~TraceWriterImpl() override { Close(kNsPerSecond); }

  void Record(const TraceRecord& record, std::span<const BlockHash> chain) override {
    if (!state_->ring.Push(record, HashesToWrite(record, chain))) {
      state_->dropped.fetch_add(1, std::memory_order_relaxed);
      return;
    }
    state_->records.fetch_add(1, std::memory_order_relaxed);
    // The thread looks by itself every 100 ms; a system call only where that would be too late.
    const bool filling = state_->ring.filling();
    if (filling && !woken_) state_->wake.notify_one();
    woken_ = filling;
  }

  void NameNamespace(NamespaceId id, std::string_view label) override {
    std::lock_guard<std::mutex> lock(state_->mutex);
    state_->labels[id] = std::string(label.substr(0, kMaxLabelBytes));
  }

  bool Close(TimeNs timeout_ns) override {
    if (closed_) return closed_in_time_;
    closed_ = true;
    const auto deadline = SteadyClock::now() + std::chrono::nanoseconds(timeout_ns);
    std::unique_lock<std::mutex> lock(state_->mutex);
    state_->deadline = deadline;
    state_->stop.store(true, std::memory_order_release);
    state_->wake.notify_all();
    const bool ended = state_->ended.wait_until(lock, deadline, [this] { return state_->done; });
    lock.unlock();
    if (ended) {
      thread_.join();
    } else {
      thread_.detach();  // it hangs in the disk; State lives as long as it does
    }
    closed_in_time_ = ended && SteadyClock::now() <= deadline + kIdleWait;
    return closed_in_time_;
  }

  TraceWriterStats stats() const override {
    TraceWriterStats stats;
    stats.records = state_->records.load(std::memory_order_relaxed);
    stats.dropped = state_->dropped.load(std::memory_order_relaxed);
    stats.lost = state_->lost.load(std::memory_order_relaxed);
    stats.written_bytes = state_->written_bytes.load(std::memory_order_relaxed);
    stats.files = state_->files.load(std::memory_order_relaxed);
    stats.disk_errors = state_->disk_errors.load(std::memory_order_relaxed);
    return stats;
  }

 private:
  const std::shared_ptr<State> state_;
  std::thread thread_;
  bool woken_ = false;  // the producer's
  bool closed_ = false, closed_in_time_ = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<TraceWriter>> TraceWriter::Open(const TraceWriterOptions& given) {
  TraceWriterOptions options = given;
  absl::Status status = CheckOptions(&options);
  if (!status.ok()) return status;
  auto state = std::make_shared<State>(options);
  const absl::StatusOr<Secrets> secrets = MakeSecrets();
  if (!secrets.ok()) return secrets.status();
  state->run = secrets->run;
  state->style.key = secrets->key;
  state->style.hashes = options.hashes;
  state->style.start_ns = options.start_ns;
  status = state->output.Open();
  if (!status.ok()) return status;
  return std::make_unique<TraceWriterImpl>(std::move(state));
}

}  // namespace flexkv::trace
