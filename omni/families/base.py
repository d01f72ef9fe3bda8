"""What a family of published checkpoints consists of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from omni.config import OmniConfig
from omni.rules import Rule


@dataclass(frozen=True)
class Preset:
    """The sizes of one published checkpoint; ``weights`` is what ``omni.load`` takes to get them."""

    config: OmniConfig
    weights: str


@dataclass(frozen=True)
class Family:
    """One way of writing a system to disk."""

    name: str
    matches: Callable[[dict[str, Any]], bool]  # is this config.json (or model_index.json) one of mine?
    to_config: Callable[[dict[str, Any]], OmniConfig]  # ConfigError where it cannot be honoured
    from_config: Callable[[OmniConfig], dict[str, Any]]  # ConfigError where this layout cannot express it
    rules: Callable[[OmniConfig], tuple[Rule, ...]]
    read_media: Callable[[OmniConfig, Mapping[str, dict[str, Any]]], OmniConfig] | None = None
    """The configuration with what the processors' files (name -> content, those that are there) say of media."""
    write_media: Callable[[OmniConfig], dict[str, dict[str, Any]]] | None = None
    """Those files again."""
    parts: Mapping[str, str] = field(default_factory=lambda: {"": ""})
    """Sub-folder -> prefix of the names of its tensors, for layouts that keep one folder for each component."""
    stem: str = "model"
    """What the files of weights are called."""
