"""Engines: they differ only in the Grid behind the ServerApp."""
