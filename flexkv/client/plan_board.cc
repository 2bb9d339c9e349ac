#include "flexkv/client/plan_board.h"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/packet_socket.h"

namespace flexkv {

constexpr uint64_t kPlanBytes = 4u << 20;
constexpr uint64_t kBoardMagic = 0x3144524f42584b46ull;
constexpr uint64_t kWrapMark = UINT64_MAX;  // a length that says: go on at the start of the ring

struct alignas(64) BoardHeader {
  uint64_t magic = 0;
  uint32_t world_size = 0;
  std::atomic<uint64_t> tail;
};

struct alignas(64) BoardRank {
  std::atomic<uint64_t> head;  // plan bytes read
};

namespace {

size_t BoardBytes(uint32_t world_size) {
  return sizeof(BoardHeader) + sizeof(BoardRank) * world_size + kPlanBytes;
}
BoardHeader* Header(const SharedMapping& mapping) {
  return reinterpret_cast<BoardHeader*>(mapping.data());
}
BoardRank* Rank(const SharedMapping& mapping, uint32_t rank) {
  return reinterpret_cast<BoardRank*>(mapping.data() + sizeof(BoardHeader)) + rank;
}
std::byte* Plans(const SharedMapping& mapping, uint32_t world_size) {
  return mapping.data() + sizeof(BoardHeader) + sizeof(BoardRank) * world_size;
}

// Abstract: vanishes with its last user.
std::pair<sockaddr_un, socklen_t> BoardAddress(const uint64_t engine_id[2]) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string name = absl::StrCat("flexkv-board-", absl::Hex(engine_id[0], absl::kZeroPad16),
                                        absl::Hex(engine_id[1], absl::kZeroPad16));
  std::memcpy(address.sun_path + 1, name.data(), name.size());
  return {address, static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size())};
}

bool SameUser(int socket) {
  ucred peer{};
  socklen_t size = sizeof(peer);
  return getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.uid == geteuid();
}

}  // namespace

absl::StatusOr<std::unique_ptr<PlanBoard>> PlanBoard::Create(const uint64_t engine_id[2],
                                                             uint32_t world_size) {
  if (world_size == 0 || world_size > kMaxBoardRanks) {
    return absl::InvalidArgumentError("the reduced mode serves 1 to 256 ranks");
  }
  std::unique_ptr<PlanBoard> board(new PlanBoard);
  board->world_size_ = world_size;
  absl::StatusOr<UniqueFd> memory = MakeSealedMemfd("flexkv-board", BoardBytes(world_size));
  if (!memory.ok()) return memory.status();
  board->memory_ = *std::move(memory);
  absl::StatusOr<SharedMapping> mapping =
      SharedMapping::Map(board->memory_.get(), BoardBytes(world_size));
  if (!mapping.ok()) return mapping.status();
  board->mapping_ = *std::move(mapping);
  Header(board->mapping_)->magic = kBoardMagic;
  Header(board->mapping_)->world_size = world_size;

  board->listener_ = UniqueFd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const auto [address, size] = BoardAddress(engine_id);
  if (!board->listener_.valid() ||
      bind(board->listener_.get(), reinterpret_cast<const sockaddr*>(&address), size) != 0 ||
      listen(board->listener_.get(), kMaxBoardRanks) != 0) {
    return absl::ErrnoToStatus(errno, "the plan board's socket");
  }
  board->stop_event_ = UniqueFd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  board->thread_ = std::thread([raw = board.get()] { raw->Serve(); });
  return board;
}

PlanBoard::~PlanBoard() {
  if (!thread_.joinable()) return;
  const uint64_t one = 1;
  std::ignore = write(stop_event_.get(), &one, sizeof(one));
  thread_.join();
}

void PlanBoard::Serve() {
  pthread_setname_np(pthread_self(), "flexkv-board");
  while (true) {
    pollfd waiters[2] = {{listener_.get(), POLLIN, 0}, {stop_event_.get(), POLLIN, 0}};
    poll(waiters, 2, -1);
    if (waiters[1].revents != 0) return;
    UniqueFd client(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!client.valid() || !SameUser(client.get())) continue;
    const int fd = memory_.get();
    std::ignore = shm::SendPacket(client.get(), shm::AsBytes(kBoardMagic), {&fd, 1});
  }
}

