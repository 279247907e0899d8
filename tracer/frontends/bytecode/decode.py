"""Code object -> steps: the instructions of CPython 3.10 to 3.14 in one vocabulary, with jumps to other steps.

`dis` reads the code; caches and EXTENDED_ARG are its business. A row of `ROWS` says what the instructions of a name
do; the versions of CPython that have them; the rest is refused by `REFUSED`, with what the source says and a remedy.
"""

from __future__ import annotations

import dis
import sys
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ..refusals import changed_object, why_statement

VERSION = sys.version_info[:2]


class Span(NamedTuple):
    """Where in the source a step comes from: 1-based line, 0-based columns in UTF-8 bytes (None before 3.11)."""

    line: int | None = None
    column: int | None = None
    end_line: int | None = None
    end_column: int | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do on the stack of values.

    do: what, a key of `steps.STEPS` or `run.ENDS`; value: with which name, constant, symbol or count.
    shown: the instruction as `dis` prints it.
    grows: by how much the stack grows where the code goes on here, and where it jumps.
    target: the index of the step that a jump goes to.
    begins: whether it is the first step of its instruction.
    """

    do: str
    value: Any
    span: Span
    shown: str
    grows: tuple[int, int] = (0, 0)
    target: int | None = None
    begins: bool = True

    def same_as(self, other: Step) -> bool:
        """Whether both come from one place of the source and do the same: compilers copy the end of a function."""
        is_one_place = self.span == other.span or (
            self.span.line == other.span.line and None in (self.span.column, other.span.column)
        )
        alike = self.do == other.do and is_one_place and type(self.value) is type(other.value)
        return alike and (self.value is other.value or (self.do != "const" and self.value == other.value))


class Row(NamedTuple):
    """What instructions of one name do: pairs of `Step.do` and `Step.value`."""

    versions: frozenset[int]  # minor versions of Python 3
    does: Callable[[dis.Instruction, types.CodeType], Iterable[tuple[str, Any]]]


NULL = type("Null", (), {"__repr__": lambda self: "NULL"})()  # what stands on the stack beside a callable
_INPLACE = {"ADD": "+", "AND": "&", "FLOOR_DIVIDE": "//", "LSHIFT": "<<", "MATRIX_MULTIPLY": "@", "MULTIPLY": "*"}
_INPLACE |= {"MODULO": "%", "OR": "|", "POWER": "**", "RSHIFT": ">>", "SUBTRACT": "-", "TRUE_DIVIDE": "/", "XOR": "^"}
_FLAGS = ("defaults", "kwdefaults", "annotations", "closure", "annotate")


def _constant(do: str, value: Any = None) -> Callable[[dis.Instruction, types.CodeType], list[tuple[str, Any]]]:
    return lambda ins, code: [(do, value)]


def _argument(do: str) -> Callable[[dis.Instruction, types.CodeType], list[tuple[str, Any]]]:
    return lambda ins, code: [(do, ins.arg)]


def _named(do: str) -> Callable[[dis.Instruction, types.CodeType], list[tuple[str, Any]]]:
    return lambda ins, code: [(do, ins.argval)]


def _fast(ins: dis.Instruction, code: types.CodeType) -> list[tuple[str, Any]]:
    """A local variable, or from 3.13 on the cell of one, which a function made here takes along."""
    is_cell = VERSION >= (3, 13) and ins.argval in (*code.co_cellvars, *code.co_freevars)
    return [("cell" if is_cell else "load", ins.argval)]


def _two(first: str, second: str) -> Callable[[dis.Instruction, types.CodeType], list[tuple[str, Any]]]:
    return lambda ins, code: [(first, ins.argval[0]), (second, ins.argval[1])]


def _load_global(ins: dis.Instruction, code: types.CodeType) -> list[tuple[str, Any]]:
    load = ("global", ins.argval)
    if VERSION < (3, 11) or not (ins.arg or 0) & 1:
        return [load]
    return [load, ("null", None)] if VERSION >= (3, 13) else [("null", None), load]


def _load_attr(ins: dis.Instruction, code: types.CodeType) -> list[tuple[str, Any]]:
    is_method = ins.opname == "LOAD_METHOD" or (VERSION >= (3, 12) and (ins.arg or 0) & 1)
    if not is_method:
        return [("attribute", ins.argval)]
    attribute = ("attribute", ins.argval)
    return [attribute, ("null", None)] if VERSION >= (3, 13) else [attribute, ("null", None), ("swap", 2)]


def _super_attr(ins: dis.Instruction, code: types.CodeType) -> list[tuple[str, Any]]:
    steps = [("super", None), ("attribute", ins.argval)]
    if not (ins.arg or 0) & 1:
        return steps
    return [*steps, ("null", None)] if VERSION >= (3, 13) else [*steps, ("null", None), ("swap", 2)]


def _compare(ins: dis.Instruction, code: types.CodeType) -> list[tuple[str, Any]]:
    shift = 5 if VERSION >= (3, 13) else 4 if VERSION >= (3, 12) else 0
    return [("compare", dis.cmp_op[(ins.arg or 0) >> shift])]


def _is(ins: dis.Instruction, code: types.CodeType) -> list[tuple[str, Any]]:
    return [("compare", "is not" if ins.arg else "is")]


def _in(ins: dis.Instruction, code: types.CodeType) -> list[tuple[str, Any]]:
    return [("compare", "not in" if ins.arg else "in")]


def _binary_op(ins: dis.Instruction, code: types.CodeType) -> list[tuple[str, Any]]:
    symbol = ins.argrepr
    if symbol == "[]":
        return [("item", None)]
    return [("inplace", symbol[:-1])] if symbol.endswith("=") else [("binary", symbol)]


def _binary_310(ins: dis.Instruction, code: types.CodeType) -> list[tuple[str, Any]]:
    kind, _, name = ins.opname.partition("_")
    return [("binary" if kind == "BINARY" else "inplace", _INPLACE[name])]


def _format_value(ins: dis.Instruction, code: types.CodeType) -> list[tuple[str, Any]]:
    flags = ins.arg or 0
    return [("format", ((None, "s", "r", "a")[flags & 3], bool(flags & 4)))]


def _intrinsic(ins: dis.Instruction, code: types.CodeType) -> list[tuple[str, Any]]:
    unary: tuple[str, Any] = ("unary", "+")
    return [{5: unary, 6: ("to_tuple", None)}.get(ins.arg or 0, ("refused", ins.argrepr))]


def _common(ins: dis.Instruction, code: types.CodeType) -> list[tuple[str, Any]]:
    """AssertionError, or what 3.14 compares `any`, `all` and `tuple` with, to run their loops in place: as a value that
    nothing is, so that they are called."""
    return [("assertion", None)] if ins.arg == 0 else [("const", NULL)]


def _make_function(ins: dis.Instruction, code: types.CodeType) -> list[tuple[str, Any]]:
    flags = 0 if VERSION >= (3, 13) else ins.arg or 0
    return [
        *([("pop", None)] if VERSION < (3, 11) else []),
        ("function", [n for i, n in enumerate(_FLAGS) if flags >> i & 1]),
    ]


def _function_attribute(ins: dis.Instruction, code: types.CodeType) -> list[tuple[str, Any]]:
    return [("function_attribute", _FLAGS[(ins.arg or 1).bit_length() - 1])]


def _branch(ins: dis.Instruction, code: types.CodeType) -> list[tuple[str, Any]]:
    """A jump where the top of the stack is true, false or None; "_OR_POP": which stays there for those that jump."""
    *_, end = ins.opname.split("_IF_")
    keeps = end.endswith("_OR_POP")
    test = end.removesuffix("_OR_POP")
    if test.endswith("NONE"):
        return [("const", None), ("compare", "is" if test == "NONE" else "is not"), ("branch", (True, False))]
    return [("branch", (test == "TRUE", keeps))]


ALL = "10-14"
ROWS: dict[str, Row] = {}


def _row(
    names: str, versions: str, does: Callable[[dis.Instruction, types.CodeType], Iterable[tuple[str, Any]]]
) -> None:
    """What instructions of these names do; versions: minor ones of Python 3, "10 12-14"."""
    ends = [part.split("-") for part in versions.split()]
    known = frozenset(minor for part in ends for minor in range(int(part[0]), int(part[-1]) + 1))
    ROWS.update({name: Row(known, does) for name in names.split()})


# ---- nothing to do -----------------------------------------------------------------------------------------
_row("NOP EXTENDED_ARG", ALL, lambda ins, code: [])
_row("CACHE RESUME COPY_FREE_VARS MAKE_CELL", "11-14", lambda ins, code: [])
_row("PRECALL", "11", lambda ins, code: [])
_row("GEN_START", "10", lambda ins, code: [])
_row("NOT_TAKEN", "14", lambda ins, code: [])
# ---- the stack ---------------------------------------------------------------------------------------------
_row("POP_TOP", ALL, _constant("pop"))
_row("POP_ITER", "14", _constant("pop"))
_row("END_FOR", "12-14", lambda ins, code: [("pop", None)] * (2 if VERSION == (3, 12) else 1))
_row("DUP_TOP", "10", _constant("copy", 1))
_row("DUP_TOP_TWO", "10", lambda ins, code: [("copy", 2), ("copy", 2)])
_row("ROT_TWO", "10", _constant("rotate", 2))
_row("ROT_THREE", "10", _constant("rotate", 3))
_row("ROT_FOUR", "10", _constant("rotate", 4))
_row("ROT_N", "10", _argument("rotate"))
_row("COPY", "11-14", _argument("copy"))
_row("SWAP", "11-14", _argument("swap"))
_row("PUSH_NULL", "11-14", _constant("null"))
_row("RETURN_GENERATOR", "11-14", _constant("null"))
# ---- names and constants -----------------------------------------------------------------------------------
_row("LOAD_CONST", ALL, _named("const"))
_row("LOAD_SMALL_INT", "14", _argument("const"))
_row("LOAD_ASSERTION_ERROR", "10-13", _constant("assertion"))
_row("LOAD_COMMON_CONSTANT", "14", _common)
_row("LOAD_FAST", ALL, _fast)
_row("LOAD_FAST_BORROW", "14", _fast)
_row("LOAD_FAST_CHECK", "12-14", _named("load"))
_row("LOAD_FAST_AND_CLEAR", "12-14", _named("take"))
_row("LOAD_FAST_LOAD_FAST", "13-14", _two("load", "load"))
_row("LOAD_FAST_BORROW_LOAD_FAST_BORROW", "14", _two("load", "load"))
_row("STORE_FAST", ALL, _named("store"))
_row("STORE_FAST_LOAD_FAST", "13-14", _two("store", "load"))
_row("STORE_FAST_STORE_FAST", "13-14", _two("store", "store"))
PAIRS = ("LOAD_FAST_LOAD_FAST", "LOAD_FAST_BORROW_LOAD_FAST_BORROW", "STORE_FAST_LOAD_FAST", "STORE_FAST_STORE_FAST")
_row("LOAD_DEREF", ALL, _named("load"))
_row("LOAD_CLASSDEREF", "10-11", _named("load"))
_row("STORE_DEREF", ALL, _named("store"))
_row("LOAD_CLOSURE", "10-12", _named("cell"))
_row("LOAD_GLOBAL", ALL, _load_global)
_row("LOAD_NAME", ALL, _named("global"))
# ---- operators ---------------------------------------------------------------------------------------------
_row(" ".join(f"{kind}_{name}" for kind in ("BINARY", "INPLACE") for name in _INPLACE), "10", _binary_310)
_row("BINARY_OP", "11-14", _binary_op)
_row("UNARY_NEGATIVE", ALL, _constant("unary", "-"))
_row("UNARY_POSITIVE", "10-11", _constant("unary", "+"))
_row("UNARY_INVERT", ALL, _constant("unary", "~"))
_row("UNARY_NOT", ALL, _constant("not"))
_row("TO_BOOL", "13-14", _constant("truth"))  # `not not x`; else a branch or `not` follows
_row("COMPARE_OP", ALL, _compare)
_row("IS_OP", ALL, _is)
_row("CONTAINS_OP", ALL, _in)
# ---- items, attributes, calls ------------------------------------------------------------------------------
_row("BINARY_SUBSCR", "10-13", _constant("item"))
_row("BINARY_SLICE", "12-14", lambda ins, code: [("slice", 2), ("item", None)])
_row("STORE_SUBSCR", ALL, _constant("set_item"))
_row("STORE_SLICE", "12-14", lambda ins, code: [("slice", 2), ("set_item", None)])
_row("LOAD_ATTR", ALL, _load_attr)
_row("LOAD_METHOD", "10-11", _load_attr)
_row("LOAD_SUPER_ATTR", "12-14", _super_attr)
_row("CALL_FUNCTION", "10", lambda ins, code: [("call_310", ins.arg)])
_row("CALL_FUNCTION_KW", "10", lambda ins, code: [("call_kw_310", ins.arg)])
_row("CALL_METHOD", "10", _argument("call"))
_row("KW_NAMES", "11-12", lambda ins, code: [("kw_names", code.co_consts[ins.arg or 0])])
_row("CALL", "11-14", _argument("call"))
_row("CALL_KW", "13-14", _argument("call_kw"))
_row("CALL_FUNCTION_EX", ALL, lambda ins, code: [("call_ex", VERSION >= (3, 14) or bool((ins.arg or 0) & 1))])
# ---- containers and texts ----------------------------------------------------------------------------------
_row("BUILD_TUPLE", ALL, _argument("tuple"))
_row("BUILD_LIST", ALL, _argument("list"))
_row("BUILD_SET", ALL, _argument("set"))
_row("BUILD_MAP", ALL, _argument("map"))
_row("BUILD_CONST_KEY_MAP", "10-13", _argument("const_key_map"))
_row("BUILD_SLICE", ALL, _argument("slice"))
_row("BUILD_STRING", ALL, _argument("string"))
_row("LIST_APPEND", ALL, _argument("append"))
_row("LIST_EXTEND", ALL, _argument("extend"))
_row("LIST_TO_TUPLE", "10-11", _constant("to_tuple"))
_row("CALL_INTRINSIC_1", "12-14", _intrinsic)
_row("SET_ADD", ALL, _argument("add"))
_row("SET_UPDATE", ALL, _argument("set_update"))
_row("MAP_ADD", ALL, _argument("map_add"))
_row("DICT_UPDATE", ALL, _argument("dict_update"))
_row("DICT_MERGE", ALL, _argument("dict_merge"))
_row("UNPACK_SEQUENCE", ALL, lambda ins, code: [("unpack", (ins.arg, None))])
_row("UNPACK_EX", ALL, lambda ins, code: [("unpack", ((ins.arg or 0) & 0xFF, (ins.arg or 0) >> 8))])
_row("FORMAT_VALUE", "10-12", _format_value)
_row("CONVERT_VALUE", "13-14", lambda ins, code: [("convert", (None, "s", "r", "a")[ins.arg or 0])])
_row("FORMAT_SIMPLE", "13-14", _constant("format", (None, False)))
_row("FORMAT_WITH_SPEC", "13-14", _constant("format", (None, True)))
# ---- functions and modules ---------------------------------------------------------------------------------
_row("MAKE_FUNCTION", ALL, _make_function)
_row("SET_FUNCTION_ATTRIBUTE", "13-14", _function_attribute)
_row("IMPORT_NAME", ALL, _named("import"))
_row("IMPORT_FROM", ALL, _named("import_from"))
# ---- where to go on ----------------------------------------------------------------------------------------
_row("JUMP_FORWARD", ALL, _constant("jump"))
_row("JUMP_ABSOLUTE", "10", _constant("jump"))
_row("JUMP_BACKWARD JUMP_BACKWARD_NO_INTERRUPT", "11-14", _constant("jump"))
_row("POP_JUMP_IF_TRUE POP_JUMP_IF_FALSE", "10 12-14", _branch)
_row("JUMP_IF_TRUE_OR_POP JUMP_IF_FALSE_OR_POP", "10-11", _branch)
_row("POP_JUMP_IF_NONE POP_JUMP_IF_NOT_NONE", "12-14", _branch)
_row("POP_JUMP_FORWARD_IF_TRUE POP_JUMP_FORWARD_IF_FALSE", "11", _branch)
_row("POP_JUMP_BACKWARD_IF_TRUE POP_JUMP_BACKWARD_IF_FALSE", "11", _branch)
_row("POP_JUMP_FORWARD_IF_NONE POP_JUMP_FORWARD_IF_NOT_NONE", "11", _branch)
_row("POP_JUMP_BACKWARD_IF_NONE POP_JUMP_BACKWARD_IF_NOT_NONE", "11", _branch)
_row("GET_ITER", ALL, _constant("iterate"))
_row("FOR_ITER", ALL, _constant("next"))
_row("YIELD_VALUE", ALL, _constant("yield"))
_row("RETURN_VALUE", ALL, _constant("return"))
_row("RETURN_CONST", "12-13", lambda ins, code: [("const", ins.argval), ("return", None)])
_row("RAISE_VARARGS", ALL, _argument("raise"))


WITH_SOURCE = "define the function in a file, where it is read from its text"
_TRY, _WITH, _MATCH, _GLOBAL, _DEL, _CLASS = map(why_statement, ("try", "with", "match", "global", "del", "class"))
_ASYNC = ("the statement `async` has no meaning in a mod", "write a plain function")
_OBJECT = (changed_object().reason, changed_object().remedy)
_INNER = ("an instruction of the interpreter's own has no meaning in a mod", WITH_SOURCE)
_YIELD = ("YieldFrom expressions have no meaning in a mod", "use plain arithmetic on numbers")
_TEMPLATE = ("TemplateStr expressions have no meaning in a mod", "write an f-string")
REFUSED: dict[str, tuple[str, str]] = {  # name -> why it cannot be read, what to write instead
    name: why
    for names, why in {
        "SETUP_FINALLY SETUP_CLEANUP POP_BLOCK POP_EXCEPT PUSH_EXC_INFO RERAISE CHECK_EXC_MATCH CHECK_EG_MATCH": _TRY,
        "JUMP_IF_NOT_EXC_MATCH PREP_RERAISE_STAR CALL_INTRINSIC_2": _TRY,
        "SETUP_WITH BEFORE_WITH WITH_EXCEPT_START LOAD_SPECIAL": _WITH,
        "SETUP_ASYNC_WITH BEFORE_ASYNC_WITH GET_AITER GET_ANEXT GET_AWAITABLE END_ASYNC_FOR SEND END_SEND": _ASYNC,
        "ASYNC_GEN_WRAP CLEANUP_THROW": _ASYNC,
        "YIELD_FROM GET_YIELD_FROM_ITER": _YIELD,
        "MATCH_CLASS MATCH_KEYS MATCH_MAPPING MATCH_SEQUENCE GET_LEN COPY_DICT_WITHOUT_KEYS": _MATCH,
        "STORE_GLOBAL DELETE_GLOBAL STORE_NAME": _GLOBAL,
        "DELETE_FAST DELETE_DEREF DELETE_NAME DELETE_SUBSCR": _DEL,
        "STORE_ATTR DELETE_ATTR": _OBJECT,
        "LOAD_BUILD_CLASS LOAD_LOCALS LOAD_FROM_DICT_OR_DEREF LOAD_FROM_DICT_OR_GLOBALS SETUP_ANNOTATIONS": _CLASS,
        "BUILD_TEMPLATE BUILD_INTERPOLATION": _TEMPLATE,
        "PRINT_EXPR IMPORT_STAR INTERPRETER_EXIT EXIT_INIT_CHECK RESERVED ENTER_EXECUTOR": _INNER,
    }.items()
    for name in names.split()
}


def decode(code: types.CodeType) -> list[Step]:
    """The steps of a function's code, in order; what has no meaning in a mod is a step "refused"."""
    steps: list[Step] = []
    index: dict[int, int] = {}  # offset of an instruction -> its first step
    jumps: list[tuple[int, int]] = []
    line: int | None = None
    keywords: tuple[str, ...] | None = None
    grown = 0  # by instructions that became no step
    guarded = _guarded(code)
    for ins in dis.get_instructions(code):
        index[ins.offset] = len(steps)
        line = _line(ins, line)
        span = _span(ins, line)
        row = ROWS.get(ins.opname)
        does: list[tuple[str, Any]] = [("refused", ins.opname)] if row is None else list(row.does(ins, code))
        if ins.offset in guarded:
            does = [("refused", "SETUP_FINALLY"), *does]
        shown = f"{ins.opname} {ins.argrepr}".rstrip()
        if (
            steps and steps[-1].do == "truth" and does and does[0][0] in ("branch", "not")
        ):  # which ask for it themselves
            grown += steps.pop().grows[0]
            index[ins.offset] = len(steps)
        before, (here, there) = len(steps), _grows(ins)
        for do, value in does:
            if do == "kw_names":
                keywords = value
                continue
            if do == "call" and keywords is not None:
                do, value = "call_named", (value, keywords)
                keywords = None
            if do in ("jump", "branch", "next"):
                jumps.append((len(steps), ins.argval))
            steps.append(Step(do, value, span, shown, begins=len(steps) == before))
        if ins.opname in PAIRS:  # where the second of two comes from is not kept
            first = 1 if steps[-2].do == "load" else -1
            steps[-2] = replace(steps[-2], grows=(grown + first, grown + first))
            steps[-1] = replace(steps[-1], span=Span(span.line))
            here, there, grown = here - first, there - first, 0
        if len(steps) > before:
            steps[-1] = replace(steps[-1], grows=(grown + here, grown + there))
        grown = 0 if len(steps) > before else grown + here
    index.setdefault(len(code.co_code), len(steps))
    for position, offset in jumps:
        steps[position] = replace(steps[position], target=index[offset])
    return steps


