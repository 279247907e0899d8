// asynchronous.h: what Hopper does beside its threads, from what PTX ISA says of mbarrier, cp.async.bulk and wgmma. Each
// happens as late as it may: a copy lands when all threads wait, a product is computed when its warp waits for it; what
// it will write holds nothing until then, and what it reads is read then.
#pragma once
#include "floats.h"
#define PTX(name, ...) void ptx_##name(__VA_ARGS__)
#define PC __builtin_return_address(0)

namespace simulator {

// -- mbarriers: 64 bits of shared memory --------------------------------------------------------------------------------

struct Mbarrier {
  int32_t bytes;  // announced and not yet there
  uint16_t pending;
  uint16_t expected : 15, phase : 1;
};

static uint32_t barrier_of[1024];  // that a lane waits for
static uint64_t let_since[1024], lets;

static Mbarrier& barrier_at(uint32_t address, const void* pc) {
  char* at = shared_base() + address;
  if (address % 8 != 0) {
    misaligned(at, 8, true, pc);
  }
  access(at, 8, false, true, pc);
  access(at, 8, true, true, pc);
  return *reinterpret_cast<Mbarrier*>(at);
}

// The phase ends when all have arrived and all bytes have: those who wait go on.
static void look_at(Mbarrier& barrier, uint32_t address) {
  if (barrier.pending > 0 || barrier.bytes != 0) {
    return;
  }
  barrier.phase ^= 1;
  barrier.pending = barrier.expected;
  run->time += 1;
  run->threadgroup_clock.group = run->device_clock.group = run->time;
  for (unsigned i = 0; i < run->lane_count; i++) {
    if (run->lanes[i].state == AT_OTHERS && waits_at[i] == MBARRIER && barrier_of[i] == address) {
      run->lanes[i].state = READY;
    }
  }
}

static void arrive_at(uint32_t address, int count, int bytes, const void* pc) {
  Mbarrier& barrier = barrier_at(address, pc);
  barrier.bytes += bytes;
  if (count > barrier.pending) {
    add(SIM_BAD_LANE, 1000, relative(pc), 0);  // more arrivals than the barrier was made for
    stop();
  }
  barrier.pending = uint16_t(barrier.pending - count);
  look_at(barrier, address);
  if (count > 0) {  // whoever waited for this goes first: what was promised to them must be true by now
    Lane& lane = run->lanes[run->current];
    wait(lane, AT_OTHERS, SIM_THREADGROUP_BARRIER, pc);
    waits_at[run->current] = LET_OTHERS;
    let_since[run->current] = ++lets;
    switch_context(lane.context, run->scheduler);
  }
}

static bool land_bulk();

// When no lane can go on: the last one that let others go first, else a copy lands.
static bool go_on() {
  unsigned last = run->lane_count;
  for (unsigned i = 0; i < run->lane_count; i++) {
    if (run->lanes[i].state == AT_OTHERS && waits_at[i] == LET_OTHERS) {
      last = last == run->lane_count || let_since[i] > let_since[last] ? i : last;
    }
  }
  if (last == run->lane_count) {
    return land_bulk();
  }
  run->lanes[last].state = READY;
  return true;
}

// "waits for the completion of the phase indicated by phaseParity".
static void wait_for_phase(uint32_t address, int parity, const void* pc) {
  while (barrier_at(address, pc).phase == unsigned(parity & 1)) {
    Lane& lane = run->lanes[run->current];
    wait(lane, AT_OTHERS, SIM_THREADGROUP_BARRIER, pc);
    waits_at[run->current] = MBARRIER;
    barrier_of[run->current] = address;
    switch_context(lane.context, run->scheduler);
  }
}

// -- bulk copies to shared memory --------------------------------------------------------------------------------------

struct TensorMap {  // as simulated.py packs it
  uint64_t address;  // of the host: launches put their buffers elsewhere
  uint32_t rank, dtype, swizzle, box[5], sizes[5], nothing;
  uint64_t strides[4];
};

struct BulkCopy {
  uint32_t to, barrier;
  std::vector<char> data;  // as it will lie there
  bool swizzled;
  unsigned lane;
  const void* pc;
};
static std::vector<BulkCopy> bulk_copies;

// A pattern of 128, 64 or 32 bytes: bits 4 to 6 of an address are crossed with bits 7 to 9.
static uint32_t swizzled(uint32_t address, unsigned mode) {
  const uint32_t mask = mode == 1 ? 7 : mode == 2 ? 3 : mode == 3 ? 1 : 0;
  return address ^ ((address >> 7 & mask) << 4);
}

// Where a host address is in this launch.
static const char* in_arena(uint64_t host, const void* pc) {
  for (int i = 0; i < run->launch->buffer_count; i++) {
    const sim_buffer& buffer = run->launch->buffers[i];
    const uint64_t begin = reinterpret_cast<uint64_t>(buffer.host);
    if (host >= begin && host < begin + buffer.bytes) {
      return run->arena.buffers[i].begin + (host - begin);
    }
  }
  add(SIM_WILD, 1000, relative(pc), 0);
  stop();
  return nullptr;
}
static uint64_t of_host(uint64_t address) {
  for (int i = 0; i < run->launch->buffer_count; i++) {
    const Region& region = run->arena.buffers[i];
    const uint64_t begin = reinterpret_cast<uint64_t>(region.begin);
    if (address >= begin && address < begin + region.bytes) {
      return reinterpret_cast<uint64_t>(run->launch->buffers[i].host) + (address - begin);
    }
  }
  return address;
}

static void begin_bulk(BulkCopy copy) {
  if (copy.to % 16 != 0 || (copy.swizzled && copy.to % 128 != 0)) {
    misaligned(shared_base() + copy.to, 128, true, copy.pc);
  }
  for (uint32_t at = 0; at < copy.data.size(); at += 16) {
    shared_access(copy.to + at, 16, true, copy.pc);
  }
  memset(shared_base() + copy.to, 0xFF, copy.data.size());
  bulk_copies.push_back(copy);
}

static void begin_box(uint32_t to, uint64_t map_address, const int* from, unsigned rank, uint32_t barrier, const void* pc) {
  TensorMap map;
  access(reinterpret_cast<void*>(map_address), 128, false, false, pc);
  memcpy(&map, reinterpret_cast<void*>(map_address), sizeof map);
  if (map_address % 64 != 0 || map.rank != rank) {
    misaligned(reinterpret_cast<void*>(map_address), 64, false, pc);
  }
  uint32_t count = 1;
  for (unsigned i = 0; i < rank; i++) {
    count *= map.box[i];
  }
  BulkCopy copy = {to, barrier, std::vector<char>(count * 2), map.swizzle == 3, run->current, pc};
  for (uint32_t element = 0; element < count; element++) {  // "out of bounds elements are filled with zeros"
    uint32_t rest = element;
    uint64_t offset = 0;
    bool inside = true;
    for (unsigned i = 0; i < rank; i++) {
      const int64_t at = from[i] + int64_t(rest % map.box[i]);
      rest /= map.box[i];
      inside = inside && at >= 0 && at < int64_t(map.sizes[i]);
      offset += uint64_t(at) * (i == 0 ? 2 : map.strides[i - 1]);
    }
    if (inside) {
      const char* source = in_arena(map.address + offset, pc);
      access(source, 2, false, false, pc);
      memcpy(&copy.data[element * 2], source, 2);
    }
  }
  begin_bulk(copy);
}

// One copy lands: the oldest, or in the shuffled order of lanes any.
static bool land_bulk() {
  if (bulk_copies.empty()) {
    return false;
  }
  size_t chosen = 0;
  if (run->launch->order == 2) {
    run->random = run->random * 6364136223846793005ull + 1442695040888963407ull;
    chosen = size_t(run->random >> 33) % bulk_copies.size();
  } else if (run->launch->order == 1) {
    chosen = bulk_copies.size() - 1;
  }
  const BulkCopy copy = bulk_copies[chosen];
  bulk_copies.erase(bulk_copies.begin() + long(chosen));
  run->current = copy.lane;
  for (uint32_t at = 0; at < copy.data.size(); at += 2) {
    const uint32_t to = copy.swizzled ? swizzled(copy.to + at, 1) : copy.to + at;
    memcpy(shared_base() + to, &copy.data[at], 2);
  }
  for (uint32_t at = 0; at < copy.data.size(); at += 16) {
    shared_access(copy.to + at, 16, true, copy.pc);
  }
  Mbarrier& barrier = *reinterpret_cast<Mbarrier*>(shared_base() + copy.barrier);
  barrier.bytes -= int(copy.data.size());
  look_at(barrier, copy.barrier);
  return true;
}

// -- products of a warpgroup: what one of its four warps computes ----------------------------------------------------------

struct WarpProduct {
  int columns, type;  // type 0: f16, 1: bf16
  std::vector<float*> sums[32];
  bool in_registers, accumulates;
  uint32_t a[32][4];
  uint64_t matrix_a, matrix_b;
  int sign, transposed_a, transposed_b;
  const void* pc;
};
typedef std::vector<WarpProduct> ProductGroup;
struct Accumulator {
  float* first;  // of lane 0: its name
  std::vector<float*> places;
  std::vector<float> values;
  int products;  // on their way
};
struct WarpProducts {
  ProductGroup open;
  std::vector<ProductGroup> closed;
  std::vector<Accumulator> accumulators;
};
static WarpProducts products_of[32];
static WarpProduct* issued[32];  // of each warp, by the lane that runs

// "Matrix descriptor": the address of element (row along M or N, k) of 16 bits.
static uint32_t place_in(uint64_t matrix, uint32_t mn, uint32_t k, bool transposed) {
  const uint32_t start = uint32_t(matrix & 0x3fff) << 4, leading = uint32_t(matrix >> 16 & 0x3fff) << 4;
  const uint32_t stride = uint32_t(matrix >> 32 & 0x3fff) << 4, mode = uint32_t(matrix >> 62);
  const uint32_t width = mode == 1 ? 128 : mode == 2 ? 64 : 32;
  const uint32_t at = transposed ? mn / (width / 2) * leading + k / 8 * stride + k % 8 * width + mn % (width / 2) * 2
                                 : mn / 8 * stride + mn % 8 * width + k * 2;
  return swizzled(start + at, mode);
}

static void read_matrix(double* to, uint64_t matrix, uint32_t first, uint32_t count, bool transposed, int type,
                        const void* pc) {
  for (uint32_t mn = 0; mn < count; mn++) {
    for (uint32_t k = 0; k < 16; k++) {
      const uint32_t at = place_in(matrix, first + mn, k, transposed);
      if ((transposed ? mn : k) % 8 == 0) {
        shared_access(at & ~15u, 16, false, pc);
      }
      uint16_t bits;
      memcpy(&bits, shared_base() + at, 2);
      to[mn * 16 + k] = type ? from_bf16(bits) : from_f16(bits);
    }
  }
}

static void compute(const WarpProduct& p, Accumulator& sums, unsigned warp) {
  static double a[16 * 16], b[256 * 16];
  if (p.in_registers) {  // as the A of mma.m16n8k16 lies in them
    for (unsigned lane = 0; lane < 32; lane++) {
      for (unsigned i = 0; i < 8; i++) {
        const unsigned row = lane / 4 + i / 2 % 2 * 8, column = lane % 4 * 2 + i % 2 + i / 4 * 8;
        const uint16_t bits = uint16_t(p.a[lane][i / 2] >> (i % 2 * 16));
        a[row * 16 + column] = p.type ? from_bf16(bits) : from_f16(bits);
      }
    }
  } else {
    read_matrix(a, p.matrix_a, 16 * (warp % 4), 16, p.transposed_a, p.type, p.pc);
  }
  read_matrix(b, p.matrix_b, 0, uint32_t(p.columns), p.transposed_b, p.type, p.pc);
  const unsigned each = unsigned(p.columns) / 2;
  for (unsigned lane = 0; lane < 32; lane++) {
    for (unsigned i = 0; i < each; i++) {
      const unsigned row = lane / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
      double sum = 0;
      for (unsigned k = 0; k < 16; k++) {
        sum += a[row * 16 + k] * b[column * 16 + k];
      }
      float& value = sums.values[lane * each + i];
      value = float(p.sign * sum + (p.accumulates ? value : 0.0f));
    }
  }
}

// By the last lane of the warp: the sums hold nothing until their products are waited for.
static void issue_product(void* table, unsigned) {
  const unsigned warp = run->current / 32;
  WarpProducts& all = products_of[warp];
  WarpProduct* lanes[32];
  for (unsigned lane = 0; lane < 32; lane++) {
    memcpy(&lanes[lane], static_cast<char*>(table) + lane * ROW, sizeof lanes[lane]);
  }
  WarpProduct whole = *lanes[0];
  for (unsigned lane = 0; lane < 32; lane++) {
    whole.sums[lane] = lanes[lane]->sums[0];
    memcpy(whole.a[lane], lanes[lane]->a[0], sizeof whole.a[lane]);
  }
  Accumulator* found = nullptr;
  for (Accumulator& accumulator : all.accumulators) {
    found = accumulator.first == whole.sums[0][0] ? &accumulator : found;
  }
  if (found == nullptr) {
    all.accumulators.push_back({whole.sums[0][0], {}, {}, 0});
    found = &all.accumulators.back();
    for (unsigned lane = 0; lane < 32; lane++) {
      for (float* place : whole.sums[lane]) {
        found->places.push_back(place);
        found->values.push_back(*place);
        *place = float_of(0x7fffffffu);
      }
    }
  }
  found->products += 1;
  all.open.push_back(whole);
}

static void close_products(void*, unsigned) {
  WarpProducts& all = products_of[run->current / 32];
  all.closed.push_back(all.open);
  all.open.clear();
}

static int groups_left;
static void wait_for_products(void*, unsigned) {
  const unsigned warp = run->current / 32;
  WarpProducts& all = products_of[warp];
  while (all.closed.size() > size_t(groups_left)) {
    const ProductGroup group = all.closed.front();
    all.closed.erase(all.closed.begin());
    for (const WarpProduct& product : group) {
      for (size_t i = 0; i < all.accumulators.size(); i++) {
        Accumulator& sums = all.accumulators[i];
        if (sums.first != product.sums[0][0]) {
          continue;
        }
        compute(product, sums, warp);
        if (--sums.products == 0) {
          for (size_t place = 0; place < sums.places.size(); place++) {
            *sums.places[place] = sums.values[place];
          }
          all.accumulators.erase(all.accumulators.begin() + long(i));
        }
        break;
      }
    }
  }
}

static void begin_asynchronous() {
  bulk_copies.clear();
  when_idle = go_on;
  for (WarpProducts& products : products_of) {
    products = WarpProducts();
  }
}

}  // namespace simulator

