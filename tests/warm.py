"""Commands without their imports, which take longer than most of what they do: `fedscale-local` and Flower's.

`python warm.py serve SOCKET PROGRAM...` has imported everything and done nothing. Each connection is one command: a
fork of it with the caller's arguments, folder, environment, input and output, as a process of its own with nothing left
from another. `python warm.py ask SOCKET PROGRAM ARGUMENT...` is such a caller: it imports little and ends with the
command's exit status.
"""

import atexit
import gc
import os
import select
import signal
import socket
import sys
import threading

MIB = 1 << 20
PROGRAMS = {
    "fedscale-local": "fedscale_local.cli.main",
    "flower-superexec": "flwr.supercore.cli.flower_superexec",
    "flower-superlink": "flwr.superlink.cli.flower_superlink",
    "flwr": "flwr.cli.app.app",
    "flwr-serverapp": "flwr.superlink.cli.flwr_serverapp",
    "flwr-clientapp": "flwr.supernode.cli.flwr_clientapp",
    "flwr-simulation": "flwr.simulation.app.flwr_simulation",
}
RAY_WORKER = "ray-worker"


def ask(path: str, arguments: list[str]) -> int:
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(path)
        words = [os.getcwd(), *(f"{key}={value}" for key, value in os.environ.items())]
        told = "\0".join([str(len(arguments)), *arguments, *words]).encode(errors="surrogateescape")
        socket.send_fds(line, [len(told).to_bytes(4, "big")], [0, 1, 2])
        line.sendall(told)
        answer = line.recv(1)
    return answer[0] if answer else 1


def serve(path: str, names: list[str]) -> None:
    from contextlib import suppress

    from fedscale_local import fresh
    from fedscale_local.instantiate import locate

    programs = {name: ray_worker if name == RAY_WORKER else locate(PROGRAMS[name]) for name in names}
    for name in fresh.PRELOADED:
        locate(name)
    fresh.Fresh.__init__ = forked  # type: ignore[method-assign]
    gc.freeze()  # no collection goes through what forks have in common
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(f"{path}.part")
        door.listen()
        os.rename(f"{path}.part", path)
        parent = os.getppid()
        door.settimeout(1)
        while True:
            try:
                line, _ = door.accept()
            except TimeoutError:
                if os.getppid() != parent:  # whoever would have ended this is gone
                    return
                continue
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            if os.fork():
                line.close()
                continue
            door.close()
            length, streams, *_ = socket.recv_fds(line, 4, 3)
            size, told = int.from_bytes(length, "big"), b""
            while len(told) < size:
                told += line.recv(MIB)
            child = os.fork()
            if child == 0:
                line.close()
                be(told.decode(errors="surrogateescape").split("\0"), streams, programs)
            for stream in streams:
                os.close(stream)
            ended = os.pidfd_open(child)
            if select.select([ended, line], [], [])[0] == [line]:  # the caller was ended: so is the command
                os.kill(child, signal.SIGTERM)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            with suppress(OSError):
                line.sendall(bytes([status % 256 if status >= 0 else 128 - status]))
            os._exit(0)


def be(told: list[str], streams: list[int], programs) -> None:
    """The command itself, up to its last word: to clear the memory of what was imported takes longer than the rest."""
    count, *words = told
    arguments, (folder, *environment) = words[: int(count)], words[int(count) :]
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(entry.split("=", 1) for entry in environment)
    sys.argv[:] = arguments
    status = 0
    try:
        status = programs[arguments[0]]()
    except SystemExit as end:
        status = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    if isinstance(status, str):
        print(status, file=sys.stderr)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else bool(status))


def ray_worker() -> None:
    """What Ray starts with `python setup_worker.py default_worker.py ...`: the second, in an environment like this.

    Ray reads its environment as it is imported, so that is left to each.
    """
    import runpy

    ours = ("--serialized-runtime-env-context", "--language")
    sys.argv[:] = [argument for argument in sys.argv[1:] if not argument.startswith(ours)]
    runpy.run_path(sys.argv[0], run_name="__main__")


def forked(self, cores: int | None = None) -> None:
    """In the place of Fresh.__init__, for a sweep: what it starts is there already, a fork of this command does."""
    import multiprocessing

    from fedscale_local import fresh

    (asked, ask_), (answers, answer) = os.pipe(), os.pipe()

    def work() -> None:
        os.setsid()
        os.close(ask_)
        os.dup2(asked, 0)
        os.dup2(answer, 1)
        os.close(asked)
        os.close(answer)  # else what this forks would hold it open
        sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
        if cores is not None:
            os.environ.update(fresh.ONE_THREAD, FEDSCALE_CORES=str(cores))
        fresh._serve()

    self.process = multiprocessing.get_context("fork").Process(target=work)
    self.process.start()
    os.close(asked)
    os.close(answer)
    self.process.stdin, self.process.stdout = open(ask_, "w"), open(answers)  # noqa: SIM115
    self.process.wait = lambda: self.process.join() or self.process.exitcode


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2], sys.argv[3:])
    else:
        sys.exit(ask(sys.argv[2], sys.argv[3:]))
