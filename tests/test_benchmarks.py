"""Statistics, promises and tables of the benchmarks, made from samples without peers or timing."""
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import gpu
import report
import run
import texts


def part(*samples, quick=False):
    return {"when": "2026-01-01T00:00+00:00", "commit": "abc", "quick": quick, "left out": {},
            "samples": [{"group": 0, **sample} for sample in samples]}  # fmt: skip


def decoding(ours, theirs, limit=0.8):
    """Return a decoding part. `ours` and `theirs` are seconds, one for each round."""
    samples = []
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        our_figures = {"limit_seconds": a * limit, "limit_bytes": 1e9, "step": a, "median_step": a,
                       "limit_stream_bytes_per_second": 3e10}  # fmt: skip
        for label, seconds, figures in (("gpt2_np", a, our_figures),
                                        ("transformers", b, {"step": b})):
            samples.append({"case": "128 after 32", "label": label, "round": i, "same": 128,
                            "of": 128, "seconds": seconds, **figures})  # fmt: skip
    return part(*samples)


def results(**parts):
    machine = {"cpu": "a processor", "cores": 2, "memory_gib": 8, "system": "Linux",
               "vector extensions": ["avx2"]}  # fmt: skip
    return {"machine": machine, "versions": {"numpy": "2"}, "threads": 2, "left out": {},
            "parts": {key.replace("__", "/"): value for key, value in parts.items()}}


def test_ratios_are_taken_within_a_round_so_that_drift_cancels():
    drifting = decoding(ours=[1.0, 10.0], theirs=[2.0, 20.0])
    assert report.ratios(drifting, "128 after 32", "transformers", "gpt2_np", "seconds") == [2, 2]


def test_ratios_need_both_neighbours_of_a_round():
    found = decoding([1.0, 1.0], [2.0, 3.0])
    found["samples"] = [s for s in found["samples"]
                        if not (s["label"] == "gpt2_np" and s["round"] == 0)]  # fmt: skip
    assert report.ratios(found, "128 after 32", "transformers", "gpt2_np", "seconds") == [3]


def test_spread_of_nothing_is_none():
    assert report.spread([]) is None
    assert report.spread([3, 1, 2]) == (2, 1, 3)


@pytest.mark.parametrize("theirs, same", [([1, 2, 3], 3), ([1, 9, 3], 1), ([1, 2], 2), ([9], 0)])
def test_agreement_counts_leading_tokens(theirs, same):
    assert report.agreement({"tokens": theirs}, {"tokens": [1, 2, 3]}) == {"same": same, "of": 3}


def test_agreement_of_values_is_the_relative_error():
    found = report.agreement({"values": [3.0, 4.5]}, {"values": [3.0, 4.0]})
    assert found["error_of_values"] == pytest.approx(0.1)
    assert report.agreement({"values": [1.0]}, {"values": [1.0, 2.0]})["error_of_values"] > 1


def verdict(found, claim):
    return next(p for p in report.promises(found) if p.claim.startswith(claim)).holds


@pytest.mark.parametrize("theirs, holds", [([1.4, 1.5], True), ([1.3, 1.36], False)])
def test_a_promise_is_judged_by_the_median(theirs, holds):
    found = results(decode__124M=decoding([1.0, 1.0], theirs))
    assert verdict(found, "decode at 124M: transformers") is holds


def test_the_one_row_limit_is_stricter_for_larger_models():
    same = decoding([1.0], [1.0], limit=0.87)
    found = results(decode__124M=same, decode__355M=same)
    assert verdict(found, "decode at 124M: fraction of the one-row") is True
    assert verdict(found, "decode at 355M: fraction of the one-row") is False


def test_check_fails_if_one_promise_fails_or_nothing_was_measured():
    good = results(decode__124M=decoding([1.0], [2.0], limit=0.9))
    assert report.check(good)[1] == 0
    assert report.check(results(decode__124M=decoding([1.0], [1.2], limit=0.9)))[1] == 1
    lines, status = report.check(results())
    assert status == 1
    assert "0 hold" in lines and "holds" not in lines.split()


