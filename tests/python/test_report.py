"""The HTML report in a real browser: no console message, charts drawn, readable on a laptop and on paper."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from flexkv.paths import program

IMAGE = pytest.importorskip("PIL.Image", reason="pixels are looked at with Pillow")
NASTY = "</script><script>document.body.dataset.hacked=1</script><img src=x onerror='document.body.dataset.hacked=1'>"
MIB = 1 << 20


def flexkv(*arguments: str | Path) -> str:
    path = program("flexkv")
    assert path is not None, "flexkv is not built"
    done = subprocess.run([path, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Browser:
    """One headless run after another, each with a fresh profile."""

    def __init__(self, path: str, directory: Path) -> None:
        self._path, self._directory = path, directory

    def run(self, page: Path, *flags: str) -> tuple[str, str]:
        command = [self._path, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        command += [
            "--hide-scrollbars",
            f"--user-data-dir={self._directory / 'profile'}",
            "--enable-logging=stderr",
            *flags,
            f"file://{page}",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr
        console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
        assert console == [], "the page wrote to the console"
        return done.stdout, done.stderr

    def document(self, page: Path) -> str:
        return self.run(page, "--window-size=1366,768", "--dump-dom")[0]


@pytest.fixture
def browser(tmp_path: Path) -> Browser:
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on this machine (Debian package chromium; scripts/install.sh installs it as root)")
    return Browser(path, tmp_path)


def body_of(document: str) -> dict[str, str]:
    found = re.search(r"<body([^>]*)>", document)
    assert found is not None
    return dict(re.findall(r'data-([a-z]+)="([^"]*)"', found.group(1)))


def canvases_of(document: str) -> dict[str, int]:
    """Label of each chart, and how many points it drew."""
    found = {}
    for tag in re.findall(r"<canvas[^>]*>", document):
        label, drawn = re.search(r'aria-label="([^"]*)"', tag), re.search(r'data-drawn="(\d+)"', tag)
        assert label is not None
        assert drawn is not None
        found[label.group(1)] = int(drawn.group(1))
    return found


def measured_trace(path: Path, label: str) -> None:
    """Conversations of four turns, found in memory and on SSD, some transfers slow."""
    lines: list[dict[str, object]] = [
        {
            "k": "config",
            "flexkv_trace": 1,
            "run": "00000000000000aa",
            "file": 0,
            "unix_ms": 1700000000000,
            "hashes": "short",
            "config": {"cache_config": {"cpu_cache_bytes": 64 * MIB, "evict_ratio": 0.05, "evict_start_ratio": 0.7}},
        },
        {"k": "ns", "ns": 1, "label": label},
    ]
    for request in range(240):
        chat, turn, at = request % 60, request // 60, 5000 + request * 2_000_000_000
        chain = [f"{chat % 6 * 100 + 1:016x}"] + [f"{(chat + 1) * 1000 + block:016x}" for block in range(2 + 2 * turn)]
        found = (1 + 2 * turn) if turn else 0
        get: dict[str, object] = {"k": "get", "t": at, "engine": 1, "request": request, "ns": 1, "tokens_per_block": 16}
        get |= {"prompt": 16 * len(chain) + 5, "match_ns": 900 + request, "hashes": "".join(chain)}
        if found:
            cpu = found // 2
            get |= {"cpu_hit": 16 * cpu, "ssd_hit": 16 * (found - cpu), "loaded": 16 * found, "queue_ns": 20_000}
            get |= {"load_ns": found * (2 + request % 17) * 1_000_000, "load_bytes": found * MIB}
            get |= {"ssd_ns": found * (5 + request % 90) * 1_000_000, "ssd_bytes": (found - cpu) * MIB}
        put: dict[str, object] = {"k": "put", "t": at + 900_000, "engine": 1, "request": request, "ns": 1}
        put |= {"tokens_per_block": 16, "blocks": len(chain), "held": found, "accepted": len(chain) - found}
        put |= {"store_ns": 4_000_000, "store_bytes": (len(chain) - found) * MIB, "hashes": "".join(chain)}
        lines += [get, put]
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n")


def test_everything_is_drawn_and_nothing_escapes(tmp_path: Path, browser: Browser) -> None:
    trace = tmp_path / "<b>trace&.jsonl"
    page = tmp_path / "report.html"
    measured_trace(trace, NASTY)
    flexkv("trace", "report", trace, "-o", page)
    document = browser.document(page)
    body = body_of(document)
    assert body["ready"] == "yes"
    assert "hacked" not in body
    assert body["wide"] == "no", "the page is wider than a laptop's screen"
    canvases = canvases_of(document)
    assert len(canvases) == int(body["charts"])
    assert set(canvases) >= {
        "Hit rate over time",
        "Hit rate by capacity and policy",
        "Latency CPU to GPU",
        "Latency GPU to CPU",
        "Latency SSD to CPU",
        "Reuse distance",
        "Prompt lengths",
    }
    assert min(canvases.values()) > 0, canvases
    assert "&lt;b&gt;trace&amp;.jsonl" in document
    for words in (">good<", "SSD to CPU is slow", "Shared prefixes", "Slowest operations"):
        assert words in document
    assert not re.search(r'(?:src|href)="(?!data:)', document), "the page would fetch something"


def test_charts_show_on_a_laptop_and_on_paper(tmp_path: Path, browser: Browser) -> None:
    trace, page = tmp_path / "trace.jsonl", tmp_path / "report.html"
    measured_trace(trace, "model")
    flexkv("trace", "report", trace, "-o", page)
    shot = tmp_path / "shot.png"
    browser.run(page, "--window-size=1366,3400", f"--screenshot={shot}")
    with IMAGE.open(shot) as image:
        assert image.size[0] == 1366
        colors = {color: count for count, color in image.convert("RGB").getcolors(1 << 24)}
    blue, red = (0x25, 0x63, 0xA8), (0xB3, 0x36, 0x2B)
    assert colors.get(blue, 0) > 5000, "bars and lines"
    assert colors.get(red, 0) > 300, "bars above the target"
    laptop = tmp_path / "laptop.png"
    browser.run(page, "--window-size=1366,768", f"--screenshot={laptop}")
    with IMAGE.open(laptop) as image:
        assert image.size == (1366, 768)
    paper = tmp_path / "report.pdf"
    browser.run(page, f"--print-to-pdf={paper}")
    data = paper.read_bytes()
    assert data.startswith(b"%PDF")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", data)) <= 8


@pytest.mark.parametrize("kind", ["mooncake", "no hashes", "nothing found"])
def test_sections_without_data_say_so(kind: str, tmp_path: Path, browser: Browser) -> None:
    trace, page = tmp_path / "trace.jsonl", tmp_path / "report.html"
    if kind == "mooncake":
        flexkv("trace", "generate", "chat", "--requests", "300", "-o", trace)
        says = ["This format records no transfers.", "No times in this trace."]
    elif kind == "no hashes":
        measured_trace(trace, "model")
        lines = [json.loads(line) for line in trace.read_text().splitlines()]
        lines[0]["hashes"] = "none"
        for line in lines:
            if line["k"] in ("get", "put"):
                line.pop("hashes")
        trace.write_text("\n".join(map(json.dumps, lines)) + "\n")
        says = ["recorded without hashes", "No curve: ", "No two prompts begin with the same full block."]
    else:
        prompt = {"timestamp": 0, "input_length": 100, "output_length": 1, "hash_ids": [1]}
        trace.write_text(json.dumps(prompt) + "\n")
        says = ["No full block in this trace", "No two prompts begin with the same full block."]
    flexkv("trace", "report", trace, "-o", page)
    document = browser.document(page)
    assert body_of(document)["ready"] == "yes"
    for words in says:
        assert words in document, words


def test_a_page_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = program("flexkv")
    assert path is not None
    trace = tmp_path / "trace.jsonl"
    measured_trace(trace, "model")
    target = tmp_path / "missing" / "report.html"
    command = [path, "trace", "report", str(trace), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert str(target) in done.stderr
    assert os.listdir(tmp_path) == ["trace.jsonl"]
