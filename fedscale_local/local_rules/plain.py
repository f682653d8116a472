"""Local SGD's client."""

from __future__ import annotations

from fedscale_local.local_rule import PLAIN, LocalRule, Setting


def plain(setting: Setting) -> LocalRule:
    """Each client takes K local steps, by the section scaling, from the model received.

        v = x;   K times:   v <- v - step_size * g(v) / D-hat          D-hat = 1 with scaling=identity

    Source: McMahan et al. 2017, Algorithm 1, ClientUpdate, for scaling=identity.
    Departures: a number of local steps (client.local_steps) unless client=epochs is asked for.
    """
    return PLAIN
