"""Forty everyday tasks of a researcher who looks inside a model, each in a few lines, and checked.

    python examples/forty_tasks.py [model]

A function is a task: its name says which, its first lines do it, the rest checks the result: by
hand, in plain NumPy and float64 (`agree`), or by a fact that must hold (`holds`). Copy what you
need. Default model: shakespeare, whose facts some of these are. Pictures need matplotlib.
"""
import argparse
import functools
import re
import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).resolve().parent.parent))  # for a clone that is not installed

import gpt2_np
from gpt2_np import circuits
from gpt2_np.circuits import pictures
from gpt2_np.gpt2_np import map_leaves

TEXT = "ROMEO:\nBut soft, what light through yonder window breaks?"
TEXTS = ("ROMEO:\nBut soft, what light", "JULIET:\nAy me!", "First Citizen:\nSpeak, speak.")


def see_which_words_may_come_next(model):
    seen = circuits.run(model, TEXT, "resid_post")
    likely = circuits.top_tokens(model, seen["resid_post", -1][0, -1], 3, layer_norm=True)
    agree(likely.logits, np.sort(by_hand(model, seen.tokens[0])["logits"][-1])[:-4:-1])
    return likely.texts


def read_the_attention_of_one_layer_and_the_stream_of_all(model):
    seen = circuits.run(model, TEXT, ["pattern", "resid_post"])
    pattern, streams = seen["pattern", 1], seen.stack("resid_post")  # [b, h, q, k], [l, b, q, d]
    hand = by_hand(model, seen.tokens[0])
    agree(pattern[0], hand["blocks.1.attn.hook_pattern"])
    agree(streams[:, 0], [hand[name] for name in seen if name.endswith("resid_post")])
    return np.linalg.norm(streams[:, 0, -1], axis=-1)


def see_at_which_layer_an_answer_appears_in_prompts_of_any_length(model):
    starts = ["MENENIUS", "DUKE VINCENTIO", "LADY MACBETH"]
    lenses = circuits.lens(model, starts, ":", position=-1)
    first = [lens.points[(lens.rank[:, 0, 0] == 0).argmax()] for lens in lenses]
    hand = by_hand(model, lenses[1].tokens[0])
    p = softmax(read(model, hand["blocks.2.hook_resid_pre"][-1]))
    agree(lenses[1].probability[4, 0, 0], p[circuits.token_id(model, ":")])
    holds(all(lens.rank[-1, 0, 0] == 0 for lens in lenses))
    return first


def see_which_parts_speak_for_an_answer(model):
    names = circuits.name_repetition(model, 8)
    parts = circuits.attribution(model, names.clean, names.answers, names.wrong)
    agree(parts.total, names.metric(model)(circuits.run(model, names.clean).logits))
    hand = by_hand(model, names.clean.tokens[0])
    written = hand["blocks.1.attn.hook_z"][-1, 1] @ matrices(model, 1, 1)[3]
    agree(parts["L1H1"][0], written @ reading_direction(model, hand, names))
    return parts.top(3)


def follow_the_difference_of_two_logits_as_the_stream_grows(model):
    names = circuits.name_repetition(model, 8)
    parts = circuits.attribution(model, names.clean, names.answers, names.wrong, position=None)
    points, logits = parts.accumulated()  # [point, batch, position]
    hand = by_hand(model, names.clean.tokens[0])
    stream = hand["blocks.2.hook_resid_pre"][-1]
    agree(logits[points.index("2_pre")][0, -1], stream @ reading_direction(model, hand, names))
    return dict(zip(points, logits[:, 0, -1].tolist(), strict=True))


