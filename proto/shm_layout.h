// Shared-memory and handshake formats between flexkvd and its clients. Plain structs,
// little-endian, fixed sizes asserted below. proto/README.md explains every field; change
// kProtocolVersion with any change here.
//
// Per client the daemon makes one sealed memfd (the *client region*):
//   [RegionHeader][request ring][completion ring][request payload][completion payload]
// Requests go client -> daemon, completions daemon -> client. Each direction is single producer,
// single consumer. A message is one 64-byte slot and, for bulk data, a run of bytes in that
// direction's payload area. Payload positions rise for ever (position mod area size is the place; a
// run never wraps: the producer skips to the start when it does not fit before the end). The
// consumer copies out, then validates, then frees by storing payload_head. One further memfd, the
// *doorbell page*, is shared by all clients of a daemon: it wakes the control thread.
#pragma once

#include <atomic>
#include <cstdint>

#include "flexkv/base/ids.h"

namespace flexkv::shm {

inline constexpr uint32_t kProtocolVersion = 5;
inline constexpr uint64_t kRegionMagic = 0x31564b58454c46ull;  // "FLEXKV1"
inline constexpr uint32_t kRingSlots = 1024;                   // per direction; power of two
inline constexpr uint32_t kPayloadBytes = 4u << 20;            // per direction; power of two
inline constexpr uint32_t kMaxPayload = 1u << 20;              // one message
inline constexpr uint32_t kMaxHashesPerMessage = kMaxPayload / sizeof(BlockHash);

enum class Role : uint32_t { kScheduler = 1, kWorker = 2 };

enum class MessageType : uint32_t {
  kNone = 0,
  // scheduler -> daemon
  kLookup = 1,  // request, first, count, prompt tokens and hint (lookup_fields.h) + payload
                // count * BlockHash
  kLoad = 2,    // request, op, lease, first, count
  kPut = 3,     // request, op, first, count, suffix_first (in `lease` field), payload n * BlockHash
  kReleaseLease = 4,  // request, lease
  kEndRequest = 5,    // request
  kReset = 6,         // request = caller's number
  kRecordGet = 7,     // request, payload: GetRecordBody
  kEngineStats = 8,   // payload: EngineStatsBody
  // worker -> daemon
  kOpDone = 16,        // op, first = part, route, status, lease = ns spent copying,
                       // count = failed positions + payload count * uint32 (position in the
                       // part's blocks)
  kWorkerReady = 17,   // once, first: from now on this rank takes ops of this boot id
  kDeviceReport = 18,  // payload: DeviceReportBody
  // daemon -> scheduler
  kLookupReply = 32,  // request, first = matched blocks, count = of them, the first so many in
                      // memory, lease, status; sequence = that of the request
  kPutReply = 33,     // op, first = held, count = accepted, lease = refused
  kOpEnded = 34,      // op, status, first = ok blocks, count = failed blocks, route,
                      // lease = duration, ns, request = blocks that a load got from an SSD
  kResetReply = 35,   // request = caller's number, status
  kEngineReady = 36,  // first = 1: all ranks attached under this boot id; 0: not (any more)
  // daemon -> worker
  kOp =
      48,  // op, first = part, status = PartFollows, route, count blocks + payload count * OpBlock
  kRefuseOp = 49,  // op, first = part that will not come, route
};

enum class WireStatus : uint32_t { kOk = 0, kPartial = 1, kFailed = 2, kRefused = 3, kInvalid = 4 };

// `status` of a kOp. A load may come in parts 0, 1, 2, ..., the last of which may be empty; a store
// has one part.
enum class PartFollows : uint32_t { kLast = 0, kMore = 1 };

struct Message {
  uint32_t type = 0;      // MessageType
  uint32_t sequence = 0;  // set by the producer, echoed in replies
  uint64_t request = 0;
  uint64_t op = 0;
  uint64_t lease = 0;
  uint32_t first = 0;
  uint32_t count = 0;
  uint32_t status = 0;            // WireStatus; of a kOp PartFollows
  uint32_t route = 0;             // Route
  uint64_t payload_position = 0;  // where its payload starts (undefined when payload_bytes is 0)
  uint32_t payload_bytes = 0;
  // Low 32 bits of (position of this message + 1), stored last with release order: the consumer
  // polls the stamp of the slot it expects next, so one cache line carries a small message from
  // core to core.
  uint32_t stamp = 0;
};
static_assert(sizeof(Message) == 64);

inline Message MakeMessage(MessageType type) {
  Message message;
  message.type = static_cast<uint32_t>(type);
  return message;
}

struct OpBlock {  // one block's shard in the arena
  uint32_t segment = 0;
  uint32_t engine_index = 0;
  uint64_t offset_bytes = 0;
};
static_assert(sizeof(OpBlock) == 16);

struct GetRecordBody {  // see CacheManager::GetRecord; tokens
  uint32_t prompt = 0, engine_matched = 0, offered = 0, taken = 0, loaded = 0, failed = 0;
};
static_assert(sizeof(GetRecordBody) == 24);

struct EngineStatsBody {  // shown by `flexkv status`; rates are the scheduler client's running
                          // estimates
  double prefill_tokens_per_s = 0, step_ms = 0, load_tokens_per_s = 0;
  uint64_t min_load_tokens = 0, lookup_timeouts = 0, load_failures = 0, breaker_opens = 0,
           swallowed_errors = 0;
};
static_assert(sizeof(EngineStatsBody) == 64);

// What a rank says of its device, whenever it changed; shown by `flexkv status` (see DeviceReport
// in flexkv/transfer/device_agent.h). Arrays of two are by direction (index: Route).
struct DeviceReportBody {
  struct Point {
    uint32_t fragment_bytes = 0;
    float copy_engine[2] = {}, kernel[2] = {};  // GB/s, finite, not negative; 0: not measured
  };
  static constexpr uint32_t kMaxPoints = 16;
  char device[64] = {};    // ends with 0
  char problem[256] = {};  // ends with 0
  uint32_t kernel_below[2] = {};
  uint32_t num_points = 0;  // at most kMaxPoints
  uint32_t pinning_refused = 0;
  uint64_t pinned_bytes = 0, arena_bytes = 0, staged_bytes = 0;
  uint64_t layer_loads = 0, layer_loads_failed = 0;
  Point points[kMaxPoints];
};
static_assert(sizeof(DeviceReportBody) == 64 + 256 + 16 + 40 + 16 * 20);

// What the consumer of one direction publishes: how far it has read. Only the producer looks at it,
// and only when it believes the ring to be full.
struct alignas(64) RingIndexes {
  std::atomic<uint64_t> head;  // messages consumed
  std::atomic<uint64_t>
      payload_head;  // payload bytes consumed (a position: gaps before a wrap count)
};
static_assert(sizeof(RingIndexes) == 64);

// Wakes one sleeper. To ring (after publishing the work): full fence, and when `sleeping` is set
// bump `value` and FUTEX_WAKE. To sleep: read value, set sleeping, look for work once more,
// FUTEX_WAIT on the value read, clear sleeping.
struct alignas(64) Bell {
  std::atomic<uint32_t> value;
  std::atomic<uint32_t> sleeping;
};
static_assert(sizeof(Bell) == 64);

struct RegionHeader {
  uint64_t magic = 0;
  uint32_t version = 0;
  uint32_t ring_slots = 0;
  uint32_t payload_bytes = 0;
  uint32_t reserved = 0;
  uint64_t boot_id = 0;  // of the daemon that made the region, never 0
  uint64_t client_id = 0;
  RingIndexes requests;     // client -> daemon
  RingIndexes completions;  // daemon -> client
  Bell client_bell;         // rung by the daemon after completions
};

inline constexpr uint64_t kRequestRingOffset = 4096;
inline constexpr uint64_t kCompletionRingOffset =
    kRequestRingOffset + uint64_t{kRingSlots} * sizeof(Message);
inline constexpr uint64_t kRequestPayloadOffset =
    kCompletionRingOffset + uint64_t{kRingSlots} * sizeof(Message);
inline constexpr uint64_t kCompletionPayloadOffset = kRequestPayloadOffset + kPayloadBytes;
inline constexpr uint64_t kRegionBytes = kCompletionPayloadOffset + kPayloadBytes;
static_assert(sizeof(RegionHeader) <= kRequestRingOffset);

// --- handshake: SOCK_SEQPACKET Unix socket, one struct per packet, descriptors by SCM_RIGHTS ---

enum class PacketType : uint32_t {
  kHello = 1,        // client -> daemon, followed in the same packet by `text_bytes` of text
  kWelcome = 2,      // daemon -> client, descriptors: [client region, doorbell page]
  kReject = 3,       // daemon -> client, followed by a sentence; then the connection closes
  kSegment = 4,      // daemon -> worker, one descriptor: the segment's memfd
  kSegmentGone = 5,  // daemon -> worker: unmap once no op uses it
  kGoodbye = 6,      // client -> daemon: no thread of this client copies any more
};

inline constexpr uint32_t kMaxHelloText = 256u << 10;

enum HelloFlags : uint32_t {
  kReplicated = 1,  // worker: every rank's shard of a block has the same bytes
};

struct Hello {
  uint32_t type = 0;     // PacketType::kHello
  uint32_t version = 0;  // kProtocolVersion
  uint32_t role = 0;     // Role
  uint32_t rank = 0;     // worker: 0..world_size-1
  uint32_t world_size = 0;
  uint32_t tokens_per_block = 0;
  uint64_t engine_id[2] =
      {};  // the same for the scheduler and all ranks of one engine, random per engine start
  uint64_t shard_bytes = 0;  // worker: bytes of one block on this rank
  uint64_t pid = 0;          // checked against SO_PEERCRED
  uint32_t text_bytes = 0;   // scheduler: label '\0' fingerprint text; worker: layout descriptor
  uint32_t flags = 0;        // HelloFlags, no other bits; scheduler: 0
};
static_assert(sizeof(Hello) == 64);

// How ranks copy between GPU and arena: CopyOptions in flexkv/transfer/device_agent.h, from the
// daemon's configuration. Arrays are by direction (index: Route).
struct DeviceOptionsBody {
  uint32_t engine[2] = {};      // 0 auto, 1 copy engine, 2 kernel
  uint32_t kernel_sms[2] = {};  // 1..132
  uint64_t bytes_in_flight[2] = {};
  uint32_t batch_copies = 0;
  uint32_t above_compute = 0;
  uint32_t layers_ahead = 0;
  uint32_t reserved = 0;
};
static_assert(sizeof(DeviceOptionsBody) == 48);

struct Welcome {
  uint32_t type = 0;
  uint32_t version = 0;
  uint64_t boot_id = 0;
  uint64_t client_id = 0;
  uint64_t region_bytes = 0;
  DeviceOptionsBody device;  // for workers
};
static_assert(sizeof(Welcome) == 80);

struct SegmentPacket {
  uint32_t type = 0;
  uint32_t segment = 0;
  uint64_t bytes = 0;
};
static_assert(sizeof(SegmentPacket) == 16);

}  // namespace flexkv::shm
