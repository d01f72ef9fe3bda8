"""The model that a run trains: fresh sizes of a preset, or a folder's weights; and the folder that the run leaves.

    recipe.model, a folder ──> opened ──> model in float32, its tokenizer, Source: layout and type of the weights
    datasets of the recipe ──> learn_embodiments ──> config.action.embodiments, with statistics
    trained model ──> write_folder ──> the layout it came from, or our own; codecs, scheduler, tokenizer go along

A folder's weights are trained in float32 whatever they are stored in: in bfloat16 most steps of a small rate are lost
(``reference`` cosmos3, section 10.1). They are stored again as they were.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from omni.assets import shipped
from omni.config import ConfigError, Embodiment, replace
from omni.data.demonstrations import body_of, fitted
from omni.data.droid import SPACES
from omni.data.lerobot import LeRobotDataset
from omni.data.texts import TEXTS
from omni.families import INDICES, base_folder, compute_dtype, families, load_folder, preset, read_folder, save
from omni.families.convert import COPIED
from omni.families.locate import find_folder
from omni.model import Omni
from omni.quantization.modules import packed_weights
from omni.recipe import DiffusePlan, Recipe
from omni.tokenizers.action import embodiment as embodiment_of

COMPONENTS = ("vae", "sound_tokenizer", "text_tokenizer")
"""Folders of what a run leaves as it is; every layout reads them beside the weights."""

PIPELINE = ("scheduler", *INDICES)
"""What a folder of diffusers has beside its transformer."""

DENOISED = ("draw", "animate", "act", "distil")
"""Plans that train the denoiser."""


@dataclass(frozen=True)
class Source:
    """The folder that a model came from."""

    folder: Path
    family: str
    dtype: torch.dtype  # of the weights as they are stored
    compute_dtype: torch.dtype | None = None  # what config.json asks for, in our own layout


def is_preset(name: str) -> bool:
    """Whether a recipe's model are sizes without weights, not a folder. ConfigError with close names for neither."""
    if name in shipped() or "/" in name or Path(name).is_dir():
        return False
    preset(name)
    return True


def opened(name: str) -> tuple[Omni, Source]:
    """The model of a folder or hub id on the CPU, ready to learn, and where it came from.

    ValueError where it cannot be trained.
    """
    folder = find_folder(name)
    family, _ = read_folder(folder)
    model = load_folder(folder)
    if model.tokenizer is None:
        raise ValueError(f"{folder} has no tokenizer; training needs one")
    if packed_weights(model):
        raise ValueError(f"{folder} is quantised; train the checkpoint that it was made from")
    source = Source(folder, family.name, model.dtype, compute_dtype(folder))
    return model.float().train(), source  # routers balance their experts in training only


def check_plans(recipe: Recipe, model: Omni, source: Source | None) -> None:
    """ValueError where a stage asks for what the model cannot be trained for, or its layout cannot be written."""
    for stage in recipe.stages:
        drawn = [kind for kind in DENOISED if getattr(stage, kind) is not None]
        where = f"stage {stage.name!r} has {', '.join(drawn)}; the model {recipe.model}"
        if drawn and model.latents is None:
            raise ValueError(f"{where} denoises nothing")
        if drawn and source is not None and not _has_codec(model):
            raise ValueError(f"{where} lacks the codec of its latents, the folder vae")
        worlds = [kind for kind in drawn if kind != "act" or stage.act.dataset is None]
        if worlds and model.config.generation.captions == "chat":
            raise ValueError(f"{where} is a generator like Cosmos 3, which learns from act with a dataset only")
        if (stage.draw or stage.distil) and not model.config.generation.draws:
            raise ValueError(f"{where} draws no pictures by themselves")
        if stage.act is not None and model.actions is None:
            raise ValueError(f"{where} has no actions")
        if stage.diffuse is not None:
            _check_texts(stage.name, stage.diffuse, recipe.model, model)
    name = _family(recipe, source)
    if name not in families() or (source is None and name != "omni"):
        known = sorted(families()) if source else ["omni"]
        raise ConfigError(f"Recipe.family is {name!r}; known for this model: {', '.join(known)}")
    families()[name].from_config(model.config)  # before the first step, not behind the last


def _check_texts(stage: str, plan: DiffusePlan, name: str, model: Omni) -> None:
    if model.tokens is None:
        raise ValueError(f"stage {stage!r} has diffuse; the model {name} has no denoiser for tokens")
    unknown = sorted(set(plan.mixture) - set(TEXTS))
    if unknown:
        raise ConfigError(f"DiffusePlan.mixture names {unknown}; known: {', '.join(TEXTS)}")


