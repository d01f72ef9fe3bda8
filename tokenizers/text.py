"""Text tokenizers: the built-in one and those of published checkpoints."""

from omni.tokenizers.bytes import ByteTokenizer

__all__ = ["ByteTokenizer"]
