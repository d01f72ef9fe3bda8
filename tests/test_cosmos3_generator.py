"""The generator as a denoiser tower: one call equals diffusers' Cosmos3OmniTransformer, which packs both towers."""

import json

import cosmos3_peer as peer
import numpy as np
import pytest
import torch
from towers import noise

import omni
from omni.checkpoint import CheckpointError
from omni.config import ConfigError
from omni.decoders.flow import Guidance, guided, integrate
from omni.decoders.schedules import GRIDS
from omni.families import families, preset, save
from omni.inputs import Inputs
from omni.streams import Scene

IDS = [3, 17, 99, 4, 5, 58, 110]


@pytest.fixture(scope="module", params=[(name, seed) for name in peer.VARIANTS for seed in (0, 1)], ids=str)
def pair(request, tmp_path_factory):
    """Their transformer, and ours loaded from its folder."""
    name, seed = request.param
    theirs = peer.build(seed, **peer.VARIANTS[name])
    folder = tmp_path_factory.mktemp("transformer")
    theirs.save_pretrained(folder)
    return theirs, omni.load(folder, device="cpu"), folder


def state(seed: int, model, frames: int, height: int, width: int, sounds: int = 0, actions: int = 0, rows: int = 1):
    """Random streams, as far as the model has them."""
    found = {"video": noise(rows, peer.CHANNELS, frames, height, width, seed=seed).float()}
    if sounds and model.config.sound_latent is not None:
        found["sound"] = noise(rows, peer.SOUND, sounds, seed=seed + 1).float()
    if actions and model.config.action is not None:
        found["action"] = noise(rows, actions, peer.WIDTH, seed=seed + 2).float()
    return found


def read(model, ids):
    cache = model.new_cache(1)
    with torch.no_grad():
        model.read(Inputs(torch.tensor([ids])), cache, last=0)
    return cache


def given(frames: int, which) -> torch.Tensor:
    return torch.tensor([[i in which for i in range(frames)]])


def close(ours: dict, theirs: dict) -> None:
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        found = ours[name][0]
        assert found.shape == expected.shape
        assert float((found - expected).norm()) <= 1e-5 * float(expected.norm()), name


CASES = {
    "picture": {"frames": 1, "height": 4, "width": 6},
    "odd picture": {"frames": 1, "height": 5, "width": 7},
    "video": {"frames": 3, "height": 4, "width": 2, "fps": 24.0},
    "slow odd video": {"frames": 4, "height": 3, "width": 5, "fps": 10.0},
    "picture first": {"frames": 3, "height": 4, "width": 4, "fps": 16.0, "clean_video": (0,)},
    "beginning given": {"frames": 5, "height": 2, "width": 3, "fps": 30.0, "clean_video": (0, 1)},
    "with sound": {"frames": 3, "height": 4, "width": 4, "fps": 24.0, "sounds": 11},
    "policy": {"frames": 3, "height": 4, "width": 4, "fps": 15.0, "actions": 8, "clean_video": (0,)},
    "forward": {"frames": 3, "height": 4, "width": 4, "fps": 5.0, "actions": 8, "clean_video": (0,), "all": "action"},
    "inverse": {"frames": 3, "height": 3, "width": 4, "fps": 5.0, "actions": 8, "all": "video"},
    "one action": {"frames": 2, "height": 2, "width": 2, "fps": 15.0, "actions": 1, "clean_video": (0,)},
    "everything": {"frames": 2, "height": 3, "width": 2, "fps": 12.5, "sounds": 4, "actions": 5, "clean_video": (1,)},
}


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("level", [0.999, 0.483])
def test_one_call_is_that_of_diffusers(pair, name, level):
    theirs, ours, _ = pair
    case = dict(CASES[name])
    fps, whole, clean = case.pop("fps", None), case.pop("all", None), case.pop("clean_video", ())
    streams = state(3, ours, **case)
    clean = tuple(range(case["frames"])) if whole == "video" else clean
    clean_action = tuple(range(case["actions"])) if whole == "action" else ()
    scene = Scene(
        fps=None if fps is None else torch.tensor([fps]),
        clean={"video": given(case["frames"], clean)}
        | ({"action": given(case["actions"], clean_action)} if "action" in streams else {}),
        domains=torch.tensor([2]),
    )
    expected = peer.velocity(
        theirs,
        IDS,
        streams["video"][0],
        level,
        fps=fps,
        sound=streams["sound"][0] if "sound" in streams else None,
        action=streams["action"][0] if "action" in streams else None,
        domain=2,
        clean_video=clean,
        clean_action=clean_action,
    )
    close(ours.velocity(streams, torch.tensor([level]), read(ours, IDS), scene), expected)


