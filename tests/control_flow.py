"""A number -> random Python: statements around loops that lanes leave in every way, choices within choices."""

from __future__ import annotations

import random


class Writer:
    """Writes statements about x and y, and the indices of a mod."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.loops = 0

    def condition(self) -> str:
        names = ["q_idx", "kv_idx", "h", "x", "y", *(f"i{n}" for n in range(self.loops))]
        a, b = self.random.choice(names), self.random.choice([*names, "1", "3"])
        text = f"({a} + {b}) % {self.random.choice((2, 3, 4))} {self.random.choice(('==', '!=', '<', '>'))} 1"
        if self.random.random() < 0.2:
            text = f"{text} {self.random.choice(('and', 'or'))} {self.condition()}"
        return f"not ({text})" if self.random.random() < 0.1 else text

    def block(self, depth: int, indent: str) -> list[str]:
        return [line for _ in range(self.random.randint(1, 3)) for line in self.statement(depth, indent)]

    def statement(self, depth: int, indent: str) -> list[str]:
        choices = ["update", "update", "if", "if", "leave", "walrus"] + ["for"] * (self.loops < 2)
        kind = self.random.choice(choices if depth else ["update"])
        if kind == "update":
            name, other = self.random.choice("xy"), self.random.choice(["x", "y", "q_idx", "kv_idx", "h", "1"])
            return [f"{indent}{name} = ({name} * 2 + {other}) % 97"]
        if kind == "walrus":
            return [f"{indent}y = (x := x + 1) if {self.condition()} else (y := y + 2) - 1"]
        if kind == "leave":
            way = self.random.choice(["break", "continue", "return x * 100 + y"] if self.loops else ["return x - y"])
            return [f"{indent}if {self.condition()}:", *self.block(0, indent + "    "), f"{indent}    {way}"]
        if kind == "if":
            lines = [f"{indent}if {self.condition()}:", *self.block(depth - 1, indent + "    ")]
            if self.random.random() < 0.5:
                lines += [f"{indent}else:", *self.block(depth - 1, indent + "    ")]
            return lines
        lines = [f"{indent}for i{self.loops} in range({self.random.randint(1, 4)}):"]
        self.loops += 1
        lines += self.block(depth - 1, indent + "    ")
        self.loops -= 1
        if self.random.random() < 0.4:
            lines += [f"{indent}else:", *self.block(depth - 1, indent + "    ")]
        return lines


def choice(chance: random.Random, depth: int) -> str:
    """An expression of `and`, `or`, `not`, `if`, chains and `x := ...` within each other, on several lines or one."""
    if depth == 0 or chance.random() < 0.2:
        return chance.choice(["h", "b", "q_idx", "kv_idx", "score"] * 3 + ["1", "0", "2.5", "True"])

    def inner() -> str:
        return choice(chance, depth - 1) + chance.choice(["", "", "", "\n   "])

    kind = chance.choice(["and"] * 4 + ["if"] * 3 + ["chain", "not", "not not", "walrus", "sum", "compare"])
    if kind == "and":
        operator = chance.choice([" and ", " or "])
        return f"({operator.join(inner() for _ in range(chance.choice((2, 2, 3))))})"
    forms = {
        "if": "({} if {} else {})",
        "chain": "({} < {} <= {})",
        "not": "(not {})",
        "not not": "(not (not {}))",
        "walrus": "(x := {})",
        "sum": "({} - {})",
        "compare": "({} == {})",
    }
    return forms[kind].format(*(inner() for _ in range(forms[kind].count("{}"))))
