from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import amc as package
from amc import api
from tests.cli import nets
from tests.cli.command import NETWORK, amc

Output = pytest.CaptureFixture[str]
SHAPE = (3, 32, 32)


@pytest.fixture
def run(searched: Path, tmp_path: Path) -> Path:
    """A finished search to export."""
    return Path(shutil.copytree(searched, tmp_path / "run"))


@pytest.mark.parametrize("coder", ["range", "huffman"])
def test_a_packed_file_is_written_accounted_for_and_compared(
    run: Path, capsys: Output, coder: str
) -> None:
    assert amc("export", f"run={run}", NETWORK, "format=packed", f"coder={coder}") == 0
    shown = capsys.readouterr().out
    for said in ("bits/weight", "header and table", "times smaller", "same decision"):
        assert said in shown
    for said in ("accuracy, before", "accuracy, packed", f"written to {run / 'export'}"):
        assert said in shown
    path = run / "export" / "model.amcp"
    document = json.loads((run / "export" / "packed.json").read_text())
    assert document["size"]["file_bytes"] == path.stat().st_size
    assert sum(document["size"]["part_bytes"].values()) == path.stat().st_size
    assert document["parity"]["same"] == 1
    original = nets.tiny()
    assert document["size"]["original_float_bytes"] > path.stat().st_size
    read = package.load_packed(path, original)
    before = api.load_compressed(run, original, SHAPE)
    images = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(read(images), before(images), rtol=0, atol=2e-2)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("format=zip", "format must be one of onnx, packed, executorch, got 'zip'"),
        ("format=packed coder=zip", "coder must be one of range, huffman, got 'zip'"),
    ],
)
def test_what_is_not_offered_is_one_line(run: Path, capsys: Output, option: str, said: str) -> None:
    assert amc("export", f"run={run}", NETWORK, *option.split()) == 2
    assert said in capsys.readouterr().err
