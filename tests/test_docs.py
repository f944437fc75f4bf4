"""The blocks of a page that promises it run one after the other as they stand; links and names in the pages exist."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

from snn_ext.command import main

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
TUTORIALS = ["tutorial-spikingjelly.md", "tutorial-snntorch.md", "tutorial-convert.md", "tutorial-words.md"]
NEURONS = ["neuron-atif-u.md", "neuron-atif-nu.md", "neuron-pcmp.md", "neuron-asn.md"]
OTHERS = [
    "command.md", "quantised-twin.md", "memory.md", "deployment.md", "gallery.md", "lightning.md", "extending.md",
]  # fmt: skip
NEEDS = {"deployment.md": ("onnx", "onnxruntime", "onnxscript", "nir"), "lightning.md": ("lightning",)}
"""Packages beside those of the other tests, by page."""
REPOSITORY = "https://github.com/snn-ext/snn_ext/blob/main/"
PICTURES = "https://raw.githubusercontent.com/snn-ext/snn_ext/main/"


@pytest.mark.parametrize("page", [*OTHERS, *NEURONS, *TUTORIALS])
def test_blocks_of_the_page_run(
    page: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    for package in NEEDS.get(page, ()):
        pytest.importorskip(package)
    if page == "deployment.md":
        request.getfixturevalue("one_registry")
    monkeypatch.chdir(tmp_path)
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```(python|bash)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert sum(kind == "python" for kind, _ in blocks) >= (1 if page in NEURONS else 3)
    names: dict[str, object] = {"__name__": "__main__"}
    monkeypatch.syspath_prepend(tmp_path)
    for kind, block in blocks:
        if kind == "python":
            if file := re.match(r"# (\w+\.py)\n", block):
                Path(file[1]).write_text(block, encoding="utf-8")
            exec(compile(block, page, "exec"), names)
        else:
            for line in block.splitlines():
                run_command(line.split(), monkeypatch)
    assert "nan" not in capsys.readouterr().out


def run_command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run ``python -m MODULE ...`` or ``snn-ext`` in this process, which has imported torch; install nothing."""
    if words[0] == "snn-ext":
        main(words[1:])
        return
    if words[:2] != ["python", "-m"]:
        assert words[0] in ("pip", "#"), words
        return
    monkeypatch.setattr(sys, "argv", words[2:])
    try:
        runpy.run_module(words[2], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        assert not end.code, words


def test_links_between_pages_lead_somewhere() -> None:
    missing = []
    for page in [ROOT / "README.md", *DOCS.glob("*.md")]:
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            for prefix in (REPOSITORY, PICTURES):
                target = f"{ROOT}/{target.removeprefix(prefix)}" if target.startswith(prefix) else target
            if "://" not in target and not target.startswith("#"):
                missing += [f"{page.name}: {target}"] if not (page.parent / target.split("#")[0]).exists() else []
    assert not missing


def test_links_of_the_readme_work_on_a_page_of_its_own() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not [target for target in re.findall(r"\]\(([^)]+)\)", text) if not target.startswith("https://")]


def test_every_page_is_in_the_table_of_contents() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    reference = (DOCS / "reference.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^([\w-]+)$", index + reference, re.MULTILINE))
    assert {page.stem for page in DOCS.glob("*.md")} - {"index"} <= listed


def test_every_picture_is_shown_and_described() -> None:
    shown = "".join(page.read_text(encoding="utf-8") for page in [ROOT / "README.md", *DOCS.glob("*.md")])
    for picture in DOCS.rglob("*.png"):
        assert re.search(rf"!\[[^\]]{{4,}}\]\([^)]*{re.escape(picture.name)}\)", shown), picture


def test_the_reference_has_every_public_name_of_the_top_level() -> None:
    import snn_ext

    text = (DOCS / "reference-snn_ext.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\.\. auto(?:class|function):: snn_ext\.(\w+)$", text, re.MULTILINE))
    assert named == set(snn_ext.__all__) - {"__version__"}


def test_the_reference_has_every_public_module() -> None:
    import snn_ext

    for module in snn_ext._MODULES:
        assert f".. automodule:: snn_ext.{module}" in (DOCS / f"reference-{module}.md").read_text(encoding="utf-8")
