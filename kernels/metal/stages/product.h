// product.h: one tile of a matrix product per threadgroup, the shared axis a step at a time.
//
// Tiles of both operands pass through two halves of threadgroup memory. While the arithmetic works on one half, the
// next step's reads from device memory are under way into registers; they are stored to the other half after it, and
// one barrier ends the step. A transposed operand stays as it lies in device memory, so that neighbouring threads read
// neighbouring elements; its fragments are transposed when they are loaded.
#pragma once
#include "../tile/fragments.h"
#include "../tile/staging.h"
#include "../tile/words.h"

// a b of each head: m x k times k x n. Head h of a meets head h / (a_heads / b_heads) of b.
struct ProductParams {
  int a_heads;
  int b_batches;  // batch, or 1: one batch of b serves all
  int b_heads;
  int m;
  int n;
  int k;
};
constexpr constant int PRODUCT_WORDS = 6;
static_assert(sizeof(ProductParams) == 4 * PRODUCT_WORDS, "every field is a word");

// A, B: element types of the operands. BM, BN: rows and columns of a tile of the result. BK: of the shared axis, in
// one step. ROW_GROUPS x COLUMN_GROUPS simdgroups share the tile.
// TRANSPOSE_A: a is [k, m]; TRANSPOSE_B: b is [n, k]. WHOLE: one step takes the whole shared axis (2-D tiles).
// SPARSE: a 0 in a leaves its row of b out, whatever that holds.
// product_plan.py chooses; its model of registers and threadgroup memory is written there.
template <typename A, typename B, int BM_, int BN_, int BK_, int ROW_GROUPS_, int COLUMN_GROUPS_, bool TRANSPOSE_A_,
          bool TRANSPOSE_B_, bool WHOLE_, bool SPARSE_ = false>
struct ProductPlan {
  static constexpr constant int BM = BM_;
  static constexpr constant int BN = BN_;
  static constexpr constant int BK = BK_;
  static constexpr constant int COLUMN_GROUPS = COLUMN_GROUPS_;
  static constexpr constant bool TRANSPOSE_A = TRANSPOSE_A_;
  static constexpr constant bool TRANSPOSE_B = TRANSPOSE_B_;
  static constexpr constant bool WHOLE = WHOLE_;
  static constexpr constant bool SPARSE = SPARSE_;

  static constexpr constant int THREADS = ROW_GROUPS_ * COLUMN_GROUPS_ * LANES;
  static constexpr constant int ROW_FRAGMENTS = BM_ / ROW_GROUPS_ / FRAGMENT;  // one simdgroup's
  static constexpr constant int COLUMN_FRAGMENTS = BN_ / COLUMN_GROUPS_ / FRAGMENT;

  // A staged tile, as its operand lies: rows, columns, and elements from one row to the next.
  static constexpr constant int A_ROWS = TRANSPOSE_A_ ? BK_ : BM_;
  static constexpr constant int A_COLUMNS = TRANSPOSE_A_ ? BM_ : BK_;
  static constexpr constant int A_LD = Leading<A, A_COLUMNS>::value;
  static constexpr constant int B_ROWS = TRANSPOSE_B_ ? BN_ : BK_;
  static constexpr constant int B_COLUMNS = TRANSPOSE_B_ ? BK_ : BN_;
  static constexpr constant int B_LD = Leading<B, B_COLUMNS>::value;
  static constexpr constant int A_HALF = A_ROWS * A_LD;
  static constexpr constant int B_HALF = B_ROWS * B_LD;
  static constexpr constant int A_STAGED = (WHOLE_ ? 1 : 2) * A_HALF;
  static constexpr constant int B_STAGED = (WHOLE_ ? 1 : 2) * B_HALF;

  static_assert(BM_ % (ROW_GROUPS_ * FRAGMENT) == 0, "every simdgroup has whole fragments of rows");
  static_assert(BN_ % (COLUMN_GROUPS_ * FRAGMENT) == 0, "every simdgroup has whole fragments of columns");
  static_assert(BK_ % FRAGMENT == 0, "a step is made of whole fragments");
};

// Where a simdgroup stands in its threadgroup's tile: its first row and column, and whether it has any in the result.
struct Corner {
  int row, column;
  bool live;
};
template <typename P>
INLINE Corner corner_of(uint simdgroup, Range rows, Range columns) {
  Corner corner;
  corner.row = int(simdgroup) / P::COLUMN_GROUPS * P::ROW_FRAGMENTS * FRAGMENT;
  corner.column = int(simdgroup) % P::COLUMN_GROUPS * P::COLUMN_FRAGMENTS * FRAGMENT;
  corner.live = rows.first + corner.row < rows.end && columns.first + corner.column < columns.end;
  return corner;
}

