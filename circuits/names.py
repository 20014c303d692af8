"""Names of activations and nodes: TransformerLens's, so that code and published figures carry over.

An activation is named in full ("blocks.5.attn.hook_q"), by a glob ("blocks.*.hook_resid_pre") or
in short ("resid_pre", which is every layer's). A head is "L9H6", "9.6" or (9, 6); an MLP "MLP3"; a
neuron "L2N17". (Nanda & Bloom 2022, TransformerLens.)
"""
from __future__ import annotations

import difflib
import fnmatch
import re
from typing import Any

from ..bpe import shown
from ..gpt2_np import Config, Error
from .inputs import check_index

BLOCK_NAMES = [
    "hook_resid_pre", "ln1.hook_scale", "ln1.hook_normalized", "attn.hook_q", "attn.hook_k",
    "attn.hook_v", "attn.hook_attn_scores", "attn.hook_pattern", "attn.hook_z",
    "attn.hook_result", "hook_attn_out", "hook_resid_mid", "ln2.hook_scale",
    "ln2.hook_normalized", "mlp.hook_pre", "mlp.hook_post", "hook_mlp_out", "hook_resid_post",
]  # fmt: skip
SHORT_NAMES = {name.rpartition("hook_")[2]: name for name in BLOCK_NAMES if "ln" not in name}
BY_HEAD = {"q", "k", "v", "z", "result", "pattern", "attn_scores"}
BY_QUERY = {"pattern", "attn_scores"}  # [b, h, q, k]; the others are [b, q, ...]
BY_NEURON = {"pre", "post"}


def activation_name(short: str, layer: int) -> str:
    """Return the full name of a layer's activation: ("q", 5) gives "blocks.5.attn.hook_q".

    Short names are resid_pre, resid_mid, resid_post, attn_out, mlp_out, q, k, v, z, pattern, ...
    """
    if short not in SHORT_NAMES:
        raise Error(f"unknown activation {shown(short)}{nearest(short, SHORT_NAMES)}")
    return f"blocks.{layer}.{SHORT_NAMES[short]}"


def activation_names(config: Config) -> list[str]:
    """Return every name that `run` can keep or edit, in the order of the forward pass."""
    blocks = [f"blocks.{layer}.{name}" for layer in range(config.n_layer) for name in BLOCK_NAMES]
    ends = ["ln_final.hook_scale", "ln_final.hook_normalized"]
    return ["hook_embed", "hook_pos_embed", *blocks, *ends]


def as_glob(name):
    """Return the glob of a short name ("q" or "hook_q": every layer's); any other name as it is."""
    short = str(name).removeprefix("hook_")
    if short in ("embed", "pos_embed"):
        return f"hook_{short}"
    return f"blocks.*.{SHORT_NAMES[short]}" if short in SHORT_NAMES else str(name)


def matching_names(names, config):
    """Return the set of activation names that names, short names, globs or a predicate mean."""
    known = activation_names(config)
    if callable(names):
        return {name for name in known if names(name)}
    matching = set()
    for name in [names] if isinstance(names, str) else names:
        found = set(fnmatch.filter(known, as_glob(name)))
        if not found:
            raise Error(f"unknown activation {shown(name)}{nearest(name, [*SHORT_NAMES, *known])}")
        matching |= found
    return matching


def layer_of(name):
    return int(name.split(".")[1])


def kind_of(name):
    """Return the short name: "blocks.5.attn.hook_q" gives "q"."""
    return name.rpartition("hook_")[2]


def nearest(name, known):
    """Return "; did you mean a, b or c?" with the most similar names, or some that exist."""
    found = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    if not found:
        known = list(known)
        return f"; there are {', '.join(known[:3])}, ... {known[-1]}" if known else "; none was"
    return f"; did you mean {' or '.join(filter(None, [', '.join(found[:-1]), found[-1]]))}?"


def stream_points(config):
    """Return TransformerLens's labels along the stream: "0_pre", "0_mid", ..., "final_post"."""
    points = [f"{n}_{half}" for n in range(config.n_layer) for half in ("pre", "mid")]
    return [*points, "final_post"]


def stream_point(point, config):
    """Return the stream at a label of `stream_points`: "2_mid" gives "blocks.2.hook_resid_mid".

    "2_post" is known too. Any other name is returned as it is.
    """
    if point == "final_post":
        return activation_name("resid_post", config.n_layer - 1)
    found = re.fullmatch(r"(\d+)_(pre|mid|post)", str(point))
    return activation_name(f"resid_{found[2]}", int(found[1])) if found else point


def head_names(config: Config) -> list[str]:
    """Return the name of every head, layer by layer: "L0H0", "L0H1", ..."""
    return [f"L{layer}H{head}" for layer in range(config.n_layer) for head in range(config.n_head)]


def node_names(config: Config) -> list[str]:
    """Return the name of every head and MLP, layer by layer: "L0H0", ..., "MLP0", "L1H0", ..."""
    return [name for layer in range(config.n_layer)
            for name in [*(f"L{layer}H{head}" for head in range(config.n_head)), f"MLP{layer}"]]


def parse_node(config: Config, node: Any) -> tuple[int, int | None] | tuple[int, None, int]:
    """Return a head "L9H6", "9.6" or (9, 6) as (9, 6), an MLP "MLP3" as (3, None).

    A neuron "L2N17" is (2, None, 17). Raises Error if the model has no such node.
    """
    found = (re.fullmatch(r"(?:L?(\d+)[H.](\d+))|MLP(\d+)|L(\d+)N(\d+)", node)
             if isinstance(node, str) else None)
    if found and found[4]:
        node = int(found[4]), None, int(found[5])
        check_index("layer", node[0], config.n_layer)
        check_index(f"layer {node[0]}'s neuron", node[2], 4 * config.n_embd)
        return node
    if found:
        node = (int(found[3]), None) if found[3] else (int(found[1]), int(found[2]))
    if not (isinstance(node, tuple) and len(node) == 2):
        raise Error(f"{shown(node)} is not a head or MLP: write 'L9H6', '9.6', (9, 6), 'MLP3' or, "
                    "for a neuron, 'L2N17'")
    check_index("layer", node[0], config.n_layer)
    if node[1] is not None:
        check_index(f"layer {node[0]}'s head", node[1], config.n_head)
    return node