@torch.no_grad()
@pytest.mark.parametrize(("grid", "steps", "shift"), [("native", 10, 3.0), ("shifted", 10, 10.0), ("karras", 10, 1.0)])
def test_ten_guided_steps_are_those_of_diffusers(pair, grid, steps, shift):
    """The loop of its pipeline: two branches a step, a scheduler for each stream; the first frame is given."""
    from diffusers import UniPCMultistepScheduler

    theirs, ours, _ = pair
    case = {"frames": 3, "height": 3, "width": 4, "sounds": 5, "actions": 4}
    streams, other, scale = state(11, ours, **case), [7, 8, 9], 3.0
    options = {"use_karras_sigmas": True, "sigma_max": 200.0, "sigma_min": 0.147} if grid == "karras" else {}
    options |= {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift}
    walks = {name: UniPCMultistepScheduler(**options) for name in streams}
    for walk in walks.values():
        even = {"sigmas": np.linspace(0.999, 0, steps + 1)[:-1]} if grid == "native" else {"num_inference_steps": steps}
        walk.set_timesteps(**even)
    x = {name: value[0] for name, value in streams.items()}
    for t in walks["video"].timesteps:
        rest = {name: value for name, value in x.items() if name != "video"}
        ask = {"fps": 12.0, "domain": 2, "clean_video": (0,), **rest}
        v_c, v_u = (peer.velocity(theirs, ids, x["video"], float(t) / 1000, **ask) for ids in (IDS, other))
        guided_v = {name: v_u[name] + scale * (v_c[name] - v_u[name]) for name in x}
        x = {name: walks[name].step(guided_v[name][None], t, x[name][None]).prev_sample[0] for name in x}

    scene = Scene(torch.tensor([12.0]), {"video": given(3, (0,))}, torch.tensor([2]))
    caches = [read(ours, ids) for ids in (IDS, other)]
    branches = [lambda x, t, cache=cache: ours.velocity(x, t, cache, scene) for cache in caches]
    velocity = guided(branches[0], lambda x, t: tuple(branch(x, t) for branch in branches), Guidance(scale))
    found = integrate(velocity, streams, GRIDS[grid](steps, shift), "unipc")
    for name, expected in x.items():
        assert float((found[name][0] - expected).norm() / expected.norm()) < 1e-4, name
    assert torch.allclose(found["video"][:, :, 0], streams["video"][:, :, 0], atol=1e-5), "what is given stays"


@torch.no_grad()
def test_rows_of_a_batch_are_as_alone(pair):
    """Prompts of different lengths, rates, noise levels, given frames and domains in one call."""
    _, ours, _ = pair
    prompts, rates, levels, domains = (IDS, IDS[:3], IDS[1:]), (24.0, 10.0, 16.0), (0.9, 0.5, 0.1), (1, 3, 1)
    streams = state(5, ours, 3, 3, 4, sounds=6, actions=4, rows=3)
    clean = torch.tensor([[1, 0, 0], [0, 0, 0], [1, 1, 0]]).bool()
    ids = torch.zeros(3, len(IDS), dtype=torch.int64)
    mask = torch.zeros(3, len(IDS), dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)], mask[row, : len(prompt)] = torch.tensor(prompt), True
    cache = ours.new_cache(3)
    ours.read(Inputs(ids, mask), cache, last=0)
    scene = Scene(torch.tensor(rates), {"video": clean}, torch.tensor(domains))
    together = ours.velocity(streams, torch.tensor(levels), cache, scene)
    for row, prompt in enumerate(prompts):
        own = {name: x[row : row + 1] for name, x in streams.items()}
        alone_scene = Scene(
            torch.tensor(rates[row : row + 1]), {"video": clean[row : row + 1]}, torch.tensor(domains[row : row + 1])
        )
        alone = ours.velocity(own, torch.tensor(levels[row : row + 1]), read(ours, prompt), alone_scene)
        close({name: x[row : row + 1] for name, x in together.items()}, {name: x[0] for name, x in alone.items()})


