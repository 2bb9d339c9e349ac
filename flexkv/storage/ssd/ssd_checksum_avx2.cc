#define CHECKSUM_NAME ChecksumAvx2
#include "flexkv/storage/ssd/ssd_checksum_body.h"
