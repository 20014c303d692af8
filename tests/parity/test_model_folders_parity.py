"""Settings and weights of all kinds of folders: the ids and logits of transformers, or why not.

The file runs under transformers 4 and 5, which write different files. Each kind of folder is
written by the installed one where it can write it, and is judged by it.
"""
import shutil
from pathlib import Path

import make_checkpoints as make
import pytest
import safetensors.torch
import torch
import transformers
from folder_oracle import (
    Kind,
    any_loss,
    either,
    judge,
    load,
    refused,
    same,
    same_or_refused,
    their_model,
    warned,
    without_tokenizer,
)
from make_folders import (
    CHAT,
    N_BASE,
    dump,
    in_turn,
    remove,
    renamed,
    tokenizer_with,
    with_tensors,
    write,
)
from random_model import random_params

import gpt2_np

pytestmark = pytest.mark.parity

# --- settings --------------------------------------------------------------------------------


def set_to(**settings):
    """Write a model that has the settings when it is made, and so knows what they mean."""
    return lambda folder: write(folder, **settings)


def says(**settings):
    """Write a model, and set keys of config.json afterwards. None is null."""
    return lambda folder: write(folder, config=lambda found: found.update(settings))


def without_keys(*names):
    return lambda folder: write(
        folder, config=lambda found: {k: v for k, v in found.items() if k not in names}
    )


def bare_settings(folder):
    """The keys that have no default here; the rest is left to the reader."""
    needed = ("model_type", "vocab_size", "n_positions", "n_embd", "n_head", "n_layer")
    return write(folder, config=lambda found: {k: found[k] for k in needed})


def default_layers(folder):
    keep = ("model_type", "vocab_size", "n_embd", "n_positions")
    return write(folder, n_layer=12, n_embd=24, n_head=12,
                 config=lambda found: {k: found[k] for k in keep})  # fmt: skip


def nulls(folder):
    """Settings of null where 4 takes the default. 5 refuses some: it reads the folder without."""
    names = ("n_inner", "n_ctx", "reorder_and_upcast_attn", "scale_attn_by_inverse_layer_idx",
             "add_cross_attention", "summary_activation", "pad_token_id", "task_specific_params",
             "quantization_config")  # fmt: skip
    write(folder, config=lambda found: found.update(dict.fromkeys(names)))
    return write(folder.with_name("twin"))


ACTIVATIONS = ["gelu_fast", "gelu_pytorch_tanh", "gelu_accurate", "gelu_python_tanh"]
OTHER_ACTIVATIONS = ["gelu", "relu", "quick_gelu", "silu", "gelu_python", "gelu_10", "tanh"]

