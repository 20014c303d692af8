"""The model of lm-evaluation-harness (extra `eval`), and its command line.

    python -m gpt2_np.corpus lm-eval run --tasks lambada_openai --model_args model=124M

Every request gets what lm-eval's own class for Hugging Face models gives it: its tokens, windows
and stop strings. Requests are packed into rows of n_ctx. A context that several share, such as that
of the choices of a question, is computed once.
"""
from __future__ import annotations

import argparse
import functools
import json
import random
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import checkpoint
from ..bpe import shown
from ..circuits.interventions import as_tap
from ..command_line import with_tokenizer
from ..gpt2_np import Error, Model, Sampling, TapFunction, __version__, namespace
from ..inference.branches import Branches, branch_scores
from ..inference.costs import count_parameters
from ..inference.generation import Generation
from ..inference.options import SamplingOptions, check_count
from ..inference.taps import checked_tap
from .ablations import ablated_model, ablation_name
from .work import device_name

NAME = "gpt2_np"  # of the model in lm-eval's registry
AT_ONCE = 4096  # contexts that are packed together: rows are then found in under a second
PROMPTS_AT_ONCE = 32
CACHE_BYTES = 1 << 30  # of keys and values, unless a batch size is given


# --- requests as token ids -------------------------------------------------------------


class Continuation(NamedTuple):
    """A request for log p(continuation | context), both of them token ids."""

    context: Sequence[int]
    continuation: Sequence[int]


def log_likelihoods(
    model: Model, requests: Sequence[Continuation], max_length: int, tap: TapFunction | None = None
) -> Iterator[tuple[int, float, bool]]:
    """Yield the number of each request, log p in nats, and True if greedy decoding writes it.

    They come in the order in which they are computed. A context loses its beginning if not all fits
    into max_length positions. One that several requests share is computed once, as are equal
    requests. Raises Error at once for a request that cannot be scored.
    """
    groups: Any = defaultdict(lambda: defaultdict(list))  # numbers by context and continuation
    for number, (context, continuation) in enumerate(requests):
        if not context or not 0 < len(continuation) <= max_length:
            raise Error(f"request {number} has {len(context)} tokens of context and "
                        f"{len(continuation)} to score: it must have some of both, and at most "
                        f"{max_length} to score")
        n_kept = max_length + 1 - len(continuation)
        groups[tuple(context[-n_kept:])][tuple(continuation)].append(number)
    order = sorted(groups, key=len, reverse=True)
    for start in range(0, len(order), AT_ONCE):
        part = [(context, list(groups[context])) for context in order[start : start + AT_ONCE]]
        arrays = [Branches(np.array(context), [np.array(ids) for ids in continuations])
                  for context, continuations in part]
        for group, branch, scores in branch_scores(model, arrays, checked_tap(tap)):
            context, continuations = part[group]
            log_p = float(scores.log_probabilities.sum(dtype=np.float64))
            for number in groups[context][continuations[branch]]:
                yield number, log_p, bool(scores.is_greedy.all())


def continuations(
    model: Model, prompts: Sequence[Sequence[int]], n_tokens: int, stop: Sequence[str | int],
    options: SamplingOptions, batch_size: int | None = None, seed: int = 0,
    tap: TapFunction | None = None,
) -> Iterator[tuple[list[int], list[int]]]:  # fmt: skip
    """Yield the numbers of prompts and the token ids that continue them, the longest prompts first.

    Equal prompts are continued once, unless tokens are drawn: prompt i draws with (seed, i).
    """
    sampling = Sampling(**options)
    groups = defaultdict(list)
    for number, prompt in enumerate(prompts):
        groups[(*prompt, number) if sampling.temperature else tuple(prompt)].append(number)
    order = sorted(groups.values(), key=lambda numbers: -len(prompts[numbers[0]]))
    while order:
        n = batch_size or prompts_at_once(model, len(prompts[order[0][0]]) + n_tokens)
        batch, order = order[:n], order[n:]
        generation = Generation(model, [prompts[numbers[0]] for numbers in batch], n_tokens, stop,
                                [(seed, numbers[0]) for numbers in batch], sampling, tap=tap)
        for _ in generation:
            pass
        yield from zip(batch, generation.continuations, strict=True)