PTX(mbarrier_init_shared__cta_b64, uint32_t address, int count) {
  shared_access(address, 8, true, PC);
  Mbarrier barrier = {0, uint16_t(count), 0, 0};
  barrier.expected = uint16_t(count & 0x7fff);
  memcpy(shared_base() + address, &barrier, sizeof barrier);
}
PTX(mbarrier_arrive_shared__cta_b64, uint32_t address) { arrive_at(address, 1, 0, PC); }
PTX(mbarrier_arrive_shared__cta_b64, uint32_t address, int count) { arrive_at(address, count, 0, PC); }
PTX(mbarrier_arrive_expect_tx_shared__cta_b64, uint32_t address, int bytes) { arrive_at(address, 1, bytes, PC); }
PTX(mbarrier_expect_tx_shared__cta_b64, uint32_t address, int bytes) { arrive_at(address, 0, bytes, PC); }
PTX(mbarrier_expect_tx_relaxed_cta_shared__cta_b64, uint32_t address, int bytes) { arrive_at(address, 0, bytes, PC); }
PTX(mbarrier_try_wait_parity_shared__cta_b64, bool& ended, uint32_t address, int parity) {
  wait_for_phase(address, parity, PC);  // "potentially blocking"
  ended = true;
}
PTX(mbarrier_inval_shared__cta_b64, uint32_t address) { shared_access(address, 8, true, PC); }

