"""A report: one page that shows what a model does with one text, in a file that needs no other.

    circuits.report(model, "ROMEO:\\nBut soft", "report.html")

The page shows the surprise of every token, the logit lens, the attention of every head, and the
direct effect of every part of the model on each next token. It holds its own script and style and
asks for nothing, which its Content-Security-Policy also forbids. Text is data in it, never markup.
"""
from __future__ import annotations

import base64
import hashlib
import html
import itertools
import json
import math
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import gpt2_np
from ..bpe import shown, whole_file
from ..gpt2_np import Error, Model
from ..inference.costs import describe
from .activations import run
from .attention_patterns import heads
from .drawings import page_file
from .inputs import OnePrompt, Prompts, check_numbers, prompts, token_id
from .interventions import Edits, EditsLike
from .logit_attribution import attribution
from .logit_lens import read_logits
from .metrics import log_sum_exp
from .names import activation_name
from .short_reprs import visible
from .weights import on_host, unembed

STYLES = "pages.css", "report.css"
SCRIPTS = ("data.js", "pens.js", "text.js", "lens.js", "attention.js", "attribution.js",
           "report.js")
FIRST_LINE = "<!-- A report of gpt2_np. -->"
MOST_PATTERN_BYTES = 128 << 20  # what a browser still opens with ease
MOST_IN_NOTEBOOK = 8 << 20  # characters, which the notebook stores
ALTERNATIVES, FOLLOWED = 5, 6  # tokens of each position: the likeliest, those of all layers
MOST_NEURONS, LEAST_NEURONS, NEURON_BUDGET = 8, 1, 400  # of each layer; the budget is shared out
CHUNK = 16  # positions whose logits at every layer are held at a time
SCORES = ("previous_token", "current_token", "duplicate_token", "induction", "beginning",
          "entropy", "distance")


@dataclass(frozen=True)
class Report:
    """A page as text. A notebook shows it; `save` writes it to a file."""

    page: str

    def save(self, path: Any) -> None:
        """Write the page. Raises Error rather than replace a file that is not a report."""
        try:
            file_path = Path(path)
            name = visible(str(file_path))
            if file_path.is_file():
                with file_path.open("rb") as file:
                    if file.read(len(FIRST_LINE)) not in (b"", FIRST_LINE.encode()):
                        raise Error(f"{name} exists and is not a report: choose another name")
            if file_path.is_file() or not file_path.exists():
                with whole_file(str(file_path.resolve())) as whole:
                    whole.write(self.page.encode())
            else:  # a device, or a folder, which is an OSError
                file_path.write_text(self.page, encoding="utf-8", newline="\n")
        except Error:
            raise
        except (TypeError, ValueError):  # ValueError: NUL, or half of a character
            raise Error(f"{shown(path)} is not the name of a file: give one, such as "
                        "'report.html'") from None
        except OSError as error:
            raise Error(f"{name} cannot be written: {error.strerror}. Name a file in a folder "
                        "that exists and can be written to") from None

    def __repr__(self) -> str:
        return f"<Report of {len(self.page) / 1e6:.2f} MB: save(path) writes it to a file>"

    def _repr_html_(self) -> str:
        if len(self.page) > MOST_IN_NOTEBOOK:
            return f"<p>{html.escape(repr(self))}. It is too large for a notebook.</p>"
        return (f'<iframe srcdoc="{html.escape(self.page)}" width="100%" height="720" '
                'sandbox="allow-scripts allow-downloads" title="Report"></iframe>')


def report(
    model: Model,
    text_or_tokens: Prompts | OnePrompt,
    path: Any = None,
    answer: str | int | None = None,
    wrong: str | int | None = None,
    *,
    title: str = "",
    edits: EditsLike | None = None,
    bos: bool | None = None,
) -> Report:
    """Return a page about one text, and write it to `path` if there is one.

    With `answer` the page also explains that token's logit at the end of the text, or its
    difference from that of `wrong`. Other logits are explained as their distance from the mean
    logit. `title` is the page's heading. A notebook shows pages of up to 8 MB. Raises Error if the
    file exists and is not a report.
    """
    if not isinstance(title, str):
        raise Error(f"title is {shown(title)}: give a text")
    given = prompts(model, text_or_tokens, bos)
    is_text = isinstance(text_or_tokens, str)
    options = {"answer": answer, "wrong": wrong, "bos": bos,
               "title": title or None, "edits": "..." if edits else None}
    again = ", ".join([repr(text_or_tokens) if is_text else repr(given.tokens[0].tolist()),
                       *(f"{name}={value if name == 'edits' else repr(value)}"
                         for name, value in options.items() if value is not None)])
    made = report_page(model, given, answer, wrong, title or "GPT-2",
                       f"circuits.report(model, {again})", edits)
    if path is not None:
        made.save(path)
    return made


