"""random -> mods as Python writes them: aliases, chosen containers, sets, dicts, texts, records, classes, iterators.

tests/expressions.py draws arithmetic; here the numbers are small and exact, and what is drawn is everything around
them: which object a name means, in what order things happen, what a class says by its methods, what a name means
after a later notebook cell. A program is plain source; Python itself says what it means.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable

CLASSES = '''
import collections, dataclasses, enum, functools, itertools, operator

Point = collections.namedtuple("Point", "x y")

class Vector(collections.namedtuple("Vector", "x y")):
    def __add__(self, other):
        return Vector(self.x + other.x, self.y + other.y)
    @property
    def total(self):
        return self.x + self.y

@dataclasses.dataclass
class Box:
    x: object
    y: object = 2
    @property
    def flat(self):
        return 1 if self.x == 3 else 0
    def holds(self, item):
        return item == self.x or item == self.y
    def __len__(self):
        return 2 if self.x == 1 else 1

@dataclasses.dataclass
class Checked:
    x: object
    def __post_init__(self):
        self.y = 1 if self.x == 1 else 2

class Evens:
    def __contains__(self, item):
        return item % 2 == 0
    def __iter__(self):
        return iter([1, 3])

class Wild:
    """Equal to everything below 3."""
    def __eq__(self, other):
        return other < 3
    __hash__ = None

class Loud(list):
    def __contains__(self, item):
        return item == 1
    def __len__(self):
        return 7
    def __iter__(self):
        return iter([5, 6])

class Counted:
    step = 2
    def __init__(self):
        self.n = 0
    def next(self):
        self.n += 1
        return self.n
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return len(name)

class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2

'''

STATE = """
def pick(c, a, b):
    if c:
        return a
    return b

def grown(c, a):
    made = [a]
    if c:
        return made
    made.append(4)
    return made

def same(a):
    return a

def log(items, x):
    items.append(x)
    return x

