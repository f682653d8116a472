"""What was sent, in real bytes: by client and by group of vectors, for one direction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from flwr.app import ArrayRecord, Message

from fedscale_local import wire

Ledger = dict[int | None, dict[str, int]]
"""client index (None: nobody can tell) -> group -> bytes"""


def written(
    messages: Iterable[Any],
    end: Literal["dst_node_id", "src_node_id"],
    client_of: Mapping[int, int],
    group_of: Callable[[str], str],
) -> Ledger:
    """The array bytes of all messages that have any; `end` names the client's end of them."""
    sizes: dict[int, dict[str, int]] = {}
    book: Ledger = {}
    for message in messages:
        if not isinstance(message, Message) or not message.has_content():
            continue
        content = message.content
        own = sizes.get(id(content))  # messages of a round often share it
        if own is None:
            own = sizes[id(content)] = {}
            for name, record in wire.of_kind(content, ArrayRecord).items():
                group = group_of(name)
                own[group] = own.get(group, 0) + wire.record_bytes(record)
        client = client_of.get(getattr(message.metadata, end))
        book[client] = added(book[client], own) if client in book else own
    return book


def added(first: Mapping[str, int], second: Mapping[str, int]) -> dict[str, int]:
    """The sums by group, groups in alphabetical order.

    >>> added({"statistic": 2}, {"parameters": 1, "statistic": 3})
    {'parameters': 1, 'statistic': 5}
    """
    return {group: first.get(group, 0) + second.get(group, 0) for group in sorted({*first, *second})}


def by_group(*books: Ledger) -> dict[str, int]:
    """The bytes of all clients in these ledgers, groups in alphabetical order."""
    total: Counter[str] = Counter()
    for book in books:
        for sizes in book.values():
            for group, size in sizes.items():
                total[group] += size
    return dict(sorted(total.items()))
