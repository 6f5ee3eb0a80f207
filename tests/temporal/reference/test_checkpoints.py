"""Weights released with the paper: whole checkpoints and their parts come in complete, or are refused in one line."""

import re

import pytest
import torch
from helpers.reference import READOUTS, Reference, each_box_from_the_one_before

from vfz.pipeline.errors import CheckpointError, UnknownNameError, UsageError
from vfz.temporal.readouts import build_readout
from vfz.temporal.reference.checkpoints import RELEASED_CORES, load_checkpoint, load_core, load_mixer, load_readout
from vfz.temporal.reference.mapping import READOUT_NAMES

HEADS = 4
CORE_FILES = ["core_m", "core_mmix", "core_gmmix", "core_gmmix_hidden", "core_rvm_rnn"]


def weights(*file_names):
    """The weights of several reference files as one state dict."""
    return {name: value for file_name in file_names for name, value in Reference(file_name).group("weights").items()}


def save(path, state_dict, **more):
    """A file as Lightning writes it."""
    extras = {"epoch": 3, "global_step": 7, "optimizer_states": [{"state": {0: torch.zeros(2)}}], "loops": {"a": None}}
    torch.save({**extras, "state_dict": state_dict, **more}, path)
    return path


def message_of(call, error=CheckpointError):
    """The one line that `call` is refused with."""
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    return message


@pytest.mark.parametrize("file_name", CORE_FILES)
def test_a_core_gives_the_reference_output(file_name):
    reference = Reference(file_name)
    name = file_name.removeprefix("core_").removesuffix("_hidden")
    core = load_core(reference.group("weights"), name, HEADS)
    assert not core.training
    y, _ = core(reference.group("input")["tokens"])
    assert (y - reference.group("output")["tokens"]).abs().max() <= 1e-5


@pytest.mark.parametrize("mixer_file", ["mixer_mean", "mixer_xattn", None])
@pytest.mark.parametrize(("task", "protocol"), READOUTS)
def test_every_part_of_a_checkpoint_gives_the_reference_output(tmp_path, mixer_file, task, protocol):
    readout_file = f"readout_{task}_{protocol}"
    parts = [name for name in (mixer_file, "core_gmmix", readout_file) if name]
    path = save(tmp_path / "last.ckpt", {**weights(*parts), "loss_fn.log_variances": torch.zeros(2)})
    model = load_checkpoint(path, "gmmix", task, protocol, num_heads=HEADS)

    core, readout = Reference("core_gmmix"), Reference(readout_file)
    if mixer_file:
        layers, mixed = Reference(mixer_file).group("input")["layers"], Reference(mixer_file).group("output")["eval"]
        assert (model.mixer(list(layers)) - mixed).abs().max() <= 1e-5
    assert (model.core(core.group("input")["tokens"])[0] - core.group("output")["tokens"]).abs().max() <= 1e-5
    inputs = readout.group("input")
    tokens = inputs.pop("tokens")
    expected = readout.group("output")
    if task == "boxes":
        outputs = each_box_from_the_one_before(model.readout, tokens, *inputs.values(), *expected.values())
    else:
        outputs = model.readout(tokens, **inputs)
    outputs = outputs if isinstance(outputs, dict) else {next(iter(expected)): outputs}
    for name, value in expected.items():
        assert (outputs[name] - value).abs().max() <= 1e-5

    layers = [tokens.flip(k) for k in range(model.mixer.num_layers)]
    whole = model(layers, **inputs)
    composed = model.readout(model.core(model.mixer(layers))[0], **inputs)
    if isinstance(whole, dict):
        assert all(torch.equal(whole[name], composed[name]) for name in composed)
    else:
        assert torch.equal(whole, composed)
    assert not any(module.training for module in model.modules())


def test_the_mixer_of_a_checkpoint_leaves_prefix_tokens_alone(tmp_path):
    path = save(tmp_path / "last.ckpt", weights("mixer_mean", "core_m", "readout_pose_streaming"))
    model = load_checkpoint(str(path), "m", "pose", num_prefix=5)
    layers = [torch.randn(2, 3, 9, 32) for _ in range(4)]
    assert torch.equal(model.mixer(layers)[:, :, :5], layers[-1][:, :, :5])


@pytest.mark.parametrize("width", [1024, 64])
def test_points_get_the_published_heads_where_the_readout_has_the_published_width(tmp_path, width):
    readout = build_readout("points", dim=32, readout_dim=width, num_heads=1, mlp_hidden=8)
    naming = READOUT_NAMES["points", "streaming"]
    state_dict = {naming.released(name): value for name, value in readout.state_dict().items()}
    path = save(tmp_path / "last.ckpt", {**weights("core_mmix"), **state_dict})
    heads = {1024: 8, 64: HEADS}[width]
    model = load_checkpoint(path, "mmix", "points", num_heads=HEADS)
    assert model.readout.decoder.layer.multihead_attn.num_heads == heads
    model = load_checkpoint(path, "mmix", "points", num_heads=HEADS, readout_heads=2)
    assert model.readout.decoder.layer.multihead_attn.num_heads == 2