@torch.no_grad()
def test_what_is_given_is_told_no_noise_level_and_everything_else_matters(pair):
    """The controls of parity: level, prompt, rate, domain and given values change the answer."""
    _, ours, _ = pair
    streams = state(7, ours, 3, 4, 4, sounds=5, actions=4)
    has_action = "action" in streams
    clean = {"video": given(3, (0,))}

    def ask(t=0.5, ids=IDS, fps=24.0, domain=1, start=1, **changed):
        scene = Scene(torch.tensor([fps]), clean, torch.tensor([domain]), start)
        return ours.velocity(streams | changed, torch.tensor([t]), read(ours, ids), scene)

    base = ask()
    assert bool((base["video"][:, :, 0] == 0).all())
    others = [ask(t=0.4), ask(ids=IDS[:-1]), ask(fps=10.0)]
    others += [ask(domain=2), ask(start=0)] if has_action else []
    moved = streams["video"].clone()
    moved[:, :, 0] += 1
    others.append(ask(video=moved))
    for other in others:
        assert float((other["video"] - base["video"]).abs().max()) > 1e-5


def test_folders_are_written_as_they_were_read(pair, tmp_path):
    from diffusers.models.transformers.transformer_cosmos3 import Cosmos3OmniTransformer
    from safetensors.torch import load_file

    theirs, ours, folder = pair
    save(ours, tmp_path / "again", family="cosmos3_generator")
    plain = [json.loads((path / "config.json").read_text()) for path in (folder, tmp_path / "again")]
    read = [families()["cosmos3_generator"].to_config(one) for one in plain]
    assert read[0] == read[1] == ours.config
    again = Cosmos3OmniTransformer.from_config(plain[1])
    again.load_state_dict(load_file(tmp_path / "again/diffusion_pytorch_model.safetensors"), strict=True)
    for (name, a), (other, b) in zip(theirs.state_dict().items(), again.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(a, b), name
    save(ours, tmp_path / "own")
    own = omni.load(tmp_path / "own", device="cpu")
    assert own.config == ours.config
    assert all(torch.equal(a, b) for a, b in zip(own.parameters(), ours.parameters(), strict=True))


def test_a_pipelines_folder(pair, tmp_path):
    """model_index.json, and the transformer in a folder of its own."""
    theirs, ours, _ = pair
    theirs.save_pretrained(tmp_path / "transformer")
    write_index(tmp_path)
    again = omni.load(tmp_path, device="cpu")
    assert again.config == ours.config
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), ours.parameters(), strict=True))
    for path in (tmp_path / "transformer").iterdir():
        path.unlink()
    with pytest.raises(ConfigError, match="its folder transformer/ is missing"):
        omni.load(tmp_path, device="cpu")


def test_one_folder_is_reasoner_and_generator(tmp_path):
    """As published: the reasoner's config.json and index at the root, the transformer in its folder, one text tower."""
    from safetensors.torch import load_file, save_file

    sizes, transformer = peer.VARIANTS["nano"], "transformer/diffusion_pytorch_model.safetensors"
    torch.manual_seed(0)
    reasoner = peer.reasoner(sizes)
    reasoner.save_pretrained(tmp_path)
    theirs = peer.build(1, **sizes)
    everything = load_file(tmp_path / "model.safetensors")
    text = {name: tensor for name, tensor in everything.items() if name in theirs.state_dict()}
    assert len(text) > 20
    theirs.load_state_dict(theirs.state_dict() | text)
    theirs.save_pretrained(tmp_path / "transformer")
    write_index(tmp_path)
    with pytest.raises(CheckpointError, match=r"stand in two files"):
        omni.load(tmp_path, device="cpu")
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "vision_encoder").mkdir()
    save_file(
        {name: tensor for name, tensor in everything.items() if name not in text},
        tmp_path / "vision_encoder/model.safetensors",
    )
    where = {name: transformer if name in text else "vision_encoder/model.safetensors" for name in everything}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    ours = omni.load(tmp_path, device="cpu")
    ids = torch.tensor([IDS])
    with torch.no_grad():
        expected = reasoner(input_ids=ids).logits
        assert float((ours.logits(ids) - expected).norm() / expected.norm()) < 1e-5
        assert ours.vision is not None
        streams = state(3, ours, 3, 4, 4)
        found = ours.velocity(streams, torch.tensor([0.7]), read(ours, IDS), Scene(fps=torch.tensor([24.0])))
        close(found, peer.velocity(theirs, IDS, streams["video"][0], 0.7))
    (tmp_path / "model_index.json").unlink()
    assert omni.load(tmp_path, device="cpu").denoiser is None, "the reasoner alone"
    other = json.loads((tmp_path / "transformer/config.json").read_text()) | {"intermediate_size": 40}
    (tmp_path / "transformer/config.json").write_text(json.dumps(other))
    write_index(tmp_path)
    with pytest.raises(ConfigError, match="different towers of text"):
        omni.load(tmp_path, device="cpu")


def write_index(folder) -> None:
    (folder / "model_index.json").write_text('{"_class_name": "Cosmos3OmniPipeline"}')