PTX(cp_async_bulk_tensor_4d_shared__cluster_global_mbarrier__complete_tx__bytes, uint32_t to, uint64_t map, int x, int y,
    int z, int w, uint32_t barrier) {
  const int from[] = {x, y, z, w};
  begin_box(to, map, from, 4, barrier, PC);
}
PTX(cp_async_bulk_tensor_3d_shared__cluster_global_mbarrier__complete_tx__bytes, uint32_t to, uint64_t map, int x, int y,
    int z, uint32_t barrier) {
  const int from[] = {x, y, z};
  begin_box(to, map, from, 3, barrier, PC);
}
PTX(cp_async_bulk_shared__cluster_global_mbarrier__complete_tx__bytes, uint32_t to, uint64_t from, uint32_t size,
    uint32_t barrier) {
  const char* source = reinterpret_cast<const char*>(from);
  if (from % 16 != 0 || size % 16 != 0) {
    misaligned(source, 16, false, PC);
  }
  access(source, size, false, false, PC);
  begin_bulk({to, barrier, std::vector<char>(source, source + size), false, run->current, PC});
}
PTX(tensormap_replace_tile_global_address_global_b1024_b64, uint64_t map, uint64_t address) {
  access(reinterpret_cast<void*>(map), 8, true, false, PC);
  const uint64_t host = of_host(address);
  memcpy(reinterpret_cast<void*>(map), &host, 8);
}

