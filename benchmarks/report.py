"""Report of the samples: medians with their spread, ratios round by round, tables, promises.

These are pure functions of the result file that run.py writes. They need the standard library only.
"""
import json
import math
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

OURS = "gpt2_np"
LOWER_PRECISION = {"int8": "int8", "F16": "float16", "Q8_0": "8-bit blocks"}
TOLERANCE = 1e-4  # the relative error up to which float32 outputs count as the same


# --- statistics -------------------------------------------------------------------------------


class Spread(NamedTuple):
    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread | None:
    """Return the median, the lowest and the highest value, or None if there are no values."""
    return Spread(statistics.median(values), min(values), max(values)) if values else None


def agreement(found: dict[str, Any], expected: dict[str, Any]) -> dict[str, Any]:
    """Compare an answer with the expected one: by leading tokens, or by relative error."""
    if "tokens" in expected:
        ours, theirs = expected["tokens"], found["tokens"]
        pairs = zip(ours, theirs, strict=False)
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))
        return {"same": same, "of": max(len(ours), len(theirs))}
    if "values" in expected:
        ours, theirs = expected["values"], found["values"]
        if len(ours) != len(theirs):
            return {"error_of_values": math.inf}
        distance = math.dist(ours, theirs)
        return {"error_of_values": distance / math.hypot(*ours) if distance else 0.0}
    return {}


def select(part: dict[str, Any], case: str, label: str) -> list[dict[str, Any]]:
    return [s for s in part["samples"] if s["case"] == case and s["label"] == label]


def values(part: dict[str, Any], case: str, label: str, key: str) -> list[float]:
    return [s[key] for s in select(part, case, label) if s.get(key) is not None]


def ratios(part: dict[str, Any], case: str, above: str, below: str, key: str) -> list[float]:
    """Return `above` divided by `below`, each with its neighbour of the same round."""

    def by_turn(label):
        return {(s["round"], s["group"]): s[key] for s in select(part, case, label)
                if s.get(key) is not None}  # fmt: skip

    numerators, denominators = by_turn(above), by_turn(below)
    return [numerators[turn] / denominators[turn] for turn in numerators if denominators.get(turn)]


def cases(part: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(s["case"] for s in part["samples"]))


def labels(part: dict[str, Any], case: str | None = None) -> list[str]:
    return list(dict.fromkeys(s["label"] for s in sorted(
        part["samples"], key=lambda s: (s["group"], s["round"]))
        if case in (None, s["case"])))  # fmt: skip


def sizes(results: dict[str, Any], scenario: str) -> list[str]:
    """Return the sizes at which a scenario was measured, smallest first."""
    found = [key.partition("/")[2] for key in results["parts"] if key.startswith(scenario + "/")]
    return sorted(found, key=lambda size: int(size.rstrip("M")))


def precision(label: str) -> str:
    return next((kind for mark, kind in LOWER_PRECISION.items() if mark in label), "float32")


def growth(part: dict[str, Any], label: str) -> dict[tuple[int, int], float]:
    """Return the extra seconds of a step after the most cached tokens compared with the fewest."""
    lengths = sorted(map(int, cases(part)))
    if len(lengths) < 2:
        return {}

    def by_turn(length):
        return {(s["round"], s["group"]): s["step"] for s in select(part, str(length), label)}

    short, long = by_turn(lengths[0]), by_turn(lengths[-1])
    return {turn: long[turn] - short[turn] for turn in long if turn in short}


# --- promises ---------------------------------------------------------------------------------


class Promise(NamedTuple):
    """A claim, its figure with the spread over rounds, and its bound. The median decides."""

    claim: str
    found: Spread | None
    bound: float
    at_least: bool
    unit: str = "x"

    @property
    def holds(self) -> bool | None:
        if self.found is None:
            return None
        if self.at_least:
            return self.found.median >= self.bound
        return self.found.median <= self.bound


