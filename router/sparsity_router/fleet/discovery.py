"""Where workers are: a fixed address, a DNS name, or a Kubernetes service.

    --worker 10.0.0.7:7001                    one worker, or [fd00::7]:7001
    --worker dns:///workers.example:7001      every address of the name, such as a headless service
    --worker k8s:///namespace/service:7001    the service's ready endpoints; port by number or by name
    --worker sglang+grpc://10.0.0.8:30000     a server of stock SGLang; also sglang+dns:/// and sglang+k8s:///

A source that cannot be asked changes nothing: the workers it named last are watched on.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from typing import Any, Protocol
from urllib.parse import urlsplit

from sparsity_rpc.errors import ConfigurationError
from sparsity_serving.addresses import FORM, joined, read_address

from sparsity_router.fleet.stock.contract import SCHEME

log = logging.getLogger("sparsity.router.discovery")
_RESOLVE_SECONDS = 5.0
_RETRY_SECONDS = 2.0
_WATCH_SECONDS = 300
_STOCK, _FIXED = "sglang+", "grpc"


class Discovery(Protocol):
    """A source of addresses."""

    @property
    def known(self) -> Collection[str]:
        """What is known before anybody was asked."""
        ...

    def follow(self) -> AsyncIterator[Collection[str]]:
        """The addresses at every change, as `host:port`."""
        ...


class Static:
    """Addresses that never change."""

    def __init__(self, targets: Iterable[str]) -> None:
        self.known: Collection[str] = tuple(targets)

    async def follow(self) -> AsyncIterator[Collection[str]]:
        """Nothing changes."""
        await asyncio.Event().wait()
        yield self.known


class Dns:
    """Every address of a name, asked again and again.

    Args:
        place: `dns:///host:port`.
        seconds: between two questions.
    """

    def __init__(self, place: str, seconds: float = _RESOLVE_SECONDS) -> None:
        self.known: Collection[str] = ()
        self._host, self._port = read_address(urlsplit(place).path.strip("/"), f"--worker: {place}")
        self._seconds = seconds

    async def follow(self) -> AsyncIterator[Collection[str]]:
        """The addresses at every change."""
        last: set[str] | None = None
        while True:
            try:
                loop = asyncio.get_running_loop()
                answers = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
            except (OSError, UnicodeError) as error:
                log.warning("%s cannot be resolved: %s; its last workers are kept", self._host, error)
            else:
                found = {joined(str(address[0]), self._port) for *_, address in answers}
                if found != last:
                    last = found
                    yield found
            await asyncio.sleep(self._seconds)


class EndpointSlices:
    """The endpoints of a Kubernetes service that are ready and not going away.

    Reads the EndpointSlices (discovery.k8s.io/v1) of the service, by the pod's service account or a kubeconfig.
    """

    def __init__(self, place: str) -> None:
        self.known: Collection[str] = ()
        namespace, _, service = urlsplit(place).path.strip("/").partition("/")
        self._service, _, self._port = service.rpartition(":")
        self._namespace = namespace
        if not namespace or not self._service or not self._port:
            raise ConfigurationError(f"--worker: {place}: must be k8s:///namespace/service:port")
        try:
            import kubernetes_asyncio  # noqa: F401
        except ImportError as error:
            problem = "needs the package kubernetes-asyncio: pip install 'sparsity-router[kubernetes]'"
            raise ConfigurationError(f"--worker: {place}: {problem}") from error

    async def follow(self) -> AsyncIterator[Collection[str]]:
        """The addresses at every change; a lost watch is begun again by a whole list."""
        from kubernetes_asyncio import client, watch

        selector = f"kubernetes.io/service-name={self._service}"
        while True:
            try:
                async with await self._client() as api_client:
                    api = client.DiscoveryV1Api(api_client)
                    listed = await api.list_namespaced_endpoint_slice(self._namespace, label_selector=selector)
                    slices = {item.metadata.name: item for item in listed.items}
                    yield self._addresses(slices.values())
                    async with watch.Watch().stream(
                        api.list_namespaced_endpoint_slice,
                        self._namespace,
                        label_selector=selector,
                        resource_version=listed.metadata.resource_version,
                        timeout_seconds=_WATCH_SECONDS,
                    ) as events:
                        async for event in events:
                            item = event["object"]
                            if event["type"] == "DELETED":
                                slices.pop(item.metadata.name, None)
                            else:
                                slices[item.metadata.name] = item
                            yield self._addresses(slices.values())
            except Exception as error:  # whatever a server answers, or its client makes of one that goes away
                problem = f"{type(error).__name__}: {error}"
                log.warning("endpoints of %s cannot be read: %s; its last workers are kept", self._service, problem)
                await asyncio.sleep(_RETRY_SECONDS)

    async def _client(self) -> Any:
        from kubernetes_asyncio import client, config
        from kubernetes_asyncio.config.config_exception import ConfigException

        try:
            config.load_incluster_config()
        except ConfigException:
            await config.load_kube_config()
        return client.ApiClient()

    def _addresses(self, slices: Iterable[Any]) -> set[str]:
        found = set()
        for item in slices:
            ports = [port.port for port in item.ports or () if self._port in (str(port.port), port.name)]
            for endpoint in item.endpoints or ():
                conditions = endpoint.conditions
                ready = conditions is None or (conditions.ready is not False and not conditions.terminating)
                found |= {joined(address, port) for address in endpoint.addresses if ready for port in ports}
        return found


SOURCES: dict[str, Callable[[str], Discovery]] = {"dns": Dns, "k8s": EndpointSlices}


class Stock:
    """Servers of stock SGLang, at the addresses of another source."""

    def __init__(self, source: Discovery) -> None:
        self._source = source

    @property
    def known(self) -> Collection[str]:
        """What is known before anybody was asked."""
        return self._told(self._source.known)

    async def follow(self) -> AsyncIterator[Collection[str]]:
        """The addresses at every change, as `sglang+grpc://host:port`."""
        async for found in self._source.follow():
            yield self._told(found)

    @staticmethod
    def _told(found: Collection[str]) -> Collection[str]:
        return tuple(f"{SCHEME}{address}" for address in found)


def discover(places: Iterable[str]) -> list[Discovery]:
    """The sources behind `--worker` options.

    Raises:
        ConfigurationError: naming the option and its form.
    """
    found: list[Discovery] = []
    fixed = []
    for place in places:
        scheme, separator, address = place.partition("://")
        stock, scheme = scheme.startswith(_STOCK), scheme.removeprefix(_STOCK)
        source: Discovery | None = None
        if not separator:
            fixed.append(str(read_address(place, "--worker")))
            continue
        if scheme in SOURCES:
            source = SOURCES[scheme](place)
        elif stock and scheme == _FIXED:
            source = Static([str(read_address(address, f"--worker: {place}"))])
        if source is None:
            known = ", ".join([*(f"{name}:///" for name in SOURCES), SCHEME])
            raise ConfigurationError(f"--worker: {place}: must be {FORM}, or begin with one of {known}")
        found.append(Stock(source) if stock else source)
    return [Static(fixed), *found] if fixed else found