def see_which_neurons_of_all_layers_speak_for_an_answer(model):
    names = circuits.name_repetition(model, 8)
    parts = circuits.attribution(model, names.clean, names.answers, names.wrong, neurons="all")
    hand = by_hand(model, names.clean.tokens[0])
    w = exact(model)["blocks"][2]["mlp"]["c_proj"]["w"]
    agree(parts["L2N17"][0], hand["blocks.2.mlp.hook_post"][-1, 17] * w[17]
          @ reading_direction(model, hand, names))
    return [cell for cell in parts.top(20) if "N" in cell[0]][:3]


def see_from_which_token_a_head_brought_the_answer(model):
    names = circuits.name_repetition(model, 1)
    parts = circuits.attribution(model, names.clean, names.answers, names.wrong, by_source=True)
    moved = parts.by_source["L1H1"]  # [batch, key]
    tokens = names.clean.tokens[0]
    hand = by_hand(model, tokens)
    share, v = hand["blocks.1.attn.hook_pattern"][1, -1], hand["blocks.1.attn.hook_v"][:, 1]
    agree(moved[0], share * (v @ matrices(model, 1, 1)[3] @ reading_direction(model, hand, names)))
    holds(tokens[moved[0].argmax()] == names.answers[0])
    return circuits.labels_of(model, tokens[[moved[0].argmax()]])


def project_what_each_part_writes_onto_a_direction(model):
    name = "blocks.3.hook_resid_pre"
    questions = circuits.steering_vector(model, [("Is it so?\n", "It is so.\n")], name)
    parts = circuits.decompose(model, TEXT, name, position=-1)
    asked = parts.project(questions, normalized=False)
    hand = by_hand(model, parts.tokens[0])
    agree(asked.sum(axis=0)[0, 0], hand[name][-1] @ questions)
    return parts.labels[asked[:, 0, 0].argmax()]


def weigh_one_set_of_answers_against_another(model):
    vowels, others = [[" a", " I", " o"]], [[" t", " th"]]
    metric = circuits.logit_difference(model, vowels, others, kind="probability")
    seen = circuits.run(model, "What is this but")
    p = softmax(by_hand(model, seen.tokens[0])["logits"][-1])
    ids = [[circuits.token_id(model, word) for word in words] for words in (*vowels, *others)]
    agree(metric(seen.logits)[0], p[ids[0]].sum() - p[ids[1]].sum())
    return metric(seen.logits)


def find_the_induction_heads(model):
    found = circuits.heads(model)
    rows = circuits.repeated_tokens(model, 50, 4).clean.tokens
    patterns = [by_hand(model, row)["blocks.1.attn.hook_pattern"][1] for row in rows]
    agree(found.induction[1, 1], np.mean([np.diag(one, -49)[2:].mean() for one in patterns]))
    return found.top("induction", 3)


def find_heads_that_look_one_token_back_in_texts_of_any_length(model):
    each = circuits.heads(model, TEXTS)
    patterns = [by_hand(model, one.tokens[0])["blocks.0.attn.hook_pattern"][0] for one in each]
    agree([one.previous_token[0, 0] for one in each],
          [np.diag(pattern, -1).mean() for pattern in patterns])
    return [one.top("previous_token", 1) for one in each]


def cut_single_edges_of_attention(model):
    words = circuits.labels_of(model, TEXT)
    light, wind = words.index(" light"), words.index(" wind")
    cut = circuits.knock_out([(wind, light), (wind + 1, light)], head=1)
    seen = circuits.run(model, TEXT, edits={"blocks.1.attn.hook_attn_scores": cut})
    by_me = {"blocks.1.attn.hook_attn_scores": put((1, [wind, wind + 1], light), -np.inf)}
    agree(seen.logits[0], by_hand(model, seen.tokens[0], by_me)["logits"])
    return repr(cut)


def run_a_prompt_with_the_attention_of_another(model):
    names = circuits.name_repetition(model, 1)
    patterns = circuits.run(model, names.corrupted, "pattern")
    seen = circuits.run(model, names.clean, edits=patterns)
    logits = by_hand(model, names.clean.tokens[0], {
        name: put(..., array[0]) for name, array in patterns.items()})["logits"]
    agree(seen.logits[0], logits)
    return names.metric(model)(seen.logits)


