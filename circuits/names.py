"""Names of activations and nodes: TransformerLens's, so that code and published figures carry over.

An activation is named in full ("blocks.5.attn.hook_q"), by a glob ("blocks.*.hook_resid_pre") or
in short ("resid_pre", which is every layer's). A head is "L9H6", "9.6" or (9, 6); one of its inputs
"L9H6.k"; an MLP "MLP3"; a neuron "L2N17". (Nanda & Bloom 2022, TransformerLens.)
"""
from __future__ import annotations

import contextlib
import difflib
import fnmatch
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

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
    Layers count from 0: no model is given here, so that its last layer is not known.
    """
    if isinstance(layer, bool) or not isinstance(layer, int | np.integer) or layer < 0:
        raise Error(f"layer is {shown(layer)}: it must be an integer from 0 on, such as "
                    "model.config.n_layer - 1 for the last")
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


def layer_glob(kind, layer="*"):
    """Return the glob of a kind of activation in one layer, or in all of them."""
    glob = f"blocks.*.{kind}" if kind in BLOCK_NAMES else as_glob(kind)
    if not glob.startswith("blocks.*."):
        raise Error(f"{shown(kind)} is not an activation of layers{nearest(kind, SHORT_NAMES)}")
    return glob.replace("*", str(layer), 1)


def glob_of(name, config):
    """Return the glob of a full or short name, a glob, a point of the stream or ("z", 1)."""
    if isinstance(name, tuple) and len(name) == 2:
        check_index("layer", name[1], config.n_layer, negative=True)
        return layer_glob(name[0], name[1] % config.n_layer)
    return as_glob(stream_point(name, config))


def name_list(names):
    """Return one name, pair ("z", 1) or predicate, or several names or pairs, as a list."""
    pair = isinstance(names, tuple) and len(names) == 2 and not isinstance(names[1], str | tuple)
    if isinstance(names, str) or callable(names) or pair:
        return [names]
    if not isinstance(names, Iterable):
        raise Error(f"names is {shown(names)}: give names of activations, such as 'z', or a "
                    "function that chooses them")
    return list(names)


def matching_names(names, config):
    """Return the set of activation names that names, short names, globs or a predicate mean.

    A pair ("z", 1) means one layer's.
    """
    known, matching = activation_names(config), set()
    if callable(names):
        return {name for name in known if names(name)}
    for name in name_list(names):
        found = set(fnmatch.filter(known, glob_of(name, config)))
        if not found:
            raise unknown_activation(name, config, known)
        matching |= found
    return matching


def unknown_activation(name, config, known):
    layer = re.match(r"blocks\.(\d+)\.", str(name))
    if layer:
        check_index("layer", int(layer[1]), config.n_layer)
    hint = nearest(name, [*SHORT_NAMES, *known])
    with contextlib.suppress(Error):
        parse_node(None, name)
        hint = (": it is a node. ablated(model, node) makes edits of nodes; the output of a head "
                "is in ('z', layer), of a neuron in ('post', layer), of an MLP in 'mlp_out'")
    return Error(f"unknown activation {shown(name)}{hint}")


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


def parse_node(config: Config | None, node: Any) -> tuple[int, int | None] | tuple[int, None, int]:
    """Return a head "L9H6", "9.6" or (9, 6) as (9, 6), an MLP "MLP3" as (3, None).

    A neuron "L2N17" is (2, None, 17). Raises Error if the model has no such node. If `config` is
    None, only the spelling is read.
    """
    found = (re.fullmatch(r"(?:L?(\d+)[H.](\d+))|MLP(\d+)|L(\d+)N(\d+)", node)
             if isinstance(node, str) else None)
    if found and found[4]:
        node = int(found[4]), None, int(found[5])
    elif found:
        node = (int(found[3]), None) if found[3] else (int(found[1]), int(found[2]))
    if not (isinstance(node, tuple) and (len(node) == 2 or (len(node) == 3 and node[1] is None))):
        raise Error(f"{shown(node)} is not a head or MLP: write 'L9H6', '9.6', (9, 6), 'MLP3' or, "
                    "for a neuron, 'L2N17'")
    if config is None:
        return node
    check_index("layer", node[0], config.n_layer)
    if len(node) == 3:
        check_index(f"layer {node[0]}'s neuron", node[2], 4 * config.n_embd)
    elif node[1] is not None:
        check_index(f"layer {node[0]}'s head", node[1], config.n_head)
    return node


def parse_head(config, node):
    """Return a head as (layer, head). Raises Error for an MLP or a neuron."""
    layer, head, *_ = parse_node(config, node)
    if head is None:
        raise Error(f"{shown(node)} is not a head: write 'L9H6', '9.6' or (9, 6)")
    return layer, head


def parse_neuron(config, node):
    """Return a neuron as (layer, neuron). Raises Error for a head or an MLP."""
    if len(parse_node(None, node)) != 3:
        raise Error(f"{shown(node)} is not a neuron: write 'L2N17'")
    layer, *_, neuron = parse_node(config, node)
    return layer, neuron


def parse_inputs(config, node):
    """Return the inputs that a receiver has: [(9, 6, "k")] of "L9H6.k" or (9, 6, "k").

    A whole head "L9H6" has three, q, k and v, an MLP "MLP3" one, [(3, None, "in")].
    """
    whole, kinds = node, "qkv"
    if isinstance(node, str) and node[-2:-1] == "." and not node[-1].isdigit():
        whole, kinds = node[:-2], node[-1]
    elif isinstance(node, tuple) and len(node) == 3 and isinstance(node[2], str):
        whole, kinds = node[:2], node[2]
    layer, head, *neuron = parse_node(config, whole)
    if neuron or kinds not in ("q", "k", "v", "qkv") or (head is None and kinds != "qkv"):
        raise Error(f"{shown(node)} is no receiver: write 'L9H6.q', '.k' or '.v', 'L9H6' for all "
                    "three, or 'MLP3'")
    return [(layer, None, "in")] if head is None else [(layer, head, kind) for kind in kinds]


def node_name(layer, head, *rest):
    """Return the name of a parsed node or input: "L9H6", "L9H6.k", "MLP3" or "L2N17"."""
    if head is None:
        return f"L{layer}N{rest[0]}" if rest and rest[0] != "in" else f"MLP{layer}"
    return f"L{layer}H{head}" + "".join(f".{kind}" for kind in rest)


def node_list(nodes):
    """Return one node, or several, as a list. A tuple that begins with a number is one node."""
    one = isinstance(nodes, str) or not isinstance(nodes, Iterable) or (
        isinstance(nodes, tuple) and bool(nodes) and isinstance(nodes[0], int | np.integer))
    return [nodes] if one else list(nodes)


def cell_name(axes, index):
    """Return the name of one cell: "L1H1", "L2N17", "layer 1, position 5"."""
    units = {"head": "H", "neuron": "N"}
    if len(axes) > 1 and axes[0] == "layer" and axes[1] in units:
        rest = zip(axes[2:], index[2:], strict=True)
        names = [f"L{index[0]}{units[axes[1]]}{index[1]}"]
    else:
        names, rest = [], zip(axes, index, strict=True)
    return ", ".join([*names, *(f"{axis} {i}" for axis, i in rest)])
