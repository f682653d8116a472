"""What is told beside the run directory, which is always written."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedscale_local.config_base import Section
from fedscale_local.config_messages import Is


class NoTracking(Section):
    """The run directory alone."""

    name: Literal["none"]


class TensorBoard(Section):
    """Event files of TensorBoard."""

    name: Literal["tensorboard"]
    dir: Annotated[str | None, Field(min_length=1), Is("a path or null")]


class Mlflow(Section):
    """A store of MLflow: a file on this machine, or a server that the user names."""

    name: Literal["mlflow"]
    uri: Annotated[
        str, Field(min_length=1), Is("a store's address, as sqlite:///mlflow.db or http://HOST:PORT")
    ]
    experiment: Annotated[str | None, Field(min_length=1), Is("a name or null")]


TrackingConfig = Annotated[NoTracking | TensorBoard | Mlflow, Field(discriminator="name")]
