"""All slow twins by name. Their conventions: tests/twins_base.py; each one's recurrence: its docstring.

They are written from the description of the methods alone, never from the code that is compared with them.
The scaled local method's own twin is tests/twin.py, which takes random draws; here it has full batches.
"""

from __future__ import annotations

from collections.abc import Callable

import twins_adam
import twins_control
import twins_muon
import twins_robust
import twins_scaled
import twins_server
import twins_sgd
import twins_warm
from twins_base import Vector

TWINS: dict[str, Callable[..., list[Vector]]] = {
    # server
    "fedavg": twins_server.fedavg,
    "fedavgm": twins_server.fedavgm,
    "fedadagrad": twins_server.fedadagrad,
    "fedadam": twins_server.fedadam,
    "fedyogi": twins_server.fedyogi,
    "fedams": twins_server.fedams,
    "scaled_server": twins_server.scaled_server,
    # robust
    "median": twins_robust.median,
    "trimmed_mean": twins_robust.trimmed_mean,
    "krum": twins_robust.krum,
    "multikrum": twins_robust.multikrum,
    "bulyan": twins_robust.bulyan,
    "geometric_median": twins_robust.geometric_median,
    "norm_clipping": twins_robust.norm_clipping,
    # momentum, proximal and corrected clients
    "local_momentum": twins_sgd.local_momentum,
    "fedprox": twins_sgd.fedprox,
    "fednova": twins_sgd.fednova,
    "scaffold": twins_control.scaffold,
    "mimelite": twins_control.mimelite,
    "mime": twins_control.mime,
    "feddyn": twins_control.feddyn,
    # adaptive clients
    "local_adam": twins_adam.local_adam,
    "local_adamw": twins_adam.local_adamw,
    "fedada2": twins_adam.fedada2,
    "diloco": twins_adam.diloco,
    "des_loc": twins_warm.des_loc,
    "fafed": twins_warm.fafed,
    "fedlada": twins_warm.fedlada,
    "fedpac": twins_warm.fedpac,
    "fedadamw": twins_warm.fedadamw,
    "local_muon": twins_muon.local_muon,
    "fedmuon": twins_muon.fedmuon,
    # scaled clients
    "scaled_local": twins_scaled.scaled_local,
}
