// LMDB with one table: place -> 120 bytes. Every group is a transaction, synced (no flags).
#include <fcntl.h>
#include <lmdb.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>

#include "perf/ssd_metadata/metadata_store.h"

namespace flexkv::bench {
namespace {

uint64_t KeyOf(SsdPlace place) { return uint64_t{place.segment} << 32 | place.slot; }

class LmdbStore : public MetadataStore {
 public:
  LmdbStore(std::string path, uint64_t blocks) : path_(std::move(path)), map_bytes_(blocks * 1024) {
    unlink(path_.c_str());
    Open(0);
  }
  ~LmdbStore() override { mdb_env_close(env_); }
  const char* name() const override { return "lmdb"; }

  void Fill(const std::vector<MetadataRecord>& records) override {
    mdb_env_close(env_);
    Open(MDB_NOSYNC);
    Write(records, MDB_APPEND);
    Demand(mdb_env_sync(env_, 1) == 0, "mdb_env_sync");
    mdb_env_close(env_);
    Open(0);
  }
  void CommitGroup(std::span<const MetadataRecord> group) override { Write(group, 0); }
  uint64_t Load() override;
  uint64_t file_bytes() const override {
    struct stat info {};
    stat(path_.c_str(), &info);
    return static_cast<uint64_t>(info.st_size);
  }

 private:
  void Open(unsigned flags) {
    Demand(mdb_env_create(&env_) == 0, "mdb_env_create");
    mdb_env_set_mapsize(env_, map_bytes_ + (64 << 20));
    Demand(mdb_env_open(env_, path_.c_str(), MDB_NOSUBDIR | flags, 0600) == 0, "mdb_env_open");
    MDB_txn* transaction = nullptr;
    Demand(mdb_txn_begin(env_, nullptr, 0, &transaction) == 0, "mdb_txn_begin");
    Demand(mdb_dbi_open(transaction, nullptr, MDB_INTEGERKEY, &table_) == 0, "mdb_dbi_open");
    Demand(mdb_txn_commit(transaction) == 0, "mdb_txn_commit");
  }

  void Write(std::span<const MetadataRecord> records, unsigned flags) {
    MDB_txn* transaction = nullptr;
    Demand(mdb_txn_begin(env_, nullptr, 0, &transaction) == 0, "mdb_txn_begin");
    for (const MetadataRecord& entry : records) {
      uint64_t place = KeyOf(entry.place);
      MDB_val key{sizeof(place), &place};
      if (!entry.commit) {
        Demand(mdb_del(transaction, table_, &key, nullptr) == 0, "mdb_del");
        continue;
      }
      // Kind and slot are in the key.
      MDB_val value{sizeof(entry.record) - 8,
                    const_cast<std::byte*>(reinterpret_cast<const std::byte*>(&entry.record)) + 8};
      Demand(mdb_put(transaction, table_, &key, &value, flags) == 0, "mdb_put");
    }
    Demand(mdb_txn_commit(transaction) == 0, "mdb_txn_commit");
  }

  const std::string path_;
  const uint64_t map_bytes_;
  MDB_env* env_ = nullptr;
  MDB_dbi table_ = 0;
};

uint64_t LmdbStore::Load() {
  mdb_env_close(env_);
  const int file = open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  Demand(file >= 0 && fsync(file) == 0, "open");
  posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);  // as after a restart of the machine
  close(file);
  Open(0);
  MDB_txn* transaction = nullptr;
  MDB_cursor* cursor = nullptr;
  Demand(mdb_txn_begin(env_, nullptr, MDB_RDONLY, &transaction) == 0, "mdb_txn_begin");
  Demand(mdb_cursor_open(transaction, table_, &cursor) == 0, "mdb_cursor_open");
  std::vector<RecoveredBlock> blocks;
  MDB_val key, value;
  while (mdb_cursor_get(cursor, &key, &value, MDB_NEXT) == 0) {
    uint64_t place = 0;
    std::memcpy(&place, key.mv_data, sizeof(place));
    ssd::LogRecord record;
    std::memcpy(reinterpret_cast<std::byte*>(&record) + 8, value.mv_data, value.mv_size);
    blocks.push_back({{static_cast<uint32_t>(place >> 32), static_cast<uint32_t>(place)},
                      ssd::IdentityOf(record)});
  }
  mdb_cursor_close(cursor);
  mdb_txn_abort(transaction);
  return blocks.size();
}

}  // namespace

std::unique_ptr<MetadataStore> MakeLmdbStore(const std::string& directory, uint64_t blocks) {
  return std::make_unique<LmdbStore>(directory + "/metadata.lmdb", blocks);
}

}  // namespace flexkv::bench
