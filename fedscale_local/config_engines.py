"""Where the clients run: the sections behind engine=in_process|ray|superlink, and which SuperLink."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedscale_local.config_base import Count, Flag, Section, Size
from fedscale_local.config_messages import Is

_ADDRESS = r"^[^\s:/]+:\d+$"
Workers = Annotated[Annotated[int, Field(ge=1)] | Literal["auto"], Is("a whole number", "1 or more, or auto")]
PathOrNull = Annotated[str | None, Field(min_length=1), Is("a path or null")]


class InProcess(Section):
    """All clients in this process and its workers."""

    name: Literal["in_process"]
    mode: Literal["auto", "looped", "stacked", "compiled"]
    stack_size: Workers
    memory_format: Literal["auto", "channels_last", "contiguous"]
    workers: Workers
    device: Literal["cpu", "cuda"]
    precision: Literal["full", "bfloat16"]
    client_state: Literal["memory", "disk"]


class Ray(Section):
    """Flower's simulation on Ray, `chunks` messages a round; a worker takes `num_cpus` CPUs and `num_gpus` GPUs."""

    name: Literal["ray"]
    workers: Workers
    chunks: Workers
    num_cpus: Count
    num_gpus: Size
    address: Annotated[
        str | None, Field(pattern=_ADDRESS), Is("host:port of a Ray cluster that is up, or null")
    ]


class Devices(Section):
    """SuperNodes of a SuperLink; which one says the section superlink."""

    name: Literal["superlink"]


class SuperLink(Section):
    """Which SuperLink, and what this command shows and trusts."""

    address: Annotated[str | None, Field(pattern=_ADDRESS), Is("host:port of a SuperLink, or null")]
    federation: PathOrNull
    serverapp: Literal["beside", "remote"]
    root_certificates: PathOrNull
    superexec_secret: PathOrNull
    insecure: Flag


EngineConfig = Annotated[InProcess | Ray | Devices, Field(discriminator="name")]
