"""Is there a C compiler, for what is compiled where there is one?"""

import pytest

from fedscale_local import native
from fedscale_local.errors import FedscaleError


def _is_there() -> bool:
    try:
        return bool(native.compiler())
    except FedscaleError:
        return False


needs_compiler = pytest.mark.skipif(not _is_there(), reason="there is no C compiler here")
