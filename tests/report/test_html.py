import json
import re
import shutil
import subprocess
from base64 import b64encode
from hashlib import sha256
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from mft_ray.cli.main import main
from mft_ray.config import parse_config
from mft_ray.config.stages import flatten, made_from
from mft_ray.report.html import render
from mft_ray.report.leaderboard import text
from mft_ray.report.verdict import banner
from mft_ray.runs.reading import read


class Page(HTMLParser):
    """What a browser would show and fetch: text outside scripts and styles, tags, and addresses."""

    def __init__(self, page):
        super().__init__()
        self.text, self.tags, self.fetched, self.open = "", [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag in ("script", "style"):
            self.open.append(tag)
        self.fetched += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self.open.pop()

    def handle_data(self, data):
        if not self.open:
            self.text += data


def figures(html):
    """Each figure's traces and layout, as plotly is given them."""
    found = {}
    decode = json.JSONDecoder().raw_decode
    for match in re.finditer(r'Plotly\.newPlot\(\s*"figure-(\w+)",\s*', html):
        traces, end = decode(html, match.end())
        layout, _ = decode(html, end + re.match(r",\s*", html[end:]).end())
        found[match[1]] = (traces, layout)
    return found


@pytest.fixture
def html(make_run):
    return render(make_run()).read_text(encoding="utf-8")


def test_page_is_whole_and_self_contained(html):
    page = Page(html)
    assert page.fetched == []
    assert "@import" not in html.split("<script>", 1)[0]
    assert html.count("plotly.js v") == 1
    assert list(figures(html)) == ["forest", "trials", "ratio", "layers", "fft"]


def test_verdict_comes_first_then_the_leaderboard(html):
    text = Page(html).text
    order = [
        "Better than FFT",
        "Yes: on 6,000 untouched",
        "+1.43 to +2.78",
        "What next",
        "Leaderboard",
        "Configuration",
    ]
    positions = [text.index(part) for part in order]
    assert positions == sorted(positions)
    for part in (
        "90.15 %",
        "89.18 %",
        "from an exact McNemar test",
        "no longer improved",
        "−0.1412",
        "2 min 02 s",
        "1,843,200",
    ):
        assert part in text


def test_a_baseline_that_continued_fft_did_not_improve_is_told_so(make_run):
    run = make_run()
    path = run / "baseline.json"
    baseline = json.loads(path.read_text())
    baseline["continued"]["best_step"] = 0
    path.write_text(json.dumps(baseline))
    assert "it got no better" in Page(render(run).read_text()).text


def test_a_verdict_without_continued_fft_says_so_and_shows_what_there_is(make_run):
    run = make_run()
    path = run / "verdict.json"
    verdict = json.loads(path.read_text())
    verdict |= {key: None for key in verdict if "continued_fft" in key}
    seeds = [{"fft": 0.88, "mft": 0.9}, {"fft": 0.87, "mft": 0.9}]
    delta = {"mean": 0.025, "sd": 0.007, "ci95": [-0.04, 0.09]}
    verdict |= {
        "beats_fft": False,
        "not_run": {"continued_fft": "it was killed"},
        "seeds": {"n": 2, "runs": seeds, "delta": delta, "delta_continued_fft": None, "within_noise": True},
        "sentence": "Not shown: FFT continued could not be run: it was killed.",
    }
    for row in verdict["extra"]:
        row["continued"] = None
    path.write_text(json.dumps(verdict))
    path = run / "baseline.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "continued": None}))
    assert banner(read(run)).label == "Better than FFT; FFT continued could not be run"
    page = Page(render(run).read_text(encoding="utf-8"))
    assert "Not shown: FFT continued could not be run: it was killed." in page.text
    assert "trained on for the winner" not in page.text  # no card of what is not there
    assert "FFT continued" not in text(read(run))


def test_users_text_is_escaped(html):
    page = Page(html)
    assert "quick<b>start" in page.text
    assert "trial<i>99" in page.text
    assert "</script><b>" in page.text
    assert "out of memory in <linear>" in page.text
    assert "i" not in page.tags
    assert "linear" not in page.tags


def test_every_score_figure_has_the_fft_line_axes_and_units(html):
    for name, (traces, layout) in figures(html).items():
        assert layout["xaxis"]["title"]["text"]
        if name != "forest":
            assert layout["yaxis"]["title"]["text"] == "Exact match (%)"
            assert "FFT 88.40 %" in [trace.get("name") for trace in traces]
            assert any(shape.get("y0") == shape.get("y1") == pytest.approx(88.4) for shape in layout["shapes"])


def test_figures_show_the_numbers(html):
    made = figures(html)
    names = [trace["name"] for trace in made["trials"][0]]
    # Twelve trials, continued FFT and the line of FFT.
    assert len(names) == 14
    assert {"winner", "FFT continued", "below FFT"} <= set(names)
    forest = made["forest"][0]
    assert [trace["y"] for trace in forest] == [["Mask − FFT continued"], ["Mask − FFT"]]
    assert forest[1]["x"][0] == pytest.approx(2.1)
    assert forest[1]["x"][0] - forest[1]["error_x"]["arrayminus"][0] == pytest.approx(1.43)
    ratios = [x for trace in made["ratio"][0] if trace["name"] not in ("winner", "FFT 88.40 %") for x in trace["x"]]
    assert sorted(ratios) == pytest.approx([5 + 3 * index for index in range(12)])
    assert made["layers"][1]["xaxis"]["categoryarray"] == ["0-3", "0-7", "4-7"]
    assert made["fft"][0][0]["x"][-1] == 2400


def test_unfinished_search_says_so(make_run):
    html = render(make_run(verdict=False)).read_text(encoding="utf-8")
    text = Page(html).text
    assert "No verdict yet" in text
    assert "selection, not proof" in text
    assert "best so far" in text
    assert "forest" not in figures(html)


@pytest.mark.parametrize(
    ("change", "mood"),
    [
        ({}, "yes"),
        ({"beats_fft": False, "beats_continued_fft": False}, "partly"),
        ({"beats_fft": False}, "partly"),  # within seed noise
        ({"beats_fft": False, "better_than_fft": False, "ci95": [-0.01, 0.02]}, "no"),
        ({"beats_fft": False, "better_than_fft": False, "ci95": [-0.03, -0.01]}, "worse"),
        # An interval below zero and a test that does not agree: the sentence claims no loss, nor does the banner.
        ({"beats_fft": False, "better_than_fft": False, "ci95": [-0.03, -0.001], "p_value": 0.06}, "no"),
        ({"beats_fft": False, "better_than_fft": False, "ci95": [-0.03, -0.01], "worse_than_fft": False}, "no"),
    ],
)
def test_banner_says_what_the_verdict_says(make_run, change, mood):
    run = make_run()
    path = run / "verdict.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert banner(read(run)).mood == mood


def test_seeds_rivals_and_other_tasks_are_shown(make_run):
    run = make_run()
    path = run / "verdict.json"
    spread = {"mean": 0.012, "sd": 0.004, "ci95": [0.002, 0.022]}
    scores = {"fft": 0.88, "mft": 0.9, "continued": 0.89}
    lost = {"metric": "ifeval: strict", "n": 541, "fft": 0.3, "continued": 0.3, "mft": 0.2, "delta": -0.1}
    change = {
        "seeds": {"n": 2, "runs": [scores] * 2, "delta": spread, "delta_continued_fft": spread, "within_noise": False},
        "rival": {"method": "lora", "score": 0.87, "delta": 0.0315, "ci95": [0.02, 0.04], "p_value": 0.001},
        "selection": {"split": "validation", "n": 2000, "metric": "exact_match", "trials": 12},
        "other_tasks": [{**lost, "ci95": [-0.15, -0.05], "p_value": 0.001, "worse": True}],
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    html = render(run).read_text(encoding="utf-8")
    text = Page(html).text
    assert "2,000 validation examples, none of them trained on, chose one of 12 trials." in text
    assert "Worse than FFT beyond noise: ifeval: strict." in text
    assert "+1.20 (+0.20 to +2.20)" in text
    assert figures(html)["forest"][0][0]["y"] == ["Mask − lora"]
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"looks": [{"trial_id": name, "time": "now"} for name in "ab"]})
    )
    assert "looked at 2 times" in Page(render(run).read_text(encoding="utf-8")).text