# --- changing a run --------------------------------------------------------------------


def measure_the_loss_without_the_induction_heads(model):
    repeated = circuits.repeated_tokens(model, 20, 4)
    loss = circuits.repeat_loss(repeated.clean.tokens, 19)  # of the second halves
    without = circuits.ablated(model, ["L1H1", "1.2", (1, 3)])
    before, after = (float(loss(circuits.run(model, repeated.clean, edits=edits).logits).mean())
                     for edits in (None, without))
    by_me = {"blocks.1.attn.hook_z": put(np.s_[:, 1:4], 0)}
    logits = [by_hand(model, row, by_me)["logits"] for row in repeated.clean.tokens]
    agree(after, loss(np.stack(logits)).mean())
    holds(after > before + 1)
    return before, after


def see_who_takes_over_when_the_strongest_heads_are_gone(model):
    names = circuits.name_repetition(model, 8)
    gone = circuits.ablated(model, ["L1H1", "L1H2"])
    question = names.clean, names.answers, names.wrong
    whole = circuits.attribution(model, *question)
    without = circuits.attribution(model, *question, edits=gone)
    rise = (without.heads() - whole.heads()).mean(axis=-1)
    holds(np.allclose(without["L1H1"], 0))
    agree(without.total, names.metric(model)(circuits.run(model, names.clean, edits=gone).logits))
    return best(rise, model)


def put_in_the_mean_of_a_head_over_many_texts(model):
    mean = circuits.mean_activation(model, TEXTS, "blocks.1.attn.hook_z")  # [head, d_head]
    seen = circuits.run(model, TEXT, edits={"blocks.1.attn.hook_z": circuits.patch(mean, head=1)})
    rows = [circuits.prompts(model, text).tokens[0] for text in TEXTS]
    z = np.concatenate([by_hand(model, row)["blocks.1.attn.hook_z"][1:] for row in rows])
    agree(mean, z.mean(axis=0))
    by_me = {"blocks.1.attn.hook_z": put(np.s_[:, 1], mean[1])}
    agree(seen.logits[0], by_hand(model, seen.tokens[0], by_me)["logits"])
    return f"a mean of shape {mean.shape}"


def switch_off_one_neuron(model):
    seen = circuits.run(model, TEXT, edits=circuits.ablated(model, "L2N17"))
    by_me = {"blocks.2.mlp.hook_post": put(np.s_[:, 17], 0)}
    agree(seen.logits[0], by_hand(model, seen.tokens[0], by_me)["logits"])
    return np.abs(seen.logits - circuits.run(model, TEXT).logits).max()


def patch_one_head_at_one_position(model):
    names = circuits.name_repetition(model, 1)
    name = "blocks.1.attn.hook_z"
    source = circuits.run(model, names.clean, name)
    patch = circuits.patch(source[name], head=1, position=-1)
    seen = circuits.run(model, names.corrupted, edits={name: patch})
    by_me = {name: put((-1, 1), source[name][0, -1, 1])}
    agree(seen.logits[0], by_hand(model, names.corrupted.tokens[0], by_me)["logits"])
    return names.metric(model)(seen.logits)


def make_several_edits_of_one_activation_in_order(model):
    name = "blocks.2.hook_resid_pre"
    edits = {name: [circuits.zero(position=2), circuits.add(0.5, position=[2, 3]),
                    lambda name, stream: 2 * stream]}
    seen = circuits.run(model, TEXT, edits=edits)

    def by_me(stream):
        stream[2] = 0
        stream[2:4] += 0.5
        return 2 * stream

    agree(seen.logits[0], by_hand(model, seen.tokens[0], {name: by_me})["logits"])
    return edits[name][:2]


