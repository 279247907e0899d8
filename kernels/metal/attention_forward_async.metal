// attention_forward_async.metal: attention forward whose tiles of K and V may be copied by simdgroup_async_copy, for
// kernel_options={"ASYNC_COPY": "intrinsic"}.
#include "attention_forward.metal"
#include "async_copy.h"
