// maps.cu: the tensor maps by which TMA finds q, k and v, for the kernel that runs next. Their shapes are known when the
// graph is built, and stand in `shaped` (kernels/cuda/hopper/maps.py); where MLX puts the arrays is known only now.
// Behind the maps stands for each whether TMA can take it: it cannot, where its elements begin inside 16 bytes.
#include "../tile/types.h"

constexpr int MAP_BYTES = 128, MAPS = 3;

extern "C" __global__ void __launch_bounds__(LANES* MAPS)
    flextrace_tensor_maps(const uint8_t* shaped, const void* q, const void* k, const void* v, uint8_t* maps) {
  const int map = threadIdx.x / LANES, lane = threadIdx.x % LANES;
  uint* to = (uint*)(maps + map * MAP_BYTES);
  to[lane] = ((const uint*)(shaped + map * MAP_BYTES))[lane];
  __syncwarp();
  if (lane != 0) return;
  const void* from = map == 0 ? q : map == 1 ? k : v;
  ((int*)(maps + MAPS * MAP_BYTES))[map] = (uint64_t(from) & 15) == 0;
  if (uint64_t(from) & 15) return;
  asm volatile("tensormap.replace.tile.global_address.global.b1024.b64 [%0], %1;" ::"l"(to), "l"(from) : "memory");
  asm volatile("fence.proxy.tensormap::generic.release.gpu;" ::: "memory");
}
