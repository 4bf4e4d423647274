"""A worker process takes up other lease keys while it serves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
from sparsity.v1 import inference_pb2, worker_pb2, worker_pb2_grpc
from sparsity_serving.access.lease_keys import LeaseKey, LeaseKeys
from sparsity_serving.access.leases import sign
from sparsity_worker.echo.model import CONTEXT, write_echo_model
from support.ports import free_port

_OLD, _NEW = LeaseKey("old", b"o" * 32), LeaseKey("new", b"n" * 32)


def answered(stub: Any, key: LeaseKey) -> grpc.StatusCode:
    """How a request ends whose lease was signed with ``key``."""
    asked = worker_pb2.WorkerServiceGenerateRequest(request_id=f"{time.time_ns()}", tier=inference_pb2.TIER_DENSE)
    asked.text.text, asked.text.max_tokens = "hi", CONTEXT
    asked.lease.CopyFrom(sign(LeaseKeys(key), asked, "w", "d"))
    try:
        list(stub.Generate(asked, wait_for_ready=True, timeout=30.0))
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def test_a_lease_key_that_leaked_is_gone_without_a_restart(tmp_path: Path) -> None:
    file, address = tmp_path / "keys", f"127.0.0.1:{free_port()}"
    file.write_text(f"old: {_OLD.secret.decode()}\n")
    command = [sys.executable, "-m", "sparsity_worker", "--worker-id", "w", "--tiers", "dense", "--engine", "echo"]
    command += ["--model", str(write_echo_model(tmp_path / "echo")), "--listen", address]
    command += ["--lease-key-file", str(file), "--require-lease"]
    with subprocess.Popen(command) as worker, grpc.insecure_channel(address) as channel:
        try:
            stub = worker_pb2_grpc.WorkerServiceStub(channel)
            assert answered(stub, _OLD) is grpc.StatusCode.OK
            assert answered(stub, _NEW) is grpc.StatusCode.PERMISSION_DENIED
            scratch = tmp_path / "scratch"
            scratch.write_text(f"new: {_NEW.secret.decode()}\n")
            os.replace(scratch, file)
            worker.send_signal(signal.SIGHUP)
            deadline = time.monotonic() + 10
            while answered(stub, _NEW) is not grpc.StatusCode.OK:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert answered(stub, _OLD) is grpc.StatusCode.PERMISSION_DENIED
        finally:
            worker.terminate()
    assert worker.returncode == 0
