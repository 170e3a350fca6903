"""vLLM's tier in a namespace that is another deployment's, and on a drive that is full."""

from harness import direct, vllm

TITLE = "vLLM -> memkv tier; dtype, chunk, weights, model, hash changed: refused; full drive"
ENVIRONMENT = "vcpu"
SECONDS = 600
FULL_ONLY = True

# What is changed, the fields that are named for it, and how it is changed.
CHANGES = [
    ("data type", "dtype", {"env": {"DTYPE": "float16"}}),
    ("chunk", "blocks_per_chunk, chunk_bytes", {"extra": {"block_size": 128}}),
    ("hash", "hash", {"env": {"HASH": "sha256_cbor"}}),
    ("model", "model", {"model": "another"}),
]


def run(row):
    """One thing after the other, then no name, then no room."""
    story = direct.Story(row, row.server(), vllm.CHUNK_TOKENS)
    ours = {"namespace": "ours", "model": "tiny"}
    engine = story.ready(vllm.launch(row, story.memkv, "vllm-1", **ours))
    story.begin(engine)
    vllm.kill(engine)
    other = direct.other_weights(row)
    for what, fields, change in [*CHANGES, ("weights", "weights", {"folder": other})]:
        engine = vllm.launch(row, story.memkv, f"vllm-{what.split()[0]}", **{**ours, **change})
        direct.refused(row, what, fields, engine)

    engine = story.ready(vllm.launch(row, story.memkv, "vllm-2", folder=other, model="tiny"))
    told = engine.ask({"do": "generate"}, 120)
    row.check("without a name nothing of another is found", told["cached"] == 0, told)
    vllm.kill(engine)

    small = direct.small_server(row)
    engine = story.ready(vllm.launch(row, small, "vllm-3"))
    direct.full_drive(row, small, engine, vllm.CHUNK_TOKENS)
    vllm.kill(engine)
