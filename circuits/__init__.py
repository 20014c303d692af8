"""Look inside GPT-2: activations, attribution, lenses, patching, weights, circuit search.

The residual stream is a sum: embeddings, then the output of every head and MLP (Elhage et al.
2021, "A Mathematical Framework for Transformer Circuits"). Everything here follows from that, on
NumPy arrays and the model's own logits. Names are TransformerLens's; activations always have a
batch axis.

    file                   public names
    inputs                 prompts, token_id, labels_of, PromptWarning
    names                  activation_name(s), head_names, node_names, parse_node
    activations            run
    decomposition          decompose: the stream as a sum
    logit_attribution      attribution
    logit_lens             lens
    attention_patterns     heads
    metrics                logit_difference, log_probability, repeat_loss
    interventions          as_tap: edits in order, at their places in any pass
    edits                  patch, zero, add, knock_out, ablated
    steering               steering_vector, mean_activation, run_generate
    sweeps                 patching, ablation
    patch_estimates        attribution_patching, compare: sweeps estimated from gradients
    paths                  path_patching
    low_rank               LowRank
    head_weights           ov, qk, full_ov, full_qk, copying_scores, singular_tokens, composition
    weights                neuron_tokens, unembed, top_tokens
    backward               gradients
    search                 find: a circuit of heads and MLPs
    edges                  find_edges, edge_attribution, patch_edges, edge_names
    bootstrapping          bootstrap
    calibration            measure
    surveying              survey: norms, outliers, attention and calibration of models
    excitation             max_activating: the texts that excite a neuron or head
    distributions          histogram
    tracing                trace: every activation's shape, bytes, work and einsum
    tasks                  repeated_tokens, indirect_object, name_repetition
    reporting              report: a page for a browser about one text
    pictures               pictures.plot_map, plot_attention, plot_lens, plot_bars,
                           plot_reliability, plot_survey (import circuits.pictures)

`python -m gpt2_np.circuits --help` shows the commands.

One alphabet for einsum: b batch (prompt), q query position, k key position, d residual width,
h head, e head width, m hidden width of the MLP, v vocabulary; p part of the stream, s sender,
r receiver. Logits and metrics of logits are in the model's own units, losses and entropies in
nats. Rows that pad an embedding, beyond the tokenizer's ids, are in no distribution and no list of
tokens, as none is ever drawn; only `run` and attribution to all logits show them.
"""
from .activations import Run, run
from .attention_patterns import Attention, heads
from .backward import Gradients, gradients
from .bootstrapping import Estimate, bootstrap
from .calibration import Measures, measure
from .decomposition import Parts, decompose
from .distributions import Histogram, histogram
from .edges import EdgeScores, edge_attribution, edge_names, find_edges, patch_edges
from .edits import ablated, add, knock_out, patch, zero
from .excitation import Example, Examples, max_activating
from .head_weights import (
    Composition,
    composition,
    copying_scores,
    full_ov,
    full_qk,
    ov,
    qk,
    singular_tokens,
)
from .inputs import Prompts, PromptWarning, labels_of, prompts, token_id
from .interventions import Edit, EditsLike, as_tap
from .logit_attribution import Attribution, attribution
from .logit_lens import Lens, lens
from .low_rank import LowRank
from .metrics import (
    ByPrompt,
    Differentiable,
    LowerIsBetter,
    Metric,
    ReadsPositions,
    ReadsStream,
    log_probability,
    logit_difference,
    repeat_loss,
)
from .names import activation_name, activation_names, head_names, node_names, parse_node
from .patch_estimates import Comparison, attribution_patching, compare
from .paths import path_patching
from .reporting import Report, report
from .search import Circuit, find
from .steering import mean_activation, run_generate, steering_vector
from .surveying import Profile, Survey, survey
from .sweeps import Sweep, ablation, patching
from .tasks import Task, indirect_object, name_repetition, repeated_tokens
from .tracing import Trace, TraceRow, trace
from .weights import TopTokens, neuron_tokens, top_tokens, unembed

__all__ = [
    "Attention", "Attribution", "ByPrompt", "Circuit", "Comparison", "Composition",
    "Differentiable", "EdgeScores", "Edit", "EditsLike", "Estimate", "Example", "Examples",
    "Gradients", "Histogram", "Lens", "LowRank", "LowerIsBetter", "Measures", "Metric", "Parts",
    "Profile", "PromptWarning", "Prompts", "ReadsPositions", "ReadsStream", "Report", "Run",
    "Survey", "Sweep", "Task",
    "TopTokens", "Trace", "TraceRow", "ablated", "ablation", "activation_name", "activation_names",
    "add", "as_tap", "attribution", "attribution_patching", "bootstrap", "compare", "composition",
    "copying_scores", "decompose", "edge_attribution", "edge_names", "find", "find_edges",
    "full_ov", "full_qk", "gradients", "head_names", "heads", "histogram", "indirect_object",
    "knock_out", "labels_of", "lens", "log_probability", "logit_difference", "max_activating",
    "mean_activation", "measure", "name_repetition", "neuron_tokens", "node_names", "ov",
    "parse_node", "patch", "patch_edges", "patching", "path_patching", "prompts", "qk",
    "repeat_loss", "repeated_tokens", "report", "run", "run_generate", "singular_tokens",
    "steering_vector", "survey", "token_id", "top_tokens", "trace", "unembed", "zero",
]  # fmt: skip