def generate_a_batch_with_a_hook_of_my_own(model):
    name = "blocks.2.hook_resid_pre"
    tap = circuits.as_tap(model, {name: lambda name, stream: 2 * stream})
    prompts = [model.tokenizer.encode(text) for text in TEXTS]
    rows = gpt2_np.generate_batch(model, prompts, 8, tap=tap)
    tokens = list(prompts[1])
    for _ in range(8):
        hand = by_hand(model, tokens, {name: lambda stream: 2 * stream})
        tokens.append(int(hand["logits"][-1].argmax()))
    holds(rows[1] == tokens[-8:])
    return model.tokenizer.decode(rows[1])


def steer_what_the_model_writes(model):
    name = "blocks.3.hook_resid_pre"
    pairs = [("Who comes here? Where is he? How?\n", "He comes here. There he is. So.\n"),
             ("Is it so? Art thou well? Why?\n", "It is so. Thou art well. Then.\n")]
    ask = circuits.add(circuits.steering_vector(model, pairs, name), 2, position=slice(-1, None))
    prompts = [model.tokenizer.encode("MENENIUS:\n")] * 6
    before, after = (
        str([model.tokenizer.decode(row) for row in gpt2_np.generate_batch(
            model, prompts, 25, temperature=0.8, seed=0, tap=tap)]).count("?")
        for tap in (None, circuits.as_tap(model, {name: ask})))
    holds(after > 2 * before)
    return f"{after} question marks instead of {before}"


def keep_activations_while_the_model_writes(model):
    off = circuits.ablated(model, "L1H1")
    written = circuits.run_generate(model, "ROMEO:\nBut soft", 12, "pattern", edits=off)
    again = circuits.run(model, written.tokens, "pattern", edits=off)
    agree(written["pattern", 3], again["pattern", 3])
    holds((again.logits[0, -13:-1].argmax(axis=-1) == written.tokens[0, -12:]).all())
    return model.tokenizer.decode(written.tokens[0, -12:])


# --- sweeps and circuits ----------------------------------------------------------------


def patch_the_stream_at_every_layer_and_position(model):
    names = circuits.name_repetition(model, 2)
    sweep = circuits.patching(model, "resid_pre", **names.denoising(model))
    name, position = "blocks.2.hook_resid_pre", names.clean.tokens.shape[1] - 1
    new = circuits.run(model, names.clean, name)[name][0, position]
    logits = by_hand(model, names.corrupted.tokens[0], {name: put(position, new)})["logits"]
    agree(sweep.per_prompt[2, position, 0], names.metric(model)(np.stack([logits] * 2))[0])
    return sweep.top(3)


def see_which_heads_are_enough_and_which_are_needed(model):
    names = circuits.name_repetition(model, 3)
    enough = circuits.patching(model, "z", **names.denoising(model))
    needed = circuits.patching(model, "z", **names.noising(model))
    holds((enough.kind, needed.kind) == ("denoising", "noising"))
    agree(enough.base, needed.source)
    return *enough.top(2), *needed.top(2)


def patch_pairs_of_prompts_of_different_lengths(model):
    short, long = (circuits.repeated_tokens(model, length, 2) for length in (8, 12))
    answers, wrong = [*short.answers, *long.answers], [*short.wrong, *long.wrong]
    sweep = circuits.patching(model, "z", base=[*short.corrupted.tokens, *long.corrupted.tokens],
                              source=[*short.clean.tokens, *long.clean.tokens],
                              metric=circuits.logit_difference(model, answers, wrong))
    alone = [circuits.patching(model, "z", **one.denoising(model)).per_prompt
             for one in (short, long)]
    agree(sweep.per_prompt, np.concatenate(alone, axis=-1))
    return sweep.top(3)


