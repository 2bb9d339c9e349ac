#include "flexkv/storage/ssd/ssd_device.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>

#include <iterator>
#include <map>
#include <mutex>
#include <thread>
#include <variant>

#include "absl/strings/str_cat.h"
#include "flexkv/base/unique_fd.h"

namespace flexkv {
namespace {

constexpr TimeNs kIdlePollNs = 100 * kNsPerMs;
constexpr TimeNs kStatusEveryNs = 100 * kNsPerMs;
constexpr TimeNs kCloseNs = 2 * kNsPerSecond;

struct FreeCommand {
  uint64_t tag;
  SsdPlace place;
};
struct RaiseCommand {
  uint64_t tag;
  NamespaceDigest ns;
  uint32_t epoch;
};
struct CreateCommand {
  uint64_t tag;
  SsdShape shape;
};
struct DropCommand {
  uint64_t tag;
  uint32_t segment;
};
struct AddMemoryCommand {
  uint64_t tag;
  std::span<std::byte> memory;
};
struct RemoveMemoryCommand {
  uint64_t tag;
  const std::byte* memory;
};
using Command = std::variant<SsdWrite, SsdRead, FreeCommand, RaiseCommand, CreateCommand,
                             DropCommand, AddMemoryCommand, RemoveMemoryCommand>;

// What is worth carrying out when nobody waits for a result any more: it leaves a trace on the disk
// that is of use, and does not block.
bool CountsAtTheEnd(const Command& command) {
  return std::holds_alternative<SsdWrite>(command) ||
         std::holds_alternative<FreeCommand>(command) ||
         std::holds_alternative<RaiseCommand>(command);
}

// A block device is always opened so. Every store has one of these files at least; whether it opens
// for direct I/O is what the disk went by.
bool HasDirectIo(const std::string& directory) {
  struct stat info {};
  if (stat(directory.c_str(), &info) == 0 && S_ISBLK(info.st_mode)) return true;
  for (const char* name : {"/superblock.a", "/superblock.b"}) {
    const std::string path = absl::StrCat(directory, name);
    const UniqueFd fd(open(path.c_str(), O_RDONLY | O_DIRECT | O_NOFOLLOW | O_CLOEXEC));
    if (fd.valid()) return true;
  }
  return false;
}

}  // namespace

struct SsdDevice::Impl {
  explicit Impl(SsdDeviceOptions device_options) : options(std::move(device_options)) {}

  absl::Status OpenDisk();
  absl::Status Open();
  void Run();
  // Carries out what came in; false when the owner wants to end.
  bool TakeCommands();
  void Execute(Command command);
  void End(SsdDeviceResult result);
  void AddMemory(const AddMemoryCommand& command);
  void RemoveMemory(const RemoveMemoryCommand& command);
  void Publish();
  void Close();
  bool Submit(Command command);

  const SsdDeviceOptions options;
  SteadyClock clock;

  // The device's thread only, once it runs.
  std::unique_ptr<Disk> disk;
  std::unique_ptr<SsdStore> store;
  SsdBackend backend = SsdBackend::kAuto;
  std::vector<Command> commands;
  std::vector<SsdResult> polled;
  std::vector<SsdDeviceResult> ended;
  TimeNs status_at = 0;
  bool direct = true;
  struct Memory {
    size_t bytes = 0;
    bool registered = false;
  };
  std::map<const std::byte*, Memory> memory;  // added and not removed
  uint64_t memory_bytes = 0, registered_bytes = 0;

  std::vector<RecoveredBlock> recovered;  // between Open and TakeRecovered
  std::vector<std::pair<NamespaceDigest, uint32_t>> epochs;

