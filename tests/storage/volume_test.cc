// A raw device: its table byte by byte, what a crash leaves of it, and what is refused.
#include <gmock/gmock.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/wait.h>

#include <algorithm>
#include <fstream>
#include <set>

#include "absl/strings/str_cat.h"
#include "flexkv/storage/ssd/ssd_verify.h"
#include "flexkv/storage/ssd/volume_files.h"
#include "flexkv/storage/ssd/volume_table.h"
#include "tests/storage/disk_fixture.h"
#include "tests/storage/ssd_block_buffer.h"
#include "tests/storage/ssd_harness.h"
#include "tests/support/content_oracle.h"
#include "tests/support/test_seed.h"

namespace flexkv {
namespace {

using absl::StatusCode;
using testing::HasSubstr;

constexpr uint64_t kMiB = 1 << 20;

// --- the table ----------------------------------------------------------------------------------

VolumeTable SomeTable() {
  VolumeTable table;
  table.id.fill(9);
  table.sequence = 5;
  table.device_units = 100;
  table.files = {
      {"a", 2, 1, 4096}, {"b", 10, 3, 2 * kMiB + 4096}, {std::string(63, 'c'), 99, 1, kMiB}};
  return table;
}

std::vector<std::byte> Encode(const VolumeTable& table) {
  std::vector<std::byte> copy(kVolumeCopyBytes);
  EncodeVolumeTable(table, std::span(copy).first(VolumeTableBytes(table.files.size())));
  return copy;
}

VolumeTableState StateOf(const VolumeTable& table) {
  VolumeTable parsed;
  return ParseVolumeTable(Encode(table), &parsed);
}

TEST(VolumeTableTest, ComesBack) {
  VolumeTable parsed;
  ASSERT_EQ(ParseVolumeTable(Encode(SomeTable()), &parsed), VolumeTableState::kGood);
  EXPECT_EQ(parsed.id, SomeTable().id);
  EXPECT_EQ(parsed.sequence, 5u);
  EXPECT_EQ(parsed.device_units, 100u);
  ASSERT_EQ(parsed.files.size(), 3u);
  EXPECT_EQ(parsed.Find("b")->first_unit, 10u);
  EXPECT_EQ(parsed.Find("b")->bytes, 2 * kMiB + 4096);
  EXPECT_EQ(parsed.Find("x"), nullptr);
  VolumeTable full;
  full.sequence = 1;
  full.device_units = 2 + kMaxVolumeFiles;
  for (uint64_t i = 0; i < kMaxVolumeFiles; ++i)
    full.files.push_back({absl::StrCat(i), 2 + i, 1, 1});
  EXPECT_EQ(StateOf(full), VolumeTableState::kGood);
}

TEST(VolumeTableTest, NoFlippedBitIsGood) {
  const std::vector<std::byte> good = Encode(SomeTable());
  for (uint64_t bit = 0; bit < VolumeTableBytes(3) * 8; ++bit) {
    if (bit > 4096 && bit % 61 != 0) continue;
    std::vector<std::byte> copy = good;
    copy[bit / 8] ^= std::byte{static_cast<unsigned char>(1 << bit % 8)};
    VolumeTable parsed;
    EXPECT_NE(ParseVolumeTable(copy, &parsed), VolumeTableState::kGood) << bit;
  }
}

TEST(VolumeTableTest, EveryFieldIsChecked) {
  const std::pair<const char*, std::function<void(VolumeTable*)>> changes[] = {
      {"sequence", [](VolumeTable* t) { t->sequence = 0; }},
      {"impossible device", [](VolumeTable* t) { t->device_units = UINT64_MAX / 2; }},
      {"small device", [](VolumeTable* t) { t->device_units = 99; }},
      {"in the table", [](VolumeTable* t) { t->files[0].first_unit = 1; }},
      {"overlap", [](VolumeTable* t) { t->files[0].first_unit = 12; }},
      {"no units", [](VolumeTable* t) { t->files[0].units = 0; }},
      {"huge", [](VolumeTable* t) { t->files[0].units = UINT64_MAX; }},
      {"far", [](VolumeTable* t) { t->files[0].first_unit = UINT64_MAX; }},
      {"no bytes", [](VolumeTable* t) { t->files[0].bytes = 0; }},
      {"too many bytes", [](VolumeTable* t) { t->files[0].bytes = kMiB + 1; }},
      {"too few bytes", [](VolumeTable* t) { t->files[1].bytes = 2 * kMiB; }},
      {"two of a name", [](VolumeTable* t) { t->files[1].name = "a"; }},
      {"no name", [](VolumeTable* t) { t->files[1].name = ""; }},
      {"a path", [](VolumeTable* t) { t->files[1].name = "x/y"; }}};
  for (const auto& [what, change] : changes) {
    VolumeTable table = SomeTable();
    change(&table);
    EXPECT_EQ(StateOf(table), VolumeTableState::kDamaged) << what;
  }
}

TEST(VolumeTableTest, OursAndNotOurs) {
  VolumeTable parsed;
  std::vector<std::byte> copy(kVolumeCopyBytes);
  EXPECT_EQ(ParseVolumeTable(copy, &parsed), VolumeTableState::kBlank);
  for (const uint64_t at : {uint64_t{0}, uint64_t{1024}, uint64_t{65536}, kVolumeCopyBytes - 1}) {
    copy.assign(kVolumeCopyBytes, {});
    copy[at] = std::byte{1};
    EXPECT_EQ(ParseVolumeTable(copy, &parsed), VolumeTableState::kForeign) << at;
  }
  copy = Encode(SomeTable());  // the header was not written
  std::fill_n(copy.begin(), 4096, std::byte{0});
  EXPECT_EQ(ParseVolumeTable(copy, &parsed), VolumeTableState::kDamaged);
}

TEST(VolumeTableTest, Runs) {
  VolumeTable table;
  table.device_units = 100;
  EXPECT_EQ(FindVolumeRun(table, {}, 1), 99u) << "small ones go to the end";
  EXPECT_EQ(FindVolumeRun(table, {}, 20), 2u);
  EXPECT_EQ(FindVolumeRun(table, {}, 98), 2u);
  EXPECT_EQ(FindVolumeRun(table, {}, 99), 0u);
  table.files = {{"a", 10, 20, 20 * kMiB}, {"b", 50, 49, 49 * kMiB}};
  EXPECT_EQ(FindVolumeRun(table, {}, 20), 30u);
  EXPECT_EQ(FindVolumeRun(table, {}, 21), 0u);
  EXPECT_EQ(FindVolumeRun(table, {}, 1), 99u);
  const std::pair<uint64_t, uint64_t> held[] = {{99, 1}, {30, 5}};
  EXPECT_EQ(FindVolumeRun(table, held, 1), 49u);
  EXPECT_EQ(FindVolumeRun(table, held, 16), 0u);
  EXPECT_EQ(FindVolumeRun(table, held, 15), 35u);
}

// --- on a file that stands for the device -------------------------------------------------------

class VolumeTest : public testing::Test {
 protected:
  void SetUp() override {
    directory_ = MakeDirectory(DiskPlace());
    image_ = directory_ + "/image";
    MakeImage(image_, 64 * kMiB);
  }
  void TearDown() override {
    disk_.reset();
    std::filesystem::remove_all(directory_);
  }
  absl::Status Open(bool read_only = false) {
    disk_.reset();
    auto disk = MakeThreadDisk({.directory = image_,
                                .allow_regular_file = true,
                                .lock_wait_ns = 50 * kNsPerMs,
                                .read_only = read_only});
    if (!disk.ok()) return disk.status();
    disk_ = *std::move(disk);
    return absl::OkStatus();
  }
  std::vector<std::string> Names() {
    std::vector<std::string> names;
    const std::vector<DiskFile> files = disk_->List().value();
    for (const DiskFile& file : files) names.push_back(file.name);
    return names;
  }
  std::string Bytes(uint64_t at, uint64_t bytes) const {
    std::string text(bytes, '\0');
    std::ifstream in(image_, std::ios::binary);
    in.seekg(static_cast<std::streamoff>(at));
    in.read(text.data(), static_cast<std::streamsize>(bytes));
    return text;
  }
  void Put(uint64_t at, const std::string& bytes) const {
    std::fstream out(image_, std::ios::binary | std::ios::in | std::ios::out);
    out.seekp(static_cast<std::streamoff>(at));
    out << bytes;
  }
  int64_t Do(IoKind kind, FileId file, uint64_t offset, Buffer* memory) {
    const iovec slice = memory->slice(0, memory->span().size());
    const size_t slices = kind == IoKind::kSync ? 0 : 1;
    EXPECT_TRUE(disk_->Submit({1, kind, file, offset, {&slice, slices}}));
    std::vector<IoResult> results;
    while (results.empty()) disk_->Poll(kNsPerSecond, &results);
    return results[0].result;
  }
  std::string directory_, image_;
  std::unique_ptr<Disk> disk_;
};

TEST_F(VolumeTest, NothingIsWrittenBeforeTheFirstFile) {
  ASSERT_EQ(Open(), absl::OkStatus());
  EXPECT_THAT(Names(), testing::IsEmpty());
  EXPECT_EQ(disk_->FreeBytes().value(), 62 * kMiB);
  EXPECT_EQ(Bytes(0, 2 * kMiB), std::string(2 * kMiB, '\0'));
  ASSERT_TRUE(disk_->Create("a", 4096).ok());
  EXPECT_EQ(disk_->FreeBytes().value(), 61 * kMiB);
  ASSERT_EQ(Open(/*read_only=*/true), absl::OkStatus());
  EXPECT_THAT(Names(), testing::ElementsAre("a"));
  EXPECT_EQ(disk_->Create("b", 4096).status().code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(disk_->Remove("a").code(), StatusCode::kFailedPrecondition);
}

// The new copy of the table stops after every sector, from either end: the files are those before
// or those after, and the next change works.
TEST_F(VolumeTest, TornTables) {
  uint64_t before = 0, after = 0;
  for (int files = 0; files < 3;
       ++files) {  // the first write of each copy, and one over an old one
    ASSERT_EQ(Open(), absl::OkStatus());
    const std::vector<std::string> old_names = Names();
    const std::string old_bytes = Bytes(0, 2 * kMiB);
    ASSERT_TRUE(disk_->Create(absl::StrCat("file", files), kMiB).ok());
    const std::vector<std::string> new_names = Names();
    disk_.reset();
    const std::string new_bytes = Bytes(0, 2 * kMiB);
    for (const bool from_end : {false, true}) {
      for (uint64_t step = 0; step < 48; ++step) {  // each sector of both copies' first pages
        const uint64_t cut = step / 24 * kMiB + step % 24 * 512;
        const std::string torn = from_end ? old_bytes.substr(0, cut) + new_bytes.substr(cut)
                                          : new_bytes.substr(0, cut) + old_bytes.substr(cut);
        Put(0, torn);
        ASSERT_EQ(Open(), absl::OkStatus()) << files << " torn at " << cut;
        const std::vector<std::string> names = Names();
        ASSERT_TRUE(names == old_names || names == new_names) << files << " torn at " << cut;
        ++(names == old_names ? before : after);
        ASSERT_TRUE(disk_->Create("more", 4096).ok());
        ASSERT_EQ(Open(), absl::OkStatus());
        ASSERT_EQ(Names().size(), names.size() + 1);
      }
    }
    disk_.reset();
    Put(0, new_bytes);
  }
  EXPECT_GT(before, 20u);
  EXPECT_GT(after, 20u);
}

TEST_F(VolumeTest, WhatSomethingElseHasWrittenIsLeftAlone) {
  for (const uint64_t at : {uint64_t{0}, uint64_t{510}, uint64_t{1024 + 56}, 64 * kMiB / 1024,
                            kMiB - 1, kMiB, kMiB + 1024, 2 * kMiB - 1}) {
    Put(at, "x");
    const absl::Status status = Open();
    EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition) << at;
    EXPECT_THAT(std::string(status.message()), HasSubstr("wipe it first with: dd"));
    EXPECT_EQ(Bytes(at, 1), "x");
    Put(at, std::string(1, '\0'));
  }
  EXPECT_EQ(Open(), absl::OkStatus());
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(disk_->Create(absl::StrCat(i), 4096).ok());
  disk_.reset();
  // Another's file system over one copy of our table: the device is the other's now.
  const std::string table = Bytes(0, 2 * kMiB);
  for (const uint64_t at : {uint64_t{0}, kMiB}) {
    Put(at, std::string(4096, '\0'));
    Put(at + 1024, "SUPERBLOCK");
    EXPECT_EQ(Open().code(), StatusCode::kFailedPrecondition) << at;
    Put(0, table);
  }
  Put(0, std::string(2 * kMiB, '\0'));  // as the message says
  EXPECT_EQ(Open(), absl::OkStatus());
  EXPECT_THAT(Names(), testing::IsEmpty());
}

TEST_F(VolumeTest, OneLostCopyCostsTheLastChangeAtMost) {
  ASSERT_EQ(Open(), absl::OkStatus());
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(disk_->Create(absl::StrCat("f", i), 4096).ok());
  disk_.reset();
  const std::string table = Bytes(0, 2 * kMiB);
  size_t fewest = 4;
  for (const uint64_t at : {uint64_t{40}, kMiB + 40}) {
    Put(at, "?");
    ASSERT_EQ(Open(), absl::OkStatus());
    EXPECT_GE(Names().size(), 3u);
    fewest = std::min(fewest, Names().size());
    disk_.reset();
    Put(0, table);
  }
  EXPECT_EQ(fewest, 3u);
  Put(40, "?");
  Put(kMiB + 40, "?");
  EXPECT_EQ(Open().code(), StatusCode::kFailedPrecondition);
}

TEST_F(VolumeTest, AShrunkenDeviceIsRefusedAndAGrownOneUsed) {
  ASSERT_EQ(Open(), absl::OkStatus());
  ASSERT_TRUE(disk_->Create("a", 30 * kMiB).ok());
  disk_.reset();
  std::filesystem::resize_file(image_, 96 * kMiB);
  ASSERT_EQ(Open(), absl::OkStatus());
  EXPECT_EQ(disk_->FreeBytes().value(), (96 - 2 - 30) * kMiB);
  EXPECT_TRUE(disk_->Create("b", 60 * kMiB).ok());
  disk_.reset();
  std::filesystem::resize_file(image_, 64 * kMiB);
  EXPECT_EQ(Open().code(), StatusCode::kFailedPrecondition);
  std::filesystem::resize_file(image_, kMiB);
  EXPECT_EQ(Open().code(), StatusCode::kFailedPrecondition);
}

TEST_F(VolumeTest, FullAndFreedAndFilledAgain) {
  ASSERT_EQ(Open(), absl::OkStatus());
  for (int round = 0; round < 3; ++round) {
    EXPECT_EQ(disk_->Create("big", 63 * kMiB).status().code(), StatusCode::kResourceExhausted);
    const absl::StatusOr<FileId> file = disk_->Create("big", 62 * kMiB);
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_EQ(disk_->Create("more", 4096).status().code(), StatusCode::kResourceExhausted);
    EXPECT_EQ(disk_->FreeBytes().value(), 0u);
    ASSERT_EQ(disk_->Remove("big"), absl::OkStatus());
    // Its space is not another's while it is open.
    EXPECT_EQ(disk_->Create("more", 4096).status().code(), StatusCode::kResourceExhausted);
    disk_->Close(*file);
    EXPECT_TRUE(disk_->Create("more", 4096).ok());
    ASSERT_EQ(disk_->Remove("more"), absl::OkStatus());
    ASSERT_EQ(Open(), absl::OkStatus());
  }
}

TEST_F(VolumeTest, NewFilesAreZeroAndApart) {
  ASSERT_EQ(Open(), absl::OkStatus());
  Buffer memory(kMiB);
  std::vector<FileId> files;
  for (int round = 0; round < 3; ++round) {
    for (int i = 0; i < 5; ++i) {
      files.push_back(disk_->Create(absl::StrCat("f", i), kMiB - 4096).value());
      EXPECT_EQ(Do(IoKind::kRead, files.back(), 0, &memory), static_cast<int64_t>(kMiB - 4096))
          << "short at its end, not on into the next file";
      EXPECT_TRUE(std::all_of(memory.data(), memory.data() + kMiB - 4096,
                              [](std::byte b) { return b == std::byte{0}; }));
      std::memset(memory.data(), 'a' + i, kMiB);
      EXPECT_EQ(Do(IoKind::kWrite, files.back(), 0, &memory), -EINVAL);
      Buffer fits(kMiB - 4096);
      EXPECT_EQ(Do(IoKind::kWrite, files.back(), 0, &fits), static_cast<int64_t>(kMiB - 4096));
    }
    for (int i = 0; i < 5; ++i) {
      disk_->Close(files[static_cast<size_t>(i)]);
      ASSERT_EQ(disk_->Remove(absl::StrCat("f", i)), absl::OkStatus());
    }
    files.clear();
  }
}

TEST_F(VolumeTest, OneOwner) {
  ASSERT_EQ(Open(), absl::OkStatus());
  const auto second = MakeThreadDisk(
      {.directory = image_, .allow_regular_file = true, .lock_wait_ns = 20 * kNsPerMs});
  EXPECT_TRUE(IsInUse(second.status())) << second.status();
  EXPECT_EQ(MakeThreadDisk({.directory = image_}).status().code(), StatusCode::kFailedPrecondition)
      << "a regular file is none in production";
}

// Files come and go, each filled with its own number and synced before it is told; then the process
// is killed. What was told is there, whole.
TEST_F(VolumeTest, KilledWhileFilesComeAndGo) {
  TestRng rng(TestSeed());
  for (int round = 0; round < 20; ++round) {
    int told[2];
    ASSERT_EQ(pipe(told), 0);
    const pid_t child = fork();
    if (child == 0) {
      if (!Open().ok()) _exit(1);
      std::vector<std::string> names = Names();
      for (uint32_t number = static_cast<uint32_t>(round) * 1000;; ++number) {
        if (names.size() > 5) {
          const std::string victim = names[number % names.size()];
          std::erase(names, victim);
          if (write(told[1], ("-" + victim + "\n").c_str(), victim.size() + 2) < 0) _exit(1);
          if (!disk_->Remove(victim).ok()) _exit(1);
        }
        const std::string name = absl::StrCat(number);
        Buffer memory((1 + number % 3) * kMiB);
        std::memset(memory.data(), static_cast<int>(number % 251), memory.span().size());
        const absl::StatusOr<FileId> file = disk_->Create(name, memory.span().size());
        if (!file.ok() || Do(IoKind::kWrite, *file, 0, &memory) < 0) _exit(1);
        if (Do(IoKind::kSync, *file, 0, &memory) != 0) _exit(1);
        disk_->Close(*file);
        names.push_back(name);
        if (write(told[1], ("+" + name + "\n").c_str(), name.size() + 2) < 0) _exit(1);
      }
    }
    close(told[1]);
    usleep(static_cast<useconds_t>(20000 + rng.Below(60000)));
    kill(child, SIGKILL);
    int status = 0;
    waitpid(child, &status, 0);
    ASSERT_TRUE(WIFSIGNALED(status)) << "the child failed";
    std::string text;
    char piece[4096];
    for (ssize_t got = 0; (got = read(told[0], piece, sizeof(piece))) > 0;) {
      text.append(piece, static_cast<size_t>(got));
    }
    close(told[0]);
    ASSERT_EQ(Open(), absl::OkStatus());
    const std::vector<std::string> found = Names();
    std::set<std::string> must;
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
      line[0] == '+' ? void(must.insert(line.substr(1))) : void(must.erase(line.substr(1)));
    }
    for (const std::string& name : must) {
      ASSERT_TRUE(std::find(found.begin(), found.end(), name) != found.end()) << name;
      const int number = std::stoi(name);
      Buffer memory(static_cast<size_t>(1 + number % 3) * kMiB);
      const FileId file = disk_->Open(name).value();
      ASSERT_EQ(Do(IoKind::kRead, file, 0, &memory), static_cast<int64_t>(memory.span().size()));
      ASSERT_TRUE(std::all_of(memory.span().begin(), memory.span().end(), [&](std::byte b) {
        return b == std::byte{static_cast<unsigned char>(number % 251)};
      })) << name;
      disk_->Close(file);
    }
    disk_.reset();
  }
}

// --- on a block device --------------------------------------------------------------------------

class LoopVolumeTest : public VolumeTest {
 protected:
  void SetUp() override {
    VolumeTest::SetUp();
    loop_ = std::make_unique<LoopDevice>(image_);
    if (loop_->path().empty()) GTEST_SKIP() << "no loop device: " << loop_->output();
  }
  void TearDown() override {
    disk_.reset();
    loop_.reset();
    VolumeTest::TearDown();
  }
  absl::StatusOr<std::unique_ptr<Disk>> Make() const {
    return MakeThreadDisk({.directory = loop_->path(), .lock_wait_ns = 100 * kNsPerMs});
  }
  std::unique_ptr<LoopDevice> loop_;
};

TEST_F(LoopVolumeTest, AStoreOnItIsFoundAgainAndVerifies) {
  const SteadyClock clock;
  const SsdShape shape{{5000, 4096}, 64};
  SsdStoreOptions options;
  options.max_bytes = 60 * kMiB;
  std::set<uint32_t> segments;
  for (int life = 0; life < 3; ++life) {
    auto disk = Make();
    ASSERT_TRUE(disk.ok()) << disk.status();
    auto store = SsdStore::Open(options, disk->get(), &clock);
    ASSERT_TRUE(store.ok()) << store.status();
    EXPECT_EQ((*store)->stats().recovered_blocks, segments.size() * 10);
    EXPECT_EQ((*store)->stats().dropped_records, 0u);
    const absl::StatusOr<uint32_t> segment = (*store)->CreateSegment(shape);
    ASSERT_TRUE(segment.ok()) << segment.status();
    segments.insert(*segment);
    std::vector<std::unique_ptr<SsdBlockBuffer>> memory;
    for (uint32_t i = 0; i < 10; ++i) {
      memory.push_back(std::make_unique<SsdBlockBuffer>(shape.shard_bytes));
      memory.back()->Fill(TestIdentity(i));
      ASSERT_TRUE(
          (*store)->SubmitWrite({i, {*segment, i}, TestIdentity(i), memory.back()->ToWrite()}));
    }
    std::vector<SsdResult> results;
    while (!(*store)->idle()) {
      (*store)->Flush();
      (*store)->Poll(10 * kNsPerMs, &results);
    }
    for (const SsdResult& result : results) EXPECT_EQ(result.status, absl::OkStatus());
  }
  SsdVerifyOptions verify;
  verify.directories = {loop_->path()};
  absl::StatusOr<SsdVerifyReport> report = VerifySsd(verify);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_FALSE(report->damaged());
  EXPECT_EQ(report->directories[0].good_blocks, 30u);
  verify.repair = true;
  report = VerifySsd(verify);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->directories[0].repair.freed_duplicates, 20u);
}

