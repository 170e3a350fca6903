"""SGLang on processors with its hierarchical cache on memkv, told what to do line by line.

usage: sglang_engine.py MODEL EXTRA [LAYOUT]

EXTRA is JSON that is added to the extra config of the storage backend. Reads a JSON object a line:
{"do": "generate"} answers a prompt of 2,000 tokens, {"do": "forget"} empties the caches in the
accelerator's and in host memory, {"do": "detach"} and {"do": "attach"} take the storage away and
bring it back, {"do": "clear"} has it emptied. Prints RESULT and a JSON object for each.
"""

import json
import os
import sys
import time
import traceback

# SGLang starts processes of its own, which import this file again.
os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("OMP_NUM_THREADS", "1")

PROMPT = [(7 * index) % 490 + 10 for index in range(2000)]
NEW_TOKENS = 8
PAGE_TOKENS = 64


def backend(extra: dict) -> str:
    """The extra config of the storage backend."""
    told = {
        "backend_name": "memkv",
        "module_path": "memkv_sglang.backend",
        "class_name": "MemKVHiCacheStorage",
        "interface_v1": 1,
    }
    return json.dumps({**told, **extra})


def make_engine(model: str, extra: dict, layout: str) -> object:
    """The engine."""
    import sglang

    return sglang.Engine(
        model_path=model,
        device="cpu",
        dtype=os.environ.get("DTYPE", "bfloat16"),
        attention_backend="torch_native",
        sampling_backend="pytorch",
        disable_cuda_graph=True,
        disable_overlap_schedule=True,
        mem_fraction_static=0.1,
        max_total_tokens=8192,
        context_length=4096,
        page_size=int(os.environ.get("PAGE", PAGE_TOKENS)),
        log_level="info",
        enable_hierarchical_cache=True,
        hicache_ratio=2.0,
        hicache_mem_layout=layout,
        hicache_io_backend="direct",
        hicache_write_policy="write_through",
        hicache_storage_prefetch_policy="wait_complete",
        hicache_storage_backend="dynamic",
        hicache_storage_backend_extra_config=backend(extra),
    )


def generate(engine: object) -> dict:
    """Answers the prompt; how many of its tokens were not computed, and how long it took."""
    greedy = {"temperature": 0, "max_new_tokens": NEW_TOKENS, "ignore_eos": True}
    begun = time.perf_counter()
    first = None
    for answer in engine.generate(input_ids=PROMPT, sampling_params=greedy, stream=True):
        first = first or time.perf_counter() - begun
    seconds = time.perf_counter() - begun
    return {
        "tokens": list(answer["output_ids"])[-NEW_TOKENS:],
        "cached": answer["meta_info"].get("cached_tokens"),
        "prompt": len(PROMPT),
        "seconds": round(seconds, 4),
        "first_token_seconds": round(first, 4),
    }


def obey(engine: object, order: str, extra: dict) -> dict:
    """Does one thing."""
    if order == "generate":
        return generate(engine)
    if order == "forget":
        return {"forgotten": bool(engine.flush_cache().success)}
    if order == "settle":
        return {}  # it writes by itself, in a thread of its own
    manager = engine.tokenizer_manager
    calls = {
        "detach": lambda: manager.detach_hicache_storage(),
        "attach": lambda: manager.attach_hicache_storage("dynamic", backend(extra)),
        "clear": lambda: manager.clear_hicache_storage(),
    }
    told = engine.loop.run_until_complete(calls[order]())
    return {"success": bool(told.success), "message": str(getattr(told, "message", ""))}


def main() -> None:
    """Serves lines until there are none."""
    extra = json.loads(sys.argv[2])
    layout = sys.argv[3] if len(sys.argv) > 3 else "page_first_direct"
    engine = make_engine(sys.argv[1], extra, layout)
    print('RESULT {"ready": true}', flush=True)
    for line in sys.stdin:
        order = json.loads(line)["do"]
        print("RESULT " + json.dumps(obey(engine, order, extra)), flush=True)


if __name__ == "__main__":
    try:
        main()
        status = 0
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
