#include "flexkv/transfer/host_copy.h"
