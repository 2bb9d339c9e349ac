#include "perf/ssd/bare_ring.h"

#include <fcntl.h>
#include <liburing.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "perf/bench_util.h"

namespace flexkv::bench {
namespace {

void Require(bool good, const char* what) {
  if (good) return;
  std::fprintf(stderr, "bare ring: %s\n", what);
  std::exit(1);
}

struct BareRing {
  explicit BareRing(const SsdLoad& given) : load(given) {
    io_uring_params params{};
    params.flags = IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG;
    Require(io_uring_queue_init_params(load.depth, &ring, &params) == 0, "no ring");
    fd = open(load.path.c_str(), O_RDWR | O_DIRECT | O_CLOEXEC);
    Require(fd >= 0 && io_uring_register_files(&ring, &fd, 1) == 0, "no file");
    const iovec memory = {load.memory.data(), load.memory.size()};
    Require(!load.registered || io_uring_register_buffers(&ring, &memory, 1) == 0, "no memory");
  }
  ~BareRing() {
    io_uring_queue_exit(&ring);
    close(fd);
  }
  BareRing(const BareRing&) = delete;
  BareRing& operator=(const BareRing&) = delete;

  void Prepare(uint32_t slot, uint64_t offset) {
    io_uring_sqe* sqe = io_uring_get_sqe(&ring);
    void* at = load.memory.data() + slot * load.block_bytes;
    const auto bytes = static_cast<unsigned>(load.block_bytes);
    if (load.registered) {
      load.write ? io_uring_prep_write_fixed(sqe, 0, at, bytes, offset, 0)
                 : io_uring_prep_read_fixed(sqe, 0, at, bytes, offset, 0);
    } else {
      load.write ? io_uring_prep_write(sqe, 0, at, bytes, offset)
                 : io_uring_prep_read(sqe, 0, at, bytes, offset);
    }
    sqe->flags |= IOSQE_FIXED_FILE;
    io_uring_sqe_set_data64(sqe, slot);
  }

  const SsdLoad& load;
  io_uring ring = {};
  int fd = -1;
};

}  // namespace

SsdRate RunBareRing(const SsdLoad& load, uint64_t seed) {
  BareRing bare(load);
  Rng rng(seed);
  const uint64_t blocks = load.file_bytes / load.block_bytes;
  const uint64_t cpu = ProcessCpuNs(), start = NowNs();
  const uint64_t end = start + static_cast<uint64_t>(load.seconds * 1e9);
  uint64_t done = 0;
  uint32_t running = load.depth;
  for (uint32_t slot = 0; slot < load.depth; ++slot) {
    bare.Prepare(slot, rng.Below(blocks) * load.block_bytes);
  }
  while (running > 0) {
    io_uring_submit_and_wait(&bare.ring, 1);
    const bool more = NowNs() < end;
    unsigned head = 0, count = 0;
    io_uring_cqe* cqe = nullptr;
    io_uring_for_each_cqe(&bare.ring, head, cqe) {
      ++count;
      Require(cqe->res == static_cast<int>(load.block_bytes), "a transfer failed");
      if (more) {
        bare.Prepare(static_cast<uint32_t>(cqe->user_data), rng.Below(blocks) * load.block_bytes);
      } else {
        --running;
      }
    }
    io_uring_cq_advance(&bare.ring, count);
    done += count;
  }
  const auto transfers = static_cast<double>(done);
  return {.bytes_per_ns = transfers * static_cast<double>(load.block_bytes) /
                          static_cast<double>(NowNs() - start),
          .cpu_us = static_cast<double>(ProcessCpuNs() - cpu) / 1000 / transfers,
          .transfers = done};
}

}  // namespace flexkv::bench
