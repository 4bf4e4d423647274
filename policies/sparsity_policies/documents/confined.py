"""Work on what others wrote, in a process of its own with limits of time and memory.

CEL, regular expressions and YAML that are made for it take minutes or gigabytes to compile, in libraries that nothing
can interrupt. Here the kernel ends the process that does it, and whoever asked is told; the next call starts another.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any, Final

import hyperscan
from cachetools import LRUCache, cached
from sparsity_rpc.errors import InvalidRequestError, Violation

from sparsity_policies.documents.validate import check_policy
from sparsity_policies.documents.yamlfile import load_yaml
from sparsity_policies.matching.expressions import compile_expressions, dump_database, load_database
from sparsity_policies.model import Policy

if TYPE_CHECKING:
    from sparsity_policies.risk.model import Head

MEMORY_BYTES: Final = 2**30
CHECK_SECONDS: Final = 3.0
COMPILE_SECONDS: Final = 20.0
LEARN_SECONDS: Final = 30.0
# Processor time for each expression beside that: thousands take a while, and are no mistake.
_EXPRESSION_SECONDS = 0.01
# Likewise for each kilobyte of exemplars.
_KILOBYTE_SECONDS = 0.01
# On a busy machine processor time passes more slowly than time.
_PATIENCE = 10.0
# A process that nobody asks for so long ends, and gives its memory back.
_IDLE_SECONDS = 600.0
_SIZE = struct.Struct("!Q")
# Of databases that were compiled, whoever asked: what an editor tried is what routers then follow.
_KEPT_BYTES = 16 * 2**20
# Of the memory that it may address numpy's threads would take a part each, and they have nothing to do.
_ENVIRONMENT: Final = {"OPENBLAS_NUM_THREADS": "1"}


NO_PROCESS: Final = "finds no process"
"""Stands in every problem that is no fault of what was to be checked: it may be none a moment later."""


class ConfinedError(Exception):
    """The work was not done within its limits."""


class NoProcessError(ConfinedError):
    """There is no process that could do the work now: it may be done later, whatever it is."""


class Confined:
    """A process that is started at the first call, and again after one that did not keep to its limits.

    Calls may come from any thread, and wait for each other.
    """

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._is_shut = False

    def prepare(self) -> None:
        """Starts the process ahead of the next call, which then does not wait for it to load; a call tells problems."""
        with contextlib.suppress(NoProcessError), self._turn:
            self._started()

    def check(self, policy: Policy) -> Sequence[Violation]:
        """What :func:`sparsity_policies.documents.validate.check_policy` finds; past the limits is a mistake, too."""
        seconds = CHECK_SECONDS + _EXPRESSION_SECONDS * len(policy.detection.patterns)
        try:
            found: Sequence[Violation] = self._call("check", seconds, policy)
        except NoProcessError as error:
            return [Violation("policy", f"{error} that checks it: try again")]
        except ConfinedError as error:
            field = "detection.patterns" if policy.detection.patterns else "policy"
            return [Violation(field, f"{error} to check: shorten or remove what is repeated within a repetition")]
        return found

    def load(self, text: str, source: str) -> Policy:
        """As :func:`sparsity_policies.documents.yamlfile.load_yaml`, within the limits.

        Raises:
            InvalidRequestError: with fields like ``medical.yaml:12: bands[1].tier``.
        """
        try:
            policy: Policy = self._call("load", CHECK_SECONDS, text, source)
        except NoProcessError as error:
            raise InvalidRequestError.of(source, f"{error} that reads and checks it: try again") from error
        except ConfinedError as error:
            raise InvalidRequestError.of(source, f"{error} to read and check: shorten it") from error
        return policy

    @cached(
        LRUCache(_KEPT_BYTES, getsizeof=lambda database: database.size()),
        key=lambda _, expressions: tuple(expressions),
        lock=threading.Lock(),
    )
    def compile(self, expressions: Sequence[str]) -> Any:
        """As :func:`sparsity_policies.matching.expressions.compile_expressions`, within the limits; what was compiled
        lately, by this or another, is not compiled again.

        Raises:
            ValueError: when they do not compile within the limits.
            NoProcessError: when they may another time.
        """
        try:
            seconds = COMPILE_SECONDS + _EXPRESSION_SECONDS * len(expressions)
            return load_database(self._call("compile", seconds, expressions))
        except NoProcessError:
            raise
        except ConfinedError as error:
            raise ValueError(f"the policies' detection {error} to compile together") from error

    def learn(self, exemplars: Mapping[str, Sequence[str]], risky: frozenset[str]) -> Sequence[Head]:
        """As :func:`sparsity_policies.risk.learning.heads_of`, within the limits.

        Raises:
            ValueError: when they are not learnt within the limits.
            NoProcessError: when they may be another time.
        """
        try:
            size = sum(len(text) for texts in exemplars.values() for text in texts) / 1000
            heads: Sequence[Head] = self._call("learn", LEARN_SECONDS + _KILOBYTE_SECONDS * size, exemplars, risky)
        except NoProcessError:
            raise
        except ConfinedError as error:
            raise ValueError(f"the policies' exemplars {error} to learn together") from error
        return heads

    def close(self) -> None:
        """Ends the process; a later call starts another."""
        with self._turn:
            self._end()

    def shut(self) -> None:
        """Ends the process for good, in the midst of its work too: whoever waits for that must end as well."""
        self._is_shut = True
        if (process := self._process) is not None:
            process.kill()

    def _call(self, name: str, seconds: float, *arguments: Any) -> Any:
        with self._turn:
            answer = self._ask(name, seconds, arguments) or self._ask(name, seconds, arguments)
        if answer is None:
            raise NoProcessError(NO_PROCESS)
        kind, value = answer
        if kind == "memory":
            raise ConfinedError(f"takes more than {MEMORY_BYTES >> 20} MiB")
        if kind == "invalid":
            raise InvalidRequestError(*(Violation(*violation) for violation in value))
        if kind == "value":
            raise ValueError(value)
        return value

    def _ask(self, name: str, seconds: float, arguments: tuple[Any, ...]) -> tuple[str, Any] | None:
        """The answer; None of a process that had just ended for want of work."""
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            _send(process.stdin, (name, seconds, arguments))
            answer: tuple[str, Any] = _receive(process.stdout, time.monotonic() + seconds * _PATIENCE)
        except (OSError, EOFError) as error:
            self._end()
            if self._is_shut:
                raise NoProcessError(NO_PROCESS) from error
            if process.returncode == 0:
                return None
            late = isinstance(error, TimeoutError) or -process.returncode in (signal.SIGPROF, signal.SIGKILL)
            problem = f"takes more than {seconds:g} s" if late else f"takes more than {MEMORY_BYTES >> 20} MiB"
            raise ConfinedError(problem) from error
        return answer

    def _started(self) -> subprocess.Popen[bytes]:
        if self._is_shut:
            raise NoProcessError(NO_PROCESS)
        if self._process is None or self._process.poll() is not None:
            self._end()
            command = [sys.executable, "-m", "sparsity_policies.documents.confined"]
            try:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | _ENVIRONMENT
                )
            except OSError as error:
                raise NoProcessError(f"{NO_PROCESS} ({error.strerror})") from error
            if self._is_shut:  # meanwhile
                self._process.kill()
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        # A moment to end by itself: its exit status says which limit it met.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.2)
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def _send(pipe: IO[bytes], message: Any) -> None:
    data = pickle.dumps(message)
    pipe.write(_SIZE.pack(len(data)) + data)
    pipe.flush()


def _receive(pipe: IO[bytes], until: float) -> Any:
    """A message; TimeoutError when it has not come by ``until``, EOFError when the other end is closed."""
    (size,) = _SIZE.unpack(_read(pipe, _SIZE.size, until))
    return pickle.loads(_read(pipe, size, until))


def _read(pipe: IO[bytes], size: int, until: float) -> bytes:
    found = bytearray()
    while len(found) < size:
        if not select.select([pipe], [], [], max(until - time.monotonic(), 0.0))[0]:
            raise TimeoutError
        part = os.read(pipe.fileno(), size - len(found))
        if not part:
            raise EOFError
        found += part
    return bytes(found)


# Two, so that no draft of an editor holds up what routers follow.
SOURCES, EDITS = Confined(), Confined()


def _compiled(expressions: Sequence[str]) -> bytes:
    try:
        return dump_database(compile_expressions(expressions))
    except hyperscan.error as error:
        raise ValueError(f"the policies' detection does not compile together: {error}") from error


def _learnt(exemplars: Mapping[str, Sequence[str]], risky: frozenset[str]) -> Sequence[Head]:
    # Only here: what it stands on takes a tenth of a second to load.
    from sparsity_policies.risk.learning import heads_of

    return heads_of(exemplars, risky)


_WORK: Final[dict[str, Callable[..., Any]]] = {
    "check": check_policy,
    "load": load_yaml,
    "compile": _compiled,
    "learn": _learnt,
}


def _main() -> None:
    """Answers calls on the standard input until its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while True:
        try:
            name, seconds, arguments = _receive(sys.stdin.buffer, time.monotonic() + _IDLE_SECONDS)
        except (EOFError, TimeoutError):
            return
        # Nothing catches the signal, so that it ends a library's loop too.
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            answer: tuple[str, Any] = "done", _WORK[name](*arguments)
        except InvalidRequestError as error:
            answer = "invalid", [tuple(violation) for violation in error.violations]
        except MemoryError:
            answer = "memory", ""
        except ValueError as error:
            answer = "value", str(error)
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        _send(answers, answer)


if __name__ == "__main__":
    _main()
