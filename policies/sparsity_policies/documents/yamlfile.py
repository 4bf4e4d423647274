"""Policy documents as YAML text: read with every mistake at its line, written as people would."""

from __future__ import annotations

import re
from collections.abc import Iterator

import yaml
from sparsity_rpc.errors import InvalidRequestError, Violation

from sparsity_policies.documents.document import MAX_BYTES, parse_policy, to_document
from sparsity_policies.documents.yaml_bounds import check_growth
from sparsity_policies.model import Policy

# libyaml where the wheel carries it: a policy of a megabyte takes seconds without.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# Of odd values, such as a 31st of June, `!!bool maybe` or aliases of aliases, the library raises whatever it met.
_ODD = (ValueError, LookupError, AttributeError, TypeError, ArithmeticError, RecursionError)
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def dump_yaml(policy: Policy) -> str:
    """The document that :func:`load_yaml` reads."""
    text: str = yaml.dump(to_document(policy), Dumper=_DUMPER, sort_keys=False, allow_unicode=True, width=120)
    return text


def load_yaml(text: str, source: str) -> Policy:
    """Reads a policy from YAML; violations carry the line they stand in.

    Raises:
        InvalidRequestError: with fields like ``medical.yaml:12: bands[1].tier``.
    """
    if len(text) > 2 * MAX_BYTES:
        raise InvalidRequestError.of(source, f"is {len(text)} characters; a policy has {2 * MAX_BYTES} at most")
    try:
        check_growth(text, _LOADER)
        root = yaml.compose(text, Loader=_LOADER)
        document = yaml.load(text, Loader=_LOADER)
        repeated = [
            Violation(f"{source}:{line}: {path}", "stands twice; keep one") for path, line in _repeated(root, "")
        ]
    except yaml.YAMLError:
        raise _malformed(text, source) from None
    except _ODD as error:
        raise InvalidRequestError.of(source, f"is not valid YAML: {error}") from error
    try:
        policy = parse_policy(document)
    except InvalidRequestError as error:
        located = (Violation(f"{source}:{_line(root, field)}: {field}", problem) for field, problem in error.violations)
        raise InvalidRequestError(*located, *repeated) from error
    if repeated:
        raise InvalidRequestError(*repeated)
    return policy


def _malformed(text: str, source: str) -> InvalidRequestError:
    """What is wrong with YAML that cannot be read, in the words of the Python parser: its places are better."""
    try:
        yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}:{mark.line + 1}" if mark else source
        return InvalidRequestError.of(where, f"is not valid YAML: {getattr(error, 'problem', None) or error}")
    return InvalidRequestError.of(source, "is not valid YAML: it uses tags that no policy needs")


def _repeated(node: yaml.Node | None, path: str) -> Iterator[tuple[str, int]]:
    """Keys that a mapping has twice, of which YAML would silently keep the last."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            here = f"{path}.{key.value}".lstrip(".")
            if key.value in seen:
                yield here, key.start_mark.line + 1
            seen.add(key.value)
            yield from _repeated(value, here)
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            yield from _repeated(item, f"{path}[{number}]")


def _line(node: yaml.Node | None, path: str) -> int:
    """Line of the deepest node that ``path`` names and that exists."""
    line = 1
    for part in re.findall(r"[^.\[\]]+", path):
        if isinstance(node, yaml.MappingNode):
            pair = next(((key, value) for key, value in node.value if key.value == part), None)
            if pair is None:
                break
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and part.isdigit() and int(part) < len(node.value):
            node = node.value[int(part)]
            line = node.start_mark.line + 1
        else:
            break
    return line
