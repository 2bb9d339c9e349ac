#define CHECKSUM_NAME ChecksumSse2
#include "flexkv/storage/ssd/ssd_checksum_body.h"
