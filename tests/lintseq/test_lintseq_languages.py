"""Other languages through their tree-sitter grammars: what is blamed, and what the sampler makes of it."""

import subprocess
import sys
from statistics import mean
from types import ModuleType

import pytest
import tree_sitter_javascript
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import RecipeError
from engine.lintseq import LintSeqOptions, SyntaxLinter, Unlintable, apply_edit_sequence
from engine.lintseq.linting import SYNTAX_ERROR
from engine.lintseq.sampler import prepare

JAVASCRIPT = [
    r"""
/**
 * A queue that runs at most `limit` tasks at a time.
 */
class TaskQueue {
  constructor(limit) {
    this.limit = limit;
    this.running = 0;
    this.waiting = [];
  }

  push(task) {
    return new Promise((resolve, reject) => {
      this.waiting.push({ task, resolve, reject });
      this.advance();
    });
  }

  async advance() {
    if (this.running >= this.limit || this.waiting.length === 0) {
      return;
    }
    const { task, resolve, reject } = this.waiting.shift();
    this.running += 1;
    try {
      resolve(await task());
    } catch (error) {
      reject(error);
    } finally {
      this.running -= 1;
      this.advance();
    }
  }
}

module.exports = { TaskQueue };
""",
    r"""
const UNITS = [
  ['day', 86400],
  ['hour', 3600],
  ['minute', 60],
];

export function ago(then, now = Date.now()) {
  let seconds = Math.round((now - then) / 1000);
  if (seconds < 0) {
    throw new RangeError(`${then} lies in the future`);
  } else if (seconds < 10) {
    return 'just now';
  } else {
    seconds -= seconds % 10;
  }
  for (const [unit, size] of UNITS) {
    const count = Math.floor(seconds / size);
    if (count > 0) {
      return `${count} ${unit}${count === 1 ? '' : 's'} ago`;
    }
  }
  return `${seconds} seconds ago`;
}
""",
    r"""
import { readFile } from 'node:fs/promises';

export const loadSettings = async (path, defaults = {}) => {
  let text;
  try {
    text = await readFile(path, 'utf8');
  } catch (error) {
    if (error.code === 'ENOENT') {
      return { ...defaults };
    }
    throw error;
  }
  const found = Object.fromEntries(
    text
      .split('\n')
      .map((line) => line.replace(/#.*/, '').trim())
      .filter(Boolean)
      .map((line) => {
        const [key, ...rest] = line.split('=');
        return [key.trim(), rest.join('=').trim()];
      }),
  );
  return {
    ...defaults,
    ...found,
    loadedFrom: path,
  };
};
""",
    r"""
function page(title, items) {
  const escape = (text) =>
    text.replace(/[&<>]/g, (char) => `&#${char.charCodeAt(0)};`);
  const rows = items
    .map((item) => `<li>${escape(item)}</li>`)
    .join('\n');
  return `<html>
<head>
  <title>${escape(title)}</title>
  <style>
    li { color: gray; }
  </style>
</head>
<body>
  <ul>
${rows}
  </ul>
</body>
</html>`;
}
""",
]
RUST = [
    r"""
#[derive(Debug, Clone, PartialEq)]
pub enum Token {
    Number(f64),
    Operator(char),
    Open,
    Close,
}

pub fn tokenize(source: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut chars = source.chars().peekable();
    while let Some(&c) = chars.peek() {
        match c {
            ' ' => {
                chars.next();
            }
            '0'..='9' | '.' => {
                let mut digits = String::new();
                while let Some(&d) = chars.peek() {
                    if d.is_ascii_digit() || d == '.' {
                        digits.push(d);
                        chars.next();
                    } else {
                        break;
                    }
                }
                let value = digits
                    .parse()
                    .map_err(|_| format!("{digits} is no number"))?;
                tokens.push(Token::Number(value));
            }
            '+' | '-' | '*' | '/' => {
                tokens.push(Token::Operator(c));
                chars.next();
            }
            // Brackets nest, so the parser pairs them.
            '(' => {
                tokens.push(Token::Open);
                chars.next();
            }
            ')' => {
                tokens.push(Token::Close);
                chars.next();
            }
            other => return Err(format!("unexpected {other:?}")),
        }
    }
    Ok(tokens)
}
""",
    r"""
pub struct Ring<T> {
    items: Vec<Option<T>>,
    first: usize,
    length: usize,
}

impl<T> Ring<T>
where
    T: Clone,
{
    pub fn new(capacity: usize) -> Self {
        assert!(capacity > 0, "a ring needs room");
        Ring {
            items: vec![None; capacity],
            first: 0,
            length: 0,
        }
    }

    pub fn push(&mut self, item: T) -> Option<T> {
        let capacity = self.items.len();
        let at = (self.first + self.length) % capacity;
        let lost = self.items[at].replace(item);
        if self.length == capacity {
            self.first = (self.first + 1) % capacity;
        } else {
            self.length += 1;
        }
        lost
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> + '_ {
        (0..self.length).filter_map(move |offset| {
            let at = (self.first + offset) % self.items.len();
            self.items[at].as_ref()
        })
    }
}
""",
    r"""
/* Roman numerals,
   up to 3999. */
const NUMERALS: [(u32, &str); 5] = [
    (10, "X"),
    (9, "IX"),
    (5, "V"),
    (4, "IV"),
    (1, "I"),
];

fn roman(mut number: u32) -> String {
    let mut text = String::new();
    for (value, numeral) in NUMERALS {
        while number >= value {
            text.push_str(numeral);
            number -= value;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_numbers() {
        assert_eq!(roman(4), "IV");
        assert_eq!(
            roman(19),
            "XIX",
        );
    }
}
""",
    r"""
const HELP: &str = "usage: wc [-l] FILE...
  -l    lines only
  -h    this text
";

fn main() -> std::io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|each| each == "-h") || arguments.is_empty() {
        println!("{HELP}");
        return Ok(());
    }
    let only_lines = arguments[0] == "-l";
    for path in arguments.iter().filter(|each| *each != "-l") {
        let text = std::fs::read_to_string(path)?;
        let lines = text.lines().count();
        if only_lines {
            println!("{lines} {path}");
        } else {
            println!(
                "{lines} {words} {path}",
                words = text.split_whitespace().count(),
            );
        }
    }
    Ok(())
}
""",
]
PROGRAMS = {
    "javascript": [each.removeprefix("\n") for each in JAVASCRIPT],
    "rust": [each.removeprefix("\n") for each in RUST],
}
LINTERS = {language: SyntaxLinter(language) for language in PROGRAMS}
EACH = pytest.mark.parametrize(
    ("language", "program"), [(language, program) for language, programs in PROGRAMS.items() for program in programs]
)
LANGUAGES = pytest.mark.parametrize("language", PROGRAMS)
SEEDS = range(8)

