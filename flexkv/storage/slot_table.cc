#include "flexkv/storage/slot_table.h"
