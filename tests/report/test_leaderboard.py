import json

from rich.console import Console

from mft_ray.report import leaderboard
from mft_ray.runs.reading import read


def test_baselines_stand_where_they_rank(make_run):
    lines = leaderboard.lines(read(make_run()))
    kinds = [line.kind for line in lines]
    # By score: 90.6, 90.2, 89.8, 89.4 | continued 89.3 | 89.0, 88.6 | FFT 88.4 | 88.2 ...
    assert kinds.index("continued") == 4
    assert kinds.index("fft") == 7
    assert [line.ahead for line in lines if line.kind == "trial"][:7] == [1] * 6 + [-1]
    assert [line.winner for line in lines].index(True) == 0
    assert lines[-1].reason == "failed"
    assert lines[-1].place == ""


def test_a_trial_level_with_fft_stands_below_it(make_run):
    run = make_run(trials=1, verdict=False)
    board = json.loads((run / "leaderboard.json").read_text())
    board["trials"][0].update(score=0.884, delta_fft=0.0)
    (run / "leaderboard.json").write_text(json.dumps(board))
    lines = leaderboard.lines(read(run))
    assert [line.kind for line in lines] == ["fft", "trial", "trial"]
    assert lines[1].ahead == 0


def test_new_parameters_get_a_column(make_run):
    run = make_run(trials=1)
    board = json.loads((run / "leaderboard.json").read_text())
    board["trials"][0]["config"]["scope"] = "model"
    (run / "leaderboard.json").write_text(json.dumps(board))
    records = read(run)
    assert leaderboard.parameters(records)[-1] == "scope"
    assert "model" in leaderboard.text(records)


def test_text_has_a_line_per_trial_and_baseline_and_no_colour(make_run):
    text = leaderboard.text(read(make_run()))
    assert "\x1b" not in text
    assert "exact match (%) on 2,000 validation examples" in text
    for name in ("trial00 *", "trial11", "FFT baseline", "FFT continued", "trial<i>99", "+2.20", "below FFT"):
        assert name in text
    assert len(text.splitlines()) == 12 + 1 + 2 + 4


def test_limit_keeps_the_baselines_and_says_what_is_hidden(make_run):
    text = leaderboard.text(read(make_run()), limit=2)
    assert "trial01" in text
    assert "trial02" not in text
    assert "FFT baseline" in text
    assert "11 more in leaderboard.json" in text


def test_square_brackets_are_no_markup(make_run):
    run = make_run(trials=1)
    path = run / "leaderboard.json"
    path.write_text(path.read_text().replace("trial00", "[red]t"))
    console = Console(record=True, width=160, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(leaderboard.table(read(run)))
    assert "[red]t" in console.export_text()


def test_show_prints_the_table_whole(make_run, capsys):
    leaderboard.show(make_run())
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert "trial11" in printed
