"""From a name to a folder: a shipped model, a local folder, or a repository of the Hugging Face hub."""

import os
import re
from pathlib import Path

from omni.assets import shipped
from omni.checkpoint import CheckpointError

PATTERNS = ["*.safetensors", "*.json", "*.txt", "*.jinja", "*.model"]
"""Files that are fetched: weights, configurations, tokenizers and templates; never code and never pickles."""

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")


class ModelNotFound(CheckpointError):
    """There is no such model: one line that says where it was looked for."""


def looks_like_repo(name: str) -> bool:
    return _REPO.fullmatch(name) is not None and ".." not in name


def find_folder(name_or_path: str | os.PathLike) -> Path:
    """The folder of a checkpoint. ``OWNER/NAME[@REVISION]`` is fetched unless it is in the cache already."""
    known = shipped()
    if name_or_path in known:
        return known[name_or_path]
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ModelNotFound(f"{path} is a file; a model is a folder with config.json and .safetensors files")
    if not looks_like_repo(str(name_or_path)):
        names = ", ".join(known)
        raise ModelNotFound(f"{name_or_path} is neither a folder, nor a hub id (OWNER/NAME), nor shipped ({names})")
    return _fetch(str(name_or_path))


def _fetch(repo: str) -> Path:
    """Download with huggingface_hub: resumable, cached, silent about the network under HF_HUB_OFFLINE=1."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name, _, revision = repo.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=PATTERNS))
    except GatedRepoError:
        reason = "access must be requested on its page; then log in with `hf auth login`"
    except RevisionNotFoundError:
        reason = f"it has no revision {revision}"
    except RepositoryNotFoundError:
        reason = "there is no such public repository, and no such folder here"
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        reason = "it is not in the local cache, and the hub cannot be reached (offline?)"
    except HFValidationError as error:
        reason = str(error).splitlines()[0]
    except Exception as error:  # errors of the network are those of the hub's HTTP library, which changed over time
        reason = f"the download failed: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
    raise ModelNotFound(f"{repo}: {reason}") from None
