"""Mistakes that the tests must catch: a file, what stands in it, what is put there instead, and the tests that fail.

Each is small enough to be made by a tired hand. `make mutants` plants them one at a time (run.py); a quick test
(test_table.py) holds that each still fits the tree. A mistake that once got through gets a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class Mutant(NamedTuple):
    """One mistake. file: from the project's root. old: stands in it once. tests: pytest's names, which must fail."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def applied(self, text: str) -> str:
        return text.replace(self.old, self.new)

    def __str__(self) -> str:
        old, new = (" ".join(text.split()) for text in (self.old, self.new))
        return f"{self.file}: {old[:60]!r} -> {new[:60]!r}"


# file -> the tests that hold it, and (old, new) or, where other tests hold a line, (old, new, tests).
Change = tuple[str, str] | tuple[str, str, str]
TWENTY_ARRAYS = "tests/kernels/metal/test_metal_captures.py::test_twenty_arrays_in_the_fused_kernel"
TABLE: dict[tuple[str, str], list[Change]] = {
    # ---- tracer ------------------------------------------------------------------------------------------------
    ("tracer/expr/node.py", "tests/tracer/expr/test_expr.py"): [
        ("return TRUE if value else FALSE", "return FALSE"),
        ("-(2**31) <= value < 2**31", "-(2**31) <= value <= 2**31"),
        ('struct.pack("d", value) if isinstance(value, float) else (type(value), value)', "(type(value), value)"),
        ("ctypes.c_float(value).value", "value"),
        ('element.startswith(("float", "bfloat"))', 'element.startswith("float")'),
    ],
    ("tracer/expr/simplify.py", "tests/tracer/expr/test_simplify.py"): [
        ("and math.copysign(1, node.value) == math.copysign(1, value)", ""),
        ('node.op in COMMUTATIVE and node.args[0].op == "const"', 'len(node.args) == 2 and node.args[0].op == "const"'),
        ('"add": (integer and _is(y, 0)) or (_is(y, -0.0) and not integer)', '"add": _is(y, 0) or _is(y, -0.0)'),
        ('"sub": _is(y, 0)', '"sub": _is(y, 0) or _is(y, -0.0)'),
        ('"mul": _is(y, 1)', '"mul": _is(y, -1)'),
        ('"div": _is(y, 1)', '"div": _is(y, -1)'),
        ('"floor_div": integer and _is(y, 1)', '"floor_div": _is(y, 1)'),
        ('"pow": _is(y, 1)', '"pow": _is(y, -1)'),
        ('"shl": _is(y, 0)', '"shl": _is(y, 1)'),
        ('"shr": _is(y, 0)', '"shr": _is(y, 1)'),
        ('"bit_or": _is(y, 0)', '"bit_or": _is(y, -1)'),
        ('"bit_xor": _is(y, 0)', '"bit_xor": _is(y, -1)'),
        ('"bit_and": _is(y, -1)', '"bit_and": _is(y, 1)'),
        ('node.dtype != "int" or len(node.args) != 2', "len(node.args) != 2"),
        ('(node.op in ("mul", "bit_and") and _is(y, 0))', '(node.op in ("mul", "bit_and", "max") and _is(y, 0))'),
        ('(node.op == "mod" and _is(y, 1))', '(node.op == "mod" and _is(y, 2))'),
        ('(node.op == "sub" and x is y)', '(node.op in ("sub", "bit_or") and x is y)'),
        ('"and", "or", "bit_and", "bit_or"):', '"and", "or", "xor", "bit_and", "bit_or"):'),
        ('node.op in COMPARISONS and x.dtype == "int"', "node.op in COMPARISONS"),
        ('return TRUE if node.op in ("le", "eq") else FALSE', 'return TRUE if node.op == "eq" else FALSE'),
        ("if divisor > 0 and divisor & (divisor - 1) == 0:", "if divisor > 0 and divisor & 1 == 0:"),
        ('apply("bit_and", x, const(divisor - 1))', 'apply("bit_and", x, const(divisor))'),
        ("const(divisor.bit_length() - 1)", "const(divisor.bit_length())"),
        ("abs(mantissa) == 0.5 and abs(exponent) < 100", "abs(exponent) < 100"),
        ("const(1.0 / y.value)", "const(abs(1.0 / y.value))"),
        ('if x.op == "not":\n            return x.args[0]', 'if x.op == "not":\n            return x'),
        ('{"eq": "ne", "ne": "eq"}', '{"eq": "ne", "ne": "le"}'),
        ('x.op in ("lt", "le") and x.args[0].dtype == "int"', 'x.op in ("lt", "le")'),
        ('apply("le" if x.op == "lt" else "lt", x.args[1], x.args[0])', 'apply("le", x.args[1], x.args[0])'),
        ('return apply("not", x) if y is TRUE else x', 'return x if y is TRUE else apply("not", x)'),
        ('decided = y is (FALSE if node.op == "and" else TRUE)', "decided = y is FALSE"),
        ('return FALSE if node.op == "and" else TRUE', 'return TRUE if node.op == "and" else FALSE'),
        ("        if operand is y:\n            return node.args[0]", "        if operand is y:\n            return y"),
        ("for operand in (y, *operands[::-1]):", "for operand in (y, *operands):"),
        (
            'apply("or" if op == "and" else "and", opposite, _opposite(operand))',
            "apply(op, opposite, _opposite(operand))",
        ),
        (
            'return apply("or", _simpler("and", holds, mine), other)',
            'return apply("or", _simpler("or", holds, mine), other)',
        ),
        ("node = apply(op, x, y)", "node = apply(op, x, x)"),
        ("return node if simpler is None else simpler", "return x if simpler is None else simpler"),
        ("return yes if condition is TRUE else no", "return no if condition is TRUE else yes"),
        ("if yes is no:", "if yes.op == no.op:"),
        ('return apply("where", condition.args[0], no, yes)', 'return apply("where", condition.args[0], yes, no)'),
        ('return apply("where", condition, yes.args[1], no)', 'return apply("where", condition, yes.args[2], no)'),
        ('if no.op == "where" and no.args[0] is condition:', 'if no.op == "where":'),
        ('return apply("or", condition, no) if yes is TRUE', 'return apply("or", condition, no) if yes is FALSE'),
        ('apply("and", _opposite(condition), no)', 'apply("and", condition, no)'),
        ('return apply("or", _opposite(condition), yes)', 'return apply("or", condition, yes)'),
        ("_is(node.args[1], 0):\n        inner", 'node.args[1].op == "const":\n        inner'),
        ('return inner if inner.dtype == "bool" else None', "return inner"),
        (
            'if node.op in ("to_int", "to_float") and node.args[0].dtype == node.dtype:',
            'if node.op in ("to_int", "to_float"):',
        ),
        ('return node.args[0].args[0]\n    if node.op == "add"', 'return node.args[0]\n    if node.op == "add"'),
        (
            'return apply("sub", node.args[0], node.args[1].args[0])',
            'return apply("add", node.args[0], node.args[1].args[0])',
        ),
        (
            'return apply("add", node.args[0], node.args[1].args[0])',
            'return apply("sub", node.args[0], node.args[1].args[0])',
        ),
        ('node.args[0].op in ("abs", "neg")', 'node.args[0].op in ("abs", "neg", "sub", "add")'),
        ("return x if _is(mask, 2**31 - 1) and", 'return x if mask.op == "const" and'),
    ],
    ("tracer/bounds/ints.py", "tests/tracer/bounds/test_ranges.py"): [
        ("return self.least == self.most", "return self.least == self.most or bool(np.all(self.lo == self.hi))"),
        ("return Range(value, value, value, value)", "return Range(value, value, value, value + 1)"),
        ("Range(lo, hi, int(lo.min()), int(hi.max())) if", "Range(lo, hi, int(lo.min()), int(lo.max())) if"),
        ("(lo < INT_MIN) | (hi > INT_MAX)", "(lo < INT_MIN) & (hi > INT_MAX)"),
        ("for x in (a.lo, a.hi) for y in (b.lo, b.hi)]", "for x in (a.lo, a.hi) for y in (b.lo, b.lo)]"),
        ("return Range(a.lo + b.lo, a.hi + b.hi,", "return Range(a.lo + b.lo, a.hi + b.lo,"),
        ("return Range(a.lo - b.hi, a.hi - b.lo,", "return Range(a.lo - b.lo, a.hi - b.lo,"),
        ("return Range(a.lo * factor, a.hi * factor,", "return Range(a.lo * factor, a.hi,"),
        ("return _int32(a.lo + b.lo, a.hi + b.hi,", "return _int32(a.lo + b.lo, a.hi + b.lo,"),
        ("return _int32(a.lo - b.hi, a.hi - b.lo,", "return _int32(a.lo - b.lo, a.hi - b.hi,"),
        ("return _int32(-a.hi, -a.lo,", "return _int32(-a.lo, -a.hi,"),
        (
            "wrapped = (a.lo == INT_MIN) & (a.hi == INT_MAX)\n        return Range(",
            "wrapped = False\n        return Range(",
        ),
        ("a.most * b.most)\n        return _int32(a.hi * b.lo", "a.most * b.most)\n        return _int32(a.lo * b.lo"),
        ("return _int32(size.lo * size.lo, size.hi * size.hi,", "return _int32(a.lo * a.lo, a.hi * a.hi,"),
        ("np.maximum(np.maximum(a.lo, -a.hi), 0)", "np.maximum(a.lo, -a.hi)"),
        ("return _int32(size.lo, size.hi, size.least", "return Range(size.lo, size.hi, size.least"),
        ("return Range(np.minimum(a.lo, b.lo),", "return Range(np.maximum(a.lo, b.lo),"),
        ("np.maximum(a.hi, b.hi), max(a.least", "np.minimum(a.hi, b.hi), max(a.least"),
        ("size, most = np.maximum(-a.lo, a.hi),", "size, most = np.maximum(a.lo, a.hi),"),
        ("return _int32(a.hi // divisor, a.lo // divisor,", "return Range(a.hi // divisor, a.lo // divisor,"),
        ("np.minimum(b.lo + 1, 0), np.maximum(b.hi - 1, 0)", "np.minimum(b.lo + 1, 0), np.maximum(b.hi - 2, 0)"),
        ("below = a.hi < b.lo", "below = a.hi <= b.lo"),
        ("period == a.hi // divisor", "period == a.lo // divisor"),
        ("for shift in (1, 2, 4, 8, 16):", "for shift in (1, 2, 4, 8):"),
        ("np.maximum(b.hi, -1 - b.lo)))", "b.hi))"),
        ("masked = a if a.least >= 0 else b", "masked = b if a.least >= 0 else a"),
        ("return Range(a.lo & mask, a.hi & mask,", "return Range(a.lo & mask, a.lo & mask,"),
        (
            "return Range(np.maximum(a.lo, b.lo), result.hi,",
            "return Range(np.maximum(a.lo, b.lo), np.maximum(a.hi, b.hi),",
        ),
        ("return Range(0, result.hi, 0, result.most) if", "return Range(0, np.maximum(a.hi, b.hi), 0, result.most) if"),
        ("return Range(-1 - a.hi, -1 - a.lo,", "return Range(-a.hi, -a.lo,"),
        ("np.where(b.hi < 0, most, 0)", "most"),
        ("np.where(b.lo < 0, most, hi)", "hi"),
        ("by = _amounts(b, 32)", "by = _amounts(b, 31)"),
        ("gone = by.lo == 32", "gone = by.hi == 32"),
        ("_amounts(b, 31))", "_amounts(b, 30))"),
    ],
    ("tracer/bounds/rules.py", "tests/tracer/bounds/test_ranges.py"): [
        ("return a.hi < b.lo, a.lo < b.hi", "return a.hi < b.lo, a.lo < b.lo"),
        ("return a.hi <= b.lo, a.lo <= b.hi", "return a.hi <= b.lo, a.lo < b.hi"),
        ("return a.hi <= b.lo, a.lo <= b.hi", "return a.hi < b.lo, a.lo <= b.hi"),
        (
            "return meets & (a.lo == b.hi) & (a.hi == b.lo), meets",
            "return meets & (a.lo == b.lo) & (a.hi == b.hi), meets",
        ),
        ("return a[1] < b[0], np.logical_not(a[0] >= b[1])", "return a[1] < b[0], a[0] < b[1]"),
        ("return a[1] <= b[0], np.logical_not(a[0] > b[1])", "return a[1] < b[0], np.logical_not(a[0] > b[1])"),
        ("np.logical_not((a[1] < b[0]) | (b[1] < a[0]))", "(a[0] <= b[1]) & (b[0] <= a[1])"),
        ("return lambda *operands: _not(compare(*operands))", "return compare"),
        ("must_too & np.logical_not(wrapped), may_too | wrapped", "must_too, may_too"),
        ("return a[1] ^ True, a[0] ^ True", "return a[0] ^ True, a[1] ^ True"),
        ("return a[0] & b[0], a[1] & b[1]", "return a[0] | b[0], a[1] & b[1]"),
        ("return a[0] | b[0], a[1] | b[1]", "return a[0] | b[0], a[1] & b[1]"),
        (
            "must_not = (a[0] & b[0]) | (_not(a)[0] & _not(b)[0])",
            "must_not = (a[1] & b[1]) | (_not(a)[0] & _not(b)[0])",
        ),
        ("np.where(condition[1], joined, no)", "np.where(condition[1], yes, no)"),
        ("min(yes.least, no.least)", "yes.least"),
        ("_choose(condition, yes.hi, no.hi, np.maximum(yes.hi, no.hi))", "_choose(condition, yes.hi, no.hi, yes.hi)"),
        ("_choose(condition, yes[0], no[0], np.minimum(yes[0], no[0]))", "_choose(condition, yes[0], no[0], yes[0])"),
        (
            "(yes[1] & condition[1]) | (no[1] & (condition[0] ^ True))",
            "(yes[1] & condition[1]) | (no[1] & (condition[1] ^ True))",
        ),
        ("int(a[0] is True), int(a[1] is not False)", "int(a[0] is True), int(a[1] is True)"),
        (
            "return np.asarray(a.lo, np.float32), np.asarray(a.hi, np.float32)",
            "return np.float32(0) + a.lo, np.asarray(a.lo, np.float32)",
        ),
        (
            "return np.asarray(a[0], np.float32), np.asarray(a[1], np.float32)",
            "return np.asarray(a[0], np.float32), np.asarray(a[0], np.float32)",
        ),
        (
            "hi = np.clip(np.trunc(np.asarray(a[1], np.float64)), INT_MIN, INT_MAX)",
            "hi = np.trunc(np.asarray(a[1], np.float64))",
        ),
        ("nothing = np.isnan(lo) | np.isnan(hi)", "nothing = np.isnan(lo) & False"),
        ("return -a[1], -a[0]", "return -a[0], -a[1]"),
        ("np.maximum(np.maximum(a[0], -a[1]), np.float32(0))", "np.maximum(a[0], -a[1])"),
        (
            "(op(*(a[0] for a in operands)), op(*(a[1] for a in operands)))",
            "(op(*(a[0] for a in operands)), op(*(a[0] for a in operands)))",
        ),
        ("def _same(a: Any) -> Any:\n    return a", "def _same(a: Any) -> Any:\n    return FALSE"),
        ('"ne.int": _opposite(_eq)', '"ne.int": _eq'),
        ('"lt_by_difference": _by_difference(_lt)', '"lt_by_difference": _by_difference(_le)'),
        ('"le_by_difference": _by_difference(_le)', '"le_by_difference": _by_difference(_lt)'),
        ('"eq_by_difference": _by_difference(_eq)', '"eq_by_difference": _by_difference(_le)'),
        ('"ne_by_difference": _opposite(_by_difference(_eq))', '"ne_by_difference": _by_difference(_lt)'),
        ('"ne.float": _opposite(_float_eq)', '"ne.float": _opposite(_float_le)'),
        ('"min.float": _monotone(np.minimum)', '"min.float": _monotone(np.fmin)'),
        ('"max.float": _monotone(np.maximum)', '"max.float": _monotone(np.fmax)'),
        ('"floor": _monotone(np.floor)', '"floor": _monotone(np.trunc)'),
        ('"ceil": _monotone(np.ceil)', '"ceil": _monotone(np.floor)'),
        ('"trunc": _monotone(np.trunc)', '"trunc": _monotone(np.floor)'),
        ('"round": _monotone(np.rint)', '"round": _monotone(np.floor)'),
        (
            'RANGES.get(f"{node.op}.{node.args[-1].dtype}") or RANGES.get(node.op)',
            'RANGES.get(f"{node.op}.{node.args[0].dtype}") or RANGES.get(node.op)',
            "tests/tracer/bounds/test_bounds.py::test_random_masks_are_bounded",
        ),
        (
            "in RANGES or node.op in RANGES",
            "in RANGES or True",
            "tests/tracer/bounds/test_bounds.py::test_floats_at_the_edges",
        ),
    ],
    ("tracer/bounds/relations.py", "tests/tracer/bounds/test_relations.py"): [
        ("factors.get(term, 0) + sign * factor", "factors.get(term, 0) + factor"),
        ("self.constant + sign * other.constant", "self.constant + other.constant"),
        (
            "for term, own in self.factors.items()}, factor * self.constant)",
            "for term, own in self.factors.items()}, self.constant)",
        ),
        ("all(abs(f) <= MAX_FACTOR for f in factors)", "True"),
        ("len(factors) <= MAX_TERMS", "True"),
        ("and args[0] is args[1] and node.dtype", "and node.dtype"),
        (
            'node.op != "load" and not has_rule(node)',
            "not has_rule(node)",
            "tests/tracer/bounds/test_bounds.py::test_nan_makes_a_gather_unknown",
        ),
        ('a.plus(b, 1 if node.op == "add" else -1)', "a.plus(b, -1)"),
        ('form = args[0].plus(args[1], 1 if node.op == "add" else -1)', "form = args[0].plus(args[1], 1)"),
        ("form = args[0].times(-1)", "form = args[0].times(1)"),
        ("form = forms[x].times(y.value)", "form = forms[x].times(abs(y.value))"),
        ('"wide_add" if factor > 0 else "wide_sub"', '"wide_add"'),
    ],
    ("tracer/bounds/extremes.py", "tests/tracer/bounds/test_relations.py"): [
        (
            '{"b": np.bool_, "f": np.float32}',
            '{"b": np.bool_, "f": np.int32}',
            "tests/tracer/bounds/test_bounds.py::test_extremes_of_boxes",
        ),
        (
            "extends = [lo is not hi and not np.array_equal(lo, hi)",
            "extends = [np.any(lo == hi) and not np.array_equal(lo, hi)",
            "tests/tracer/bounds/test_bounds.py::test_extremes_of_boxes",
        ),
        ("kept = ranged[-2:]", "kept = ranged[-1:]"),
        ("level = np.frexp(last - first + 1)[1] - 1", "level = np.frexp(last - first + 1)[1] - 2"),
        ("last + 1 - np.left_shift(1, level)", "last - np.left_shift(1, level)"),
        ("least = low if least is None else np.minimum(least, low)", "least = low if least is None else least"),
        (
            "table = self._tables.get(kinds)",
            "table = next(iter(self._tables.values()), None)",
            "tests/tracer/bounds/test_bounds.py::test_extremes_of_boxes",
        ),
        ("for extreme in (np.minimum, np.maximum):", "for extreme in (np.minimum, np.minimum):"),
        ("np.arange(0, table.shape[axis], block), axis=axis", "np.arange(0, table.shape[axis], block + 1), axis=axis"),
        ("if entries(1) <= UNBLOCKED_ENTRIES else BLOCK", ""),
        ("half, below = 1 << (k - 1), levels[-1]", "half, below = 1 << (k - 1), levels[0]"),
        ("count = size - 2 * half + 1", "count = size - 2 * half"),
        ("crosses = (lo < 0) & (hi >= 0)", "crosses = (lo < 0) & (hi > 0)"),
        ("np.clip(hi + shift, 0, size - 1)", "np.clip(hi + shift, 0, size - 2)"),
    ],
    ("tracer/bounds/tiles.py", "tests/tracer/bounds/test_relations.py"): [
        ("return bounds_of(expr)(ranges, numbers, arrays)", "return bounds_of(expr)(ranges, numbers, arrays)[::-1]"),
        ("for node in order for arg in node.args}", "for node in order[:-1] for arg in node.args}"),
        (
            "np.asarray(value.lo, np.int64), np.asarray(value.hi, np.int64)",
            "np.asarray(value.lo, np.int32), np.asarray(value.hi, np.int32) - 1",
        ),
        ("return between(*ranges[node.value])", "return between(ranges[node.value][0], ranges[node.value][0])"),
        (
            'numbers[node.value] if node.op == "param" else node.value',
            'numbers[0] if node.op == "param" else node.value',
        ),
        ("rounded = np.float32(round_to_float32(float(value)))", "rounded = np.float64(value)"),
        ("within = index.least >= 0 and index.most < size", "within = index.least >= 0"),
    ],
    ("tracer/expr/invariance.py", "tests/tracer/expr/test_invariance.py"): [
        ("return shifts[expr] in (1, ANY)", "return shifts[expr] in (0, 1, ANY)"),
        (
            'node.value if node.op == "const" else numbers[node.value]',
            'node.value if node.op == "const" else numbers[0]',
        ),
        ('if node.op == "score":\n        return Fraction(1)', 'if node.op == "score":\n        return ANY'),
        ("if number is not None and math.isinf(number):", "if number is not None:"),
        ("if all(shift == 0 for shift in shifts):", "if shifts and any(shift == 0 for shift in shifts):"),
        ('return _sum(shifts[0], shifts[1], 1 if node.op == "add" else -1)', "return _sum(shifts[0], shifts[1], 1)"),
        ("return _times(shifts[0], -1)", "return shifts[0]"),
        ('if node.op in ("mul", "div"):', 'if node.op in ("mul", "div", "floor_div"):'),
        (
            'return both if node.op in ("min", "max") or both is None else Fraction(0)',
            'return both if node.op in ("min", "max") else Fraction(0)',
        ),
        ('if node.op == "where" and shifts[0] == 0:', 'if node.op == "where":'),
        (
            "return ANY if isinstance(a, str) or isinstance(b, str) else a + sign * b",
            "return ANY if isinstance(a, str) or isinstance(b, str) else a",
        ),
        ("return shift if isinstance(shift, str) else shift * Fraction(factor)", "return shift"),
        (
            '_times(shifts[1], a) if a is not None and node.op == "mul" else None',
            "_times(shifts[1], a) if a is not None else None",
        ),
        ('return _times(shifts[0], b) if node.op == "mul" else _divided(shifts[0], b)', "return _times(shifts[0], b)"),
        ("return shift if isinstance(shift, str) else shift / Fraction(divisor)", "return shift"),
        ("return a if isinstance(b, str) or a == b else None", "return a"),
        (
            'key=lambda pair: not any(node.op == "load" for node in walk(pair.rows, pair.keys))',
            "key=lambda pair: 0",
        ),
        ('if mask.op == "and":', 'if mask.op in ("and", "or"):'),
        ('if node.op != "eq" or any(part.dtype == "float" for part in walk(*node.args)):', 'if node.op != "eq":'),
        ('_depends(row, "q_idx") and _depends(key, "kv_idx")', '_depends(row, "q_idx")'),
        ('not any(other.op == "le" and other.args == (key, row) for other in conjuncts)', "not conjuncts"),
        ('arg.op == "index" and arg.value == "q_idx"), None)', '"q_idx" in arg.varies), None)'),
        ('return index in expr.varies and expr.varies <= {index, "b"}', "return index in expr.varies"),
    ],
    ("tracer/expr/derivative.py", "tests/tracer/expr/test_derivative.py"): [
        ('if wrt.dtype != "float":', 'if wrt.dtype == "bool":'),
        ('if node.op == "load" and node.dtype == "float")', 'if node.op == "load")'),
        ("return b if a is ZERO else a\n", "return a if a is ZERO else b\n"),
        ("_add(a.args[2], b.args[2]))", "a.args[2])"),
        ('_inside(a, lambda core: apply("neg", core))', "a"),
        ("_inside(tangent, lambda core: _product(core, factor))", "_product(tangent, factor)"),
        ("a, b = a.args[0], const(together)", "a, b = a.args[0], b"),
        ('quotient.op == "div" and quotient.args[1] is b', 'quotient.op == "div"'),
        ("1e-30 < abs(number) < 1e30", "abs(number) < 1e-30"),
        ('apply("and", condition, inner[0]), inner[1], ZERO)', "condition, inner[1], ZERO)"),
        ('apply("and", apply("not", condition), inner[0])', 'apply("and", condition, inner[0])'),
        ('else (apply("not", condition), no)', "else (condition, no)"),
        ("ZERO if side is ZERO else change(side) for side in (yes, no)", "change(side) for side in (yes, no)"),
        ('apply("add", a, a)) if a is b', 'apply("mul", a, a)) if a is b'),
        ("_add(_times(da, b), _times(db, a))", "_add(_times(da, b), _times(db, b))"),
        ("return _times(da, const(1 / b.value))", "return _times(da, b)"),
        ('_add(above, _neg(_times(db, apply("div", node, b))))', '_add(above, _times(db, apply("div", node, b)))'),
        ('apply("pow", a, apply("sub", b, ONE))', 'apply("pow", a, b)'),
        ('apply("ne", x, ZERO) for x in (b, a)', 'apply("ne", x, ONE) for x in (b, a)'),
        ('_add(da, _neg(_times(db, apply("floor_div", *node.args))))', "da"),
        ('_neg(_times(dx, apply("div", y, square)))', '_times(dx, apply("div", y, square))'),
        ('return _where(apply("ne", square, ZERO), turned, ZERO)', "return turned"),
        (
            '_where(apply("ne", x, ZERO), _where(apply("lt", x, ZERO), _neg(dx), dx), ZERO)',
            '_where(apply("lt", x, ZERO), _neg(dx), dx)',
        ),
        (
            'return apply("mul", apply("sub", ONE, x), apply("add", ONE, x))',
            'return apply("sub", ONE, apply("mul", x, x))',
        ),
        ('return apply("add", x, ONE)', 'return apply("sub", x, ONE)'),
        ('return apply("mul", x, const(factor))', "return x"),
        ('return apply("div", const(factor), x)', 'return apply("div", ONE, x)'),
        ('return apply("mul", x, x)\n\n\nFACTORS', "return x\n\n\nFACTORS"),
        ('"exp": lambda x, y: y', '"exp": lambda x, y: x'),
        ("_scaled(math.log(2), y)", "_scaled(math.log(2), x)"),
        ('"expm1": lambda x, y: apply("exp", x)', '"expm1": lambda x, y: y'),
        ('"log": lambda x, y: _over(1.0, x)', '"log": lambda x, y: _over(1.0, y)'),
        ("_over(1 / math.log(2), x)", "_over(math.log(2), x)"),
        ("_over(1 / math.log(10), x)", "_over(1.0, x)"),
        ('"log1p": lambda x, y: _over(1.0, _plus_one(x))', '"log1p": lambda x, y: _over(1.0, x)'),
        ("_over(0.5, y)", "_over(0.5, x)"),
        ("_scaled(-0.5, y), _square(y)", "_scaled(-0.5, y), y"),
        ("_scaled(2 / math.sqrt(math.pi)", "_scaled(1 / math.sqrt(math.pi)"),
        ('apply("mul", y, apply("sub", ONE, y))', 'apply("mul", y, _plus_one(y))'),
        ('"sin": lambda x, y: apply("cos", x)', '"sin": lambda x, y: y'),
        ('apply("neg", apply("sin", x))', 'apply("sin", x)'),
        ("_plus_one(_square(y)),", "_plus_one(_square(x)),"),
        ('"asin": lambda x, y: apply("rsqrt", ', '"asin": lambda x, y: apply("sqrt", '),
        ('apply("neg", apply("rsqrt", _one_minus_square(x)))', 'apply("rsqrt", _one_minus_square(x))'),
        ("_over(1.0, _plus_one(_square(x)))", "_over(1.0, _square(x))"),
        ('"sinh": lambda x, y: apply("cosh", x)', '"sinh": lambda x, y: y'),
        ('"cosh": lambda x, y: apply("sinh", x)', '"cosh": lambda x, y: apply("neg", apply("sinh", x))'),
        ('apply("sub", ONE, _square(y))', 'apply("sub", ONE, y)'),
        ('apply("rsqrt", _plus_one(_square(x)))', 'apply("sqrt", _plus_one(_square(x)))'),
        ('apply("sub", x, ONE), _plus_one(x))', 'apply("sub", ONE, x), _plus_one(x))'),
        ("_over(1.0, _one_minus_square(x))", "_over(1.0, _plus_one(x))"),
        ('*COMPARISONS, "stop_gradient")', "*COMPARISONS)"),
        ("lambda node, da, db: _add(da, db)", "lambda node, da, db: da"),
        ("lambda node, da, db: _add(da, _neg(db))", "lambda node, da, db: _add(da, db)"),
        ('apply("lt", *node.args), da, db)', 'apply("le", *node.args), da, db)'),
        ('apply("lt", *node.args[::-1]), da, db)', 'apply("lt", *node.args), da, db)'),
        ("lambda node, dx: _neg(dx)", "lambda node, dx: dx"),
        ("lambda node, dx: dx,", "_stands_still,"),
        ("lambda node, dc, da, db: _where(node.args[0], da, db)", "lambda node, dc, da, db: _add(da, db)"),
        ("    return ZERO\n\n\ndef _of", "    return ONE\n\n\ndef _of"),
        ("_times(dx, factor(node.args[0], node))", "factor(node.args[0], node)"),
    ],
    ("tracer/expr/formulas.py", "tests/tracer/expr/test_derivative.py"): [
        ('build.logical("and", build.compare("eq", low, top), is_infinite(top))', 'build.compare("eq", low, top)'),
        ('build.where(build.compare("eq", total, 0.0), 0.0, total)', "total"),
        ('apply("trunc", node) if node.dtype == "float" else node', "node"),
    ],
    ("tracer/expr/access.py", "tests/tracer/expr/test_access.py"): [
        ("return int(self.load.value[0])", "return 0"),
        ("return str(self.load.value[1])", 'return "float32"'),
        ("shape[self.axes[name]] if name in self.axes else 1", "shape[self.axes[name]] if name in self.axes else 9"),
        ("Site(load, derivative(expr, load),", "Site(load, load,"),
        ('varies.isdisjoint(("kv_idx", "score"))', 'varies.isdisjoint(("kv_idx",))'),
        ('varies.isdisjoint(("q_idx", "score"))', 'varies.isdisjoint(("q_idx",))'),
        ("all(share == 0 for share in _shares(load))", "any(share == 0 for share in _shares(load))"),
        ("in ([Q_IDX, KV_IDX], [KV_IDX, Q_IDX])", "in ([Q_IDX, KV_IDX],)"),
        ("union(*(arg.varies for arg in load.args))", "union(*(arg.varies for arg in load.args[:1]))"),
        ('enumerate(load.args) if arg.op == "index"}', 'enumerate(load.args[1:]) if arg.op == "index"}'),
        ("return [shares[arg] for arg in load.args]", "return [shares[arg] for arg in load.args[:1]]"),
        ("    if node in (Q_IDX, KV_IDX):\n        return 1", "    if node is Q_IDX:\n        return 1"),
        ('if node.op == "score" or None in of_args:', "if None in of_args:"),
        ('node.op in ("eq", "ne") and first == last', 'node.op in ("eq", "ne", "lt") and first == last'),
        ('return 0 if node.dtype == "bool" else 1  #', "return 0  #"),
        ('node.op == "where" and of_args[1] == last', 'node.op == "where"'),
        ('first + (last if node.op == "add" else -last)', "first + last"),
        ("return -first", "return first"),
        ("return first * int(node.args[1].value)", "return first"),
        ("return first << int(node.args[1].value)", "return first"),
    ],
    ("kernels/ops/table.py", "tests/kernels/test_ops.py"): [
        ("mx.where(cotangent == 0, 0.0, cotangent * at(slope, primals))", "cotangent * at(slope, primals)"),
        ("shape[i - missing] == 1 < size]", "False]"),
        ("return all(node.op in LEVEL for", "return any(node.op in LEVEL for"),
    ],
    ("kernels/ops/backend.py", "tests/flextrace/test_gradients.py"): [
        ("finite = [mx.where(mx.isfinite(x), x, 0.0) for x in primals]", "finite = list(primals)"),
    ],
    ("tracer/emit/emit.py", "tests/tracer/emit/test_emit.py"): [
        ("Counter([*roots, *(arg", "Counter([*(arg"),
        (" | (inner & outside)", ""),
        ("MAX_NESTING and node not in roots", "MAX_NESTING"),
        ("language, is_outer, frozenset())", "language, is_outer, frozenset((root,)))"),
    ],
    ("tracer/semantics/outside.py", "tests/tracer/captures/test_traced_captures.py"): [
        (" or functions.rule_for(value) is not None", ""),
    ],
    ("tracer/expr/build.py", "tests/tracer/test_trace.py"): [
        ('bound = math.ceil(number) if op == "lt" else math.floor(number)\n', "bound = math.floor(number)\n"),
        (
            "return TRUE if number > 0 else FALSE\n            return apply(op, node",
            "return FALSE\n            return apply(op, node",
        ),
        ('return where(compare("eq", base, -math.inf), math.inf, root)', "return root", "tests/tracer/test_fuzz.py"),
        ('return cast(node, "int") if node.dtype == "bool" else node', "return node"),
    ],
    ("tracer/semantics/merge.py", "tests/tracer/test_trace.py"): [
        ("one_of(t, build.where(condition, a, b)", "one_of(t, build.where(condition, b, a)"),
        ("all(map(is_same_data, a, b))", "set(a) == set(b)", "tests/tracer/semantics/test_exact_python.py"),
        ("times != [1, 1]", "False", "tests/tracer/semantics/test_exact_python.py::test_is_refused"),
        (
            "return a if isinstance(a, Conflict) else b",
            "return b if isinstance(a, Conflict) else a",
            "tests/tracer/semantics/test_exact_python.py::test_is_refused",
        ),
        (
            "and a.rank == b.rank > 0 and a.slot == b.slot",
            "and a.rank == b.rank > 0",
            "tests/tracer/semantics/test_exact_python.py::test_is_refused",
        ),
    ],
    ("tracer/semantics/changes.py", "tests/tracer/semantics/test_exact_python.py"): [
        (
            'if reason is not None:\n        raise Untraceable(f"{what} changes',
            'if False:\n        raise Untraceable(f"{what} changes',
            "tests/tracer/test_errors.py",
        ),
    ],
    ("tracer/frontends/bytecode/flow.py", "tests/tracer/frontends/test_bytecode.py"): [
        ("jumps = jumps_if is wanted", "jumps = jumps_if is not wanted"),
        ("if not (jumps and keeps):", "if not keeps:"),
        ("while not block.steps and block", "while False and block"),
        ("if count and not has_columns:", "if False:"),
        ("            return sure\n    return 0\n", "            return sure\n    return count\n"),
    ],
    ("tracer/frontends/bytecode/decode.py", "tests/tracer/frontends/test_bytecode.py"): [
        ('_row("NOP EXTENDED_ARG", ALL', '_row("EXTENDED_ARG", ALL'),
        ('_row("GEN_START", "10"', '_row("GEN_START", "10-14"'),
    ],
    ("tracer/frontends/branches.py", "tests/tracer/frontends/test_bytecode.py"): [
        ("return type(a) in (int, float, str) and repr(a) == repr(b)", "return False"),
    ],
    ("tracer/frontends/syntax/expressions.py", "tests/tracer/frontends/test_bytecode.py"): [
        ("*first, last = _compiled(node)", "*first, last = node.values"),
        ("if len(unknown) > 1:", "if False:"),
    ],
    ("tracer/frontends/bytecode/run.py", "tests/tracer/frontends/test_bytecode.py"): [
        ("if keeps and to is target else []", "if keeps else []"),
    ],
    ("tracer/expr/formulas.py", "tests/tracer/expr/test_functions_everywhere.py"): [
        ("build.where(is_huge, 2.0**-66, build.where(is_tiny, 2.0**98, 1.0))", "build.where(is_huge, 2.0**-66, 1.0)"),
        ('build.where(infinite, math.inf, build.arithmetic("mul", root, back))', 'build.arithmetic("mul", root, back)'),
    ],
    ("tracer/expr/evaluate.py", "tests/tracer/expr/test_evaluate.py"): [
        ("np.where((count >= 0) & (count < 32), count, 31)", "count & 31"),
        ("np.left_shift(a, np.where(inside, count, 0)), 0)", "np.left_shift(a, count & 31), 1)"),
    ],
    ("kernels/template/ranges.h", "tests/kernels/test_bounds_headers.py::test_cpp_bounds_at_the_edges"): [
        ("{ return a < b ? a : b; }", "{ return a; }"),
        ("{ return a > b ? a : b; }", "{ return b; }"),
        ("r.lo = lo;", "r.lo = hi;"),
        ("t.may = may;", "t.may = must;"),
        ("x.known = known;", "x.known = true;"),
        ("exactly(int x) { return range(x, x); }", "exactly(int x) { return range(0, x); }"),
        ("exactly(bool x) { return truth(x, x); }", "exactly(bool x) { return truth(x, true); }"),
        ("interval(x, x, is_known(x))", "interval(x, x, true)"),
        ("return interval(0.0f, 0.0f, false);", "return interval(0.0f, 0.0f, true);"),
        ("return range(LEAST, MOST);", "return range(LEAST, 0);"),
        ("return lo < LEAST || hi > MOST ?", "return lo < LEAST && hi > MOST ?"),
        ("{ return a.lo == a.hi; }", "{ return a.lo + 1 == a.hi; }"),
        ("return a.lo == LEAST && a.hi == MOST;", "return a.lo == LEAST;"),
        ("return int32(a.lo + b.lo, a.hi + b.hi);", "return range(a.lo + b.lo, a.hi + b.hi);"),
        ("return int32(a.lo - b.hi, a.hi - b.lo);", "return int32(a.lo - b.lo, a.hi - b.hi);"),
        ("return int32(-a.hi, -a.lo);", "return int32(-a.lo, -a.hi);"),
        ("larger(larger(a, b), larger(c, d)));", "larger(larger(a, b), c));"),
        ("return corners(a.lo * b.lo, a.lo * b.hi,", "return corners(a.lo * b.lo, a.lo * b.lo,"),
        ("range(larger(larger(a.lo, -a.hi), 0),", "range(larger(a.lo, -a.hi),"),
        ("return int32(size.lo, size.hi);", "return range(size.lo, size.hi);"),
        ("return int32(size.lo * size.lo, size.hi * size.hi);", "return int32(a.lo * a.lo, a.hi * a.hi);"),
        ("{ return range(smaller(a.lo, b.lo), smaller(a.hi, b.hi)); }", "{ return range(a.lo, smaller(a.hi, b.hi)); }"),
        ("{ return range(larger(a.lo, b.lo), larger(a.hi, b.hi)); }", "{ return range(larger(a.lo, b.lo), a.hi); }"),
        ("int64_t(a % b != 0 && (a ^ b) < 0)", "int64_t((a ^ b) < 0)"),
        ("int64_t size = magnitude(a).hi;", "int64_t size = magnitude(a).lo;"),
        ("if (period != quotient(a.hi, divisor))", "if (a.hi - a.lo >= divisor)"),
        ("range(a.hi < b.lo ? a.lo : 0, smaller(b.hi - 1, a.hi))", "range(a.lo, smaller(b.hi - 1, a.hi))"),
        ("{ return range(a.lo + b.lo, a.hi + b.hi); }", "{ return range(a.lo + b.lo, a.hi); }"),
        ("{ return range(a.lo - b.hi, a.hi - b.lo); }", "{ return range(a.lo - b.hi, a.hi - b.hi); }"),
        ("return range(a.lo * factor.lo, a.hi * factor.lo);", "return range(a.lo * factor.lo, a.hi);"),
        ("  if (is_all(a)) return a;\n", ""),
        ("for (int shift = 1; shift <= 16; shift *= 2)", "for (int shift = 1; shift <= 4; shift *= 2)"),
        ("larger(b.hi, -1 - b.lo)));", "b.hi));"),
        ("return range(-1 - a.hi, -1 - a.lo);", "return range(-a.hi, -a.lo);"),
        (
            "return range(0, mask < 0 ? a.hi : a.lo < 0 ? mask : smaller(a.hi, mask));",
            "return range(0, smaller(a.hi, mask));",
        ),
        ("range(0, a.lo >= 0 ? a.hi : b.hi)", "range(0, a.lo >= 0 ? b.hi : a.hi)"),
        ("return range(positive ? larger(a.lo, b.lo) :", "return range(positive ? a.hi :"),
        ("return range(a.lo >= 0 && b.lo >= 0 ? 0 :", "return range(a.lo >= 0 || b.lo >= 0 ? 0 :"),
        ("range(b.hi < 0 ? most : 0, most)", "range(most, most)"),
        ("if (n.lo == 32) return range(0, 0);", "if (n.hi == 32) return range(0, 0);"),
        ("Range n = amounts(b, 31);", "Range n = amounts(b, 30);"),
        ("return truth(!a.may, !a.must);", "return truth(!a.must, !a.may);"),
        ("return truth(a.must && b.must, a.may && b.may);", "return truth(a.must || b.must, a.may && b.may);"),
        ("return truth(a.must || b.must, a.may || b.may);", "return truth(a.must || b.must, a.may && b.may);"),
        ("bool same = (a.must && b.must) ||", "bool same = (a.may && b.may) ||"),
        ("return truth(a.hi < b.lo, a.lo < b.hi);", "return truth(a.lo < b.lo, a.lo < b.hi);"),
        ("return truth(a.hi <= b.lo, a.lo <= b.hi);", "return truth(a.hi <= b.lo, a.lo < b.hi);"),
        ("a.hi == b.lo && is_constant(a), a.lo", "a.lo <= b.lo, a.lo"),
        (
            "inline Truth ne(Range a, Range b) { return not_(eq(a, b)); }",
            "inline Truth ne(Range a, Range b) { return eq(a, b); }",
        ),
        ("if (is_all(a) || is_all(b)) return operands;", "if (is_all(a) && is_all(b)) return operands;"),
        ("by_difference(a, b, lt(a, b), lt(d, range(0, 0)))", "by_difference(a, b, lt(a, b), le(d, range(0, 0)))"),
        ("by_difference(a, b, le(a, b), le(d, range(0, 0)))", "by_difference(a, b, le(a, b), lt(d, range(0, 0)))"),
        ("by_difference(a, b, eq(a, b), eq(d, range(0, 0)))", "by_difference(a, b, eq(a, b), le(d, range(0, 0)))"),
        ("{ return not_(eq_by_difference(a, b, d)); }", "{ return lt_by_difference(a, b, d); }"),
        ("truth(known && a.hi < b.lo, !known || a.lo < b.hi)", "truth(known && a.hi < b.lo, known && a.lo < b.hi)"),
        ("truth(known && a.hi <= b.lo, !known || a.lo <= b.hi)", "truth(a.hi <= b.lo, !known || a.lo <= b.hi)"),
        ("known && a.lo == b.hi && a.hi == b.lo && a.lo == a.hi", "known && a.lo == b.hi && a.lo == a.hi"),
        (
            "inline Truth ne(Interval a, Interval b) { return not_(eq(a, b)); }",
            "inline Truth ne(Interval a, Interval b) { return not_(le(a, b)); }",
        ),
        (
            "return range(smaller(yes.lo, no.lo), larger(yes.hi, no.hi));",
            "return range(yes.lo, larger(yes.hi, no.hi));",
        ),
        ("return truth(yes.must && no.must, yes.may || no.may);", "return truth(yes.must && no.must, yes.may);"),
        ("yes.hi > no.hi ? yes.hi : no.hi, yes.known && no.known", "yes.hi, yes.known && no.known"),
        ("{ return range(a.must, a.may); }", "{ return range(a.must, a.must); }"),
        ("inline Range to_int(Range a) { return a; }", "inline Range to_int(Range a) { return exactly(int(a.lo)); }"),
        (
            "return a.known ? range(fx::to_int(a.lo), fx::to_int(a.hi)) : all_ints();",
            "return range(fx::to_int(a.lo), fx::to_int(a.hi));",
        ),
        ("return interval(a.must, a.may, true);", "return interval(a.must, a.must, true);"),
        ("interval(float(int(a.lo)), float(int(a.hi)), true)", "interval(float(int(a.lo)), float(int(a.lo)), true)"),
        (
            "inline Interval to_float(Interval a) { return a; }",
            "inline Interval to_float(Interval a) { return interval(a.lo, a.lo, a.known); }",
        ),
        ("return interval(-a.hi, -a.lo, a.known);", "return interval(-a.lo, -a.hi, a.known);"),
        ("interval(a.lo < b.lo ? a.lo : b.lo,", "interval(a.lo,"),
        ("interval(a.lo > b.lo ? a.lo : b.lo, a.hi > b.hi ? a.hi : b.hi,", "interval(a.lo > b.lo ? a.lo : b.lo, a.hi,"),
        ("a.hi < 0.0f ? -a.hi : 0.0f", "-a.hi"),
        ("interval(floor_of(a.lo), floor_of(a.hi), a.known)", "interval(ceil_of(a.lo), floor_of(a.hi), a.known)"),
        ("interval(ceil_of(a.lo), ceil_of(a.hi), a.known)", "interval(ceil_of(a.lo), floor_of(a.hi), a.known)"),
        ("interval(trunc_of(a.lo), trunc_of(a.hi), a.known)", "interval(ceil_of(a.lo), trunc_of(a.hi), a.known)"),
        ("interval(round_of(a.lo), round_of(a.hi), a.known)", "interval(round_of(a.lo), floor_of(a.hi), a.known)"),
        (
            "return mask.must ? 2 : int(mask.may);",
            "return mask.may ? 2 : int(mask.may);",
            "tests/kernels/test_tile_state.py",
        ),
    ],
    ("tracer/bounds/array_sizes.py", "tests/tracer/bounds/test_array_sizes.py"): [
        ("shapes[slot][axis] < sizes[index]", "shapes[slot][axis] + 1 < sizes[index]"),
        ("yield no, self._surely(condition, False)", "yield no, TRUE"),
        ('yield second, self._surely(first, node.op == "and")', 'yield second, self._surely(first, node.op == "or")'),
        ("(index >= size) | (index < -size)", "(index >= size)"),
        ("if high >= -size and low < size:", "if high >= -size or low < size:"),
    ],
    ("tracer/locks.py", "tests/tracer/test_locks.py"): [("    _owners.add(owner)\n", "    pass\n")],
    ("tracer/porting/once.py", "tests/tracer/porting/test_once.py"): [
        ("isinstance(owner, GENERATORS) or _is_within(module)", "_is_within(module)"),
        ("module == known or ", ""),
    ],
    ("tracer/semantics/calls.py", "tests/tracer/porting/test_once.py"): [
        ("    except once.Once:\n        raise\n", ""),
    ],
    ("flextrace/mods/draws.py", "tests/flextrace/mods/test_draws.py"): [
        ("state >> 13 & 0x7FFFF", "state >> 13"),
        ("factor = mx.where(lse == -mx.inf, 0.0, mx.exp(lse - full_lse))", "factor = mx.exp(lse - full_lse)"),
    ],
    ("flextrace/mods/offsets.py", "tests/flextrace/mods/test_mods.py"): [
        ("mask(b, h, q_idx + first(b), kv_idx)", "mask(b, h, q_idx, kv_idx + first(b))"),
        ("score_mod(score, b, h, q_idx + first(b), kv_idx)", "score_mod(score, b, h, q_idx - first(b), kv_idx)"),
        ("offset: Any = Start(number)", "offset: Any = number"),
        ("offset = given if isinstance(given, mx.array) else checked", "offset = checked"),
        ("(lambda b: offset[b])", "(lambda b: offset[0])"),
        ('mask.top_left = f"{name_of(mask)}(', 'name = f"{name_of(mask)}(', "tests/flextrace/test_notices.py"),
    ],
    ("flextrace/attention.py", "tests/flextrace/test_notices.py"): [
        ("mod.top_left is not None and q_len < kv_len", "mod.top_left is not None"),
        ("mod.top_left is not None and q_len < kv_len", "False"),
    ],
    ("flextrace/block_mask/create.py", "tests/flextrace/test_notices.py"): [
        ("if offset is UNSAID and mod.top_left is not None", "if mod.top_left is not None"),
        ("if offset is UNSAID and mod.top_left is not None", "if False"),
    ],
    ("flextrace/decorators.py", "tests/flextrace/test_notices.py"): [
        ('& {_name(second)})", self.top_left or second.top_left)', '& {_name(second)})", self.top_left)'),
    ],
    ("flextrace/mods/packed.py", "tests/flextrace/mods/test_mods.py::test_mask_equals_its_definition"): [
        ("q_idx < tokens and kv_idx < tokens and ids[q_idx]", "kv_idx < tokens and ids[q_idx]"),
        ("return q_idx < tokens and start[q_idx]", "return start[q_idx]"),
    ],
    ("tracer/source/find.py", "tests/tracer/source/test_source.py"): [
        ("and _constants(a) == _constants(b)", ""),
        ("and _names(a) == _names(b)", ""),
        ("if not moved and _first_line(node) != code.co_firstlineno:", "if False:"),
        ("return min([node.lineno, *(decorator.lineno for decorator in decorators)])", "return node.lineno"),
    ],
    ("tracer/captures/recorder.py", "tests/kernels/test_captures.py"): [("if not has_int32_axes(value):", "if False:")],
    ("tracer/captures/guards.py", "tests/tracer/captures/test_traced_captures.py"): [
        (
            "lambda now: name not in now.__globals__ and getattr(builtins, name, None) is value",
            "lambda now: True",
            "tests/tracer/semantics/test_exact_python.py",
        ),
        ("if objects[a] is not objects[b]:", "if False:"),
        ("if convert is int and not -2147483648 <= value <= 2147483647:", "if False:"),
        (
            "value.ndim == ndim and value.size > 0 and",
            "value.ndim == ndim and",
            "tests/tracer/semantics/test_exact_python.py::test_an_array_that_has_become_empty_is_noticed",
        ),
        (
            "return lambda value: repr(float(value)) == text",
            "return lambda value: value == expected",
            "tests/tracer/semantics/test_exact_python.py::test_a_number_that_decides_is_told_from_its_equal",
        ),
        ("same = bool(value.dtype == dtype)", "same = True"),
    ],
    # ---- the cpu backend ---------------------------------------------------------------------------------------
    ("kernels/cpu/attention/jobs.h", "tests/kernels/cpu/test_cpu_plan.py"): [
        ("smaller(units_per_round, units - first);", "units_per_round;"),
        ("p.means_batch <= 1 && p.key_groups_batch <= 1", "p.key_groups_batch <= 1"),
        ("p.means_batch <= 1 && p.key_groups_batch <= 1", "p.means_batch <= 1"),
        (
            "p.q_len == 1 ? ROWS / 2 : round_up(p.q_len, ROWS)",
            "round_up(p.q_len, ROWS)",
            "tests/kernels/cpu/test_cpu_threads.py",
        ),
    ],
    ("kernels/cpu/attention/attention.h", "tests/kernels/cpu/test_cpu_plan.py"): [
        ("unit % units_per_round * kv_tiles", "unit * kv_tiles"),
    ],
    ("kernels/cpu/attention/forward.cpp", "tests/kernels/cpu/test_cpu_plan.py"): [
        ("if (jobs.wait_until_done(round.first_job)) a.run_pack_job", "a.run_pack_job"),
        ("if (done > 0 && !jobs.wait_until_done(done)) return;", ""),
    ],
    ("kernels/cpu/tile/threads.h", "tests/kernels/cpu/test_cpu_threads.py"): [
        ("if (python.interrupted()) __atomic", "if (false) __atomic"),
        ("    wait_until_done(work.total);\n", ""),
        ("if (!is_stopped()) work.run", "work.run"),
        ("while (done < count) pthread_cond_wait", "if (done < count) pthread_cond_wait"),
    ],
    ("kernels/buffers.py", "tests/kernels/test_captures.py"): [
        ("if isinstance(array, np.ndarray) and not array.flags.aligned:", "if False:"),
    ],
    ("kernels/cpu/launch.py", "tests/kernels/cpu/test_cpu_plan.py"): [
        ("(quant.q_block, quant.k_block) if quant", "(quant.q_block, quant.q_block) if quant"),
        ("(quant.q_block, quant.k_block) if quant", "(quant.k_block, quant.k_block) if quant"),
    ],
    ("kernels/cpu/attention/backward.cpp", "tests/flextrace/test_gradients.py"): [
        ("cut_rows(LEAST_QUERY_TILES);", "cut_rows(4 * threads);"),
        ("units = b.key_batch * p.kv_heads;", "(void)0;"),
        ("*is_special(to) = !pack_values", "*is_special(to) = 0 * pack_values"),
        ("t.special_rows = !pack_values(t.d_out_rows, d_out) || !finite_queries;", "t.special_rows = false;"),
        ("lse == -INFINITE ? INFINITE : lse", "lse"),
        ("sum_lanes(sum) - (a.b.d_lse", "sum_lanes(sum) + (a.b.d_lse"),
        ("vint counts = weight != 0.0f;", "vint counts = ~vint{};"),
        ("if (shares) d_modified +=", "if (false) d_modified +="),
        ("top == before[0] ? t.share[r] : 0", "0"),
        ("d_max[r] / t.share[r]", "d_max[r]"),
        ("clear_beside(t, g, state, reach);  //", "//"),
        ("      clear_beside(t, g, state, reach);\n      continue;", "      continue;"),
        ("for (; key < end; key += REST)", "for (; key < end - REST; key += REST)"),
        ("__atomic_load_n(before, __ATOMIC_ACQUIRE) > tile", "true"),
        ("__atomic_load_n(&a.captured, __ATOMIC_ACQUIRE) == number", "true"),
        ("p.head_dim, p.scale);\n    write(", "p.head_dim, 1);\n    write("),
        ("a.q_tiles - 1 - turn / a.queries_per_unit", "a.q_tiles - 1 - turn % a.q_tiles"),
    ],
    ("kernels/cpu/attention/decode.cpp", "tests/kernels/cpu/test_cpu_decode.py"): [
        ("reach.masked || !reach.alike", "reach.masked"),
        ("all.masked |= live.masked || !same;", "all.masked |= live.masked;"),
        ("all.masked || all.heads < a.ratio", "all.masked"),
        ("(r == 0 || a.per_head())", "r == 0"),
        ("t.tile_count * split / a.splits", "0"),
        ("if (part.max[i] == -INFINITE) continue;", ""),
        ("int q_idx = i % a.p.q_len;", "int q_idx = 0;"),
        ("max == -INFINITE ? 0 : max", "max"),
    ],
    ("kernels/cpu/attention/rows.h", "tests/kernels/cpu/test_cpu_decode.py"): [
        ("if (sum_lanes(zeros) != 0) return false;", ""),
        ("select(weight == 0.0f, weight, widen", "select(weight == 1.0f, weight, widen"),
        ("if (whole < columns) add_last_columns", "if (false) add_last_columns"),
        ("smaller(key + i, count - 1));\n  vfloat", "key + i);\n  vfloat"),
    ],
    ("kernels/cpu/attention/captures.h", "tests/flextrace/test_gradients.py"): [
        ("s.sums + ORIGIN + first_key - group * ROWS", "s.sums + ORIGIN + first_key"),
        ("sums + ORIGIN - row, 0, row == 0 ? kv_len : 1", "sums + ORIGIN - row, 0, kv_len"),
        ("if (row == 0) add_keys", "add_keys"),
        ("store_vector(skewed + end + i, vfloat{});", ""),
        ("SITE[site].pattern == DENSE && row < rows", "SITE[site].pattern == DENSE && row < 0"),
        ("if (SITE[i].pattern != DENSE) __builtin_memset", "if (SITE[i].pattern == TABLE) __builtin_memset"),
        ("neighbours &= where.lane[i] == where.lane[0] + i;", ""),
    ],
    ("kernels/cpu/mod/gradient.h", "tests/flextrace/test_gradients.py"): [
        ("stride *= array.shape[axis];", ""),
    ],
    ("kernels/differentiation.py", "tests/flextrace/test_differentiation.py"): [
        ("by_slot[slot] if slot in by_slot else mx.zeros_like(array)", "mx.zeros_like(array)"),
        ("refuse_gradient([*primals, *cotangents], gradients, True,", "refuse_gradient(primals[:0], gradients, True,"),
    ],
    ("kernels/cpu/attention/walk.h", "tests/kernels/test_tile_state.py"): [
        (
            "if constexpr (RAGGED) kv_idx",
            "if constexpr (false) kv_idx",
            "tests/kernels/test_tile_state.py::test_no_key_behind_the_last_one_is_asked_about",
        ),
        (
            "state.masked |= any_lane(~all);",
            "",
            "tests/kernels/test_tile_state.py::test_mask_mod_block_mask_and_reference_agree",
        ),
        (
            "int(smaller(end * KV_TILE, a.p.kv_len) - 1)",
            "int(end * KV_TILE - 1)",
            "tests/kernels/test_tile_state.py::test_bounds_end_where_the_keys_do",
        ),
        (
            "a.keys_in(tile) % VL != 0};",
            "false};",
            "tests/kernels/test_tile_state.py::test_mask_mod_block_mask_and_reference_agree",
        ),
        (
            "if (state == 2) return visit_all(first, end, run);",
            "if (state >= 1) return visit_all(first, end, run);",
            "tests/kernels/test_tile_state.py::test_mask_mod_block_mask_and_reference_agree",
        ),
        ("(HAS_MASK_MOD && MASK_USES_BATCH) || mask.batch > 1", "mask.batch > 1"),
        ("(HAS_MASK_MOD && MASK_USES_HEAD) || mask.heads > 1", "mask.heads > 1"),
        (" || mask.heads > 1;", ";", "tests/kernels/cpu/test_cpu_plan.py"),
        (" || mask.batch > 1;", ";", "tests/kernels/cpu/test_cpu_plan.py"),
        ("state.masked |= state.end != 0 && state.end != i;", "", "tests/kernels/cpu/test_cpu_plan.py"),
        ("if (state.end == 0) state.begin = i;", "", "tests/kernels/cpu/test_cpu_plan.py"),
    ],
    ("kernels/cpu/mod/ops.h", "tests/test_zoo.py"): [
        ("return quotient - (a % b != 0 && (a ^ b) < 0);", "return quotient;"),
        ("return (b < 0) != (remainder < 0) ? remainder + b : remainder;", "return remainder;"),
    ],
    ("kernels/cpu/mod/arrays.h", "tests/kernels/test_captures.py"): [
        ("int64_t i = index < 0 ? index + size : index;", "int64_t i = index;"),
        ("i = select(i < n, i, splat(n - 1));", ""),
        (
            "last[VL - 1] == first[LAST] + VL - 1",
            "true",
            "tests/kernels/test_tile_state.py::test_no_key_behind_the_last_one_is_asked_about",
        ),
        ("first[LAST] + (int64_t)VL <= array.shape[LAST]", "true"),
        ("first[LAST] >= 0 && ", ""),
        ("sizeof(T) >= 4 && ", "sizeof(T) > 4 && "),
        (" || !same_sign", ""),
        ("array.strides[LAST] == 1 && ", ""),
    ],
    ("kernels/cpu/int8/smooth.h", "tests/kernels/cpu/test_int8.py"): [
        ("if (!row_is_finite(rows, row)) continue;", ""),
        ("rows.group(run.end) == rows.group(row)", "true"),
        ("int64_t first = row / block * block,", "int64_t first = row,"),
    ],
    ("kernels/cpu/int8/int8.h", "tests/kernels/cpu/test_int8.py"): [
        ("return largest < SMALLEST ? 0 : largest / LEVELS;", "return largest / LEVELS;"),
        ("return -128 * sum;", "return 0;"),
        ("special |= !finite;", ""),
        ("largest = larger(select(is_finite(x), x, vfloat{}), largest);", "largest = larger(x, largest);"),
    ],
    ("kernels/cpu/attention/scores.h", "tests/kernels/cpu/test_int8.py"): [
        ("if (p.q_scale_rows == 1) unit =", "if (false) unit ="),
        ("bool has_mean = means.data && group >= 0;", "bool has_mean = means.data;"),
        ("s.row_scale[i] = unit * p.scale;", "s.row_scale[i] = unit;"),
    ],
    ("flextrace/int8/smoothing.py", "tests/flextrace/int8/test_smoothing.py"): [
        ("agree &= change[first[chosen]] == change[end[chosen] - 1]", "agree &= True"),
        ("agree = row[first_row[chosen]] == key[first_key[chosen]]", "agree = np.ones(chosen.sum(), bool)"),
        ("return None if keys.shape[0] > kv_batch else (rows, keys)", "return rows, keys"),
        ("* (1 / rows.shape[2])", "/ rows.shape[2] * 1.001"),
        ("falls or (start < 0).any() or", "falls or"),
        ("row_groups = np.where(documents[at] == rows, at, 0)", "row_groups = at + (documents[at] != rows)"),
    ],
    # ---- Metal text, in the simulator --------------------------------------------------------------------------
    ("kernels/metal/tile/staging.h", "tests/kernels/metal/test_metal_attention.py::test_shapes"): [
        ("if (is_in_tile(place, i)) *reinterpret", "*reinterpret"),
        (
            "place.row = int(index / PIECES) + i * THREADS / PIECES + int(place.wrapped);",
            "place.row = int(index / PIECES) + i * THREADS / PIECES;",
        ),
        ("whole ? PIECE : columns.end - columns.first - place.column", "PIECE"),
        ("from.column_stride == 1 && whole && there", "whole && there", "tests/kernels/metal/test_metal_attention.py"),
        ("const bool there = rows.first + place.row < rows.end &&", "const bool there ="),
    ],
    ("kernels/metal/attention/softmax.h", "tests/kernels/metal/test_metal_attention.py"): [
        ("sum = row.sum * shrink;", "sum = row.sum;"),
        ("largest = max_of_row(largest);", ""),
        ("row.max = largest;", ""),
    ],
    ("kernels/metal/attention/walk.h", "tests/kernels/metal/test_metal_tile_state.py"): [
        ("base = ahead - 32 * (32 - stretch);", "base = ahead - 32 * (31 - stretch);"),
        ("ahead += 32 * 32;", "ahead += 32 * 31;"),
        ("sure = (whole_stretches >> stretch) & 1;", "sure = true;"),
        ("live |= decided;", ""),
        ("turn ^= 1;", ""),
        ("tile.masked = !all || tile.first + P::BK > p.kv_len;", "tile.masked = !all;"),
        (
            "if (ends[middle] > candidate) high",
            "if (ends[middle] >= candidate) high",
            "tests/kernels/metal/test_metal_attention.py",
        ),
        ("block == 2 || (block == 1 &&", "block != 0 && (", "tests/kernels/metal/test_metal_attention.py"),
    ],
    ("kernels/metal/tile/matrix.h", "tests/kernels/metal/test_metal_tile_state.py"): [
        ("range.end = metal::min(first + count, length);", "range.end = first + count;"),
    ],
    ("kernels/metal/attention/products.h", "tests/kernels/metal/test_metal_attention.py::test_shapes"): [
        ("column + 1 < P::HEAD_DIM ?", "column < P::HEAD_DIM ?"),
        ("int column = tile * (P::BV / FRAGMENT) + d;", "int column = d;"),
    ],
    ("kernels/metal/tile/fragments.h", "tests/kernels/metal/test_metal_attention.py::test_shapes"): [
        ("return x + metal::simd_shuffle_xor(x, ushort(8));", "return x;"),
        ("return metal::max(x, metal::simd_shuffle_xor(x, ushort(8)));", "return x;"),
    ],
    # ---- what a row does not attend to ---------------------------------------------------------------------------
    ("kernels/cpu/attention/forward.cpp", "tests/test_left_out.py"): [
        ("const bool special = values[floats_of_values(p)] != 0;", "const bool special = false;"),
    ],
    ("kernels/cpu/tile/panels.h", "tests/test_left_out.py"): [
        ("zeros[i % 2] += block[i] * 0.0f;", ""),
        ("select(x == 0.0f, x, columns[j])", "columns[j]"),
    ],
    ("kernels/cpu/int8/rows.h", "tests/test_left_out.py"): [("zeros += scale(row) * 0;", "")],
    ("kernels/cpu/stages/product.h", "tests/test_left_out.py"): [
        ("if (!is_finite(y.rows, y.columns)) product", "if (false) product")
    ],
    ("kernels/metal/attention/forward.metal", "tests/test_left_out.py"): [
        ("!INT8_VALUES && (HAS_SCORE_MOD || Walk<P, BLOCKS, Captured>::UNSURE)", "false"),
        ("gaps = metal::simd_or(gaps);", ""),
    ],
    ("kernels/metal/attention/softmax.h", "tests/test_left_out.py"): [("gaps |= 1u << j;", "gaps |= 1u;")],
    ("kernels/metal/attention/products.h", "tests/test_left_out.py"): [
        ("if (special) add_marked(sum, weight, marks);", ""),
        ("if (n == j) elements(weight)", "if (n > j) elements(weight)"),
    ],
    ("kernels/metal/tile/fragments.h", "tests/test_left_out.py"): [
        ("PLUS : (bits & ~INFINITY_BITS)", "PLUS : (bits & INFINITY_BITS)")
    ],
    ("kernels/metal/stages/block_sparse_matmul.metal", "tests/test_left_out.py"): [
        ("false, !SAMPLED> P;", "false, false> P;")
    ],
    ("kernels/stages/pipeline.py", "tests/test_left_out.py"): [
        ("if blocks is None and call.mods.score is None:", "if blocks is None:")
    ],
    ("kernels/ops/backend.py", "tests/kernels/test_ops.py"): [
        ("if not keys_may_be_left_out or _is_finite(v):", "if True:"),
        ("sums > minus * MINUS", "sums > 0"),
    ],
    ("kernels/metal/attention/smooth.h", "tests/kernels/metal/test_metal_quantised.py"): [
        ("float unit = metal::simd_shuffle(key_scale, ushort(i));", "float unit = key_scale;"),
        ("if (SMOOTHED_Q) score +=", "if (false) score +="),
    ],
    ("kernels/metal/attention/forward.metal", "tests/kernels/metal/test_launches.py::test_the_bits_are_the_same"): [
        ("head * out_rows + (row - first_out)", "head * out_rows + row"),
    ],
    ("kernels/metal/attention/lane_rows.h", "tests/kernels/metal/test_launches.py::test_the_bits_are_the_same"): [
        ("p.first_tile + q_tiles - 1 - int(at.group.x)", "q_tiles - 1 - int(at.group.x)"),
    ],
    ("kernels/metal/attention/walk.h", "tests/kernels/metal/test_launches.py::test_the_bits_are_the_same"): [
        ("all_tiles = (p.q_len + P::BQ - 1) / P::BQ;", "all_tiles = rows.q_tiles;"),
    ],
    ("kernels/metal/mod/ops.h", TWENTY_ARRAYS): [
        ("for (int axis = 1; axis < NDIM; axis++)", "for (int axis = 0; axis < NDIM; axis++)"),
        ("next.shape = shape + 1;", "next.shape = shape;"),
    ],
    (
        "kernels/metal/mod/captures.py",
        TWENTY_ARRAYS,
    ): [
        ("shape_at += array.ndim", "shape_at += 1"),
    ],
    (
        "kernels/metal/arguments.py",
        TWENTY_ARRAYS,
    ): [
        ("[mx.contiguous(x) for x in given] if packed else given", "given"),
    ],
    ("kernels/metal/device.py", "tests/kernels/metal/test_product_plan.py"): [("512: 104", "512: 128")],
    ("kernels/metal/launch.py", "tests/kernels/metal/test_launches.py::test_launches_are_even_and_hold_to_the_limit"): [
        ("max(1, MOST_MULTIPLIES // multiplies)", "MOST_MULTIPLIES // multiplies + 1"),
    ],
    ("kernels/simulator/runtime/async.h", "tests/kernels/simulator/test_async_copy.py"): [
        ("return pending || !ordered || !was_read;", "return pending || !was_read;"),
        ("return pending || !ordered || !was_read;", "return pending || !ordered;"),
    ],
    ("kernels/simulator/stdlib/metal_types.h", "tests/kernels/simulator/test_findings.py"): [
        (
            "constexpr bfloat(const bfloat& other) : bits(other.bits) {}",
            "constexpr bfloat(const bfloat& other) = default;",
        ),
    ],
    # ---- the disk ----------------------------------------------------------------------------------------------
    ("cache/building.py", "tests/cache/test_processes.py::test_a_lock_whose_file_goes_away_is_still_had_by_one"): [
        ("if os.path.samestat(os.fstat(handle), os.lstat(path)):", "if True:"),
    ],
    ("cache/loading.py", "tests/cache/test_trust.py"): [("check_way(Path(path))", "pass")],
    ("cache/store.py", "tests/cache/test_trust.py"): [
        ('load_copy(entry.contents[library], library, load, self.folder / "building")', "load(entry.folder / library)"),
        ("check_way(self.folder)\n            for parent", "for parent"),
    ],
    ("cache/trust.py", "tests/cache/test_trust.py tests/cache/test_entries.py"): [
        ("elif status.st_mode & OTHERS_WRITE:", "elif False:"),
        ("if mode & stat.S_ISVTX or not mode & OTHERS_WRITE:", "if mode & stat.S_ISVTX or True:"),
        ("_check_owner(path, status, folder)\n            target", "target"),
    ],
    ("cache/entry.py", "tests/cache/test_entries.py"): [
        ('digest.update(len(content).to_bytes(8, "little"))', ""),
        ('if hashlib.sha256(content).hexdigest() != expected["sha256"]:', "if False:"),
        ("if checksum != _manifest_sha256(manifest) or key != folder.name:", "if key != folder.name:"),
        ("if found != FORMAT:", "if False:"),
        ("os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK", "os.O_RDONLY | os.O_NONBLOCK"),
        ("if now - entry.used > TOUCH_SECONDS:", "if True:"),
    ],
    # ---- the face ----------------------------------------------------------------------------------------------
    ("flextrace/options.py", "tests/flextrace/test_quant_options.py"): [
        (
            'and asked.granularity == "row" and not asked.smooth_q',
            'and asked.granularity == "row"',
            "tests/flextrace/int8/test_kv_cache.py",
        ),
        ("return quant, quant.smooth_k", "return quant, True"),
    ],
    ("flextrace/merge.py", "tests/flextrace/test_sinks.py"): [
        ("share, _, lse = _shares(result.lse, sinks", "_, share, lse = _shares(result.lse, sinks"),
        ("seen = total > 0", "seen = total >= 0"),
        ("mx.where(highest == -mx.inf, 0.0, highest)", "highest"),
        ('{"out": out, "lse": lse}.get(name, array)', "array"),
    ],
    ("flextrace/checks.py", "tests/flextrace/test_sinks.py"): [
        ("if sinks.shape != (heads,):", "if sinks.size != heads:"),
        ("sinks.dtype not in (mx.float32, query.dtype)", "sinks.dtype not in DTYPES"),
    ],
    ("flextrace/run.py", "tests/flextrace/test_quant_options.py"): [
        (
            "    if call.staged:\n        raise ValueError(f'{asked} and",
            "    if False:\n        raise ValueError(f'{asked} and",
        ),
    ],
    ("flextrace/nn/positions.py", "tests/flextrace/nn/test_nn_positions.py"): [
        ("power * exact**j >= max_distance**j", "power * exact**j > max_distance**j"),
        ("for j in range(1, shared)", "for j in range(1, shared + 1)"),
        ("return [*before, 0, *after]", "return [*after[::-1], 0, *before[::-1]]"),
        ("max(kv_idx - q_idx + self.max_distance, 0)", "max(q_idx - kv_idx + self.max_distance, 0)"),
        ("if max_distance <= exact:", "if max_distance < exact:"),
        ("self._buckets: mx.array", "self.buckets: mx.array"),
    ],
    ("flextrace/nn/attention.py", "tests/flextrace/nn/test_nn_attention.py"): [
        ("sinks=self.sinks,", "sinks=None,"),
        ("out.swapaxes(1, 2).reshape(queries.shape)", "out.reshape(queries.shape)"),
        ("values = keys if values is None", "values = queries if values is None"),
    ],
    ("flextrace/block_mask/refine.py", "tests/flextrace/block_mask/test_refine.py"): [
        ('distinct = (shape[0] if "b" in used else 1, shape[1] if "h" in used else 1)', "distinct = shape[:2]"),
        ("repr(bound.numbers), contents", "contents"),
        ("contents, shape, block)", "contents, block)"),
        (
            "self._keep(head[partial], row[partial], column[partial], 1, PARTIAL)",
            "self._keep(head[partial], row[partial], column[partial], 1, FULL)",
        ),
        ("heights = np.minimum(side, self.rows - row)", "heights = np.full(len(row), side)"),
        ("end = np.minimum(column + side, self.columns)", "end = column + side"),
        ("rest = live & ~full", "rest = live"),
        ("np.minimum(q_first + side * q_block, q_len) - 1", "q_first + side * q_block - 1"),
    ],
    ("flextrace/block_mask/views.py", "tests/flextrace/block_mask/test_block_mask_methods.py"): [
        ("start = Start(before + q_from)", "start = Start(q_from)"),
        (
            "return picked_heads(b, h, pick_row(q_idx // q_block) * q_block + q_idx % q_block, kv_idx)",
            "return picked_heads(b, h, pick_row(q_idx // q_block) * q_block, kv_idx)",
        ),
        ("b_step, h_step = (int(size > 1) for size in blocks.shape[:2])", "b_step, h_step = 1, 0"),
    ],
    ("flextrace/block_mask/lists.py", "tests/flextrace/block_mask/test_block_mask_methods.py"): [
        ("used.max() >= columns", "used.max() > columns", "tests/flextrace/block_mask/test_block_mask.py"),
        ("(first >= end).any()", "(first > end).any()"),
        ("(end > columns).any()", "(end >= columns).any()"),
    ],
    ("flextrace/block_mask/block_mask.py", "tests/flextrace/block_mask/test_block_mask_methods.py"): [
        ("(*self.shape[:2], new_q_len, new_kv_len), self.offset)", "(*self.shape[:2], new_q_len, new_kv_len), 0)"),
        (
            "mask = shift_mask(self.as_mask_mod(), offset - self.offset)",
            "mask = shift_mask(self.as_mask_mod(), offset)",
        ),
        ("0 <= offset - self.offset <= self.seq_lengths[0] - q_len", "0 <= offset <= self.seq_lengths[0] - q_len"),
        ("return shift_mask(self.as_mask_mod(), -(self.offset or 0))", "return self.as_mask_mod()"),
        ("if other.offset != self.offset:", "if False:"),
        ("renumbered=self._renumbered | anew)", "renumbered=frozenset())"),
        ("            offset = None\n        elif", "            offset = 0\n        elif"),
        (
            '"_made": None if self.implied else self._made',
            '"_made": self._made',
            "tests/flextrace/block_mask/test_block_mask_values.py",
        ),
        ("if self.implied and made == 1 < wanted", "if False and made == 1 < wanted"),
        ("if self.implied and made == 1 < wanted", "if made == 1 < wanted"),
        ("made_of is not blocks or", "", "tests/flextrace/block_mask/test_block_mask_values.py"),
        ("return field[...]", "return field"),
    ],
    ("flextrace/block_mask/kept_values.py", "tests/flextrace/block_mask/test_block_mask_values.py"): [
        ("trace.expr is not self.bound.trace.expr", "False"),
        ("(numbers and repr(numbers) != self.numbers)", "numbers != self.bound.numbers"),
        ("same = now.shape == kept.shape and now.tobytes() == kept.content", "same = now.tobytes() == kept.content"),
        ("held = array[...]  # another handle of the same memory", "held = array"),
        ('copy = np.array(array, order="C")', "copy = np.ascontiguousarray(array)"),
        ("return KeptValues.of(bound) if moved else self", "return self"),
    ],
    ("kernels/blocks.py", "tests/flextrace/block_mask/test_block_mask_methods.py"): [
        ("array.setflags(write=False)", "pass"),
    ],
    ("kernels/metal/backward/differentiate.h", "tests/kernels/metal/backward/test_metal_gradients.py"): [
        ("weight * (elements(slopes[r][j])[e] - row.delta)", "weight * elements(slopes[r][j])[e]"),
        ("if (MAX && found.score == row.max)", "if (false)"),
        ("gaps = gaps || !attends;", ""),
        ("attends && is_special(row.delta) ? not_a_number() : weight", "weight"),
        ("weight == 0.0f ? 0.0f : slope * found.slope", "slope * found.slope"),
        ("KEY_ROWS ? across : rows.q_idx[r]", "rows.q_idx[r]"),
    ],
    ("kernels/metal/backward/transposed.h", "tests/kernels/metal/backward/test_metal_gradients.py"): [
        ("mods.tile_state(batch, head, last_head, q_first, q_last, kv_first, kv_last)", "2"),
        ("mods.mask_mod(b, h, q_idx, kv_idx)) bits", "mods.mask_mod(b, h, kv_idx, q_idx)) bits"),
    ],
    ("kernels/metal/backward/key.metal", "tests/kernels/metal/backward/test_metal_gradients.py"): [
        ("rows.h = rows.kv_head * heads + reader % heads;", "rows.h = rows.kv_head * heads;"),
        ("rows.b = rows.kv_batch * p.sharing + reader / heads;", "rows.b = rows.kv_batch;"),
    ],
    ("kernels/metal/backward/query.metal", "tests/kernels/metal/backward/test_metal_gradients.py"): [
        ("MAY_LEAVE_OUT && gaps", "false"),
    ],
    ("kernels/metal/backward/ties.metal", "tests/kernels/metal/backward/test_metal_gradients.py"): [
        ("most[r] == of_row ? count[r] : 0.0f", "count[r]"),
    ],
    ("kernels/metal/gradients.py", "tests/kernels/metal/backward/test_metal_gradients.py"): [
        ("delta if call.d_lse is None else delta - call.d_lse", "delta"),
    ],
    ("kernels/metal/captured/pair_sums.h", "tests/kernels/metal/captured/test_captured_gradients.py"): [
        ("&& rows.row(r) == q_idx;", ";"),
        ("const int row = column + mine - (P::BK - 1);", "const int row = column + mine - P::BK;"),
        ("values[pair(r, i / 2 * FRAGMENT + rows.place.column + i % 2, rows)] = 0.0f;", ";"),
    ],
    ("kernels/metal/backward/site_sums.h", "tests/kernels/metal/captured/test_captured_gradients.py"): [
        ("const float sum = sum_of_row(sums[r][i]);", "const float sum = sums[r][i];"),
    ],
    ("kernels/metal/captured/pairs.metal", "tests/kernels/metal/captured/test_captured_gradients.py"): [
        ("place.group.z += uint(item / q_tiles / heads);", ""),
    ],
    ("kernels/metal/captured/elements.metal", "tests/kernels/metal/captured/test_captured_gradients.py"): [
        ("position - (lengths[1] - 1)", "position - lengths[1]"),
    ],
    ("kernels/metal/captured/gradients.py", "tests/kernels/metal/captured/test_captured_gradients.py"): [
        ("found[slot] + gradient if slot in found else gradient", "gradient"),
        ("if site.is_own((name,), shape, run.sizes) else 1", ""),
        ("4 * numbers <= MOST_BYTES", "True"),
    ],
    ("kernels/metal/backward/text.py", "tests/kernels/metal/captured/test_captured_gradients.py"): [
        ("at = at * {size} + fx::inside", "at = at + fx::inside"),
    ],
    ("kernels/metal/backward/plan.py", "tests/kernels/metal/backward/test_gradient_text.py"): [
        ("self.threadgroup_bytes <= THREADGROUP_BYTES", "True"),
    ],
    ("kernels/blocks.py", "tests/kernels/test_blocks.py"): [
        ("line = self.rows + self.rows // max(1, q_blocks)", "line = self.rows"),
        ("np.concatenate([line, line, line + 1, line + 1])", "np.concatenate([line] * 4)"),
        ("end = np.insert(self.first, ends, self.shape[3])", "end = np.insert(self.first, begins, self.shape[3])"),
        ("np.repeat(first - before, lengths)", "np.repeat(first, lengths)"),
        ("indices[top : top + rows][np.arange(columns)", "indices[:rows][np.arange(columns)"),
    ],
    (
        "flextrace/stages/checks.py",
        "tests/flextrace/stages/test_stages.py::test_lists_of_one_batch_do_not_serve_several_that_the_mask_tells_apart",
    ): [
        ("if made == 1 < wanted and index in mask_mod.trace.expr.varies", "if False"),
    ],
    (
        "flextrace/block_mask/block_mask.py",
        "tests/flextrace/block_mask/test_refine.py::test_what_needs_no_lists_of_a_million_tokens_allocates_no_plane",
    ): [
        (
            'self._listed("kv_num_blocks", lambda blocks: blocks.counts(PARTIAL))',
            'self._listed("kv_num_blocks", lambda blocks: (blocks.indices(PARTIAL), blocks.counts(PARTIAL))[1])',
        ),
        ("blocks.transposed.counts(FULL)", "blocks.counts(FULL)"),
    ],
    ("flextrace/block_mask/lists.py", "tests/flextrace/block_mask/test_block_mask.py"): [
        ("if size < LARGE_LIST:", "if size < 0:"),
        ('os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")', "2**99"),
    ],
    ("flextrace/int8/kv_cache.py", "tests/flextrace/int8/test_kv_cache.py"): [
        (
            "means, first = {name: mean_of_rows(x) if smooth[name] else None for name, x in rows.items()}, 0",
            "means = {name: mean_of_rows(x) if smooth[name] else None for name, x in rows.items()}",
        ),
        ("self._early = {name: rows[:, :, : self._length] for name, rows in self._early.items()}", ""),
        ("if not self._length:\n            self._parts", "if False:\n            self._parts"),
    ],
}


def _rows() -> Iterator[Mutant]:
    for (file, tests), changes in TABLE.items():
        for old, new, *others in changes:
            yield Mutant(file, old, new, tuple((*others, tests)[0].split()))


MUTANTS = tuple(_rows())
