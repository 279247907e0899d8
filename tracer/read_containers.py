"""ast containers, comprehensions and f-strings -> Python containers and strings that may hold symbols."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from .errors import Untraceable
from .expr import Expr
from .frames import Frame
from .read_names import NameReader
from .values import UnknownSet, UnknownText


class ContainerReader(NameReader):
    """Evaluates displays, comprehensions and f-strings."""

    def elements(self, nodes: list[ast.expr], frame: Frame) -> list[Any]:
        """The values of expressions, of which some may be `*starred`."""
        out: list[Any] = []
        for node in nodes:
            if isinstance(node, ast.Starred):
                out.extend(self.values.iterate(self.eval(node.value, frame)))
            else:
                out.append(self.eval(node, frame))
        return out

    def eval_Tuple(self, node: ast.Tuple, frame: Frame) -> tuple[Any, ...]:
        return tuple(self.elements(node.elts, frame))

    def eval_List(self, node: ast.List, frame: Frame) -> Any:
        return self.values.made(self.elements(node.elts, frame))

    def eval_Set(self, node: ast.Set, frame: Frame) -> Any:
        return self._set(self.elements(node.elts, frame))

    def _set(self, elements: list[Any]) -> Any:
        """A set, of which only the kernel may know which elements are equal."""
        if self.values.is_in_kernel(elements):
            return UnknownSet(tuple(elements))
        return self.values.made({self.values.concrete(element, "an element of a set") for element in elements})

    def eval_Dict(self, node: ast.Dict, frame: Frame) -> Any:
        out: dict[Any, Any] = {}
        for key, value in zip(node.keys, node.values, strict=True):
            if key is None:
                out.update(self.values.known(self.eval(value, frame)))
            else:
                known = self.values.concrete(self.eval(key, frame), "a dictionary key")
                out[known] = self.eval(value, frame)
        return self.values.made(out)

    # ---- comprehensions ------------------------------------------------------------------------------------

    def _inner_frames(self, generators: list[ast.comprehension], outer: Frame) -> Iterator[Frame]:
        """The frame of a comprehension, once for every element that it makes; the first iterable is taken at once."""
        first, *rest = generators
        frame = outer.comprehension()
        items = self.values.iterate(self.eval(first.iter, outer))
        return self._targets(first, items, rest, frame)

    def _targets(
        self, first: ast.comprehension, items: Iterable[Any], rest: list[ast.comprehension], frame: Frame
    ) -> Iterator[Frame]:
        for item in items:
            self.assign(first.target, item, frame)
            if not all(self._keeps(test, frame) for test in first.ifs):
                continue
            if rest:
                yield from self._targets(rest[0], self.values.iterate(self.eval(rest[0].iter, frame)), rest[1:], frame)
            else:
                yield frame

    def _keeps(self, test: ast.expr, frame: Frame) -> bool:
        truth = self.values.truth(self.eval(test, frame))
        if isinstance(truth, Expr):
            error = Untraceable(
                "a comprehension keeps elements by a condition known only inside the kernel",
                "keep every element and make the unwanted ones neutral: sum(x if c else 0 for ...)",
            )
            error.places.append(frame.source.place(test))
            raise error
        return truth

    def eval_GeneratorExp(self, node: ast.GeneratorExp | ast.ListComp | ast.SetComp, frame: Frame) -> Iterator[Any]:
        frames = self._inner_frames(node.generators, frame)
        made: Iterator[Any] = self.values.made(self.eval(node.elt, inner) for inner in frames)
        return made

    def eval_ListComp(self, node: ast.ListComp, frame: Frame) -> Any:
        return self.values.made(list(self.eval_GeneratorExp(node, frame)))

    def eval_SetComp(self, node: ast.SetComp, frame: Frame) -> Any:
        return self._set(list(self.eval_GeneratorExp(node, frame)))

    def eval_DictComp(self, node: ast.DictComp, frame: Frame) -> Any:
        out: dict[Any, Any] = {}
        for inner in self._inner_frames(node.generators, frame):
            key = self.values.concrete(self.eval(node.key, inner), "a dictionary key")
            out[key] = self.eval(node.value, inner)
        return self.values.made(out)

    # ---- f-strings -----------------------------------------------------------------------------------------

    def eval_JoinedStr(self, node: ast.JoinedStr, frame: Frame) -> str | UnknownText:
        parts = [self.eval(part, frame) for part in node.values]
        text = "".join(map(str, parts))
        return UnknownText(text) if any(isinstance(part, UnknownText) for part in parts) else text

    def eval_FormattedValue(self, node: ast.FormattedValue, frame: Frame) -> str | UnknownText:
        value = self.values.text(self.eval(node.value, frame))
        if isinstance(value, UnknownText):
            return value
        if node.conversion != -1:
            convert: dict[str, Callable[[Any], str]] = {"s": str, "r": repr, "a": ascii}
            value = convert[chr(node.conversion)](value)
        spec = "" if node.format_spec is None else self.eval(node.format_spec, frame)
        return spec if isinstance(spec, UnknownText) else str(self.values.run(format, value, spec))
