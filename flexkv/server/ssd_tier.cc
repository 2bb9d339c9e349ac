#include "flexkv/server/ssd_tier.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "flexkv/base/units.h"
#include "flexkv/server/config_ssd.h"
#include "spdlog/spdlog.h"

namespace flexkv {
namespace {

// One thread for each index; a device that takes its time holds up no other.
template <typename Function>
void ForEachAtOnce(size_t count, Function function) {
  std::vector<std::thread> threads;
  for (size_t i = 0; i < count; ++i) threads.emplace_back([&function, i] { function(i); });
  for (std::thread& thread : threads) thread.join();
}

struct Opened {
  absl::StatusOr<std::unique_ptr<SsdDevice>> device = absl::UnknownError("not opened");
  TimeNs took_ns = 0;
};

SsdDeviceOptions DeviceOptions(const SsdTierConfig& config, SsdDevicePort* port) {
  SsdDeviceOptions options;
  options.disk.directory = port->directory();
  options.disk.queue_depth = config.queue_depth;
  options.disk.threads = std::min(options.disk.threads, config.queue_depth);
  options.disk.direct = false;  // buffered rather than none; the log says so
  options.backend = config.backend;
  options.store.max_bytes = config.bytes_per_directory;
  options.store.max_queued_ops = config.max_commands;
  options.on_results = [port] { port->NoteResults(); };
  return options;
}

// In words of the configuration.
absl::Status Explain(const absl::Status& status, const SsdTierConfig& config,
                     const std::string& directory) {
  const std::string words(status.message());
  switch (status.code()) {
    case absl::StatusCode::kFailedPrecondition:
      if (IsInUse(status)) {
        return absl::AlreadyExistsError(absl::StrCat(
            "ssd_cache_dir: ", directory, " is in use by another process (another flexkvd?)"));
      }
      return absl::InvalidArgumentError(absl::StrCat("ssd_cache_dir: ", directory, ": ", words));
    case absl::StatusCode::kUnavailable:
      if (config.backend == SsdBackend::kIoUring && absl::StrContains(words, "io_uring")) {
        return absl::InvalidArgumentError(
            absl::StrCat("ssd_backend: ", words, "; use \"auto\" or \"threads\""));
      }
      [[fallthrough]];
    default:
      return absl::Status(status.code(), absl::StrCat("ssd_cache_dir: ", directory, ": ", words));
  }
}

void LogOpened(const std::string& directory, const SsdTierConfig& config,
               const SsdDeviceStatus& status, TimeNs took_ns) {
  spdlog::info(
      "SSD tier {}: {}, {}; {} blocks recovered in {}, {} records dropped, {} of {} in {} "
      "segment(s)",
      directory, SsdBackendName(status.backend), status.direct ? "direct I/O" : "buffered I/O",
      status.store.recovered_blocks, FormatDuration(static_cast<uint64_t>(took_ns)),
      status.store.dropped_records, FormatBytes(status.store.file_bytes),
      FormatBytes(config.bytes_per_directory), status.segments.size());
  if (!status.direct) {
    spdlog::warn(
        "SSD tier {}: its file system has no direct I/O; transfers go through the page cache",
        directory);
  }
  if (status.backend == SsdBackend::kIoUring && !config.register_memory) {
    spdlog::info("SSD tier {}: arena memory is not registered, for prefault is off", directory);
  }
  if (status.backend == SsdBackend::kThreads && config.backend == SsdBackend::kAuto) {
    spdlog::warn("SSD tier {}: io_uring is refused here, threads are used", directory);
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<SsdTier>> SsdTier::Open(const SsdTierConfig& config,
                                                       MemfdSegmentStore* segments) {
  std::unique_ptr<SsdTier> tier(new SsdTier(segments));
  for (const std::string& directory : config.directories) {
    tier->ports_.push_back(std::make_unique<SsdDevicePort>(directory, &tier->memory_, config.wake));
  }
  std::vector<Opened> opened(tier->ports_.size());
  ForEachAtOnce(opened.size(), [&](size_t i) {
    const SteadyClock clock;
    const TimeNs start = clock.Now();
    opened[i].device = SsdDevice::Open(DeviceOptions(config, tier->ports_[i].get()));
    opened[i].took_ns = clock.Now() - start;
  });
  for (size_t i = 0; i < opened.size(); ++i) {
    if (!opened[i].device.ok())
      return Explain(opened[i].device.status(), config, config.directories[i]);
  }
  std::vector<SsdDevicePort*> ports;
  for (size_t i = 0; i < opened.size(); ++i) {
    SsdDevicePort* port = ports.emplace_back(tier->ports_[i].get());
    LogOpened(port->directory(), config, (*opened[i].device)->status(), opened[i].took_ns);
    port->Attach(*std::move(opened[i].device), opened[i].took_ns, config.bytes_per_directory);
  }
  tier->memory_.SetPorts(std::move(ports), config.register_memory);
  return tier;
}

void SsdTier::Close() {
  ForEachAtOnce(ports_.size(), [this](size_t i) { ports_[i]->Close(); });
  memory_.Abandon();
}

std::vector<SsdPort*> SsdTier::ports() const {
  std::vector<SsdPort*> ports;
  for (const auto& port : ports_) ports.push_back(port.get());
  return ports;
}

bool SsdTier::HasResults() const {
  return std::any_of(ports_.begin(), ports_.end(),
                     [](const auto& port) { return port->HasResults(); });
}

bool SsdTier::Collect() {
  const bool any = HasResults();
  for (const auto& port : ports_) port->Collect();
  return any;
}

void SsdTier::Tick(TimeNs now) {
  memory_.TellPrefaulted();
  for (const auto& port : ports_) port->Sample(now);
}

std::vector<SsdDeviceSnapshot> SsdTier::Snapshot(TimeNs now) const {
  std::vector<SsdDeviceSnapshot> devices;
  for (const auto& port : ports_) devices.push_back(port->Snapshot(now));
  return devices;
}

}  // namespace flexkv
