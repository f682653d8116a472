"""Is there a C compiler, for what is compiled where there is one?"""

import os
import shlex
import shutil

import pytest

needs_compiler = pytest.mark.skipif(
    shutil.which((shlex.split(os.environ.get("CC", "")) or ["cc"])[0]) is None,
    reason="there is no C compiler here",
)
