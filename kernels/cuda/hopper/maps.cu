// maps.cu: the tensor maps by which TMA finds arrays, for the kernel that runs next: a warp for each. Their shapes are known
// when the graph is built, and stand in `shaped` (kernels/cuda/hopper/maps.py); where MLX puts the arrays is known only
// now. Behind MOST_MAPS maps stands for each whether TMA can take it (is_aligned).
#include "slabs.h"

extern "C" __global__ void __launch_bounds__(LANES* MOST_MAPS)
    flextrace_tensor_maps(const uint8_t* shaped, const void* a, const void* b, const void* c, const void* d,
                          uint8_t* maps) {
  const int map = threadIdx.x / LANES, lane = threadIdx.x % LANES;
  uint* to = (uint*)(maps + map * MAP_BYTES);
  to[lane] = ((const uint*)(shaped + map * MAP_BYTES))[lane];
  __syncwarp();
  if (lane != 0) return;
  const void* from = map == 0 ? a : map == 1 ? b : map == 2 ? c : d;
  const bool aligned = (uint64_t(from) & 15) == 0;
  ((int*)(maps + MOST_MAPS * MAP_BYTES))[map] = aligned;
  if (!aligned) return;
  asm volatile("tensormap.replace.tile.global_address.global.b1024.b64 [%0], %1;" ::"l"(to), "l"(from) : "memory");
  asm volatile("fence.proxy.tensormap::generic.release.gpu;" ::: "memory");
}
