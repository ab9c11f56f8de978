"""`report`: one page that tells what the run is, keeps foreign text as text, fetches nothing and stays small; and in a browser, where one is."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
import torch
from splinterp import store as stores
from splinterp.cli import main
from splinterp.errors import SplinterpError
from splinterp.report import write_report
from splinterp.report.cards import SHADES
from splinterp.report.directions import directions
from splinterp.sae import SAE, SAEConfig, save_sae, to_dense

SITE = "blocks.1.hook_resid_post"
HOSTILE = "<script>window.ran = 1; document.title = 'taken'</script><img src=x onerror='window.ran = 1'> &lt;b&gt; \u2028 </title></style>"


@pytest.fixture(scope="module")
def work(tmp_path_factory, gpt2_dir, texts):
    """A folder with a store of hostile text, and two runs on it."""
    folder = tmp_path_factory.mktemp("report")
    documents = [f"{HOSTILE} {text}" for text in texts[1:40]]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    run = ["train", "--store", folder / "acts.zarr", "--latents", 64, "--k", 4]
    for arguments in (
        ["harvest", "--model", gpt2_dir, "--layer", 1, "--dataset", folder / "text.jsonl", "--tokens", "3k", "--context", 32, "--out", folder / "acts.zarr"],
        [*run, "--out", folder / "run"],
        [*run, "--out", folder / "adam", "--method", "adam"],
    ):  # fmt: skip
        with pytest.raises(SystemExit) as end:
            main([str(a) for a in arguments])
        assert not end.value.code
    return folder


@pytest.fixture(scope="module")
def made(work):
    """A report's figures, and the page."""
    figures = write_report(work / "run", out=work / "made.html", baselines=[work / "adam"], latents=20, ids=[63])
    return figures, (work / "made.html").read_text(encoding="utf-8")