def test_loading_leaves_the_random_stream_as_it_was():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    load_core(weights("core_gmmix"), "gmmix", HEADS)
    load_mixer(weights("mixer_mean"))
    load_readout(weights("readout_boxes_streaming"), "boxes", num_heads=HEADS)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("asked", RELEASED_CORES)
@pytest.mark.parametrize("given", RELEASED_CORES)
def test_weights_of_another_core_are_refused_with_a_few_of_the_differing_names(asked, given):
    if asked == given:
        return
    message = message_of(lambda: load_core(weights(f"core_{given}"), asked, HEADS))
    assert message.startswith(f"these are not the weights of a {asked} core (they look like {given}): ")
    assert re.search(r"(missing|unknown) model\.sequential_core\.", message)
    assert message.count("model.") <= 6


def test_a_checkpoint_of_another_core_is_refused_with_its_path(tmp_path):
    path = save(tmp_path / "last.ckpt", weights("core_gmmix", "readout_pose_streaming"))
    message = message_of(lambda: load_checkpoint(path, "rvm_rnn", "pose", num_heads=HEADS))
    assert message.startswith(f"{path}: these are not the weights of a rvm_rnn core (they look like gmmix): missing ")


@pytest.mark.parametrize(("task", "protocol"), READOUTS)
def test_weights_of_another_readout_are_refused(task, protocol):
    state_dict = weights(f"readout_{task}_{protocol}")
    for other_task, other_protocol in READOUTS:
        if (other_task, other_protocol) != (task, protocol):
            message = message_of(lambda t=other_task, p=other_protocol: load_readout(state_dict, t, p, HEADS))
            # The attention readouts share their names; there it is the shapes that differ.
            assert f" weights of a {other_task} readout in {other_protocol} protocol" in f" {message}"
            assert message.startswith("these are not the weights of ") or " instead of [" in message


PARTS = [
    ("core_gmmix", lambda state_dict: load_core(state_dict, "gmmix", HEADS)),
    ("core_rvm_rnn", lambda state_dict: load_core(state_dict, "rvm_rnn", HEADS)),
    ("mixer_mean", load_mixer),
    ("mixer_xattn", load_mixer),
    *(
        (f"readout_{task}_{protocol}", lambda state_dict, t=task, p=protocol: load_readout(state_dict, t, p, HEADS))
        for task, protocol in READOUTS
    ),
]


@pytest.mark.parametrize(("file_name", "load"), PARTS, ids=[name for name, _ in PARTS])
def test_a_tensor_that_is_missing_unknown_or_of_another_shape_is_refused_by_name(file_name, load):
    complete = weights(file_name)
    load(complete)
    for name in complete:
        message = message_of(lambda n=name: load({key: value for key, value in complete.items() if key != n}))
        # Without the Linear in front, the tokens are taken to be as wide as the readout: then its bias is left over.
        assert name in message or name.endswith("proj_to_readout.weight")
    unknown = next(iter(complete)) + "_ema"
    assert f"unknown {unknown}" in message_of(lambda: load({**complete, unknown: torch.zeros(1)}))
    for name, value in complete.items():
        if value.dim() and not name.endswith("layer_embed"):  # says how many layers there are: any length will do
            message = message_of(lambda n=name, v=value: load({**complete, n: torch.cat([v, v])}))
            assert re.search(r"have shapes that do not fit one another: model\.\S+ \[.*\] instead of \[", message)


@pytest.mark.parametrize(("file_name", "load"), PARTS, ids=[name for name, _ in PARTS])
def test_names_may_come_without_the_prefix_of_the_model(file_name, load):
    state_dict = weights(file_name)
    without = load({name.removeprefix("model."): value for name, value in state_dict.items()}).state_dict()
    assert all(torch.equal(without[name], value) for name, value in load(state_dict).state_dict().items())


def test_a_checkpoint_may_come_without_the_prefix_of_the_model(tmp_path):
    state_dict = weights("mixer_mean", "core_m", "readout_pose_streaming")
    bare = {name.removeprefix("model."): value for name, value in state_dict.items()}
    path = save(tmp_path / "last.ckpt", {**bare, "loss_fn.log_variances": torch.zeros(2)})
    expected = load_checkpoint(save(tmp_path / "first.ckpt", state_dict), "m", "pose").state_dict()
    found = load_checkpoint(path, "m", "pose").state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("statistic", ["running_mean", "running_var"])
def test_a_mean_mixer_without_its_batch_statistics_is_refused(tmp_path, statistic):
    state_dict = weights("mixer_mean", "core_m", "readout_pose_streaming")
    del state_dict[f"model.encoder.interm_mlps.2.bn.{statistic}"]
    path = save(tmp_path / "last.ckpt", state_dict)
    message = message_of(lambda: load_checkpoint(path, "m", "pose"))
    assert message.endswith(f"not the weights of a mean mixer: missing model.encoder.interm_mlps.2.bn.{statistic}")


