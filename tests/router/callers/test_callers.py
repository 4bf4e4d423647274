"""Who may call InferenceService: keys, tokens, tenants and their rates."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from sparsity.v1 import inference_pb2
from sparsity_client.wire import WireClient, make_request
from sparsity_router.callers.limits import TenantLimits
from sparsity_router.config import RouterConfig
from sparsity_rpc.errors import ConfigurationError, PermissionDeniedError, RateLimitError, UnauthenticatedError
from sparsity_serving.access.access import Access, Rules, key_digest
from sparsity_serving.access.jwt import JwtConfig, JwtVerifier
from sparsity_serving.access.principals import Role
from support.routers.rig import DENSE
from support.routers.router import Router, failure, running, until
from support.stores.valkey import Valkey
from support.tiny import tiny_model
from support.workers.fake_worker import FakeWorker

ISSUER, AUDIENCE = "https://id.example", "sparsity"
ACCESS = f"""
inference: required
principals:
  - {{name: search, key_sha256: {key_digest("search-key")}, roles: [caller], tenant: acme}}
  - {{name: any, key_sha256: {key_digest("any-key")}, roles: [caller]}}
  - {{name: ann, key_sha256: {key_digest("ann-key")}, roles: [viewer]}}
"""


class Issuer:
    """An identity provider with one key."""

    def __init__(self, folder: Path, kid: str = "one") -> None:
        self.kid = kid
        self.path = folder / "jwks.json"
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.publish()

    def publish(self) -> None:
        public = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(self._key.public_key()))
        self.path.write_text(json.dumps({"keys": [public | {"kid": self.kid, "alg": "ES256", "use": "sig"}]}))

    def token(self, **claims: Any) -> str:
        known = {"sub": "bob", "iss": ISSUER, "aud": AUDIENCE, "exp": time.time() + 60}
        whole = {name: value for name, value in (known | claims).items() if value is not None}
        return jwt.encode(whole, self._key, "ES256", headers={"kid": self.kid})


@pytest.fixture
def issuer(tmp_path: Path) -> Issuer:
    return Issuer(tmp_path)


def verifier(issuer: Issuer) -> JwtVerifier:
    return JwtVerifier(JwtConfig(ISSUER, AUDIENCE, str(issuer.path)))


def test_a_good_token_names_its_caller(issuer: Issuer) -> None:
    tokens = verifier(issuer)
    plain = tokens.verify(issuer.token())
    assert (plain.name, plain.roles, plain.tenant) == ("bob", {Role.CALLER}, "")
    full = tokens.verify(token := issuer.token(tenant="acme", roles=["editor", "unknown"]))
    assert (full.roles, full.tenant) == ({Role.EDITOR}, "acme")
    assert tokens.verify(token) is full, "it is remembered"


def test_bad_tokens_are_refused(issuer: Issuer, tmp_path: Path) -> None:
    tokens = verifier(issuer)
    (tmp_path / "other").mkdir()
    stranger = Issuer(tmp_path / "other")

    symmetric = jwt.encode({"sub": "x"}, "k" * 64, "HS256", headers={"kid": "one"})
    none = jwt.encode({"sub": "x", "iss": ISSUER, "aud": AUDIENCE, "exp": time.time() + 9}, "", "none")
    for token in (
        issuer.token(exp=time.time() - 1),
        issuer.token(aud="somebody"),
        issuer.token(iss="https://evil.example"),
        issuer.token(exp=None),
        issuer.token(sub=None),
        stranger.token(),
        symmetric,
        none,
        "a.b.c",
        issuer.token()[:-4] + "AAAA",
    ):
        with pytest.raises(UnauthenticatedError, match="the token is not good"):
            tokens.verify(token)


def test_a_remembered_token_expires(issuer: Issuer) -> None:
    tokens = verifier(issuer)
    token = issuer.token(exp=int(time.time()) + 2)
    tokens.verify(token)
    time.sleep(2.1)
    with pytest.raises(UnauthenticatedError, match="expired"):
        tokens.verify(token)


async def test_keys_are_followed(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsity_serving.access.access.REFRESH_SECONDS", 0.02)
    tokens = verifier(issuer)
    old = issuer.token()
    tokens.verify(old)
    following = asyncio.create_task(Access(Rules({}, tokens)).follow_keys())
    issuer.path.write_text("half a fi")
    await asyncio.sleep(0.1)
    tokens.verify(old)
    fresh = Issuer(issuer.path.parent, kid="two")

    async def known() -> bool:
        try:
            return bool(tokens.verify(fresh.token()))
        except UnauthenticatedError:
            return False

    await until(known)
    with pytest.raises(UnauthenticatedError):
        tokens.verify(old)
    following.cancel()


def test_keys_come_from_a_file_or_by_https(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="from a file or by https"):
        JwtConfig(ISSUER, AUDIENCE, "http://id.example/jwks")
    with pytest.raises(ConfigurationError, match=r"jwt.keys: .*none\.json"):
        JwtVerifier(JwtConfig(ISSUER, AUDIENCE, str(tmp_path / "none.json")))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("jwt: {issuer: x}", "jwt: must have issuer, audience and keys"),
        ("jwt: {issuer: x, audience: y, keys: 3}", "every field must be text"),
        ("inference: required", "must have a list `principals`, or `jwt`"),
        ("inference: maybe\nprincipals: [{}]", "inference: must be open or required"),
        ("everything: open", "and no other field"),
    ],
)
def test_bad_access_files_are_told(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "access.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match="--access") as caught:
        Access.load(tmp_path / "access.yaml")
    assert words in str(caught.value)


async def explain(router: Router, key: str | None, **context: Any) -> Any:
    metadata = (("authorization", f"Bearer {key}"),) if key else ()
    request = inference_pb2.ExplainRequest(request=make_request("hi", **context))
    return await router.inference.Explain(request, metadata=metadata)


async def test_inference_wants_a_caller_of_the_right_tenant(tmp_path: Path, issuer: Issuer) -> None:
    tokens = f"jwt: {{issuer: '{ISSUER}', audience: {AUDIENCE}, keys: {issuer.path}}}\n"
    (tmp_path / "access.yaml").write_text(ACCESS + tokens)
    with Valkey() as server:
        model = tiny_model(tmp_path / "model")
        fake = await FakeWorker("d", DENSE, model).start()
        config = RouterConfig(model, (fake.address,), server.url, "127.0.0.1:0", access=tmp_path / "access.yaml")
        async with running(config) as router:
            assert (await explain(router, "search-key")).signals.tenant == "acme"
            assert (await explain(router, "any-key", tenant="other")).signals.tenant == "other"
            assert (await explain(router, issuer.token(tenant="t1"))).signals.tenant == "t1"
            for key, tenant, code in (
                (None, None, grpc.StatusCode.UNAUTHENTICATED),
                ("wrong", None, grpc.StatusCode.UNAUTHENTICATED),
                (issuer.token(exp=1.0), None, grpc.StatusCode.UNAUTHENTICATED),
                ("search-key", "other", grpc.StatusCode.PERMISSION_DENIED),
                ("ann-key", None, grpc.StatusCode.PERMISSION_DENIED),
                (issuer.token(roles=["viewer"]), None, grpc.StatusCode.PERMISSION_DENIED),
            ):
                assert (await failure(explain(router, key, tenant=tenant))).code() is code
            for method, request in (
                (router.inference.Route, inference_pb2.RouteRequest(request=make_request("hi"))),
                (router.inference.ReportOutcome, inference_pb2.ReportOutcomeRequest(decision_id="d", score=1)),
            ):
                assert (await failure(method(request))).code() is grpc.StatusCode.UNAUTHENTICATED

            def generate() -> str:
                with WireClient(router.address, key="search-key") as client:
                    return "".join(response.text for response in client.generate(make_request("hi")))

            assert await asyncio.to_thread(generate) == "abc"
            assert fake.received[0].cache_salt == "acme"
            await outcomes_are_of_ones_own_requests(router, issuer)
        await fake.stop()


async def outcomes_are_of_ones_own_requests(router: Router, issuer: Issuer) -> None:
    def bearer(key: str) -> tuple[tuple[str, str]]:
        return (("authorization", f"Bearer {key}"),)

    async def generated() -> str:
        call = router.inference.Generate(make_request("hi"), metadata=bearer("search-key"))
        return [response.completion.decision.decision_id async for response in call][-1]

    report = inference_pb2.ReportOutcomeRequest(decision_id=await generated(), score=1, metric="m")
    for key in ("search-key", "any-key"):
        await router.inference.ReportOutcome(report, metadata=bearer(key))
    stranger = bearer(issuer.token(tenant="t1"))
    error = await failure(router.inference.ReportOutcome(report, metadata=stranger))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    unknown = inference_pb2.ReportOutcomeRequest(decision_id="x", score=1, metric="m")
    never = await failure(router.inference.ReportOutcome(unknown, metadata=stranger))
    assert error.details() == never.details().replace("'x'", repr(report.decision_id))


async def test_an_open_router_asks_nobody(tmp_path: Path) -> None:
    (tmp_path / "access.yaml").write_text(ACCESS.replace("required", "open"))
    with Valkey() as server:
        model = tiny_model(tmp_path / "model")
        config = RouterConfig(model, ("127.0.0.1:1",), server.url, "127.0.0.1:0", access=tmp_path / "access.yaml")
        async with running(config) as router:
            assert (await explain(router, None)).signals.tenant == ""


def limits(folder: Path, text: str, url: str | None = None) -> TenantLimits:
    (folder / "limits.yaml").write_text(text)
    made = TenantLimits.load(folder / "limits.yaml", url)
    assert made is not None
    return made


async def test_a_tenant_uses_up_its_own_rate(tmp_path: Path) -> None:
    own = limits(tmp_path, "default: {requests: 3/minute, tokens: 100/minute}\ntenants: {big: {requests: 5/minute}}")
    for tenant, count in (("small", 3), ("big", 5), ("", 3)):
        for _ in range(count):
            await own.request(tenant)
        with pytest.raises(RateLimitError, match=f"used up its {count} requests per minute") as caught:
            await own.request(tenant)
        assert 0 < caught.value.retry_after <= 60
    await own.tokens("small", 60)
    with pytest.raises(RateLimitError, match="used up its 100 tokens"):
        await own.tokens("small", 60)
    await own.tokens("small", 40)
    with pytest.raises(RateLimitError, match="this request counts 101: it can never be taken"):
        await own.tokens("big", 101)


async def test_routers_count_together_and_alone_without_the_store(tmp_path: Path) -> None:
    with Valkey() as server:
        first, second = (limits(tmp_path, "default: {requests: 4/minute}", server.url) for _ in range(2))
        for _ in range(2):
            await first.request("t")
            await second.request("t")
        for router in (first, second):
            with pytest.raises(RateLimitError):
                await router.request("t")
    for _ in range(4):
        await first.request("t")
    with pytest.raises(RateLimitError):
        await first.request("t")
    for router in (first, second):
        await router.close()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("default: {requests: fast}", "default.requests: must be such as 100/second"),
        (f"default: {{tokens: {10**16}/hour}}", "default.tokens: must be 1000000000000000 or less"),
        (f"default: {{tokens: 1 per {10**400} hours}}", "in a year or less"),
        ("tenants: {a: {rate: 1}}", "tenants.a: must have requests and tokens"),
        ("tenants: [a]", "tenants: must map names to rates"),
        ("others: {}", "and no other field"),
        ("[", "cannot be read"),
    ],
)
def test_bad_limit_files_are_told(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match="--tenant-limits") as caught:
        limits(tmp_path, text)
    assert words in str(caught.value)


async def test_a_rate_is_answered_with_when_to_try_again(tmp_path: Path) -> None:
    (tmp_path / "limits.yaml").write_text("default: {requests: 1/minute, tokens: 200/minute}")
    with Valkey() as server:
        model = tiny_model(tmp_path / "model")
        config = RouterConfig(model, ("127.0.0.1:1",), server.url, "127.0.0.1:0", lease_key_file=tmp_path / "key")
        (tmp_path / "key").write_text("k" * 32)
        async with running(replace(config, tenant_limits=tmp_path / "limits.yaml")) as router:
            long = inference_pb2.RouteRequest(request=make_request("y" * 199, tenant="long"))
            never = await failure(router.inference.Route(long))
            assert "it can never be taken" in never.details()
            # It was decided before its tokens were counted.
            assert dict(never.trailing_metadata())["sparsity-tier"] == "dense"
            request = inference_pb2.RouteRequest(request=make_request("hi", tenant="t"))
            assert (await failure(router.inference.Route(request))).code() is grpc.StatusCode.UNAVAILABLE
            error = await failure(router.inference.Route(request))
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            retry = error_details_pb2.RetryInfo()
            assert rpc_status.from_call(error).details[0].Unpack(retry)
            assert 0 < retry.retry_delay.ToNanoseconds() <= 60e9
            info = error_details_pb2.ErrorInfo()
            assert rpc_status.from_call(error).details[1].Unpack(info)
            assert info.metadata["limit"] == "1 requests per minute"
            # There is an id, and no tier: it was refused before anything was decided.
            trailers = dict(error.trailing_metadata() or ())
            assert info.metadata["decisionId"] == trailers["sparsity-decision-id"]
            assert "tier" not in info.metadata


def test_a_tenants_caller_sends_its_requests_only(tmp_path: Path) -> None:
    (tmp_path / "access.yaml").write_text(ACCESS)
    access = Access.load(tmp_path / "access.yaml")
    assert access.guards_inference
    principal = access._rules.principals[key_digest("search-key")]  # type: ignore[index]
    assert (principal.tenant_of(""), principal.tenant_of("acme")) == ("acme", "acme")
    with pytest.raises(PermissionDeniedError, match="sends requests of tenant acme, not 'other'"):
        principal.tenant_of("other")