TEST_F(LoopVolumeTest, ABlankDeviceHasNoStoreAndStaysBlank) {
  for (const bool repair : {false, true}) {
    SsdVerifyOptions verify;
    verify.directories = {loop_->path()};
    verify.repair = repair;
    EXPECT_TRUE(absl::IsNotFound(VerifySsd(verify).status()));
  }
  EXPECT_EQ(Bytes(0, 2 * kMiB), std::string(2 * kMiB, '\0'));
}

TEST_F(LoopVolumeTest, ADeviceWithAFileSystemIsRefusedMountedOrNot) {
  const std::string make = "mkfs.ext4 -q " + loop_->path() + " 2>&1";
  if (std::system(make.c_str()) != 0) GTEST_SKIP() << "no mkfs.ext4";
  EXPECT_THAT(std::string(Make().status().message()), HasSubstr("carries something else"));
  const std::string point = directory_ + "/mounted";
  std::filesystem::create_directory(point);
  if (mount(loop_->path().c_str(), point.c_str(), "ext4", 0, nullptr) != 0) {
    GTEST_SKIP() << "no mount here: " << std::strerror(errno);
  }
  const absl::Status status = Make().status();
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("is mounted"));
  EXPECT_EQ(umount(point.c_str()), 0);
}

TEST_F(LoopVolumeTest, AFileSystemMadeOverATableIsRespected) {
  {
    auto disk = Make();
    ASSERT_TRUE(disk.ok()) << disk.status();
    for (int i = 0; i < 3; ++i) ASSERT_TRUE((*disk)->Create(absl::StrCat(i), 4096).ok());
  }
  if (std::system(("mkfs.ext4 -q -F " + loop_->path() + " 2>&1").c_str()) != 0) {
    GTEST_SKIP() << "no mkfs.ext4";
  }
  EXPECT_EQ(Make().status().code(), StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace flexkv
