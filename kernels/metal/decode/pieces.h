// pieces.h: rows of k and v from device memory into the fragments of products, several neighbouring elements at once.
//
// A sum over columns may take them in any order, and so may the rows of an output: those are chosen so that what a lane
// needs lies together. Of the pairs of columns that fragment t of a chunk of k takes, pair c is t of piece c; of v's
// columns, its row i is element t of piece i.
#pragma once
#include "rows.h"

// N neighbouring elements of a row. In device memory rows begin anywhere.
template <typename T, int N>
struct alignas(sizeof(T)) Piece {
  T values[N];
};

// From that column on; zero where the row does not exist, and beyond the last column of DIM, where some lanes have
// pieces if BEYOND says so.
template <int DIM, bool BEYOND, int N, typename T>
INLINE void read_piece(thread Piece<T, N>& piece, const thread Matrix<T>& from, int row, int column, bool exists) {
  const device T* start = from.at(row, column);
  if (DIM % N == 0 && from.column_stride == 1 && exists && (!BEYOND || column < DIM)) {
    piece = *reinterpret_cast<const device Piece<T, N>*>(start);
    return;
  }
  UNROLL
  for (int i = 0; i < N; i++)
    piece.values[i] = exists && column + i < DIM ? start[i * from.column_stride] : T(0);
}

// sums += the marked values whose weight is not 0, as add_marked of fragments.h does: a row of marks is a column of v.
template <typename F>
INLINE void add_marked_columns(thread Fragment<float>& sums, thread Fragment<F>& weights, thread Fragment<F>& marks) {
  Fragment<F> ones;
  Fragment<float> found;
  set(ones, float(elements(weights)[0] != F(0)), float(elements(weights)[1] != F(0)));
  clear(found);
  metal::simdgroup_multiply_accumulate(found, marks, ones, found);
  UNROLL
  for (int e = 0; e < 2; e++) {
    const int minus = int(elements(found)[e]) / int(MINUS), plus = int(elements(found)[e]) % int(MINUS);
    if (plus > 0) elements(sums)[e] += as_type<float>(INFINITY_BITS);
    if (minus > 0) elements(sums)[e] -= as_type<float>(INFINITY_BITS);
  }
}

// Fragments of the query rows of a simdgroup's columns, transposed: as right operands of K Q^T.
template <typename T, typename P>
struct QueryColumns {
  typedef typename ProductOf<T>::type F;
  Fragment<F> held[P::HEAD_FRAGMENTS][P::ROW_FRAGMENTS];

  void start(Tensor<T> q, const thread PackedRows<P>& rows, int first_column) thread {
    const int row = rows.place.row;
    UNROLL
    for (int r = 0; r < P::ROW_FRAGMENTS; r++) {
      UNROLL
      for (int e = 0; e < 2; e++) {
        const Matrix<T> head = q.head(rows.b, rows.h[r][e]);
        const bool exists = rows.row(r, e) < rows.of_group.end;
        UNROLL
        for (int d = 0; d < P::HEAD_FRAGMENTS; d++) {
          const int chunk = d / (P::KEY_PIECE / 2), t = d % (P::KEY_PIECE / 2);
          const int column = first_column + chunk * P::HEAD_CHUNK + row / 2 * P::KEY_PIECE + 2 * t + row % 2;
          elements(held[d][r])[e] = exists && column < P::HEAD_DIM ? F(*head.at(rows.q_idx[r][e], column)) : F(0);
        }
      }
    }
  }
};

// The keys of a tile: of each key fragment a lane has one key, and a piece of each chunk of it.
template <typename K, typename P>
struct KeyPieces {
  Piece<K, P::KEY_PIECE> pieces[P::KEY_FRAGMENTS][P::HEAD_CHUNKS];

  void read(const thread Matrix<K>& from, Range keys, int first_column, LanePlace place) thread {
    UNROLL
    for (int j = 0; j < P::KEY_FRAGMENTS; j++) {
      const int key = keys.first + j * FRAGMENT + place.row;
      UNROLL
      for (int c = 0; c < P::HEAD_CHUNKS; c++)
        read_piece<P::HEAD_DIM, P::HEAD_BEYOND>(
            pieces[j][c], from, key, first_column + c * P::HEAD_CHUNK + place.column / 2 * P::KEY_PIECE,
            key < keys.end);
    }
  }