def replace_every_head_by_its_mean(model):
    names = circuits.name_repetition(model, 3)
    clean, corrupted, metric = names.clean, names.corrupted, names.metric(model)
    sweep = circuits.ablation(model, "z", mode="mean", **names.noising(model))
    name = "blocks.1.attn.hook_z"
    by_me = {name: put(np.s_[:, 1], np.mean(
        [by_hand(model, row)[name][:, 1] for row in corrupted.tokens], axis=0))}
    logits = [by_hand(model, row, by_me)["logits"] for row in clean.tokens]
    agree(sweep.per_prompt[1, 1], metric(np.stack(logits)))
    return sweep.top(3)


def patch_every_neuron_of_a_layer(model):
    names, name = circuits.name_repetition(model, 1), "blocks.2.mlp.hook_post"
    clean, corrupted, metric = names.clean, names.corrupted, names.metric(model)
    sweep = circuits.patching(model, name, **names.denoising(model))
    by_me = {name: put(np.s_[:, 17], by_hand(model, clean.tokens[0])[name][:, 17])}
    logits = by_hand(model, corrupted.tokens[0], by_me)["logits"]
    agree(sweep.per_prompt[2, 17], metric(logits[None]))
    return sweep.top(3)


def estimate_all_patches_from_gradients(model):
    names = circuits.name_repetition(model, 2)
    both = {"base": names.corrupted, "source": names.clean, "metric": names.metric(model)}
    estimate = circuits.attribution_patching(model, "z", **both, steps=2)
    beside = circuits.compare(estimate, circuits.patching(model, "z", **both))
    holds(beside.rank_correlation > 0.5)
    return repr(beside)


def see_what_small_changes_would_do(model):
    names = circuits.name_repetition(model, 1)
    slopes = circuits.gradients(model, names.clean, names.metric(model), names="resid_pre")
    name, step = "blocks.2.hook_resid_pre", 1e-4
    direction = np.random.default_rng(0).normal(size=slopes[name].shape[1:])
    up, down = (by_hand(model, names.clean.tokens[0], {name: lambda x, s=s: x + s * direction})
                for s in (step, -step))
    rise = np.stack([up["logits"] - down["logits"]])
    agree((slopes[name] * direction).sum(), names.metric(model)(rise)[0] / 2 / step)
    return np.linalg.norm(slopes[name][0], axis=-1).max()


def see_who_feeds_the_keys_of_an_induction_head(model):
    repeated = circuits.repeated_tokens(model, 8, 1)
    clean, corrupted, metric = repeated.clean, repeated.corrupted, repeated.metric(model)
    both = {"base": clean, "source": corrupted, "metric": metric}
    sweep = circuits.path_patching(model, "heads", "L1H1.k", **both, through_mlps=False)
    mlp = circuits.path_patching(model, "MLP0", ["L1H1.k", "L1H2.k"], **both)
    old, new = (by_hand(model, given.tokens[0]) for given in (clean, corrupted))
    change = new["blocks.0.attn.hook_z"][:, 0] - old["blocks.0.attn.hook_z"][:, 0]
    stream = old["blocks.1.hook_resid_pre"] + change @ matrices(model, 0, 0)[3]
    block = exact(model)["blocks"][1]
    b_k = block["attn"]["c_attn"]["b"].reshape(3, model.config.n_head, -1)[1, 1]
    k = norm(stream, block["ln_1"]) @ matrices(model, 1, 1)[1] + b_k
    patched = by_hand(model, clean.tokens[0], {"blocks.1.attn.hook_k": put(np.s_[:, 1], k)})
    agree(sweep.per_prompt[0, 0], metric(patched["logits"][None]))
    holds(sweep.top(1)[0][0] == "L0H0")
    return *sweep.top(2), *mlp.top()