SETTINGS = [
    *[Kind(f"activation {name}", set_to(activation_function=name), same)
      for name in ACTIVATIONS if name in transformers.activations.ACT2FN],
    *[Kind(f"activation {name}", set_to(activation_function=name),
           same_or_refused("activation_function")) for name in OTHER_ACTIVATIONS],
    Kind("reorder_and_upcast_attn", set_to(reorder_and_upcast_attn=True), same),
    Kind("scale by layer", set_to(scale_attn_by_inverse_layer_idx=True),
         same_or_refused("scale_attn_by_inverse_layer_idx")),
    Kind("scale by layer, upcast", set_to(
        scale_attn_by_inverse_layer_idx=True, reorder_and_upcast_attn=True),
        same_or_refused("scale_attn_by_inverse_layer_idx")),
    Kind("no scale", set_to(scale_attn_weights=False), same_or_refused("scale_attn_weights")),
    Kind("epsilon 1e-6", set_to(layer_norm_epsilon=1e-6), same_or_refused("layer_norm_epsilon")),
    Kind("epsilon 1e-12", set_to(layer_norm_epsilon=1e-12), same_or_refused("layer_norm_epsilon")),
    Kind("cross-attention", set_to(add_cross_attention=True),
         same_or_refused("add_cross_attention|crossattention|ln_cross_attn")),
    Kind("cross-attention in the weights alone", lambda f: write(
        f, add_cross_attention=True, config=lambda c: c.update(add_cross_attention=False)),
        any_loss("crossattention|ln_cross_attn|q_attn")),
    Kind("narrow MLP", set_to(n_inner=24), same_or_refused("n_inner")),
    Kind("n_inner as by default", set_to(n_inner=64), same),
    Kind("n_ctx above n_positions", says(n_ctx=1024), same),
    Kind("n_ctx under n_positions", says(n_ctx=16), same),
    Kind("no n_ctx", without_keys("n_ctx"), same),
    Kind("null for defaults", nulls, same),
    Kind("no setting but the sizes", bare_settings, same),
    Kind("sizes by default", default_layers, same),
    Kind("sizes under their common names", lambda f: write(f, config=lambda found: {
        {"n_embd": "hidden_size", "n_head": "num_attention_heads", "n_layer": "num_hidden_layers",
         "n_positions": "max_position_embeddings"}.get(k, k): v for k, v in found.items()}),
        same_or_refused("n_embd|n_head|n_layer|n_positions|hidden_size")),
    Kind("dropout rates", set_to(attn_pdrop=0.0, resid_pdrop=0.3, embd_pdrop=0.2), same),
    Kind("settings of other tasks", says(
        num_labels=5, id2label={"0": "a"}, label2id={"a": 0}, summary_type="cls_index",
        task_specific_params={"text-generation": {"do_sample": True, "max_length": 50}},
        use_cache=False, gradient_checkpointing=False, finetuning_task="x",
        _name_or_path="gpt2", transformers_version="4.2.0", resid_pdrop=0.1,
        architectures=["GPT2LMHeadModel"], torch_dtype="float16", pad_token_id=0), same),
    Kind("tied by null", says(tie_word_embeddings=True), same),
    Kind("untied, another head", lambda f: write(f, tie_word_embeddings=False),
         same_or_refused("tie_word_embeddings|lm_head")),
    Kind("untied, the same head", lambda f: write(
        f, config=lambda c: c.update(tie_word_embeddings=False),
        tensors=lambda t: t | {"lm_head.weight": t["transformer.wte.weight"]}), same),
    Kind("untied, no head", says(tie_word_embeddings=False),
         refused("tie_word_embeddings|lm_head")),
    Kind("quantized", says(quantization_config={"load_in_8bit": True, "quant_method":
         "bitsandbytes"}), refused("quantization_config|quantiz")),
    Kind("another model", says(model_type="gpt_neo"), refused("model_type.*gpt_neo")),
    Kind("more rows said than there are", says(vocab_size=N_BASE + 7), refused("wte|vocab_size")),
]


# --- tensors ---------------------------------------------------------------------------------


def head_only(tensors):
    """What safetensors.torch.save_model may keep of tied weights."""
    return {"lm_head.weight": tensors.pop("transformer.wte.weight")} | tensors


def head_alone(folder):
    """transformers 4 does not read such a file itself."""
    write(folder, tensors=head_only)
    return write(folder.with_name("twin"))


def saved_by_save_model(folder):
    twin = write(folder.with_name("twin"), tokenizer_with(CHAT))
    write(folder, tokenizer_with(CHAT))
    safetensors.torch.save_model(their_model(twin), str(folder / "model.safetensors"))
    return twin


def wrapped(function, **options):
    """Rename the tensors as a wrapper does. transformers reads the folder without."""

    def make_it(folder):
        write(folder, tensors=renamed(function), **options)
        return write(folder.with_name("twin"), **options)

    return make_it


def bare(name):
    return name.removeprefix("transformer.")


