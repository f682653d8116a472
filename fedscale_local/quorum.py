"""How long a round waits for its replies, how many it needs, and what happens with fewer; the same in every engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from flwr.app import Message
from flwr.serverapp import Grid

from fedscale_local.config import Config
from fedscale_local.errors import FedscaleError

PAUSE_SECONDS = 5.0
"""Between two times that clients are asked again."""
WAIT_SECONDS = 3600.0
"""How long on_too_few=wait goes on asking."""

Failures = list[dict[str, Any]]


class Exchange(NamedTuple):
    """All that was sent and received in a round, what of it may be used, and why the rest may not."""

    sent: list[Message]
    received: list[Message]
    good: list[Message]
    failures: Failures


def exchange(
    config: Config,
    grid: Grid,
    messages: Sequence[Message],
    check: Callable[[list[Message]], tuple[list[Message], Failures]],
    lack: Callable[[list[Message]], str | None] | None = None,
) -> Exchange:
    """Send a round's messages and take what comes back within config.round_timeout.

    With fewer than config.min_replies good replies (or fewer than were asked, if those are less), config.on_too_few
    says what then: "skip" uses none of them, "wait" asks the others again for up to an hour, "stop" ends the run.
    lack: good replies -> why they are too few, else None; another rule in the place of min_replies.

    Raises FedscaleError for "stop", and for "wait" in vain.
    """
    sent, received = list(messages), list(grid.send_and_receive(messages, timeout=config.round_timeout))
    good, failures = check(received)
    lack, deadline = lack or partial(_lack, config, len(messages)), time.monotonic() + WAIT_SECONDS
    few = lack(good) if messages else None
    while config.on_too_few == "wait" and few is not None and time.monotonic() < deadline:
        time.sleep(PAUSE_SECONDS)
        answered = {reply.metadata.reply_to_message_id for reply in good}
        again = [message for message in messages if message.metadata.message_id not in answered]
        replies = list(grid.send_and_receive(again, timeout=config.round_timeout))
        sent, received = sent + again, received + replies
        good, failures = check(good + replies)
        few = lack(good)
    if few is None:
        return Exchange(sent, received, good, failures)
    if config.on_too_few != "skip":
        reasons = "; ".join(f"client {f['client']}: {f['reason']}" for f in failures[:3])
        raise FedscaleError(f"{few} ({reasons}); what was done is kept, carry on with fedscale-local resume")
    if good:
        failures = [*failures, {"client": None, "reason": f"{few}: none is used"}]
    return Exchange(sent, received, [], failures)


def _lack(config: Config, num_asked: int, good: Sequence[Message]) -> str | None:
    """Why these are too few by config.min_replies, else None."""
    if len(good) >= min(config.min_replies, num_asked):
        return None
    return f"{len(good)} of {num_asked} replies can be used, min_replies={config.min_replies}"
