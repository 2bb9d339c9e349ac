#include "flexkv/client/daemon_link.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <tuple>
#include <utility>

#include "flexkv/base/thread_setup.h"
#include "flexkv/client/device_wire.h"

namespace flexkv {
namespace {

constexpr int kRetryMs =
    100;  // between attempts to attach: a restarted daemon is found within that
constexpr int kHandshakeMs = 2000;  // for the Welcome
constexpr int kIdleMs = 100;

}  // namespace

Channel::Channel(SharedMapping region, SharedMapping doorbell, uint64_t boot_id,
                 const CopyOptions& copy)
    : region_(std::move(region)),
      doorbell_(std::move(doorbell)),
      boot_id_(boot_id),
      copy_options_(copy),
      view_(region_.data()),
      producer_(&view_.header->requests, view_.request_slots, view_.request_payload),
      consumer_(&view_.header->completions, view_.completion_slots, view_.completion_payload) {}

bool Channel::Post(const shm::Message& message, std::span<const std::byte> payload) {
  return alive() && producer_.Push(message, payload);
}

void Channel::Ring() { shm::RingBell(reinterpret_cast<shm::Bell*>(doorbell_.data())); }

bool Channel::Push(const shm::Message& message, std::span<const std::byte> payload) {
  if (!Post(message, payload)) return false;
  Ring();
  return true;
}

void Channel::Sleep(TimeNs timeout_ns) {
  shm::SleepOnBell(bell(), timeout_ns, [this] { return HasCompletion(); });
}

void SegmentTable::Notify(OnMapped on_mapped, OnGone on_gone) {
  on_mapped_ = std::move(on_mapped);
  on_gone_ = std::move(on_gone);
}

void SegmentTable::Add(SegmentId segment, SharedMapping mapping) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (segments_.contains(segment)) return;  // sent twice: the first stays
  }
  if (on_mapped_) on_mapped_(segment, mapping.span());
  {
    std::lock_guard<std::mutex> lock(mutex_);
    segments_.emplace(segment, std::move(mapping));
  }
  arrived_.notify_all();
}

void SegmentTable::Unmap(std::map<SegmentId, SharedMapping> segments) {
  if (!on_gone_) return;
  for (const auto& [segment, mapping] : segments) on_gone_(segment);
}

void SegmentTable::Retire(SegmentId segment) {
  std::lock_guard<std::mutex> lock(mutex_);
  auto it = segments_.find(segment);
  if (it == segments_.end()) return;
  retired_.insert_or_assign(segment, std::move(it->second));
  segments_.erase(it);
}

void SegmentTable::Sweep() {
  std::map<SegmentId, SharedMapping> gone;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    gone.swap(retired_);
  }
  Unmap(std::move(gone));
}

void SegmentTable::Clear() {
  std::map<SegmentId, SharedMapping> gone;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    gone.swap(segments_);
    gone.merge(retired_);
    retired_.clear();
  }
  Unmap(std::move(gone));
}

bool SegmentTable::HasRetired() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return !retired_.empty();
}

std::span<std::byte> SegmentTable::Find(SegmentId segment, TimeNs timeout_ns) {
  std::unique_lock<std::mutex> lock(mutex_);
  auto it = segments_.end();
  arrived_.wait_for(lock, std::chrono::nanoseconds(timeout_ns), [&] {
    it = segments_.find(segment);
    return it != segments_.end();
  });
  return it == segments_.end() ? std::span<std::byte>{} : it->second.span();
}

DaemonLink::DaemonLink(Options options)
    : options_(std::move(options)), stop_event_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  thread_ = std::thread([this] { Run(); });
}

DaemonLink::~DaemonLink() {
  const uint64_t one = 1;
  [[maybe_unused]] ssize_t written = write(stop_event_.get(), &one, sizeof(one));
  thread_.join();
}

const std::shared_ptr<Channel>& DaemonLink::Current(std::shared_ptr<Channel>* cached,
                                                    uint64_t* generation) const {
  const uint64_t now = generation_.load(std::memory_order_acquire);
  if (now != *generation) {
    std::lock_guard<std::mutex> lock(mutex_);
    *generation = now;
    *cached = channel_;
  }
  return *cached;
}

std::string DaemonLink::rejection() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return rejection_;
}

void DaemonLink::Publish(std::shared_ptr<Channel> channel) {
  std::lock_guard<std::mutex> lock(mutex_);
  channel_ = std::move(channel);
  generation_.fetch_add(1, std::memory_order_release);
}

bool DaemonLink::WaitStop(int timeout_ms) {
  pollfd waiter{stop_event_.get(), POLLIN, 0};
  return poll(&waiter, 1, timeout_ms) > 0;
}

