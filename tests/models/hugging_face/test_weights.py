"""What is wrong with a checkpoint is said in full, by name, and before anything is computed."""

import json
import pickle
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from frame_jax.errors import UserError
from frame_jax.models.hugging_face.weights import import_checkpoint

LLAMA = {
    "model_type": "llama",
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
QUERY = "model.layers.1.self_attn.q_proj.weight"


def make_tensors(dtype=np.float32) -> dict[str, np.ndarray]:
    """Every tensor of LLAMA by the names and shapes that `transformers` gives them."""
    shapes = {
        "model.embed_tokens.weight": (11, 8),
        "model.norm.weight": (8,),
        "lm_head.weight": (11, 8),
    }
    for layer in range(2):
        shapes |= {
            f"model.layers.{layer}.{name}.weight": shape
            for name, shape in {
                "input_layernorm": (8,),
                "self_attn.q_proj": (8, 8),
                "self_attn.k_proj": (4, 8),
                "self_attn.v_proj": (4, 8),
                "self_attn.o_proj": (8, 8),
                "post_attention_layernorm": (8,),
                "mlp.gate_proj": (12, 8),
                "mlp.up_proj": (12, 8),
                "mlp.down_proj": (8, 12),
            }.items()
        }
    random = np.random.default_rng(0)
    return {name: random.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def write(folder: Path, tensors: dict[str, np.ndarray] | None = None, **settings: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(LLAMA | settings))
    save_file(make_tensors() if tensors is None else tensors, folder / "model.safetensors")
    return folder


def write_shards(folder: Path, tensors: dict[str, np.ndarray]) -> Path:
    """Two files and their index."""
    write(folder, {})
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    places = {name: f"model-{1 + i % 2}-of-2.safetensors" for i, name in enumerate(names)}
    for file in set(places.values()):
        save_file({n: tensors[n] for n in names if places[n] == file}, folder / file)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def refusal(folder: Path, longest: int | None = None) -> str:
    with pytest.raises(UserError) as error:
        import_checkpoint(folder, longest)
    assert str(folder) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_tensors_come_to_their_places_from_one_file_or_shards(tmp_path: Path, dtype) -> None:
    tensors = make_tensors(dtype)
    for folder in (write(tmp_path / "one", tensors), write_shards(tmp_path / "two", tensors)):
        decoder, params = import_checkpoint(folder)
        assert decoder.vocab_size == 11 and decoder.config.num_kv_heads == 2
        assert params["layers"]["group_0"]["query"].dtype == np.float32
        for ours, theirs in (
            (params["layers"]["group_0"]["query"][1].T, QUERY),
            (params["output"], "lm_head.weight"),
            (params["final_norm"], "model.norm.weight"),
        ):
            np.testing.assert_array_equal(ours, tensors[theirs].astype(np.float32))


def test_every_missing_extra_and_misshapen_tensor_is_named(tmp_path: Path) -> None:
    tensors = make_tensors()
    del tensors["model.norm.weight"], tensors[QUERY]
    tensors["model.layers.0.mlp.up_proj.weight"] = np.zeros((8, 12), np.float32)
    tensors["model.layers.0.mlp.down_proj.weight"] = np.zeros((8, 12), np.int32)
    tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(8, np.float32)
    tensors["model.layers.2.input_layernorm.weight"] = np.zeros(8, np.float32)
    assert refusal(write(tmp_path, tensors)).splitlines()[1:] == [
        "  unreadable: model.layers.0.mlp.down_proj.weight is I32, must be one of "
        "F64, F32, F16, BF16",
        "  misshapen: model.layers.0.mlp.up_proj.weight is [8, 12], must be [12, 8]",
        "  extra: model.layers.0.self_attn.q_proj.bias in model.safetensors",
        "  extra: model.layers.2.input_layernorm.weight in model.safetensors",
        "  missing: model.norm.weight [8]",
        f"  missing: {QUERY} [8, 8]",
    ]


def test_a_config_of_another_size_is_noticed(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, hidden_size=16, num_attention_heads=8))
    assert "misshapen: model.embed_tokens.weight is [11, 8], must be [11, 16]" in message
    assert message.count("misshapen") == 3 + 2 * 9


def test_a_tensor_in_two_files_is_named(tmp_path: Path) -> None:
    (write(tmp_path) / "model.safetensors").rename(tmp_path / "model-1.safetensors")
    save_file({QUERY: make_tensors()[QUERY]}, tmp_path / "model-2.safetensors")
    assert f"twice: {QUERY} in model-1.safetensors and model-2.safetensors" in refusal(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_shards(tmp_path, make_tensors())
    (tmp_path / "model-2-of-2.safetensors").unlink()
    assert "lacks model-2-of-2.safetensors" in refusal(tmp_path)


@pytest.mark.parametrize("index", ["{", "[]", '{"weight_map": {"a": 1}}', "{}"])
def test_an_index_that_is_none_is_refused(tmp_path: Path, index: str) -> None:
    (write(tmp_path) / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(index)
    assert "model.safetensors.index.json" in refusal(tmp_path)


def test_a_cut_file_is_named(tmp_path: Path) -> None:
    path = write(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    assert "model.safetensors is damaged or incomplete" in refusal(tmp_path)


def test_an_output_beside_tied_embeddings_must_repeat_them(tmp_path: Path) -> None:
    tensors = make_tensors()
    assert "extra: lm_head.weight" in refusal(write(tmp_path, tensors, tie_word_embeddings=True))
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(1, np.float32)
    _, params = import_checkpoint(write(tmp_path, tensors, tie_word_embeddings=True))
    assert "output" not in params


def others(folder: Path) -> None:
    """What lies beside the weights of published models: the same under other names, an adapter."""
    save_file({"layers.0.attention.wq.weight": np.ones(1)}, folder / "consolidated.safetensors")
    save_file({"base_model.q.lora_A": np.ones(1)}, folder / "adapter_model.safetensors")


def query(folder: Path) -> np.ndarray:
    return import_checkpoint(folder)[1]["layers"]["group_0"]["query"][1].T


def test_the_whole_file_is_taken_before_an_index(tmp_path: Path) -> None:
    tensors = make_tensors()
    write_shards(tmp_path, tensors)
    newer = tensors | {QUERY: tensors[QUERY] + 1}
    write(tmp_path, newer)  # saved again, in one file; the shards and their index are stale
    others(tmp_path)
    np.testing.assert_array_equal(query(tmp_path), newer[QUERY])
    for path in tmp_path.glob("model-*"):  # not even looked for
        path.unlink()
    np.testing.assert_array_equal(query(tmp_path), newer[QUERY])


def test_shards_without_an_index_are_read_and_what_lies_beside_them_is_not(tmp_path: Path) -> None:
    tensors = make_tensors()
    write_shards(tmp_path, tensors)
    others(tmp_path)
    np.testing.assert_array_equal(query(tmp_path), tensors[QUERY])
    (tmp_path / "model.safetensors.index.json").unlink()
    np.testing.assert_array_equal(query(tmp_path), tensors[QUERY])


def test_weights_under_other_names_alone_and_an_adapter_alone_are_named(tmp_path: Path) -> None:
    (write(tmp_path) / "model.safetensors").unlink()
    save_file({"layers.0.attention.wq.weight": np.ones(1)}, tmp_path / "consolidated.safetensors")
    message = refusal(tmp_path)
    assert "(consolidated.safetensors)" in message and "fetch model.safetensors" in message
    others(tmp_path)
    for _ in range(2):
        message = refusal(tmp_path)
        assert "adapter_model.safetensors" in message and "merge_and_unload" in message
        (tmp_path / "config.json").unlink(missing_ok=True)  # as PEFT saves it


@pytest.mark.torch
def test_transformers_takes_the_same_file(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    tensors = make_tensors()
    write_shards(tmp_path, tensors)
    save_file({"layers.0.attention.wq.weight": np.ones(1)}, tmp_path / "consolidated.safetensors")
    for stale in (False, True):
        if stale:
            write(tmp_path, {name: tensor + 1 for name, tensor in tensors.items()})
            text = json.dumps(LLAMA | {"architectures": ["LlamaForCausalLM"]})
            (tmp_path / "config.json").write_text(text)
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
        theirs = model.model.layers[1].self_attn.q_proj.weight.detach().numpy()
        np.testing.assert_array_equal(query(tmp_path), theirs)


class Bomb:
    """A pickle that writes a file when it is read."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickled_weights_are_refused_unread(tmp_path: Path, name: str) -> None:
    (write(tmp_path) / "model.safetensors").unlink()
    (tmp_path / name).write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    message = refusal(tmp_path)
    assert f"pickled weights ({name})" in message and "save_pretrained" in message
    assert not (tmp_path / "exploded").exists()
    pickle.loads((tmp_path / name).read_bytes())
    assert (tmp_path / "exploded").exists(), "the bomb of this test must work"


def test_a_folder_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    assert "no config.json" in refusal(tmp_path)
    (write(tmp_path) / "model.safetensors").unlink()
    assert "no *.safetensors" in refusal(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '"llama"', "\xff"])
def test_a_config_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (write(tmp_path) / "config.json").write_text(text, "latin-1")
    assert "config.json" in refusal(tmp_path) and "--redo" not in refusal(tmp_path)


ROPE = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ORIGINAL = {"original_max_position_embeddings": 32}
REFUSED: dict[str, tuple[dict, str]] = {
    "family": ({"model_type": "gpt2"}, "model_type 'gpt2'"),
    "no family": ({"model_type": None}, "model_type None"),
    "another kind of attention": ({"model_type": "deepseek_v3"}, "multi-head latent attention"),
    "another mixture of experts": ({"model_type": "qwen2_moe"}, "a gate on the shared expert"),
    "another state-space model": ({"model_type": "jamba"}, "model_type 'jamba'.*Mamba-1"),
    "rope that differs between layers": (
        {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
        "rope_parameters that differ between layers",
    ),
    "quantized": ({"quantization_config": {"bits": 4}}, "quantization_config"),
    "bias of attention": ({"attention_bias": True}, "attention_bias"),
    "bias of the feed-forward layer": ({"mlp_bias": True}, "mlp_bias"),
    "activation": ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
    "part of a head rotated": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    "part of a head rotated, new spelling": (
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
        "partial_rotary_factor",
    ),
    "linear rope": ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling.*'linear'"),
    "yarn rope": ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_scaling.*'yarn'"),
    "dynamic rope": (
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
        "rope_parameters.*'dynamic'",
    ),
    "rope without its context": (
        {"rope_scaling": {"rope_type": "llama3", **ROPE}},
        "rope_scaling.*original_max_position_embeddings",
    ),
    "rope with a word for a number": (
        {"rope_scaling": {"rope_type": "llama3", **ROPE, **ORIGINAL, "factor": "8"}},
        "rope_scaling.*factor",
    ),
    "rope that is a word": ({"rope_scaling": "llama3"}, "rope_scaling"),
    "theta that is a word": ({"rope_theta": "1e4"}, "rope_theta"),
    "sliding window": ({"model_type": "mistral"}, "4096 tokens.*sliding_window"),
    "sliding window of a number": (
        {"model_type": "mistral", "sliding_window": 32},
        "32 tokens.*sliding_window",
    ),
    "sliding window of some layers": (
        {
            "model_type": "qwen2",
            "sliding_window": 16,
            "layer_types": ["full_attention", "sliding_attention"],
        },
        "16 tokens.*sliding_window",
    ),
    "absent": ({"num_hidden_layers": None, "rms_norm_eps": None}, "num_hidden_layers, rms_norm_ep"),
    "head width of Qwen3": ({"model_type": "qwen3"}, "head_dim"),
    "words for sizes": ({"vocab_size": "11"}, "vocab_size is '11'"),
    "fractions of layers": ({"num_hidden_layers": 1.5}, "num_hidden_layers is 1.5"),
    "no heads": ({"num_attention_heads": 0}, "num_attention_heads is 0"),
    "heads that do not fit": ({"num_key_value_heads": 3}, "num_kv_heads"),
    "heads of uneven width": ({"head_dim": 3}, "head_dim"),
    "a word for epsilon": ({"rms_norm_eps": "small"}, "rms_norm_eps is 'small'"),
    "no epsilon": ({"rms_norm_eps": 0}, "rms_norm_eps is 0, must be a positive number"),
    "a word for the width of a head": ({"head_dim": "8"}, "head_dim is '8'"),
    "a word for the context": (
        {"max_position_embeddings": "64"},
        "max_position_embeddings is '64'",
    ),
    "a word for the window": ({"model_type": "mistral", "sliding_window": "32"}, "window is '32'"),
    "a word for layers": ({"model_type": "qwen2", "layer_types": 2}, "layer_types is 2"),
    "a word for tied": ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_this_decoder_cannot_compute_is_refused_with_the_key(
    tmp_path: Path, case: str
) -> None:
    settings, expected = REFUSED[case]
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | settings))
    with pytest.raises(UserError, match=expected) as error:
        import_checkpoint(tmp_path)
    assert str(tmp_path / "config.json") in str(error.value)


def test_a_sliding_window_that_is_never_felt_is_accepted(tmp_path: Path) -> None:
    write(tmp_path, model_type="mistral", sliding_window=32)
    import_checkpoint(tmp_path, longest=32)
    assert "sliding_window" in refusal(tmp_path, longest=33)


def test_longer_sequences_than_the_model_was_made_for_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    import_checkpoint(tmp_path, longest=64)
    message = refusal(tmp_path, longest=65)
    assert "at most 64 tokens (max_position_embeddings), not 65" in message
    assert "scoring.context" in message
