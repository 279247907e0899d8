// ranges.h: what a value can be in a tile, given ranges of its indices: one function of namespace bounds per op of an
// expression, each as ints.py and rules.py of tracer/bounds have it. tile_state is made of them. Bounds may be coarse,
// but are never wrong.
//
// C++ and Metal share this text. The bounds.h of either includes it, after what they say differently: LEAST and MOST,
// is_known of a float, and floor_of, ceil_of, trunc_of, round_of.
#pragma once
namespace bounds {

// -- what is known of a value in a tile ----------------------------------------------------------------------------

struct Range {  // of an int32
  int64_t lo, hi;
};
struct Truth {  // of a bool: true everywhere, true somewhere
  bool must, may;
};
struct Interval {  // of a float; without bounds where it may be nan
  float lo, hi;
  bool known;
};


inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

inline Range range(int64_t lo, int64_t hi) {
  Range r;
  r.lo = lo;
  r.hi = hi;
  return r;
}
inline Truth truth(bool must, bool may) {
  Truth t;
  t.must = must;
  t.may = may;
  return t;
}
inline Interval interval(float lo, float hi, bool known) {
  Interval x;
  x.lo = lo;
  x.hi = hi;
  x.known = known;
  return x;
}
inline Range exactly(int x) { return range(x, x); }
inline Truth exactly(bool x) { return truth(x, x); }
inline Interval exactly(float x) { return interval(x, x, is_known(x)); }
inline Interval unknown() { return interval(0.0f, 0.0f, false); }
inline Range all_ints() { return range(LEAST, MOST); }

// What may have left int32 may have wrapped to anything.
inline Range int32(int64_t lo, int64_t hi) { return lo < LEAST || hi > MOST ? all_ints() : range(lo, hi); }
inline bool is_constant(Range a) { return a.lo == a.hi; }
inline bool is_all(Range a) { return a.lo == LEAST && a.hi == MOST; }

// -- ints ----------------------------------------------------------------------------------------------------------

inline Range add(Range a, Range b) { return int32(a.lo + b.lo, a.hi + b.hi); }
inline Range sub(Range a, Range b) { return int32(a.lo - b.hi, a.hi - b.lo); }
inline Range neg(Range a) { return int32(-a.hi, -a.lo); }
inline Range corners(int64_t a, int64_t b, int64_t c, int64_t d) {
  return int32(smaller(smaller(a, b), smaller(c, d)), larger(larger(a, b), larger(c, d)));
}
inline Range mul(Range a, Range b) { return corners(a.lo * b.lo, a.lo * b.hi, a.hi * b.lo, a.hi * b.hi); }
inline Range magnitude(Range a) { return range(larger(larger(a.lo, -a.hi), 0), larger(-a.lo, a.hi)); }
inline Range abs(Range a) {
  Range size = magnitude(a);
  return int32(size.lo, size.hi);
}
inline Range square(Range a) {
  Range size = magnitude(a);
  return int32(size.lo * size.lo, size.hi * size.hi);
}
inline Range min(Range a, Range b) { return range(smaller(a.lo, b.lo), smaller(a.hi, b.hi)); }
inline Range max(Range a, Range b) { return range(larger(a.lo, b.lo), larger(a.hi, b.hi)); }

// The floor of a / b, which are int32: no GPU divides 64 bits.
inline int64_t quotient(int64_t a, int64_t b) {
  if (b == -1) return -a;  // that of LEAST is beyond int32
  const int x = int(a), y = int(b), towards_zero = x / y;
  return towards_zero - int(towards_zero * y != x && (x ^ y) < 0);
}
inline Range floor_div(Range a, Range b) {
  if (is_constant(b) && b.lo == 0) return range(0, 0);
  if (b.lo > 0 || is_constant(b))
    return corners(quotient(a.lo, b.lo), quotient(a.lo, b.hi), quotient(a.hi, b.lo), quotient(a.hi, b.hi));
  int64_t size = magnitude(a).hi;  // no quotient is larger, and x // 0 is 0
  return int32(-size, size);
}
// Exact where the range lies in one period.
inline Range remainder(Range a, int64_t divisor) {
  const bool beyond = divisor > MOST;  // the first number that is: each sign is one period
  const int64_t period = beyond ? a.lo >> 63 : quotient(a.lo, divisor);
  if (period != (beyond ? a.hi >> 63 : quotient(a.hi, divisor))) return range(0, divisor - 1);
  return range(a.lo - period * divisor, a.hi - period * divisor);
}
inline Range mod(Range a, Range b) {
  if (is_constant(b) && b.lo == 0) return range(0, 0);
  if (is_constant(b) && b.lo > 0) return remainder(a, b.lo);
  if (a.lo >= 0 && b.lo > 0) return range(a.hi < b.lo ? a.lo : 0, smaller(b.hi - 1, a.hi));
  return range(smaller(b.lo + 1, 0), larger(b.hi - 1, 0));
}

// A sum of shared terms, which holds unless an operand has wrapped; it never leaves int64.
inline Range wide_add(Range a, Range b) { return range(a.lo + b.lo, a.hi + b.hi); }
inline Range wide_sub(Range a, Range b) { return range(a.lo - b.hi, a.hi - b.lo); }
inline Range wide_mul(Range a, Range factor) { return range(a.lo * factor.lo, a.hi * factor.lo); }
inline Range meet(Range a, Range exact) {
  if (is_all(a)) return a;
  return range(larger(a.lo, exact.lo), smaller(a.hi, exact.hi));
}

// -- bits ----------------------------------------------------------------------------------------------------------

// The least 2^n - 1 that is not below x >= 0.
inline int64_t ones(int64_t x) {
  for (int shift = 1; shift <= 16; shift *= 2) x |= x >> shift;
  return x;
}
inline int64_t any_bits(Range a, Range b) {
  return ones(larger(larger(a.hi, -1 - a.lo), larger(b.hi, -1 - b.lo)));
}
inline Range bit_not(Range a) { return range(-1 - a.hi, -1 - a.lo); }
inline Range masked(Range a, int64_t mask) {
  if (mask >= 0 && (mask & (mask + 1)) == 0) return remainder(a, mask + 1);
  if (mask < 0 && (-mask & (-mask - 1)) == 0) return range(a.lo & mask, a.hi & mask);  // clears the last bits
  if (mask < 0 && a.lo < 0) return range(-1 - any_bits(a, range(mask, mask)), any_bits(a, range(mask, mask)));
  return range(0, mask < 0 ? a.hi : a.lo < 0 ? mask : smaller(a.hi, mask));
}
inline Range bit_and(Range a, Range b) {
  if (is_constant(a) && is_constant(b)) return range(a.lo & b.lo, a.lo & b.lo);
  if (is_constant(b)) return masked(a, b.lo);
  if (is_constant(a)) return masked(b, a.lo);
  if (a.lo >= 0 && b.lo >= 0) return range(0, smaller(a.hi, b.hi));
  if (a.lo >= 0 || b.lo >= 0) return range(0, a.lo >= 0 ? a.hi : b.hi);
  return range(-1 - any_bits(a, b), any_bits(a, b));
}
inline Range bit_or(Range a, Range b) {
  if (is_constant(a) && is_constant(b)) return range(a.lo | b.lo, a.lo | b.lo);
  bool positive = a.lo >= 0 && b.lo >= 0;
  return range(positive ? larger(a.lo, b.lo) : -1 - any_bits(a, b), any_bits(a, b));
}
inline Range bit_xor(Range a, Range b) {
  if (is_constant(a) && is_constant(b)) return range(a.lo ^ b.lo, a.lo ^ b.lo);
  return range(a.lo >= 0 && b.lo >= 0 ? 0 : -1 - any_bits(a, b), any_bits(a, b));
}
// How far a shift by b goes: a negative count goes as far as any.
inline Range amounts(Range b, int64_t most) {
  if (b.lo < 0) return range(b.hi < 0 ? most : 0, most);
  return range(smaller(b.lo, most), smaller(b.hi, most));
}
inline Range shl(Range a, Range b) {
  Range n = amounts(b, 32);
  if (n.lo == 32) return range(0, 0);
  return mul(a, range(int64_t(1) << n.lo, int64_t(1) << n.hi));
}
inline Range shr(Range a, Range b) {
  Range n = amounts(b, 31);
  return corners(a.lo >> n.lo, a.lo >> n.hi, a.hi >> n.lo, a.hi >> n.hi);
}

// -- truth ---------------------------------------------------------------------------------------------------------

inline Truth not_(Truth a) { return truth(!a.may, !a.must); }
inline Truth and_(Truth a, Truth b) { return truth(a.must && b.must, a.may && b.may); }
inline Truth or_(Truth a, Truth b) { return truth(a.must || b.must, a.may || b.may); }
inline Truth xor_(Truth a, Truth b) {
  bool same = (a.must && b.must) || !(a.may || b.may), differ = (a.must && !b.may) || (!a.may && b.must);
  return truth(differ, !same);
}

inline Truth lt(Range a, Range b) { return truth(a.hi < b.lo, a.lo < b.hi); }
inline Truth le(Range a, Range b) { return truth(a.hi <= b.lo, a.lo <= b.hi); }
inline Truth eq(Range a, Range b) {
  return truth(a.lo == b.hi && a.hi == b.lo && is_constant(a), a.lo <= b.hi && b.lo <= a.hi);
}
inline Truth ne(Range a, Range b) { return not_(eq(a, b)); }

// Both what the operands say and, unless one has wrapped, what their difference says.
inline Truth by_difference(Range a, Range b, Truth operands, Truth difference) {
  if (is_all(a) || is_all(b)) return operands;
  return truth(operands.must || difference.must, operands.may && difference.may);
}
inline Truth lt_by_difference(Range a, Range b, Range d) { return by_difference(a, b, lt(a, b), lt(d, range(0, 0))); }
inline Truth le_by_difference(Range a, Range b, Range d) { return by_difference(a, b, le(a, b), le(d, range(0, 0))); }
inline Truth eq_by_difference(Range a, Range b, Range d) { return by_difference(a, b, eq(a, b), eq(d, range(0, 0))); }
inline Truth ne_by_difference(Range a, Range b, Range d) { return not_(eq_by_difference(a, b, d)); }

inline Truth lt(Interval a, Interval b) {
  bool known = a.known && b.known;
  return truth(known && a.hi < b.lo, !known || a.lo < b.hi);
}
inline Truth le(Interval a, Interval b) {
  bool known = a.known && b.known;
  return truth(known && a.hi <= b.lo, !known || a.lo <= b.hi);
}
inline Truth eq(Interval a, Interval b) {
  bool known = a.known && b.known;
  return truth(known && a.lo == b.hi && a.hi == b.lo && a.lo == a.hi, !known || (a.lo <= b.hi && b.lo <= a.hi));
}
inline Truth ne(Interval a, Interval b) { return not_(eq(a, b)); }

// -- choices and conversions ---------------------------------------------------------------------------------------

inline Range where(Truth c, Range yes, Range no) {
  if (c.must || !c.may) return c.must ? yes : no;
  return range(smaller(yes.lo, no.lo), larger(yes.hi, no.hi));
}
inline Truth where(Truth c, Truth yes, Truth no) {
  if (c.must || !c.may) return c.must ? yes : no;
  return truth(yes.must && no.must, yes.may || no.may);
}
inline Interval where(Truth c, Interval yes, Interval no) {
  if (c.must || !c.may) return c.must ? yes : no;
  return interval(yes.lo < no.lo ? yes.lo : no.lo, yes.hi > no.hi ? yes.hi : no.hi, yes.known && no.known);
}
inline Range to_int(Truth a) { return range(a.must, a.may); }
inline Range to_int(Range a) { return a; }
inline Range to_int(Interval a) { return a.known ? range(fx::to_int(a.lo), fx::to_int(a.hi)) : all_ints(); }
inline Interval to_float(Truth a) { return interval(a.must, a.may, true); }
inline Interval to_float(Range a) { return interval(float(int(a.lo)), float(int(a.hi)), true); }
inline Interval to_float(Interval a) { return a; }

// -- floats: what is exact on every device, and monotone -----------------------------------------------------------

inline Interval neg(Interval a) { return interval(-a.hi, -a.lo, a.known); }
inline Interval min(Interval a, Interval b) {
  return interval(a.lo < b.lo ? a.lo : b.lo, a.hi < b.hi ? a.hi : b.hi, a.known && b.known);
}
inline Interval max(Interval a, Interval b) {
  return interval(a.lo > b.lo ? a.lo : b.lo, a.hi > b.hi ? a.hi : b.hi, a.known && b.known);
}
inline Interval abs(Interval a) {
  return interval(a.lo > 0.0f ? a.lo : a.hi < 0.0f ? -a.hi : 0.0f, -a.lo > a.hi ? -a.lo : a.hi, a.known);
}
inline Interval floor(Interval a) { return interval(floor_of(a.lo), floor_of(a.hi), a.known); }
inline Interval ceil(Interval a) { return interval(ceil_of(a.lo), ceil_of(a.hi), a.known); }
inline Interval trunc(Interval a) { return interval(trunc_of(a.lo), trunc_of(a.hi), a.known); }
inline Interval round(Interval a) { return interval(round_of(a.lo), round_of(a.hi), a.known); }

// -- the answer ----------------------------------------------------------------------------------------------------

// What a mask leaves of a tile: 0 nothing, 1 look closer, 2 all of it.
inline int state(Truth mask) { return mask.must ? 2 : int(mask.may); }

}  // namespace bounds
