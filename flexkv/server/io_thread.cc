#include "flexkv/server/io_thread.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "flexkv/server/log.h"
#include "proto/packet_socket.h"
#include "proto/shm_layout.h"
#include "spdlog/spdlog.h"

namespace flexkv {
namespace {

// What an epoll event is about: the client's number and which of its descriptors.
enum Source : uint64_t { kListener = 0, kWake = 1, kSocket = 2, kPidfd = 3 };
uint64_t Token(uint64_t id, Source source) { return id << 2 | source; }

constexpr size_t kMaxLatePacket = 256;  // after the handshake only goodbyes come
constexpr int kPacketsPerRound = 16;

absl::Status MakeRegion(uint64_t boot_id, NewClient* client) {
  absl::StatusOr<UniqueFd> fd = MakeSealedMemfd("flexkv-client", shm::kRegionBytes);
  if (!fd.ok()) return fd.status();
  absl::StatusOr<SharedMapping> mapping = SharedMapping::Map(fd->get(), shm::kRegionBytes);
  if (!mapping.ok()) return mapping.status();
  auto* header =
      reinterpret_cast<shm::RegionHeader*>(mapping->data());  // atomics of a fresh memfd are zero
  header->magic = shm::kRegionMagic;
  header->version = shm::kProtocolVersion;
  header->ring_slots = shm::kRingSlots;
  header->payload_bytes = shm::kPayloadBytes;
  header->boot_id = boot_id;
  header->client_id = client->link->client_id;
  client->region_fd = std::move(*fd);
  client->region = std::move(*mapping);
  return absl::OkStatus();
}

}  // namespace

std::vector<std::byte> RejectPacket(const std::string& sentence) {
  const auto type = static_cast<uint32_t>(shm::PacketType::kReject);
  std::vector<std::byte> packet(sizeof(type) + sentence.size());
  std::memcpy(packet.data(), &type, sizeof(type));
  std::memcpy(packet.data() + sizeof(type), sentence.data(), sentence.size());
  return packet;
}

absl::StatusOr<std::unique_ptr<IoThread>> IoThread::Start(Options options, UniqueFd listener,
                                                          IoEvents* events) {
  UniqueFd epoll(epoll_create1(EPOLL_CLOEXEC));
  if (!epoll.valid()) return absl::ErrnoToStatus(errno, "epoll_create1");
  UniqueFd wake(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake.valid()) return absl::ErrnoToStatus(errno, "eventfd");
  std::unique_ptr<IoThread> io(new IoThread(std::move(options), std::move(listener),
                                            std::move(epoll), std::move(wake), events));
  if (!io->Watch(io->listener_.get(), Token(0, kListener)) ||
      !io->Watch(io->wake_.get(), Token(0, kWake))) {
    return absl::ErrnoToStatus(errno, "epoll_ctl");
  }
  io->thread_ = std::thread([raw = io.get()] { raw->Run(); });
  return io;
}

IoThread::IoThread(Options options, UniqueFd listener, UniqueFd epoll, UniqueFd wake,
                   IoEvents* events)
    : options_(std::move(options)),
      listener_(std::move(listener)),
      epoll_(std::move(epoll)),
      wake_(std::move(wake)),
      spare_(open("/dev/null", O_RDONLY | O_CLOEXEC)),
      events_(events) {}

IoThread::~IoThread() {
  stopping_.store(true);
  eventfd_write(wake_.get(), 1);
  if (thread_.joinable()) thread_.join();
}

bool IoThread::Watch(int fd, uint64_t token) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = token;
  return epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) == 0;
}

void IoThread::Forget(uint64_t client_id) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    forgets_.push_back(client_id);
  }
  eventfd_write(wake_.get(), 1);
}

