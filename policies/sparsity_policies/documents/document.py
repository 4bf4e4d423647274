"""Policy documents: the mapping that YAML files, the store and the CLI exchange."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any

from sparsity_rpc.errors import InvalidRequestError, Violation

from sparsity_policies import model
from sparsity_policies.documents.validate import check_policy
from sparsity_policies.model import Policy, Risk, StickyBy, Tier

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
MAX_BYTES = 2 * 2**20
# Of these, what is kept for a rollout to be halted in.
HALT_BYTES = 4096
# What fields of messages hold: 32 bits, and of tokens a minute 64.
_MOST, _MOST_TOKENS = 2**32 - 1, 2**64 - 1
# What can be wrong by itself.
_ENTRY = re.compile(r"(rules|detection\.\w+)\[\d+\]")
Check = Callable[[Policy], Sequence[Violation]]


class _Reader:
    """Reads a mapping field by field and collects every mistake."""

    def __init__(self) -> None:
        self.violations: list[Violation] = []

    def fail(self, path: str, problem: str) -> None:
        # What is told of must be text, whatever was written.
        self.violations.append(Violation(path.encode("utf-8", "backslashreplace").decode(), problem))

    def mapping(self, value: object, path: str, kind: type) -> dict[str, Any]:
        """The mapping's known keys; unknown ones are mistakes."""
        if not isinstance(value, Mapping):
            self.fail(path or "policy", f"must be a mapping, not {_shape(value)}")
            return {}
        known = [field.name for field in dataclasses.fields(kind)]
        for key in value:
            if key not in known:
                name = key if isinstance(key, str) else _shape(key)
                self.fail(f"{path}.{name}".lstrip("."), f"is not a field; fields are {', '.join(known)}")
        return {key: value[key] for key in known if value.get(key) is not None}

    def items(self, value: object, path: str, read: Callable[[object, str], Any]) -> tuple[Any, ...]:
        if not isinstance(value, list):
            self.fail(path, f"must be a list, not {_shape(value)}")
            return ()
        return tuple(read(item, f"{path}[{number}]") for number, item in enumerate(value))

    def text(self, value: object, path: str) -> str:
        if not isinstance(value, str):
            self.fail(path, f"must be text, not {_shape(value)}")
            return ""
        if not is_text(value):
            self.fail(path, "has half a surrogate pair (\\ud800 to \\udfff), which is no character")
            return ""
        return value

    def number(self, value: object, path: str, most: int = _MOST) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
            self.fail(path, f"must be a whole number from 0, {most} at most, not {_shape(value)}")
            return 0
        return value

    def share(self, value: object, path: str, high: float = 1.0) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= high:
            self.fail(path, f"must be a number from 0 to {high:g}, not {_shape(value)}")
            return 0.0
        return float(value)

    def flag(self, value: object, path: str) -> bool:
        if not isinstance(value, bool):
            self.fail(path, f"must be true or false, not {_shape(value)}")
        return bool(value)

    def word(self, value: object, path: str, kind: type[Enum]) -> Any:
        """A member of an enum, spelled in lower case."""
        for member in kind:
            if isinstance(value, str) and value == member.name.lower():
                return member
        words = ", ".join(member.name.lower() for member in kind)
        self.fail(path, f"must be one of {words}, not {_shape(value)}")
        return next(iter(kind))

    def band(self, value: object, path: str) -> model.Band:
        found = self.mapping(value, path, model.Band)
        for key in ("from_tokens", "tier"):
            if key not in found:
                self.fail(f"{path}.{key}", "is missing")
        return model.Band(
            from_tokens=self.number(found.get("from_tokens", 0), f"{path}.from_tokens"),
            tier=self.word(found.get("tier", "dense"), f"{path}.tier", Tier),
            task=self.text(found.get("task", ""), f"{path}.task"),
        )

    def rule(self, value: object, path: str) -> model.Rule:
        found = self.mapping(value, path, model.Rule)
        for key in ("name", "when", "tier"):
            if key not in found:
                self.fail(f"{path}.{key}", "is missing")
        return model.Rule(
            name=self.text(found.get("name", ""), f"{path}.name"),
            when=self.text(found.get("when", "false"), f"{path}.when"),
            tier=self.word(found.get("tier", "dense"), f"{path}.tier", Tier),
        )

    def detection(self, value: object, path: str) -> model.Detection:
        found = self.mapping(value, path, model.Detection)
        lists = {
            key: self.items(found.get(key, []), f"{path}.{key}", self.text)
            for key in ("literals", "patterns", "exemplars")
        }
        return model.Detection(
            **lists,
            flag=self.text(found.get("flag", ""), f"{path}.flag"),
            sensitivity=self.word(found.get("sensitivity", "normal"), f"{path}.sensitivity", model.Sensitivity),
            mode=self._mode(found.get("mode"), f"{path}.mode"),
        )

    def _mode(self, value: object, path: str) -> model.DetectionMode | None:
        """A mode, as it is meant: YAML reads a bare `off` as false."""
        return None if value in (None, "") else self.word("off" if value is False else value, path, model.DetectionMode)

    def guards(self, value: object, path: str) -> model.Guards:
        read: dict[str, Callable[[object, str], Any]] = {
            "min_coverage": self.share,
            "max_quality_dip": self.share,
            "quality_metric": self.text,
            "max_tier": lambda tier, where: self.word(tier, where, Tier),
            "reasoning_spans_dense": self.flag,
        }
        found = self.mapping(value, path, model.Guards)
        return model.Guards(**{key: read[key](item, f"{path}.{key}") for key, item in found.items()})

    def rollout(self, value: object, path: str) -> model.Rollout:
        found = self.mapping(value, path, model.Rollout)
        return model.Rollout(
            steps=self.items(found.get("steps", []), f"{path}.steps", self.number),
            step=self.number(found.get("step", 0), f"{path}.step"),
            sticky_by=self.word(found.get("sticky_by", "session"), f"{path}.sticky_by", StickyBy),
            paused=self.flag(found.get("paused", False), f"{path}.paused"),
            halted=self.flag(found.get("halted", False), f"{path}.halted"),
            halt_reason=self.text(found.get("halt_reason", ""), f"{path}.halt_reason"),
            held_back=self.word(found.get("held_back", "dense"), f"{path}.held_back", Tier),
            pauses=self.items(found.get("pauses", []), f"{path}.pauses", self.number),
        )

    def shadow(self, value: object, path: str) -> model.Shadow:
        found = self.mapping(value, path, model.Shadow)
        return model.Shadow(
            percent=self.share(found.get("percent", 0), f"{path}.percent", 100.0),
            tokens_per_minute=self.number(found.get("tokens_per_minute", 0), f"{path}.tokens_per_minute", _MOST_TOKENS),
        )

    def policy(self, value: object) -> Policy:
        found = self.mapping(value, "", Policy)
        domain = self.text(found.get("domain", ""), "domain")
        if not NAME.fullmatch(domain) or len(domain) > 64:
            self.fail("domain", f"must be lower-case words joined by `-`, 64 characters at most, not {domain!r}")
        for key in ("risk", "bands"):
            if key not in found:
                self.fail(key, "is missing")
        labels = found.get("labels", {})
        if not isinstance(labels, Mapping) or not all(is_text(v) for pair in labels.items() for v in pair):
            self.fail("labels", "must be a mapping of text to text")
            labels = {}
        return Policy(
            domain=domain,
            risk=self.word(found.get("risk", "high"), "risk", Risk),
            bands=self.items(found.get("bands", []), "bands", self.band),
            rules=self.items(found.get("rules", []), "rules", self.rule),
            detection=self.detection(found.get("detection", {}), "detection"),
            guards=self.guards(found.get("guards", {}), "guards"),
            rollout=self.rollout(found["rollout"], "rollout") if "rollout" in found else None,
            shadow=self.shadow(found["shadow"], "shadow") if "shadow" in found else None,
            fallback=self.items(found.get("fallback", []), "fallback", lambda v, p: self.word(v, p, Tier)),
            labels=tuple(sorted(labels.items())),
            owner=self.text(found.get("owner", ""), "owner"),
            description=self.text(found.get("description", ""), "description"),
        )


