"""Writes lowbit_oracles.json: weights that the two reference libraries quantised, and what they make of them again.

    pip install --target oracles --no-deps nvidia-modelopt==0.47.0 compressed-tensors==0.20.0 \
        omegaconf antlr4-python3-runtime pulp loguru psutil
    PYTHONPATH=oracles python tests/lowbit_oracles.py
"""

import json
from pathlib import Path

import torch
from torch import Tensor

FILE = Path(__file__).with_suffix(".json")


def weight() -> Tensor:
    """Rows of very different sizes, a block of zeros, and every tie of E2M1."""
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 1, 8)[:, None]
    x[0, :16] = 0
    x[7] = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0]).repeat(8)
    return x


def plain(t: Tensor) -> dict:
    """A tensor as JSON: bytes as they are, numbers as float32."""
    bytes_ = t.contiguous().view(torch.uint8) if t.dtype.itemsize == 1 else t.float()
    return {"dtype": str(t.dtype).removeprefix("torch."), "shape": list(t.shape), "data": bytes_.flatten().tolist()}


def read(item: dict) -> Tensor:
    dtype = getattr(torch, item["dtype"])
    data = torch.tensor(item["data"], dtype=torch.uint8 if dtype.itemsize == 1 else torch.float32)
    return (data.view(dtype) if dtype.itemsize == 1 else data.to(dtype)).reshape(item["shape"])


def modelopt() -> dict[str, dict[str, Tensor]]:
    from modelopt.torch.quantization.qtensor.fp8_tensor import FP8QTensor
    from modelopt.torch.quantization.qtensor.mxfp4_tensor import MXFP4QTensor
    from modelopt.torch.quantization.qtensor.mxfp8_tensor import MXFP8QTensor
    from modelopt.torch.quantization.qtensor.nvfp4_tensor import NVFP4QTensor

    w, made = weight(), {}
    q, block, tensor = NVFP4QTensor.quantize(w, 16)
    decoded = q.dequantize(torch.float32, scale=block, double_scale=tensor, block_sizes={-1: 16})
    made["nvfp4"] = {"codes": q._quantized_data, "block_scale": block, "tensor_scale": tensor, "decoded": decoded}
    q, scale = FP8QTensor.quantize(w)
    decoded = q.dequantize(torch.float32, scale=scale)
    made["fp8"] = {"codes": q._quantized_data, "tensor_scale": scale.reshape(()), "decoded": decoded}
    q, scale = MXFP8QTensor.quantize(w)
    decoded = q.dequantize(torch.float32, scale=scale)
    made["mxfp8"] = {"codes": q._quantized_data, "block_scale": scale, "decoded": decoded}
    q, scale = MXFP4QTensor.quantize(w, 32)
    decoded = q.dequantize(torch.float32, scale=scale, block_sizes={-1: 32})
    made["mxfp4"] = {"codes": q._quantized_data, "block_scale": scale.reshape(8, 2), "decoded": decoded}
    return made


def compressed_tensors() -> dict[str, dict[str, Tensor]]:
    from compressed_tensors.compressors.mxfp4.base import MXFP4PackedCompressor
    from compressed_tensors.compressors.nvfp4.base import NVFP4PackedCompressor
    from compressed_tensors.quantization import preset_name_to_scheme

    w, made = weight(), {}
    divisor = 6 * 448 / w.abs().max()
    block = (w.unflatten(-1, (-1, 16)).abs().amax(-1) / 6 * divisor).clamp(min=2**-9).to(torch.float8_e4m3fn)
    state = {"weight": w, "weight_scale": block.float(), "weight_global_scale": divisor}
    made["nvfp4-pack-quantized"] = _through(NVFP4PackedCompressor, state, preset_name_to_scheme("NVFP4", ["Linear"]))
    scale = torch.exp2(torch.floor(torch.log2(w.unflatten(-1, (-1, 32)).abs().amax(-1))) - 2)
    state = {"weight": w, "weight_scale": scale}
    made["mxfp4-pack-quantized"] = _through(MXFP4PackedCompressor, state, preset_name_to_scheme("MXFP4", ["Linear"]))
    return made


def _through(compressor, state: dict[str, Tensor], scheme) -> dict[str, Tensor]:
    stored = compressor.compress(state, scheme)
    return {**stored, "decoded": compressor.decompress(stored, scheme)["weight"]}


if __name__ == "__main__":
    found = {"modelopt": modelopt(), "compressed_tensors": compressed_tensors()}
    written = {
        lib: {n: {k: plain(t.detach()) for k, t in own.items()} for n, own in f.items()} for lib, f in found.items()
    }
    FILE.write_text(json.dumps(written, separators=(",", ":")) + "\n")