def test_weights_of_the_encoder_in_a_checkpoint_are_refused_by_name(tmp_path):
    state_dict = {**weights("core_m", "readout_pose_streaming"), "model.encoder.blocks.0.w": torch.zeros(1)}
    message = message_of(lambda: load_checkpoint(save(tmp_path / "a.ckpt", state_dict), "m", "pose"))
    assert "not the weights of a mixer" in message
    assert "model.encoder.blocks.0.w" in message


def test_names_outside_the_model_are_refused_by_name(tmp_path):
    state_dict = {**weights("core_m", "readout_pose_streaming"), "teacher.w": torch.zeros(1)}
    message = message_of(lambda: load_checkpoint(save(tmp_path / "a.ckpt", state_dict), "m", "pose"))
    assert message.endswith("names do not start with model., as all that are released do: teacher.w")


def test_parts_of_different_widths_are_refused(tmp_path):
    readout = build_readout("pose", dim=48, readout_dim=48, mlp_hidden=40)
    naming = READOUT_NAMES["pose", "streaming"]
    state_dict = {naming.released(name): value for name, value in readout.state_dict().items()}
    path = save(tmp_path / "a.ckpt", {**weights("core_m"), **state_dict})
    message = message_of(lambda: load_checkpoint(path, "m", "pose"))
    assert "the mixer has 32 channels, the core 32 and the readout 48" in message


def test_queries_that_make_no_square_map_are_refused():
    state_dict = weights("readout_depth_streaming")
    state_dict["model.readout.readout.query"] = state_dict["model.readout.readout.query"][:15]
    message = message_of(lambda: load_readout(state_dict, "depth", num_heads=HEADS))
    assert message.endswith("model.readout.readout.query [15, 4, 12] instead of [9, 4, 12]")


def test_numbers_of_heads_are_read_off_the_queries_and_another_one_is_refused():
    state_dict = weights("readout_classify_streaming")
    assert load_readout(state_dict, "classify").num_heads == HEADS
    message = message_of(lambda: load_readout(state_dict, "classify", num_heads=3), UsageError)
    assert message == "num_heads is 3, but the queries of these weights have 4 heads; leave it out"


@pytest.mark.parametrize(("file_name", "load"), [PARTS[0], PARTS[1]])
def test_heads_that_do_not_divide_the_width_are_refused(file_name, load):
    name = file_name.removeprefix("core_")
    message = message_of(lambda: load_core(weights(file_name), name, 5), UsageError)
    assert message.startswith("5 attention heads do not divide 32 channels")


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(UnknownNameError, match="unknown released core 'gmix'; did you mean gmmix"):
        load_core({}, "gmix")
    with pytest.raises(UnknownNameError, match="unknown readout 'box'; did you mean boxes"):
        load_readout({}, "box")
    with pytest.raises(UsageError, match=r"no protocol 'clip'; use streaming$"):
        load_readout({}, "boxes", "clip")


def test_what_is_no_state_dict_is_refused():
    assert message_of(lambda: load_core([1], "m")).startswith("weights are a list; pass a state dict")
    assert "'a' in the weights is a int" in message_of(lambda: load_mixer({"a": 1}))
    assert "found nothing" in message_of(lambda: load_mixer({}))


class Evil:
    """What runs code when it is unpickled: here, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_checkpoint_with_code_in_it_is_refused_and_the_code_not_run(tmp_path):
    state_dict = weights("core_m", "readout_pose_streaming")
    path = save(tmp_path / "a.ckpt", state_dict, hyper_parameters=Evil(tmp_path / "was_run"))
    assert "runs no code from files" in message_of(lambda: load_checkpoint(path, "m", "pose"))
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cannot be read as a checkpoint"),
        (b"not a checkpoint at all\n" * 9, "is no checkpoint"),
        (b"PK\x03\x04" + b"\0" * 100, "cannot be read as a checkpoint"),
        (b"\x80\x02", "cannot be read as a checkpoint"),
        ([1, 2], "it has no state_dict (found: list)"),
        ({"model": 1, "epoch": 2}, "it has no state_dict (found: model, epoch)"),
        ({"state_dict": {}}, "it has no state_dict"),
        ({"state_dict": {"model.a": 1}}, "'model.a' in the weights is a int"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused_in_one_line(tmp_path, content, reason):
    path = tmp_path / "a.ckpt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    message = message_of(lambda: load_checkpoint(path, "m", "pose"))
    assert message.startswith(f"{path}: ")
    assert reason in message


def test_a_checkpoint_cut_short_is_refused(tmp_path):
    path = save(tmp_path / "a.ckpt", weights("core_m", "readout_pose_streaming"))
    path.write_bytes(path.read_bytes()[:-1000])
    assert "cannot be read as a checkpoint" in message_of(lambda: load_checkpoint(path, "m", "pose"))


def test_a_file_that_is_not_there_is_refused(tmp_path):
    assert "there is no such file" in message_of(lambda: load_checkpoint(tmp_path / "a.ckpt", "m", "pose"))
    assert "cannot be read as a checkpoint" in message_of(lambda: load_checkpoint(tmp_path, "m", "pose"))