def older_masks(tensors):
    """Causal masks that transformers kept in the file before 4.30."""
    mask = torch.ones(64, 64, dtype=torch.bool).tril()[None, None]
    for layer in range(2):
        tensors[f"transformer.h.{layer}.attn.bias"] = mask
        tensors[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    return tensors


def byte_masks(tensors):
    return {k: v.to(torch.uint8) if v.dtype == torch.bool else v
            for k, v in older_masks(tensors).items()}  # fmt: skip


def head_in(dtype, of=torch.float32):
    """Write weights in one type, and the head beside them in another that holds the same."""

    def change(tensors):
        if of is torch.float32:  # values that both types hold
            tensors["transformer.wte.weight"] = tensors["transformer.wte.weight"].to(dtype).float()
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"].to(dtype)
        return tensors

    return lambda folder: write(folder, dtype=of, tensors=change)


def mixed(tensors):
    kinds = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
    return {name: value.to(kinds[i % 4]) for i, (name, value) in enumerate(tensors.items())}


def lfs_pointer(*names):
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "4d7a" * 16 + "\nsize {}\n"
    return lambda folder: [Path(folder, n).write_text(text.format(548105171)) for n in names]


def pickled(*names):
    def files(folder):
        (folder / "model.safetensors").unlink()
        for name in names:
            (folder / name).write_bytes(b"PK\x03\x04" + bytes(60))

    return lambda folder: write(folder, files=files)


def trainer_output(folder):
    """A checkpoint of Trainer: much lies beside the model that is not read."""

    def files(f):
        for name in ("optimizer.pt", "scheduler.pt", "training_args.bin", "rng_state.pth"):
            (f / name).write_bytes(b"PK\x03\x04" + bytes(60))
        dump(f / "trainer_state.json", {"best_metric": None, "epoch": 3.0})
        (f / "chat_template.jinja").write_text("{{ messages }}")

    return write(folder, tokenizer_with(CHAT, pad="[PAD]"), files=files)


def checkpoints_inside(folder):
    write(folder / "checkpoint-500")
    write(folder / "checkpoint-1000")
    return folder


def variant(name):
    return lambda folder: write(folder, files=lambda f: (f / "model.safetensors").rename(f / name))


def adapter(folder):
    folder.mkdir()
    dump(folder / "adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": "gpt2"})
    tensors = {"base_model.model.transformer.h.0.attn.c_attn.lora_A.weight": torch.ones(4, 16)}
    safetensors.torch.save_file(tensors, folder / "adapter_model.safetensors")


def nano_gpt(tensors):
    """nanoGPT keeps the weights of nn.Linear: [out, in]."""
    kinds = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    return {"_orig_mod." + k: v.T if k.endswith(kinds) else v for k, v in tensors.items()}


HEADS = ["GPT2Model", "GPT2ForSequenceClassification", "GPT2DoubleHeadsModel",
         "GPT2ForTokenClassification", "GPT2ForQuestionAnswering"]  # fmt: skip