def report_page(model, given, answer, wrong, title, command, edits=None):
    """Return the Report of Prompts. `command` is the one that makes it again, shown on it."""
    if len(given.tokens) != 1:
        raise Error(f"a report is about one text, not about {len(given.tokens)}: make one each")
    if wrong is not None and answer is None:
        raise Error("wrong was given without answer: give both, or answer alone")
    config, n, title = model.config, given.tokens.shape[1], visible(title)
    n_bytes = config.n_layer * config.n_head * n * (n + 1) // 2
    if n_bytes > MOST_PATTERN_BYTES:
        raise Error(f"the attention of {config.n_layer * config.n_head} heads on {n} tokens takes "
                    f"{n_bytes / 1e6:.0f} MB: shorten the text")
    edits = Edits(model, edits)
    edits.refuse("report", ("ln_final",), "it reads every layer through the model's own layer norm")
    started = time.perf_counter()
    data = data_of(model, given, answer, wrong, edits)
    dtype = model.params["wte"].dtype
    size = describe(config, dtype.itemsize)
    about = {
        "title": title, "version": gpt2_np.__version__, "command": command,
        "config": vars(config), "n_vocab": model.n_vocab, "bos": given.bos, "edited": bool(edits),
        "n_parameters": size["parameters"]["total"], "n_bytes": size["bytes"], "dtype": str(dtype),
        "seconds": round(time.perf_counter() - started, 3),
    }
    return Report(assembled(title, {**about, **data}))


# --- numbers ---------------------------------------------------------------------------


def data_of(model, given, answer, wrong, edits):
    """Return the numbers of the page, as lists and as arrays in base64."""
    config, tokens = model.config, given.tokens[0]
    streams = [activation_name("resid_pre", layer) for layer in range(config.n_layer)]
    streams.append(activation_name("resid_post", config.n_layer - 1))
    patterns = [activation_name("pattern", layer) for layer in range(config.n_layer)]
    seen = run(model, given, [*streams, *patterns], edits=edits)
    logits = seen.logits[0, :, : model.n_vocab]
    check_numbers("the logits", logits, model)
    target = token_id(model, answer) if answer is not None else int(logits[-1].argmax())
    targets = np.append(tokens[1:], target)
    lens = lens_numbers(model, np.stack([seen[name][0] for name in streams]), targets)
    attention = attention_numbers(model, given, [seen[name][0] for name in patterns], edits)
    effects = effect_numbers(model, given, targets, answer, wrong, edits)
    used = {*tokens.tolist(), target, *lens.pop("ids")}
    if wrong is not None:
        used.add(token_id(model, wrong))
    return {
        "tokens": tokens.tolist(), "next": target, "followed": FOLLOWED,
        "ids": packed(np.array(sorted(used)), id_type_of(model)),
        "labels": [label_of(model, i) for i in sorted(used)],
        "answer": None if answer is None else target,
        "wrong": None if wrong is None else token_id(model, wrong),
        **lens, **attention, **effects,
    }


def label_of(model, token):
    """Return a token's text, or its bytes as a list if they are part of a character."""
    if model.tokenizer is None or token >= model.n_vocab:
        return str(token)
    raw = model.tokenizer.token_bytes(token)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return list(raw)


def lens_numbers(model, streams, targets):
    """Return the lens [point, position], and every best token of a position at all its points.

    A position's candidates are its target, then the tokens that are best at some point, the last
    layer's first. `best` counts within them. `nats` [candidate, point] are 10 times their surprise,
    of the first FOLLOWED of each position.
    """
    n_points, n = streams.shape[:2]
    ids, counts, nats = [], [], []
    best, p, spread = (np.zeros((n_points, n)) for _ in range(3))
    ranks = np.zeros(n, int)
    top = np.zeros((n, min(ALTERNATIVES, model.n_vocab)), int)
    top_p, surprise = np.zeros(top.shape), np.zeros(n)
    for first in range(0, n, CHUNK):
        here = slice(first, min(first + CHUNK, n))
        logits = unembed(model, streams[:, here], layer_norm=True)  # [point, position, v]
        _, rank, spread[:, here], ahead, ahead_p = read_logits(
            logits, np.broadcast_to(targets[here], logits.shape[:2]), top.shape[1])
        ranks[here] = rank[-1]
        p[:, here], top[here], top_p[here] = ahead_p[..., 0], ahead[-1], ahead_p[-1]
        log_sum = log_sum_exp(logits)
        for i in range(here.start, here.stop):
            leaders = ahead[:, i - first, 0].tolist()
            candidates = list(dict.fromkeys([int(targets[i]), *reversed(leaders)]))
            best[:, i] = [candidates.index(leader) for leader in leaders]
            of_these = log_sum[:, i - first] - logits[:, i - first, candidates[:FOLLOWED]].T
            surprise[i] = of_these[0, -1]
            nats.append(of_these)
            ids += candidates
            counts.append(len(candidates))
    nats = np.concatenate(nats) * 10
    id_type, small = id_type_of(model), np.uint8 if n_points < 255 else np.uint16
    return {
        "ids": {*ids, *top.ravel().tolist()},
        "surprise": [round(float(x), 2) for x in surprise], "ranks": ranks.tolist(),
        "alternatives": packed(top, id_type), "alternatives_p": packed(top_p * 1e4, np.uint16),
        "lens": {
            "best": packed(best, small), "p": packed(p * 1e4, np.uint16),
            "entropy": packed(spread * 10, np.uint8), "candidates": packed(np.array(ids), id_type),
            "counts": packed(np.array(counts), small),
            "nats": packed(np.minimum(nats, 255), np.uint8),
        },
    }


