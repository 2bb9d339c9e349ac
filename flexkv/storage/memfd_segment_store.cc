#include "flexkv/storage/segment_store.h"
