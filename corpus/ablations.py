"""Models without some of their parts: zero ablation in the weights, so that no tap slows a pass.

A head, an MLP or a neuron adds rows of c_proj to the stream. With these rows at zero it adds
nothing, which is the ablation of `circuits.ablated(model, nodes)`.
"""
from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..bpe import shown
from ..circuits.names import node_list, node_name, parse_node
from ..gpt2_np import Error, Model


def ablated_model(model: Model, nodes: Any) -> Model:
    """Return the model without heads, MLPs and neurons: "L5H1", "5.1", (5, 1), "MLP3", "L2N17".

    `nodes` is one of them, a list, or "L5H1,MLP3". The parameters that do not change are the
    model's own arrays. Raises Error for a node that the model does not have.
    """
    blocks = list(model.params["blocks"])
    for layer, head, *neuron in parsed_nodes(model, nodes):
        part = "attn" if head is not None else "mlp"
        c_proj = dict(blocks[layer][part]["c_proj"])
        if neuron:
            first, end = neuron[0], neuron[0] + 1
        elif head is None:
            first, end = 0, len(c_proj["w"])
            c_proj["b"] = c_proj["b"].copy()
            c_proj["b"][:] = 0
        else:
            width = model.config.n_embd // model.config.n_head
            first, end = head * width, (head + 1) * width
        c_proj["w"] = c_proj["w"].copy()
        c_proj["w"][first:end] = 0
        blocks[layer] = {**blocks[layer], part: {**blocks[layer][part], "c_proj": c_proj}}
    return replace(model, params={**model.params, "blocks": blocks})


def ablation_name(model: Model, nodes: Any) -> str:
    """Return the names of the nodes in one spelling: "L5H1, MLP3"."""
    return ", ".join(node_name(*node) for node in parsed_nodes(model, nodes))


def parsed_nodes(model: Model, nodes: Any) -> list[Any]:
    """Return the nodes of `ablated_model` as `parse_node` does, each once, in the order given."""
    if isinstance(nodes, str):
        nodes = [node.strip() for node in nodes.split(",")]
    found = list(dict.fromkeys(parse_node(model.config, node) for node in node_list(nodes)))
    if not found:
        raise Error(f"the nodes to ablate are {shown(nodes)}: give at least one, such as 'L5H1'")
    return found
