// maps.cu: the tensor maps by which TMA finds q, k, v and d_out, for the kernels that run next, as hopper/maps.cu writes
// those of the forward pass. Behind the maps stands for each whether TMA can take it: it cannot, where its elements begin
// inside 16 bytes.
#include "../../tile/types.h"

constexpr int MAP_BYTES = 128, MAPS = 4;

extern "C" __global__ void __launch_bounds__(LANES* MAPS)
    flextrace_gradient_maps(const uint8_t* shaped, const void* q, const void* k, const void* v, const void* d_out,
                            uint8_t* maps) {
  const int map = threadIdx.x / LANES, lane = threadIdx.x % LANES;
  uint* to = (uint*)(maps + map * MAP_BYTES);
  to[lane] = ((const uint*)(shaped + map * MAP_BYTES))[lane];
  __syncwarp();
  if (lane != 0) return;
  const void* from = map == 0 ? q : map == 1 ? k : map == 2 ? v : d_out;
  const bool aligned = (uint64_t(from) & 15) == 0;
  ((int*)(maps + MAPS * MAP_BYTES))[map] = aligned;
  if (!aligned) return;
  asm volatile("tensormap.replace.tile.global_address.global.b1024.b64 [%0], %1;" ::"l"(to), "l"(from) : "memory");
  asm volatile("fence.proxy.tensormap::generic.release.gpu;" ::: "memory");
}
