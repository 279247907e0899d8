"""Python function -> mod: the decorators, and what a decorated function shows of itself."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from flextrace.kernels import backend_for
from flextrace.kernels.call import Mods
from flextrace.kernels.loading import state, text_of
from flextrace.kernels.notebooks import html_of
from flextrace.kernels.registry import chosen_name, default_name
from flextrace.kernels.spec import Formulas
from flextrace.kernels.template.hole import written_by
from flextrace.tracer import Bound, Expr, Kind, Trace, Traces, gradient_lines, name_of
from flextrace.tracer.errors import with_article
from flextrace.tracer.expr.invariance import shifts_with_score
from flextrace.tracer.source.signature import PASSED_AS, WRAPPED, wrapped

from .advice.mods import wrong_mod
from .pickling import function_of, global_name, rendered

AnyMod = TypeVar("AnyMod", bound="Mod")
_traces = Traces()


class Page(str):
    """Text that a prompt shows as `print` does."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


class Mod:
    """A decorated score_mod or mask_mod. Calling it with numbers runs the user's own function.

    Attributes:
        expr: the expression tree that kernels are made from (prints as Python).
    """

    kind: ClassVar[Kind]
    _last: Trace | None = None  # the trace of the last call, which mostly holds for the next one

    def __init__(self, function: Callable[..., Any]) -> None:
        if isinstance(function, Mod):
            function = wrapped(function)
        if not callable(function):
            raise TypeError(f"@flex.{self.kind} decorates a function, not {with_article(type(function).__name__)}")
        setattr(self, WRAPPED, function)
        functools.update_wrapper(self, function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return wrapped(self)(*args, **kwargs)

    def __bool__(self) -> bool:
        instead = "write `&`, `|` and `~` for and, or and not" if self.kind == "mask_mod" else "test `is None`"
        raise TypeError(f"{self!r} is a function, neither true nor false: {instead}")

    def __get__(self: AnyMod, instance: Any, owner: type | None = None) -> AnyMod:
        """The mod of that instance, where the mod is a method."""
        if instance is None:
            return self
        return type(self)(types.MethodType(wrapped(self), instance))

    def __repr__(self) -> str:
        return f"<{self.kind} {name_of(wrapped(self))}>"

    _repr_html_ = html_of

    def __reduce__(self) -> str | tuple[Any, ...]:
        """For pickle: the name of a module's mod; of others the expression and the captured values of this moment."""
        function = wrapped(self)
        module, name = getattr(function, "__module__", "__main__"), getattr(function, "__qualname__", "")
        known = global_name(self, module, name)
        return known or (_unpickled, (self.kind, _name(self), *rendered(self.bind())))

    def trace(self) -> Trace:
        """The trace that holds for the captured values of this moment.

        Raises:
            TraceError: the function cannot become a kernel; the message shows line, reason and remedy.
        """
        return _traces.get(wrapped(self), self.kind)

    def bind(self) -> Bound:
        """The trace, with the captured arrays and numbers of this moment.

        Raises:
            TraceError: as `trace`.
            OverflowError, ZeroDivisionError, ValueError: a captured number that a kernel cannot work with.
        """
        function, last = getattr(self, WRAPPED), self._last
        if last is not None and last.code_ref is not None and last.code_ref() is function.__code__:
            found = last.reads.captured(function, last.name)
            if found is not None:
                return Bound(last, *found)
        bound = _traces.bind(function, self.kind)
        self._last = bound.trace if type(function) is types.FunctionType and not bound.trace.volatile else None
        return bound

    @property
    def expr(self) -> Expr:
        return self.trace().expr

    def source(self, backend: str = "cpu", *, kernel: str = "attention", whole: bool = True) -> str:
        """The kernel text of this mod for a backend: complete, as it is compiled, or the functions that the mod became.

        Args:
            backend: "cpu", "metal", "cuda" or "simulator", which need not be able to run here.
            kernel: which of its kernels: "attention", "decode" (few query rows), or of gradients "backward" on the cpu,
                "backward_query", "backward_key" and others on Metal. An unknown name is answered with all of them.
            whole: False leaves out what is the same for every mod.

        Raises:
            TraceError: as `trace`.
            ValueError: there is no such backend, or it has no such kernel.

        Example:
            >>> import flextrace as flex
            >>> print(flex.mods.causal.source("metal", whole=False).splitlines()[1].strip())
            INLINE bool mask_mod(int b, int h, int q_idx, int kv_idx) const thread {
        """
        text = text_of(backend_for(backend, to_run=False), self._formulas(None), kernel)
        if whole:
            return text
        return "\n\n".join("\n".join(excerpt.lines) for excerpt in written_by([self.kind], text))

    def state(self, other: Mod | None = None, *, backend: str | None = None) -> str:
        """Where the kernel for this mod is; looking makes nothing and loads nothing.

        Args:
            other: the mod of the other kind in the same call.
            backend: as in `kernel_options`; None is the one that runs by default.

        Returns:
            "memory", "disk" or "nowhere": a call compiles it. "paired": in memory, but only with another mod too.

        Raises:
            TraceError: as `trace`.
            ValueError: there is no such backend, or `other` is of the same kind.

        Example:
            >>> import flextrace as flex
            >>> flex.mods.softcap(5.0).state(flex.mods.causal, backend="ops")
            'memory'
        """
        chosen = backend_for(chosen_name(backend) or default_name(), to_run=False)
        return state(chosen, self._formulas(other))

    def _formulas(self, other: Mod | None) -> Formulas:
        """What a kernel knows of this mod, and of another in the same call."""
        if other is not None and other.kind == self.kind:
            raise ValueError(f"{self!r} and {other!r} are both a {self.kind}; a call has one of each kind")
        found = {mod.kind: mod.trace().formula for mod in (self, other) if mod is not None}
        return Formulas(found.get("score_mod"), found.get("mask_mod"))

    def inspect(self) -> str:
        """The stages of this mod as text: the user's function, its expression, its captured inputs.

        A mask_mod also shows the bounds that decide tiles where it is passed as `block_mask` by itself; a score_mod,
        its derivatives, and what smoothed keys mean for it.
        """
        trace, _, numbers = self.bind()
        lines = [repr(self), "", *trace.source().splitlines(), "", f"read from its {trace.reader}", "", "expression:"]
        lines += [f"  {line}" for line in repr(trace.expr).splitlines()]
        lines += [f"  array{i} = {a.name} ({a.element}, {a.ndim} dimensions)" for i, a in enumerate(trace.arrays)]
        lines += [f"  number{i} = {n.name} ({n.dtype}, read at every call)" for i, n in enumerate(trace.numbers)]
        if trace.volatile:
            lines.append("  traced anew at every call: it runs Python whose result may change")
        if self.kind == "mask_mod":
            from flextrace.kernels.cpu.generate import tile_lines  # a backend loads when it is first used

            lines += ["", *tile_lines(trace.expr)]
        else:
            lines += ["", "gradient:", *(f"  {line}" for line in gradient_lines(trace.expr))]
            invariant = shifts_with_score(trace.expr, numbers)
            fate = "dropped (shift invariant)" if invariant else "added back before the mod"
            lines += ["", f"smoothed K: the row term is {fate}"]
        return Page("\n".join(lines))


class ScoreMod(Mod):
    """`score_mod(score, b, h, q_idx, kv_idx) -> score`: see `score_mod`.

    Example:
        >>> import flextrace as flex
        >>> flex.mods.softcap(20.0)
        <score_mod softcap>
    """

    kind: ClassVar[Kind] = "score_mod"

    if TYPE_CHECKING:

        def __call__(self, score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any: ...


class MaskMod(Mod):
    """`mask_mod(b, h, q_idx, kv_idx) -> bool`: see `mask_mod`. Masks combine with `&`, `|` and `~`.

    Example:
        >>> import flextrace as flex
        >>> recent = flex.mods.causal & flex.mods.sliding_window(4)
        >>> recent(0, 0, 9, 7), recent(0, 0, 9, 2), (~recent)(0, 0, 9, 2)
        (True, False, True)
    """

    kind: ClassVar[Kind] = "mask_mod"

    if TYPE_CHECKING:

        def __call__(self, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any: ...

    shifted_from: tuple[MaskMod, int] | None = None  # the mask that this one shows from a later row on, and that row
    top_left: str | None = None  # of a causal one of flex.mods, made without an offset: how to write it with one

    def __and__(self, other: Any) -> MaskMod:
        second = _other_mask(other)
        if second is None:
            return NotImplemented

        def both(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
            return bool(self(b, h, q_idx, kv_idx)) and bool(second(b, h, q_idx, kv_idx))

        return _named(both, f"({_name(self)} & {_name(second)})", self.top_left or second.top_left)

    def __rand__(self, other: Any) -> MaskMod:
        first = _other_mask(other)
        return NotImplemented if first is None else first & self

    def __or__(self, other: Any) -> MaskMod:
        second = _other_mask(other)
        if second is None:
            return NotImplemented

        def either(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
            return bool(self(b, h, q_idx, kv_idx)) or bool(second(b, h, q_idx, kv_idx))

        return _named(either, f"({_name(self)} | {_name(second)})", self.top_left or second.top_left)

    def __ror__(self, other: Any) -> MaskMod:
        first = _other_mask(other)
        return NotImplemented if first is None else first | self

    def __invert__(self) -> MaskMod:
        def neither(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
            return not bool(self(b, h, q_idx, kv_idx))

        return _named(neither, f"~{_name(self)}")


def _other_mask(other: Any) -> MaskMod | None:
    """The other side of `&` and `|`: a mask_mod or a plain function; None for what combines by itself."""
    if isinstance(other, MaskMod):
        return other
    return MaskMod(other) if callable(other) and not isinstance(other, (Mod, type)) else None


def _unpickled(kind: Kind, name: str, text: str, values: dict[str, Any]) -> Mod:
    mods: dict[Kind, type[Mod]] = {"score_mod": ScoreMod, "mask_mod": MaskMod}
    return mods[kind](function_of(text, values, name))


def _name(mod: Mod) -> str:
    return name_of(wrapped(mod))


def _named(function: Callable[..., Any], name: str, top_left: str | None = None) -> MaskMod:
    function.__name__ = function.__qualname__ = name
    made = MaskMod(function)
    if top_left is not None:
        made.top_left = top_left
    return made


def score_mod(function: Callable[..., Any]) -> ScoreMod:
    """Decorate a function of one attention score.

    Args:
        function: `(score, b, h, q_idx, kv_idx) -> score`. `score` is a float32 number, already scaled, in natural
            units; b, h, q_idx, kv_idx are int32 numbers: batch, query head, row and column of the score matrix.

    Returns:
        A callable object for the `score_mod` argument of `flex_attention`.

    Example:
        >>> import flextrace as flex
        >>> @flex.score_mod
        ... def relative(score, b, h, q_idx, kv_idx):
        ...     return score + 0.1 * (kv_idx - q_idx)
        >>> relative.expr
        score + (float((kv_idx - q_idx)) * 0.10000000149011612)
        >>> relative(1.0, 0, 0, 2, 4)
        1.2
    """
    return ScoreMod(function)


def mask_mod(function: Callable[..., Any]) -> MaskMod:
    """Decorate a function that says which keys a query attends to.

    Args:
        function: `(b, h, q_idx, kv_idx) -> bool` over int32 numbers; True keeps the pair.

    Returns:
        A callable object for `block_mask` of `flex_attention` and for `create_block_mask`.

    Example:
        >>> import flextrace as flex
        >>> @flex.mask_mod
        ... def causal(b, h, q_idx, kv_idx):
        ...     return q_idx >= kv_idx
        >>> causal.expr
        kv_idx <= q_idx
    """
    return MaskMod(function)


def title_of(score_mod: ScoreMod | None, mask_mod: MaskMod | None) -> str:
    """How messages name the mods of one call: "alibi + causal"."""
    return " + ".join(name_of(mod) for mod in (score_mod, mask_mod) if mod is not None)


def as_mod(function: Any, wanted: type[AnyMod], argument: str) -> AnyMod:
    """The mod for an argument of the public call: decorated, or a plain function of the right kind.

    Raises:
        TypeError: it is no function, or a mod of the other kind.
    """
    if isinstance(function, wanted):
        return function
    if isinstance(function, Mod):
        place = PASSED_AS[function.kind]
        raise TypeError(f"{argument} takes a {wanted.kind}, {function!r} is a {function.kind}: pass it as {place}")
    if not callable(function):
        raise wrong_mod(function, wanted.kind, argument)
    return wanted(function)


def bound(score_mod: ScoreMod | None, mask_mod: MaskMod | None) -> Mods:
    """The mods of a call, with what they capture now.

    Raises:
        TraceError, OverflowError, ZeroDivisionError, ValueError: as `bind` of each.
    """
    return Mods(None if score_mod is None else score_mod.bind(), None if mask_mod is None else mask_mod.bind())
