#include "flexkv/storage/ssd/ssd_format.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "flexkv/storage/ssd/ssd_checksum.h"

namespace flexkv::ssd {
namespace {

static_assert(std::endian::native == std::endian::little, "the format is written as it lies");

constexpr uint64_t Magic(const char (&text)[9]) {
  uint64_t magic = 0;
  for (int i = 7; i >= 0; --i) magic = magic << 8 | static_cast<uint8_t>(text[i]);
  return magic;
}
constexpr uint64_t kSuperblockMagic = Magic("FKVSUPER");
constexpr uint64_t kRegionMagic = Magic("FKVREGIO");
constexpr uint64_t kLogMagic = Magic("FKVLOGPG");
constexpr uint64_t kSlotMagic = Magic("FKVSLOTH");

struct PageHead {
  uint64_t magic = 0;
  uint64_t checksum = 0;  // XXH3 of the bytes behind it, seeded by magic
  uint32_t format = 0;
  uint32_t segment = 0;
  StoreId store{};
};
static_assert(sizeof(PageHead) == 40);
constexpr size_t kCheckedFrom = offsetof(PageHead, format);

struct ShapeFields {
  uint32_t slots = 0;
  uint32_t num_shards = 0;
  std::array<uint32_t, kMaxShards> shard_bytes{};
};
static_assert(sizeof(ShapeFields) == 1032);

// All of it lies in the first sector, so that a torn one is blank or damaged, never foreign.
struct SuperblockPage {
  PageHead head;
  uint64_t sequence = 0;
  uint32_t next_segment = 0;
  std::array<uint8_t, 4044> reserved{};
};
static_assert(sizeof(SuperblockPage) == kPageBytes);

struct RegionHeaderPage {
  PageHead head;
  uint64_t epoch = 0;
  uint32_t region = 0;
  uint32_t generation_floor = 0;
  ShapeFields shape;
  std::array<uint8_t, 3008> reserved{};
};
static_assert(sizeof(RegionHeaderPage) == kPageBytes);

constexpr uint32_t kCheckpointFlag = 1, kLastFlag = 2;

struct LogPage {
  PageHead head;
  uint64_t region_epoch = 0;
  uint32_t page = 0;
  uint32_t flags = 0;
  uint32_t count = 0;
  uint32_t group_page = 0;
  std::array<uint8_t, 64> reserved{};
  std::array<LogRecord, kRecordsPerPage> records;
};
static_assert(sizeof(LogPage) == kPageBytes && offsetof(LogPage, records) == 128);

struct SlotHeaderPage {
  PageHead head;
  uint32_t slot = 0;
  uint32_t generation = 0;
  uint32_t epoch = 0;
  uint32_t depth = 0;
  uint64_t payload_checksum = 0;
  std::array<uint8_t, 32> ns{};
  std::array<uint8_t, 32> hash{};
  std::array<uint8_t, 32> parent{};
  ShapeFields shape;
  std::array<uint8_t, 32> mac{};  // for tiers that are not trusted; zero here
  std::array<uint8_t, 2872> reserved{};
};
static_assert(sizeof(SlotHeaderPage) == kPageBytes);

template <typename Page>
Page* As(std::byte* page) {
  return reinterpret_cast<Page*>(page);
}
template <typename Page>
const Page* As(const std::byte* page) {
  return reinterpret_cast<const Page*>(page);
}

template <size_t kBytes>
bool AllZero(const std::array<uint8_t, kBytes>& bytes) {
  static constexpr std::array<uint8_t, kBytes> kZeros{};
  return std::memcmp(bytes.data(), kZeros.data(), kBytes) == 0;
}

uint64_t PageChecksum(const std::byte* page) {
  return Checksum(page + kCheckedFrom, kPageBytes - kCheckedFrom, As<PageHead>(page)->magic);
}

bool IsIntact(const std::byte* page, uint64_t magic) {
  const PageHead& head = *As<PageHead>(page);
  return head.magic == magic && head.checksum == PageChecksum(page);
}

void Seal(const PageHead& head, std::byte* page) {
  *As<PageHead>(page) = head;
  ResealPage(page);
}

ShapeFields FieldsOf(const SsdShape& shape) {
  ShapeFields fields;
  fields.slots = shape.slots;
  fields.num_shards = static_cast<uint32_t>(shape.shard_bytes.size());
  std::copy(shape.shard_bytes.begin(), shape.shard_bytes.end(), fields.shard_bytes.begin());
  return fields;
}

bool ParseShape(const ShapeFields& fields, SsdShape* shape) {
  if (fields.num_shards == 0 || fields.num_shards > kMaxShards) return false;
  const auto end = fields.shard_bytes.begin() + fields.num_shards;
  if (std::any_of(end, fields.shard_bytes.end(), [](uint32_t bytes) { return bytes != 0; })) {
    return false;
  }
  shape->slots = fields.slots;
  shape->shard_bytes.assign(fields.shard_bytes.begin(), end);
  return ShapeIsValid(*shape);
}

std::array<uint8_t, 32> BytesOf(const BlockHash& hash) {
  std::array<uint8_t, 32> bytes;
  std::memcpy(bytes.data(), hash.words.data(), bytes.size());
  return bytes;
}

}  // namespace

bool ShapeIsValid(const SsdShape& shape) {
  if (shape.shard_bytes.empty() || shape.shard_bytes.size() > kMaxShards) return false;
  if (shape.slots == 0 || shape.slots > kMaxSlots) return false;
  for (const uint32_t bytes : shape.shard_bytes) {
    if (bytes == 0 || bytes > kMaxShardBytes) return false;
  }
  // At most 2^39 bytes a record and 2^24 slots: no product overflows.
  return shape.segment_bytes() <= uint64_t{1} << 46;
}

uint32_t CheckpointPages(uint32_t slots) {
  return (slots + kMaxEpochs + kRecordsPerPage - 1) / kRecordsPerPage;
}

uint32_t RegionPages(uint32_t slots) { return 1 + 2 * CheckpointPages(slots); }
uint64_t SegmentFileBytes(const SsdShape& shape) {
  return shape.segment_bytes() + 2ull * RegionPages(shape.slots) * kPageBytes;
}

bool IsBlank(const std::byte* page) {
  return std::all_of(page, page + kPageBytes, [](std::byte byte) { return byte == std::byte{}; });
}

void ResealPage(std::byte* page) { As<PageHead>(page)->checksum = PageChecksum(page); }

void EncodeSuperblock(const Superblock& superblock, std::byte* page) {
  SuperblockPage encoded;
  encoded.sequence = superblock.sequence;
  encoded.next_segment = superblock.next_segment;
  std::memcpy(page, &encoded, kPageBytes);
  Seal({kSuperblockMagic, 0, kFormat, 0, superblock.store}, page);
}

SuperblockState ParseSuperblock(const std::byte* page, Superblock* superblock, uint32_t* format) {
  const SuperblockPage& encoded = *As<SuperblockPage>(page);
  if (encoded.head.magic != kSuperblockMagic) {
    return IsBlank(page) ? SuperblockState::kBlank : SuperblockState::kForeign;
  }
  if (!IsIntact(page, kSuperblockMagic)) return SuperblockState::kDamaged;
  *format = encoded.head.format;
  if (encoded.head.format != kFormat) return SuperblockState::kOtherVersion;
  if (encoded.head.segment != 0 || !AllZero(encoded.reserved)) return SuperblockState::kDamaged;
  *superblock = {encoded.head.store, encoded.sequence, encoded.next_segment};
  return SuperblockState::kGood;
}

void EncodeRegionHeader(const RegionHeader& header, std::byte* page) {
  RegionHeaderPage encoded;
  encoded.epoch = header.epoch;
  encoded.region = header.region;
  encoded.generation_floor = header.generation_floor;
  encoded.shape = FieldsOf(header.shape);
  std::memcpy(page, &encoded, kPageBytes);
  Seal({kRegionMagic, 0, kFormat, header.segment, header.store}, page);
}

bool ParseRegionHeader(const std::byte* page, RegionHeader* header) {
  const RegionHeaderPage& encoded = *As<RegionHeaderPage>(page);
  if (!IsIntact(page, kRegionMagic) || encoded.head.format != kFormat) return false;
  if (encoded.epoch == 0 || encoded.region > 1 || !AllZero(encoded.reserved)) return false;
  header->store = encoded.head.store;
  header->segment = encoded.head.segment;
  header->epoch = encoded.epoch;
  header->region = encoded.region;
  header->generation_floor = encoded.generation_floor;
  return ParseShape(encoded.shape, &header->shape);
}

LogRecord CommitRecord(uint32_t slot, uint32_t generation, uint64_t checksum,
                       const SsdIdentity& identity) {
  LogRecord record = SlotRecord(RecordKind::kCommit, slot, generation);
  record.epoch = identity.epoch;
  record.depth = identity.depth;
  record.checksum = checksum;
  record.ns = identity.ns;
  record.hash = BytesOf(identity.hash);
  record.parent = BytesOf(identity.parent);
  return record;
}

LogRecord SlotRecord(RecordKind kind, uint32_t slot, uint32_t generation) {
  LogRecord record;
  record.kind = static_cast<uint32_t>(kind);
  record.slot = slot;
  record.generation = generation;
  return record;
}

LogRecord EpochRecord(const NamespaceDigest& ns, uint32_t epoch) {
  LogRecord record = SlotRecord(RecordKind::kEpoch, 0, 0);
  record.epoch = epoch;
  record.ns = ns;
  return record;
}

SsdIdentity IdentityOf(const LogRecord& record) {
  return {record.ns, record.epoch, record.depth, BlockHash::FromBytes(record.hash.data()),
          BlockHash::FromBytes(record.parent.data())};
}

bool RecordIsValid(const LogRecord& record, uint32_t slots) {
  if (record.reserved != 0) return false;
  switch (static_cast<RecordKind>(record.kind)) {
    case RecordKind::kCommit:
      return record.slot < slots && record.generation > 0;
    case RecordKind::kFree:
    case RecordKind::kQuarantine:
      return record.slot < slots && record.epoch == 0 && record.depth == 0;
    case RecordKind::kEpoch:
      return record.slot == 0 && record.generation == 0 && record.depth == 0;
  }
  return false;
}

void SealLogPage(const LogPageInfo& info, std::byte* page) {
  LogPage& encoded = *As<LogPage>(page);
  encoded.region_epoch = info.region_epoch;
  encoded.page = info.page;
  encoded.flags = (info.checkpoint ? kCheckpointFlag : 0) | (info.last ? kLastFlag : 0);
  encoded.count = info.count;
  encoded.group_page = info.group_page;
  encoded.reserved.fill(0);
  for (uint32_t i = info.count; i < kRecordsPerPage; ++i) encoded.records[i] = {};
  Seal({kLogMagic, 0, kFormat, info.segment, info.store}, page);
}

bool ParseLogPage(const std::byte* page, LogPageInfo* info) {
  const LogPage& encoded = *As<LogPage>(page);
  if (!IsIntact(page, kLogMagic) || encoded.head.format != kFormat) return false;
  info->store = encoded.head.store;
  info->segment = encoded.head.segment;
  info->region_epoch = encoded.region_epoch;
  info->page = encoded.page;
  info->checkpoint = (encoded.flags & kCheckpointFlag) != 0;
  info->last = (encoded.flags & kLastFlag) != 0;
  info->count = encoded.count;
  info->group_page = encoded.group_page;
  return encoded.region_epoch > 0 && encoded.page > 0 && encoded.group_page > 0 &&
         encoded.group_page <= encoded.page && encoded.count <= kRecordsPerPage &&
         encoded.flags <= (kCheckpointFlag | kLastFlag) && (info->checkpoint || !info->last) &&
         AllZero(encoded.reserved);
}

LogRecord* RecordsOf(std::byte* page) { return As<LogPage>(page)->records.data(); }
const LogRecord* RecordsOf(const std::byte* page) { return As<LogPage>(page)->records.data(); }

void EncodeSlotHeader(const SlotHeader& header, std::byte* page) {
  SlotHeaderPage encoded;
  encoded.slot = header.slot;
  encoded.generation = header.generation;
  encoded.epoch = header.identity.epoch;
  encoded.depth = header.identity.depth;
  encoded.payload_checksum = header.payload_checksum;
  encoded.ns = header.identity.ns;
  encoded.hash = BytesOf(header.identity.hash);
  encoded.parent = BytesOf(header.identity.parent);
  encoded.shape = FieldsOf(header.shape);
  std::memcpy(page, &encoded, kPageBytes);
  Seal({kSlotMagic, 0, kFormat, header.segment, header.store}, page);
}

bool ParseSlotHeader(const std::byte* page, SlotHeader* header) {
  const SlotHeaderPage& encoded = *As<SlotHeaderPage>(page);
  if (!IsIntact(page, kSlotMagic) || encoded.head.format != kFormat) return false;
  if (!AllZero(encoded.mac) || !AllZero(encoded.reserved)) return false;
  header->store = encoded.head.store;
  header->segment = encoded.head.segment;
  header->slot = encoded.slot;
  header->generation = encoded.generation;
  header->payload_checksum = encoded.payload_checksum;
  header->identity = {encoded.ns, encoded.epoch, encoded.depth,
                      BlockHash::FromBytes(encoded.hash.data()),
                      BlockHash::FromBytes(encoded.parent.data())};
  return ParseShape(encoded.shape, &header->shape) && encoded.slot < header->shape.slots &&
         encoded.generation > 0;
}

namespace {

// What a payload's checksum binds, without padding.
struct Binding {
  StoreId store;
  uint32_t segment, slot, generation, epoch, depth, reserved;
  std::array<uint8_t, 32> ns, hash, parent;
};
static_assert(sizeof(Binding) == 136);

}  // namespace

uint64_t PayloadSeed(const StoreId& store, SsdPlace place, uint32_t generation,
                     const SsdIdentity& identity) {
  const Binding binding{store,
                        place.segment,
                        place.slot,
                        generation,
                        identity.epoch,
                        identity.depth,
                        0,
                        identity.ns,
                        BytesOf(identity.hash),
                        BytesOf(identity.parent)};
  return Checksum(&binding, sizeof(binding), kSlotMagic);
}

uint32_t IdentityTag(const SsdIdentity& identity) {
  const Binding binding{{},
                        0,
                        0,
                        0,
                        identity.epoch,
                        identity.depth,
                        0,
                        identity.ns,
                        BytesOf(identity.hash),
                        BytesOf(identity.parent)};
  return static_cast<uint32_t>(Checksum(&binding, sizeof(binding), kLogMagic));
}

}  // namespace flexkv::ssd
