"""vLLM on processors with tiered offloading, told what to do line by line.

usage: vllm_tier.py MODEL TIER [EXTRA]

TIER is the JSON of one secondary tier, EXTRA that of more `kv_connector_extra_config`. Reads a JSON
object a line: {"do": "generate"} answers the prompt of vllm_engine.py, {"do": "settle"} keeps the
engine going until what it offloads has been stored or has failed, {"do": "forget"} empties its own
caches, in the accelerator's and in host memory, {"do": "stats"} tells what the tier has counted.
Prints RESULT and a JSON object for each.
"""

import json
import os
import sys
import traceback

from vllm_engine import generate, hide_lazy_libraries

STEPS = 200


def transfer_config(tier: dict, extra: dict) -> str:
    """What vLLM is told of its connector."""
    told = {
        "spec_name": "CpuTieringSpec",
        "spec_module_path": "vllm_cpu_tier",
        "cpu_bytes_to_use": 64 << 20,
        "block_size": 256,
        "secondary_tiers": [tier],
    }
    connector = {"kv_connector": "OffloadingConnector", "kv_role": "kv_both"}
    return json.dumps({**connector, "kv_connector_extra_config": {**told, **extra}})


def make_engine(model: str, transfer: str) -> object:
    """The engine; DTYPE and HASH change what it is."""
    hide_lazy_libraries()
    from vllm import LLM
    from vllm.config import KVTransferConfig

    return LLM(
        model=model,
        dtype=os.environ.get("DTYPE", "bfloat16"),
        prefix_caching_hash_algo=os.environ.get("HASH", "sha256"),
        kv_transfer_config=KVTransferConfig(**json.loads(transfer)),
        enable_prefix_caching=True,
        block_size=32,
        max_model_len=4096,
        enforce_eager=True,
        disable_log_stats=False,
    )


def remember_tiers() -> list:
    """A list of all tiers that are made from now on; vLLM keeps its own deep inside."""
    from memkv_vllm import MemkvTier

    made, make = [], MemkvTier.__init__

    def remembered(self, *arguments, **named):
        make(self, *arguments, **named)
        made.append(self)

    MemkvTier.__init__ = remembered
    return made


def settle(engine: object, tier: object) -> dict:
    """Steps of the engine, by prompts too short to be kept, until no store is under way."""
    from vllm import SamplingParams

    greedy = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
    before = None
    for step in range(STEPS):
        now = tier.stats()["store"]
        if before == now and not tier.has_pending_work() and step > 3:
            break
        before = now
        engine.generate([{"prompt_token_ids": [11 + step] * 16}], greedy, use_tqdm=False)
    return tier.stats()


def forget(engine: object) -> dict:
    """Only what is behind the tier is left."""
    return {"forgotten": bool(engine.reset_prefix_cache(reset_connector=True))}


def main() -> None:
    """Serves lines until there are none."""
    tier_config = json.loads(sys.argv[2])
    extra = json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}
    tiers = remember_tiers()
    engine = make_engine(sys.argv[1], transfer_config(tier_config, extra))
    (tier,) = tiers
    ready = {
        "ready": True,
        "namespace": tier._client.namespace,
        "fingerprint": tier.fingerprint.shared,
    }
    print("RESULT " + json.dumps(ready), flush=True)
    orders = {
        "generate": lambda: generate(engine),
        "settle": lambda: settle(engine, tier),
        "forget": lambda: forget(engine),
        "stats": tier.stats,
    }
    for line in sys.stdin:
        print("RESULT " + json.dumps(orders[json.loads(line)["do"]]()), flush=True)


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