def promises(results: dict[str, Any]) -> list[Promise]:
    """Return every promise of the project with its measured figure."""
    parts, found = results["parts"], []

    def add(claim, numbers, bound, at_least=True, unit="x"):
        found.append(Promise(claim, spread(list(numbers)), bound, at_least, unit))

    def peer_over_ours(part, case, peer, key):
        return ratios(part, case, peer, OURS, key)

    empty = {"samples": []}
    for size in sizes(results, "decode") or ["124M"]:
        part = parts.get(f"decode/{size}", empty)
        case = next(iter(cases(part)), "")
        fractions = [s["limit_seconds"] / s["median_step"] for s in select(part, case, OURS)]
        add(f"decode at {size}: fraction of the one-row limit", fractions,
            0.85 if size == "124M" else 0.90)
        add(f"decode at {size}: transformers' time / ours",
            peer_over_ours(part, case, "transformers", "seconds"), 1.35)
        add(f"decode at {size}: CTranslate2's time in float32 / ours",
            peer_over_ours(part, case, "CTranslate2", "seconds"), 1.6)
    for size in sizes(results, "context") or ["124M"]:
        part = parts.get(f"context/{size}", empty)
        ours = growth(part, OURS)
        for peer in ("transformers", "CTranslate2"):
            theirs = growth(part, peer)
            add(f"growth with context at {size}: our extra time per token / {possessive(peer)}",
                [ours[t] / theirs[t] for t in ours if theirs.get(t, 0) > 0], 1.0, False)
    for size in sizes(results, "prefill") or ["124M"]:
        add(f"prefill of 1,024 at {size}: our time / transformers'",
            ratios(parts.get(f"prefill/{size}", empty), "1024", OURS, "transformers", "seconds"),
            1.0, False)
    for size in sizes(results, "score") or ["124M"]:
        part = parts.get(f"score/{size}", empty)
        add(f"scoring at {size}: transformers' time / ours",
            peer_over_ours(part, next(iter(cases(part)), ""), "transformers", "seconds"), 1.3)
    for size in sizes(results, "drafts") or ["124M"]:
        part = parts.get(f"drafts/{size}", empty)
        for case in cases(part) or ["code", "prose"]:
            repeats_itself = case in ("code", "a table", "a list", "a loop")
            add(f"drafts at {size}, {case}: plain time / time with drafts",
                ratios(part, case, OURS, f"{OURS} with drafts", "step"),
                2.5 if repeats_itself else 0.97)
    for size in sizes(results, "tokenizer")[:1] or ["124M"]:
        part = parts.get(f"tokenizer/{size}", empty)
        for peer, key, text, bound in (
            ("tiktoken", "warm", "English", 0.8), ("tiktoken", "cold", "English", 0.4),
            ("tokenizers", "warm", "English", 5),
            ("tokenizers", "warm", "English in one piece", 5),
        ):
            add(f"tokenizer, {key} {text}: our speed / {possessive(peer)}",
                ratios(part, text, OURS, peer, key), bound)
        times = [1000 * t for t in values(part, "construct", OURS, "construct")]
        add("tokenizer: import and construction", times, 60, False, " ms")
    for size in [size for size in sizes(results, "cold") if size == "124M"] or ["124M"]:
        part = parts.get(f"cold/{size}", empty)
        add("process start to the first token at 124M",
            values(part, "40 tokens", OURS, "first"), 0.35, False, " s")
        add("process with 40 tokens at 124M: transformers' time / ours",
            peer_over_ours(part, "40 tokens", "transformers", "seconds"), 5)
        add("--help", values(part, "--help", OURS, "seconds"), 0.15, False, " s")
    return found


def possessive(name: str) -> str:
    return f"{name}'" if name.endswith("s") else f"{name}'s"


def check(results: dict[str, Any]) -> tuple[str, int]:
    """Return a line for every promise, and the exit status: 0 if one holds and none fails."""
    found = promises(results)
    words = {True: "holds", False: "FAILS", None: "not measured"}
    lines = []
    for promise in found:
        relation = "at least" if promise.at_least else "at most"
        bound = f"{relation} {promise.bound:g}{promise.unit}"
        lines.append(f"{words[promise.holds]:13s} {promise.claim}: "
                     f"{figure(promise.found, promise.unit)}; {bound}")
    outcomes = [promise.holds for promise in found]
    lines.append(f"{outcomes.count(True)} hold, {outcomes.count(False)} do not, "
                 f"{outcomes.count(None)} were not measured")
    return "\n".join(lines), int(False in outcomes or True not in outcomes)


def figure(found: Spread | None, unit: str = "") -> str:
    if found is None:
        return "-"
    return f"{digits(found.median)}{unit} ({digits(found.low)} to {digits(found.high)})"


# --- tables -----------------------------------------------------------------------------------


def digits(x: float | None) -> str:
    """Show a number with at least three significant digits: 0.0123, 1.23, 12.3, 1,234."""
    if x is None:
        return "-"
    if x == 0:
        return "0"
    decimals = max(0, 2 - math.floor(math.log10(abs(x)) + 1e-9))
    return f"{x:,.{min(decimals, 6)}f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join(["---"] * len(head)) + " |"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def name(label: str) -> str:
    """Show a label in a table: ours is bold, and fewer bits than float32 are named."""
    text = "**gpt2_np**" if label == OURS else label
    kind = precision(label)
    return text if kind == "float32" else f"{text} ({kind})"


