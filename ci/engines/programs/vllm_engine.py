"""vLLM on processors, told what to do line by line.

usage: vllm_engine.py MODEL [KV_TRANSFER_CONFIG]

Reads a JSON object a line: {"do": "generate"} answers a prompt of 2,000 tokens, {"do": "forget"} drops
the prefix cache of the engine itself. Prints RESULT and a JSON object for each.
"""

import json
import os
import sys
import time
import traceback

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

PROMPT = [(7 * index) % 490 + 10 for index in range(2000)]
NEW_TOKENS = 8


def hide_lazy_libraries() -> None:
    """vLLM 0.32 without Triton looks at everything in sys.modules, and a lazy library of numba's, which
    LMCache imports, fails when it is looked at."""
    import vllm.triton_utils.dispatcher as dispatcher

    look = dispatcher._rebind_kernels

    def look_elsewhere(owner: object) -> object:
        names = [name for name in sys.modules if name.partition(".")[0] == "llvmlite"]
        hidden = {name: sys.modules.pop(name) for name in names}
        try:
            return look(owner)
        finally:
            sys.modules.update(hidden)

    dispatcher._rebind_kernels = look_elsewhere


def make_engine(model: str, transfer: str | None) -> object:
    """The engine, with its KV connector if there is one."""
    hide_lazy_libraries()
    from vllm import LLM
    from vllm.config import KVTransferConfig

    more = {"kv_transfer_config": KVTransferConfig(**json.loads(transfer))} if transfer else {}
    return LLM(
        model=model,
        dtype=os.environ.get("DTYPE", "bfloat16"),
        enforce_eager=True,
        max_model_len=4096,
        enable_prefix_caching=True,
        disable_log_stats=False,
        block_size=32,
        **more,
    )


def generate(engine: object) -> dict:
    """Answers the prompt; how many of its tokens were not computed, and how long it took."""
    from vllm import SamplingParams

    greedy = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
    begun = time.perf_counter()
    answer = engine.generate([{"prompt_token_ids": PROMPT}], greedy, use_tqdm=False)[0]
    seconds = time.perf_counter() - begun
    metrics = answer.metrics
    first = getattr(metrics, "first_token_latency", None)
    return {
        "tokens": list(answer.outputs[0].token_ids),
        "cached": answer.num_cached_tokens,
        "prompt": len(PROMPT),
        "seconds": round(seconds, 4),
        "first_token_seconds": round(first, 4) if first else None,
    }


def forget(engine: object) -> dict:
    """Drops the engine's own prefix cache.

    Blocks of an answered request are freed when its connector says that they are stored, which the engine
    hears in its next step; those of something short, which it gets to do so that it takes a step, in the
    one after that.
    """
    from vllm import SamplingParams

    for attempt in range(50):
        if engine.reset_prefix_cache():
            return {"forgotten": True, "attempts": attempt + 1}
        one = SamplingParams(temperature=0, max_tokens=2)
        engine.generate([{"prompt_token_ids": [5, 6, 7]}], one, use_tqdm=False)
        time.sleep(0.1)
        engine.llm_engine.step()
    raise RuntimeError("the engine's blocks are never freed")


def main() -> None:
    """Serves lines until there are none."""
    engine = make_engine(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)
    print('RESULT {"ready": true}', flush=True)
    for line in sys.stdin:
        order = json.loads(line)["do"]
        if order == "generate":
            told = generate(engine)
        else:
            told = forget(engine)
        print("RESULT " + json.dumps(told), flush=True)


if __name__ == "__main__":
    try:
        main()
        status = 0
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # Engines leave threads that would not let the interpreter end.
    os._exit(status)
