"""Structural mutations of JSON: what byte by byte would hardly be come upon. For atheris and hypothesis alike."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

STRANGE: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 255, 2**31, -(2**31), 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**18, 10**30, -(10**30), 10**400, 0.0, -0.0, 0.5, -1.5,
    1e-320, 1e18, 1e308, float("inf"), float("-inf"), float("nan"), "", " ", "x", "0", "1", "-1", "nan", "1e999", "None", "..", ".", "../../x", "/etc/passwd",
    "/", "a/b", "a\\b", "\0", "\n", "\ud800", "é", "<script>", "[red]", "%s", "{0}", "A" * 300, "9" * 5000, [], {}, [[]], [None], [1, "x"], {"": 0}, {"x": {}}, [[1], [2, 3]],
    "float32", "bfloat16", "complete", "writing", "topk", "jumprelu", "gated",
)  # fmt: skip
DEEP = ("[" * 3000, '{"a":' * 3000, "[" * 3000 + "]" * 3000, '{"a":' * 3000 + "1" + "}" * 3000)
SCALES: tuple[Callable[[Any], Any], ...] = (
    lambda v: v + 1, lambda v: v - 1, lambda v: -v, lambda v: v * 2, lambda v: v * 10**9, lambda v: v // 2, float, str, lambda v: [v], lambda v: v / 3,
)  # fmt: skip

Key = Any
Node = dict[str, Any] | list[Any]


def mutated(data: bytes, random: Random, most: int = 4) -> bytes:
    """The JSON in `data` with up to `most` changes to it; what is no JSON comes back as it is."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return data
    holder = [value]
    for _ in range(random.randint(1, most)):
        _change(holder, random)
    try:
        return json.dumps(holder[0]).encode()
    except (ValueError, RecursionError):  # an int of more digits than Python writes
        return data


def changed_lines(data: bytes, random: Random, words: Sequence[str], most: int = 4) -> bytes:
    """The lines in `data` with up to `most` changes to them: of `words`, of strange ones, or of their order."""
    lines = data.split(b"\n")
    for _ in range(random.randint(1, most)):
        at = random.randrange(len(lines) + 1)
        word = random.choice((*words, *(str(one) for one in STRANGE if one not in (10**400,))))
        told = word.encode("utf-8", "surrogatepass")
        match random.randrange(6):
            case 0 | 1:
                lines.insert(at, told)
            case 2 | 3 if at < len(lines):
                lines[at] = told
            case 4 if at < len(lines) > 1:
                del lines[at]
            case _:
                lines.insert(at, random.choice(lines))
    return b"\n".join(lines)


def damaged(data: bytes, random: Random) -> bytes:
    """Bytes that were cut, overwritten, repeated, or written in another encoding."""
    at, size = random.randrange(len(data) + 1), random.choice((1, 1, 2, 4, 8))
    match random.randrange(7):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + random.choice((b"\xff", b"\0", b"\x7f")) * size + data[at + size :]
        case 2:
            return data[:at] + random.randbytes(size) + data[at:]
        case 3:
            return data[:at] + data[at + size :]
        case 4:
            return data[:at] + data[at - size : at] * random.choice((2, 50)) + data[at:]
        case 5:
            return data.decode("latin-1").encode(random.choice(("utf-16", "utf-8-sig")))
        case _:
            flipped = bytearray(data)
            for place in random.sample(range(len(data)), min(len(data), 3)):
                flipped[place] ^= 1 << random.randrange(8)
            return bytes(flipped)


def _change(holder: list[Any], random: Random) -> None:
    places = list(_places(holder))
    node, key = random.choice(places)
    value = node[key]
    match random.randrange(9):
        case 0 | 1 | 2:
            node[key] = (
                json.loads(json.dumps(random.choice(STRANGE[:24] + STRANGE[25:]))) if random.random() < 0.97 else 10**400
            )
        case 3 if isinstance(value, int | float) and not isinstance(value, bool):
            try:
                node[key] = random.choice(SCALES)(value)
            except (OverflowError, ValueError):
                node[key] = 1e308
        case 4 if node is not holder:
            if isinstance(node, dict):
                del node[key]
            else:
                node.pop(key)
        case 5 if node is not holder:
            other, name = random.choice(places)
            if other is not holder:
                node[key] = (
                    json.loads(json.dumps(other.get(name) if isinstance(other, dict) else other[name]))
                    if _has(other, name)
                    else None
                )
        case 6 if isinstance(value, str) and value:
            at = random.randrange(len(value))
            node[key] = random.choice(
                (value[:at], value[:at] + random.choice("\0/.:\\9e-é") + value[at:], value * 2, value[::-1])
            )
        case 7 if isinstance(node, dict):
            node[str(random.choice(STRANGE))[:300]] = node.pop(key)
        case 8 if node is not holder:
            # Of a tree of files: the file's text, cut, or nested beyond all measure.
            text = json.dumps(value) if not isinstance(value, str) else value
            node[key] = random.choice((text[: random.randrange(len(text) + 1)], random.choice(DEEP), text + text))
        case _:
            node[key] = random.choice(([value], {"x": value}, [value, value]))


def _has(node: Node, key: Key) -> bool:
    return key in node if isinstance(node, dict) else key < len(node)


def _places(node: Any) -> list[tuple[Node, Key]]:
    """Every place in a JSON value, as (what holds it, its key or index)."""
    found: list[tuple[Node, Key]] = []
    todo = [node]
    while todo:
        at = todo.pop()
        pairs = at.items() if isinstance(at, dict) else enumerate(at) if isinstance(at, list) else ()
        for key, value in pairs:
            found.append((at, key))
            todo.append(value)
    return found
