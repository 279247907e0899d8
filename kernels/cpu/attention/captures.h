// captures.h: the gradients of captured arrays. A job keeps what its rows add, by the pattern of each site, in memory
// of its thread, and adds that to the gradient when all jobs before it have: the same bits for any number of threads.
#pragma once
#include "../mod/gradient.h"
#include "scratch.h"
#include "walk.h"

constexpr int64_t EDGE = (ROWS + VL - 1) / VL * VL;    // zeros on both sides of a row of `skewed`
constexpr int64_t SKEWED_ROW = EDGE + KV_TILE + EDGE;
constexpr int64_t ORIGIN = Q_TILE + EDGE;              // the diagonal of row 0 and key 0

// What one job adds to the gradient of one site.
struct SiteSums {
  // ROW [Q_TILE]; COLUMN [kv_tiles * KV_TILE]; DIAGONAL [ORIGIN + kv_tiles * KV_TILE + VL], by ORIGIN + kv_idx - row;
  // DENSE [Q_TILE][kv_tiles * KV_TILE]; TABLE: the whole array.
  float* sums;
  float* skewed;   // DIAGONAL: what the rows of a group add, [ROWS][EDGE + KV_TILE + EDGE]
  int64_t count;   // of sums
};

// The number of elements of a captured array.
inline int64_t size_of(const Array& array) {
  int64_t size = 1;
  for (int64_t axis = 0; axis < array.ndim; axis++) size *= array.shape[axis];
  return size;
}

inline int64_t sums_of_site(const Attention& a, int site) {
  int64_t keys = a.kv_tiles * KV_TILE;
  switch (SITE[site].pattern) {
    case ROW: return Q_TILE;
    case COLUMN: return keys;
    case DIAGONAL: return ORIGIN + keys + VL;
    case DENSE: return Q_TILE * keys;
    default: return size_of(a.in.arrays[SITE[site].array]);
  }
}

inline void clear_sites(SiteSums* sites) {
  for (int i = 0; i < SITES; i++)
    if (SITE[i].pattern != DENSE) __builtin_memset(sites[i].sums, 0, sites[i].count * sizeof(float));
}

template <int N>
struct SiteNumber {
  static constexpr int value = N;
};
// use(SiteNumber<site>()) for each of them.
template <int SITE_NUMBER = 0, class Use>
INLINE void each_site(const Use& use) {
  if constexpr (SITE_NUMBER < SITES) {
    use(SiteNumber<SITE_NUMBER>());
    each_site<SITE_NUMBER + 1>(use);
  }
}

// VL scores of row `row` of the query tile add x to a site. `key` is their first key, `at` its place in the tile.
template <int SITE_NUMBER, class Place>
INLINE void add_to_site(const SiteSums& s, vfloat x, vfloat score, vint kv_idx, int row, int64_t key, int64_t at,
                        int64_t keys, vfloat& of_row, const Place& place) {
  constexpr Pattern PATTERN = SITE[SITE_NUMBER].pattern;
  if constexpr (PATTERN == ROW) of_row += x;
  if constexpr (PATTERN == COLUMN) store_vector(s.sums + key, load_vector<vfloat>(s.sums + key) + x);
  if constexpr (PATTERN == DIAGONAL) store_vector(s.skewed + row % ROWS * SKEWED_ROW + EDGE + at, x);
  if constexpr (PATTERN == DENSE) store_vector(s.sums + row * keys + key, x);
  if constexpr (PATTERN == TABLE) {
    fx::offsets where = place(SITE_NUMBER, score, kv_idx);
    for (int i = 0; i < VL; i++) s.sums[where.uniform + where.lane[i]] += x[i];
  }
}

// The scores of a tile that a row leaves out add nothing.
inline void clear_dense(const SiteSums* sites, int rows, int64_t first_key, int64_t keys) {
  for (int site = 0; site < SITES; site++)
    for (int row = 0; SITE[site].pattern == DENSE && row < rows; row++)
      __builtin_memset(sites[site].sums + row * keys + first_key, 0, KV_TILE * sizeof(float));
}

// A row of `skewed` is zero beside the keys that it has.
INLINE void clear_edges(const SiteSums& s, int row, int64_t begin, int64_t end) {
  float* skewed = s.skewed + row % ROWS * SKEWED_ROW + EDGE;
  for (int64_t i = 0; i < EDGE; i += VL) {
    store_vector(skewed + begin - EDGE + i, vfloat{});
    store_vector(skewed + end + i, vfloat{});
  }
}

// What a group of rows adds to the diagonals of a tile of keys, VL neighbouring ones at a time.
inline void add_diagonals(const SiteSums& s, int group, int rows, int64_t first_key, int64_t begin, int64_t end) {
  float* sums = s.sums + ORIGIN + first_key - group * ROWS;
  for (int64_t at = begin - EDGE; at < end; at += VL) {  // the diagonals kv - r, for row r of the group
    vfloat total = load_vector<vfloat>(sums + at);
    for (int r = 0; r < rows; r++) total += load_vector<vfloat>(s.skewed + r * SKEWED_ROW + EDGE + at + r);
    store_vector(sums + at, total);
  }
}

// -- adding to the gradient --------------------------------------------------------------------------------------

INLINE void add_lanes(float* gradient, const fx::offsets& where, vfloat x, int64_t count) {
  float* to = gradient + where.uniform;
  bool neighbours = count == VL;
  for (int i = 1; i < VL; i++) neighbours &= where.lane[i] == where.lane[0] + i;
  if (neighbours) return store_vector(to + where.lane[0], load_vector<vfloat>(to + where.lane[0]) + x);
  for (int64_t i = 0; i < count; i++) to[where.lane[i]] += x[i];
}

template <class Place>
INLINE void add_keys(float* gradient, int site, const float* sums, int64_t first, int64_t end, const Place& place) {
  for (int64_t key = first; key < end; key += VL) {
    vint kv_idx = lane_index() + (int32_t)key;
    kv_idx = select(kv_idx < (int32_t)end, kv_idx, splat((int32_t)end - 1));
    add_lanes(gradient, place(site, vfloat{}, kv_idx), load_vector<vfloat>(sums + key), smaller(end - key, VL));
  }
}

// What a job found -> the gradients, in the order of the jobs.
inline void add_sites(const Attention& a, const Scratch& s, const QueryTile& q, const SiteSums* sites,
                      float** gradients) {
  int64_t keys = a.kv_tiles * KV_TILE, kv_len = a.p.kv_len;
  for (int i = 0; i < SITES; i++) {
    float* gradient = gradients[SITE[i].gradient];
    const float* sums = sites[i].sums;
    if (SITE[i].pattern == TABLE) {
      for (int64_t at = 0; at < sites[i].count; at++) gradient[at] += sums[at];
      continue;
    }
    for (int row = 0; row < q.rows; row++) {
      auto place = GradientMods::place(q.b, q.h, q.first + row, a.in);
      switch (SITE[i].pattern) {
        case ROW: gradient[place(i, vfloat{}, vint{}).uniform] += sums[row]; break;
        case COLUMN:
          if (row == 0) add_keys(gradient, i, sums, 0, kv_len, place);
          break;
        case DIAGONAL:  // those of the first row, and for each further row the one that begins there
          add_keys(gradient, i, sums + ORIGIN - row, 0, row == 0 ? kv_len : 1, place);
          break;
        default:
          for (int64_t v = 0; v < s.visit_count; v++) {
            int64_t first = s.visits[v].tile * KV_TILE;
            add_keys(gradient, i, sums + row * keys, first, smaller(first + KV_TILE, kv_len), place);
          }
      }
    }
  }
}
