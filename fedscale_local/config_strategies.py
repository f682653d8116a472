"""The section strategy: what clients do beside plain steps (local), how their models become one (combine), and how the
server moves (server). Any of one goes with any of the others; conf/strategy/ names the known combinations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from fedscale_local.config_base import Cap, Clip, Count, Decay, NonNegative, Positive, Section, Share, Size
from fedscale_local.config_messages import Is


class Target(Section):
    """Something of the user's own by its import path; every key beside the path is a keyword argument."""

    model_config = ConfigDict(extra="allow")
    target: Annotated[
        str,
        Field(alias="_target_", pattern=r"^[A-Za-z_]\w*([.:][A-Za-z_]\w*)+$"),
        Is("an import path like package.module.Name"),
    ]

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments for the target."""
        return dict(self.__pydantic_extra__ or {})


class PlainLocal(Section):
    """The gradient as it is, the step of the section scaling."""

    rule: Literal["plain"]


class Proximal(Section):
    """A pull of strength mu towards the model received (FedProx, FedDyn)."""

    rule: Literal["proximal", "dynamic"]
    mu: Size


class Scaffold(Section):
    """Control variates: option 1 or 2 of the paper."""

    rule: Literal["scaffold"]
    option: Annotated[Literal[1, 2], Is("1 or 2")]
    control_every: Count


class Mime(Section):
    """The server's momentum, frozen in the round."""

    rule: Literal["mime", "mimelite"]
    beta: Decay


class LocalAdam(Section):
    """Adam or AdamW on the client; what becomes of its moments between rounds."""

    rule: Literal["adam"]
    beta1: Decay
    beta2: Decay
    epsilon: Positive
    decay: Size
    moments: Literal["restart", "kept", "averaged"]
    first_every: Count
    second_every: Count


class Leaning(Section):
    """Local Adam that leans on the last mean displacement."""

    rule: Literal["fedlada", "fedpac"]
    beta1: Decay
    beta2: Decay
    epsilon: Positive
    lean: Share


class FedAdamW(Section):
    """The same with a decay, and from means of the second moment."""

    rule: Literal["fedadamw"]
    beta1: Decay
    beta2: Decay
    epsilon: Positive
    lean: Share
    decay: Size


class Fafed(Section):
    """STORM's gradient estimate over an averaged denominator."""

    rule: Literal["fafed"]
    beta: Decay
    storm: Share
    epsilon: Positive


class Muon(Section):
    """Orthogonalised momentum."""

    rule: Literal["muon"]
    beta: Decay
    num_iterations: Count


class FedMuon(Section):
    """The same with control variates."""

    rule: Literal["fedmuon"]
    beta: Decay
    num_iterations: Count
    control_every: Count


class CustomLocal(Target):
    """Any function that makes a LocalRule."""

    rule: Literal["custom"]


LocalConfig = Annotated[
    PlainLocal
    | Proximal
    | Scaffold
    | Mime
    | LocalAdam
    | Leaning
    | FedAdamW
    | Fafed
    | Muon
    | FedMuon
    | CustomLocal,
    Field(discriminator="rule"),
]


class PlainCombine(Section):
    """Weighted mean, FedNova's normalised mean, or coordinate median."""

    rule: Literal["mean", "normalised", "median"]


class Trimmed(Section):
    """A share of the smallest and of the largest values of each coordinate is left out."""

    rule: Literal["trimmed_mean"]
    trim: Annotated[float, Field(ge=0, lt=0.5), Is("a number", "0 or more, below 0.5")]


class Distances(Section):
    """Models chosen by their distances from each other, up to num_malicious of them liars'."""

    rule: Literal["krum", "bulyan"]
    num_malicious: NonNegative


class MultiKrum(Section):
    """The mean of the num_selected models chosen so."""

    rule: Literal["multikrum"]
    num_malicious: NonNegative
    num_selected: Count


class GeometricMedian(Section):
    """Smoothed Weiszfeld iterations."""

    rule: Literal["geometric_median"]
    num_iterations: Count
    smoothing: Positive


class ClippedMean(Section):
    """Each displacement's norm is at most max_norm."""

    rule: Literal["clipped_mean"]
    max_norm: Positive


CombineConfig = Annotated[
    PlainCombine | Trimmed | Distances | MultiKrum | GeometricMedian | ClippedMean,
    Field(discriminator="rule"),
]


class Strategy(Section):
    """A method of this project; which server it has decides which class reads it."""

    name: Annotated[str, Field(pattern=r"^\w+$"), Is("a name")]
    weighting: Literal["examples", "uniform"]
    mixing: Literal["mean", "preconditioned"]
    local: LocalConfig
    combine: CombineConfig
    server: str
    eta: Positive


class ServerPlain(Strategy):
    """The server takes what was combined, or a part of the way there."""

    server: Literal["plain"]


class ServerMomentum(Strategy):
    """Heavy ball or Nesterov on the mean displacement."""

    server: Literal["momentum", "nesterov"]
    beta1: Decay


class ServerAdaptive(Strategy):
    """Reddi et al.'s adaptive servers, and AMSGrad's maximum."""

    server: Literal["adagrad", "adam", "yogi", "ams"]
    beta1: Decay
    beta2: Decay
    tau: Positive


class ServerDynamic(Strategy):
    """FedDyn's server."""

    server: Literal["dynamic"]
    mu: Positive


class ServerScaled(Strategy):
    """The mean displacement over a D-hat of its own, by a rule of the scaling table that needs no curvature."""

    server: Literal["scaled"]
    memory: Literal["identity", "adagrad", "rmsprop", "adam", "oasis"]
    beta: Decay
    alpha: Positive
    floor: Literal["max", "add"]
    upper_bound: Cap
    rho: Clip


class FlowerStrategy(Target):
    """Any strategy of Flower, unmodified; weighting is up to its own arguments."""

    name: Literal["flower"]


def _tag(strategy: Any) -> str | None:
    """Which class reads the section: Flower's is told by its name, ours by their server."""
    read = strategy.get if isinstance(strategy, Mapping) else lambda key: getattr(strategy, key, None)
    if read("name") == "flower":
        return "flower"
    server = read("server")
    return server if isinstance(server, str) else None


StrategyConfig = Annotated[
    Annotated[ServerPlain, Tag("plain")]
    | Annotated[ServerMomentum, Tag("momentum")]
    | Annotated[ServerMomentum, Tag("nesterov")]
    | Annotated[ServerAdaptive, Tag("adagrad")]
    | Annotated[ServerAdaptive, Tag("adam")]
    | Annotated[ServerAdaptive, Tag("yogi")]
    | Annotated[ServerAdaptive, Tag("ams")]
    | Annotated[ServerScaled, Tag("scaled")]
    | Annotated[ServerDynamic, Tag("dynamic")]
    | Annotated[FlowerStrategy, Tag("flower")],
    Discriminator(_tag),
]
