// Transfers of the store: each is told apart by a tag that is never used twice, has one sink that
// learns its end, and counts as good only when every byte of it moved.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "flexkv/storage/ssd/disk.h"

namespace flexkv::ssd {

// Zeroed pages, aligned for direct I/O.
class PageBuffer {
 public:
  PageBuffer() = default;
  explicit PageBuffer(size_t pages);
  std::byte* page(size_t index) const;
  std::span<std::byte> span(size_t first, size_t count) const;
  size_t pages() const { return pages_; }

 private:
  struct Free {
    void operator()(std::byte* memory) const;
  };
  std::unique_ptr<std::byte, Free> memory_;
  size_t pages_ = 0;
};

class TransferSink {
 public:
  // `ok`: all bytes moved. `result` as in IoResult. May start new transfers; must not wait.
  virtual void OnTransfer(uint64_t cookie, bool ok, int64_t result) = 0;

 protected:
  ~TransferSink() = default;
};

class IoDriver {
 public:
  explicit IoDriver(Disk* disk) : disk_(disk) {}

  Disk* disk() const { return disk_; }
  // False: the disk's queue is full. `slices` empty: a sync.
  bool Start(IoKind kind, FileId file, uint64_t offset, std::span<const iovec> slices,
             TransferSink* sink, uint64_t cookie);
  // Hands what has ended to its sinks. REQUIRES: not called from a sink.
  void Poll(TimeNs timeout_ns);
  // Waits for one transfer; others are handed to their sinks meanwhile. True: all bytes moved.
  bool Read(FileId file, uint64_t offset, std::span<std::byte> memory);
  bool Write(FileId file, uint64_t offset, std::span<const std::byte> memory);
  bool Sync(FileId file);
  // -errno of the last of these that failed, 0 for a short transfer.
  int64_t last_error() const { return last_error_; }

  uint32_t in_flight() const { return in_flight_; }
  uint64_t in_flight_bytes() const { return in_flight_bytes_; }

 private:
  struct Transfer {
    TransferSink* sink = nullptr;  // null: not in use
    uint64_t cookie = 0;
    uint64_t bytes = 0;
    uint32_t generation = 0;
  };

  bool RunAndWait(IoKind kind, FileId file, uint64_t offset, std::span<const iovec> slices);

  Disk* const disk_;
  std::vector<Transfer> transfers_;
  std::vector<uint32_t> unused_;
  std::vector<IoResult> results_;
  uint32_t in_flight_ = 0;
  uint64_t in_flight_bytes_ = 0;
  int64_t last_error_ = 0;
};

// Reads pieces of equal size at equal distances, several ahead. What cannot be read in one go is
// read page by page; a page that still fails is all zero.
class PieceReader final : public TransferSink {
 public:
  struct Plan {
    FileId file = 0;
    uint64_t offset = 0;  // of the first piece
    uint64_t stride = 0;  // from one piece to the next
    uint64_t pages = 0;   // of each piece
    uint64_t count = 0;   // pieces
    uint64_t end = 0;     // no piece reaches beyond (the last one is cut)
    uint32_t ahead = 4;   // pieces in flight
  };
  PieceReader(IoDriver* io, const Plan& plan);
  ~PieceReader();  // waits for what is in flight

  // The next piece, valid until the following call; empty after the last.
  std::span<const std::byte> Next();
  uint64_t failed_pages() const { return failed_pages_; }

 private:
  enum class State : uint8_t { kIdle, kReading, kRead, kFailed };

  void OnTransfer(uint64_t cookie, bool ok, int64_t result) override;
  void StartMore();
  uint64_t BytesOf(uint64_t piece) const;
  std::span<std::byte> MemoryOf(uint64_t piece) const;
  void ReadPageByPage(uint64_t piece);

  IoDriver* const io_;
  const Plan plan_;
  PageBuffer buffer_;
  std::vector<State> states_;  // of the `ahead` places
  uint64_t next_ = 0;          // piece that Next returns
  uint64_t started_ = 0;
  uint64_t failed_pages_ = 0;
};

// [begin, end) of a file in large pieces.
PieceReader::Plan SequentialPlan(FileId file, uint64_t begin, uint64_t end);

}  // namespace flexkv::ssd
