"""Which requests may share a prefix of the KV cache."""

from __future__ import annotations

import hashlib


def cache_salt(caller: str | None, tier: str, label: str) -> str:
    """SGLang's salt: prefixes are shared by requests whose caller's salt, tier and profile are the same.

    Keys and values above the first sparse layer come from sparse attention: they must answer no request that is given
    more. Each part is hashed with its length, so that no caller's salt can stand for another tier's.

    Args:
        caller: what keeps tenants apart; None and an empty one are the same.
        tier: of the request.
        label: name and version of the tier's profile.
    """
    parts = [part.encode() for part in (tier, label, caller or "")]
    return hashlib.sha256(b"".join(len(part).to_bytes(8, "big") + part for part in parts)).hexdigest()