class Page(HTMLParser):
    """What a browser's parser would see of a page, as far as that matters here."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.contexts: list[str] = []  # texts of the elements of class ctx
        self.marks: list[list[tuple[str, str]]] = []  # of each of these: (class, text) of the shaded tokens
        self.open = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if dict(attrs).get("class") == "ctx":
            self.contexts.append("")
            self.marks.append([])
            self.open = "ctx"
        elif tag == "mark":
            self.marks[-1].append((dict(attrs)["class"] or "", ""))
            self.open = "mark"

    def handle_endtag(self, tag):
        self.open = {"mark": "ctx", "span": "", "i": self.open}.get(tag, self.open)

    def handle_data(self, data):
        if self.open:
            self.contexts[-1] += data
        if self.open == "mark":
            name, text = self.marks[-1][-1]
            self.marks[-1][-1] = (name, text + data)


def test_nothing_of_the_corpus_is_markup_and_nothing_is_fetched(made):
    _, html = made
    page = Page(html)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 1
    assert not {"img", "link", "iframe", "object", "base"} & set(tags)
    assert not [
        name
        for _, attributes in page.tags
        for name in attributes
        if name in ("src", "style", "action") or name.startswith("on")
    ]
    assert {(attributes["href"] or "")[0] for _, attributes in page.tags if "href" in attributes} == {"#"}
    assert not re.search(r"https?:|@import|url\(|fetch\(|XMLHttp|innerHTML|\u2028", html)
    assert "&lt;script&gt;" in html
    assert any("<script>" in text for text in page.contexts)  # as text


def test_the_objective_at_half_steps_is_drawn_where_it_was_measured(made, work):
    assert "half-steps" not in made[1]  # a run too short for a solve on the way
    shutil.copytree(work / "run", work / "longer")
    lines = [json.loads(line) for line in (work / "longer" / "metrics.jsonl").read_text().splitlines()]
    for i, line in enumerate(lines):
        line |= {"objective_after_encoder": 0.9**i, "objective_after_decoder": 0.8**i} if i % 2 else {}
    (work / "longer" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_report(work / "longer", out=work / "longer.html", latents=1)
    html = (work / "longer.html").read_text(encoding="utf-8")
    for told in ("Objective at the half-steps", "longer, after the encoder", "longer, after the solve"):
        assert told in html


def test_the_policy_allows_this_script_and_this_style_alone(made):
    _, html = made
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    for name in ("script", "style"):
        (content,) = re.findall(rf"<{name}>(.*?)</{name}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy


def test_contexts_are_those_of_the_stores_columns_with_the_latents_codes(made, work, tokenizer):
    """Every context of the page, found again from the row that it names: its text, and which of its tokens are shaded how much."""
    from splinterp.sae import load_sae

    _, html = made
    opened, sae = stores.open(work / "acts.zarr"), load_sae(work / "run")
    token, position, sequence = (opened.column(name).astype(int) for name in ("token_id", "position", "sequence"))
    place = {pair: i for i, pair in enumerate(zip(sequence, position, strict=True))}
    z = to_dense(sae.encode(opened.acts(SITE, 0, opened.rows).float()), 64).numpy()
    checked = 0
    for article in html.split("<article ")[1:]:
        latent = int(re.search(r'data-id="(\d+)"', article)[1])
        page = Page(article)
        rows = [int(row) for row in re.findall(r'<b title="position \d+ of document \d+, row (\d+)">', article)]
        assert len(rows) == len(page.contexts)
        assert len(set(rows)) == len(rows)
        assert z[rows, latent].all()
        for row, text, marks in zip(rows, page.contexts, page.marks, strict=True):
            around = [place.get((sequence[row], position[row] + step)) for step in range(-14, 15)]
            there = [i for i in around if i is not None]
            decoded = tokenizer.decode(token[there], skip_special_tokens=False)
            if "\ufffd" not in decoded + text:
                visible = "".join(c if c.isprintable() else "·" for c in decoded.replace("\n", "⏎").replace("\t", "⇥"))
                assert text.replace("⋮", "") == visible
                checked += 1
            strengths = z[there, latent] / z[:, latent].max()
            assert len(marks) == np.count_nonzero(strengths)
            shades = [max(1, min(SHADES, round(s * (SHADES + 1)))) for s in strengths[strengths > 0].tolist()]
            assert (
                sum(abs(int(name[1]) - shade) for (name, _), shade in zip(marks, shades, strict=True)) <= 1
            )  # one may lie at an edge
            assert [i for i in there if z[i, latent]].index(row) == [" at" in name for name, _ in marks].index(True)
    assert checked > 50


def test_figures_are_those_of_the_run_and_its_store(made, work):
    figures, html = made
    summary = json.loads((work / "run" / "summary.json").read_text())
    assert figures["held_out"]["fvu"] == pytest.approx(summary["fvu"], rel=1e-5)
    assert figures["n_rows"] == 3000
    assert figures["l0"] == pytest.approx(4, abs=0.2)
    assert (figures["store"], figures["site"]) == (str(work / "acts.zarr"), SITE)
    assert figures["baselines"][0]["fvu"] == json.loads((work / "adam" / "summary.json").read_text())["fvu"]
    assert figures["bytes"] == len(html.encode()) < 500_000
    assert figures["latents"][0]["latent"] == 63
    assert len(figures["latents"]) == len({one["latent"] for one in figures["latents"]}) == 20
    assert "of adam: " in html
    assert "the same" in html or "lower" in html or "higher" in html
    assert all(one["raises"] and one["lowers"] for one in figures["latents"])
    assert len(re.findall(r"<polyline", html)) >= 6  # curves of both runs
    assert "before its last solve" in html


def test_neighbours_in_blocks_are_those_of_all_cosines(monkeypatch):
    g = torch.Generator().manual_seed(0)
    W = torch.randn(50, 8, generator=g)
    W[7] = 0
    sae = SAE(SAEConfig("standard", 8, 50), W.T.clone(), torch.zeros(50), W, torch.zeros(8))
    monkeypatch.setattr("splinterp.report.directions.MOST_ELEMENTS", 350)
    found = directions(sae, 3)
    cosines = torch.nn.functional.cosine_similarity(W[:, None], W[None], dim=2).fill_diagonal_(-2)
    assert torch.allclose(torch.from_numpy(found.cosines), cosines.topk(3).values, atol=1e-5)
    assert torch.allclose(cosines.gather(1, torch.from_numpy(found.nearest)), torch.from_numpy(found.cosines), atol=1e-5)
    assert found.encoder == pytest.approx([1.0] * 7 + [0.0] + [1.0] * 42, abs=1e-5)
    assert found.norms == pytest.approx(W.norm(dim=1).numpy())


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "abstopk"])
def test_any_sae_and_any_store_is_reported_as_far_as_it_goes(tmp_path, architecture, cli):
    """No run's files, a store without text, and a latent that never fires."""
    g = torch.Generator().manual_seed(0)
    tensors = [torch.randn(*shape, generator=g) for shape in ((16, 24), (24,), (24, 16), (16,))]
    tensors[0][:, 5], tensors[1][5] = 0, 0 if architecture == "abstopk" else -1
    if architecture == "standard":
        tensors[2] = torch.nn.functional.normalize(tensors[2], dim=1)  # norms that are one number, up to rounding
    threshold = torch.full((24,), 0.5) if architecture == "jumprelu" else None
    save_sae(
        SAE(SAEConfig(architecture, 16, 24, 3 if architecture == "abstopk" else None), *tensors, threshold), tmp_path / "sae"
    )
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((700, 16)).astype(np.float32))
    stores.import_files([tmp_path / "x.npy"], tmp_path / "acts.zarr")
    arguments = ["report", tmp_path / "sae", "--out", tmp_path / "r.html", "--json"]
    code, _, err = cli(*arguments)
    assert code == 1
    assert "name it with --store" in err
    code, out, err = cli(*arguments, "--store", tmp_path / "acts.zarr", "--latent", 5, "--latents", "1M")
    assert code == 0, err
    figures = json.loads(out)
    assert figures["dead"] == 1
    assert len(figures["latents"]) == 24
    assert any("Contexts are not shown" in note for note in figures["notes"])
    assert any("Tokens are not shown" in note for note in figures["notes"])
    html = (tmp_path / "r.html").read_text()
    assert "Fires on no row of the store." in html
    assert "Nothing was recorded of it." in html


