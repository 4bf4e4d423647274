"""Several router processes on the same ports: the kernel spreads connections over them (SO_REUSEPORT, Linux 3.9).

They share nothing but the ports and a folder for overrides. The parent restarts what ends, passes signals on, and holds
the ports so that no stranger takes them.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from sparsity_rpc.errors import ConfigurationError
from sparsity_serving.addresses import Address, joined, read_address
from sparsity_serving.background.signalled import SignalledEvent

from sparsity_router.processes.early_signals import EARLY, KEPT, SWITCHES

log = logging.getLogger("sparsity.router.processes")
_POLL_SECONDS = 0.1
_RESTART_SECONDS = 1.0
# A child that is killed takes so long at most to be gone, and hears nothing meanwhile.
_ENDING_SECONDS = 1.0
# A configuration that cannot be used ends a router with this.
_UNUSABLE = 2


def run(arguments: Sequence[str], shared: Mapping[str, str | None], count: int, own: Mapping[str, str | None]) -> int:
    """Runs ``count`` routers with the command line ``arguments`` until SIGTERM or SIGINT, and returns the exit code.

    Args:
        arguments: of the command line.
        shared: addresses by option that all listen on.
        count: how many.
        own: addresses by option of which each takes one, the given and those on the ports after it.

    Raises:
        ConfigurationError: when an address cannot be listened on.
    """
    stopping = SignalledEvent()
    children: list[subprocess.Popen[bytes]] = []
    # The last switch, with when it came: a child that was ending may have missed it.
    switched = [(float("-inf"), signal.SIGUSR2)]

    def pass_on(number: int, _: object = None) -> None:
        if number in SWITCHES:
            switched[:] = [(time.monotonic(), signal.Signals(number))]
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    for number in KEPT:
        signal.signal(number, pass_on)
    with contextlib.ExitStack() as held:
        folder = held.enter_context(tempfile.TemporaryDirectory(prefix="sparsity-router-"))
        command = [sys.executable, "-m", "sparsity_router", *arguments, "--processes", "1", "--siblings", folder]
        for option, listen in shared.items():
            if listen:
                wanted = read_address(listen, option)
                holder = held.enter_context(_held(wanted, option))
                address = joined(wanted.host, holder.getsockname()[1])
                command += [option, address]
                log.info("%d router processes share %s %s", count, option, address)
        commands = [[*command, *_own(own, place)] for place in range(count)]
        with _blocked():
            children += [subprocess.Popen(each) for each in commands]
        EARLY.hand_over({number: partial(pass_on, number) for number in KEPT})
        unproven = set(children)
        alive = [time.monotonic()] * count
        code = 0
        while not stopping.wait(_POLL_SECONDS):
            for place, child in enumerate(children):
                if child.poll() is None:
                    alive[place] = time.monotonic()
                    continue
                if child.returncode == _UNUSABLE and child in unproven:
                    code = _UNUSABLE
                    stopping.set()
                    break
                log.error("router process %d ended with %d; it is started again", child.pid, child.returncode)
                if not stopping.wait(_RESTART_SECONDS):
                    with _blocked():
                        children[place] = subprocess.Popen(commands[place])
                    ((at, switch),) = switched
                    if at > alive[place] - _ENDING_SECONDS:
                        children[place].send_signal(switch)
        for child in children:
            child.terminate()
        for child in children:
            child.wait()
    # One that was ended before it served did not fail.
    ended = {0, -signal.SIGTERM}
    return code or int(any(child.returncode not in ended for child in children))


@contextlib.contextmanager
def _blocked() -> Iterator[None]:
    """Lets no signal that is passed on come now, nor to a child that is started now, until it keeps them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, KEPT)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, KEPT)


def _own(addresses: Mapping[str, str | None], place: int) -> list[str]:
    """The arguments that the process at ``place`` has for itself."""
    arguments: list[str] = []
    for option, first in addresses.items():
        if first:
            host, port = read_address(first, option)
            arguments += [option, joined(host, port + place)]
    return arguments


def _held(place: Address, option: str) -> socket.socket:
    """A socket that is bound to the address and does not listen: connections go to the children."""
    holder = socket.socket(place.family, socket.SOCK_STREAM)
    try:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(tuple(place))
    except OSError as error:
        holder.close()
        raise ConfigurationError(f"{option}: cannot listen on {place}: {error}") from error
    return holder
