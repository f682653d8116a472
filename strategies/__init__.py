"""What the server does, and the Flower ServerApp that it does it in.

A process that Flower starts for a run begins with this package. Nothing is collected while it is imported, as
in clients.
"""

from fedscale_local.processes import lasting

with lasting():
    from strategies import server_app

__all__ = ["server_app"]
