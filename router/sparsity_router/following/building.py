"""Builds the snapshot of what a source holds, with as much of it as compiles together.

Policies are written one by one, and each may be good while all of them are too much. What cannot be taken up is held as
a document that cannot be read is: it keeps no edit of another domain back, and no router from starting.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Container, Mapping, Sequence
from typing import Final, NamedTuple

from sparsity_policies.decisions.model_bands import NO_BANDS, ModelBands
from sparsity_policies.decisions.snapshot import Snapshot
from sparsity_policies.matching.expressions import Compile
from sparsity_policies.model import StoredPolicy
from sparsity_policies.risk.learning import Learn
from sparsity_policies.storage.contents import Contents, Cursor, Delta

log = logging.getLogger("sparsity.router.policies")


class Wanted(NamedTuple):
    """What a source holds, as far as it was read: what the snapshot is to become."""

    cursor: Cursor
    policies: dict[str, StoredPolicy]
    rejected: dict[str, str]
    drifted: tuple[str, ...]

    def read(self, contents: Contents, *, tell: bool = True) -> Wanted:
        """After a whole read; what cannot be read is held as it was."""
        if tell:
            tell_left_out("read", contents.rejected, self.rejected, self.policies)
        held = [self.policies[domain] for domain in contents.rejected if domain in self.policies]
        policies = {stored.policy.domain: stored for stored in (*contents.policies, *held)}
        return Wanted(contents.cursor, policies, contents.rejected, contents.drifted)

    def changed(self, delta: Delta) -> Wanted:
        """After a change."""
        tell_left_out("read", delta.rejected, {}, self.policies)
        gone = {domain for domain, stored in delta.policies.items() if stored is None}
        policies = {domain: stored for domain, stored in self.policies.items() if domain not in gone}
        policies |= {domain: stored for domain, stored in delta.policies.items() if stored}
        told = {name for name in self.rejected if not name.startswith("override ")} - delta.policies.keys()
        rejected = {name: self.rejected[name] for name in told} | delta.rejected
        return Wanted(delta.cursor, policies, rejected, self.drifted)


# No source is ever there, so the first look reads everything.
NOTHING_READ: Final = Wanted(Cursor(-1, "", "0-0"), {}, {}, ())


class Refused(NamedTuple):
    """A document that could not be taken up.

    Attributes:
        stored: the document.
        problem: what kept it out.
    """

    stored: StoredPolicy
    problem: str


class Builder:
    """Builds one snapshot after another; not from two threads at once.

    Args:
        ttl: of snapshots, seconds.
        compiled: makes databases.
        learnt: makes the heads of exemplars.
        model_bands: of models with length bands of their own.
    """

    def __init__(self, ttl: float, compiled: Compile, learnt: Learn, model_bands: ModelBands = NO_BANDS) -> None:
        self._ttl, self._compiled, self._learnt, self._model_bands = ttl, compiled, learnt, model_bands
        self._refused: dict[str, Refused] = {}

    @property
    def problems(self) -> dict[str, str]:
        """What keeps each domain out whose document the last snapshot is without."""
        return {name: refused.problem for name, refused in self._refused.items()}

    def build(
        self, revision: int, policies: Mapping[str, StoredPolicy], rejected: Collection[str], previous: Snapshot | None
    ) -> Snapshot:
        """The snapshot of ``policies``, without those changes to ``previous`` that cannot be taken up: such a domain
        stays as it was there. What was refused before is not tried again until it is written anew.

        Args:
            revision: of the source.
            policies: what it holds, by domain.
            rejected: what it holds and nobody can read.
            previous: the snapshot before; None at the start.

        Raises:
            ValueError: when not even what ``previous`` has of them compiles.
            NoProcessError: when nothing could be compiled now.
        """
        self._refused = {name: one for name, one in self._refused.items() if policies.get(name) == one.stored}
        there = previous.policies if previous else {}
        taking = _Taking(self, revision, {name: there[name].stored for name in policies if name in there}, previous)
        fresh = [one for name, one in policies.items() if taking.taken.get(name) != one and name not in self._refused]
        # The later a document was written, the sooner it is the one that is too much.
        taking.add(sorted(fresh, key=lambda one: (one.revision, one.policy.domain)))
        self._refused |= taking.refused
        return dataclasses.replace(taking.done(), rejected=tuple(sorted({*rejected, *self._refused})))

    def forget_refused(self, before: Snapshot | None, after: Snapshot) -> bool:
        """Lets what was refused be tried again where ``after`` has less to find than ``before``; whether it is so."""
        if before is None or not self._refused or not _has_less(before, after):
            return False
        self._refused = {}
        return True

    def exactly(self, revision: int, policies: Mapping[str, StoredPolicy], previous: Snapshot | None) -> Snapshot:
        """A snapshot of exactly these.

        Raises:
            ValueError: when they do not compile.
        """
        stored, ttl = list(policies.values()), self._ttl
        return Snapshot.build(
            revision,
            stored,
            ttl=ttl,
            previous=previous,
            compiled=self._compiled,
            learnt=self._learnt,
            model_bands=self._model_bands,
        )


class _Taking:
    """One snapshot in the making.

    Attributes:
        taken: what is in it, by domain.
        refused: what is not, for what it says.
    """

    def __init__(
        self, builder: Builder, revision: int, taken: Mapping[str, StoredPolicy], previous: Snapshot | None
    ) -> None:
        self._builder, self._revision = builder, revision
        self._previous = self._snapshot = previous
        self.taken = dict(taken)
        self.refused: dict[str, Refused] = {}

    def add(self, fresh: Sequence[StoredPolicy]) -> None:
        """Takes documents in: all of them, or else what can be of the first half, and then of the second."""
        asked = self.taken | {one.policy.domain: one for one in fresh}
        try:
            self._snapshot = self._builder.exactly(self._revision, asked, self._snapshot)
            self.taken = asked
        except ValueError as error:
            if len(fresh) <= 1:
                self.refused |= {one.policy.domain: Refused(one, str(error)) for one in fresh}
                return
            half = len(fresh) // 2
            self.add(fresh[:half])
            self.add(fresh[half:])

    def done(self) -> Snapshot:
        """The snapshot of what was taken."""
        if self._snapshot is None or self._snapshot is self._previous:
            return self._builder.exactly(self._revision, self.taken, self._previous)
        return self._snapshot


def tell_left_out(verb: str, problems: Mapping[str, str], told: Mapping[str, str], there: Container[str]) -> None:
    """Logs what keeps documents from being read or taken up, but for what was told; ``there`` are the domains that
    have an older one."""
    for domain, problem in problems.items():
        if told.get(domain) != problem:
            fate = "its last good version is kept" if domain in there else "it is served dense"
            log.error("policy store: %s cannot be %s (%s); %s", domain, verb, problem, fate)


def _has_less(before: Snapshot, after: Snapshot) -> bool:
    """Whether a domain's detection went away or is another."""
    for name, item in before.policies.items():
        now = after.policy(name)
        there = item.policy.detection
        if (there.literals or there.patterns or there.exemplars) and (now is None or now.detection != there):
            return True
    return False