def is_text(value: object) -> bool:
    """Whether a value is text that can be stored and sent; JSON and YAML can write halves of surrogate pairs, too."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shape(value: object) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        # Python writes out no number of thousands of digits, though YAML's hexadecimal ones are read.
        return "a number of many digits" if isinstance(value, int) else f"a {type(value).__name__} of too much"
    return text if len(text) <= 60 else f"{text[:57]}..."


def unchecked(policy: Policy) -> Sequence[Violation]:
    """No mistake, of what was checked before."""
    return ()


def parse_policy(document: object, check: Check = check_policy) -> Policy:
    """Reads and validates a policy document; ``check`` finds the mistakes of one of the right shape.

    Raises:
        InvalidRequestError: with one violation a mistake, all of them at once.
    """
    reader = _Reader()
    policy = reader.policy(document)
    violations = [*reader.violations, *_beside(reader.violations, check(policy))]
    if violations:
        raise InvalidRequestError(*violations)
    return policy


def parse_bands(risk: Risk, bands: object) -> tuple[model.Band, ...]:
    """Reads and validates length bands that stand outside of a policy, as those of a policy of this risk.

    Raises:
        InvalidRequestError: with one violation a mistake, all of them at once.
    """
    return parse_policy({"domain": "bands", "risk": risk.name.lower(), "bands": bands}).bands


def _beside(shape: Sequence[Violation], meaning: Sequence[Violation]) -> Iterator[Violation]:
    """Mistakes of meaning that follow from none of shape: each condition and pattern stands for itself."""
    broken = {found[0] for violation in shape if (found := _ENTRY.match(violation.field))}
    for violation in meaning:
        entry = _ENTRY.match(violation.field)
        if not shape or (entry and entry[0] not in broken):
            yield violation


def to_document(policy: Policy) -> dict[str, Any]:
    """The mapping that :func:`parse_policy` reads; defaults are left out."""
    document: dict[str, Any] = _plain(policy)
    document["labels"] = dict(policy.labels)
    return {key: value for key, value in document.items() if value not in ({}, [], "", None)}


def body_of(policy: Policy) -> str:
    """The document as the store keeps it, however large."""
    return _json(to_document(policy))


def encode(policy: Policy) -> str:
    """The document as the store keeps it.

    Raises:
        InvalidRequestError: when it is larger than the store takes, or would be once its rollout is halted.
    """
    body, remedy = body_of(policy), "shorten its detection"
    if (size := len(body.encode())) > MAX_BYTES:
        raise InvalidRequestError.of("policy", f"is {size} bytes; the store takes {MAX_BYTES}: {remedy}")
    rollout = policy.rollout
    if rollout is not None and not rollout.halted:
        # What moves between steps, so that a rollout that could begin can be moved to its end, too.
        begun = dataclasses.replace(rollout, step=0, paused=False, halt_reason="")
        size += len(_json(_plain(begun)).encode()) - len(_json(_plain(rollout)).encode())
        if size > MAX_BYTES - HALT_BYTES:
            most = f"with a rollout {MAX_BYTES - HALT_BYTES}, so that it can be halted"
            raise InvalidRequestError.of("policy", f"is {size} bytes; the store takes {most}: {remedy}")
    return body


def _json(document: object) -> str:
    return json.dumps(document, sort_keys=True, ensure_ascii=False)


def _plain(value: object) -> Any:
    if isinstance(value, Enum):
        return value.name.lower()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        told = (field for field in dataclasses.fields(value) if getattr(value, field.name) != field.default)
        pairs = ((field.name, _plain(getattr(value, field.name))) for field in told)
        return {key: item for key, item in pairs if item not in ({}, [], "", None)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value