def id_type_of(model):
    return np.uint16 if model.config.n_vocab <= 1 << 16 else np.uint32


def attention_numbers(model, given, patterns, edits):
    """Return the lower triangle of every head's pattern in bytes of 1/255, and its scores."""
    rows, columns = np.tril_indices(given.tokens.shape[1])
    scores = heads(model, given, edits=edits)
    return {
        "patterns": [[base64_of(np.rint(head[rows, columns] * 255).astype(np.uint8))
                      for head in layer] for layer in patterns],
        "scores": {kind: [[None if math.isnan(x) else round(x, 3) for x in row]
                          for row in getattr(scores, kind).tolist()] for kind in SCORES},
    }


def effect_numbers(model, given, targets, answer, wrong, edits):
    """Return the direct effect of each part [part, column] and of each layer's strongest neurons.

    A column is a position, whose target's logit above the mean is explained. With an answer there
    is one more: its logit at the end, above that of `wrong` if there is one.
    """
    config, wte = model.config, on_host(model.params["wte"])[: model.n_vocab]
    mean = wte.mean(axis=0)
    asked: list[tuple[Any, int | None]] = [((wte[targets] - mean)[None], None)]
    if answer is not None:
        rival = mean if wrong is None else wte[token_id(model, wrong)]
        asked.append((wte[[token_id(model, answer)]] - rival, -1))
    found = [attribution(model, given, direction=direction, position=position, neurons="all",
                         edits=edits) for direction, position in asked]
    labels = found[0].labels
    values = np.hstack([one.values.reshape(len(labels), -1) for one in found])  # [part, column]
    sums, first = {}, 0
    for part, group in itertools.groupby(labels, whole_part):
        end = first + len(list(group))
        sums[part] = sums.get(part, 0) + values[first:end].sum(axis=0)
        first = end
    effects = np.stack(list(sums.values()))
    n_kept = min(MOST_NEURONS, max(LEAST_NEURONS, NEURON_BUDGET // len(targets)), 4 * config.n_embd)
    ids, strongest = [], []
    for layer in range(config.n_layer):
        first = labels.index(f"L{layer}N0")
        by_neuron = values[first : first + 4 * config.n_embd].T  # [column, neuron]
        ids.append(np.argsort(-np.abs(by_neuron), axis=1, kind="stable")[:, :n_kept])
        strongest.append(np.take_along_axis(by_neuron, ids[-1], axis=1))
    return {
        "parts": list(sums), "effects": packed_decimals(effects),
        "totals": [round(float(x), 2) for x in effects.sum(axis=0)],
        "neurons": packed(np.stack(ids), np.uint16 if config.n_embd < 16384 else np.uint32),
        "neuron_effects": packed_decimals(np.stack(strongest)),
    }


def whole_part(label):
    """Return the MLP for one of its neurons or their bias, "b_O" for any layer's "b_O5"."""
    of_mlp = re.fullmatch(r"L(\d+)N\d+|b_out(\d+)", label)
    return f"MLP{of_mlp[1] or of_mlp[2]}" if of_mlp else re.sub(r"^b_O\d+$", "b_O", label)


def packed(array, dtype):
    """Return an array, rounded, as its type, shape and bytes in base64."""
    array = np.rint(array).astype(np.dtype(dtype).newbyteorder("<"))
    return {"type": array.dtype.str[1:], "shape": array.shape, "data": base64_of(array)}


def packed_decimals(array):
    """Return an array as integers of two bytes, with as many decimals as the largest leaves."""
    most = float(np.abs(array).max(initial=0))
    decimals = next((d for d in (4, 3, 2, 1) if most * 10**d < 32767), 0)
    array = np.clip(array * 10**decimals, -32767, 32767)
    return {**packed(array, np.int16), "decimals": decimals}


def base64_of(array):
    return base64.b64encode(array.tobytes()).decode()


# --- the page --------------------------------------------------------------------------


def assembled(title, data):
    """Return the page: its files, the data and a policy that allows these scripts alone."""
    style, script = ("\n".join(map(page_file, names)) for names in (STYLES, SCRIPTS))
    policy = (f"default-src 'none'; script-src '{hash_of(script)}'; style-src '{hash_of(style)}'; "
              "img-src data:; base-uri 'none'; form-action 'none'")
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    parts = {"title": html.escape(title), "policy": policy, "style": style, "script": script,
             "data": text}
    return re.sub(r"\[\[(\w+)\]\]", lambda found: parts[found[1]], page_file("report.html"))


def hash_of(text):
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
