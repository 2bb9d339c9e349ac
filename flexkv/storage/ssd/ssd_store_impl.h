// The store's inside: queues of block transfers over the committer. ssd_store.cc has what callers
// see, ssd_blocks.cc the transfers.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "flexkv/storage/ssd/ssd_commit.h"
#include "flexkv/storage/ssd/ssd_state.h"

namespace flexkv {

struct SsdStore::Impl final : ssd::TransferSink, ssd::CommitListener {
  struct InFlight {
    bool used = false;
    SsdOpKind kind = SsdOpKind::kRead;
    uint64_t tag = 0;
    SsdPlace place;
    ssd::Segment* segment = nullptr;
    SsdIdentity identity;
    uint32_t generation = 0;
    uint64_t checksum = 0;  // of the payload: expected or written
    uint64_t bytes = 0;
    uint32_t header = 0;                       // writes: page of `headers`
    std::vector<std::span<std::byte>> shards;  // reads
  };
  // Read, not verified yet.
  struct Arrived {
    uint32_t index = 0;  // in in_flight
    bool ok = false;
    int64_t result = 0;
  };
  // A free that is durable while reads of the place are still in flight.
  struct HeldFree {
    uint64_t tag = 0;
    SsdPlace place;
  };

  Impl(const Options& options, Disk* disk, const Clock* clock);
  ~Impl();

  absl::Status Open();
  bool Accept();  // one more op, where there is room
  void Finish(uint32_t segment, uint64_t tag, SsdOpKind kind, absl::Status status);
  void FinishOn(ssd::Segment* segment, uint64_t tag, SsdOpKind kind, absl::Status status);
  void Pump();

  // ssd_blocks.cc
  absl::Status CheckWrite(const SsdWrite& op, ssd::Segment* segment) const;
  absl::Status CheckRead(const SsdRead& op, const ssd::Segment& segment) const;
  void AcceptWrite(SsdWrite op);
  void AcceptRead(SsdRead op);
  void AcceptFree(uint64_t tag, SsdPlace place);
  bool HasRoomInFlight(uint64_t bytes) const;
  bool StartRead(SsdRead* op);
  bool StartWrite(SsdWrite* op);
  uint32_t NewInFlight();
  void EndArrived();
  void OnTransfer(uint64_t cookie, bool ok, int64_t result) override;
  bool PayloadVerifies(const InFlight& op);
  void EndRead(const InFlight& op, bool ok, int64_t result);
  void EndWrite(const InFlight& op, bool ok);
  void Quarantine(ssd::Segment* segment, uint32_t slot);
  void OnCommitted(const ssd::GroupEntry& entry, bool ok) override;
  void OnRaised(const ssd::EpochRaise& raise, bool ok) override;
  void EndFree(uint64_t tag, SsdPlace place);
  bool IsBeingRead(SsdPlace place) const;
  void ReleaseHeldFrees(SsdPlace place);

  ssd::StoreState state;
  ssd::Committer committer;
  std::vector<RecoveredBlock> recovered;
  std::deque<SsdRead> reads;  // accepted, not started
  std::deque<SsdWrite> writes;
  std::vector<InFlight> in_flight;
  std::vector<uint32_t> unused_in_flight;
  std::deque<Arrived> arrived;
  uint32_t writes_in_flight = 0;
  ssd::PageBuffer headers;  // a page for each write in flight
  std::vector<uint32_t> unused_headers;
  bool headers_registered = false;
  std::vector<HeldFree> held_frees;
  std::vector<iovec> slices;  // scratch
  std::vector<std::span<const std::byte>> pieces;
  uint32_t ops = 0;  // accepted, without result
};

}  // namespace flexkv
