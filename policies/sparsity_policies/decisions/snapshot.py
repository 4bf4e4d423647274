"""All policies and overrides at one revision, compiled and immutable: what a router decides from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sparsity_policies.decisions.model_bands import NO_BANDS, ModelBands
from sparsity_policies.documents.document import to_document
from sparsity_policies.matching.conditions import Condition
from sparsity_policies.matching.expressions import Compile, compile_expressions
from sparsity_policies.matching.scan import Scanner
from sparsity_policies.model import TTL_SECONDS, Band, Override, Policy, Scope, StoredPolicy, Tier
from sparsity_policies.risk.learning import Learn, PolicyModel, heads_of, model_of
from sparsity_policies.risk.model import Head


@dataclass(frozen=True, slots=True)
class Compiled:
    """A policy with its conditions compiled, in the order of its rules.

    Attributes:
        stored: the policy.
        conditions: of its rules.
        digest: hash of what it says.
        exemplars: hash of its exemplars; empty where it has none.
        model: whose length bands it has in the place of its own; empty for none.
    """

    stored: StoredPolicy
    conditions: tuple[Condition, ...]
    digest: str
    exemplars: str
    model: str = ""

    @classmethod
    def of(cls, stored: StoredPolicy) -> Compiled:
        """Compiles one policy.

        Raises:
            ValueError: when a condition does not compile.
        """
        conditions = tuple(Condition(rule.when) for rule in stored.policy.rules)
        exemplars = stored.policy.detection.exemplars
        return cls(stored, conditions, _hash(to_document(stored.policy)), _hash(exemplars) if exemplars else "")

    @property
    def policy(self) -> Policy:
        """The policy."""
        return self.stored.policy

    def of_model(self, model: str, bands: tuple[Band, ...]) -> Compiled:
        """The same with a model's length bands."""
        if bands == self.policy.bands:
            return self
        stored = dataclasses.replace(self.stored, policy=dataclasses.replace(self.policy, bands=bands))
        return dataclasses.replace(self, stored=stored, model=model)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One immutable state of the store.

    Attributes:
        revision: the store's revision.
        policies: by domain.
        overrides: by id; expiry is checked at decision time.
        scanner: over the detection of all policies.
        risk: what has learnt their exemplars.
        policies_hash: hash of the policies alone.
        exemplars_hash: hash of their exemplars by domain; empty where there are none.
        rejected: domains whose documents could not be read or taken up, held at their last good version or absent.
        ttl: age past which everything goes dense, seconds.
        drifted: domains that a store beside the policy folder tells otherwise.
        model_bands: of models that have length bands of their own.
        by_model: the policies as they are for those models.
    """

    revision: int
    policies: Mapping[str, Compiled]
    overrides: tuple[Override, ...]
    scanner: Scanner
    risk: PolicyModel
    policies_hash: str
    exemplars_hash: str
    rejected: tuple[str, ...] = ()
    ttl: float = TTL_SECONDS
    drifted: tuple[str, ...] = ()
    model_bands: ModelBands = NO_BANDS
    by_model: Mapping[str, Mapping[str, Compiled]] = dataclasses.field(default_factory=dict)

    @classmethod
    def build(
        cls,
        revision: int,
        policies: Iterable[StoredPolicy],
        overrides: Iterable[Override] = (),
        rejected: Iterable[str] = (),
        ttl: float = TTL_SECONDS,
        previous: Snapshot | None = None,
        compiled: Compile = compile_expressions,
        learnt: Learn = heads_of,
        model_bands: ModelBands = NO_BANDS,
    ) -> Snapshot:
        """Compiles a snapshot; of ``previous`` it reuses what did not change. ``compiled`` makes the scan's databases,
        ``learnt`` the heads of exemplars; ``model_bands`` are of models with length bands of their own.

        Raises:
            ValueError: when a condition or pattern does not compile, or exemplars take too long to learn; validated
                policies always do.
        """
        before = previous.policies if previous else {}
        found = {}
        for stored in policies:
            known = before.get(stored.policy.domain)
            found[stored.policy.domain] = known if known and known.stored is stored else Compiled.of(stored)
        digest = _hash([[domain, found[domain].digest] for domain in sorted(found)])
        taught = [[domain, found[domain].exemplars] for domain in sorted(found) if found[domain].exemplars]
        exemplars = _hash(taught) if taught else ""
        before_it = previous.scanner if previous else None
        scanner = Scanner((item.policy for item in found.values()), before_it, compiled)
        risk = model_of((item.policy for item in found.values()), previous.risk if previous else None, learnt)
        by_model = {
            model: {domain: item.of_model(model, model_bands.of(item.policy, model)) for domain, item in found.items()}
            for model in model_bands.own
        }
        left_out = tuple(sorted(rejected))
        empty = cls(revision, found, (), scanner, risk, digest, exemplars, left_out, ttl, (), model_bands, by_model)
        return empty.with_overrides(overrides)

    def policy(self, domain: str) -> Policy | None:
        """The policy of a domain, where it has one."""
        compiled = self.policies.get(domain)
        return compiled.policy if compiled else None

    def compiled(self, domain: str, model: str) -> Compiled | None:
        """The policy of a domain, where it has one, as it decides requests of a model."""
        return self.by_model.get(model, self.policies).get(domain)

    def with_draft(self, draft: Policy, compiled: Compile = compile_expressions) -> Snapshot:
        """This snapshot as it would be with ``draft`` in the place of its domain's policy.

        Raises:
            ValueError: as :meth:`build`.
        """
        present = self.policies.get(draft.domain)
        stored = StoredPolicy(draft, "", present.stored.revision if present else 0, 0.0, "", "draft")
        others = [item.stored for domain, item in self.policies.items() if domain != draft.domain]

        def kept(*_: object) -> tuple[Head, ...]:
            # Drafts are held against requests whose domain is known.
            return self.risk.model.heads

        return Snapshot.build(
            self.revision,
            [*others, stored],
            self.overrides,
            self.rejected,
            self.ttl,
            self,
            compiled,
            kept,
            self.model_bands,
        )

    def with_overrides(self, overrides: Iterable[Override]) -> Snapshot:
        """The same policies under other overrides; compiles nothing, so that a kill switch acts at once."""
        return dataclasses.replace(self, overrides=tuple(sorted(overrides, key=_order)))

    @property
    def content_hash(self) -> str:
        """Equal on replicas that decide alike."""
        overrides = [[o.id, o.scope, o.target, o.max_tier, o.expire_time] for o in self.overrides]
        return _hash([self.policies_hash, overrides, *([self.model_bands.content()] if self.model_bands.own else [])])


def _order(override: Override) -> tuple[int, str]:
    """Overrides of a tier come last, the sparsest first, so that one pass meets the tier that another one gave."""
    sparsest_first = {tier.word: len(Tier) - tier for tier in Tier}
    place = 1 + sparsest_first.get(override.target, 0) if override.scope is Scope.TIER else 0
    return place, override.id


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
