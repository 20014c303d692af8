"""A program as users write it. Type checkers accept every line but those marked with `error`."""
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np

import gpt2_np
from gpt2_np import circuits


def continued(model: gpt2_np.Model, ids: list[int]) -> Generator[int, None, str]:
    reason = yield from gpt2_np.generate(model, ids, 20, temperature=0.8, top_k=40, seed=1)
    return reason


def first_token(model: gpt2_np.Model, ids: list[int]) -> int:
    tokens = gpt2_np.generate(model, ids, 20, stop=5)
    token = next(tokens)
    tokens.close()
    return token


def zero_head_3(name: str, array: np.ndarray) -> np.ndarray | None:
    if name == "blocks.1.attn.hook_z":
        array = array.copy()
        array[:, :, 3] = 0
    return array


def right(name: str | Path) -> None:
    model = gpt2_np.load(name, device="cpu", dtype="float64")
    if model.tokenizer is None:
        raise SystemExit("this model has no vocabulary")
    ids = model.tokenizer.encode("Wherefore art thou")
    text: str = model.tokenizer.decode(list(continued(model, ids)))
    for tokens in (ids, tuple(ids), np.array(ids)):
        log_p: np.ndarray = gpt2_np.score(model, tokens)
        first: int = next(gpt2_np.generate(model, tokens, 1, tap=zero_head_3))
    rows: list[list[int]] = gpt2_np.generate_batch(model, [ids, np.array(ids)], 5, stop=[5, "\n"])
    best: gpt2_np.Beam = gpt2_np.beam_search(model, ids, 5, 3, early_stopping="never", stop="\n")[0]
    beams = gpt2_np.beam_search_batch(model, [ids, np.array(ids)], 5, n_results=2, stop=[5])
    total: float = best.log_p + sum(beam.score for beam in beams[0])
    pieces: str = "".join(gpt2_np.stream(model, "ROMEO.", 5, stop="\n", top_p=0.9, seed=None))
    print(gpt2_np.complete(model, ids, n_tokens=5, min_p=0.1, tap=zero_head_3), text, pieces, rows)
    logits = gpt2_np.forward(model.params, model.config, np.array(ids), tap=zero_head_3)
    print(gpt2_np.sample(logits[-1], top_k=3, previous=np.array(ids)) + first, log_p.sum())

    seen = circuits.run(model, "But soft", ["z"], edits={"blocks.0.attn.hook_z": circuits.zero()})
    several = {"z": [circuits.zero(1), circuits.zero(2)]}
    tap = circuits.as_tap(model, [several, zero_head_3])
    rows = gpt2_np.generate_batch(model, [ids], 5, tap=tap)
    log_p = gpt2_np.score_batch(model, [ids], tap=zero_head_3)[0]
    steered = circuits.run_generate(model, "But soft", 5, "z", edits=zero_head_3, temperature=1.0)
    vector: np.ndarray = circuits.steering_vector(model, [("a", " b")], "blocks.0.hook_resid_pre")
    off = circuits.ablated(model, ["L0H1", "L0N17"])
    circuits.attribution(model, ids, " art", edits=[off, {"resid_mid": circuits.add(vector, 0.5)}])
    print(steered.logits, circuits.mean_activation(model, ["a", ids], "blocks.0.attn.hook_z"))
    pattern: np.ndarray = circuits.run(model, ids, "blocks.0.attn.hook_pattern")["pattern"]
    kept = circuits.run(model, ids, "resid_post")
    last: np.ndarray = kept["resid_post", -1]
    best_tokens = circuits.top_tokens(model, last, 3, layer_norm=True)
    along = circuits.attribution(model, ids, direction=vector, position=None, neurons="all")
    print(len(kept), kept.stack("resid_post"), best_tokens.texts, along["L1N17"], along.layers())
    print(circuits.decompose(model, ids, "1_mid").project(vector, normalized=False).shape)
    task = circuits.repeated_tokens(model, 5, 2)
    sweep = circuits.patching(model, "z", **task.denoising(model), layers=1, by_position=True)
    estimate = circuits.attribution_patching(model, **task.denoising(model), by_position=True)
    losses: circuits.LowerIsBetter = circuits.repeat_loss(task.clean.tokens, 4)
    print(losses.lower_is_better, sweep["L1H1"], circuits.find(model, **task.noising(model)).kept)
    most: tuple[str, float] = sweep.top(3)[0]
    traced: list[circuits.TraceRow] = circuits.trace(model, "But soft").rows
    print(traced[-1].einsum, circuits.trace(model, ids).markdown(every=True))
    print(circuits.compare(estimate, sweep).rank_correlation, most, total)
    pair: dict[str, Any] = {"base": task.clean, "source": task.corrupted}
    paths = circuits.path_patching(model, "mlps", "L1H1.k", metric=task.metric(model), **pair)
    without = circuits.ablation(model, base=task.clean, metric=task.metric(model), mode="zero")
    edge: tuple[tuple[str, str], float] = circuits.edge_attribution(
        model, metric=task.metric(model), **pair).top(1)[0]
    print(paths.kind, without.kind, circuits.patch_edges(model, [edge[0]], **pair).shape)
    print(circuits.ov(model, "L1H1").norm(), circuits.neuron_tokens(model, "L2N17")["reads"])
    print(gpt2_np.complete(model, "ROMEO.", 5, bos=True), gpt2_np.score(model, ids, bos=True))
    for example in circuits.max_activating(model, (text for text in ["But soft", ids]), "L1N17"):
        print(example.value, example.position)
    print(circuits.histogram(model, ["But soft"], (1, 1), bins=[0, 1.5, 9]).counts.sum())
    surveyed = circuits.survey({100: lambda: gpt2_np.load(name)}, ["But soft", ids])
    print(surveyed.profiles[0].growth, circuits.survey([model], [ids]).by_layer("norm").shape)
    print(circuits.survey(model, [ids]), circuits.survey({"shipped": model}, [ids]).table())
    print(circuits.report(model, "But soft", answer=" what", title="soft").page)
    whole: circuits.Report = circuits.report(model, ids)
    print(len(whole.page))
    table = circuits.lens(model, np.array([ids, ids]), answer=" art", top=3).probability
    scores = circuits.heads(model, ["But soft", "What light through yonder"])
    for one in scores if isinstance(scores, list) else [scores]:
        print(one.current_token.max(), circuits.labels_of(model, one.tokens[0]))
    metric = circuits.logit_difference(model, [[" the", " a"]], {" to"}, kind="probability")
    print(circuits.gradients(model, ids, circuits.repeat_loss(np.array(ids), 2)).keys())
    print(metric.gradient(seen.logits), circuits.log_probability(model, " the")(seen.logits))
    print(table[-1], seen.logits.shape, pattern.shape, sweep.normalized, first_token(model, ids))


