"""`compare`: runs are told as they are, differences are those that there are, and a page is text that fetches nothing."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from rich.console import Console
from splinterp.cli import main
from splinterp.errors import SplinterpError
from splinterp.report.compare import as_json, page, pareto, print_comparison
from splinterp.report.plots import Axis, Series, plot
from splinterp.report.runs import RunSeen, differing, read_runs

SUMMARY = {"fvu": 0.2, "l0": 16.0, "dead_fraction": 0.1, "rows_trained": 4000, "seconds": {"train": 3.0, "last_solve": 1.0}}
DESCRIBED = {"settings": {"method": "pam", "k": 16, "lr": 0.01, "d_sae": 50}, "store": "/acts.zarr", "store_fingerprint": "f0", "site": "hook"}  # fmt: skip
LINES = [
    {"step": i, "rows": 1000 * i, "seconds": 1.0 * i, "l0": 15.0, "dead": 5.0, "held_out_fvu": 1 / (1 + i)} for i in (1, 2, 3)
]


def leave(
    path: Path, run: dict | None = DESCRIBED, summary: dict | None = SUMMARY, lines: list | None = LINES, **settings
) -> Path:
    """A run directory with these files."""
    path.mkdir(parents=True)
    if run is not None:
        (path / "run.json").write_text(json.dumps({**run, "settings": {**run["settings"], **settings}}))
    if summary is not None:
        (path / "summary.json").write_text(json.dumps(summary))
    if lines is not None:
        (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


VALUES = some.none() | some.booleans() | some.integers(-3, 3) | some.sampled_from([0.5, 1.0, "", "a"])
SETTINGS = some.dictionaries(some.sampled_from(["a", "b", "c", "d"]), VALUES)


@given(some.lists(SETTINGS, min_size=1, max_size=4))
def test_the_settings_that_differ_are_exactly_those(all_settings):
    found = differing([RunSeen(str(i), own) for i, own in enumerate(all_settings)])
    for name in "abcd":
        values = [own.get(name) for own in all_settings]
        alike = len({(value, isinstance(value, bool)) for value in values}) == 1
        assert (name in found) == (not alike)
        assert alike or found[name] == values


def test_a_run_is_told_as_it_is_and_compared_with_itself_differs_in_nothing(tmp_path):
    run = leave(tmp_path / "a")
    (seen, again), lacking = read_runs([run, leave(tmp_path / "b")])
    assert not lacking
    assert (seen.fvu, seen.l0, seen.dead, seen.rows, seen.seconds) == (0.2, 16.0, 0.1, 4000, 4.0)
    assert seen.curve == [(1000, 1.0, 1 / 2), (2000, 2.0, 1 / 3), (3000, 3.0, 1 / 4), (4000, 4.0, 0.2)]
    assert differing([seen, again]) == {}
    assert "<p>None.</p>" in page([seen, again], [])
    assert len(read_runs([run, run])[0]) == 1


def test_what_a_run_lacks_is_told_and_the_rest_is_shown(tmp_path):
    finished, running = leave(tmp_path / "done"), leave(tmp_path / "running", summary=None)
    begun = leave(tmp_path / "begun", summary=None, lines=None)
    diverged = leave(tmp_path / "diverged", {**DESCRIBED, "diverged": 7}, None)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "cfg.json").write_text(json.dumps({"architecture": "topk", "d_in": 8, "d_sae": 50, "k": 3}))
    with (running / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "ro')  # being written
    runs, lacking = read_runs([finished, running, begun, diverged, theirs])
    assert [run.fvu for run in runs] == [0.2, 1 / 4, None, 1 / 4, None]
    assert [run.finished for run in runs] == [True, False, False, False, False]
    assert runs[1].dead == 0.1
    assert runs[4].settings["k"] == 3
    assert [sentence.split()[0] for sentence in lacking] == ["running", "begun", "diverged", "theirs"]
    assert "diverged by step 7" in lacking[2]
    assert "there are no figures of it yet" in lacking[1]
    assert json.loads(json.dumps(as_json(runs, lacking), allow_nan=False))["runs"][2]["fvu"] is None


@pytest.mark.parametrize(
    ("lines", "sentence"), [(LINES[:2], "that does not come to its last step, 3"), (None, "lost its metrics.jsonl")]
)
def test_a_finished_run_without_its_whole_curve_is_told(tmp_path, lines, sentence):
    _, lacking = read_runs([leave(tmp_path / "a", summary={**SUMMARY, "steps": 3}, lines=lines)])
    assert sentence in lacking[0]
    assert read_runs([leave(tmp_path / "b", summary={**SUMMARY, "steps": 3})])[1] == []


def test_a_refit_differs_in_no_setting_that_nobody_knows_of_it(tmp_path):
    """It has no run.json; and no setting's column is headed like a figure's."""
    parent, other = leave(tmp_path / "parent", rows=10), leave(tmp_path / "other", rows=20)
    refit = leave(tmp_path / "refit", run=None, lines=None)
    (refit / "cfg.json").write_text(json.dumps({"architecture": "topk", "d_in": 8, "d_sae": 50, "k": 3}))
    runs, _ = read_runs([parent, refit])
    assert differing(runs) == {}
    runs, _ = read_runs([parent, other, refit])
    assert differing(runs) == {"rows": [10, 20, None]}
    told = io.StringIO()
    print_comparison(Console(file=told, width=200), runs)
    assert "rows, set" in told.getvalue()


def test_figures_are_never_cut(tmp_path):
    """Ten settings, in a terminal of 80 columns."""
    values = [{f"a_setting_{i}": 0.12345 * (i + 2) * j for i in range(10)} for j in (1, 2)]
    runs, _ = read_runs([leave(tmp_path / f"a-run-with-a-name-{j}", **own) for j, own in enumerate(values)])
    console = Console(file=io.StringIO(), width=80)
    print_comparison(console, runs)
    lines = console.file.getvalue().splitlines()
    for j, own in enumerate(values):
        (line,) = (line for line in lines if f"a-run-with-a-name-{j} " in line)
        assert [cell.strip() for cell in line.split("│")[7:-1]] == [f"{own[name]:g}" for name in sorted(own)]
        assert [cell.strip() for cell in line.split("│")[2:7]] == ["0.2000", "16.0", "10.0%", "4k", "4 s"]
    assert "…" not in console.file.getvalue()


def test_a_sweep_is_all_its_runs(tmp_path):
    for k in (16, 32):
        leave(tmp_path / "sweep" / f"k={k}", k=k)
    (tmp_path / "sweep" / "sweep.json").write_text(json.dumps({"members": {"k=16": {}, "k=32": {}, "k=64": {}}}))
    runs, _ = read_runs([tmp_path / "sweep"])
    assert [run.name for run in runs] == ["k=16", "k=32"]
    assert differing(runs) == {"k": [16, 32]}


@pytest.mark.parametrize("told", [{"store_fingerprint": "f1"}, {"site": "other"}])
def test_runs_on_different_rows_are_warned_of_and_none_is_the_best(tmp_path, told, capsys):
    main_runs = [str(leave(tmp_path / "a")), str(leave(tmp_path / "b", {**DESCRIBED, **told}))]
    with pytest.raises(SystemExit) as end:
        main(["compare", *main_runs, "--out", str(tmp_path / "c.html")])
    assert end.value.code == 0
    assert "evaluated on different rows" in capsys.readouterr().err
    html = (tmp_path / "c.html").read_text()
    assert "evaluated on different rows" in html
    assert "class=best" not in html


HOSTILE = "<script>alert('&\"')</script>"


def test_a_page_is_escaped_and_fetches_nothing(tmp_path):
    hostile = {**DESCRIBED, "store": HOSTILE, "site": HOSTILE, "store_fingerprint": "other"}
    runs, lacking = read_runs([leave(tmp_path / "a <b>&'", hostile, method=HOSTILE), leave(tmp_path / "b", summary=None)])
    html = page(runs, lacking)

    class Tags(HTMLParser):
        tags, links = set[str](), list[str]()

        def handle_starttag(self, tag, attrs):
            self.tags.add(tag)
            self.links += [name for name, _ in attrs if name in ("src", "href", "onload", "onerror")]

    parser = Tags()
    parser.feed(html)
    assert "script" not in parser.tags
    assert "b" not in parser.tags
    assert not parser.links
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", html)
    assert "&lt;script&gt;" in html
    for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        ElementTree.fromstring(svg)


NUMBERS = some.floats(allow_nan=True, allow_infinity=True) | some.integers(-5, 5).map(float)


@settings(max_examples=50)
@given(some.lists(some.lists(some.tuples(NUMBERS, NUMBERS), max_size=4), max_size=3), some.sampled_from(["linear", "log"]))
def test_whatever_is_drawn_lies_within_the_picture(clouds, scale):
    svg = ElementTree.fromstring(plot("<t>", Axis("x", scale), Axis("y", scale), [Series("s", points) for points in clouds]))
    marks = svg.findall(".//{*}circle")
    fits = [p for points in clouds for p in points if all(abs(v) < 1e100 and (scale == "linear" or v > 1e-100) for v in p)]
    assert len(marks) == len(fits)
    for mark in marks:
        assert 70 <= float(mark.attrib["cx"]) <= 624
        assert 34 <= float(mark.attrib["cy"]) <= 352


@given(some.lists(some.tuples(some.integers(0, 5), some.integers(0, 5)), min_size=1))
def test_the_front_holds_the_points_that_no_other_beats(points):
    beaten = {p for p in points if any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)}
    assert pareto(points) == sorted(set(points) - beaten)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: None, "There is no run at"),
        (lambda path: path.mkdir(), "is neither a run nor an SAE"),
        (lambda path: leave(path, summary=None, lines=None), "nothing to compare: .* no figures of it yet"),
        (lambda path: (leave(path) / "summary.json").write_text("[1"), "summary.json is damaged"),
        (lambda path: (leave(path) / "metrics.jsonl").write_text("3\n"), "metrics.jsonl is damaged"),
        (lambda path: (leave(path) / "sweep.json").write_text('{"members": {"../x": 1}}'), "sweep.json is damaged"),
    ],
)
def test_mistakes(tmp_path, make, sentence, capsys):
    make(tmp_path / "run")
    with pytest.raises(SplinterpError, match=sentence):
        read_runs([tmp_path / "run"])
    with pytest.raises(SystemExit) as end:
        main(["compare", str(tmp_path / "run")])
    assert end.value.code == 1
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert told.count("\n") == 1
