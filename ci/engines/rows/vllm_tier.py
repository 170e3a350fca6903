"""memkv as a tier of vLLM's own offloading."""

from harness import vllm
from harness.direct import Story

TITLE = "vLLM -> memkv tier; restart, flipped bytes, stall, kill, return"
ENVIRONMENT = "vcpu"
SECONDS = 420


def run(row):
    """The whole story."""
    story = Story(row, row.server(), vllm.CHUNK_TOKENS)
    engine = story.ready(vllm.launch(row, story.memkv, "vllm-1"))
    story.begin(engine)
    vllm.kill(engine)
    engine = story.ready(vllm.launch(row, story.memkv, "vllm-2"))
    story.restarted(engine)
    told = engine.ask({"do": "stats"}, 30)
    one = told["lookups"]["questions"] == 1 and told["load"]["jobs"] == 1
    row.check("one look-up and one load for the prompt", one, told)
    story.troubles(engine)
    vllm.kill(engine)
