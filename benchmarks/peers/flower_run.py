"""Flower's simulation on Ray, by `flwr run`: as many actors as cores, each with one CPU and one thread."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = """
[project]
name = "peer"
version = "1.0.0"
license = "Apache-2.0"
[tool.flwr.app]
publisher = "peer"
fab-include = ["pyproject.toml"]
[tool.flwr.app.components]
serverapp = "flower_app:server_app"
clientapp = "flower_app:client_app"
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


work = json.loads((Path(sys.argv[1]) / "work.json").read_text())
with tempfile.TemporaryDirectory() as folder:
    env = {
        **os.environ,
        "PEER_WORK": str(Path(sys.argv[1]).resolve()),
        "PYTHONPATH": str(Path(__file__).parent),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": folder,
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }
    app, port = Path(folder, "app"), free_port()
    app.mkdir()
    (app / "pyproject.toml").write_text(PROJECT)
    Path(folder, "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    superlink = subprocess.Popen(
        ["flower-superlink", "--insecure", "--simulation", "--host", "127.0.0.1", "--port", str(port)],
        cwd=folder, env=env, start_new_session=True,
    )  # fmt: skip
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        resources = (
            f"num-supernodes={work['num_clients']} client-resources-num-cpus=1 client-resources-num-gpus=0.0"
        )
        subprocess.run(
            ["flwr", "run", str(app), "here", "--stream", "--federation-config", resources],
            cwd=folder, env=env, check=True,
        )  # fmt: skip
    finally:
        superlink.terminate()
        superlink.wait()
