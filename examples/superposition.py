"""Toy models of superposition, then the neurons of a real model: an essay to run.

    python examples/superposition.py [model] [--plot picture.png]

A network with d dimensions can give d features an axis each. It can also store more features than
dimensions, in directions that are not orthogonal, and pay with interference. Elhage et al. 2022,
"Toy Models of Superposition" (transformer-circuits.pub/2022/toy_model), show in models of a few
numbers that sparse features make the second choice the better one. Sections 1 and 2 repeat that
in NumPy, with gradients by hand. Sections 3 and 4 look for traces of it in the embedded model.

One alphabet for einsum: i model, b sample, d dimension, f feature. All models of a section are
trained at once. Random numbers come from fixed seeds. Intervals are 95%, by bootstrap over models
that differ in random numbers alone (sections 1 and 2) or over neurons (3 and 4). Outcomes in the
docstrings are those of the embedded model. All takes half a minute of one core.
"""
import argparse
import os
import sys
from pathlib import Path

# The matrices are small. On busy cores BLAS threads spin while they wait: 94 s of CPU, not 22.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

sys.path.append(str(Path(__file__).resolve().parent.parent))  # for a clone that is not installed

import gpt2_np
from gpt2_np import circuits
from gpt2_np.backend import einsum

DENSITIES = 20.0 ** -np.linspace(0, 1, 18)  # of section 2
BATCH, RATE = 256, 0.01  # samples a step; learning rate, which falls to 0 in the second half
N_TEXTS, LENGTH, TOP = 40, 100, 10  # texts of section 3, their tokens, places a neuron


def interval(values):
    """Return the mean of values [n] with its bootstrap interval."""
    return circuits.bootstrap(lambda chosen: values[chosen].mean(axis=-1), len(values))


# --- the model ("Experiment Setup" in the paper) ------------------------------------------


def sample(rng, density, batch, n_features):
    """Return features [i, b, f]: 0, or with a probability (density) uniform between 0 and 1.

    The paper's sparsity is S = 1 - density. One random number decides both: divided by the density,
    it is uniform if it is below 1 and dropped otherwise.
    """
    x = rng.random((len(density), batch, n_features), np.float32) / density[:, None, None]
    return x * (x < 1)


def loss_and_gradients(W, b, x, importance):
    """Return the loss [i] of x' = ReLU(WᵀWx + b), and its gradients by W [i, d, f] and b [i, f].

    The loss is the mean over samples of Σ importance (x' - x)². W is used twice, once to squeeze
    the features into d dimensions and once to read them again, so its gradient is a sum of two.
    """
    hidden = einsum("ibf,idf->ibd", x, W)
    pre = einsum("ibd,idf->ibf", hidden, W) + b[:, None]
    error = np.maximum(pre, 0) - x
    loss = einsum("ibf,f->ib", error * error, importance).mean(axis=1)
    d_pre = 2 / x.shape[1] * importance * error * (pre > 0)
    d_hidden = einsum("ibf,idf->ibd", d_pre, W)
    d_W = einsum("ibd,ibf->idf", hidden, d_pre) + einsum("ibd,ibf->idf", d_hidden, x)
    return loss, d_W, d_pre.sum(axis=1)


def train(density, n_features, n_dims, decay=1.0, steps=2000, seed=0):
    """Return W [i, d, f] and b [i, f] of one model for each density, trained by Adam.

    The importance of feature f is decay^f.
    """
    rng, density = np.random.default_rng(seed), np.asarray(density, np.float32)
    importance = (decay ** np.arange(n_features)).astype(np.float32)
    W = rng.normal(0, n_features**-0.5, (len(density), n_dims, n_features)).astype(np.float32)
    params = W, np.zeros((len(density), n_features), np.float32)
    means, squares = ([np.zeros_like(p) for p in params] for _ in range(2))
    for step in range(1, steps + 1):
        x = sample(rng, density, BATCH, n_features)
        _, *slopes = loss_and_gradients(*params, x, importance)
        rate = RATE * min(1, 2 * (1 - step / steps))
        for p, slope, mean, square in zip(params, slopes, means, squares, strict=True):
            mean += 0.1 * (slope - mean)
            square += 0.001 * (slope * slope - square)
            size = np.sqrt(square / (1 - 0.999**step)) + 1e-8
            p -= rate / (1 - 0.9**step) * mean / size
    return params


