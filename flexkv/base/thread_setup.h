// What every thread of ours inside an engine's process does first.
#pragma once

namespace flexkv {

// Names the calling thread (15 characters at most) and lets it run on every core that the process
// may use. The engine binds its threads to the cores it computes on, and threads inherit that: ours
// would share one core with a thread that never sleeps.
void SetUpThread(const char* name);

}  // namespace flexkv
