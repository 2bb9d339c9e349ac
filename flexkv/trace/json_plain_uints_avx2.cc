#define PLAIN_UINTS_NAME PlainUintsAvx2
#include "flexkv/trace/json_plain_uints_body.h"