def test_mistakes_are_sentences(cli, work, tmp_path, gemma2_dir):
    def sentence(*arguments):
        code, _, err = cli("report", work / "run", "--out", tmp_path / "r.html", *arguments)
        assert code == 1
        assert "Traceback" not in err
        assert not (tmp_path / "r.html").exists()
        return " ".join(err.split())

    assert "There is no latent 64: the SAE has latents 0 to 63." in sentence("--latent", 64)
    assert "There is no run at" in sentence("--baseline", tmp_path / "none")
    assert "There is no model directory" in sentence("--model", tmp_path / "none")
    assert "has no site 'else'" in sentence("--site", "else")
    assert "There is no folder" in sentence("--out", tmp_path / "none" / "r.html")
    (tmp_path / "there.html").write_text("mine")
    assert "exists already" in sentence("--out", tmp_path / "there.html")
    assert (tmp_path / "there.html").read_text() == "mine"
    moved = shutil.copytree(work / "run", tmp_path / "moved")
    described = json.loads((moved / "run.json").read_text())
    (moved / "run.json").write_text(json.dumps({**described, "store": str(tmp_path / "gone.zarr")}))
    with pytest.raises(SplinterpError, match="is no longer there; name it with --store"):
        write_report(moved, out=tmp_path / "r.html")


def test_another_store_than_the_runs_is_said_and_names_are_text_too(work, tmp_path):
    other = stores.subset(work / "acts.zarr", tmp_path / "<img src=x>.zarr", rows=1000)
    run = shutil.copytree(work / "run", tmp_path / "<img src=x onerror='x'>")
    figures = write_report(run, other, tmp_path / "r.html", latents=2, baselines=[run])
    assert "img" not in [tag for tag, _ in Page((tmp_path / "r.html").read_text()).tags]
    assert any("is not the store that" in note for note in figures["notes"])