def wrong(model: gpt2_np.Model, ids: list[int]) -> None:
    gpt2_np.load("124M", dtype="float31")  # error
    gpt2_np.load("124M", device="gpu")  # error
    gpt2_np.generate(model, ids, 20, temprature=1)  # error
    gpt2_np.generate(model, ids, 20, temperature="hot")  # error
    gpt2_np.generate(model, "a text", 20)  # error
    gpt2_np.generate_batch(model, [ids], 20, top_kk=3)  # error
    gpt2_np.generate_batch(model, [ids], 20, tap="z")  # error
    gpt2_np.beam_search(model, ids, 20, early_stopping="always")  # error
    gpt2_np.beam_search_batch(model, [ids], 20, temperature=1.0)  # error
    gpt2_np.stream(model, "ROMEO.", top_kk=3)  # error
    gpt2_np.complete(model, "ROMEO.", temperature="hot")  # error
    text: str = gpt2_np.score(model, ids)  # error
    token: str = next(gpt2_np.generate(model, ids, 20))  # error
    model.tokenizer.encode(text + token)  # error
    if model.tokenizer is not None:
        model.tokenizer.encodee("ROMEO.")  # error
    circuits.run(model, ids, edit={})  # error
    circuits.patching(model, "z", base=ids, source=ids)  # error
    circuits.ablation(model, base=ids, metric=len, by_positions=True)  # error
    circuits.lens(model, 0.5)  # error
    circuits.report(model, ["But soft", "What light"])  # error
    print(circuits.lens(model, [ids, ids]).probability)  # error
    circuits.heads(model, "ROMEO.", seeed=1)  # error
    circuits.logit_difference(model, 5, 6, kind="odds")  # error
    circuits.max_activating(model, 5, "L1N17")  # error
    circuits.survey("124M", ["But soft"])  # error
    circuits.attribution_patching(model, ids, ids, ids)  # error
    circuits.attribution(model, ids, 3, direction="up")  # error
    print(circuits.run(model, ids).logitts)  # error
    print(gpt2_np.bpe.Tokeniser, model.n_voc)  # error
