"""Which parameters a freeze selector means.

A selector is what a person writes after ``--freeze``: ``10``, ``0-9``, ``backbone``, ``model_*/cv1/**``. It is resolved
against the paths of a real parameter tree, so a typing error is an error here and never a network that silently trains.

    10               the first ten layers, 0 to 9, as YOLOv5 means it; 0 is none
    0-9              layers 0 to 9
    [1]              exactly layer 1;  [0, 2, 5] or several values: exactly these
    backbone         a group: all, backbone, neck, head (neck and detect), detect, bn, bias
    model_*/cv1/**   a path or a folder of paths; * and ? stay inside a name, ** crosses /, [ab] is one of a set
    model.0.         a name or the start of one as PyTorch has it, for instance model.2.cv1.conv.weight
    re:.*/m_\\d/.*    a regular expression that matches the whole path
    not:bn           takes away again; as the first term it takes away from everything

Terms in a list add up from left to right. ``95%``, alone after ``--freeze``, becomes such a number (``layers_within``).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeAlias

from yolojax.errors import UserError

GROUPS = ("all", "backbone", "neck", "head", "detect", "bn", "bias")
SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*%")
_LAYER = re.compile(r"model_(\d+)/")
_HEAD = re.compile(r"model_\d+/m_\d+/kernel")
_TORCH_NAME = re.compile(r"model\.\d+(\.\w+)*\.?")


@dataclass(frozen=True)
class Term:
    """One part of a selector: ``layers`` (inclusive range) or a ``pattern`` that paths match or a ``group``."""

    text: str
    layers: range | None = None
    pattern: re.Pattern[str] | None = None
    group: str | None = None
    negated: bool = False


@dataclass(frozen=True)
class Selector:
    """A parsed selector; ``text`` is how errors quote it, with the flag or file it came from."""

    text: str
    terms: tuple[Term, ...]


Selection: TypeAlias = Selector | int | str | Sequence[int | str]


def layer_of(path: str) -> int:
    """The index k of the ``model_k`` a path belongs to.

    >>> layer_of("model_10/cv1/conv/kernel")
    10
    """
    match = _LAYER.match(path)
    if match is None:
        raise ValueError(f"{path} is not below a layer (model_0, model_1, …)")
    return int(match[1])


def layers_within(share: float, sizes: Mapping[str, int]) -> int:
    """The greatest N whose first N layers hold at most a share of the parameters.

    Args:
      share: 0 to 1.
      sizes: values of every parameter by path.

    >>> layers_within(0.5, {"model_0/kernel": 30, "model_2/kernel": 20, "model_3/kernel": 50})
    3
    """
    held = [0] * (max(map(layer_of, sizes)) + 1)
    for path, size in sizes.items():
        held[layer_of(path)] += size
    most = share * sum(held) * (1 + 1e-12)  # 29.9 % of 1000 is 298.99… in floating point
    return sum(below <= most for below in accumulate(held))


def backbone_end(paths: Iterable[str]) -> int | None:
    """The first layer behind the backbone: 10 in P5 models, 12 in P6 models; ``None`` where none is recognised.

    The backbone ends with SPPF, the one layer made of exactly ``cv1`` and ``cv2``; in a joined network with that of the first branch.
    """
    children: dict[int, set[str]] = {}
    paths = tuple(paths)
    first_detect = min(detect_layers(paths), default=None)
    for path in paths:
        if first_detect is None or layer_of(path) < first_detect:
            children.setdefault(layer_of(path), set()).add(path.split("/")[1])
    return max((layer + 1 for layer, names in children.items() if names == {"cv1", "cv2"}), default=None)


def detect_layers(paths: Iterable[str]) -> frozenset[int]:
    """The layers with kernels directly below ``m_0``, ``m_1`` …: Detect, or in a joined network several of it.

    >>> detect_layers(["model_23/m_0/cv1/conv/kernel", "model_24/m_0/kernel"])
    frozenset({24})
    """
    return frozenset(layer_of(path) for path in paths if _HEAD.match(path))


def parse_selector(value: Selection, origin: str = "--freeze") -> Selector:
    """Read a selector; nothing is known of the network yet.

    Args:
      value: text, a number, or a list of both, as in the module's grammar. A list of one text is that text (a command
        line gives lists); a list of one number, as ``[1]`` in YAML, is exactly that layer.
      origin: the flag, or file and key, that errors name.

    Raises:
      UserError: it cannot be read.

    >>> [term.layers for term in parse_selector("10").terms], [term.layers for term in parse_selector([10]).terms]
    ([range(0, 10)], [range(10, 11)])
    """
    if isinstance(value, Selector):
        return value
    values = [value] if isinstance(value, str) or not isinstance(value, Sequence) else list(value)
    text = f"{origin} {' '.join(map(str, values)) or '[]'}"
    if _is_split_list(values):  # a shell made words of [0, 1, 2] without quotes
        values = [" ".join(map(str, values))]
    if not all(isinstance(item, int | str) and not isinstance(item, bool) for item in values):
        raise UserError(f"{text}: a selector is a number, a text or a list of these")
    if isinstance(value, int) or (len(values) == 1 and isinstance(values[0], str) and values[0].strip().isdecimal()):
        # Alone, a number is a prefix; in a list it is one layer.
        count = int(values[0])
        if count < 0:
            raise UserError(f"{text}: the number of layers to freeze cannot be negative")
        return Selector(text, (Term(str(count), layers=range(count)),))
    return Selector(text, tuple(_parse_term(part, text) for item in values for part in _parts(str(item).strip())))


def _is_split_list(values: Sequence[object]) -> bool:
    words = " ".join(map(str, values))
    brackets = "".join(re.findall(r"[\[\]]", words))
    return len(values) > 1 and brackets == "[]" and words.startswith("[") and words.endswith("]")


def _parts(text: str) -> list[str]:
    if text.startswith(("re:", "not:re:")):  # an expression may hold commas and brackets
        return [text]
    listed = text.startswith("[") and text.endswith("]")
    inner = text[1:-1].strip() if listed else text
    return [part.strip() for part in inner.split(",")] if inner or not listed else []


def _parse_term(text: str, origin: str) -> Term:
    rest, negated = text.removeprefix("not:"), text.startswith("not:")
    if not rest:
        raise UserError(f"{origin}: a term is empty; write 0 to select nothing")
    if numbers := re.fullmatch(r"(-?\d+)(?:-(\d+))?", rest):
        first, last = int(numbers[1]), int(numbers[2] or numbers[1])
        if first < 0 or last < first:
            raise UserError(f"{origin}: '{rest}' is no layer or range of layers such as 0-9")
        return Term(text, layers=range(first, last + 1), negated=negated)
    if rest in GROUPS:
        return Term(text, group=rest, negated=negated)
    if SHARE.fullmatch(rest):
        raise UserError(f"{origin}: '{rest}', a share of the parameters, stands alone after --freeze; name layers here")
    if _TORCH_NAME.fullmatch(rest):
        rest = _path_of(rest)
    try:
        pattern = re.compile(rest.removeprefix("re:") if rest.startswith("re:") else _translate_glob(rest))
    except re.error as error:
        raise UserError(f"{origin}: '{rest}' is no valid pattern: {error}") from error
    return Term(text, pattern=pattern, negated=negated)


def _path_of(name: str) -> str:
    """The path, or folder of paths, of a name that PyTorch gives a tensor or a module.

    >>> _path_of("model.0."), _path_of("model.2.m.0.cv1.bn.weight")
    ('model_0', 'model_2/m_0/cv1/bn/scale')
    """
    path = re.sub(r"\.(\d+)(?=\.|$)", r"_\1", name.rstrip(".")).replace(".", "/")
    return re.sub("/weight$", "/kernel", re.sub("/bn/weight$", "/bn/scale", path))


def _translate_glob(glob: str) -> str:
    parts = {"**/": r"(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    tokens = re.findall(r"\*\*/|\*\*|\*|\?|\[[^\]]+\]|.", glob)
    expression = "".join(
        parts.get(token) or (token.replace("[!", "[^", 1) if len(token) > 2 else re.escape(token)) for token in tokens
    )
    return f"{expression}(?:/.*)?"  # a folder means everything below it


def _group_test(group: str, paths: Sequence[str]) -> Callable[[str], bool] | None:
    if group == "all":
        return lambda path: True
    detects = detect_layers(paths)
    if group == "detect":
        return lambda path: layer_of(path) in detects
    if group == "bn":
        return lambda path: "/bn/" in path
    if group == "bias":
        return lambda path: path.endswith("/bias")
    end = backbone_end(paths)
    if end is None:
        return None
    if group == "backbone":
        return lambda path: layer_of(path) < end
    excluded = detects if group == "neck" else frozenset()
    return lambda path: layer_of(path) >= end and layer_of(path) not in excluded


def select(selector: Selection, paths: Iterable[str], network: str = "") -> frozenset[str]:
    """The paths that a selector means.

    Args:
      selector: parsed or not.
      paths: every parameter path of the network.
      network: its name, for errors.

    Raises:
      UserError: a layer does not exist, or a group, glob or expression matches nothing, or all terms together do not
        (a layer without parameters may be named among others). Only ``0`` and ``[]`` mean nothing on purpose.
    """
    selector, paths = parse_selector(selector), tuple(paths)
    chosen: set[str] = set()
    for number, term in enumerate(selector.terms):
        matched = _match(term, selector, paths, network or "the network")
        if term.negated:
            chosen = (chosen if number else set(paths)) - matched
        else:
            chosen |= matched
    asks_for_nothing = all(term.layers is not None and not term.layers for term in selector.terms)
    if not chosen and not asks_for_nothing:
        raise UserError(f"{selector.text}: there are no parameters in it; {_how_to_list(network)}")
    return frozenset(chosen)


def _match(term: Term, selector: Selector, paths: Sequence[str], network: str) -> set[str]:
    if term.layers is not None:
        last = max(map(layer_of, paths))
        if term.layers.stop > last + 1:
            raise UserError(f"{selector.text}: {network} has layers 0 to {last}; {_how_to_list(network)}")
        return {path for path in paths if layer_of(path) in term.layers}
    if term.pattern is not None:
        matched = {path for path in paths if term.pattern.fullmatch(path)}
        problem = f"'{term.text}' matches no parameter of {network}"
    else:
        assert term.group is not None
        test = _group_test(term.group, paths)
        matched = {path for path in paths if test is not None and test(path)}
        problem = f"{network} has no '{term.group}' that could be recognised"
    if matched:
        return matched
    near = difflib.get_close_matches(term.text.removeprefix("not:"), [*GROUPS, *paths], n=1, cutoff=0.75)
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise UserError(
        f"{selector.text}: {problem}; {hint}groups are {', '.join(GROUPS)}, a path is for example {paths[0]}; "
        f"{_how_to_list(network)}"
    )


def _how_to_list(network: str) -> str:
    named = f" --cfg {network}" if network.startswith("yolov5") else ""
    return f"'yolojax freeze{named} --list' lists them"
