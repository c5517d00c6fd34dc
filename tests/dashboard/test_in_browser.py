"""A search as a person meets it: begun, watched, steered and picked from in a real browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
import small_searches
import yaml
from optuna.storages import RDBStorage
from playwright.sync_api import Page, sync_playwright

from mft_ray import load_run
from mft_ray.config import DataConfig
from mft_ray.data import arithmetic
from mft_ray.data.store import open_split, prepare
from mft_ray.evaluation.example_scores import ExampleScores
from mft_ray.models.names import MASK, SCORES
from mft_ray.runs.folder import RunFolder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("chromium"), reason="needs Chromium: apt-get install chromium"),
]
# Where CI keeps what a person may look at.
SHOTS = os.environ.get("MFT_RAY_SCREENSHOTS")


def until(holds: Callable[[], Any], seconds: float = 400) -> Any:
    """Wait until something holds, and return it. A string would be evaluated in the page, which its policy forbids."""
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return found


class Watched:
    """A page, and all that went wrong in it."""

    def __init__(self, page: Page, shots: Path) -> None:
        self.page, self.shots, self.wrong, self.hosts = page, shots, list[str](), set[str]()
        page.on("console", lambda said: self.wrong.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("request", lambda sent: self.hosts.add(re.sub(r"^(\w+:/*[^/]*).*", r"\1", sent.url)))
        page.on("dialog", lambda asked: asked.accept())

    def said(self, place: str) -> str:
        return self.page.locator(place).inner_text()

    def shot(self, name: str) -> None:
        self.page.screenshot(path=str(self.shots / f"{name}.png"), full_page=True)


@pytest.fixture
def open_page(tmp_path: Path) -> Iterator[Callable[..., Watched]]:
    """Open a page in Chromium; it must go wrong nowhere and ask no other host for anything."""
    shots = Path(SHOTS) if SHOTS else tmp_path
    shots.mkdir(parents=True, exist_ok=True)
    opened: list[Watched] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])

        def open_one(address: str, **looks: Any) -> Watched:
            page = browser.new_context(**looks).new_page()
            page.set_default_timeout(120_000)
            watched = Watched(page, shots)
            opened.append(watched)
            page.goto(address)
            page.locator("#board table").wait_for()
            return watched

        yield open_one
        browser.close()
    for watched in opened:
        assert watched.wrong == []
        assert {host for host in watched.hosts if not host.startswith("data:")} <= {
            host for host in watched.hosts if host.startswith("http://127.0.0.1:")
        }


@pytest.fixture
def begun(tmp_path: Path, make_tiny: Callable[[], dict[str, Any]]) -> Iterator[tuple[Any, Path, str]]:
    """A search whose trials take their time, its folder, and the address of its dashboard."""
    tree = make_tiny()
    tree["train"] |= {"steps": 20_000, "eval_every": 50}
    stop = {"below_fft": False, "plateau": None}
    tree["search"] = {"trials": 8, "max_concurrent": 1, "stop": stop, "space": {"target": ["both", "attn"]}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree))
    search = small_searches.start(tmp_path, "--config", "tiny.yaml", "--set", "run.dir=run")
    folder = tmp_path / "run"
    until(lambda: (folder / "work").is_dir() or search.poll() is not None)
    command = [sys.executable, "-m", "mft_ray", "dashboard", str(folder), "--port", "0"]
    outer = small_searches.outer()
    board = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=outer)
    assert board.stdout
    line = board.stdout.readline()
    address = re.search(r"http://\S+", line)
    assert address, line
    yield search, folder, address[0]
    board.send_signal(signal.SIGINT)
    assert board.wait(timeout=240) == 0
    assert board.communicate()[1] == ""
    if search.poll() is None:
        small_searches.kill(search)


def test_a_search_is_watched_steered_and_picked_from(
    begun: tuple[Any, Path, str], open_page: Callable[..., Watched]
) -> None:
    search, folder, address = begun
    seen = open_page(address, viewport={"width": 1400, "height": 900})
    page = seen.page
    until(lambda: "FFT" in seen.said("#state"))

    # Curves grow by themselves.
    page.locator("tr.running").first.wait_for()
    points = "document.querySelector('#figure-trials')?.data?.map((trace) => trace.x.length).reduce((a, b) => a + b, 0)"
    few = until(lambda: page.evaluate(points))
    until(lambda: page.evaluate(points) > few + 2)
    # What Ray says of its node, and of the workers on it.
    page.locator("#cluster table").wait_for()
    until(lambda: re.search(r"1 node, [1-9]\d* workers?, .* in use, as Ray said \d+ s ago", seen.said("#cluster")))
    assert re.search(r"[\d.]+ GB of [\d.]+ GB", seen.said("#cluster tbody"))
    seen.shot("running")

    # Another configuration, copied from the trial at work and changed.
    first = page.locator("tr.running a").first.inner_text()
    page.get_by_role("button", name=f"copy and change trial {first}").click()
    page.locator("#field-ratio").fill("0.9")
    page.get_by_role("button", name="Try it").click()
    until(lambda: "lies outside search.space.ratio" in seen.said("#said"))
    page.locator("#field-ratio").fill("0.22")
    page.locator("#field-target").select_option("attn")
    page.get_by_role("button", name="Try it").click()
    until(lambda: "It begins as soon as there is room" in seen.said("#said"))
    page.locator("ul.queue li").wait_for()

    # By keyboard: the trial at work is ended, and what was asked for is tried.
    page.locator(f"tr:has-text('{first}') button", has_text="end").focus()
    page.keyboard.press("Enter")
    page.locator(f"tr:has-text('{first}'):has-text('cancelled')").wait_for()
    page.locator("tr.running:has-text('0.220'):has-text('attn')").wait_for()
    second = page.locator("tr.running a").first.inner_text()
    page.get_by_role("button", name="End the search and judge").click()
    until(lambda: "ends after the trials at work" in seen.said("#state"))
    page.locator(f"tr:has-text('{second}') button", has_text="end").click()
    until(lambda: "has a verdict" in seen.said("#state"))
    out, err = search.communicate(timeout=400)
    assert search.returncode == 0, err
    assert "a person has ended the search; 6 of 8 trials have not begun" in out
    until(lambda: page.locator("#cluster table").count() == 0, 60)
    assert not (folder / "work" / "cluster.json").exists()
    seen.shot("judged")

    # The other one is picked.
    judged = json.loads((folder / "verdict.json").read_text())["trial_id"]
    [other] = {first, second} - {judged}
    page.get_by_role("button", name=f"pick trial {other}").click()
    until(lambda: "being judged" in seen.said("#state"), 60)
    until(lambda: "being judged" not in seen.said("#state"))
    assert "failed" not in seen.said("#state")
    verdict = json.loads((folder / "verdict.json").read_text())
    assert verdict["trial_id"] == other
    assert verdict["selection"]["by_person"] is True
    assert [look["trial_id"] for look in verdict["looks"]] == [judged, other]
    assert "This was look 2 at the test examples" in verdict["sentence"]
    assert "A person picked it among 2 trials" in (folder / "report.html").read_text()
    best = load_run(folder).best
    assert best is not None
    assert best.trial.trial_id == other
    assert best.mask_path is not None

    # Two side by side, and one alone.
    for name in (first, second):
        page.get_by_label(f"compare trial {name}").check()
    page.get_by_role("button", name="Compare the marked trials").click()
    page.locator("tr.differs", has_text="ratio").wait_for()
    until(lambda: page.evaluate("document.querySelector('#figure-trials')?.data?.length > 1"))
    assert "by chance" in seen.said("main")
    until(lambda: "validation examples" in seen.said("#examples"))
    assert not any(said in seen.said("#examples") for said in ("cannot be shown", "search.keep"))
    seen.shot("compared")
    page.get_by_role("link", name=other).click()
    until(lambda: page.evaluate("document.querySelector('#figure-density')?.data?.length == 2"))
    seen.shot("trial")


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a run that has ended, and yield the address."""
    command = [sys.executable, "-m", "mft_ray", "dashboard", str(folder), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as board:
        assert board.stdout
        found = re.search(r"http://\S+", board.stdout.readline())
        assert found
        try:
            yield found[0]
        finally:
            board.send_signal(signal.SIGINT)


@pytest.fixture
def ended(make_run: Callable[..., Path]) -> RunFolder:
    """A run that has ended, with a study, and with the scores of two trials on every validation example."""
    folder = RunFolder(make_run())
    folder.work.mkdir(exist_ok=True)
    data = DataConfig(task="arithmetic", n_train=10, n_validation=30, n_test=10)
    prepare(data, arithmetic.tokenizer(), folder.data, log=lambda line: None)
    study = optuna.create_study(
        storage=RDBStorage(f"sqlite:///{folder.study}"), study_name="mft_ray", direction="maximize"
    )
    for number, name in enumerate(("trial00", "trial01")):
        out = folder.trial(name)
        out.mkdir(parents=True)
        ExampleScores.of("exact_match", [float((place + number) % 3 > 0) for place in range(30)]).save(out / SCORES)
        (out / MASK).write_bytes(b"a mask")
        (folder.tensorboard / name).mkdir(parents=True)
        trial = study.ask({"ratio": optuna.distributions.FloatDistribution(0.0, 0.5)})
        trial.set_user_attr("trial_id", name)
        study.tell(trial, 0.9)
    return folder


def test_a_page_says_why_a_trial_ended_and_where_two_disagree(
    ended: RunFolder, open_page: Callable[..., Watched]
) -> None:
    (ended.trial("trial00") / MASK).unlink()
    (ended.trial("trial01") / MASK).unlink()
    with served(ended.root) as address:
        seen = open_page(address, viewport={"width": 1280, "height": 900})
        page = seen.page
        assert f"tensorboard --logdir {ended.tensorboard}" in seen.said("#state")
        page.get_by_role("link", name="trial01").click()
        until(lambda: "Decided at step 210 of 300" in seen.said("main"))
        for said in ("it would have ended below FFT", "95 % confidence", "−1.80 points", "tensorboard --logdir"):
            assert said in seen.said("main")
        seen.shot("why")
        page.get_by_role("link", name="the whole search").click()
        for name in ("trial00", "trial01"):
            page.get_by_label(f"compare trial {name}").check()
        page.get_by_role("button", name="Compare the marked trials").click()
        until(lambda: "trial00 alone is right on 10; trial01 alone is right on 10" in seen.said("#examples"))
        assert "are all of them" in seen.said("#examples")
        assert page.locator("#examples details").count() == 20
        first = page.locator("#examples details").first
        prompt = open_split(ended.data, "validation")["id"][0]
        assert first.locator("pre").inner_text() == prompt
        assert "trial00 wrong, trial01 right" in first.inner_text()
        seen.shot("disagree")
        page.close()  # before the server does


def test_optuna_s_own_page_has_names_reasons_and_masks(ended: RunFolder, open_page: Callable[..., Watched]) -> None:
    with served(ended.root) as address:
        seen = open_page(address, viewport={"width": 1280, "height": 900})
        page = seen.page
        page.get_by_role("link", name="Optuna's dashboard").click()
        page.goto(f"{address.split('/?')[0]}/dashboard/studies/1/trials?numbers=1")
        until(lambda: "Decided at step 210 of 300" in seen.said("body"))
        for said in ("Trial trial01", "against FFT", f"trial01-{MASK}"):
            assert said in seen.said("body")
        seen.shot("optuna-trial")
        page.close()
        seen.wrong.clear()  # what another program says of itself


def test_on_a_phone_and_in_the_dark(
    make_run: Callable[..., Path], open_page: Callable[..., Watched], tmp_path: Path
) -> None:
    folder = make_run()
    (folder / "work").mkdir(exist_ok=True)
    with served(folder) as address:
        for name, looks in (
            ("phone", {"viewport": {"width": 390, "height": 844}}),
            ("dark", {"color_scheme": "dark", "viewport": {"width": 1280, "height": 900}}),
        ):
            seen = open_page(address, **looks)
            until(lambda: seen.page.evaluate("document.querySelector('#figure-trials')?.data?.length > 5"))  # noqa: B023
            # Nothing is wider than the screen; tables scroll on their own.
            assert seen.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
            seen.shot(name)
            ink = seen.page.evaluate("getComputedStyle(document.body).color")
            assert (ink == "rgb(228, 231, 235)") == (name == "dark")
            seen.page.close()  # before the server does