def test_discordant_examples_stand_side_by_side(make_run):
    run = make_run()
    examples = [
        {"prompt": "1 + <b>1</b> =", "answer": "2", "fft": "3", "mft": "2", "scores": {"fft": 0, "mft": 1}},
        {"prompt": "2 + 2 =", "answer": "4", "fft": "4", "mft": "cinq", "scores": {"fft": 1, "mft": 0}},
    ]
    (run / "work").mkdir()
    sets = [{"on": "test", "metric": "exact_match", "examples": examples}]
    (run / "work" / "discordant.json").write_text(json.dumps({"sets": sets}))
    text = Page(render(run).read_text(encoding="utf-8")).text
    assert text.index("Exact match: FFT is better (1)") < text.index("cinq")
    assert text.index("cinq") < text.index("Exact match: the mask is better (1)") < text.index("1 + <b>1</b> =")


def test_verdict_of_the_bare_contract_is_enough(make_run):
    run = make_run()
    path = run / "verdict.json"
    keys = ["metric", "split", "n", "fft", "mft", "delta", "ci95", "p_value", "beats_fft", "trial_id"]
    verdict = json.loads(path.read_text())
    path.write_text(json.dumps({key: verdict[key] for key in keys}))
    (run / "curves.json").unlink()
    html = render(run).read_text(encoding="utf-8")
    assert "the mask beats FFT: 90.15 % against 88.05 %" in Page(html).text
    assert list(figures(html)) == ["forest", "ratio", "layers"]


