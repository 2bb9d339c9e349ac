#include "flexkv/base/thread_setup.h"

#include <pthread.h>
#include <sched.h>

namespace flexkv {

void SetUpThread(const char* name) {
  pthread_setname_np(pthread_self(), name);
  constexpr int kMaxCores = 8192;
  cpu_set_t* all = CPU_ALLOC(kMaxCores);
  if (all == nullptr) return;
  const size_t bytes = CPU_ALLOC_SIZE(kMaxCores);
  CPU_ZERO_S(bytes, all);
  for (int core = 0; core < kMaxCores; ++core) CPU_SET_S(static_cast<size_t>(core), bytes, all);
  sched_setaffinity(0, bytes, all);  // the kernel keeps what the cgroup allows
  CPU_FREE(all);
}

}  // namespace flexkv