# In a browser.


@pytest.fixture
def opened(browser, made, work):
    """The page, open, and a function that runs JavaScript in it."""
    browser.get(f"file://{work / 'made.html'}")
    yield lambda code: browser.execute_script(f"return {code}")
    assert browser.get_log("browser") == []  # neither errors nor refusals of the policy


IDS = "[...document.querySelectorAll('article:not([hidden])')].map(e => Number(e.dataset.id))"


def test_in_a_browser_hostile_text_does_not_run(opened, browser):
    assert opened("window.ran") is None
    assert browser.title == "run: a sparse autoencoder's report"
    assert opened("document.images.length + document.querySelectorAll('script').length") == 1
    assert "<script>" in opened("[...document.querySelectorAll('.ctx')].map(e => e.textContent).join(' ')")


def test_in_a_browser_tokens_are_shaded_by_their_activation(opened):
    colours = opened("[...document.querySelectorAll('mark')].map(e => [e.className[1], getComputedStyle(e).backgroundColor])")
    opacity = {shade: float(re.search(r"([\d.]+)\)$", colour)[1]) for shade, colour in colours}
    assert len(opacity) > 5
    assert [opacity[shade] for shade in sorted(opacity)] == sorted(set(opacity.values()))


def test_in_a_browser_latents_are_sorted(opened, made):
    given = [one["latent"] for one in made[0]["latents"]]
    assert opened(IDS) == given
    by = {one["latent"]: one for one in made[0]["latents"]}

    def sort(how):
        opened(
            f"(() => {{ const s = document.getElementById('sort'); s.value = '{how}'; s.dispatchEvent(new Event('change')) }})()"
        )
        return opened(IDS)

    assert sort("id") == sorted(given)
    for how, key, sign in (
        ("max", "max", -1),
        ("density-up", "density", 1),
        ("density-down", "density", -1),
        ("interest", "interest", -1),
    ):
        values = [sign * by[i][key] for i in sort(how)]
        assert all(b - a > -1e-5 * abs(a) for a, b in pairwise(values)), how
    assert sort("given") == given


def test_in_a_browser_latents_are_found_by_number_and_text_with_the_keyboard_alone(opened, browser, made):
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    def shown(condition):
        seen = []  # what the condition was true of, and nothing that came after
        WebDriverWait(browser, 30).until(lambda _: seen.append(opened(IDS)) or (seen[-1] is not None and condition(seen[-1])))
        return seen[-1]

    everything = opened(IDS)
    body = browser.find_element("tag name", "body")
    body.send_keys("/")
    assert opened("document.activeElement.id") == "search"
    browser.switch_to.active_element.send_keys("#63")
    assert shown(lambda ids: len(ids) < 20)[0] == 63
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert shown(lambda ids: len(ids) == 20) == everything
    texts = {
        int(one): opened(f"[...document.querySelectorAll('#latent-{one} .ctx')].map(e => e.textContent.toLowerCase())")
        for one in everything
    }
    browser.switch_to.active_element.send_keys("CLASS")
    wanted = [one for one in everything if any("class" in text for text in texts[one])]
    assert len(wanted) > 0
    assert shown(lambda ids: ids == wanted)
    browser.switch_to.active_element.send_keys(" no such text at all")
    assert shown(lambda ids: not ids) == []
    assert opened("document.getElementById('none').hidden") is False
    target = everything[3]
    opened(f"location.hash = '#latent-{target}'")
    assert target in shown(lambda ids: len(ids) == 20)
    assert opened("document.activeElement.id") == f"latent-{target}"


def test_in_a_browser_the_page_fits_a_phone(opened, browser):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    )
    assert opened("document.documentElement.scrollWidth") == 390
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert opened("document.documentElement.scrollWidth") > 390