bool PlanBoard::Publish(std::span<const std::byte> plan) {
  const uint64_t padded = sizeof(uint64_t) + (plan.size() + 7) / 8 * 8;
  uint64_t place = tail_ % kPlanBytes;
  const bool wrap = place + padded > kPlanBytes;
  const uint64_t end = tail_ + (wrap ? kPlanBytes - place : 0) + padded;
  if (padded > kPlanBytes / 2) return false;
  for (uint32_t rank = 0; rank < world_size_; ++rank) {
    if (end - Rank(mapping_, rank)->head.load(std::memory_order_acquire) > kPlanBytes) return false;
  }
  std::byte* plans = Plans(mapping_, world_size_);
  if (wrap) {
    std::memcpy(plans + place, &kWrapMark, sizeof(kWrapMark));
    place = 0;
  }
  const uint64_t length = plan.size();
  std::memcpy(plans + place, &length, sizeof(length));
  std::memcpy(plans + place + sizeof(length), plan.data(), plan.size());
  tail_ = end;
  Header(mapping_)->tail.store(tail_, std::memory_order_release);
  return true;
}

absl::StatusOr<std::unique_ptr<PlanBoardReader>> PlanBoardReader::Open(const uint64_t engine_id[2],
                                                                       uint32_t rank,
                                                                       uint32_t world_size,
                                                                       int timeout_ms) {
  if (rank >= world_size || world_size > kMaxBoardRanks) {
    return absl::InvalidArgumentError("rank is not below world_size");
  }
  UniqueFd socket_fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  const auto [address, size] = BoardAddress(engine_id);
  if (!socket_fd.valid() ||
      connect(socket_fd.get(), reinterpret_cast<const sockaddr*>(&address), size) != 0 ||
      !SameUser(socket_fd.get())) {
    return absl::UnavailableError("the scheduler's half has not opened its plan board");
  }
  absl::StatusOr<shm::Packet> packet =
      shm::ReceivePacket(socket_fd.get(), sizeof(kBoardMagic), timeout_ms);
  if (!packet.ok() || packet->fds.size() != 1) {
    return absl::UnavailableError("the scheduler's half did not hand over its plan board");
  }
  absl::StatusOr<SharedMapping> mapping =
      SharedMapping::Map(packet->fds[0].get(), BoardBytes(world_size));
  if (!mapping.ok()) return mapping.status();
  if (Header(*mapping)->magic != kBoardMagic || Header(*mapping)->world_size != world_size) {
    return absl::InvalidArgumentError("the plan board is of another version or engine");
  }
  std::unique_ptr<PlanBoardReader> reader(new PlanBoardReader);
  reader->rank_ = rank;
  reader->world_size_ = world_size;
  reader->mapping_ = *std::move(mapping);
  return reader;
}

bool PlanBoardReader::Next(std::vector<std::byte>* plan) {
  const uint64_t tail = Header(mapping_)->tail.load(std::memory_order_acquire);
  if (head_ == tail) return false;
  const std::byte* plans = Plans(mapping_, world_size_);
  uint64_t length = 0;
  std::memcpy(&length, plans + head_ % kPlanBytes, sizeof(length));
  if (length == kWrapMark) {
    head_ += kPlanBytes - head_ % kPlanBytes;
    std::memcpy(&length, plans + head_ % kPlanBytes, sizeof(length));
  }
  const uint64_t place = head_ % kPlanBytes;
  if (length > kPlanBytes - sizeof(length) - place) {  // cannot be ours: take nothing more from it
    head_ = tail;
    Rank(mapping_, rank_)->head.store(head_, std::memory_order_release);
    return false;
  }
  plan->assign(plans + place + sizeof(length), plans + place + sizeof(length) + length);
  head_ += sizeof(length) + (length + 7) / 8 * 8;
  Rank(mapping_, rank_)->head.store(head_, std::memory_order_release);
  return true;
}

}  // namespace flexkv
