"""Random combinations of what folders differ in: read as by transformers, or refused by name."""
import re
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from folder_oracle import assert_same_ids, assert_same_logits, load, their_model, their_tokenizer
from hypothesis import Phase, event, given, settings
from hypothesis import strategies as st
from make_folders import (
    END,
    N_BASE,
    change_tensors,
    old_files,
    read,
    remove,
    renamed,
    token,
    tokenizer_with,
    vocabulary,
    with_tensors,
    write,
)

import gpt2_np

pytestmark = pytest.mark.parity

# Settings of other functions than ours, which may be refused, by their names.
OTHER_FUNCTIONS = {
    "scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True,
    "layer_norm_epsilon": 1e-6, "activation_function": "relu", "n_inner": 40,
    "add_cross_attention": True,
}  # fmt: skip
SAME_FUNCTION = {
    "reorder_and_upcast_attn": True, "activation_function": "gelu_pytorch_tanh", "n_inner": 64,
    "attn_pdrop": 0.0, "n_ctx": 1024, "use_cache": False, "initializer_range": 0.2,
    "n_positions": 40, "n_layer": 3, "n_head": 4,
}  # fmt: skip
PREFIXES = ["", "_orig_mod.", "module.", "_orig_mod.module.", "module._orig_mod."]
HEADS = {"v_head.summary.weight": (1, 16), "v_head.summary.bias": (1,), "score.weight": (3, 16)}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
WORDS = ["the", "user", " the", "Hello", "newword", "café", "word", "12", "'ll"]
SPACES = ["", " ", "  ", "\n", "\t ", "\u00a0", "\u2003"]

names = st.one_of(
    st.sampled_from(["<m>", "<|user|>", "[PAD]", "<|a|>", "<|a|><|b|>", "x<m>", "<m>y", "the",
                     "se", "  ", "\n", " <m>", "<m> ", "é", "ser", "猫", "_", "word", "["]),
    st.text("<>|[]mx_ é1", min_size=1, max_size=4),
)  # fmt: skip
flags = st.fixed_dictionaries({}, optional={
    "lstrip": st.booleans(), "rstrip": st.booleans(), "single_word": st.booleans(),
    "normalized": st.booleans(), "special": st.booleans()})  # fmt: skip
PHASES = [phase for phase in Phase if phase is not Phase.explain]  # which takes minutes
# Reasons for which a tokenizer may be left out: transformers 4 and 5 read it differently.
REASONS = (
    "lstrip|rstrip|single_word|normalized|add_bos_token|add_prefix_space|overlap|"
    "transformers 4 and 5"
)
rare = st.sampled_from([False, False, False, True])


@st.composite
def tokenizers(draw):
    """Return a description of a tokenizer and its files."""
    files = draw(st.sampled_from(["all", "all", "slow", "json and settings", "json", "old"]))
    added = draw(st.lists(st.tuples(names, flags if files != "old" else st.just({})), max_size=4,
                          unique_by=lambda pair: pair[0]))  # fmt: skip
    return {"files": files, "added": added, "space": draw(rare), "first": draw(rare)}


def save_tokenizer(folder, drawn):
    """Write the files and return the number of tokens."""
    options = {}
    if drawn["space"]:
        options["add_prefix_space"] = True
    if drawn["first"]:
        options["add_bos_token"] = True
    if drawn["files"] == "old":
        known = read(Path(vocabulary().name, "vocab.json"))
        fresh = [name for name, _ in drawn["added"] if name not in known]
        ids = {name: N_BASE + n for n, name in enumerate(fresh)}
        old_files(folder, added=ids, settings=options)
        return N_BASE + len(ids)
    cls = "GPT2Tokenizer" if drawn["files"] == "slow" else "GPT2TokenizerFast"
    tokenizer = tokenizer_with(cls=cls, **options)
    for name, its_flags in drawn["added"]:
        special = its_flags.get("special", False)
        tokenizer.add_tokens([token(name, **its_flags)], special_tokens=special)
    tokenizer.save_pretrained(folder)
    if drawn["files"].startswith("json"):
        remove("vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json")(folder)
    if drawn["files"] == "json":
        remove("tokenizer_config.json")(folder)
    return len(tokenizer)


