"""Words that the course, its docstrings and errors avoid, so that a first reader can follow."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
CHAPTERS = sorted((ROOT / "book").glob("*.ipynb"))
PAGES = [*sorted((ROOT / "book").glob("*.md")), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md"))]
CODE = [
    *sorted((ROOT / "gauss_flows").glob("*.py")),
    *(p for p in sorted((ROOT / "book").rglob("*.py")) if ".ipynb_checkpoints" not in p.parts),
    ROOT / "_style.py",
]

_PARTS = "(?:coordinate|network|conditioner|output|unit|layer|active|passive|element|map)s?"
_COUNTED = "(?:(?:number|bit|nat|row|parameter|weight|run|second|time|evaluation|term)s?|passes)"
_EACH = "(?:coordinate|pixel|parameter|layer|block|point|step|dimension|draw|seed|sample|row|second|event)"

# Each pattern with what to write in its place.
WORDS = {
    r"dear(?:er|est|ly)?": "expensive, or how many times the cost",
    r"cheap(?:er|est|ly)?": "inexpensive, or how many times the cost",
    r"hears?|heard": "depends on",
    r"silent": "outputs a constant",
    rf"{_PARTS} (?:read|reads|hears?|says?|sees?|knows?)": "depends on, takes as input, outputs",
    r"(?:some|no|every|any)body|everyone|whoever": "at least one coordinate, no layer, every output",
    r"whatever": "any, no",
    r"for ever|forever": "permanently",
    rf"{_COUNTED} an? {_EACH}": "one number per coordinate, bits per pixel",
    r"(?:is|are) worth|would want|might use more": "gains, requires, needs more steps",
    r"mend(?:s|ed|ing)?": "repair, correct",
    r"proofs?|prov(?:e|es|ed|en|ing)": "check, test, verify",
    r"blindfold\w*|conspires?": "say what happens",
}

# Chapters that are not rewritten yet; nothing may be added here.
WAITING: set[str] = set()

# Where a word is right: the file, a phrase that contains it, and the reason.
ALLOWED: dict[str, dict[str, str]] = {}


def text_of_code(source: str) -> Iterator[str]:
    """Docstrings, other strings and comments of Python code."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


def text_of(path: Path) -> str:
    """What a reader reads in a file."""
    if path.suffix == ".md":
        return path.read_text()
    if path.suffix == ".py":
        return "\n".join(text_of_code(path.read_text()))
    parts = []
    for cell in nbformat.read(path, as_version=4).cells:
        parts += [cell.source] if cell.cell_type == "markdown" else text_of_code(cell.source)
        parts.append(cell.metadata.get("mystnb", {}).get("image", {}).get("alt", ""))
    return "\n".join(parts)


def found(text: str, allowed: dict[str, str]) -> list[str]:
    """Each avoided word with the words around it and what to write."""
    for phrase in allowed:
        text = text.replace(phrase, " ")
    text = re.sub(r"\s+", " ", re.sub(r"\{cite:?\w?\}`[^`]*`|\{doc\}`\w+`", " ", text))
    return [
        f"…{text[max(0, match.start() - 30) : match.end() + 30]}… → {better}"
        for pattern, better in WORDS.items()
        for match in re.finditer(rf"\b(?:{pattern})\b", text, re.IGNORECASE)
    ]


@pytest.mark.parametrize(
    "path",
    [*[p for p in CHAPTERS if p.stem not in WAITING], *PAGES, *CODE],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_plain_words(path):
    allowed = ALLOWED.get(str(path.relative_to(ROOT)), {})
    text = text_of(path)
    assert [phrase for phrase in allowed if phrase not in text] == [], "an exception that nothing needs"
    assert found(text, allowed) == []


def test_test_names_are_plain():
    names = [
        f"{path.name}: {node.name.replace('_', ' ')}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    ]
    assert [name for name in names if found(name, {})] == []


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Training is dear.", 1),
        ("No coordinate reads another; nobody knows why.", 2),
        ("The cost is two numbers a coordinate.", 1),
        ("The cost is two numbers per coordinate, read from a table.", 0),
        ("The check proves nothing.", 1),
    ],
)
def test_avoided_words_are_found(text, count):
    assert len(found(text, {})) == count
