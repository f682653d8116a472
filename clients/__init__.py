"""Part of fedscale-local."""