PTX(fence_mbarrier_init_release_cluster, ) {}
PTX(fence_proxy_async, ) {}
PTX(fence_proxy_async_shared__cta, ) {}
PTX(fence_proxy_tensormap__generic_acquire_gpu, uint64_t, int) {}
PTX(fence_proxy_tensormap__generic_release_gpu, ) {}
PTX(setmaxnreg_inc_sync_aligned_u32, int) {}
PTX(setmaxnreg_dec_sync_aligned_u32, int) {}
PTX(setp_ne_b32, bool& p, uint32_t a, uint32_t b) { p = a != b; }
PTX(selp_u32, uint32_t& d, uint32_t a, uint32_t b, bool p) { d = p ? a : b; }

PTX(wgmma_fence_sync_aligned, ) { exchange(SIM_SIMDGROUP_BARRIER, nullptr, 0, nullptr, PC); }
PTX(wgmma_commit_group_sync_aligned, ) { exchange(SIM_MULTIPLY, nullptr, 0, close_products, PC); }
PTX(wgmma_wait_group_sync_aligned, int groups) {
  groups_left = groups;
  exchange(SIM_MULTIPLY, nullptr, 0, wait_for_products, PC);
}

// "wgmma.mma_async.sync.aligned.m64nNk16.f32.T.T d, a-desc | {a}, b-desc, scale-d, imm-scale-a, imm-scale-b
// {, imm-trans-a}, imm-trans-b".
void cuda_wgmma(const char* name, const CudaOperand* operands, int count) {
  const void* pc = PC;
  WarpProduct product = {};
  char type[8] = {};
  if (sscanf(name, "wgmma_mma_async_sync_aligned_m64n%dk16_f32_%7[a-z0-9]", &product.columns, type) != 2) {
    add(SIM_BAD_LANE, 1000, relative(pc), 0);
    stop();
  }
  product.type = type[0] == 'b';
  const int sums = product.columns / 2;
  for (int i = 0; i < sums; i++) {
    product.sums[0].push_back(operands[i].sum);
  }
  const CudaOperand* rest = operands + sums;
  product.in_registers = count - sums == 9;
  for (int i = 0; i < 4 && product.in_registers; i++) {
    product.a[0][i] = uint32_t(rest[i].bits);
  }
  product.matrix_a = rest[0].bits;
  rest += product.in_registers ? 4 : 1;
  product.matrix_b = rest[0].bits;
  product.accumulates = rest[1].bits != 0;
  product.sign = int(rest[2].bits) * int(rest[3].bits);
  product.transposed_a = product.in_registers ? 0 : int(rest[4].bits);
  product.transposed_b = int(rest[product.in_registers ? 4 : 5].bits);
  product.pc = pc;
  need_whole_simdgroup(SIM_MULTIPLY, pc);
  WarpProduct* mine = &product;
  exchange(SIM_MULTIPLY, &mine, sizeof mine, issue_product, pc);
}
