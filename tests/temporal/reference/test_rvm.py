"""The core of original RVM checkpoints: imported whole, arrays meaning what they mean there, or refused in one line."""

import numpy as np
import pytest
import torch
from helpers.reference import Reference

from vfz.pipeline.errors import CheckpointError
from vfz.temporal.reference.rvm import load_rvm_npz

DIM, HEADS, NUM_BLOCKS = 32, 4, 2
NORM = {"scale": (DIM,), "bias": (DIM,)}
QKV = {"kernel": (DIM, HEADS, DIM // HEADS), "bias": (HEADS, DIM // HEADS)}
ATTENTION = {
    **{f"{part}/{name}": shape for part in ("query", "key", "value") for name, shape in QKV.items()},
    "out/kernel": (HEADS, DIM // HEADS, DIM),
    "out/bias": (DIM,),
}


def shapes():
    """Every array of a small RVM core, under RVM's names."""
    parts = {f"{gate}/kernel": (DIM, DIM) for gate in ("input_update", "input_reset", "state_update", "state_reset")}
    parts["state_layer_norm/scale"] = (DIM,)
    for norm in ("output_norm", *(f"xa_blocks_{i}/{n}" for i in range(NUM_BLOCKS) for n in NORMS)):
        parts |= {f"transformer/{norm}/{name}": shape for name, shape in NORM.items()}
    for i in range(NUM_BLOCKS):
        for attention in ("ca_attention", "attention"):
            parts |= {f"transformer/xa_blocks_{i}/{attention}/{name}": shape for name, shape in ATTENTION.items()}
        mlp = f"transformer/xa_blocks_{i}/mlp"
        parts |= {f"{mlp}/dense_in/kernel": (DIM, 4 * DIM), f"{mlp}/dense_in/bias": (4 * DIM,)}
        parts |= {f"{mlp}/dense_out/kernel": (4 * DIM, DIM), f"{mlp}/dense_out/bias": (DIM,)}
    return {f"rnn_core/{name}": shape for name, shape in parts.items()}


NORMS = ("ca_attention_norm", "mlp_norm", "attention_norm")


@pytest.fixture
def arrays():
    generator = np.random.default_rng(0)
    return {
        name: (generator.normal(size=shape) * 0.2 + name.endswith("scale")).astype(np.float32)
        for name, shape in shapes().items()
    }


def save(tmp_path, arrays):
    path = tmp_path / "rvm.npz"
    np.savez(path, **arrays, **{"encoder/layers_0/mlp/dense_in/kernel": np.zeros((2, 2)), "cls_token": np.zeros(3)})
    return path


def norm(x, w, name):
    bias = w.get(f"{name}/bias", torch.zeros(DIM))
    return torch.nn.functional.layer_norm(x, (DIM,), w[f"{name}/scale"], bias, eps=1e-6)


def attend(x, context, w, name):
    q = torch.einsum("bnd,dhk->bnhk", x, w[f"{name}/query/kernel"]) + w[f"{name}/query/bias"]
    k = torch.einsum("bnd,dhk->bnhk", context, w[f"{name}/key/kernel"]) + w[f"{name}/key/bias"]
    v = torch.einsum("bnd,dhk->bnhk", context, w[f"{name}/value/kernel"]) + w[f"{name}/value/bias"]
    scores = torch.einsum("bnhk,bmhk->bhnm", q, k) * (DIM // HEADS) ** -0.5
    pooled = torch.einsum("bhnm,bmhk->bnhk", scores.softmax(-1), v)
    return torch.einsum("bnhk,hkd->bnd", pooled, w[f"{name}/out/kernel"]) + w[f"{name}/out/bias"]


def states_as_rvm_computes_them(tokens, arrays):
    """The recurrence over the arrays as they lie in the file, in the axes that JAX gives them."""
    w = {name.removeprefix("rnn_core/"): torch.from_numpy(value) for name, value in arrays.items()}
    state, states = torch.zeros_like(tokens[:, 0]), []
    for x in tokens.unbind(1):
        update = torch.sigmoid(x @ w["input_update/kernel"] + state @ w["state_update/kernel"])
        reset = torch.sigmoid(x @ w["input_reset/kernel"] + state @ w["state_reset/kernel"])
        context, h = reset * norm(state, w, "state_layer_norm"), x
        for i in range(NUM_BLOCKS):
            block = f"transformer/xa_blocks_{i}"
            h = h + attend(norm(h, w, f"{block}/ca_attention_norm"), context, w, f"{block}/ca_attention")
            hidden = (
                norm(h, w, f"{block}/mlp_norm") @ w[f"{block}/mlp/dense_in/kernel"] + w[f"{block}/mlp/dense_in/bias"]
            )
            hidden = torch.nn.functional.gelu(hidden)
            h = h + hidden @ w[f"{block}/mlp/dense_out/kernel"] + w[f"{block}/mlp/dense_out/bias"]
            y = norm(h, w, f"{block}/attention_norm")
            h = h + attend(y, y, w, f"{block}/attention")
        state = (1 - update) * state + update * norm(h, w, "transformer/output_norm")
        states.append(state)
    return torch.stack(states, 1)


@pytest.mark.quick
def test_the_core_computes_what_the_arrays_mean_in_rvm(tmp_path, arrays):
    core = load_rvm_npz(save(tmp_path, arrays))
    assert not core.training
    assert core.transformer.layers[0].ca_attn.num_heads == HEADS
    tokens = Reference("core_rvm_rnn").group("input")["tokens"]
    expected = states_as_rvm_computes_them(tokens, arrays)
    y, state = core(tokens)
    torch.testing.assert_close(state, expected[:, -1], rtol=0, atol=1e-5)
    torch.testing.assert_close(y, torch.nn.functional.layer_norm(expected, (DIM,)), rtol=0, atol=1e-4)


def refused(tmp_path, arrays):
    path = save(tmp_path, arrays)
    with pytest.raises(CheckpointError) as caught:
        load_rvm_npz(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def test_an_array_that_is_missing_is_refused_by_name(tmp_path, arrays):
    for name in shapes():
        rest = {key: value for key, value in arrays.items() if key != name}
        message = refused(tmp_path, rest)
        assert f"missing {name}" in message


def test_an_array_that_is_unknown_is_refused_by_name(tmp_path, arrays):
    arrays["rnn_core/state_layer_norm/bias"] = np.zeros(DIM, np.float32)
    assert "unknown rnn_core/state_layer_norm/bias" in refused(tmp_path, arrays)


@pytest.mark.parametrize("cut", [lambda array: array[:-1], lambda array: array[:0], lambda array: array[..., None]])
def test_an_array_of_another_shape_is_refused_by_name(tmp_path, arrays, cut):
    for name in arrays:
        wrong = cut(arrays[name])
        message = refused(tmp_path, {**arrays, name: wrong})
        if name.endswith("_0/ca_attention/query/kernel"):  # the sizes are read off this one: then others do not fit
            assert "do not fit one another" in message or "do not divide" in message
        else:
            assert f"do not fit one another: {name} {list(wrong.shape)} instead of {list(shapes()[name])}" in message


def test_arrays_that_are_no_numbers_are_refused_by_name(tmp_path, arrays):
    arrays["rnn_core/state_layer_norm/scale"] = np.full(DIM, "a")
    assert "no floating-point numbers: rnn_core/state_layer_norm/scale" in refused(tmp_path, arrays)


def test_pickled_arrays_are_refused(tmp_path, arrays):
    arrays["rnn_core/state_layer_norm/scale"] = np.array([{"a": 1}], dtype=object)
    assert "cannot be read as .npz of plain arrays" in refused(tmp_path, arrays)


def test_a_file_without_a_core_is_refused(tmp_path):
    assert "holds no arrays below rnn_core/" in refused(tmp_path, {})


@pytest.mark.parametrize("content", [b"", b"nothing of the kind", b"PK\x03\x04 cut"])
def test_a_file_that_is_no_npz_is_refused(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.npz: cannot be read as \.npz"):
        load_rvm_npz(tmp_path / "a.npz")


def test_a_lone_array_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(CheckpointError, match=r"a\.npy: cannot be read as \.npz"):
        load_rvm_npz(tmp_path / "a.npy")


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="there is no such file"):
        load_rvm_npz(tmp_path / "a.npz")