def test_names_of_the_training_framework(pair, tmp_path):
    """The exporter's table, backwards: the same weights under the framework's names load as the published ones do."""
    from safetensors.torch import save_file

    theirs, ours, folder = pair
    renamed = {}
    for name, tensor in theirs.state_dict().items():
        for new, old in FRAMEWORK:
            name = name.replace(old, new)
        inside = name.startswith(("layers.", "norm", "embed_tokens."))
        prefix = (
            "net.language_model.model." if inside else "net.language_model." if name.startswith("lm_head") else "net."
        )
        renamed[prefix + name] = tensor.contiguous()
    assert sum("moe_gen" in name for name in renamed) > 10
    save_file(renamed, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    again = omni.load(tmp_path, device="cpu")
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), ours.parameters(), strict=True))


FRAMEWORK = [
    ("q_proj_moe_gen", "add_q_proj"),
    ("k_proj_moe_gen", "add_k_proj"),
    ("v_proj_moe_gen", "add_v_proj"),
    ("o_proj_moe_gen", "to_add_out"),
    ("q_norm_moe_gen", "norm_added_q"),
    ("k_norm_moe_gen", "norm_added_k"),
    ("q_proj", "to_q"),
    ("k_proj", "to_k"),
    ("v_proj", "to_v"),
    ("o_proj", "to_out"),
    ("q_norm", "norm_q"),
    ("k_norm", "norm_k"),
    ("time_embedder.mlp.0", "time_embedder.linear_1"),
    ("time_embedder.mlp.2", "time_embedder.linear_2"),
    ("sound2llm", "audio_proj_in"),
    ("llm2sound", "audio_proj_out"),
    ("sound_modality_embed", "audio_modality_embed"),
    ("action2llm", "action_proj_in"),
    ("llm2action", "action_proj_out"),
    ("vae2llm", "proj_in"),
    ("llm2vae", "proj_out"),
]


def test_bad_streams_are_named(pair):
    _, ours, _ = pair
    cache, t = read(ours, IDS), torch.tensor([0.5])
    streams = state(1, ours, 3, 4, 4)
    with pytest.raises(ValueError, match="video is always there"):
        ours.velocity({"sound": torch.zeros(1, 5, 3)}, t, cache)
    with pytest.raises(ValueError, match=r"clean frames of video are \(1, 2\); the stream has 3"):
        ours.velocity(streams, t, cache, Scene(clean={"video": given(2, ())}))
    with pytest.raises(ValueError, match=r"latents are \(b, 6, .*not \(1, 3, 4, 4\)"):
        ours.velocity(torch.zeros(1, 3, 4, 4), t, cache)
    if ours.config.action is None:
        with pytest.raises(ValueError, match="does not denoise action"):
            ours.velocity(streams | {"action": torch.zeros(1, 4, 7)}, t, cache)
        return
    with pytest.raises(ValueError, match=r"as many rows each, not \{'video': 1, 'action': 2\}"):
        ours.velocity(streams | {"action": torch.zeros(2, 4, 7)}, t, cache)
    with pytest.raises(ValueError, match="need their domains"):
        ours.velocity(streams | {"action": torch.zeros(1, 4, 7)}, t, cache)
    with pytest.raises(ValueError, match=r"domains are \[9\]; one from 0 to 3"):
        ours.velocity(streams | {"action": torch.zeros(1, 4, 7)}, t, cache, Scene(domains=torch.tensor([9])))
    with pytest.raises(ValueError, match=r"actions are \(b, n, 7\), not \(1, 4, 6\)"):
        ours.velocity(streams | {"action": torch.zeros(1, 4, 6)}, t, cache, Scene(domains=torch.tensor([1])))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"enable_fps_modulation": False}, "enable_fps_modulation is false"),
        ({"unified_3d_mrope_reset_spatial_ids": False}, "unified_3d_mrope_reset_spatial_ids is False"),
        ({"patch_latent_dim": 99}, "patch_latent_dim is 99"),
        ({"action_gen": True, "action_dim": None}, "action_dim is missing"),
        ({"sound_gen": True}, "sound_dim is missing"),
        ({"surprise": 1}, "surprise = 1"),
    ],
)
def test_configurations_that_are_not_supported(change, message):
    plain = {"_class_name": "Cosmos3OmniTransformer", **peer.BASE, **change}
    with pytest.raises(ConfigError, match=message):
        families()["cosmos3_generator"].to_config(plain)


def test_other_systems_cannot_be_written_in_this_layout():
    with pytest.raises(ConfigError, match="needs a denoiser of attention and MLPs"):
        families()["cosmos3_generator"].from_config(preset("cosmos3-nano-reasoner"))
