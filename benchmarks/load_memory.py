"""Memory of their own that workers hold while they load a model to fine-tune fully, and while it is saved.

    .venv/bin/python benchmarks/load_memory.py --before f5c2d8d [--workers 2 4] [--out FILE]

A model of SmolLM2-135M's shape in bfloat16, random weights, on processors, over gloo; with every ZeRO stage. A worker's
own memory is what is no page of a file, looked at every 2 ms, in sizes of the fp32 model: the most while a worker loads
and sets training up, what it keeps of that, and what all workers together take more while the model is saved. Each
version runs from a clone of its own, in this environment, one after the other.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from versions import clone

STAGES = (0, 1, 2, 3)
MEASURED = """
import json, multiprocessing, os, socket, sys, threading, time
from pathlib import Path
import torch, torch.distributed as dist
import datasets
from mft_ray.config import EvaluationConfig, ScalingConfig, TrainConfig
from mft_ray.data import arithmetic
from mft_ray.data.pieces import FEATURES
from mft_ray.data.store import TOKENIZER
from mft_ray.models.export import save_model
from mft_ray.models.loading import new_model
from mft_ray.training import memory
from mft_ray.training.cache import WorkerCache
from mft_ray.training.job import TrainJob
from mft_ray.training.loop import Trainer

SHAPE = {"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
         "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
         "max_position_embeddings": 512}
TINY = {**SHAPE, "hidden_size": 18, "intermediate_size": 36, "num_hidden_layers": 2}


def prepare(folder, architecture, vocabulary):
    tokenizer = arithmetic.tokenizer()
    model = new_model(architecture, vocabulary, 0)
    state = {name: weight.detach().bfloat16() for name, weight in model.named_parameters()}
    save_model(model, state, tokenizer, folder / "model")
    ids = [number % len(tokenizer) for number in range(16)]
    made = {"input_ids": ids, "labels": ids, "prompt_ids": ids[:8], "answer_tokens": 8, "answer": "", "source": None}
    for split in ("train", "validation", "test"):
        rows = {name: [{**made, "id": str(n)}[name] for n in range(8)] for name in FEATURES}
        datasets.Dataset.from_dict(rows, features=FEATURES).save_to_disk(str(folder / "data" / split))
    tokenizer.save_pretrained(str(folder / "data" / TOKENIZER))


def own():
    with open("/proc/self/status") as file:
        return sum(1024 * int(line.split()[1]) for line in file if line.startswith(("RssAnon", "RssShmem")))


class Most:
    def __enter__(self):
        self.most, self._over = own(), threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()

    def _look(self):
        while not self._over.wait(0.002):
            self.most = max(self.most, own())


def job(folder, out, workers, stage):
    train = TrainConfig(steps=1, eval_every=1, batch_size=workers, micro_batch_tokens=16)
    return TrainJob(method="fft", model=str(folder / "model"), data=str(folder / "data"), out=str(out), train=train,
                    evaluation=EvaluationConfig(), scaling=ScalingConfig(workers=workers, zero_stage=stage),
                    dtype="bfloat16")


def work(rank, workers, port, warm, measured, tell):
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK="0", WORLD_SIZE=str(workers), DS_ACCELERATOR="cpu",
                      MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=workers)
    memory.neighbours = lambda scaling: (workers, workers)
    cpu = torch.device("cpu")
    first = Trainer(warm, WorkerCache(cpu))
    first.method.keep(Path(warm.out))
    first.free()
    dist.barrier()
    start = own()
    with Most() as loading:
        trainer = Trainer(measured, WorkerCache(cpu))
    dist.barrier()
    held = own()
    with Most() as saving:
        trainer.method.keep(Path(measured.out))
    dist.barrier()
    tell.put({"held": held - start, "loading": loading.most - held, "saving": saving.most - held})
    dist.barrier()


def main(root):
    prepare(root / "tiny", TINY, 64)
    prepare(root / "model", SHAPE, 49152)
    context = multiprocessing.get_context("spawn")
    found = []
    for workers in json.loads(sys.argv[2]):
        for stage in json.loads(sys.argv[3]):
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            outs = [root / f"{name}-{workers}-{stage}" for name in ("warm", "out")]
            for out in outs:
                out.mkdir()
            jobs = [job(root / which, out, workers, stage) for which, out in zip(("tiny", "model"), outs)]
            tell = context.Queue()
            group = [context.Process(target=work, args=(rank, workers, port, *jobs, tell)) for rank in range(workers)]
            for each in group:
                each.start()
            told = [tell.get(timeout=300) for _ in group]
            for each in group:
                each.join()
            rows = {name: [row[name] for row in told] for name in told[0]}
            found.append({"workers": workers, "stage": stage, **rows})
            print(found[-1], file=sys.stderr, flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
"""
WEIGHTS = 49152 * 576 + 30 * (2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536 + 2 * 576) + 576


def _most(row: dict[str, list[float]]) -> float:
    return max(held + more for held, more in zip(row["held"], row["loading"], strict=True))


def _kept(row: dict[str, list[float]]) -> float:
    return max(row["held"])


def _saving(row: dict[str, list[float]]) -> float:
    return sum(row["saving"])


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--before", required=True, help="a commit")
    arguments.add_argument("--workers", type=int, nargs="+", default=[2, 4])
    arguments.add_argument("--stages", type=int, nargs="+", default=STAGES)
    arguments.add_argument("--out", type=Path)
    options = arguments.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, commit in (("before", options.before), ("now", "HEAD")):
            code = clone(commit, Path(scratch) / name)
            script, data = Path(scratch) / f"{name}.py", Path(scratch) / f"{name}-data"
            script.write_text(MEASURED)
            command = [sys.executable, str(script), str(data), json.dumps(options.workers), json.dumps(options.stages)]
            done = subprocess.run(
                command, env={**os.environ, "PYTHONPATH": str(code)}, check=True, stdout=subprocess.PIPE, text=True
            )
            found[name] = json.loads(done.stdout.splitlines()[-1])
    model = 4.0 * WEIGHTS
    print("| workers | ZeRO | a worker at the most, before | now | it keeps, before | now | saving, before | now |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for earlier, now in zip(found["before"], found["now"], strict=True):
        cells = [f"{count(each) / model:.2f}" for count in (_most, _kept, _saving) for each in (earlier, now)]
        print(f"| {now['workers']} | {now['stage']} | {' | '.join(cells)} |")
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