def prompts_at_once(model: Model, n_positions: int) -> int:
    """Return the size of a batch whose keys and values are not too large."""
    n_bytes = 2 * n_positions * model.params["wpe"].dtype.itemsize
    n_bytes *= model.config.n_layer * model.config.n_embd
    return max(1, min(PROMPTS_AT_ONCE, CACHE_BYTES // n_bytes))


# --- the class -------------------------------------------------------------------------


@functools.cache
def model_class() -> Any:
    """Return the class that lm-eval knows as gpt2_np. Raises Error if lm-eval is not installed."""
    try:
        from lm_eval.api.model import TemplateLM
        from lm_eval.api.registry import register_model
        from lm_eval.models.utils import (
            handle_stop_sequences,
            normalize_gen_kwargs,
            postprocess_generated_text,
        )
        from lm_eval.utils import (
            get_rolling_token_windows,
            make_disjoint_window,
            simple_parse_args_string,
        )
    except ImportError as error:
        raise Error(f'lm-eval 0.4.13 or newer is needed ({error}): pip install "lm-eval>=0.4.13"'
                    ) from None
    from tqdm import tqdm

    @register_model(NAME)
    class LmEvalModel(TemplateLM):  # its loglikelihood turns text into ids, by tok_encode
        def __init__(self, model: str | Model = "124M", device: str = "auto",
                     dtype: str = "float32", batch_size: int | str = "auto",
                     max_batch_size: int | None = None, max_length: int | None = None,
                     ablate: Any = None, edits: Any = None, tap: TapFunction | None = None,
                     **others: Any):
            super().__init__()
            if others:
                raise Error(f"model_args has {', '.join(others)}: give model, device, dtype, "
                            "batch_size, max_length or ablate")
            self.model = loaded(model, device, dtype)
            self.ablated = ""
            if isinstance(ablate, float):
                raise Error(f"ablate is {ablate}, which lm-eval takes for a number: name a head "
                            "as in 'L1H1'")
            if ablate is not None:
                nodes = ablate.replace("+", ",") if isinstance(ablate, str) else ablate
                self.ablated = ablation_name(self.model, nodes)
                self.model = ablated_model(self.model, nodes)
            if edits is not None and tap is not None:
                raise Error("edits and tap are both given: put the edits into the tap")
            self.tap = tap if edits is None else as_tap(self.model, edits)
            self.tokenizer: Any = self.model.tokenizer
            self.batch_size = size_of_batch(batch_size)
            self.max_length = self.model.config.n_ctx if max_length is None else max_length
            check_count("max_length", self.max_length, 1, self.model.config.n_ctx)
            self._device = device_name(namespace(self.model.params["wte"]))

        @classmethod
        def create_from_arg_obj(cls, arg_dict, additional_config=None):
            """Return the model of model_args, which go before lm-eval's own --device and others."""
            others = {k: v for k, v in (additional_config or {}).items() if v is not None}
            return cls(**{**others, **arg_dict})

        @classmethod
        def create_from_arg_string(cls, arg_string, additional_config=None):
            return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

        @property
        def eot_token_id(self):
            if self.tokenizer.end_of_text is None:
                raise Error("the vocabulary has no <|endoftext|>, with which lm-eval begins texts")
            return self.tokenizer.end_of_text

        tokenizer_name = NAME  # asked for with chat templates only
        max_gen_toks = 256  # of a task that does not say

        def tok_encode(self, string, add_special_tokens=None, **_):
            """Return the ids of a text, in which <|endoftext|> is one token."""
            ids = self.tokenizer.encode(string, "all")
            if add_special_tokens is False or string.startswith("<|endoftext|>"):
                return ids[len(self.tokenizer.start_ids) :]  # few vocabularies have any
            return ids

        def _loglikelihood_tokens(self, requests, disable_tqdm=False, **_):
            results: list[Any] = [None] * len(requests)
            pairs = [Continuation(*ids) for _, *ids in requests]
            for number, *result in self.answers(pairs, "Log-likelihoods", disable_tqdm):
                results[number] = answer = tuple(result)
                self.cache_hook.add_partial("loglikelihood", requests[number][0], answer)
            return results

        def answers(self, pairs, name, disable_tqdm):
            found = log_likelihoods(self.model, pairs, self.max_length, self.tap)
            return tqdm(found, name, len(pairs), disable=disable_tqdm)

        def loglikelihood_rolling(self, requests, disable_tqdm=False):
            texts = [text for text, in (request.args for request in requests)]
            windows, owners = [], []
            for number, text in enumerate(texts):
                for window in get_rolling_token_windows(
                        self.tok_encode(text), self.prefix_token_id, self.max_length, 1):
                    windows.append(Continuation(*make_disjoint_window(window)))
                    owners.append(number)
            totals, n_left = [0.0] * len(texts), np.bincount(owners, minlength=len(texts))
            for window, log_p, _ in self.answers(windows, "Rolling windows", disable_tqdm):
                number = owners[window]
                totals[number] += log_p
                n_left[number] -= 1
                if not n_left[number]:
                    self.cache_hook.add_partial(
                        "loglikelihood_rolling", (texts[number],), totals[number])
            return totals

        def generate_until(self, requests, disable_tqdm=False):
            groups = defaultdict(list)  # of requests by their options
            for number, request in enumerate(requests):
                groups[json.dumps(request.args[1], sort_keys=True)].append(number)
            results, seed = [""] * len(requests), random.getrandbits(64)  # lm-eval's --seed
            with tqdm(total=len(requests), desc="Continuations", disable=disable_tqdm) as bar:
                for numbers in groups.values():
                    given = requests[numbers[0]].args[1]
                    options = normalize_gen_kwargs(given, self.max_gen_toks)
                    stop = handle_stop_sequences(options.pop("until"), "<|endoftext|>")
                    stop = [*filter(None, stop)]
                    n_tokens = options.pop("max_gen_toks")
                    if not 0 < n_tokens < self.max_length:
                        raise Error(f"max_gen_toks is {n_tokens}: it must be from 1 to "
                                    f"{self.max_length - 1}, so that a prompt has room")
                    contexts = [requests[number].args[0] for number in numbers]
                    prompts = [self.tok_encode(text)[n_tokens - self.max_length :]
                               or [self.prefix_token_id] for text in contexts]
                    for batch, ids in continuations(
                            self.model, prompts, n_tokens, [*stop, self.eot_token_id],
                            sampling_options(options), self.batch_size, seed, self.tap):
                        text = postprocess_generated_text(self.plain_text(ids), stop, None)
                        for index in batch:
                            results[numbers[index]] = text
                            self.cache_hook.add_partial(
                                "generate_until", (contexts[index], given), text)
                        bar.update(len(batch))
            return results

        def plain_text(self, ids):
            special = set(self.tokenizer.special_tokens.values())
            return self.tokenizer.decode(i for i in ids if i not in special)

        def apply_chat_template(self, *_, **__):
            raise Error("GPT-2 has no chat template: leave --apply_chat_template out")

        chat_template = apply_chat_template  # it, too, is called with that option only

        def get_model_info(self):
            """Return what lm-eval writes beside the results."""
            return {
                "model_num_parameters": sum(count_parameters(self.model.config).values()),
                "model_dtype": str(self.model.params["wte"].dtype),
                "model_device": self._device,
                "model_ablated": self.ablated,
                "max_length": self.max_length,
                "gpt2_np_version": __version__,
            }

    return LmEvalModel


def lm_eval_model(model: str | Model = "124M", **options: Any) -> Any:
    """Return a model for `lm_eval.simple_evaluate(model=...)`.

    The options are device, dtype, batch_size (prompts that are continued together), max_length,
    ablate ("L5H1+MLP3" or a list), and edits or a tap, as those of `circuits.run` and `forward`.
    """
    return model_class()(model, **options)


def loaded(model: str | Model, device: Any, dtype: Any) -> Model:
    if isinstance(model, Model):
        return with_tokenizer(model, "the model")
    # lm-eval asks for its default, cuda:0, if it is given no device.
    where: Any = "auto" if device == "cuda:0" else device
    return with_tokenizer(checkpoint.load(str(model), where, dtype), model)


def size_of_batch(size: int | str) -> int | None:
    """Return the prompts that are continued together, or None for as many as suit the memory."""
    if str(size).startswith("auto") or str(size) == "1":  # lm-eval's default
        return None
    if not str(size).isdecimal() or not int(size):
        raise Error(f"batch_size is {shown(size)}: give a number of prompts, or auto")
    return int(size)


def sampling_options(given: Mapping[str, Any]) -> SamplingOptions:
    """Return the options of `sample` for those of a task. Raises Error for unknown ones."""
    options: Any = dict(given)
    draws = options.pop("do_sample", False)
    temperature = float(options.pop("temperature", 0.0))
    if options.get("num_beams") == 1:
        del options["num_beams"]
    known = SamplingOptions.__optional_keys__
    if unknown := [f"{name}={shown(options[name])}" for name in options if name not in known]:
        raise Error(f"the task generates with {', '.join(unknown)}: this model knows until, "
                    f"max_gen_toks, do_sample, {', '.join(sorted(known))}")
    if draws and temperature:
        return SamplingOptions(temperature=temperature, **options)
    penalty = options.get("repetition_penalty")  # the others change which tokens are drawn
    return SamplingOptions() if penalty is None else SamplingOptions(repetition_penalty=penalty)


# --- the command -----------------------------------------------------------------------


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="run|ls|validate ...",
                        help="those of lm-eval, of which run, ls or validate comes first; to run, "
                        f"--model {NAME} is added")


def run_command_line(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Hand over to lm-eval's command line, which knows the model by now."""
    model_class()
    from lm_eval.__main__ import cli_evaluate

    arguments = list(args.arguments)
    if arguments[:1] == ["run"] and len(arguments) > 1:
        arguments[1:1] = ["--model", NAME]
    before, sys.argv = sys.argv, ["lm-eval", *arguments]
    try:
        cli_evaluate()
    finally:
        sys.argv = before
