"""Packed weights made by the projects whose formats they are, and what those unpack from them.

    pip install torch transformers numpy safetensors setuptools wheel
    python tests/parity/make_packed.py tests/data/packed

It fetches what it runs: compressed-tensors, of today and of the last kind that kept the order of
activations, and the packers of GPTQModel and AutoAWQ, whose classes are taken out of their source
distributions, as those packages are large and want a GPU. Each case is one file: the tensors of a
layer as a checkpoint has them, and ``plain``, which the project's own code unpacked with the scales
in float32, where every product is exact. `tests/test_packed.py` compares.
"""

from __future__ import annotations

import ast
import contextlib
import json
import math
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

OUT, IN, GROUP = 16, 32, 8
SOURCES = {
    "compressed": ("compressed-tensors==0.20.1", "loguru"),
    "ordered": ("compressed-tensors==0.10.2",),
    "gptqmodel": ("gptqmodel==7.7.0",),
    "autoawq": ("autoawq==0.2.9",),
}
SDISTS = ("gptqmodel", "autoawq")


def weights(seed: int, out: int = OUT, size: int = IN) -> torch.Tensor:
    """Off the middle, so that zero points matter."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(out, size, generator=generator) + 0.3 * torch.randn(
        out, 1, generator=generator
    )


class Cases:
    """Files of cases in a directory, and the configs of all in one."""

    def __init__(self, directory: Path):
        self._directory = directory

    def add(
        self, name: str, config: dict[str, Any], stored: dict[str, torch.Tensor], plain: Any
    ) -> None:
        layer = {f"layer.{key}": value.contiguous() for key, value in stored.items()}
        save_file(
            {**layer, "plain": plain.float().contiguous()},
            self._directory / f"{name}.safetensors",
        )
        path = self._directory / "configs.json"
        configs = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**configs, name: config}, indent=1, sort_keys=True) + "\n")


def _args(**given: Any) -> Any:
    from compressed_tensors.quantization import QuantizationArgs

    return QuantizationArgs(**given)


def _parameters(w: torch.Tensor, args: Any, order: torch.Tensor | None = None) -> Any:
    """Scales and zero points by the library's own formula."""
    from compressed_tensors.quantization.utils import calculate_qparams

    strategy = getattr(args.strategy, "value", args.strategy)
    if strategy == "block":
        rows, columns = args.block_structure
        up = torch.nn.functional.pad(w, (0, -w.shape[1] % columns, 0, -w.shape[0] % rows))
        tiles = up.unflatten(0, (-1, rows)).unflatten(2, (-1, columns))
        return calculate_qparams(tiles.amin((1, 3)), tiles.amax((1, 3)), args)
    if strategy == "tensor":
        return calculate_qparams(w.min()[None], w.max()[None], args)
    if strategy == "channel":
        return calculate_qparams(w.amin(1, keepdim=True), w.amax(1, keepdim=True), args)
    if order is not None:
        w = w[:, torch.argsort(order, stable=True)]
    groups = w.unflatten(1, (-1, args.group_size))
    return calculate_qparams(groups.amin(2), groups.amax(2), args)