def fresh_loss(density, W, b, decay=1.0, batch=10_000, seed=1):
    """Return the loss [i] on fresh samples."""
    x = sample(np.random.default_rng(seed), np.asarray(density, np.float32), batch, W.shape[2])
    return loss_and_gradients(W, b, x, (decay ** np.arange(W.shape[2])).astype(np.float32))[0]


# --- 1. five features in a plane (the figure of the paper's introduction) -----------------


def angles(W):
    """Return the degrees between neighbouring features of one model [2, f] that are longer than ½.

    They are sorted and sum to 360.
    """
    kept = W[:, np.linalg.norm(W, axis=0) > 0.5]
    around = np.sort(np.degrees(np.arctan2(kept[1], kept[0])))
    return np.sort(np.diff(around, append=around[:1] + 360))


def five_in_a_plane(densities=(1, 0.5, 0.25, 0.1, 0.05), seeds=8, steps=2000):
    """Print what becomes of five features in two dimensions; return the best W [2, f] by density.

    Feature f has importance 0.9^f. Dense: 7 of 8 models keep two features, at right angles
    but for 0.5° on average, and little of the others. At densities of 0.5 and 0.25 the best model
    has two pairs of opposites and drops the fifth. At 0.05 all 8 are pentagons, whose worst angle
    is 1.1° away from 72° on average.
    """
    density, best = np.repeat(densities, seeds), {}
    W, b = train(density, 5, 2, 0.9, steps)
    losses = fresh_loss(density, W, b, 0.9).reshape(-1, seeds)
    print(f"1. Five features in two dimensions, {seeds} models a density (seed 0)\n"
          "   density  features kept, by model  loss of the best  degrees between its features")
    for p, models, loss in zip(densities, W.reshape(-1, seeds, 2, 5), losses, strict=True):
        order = np.argsort(loss)
        between, best[p] = [angles(models[i]) for i in order], models[order[0]]
        print(f"   {p:7.2f}  {' '.join(str(len(one)) for one in between):23s}  "
              f"{loss.min():16.4f}  {' '.join(f'{one:.0f}' for one in between[0])}")
    for p, n, right in (densities[0], 2, 90), (densities[-1], 5, 72):
        between = [angles(one) for one in W[density == p]]
        keep = np.array([len(one) == n for one in between])
        off = np.array([np.abs(one[one < 180] - right).max() for one in between if len(one) == n])
        print(f"   density {p}: a share of {interval(keep)} of the models keeps {n} features, with "
              f"angles of {right}° but for {interval(off)}°")
    return best


# --- 2. dimensions a feature ("The Geometry of Superposition") ----------------------------


def dimensionality(W):
    """Return the dimensions that each feature [..., f] has to itself, ‖W_f‖² / Σ_g (Ŵ_f · W_g)².

    1 if it has an axis of its own, ½ beside an opposite, 2/5 in a pentagon, 0 if it is not stored.
    """
    squares = np.square(W).sum(axis=-2)
    overlaps = np.square(np.swapaxes(W, -1, -2) @ W).sum(axis=-1)
    return squares**2 / np.maximum(overlaps, 1e-12)


def plateaus(densities=DENSITIES, seeds=4, steps=1500):
    """Print D* = d / ‖W‖² by density, the dimensions a stored feature; return rows to draw.

    40 equally important features in 8 dimensions. ‖W‖² counts the stored ones, as each has a
    length of about 1 (sparse ones 1.1). The paper's curve (400 in 30) is sticky at 1 and at ½. Ours
    begins at 1.005, where the 8 dimensions are used once, though by mixtures, as no feature matters
    more. From 1/density 2.4 to 2.9 it rests at 0.50 to 0.49: in every model 16 features in 8 pairs
    of opposites, and 24 that are not stored. It falls to 0.17 at 20, as nearly all are stored.
    """
    density = np.repeat(densities, seeds)
    W, _ = train(density, 40, 8, steps=steps, seed=2)
    each = (8 / np.square(W).sum(axis=(1, 2))).reshape(-1, seeds)
    print(f"\n2. 40 features in 8 dimensions, {seeds} models a density (seed 2)\n"
          "   1/density  dimensions a feature      stored  of them in pairs of opposites")
    rows = []
    for p, values, models in zip(densities, each, W.reshape(-1, seeds, 8, 40), strict=True):
        stored = np.square(models).sum(axis=1) > 0.25
        paired = np.abs(dimensionality(models) - 0.5) < 0.02
        value = interval(values)
        rows.append((1 / p, *value))
        print(f"   {1 / p:9.2f}  {value!s:24s}  {stored.sum() / seeds:6.1f}  "
              f"{(paired & stored).sum() / seeds:5.1f}  {'#' * round(40 * value.value)}")
    return np.array(rows)