def find_a_small_circuit_that_does_the_task(model):
    repeated = circuits.repeated_tokens(model, 10, 2)
    clean, corrupted, metric = repeated.clean, repeated.corrupted, repeated.metric(model)
    found = circuits.find(model, keep=0.8, **repeated.noising(model))
    rest = [node for node in circuits.node_names(model.config) if node not in found.kept]
    edits = circuits.ablated(model, rest, "resample", source=corrupted)
    kept = metric(circuits.run(model, clean, edits=edits).logits).mean()
    whole, none = found.base.mean(), found.none.mean()
    agree(found.share.value, (kept - none) / (whole - none))
    holds("L1H1" in found.kept and 0.8 <= found.share.value <= 1.2)
    return found.kept, str(found.share)


def rank_the_edges_between_parts_and_patch_one(model):
    repeated = circuits.repeated_tokens(model, 10, 2)
    both = {"base": repeated.clean, "source": repeated.corrupted}
    metric = repeated.metric(model)
    scores = circuits.edge_attribution(model, **both, metric=metric)
    logits = circuits.patch_edges(model, [("L0H0", "L1H1.k")], **both)
    path = circuits.path_patching(model, "L0H0", "L1H1.k", **both, metric=metric,
                                  through_mlps=False)
    agree(metric(logits), path.per_prompt.reshape(-1))
    return scores.top(3)


# --- weights ---------------------------------------------------------------------------


def read_the_two_circuits_of_a_head_in_tokens(model):
    copies = circuits.copying_scores(model)[1, 1]
    ov, qk = circuits.full_ov(model, "L1H1"), circuits.full_qk(model, "L0H3")
    sea, land = ([circuits.token_id(model, word)] for word in (" sea", " land"))
    wte, (_, _, w_v, w_o), (w_q, w_k, _, _) = (
        exact(model)["wte"], matrices(model, 1, 1), matrices(model, 0, 3))
    agree(ov.entries(sea, land), wte[sea] @ w_v @ w_o @ wte[land].T)
    agree(qk.entries(sea, land), wte[sea] @ w_q @ w_k.T @ wte[land].T)
    return f"L1H1 copies: {copies:.2f}"


def see_which_heads_are_built_on_one_another(model):
    keys = circuits.composition(model, "K", baseline=False)
    (_, _, w_v, w_o), (w_q, w_k, _, _), size = (
        matrices(model, 0, 0), matrices(model, 1, 1), np.linalg.norm)
    agree(keys.values[0, 0, 1, 1],  # [layer, head, later layer, later head]
          size(w_v @ w_o @ w_k @ w_q.T) / size(w_v @ w_o) / size(w_q @ w_k.T))
    return keys.top(3)


def read_a_neuron_and_the_directions_of_a_head_in_tokens(model):
    neuron = circuits.neuron_tokens(model, "L2N17", top=3)
    directions = circuits.singular_tokens(model, "L1H1", n=2, top=3)
    written = exact(model)["blocks"][2]["mlp"]["c_proj"]["w"][17]
    agree(neuron["raises"].logits, np.sort(exact(model)["wte"] @ written)[:-4:-1])
    _, _, w_v, w_o = matrices(model, 1, 1)
    agree(directions[0]["value"], np.linalg.svd(w_v @ w_o)[1][0])
    return neuron["raises"].texts


# --- over texts ------------------------------------------------------------------------


def find_the_texts_that_excite_a_neuron_most(model):
    found = circuits.max_activating(model, TEXTS, "L2N17", top=2)
    spread = circuits.histogram(model, TEXTS, "L2N17")
    rows = [circuits.prompts(model, text).tokens[0] for text in TEXTS]
    values = [by_hand(model, row)["blocks.2.mlp.hook_post"][1:, 17] for row in rows]
    highest = max(range(3), key=lambda i: values[i].max())
    holds((found[0].text, found[0].position) == (highest, 1 + values[highest].argmax()))
    agree((spread.mean, spread.max), (np.concatenate(values).mean(), found[0].value))
    return found[0].line()