def same_output(part, case, label) -> str:
    found = select(part, case, label)
    if found and "of" in found[0]:
        same, total = min(s["same"] for s in found), found[0]["of"]
        return "yes" if same == total else f"first {same} of {total} tokens"
    errors = [s["error_of_values"] for s in found if "error_of_values" in s]
    if not errors:
        return "-"
    return "yes" if max(errors) <= TOLERANCE else f"to {max(errors):.0e}"


def comparison(part, case, column: str, rate: Callable[[dict], float | None], key="seconds",
               output=True) -> str:
    """Return a table with a row for each peer: its figure, its time over ours, its output."""
    rows = []
    for label in labels(part, case):
        figures = [rate(s) for s in select(part, case, label)]
        times = spread(ratios(part, case, label, OURS, key))
        row = [name(label), figure(spread([f for f in figures if f is not None])),
               "" if label == OURS else figure(times)]
        rows.append(row + ([same_output(part, case, label)] if output else []))
    head = ["", column, "its time / ours"] + (["same output"] if output else [])
    return table(head, rows)


def grid(part, key: str, scale: float, unit: str) -> str:
    """Return a table of medians with a row for each peer and a column for each case."""
    columns = cases(part)
    rows = [
        [name(label)] + [digits(scaled(spread(values(part, case, label, key)), scale))
                         for case in columns]
        for label in labels(part)
    ]  # fmt: skip
    return table([unit, *columns], rows)


def scaled(found, scale):
    return None if found is None else found.median * scale


def decode_tables(results, size, part):
    case = cases(part)[0]
    n = int(case.split()[0])
    ours = select(part, case, OURS)
    text = comparison(part, case, "tokens/s", lambda s: n / s["seconds"])
    limits = [1 / s["limit_seconds"] for s in ours]
    bandwidth = spread([s["limit_bytes"] / s["limit_seconds"] / 1e9 for s in ours])
    stream = spread([s["limit_stream_bytes_per_second"] / 1e9 for s in ours])
    streamed = [s["limit_bytes"] / s["limit_stream_bytes_per_second"] / s["median_step"]
                for s in ours]  # fmt: skip
    of_limit = spread([100 * s["limit_seconds"] / s["median_step"] for s in ours])
    return (
        f"{text}\n\nThe products of a step alone, one row each: {figure(spread(limits))} tokens/s, "
        f"{figure(bandwidth)} GB/s. They take {figure(of_limit, '%')} of the time of our step. "
        f"One product with all weights as a single matrix: {figure(stream)} GB/s. At that speed "
        f"the weights alone would take {digits(100 * statistics.median(streamed))}% of our step."
    )


def context_tables(results, size, part):
    text = grid(part, "step", 1000, "ms per token after")
    lengths = sorted(map(int, cases(part)))
    extra = [
        f"{name(label)} {digits(1000 * statistics.median(growth(part, label).values()))}"
        for label in labels(part) if growth(part, label)
    ]  # fmt: skip
    return (f"{text}\n\nExtra ms per token after {lengths[-1]:,} tokens compared with "
            f"{lengths[0]}: {', '.join(extra)}.")


def prefill_tables(results, size, part):
    text = grid(part, "seconds", 1000, "ms for all logits of")
    longest = cases(part)[-1]
    ours = select(part, longest, OURS)
    rate = spread([s["limit_operations"] / s["limit_seconds"] / 1e9 for s in ours])
    share = spread([100 * s["limit_seconds"] / s["seconds"] for s in ours])
    return (f"{text}\n\n{comparison(part, longest, f's for {longest}', lambda s: s['seconds'])}"
            f"\n\nThe products of {longest} rows alone: {figure(rate)} GFLOP/s, "
            f"{digits(share.median)}% of our time.")


def score_tables(results, size, part):
    case = cases(part)[0]
    targets = int(re.search(r"(\d+) targets", case)[1])
    return f"{case}\n\n" + comparison(part, case, "targets/s", lambda s: targets / s["seconds"])


def batch_tables(results, size, part):
    rows = []
    for label in labels(part):
        row = [name(label)]
        for case in cases(part):
            n = math.prod(map(int, case.split(" x ")))
            found = spread([n / t for t in values(part, case, label, "seconds")])
            row.append(digits(found and found.median))
        rows.append([*row, same_output(part, cases(part)[-1], label)])
    return table(["tokens/s, rows x tokens", *cases(part), "same output"], rows)