void IoThread::Run() {
  prctl(PR_SET_NAME, "flexkvd-io");
  std::array<epoll_event, 64> ready{};
  while (!stopping_.load()) {
    const int count =
        epoll_wait(epoll_.get(), ready.data(), static_cast<int>(ready.size()), NextTimeoutMs());
    for (int i = 0; i < count; ++i) {
      const uint64_t token = ready[static_cast<size_t>(i)].data.u64;
      const uint64_t id = token >> 2;
      switch (static_cast<Source>(token & 3)) {
        case kListener:
          Accept();
          break;
        case kWake:
          HandleForgets();
          break;
        case kSocket:
          if (pending_.contains(id)) {
            ReceiveHello(id);
          } else {
            ReadPackets(id);
          }
          break;
        case kPidfd:
          HandleExit(id);
          break;
      }
    }
    DropExpired();
  }
}

void IoThread::Accept() {
  UniqueFd socket(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!socket.valid()) {
    if (errno != EMFILE && errno != ENFILE) return;
    spare_.Reset();  // no descriptors left: turn the connection away instead of spinning on it
    UniqueFd turned_away(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    turned_away.Reset();
    spare_ = UniqueFd(open("/dev/null", O_RDONLY | O_CLOEXEC));
    counters_.rejected.fetch_add(1);
    return;
  }
  const absl::StatusOr<PeerCredentials> peer = GetPeerCredentials(socket.get());
  if (!peer.ok()) return;
  const std::vector<uid_t>& allowed = options_.allowed_uids;
  if (std::find(allowed.begin(), allowed.end(), peer->uid) == allowed.end()) {
    RefuseUser(std::move(socket), *peer);
    return;
  }
  if (pending_.size() >= options_.max_pending) {
    Reject(socket.get(), "too many handshakes at once");
    return;
  }
  AddPending({std::move(socket), *peer, clock_.Now() + options_.hello_timeout_ns, ""});
}

void IoThread::RefuseUser(UniqueFd socket, const PeerCredentials& peer) {
  spdlog::warn("refused a client of uid {} (pid {}): not in allowed_uids", peer.uid, peer.pid);
  counters_.refused_uid.fetch_add(1);
  const auto refused = std::count_if(pending_.begin(), pending_.end(), [](const auto& entry) {
    return !entry.second.refusal.empty();
  });
  if (static_cast<uint32_t>(refused) >= options_.max_refused_pending)
    return;  // no words for a crowd
  AddPending({std::move(socket), peer, clock_.Now() + options_.refused_timeout_ns,
              absl::StrCat("uid ", peer.uid, " is not in this flexkvd's allowed_uids")});
}

void IoThread::AddPending(Pending pending) {
  const uint64_t id = next_id_++;
  if (Watch(pending.socket.get(), Token(id, kSocket))) pending_.emplace(id, std::move(pending));
}

void IoThread::Reject(int socket, const std::string& sentence) {
  counters_.rejected.fetch_add(1);
  // A failure to say why changes nothing: the connection closes.
  shm::SendPacket(socket, RejectPacket(sentence)).IgnoreError();
}

void IoThread::ReceiveHello(uint64_t id) {
  auto node = pending_.extract(id);
  Pending pending = std::move(node.mapped());
  absl::StatusOr<shm::Packet> packet =
      shm::ReceivePacket(pending.socket.get(), sizeof(shm::Hello) + shm::kMaxHelloText, 0);
  if (!packet.ok()) {
    if (absl::IsUnavailable(packet.status())) {  // a false alarm: keep waiting
      node.mapped() = std::move(pending);
      pending_.insert(std::move(node));
    } else if (absl::IsDataLoss(packet.status())) {
      Reject(pending.socket.get(), "the hello is too long");
    }
    return;
  }
  if (!pending.refusal.empty()) {
    Reject(pending.socket.get(), pending.refusal);
    return;
  }
  absl::StatusOr<ClientHello> hello = ParseHello(packet->bytes);
  if (!hello.ok()) {
    spdlog::warn("refused a client (pid {}): {}", pending.peer.pid, Words(hello.status()));
    Reject(pending.socket.get(), Words(hello.status()));
    return;
  }
  if (hello->pid != static_cast<uint64_t>(pending.peer.pid)) {
    spdlog::warn("refused a client: it says pid {}, the kernel says {}", hello->pid,
                 pending.peer.pid);
    Reject(pending.socket.get(), "the hello's pid is not that of the connected process");
    return;
  }
  Admit(id, std::move(pending), std::move(*hello));
}

void IoThread::Admit(uint64_t id, Pending pending, ClientHello hello) {
  absl::StatusOr<UniqueFd> pidfd = OpenPeerPidfd(pending.socket.get(), pending.peer);
  if (!pidfd.ok()) {
    Reject(pending.socket.get(),
           absl::StrCat("no pidfd of the client: ", pidfd.status().message()));
    return;
  }
  NewClient client;
  client.hello = std::move(hello);
  client.link = std::make_shared<PeerLink>();
  client.link->client_id = id;
  client.link->peer = pending.peer;
  client.link->socket = std::move(pending.socket);
  client.link->pidfd = std::move(*pidfd);
  if (absl::Status status = MakeRegion(options_.boot_id, &client); !status.ok()) {
    spdlog::error("no rings for a client (pid {}): {}", pending.peer.pid, Words(status));
    Reject(client.link->socket.get(), "the daemon has no memory or descriptors for another client");
    return;
  }
  const int pidfd_number = client.link->pidfd.get();
  links_.emplace(id, client.link);
  counters_.accepted.fetch_add(1);
  events_->OnClient(std::move(client));
  Watch(pidfd_number, Token(id, kPidfd));
}

void IoThread::ReadPackets(uint64_t id) {
  auto it = links_.find(id);
  if (it == links_.end()) return;
  const int socket = it->second->socket.get();
  for (int i = 0; i < kPacketsPerRound; ++i) {  // more is read in the next round
    absl::StatusOr<shm::Packet> packet = shm::ReceivePacket(socket, kMaxLatePacket, 0);
    if (packet.ok()) {
      uint32_t type = 0;
      if (shm::ReadStruct(packet->bytes, &type) &&
          type == static_cast<uint32_t>(shm::PacketType::kGoodbye)) {
        events_->OnGoodbye(id);
      } else {
        events_->OnBadPacket(id);
      }
      continue;
    }
    if (absl::IsUnavailable(packet.status())) return;
    if (absl::IsDataLoss(packet.status())) {
      events_->OnBadPacket(id);
      continue;
    }
    epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, socket, nullptr);
    events_->OnHangUp(id);
    return;
  }
}

