// The snapshot as a message.
#pragma once

#include "flexkv/server/snapshot.h"
#include "proto/admin.pb.h"

namespace flexkv {

void ToProto(const DaemonSnapshot& snapshot, admin::v1::StatusReply* reply);
const char* PageKindName(PageKind kind);

}  // namespace flexkv
