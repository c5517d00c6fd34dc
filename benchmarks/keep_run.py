"""Keep what a search, a comparison or a study says: configuration and results, without the paths of this machine.

    .venv/bin/python benchmarks/keep_run.py RUN NAME [COMMAND]

Writes benchmarks/results/NAME.{json,md}; COMMAND is what made the run, to stand in there. Of a study, NAME ends in that
of an experiment (toy/ratio), and its figure is kept too.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from mft_ray.utils.formatting import unit

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("run", type=Path)
    arguments.add_argument("name")
    arguments.add_argument("command", nargs="?")
    options = arguments.parse_args()
    if (options.run / "comparison.json").exists():
        keep_comparison(options.run, options.name, options.command)
        return
    if (options.run / "experiments.json").exists():
        keep_study(options.run, options.name, options.command)
        return
    read = {name: json.loads((options.run / f"{name}.json").read_text()) for name in ("leaderboard", "verdict")}
    config = _without_folders(yaml.safe_load((options.run / "config.yaml").read_text()))
    leaderboard = _without_folders(read["leaderboard"])
    content = {"machine": machine(), "config": config, "leaderboard": leaderboard, "verdict": read["verdict"]}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{options.name}.json").write_text(json.dumps(content, indent=1) + "\n")
    (RESULTS / f"{options.name}.md").write_text(page(options.name, content))


def keep(out: Path | None, text: str, content: dict[str, Any]) -> None:
    """Print what a benchmark says, and write it to OUT.md and, with the versions it ran on, to OUT.json."""
    print(text)
    if out:
        out.with_suffix(".json").write_text(json.dumps({"machine": machine(), **content}, indent=1) + "\n")
        out.with_suffix(".md").write_text(text)


def keep_study(run: Path, name: str, command: str | None) -> None:
    at = RESULTS / name
    at.parent.mkdir(parents=True, exist_ok=True)
    for ending in (".json", ".png", ".svg"):
        shutil.copyfile(run / f"{at.name}{ending}", at.with_suffix(ending))
    title, rest = (run / f"{at.name}.md").read_text().split("\n", 1)
    lines = [
        title,
        "",
        *([f"    {command}", ""] if command else []),
        f"CPU, two shared cores, {_versions(machine())}; times depend on what else ran. Raw rows are in",
        f"[{at.name}.json]({at.name}.json).",
        "",
        f"![{title.removeprefix('# ')}]({at.name}.png)",
    ]
    at.with_suffix(".md").write_text("\n".join(lines) + "\n" + rest)


def keep_comparison(run: Path, name: str, command: str | None) -> None:
    config = _without_folders(yaml.safe_load((run / "config.yaml").read_text()))
    comparison = _without_folders(json.loads((run / "comparison.json").read_text()))
    content = {"machine": machine(), "config": config, "comparison": comparison}
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    versions = _versions(content["machine"])
    lines = [
        f"# {name}",
        "",
        *([f"    {command}", ""] if command else []),
        f"CPU, two shared cores, {versions}. The configuration is in",
        f"[{name}.json]({name}.json). Intervals are 95%: of a score Wilson's or Student's, of a difference to FFT the",
        "paired bootstrap's; p is exact McNemar or paired t, corrected for the number of rows (Holm).",
        "Costs are of training and its evaluations; memory is the whole process's.",
        "",
    ]
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n" + (run / "comparison.md").read_text())


def machine() -> dict[str, str]:
    packages = ("torch", "ray", "deepspeed", "transformers", "peft", "optuna")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def _versions(machine: dict[str, str]) -> str:
    return ", ".join(f"{package} {release}" for package, release in machine.items())


def page(name: str, content: dict[str, Any]) -> str:
    verdict, leaderboard = content["verdict"], content["leaderboard"]
    shown, baseline = unit(verdict["metric"]), leaderboard["baseline"]
    versions = _versions(content["machine"])
    validation = baseline["validation"]
    lines = [
        f"# {name}",
        "",
        f"CPU, {versions}. The configuration is in [{name}.json]({name}.json). Score: {shown.label}.",
        "",
        verdict["sentence"],
        "",
        f"FFT on validation: {shown.score(validation['score'])} (n = {validation['n']:,}), best at step "
        f"{baseline.get('best_step', 0)} of {baseline.get('steps', 0)}, {baseline.get('seconds') or 0:.0f} s.",
        "",
        "| trial | ratio | layers | init | schedule | lr | step | validation | Δ FFT | stopped | s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in leaderboard["trials"]:
        point = row["config"]
        lines.append(
            f"| {row['trial_id']}{' *' if row['trial_id'] == verdict['trial_id'] else ''} | {point['ratio']:.3f} "
            f"| {point['layers']} | {point['init']} | {point['schedule']} | {point['lr']:.1e} | {row['step']} "
            f"| {shown.number(row['score'])} | {shown.signed(row['delta_fft'])} | {row['stopped_reason']} "
            f"| {row['seconds'] or 0:.0f} |"
        )
    lines += ["", "\\* judged on test", ""]
    for extra in verdict.get("extra", []):
        its = unit(extra["metric"])
        lines.append(
            f"Also on test, {its.label} (n = {extra['n']:,}): FFT {its.score(extra['fft'])}, mask "
            f"{its.score(extra['mft'])}, continued FFT {its.score(extra['continued'])}; mask − FFT "
            f"{its.delta(extra['delta'])} (95% interval {its.interval(extra['ci95'])}, p = {extra['p_value']:.2g})."
        )
    return "\n".join(lines).rstrip() + "\n"


def _without_folders(tree: Any) -> Any:
    """Keep of an absolute path its last part only."""
    if isinstance(tree, dict):
        return {key: _without_folders(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_without_folders(value) for value in tree]
    return Path(tree).name if isinstance(tree, str) and tree.startswith("/") else tree


if __name__ == "__main__":
    main()