# Language, program (| separates lines), lines to blame.
BROKEN = [
    # What was opened deeper and not closed, not the function around it, which the parser blames.
    ("javascript", "function f(a) {|  if (a) {|    g();|}|let b = 2;", [1]),
    ("javascript", "function f(a) {|  g();|  }|  h();|}|let b = 2;", [2]),
    ("javascript", "function f(a) {|  } else {|    g();|  }|}", [1]),
    ("javascript", "const x = [|  1,|  2,|let y = 3;", [0]),
    ("javascript", "f(() => {|  g(|    1,|});", [1]),
    ("rust", "fn f() {|    match x {|        1 => 2,|}|fn g() {}", [1]),
    ("rust", "fn f() {|    g(|        1,|    2|}", [1]),
    ("rust", "fn f() {|    1 => {|    }|    }|}", [3]),
    # Unindented text leaves nothing to go by but the brackets themselves.
    ("javascript", "f({|a: [1, 2|});", [1]),
    ("javascript", ")", [0]),
    # A statement that is cut short, not the next one, which the parser read on into.
    ("javascript", "const f = (a) =>|const g = 1;", [0]),
    ("javascript", "if (a)||else|  b()", [0]),
    ("rust", "fn f() {|    let x = a|        .b()|    c();|}", [2]),
    ("rust", "fn f() {|    let x =|    y();|    z()|}|fn g()", [5]),
    ("rust", "fn f() -> u8|fn g() {}", [0]),
    ("rust", "fn f() {}|/* open|fn g() {}|", [1]),
    # Where the parser stumbled.
    ("javascript", "a;|x = {|  b: 1|  c: 2,|};|y;", [3]),
    ("javascript", "class A {|  f() {}|  return 3;|}", [2]),
    ("javascript", "let a = 1;\r|let b = = 2;\r|c\r", [1]),
    ("javascript", "let é = 'ü\u2028';|// ñ|let 名 = 3 3;", [2]),
    ("rust", "struct A {|    a: B,|    fn f() {}|}", [2]),
    ("rust", "fn f() {\x00}|fn g() {}", [0]),
]


@EACH
def test_real_programs_are_clean(language: str, program: str) -> None:
    linter = LINTERS[language]
    for text in (program, program.replace("\n", "\r\n"), program.replace("count", "名é"), "", "\n\n"):
        assert linter.check(text.split("\n")) == []


@pytest.mark.parametrize(("language", "program", "lines"), BROKEN)
def test_the_line_to_blame(language: str, program: str, lines: list[int]) -> None:
    found = LINTERS[language].check(program.split("|"))
    assert [each.line for each in found] == lines
    assert {each.code for each in found} == {SYNTAX_ERROR}


def test_names_are_nobodys_business() -> None:
    assert LINTERS["javascript"].check(["nowhere(toBeFound);"]) == []
    assert LINTERS["rust"].check(["fn f() -> Nothing { gone() }"]) == []


