"""What classes and calls need of other lines: the fast linter sees it go, and blames what pylint blames."""

import pytest

from engine.lintseq import FastLinter, LintSeqOptions, PylintLinter
from engine.lintseq.sampler import prepare

FAST = FastLinter()
ORACLE = PylintLinter()

PROPERTY = "class A:|    @property|    def b(self):|        return 1|    @b.setter|    def b(self, x):|        print(x)"

# A program (lines apart by "|") that both linters take, the lines that go, the lines then in error for both.
NEEDS = [
    ("class A:|    def a(self):|        self.x = 1|    def b(self):|        return self.x", [1, 2], [2]),
    ("class A:|    x = 1|    def b(self):|        return self.x", [1], [2]),
    ("class A:|    x = 1|    def b(self):|        self.x += 1", [1], [2]),
    ("class A:|    def a(self):|        pass|    def b(self):|        return [self.a() for _ in (1,)]", [1, 2], [2]),
    ("class A:|    x = 1|    y = 1|class B(A):|    def b(self):|        return self.x", [1], [4]),
    ("class A:|    x = 1|    @classmethod|    def b(cls):|        return cls.x", [1], [3]),
    ("class A:|    y = 1|    def a(self):|        pass|class B(A):|    def b(self):|        super().a()", [2, 3], [4]),
    ("class A(ValueError):|    def b(self):|        return self.args, self.__dict__", [], []),
    (
        "class A:|    x = 1|    def __getattr__(self, name):|        return 1|    def b(self):|        return self.x",
        [1],
        [],
    ),
    ("class AMixin:|    x = 1|    def b(self):|        return self.x", [1], []),
    ("import b|class A(b.C):|    x = 1|    def f(self):|        return self.x", [2], []),
    (
        "class A:|    x = 1|    def b(self):|        try:|            return self.x|        except AttributeError:|"
        "            return 1",
        [1],
        [],
    ),
    ("class A:|    def b(self):|        return self.x|a = A()|a.x = 1", [3, 4], [2]),
    (
        "class A:|    def __init__(self):|        self.x = 1|class B(A):|    def __init__(self):|"
        "        super().__init__()|        self.y = 2",
        [5],
        [4],
    ),
    (
        "class A:|    z = 1|    def __init__(self):|        self.x = 1|class B(A):|    def __init__(self):|"
        "        A.__init__(self)|        self.y = 2",
        [2, 3, 6],
        [],
    ),
    ("class A:|    @staticmethod|    def b(x):|        return x", [1], [1]),
    ("class A:|    @classmethod|    def b(cls):|        return cls", [1], [1]),
    ("class A:|    @staticmethod|    def b():|        return 1", [1], [1]),
    ("class A:|    def b(self,|          x):|        return x|    b = staticmethod(b)", [], []),
    ("class A(type):|    def b(cls):|        return cls", [], []),
    ("class A:|    def __new__(cls):|        return object.__new__(cls)", [], []),
    ("class A:|    n = ''|    def __str__(self):|        n = self.n|        return n", [4], [2]),
    ("class A:|    n = 1|    def __len__(self):|        n = self.n|        return n", [4], [2]),
    ("class A:|    n = ()|    def __iter__(self):|        n = self.n|        yield from n", [4], [2]),
    ("class A:|    def __str__(self):|        raise ValueError", [], []),
    ("def f(a):|    b = a|    return b|x = f(1)", [2], [2]),
    ("def f(a):|    b = a|    return b|f(1)", [2], []),
    ("def f(a):|    b = a|    raise ValueError(b)|x = f(1)", [], []),
    (
        "class A:|    def f(self):|        a = 1|        return a|    def g(self):|        b = self.f()|        del b",
        [3],
        [4],
    ),
]


@pytest.mark.parametrize(("program", "gone", "errors"), NEEDS)
def test_what_goes_wrong_in_classes_when_lines_go(program: str, gone: list[int], errors: list[int]) -> None:
    lines = program.split("|")
    assert FAST.check(lines) == ORACLE.check(lines) == []
    kept = [index for index in range(len(lines)) if index not in gone]
    state = [lines[index] for index in kept]
    for linter in (FAST, ORACLE):
        assert sorted({each.line for each in linter.check(state)}) == errors, linter
    prepared = prepare("\n".join(lines), FAST, LintSeqOptions())
    alive = bytearray(index not in gone for index in range(len(lines)))
    assert prepared.watched.errors(alive, frozenset()) == [kept[line] for line in errors]


@pytest.mark.parametrize(
    ("program", "gone", "errors"),
    [
        # The setter goes with its property; pylint blames the decorator.
        (
            PROPERTY,
            [1],
            [5],
        ),
        (
            PROPERTY,
            [4],
            [5],
        ),
        # A class without one of its bases is another class.
        ("class A(|    ValueError,|    KeyError,|):|    x = 1", [1], [0, 2, 3]),
    ],
)
def test_what_hangs_together_goes_together(program: str, gone: list[int], errors: list[int]) -> None:
    prepared = prepare(program.replace("|", "\n"), FAST, LintSeqOptions())
    alive = bytearray(index not in gone for index in range(len(prepared.lines)))
    assert prepared.watched.errors(alive, frozenset()) == errors