TENSORS = [
    Kind("GPT2Model", lambda f: write(f, cls="GPT2Model"), same),
    Kind("sequence classification", lambda f: write(
        f, cls="GPT2ForSequenceClassification", pad_token_id=0), warned(r"score\.weight")),
    Kind("double heads", lambda f: write(f, cls="GPT2DoubleHeadsModel", summary_proj_to_labels=
         True, num_labels=1), warned("multiple_choice_head")),
    Kind("token classification", lambda f: write(f, cls="GPT2ForTokenClassification"),
         warned(r"classifier\.(weight|bias)")),
    Kind("question answering", lambda f: write(f, cls="GPT2ForQuestionAnswering"),
         warned("qa_outputs")),
    Kind("value head of TRL", lambda f: write(f, tensors=with_tensors(
        v_head__summary__weight=(1, 16), v_head__summary__bias=(1,))), warned("v_head")),
    Kind("several heads", lambda f: write(f, tensors=with_tensors(
        v_head__summary__weight=(1, 16), score__weight=(2, 16))),
        warned("score.*v_head|v_head.*score")),
    Kind("tensors of no known head", lambda f: write(f, tensors=with_tensors(foo__weight=(3,))),
         any_loss("foo")),
    Kind("one layer more than said", lambda f: write(
        f, n_layer=3, config=lambda c: c.update(n_layer=2)), any_loss(r"h\.2\.")),
    Kind("one layer less than said", says(n_layer=3), refused(r"h\.2\.")),
    Kind("a tensor is missing", lambda f: write(f, tensors=lambda t: {
        k: v for k, v in t.items() if not k.endswith("h.1.mlp.c_fc.bias")}),
        refused(r"h\.1\.mlp\.c_fc\.bias")),
    Kind("a transposed tensor", lambda f: write(f, tensors=lambda t: {
        k: v.T if k.endswith("c_attn.weight") else v for k, v in t.items()}), refused("c_attn")),
    Kind("nanoGPT's weights", lambda f: write(f, tensors=nano_gpt), refused("c_attn|c_fc")),
    Kind("the head alone of tied weights", head_alone, same),
    Kind("save_model", saved_by_save_model, same),
    Kind("the head alone, no prefix", wrapped(
        lambda n: "lm_head.weight" if n.endswith("wte.weight") else bare(n)), same),
    Kind("both of tied weights", lambda f: write(f, tensors=lambda t: t | {
        "lm_head.weight": t["transformer.wte.weight"]}), same),
    Kind("a head that differs", lambda f: write(f, tensors=lambda t: t | {
        "lm_head.weight": t["transformer.wte.weight"] + 0.5}), same_or_refused("lm_head")),
    Kind("a head that differs in one value", lambda f: write(f, tensors=lambda t: t | {
        "lm_head.weight": t["transformer.wte.weight"] + torch.eye(N_BASE, 16) * 1e-3}),
        same_or_refused("lm_head")),
    Kind("float16 head beside float32", head_in(torch.float16), same),
    Kind("bfloat16 head beside float32", head_in(torch.bfloat16), same),
    Kind("float32 head beside float16", head_in(torch.float32, of=torch.float16), same),
    Kind("float32 head beside bfloat16", head_in(torch.float32, of=torch.bfloat16), same),
    Kind("float16", lambda f: write(f, dtype=torch.float16), same),
    Kind("bfloat16", lambda f: write(f, dtype=torch.bfloat16), same),
    Kind("float64", lambda f: write(f, dtype=torch.float64), same),
    Kind("all types", lambda f: write(f, tensors=mixed), same),
    Kind("shards", lambda f: write(f, shards=True), same),
    Kind("shards of float16 with a head", lambda f: write(
        f, shards=True, dtype=torch.float16, cls="GPT2ForTokenClassification"),
        warned("classifier")),
    Kind("no prefix", lambda f: write(f, tensors=renamed(bare)), same),
    *[Kind(f"prefix {p!r}", wrapped(lambda n, p=p: p + n), same)
      for p in ("_orig_mod.", "module.", "_orig_mod.module.", "module._orig_mod.")],
    *[Kind(f"prefix {p!r} before bare names", wrapped(lambda n, p=p: p + bare(n)), same)
      for p in ("_orig_mod.", "module.", "transformer.module.", "transformer._orig_mod.",
                "module.transformer._orig_mod.")],
    Kind("a wrapped head alone", wrapped(lambda n: "_orig_mod." + (
        "lm_head.weight" if n.endswith("wte.weight") else n)), same),
    Kind("causal masks of older files", lambda f: write(f, tensors=older_masks), same),
    Kind("causal masks as bytes", lambda f: write(f, tensors=byte_masks), same),
    Kind("wrapped causal masks", lambda f: (
        write(f, tensors=lambda t: renamed(lambda n: "module." + n)(older_masks(t))),
        write(f.with_name("twin")))[1], same),
    Kind("rows to a multiple of 64", lambda f: write(f, rows=384), same),
    Kind("rows to a multiple of 64, added tokens", lambda f: write(
        f, tokenizer_with(CHAT, pad="[PAD]"), rows=384), same),
    Kind("six layers", lambda f: write(f, n_layer=6, n_embd=24, n_head=12), same),
    Kind("Trainer's folder", trainer_output, same),
    Kind("a folder of checkpoints", checkpoints_inside, refused("config.json|checkpoint-")),
    Kind("model.fp16.safetensors alone", lambda f: write(
        f, dtype=torch.float16,
        files=lambda f: (f / "model.safetensors").rename(f / "model.fp16.safetensors")),
        same, options=(("variant", "fp16"),)),
    Kind("pytorch_model.bin alone", pickled("pytorch_model.bin"),
         refused(r"pytorch_model\.bin.*convert")),
    Kind("pickled shards alone", pickled(
        "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin",
        "pytorch_model.bin.index.json"), refused(r"pytorch_model.*convert")),
    Kind("ckpt.pt alone", pickled("ckpt.pt"), refused(r"safetensors")),
    Kind("tf_model.h5 alone", pickled("tf_model.h5"), refused(r"tf_model\.h5|safetensors")),
    Kind("pytorch_model.bin beside", lambda f: write(f, files=lambda f: (
        f / "pytorch_model.bin").write_bytes(b"PK\x03\x04")), same),
    Kind("git-lfs pointer for the weights", lambda f: write(
        f, files=lfs_pointer("model.safetensors")), refused("git.?lfs")),
    Kind("git-lfs pointer for the tokenizer", lambda f: write(
        f, files=in_turn(remove("merges.txt", "vocab.json"), lfs_pointer("tokenizer.json"))),
        either(refused("git.?lfs"), without_tokenizer("git.?lfs"))),
    Kind("git-lfs pointers for everything", lambda f: write(f, files=lfs_pointer(
        "model.safetensors", "config.json", "tokenizer.json")), refused("git.?lfs")),
    Kind("an adapter", adapter, refused("adapter|config.json")),
    Kind("no tokenizer", lambda f: write(f, False), same),
]