@st.composite
def models(draw):
    """Return a description of the settings and the tensors."""
    other = draw(st.sampled_from([""] * 18 + [*OTHER_FUNCTIONS]))
    same = draw(st.lists(st.sampled_from(sorted(SAME_FUNCTION)), max_size=3, unique=True))
    return {
        "other": other,
        "settings": {k: SAME_FUNCTION[k] for k in same} | (
            {other: OTHER_FUNCTIONS[other]} if other else {}),
        "prefix": draw(st.sampled_from(PREFIXES)), "bare": draw(rare),
        "heads": draw(st.sets(st.sampled_from(sorted(HEADS)), max_size=2)),
        "dtype": draw(st.sampled_from(DTYPES)),
        "head": draw(st.sampled_from(["none", "none", "same", "alone", "float32"])),
        "masks": draw(rare), "more_rows": draw(st.sampled_from([0, 0, 3, 64, -1])),
    }  # fmt: skip


def disguise(tensors, drawn):
    """Return the tensors as a wrapper, a saver or a trainer leaves them."""
    wte = tensors["transformer.wte.weight"]
    if drawn["head"] == "alone":
        del tensors["transformer.wte.weight"]
    if drawn["head"] != "none":
        tensors["lm_head.weight"] = wte.float() if drawn["head"] == "float32" else wte
    if drawn["masks"]:
        tensors["transformer.h.0.attn.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.bool).tril()
        tensors["transformer.h.1.attn.masked_bias"] = torch.tensor(-1e4)
    shapes = {name: HEADS[name] for name in drawn["heads"]}
    tensors = with_tensors(**shapes)(tensors)
    if drawn["bare"]:
        tensors = renamed(lambda name: name.removeprefix("transformer."))(tensors)
    return renamed(lambda name: drawn["prefix"] + name)(tensors)


def texts_of(added):
    pieces = [name for name, _ in added] * 3 + WORDS + SPACES + [END]
    return st.lists(st.lists(st.sampled_from(pieces), max_size=8).map("".join), min_size=4,
                    max_size=10)  # fmt: skip


@settings(max_examples=40, phases=PHASES)
@given(st.data())
def test_a_random_folder_is_read_as_transformers_reads_it_or_refused_by_name(data):
    tokenizer, model = data.draw(tokenizers()), data.draw(models())
    texts = data.draw(texts_of(tokenizer["added"]))
    with tempfile.TemporaryDirectory() as scratch:
        plain, folder = Path(scratch, "plain"), Path(scratch, "model")
        plain.mkdir()
        n_tokens = save_tokenizer(plain, tokenizer)
        rows = max(N_BASE, n_tokens + model["more_rows"])
        write(plain, False, rows=rows, dtype=model["dtype"], **model["settings"])
        shutil.copytree(plain, folder)
        change_tensors(folder, lambda tensors: disguise(tensors, model))
        outcome = load(folder)
        judge(outcome, plain, model, texts)
        if outcome.model and data.draw(st.booleans(), "saved again"):
            judge_saved(outcome.model, Path(scratch, "saved"), texts)


def judge_saved(model, folder, texts):
    """Hold what transformers loads from a folder that we save equal to our model."""
    try:
        gpt2_np.save(model, folder)
    except gpt2_np.Error as error:
        event("not saved: " + re.sub(r"^.*?: ", "", str(error))[:90])
        assert model.tokenizer is not None and "\n" not in str(error)
        return
    event("saved")
    assert_same_logits(model, their_model(folder))
    if model.tokenizer is not None:
        assert_same_ids(model.tokenizer, their_tokenizer(folder), texts)


def judge(outcome, plain, model, texts):
    if outcome.refusal:
        named = {"add_cross_attention": "add_cross_attention|crossattention"}
        reason = model["other"] and named.get(model["other"], model["other"])
        assert reason and re.search(reason, outcome.refusal), f"refused: {outcome.refusal}"
        event(f"refused for {model['other']}")
        return
    for name in model["heads"]:
        assert name.split(".")[0] in outcome.warned
    assert_same_logits(outcome.model, their_model(plain))
    if outcome.model.tokenizer is None:
        event("no tokenizer: " + re.sub(r".*of GPT-2: ", "", outcome.warned)[:90])
        assert re.search(REASONS, outcome.warned), f"no tokenizer: {outcome.warned}"
        return
    event("the same")
    assert_same_ids(outcome.model.tokenizer, their_tokenizer(plain), texts)