  mutable std::mutex mutex;
  std::vector<Command> incoming;         // guarded by mutex
  std::vector<SsdDeviceResult> results;  // guarded by mutex
  uint32_t under_way = 0;                // guarded by mutex: accepted, result not taken
  SsdDeviceStatus told;                  // guarded by mutex
  bool stopping = false;                 // guarded by mutex
  std::thread thread;
};

absl::Status SsdDevice::Impl::OpenDisk() {
  if (options.backend != SsdBackend::kThreads) {
    absl::StatusOr<std::unique_ptr<Disk>> ring = MakeUringDisk(options.disk);
    const bool refused = absl::IsUnavailable(ring.status());
    if (!ring.ok() && !(refused && options.backend == SsdBackend::kAuto)) return ring.status();
    if (ring.ok()) {
      disk = *std::move(ring);
      backend = SsdBackend::kIoUring;
      return absl::OkStatus();
    }
  }
  absl::StatusOr<std::unique_ptr<Disk>> threads = MakeThreadDisk(options.disk);
  if (!threads.ok()) return threads.status();
  disk = *std::move(threads);
  backend = SsdBackend::kThreads;
  return absl::OkStatus();
}

absl::Status SsdDevice::Impl::Open() {
  if (absl::Status status = OpenDisk(); !status.ok()) return status;
  absl::StatusOr<std::unique_ptr<SsdStore>> opened =
      SsdStore::Open(options.store, disk.get(), &clock);
  if (!opened.ok()) return opened.status();
  store = *std::move(opened);
  recovered = store->TakeRecovered();
  epochs = store->Epochs();
  direct = HasDirectIo(options.disk.directory);
  Publish();
  thread = std::thread([this] { Run(); });
  return absl::OkStatus();
}

void SsdDevice::Impl::Run() {
  pthread_setname_np(pthread_self(), "flexkvd-ssd");
  while (TakeCommands()) {
    store->Poll(kIdlePollNs, &polled);
    for (SsdResult& result : polled) End({result.tag, std::move(result.status)});
    polled.clear();
    Publish();
  }
  Close();
}

bool SsdDevice::Impl::TakeCommands() {
  bool last = false;
  {
    std::lock_guard<std::mutex> lock(mutex);
    last = stopping;
    commands.swap(incoming);
  }
  for (Command& command : commands) {
    if (!last || CountsAtTheEnd(command)) Execute(std::move(command));
  }
  commands.clear();
  if (last) return false;
  // What ended at once is told before the thread waits for the disk.
  Publish();
  return true;
}

void SsdDevice::Impl::Execute(Command command) {
  struct Visitor {
    Impl* impl;
    // The store takes as many ops as this class takes commands: it refuses none of them.
    void operator()(SsdWrite& op) { impl->store->SubmitWrite(std::move(op)); }
    void operator()(SsdRead& op) { impl->store->SubmitRead(std::move(op)); }
    void operator()(FreeCommand& op) { impl->store->SubmitFree(op.tag, op.place); }
    void operator()(RaiseCommand& op) { impl->store->SubmitRaiseEpoch(op.tag, op.ns, op.epoch); }
    void operator()(CreateCommand& op) {
      const absl::StatusOr<uint32_t> segment = impl->store->CreateSegment(op.shape);
      impl->End({op.tag, segment.status(), segment.value_or(0)});
    }
    void operator()(DropCommand& op) { impl->End({op.tag, impl->store->DropSegment(op.segment)}); }
    void operator()(AddMemoryCommand& op) { impl->AddMemory(op); }
    void operator()(RemoveMemoryCommand& op) { impl->RemoveMemory(op); }
  };
  std::visit(Visitor{this}, command);
}

void SsdDevice::Impl::End(SsdDeviceResult result) { ended.push_back(std::move(result)); }

// A refusal of the kernel costs speed only.
void SsdDevice::Impl::AddMemory(const AddMemoryCommand& command) {
  const bool registered = disk->RegisterMemory(command.memory);
  const auto [entry, added] =
      memory.try_emplace(command.memory.data(), Memory{command.memory.size(), registered});
  if (added) {
    memory_bytes += command.memory.size();
    registered_bytes += registered ? command.memory.size() : 0;
  }
  End({.tag = command.tag, .registered = registered});
}

void SsdDevice::Impl::RemoveMemory(const RemoveMemoryCommand& command) {
  disk->UnregisterMemory(command.memory);
  if (const auto entry = memory.find(command.memory); entry != memory.end()) {
    memory_bytes -= entry->second.bytes;
    registered_bytes -= entry->second.registered ? entry->second.bytes : 0;
    memory.erase(entry);
  }
  End({.tag = command.tag});
}

void SsdDevice::Impl::Publish() {
  const TimeNs now = clock.Now();
  const bool status_due = status_at == 0 || now - status_at >= kStatusEveryNs;
  if (ended.empty() && !status_due) return;
  const bool news = !ended.empty();
  {
    std::lock_guard<std::mutex> lock(mutex);
    std::move(ended.begin(), ended.end(), std::back_inserter(results));
    if (status_due) {
      told = {.backend = backend,
              .direct = direct,
              .memory_bytes = memory_bytes,
              .registered_bytes = registered_bytes,
              .store = store->stats(),
              .disk = disk->stats(),
              .segments = store->segments()};
    }
  }
  ended.clear();
  if (status_due) status_at = now;
  if (news && options.on_results) options.on_results();
}

// Everything that was written becomes durable; then the store drops what is left and waits for what
// the kernel holds.
void SsdDevice::Impl::Close() {
  const TimeNs deadline = clock.Now() + kCloseNs;
  while (!store->idle() && clock.Now() < deadline) {
    store->Flush();
    store->Poll(10 * kNsPerMs, &polled);
    polled.clear();
  }
  store.reset();
  disk.reset();
}

bool SsdDevice::Impl::Submit(Command command) {
  {
    std::lock_guard<std::mutex> lock(mutex);
    if (under_way >= options.store.max_queued_ops) return false;
    ++under_way;
    incoming.push_back(std::move(command));
    if (incoming.size() > 1) return true;  // woken already
  }
  disk->Wake();
  return true;
}

SsdDevice::SsdDevice(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

absl::StatusOr<std::unique_ptr<SsdDevice>> SsdDevice::Open(SsdDeviceOptions options) {
  auto impl = std::make_unique<Impl>(std::move(options));
  if (absl::Status status = impl->Open(); !status.ok()) return status;
  return std::unique_ptr<SsdDevice>(new SsdDevice(std::move(impl)));
}

SsdDevice::~SsdDevice() {
  {
    std::lock_guard<std::mutex> lock(impl_->mutex);
    impl_->stopping = true;
    impl_->disk->Wake();  // under the lock: the thread destroys the disk once it saw `stopping`
  }
  impl_->thread.join();
}

std::vector<RecoveredBlock> SsdDevice::TakeRecovered() { return std::move(impl_->recovered); }

std::vector<std::pair<NamespaceDigest, uint32_t>> SsdDevice::TakeEpochs() {
  return std::move(impl_->epochs);
}

bool SsdDevice::Write(SsdWrite op) { return impl_->Submit(std::move(op)); }
bool SsdDevice::Read(SsdRead op) { return impl_->Submit(std::move(op)); }
bool SsdDevice::Free(uint64_t tag, SsdPlace place) {
  return impl_->Submit(FreeCommand{tag, place});
}
bool SsdDevice::RaiseEpoch(uint64_t tag, const NamespaceDigest& ns, uint32_t epoch) {
  return impl_->Submit(RaiseCommand{tag, ns, epoch});
}
bool SsdDevice::CreateSegment(uint64_t tag, SsdShape shape) {
  return impl_->Submit(CreateCommand{tag, std::move(shape)});
}
bool SsdDevice::DropSegment(uint64_t tag, uint32_t segment) {
  return impl_->Submit(DropCommand{tag, segment});
}
bool SsdDevice::AddMemory(uint64_t tag, std::span<std::byte> memory) {
  return impl_->Submit(AddMemoryCommand{tag, memory});
}
bool SsdDevice::RemoveMemory(uint64_t tag, const std::byte* memory) {
  return impl_->Submit(RemoveMemoryCommand{tag, memory});
}

void SsdDevice::TakeResults(std::vector<SsdDeviceResult>* results) {
  std::lock_guard<std::mutex> lock(impl_->mutex);
  impl_->under_way -= static_cast<uint32_t>(impl_->results.size());
  std::move(impl_->results.begin(), impl_->results.end(), std::back_inserter(*results));
  impl_->results.clear();
}

SsdDeviceStatus SsdDevice::status() const {
  std::lock_guard<std::mutex> lock(impl_->mutex);
  SsdDeviceStatus status = impl_->told;
  status.commands = impl_->under_way;
  return status;
}

}  // namespace flexkv
