"""benchmarks/gpu.py: its check of correctness can fail, and its parts survive each other."""
import sys
from pathlib import Path

import pytest
import strict_arrays

from gpt2_np import Config
from gpt2_np.cuda import decode_step

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
import gpu


@pytest.mark.usefixtures("few_parts")
def test_the_benchmarks_check_finds_a_right_step_right_and_a_wrong_one_wrong(xp, tmp_path):
    def rows():
        setting = gpu.Setting(rehearse=True)
        setting.config = Config(n_vocab=61, n_ctx=210, n_embd=32, n_head=4, n_layer=1)
        setting.xp, setting.new = xp, 4
        return gpu.part_correct(setting)

    units = [unit for _, unit, _ in rows()]
    assert len(units) > 10 and "WRONG" not in units
    if xp is strict_arrays:
        source = Path(decode_step.SOURCE).read_text()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(decode_step, "SOURCE", tmp_path / "decode_step.cu")
            decode_step.SOURCE.write_text(source.replace("0.044715f", "0.1f"))
            name = "step float32, 1 rows after 64, relative error"
            assert next(unit for quantity, unit, _ in rows() if quantity == name) == "WRONG"


def test_a_part_that_hangs_or_fails_keeps_the_rows_it_made(tmp_path, monkeypatch, capsys):
    script = tmp_path / "part.py"
    monkeypatch.setattr(gpu, "__file__", str(script))
    for ending, said in (("import time; time.sleep(600)", "stopped after 2 s"),
                         ("raise SystemExit('no GPU any more')", "no GPU any more")):  # fmt: skip
        script.write_text(f"print('ROW [\"speed\", \"tokens/s\", 2.5]', flush=True)\n{ending}")
        speed, failure = gpu.start_part("decode", 2, False)
        assert speed == ["speed", "tokens/s", 2.5] and failure[:2] == ["part decode", "failed"]
        assert said in failure[2] and "2.5 tokens/s" in capsys.readouterr().out
