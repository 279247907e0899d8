// elements.cu: which element of its array a site reads at each position that has a sum, a thread for each.
#include "../attention/params.h"
#include "../mod/score_gradient.h"

constexpr int THREADS = 128;

// What a position is: a query row, a key, or a q_idx - kv_idx, from 1 - kv_len on.
enum Positions { ROWS = 0, COLUMNS = 1, DIAGONALS = 2 };

// elements: [gridDim.z batches, gridDim.y heads, count].
INLINE void find_elements(int* elements, int positions, int count, int kv_len, const GradientMods& mods) {
  const int position = blockIdx.x * THREADS + threadIdx.x;
  if (position >= count) return;
  const int difference = position - (kv_len - 1);
  const int q_idx = positions == ROWS ? position : positions == DIAGONALS ? larger(difference, 0) : 0;
  const int kv_idx = positions == COLUMNS ? position : positions == DIAGONALS ? q_idx - difference : 0;
  const int64_t head = int64_t(blockIdx.z) * gridDim.y + blockIdx.y;
  elements[head * count + position] = int(mods.element(0.0f, blockIdx.z, blockIdx.y, q_idx, kv_idx));
}
