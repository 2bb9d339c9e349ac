#include "flexkv/transfer/device_agent.h"