def test_a_search_whose_trials_all_failed_still_has_a_report(make_run):
    run = make_run(trials=0, verdict=False)
    (run / "curves.json").unlink()
    text = Page(render(run).read_text(encoding="utf-8")).text
    assert "No trial has a score yet." in text
    assert "FFT baseline" in text


def test_trials_without_the_usual_settings_are_left_out_of_figures(make_run):
    run = make_run(trials=2, verdict=False)
    path = run / "leaderboard.json"
    board = json.loads(path.read_text())
    board["trials"][0]["config"] = {}
    path.write_text(json.dumps(board))
    assert {"ratio", "layers"} <= set(figures(render(run).read_text(encoding="utf-8")))


def test_nothing_half_written_and_written_again(make_run):
    run = make_run()
    before = {path.name for path in run.iterdir()}
    render(run)
    first = (run / "report.html").stat().st_size
    render(run)
    assert {path.name for path in run.iterdir()} == before | {"report.html"}
    assert (run / "report.html").stat().st_size == first


def test_command_prints_where_the_report_is(make_run, capsys):
    run = make_run()
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"report  {run / 'report.html'}\n"


def test_command_refuses_what_is_no_run_folder(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "baseline.json" in printed.err
    assert printed.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def _settle(run: Path, path: str, value: object) -> None:
    """Let the run's stages have been made with what config.yaml has, but for one setting."""
    config = parse_config(yaml.safe_load((run / "config.yaml").read_text()))
    flat = {**flatten(config.model_dump(mode="json")), path: value}
    stages = {stage: made_from(stage, flat) for stage in ("data", "baseline", "trials")}
    (run / "work").mkdir()
    (run / "work" / "settled.json").write_text(json.dumps({"schema": 1, "stages": stages}))


def test_settings_that_were_never_used_are_not_printed_as_if_they_had_been(make_run):
    run = make_run()
    _settle(run, "train.lr", 0.00321)
    text = render(run).read_text()
    assert "config.yaml was changed after this run had used it" in text
    assert "<li>train.lr was 0.00321 for the trials, and is now 2e-05</li>" in text
    printed = yaml.safe_load(unescape(text.split("<pre>")[-1].split("</pre>")[0]))
    assert printed["train"]["lr"] == 0.00321
    assert printed["run"]["name"] == "quick<b>start"
    assert "All settings (as they were used)" in text
    # The facts above the settings are those of what was used, too.
    (run / "work" / "settled.json").unlink()
    (run / "work").rmdir()
    _settle(run, "data.task", "gsm8k")
    assert "<dt>Task</dt><dd>gsm8k</dd>" in render(run).read_text()


def test_a_config_as_it_was_used_is_printed_as_it_is(make_run):
    run = make_run()
    _settle(run, "verdict.seeds", 7)  # the verdict has not begun
    text = render(run).read_text()
    assert "was changed after" not in text
    assert unescape(text.split("<pre>")[-1].split("</pre>")[0]) == (run / "config.yaml").read_text()


def test_a_config_that_is_no_longer_one_does_not_hide_what_was_used(make_run):
    run = make_run()
    _settle(run, "train.lr", 0.00321)
    (run / "config.yaml").write_text("{train: {lrr: 1}, model: {path: x}}")
    text = render(run).read_text()
    assert "config.yaml has an unknown key train.lrr" in text
    assert yaml.safe_load(unescape(text.split("<pre>")[-1].split("</pre>")[0]))["train"]["lr"] == 0.00321


def test_a_page_runs_its_own_scripts_and_fetches_nothing(html):
    [policy] = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', html)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert "unsafe" not in rules["script-src"]
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", html, re.DOTALL)
    hashes = {f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" for script in scripts}
    assert set(rules["script-src"].split()) == hashes
    assert len(hashes) > 3


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here")
def test_a_browser_draws_every_figure_and_refuses_nothing(make_run, tmp_path):
    page = render(make_run())
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
    command += ["--enable-logging=stderr", "--virtual-time-budget=10000", "--dump-dom", page.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert shown.stdout.count('class="main-svg"') >= len(figures(page.read_text(encoding="utf-8"))) > 2
    assert "CONSOLE" not in shown.stderr
    # A script that is not the page's own is refused.
    hostile = page.with_name("hostile.html")
    hostile.write_text(
        page.read_text(encoding="utf-8").replace("</body>", "<script>document.title='mine'</script></body>")
    )
    shown = subprocess.run([*command[:-1], hostile.as_uri()], capture_output=True, text=True, timeout=400)
    assert "Content Security Policy" in shown.stderr
    assert "<title>mine" not in shown.stdout


def test_costs_are_of_what_was_searched(make_run):
    run = make_run()
    config = yaml.safe_load((run / "config.yaml").read_text())
    config.setdefault("search", {})["method"] = "lora"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    page = Page(render(run).read_text(encoding="utf-8"))
    assert "Mask, trial" not in page.text
    assert "Adapter, trial" in page.text
