"""Steering: vectors from activations, and text that is generated while they are added.

The difference of two prompts' activations is a direction that a model may use for what they differ
in. If adding it to the stream moves the text that is generated that way, it does. The mean over
many texts says least about any of them, so it stands for "nothing" in ablations. (Turner et al.
2023, "Activation Addition"; Rimsky et al. 2024, "Steering Llama 2 via Contrastive Activation
Addition"; Wang et al. 2022, section 2.1, on means.)
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backend import to_host
from ..bpe import shown
from ..gpt2_np import Error, Model, Tokens
from ..inference.generation import generate
from .activations import Run, recorded, run
from .inputs import Prompts, PromptsLike, check_count, check_numbers, prompts
from .interventions import Edits, EditsLike, Place, as_tap
from .names import BY_QUERY, kind_of, matching_names
from .texts import one_activation, passages

if TYPE_CHECKING:
    from typing import Unpack

    from ..inference.options import GenerationOptions


def steering_vector(
    model: Model,
    pairs: Sequence[tuple[str | Tokens, str | Tokens]],
    name: str,
    *,
    edits: EditsLike | None = None,
    bos: bool | None = None,
) -> np.ndarray:
    """Return the mean difference of an activation at the ends of two prompts: toward the first.

    `pairs` are (prompt, opposite) as texts or ids; the two need not be of one length. `name` is one
    activation, such as "blocks.6.hook_resid_pre", whose vector [d] `add` takes.
    """
    name, total = one_vector(name, model.config), 0.0
    pairs = list(pairs) if isinstance(pairs, Iterable) else [pairs]
    for pair in pairs:
        if isinstance(pair, str) or not isinstance(pair, Sequence | np.ndarray) or len(pair) != 2:
            raise Error(f"{shown(pair)} is not a pair: give a list of (prompt, opposite)")
        here, there = (run(model, text, name, edits=edits, bos=bos, last_only=True)[name]
                       for text in pair)
        total = total + here[:, -1].mean(axis=0) - there[:, -1].mean(axis=0)
    if not len(pairs):
        raise Error("there are no pairs: give some, as (prompt, opposite)")
    return weights_like(total / len(pairs), name, model)


def mean_activation(
    model: Model,
    texts: Iterable[str | Tokens],
    name: str,
    *,
    edits: EditsLike | None = None,
    bos: bool | None = None,
) -> np.ndarray:
    """Return the mean of an activation over all positions of texts of any number and lengths.

    Texts longer than n_ctx are read in windows, as by `max_activating`. Edits see one at a time.
    A first <|endoftext|> does not count, because what is stored at it is like nothing else.
    `patch(mean)` is mean ablation: a vector [d] of the stream or [h, e] of z goes everywhere.
    """
    name, total, count = one_vector(name, model.config), 0.0, 0
    for passage in passages(model, texts, name, edits, bos):
        counted = passage.array[passage.first :]
        total = total + counted.sum(axis=0, dtype=np.float64)
        count += len(counted)
    if not count:
        raise Error("there is no token in these texts, besides <|endoftext|>: give at least one")
    return weights_like(total / count, name, model)


def one_vector(name, config):
    """Return the full name of one activation that has a vector at each position."""
    found = one_activation(name, config)
    if kind_of(found) in BY_QUERY:
        raise Error(f"{found} is as wide as the text is long: choose the stream, z or an output")
    return found


def weights_like(vector, name, model):
    check_numbers(name, vector, model)
    return vector.astype(np.promote_types(to_host(model.params["wte"][:1]).dtype, np.float32))


def run_generate(
    model: Model,
    text_or_tokens: PromptsLike,
    n_tokens: int,
    names: Sequence[str] | str | Callable[[str], bool] = (),
    *,
    edits: EditsLike | None = None,
    bos: bool | None = None,
    **options: Unpack[GenerationOptions],
) -> Run:
    """Continue one prompt with `edits`, and return the logits and activations of the whole text.

    `names` and `edits` are those of `run`, `options` those of `generate`. Edited positions are
    those of the text, and negative ones count from the end of the prompt, in generation and in the
    pass over the whole text that follows it. Functions of your own see one position at a time in
    generation. Raises Error if the text would not fit into n_ctx.
    """
    given, held = prompts(model, text_or_tokens, bos), Edits(model, edits)
    n_prompts, n = given.tokens.shape
    check_count("n_tokens", n_tokens)
    if n_prompts != 1:
        raise Error(f"run_generate continues one prompt, {n_prompts} were given: call it for each")
    if n + n_tokens > model.config.n_ctx:
        raise Error(f"n_tokens is {n_tokens}: after {n} tokens there is room for "
                    f"{model.config.n_ctx - n}, as n_ctx is {model.config.n_ctx}")
    if "tap" in options:
        raise Error("run_generate takes a tap as edits=, so that the whole text is edited too")
    keep, chosen = matching_names(names, model.config), dict[str, Any](options)
    tap = as_tap(model, held) if held else None
    new = generate(model, given.tokens[0], n_tokens, tap=tap, **chosen)
    text = np.append(given.tokens[0], list(new)).astype(int)[None]
    place = Place(np.arange(text.shape[1])[None], np.zeros(1, int), np.array([n]), 1, growing=True)
    logits, recorder = recorded(model, Prompts(text, given.bos), keep, held, place=place)
    return Run(recorder.kept, text, given.bos, model.config, to_host(logits),
               tokenizer=model.tokenizer)