def drafts_tables(results, size, part):
    head = ["tokens/s", "plain", "with drafts", "speed-up", "transformers plain",
            "its prompt lookup", "speed-up", "same output"]  # fmt: skip
    rows = []
    for case in cases(part):
        row = [case]
        for label in (OURS, "transformers"):
            drafting = f"{label} with drafts"
            for either in (label, drafting):
                found = spread([1 / t for t in values(part, case, either, "step")])
                row.append(digits(found and found.median))
            row.append(figure(spread(ratios(part, case, label, drafting, "step"))))
        outputs = {same_output(part, case, label) for label in labels(part, case)}
        rows.append([*row, ", ".join(sorted(outputs))])
    return table(head, rows)


def cold_tables(results, size, part):
    rows = [
        [name(label), figure(spread(values(part, "40 tokens", label, "first"))),
         figure(spread(values(part, "40 tokens", label, "seconds"))),
         "" if label == OURS else
         figure(spread(ratios(part, "40 tokens", label, OURS, "seconds")))]
        for label in labels(part, "40 tokens")
    ]  # fmt: skip
    text = table(["a new process", "s to the first token", "s to its end, 40 tokens",
                  "its time / ours"], rows)  # fmt: skip
    usage = spread(values(part, "--help", OURS, "seconds"))
    alone = spread(values(part, "import numpy", "NumPy alone", "seconds"))
    return (f"{text}\n\n`python gpt2_np.py --help`: {figure(usage)} s, of which Python and "
            f"`import numpy` are {figure(alone)} s.")


def load_tables(results, size, part):
    def ms(label, key):
        return figure(spread([1000 * t for t in values(part, "load", label, key)]))

    rows = [[name(label), ms(label, "load"), ms(label, "first_token")] for label in labels(part)]
    return table(["a new process, with imports", "ms to load", "ms to the first token after"], rows)


def memory_tables(results, size, part):
    rows = []
    for label in labels(part):
        row = [name(label)]
        for case in cases(part):
            found = select(part, case, label)
            peak = spread([s["peak_mib"] for s in found])
            files = [s["file_mib"] for s in found if s.get("file_mib")]
            row.append(digits(peak and peak.median)
                       + (f" ({digits(statistics.median(files))})" if files else ""))
        rows.append(row)
    return table(["peak MiB (of files), rows x tokens", *cases(part)], rows)


def tokenizer_tables(results, size, part):
    kinds = [case for case in cases(part) if case not in ("construct", "worst cases")]
    rows = []
    for label in labels(part):
        row = [name(label)]
        for kind in kinds:
            for key in ("cold", "warm"):
                found = spread([rate / 1e6 for rate in values(part, kind, label, key)])
                row.append(digits(found and found.median))
        times = spread([1000 * t for t in values(part, "construct", label, "construct")])
        rows.append([*row, digits(times and times.median)])
    head = ["MB/s", *(f"{kind}, {key}" for kind in kinds for key in ("cold", "warm")),
            "ms to import and construct"]  # fmt: skip
    text = table(head, rows)
    worst = select(part, "worst cases", OURS)
    keys = [key for key in (worst[0] if worst else {}) if re.search(r", \d+$", key)]
    rows = [
        [name(label)] + [digits(1000 * statistics.median(s[key]["seconds"] for s in found))
                         for key in keys]
        for label in labels(part) if (found := select(part, "worst cases", label))
    ]  # fmt: skip
    return f"{text}\n\n{table(['worst cases, ms', *keys], rows)}\n\n{same_ids(part)}"


def same_ids(part) -> str:
    """Return a sentence that names the cases in which the ids of the tokenizers differ."""
    found = {}
    for sample in part["samples"]:
        hashes = {k: v["ids"] for k, v in sample.items() if isinstance(v, dict)}
        hashes |= {sample["case"]: sample["ids"]} if "ids" in sample else {}
        for case, ids in hashes.items():
            found.setdefault(case, set()).add(ids)
    different = [case for case, ids in found.items() if len(ids) > 1]
    return (f"The ids differ in: {', '.join(different)}." if different
            else f"All tokenizers gave the same ids in all {len(found)} cases.")


SECTIONS = {
    "decode": ("Decoding after a prompt of 32 tokens", decode_tables),
    "context": ("Time per token as the context grows", context_tables),
    "prefill": ("Prefill: all logits of a text", prefill_tables),
    "score": ("Scoring: log-probabilities of ragged texts", score_tables),
    "batch": ("Decoding several texts at once", batch_tables),
    "drafts": ("Drafts from the text itself", drafts_tables),
    "cold": ("A new process", cold_tables),
    "load": ("Loading", load_tables),
    "memory": ("Memory", memory_tables),
    "tokenizer": ("Tokenizer", tokenizer_tables),
}


