"""The same work in several frameworks, side by side: see __main__.py."""
