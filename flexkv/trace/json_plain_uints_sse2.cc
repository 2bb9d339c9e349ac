#define PLAIN_UINTS_NAME PlainUintsSse2
#include "flexkv/trace/json_plain_uints_body.h"