def _guarded(code: types.CodeType) -> set[int]:
    """Where from 3.11 on the body of a `try` begins; what cleans up after a comprehension guards as well."""
    if VERSION < (3, 11):
        return set()
    handles = {ins.offset for ins in dis.get_instructions(code) if ins.opname == "PUSH_EXC_INFO"}
    entries = dis.Bytecode(code).exception_entries  # type: ignore[attr-defined,unused-ignore]
    return {entry.start for entry in entries if entry.target in handles}


def _grows(ins: dis.Instruction) -> tuple[int, int]:
    arg = ins.arg if ins.opcode >= dis.HAVE_ARGUMENT or VERSION >= (3, 13) else None
    if ins.opname in ("EXTENDED_ARG", "CACHE", "GEN_START"):
        return 0, 0
    if ins.opname == "RETURN_GENERATOR":
        return 1, 1
    here, there = (dis.stack_effect(ins.opcode, arg, jump=jump) for jump in (False, True))
    return here, there


def _line(ins: dis.Instruction, before: int | None) -> int | None:
    starts: Any = ins.starts_line
    if VERSION >= (3, 13):
        return ins.line_number  # type: ignore[attr-defined,no-any-return,unused-ignore]
    return before if starts is None else int(starts)


def _span(ins: dis.Instruction, line: int | None) -> Span:
    at: Any = getattr(ins, "positions", None)
    if at is None or at.lineno is None:
        return Span(line)
    return Span(at.lineno, at.col_offset, at.end_lineno, at.end_col_offset)