def _has_codec(model: Omni) -> bool:
    return model.codec is not None or (model.folder / "vae").is_dir() or model.config.latent.channels == 3


# -- statistics of actions ---------------------------------------------------------------------------------------------


def learn_embodiments(recipe: Recipe, model: Omni) -> None:
    """Put whose actions the recipe's datasets hold into the model's configuration, with their statistics.

    ValueError where a dataset cannot be read, or two plans make the same embodiment differently.
    """
    made: dict[str, Embodiment] = {}
    for plan in (stage.act for stage in recipe.stages if stage.act is not None and stage.act.dataset is not None):
        if model.config.action is None:
            raise ValueError(f"the model {recipe.model} has no actions; the dataset {plan.dataset} is of actions")
        own = body_of(LeRobotDataset(plan.dataset), plan, model.config.action)
        if made.setdefault(own.name, own) != own:
            raise ValueError(f"two stages train the embodiment {own.name!r} with different windows or statistics")
    for own in made.values():
        put_embodiment(model, own)


def fit_statistics(
    dataset: LeRobotDataset | str | Path,
    model: Omni,
    space: str = "joint_pos",
    embodiment: str | Embodiment | None = None,
    method: str = "quantile",
    clamp: bool = False,
    chunk: int | None = None,
) -> Embodiment:
    """Fit a normaliser to a dataset's actions and put it into the model's configuration, with which it is saved.

    ``embodiment`` None is that of the ``space``; ``chunk`` None is its own. What :func:`omni.data.demonstrations.split`
    holds out of windows of ``chunk`` actions does not count.
    ValueError where the model has no place for the actions or they cannot be fitted.
    """
    if model.config.action is None:
        raise ValueError("this model denoises no actions")
    if space not in SPACES:
        raise ValueError(f"space is {space!r}; it must be one of {', '.join(SPACES)}")
    data = dataset if isinstance(dataset, LeRobotDataset) else LeRobotDataset(dataset)
    own = embodiment_of(embodiment or SPACES[space], model.config.action)
    own = replace(own, fps=own.fps or data.fps, chunk=chunk or own.chunk)
    own = fitted(data, own, space, method, clamp)
    put_embodiment(model, own)
    return own


def put_embodiment(model: Omni, own: Embodiment) -> None:
    """Into the configuration, in place of one of its name."""
    action = model.config.action
    others = tuple(one for one in action.embodiments if one.name != own.name)
    model.config = replace(model.config, action=replace(action, embodiments=(*others, own)))


# -- the folder that a run leaves --------------------------------------------------------------------------------------


def write_folder(model: Omni, recipe: Recipe, source: Source, folder: Path) -> None:
    """The model in its layout, and what it needs of the source's folder."""
    family = _family(recipe, source)
    if family == "omni":
        save(model, folder, dtype=source.dtype, compute_dtype=source.compute_dtype)
        for place in filter(None, (base_folder(source.folder), source.folder)):
            _copy(place, folder, (*COMPONENTS, *COPIED))
    elif (source.folder / "transformer").is_dir():
        inner = folder / "transformer"
        save(model, inner, family=family, dtype=source.dtype)
        written = (families()[family].write_media or (lambda config: {}))(model.config)
        _copy(inner, folder, tuple(written))  # a pipeline's own files stand beside its components
        _copy(source.folder, folder, (*COMPONENTS, *PIPELINE))
    else:
        save(model, folder, family=family, dtype=source.dtype)
        _copy(source.folder, folder, (*COMPONENTS, *COPIED))


def _family(recipe: Recipe, source: Source | None) -> str:
    """A reasoner with its generator in one folder is written in our own layout: its own has no place for actions."""
    own = "omni" if source is None or source.family == "cosmos3" else source.family
    return recipe.family or own


def _copy(source: Path, folder: Path, names: tuple[str, ...]) -> None:
    """Files and folders of those names, written beside and renamed."""
    for name in names:
        beside, target = folder / f"{name}.part", folder / name
        if not (source / name).exists():
            continue
        if (source / name).is_dir():
            for old in (beside, target):
                shutil.rmtree(old, ignore_errors=True)
            shutil.copytree(source / name, beside)
        else:
            shutil.copyfile(source / name, beside)
        os.replace(beside, target)


__all__ = [
    "Source",
    "check_plans",
    "fit_statistics",
    "is_preset",
    "learn_embodiments",
    "opened",
    "put_embodiment",
    "write_folder",
]