// sums += a b over the first `depth` elements of the shared axis in threadgroup memory.
template <typename A, typename B, typename P>
INLINE void multiply_staged(thread Fragment<float> (&sums)[P::ROW_FRAGMENTS][P::COLUMN_FRAGMENTS],
                            const threadgroup A* a, const threadgroup B* b, int depth, Corner corner,
                            LanePlace place) {
  typedef typename ProductOf<A, B>::type F;
  for (int k = 0; k < depth; k += FRAGMENT) {
    Fragment<F> left[P::ROW_FRAGMENTS], right;
    UNROLL
    for (int r = 0; r < P::ROW_FRAGMENTS; r++) {
      int row = corner.row + r * FRAGMENT;
      if (P::TRANSPOSE_A) load_transposed<P::A_LD>(left[r], a + k * P::A_LD + row, place);
      else load<P::A_LD>(left[r], a + row * P::A_LD + k, place);
    }
    UNROLL
    for (int c = 0; c < P::COLUMN_FRAGMENTS; c++) {
      int column = corner.column + c * FRAGMENT;
      if (P::TRANSPOSE_B) load_transposed<P::B_LD>(right, b + column * P::B_LD + k, place);
      else load<P::B_LD>(right, b + k * P::B_LD + column, place);
      Fragment<F> marks;
      if (P::SPARSE && split_values(right, marks)) {
        UNROLL
        for (int r = 0; r < P::ROW_FRAGMENTS; r++) add_marked(sums[r][c], left[r], marks);
      }
      UNROLL
      for (int r = 0; r < P::ROW_FRAGMENTS; r++)
        metal::simdgroup_multiply_accumulate(sums[r][c], left[r], right, sums[r][c]);
    }
  }
}

// The steps of a dense product: all of 0 to k - 1.
struct DenseSteps {
  int at, k, step;
  Range next() thread {
    Range range;
    range.first = at;
    range.end = metal::min(at + step, k);
    at += step;
    return range;
  }
};

// sums = the product's elements in `rows` and `columns`. steps.next() gives ranges of the shared axis, at most P::BK
// long, the same ones in all threads; an empty one ends it.
template <typename A, typename B, typename P, typename Steps>
INLINE void multiply_tile(thread Fragment<float> (&sums)[P::ROW_FRAGMENTS][P::COLUMN_FRAGMENTS],
                          const thread Matrix<A>& a, const thread Matrix<B>& b, Range rows, Range columns,
                          thread Steps& steps, threadgroup A* a_staged, threadgroup B* b_staged, Thread at) {
  typedef StagedTile<A, P::A_ROWS, P::A_COLUMNS, P::THREADS> TileA;
  typedef StagedTile<B, P::B_ROWS, P::B_COLUMNS, P::THREADS> TileB;
  const LanePlace place = place_of(at.lane);
  const Corner corner = corner_of<P>(at.simdgroup, rows, columns);
  clear(sums);

  Range step = steps.next();
  if (step.first >= step.end) return;
  TileA::copy(a, P::TRANSPOSE_A ? step : rows, P::TRANSPOSE_A ? rows : step, a_staged, at.index());
  TileB::copy(b, P::TRANSPOSE_B ? columns : step, P::TRANSPOSE_B ? step : columns, b_staged, at.index());
  metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
  if (P::WHOLE) {
    if (corner.live) multiply_staged<A, B, P>(sums, a_staged, b_staged, step.end - step.first, corner, place);
    return;
  }

  Halves<A, P::A_HALF> a_tiles;
  Halves<B, P::B_HALF> b_tiles;
  a_tiles.start(a_staged);
  b_tiles.start(b_staged);
  while (step.first < step.end) {
    const Range following = steps.next();
    const bool more = following.first < following.end;
    TileA next_a;
    TileB next_b;
    if (more) {
      next_a.load(a, P::TRANSPOSE_A ? following : rows, P::TRANSPOSE_A ? rows : following, at.index());
      next_b.load(b, P::TRANSPOSE_B ? columns : following, P::TRANSPOSE_B ? following : columns, at.index());
    }
    if (corner.live)
      multiply_staged<A, B, P>(sums, a_tiles.now(), b_tiles.now(), step.end - step.first, corner, place);
    if (more) {
      next_a.store(a_tiles.ahead(), at.index());
      next_b.store(b_tiles.ahead(), at.index());
      metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
      a_tiles.swap();
      b_tiles.swap();
    }
    step = following;
  }
}

// The tile's elements, into rows of `columns_of_out` elements.
template <typename O, typename P>
INLINE void write_tile(device O* out, int columns_of_out,
                       thread Fragment<float> (&sums)[P::ROW_FRAGMENTS][P::COLUMN_FRAGMENTS], Range rows,
                       Range columns, Thread at) {
  const LanePlace place = place_of(at.lane);
  const Corner corner = corner_of<P>(at.simdgroup, rows, columns);
  UNROLL
  for (int r = 0; r < P::ROW_FRAGMENTS; r++) {
    UNROLL
    for (int c = 0; c < P::COLUMN_FRAGMENTS; c++) {
      UNROLL
      for (int e = 0; e < 2; e++) {
        int row = rows.first + corner.row + r * FRAGMENT + place.row;
        int column = columns.first + corner.column + c * FRAGMENT + place.column + e;
        if (row < rows.end && column < columns.end)
          out[int64_t(row) * columns_of_out + column] = O(elements(sums[r][c])[e]);
      }
    }
  }
}
