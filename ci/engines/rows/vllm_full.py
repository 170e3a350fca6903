"""vLLM with a tier that takes nothing."""

from harness import direct, vllm

TITLE = "vLLM -> memkv tier on a drive that is full: computed, the same answer, said once"
ENVIRONMENT = "vcpu"
SECONDS = 420
FULL_ONLY = True


def run(row):
    """The drive is filled once the namespace is bound."""
    small = direct.small_server(row)
    story = direct.Story(row, small, vllm.CHUNK_TOKENS)
    engine = story.ready(vllm.launch(row, small, "vllm"))
    direct.full_drive(row, small, engine, vllm.CHUNK_TOKENS)
    vllm.kill(engine)