def section(results: dict[str, Any], scenario: str) -> str:
    """Return the tables of one scenario at every size, with the peers that were left out."""
    texts = []
    for size in sizes(results, scenario):
        part = results["parts"][f"{scenario}/{size}"]
        if not part["samples"]:
            continue
        if scenario != "tokenizer":
            texts.append(f"**{size}**" + (" (quick run)" if part["quick"] else ""))
        texts.append(SECTIONS[scenario][1](results, size, part))
        missing = {}
        for label, reason in part["left out"].items():
            missing.setdefault(reason, []).append(label)
        texts += [f"Left out: {'; '.join(peers)}: {reason}." for reason, peers in missing.items()]
    return "\n\n".join(texts)


def losses(results: dict[str, Any]) -> str:
    """Return tables of every comparison of time, memory or tokenizer speed that a peer wins."""
    rows = {True: [], False: []}
    compared = {"context": ["step"], "memory": ["peak_mib"], "load": ["load"],
                "cold": ["first", "seconds"], "tokenizer": ["cold", "warm"],
                "drafts": []}  # fmt: skip
    names = {"first": "first token", "step": "", "seconds": "", "peak_mib": "", "load": ""}
    for part_name, part in results["parts"].items():
        scenario, _, size = part_name.partition("/")
        comparisons = [
            (case, label, key) for case in cases(part) for label in labels(part, case)
            for key in compared.get(scenario, ["seconds"]) if label != OURS
        ]  # fmt: skip
        for case, label, key in comparisons:
            is_speed = scenario == "tokenizer"
            pair = (OURS, label) if is_speed else (label, OURS)
            found = spread(ratios(part, case, *pair, key))
            if found and found.median < 1:
                words = [scenario, "" if is_speed else size, names.get(key, key)]
                row = [" ".join(filter(None, words)), case, name(label), figure(found)]
                rows[precision(label) == "float32"].append((found.median, row))
    texts = []
    for is_float32, head in ((True, "quicker or smaller"), (False, "with fewer bits")):
        lost = [row for _, row in sorted(rows[is_float32])]
        if lost:
            texts.append(table(["", "case", head, "its time or memory / ours"], lost))
    return "\n\n".join(texts) or "No peer wins a case that was measured."


def setting(results: dict[str, Any]) -> str:
    """Describe the machine, the versions, the commits and the peers that were left out."""
    machine, versions = results["machine"], results["versions"]
    commits = sorted({part["commit"] for part in results["parts"].values()})
    days = sorted({part["when"][:10] for part in results["parts"].values()})
    lines = [
        f"- {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, "
        f"{machine['system']}, {', '.join(machine['vector extensions'])}; "
        f"{results['threads']} threads for every library",
        "- " + ", ".join(f"{name} {version}" for name, version in versions.items()),
        f"- commit {', '.join(commits)} (+: with changes); {', '.join(days)}",
    ]
    lines += [f"- left out: {peer}: {reason}" for peer, reason in results["left out"].items()]
    return "\n".join(lines)


def tables(results: dict[str, Any]) -> str:
    """Return the whole report as text for the terminal."""
    texts = [setting(results)]
    texts += [f"## {SECTIONS[scenario][0]}\n\n{found}"
              for scenario in SECTIONS if (found := section(results, scenario))]
    return "\n\n".join([*texts, "## Where we lose\n\n" + losses(results)])


# --- README.md --------------------------------------------------------------------------------


def fill(readme: str, blocks: dict[str, str]) -> str:
    """Replace the text between `<!-- name -->` and `<!-- /name -->` for every name."""
    for name, text in blocks.items():
        pattern = re.compile(f"(<!-- {name} -->).*?(<!-- /{name} -->)", re.DOTALL)
        readme, n = pattern.subn(lambda m, text=text: f"{m[1]}\n{text}\n{m[2]}", readme)
        if n != 1:
            raise ValueError(f"README.md has {n} places <!-- {name} -->, expected one")
    return readme


def write(results: dict[str, Any], folder: Path) -> None:
    """Fill the tables of README.md in that folder."""
    blocks = {scenario: section(results, scenario) or "Not measured." for scenario in SECTIONS}
    blocks |= {"setting": setting(results), "losses": losses(results),
               "promises": "```\n" + check(results)[0] + "\n```"}
    readme = folder / "README.md"
    readme.write_text(fill(readme.read_text(encoding="utf-8"), blocks), encoding="utf-8")


if __name__ == "__main__":
    import sys

    print(tables(json.loads(Path(sys.argv[1]).read_text())))
