"""A YAML document with the place of everything in it, so that errors can say where.

Values are resolved by the rules of YAML 1.2's core schema, not PyYAML's 1.1: `off` is a word, `12:30` is not a
number of minutes, `010` is ten.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from memcluster.client.variables import substitute

Path = tuple[str | int, ...]
"""Keys and indexes from the root."""
MAX_NODES = 10_000
"""Values in one file, at most: aliases must not blow it up."""

_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys(("null", "Null", "NULL", "~", ""), None),
}


class YAMLProblem(Exception):
    """The text is no YAML, or says something twice; line and column count from 1."""

    def __init__(self, message: str, line: int, column: int) -> None:
        super().__init__(message)
        self.message = message
        self.line = line
        self.column = column


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong, and where; line 0 means the file as a whole."""

    file: str
    line: int
    column: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.message}" if self.line else f"{self.file}: {self.message}"


@dataclass
class Document:
    """`value` is plain data; `keys` and `values` say where (line, column) each key and value stands, `texts` how each
    scalar is written."""

    value: Any = None
    keys: dict[Path, tuple[int, int]] = field(default_factory=dict)
    values: dict[Path, tuple[int, int]] = field(default_factory=dict)
    texts: dict[Path, str] = field(default_factory=dict)


def parse(content: bytes) -> Document:
    """Raises YAMLProblem."""
    document = Document()
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        lines = content[: error.start].decode().split("\n")
        raise YAMLProblem("this is not UTF-8", len(lines), len(lines[-1]) + 1) from error
    try:
        loader = yaml.SafeLoader(text)
        try:
            root = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        words = error.problem or error.context or ""
        if words.startswith("but "):  # the second half of a sentence
            words = f"{error.context}, {words}"
        raise YAMLProblem(f"not YAML: {words}", line, column) from error
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        line, column = before.count("\n") + 1, error.position - before.rfind("\n")
        raise YAMLProblem(f"not YAML: the character U+{error.character:04X} is not allowed", line, column) from error
    except RecursionError as error:
        raise YAMLProblem("nested too deeply", 1, 1) from error
    if root is not None:
        document.value = _Builder(document).build(root, (), ())
    return document


class _Builder:
    def __init__(self, document: Document) -> None:
        self.document = document
        self.count = 0

    def build(self, node: yaml.Node, path: Path, above: tuple[int, ...]) -> Any:
        line, column = _place(node)
        self.count += 1
        if id(node) in above or self.count > MAX_NODES:
            raise YAMLProblem("aliases make it endless", line, column)
        self.document.values[path] = line, column
        if isinstance(node, yaml.SequenceNode):
            above += (id(node),)
            return [self.build(item, (*path, index), above) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            above += (id(node),)
            mapping: dict[str, Any] = {}
            for key_node, value_node in node.value:
                key_line, key_column = _place(key_node)
                if not isinstance(key_node, yaml.ScalarNode):
                    raise YAMLProblem("a key must be a word", key_line, key_column)
                key = key_node.value
                if key in mapping:
                    raise YAMLProblem(f"{key!r} is there twice", key_line, key_column)
                self.document.keys[*path, key] = key_line, key_column
                mapping[key] = self.build(value_node, (*path, key), above)
            return mapping
        assert isinstance(node, yaml.ScalarNode)
        try:
            node.value = substitute(node.value, os.environ)
        except ValueError as error:
            raise YAMLProblem(str(error), line, column) from error
        self.document.texts[path] = str(node.value)
        return _scalar(node)


def _place(node: yaml.Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1


def _scalar(node: yaml.ScalarNode) -> Any:
    text = str(node.value)
    if node.style is not None:  # quoted, or a block of text
        return text
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        try:
            return int(text, 0 if text[:2] in ("0o", "0x") else 10)
        except ValueError:  # more digits than Python converts
            return text
    return float(text) if _FLOAT.fullmatch(text) else text
