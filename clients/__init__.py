"""What clients compute, and the Flower ClientApp that they do it in.

A process that Flower starts begins with this package and often ends with its first message. Nothing is collected while
it is imported: that was a third of its time.
"""

from fedscale_local.processes import lasting

with lasting():
    from clients import client_app

__all__ = ["client_app"]
