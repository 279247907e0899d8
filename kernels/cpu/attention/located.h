// located.h: a tuple of Python's arrays -> where they lie, in the Params of a call. Asking Python here takes a tenth of
// the time that it takes from Python, at every call.
#pragma once
#include "../mod/mod.h"

constexpr int STRIDED_FORMAT = 0x1C;  // PyBUF_STRIDES | PyBUF_FORMAT: strides wanted, the buffer may be read-only

// The places of a call's tuple; after them come the captured arrays, by slot. None: there is no such array.
enum Place : int64_t { QUERY, KEY, VALUE, OUT, LSE, MAX_SCORES, KEY_SCALES, VALUE_SCALES, VALUE_MEANS, CAPTURED };

// A call whose arrays are in a tuple that lives until the call returns. Python's lock is held.
class Located {
  const Host& host;
  void* const tuple;
  Array captured[ARRAYS + 1];

  Array locate(int64_t place) {
    Array found = {};
    void* object = host.item(tuple, place);
    if (!object) status = INTERRUPTED;
    if (status != OK || object == host.none) return found;
    Buffer buffer = {};
    if (host.get_buffer(object, &buffer, STRIDED_FORMAT) != 0) {
      status = INTERRUPTED;
      return found;
    }
    found.data = buffer.data;
    found.ndim = buffer.ndim;
    bool aligned = (int64_t)buffer.data % buffer.element_bytes == 0;
    for (int axis = 0; axis < buffer.ndim; axis++) {
      found.shape[axis] = buffer.shape[axis];
      found.strides[axis] = buffer.strides[axis] / buffer.element_bytes;
      aligned &= buffer.shape[axis] < 2 || buffer.strides[axis] % buffer.element_bytes == 0;
    }
    host.release_buffer(&buffer);
    if (!aligned) status = UNALIGNED;
    return found;
  }

  // Keys, values, or what belongs to them: one batch of them serves all.
  template <class T, int NDIM>
  void locate_keys(int64_t place, const T*& data, int64_t (&strides)[NDIM]) {
    Array found = locate(place);
    data = (const T*)found.data;
    __builtin_memcpy(strides, found.strides, sizeof(strides));
    if (found.shape[0] != params.batch) strides[0] = 0;
  }

 public:
  Params params;
  Result status = OK;

  Located(const Params& given, const void* numbers, void* arrays)
      : host(*given.caller.host), tuple(arrays), params(given) {
    Array query = locate(QUERY);
    params.q = query.data;
    __builtin_memcpy(params.q_strides, query.strides, sizeof(params.q_strides));
    locate_keys(KEY, params.k, params.k_strides);
    locate_keys(VALUE, params.v, params.v_strides);
    params.out = (void*)locate(OUT).data;
    params.lse = (float*)locate(LSE).data;
    params.max_scores = (float*)locate(MAX_SCORES).data;
    locate_keys(KEY_SCALES, params.k_scales, params.k_scale_strides);
    locate_keys(VALUE_SCALES, params.v_scales, params.v_scale_strides);
    locate_keys(VALUE_MEANS, params.v_means, params.v_mean_strides);
    for (int slot = 0; slot < ARRAYS; slot++) captured[slot] = locate(CAPTURED + slot);
    params.arrays = captured;
    params.numbers = (const Number*)numbers;
  }
};