@pytest.mark.parametrize("kind", SETTINGS + TENSORS, ids=lambda kind: kind.name)
def test_a_model_of_each_kind_is_read_as_transformers_reads_it(tmp_path, kind):
    judge(kind, tmp_path / "model")


def test_a_token_without_a_row_is_an_error_only_if_it_is_used(tmp_path):
    tokenizer = tokenizer_with(CHAT, pad="[PAD]")
    outcome = load(write(tmp_path / "model", tokenizer, rows=N_BASE))
    assert not outcome.refusal and not outcome.warned
    ids = outcome.model.tokenizer.encode("Hello[PAD]", allowed_special="all")
    assert ids == tokenizer("Hello[PAD]")["input_ids"]
    gpt2_np.forward(outcome.model.params, outcome.model.config, ids[:-1])
    with pytest.raises(gpt2_np.Error, match=str(N_BASE)):
        gpt2_np.forward(outcome.model.params, outcome.model.config, ids)


# --- TensorFlow's bundles, which transformers no longer reads -----------------------------------


def trained_bundle(folder, hparams=True, vocabulary=True):
    """Write the checkpoints that gpt-2-simple or nshepperd's trainer leaves; return the params."""
    for step in (900, 1000):
        make.write_tensorflow(folder / "official", seed=step)
        for kind in ("index", "data-00000-of-00001"):
            (folder / "official" / f"model.ckpt.{kind}").rename(folder / f"model-{step}.{kind}")
    for wanted, names in ((hparams, ["hparams.json"]), (vocabulary, ["encoder.json", "vocab.bpe"])):
        for name in names if wanted else []:
            (folder / "official" / name).rename(folder / name)
    shutil.rmtree(folder / "official")
    lines = ['model_checkpoint_path: "model-1000"', *(
        f'all_model_checkpoint_paths: "model-{step}"' for step in (900, 1000))]
    (folder / "checkpoint").write_text("\n".join(lines) + "\n")
    (folder / "counter").write_text("1001\n")
    (folder / "model-1000.meta").write_bytes(b"\x0a\x00")
    return random_params(make.SMALL, 1000)


@pytest.mark.parametrize("given", ["", "model-1000", "model-1000.index"])
def test_the_latest_bundle_of_a_trainer_loads_by_folder_prefix_or_index(tmp_path, given):
    run = tmp_path / "checkpoint" / "run1"
    params = trained_bundle(run)
    outcome = load(run / given)
    assert not outcome.refusal and not outcome.warned
    make.assert_same_params(outcome.model.params, params)
    assert outcome.model.tokenizer.n_vocab == make.SMALL.n_vocab


def test_an_older_bundle_of_a_trainer_loads_by_its_prefix(tmp_path):
    trained_bundle(tmp_path)
    outcome = load(tmp_path / "model-900")
    make.assert_same_params(outcome.model.params, random_params(make.SMALL, 900))


def test_a_bundle_without_its_hparams_is_refused_by_name(tmp_path):
    trained_bundle(tmp_path, hparams=False)
    assert "hparams.json" in load(tmp_path).refusal
