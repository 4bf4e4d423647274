"""Reads CEL (the Common Expression Language's grammar of its specification, without messages) into a small tree.

The library that runs conditions shows no tree of its own, and what they cost must be known before they run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# Characters of one expression, and how deep it may nest: a parser's stack is finite, the library's too.
MAX_SOURCE, MAX_DEPTH = 4096, 48
_TOKENS = re.compile(
    r"""(?P<space>[ \t\r\n\f]+|//[^\n]*)
    |(?P<raw>(?:[rR][bB]?|[bB][rR])(?:'''.*?'''|\"\"\".*?\"\"\"|'[^'\n]*'|"[^"\n]*"))
    |(?P<text>[bB]?(?:'''(?:\\.|[^\\])*?'''|\"\"\"(?:\\.|[^\\])*?\"\"\"|'(?:\\.|[^'\\\n])*'|"(?:\\.|[^"\\\n])*"))
    |(?P<number>0[xX][0-9a-fA-F]+[uU]?|(?:\d+\.\d+|\.\d+|\d+)(?:[eE][+-]?\d+)?[uU]?)
    |(?P<name>[A-Za-z_]\w*)
    |(?P<sign>&&|\|\||[<>=!]=|[-+*/%!<>?:.,()\[\]{}])""",
    re.VERBOSE | re.DOTALL,
)
_LEVELS = (("||",), ("&&",), ("==", "!=", "<", "<=", ">", ">=", "in"), ("+", "-"), ("*", "/", "%"))


@dataclass(frozen=True, slots=True)
class Node:
    """A part of an expression.

    Attributes:
        kind: `literal`, `text`, `name`, `list`, `map`, `select`, `index`, `call`, `unary`, `binary` or `choice`.
        value: the literal, name, field or function; of a chain of operators all of them, with spaces between.
        parts: operands, elements or arguments; of a call on a value that value first.
        method: whether a call has such a value.
    """

    kind: str
    value: str
    parts: tuple[Node, ...] = ()
    method: bool = False


def parse(source: str) -> Node:
    """The tree of an expression.

    Raises:
        ValueError: when it is not CEL, or too long or too deep.
    """
    if len(source) > MAX_SOURCE:
        raise ValueError(f"has {len(source)} characters; a condition has {MAX_SOURCE} at most")
    parser = _Parser(source)
    node = parser.expression()
    if parser.kind:
        raise ValueError(f"is not valid CEL: {parser.text!r} is one too many")
    return node


class _Parser:
    """Recursive descent, a token ahead."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._at = self._depth = 0
        self.kind = self.text = ""
        self.step()

    def step(self) -> str:
        """Goes on by a token; the text of the last one."""
        last = self.text
        while True:
            if self._at == len(self._source):
                self.kind = self.text = ""
                return last
            found = _TOKENS.match(self._source, self._at)
            if found is None:
                raise ValueError(f"is not valid CEL: {self._source[self._at]!r} is no part of it")
            self._at = found.end()
            if found.lastgroup != "space":
                self.kind, self.text = found.lastgroup or "", found.group()
                return last

    def _takes(self, *signs: str) -> str:
        """The present token when it is one of ``signs``, gone past; else empty."""
        return self.step() if self.text in signs and self.kind in ("sign", "name") else ""

    def _need(self, sign: str) -> None:
        if not self._takes(sign):
            raise ValueError(f"is not valid CEL: {sign!r} is missing before {self.text or 'the end'!r}")

    def expression(self) -> Node:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ValueError(f"nests deeper than {MAX_DEPTH}")
        node = self._binary(0)
        if self._takes("?"):
            chosen = self._binary(0)
            self._need(":")
            node = Node("choice", "?", (node, chosen, self.expression()))
        self._depth -= 1
        return node

    def _binary(self, level: int) -> Node:
        if level == len(_LEVELS):
            return self._unary()
        parts, signs = [self._binary(level + 1)], []
        while sign := self._takes(*_LEVELS[level]):
            signs.append(sign)
            parts.append(self._binary(level + 1))
        return Node("binary", " ".join(signs), tuple(parts)) if signs else parts[0]

    def _unary(self) -> Node:
        signs = []
        while sign := self._takes("!", "-"):
            signs.append(sign)
        node = self._member()
        return Node("unary", "".join(signs), (node,)) if signs else node

    def _member(self) -> Node:
        node, length = self._primary(), 0
        while True:
            length += 1
            if length > MAX_DEPTH:
                raise ValueError(f"chains more than {MAX_DEPTH} fields and calls")
            if self._takes("."):
                if self.kind != "name":
                    raise ValueError(f"is not valid CEL: a name is missing before {self.text or 'the end'!r}")
                name = self.step()
                node = (
                    Node("call", name, (node, *self._list(")")), method=True)
                    if self._takes("(")
                    else Node("select", name, (node,))
                )
            elif self._takes("["):
                node = Node("index", "", (node, self.expression()))
                self._need("]")
            else:
                return node

    def _primary(self) -> Node:
        kind = self.kind
        if kind == "number":
            return Node("literal", self.step())
        if kind in ("text", "raw"):
            return Node("text", self.step())
        if kind == "name":
            name = self.step()
            return Node("call", name, self._list(")")) if self._takes("(") else Node("name", name)
        if self._takes("("):
            node = self.expression()
            self._need(")")
            return node
        if self._takes("["):
            return Node("list", "", self._list("]"))
        if self._takes("{"):
            return Node("map", "", self._list("}", pairs=True))
        raise ValueError(f"is not valid CEL: a value is missing before {self.text or 'the end'!r}")

    def _list(self, end: str, *, pairs: bool = False) -> tuple[Node, ...]:
        """Expressions up to ``end``; of a map keys and values in turn."""
        found: list[Node] = []
        while not self._takes(end):
            if found:
                self._need(",")
                # One comma may stand before the end of a list or map.
                if end != ")" and self._takes(end):
                    break
            found.append(self.expression())
            if pairs:
                self._need(":")
                found.append(self.expression())
        return tuple(found)