void DaemonLink::Run() {
  SetUpThread("flexkv-link");
  while (!WaitStop(0)) {
    if (AttachOnce()) {
      Serve();
      std::shared_ptr<Channel> lost;
      {
        std::lock_guard<std::mutex> lock(mutex_);
        lost = channel_;
      }
      lost->MarkDead();
      Publish(nullptr);
      if (options_.on_lost) options_.on_lost();
      // Also when the daemon dropped us: it may hold memory for our copies until it hears that they
      // are over.
      const auto goodbye = static_cast<uint32_t>(shm::PacketType::kGoodbye);
      std::ignore = shm::SendPacket(socket_.get(), shm::AsBytes(goodbye));
      socket_.Reset();
    }
    if (WaitStop(kRetryMs)) break;
  }
}

bool DaemonLink::AttachOnce() {
  absl::StatusOr<UniqueFd> socket = shm::ConnectPacketSocket(options_.socket_path);
  if (!socket.ok()) return false;
  shm::Hello hello = options_.hello;
  hello.type = static_cast<uint32_t>(shm::PacketType::kHello);
  hello.version = shm::kProtocolVersion;
  hello.pid = static_cast<uint64_t>(getpid());
  hello.text_bytes = static_cast<uint32_t>(options_.text.size());
  std::vector<std::byte> packet(sizeof(hello) + options_.text.size());
  std::memcpy(packet.data(), &hello, sizeof(hello));
  std::memcpy(packet.data() + sizeof(hello), options_.text.data(), options_.text.size());
  if (!shm::SendPacket(socket->get(), packet).ok()) return false;

  absl::StatusOr<shm::Packet> reply =
      shm::ReceivePacket(socket->get(), sizeof(shm::Welcome) + 1024, kHandshakeMs);
  if (!reply.ok()) return false;
  shm::Welcome welcome;
  uint32_t type = 0;
  if (shm::ReadStruct(std::span<const std::byte>(reply->bytes), &type) &&
      type == static_cast<uint32_t>(shm::PacketType::kReject)) {
    std::lock_guard<std::mutex> lock(mutex_);
    rejection_.assign(reinterpret_cast<const char*>(reply->bytes.data()) + sizeof(type),
                      reply->bytes.size() - sizeof(type));
    return false;
  }
  if (!shm::ReadStruct(std::span<const std::byte>(reply->bytes), &welcome) ||
      welcome.type != static_cast<uint32_t>(shm::PacketType::kWelcome) ||
      welcome.version != shm::kProtocolVersion || welcome.region_bytes != shm::kRegionBytes ||
      welcome.boot_id == 0 || reply->fds.size() != 2) {
    return false;
  }
  absl::StatusOr<SharedMapping> region = SharedMapping::Map(reply->fds[0].get(), shm::kRegionBytes);
  absl::StatusOr<SharedMapping> doorbell =
      SharedMapping::Map(reply->fds[1].get(), sizeof(shm::Bell));
  if (!region.ok() || !doorbell.ok()) return false;
  auto channel = std::make_shared<Channel>(*std::move(region), *std::move(doorbell),
                                           welcome.boot_id, FromWire(welcome.device));
  socket_ = *std::move(socket);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    rejection_.clear();
  }
  if (options_.on_attached) options_.on_attached(channel);
  attachments_.fetch_add(1, std::memory_order_relaxed);
  Publish(std::move(channel));
  return true;
}

void DaemonLink::Serve() {
  while (true) {
    pollfd waiters[2] = {{socket_.get(), POLLIN, 0}, {stop_event_.get(), POLLIN, 0}};
    poll(waiters, 2, kIdleMs);
    if (waiters[1].revents != 0) return;
    if (options_.on_idle) options_.on_idle();
    if (waiters[0].revents == 0) continue;
    absl::StatusOr<shm::Packet> packet =
        shm::ReceivePacket(socket_.get(), sizeof(shm::SegmentPacket), 0);
    if (absl::IsUnavailable(packet.status())) continue;
    if (!packet.ok() || !HandlePacket(*packet)) return;
  }
}

bool DaemonLink::HandlePacket(const shm::Packet& packet) {
  shm::SegmentPacket segment;
  if (!shm::ReadStruct(std::span<const std::byte>(packet.bytes), &segment) ||
      options_.segments == nullptr) {
    return false;
  }
  if (segment.type == static_cast<uint32_t>(shm::PacketType::kSegmentGone)) {
    options_.segments->Retire(segment.segment);
    return true;
  }
  if (segment.type != static_cast<uint32_t>(shm::PacketType::kSegment) || packet.fds.size() != 1) {
    return false;
  }
  absl::StatusOr<SharedMapping> mapping = SharedMapping::Map(packet.fds[0].get(), segment.bytes);
  if (!mapping.ok()) return false;
  madvise(mapping->data(), mapping->size(), MADV_HUGEPAGE);  // advice only
  madvise(mapping->data(), mapping->size(), MADV_DONTDUMP);
  options_.segments->Add(segment.segment, *std::move(mapping));
  return true;
}

}  // namespace flexkv