void IoThread::HandleExit(uint64_t id) {
  auto it = links_.find(id);
  if (it == links_.end()) return;
  ReadPackets(id);  // what it said before it died
  epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, it->second->socket.get(), nullptr);
  epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, it->second->pidfd.get(), nullptr);
  links_.erase(it);
  events_->OnExit(id);
}

void IoThread::HandleForgets() {
  eventfd_t ignored = 0;
  eventfd_read(wake_.get(), &ignored);
  std::vector<uint64_t> forgets;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    forgets.swap(forgets_);
  }
  for (const uint64_t id : forgets) {
    auto it = links_.find(id);
    if (it == links_.end()) continue;
    epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, it->second->socket.get(), nullptr);
    epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, it->second->pidfd.get(), nullptr);
    links_.erase(it);
  }
}

void IoThread::DropExpired() {
  const TimeNs now = clock_.Now();
  std::erase_if(pending_, [&](auto& entry) {
    if (entry.second.deadline > now) return false;
    const bool refused = !entry.second.refusal.empty();
    if (!refused) counters_.timed_out.fetch_add(1);
    Reject(entry.second.socket.get(), refused ? entry.second.refusal : "no hello came in time");
    return true;
  });
}

int IoThread::NextTimeoutMs() const {
  if (pending_.empty()) return -1;
  const TimeNs now = clock_.Now();
  TimeNs deadline = pending_.begin()->second.deadline;
  for (const auto& [id, pending] : pending_) deadline = std::min(deadline, pending.deadline);
  return deadline <= now ? 0 : static_cast<int>((deadline - now) / kNsPerMs) + 1;
}

}  // namespace flexkv
