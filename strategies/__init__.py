"""What the server does, and the Flower ServerApp that it does it in.

A process that Flower starts begins with this package and often ends with its first message. Nothing is collected while
it is imported: that is a third of its time.
"""

from fedscale_local.processes import lasting

with lasting():
    from strategies import server_app

__all__ = ["server_app"]