EVENS, WILD, LOUD, COUNTED, WINDOW = Evens(), Wild(), Loud([1, 2]), Counted(), 3
NUMBERS, NAMES, SEEN = [3, 1, 2], {"a": 1, 2: 5}, frozenset({1, 4})
BOXES = [Box(1), Box(3)]
"""

Statement = Callable[["Writer", str], list[str]]


class Writer:
    """Writes one function; `pools` are the names that hold each kind of value so far."""

    def __init__(self, rng: random.Random, wild: bool = True) -> None:
        self.rng = rng
        self.count = 0
        self.lines: list[str] = []
        self.pools: dict[str, list[str]] = {kind: [] for kind in "number items dict set text record iterator".split()}
        self.pools["number"] = ["q_idx", "kv_idx", "h", "b"]

    def new(self, kind: str) -> str:
        self.count += 1
        name = f"{kind[0]}{self.count}"
        return name

    def name(self, kind: str) -> str:
        pool = self.pools[kind]
        if not pool:
            return self.fresh(kind)
        return self.rng.choice(pool[-4:] if kind != "number" else pool)

    def fresh(self, kind: str) -> str:
        """A display where no name holds such a value yet."""
        number = functools.partial(self.number, 0)
        plain = functools.partial(self.rng.choice, self.pools["number"])
        choices = {
            "items": lambda: self.rng.choice(
                (
                    f"[{number()}, {number()}]",
                    f"[{number()}, 1, {number()}]",
                    "[1, 2]",
                    f"[{number()}]",
                    "list(NUMBERS)",
                )
            ),
            "dict": lambda: self.rng.choice(
                (f"{{1: {number()}, 2: {number()}}}", f"{{'a': {number()}}}", "dict(NAMES)", f"{{2: 5, 1: {number()}}}")
            ),
            "set": lambda: self.rng.choice(
                (f"{{{number()}, {number()}}}", f"{{1, {number()}}}", "{1, 2}", "set(NUMBERS)", "set()")
                if self.rng.random() < 0.5
                else ("frozenset({1, 2, 3})", f"{{x % 2 for x in ({number()}, {number()})}}")
            ),
            "text": lambda: self.rng.choice(
                (f"f'{{{plain()}}}'", f"str({number()})", f"'%s' % {number()}", "'1'", f"'{{}}'.format({number()})")
                if self.rng.random() < 0.5
                else (f"repr([{number()}])", f"'-'.join([str({number()}), 'a'])", f"'%d,%d' % ({number()}, 2)")
            ),
            "record": lambda: self.rng.choice(
                (f"Point({number()}, {number()})", f"Vector({number()}, 1)", f"Box({number()})", f"Box(1, {number()})")
                if self.rng.random() < 0.7
                else (f"Checked({number()})", "BOXES[0]", "BOXES[1]")
            ),
            "iterator": lambda: self.rng.choice(
                (f"iter([{number()}, 1, 2])", f"(x + 1 for x in [{number()}, {number()}])", "iter(NUMBERS)")
                if self.rng.random() < 0.5
                else (
                    f"zip([1, 2], [{number()}, 3])",
                    f"map(same, [{number()}, 2, 3])",
                    "filter(None, [0, 1, 2])",
                    f"reversed([{number()}, 1])",
                )
            ),
        }
        return choices[kind]()

    # ---- expressions ---------------------------------------------------------------------------------------------

    def number(self, depth: int = 1) -> str:
        if depth <= 0 or self.rng.random() < 0.5:
            return self.rng.choice([*self.pools["number"], *self.pools["number"], "1", "2", "3", "WINDOW"])
        return self.rng.choice(NUMBERS)(self, depth - 1)

    def condition(self) -> str:
        if self.rng.random() < 0.7:
            return f"{self.number(0)} {self.rng.choice(['<', '<=', '>', '==', '!='])} {self.number(0)}"
        return self.rng.choice(CONDITIONS)(self)

    # ---- statements ----------------------------------------------------------------------------------------------

    def block(self, indent: str, count: int) -> list[str]:
        return [line for _ in range(count) for line in self.statement(indent)]

    def statement(self, indent: str) -> list[str]:
        if len(indent) < 12 and self.rng.random() < 0.22:
            return self.compound(indent)
        line: str = self.rng.choice(STATEMENTS)(self)
        return [indent + part for part in line.splitlines()]

    def compound(self, indent: str) -> list[str]:
        inner = indent + "    "
        kept = {kind: list(names) for kind, names in self.pools.items()}
        kind = self.rng.choice(("if", "if", "if", "else", "for", "def"))
        if kind == "for":
            item = self.new("number")
            over = self.rng.choice(("range(2)", f"{self.name('items')}[:3]", "NUMBERS[:3]", f"[{self.number()}, 1]"))
            lines = [f"{indent}for {item} in {over}:"]
            self.pools["number"].append(item)
            lines += self.block(inner, self.rng.randint(1, 2))
            if self.rng.random() < 0.4:
                lines.append(f"{inner}if {self.condition()}: {self.rng.choice(('break', 'continue'))}")
                lines += self.block(inner, 1)
        elif kind == "def":
            name = self.new("function")
            argument, default = self.new("number"), self.rng.choice(("", f", acc={self.name('items')}", ", acc=[]"))
            lines = [f"{indent}def {name}({argument}{default}):"]
            self.pools["number"].append(argument)
            lines += self.block(inner, self.rng.randint(1, 2))
            lines += [f"{inner}acc.append({argument})"] if default and self.rng.random() < 0.5 else []
            result = f"len(acc) + {self.number()}" if default else self.number()
            if self.rng.random() < 0.3:
                lines.append(f"{inner}if {self.condition()}: return {self.number()}")
            lines.append(f"{inner}return {result}")
            self.pools = kept
            number = self.new("number")
            lines.append(f"{indent}{number} = {name}({self.number()}) + {name}({self.number()})")
            self.pools["number"].append(number)
            return lines
        else:
            lines = [f"{indent}if {self.condition()}:", *self.block(inner, self.rng.randint(1, 2))]
            if self.rng.random() < 0.15:
                lines.append(f"{inner}return {self.number()}")
            self.pools = {kind: list(names) for kind, names in kept.items()}
            if kind == "else":
                lines += [f"{indent}else:", *self.block(inner, self.rng.randint(1, 2))]
        self.pools = kept
        return lines

    def assigned(self, kind: str, value: str) -> str:
        """`name = value`, of a new name or of one that has a value already."""
        pool = self.pools[kind]
        own = [name for name in pool if name not in ("q_idx", "kv_idx", "h", "b")]
        name = self.rng.choice(own) if own and self.rng.random() < 0.35 else self.new(kind)
        if name not in pool:
            pool.append(name)
        return f"{name} = {value}"


def either(kind: str) -> Callable[[Writer], str]:
    return lambda w: f"({w.name(kind)} if {w.condition()} else {w.name(kind)})"


def some(kind: str) -> Callable[[Writer], str]:
    """A name, or one of two chosen by a condition, or what a helper passes on."""

    def make(w: Writer) -> str:
        way = w.rng.random()
        if way < 0.6:
            return w.name(kind)
        return (
            either(kind)(w)
            if way < 0.8
            else w.rng.choice(
                (f"pick({w.condition()}, {w.name(kind)}, {w.name(kind)})", f"same({w.name(kind)})", f"{w.fresh(kind)}")
            )
        )

    return make


items, dicts, sets, texts, records, iterators = map(some, "items dict set text record iterator".split())

NUMBERS: list[Callable[[Writer, int], str]] = [
    lambda w, d: f"({w.number(d)} {w.rng.choice(['+', '-', '*'])} {w.number(d)})",
    lambda w, d: f"({w.number(d)} % 5)",
    lambda w, d: f"({w.number(d)} if {w.condition()} else {w.number(d)})",
    lambda w, d: f"({w.number(d)} if {w.condition()} else 0.5)",
    lambda w, d: f"len({items(w)})",
    lambda w, d: f"sum({items(w)})",
    lambda w, d: f"max({items(w)})",
    lambda w, d: f"{items(w)}[0]",
    lambda w, d: f"{items(w)}[-1]",
    lambda w, d: f"{items(w)}.count({w.number(d)})",
    lambda w, d: f"{items(w)}.index({w.number(d)})",
    lambda w, d: f"len({dicts(w)})",
    lambda w, d: f"sum({dicts(w)}.values())",
    lambda w, d: f"{dicts(w)}.get({w.number(d)}, {w.number(d)})",
    lambda w, d: f"{dicts(w)}.get(1, {w.number(d)})",
    lambda w, d: f"list({dicts(w)}.values())[0]",
    lambda w, d: f"len({dicts(w)} | {dicts(w)})",
    lambda w, d: f"len(dict([({w.number(d)}, 1), ({w.number(d)}, 2)]))",
    lambda w, d: f"len({sets(w)})",
    lambda w, d: f"len({sets(w)} | {sets(w)})",
    lambda w, d: f"len({sets(w)} & {{1, 2}})",
    lambda w, d: f"max({sets(w)}, default=0)",
    lambda w, d: f"len({texts(w)})",
    lambda w, d: f"{{'1': 4, '2': 5}}.get({texts(w)}, 0)",
    lambda w, d: f"{records(w)}.x",
    lambda w, d: f"{records(w)}.y",
    lambda w, d: f"sum(Vector(1, {w.number(d)}) + Vector(2, 3))",
    lambda w, d: f"Vector({w.number(d)}, 1).total",
    lambda w, d: f"Box({w.number(d)}).flat",
    lambda w, d: f"len(Box({w.number(d)}))",
    lambda w, d: f"next({iterators(w)}, 0)",
    lambda w, d: f"int(isinstance({w.number(d)}, {w.rng.choice(('int', 'float', 'bool', '(int, float)'))}))",
    lambda w, d: f"(type({w.number(d)}) is float)",
    lambda w, d: "COUNTED.next()",
    lambda w, d: "COUNTED.missing",
    lambda w, d: "type(COUNTED).step",
    lambda w, d: f"len({w.rng.choice(('LOUD', 'NUMBERS', 'NAMES', 'SEEN'))})",
    lambda w, d: f"sum({w.rng.choice(('LOUD', 'EVENS', 'NUMBERS', 'SEEN'))})",
    lambda w, d: f"NUMBERS[{w.number(d)} % 3]",
    lambda w, d: f"grown({w.condition()}, {w.number(d)})[-1]",
    lambda w, d: f"len(grown({w.condition()}, 2))",
    lambda w, d: f"log({items(w)}, {w.number(d)})",
    lambda w, d: f"functools.reduce(lambda x, y: x * 2 + y, {items(w)})",
    lambda w, d: f"min({items(w)}, key=lambda x: {w.number(d)} - x)",
    lambda w, d: f"sorted({items(w)})[0]",
    lambda w, d: f"(lambda x, y={w.number(d)}: x + y)({w.number(d)})",
    lambda w, d: f"({w.number(d)} and {w.number(d)})",
    lambda w, d: f"({w.number(d)} or {w.number(d)})",
    lambda w, d: f"((t := {w.number(d)}) + (t := t + 1) * t)",
    lambda w, d: f"sum(x for x in {items(w)} if x != 2)",
    lambda w, d: f"sum(i * x for i, x in enumerate({items(w)}))",
    lambda w, d: f"operator.iadd({items(w)}, [{w.number(d)}])[0]",
    lambda w, d: f"abs({w.number(d)})",
    lambda w, d: f"(Level.HIGH if {w.condition()} else Level.LOW)",
    lambda w, d: f"hash({w.number(d)})",
    lambda w, d: f"getattr(COUNTED, {texts(w)}, 1)",
]
CONDITIONS: list[Callable[[Writer], str]] = [
    lambda w: f"{w.number(0)} in {items(w)}",
    lambda w: f"{w.number(0)} in {sets(w)}",
    lambda w: f"{w.number(0)} not in {dicts(w)}",
    lambda w: f"{w.number(0)} in {dicts(w)}.values()",
    lambda w: f"{w.number(0)} in {w.rng.choice(('EVENS', 'LOUD', 'SEEN', 'NUMBERS', 'NAMES', 'range(1, 6, 2)'))}",
    lambda w: f"{w.number(0)} {w.rng.choice(('==', '!='))} WILD",
    lambda w: f"WILD == {w.number(0)}",
    lambda w: f"{items(w)} == {items(w)}",
    lambda w: f"{items(w)} is {items(w)}",
    lambda w: f"{dicts(w)} == {dicts(w)}",
    lambda w: f"{sets(w)} == {sets(w)}",
    lambda w: f"{sets(w)} <= {sets(w)}",
    lambda w: f"{texts(w)} == {texts(w)}",
    lambda w: f"{texts(w)}",
    lambda w: f"'1' in {texts(w)}",
    lambda w: f"{records(w)} == {records(w)}",
    lambda w: f"isinstance({records(w)}, {w.rng.choice(('Point', 'Vector', 'tuple', 'Box'))})",
    lambda w: f"Box({w.number(0)}, 1).holds({w.number(0)})",
    lambda w: f"{w.number(0)} < {w.number(0)} <= {w.number(0)}",
    lambda w: f"any(x == {w.number(0)} for x in {w.rng.choice((items, iterators))(w)})",
    lambda w: f"all(x != {w.number(0)} for x in {items(w)})",
    lambda w: f"not {w.rng.choice((items, dicts, sets))(w)}",
    lambda w: "LOUD",
    lambda w: f"Level.LOW == {w.number(0)}",
    lambda w: f"Box({w.number(0)})",
    lambda w: f"{items(w)} < {items(w)}",
    lambda w: "hasattr(COUNTED, 'n')",
]
CHANGES: list[Callable[[Writer], str]] = [
    lambda w: f"{items(w)}.append({w.number()})",
    lambda w: f"{items(w)}.append({w.number()})",
    lambda w: f"{items(w)}[0] = {w.number()}",
    lambda w: f"{w.name('items')}[0] += {w.number()}" if w.pools["items"] else "pass",
    lambda w: f"{w.name('items')} += [{w.number()}]" if w.pools["items"] else "pass",
    lambda w: f"{w.name('items')} *= 2" if w.pools["items"] else "pass",
    lambda w: f"{items(w)}.insert(0, {w.number()})",
    lambda w: f"{items(w)}.pop()",
    lambda w: f"{items(w)}.reverse()",
    lambda w: f"{items(w)}.sort()",
    lambda w: f"{items(w)}.remove(1)",
    lambda w: f"{items(w)}.extend({items(w)})",
    lambda w: f"list.append({items(w)}, {w.number()})",
    lambda w: f"{items(w)}.__setitem__(0, {w.number()})",
    lambda w: f"NUMBERS.append({w.number()})",
    lambda w: f"{dicts(w)}[{w.rng.choice(('1', '2', w.number()))}] = {w.number()}",
    lambda w: f"{dicts(w)}.update({{1: {w.number()}}})",
    lambda w: f"{dicts(w)}.setdefault(3, {w.number()})",
    lambda w: f"{dicts(w)}.pop(1, 0)",
    lambda w: f"{w.name('dict')} |= {dicts(w)}" if w.pools["dict"] else "pass",
    lambda w: f"{sets(w)}.add({w.rng.choice(('5', w.number()))})",
    lambda w: f"{w.name('set')} |= {{7}}" if w.pools["set"] else "pass",
    lambda w: f"{sets(w)}.discard(1)",
    lambda w: f"next({iterators(w)}, 0)",
    lambda w: f"COUNTED.n = {w.number()}",
    lambda w: f"{records(w)}.x = {w.number()}",
    lambda w: f"setattr({records(w)}, 'x', 3)",
]
STATEMENTS: list[Callable[[Writer], str]] = [
    *CHANGES,
    *(
        lambda w, kind=kind, make=make: w.assigned(kind, make(w))
        for kind, make in [
            *[("number", Writer.number)] * 8,
            *[("items", items)] * 4,
            *[("dict", dicts)] * 2,
            *[("set", sets)] * 2,
            *[("text", texts)] * 2,
            *[("record", records)] * 3,
            *[("iterator", iterators)] * 2,
            ("items", lambda w: f"[{w.number()}, *{items(w)}]"),
            ("items", lambda w: f"{items(w)} + {items(w)}"),
            ("items", lambda w: f"{items(w)}[1:]"),
            ("items", lambda w: f"[x + {w.number()} for x in {items(w)}]"),
            ("items", lambda w: f"list({w.rng.choice((iterators, sets, dicts))(w)})"),
            ("items", lambda w: f"[{items(w)}, {items(w)}][0]"),
            ("items", lambda w: f"({items(w)}, [{w.number()}])[0]"),
            ("items", lambda w: f"grown({w.condition()}, {w.number()})"),
            ("dict", lambda w: f"{{(t := 1): (t := {w.number()}), t: 3}}"),
            ("dict", lambda w: f"{{**{dicts(w)}, 1: {w.number()}}}"),
            ("dict", lambda w: f"dict(zip([1, 2], {items(w)}))"),
            ("dict", lambda w: f"dict.fromkeys({items(w)}, 1)"),
            ("dict", lambda w: f"{{x: 1 for x in {items(w)}}}"),
            ("record", lambda w: f"Point({w.number()}, 2)._replace(x={w.number()})"),
            ("text", lambda w: f"{texts(w)} + 'x'"),
            ("text", lambda w: f"f'{{{w.rng.choice(w.pools['number'])}:>3}}'"),
        ]
    ),
    lambda w: f"{w.assigned('number', w.number()).split(' = ')[0]}, *rest = [{w.number()}, {w.number()}]",
    lambda w: f"print({w.number()}, {texts(w)}, file=SINK)",
]


def random_program(seed: int) -> str:
    """The source of a score_mod named `scored`."""
    rng = random.Random(seed)
    writer = Writer(rng)
    body = writer.block("    ", rng.randint(1, 4))
    result = " + ".join(f"{weight} * ({writer.number()})" for weight in (1, 10, 100)[: rng.randint(1, 3)])
    return "\n".join(["def scored(score, b, h, q_idx, kv_idx):", *body, f"    return {result}", ""])


# What a later notebook cell does to the names of a mod that was traced before.
LATER: list[str] = [
    "len = lambda x: 9",
    "max = lambda *xs, default=0: 8",
    "sum = lambda xs: 6",
    "isinstance = lambda x, y: True",
    "abs = lambda x: x + 1",
    "WINDOW = 4",
    "WINDOW = True",
    "WINDOW = 2.5",
    "NUMBERS.append(7)",
    "NUMBERS[0] = 8",
    "NUMBERS[0] = 3.0",
    "NAMES['a'] = 2",
    "NAMES[3] = 2",
    "SEEN = frozenset({True, 4})",
    "SEEN = frozenset({2})",
    "COUNTED.missing = 5",
    "COUNTED.n = 5",
    "del COUNTED.n",
    "Counted.step = 7",
    "Counted.__getattr__ = lambda self, name: 3",
    "Evens.__contains__ = lambda self, item: item == 1",
    "Wild.__eq__ = lambda self, other: other == 2",
    "Loud.__len__ = lambda self: 3",
    "BOXES[0].x = 3",
    "BOXES.reverse()",
    "Box.flat = property(lambda self: 4)",
    "Vector.total = 5",
    "def same(a): return a + a",
    "def pick(c, a, b): return b",
]