def _config(form: str, args: Any) -> dict[str, Any]:
    said = json.loads(args.model_dump_json(exclude_none=True))
    groups = {"group_0": {"targets": ["Linear"], "weights": said}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": groups}


def compressed(cases: Cases) -> None:
    """What compressed-tensors writes today."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    pack, plain_ints, floats = "pack-quantized", "int-quantized", "float-quantized"
    half, brain, single = torch.float16, torch.bfloat16, torch.float32
    rows: dict[str, Any] = {"strategy": "channel"}
    groups: dict[str, Any] = {"strategy": "group", "group_size": GROUP}
    blocks: dict[str, Any] = {"strategy": "block", "block_structure": [16, 8]}
    zeros = {"symmetric": False}
    made: tuple[tuple[str, str, int, dict[str, Any], torch.Tensor, torch.dtype], ...] = (
        ("int4-group", pack, 4, groups, weights(0), brain),
        ("int4-group-zeros", pack, 4, {**groups, **zeros}, weights(1), brain),
        ("int4-channel", pack, 4, rows, weights(2), half),
        ("int4-channel-zeros-odd", pack, 4, {**rows, **zeros}, weights(3, 13, 27), single),
        ("int8-group-zeros", pack, 8, {**groups, **zeros}, weights(4), brain),
        ("int8-channel", pack, 8, rows, weights(5), brain),
        ("int8-plain", plain_ints, 8, rows, weights(6), single),
        ("int8-plain-zeros", plain_ints, 8, {**groups, **zeros}, weights(7), brain),
        ("fp8-tensor", floats, 8, {"strategy": "tensor"}, weights(8), single),
        ("fp8-channel", floats, 8, rows, weights(9), brain),
        ("fp8-block", floats, 8, blocks, weights(10, 24, 28), brain),
    )
    for name, form, bits, given, w, dtype in made:
        kind = "float" if form == floats else "int"
        args = _args(**{"type": kind, "num_bits": bits, "symmetric": True, **given})
        scale, zero = _parameters(w, args)
        state = {"weight": w, "weight_scale": scale.to(dtype).float(), "weight_zero_point": zero}
        scheme = QuantizationScheme(targets=["Linear"], weights=args)
        code = BaseCompressor.get_value_from_registry(form)
        stored = code.compress(state, scheme)
        plain = code.decompress(stored, scheme)["weight"]
        stored["weight_scale"] = stored["weight_scale"].to(dtype)
        cases.add(name, _config(form, args), stored, plain)


def ordered(cases: Cases) -> None:
    """Groups in the order of activations, which compressed-tensors wrote until 2025."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    code = BaseCompressor.load_from_registry("pack-quantized")
    for name, symmetric in (("int4-ordered", True), ("int4-ordered-zeros", False)):
        w = weights(20 + symmetric)
        order = torch.randperm(IN, generator=torch.Generator().manual_seed(3)) // GROUP
        args = _args(
            num_bits=4, type="int", symmetric=symmetric, strategy="group", group_size=GROUP,
            actorder="group",
        )  # fmt: skip
        scale, zero = _parameters(w, args, order)
        stored = code.compress_weight(
            w, scale, args, zero_point=None if symmetric else zero, g_idx=order
        )
        packed = {**stored, "weight_scale": scale, "weight_g_idx": order.to(torch.int32)}
        given = {
            **packed,
            **({} if symmetric else {"weight_zero_point": stored["weight_zero_point"]}),
        }
        if symmetric:
            plain = code.decompress_weight(given, args)
        else:
            from compressed_tensors.compressors.quantized_compressors.pack_quantized import (
                unpack_from_int32,
            )

            numbers = unpack_from_int32(stored["weight_packed"], 4, w.shape)
            zeros = unpack_from_int32(
                stored["weight_zero_point"], 4, (OUT, IN // GROUP), packed_dim=0
            )
            plain = dequantize(numbers, scale, zeros, args, g_idx=order)
        cases.add(name, _config("pack-quantized", args), packed, plain)


def _taken(path: Path, names: tuple[str, ...], given: dict[str, Any]) -> SimpleNamespace:
    """Functions and classes of a source file, run among ``given`` alone.

    A method by ``CLASS.NAME``.
    """
    tree = ast.parse(path.read_text())
    found: list[ast.stmt] = []
    for name in names:
        nodes: list[Any] = list(tree.body)
        for part in name.split("."):
            (node,) = (n for n in nodes if getattr(n, "name", None) == part)
            nodes = getattr(node, "body", [])
        node.decorator_list = [d for d in node.decorator_list if getattr(d, "id", "") != ""]
        found.append(node)
    future = ast.parse("from __future__ import annotations").body
    exec(compile(ast.Module([*future, *found], []), str(path), "exec"), given)
    return SimpleNamespace(**{name.split(".")[-1]: given[name.split(".")[-1]] for name in names})


def gptqmodel(cases: Cases) -> None:
    import transformers

    here = Path(os.environ["SOURCE"]) / "gptqmodel"
    quiet = SimpleNamespace(threadpool_limits=lambda _: contextlib.nullcontext())
    kind = "PackableQuantLinear"
    methods = ("pack_original", "dequantize_weight", "_dequantize_from_codes",
               "_init_wf_unsqueeze_buffers", "_wf_device")  # fmt: skip
    given: dict[str, Any] = {
        "t": torch, "np": np, "math": math, "nn": torch.nn, "transformers": transformers,
        "_ConvNd": torch.nn.modules.conv._ConvNd, "THREADPOOLCTL": quiet,
    }  # fmt: skip
    names = ("_torch_right_shift", *(f"{kind}.{m}" for m in methods))
    code = _taken(here / "nn_modules" / "qlinear" / "__init__.py", names, given)
    Layer = type("Layer", (torch.nn.Module,), {m: getattr(code, m) for m in methods})
    log = SimpleNamespace(info=SimpleNamespace(once=lambda _: None))
    versions = ("convert_gptq_v1_to_v2_format_module", "convert_gptq_v2_to_v1_format_module")
    convert = _taken(
        here / "utils" / "model.py",
        versions,
        {"torch": torch, "log": log, "BaseQuantLinear": torch.nn.Module},
    )
    Layer.qzero_format = lambda self, format: None

    made = (
        ("gptq-sym", 4, True, GROUP, "gptq", False),
        ("gptq-sym-v2", 4, True, GROUP, "gptq_v2", False),
        ("gptq-zeros", 4, False, GROUP, "gptq", False),
        ("gptq-zeros-v2", 4, False, GROUP, "gptq_v2", False),
        ("gptq-ordered", 4, False, GROUP, "gptq", True),
        ("gptq-channel", 4, True, IN, "gptq", False),
        ("gptq-8", 8, False, GROUP, "gptq", True),
    )
    for n, (name, bits, sym, size, version, mixed) in enumerate(made):
        w, group = weights(30 + n), torch.arange(IN) // size
        if mixed:
            group = group[torch.randperm(IN, generator=torch.Generator().manual_seed(n))]
        layer, high = Layer(), 2**bits - 1
        for key, value in {
            "bits": bits, "maxq": high, "planar": False, "pack_factor": 32 // bits,
            "pack_dtype": torch.int32, "pack_dtype_bits": 32, "pack_np_math_dtype": np.uint32,
            "pack_np_dtype": np.int32, "dequant_dtype": torch.int16, "in_features": IN,
            "enable_wf_unsqueeze": True,
        }.items():  # fmt: skip
            setattr(layer, key, value)
        parts = [w[:, group == g] for g in range(IN // size)]
        low = torch.stack([p.amin(1) for p in parts], 1)
        top = torch.stack([p.amax(1) for p in parts], 1)
        if sym:
            top = torch.maximum(top.abs(), low.abs())
            low = -top
        scales = ((top - low) / high).half().float()
        zeros = torch.full_like(scales, 2 ** (bits - 1)) if sym else torch.round(-low / scales)
        zeros = zeros.clamp(0 if version == "gptq_v2" else 1, high)  # less 1 must not borrow
        linear = torch.nn.Linear(IN, OUT, bias=False)
        linear.weight.data = w
        layer.pack_original(linear, scales, zeros, group.to(torch.int32))
        if version == "gptq":
            convert.convert_gptq_v2_to_v1_format_module(layer, layer)
        keys = ("qweight", "qzeros", "scales", "g_idx")
        stored = {key: getattr(layer, key).detach().clone() for key in keys}
        if not mixed and name != "gptq-zeros":
            del stored["g_idx"]
        if version == "gptq":
            convert.convert_gptq_v1_to_v2_format_module(layer, bits, torch.int32)
        layer.scales = layer.scales.float()
        config = {
            "quant_method": "gptq", "bits": bits, "group_size": -1 if size == IN else size,
            "sym": sym, "desc_act": mixed, "checkpoint_format": version,
        }  # fmt: skip
        cases.add(name, config, stored, layer.dequantize_weight().T)


def autoawq(cases: Cases) -> None:
    here = Path(os.environ["SOURCE"]) / "awq"
    given: dict[str, Any] = {"torch": torch, "nn": torch.nn, "get_best_device": lambda: "cpu"}
    packer = _taken(here / "modules" / "linear" / "gemm.py", ("WQLinear_GEMM",), given)
    reading: dict[str, Any] = {}
    exec((here / "utils" / "packing_utils.py").read_text(), reading)
    w = weights(50, 32)
    parts = w.unflatten(1, (-1, GROUP))
    scales = ((parts.amax(2) - parts.amin(2)) / 15).half().float()
    zeros = torch.round(-parts.amin(2) / scales).clamp(0, 15)
    linear = torch.nn.Linear(IN, 32, bias=False)  # whole words of columns, of which it packs 32
    linear.weight.data = w
    layer = packer.WQLinear_GEMM.from_linear(linear, 4, GROUP, False, scales.T, zeros.T)
    stored = {key: getattr(layer, key) for key in ("qweight", "qzeros", "scales")}
    plain = reading["dequantize_gemm"](
        layer.qweight, layer.qzeros, layer.scales.float(), 4, GROUP
    ).T
    config = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True,
              "version": "gemm"}  # fmt: skip
    cases.add("awq", config, stored, plain)


def _fetch(source: str, into: Path) -> None:
    pip = [sys.executable, "-m", "pip"]
    if source in SDISTS:
        subprocess.check_call(
            [*pip, "download", "-q", "--no-deps", "--no-build-isolation", "--no-binary", ":all:",
             "-d", into, *SOURCES[source]]
        )  # fmt: skip
        with tarfile.open(next(into.glob("*.tar.gz"))) as archive:
            archive.extractall(into, filter="data")
    else:
        subprocess.check_call(
            [*pip, "install", "-q", "--no-deps", "--target", into, *SOURCES[source]]
        )


def main(directory: Path, source: str | None) -> None:
    if source is not None:
        globals()[source](Cases(directory))
        return
    directory.mkdir(parents=True, exist_ok=True)
    for name in SOURCES:
        with tempfile.TemporaryDirectory() as temporary:
            into = Path(temporary)
            _fetch(name, into)
            unpacked = next((p for p in into.glob("*-*") if p.is_dir() and name in SDISTS), into)
            path = os.pathsep.join([str(into), os.environ.get("PYTHONPATH", "")])
            subprocess.check_call(
                [sys.executable, __file__, directory, name],
                env={**os.environ, "SOURCE": str(unpacked), "PYTHONPATH": path},
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]), *(sys.argv[2:] or [None]))
