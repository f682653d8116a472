"""The one place that imports torchvision. Import it inside functions: it costs a second or more a process.

torchvision's wheel is built for one build of torch. Beside another (the CPU build, most often) its compiled
operators do not load, and `import torchvision` ends with "operator torchvision::nms does not exist", though
models, transforms and dataset readers need none of them. So: declare the two operators that the import asks
for (without a body), and import again. Beside a matching build nothing of this happens.
"""

from __future__ import annotations

import sys
from types import ModuleType

import torch

_declared: torch.library.Library | None = None  # the declarations live as long as this object


def _load() -> ModuleType:
    global _declared
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]  # half imported
        _declared = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            _declared.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision
    return torchvision


torchvision = _load()
datasets, models, transforms = torchvision.datasets, torchvision.models, torchvision.transforms