  // S^T += K Q^T
  template <typename T>
  void multiply(thread Fragment<float> (&scores)[P::KEY_FRAGMENTS][P::ROW_FRAGMENTS],
                const thread QueryColumns<T, P>& queries) const thread {
    typedef typename ProductOf<T>::type F;
    UNROLL
    for (int j = 0; j < P::KEY_FRAGMENTS; j++) {
      UNROLL
      for (int d = 0; d < P::HEAD_FRAGMENTS; d++) {
        const int chunk = d / (P::KEY_PIECE / 2), t = d % (P::KEY_PIECE / 2);
        Fragment<F> key;
        set(key, pieces[j][chunk].values[2 * t], pieces[j][chunk].values[2 * t + 1]);
        UNROLL
        for (int r = 0; r < P::ROW_FRAGMENTS; r++)
          metal::simdgroup_multiply_accumulate(scores[j][r], key, queries.held[d][r], scores[j][r]);
      }
    }
  }
};

// The values of a tile: of each key fragment a lane has two keys, and a piece of each chunk of either.
template <typename V, typename P>
struct ValuePieces {
  typedef typename ProductOf<V>::type F;
  Piece<V, P::VALUE_PIECE> pieces[P::KEY_FRAGMENTS][2][P::VALUE_CHUNKS];

  void read(const thread Matrix<V>& from, Range keys, int first_column, LanePlace place) thread {
    UNROLL
    for (int j = 0; j < P::KEY_FRAGMENTS; j++) {
      UNROLL
      for (int e = 0; e < 2; e++) {
        const int key = keys.first + j * FRAGMENT + place.column + e;
        UNROLL
        for (int c = 0; c < P::VALUE_CHUNKS; c++)
          read_piece<P::VALUE_DIM, P::VALUE_BEYOND>(
              pieces[j][e][c], from, key, first_column + c * P::VALUE_CHUNK + place.row * P::VALUE_PIECE,
              key < keys.end);
      }
    }
  }

  // Whether some value is infinite or nan: the same in all lanes.
  bool hold_special() const thread {
    bool special = false;
    UNROLL
    for (int i = 0; i < P::KEY_FRAGMENTS * 2 * P::VALUE_CHUNKS * P::VALUE_PIECE; i++) {
      const int piece = i / P::VALUE_PIECE;
      special = special ||
                is_special(float(pieces[piece / (2 * P::VALUE_CHUNKS)][piece / P::VALUE_CHUNKS % 2]
                                       [piece % P::VALUE_CHUNKS].values[i % P::VALUE_PIECE]));
    }
    return metal::simd_any(special);
  }

  // O^T += V^T P^T. LEAVE_OUT: a weight of 0 leaves its key out, whatever its values are.
  template <bool LEAVE_OUT>
  void multiply(thread Fragment<float> (&sums)[P::VALUE_FRAGMENTS][P::ROW_FRAGMENTS],
                thread Fragment<F> (&weights)[P::KEY_FRAGMENTS][P::ROW_FRAGMENTS]) const thread {
    UNROLL
    for (int j = 0; j < P::KEY_FRAGMENTS; j++) {
      UNROLL
      for (int d = 0; d < P::VALUE_FRAGMENTS; d++) {
        const int chunk = d / P::VALUE_PIECE, t = d % P::VALUE_PIECE;
        Fragment<F> value, marks;
        set(value, pieces[j][0][chunk].values[t], pieces[j][1][chunk].values[t]);
        const bool special = LEAVE_OUT && split_values(value, marks);
        UNROLL
        for (int r = 0; r < P::ROW_FRAGMENTS; r++) {
          metal::simdgroup_multiply_accumulate(sums[d][r], value, weights[j][r], sums[d][r]);
          if (special) add_marked_columns(sums[d][r], weights[j][r], marks);
        }
      }
    }
  }
};