def test_a_lone_surrogate_cannot_be_linted() -> None:
    linter = LINTERS["javascript"]
    with pytest.raises(Unlintable):
        linter.check(["f('\ud800')"])
    assert linter.candidates(["f('\ud800')"]) == [0]
    assert linter.indents(["  f('\ud800')"]) == [2]


@EACH
def test_programs_come_back_through_clean_states(language: str, program: str) -> None:
    linter = LINTERS[language]
    for text in (program, program.replace("\n", "\r\n")):
        prepared = prepare(text, linter, LintSeqOptions())
        for seed in SEEDS:
            edits = prepared.sample(seed)
            assert apply_edit_sequence(edits) == text
            for count in range(1, len(edits)):
                assert linter.check(apply_edit_sequence(edits[:count]).split("\n")) == []


@LANGUAGES
def test_programs_are_written_in_several_edits(language: str) -> None:
    prepared = [prepare(program, LINTERS[language], LintSeqOptions()) for program in PROGRAMS[language]]
    edits = [mean(len(each.sample(seed)) for seed in SEEDS) for each in prepared]
    # Blaming the parser's places alone gives 4.4.
    assert mean(edits) > 5
    assert min(edits) > 2


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(sorted(PROGRAMS)),
    st.lists(
        st.one_of(
            st.text(max_size=8),
            st.sampled_from([line for programs in PROGRAMS.values() for each in programs for line in each.split("\n")]),
        ),
        max_size=10,
    ).map("\n".join),
)
def test_any_text_comes_back(language: str, program: str) -> None:
    lines = program.split("\n")
    linter = LINTERS[language]
    assert all(0 <= each.line < len(lines) for each in linter.check(lines))
    assert set(linter.candidates(lines)) <= set(range(len(lines)))
    assert len(linter.indents(lines)) == len(lines)
    assert apply_edit_sequence(prepare(program, linter, LintSeqOptions()).sample(1)) == program


@pytest.mark.parametrize(
    ("language", "program", "drawn"),
    [
        ("javascript", "// a||let b; // c|/* d|   e */ f();|/**| * g| */|h({|  i,|});|}", [2, 4, 8, 9]),
        ("javascript", "let a = `b|// no comment|${c(|)}`;|d()", [0, 4]),
        ("javascript", "let a = '// no comment';\r|// a comment\r", [0]),
        ("rust", "//! a|/// b|fn c() {|    // d|    e() /* f */|    /* g /* h */ */|}|where|{", [2, 4, 7, 8]),
        ("rust", 'let a = "b|  c",|d = 1;', [0, 2]),
    ],
)
def test_lines_worth_drawing_have_code_of_their_own(language: str, program: str, drawn: list[int]) -> None:
    assert LINTERS[language].candidates(program.split("|")) == drawn


@pytest.mark.parametrize(
    ("language", "program", "indents"),
    [
        ("javascript", "f(() => {|\tif (a) {|\t\tb();||\t}|});", [0, 1, 2, 2, 1, 0]),
        ("javascript", "{|  let a = `b|c${`d|e`}||`;|  f()|}", [0, 2, 3, 3, 3, 3, 2, 0]),
        ("rust", "/* a|b|*/|// c|/// d|fn e() {}", [0, 1, 1, 0, 0, 0]),
    ],
)
def test_the_depth_of_lines(language: str, program: str, indents: list[int]) -> None:
    assert LINTERS[language].indents(program.split("|")) == indents


def test_a_grammar_that_is_not_installed_is_one_sentence() -> None:
    with pytest.raises(RecipeError) as raised:
        SyntaxLinter("c-cobol")
    assert str(raised.value) == (
        "The syntax of 'c_cobol' needs tree-sitter-c-cobol, which cannot be imported. "
        "Install it: pip install tree-sitter-c-cobol"
    )


def test_without_tree_sitter_both_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tree_sitter", None)
    with pytest.raises(RecipeError, match="pip install tree-sitter tree-sitter-rust"):
        SyntaxLinter("rust")


@pytest.mark.parametrize("language", ["", "Rust", "1c", "../rust", "a b", "é", "rust\n", "_rust"])
def test_other_names_are_refused(language: str) -> None:
    with pytest.raises(RecipeError, match="cannot name a language"):
        SyntaxLinter(language)


def test_packages_of_several_grammars_name_each(monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("tree_sitter_typescript")
    monkeypatch.setitem(sys.modules, package.__name__, package)
    with pytest.raises(RecipeError, match="offers no grammar"):
        SyntaxLinter("typescript")
    monkeypatch.setattr(package, "language_typescript", tree_sitter_javascript.language, raising=False)
    assert [each.line for each in SyntaxLinter("typescript").check(["let a;", "let b c"])] == [1]


def test_tree_sitter_is_loaded_for_a_linter_only() -> None:
    code = (
        "import sys, engine.lintseq as room; room.FastLinter, room.linter_for; assert 'tree_sitter' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
