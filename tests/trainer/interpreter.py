"""A command in the place of Python, which pays for no start and no import: a fork of this process does its work.

A test gives its path to what starts interpreters. What it is told to run runs as in an interpreter of its own, with
the arguments, environment, folder and files of whoever called it, and the command ends with its exit code. What is not
among `SERVED` is left to Python itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import shutil
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.trainer import preloaded
from trainer.machine import garbage

SERVED = ("submitit.core._submit", "train.py")

COMMAND = """#!{python} -IS
import json, os, socket, sys
arguments = [text for text in sys.argv[1:] if text not in ("-u", "-m")]
if arguments[:1] and arguments[0] in {served}:
    with socket.socket(socket.AF_UNIX) as server:
        server.connect({address!r})
        told = json.dumps([arguments, os.getcwd(), dict(os.environ)]).encode()
        socket.send_fds(server, [len(told).to_bytes(8, "big")], [0, 1, 2])
        server.sendall(told)
        sys.exit(int(server.recv(8) or b"1"))  # nothing where it was killed
os.execv({python!r}, [{python!r}, *sys.argv[1:]])
"""


@contextlib.contextmanager
def command() -> Iterator[Path]:
    """The path of the command; what it has started ends with the context."""
    preloaded.load()
    place = Path(tempfile.mkdtemp(prefix="python"))  # short: a socket's address has 108 characters at most
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(address := str(place / "socket"))
            listener.listen()
            if (server := os.fork()) == 0:
                try:
                    _serve(listener)
                finally:
                    os._exit(1)
        script = place / "python"
        script.write_text(COMMAND.format(python=sys.executable, served=SERVED, address=address))
        script.chmod(0o755)
        yield script
        os.killpg(server, signal.SIGKILL)
        os.waitpid(server, 0)
    finally:
        shutil.rmtree(place)


def _serve(listener: socket.socket) -> None:
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    while True:
        caller, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            garbage.freeze()  # to collect what there was would copy it
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            code = 1
            try:
                size, files, *_ = socket.recv_fds(caller, 8, 3)
                told = b""
                while len(told) < int.from_bytes(size, "big"):
                    told += caller.recv(1 << 16)
                code = _run(*json.loads(told), files)
            finally:
                caller.sendall(b"%d" % code)
                os._exit(code)
        caller.close()


def _run(arguments: list[str], folder: str, environment: dict[str, str], files: Any) -> int:
    """Exit code of the script or module that is the first argument."""
    for number, file in enumerate(files):
        os.dup2(file, number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))  # pytest has replaced both
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = arguments
    name = arguments[0]
    try:
        if name.endswith(".py"):
            runpy.run_path(name, run_name="__main__")
        else:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
    except SystemExit as end:  # as Python does it
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0
