"""omni: one library that runs, trains and serves the Nemotron and Cosmos 3 family."""

from pathlib import Path
from typing import Any

__version__ = "0.1.0"

_root = Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").exists() and (_root / "pipelines").is_dir():
    __path__.append(str(_root))  # a source checkout: the stage folders stand beside this package


def load(name_or_path: str = "tiny", device: str = "auto", dtype: Any = "auto", **options: Any) -> Any:
    """Load a model: ``"tiny"`` (shipped), a local folder, or a hub id. See :func:`omni.families.load`.

    ``options``: ``quantize``, ``low_inputs``.
    """
    from omni.families import load as load_family

    return load_family(name_or_path, device=device, dtype=dtype, **options)


__all__ = ["__version__", "load"]
