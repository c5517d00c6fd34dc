"""What runs vLLM: a script of its own, which imports nothing of ours; see `mft_ray.evaluation.vllm.engine`.

It reads a request (JSON) from its standard input and writes a line of JSON for each text: its number, its tokens, and
whether it came to a stop. When it ends, so does whatever vLLM holds on the GPU.
"""

from __future__ import annotations

import json
import os
import sys

# Texts are passed on when so many are done; within, vLLM batches as it likes.
AT_ONCE = 512


def main() -> None:
    """Serve one request."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM logs to standard output
    request = json.loads(sys.stdin.buffer.read())
    prompts, limit = request["prompts"], request["max_new_tokens"]

    from vllm import LLM, SamplingParams

    # A cache for the longest of these, not for the longest that the model could take.
    longest = max(len(prompt) for prompt in prompts)
    model = LLM(
        model=request["model"],
        dtype=request["dtype"],
        trust_remote_code=False,
        max_model_len=longest + limit,
        gpu_memory_utilization=request["memory"],
    )
    greedy = SamplingParams(
        temperature=0, max_tokens=limit, stop=request["until"] or None, stop_token_ids=request["ends"]
    )
    for start in range(0, len(prompts), AT_ONCE):
        given = [{"prompt_token_ids": prompt} for prompt in prompts[start : start + AT_ONCE]]
        for number, made in enumerate(model.generate(given, greedy, use_tqdm=False), start=start):
            [output] = made.outputs
            print(json.dumps([number, list(output.token_ids), output.finish_reason == "stop"]), file=answers)
        answers.flush()


if __name__ == "__main__":  # vLLM starts processes that import this file again
    main()