# --- 3. neurons of a real model (the paper calls those of several meanings polysemantic) --


def pair_cosines(vectors):
    """Return the cosines [..., pair] between different ones of vectors [..., n, d]."""
    units = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    first, second = np.triu_indices(vectors.shape[-2], 1)
    return (units @ np.swapaxes(units, -1, -2))[..., first, second]


def written(model):
    """Return texts that the model writes, ids [text, position] that begin with <|endoftext|>."""
    start = getattr(model.tokenizer, "end_of_text", None)
    if start is None:
        raise gpt2_np.Error("this model has no vocabulary with <|endoftext|>: use another")
    length = min(LENGTH, model.config.n_ctx) - 1
    rows = gpt2_np.generate_batch(model, [[start]] * N_TEXTS, length, temperature=1.0, seed=3)
    return np.array([[start, *row] for row in rows])


def contexts(model, tokens):
    """Print if the places that excite a neuron most have more in common than its excitement.

    A place is the normalised stream that the MLP reads, less its mean over places and less the
    direction of the neuron's own input weights, which excited places share by choice. A pair or a
    neuron is "like random ones" if its cosine is below the 95th percentile of random places, so by
    chance 0.95 of them would be. Of pairs 0.71 to 0.74 are, of neurons at most 0.03: the places of
    nearly every neuron have something in common, but most pairs of them are as unlike as any. They
    hold 7 to 8 different tokens. Some neurons have one meaning ("[" that opens a stage direction).
    """
    print(f"\n3. The {TOP} places that excite a neuron most, one from a text, in {N_TEXTS} texts "
          f"of {tokens.shape[1]} tokens by the model (seed 3)\n"
          "   layer  cosine of two places     pairs like random ones   neurons like random  tokens")
    names, rng = ["post", "*.ln2.hook_normalized"], np.random.default_rng(3)
    seen = circuits.run(model, tokens, names, bos=False, last_only=True)
    for layer in range(model.config.n_layer):
        post, x = seen["post", layer][:, 1:], seen[f"blocks.{layer}.ln2.hook_normalized"][:, 1:]
        x = x - x.mean(axis=(0, 1))
        texts = np.argsort(-post.max(axis=1), axis=0)[:TOP].T  # [neuron, place]
        at = np.take_along_axis(post.argmax(axis=1).T, texts, axis=1)
        reads = model.params["blocks"][layer]["mlp"]["c_fc"]["w"].T  # [neuron, d]
        reads = reads / np.linalg.norm(reads, axis=1, keepdims=True)
        found = x[texts, at]
        cosines = pair_cosines(found - (found @ reads[:, :, None]) * reads[:, None])
        drawn = rng.permuted(np.tile(np.arange(N_TEXTS), (2000, 1)), axis=1)[:, :TOP]
        random = pair_cosines(x[drawn, rng.integers(0, x.shape[1], drawn.shape)])
        alike = interval((cosines < np.quantile(random, 0.95)).mean(axis=1))
        alone = np.mean(cosines.mean(axis=1) < np.quantile(random.mean(axis=1), 0.95))
        kinds = np.mean([len(set(row)) for row in tokens[:, 1:][texts, at]])
        print(f"   {layer:5d}  {interval(cosines.mean(axis=1))!s:23s}  {alike!s:23s}  "
              f"{alone:19.3f}  {kinds:.1f} kinds")
        if layer == model.config.n_layer // 2:
            mean = cosines.mean(axis=1)
            order = np.argsort(mean)[[-1, len(mean) // 2, 0]]
            chosen = [(f"L{layer}N{i}", mean[i]) for i in order]
    for (unit, value), kind in zip(chosen, ("highest", "median", "lowest"), strict=True):
        print(f"   {unit} has the {kind} cosine of its layer, {value:.2f}:")
        for example in circuits.max_activating(model, tokens.tolist(), unit, top=5):
            print(f"      {example.value:6.2f}  {example.window()}")


# --- 4. directions of a real model (the interference of the paper's definitions) ----------


def overlaps(model):
    """Print how near output directions of neurons are to orthogonal; return cosines of one layer.

    Beside them stand as many random directions, and the Welch bound, which no n directions in d
    dimensions can go below. With 1024 in 256 no neuron has a dimension of its own: 0.18 to 0.19 of
    one each. Training did not spread them to the least interference. Their root mean square, 0.064
    to 0.066, is above that of random directions, 0.062, and their nearest pairs are nearer.
    """
    n, d = model.params["blocks"][0]["mlp"]["c_proj"]["w"].shape
    rng, upper = np.random.default_rng(4), np.triu_indices(n, 1)
    bound = max(0, (n - d) / (d * (n - 1))) ** 0.5
    print(f"\n4. Cosines between the output directions of {n} neurons in {d} dimensions (seed 4); "
          f"root mean square at least {bound:.4f}\n   layer   root mean square"
          "                 largest  share over 0.25  dimensions a neuron")
    for layer in [*range(model.config.n_layer), "random"]:
        W = rng.normal(size=(n, d)) if layer == "random" else (
            model.params["blocks"][layer]["mlp"]["c_proj"]["w"])
        units = W / np.linalg.norm(W, axis=1, keepdims=True)
        cosines = units @ units.T
        squares = (np.square(cosines).sum(axis=1) - 1) / (n - 1)  # mean over the others
        rms = circuits.bootstrap(lambda chosen, s=squares: s[chosen].mean(axis=-1) ** 0.5, n)
        pairs = cosines[upper]
        print(f"   {layer!s:6s}  {rms!s:31s}  {np.abs(pairs).max():7.2f}  "
              f"{np.mean(np.abs(pairs) > 0.25):15.5f}  {interval(dimensionality(units.T))}")
        if layer == model.config.n_layer // 2:
            kept = pairs
    return kept, pairs


# --- the picture --------------------------------------------------------------------------


def new_figure(path):
    """Return an empty figure, written once so that a bad path is found before the training."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise gpt2_np.Error("the picture needs matplotlib: pip install matplotlib") from None
    figure = Figure(figsize=(10, 6), layout="constrained")
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise gpt2_np.Error(f"{path} cannot be written: {error}") from None
    return figure


def draw(figure, best, rows, own, random, path):
    """Draw the four results and write them to an image file."""
    panels = figure.add_gridspec(2, 2 * len(best), height_ratios=(2, 3))
    for i, (p, W) in enumerate(best.items()):
        axes = figure.add_subplot(panels[0, 2 * i : 2 * i + 2], aspect="equal")
        for f, (x, y) in enumerate(W.T):
            axes.plot([0, x], [0, y], marker="o", markevery=[1], color=f"C{f}")
        axes.set(xlim=(-1.4, 1.4), ylim=(-1.4, 1.4), xticks=[], yticks=[], title=f"density {p}")
    axes = figure.add_subplot(panels[1, : len(best)])
    axes.axhline(1, color="0.8")
    axes.axhline(0.5, color="0.8")
    axes.errorbar(rows[:, 0], rows[:, 1], (rows[:, 2:] - rows[:, 1:2]).T * [[-1], [1]], marker="o")
    axes.set(xscale="log", xlabel="1 / density", ylim=(0, 1.1),
             title="dimensions a stored feature (40 in 8)")
    axes = figure.add_subplot(panels[1, len(best) :])
    for values, label in (own, "a layer's neurons"), (random, "random directions"):
        axes.hist(values, np.linspace(-0.5, 0.5, 81), histtype="step", label=label)
    axes.set(yscale="log", xlabel="cosine", title="pairs of output directions")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=90)


def main():
    parser = argparse.ArgumentParser(description="Toy models of superposition, and a real one.")
    parser.add_argument("model", nargs="?", default="shakespeare", help='or "124M", a path, a URL')
    parser.add_argument("--plot", metavar="FILE", help="draw the results (needs matplotlib)")
    args = parser.parse_args()

    model = gpt2_np.load(args.model)
    figure = new_figure(args.plot) if args.plot else None
    tokens = written(model)
    best = five_in_a_plane()
    rows = plateaus()
    contexts(model, tokens)
    own, random = overlaps(model)
    if figure:
        draw(figure, best, rows, own, random, args.plot)


if __name__ == "__main__":
    try:
        main()
    except gpt2_np.Error as error:  # one sentence: what was wrong, and what to do
        sys.exit(f"superposition: {error}")
