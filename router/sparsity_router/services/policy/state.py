"""What the methods of PolicyService work on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sparsity_policies.decisions.snapshot import Snapshot
from sparsity_policies.documents.confined import EDITS, NoProcessError
from sparsity_policies.documents.validate import check_exemplars
from sparsity_policies.model import Policy, StoredPolicy
from sparsity_policies.storage.decisionlog import DecisionLog
from sparsity_policies.storage.store import PolicyStore
from sparsity_rpc.errors import ConfigurationError, InvalidRequestError, NotFoundError, UnavailableError
from sparsity_serving.access.access import Access

from sparsity_router.following.follower import PolicyFollower
from sparsity_router.models.models import Models
from sparsity_router.observing.recorder import Recorder

READ_YOUR_WRITE_SECONDS = 1.0


class Compared(NamedTuple):
    """What is decided from now, and what would be with a draft."""

    present: Snapshot
    changed: Snapshot


@dataclass(frozen=True, slots=True)
class PolicyState:
    """The follower, the store and the rest of one router.

    Attributes:
        follower: of the policies that the router decides from.
        store: documents, revisions and overrides; None for a folder without a store.
        decisions: the decision log; None without a store.
        recorder: takes audit events.
        access: who may do what.
        models: that are served; what drafts are simulated for, and what attention costs.
        folder: the policy folder that is the source of truth; None when the store is.
    """

    follower: PolicyFollower
    store: PolicyStore | None
    decisions: DecisionLog | None
    recorder: Recorder
    access: Access
    models: Models
    folder: Path | None = None

    def need_store(self) -> PolicyStore:
        """The store.

        Raises:
            ConfigurationError: when this router has none.
        """
        if self.store is None:
            raise ConfigurationError("this router has no policy store: it was started without --redis-url")
        return self.store

    def writable(self) -> PolicyStore:
        """The store, when policies may be written.

        Raises:
            ConfigurationError: when a folder is the source of truth.
        """
        if self.folder is not None:
            raise ConfigurationError(f"policies come from the folder {self.folder}: edit the files there")
        return self.need_store()

    def find(self, domain: str) -> StoredPolicy:
        """A policy of the snapshot.

        Raises:
            NotFoundError: naming those there are.
        """
        policies = self.follower.snapshot.policies
        found = policies.get(domain)
        if found is None:
            some = sorted(policies)[:20]
            more = f" and {len(policies) - len(some)} more" if len(policies) > len(some) else ""
            raise NotFoundError(f"policy {domain!r} does not exist; there are {', '.join(some)}{more}")
        return found.stored

    def check(self, policy: Policy) -> Compared:
        """What only the other policies can tell.

        Raises:
            InvalidRequestError: with one violation a mistake.
            UnavailableError: when it cannot be told now.
        """
        others = (item.policy for item in self.follower.snapshot.policies.values())
        if violations := check_exemplars(policy, others):
            raise InvalidRequestError(*violations)
        return self.compare(policy)

    def compare(self, draft: Policy) -> Compared:
        """Compiles what would be decided from with ``draft``, as routers do: none takes up what is refused here.

        Raises:
            InvalidRequestError: when its detection does not compile together with that of other domains.
            UnavailableError: when that cannot be told now.
        """
        present = self.follower.snapshot
        try:
            return Compared(present, present.with_draft(draft, EDITS.compile))
        except NoProcessError as error:
            raise UnavailableError(f"policies cannot be compiled now: the work {error}") from error
        except ValueError as error:
            raise InvalidRequestError.of("detection", f"{error}: shorten it, or that of another domain") from error

    async def seen(self, revision: int) -> None:
        """Lets the caller's next request to this router see its write."""
        await self.follower.reached(revision, READ_YOUR_WRITE_SECONDS)
