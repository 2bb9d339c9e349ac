// The wrapper over a scripted NCCL (every order of "in progress", errors, calls that do not come
// back), over the real library where there is one (no GPU needed), and the choice as a table.
#include "flexkv/transfer/cuda/nccl_broadcast.h"

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace flexkv::cuda {
namespace {

using ::testing::HasSubstr;

constexpr TimeNs kShort = 20 * kNsPerMs;
constexpr TimeNs kLong = 10 * kNsPerSecond;
constexpr int kSystemError = 2;

// What the scripted library does next, and what was asked of it. Calls that end a communicator come
// from threads of their own.
struct Script {
  int version = 22809;
  int id_result = kNcclSuccess;
  int init_result = kNcclInProgress;
  bool init_gives_comm = true;
  int busy_polls = 0;  // get_async_error says so often that it is in progress
  int state = kNcclSuccess;
  int poll_result = kNcclSuccess;
  int broadcast_result = kNcclSuccess;
  int finalize_result = kNcclInProgress;
  std::atomic<bool> hangs{false};  // abort and destroy do not come back
  std::atomic<int> inside{0};      // calls of them under way

  int ranks = 0, rank = 0, blocking = 1;
  char id_byte = 0;
  const void* source = nullptr;
  void* target = nullptr;
  size_t count = 0;
  int type = -1, root = -1;
  Stream stream = nullptr;
  int finalized = 0;
  std::atomic<int> destroyed{0}, aborted{0};
};
Script* script = nullptr;
int comm_object = 0;

void EndOfComm(std::atomic<int>* calls) {
  Script* mine = script;
  ++mine->inside;
  ++*calls;
  while (mine->hangs.load()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  --mine->inside;
}

NcclFunctions ScriptedFunctions() {
  NcclFunctions f;
  f.get_version = [](int* version) {
    *version = script->version;
    return int{kNcclSuccess};
  };
  f.get_unique_id = [](NcclId* id) {
    id->bytes[127] = 9;
    return script->id_result;
  };
  f.comm_init_rank_config = [](NcclComm* comm, int ranks, NcclId id, int rank, NcclConfig* config) {
    script->ranks = ranks;
    script->rank = rank;
    script->blocking = config->blocking;
    script->id_byte = id.bytes[127];
    if (script->init_gives_comm) *comm = &comm_object;
    return script->init_result;
  };
  f.comm_get_async_error = [](NcclComm, int* state) {
    *state = script->busy_polls > 0 ? int{kNcclInProgress} : script->state;
    if (script->busy_polls > 0) --script->busy_polls;
    return script->poll_result;
  };
  f.broadcast = [](const void* source, void* target, size_t count, int type, int root, NcclComm,
                   Stream stream) {
    script->source = source;
    script->target = target;
    script->count = count;
    script->type = type;
    script->root = root;
    script->stream = stream;
    return script->broadcast_result;
  };
  f.comm_finalize = [](NcclComm) {
    ++script->finalized;
    return script->finalize_result;
  };
  f.comm_destroy = [](NcclComm) {
    EndOfComm(&script->destroyed);
    return int{kNcclSuccess};
  };
  f.comm_abort = [](NcclComm) {
    EndOfComm(&script->aborted);
    return int{kNcclSuccess};
  };
  f.get_error_string = [](int result) {
    return result == kSystemError ? "unhandled system error" : "another error";
  };
  f.get_last_error = [](NcclComm) { return "the cable\nis out"; };
  return f;
}

class NcclTest : public ::testing::Test {
 protected:
  NcclTest() { script = &script_; }
  ~NcclTest() override {
    script_.hangs = false;
    while (script_.inside.load() > 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  std::shared_ptr<const NcclLibrary> Library() { return *NcclLibrary::Of(ScriptedFunctions()); }
  absl::StatusOr<std::unique_ptr<NcclBroadcaster>> Create(TimeNs timeout_ns = kLong) {
    return NcclBroadcaster::Create(Library(), {},
                                   {.ranks = 4, .rank = 3, .timeout_ns = timeout_ns});
  }

  Script script_;
  char buffer_[64] = {};
};

TEST_F(NcclTest, VersionsBefore214AreRefused) {
  script_.version = 21304;
  const auto library = NcclLibrary::Of(ScriptedFunctions());
  EXPECT_EQ(library.status().code(), absl::StatusCode::kFailedPrecondition);
  script_.version = 21400;
  ASSERT_TRUE(NcclLibrary::Of(ScriptedFunctions()).ok());
  script_.version = 22809;
  EXPECT_EQ(Library()->VersionText(), "2.28.9");
}

TEST_F(NcclTest, AnIdOrOneSentence) {
  EXPECT_EQ(Library()->MakeId()->bytes[127], 9);
  script_.id_result = kSystemError;
  EXPECT_THAT(std::string(Library()->MakeId().status().message()),
              HasSubstr("unhandled system error (the cable is out)"));
}

TEST_F(NcclTest, ACommunicatorIsThereWhenAllHaveCome) {
  script_.busy_polls = 5;
  {
    auto made = NcclBroadcaster::Create(Library(), *Library()->MakeId(), {.ranks = 4, .rank = 3});
    ASSERT_TRUE(made.ok()) << made.status();
    EXPECT_EQ(script_.ranks, 4);
    EXPECT_EQ(script_.rank, 3);
    EXPECT_EQ(script_.blocking, 0);
    EXPECT_EQ(script_.id_byte, 9);
    EXPECT_EQ(script_.busy_polls, 0);
    EXPECT_EQ(script_.aborted, 0);
  }
  EXPECT_EQ(script_.aborted, 1);  // not closed
}

TEST_F(NcclTest, RanksThatDoNotComeAreNotWaitedForForever) {
  script_.busy_polls = INT32_MAX;
  EXPECT_EQ(Create(kShort).status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(script_.aborted, 1);
}

TEST_F(NcclTest, FailuresToMakeOne) {
  script_.state = kSystemError;
  EXPECT_EQ(Create().status().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(script_.aborted, 1);
  script_.poll_result = kSystemError;
  EXPECT_EQ(Create().status().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(script_.aborted, 2);
  script_.init_result = kSystemError;  // and what was begun is given back
  EXPECT_EQ(Create().status().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(script_.aborted, 3);
  script_.init_gives_comm = false;
  EXPECT_THAT(std::string(Create().status().message()), HasSubstr("unhandled system error"));
  script_.init_result = kNcclSuccess;
  EXPECT_EQ(Create().status().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(script_.aborted, 3);
  for (const uint32_t ranks : {0u, 3u}) {
    EXPECT_EQ(NcclBroadcaster::Create(Library(), {}, {.ranks = ranks, .rank = 3}).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
}

TEST_F(NcclTest, ABroadcastIsInPlaceOnItsStream) {
  auto made = Create();
  ASSERT_TRUE(made.ok());
  int stream = 0;
  for (const int result : {kNcclSuccess, kNcclInProgress}) {
    script_.broadcast_result = result;
    script_.busy_polls = result == kNcclInProgress ? 3 : 0;
    ASSERT_TRUE((*made)->Broadcast(buffer_, sizeof(buffer_), 2, &stream, kLong).ok());
    EXPECT_EQ(script_.busy_polls, 0);
  }
  EXPECT_EQ(script_.source, buffer_);
  EXPECT_EQ(script_.target, buffer_);
  EXPECT_EQ(script_.count, sizeof(buffer_));
  EXPECT_EQ(script_.type, kNcclBytes);
  EXPECT_EQ(script_.root, 2);
  EXPECT_EQ(script_.stream, &stream);
  EXPECT_EQ((*made)->Broadcast(buffer_, 0, 2, &stream, kLong).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ((*made)->Broadcast(nullptr, 8, 2, &stream, kLong).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ((*made)->Broadcast(buffer_, 8, 4, &stream, kLong).code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(NcclTest, BroadcastsThatFail) {
  auto made = Create();
  ASSERT_TRUE(made.ok());
  EXPECT_TRUE((*made)->Check().ok());
  script_.broadcast_result = kSystemError;
  EXPECT_EQ((*made)->Broadcast(buffer_, 8, 0, nullptr, kLong).code(), absl::StatusCode::kInternal);
  script_.broadcast_result = kNcclInProgress;
  script_.busy_polls = INT32_MAX;
  EXPECT_EQ((*made)->Broadcast(buffer_, 8, 0, nullptr, kShort).code(),
            absl::StatusCode::kDeadlineExceeded);
  EXPECT_TRUE((*made)->Check().ok());  // in progress
  script_.busy_polls = 0;
  script_.state = kSystemError;  // for example: another rank is gone
  EXPECT_EQ((*made)->Check().code(), absl::StatusCode::kInternal);
  EXPECT_TRUE((*made)->Abort(kLong).ok());
  EXPECT_EQ((*made)->Check().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ((*made)->Broadcast(buffer_, 8, 0, nullptr, kLong).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE((*made)->Abort(kLong).ok());  // twice is harmless
  EXPECT_EQ(script_.aborted, 1);
}

TEST_F(NcclTest, ClosingWaitsAndThenDestroys) {
  auto made = Create();
  ASSERT_TRUE(made.ok());
  script_.busy_polls = 3;
  EXPECT_TRUE((*made)->Close(kLong).ok());
  EXPECT_TRUE((*made)->Close(kLong).ok());
  made->reset();
  EXPECT_EQ(script_.finalized, 1);
  EXPECT_EQ(script_.destroyed, 1);
  EXPECT_EQ(script_.aborted, 0);
}

TEST_F(NcclTest, ClosingTooLateOrInVainAborts) {
  auto made = Create();
  ASSERT_TRUE(made.ok());
  script_.busy_polls = INT32_MAX;
  EXPECT_EQ((*made)->Close(kShort).code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(script_.aborted, 1);
  script_.busy_polls = 0;
  made = Create();
  ASSERT_TRUE(made.ok());
  script_.finalize_result = kSystemError;
  EXPECT_EQ((*made)->Close(kLong).code(), absl::StatusCode::kInternal);
  EXPECT_EQ(script_.aborted, 2);
  EXPECT_EQ(script_.destroyed, 0);
}

TEST_F(NcclTest, AnAbortThatHangsIsLeftBehind) {
  auto made = Create();
  ASSERT_TRUE(made.ok());
  script_.hangs = true;
  const auto before = std::chrono::steady_clock::now();
  EXPECT_EQ((*made)->Abort(kShort).code(), absl::StatusCode::kDeadlineExceeded);
  made->reset();
  EXPECT_LT(std::chrono::steady_clock::now() - before, std::chrono::seconds(5));
  made = Create();
  ASSERT_TRUE(made.ok());
  EXPECT_EQ((*made)->Close(kShort).code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(script_.destroyed, 1);
}

// --- real libraries ------------------------------------------------------------------------------

TEST(NcclLibraryTest, WhatIsNotThereIsSaid) {
  const auto library = NcclLibrary::Open("/nowhere/libnccl.so.2");
  EXPECT_EQ(library.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(library.status().message()), HasSubstr("/nowhere/libnccl.so.2"));
}

TEST(NcclLibraryTest, AnotherLibraryIsNotTakenForIt) {
  const auto library = NcclLibrary::Open("libm.so.6");
  EXPECT_EQ(library.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(library.status().message()), HasSubstr("ncclGetVersion"));
}

// $FLEXKV_TEST_NCCL, else where the system or CUDA keeps it.
absl::StatusOr<std::shared_ptr<const NcclLibrary>> RealLibrary() {
  if (const char* path = std::getenv("FLEXKV_TEST_NCCL"); path != nullptr && path[0] != '\0')
    return NcclLibrary::Open(path);
  absl::StatusOr<std::shared_ptr<const NcclLibrary>> library = NcclLibrary::Open();
  for (const char* path :
       {"/usr/local/cuda/lib64/libnccl.so.2", "/usr/local/cuda/lib/libnccl.so.2"}) {
    if (!library.ok()) library = NcclLibrary::Open(path);
  }
  return library;
}

TEST(NcclLibraryTest, TheRealOneHasAllWeCall) {
  const auto library = RealLibrary();
  if (!library.ok()) GTEST_SKIP() << library.status().message();
  EXPECT_GE((*library)->version(), 21400);
  std::printf("NCCL %s\n", (*library)->VersionText().c_str());
  // Loaded now: found again without a path, by whoever asks next.
  const auto again = NcclLibrary::Open();
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ((*again)->functions().broadcast, (*library)->functions().broadcast);
}

TEST(NcclLibraryTest, WithoutAGpuThereIsNoCommunicatorAndNoHarm) {
  if (access("/dev/nvidiactl", F_OK) == 0) GTEST_SKIP() << "there is a GPU; see tests/gpu";
  const auto library = RealLibrary();
  if (!library.ok()) GTEST_SKIP() << library.status().message();
  const auto made = NcclBroadcaster::Create(*library, {}, {.timeout_ns = kLong});
  ASSERT_FALSE(made.ok());
  EXPECT_EQ(made.status().code(), absl::StatusCode::kInternal);
  std::printf("%s\n", std::string(made.status().message()).c_str());
  EXPECT_THAT(std::string(made.status().message()), HasSubstr("NCCL: no communicator"));
}

// --- the choice ----------------------------------------------------------------------------------

struct Choice {
  const char* what;
  BroadcastRates rates;  // GB/s here: only ratios matter
  uint32_t ranks;
  bool pays;
};

TEST(BroadcastPaysTest, OnlyWhereHostMemoryIsTheLimit) {
  constexpr double kNone = 0, kNan = std::numeric_limits<double>::quiet_NaN();
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const Choice choices[] = {
      {"one rank", {50, 300, 100}, 1, false},
      {"no rank", {50, 300, 100}, 0, false},
      {"two ranks, host memory for both", {50, 300, 200}, 2, false},
      {"eight ranks, host memory for all", {50, 300, 400}, 8, false},
      {"eight ranks, host memory for nearly all", {50, 300, 350}, 8, false},
      {"eight ranks, host memory for six and a half", {50, 300, 330}, 8, true},
      {"eight ranks behind one socket's memory", {50, 300, 200}, 8, true},
      {"the same, by way of the host again", {50, 22, 200}, 8, false},
      {"the same, a broadcast just fast enough", {50, 30, 200}, 8, true},
      {"four ranks on PCIe 4, slow host", {25, 20, 60}, 4, true},
      {"four ranks on PCIe 4, usual host", {25, 20, 150}, 4, false},
      {"one link is all the host can feed", {50, 300, 50}, 2, true},
      {"less than one link", {50, 300, 30}, 2, true},
      {"a switch shared by two GPUs", {50, 300, 50}, 2, true},
      {"copy not measured", {kNone, 300, 100}, 8, false},
      {"broadcast not measured", {50, kNone, 100}, 8, false},
      {"host memory not measured", {50, 300, kNone}, 8, false},
      {"not numbers", {kNan, 300, 100}, 8, false},
      {"not numbers", {50, kNan, 100}, 8, false},
      {"not numbers", {50, 300, kInfinity}, 8, false},
      {"negative", {50, -300, 100}, 8, false},
      {"very many ranks", {50, 300, 100}, UINT32_MAX, true},
  };
  for (const Choice& choice : choices) {
    EXPECT_EQ(BroadcastPays(choice.rates, choice.ranks), choice.pays) << choice.what;
  }
}

// Better for the broadcast stays better: more ranks, a faster broadcast, less host memory per rank.
TEST(BroadcastPaysTest, IsMonotone) {
  for (double host = 10; host < 1000; host *= 1.3) {
    for (double broadcast = 1; broadcast < 500; broadcast *= 1.5) {
      for (uint32_t ranks = 2; ranks < 16; ++ranks) {
        if (!BroadcastPays({50, broadcast, host}, ranks)) continue;
        EXPECT_TRUE(BroadcastPays({50, broadcast, host}, ranks + 1));
        EXPECT_TRUE(BroadcastPays({50, broadcast * 2, host}, ranks));
      }
    }
  }
}

}  // namespace
}  // namespace flexkv::cuda