def fit_a_probe_on_activations(model):
    text = gpt2_np.complete(model, "ROMEO:\n", 150, temperature=0.9, seed=3)
    seen = circuits.run(model, text, "resid_post")
    words = circuits.labels_of(model, text)[1:]
    x, y = seen["resid_post", 1][0, 1:-1], np.array([word.startswith("\n") for word in words[1:]])
    held_out = np.arange(len(y)) % 3 == 0
    w = np.linalg.solve(x[~held_out].T @ x[~held_out] + np.eye(x.shape[1]),
                        x[~held_out].T @ (y - y.mean())[~held_out])
    right = ((x[held_out] @ w > 0.5 - y.mean()) == y[held_out]).mean()
    holds(right > max(y[held_out].mean(), 1 - y[held_out].mean()))
    return f"line ends foreseen in {right:.0%} of {held_out.sum()} held-out tokens"


def measure_the_model_with_and_without_a_head(model):
    whole, without = (circuits.measure(model, TEXTS, edits=edits)
                      for edits in (None, circuits.ablated(model, "L0H0")))
    rows = [circuits.prompts(model, text).tokens[0] for text in TEXTS]
    losses = [-np.log(softmax(by_hand(model, row)["logits"]))[np.arange(len(row) - 1), row[1:]]
              for row in rows]
    agree(whole.loss.value, np.concatenate(losses).mean())
    return str(whole.loss), str(without.loss)


def look_at_the_results(model):
    names = circuits.name_repetition(model, 1)
    sweep = circuits.patching(model, "z", **names.denoising(model))
    try:
        figures = [pictures.plot_map(sweep), pictures.plot_lens(circuits.lens(model, TEXT), model),
                   pictures.plot_map(circuits.heads(model)), pictures.plot_bars(sweep)]
    except gpt2_np.Error as error:
        holds("pip install matplotlib" in str(error))
        return str(error)
    holds(all(figure.axes for figure in figures))
    return f"{len(figures)} figures"


def read_one_sentence_after_a_mistake(model):
    sentences = []
    for mistake in (lambda: circuits.run(model, TEXT, "patern"),
                    lambda: circuits.ablated(model, "L9H9"),
                    lambda: circuits.lens(model, TEXT, "Romeo"),
                    lambda: gpt2_np.complete(model, TEXT, tap=circuits.ablated(model, "L1H1"))):
        try:
            mistake()
        except gpt2_np.Error as error:
            sentences.append(str(error))
    holds(len(sentences) == 4 and "did you mean pattern?" in sentences[0])
    return sentences[0]


# Every function above is a task.
TASKS = [one for one in list(globals().values()) if getattr(one, "__module__", "") == __name__]


# --- the checks ------------------------------------------------------------------------


def agree(ours, by_me):
    """Raise AssertionError unless two results differ by at most 1e-4 of the largest number."""
    ours, by_me = np.asarray(ours, float), np.asarray(by_me, float)
    if ours.shape != by_me.shape or not np.abs(ours - by_me).max() <= 1e-4 * np.abs(by_me).max():
        raise AssertionError(f"{ours} is away from the calculation by hand, {by_me}")


def holds(fact):
    if not fact:
        raise AssertionError("a fact does not hold")