def test_growth_is_the_extra_time_of_a_step_round_by_round():
    found = part(*({"case": case, "label": "gpt2_np", "round": i, "step": step}
                   for i in (0, 1) for case, step in (("32", 1.0 + i), ("1000", 1.5 + 2 * i))))
    assert report.growth(found, "gpt2_np") == {(0, 0): 0.5, (1, 0): 1.5}


def test_losses_name_only_the_cases_that_a_peer_wins():
    assert "transformers" in report.losses(results(decode__124M=decoding([2.0], [1.0])))
    assert "transformers" not in report.losses(results(decode__124M=decoding([1.0], [2.0])))


def test_tables_show_median_range_and_disagreement():
    found = results(decode__124M=decoding([1.0, 2.0], [2.0, 8.0]))
    assert "| transformers | 40.0 (16.0 to 64.0) | 3.00 (2.00 to 4.00) | yes |" in (
        report.tables(found))
    found["parts"]["decode/124M"]["samples"][1]["same"] = 17
    assert "first 17 of 128 tokens" in report.tables(found)


def test_fill_replaces_the_text_between_the_marks_which_it_needs():
    readme = "a\n<!-- x -->\nold\n<!-- /x -->\nb"
    assert report.fill(readme, {"x": r"\1 new"}) == "a\n<!-- x -->\n\\1 new\n<!-- /x -->\nb"
    with pytest.raises(ValueError, match="0 places"):
        report.fill(readme, {"y": ""})


def test_the_readme_has_a_place_for_every_table():
    readme = (Path(report.__file__).parent / "README.md").read_text(encoding="utf-8")
    for name in (*report.SECTIONS, "setting", "promises", "losses"):
        assert readme.count(f"<!-- {name} -->") == readme.count(f"<!-- /{name} -->") == 1


@pytest.mark.parametrize("x, digits", [(0.01234, "0.0123"), (1.234, "1.23"), (99.96, "100.0"),
                                       (1234.5, "1,234"), (0, "0"), (None, "-")])  # fmt: skip
def test_numbers_have_three_significant_digits(x, digits):
    assert report.digits(x) == digits


def test_peers_are_grouped_to_fit_into_memory_and_the_others_refused():
    peers = ["gpt2_np", "transformers", "CTranslate2"]
    assert run.groups(peers, "124M", 20) == ([peers], {})
    found, refused = run.groups(peers, "1558M", 15)
    assert found == [["gpt2_np", "transformers"], ["gpt2_np", "CTranslate2"]]
    assert not refused
    found, refused = run.groups(peers, "1558M", 14)
    assert found == [["gpt2_np", "CTranslate2"]] and "GiB" in refused["transformers"]
    assert run.groups(peers, "1558M", 5)[0] == []


def test_texts_are_the_same_every_time_and_long_enough():
    for kind in texts.KINDS:
        found = texts.documents(kind, 20_000)
        assert found == texts.documents(kind, 20_000)
        assert sum(map(len, found)) == 20_000
    for text in (texts.REPEATING | texts.NOT_REPEATING).values():
        assert len(text) > 1500


@pytest.mark.skipif(not shutil.which("timeout"), reason="needs GNU's timeout")
@pytest.mark.parametrize("failing", ["", "decode"])
def test_the_first_run_on_a_card_keeps_what_each_step_says_and_names_those_that_failed(
    tmp_path, failing
):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$@"\ncase "$*" in *{failing or "nothing"}*) exit 1;; esac')
    python.chmod(0o755)
    script = Path(run.__file__).with_name("first_run.sh")
    done = subprocess.run(
        ["bash", script, tmp_path / "out", "60", "correct", "tests", "speed", "peers"],
        env=os.environ | {"PYTHON": str(python)}, capture_output=True, text=True,
    )  # fmt: skip
    said = (tmp_path / "out" / "first_run.log").read_text()
    assert said == done.stdout and done.returncode == bool(failing)
    assert ("not all went well: speed\n" in said) == bool(failing)
    parts = re.findall(r"--parts (.*) --minutes", said)
    assert len(parts) == 4 and set(" ".join(parts).split()) == set(gpu.PARTS)
