"""Bad input is one clear error, which names what was given."""
import numpy as np
import pytest
from prompt_pair import MODEL
from random_model import TINY, map_params

from gpt2_np import Error, Model, circuits

TOKENS = np.random.default_rng(5).integers(0, TINY.n_vocab, (2, 10))

OTHER = (TOKENS + 1) % TINY.n_vocab

METRIC = circuits.logit_difference(MODEL, 2, 1)

PAIR = {"base": TOKENS, "source": OTHER, "metric": METRIC}

Z, SCORES = "blocks.0.attn.hook_z", "blocks.0.attn.hook_attn_scores"


def call(function, *args, **options):
    return lambda model: function(model, *args, **options)


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (call(circuits.run, TOKENS, ["blocks.0.hook_resid_pree"]),
         r"'blocks.0.hook_resid_pree'.*did you mean blocks.0.hook_resid_pre"),
        (call(circuits.run, TOKENS, ["blocks.9.*"]), "layer 9 does not exist: there are 3"),
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
        (lambda _: circuits.run("text", "z"), "the model is 'text': give the model first"),
        (call(circuits.run, [[1] * 25]), "25 positions do not fit: n_ctx is 24"),
        (call(circuits.run, [[1, 2], [3]]), "the prompts have 1, 2 tokens"),
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
        (call(circuits.patching, "zz", **PAIR), "activation 'zz'; did you mean z"),
        (call(circuits.patching, "pre", **PAIR), "cannot patch 'pre': choose one"),
        (call(circuits.patching, **PAIR, layers=[3]), "layer 3 does not exist"),
        (call(circuits.run, TOKENS, ["resid_pree"]), "did you mean resid_pre, "),
        (call(circuits.decompose, TOKENS, "blocks.0.hook_mlp_out"), "is not the residual stream"),
        (call(circuits.patching, base=TOKENS, source=OTHER[:, :9], metric=METRIC),
         "10 tokens .* source prompts 9: .* reword one until both have as many"),
        (call(circuits.patching, base=TOKENS, source=np.tile(OTHER, (2, 1))[:3], metric=METRIC),
         "3 source prompts for 2"),
        (call(circuits.patching, **{**PAIR, "metric": lambda logits: 1.0}), r"shape \(\) for 2"),
        (lambda model: circuits.patching(model, base=TOKENS, source=TOKENS,
                                         metric=METRIC).normalized,
         "the same on both prompts, so shares of the effect are undefined"),
        (lambda _: circuits.repeat_loss(TOKENS, 10), "n is 10: it must be from 1 to 9"),
        (call(circuits.ablation, base=TOKENS, metric=METRIC, mode="median"),
         "unknown ablation 'median'"),
        (call(circuits.ablation, base=TOKENS, metric=METRIC, mode="mean"), "needs source prompts"),
        (call(circuits.ablation, base=TOKENS, metric=METRIC, source=OTHER), "no use for source"),
        (call(circuits.ablated, "L1H1", source=OTHER), "no use for source: leave it out"),
        (call(circuits.ablated, "L1H1", OTHER), "unknown ablation array"),
        (call(circuits.ablated, ["L9H0"]), "layer 9 does not exist"),
        (call(circuits.ablated, ["L1H4"]), "layer 1's head 4 does not exist: there are 4"),
        (call(circuits.ablated, ["head 3"]), "'head 3' is not a head or MLP"),
        (call(circuits.ablated, ["L0H0"], "often"), "unknown ablation 'often'"),
        (call(circuits.path_patching, **PAIR, receivers=[(1, 1, "z")]), "receiver"),
        (call(circuits.path_patching, **PAIR, receivers="mlp"), "'mlp' is not a head or MLP"),
        (call(circuits.path_patching, **PAIR, receivers=[]), "no receivers"),
        (call(circuits.path_patching, **PAIR, receivers=[(1, None, "q")]), "receiver"),
        (call(circuits.composition, "X"), "unknown composition 'X'"),
        (call(circuits.ov, "L0H4"), "layer 0's head 4 does not exist"),
        (call(circuits.neuron_tokens, "L0N80"), "neuron 80 does not exist: there are 80"),
        (call(circuits.find, **PAIR, keep=0), "keep is 0"),
        (call(circuits.find, **PAIR, subsets=0), "subsets is 0"),
        (call(circuits.neuron_tokens, "L0N1", top=-1), "top is -1: it must be an integer from 1"),
        (call(circuits.singular_tokens, "L0H1", top=2.5), "top is 2.5: it must be an integer"),
        (call(circuits.singular_tokens, "L0H1", n=0), "n is 0: it must be an integer from 1 up"),
        (call(circuits.repeated_tokens, 5.0), "length is 5.0: it must be an integer"),
        (call(circuits.repeated_tokens, 5, seed=-1), "seed is -1: expected None, integers from 0"),
        (call(circuits.measure, [[1, 2]], bins=10**10), "bins is 10000000000: .* at most 1000"),
        (call(circuits.measure, [[1, 2]], seed=1.5), "seed is 1.5: expected None, integers from"),
        (call(circuits.composition, "K", seed=-1), "seed is -1: expected None, integers from 0"),
        (lambda _: circuits.bootstrap(lambda i: i.mean(axis=-1), 5, level=95),
         "level is 95: it must be a share above 0, such as 0.95"),
        (call(circuits.find, **{**PAIR, "source": OTHER[:, 1:]}), "the source prompts 9"),
        (call(circuits.patch_edges, np.ones((1, 1), bool), base=TOKENS, source=OTHER),
         r"\(1, 1\), it must be booleans of shape \(16, 40\)"),
        (call(circuits.patching, base=TOKENS, source=OTHER, metric=circuits.repeat_loss(TOKENS, 4),
              last_only=True),
         "use last_only=False"),
        (call(circuits.gradients, TOKENS[:, 1:], circuits.repeat_loss(TOKENS, 4)),
         "all 10 positions, 9 were given: give repeat_loss the tokens of the prompts"),
        (lambda model: circuits.gradients(model, TOKENS, circuits.repeated_tokens(model, 4)),
         r"metric is a Task, expected a function .* such as task.metric\(model\)"),
        (call(circuits.measure, [[1, 2]], bos=True), "has <.endoftext.>"),
        (call(circuits.repeated_tokens, 4, 0), "batch is 0"),
        (call(circuits.repeated_tokens, 4, 10**8), "batch is 100000000: .* at most 1000"),
        (call(circuits.find, base=TOKENS, source=TOKENS, metric=METRIC), "no effect to explain"),
        (call(circuits.find_edges, base=TOKENS, source=TOKENS, metric=METRIC),
         "no effect to explain"),
        (call(circuits.find_edges, **{**PAIR, "metric": lambda x: x[:, -1, 0]}), "no gradient"),
        (call(circuits.measure, "text"), "list of texts"),
        (call(circuits.measure, [[1]]), "no token that follows"),
        (call(circuits.repeated_tokens, 13), "length is 13: it must be from 2 to 12"),
        (call(circuits.indirect_object), "no vocabulary"),
        (call(circuits.heads, length=40), "length is 40"),
        (call(circuits.heads, []), "there are no tokens: give at least one"),
        (call(circuits.lens, 5), "the prompt is 5: give a text, a list of texts, or token ids"),
        (call(circuits.lens, [1, 2], [[3, 4]]), r"\[3, 4\] is a set of answers, expected"),
        (call(circuits.run, TOKENS, None), "names is None: give names of activations"),
        (call(circuits.run, TOKENS, edits={"L1H1": circuits.zero()}), "it is a node. ablated"),
        (call(circuits.mean_activation, [TOKENS[0]], (1, 1)), r"1 is not an activation of layers"),
        (call(circuits.neuron_tokens, "2.17"), "'2.17' is not a neuron: write 'L2N17'"),
        (call(circuits.run, TOKENS, edits={Z: lambda z: z}), "with two arguments: write a"),
        (call(circuits.run, TOKENS, edits={Z: circuits.zero(position=[True, False])}),
         "position is True: .* np.flatnonzero"),
        (lambda model: circuits.attribution(model, TOKENS, 1)["L1N17"],
         r"unknown part 'L1N17': ask for neurons=\[1\]"),
        (call(circuits.attribution, TOKENS, 1, neurons=[-4]), "layer -4 does not exist"),
        (lambda model: circuits.attribution(model, TOKENS, 1).top(kind="head"), "one of all, "),
        (lambda model: circuits.repeat_loss([[1, 2, 3], [4]], 1), "in rows of one length"),
        (lambda model: circuits.repeat_loss(TOKENS, 1.5), "n is 1.5: it must be an integer from 1"),
        (call(circuits.logit_difference, []), r"the answers are \[\]: give one, or one for each"),
        (call(circuits.lens, TOKENS, top=2.5), "top is 2.5: it must be an integer from 1 up"),
        (call(circuits.heads, TOKENS, length=3), "length, batch and seed are of random tokens"),
        (call(circuits.heads, length=0), "length is 0: it must be from 2"),
        (call(circuits.gradients, TOKENS, METRIC, names=["q", "result"]),
         "there is no gradient of 'result'"),
        (call(circuits.run, ["a", [1, 2]]), "mixes lists of ids and texts: give a list of texts"),
        (call(circuits.run, [[1, 2], 3]), "mixes ids and lists of ids: give a list of texts"),
        (call(circuits.measure, []), r"texts is \[\]: give a list of texts, at least one"),
        (call(circuits.measure, 5), "texts is 5: give a list of texts, at least one"),
        (call(circuits.labels_of, ["ROMEO"]), r"ids of one prompt, not \['ROMEO'\]: give a list"),
        (call(circuits.labels_of, [[1, 2], [3]]), r"not \[\[1, 2\], \[3\]\]: give a list of ids"),
        (call(circuits.labels_of, 5), "takes a text or the ids of one prompt, not 5"),
        (call(circuits.logit_difference, 1, 2, "odds"), "kind is 'odds': choose one of logit, "),
        (call(circuits.logit_difference, [[1], []], 2), r"\[\[1\], \[\]\] has an empty set"),
        (lambda model: circuits.logit_difference(model, [[1], [2]], 3)(np.zeros((3, 1, 61))),
         "2 answers were given for 3 prompts: give one, or one for each"),
        (lambda model: circuits.repeated_tokens(model, 3).metric(np.zeros((3, 1, 61))),
         r"takes the model and returns the metric: write task.metric\(model\)\(logits\)"),
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
    with pytest.raises(Error, match=r"have 3, 4 tokens.* reword them to one length, or run"):
        circuits.run(official, ["One two", "One two three"])


UNDEFINED = map_params(np.copy, MODEL.params)

UNDEFINED["blocks"][1]["attn"]["c_attn"]["w"][3, -1] = np.nan  # in a value


@pytest.mark.parametrize(
    "work",
    [
        call(circuits.lens, TOKENS), call(circuits.attribution, TOKENS, 1),
        call(circuits.heads, TOKENS), call(circuits.ablation, base=TOKENS, metric=METRIC),
        call(circuits.patching, **PAIR), call(circuits.copying_scores),
        call(circuits.find, **PAIR),
        call(circuits.find_edges, **PAIR),
    ],
)  # fmt: skip
def test_a_model_that_holds_nan_is_named_with_the_parameter(work):
    with pytest.raises(Error, match=r"NaN or infinity, as the model's blocks.1.attn.c_attn.w does"):
        work(Model(TINY, UNDEFINED))


@pytest.mark.parametrize("work", [lambda m: m.svd(), lambda m: m.eigenvalues()])
def test_a_matrix_that_holds_nan_is_one_clear_error(work):
    with pytest.raises(Error, match="factors hold NaN or infinity"):
        work(circuits.ov(Model(TINY, UNDEFINED), "L1H3"))