def by_hand(model, tokens, changes=None):
    """Return the activations and "logits" of one prompt by name, in plain NumPy and float64.

    `changes` maps names of activations to functions that change or replace them.
    """
    params, config, seen = exact(model), model.config, {}
    n, shape = len(tokens), (len(tokens), 3, config.n_head, config.n_embd // config.n_head)

    def see(name, array):
        changed = (changes or {}).get(name, lambda array: None)(array)
        seen[name] = array if changed is None else changed
        return seen[name]

    x = params["wte"][tokens] + params["wpe"][:n]
    for layer, block in enumerate(params["blocks"]):
        at, attn, mlp = f"blocks.{layer}", block["attn"], block["mlp"]
        x = see(f"{at}.hook_resid_pre", x)
        qkv = norm(x, block["ln_1"]) @ attn["c_attn"]["w"] + attn["c_attn"]["b"]
        q, k, v = (see(f"{at}.attn.hook_{kind}", qkv.reshape(shape)[:, i].copy())
                   for i, kind in enumerate("qkv"))
        scores = np.einsum("qhe,khe->hqk", q, k) / shape[-1] ** 0.5
        scores = see(f"{at}.attn.hook_attn_scores", np.where(np.tri(n) > 0, scores, -np.inf))
        pattern = see(f"{at}.attn.hook_pattern", softmax(scores))
        z = see(f"{at}.attn.hook_z", np.einsum("hqk,khe->qhe", pattern, v))
        x = x + z.reshape(n, -1) @ attn["c_proj"]["w"] + attn["c_proj"]["b"]
        pre = norm(x, block["ln_2"]) @ mlp["c_fc"]["w"] + mlp["c_fc"]["b"]
        gelu = 0.5 * pre * (1 + np.tanh((2 / np.pi) ** 0.5 * (pre + 0.044715 * pre**3)))
        post = see(f"{at}.mlp.hook_post", gelu)
        x = see(f"{at}.hook_resid_post", x + post @ mlp["c_proj"]["w"] + mlp["c_proj"]["b"])
    return {**seen, "logits": read(model, x)}


def put(index, value):
    """Return a function that changes an array there."""
    return lambda array: array.__setitem__(index, value)


@functools.cache
def exact(model):
    """Return the parameters in float64."""
    return map_leaves(lambda _, array: np.asarray(array, float), model.params)


def norm(x, ln):
    x = x - x.mean(axis=-1, keepdims=True)
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-5) * ln["g"] + ln["b"]


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def read(model, stream):
    return norm(stream, exact(model)["ln_f"]) @ exact(model)["wte"].T


def matrices(model, layer, head):
    """Return a head's W_Q, W_K, W_V [d, e] and W_O [e, d]."""
    attn, e = exact(model)["blocks"][layer]["attn"], model.config.n_embd // model.config.n_head
    at = slice(e * head, e * head + e)
    reading = (w[:, at] for w in np.split(attn["c_attn"]["w"], 3, axis=1))
    return *reading, attn["c_proj"]["w"][at]


def reading_direction(model, hand, names):
    """Return the direction [d] in which the last stream is read for answer minus wrong."""
    stream = hand[f"blocks.{model.config.n_layer - 1}.hook_resid_post"][-1]
    scale = np.sqrt(stream.var() + 1e-5)
    answer, wrong = exact(model)["wte"][[names.answers[0], names.wrong[0]]]
    direction = (answer - wrong) * exact(model)["ln_f"]["g"] / scale
    return direction - direction.mean()


def best(scores, model):
    """Return the three heads with the highest scores [layer, head]."""
    order = np.argsort(-scores.ravel())[:3]
    return [f"{circuits.head_names(model.config)[i]} {scores.ravel()[i]:.2f}" for i in order]


def main():
    parser = argparse.ArgumentParser(description="Forty everyday tasks, each checked.")
    parser.add_argument("model", nargs="?", default="shakespeare", help='or "124M", a path, a URL')
    args = parser.parse_args()
    model, failed = gpt2_np.load(args.model), 0
    for number, function in enumerate(TASKS, 1):
        try:
            result = " ".join(str(function(model)).split())
            result = re.sub(r"\d+\.\d\d+", lambda found: f"{float(found[0]):.2f}", result)
        except Exception as error:
            result, failed = f"FAILED: {error}", failed + 1
        print(f"{number:2d} {function.__name__.replace('_', ' ')}: {result[:200]}")
    if failed:
        sys.exit(f"forty_tasks: {failed} of {len(TASKS)} tasks failed")


if __name__ == "__main__":
    try:
        main()
    except gpt2_np.Error as error:  # one sentence: what was wrong, and what to do
        sys.exit(f"forty_tasks: {error}")
