// A client in a process of its own: attaches as the arguments say, says how that went, and reports
// nothing more.
//   server_test_peer SOCKET scheduler|worker ENGINE RANK WORLD UID
// Prints "welcome", "reject: ..." or "error: ..."; then "op" for each op it is sent, until it is
// killed.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "tests/server/raw_client.h"

int main(int argc, char** argv) {
  using namespace flexkv;
  if (argc != 7) return 2;
  const auto number = [argv](int i) {
    return static_cast<uint32_t>(std::strtoul(argv[i], nullptr, 10));
  };
  const uid_t uid = number(6);
  if (uid != geteuid() && setresuid(uid, uid, uid) != 0) {
    std::printf("error: setresuid\n");
    return 1;
  }
  const bool scheduler = std::string(argv[2]) == "scheduler";
  const shm::Hello hello = scheduler ? SchedulerHello(number(3), number(5))
                                     : WorkerHello(number(3), number(4), number(5));
  absl::StatusOr<std::unique_ptr<RawClient>> client =
      RawClient::Attach(argv[1], hello, scheduler ? SchedulerText("peer") : "layout");
  if (!client.ok()) {
    std::printf("%s: %s\n", absl::IsFailedPrecondition(client.status()) ? "reject" : "error",
                std::string(client.status().message()).c_str());
    return 1;
  }
  std::printf("welcome\n");
  std::fflush(stdout);
  while (true) {
    if (!(*client)->WaitFor(shm::MessageType::kOp, 1000).has_value()) continue;
    std::printf("op\n");
    std::fflush(stdout);
  }
}
