"""Evaluation of a model whose parameters ZeRO-3 has split over two workers that hold unequally many rows."""

import socket
from multiprocessing.queues import Queue
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mft_ray.evaluation.metrics import METRICS, per_example

ROWS = [
    {"input_ids": [3 + n, 4, 5, 6], "labels": [-100, -100, 5, 6], "prompt_ids": [3 + n, 4], "answer": "5"}
    for n in range(5)
]


def _model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=16, initializer_range=0.5, eos_token_id=1, **sizes))


def _scores(model: torch.nn.Module, rows: list[dict[str, Any]]) -> list[list[float]]:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({str(n): n for n in range(16)}, unk_token="0"))
    )
    settings = {"pad_id": 0, "eos_id": 1, "batch_size": 2, "device": "cpu", "max_new_tokens": 4}
    return [per_example(model, rows, metric, tokenizer=tokenizer, **settings) for metric in METRICS]


def _worker(rank: int, port: int, results: Queue) -> None:
    import deepspeed

    deepspeed.ops.__compatible_ops__ = {}  # or it compiles one, as mft_ray.training.engine says
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    model = _model()
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters()),
        config={"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}},
        dist_init_required=False,
    )
    assert all(hasattr(parameter, "ds_id") for parameter in engine.module.parameters())
    rows = ROWS if rank == 0 else []
    through_the_engine = _scores(engine, rows)
    assert through_the_engine == _scores(engine.module, rows)
    results.put((rank, through_the_engine))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_workers_with_unequally_many_rows_stay_in_step(monkeypatch: pytest.MonkeyPatch) -> None:
    # DeepSpeed asks the environment although the process group is there already.
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = mp.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=_worker, args=(rank, port, results), daemon=True) for rank in range(2)]
    for worker in workers:
        worker.start()
    try:
        found = dict(results.get(timeout=240) for _ in workers)
        for worker in workers:
            worker.join(timeout=240)
        assert [worker.exitcode for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
    assert found[1] == [[], [], []]
    for across, alone in zip(found[0], _scores(_model(), ROWS), strict=True):
        assert across == pytest.approx(alone, abs=1e-5)
