#include "flexkv/transfer/cuda/pinned_segments.h"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "flexkv/base/thread_setup.h"

namespace flexkv::cuda {
namespace {

constexpr auto kRetryAfterCapture = std::chrono::milliseconds(20);
constexpr size_t kMaxMessage = 60;  // of the device; the whole sentence must fit a report

bool Fatal(Error error) { return error == Error::kSticky || error == Error::kUnloading; }

std::string RefusedSentence(const char* message) {
  const std::string reason = message == nullptr ? "" : std::string(message).substr(0, kMaxMessage);
  return absl::StrCat("the CPU cache cannot be locked in memory in full (", reason,
                      "), the rest is copied more slowly: raise the limit (ulimit -l; containers: "
                      "--ulimit memlock=-1) or make the cache smaller");
}

constexpr char kForeignSentence[] =
    "a part of the CPU cache is registered with the GPU by something else and copied more slowly";

}  // namespace

struct PinnedSegments::Impl {
  enum class Piece : uint8_t { kNone, kHeld, kForeign };
  struct Segment {
    SegmentId id = 0;
    std::byte* base = nullptr;
    uint64_t bytes = 0;
    std::vector<Piece> pieces;
    size_t next = 0;  // pieces before it have been tried
    bool removing = false;
  };

  Impl(const Options& the_options, Api* the_api)
      : piece_bytes(std::max<uint64_t>(the_options.piece_bytes, 1)), api(the_api) {
    // Signals are the engine's business: its handlers must not run on our thread.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    thread = std::thread([this] { Run(); });
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  uint64_t PieceBytes(const Segment& segment, size_t piece) const {
    return std::min(piece_bytes, segment.bytes - piece * piece_bytes);
  }

  // All of these require `mutex`.
  Segment* FindAddress(const std::byte* address) const;
  uint64_t Held(const std::byte* address) const;
  bool NextPiece(Segment** segment, size_t* piece);
  void Register(std::unique_lock<std::mutex>& lock, Segment* segment, size_t piece);
  void GiveBack(std::unique_lock<std::mutex>& lock, Segment* segment);
  void Refuse(const char* message) {
    refused = true;
    problem = RefusedSentence(message);
  }

  void Run();
  bool Enter(std::unique_lock<std::mutex>& lock);

  const uint64_t piece_bytes;
  Api* const api;

  // Held for table work only, never during a call of the device.
  mutable std::mutex mutex;
  std::condition_variable work, gone;
  std::map<SegmentId, std::unique_ptr<Segment>> segments;
  std::vector<Segment*> by_address;  // ascending; without those being removed
  const std::byte* preferred = nullptr;
  uint64_t mapped_bytes = 0, pinned_bytes = 0;
  bool refused = false, foreign = false;
  std::string problem;
  bool stopping = false;
  bool dead = false;   // the device is lost, or the process is ending
  bool later = false;  // a capture is under way: the last piece is tried again soon
  std::thread thread;
};

PinnedSegments::Impl::Segment* PinnedSegments::Impl::FindAddress(const std::byte* address) const {
  auto it = std::upper_bound(
      by_address.begin(), by_address.end(), address,
      [](const std::byte* at, const Segment* segment) { return at < segment->base; });
  if (it == by_address.begin()) return nullptr;
  Segment* segment = *--it;
  return address < segment->base + segment->bytes ? segment : nullptr;
}

uint64_t PinnedSegments::Impl::Held(const std::byte* address) const {
  const Segment* segment = FindAddress(address);
  if (segment == nullptr) return 0;
  const uint64_t offset = static_cast<uint64_t>(address - segment->base);
  const size_t piece = offset / piece_bytes;
  if (segment->pieces[piece] != Piece::kHeld) return 0;
  return piece * piece_bytes + PieceBytes(*segment, piece) - offset;
}

bool PinnedSegments::Impl::NextPiece(Segment** segment, size_t* piece) {
  if (refused || dead) return false;
  if (const std::byte* address = std::exchange(preferred, nullptr); address != nullptr) {
    *segment = FindAddress(address);
    if (*segment != nullptr) {
      *piece = static_cast<uint64_t>(address - (*segment)->base) / piece_bytes;
      if ((*segment)->pieces[*piece] == Piece::kNone) return true;
    }
  }
  for (const auto& [id, at] : segments) {
    if (at->removing) continue;
    while (at->next < at->pieces.size() && at->pieces[at->next] != Piece::kNone) ++at->next;
    if (at->next == at->pieces.size()) continue;
    *segment = at.get();
    *piece = at->next;
    return true;
  }
  return false;
}

// The segment stays: only this thread erases.
void PinnedSegments::Impl::Register(std::unique_lock<std::mutex>& lock, Segment* segment,
                                    size_t piece) {
  std::byte* const memory = segment->base + piece * piece_bytes;
  const uint64_t bytes = PieceBytes(*segment, piece);
  lock.unlock();
  const Error error = api->RegisterHost(memory, bytes);
  const std::string message = Ok(error) || Fatal(error) ? "" : api->LastMessage();
  lock.lock();
  if (Ok(error)) {
    segment->pieces[piece] = Piece::kHeld;
    pinned_bytes += bytes;
  } else if (Fatal(error)) {
    dead = true;
  } else if (error == Error::kAlreadyRegistered) {
    segment->pieces[piece] = Piece::kForeign;
    foreign = true;
  } else if (error == Error::kCapture) {
    later = true;
  } else {
    Refuse(message.c_str());
  }
}

void PinnedSegments::Impl::GiveBack(std::unique_lock<std::mutex>& lock, Segment* segment) {
  for (size_t piece = 0; piece < segment->pieces.size() && !dead; ++piece) {
    if (segment->pieces[piece] != Piece::kHeld) continue;
    std::byte* const memory = segment->base + piece * piece_bytes;
    lock.unlock();
    Error error = Error::kOk;
    do {
      if (error == Error::kCapture) std::this_thread::sleep_for(kRetryAfterCapture);
      error = api->UnregisterHost(memory);
    } while (error == Error::kCapture);
    lock.lock();
    pinned_bytes -= PieceBytes(*segment, piece);
    if (Fatal(error)) dead = true;
  }
  mapped_bytes -= segment->bytes;
  segments.erase(segment->id);
  refused = foreign = false;
  problem.clear();
  gone.notify_all();
}

bool PinnedSegments::Impl::Enter(std::unique_lock<std::mutex>& lock) {
  lock.unlock();
  SetUpThread("flexkv-pin");
  Error error = api->RelaxCapture();
  if (Ok(error)) error = api->UseDevice();
  const std::string message = Ok(error) || Fatal(error) ? "" : api->LastMessage();
  lock.lock();
  if (Ok(error)) return true;
  if (Fatal(error)) {
    dead = true;
  } else {
    Refuse(message.c_str());
  }
  return false;
}

void PinnedSegments::Impl::Run() {
  std::unique_lock<std::mutex> lock(mutex);
  bool entered = Enter(lock);
  for (;;) {
    auto leaving = std::find_if(segments.begin(), segments.end(), [this](const auto& entry) {
      return entry.second->removing || stopping;
    });
    Segment* segment = nullptr;
    size_t piece = 0;
    if (leaving != segments.end()) {
      GiveBack(lock, leaving->second.get());
    } else if (stopping) {
      return;
    } else if (std::exchange(later, false)) {
      work.wait_for(lock, kRetryAfterCapture);
    } else if (!NextPiece(&segment, &piece)) {
      work.wait(lock);
    } else if (entered || (entered = Enter(lock))) {
      // Enter gives the mutex up: a Remove may have come.
      if (!segment->removing) Register(lock, segment, piece);
    }
  }
}

PinnedSegments::PinnedSegments(const Options& options, Api* api)
    : impl_(std::make_unique<Impl>(options, api)) {}

PinnedSegments::~PinnedSegments() {
  {
    std::lock_guard<std::mutex> lock(impl_->mutex);
    impl_->stopping = true;
  }
  impl_->work.notify_all();
  impl_->thread.join();
}

void PinnedSegments::Add(SegmentId segment, std::span<std::byte> memory) {
  if (memory.empty()) return;
  {
    std::lock_guard<std::mutex> lock(impl_->mutex);
    auto [it, added] = impl_->segments.try_emplace(segment);
    if (!added) return;
    it->second = std::make_unique<Impl::Segment>();
    Impl::Segment* at = it->second.get();
    at->id = segment;
    at->base = memory.data();
    at->bytes = memory.size();
    at->pieces.resize((memory.size() + impl_->piece_bytes - 1) / impl_->piece_bytes);
    impl_->mapped_bytes += memory.size();
    impl_->by_address.insert(
        std::upper_bound(impl_->by_address.begin(), impl_->by_address.end(), at,
                         [](const auto* a, const auto* b) { return a->base < b->base; }),
        at);
    impl_->refused = false;
    impl_->problem.clear();
  }
  impl_->work.notify_all();
}

void PinnedSegments::Remove(SegmentId segment) {
  std::unique_lock<std::mutex> lock(impl_->mutex);
  auto it = impl_->segments.find(segment);
  if (it == impl_->segments.end()) return;
  std::erase(impl_->by_address, it->second.get());
  it->second->removing = true;
  impl_->work.notify_all();
  impl_->gone.wait(lock, [&] { return !impl_->segments.contains(segment); });
}

bool PinnedSegments::Holds(const std::byte* address, uint64_t bytes) const {
  std::lock_guard<std::mutex> lock(impl_->mutex);
  while (bytes > 0) {
    const uint64_t held = impl_->Held(address);
    if (held == 0) return false;
    if (held >= bytes) break;
    address += held;
    bytes -= held;
  }
  return true;
}

uint64_t PinnedSegments::HeldBytes(const std::byte* address) const {
  std::lock_guard<std::mutex> lock(impl_->mutex);
  return impl_->Held(address);
}

void PinnedSegments::Prefer(const std::byte* address) {
  std::lock_guard<std::mutex> lock(impl_->mutex);
  impl_->preferred = address;  // the thread is at work as long as there is something to register
}

void PinnedSegments::Abandon() {
  std::lock_guard<std::mutex> lock(impl_->mutex);
  impl_->dead = true;
  impl_->work.notify_all();
}

PinnedSegments::State PinnedSegments::state() const {
  std::lock_guard<std::mutex> lock(impl_->mutex);
  State state{.mapped_bytes = impl_->mapped_bytes,
              .pinned_bytes = impl_->pinned_bytes,
              .refused = impl_->refused,
              .problem = impl_->problem};
  if (!state.refused && impl_->foreign) state.problem = kForeignSentence;
  return state;
}

}  // namespace flexkv::cuda
