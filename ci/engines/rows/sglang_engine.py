"""memkv as the storage of SGLang's hierarchical cache."""

from harness import sglang
from harness.direct import Story

TITLE = "SGLang -> memkv; restart, flipped bytes, stall, kill, return; detach, attach, clear"
ENVIRONMENT = "sg"
SECONDS = 900


def run(row):
    """The whole story."""
    story = Story(row, row.server(), sglang.PAGE_TOKENS)
    engine = story.ready(sglang.launch(row, story.memkv, "sglang-1"))
    story.begin(engine)
    engine.kill()
    engine = story.ready(sglang.launch(row, story.memkv, "sglang-2"))
    story.restarted(engine)
    story.troubles(engine)
    detached_and_attached(row, story, engine)
    engine.kill()


def detached_and_attached(row, story, engine):
    """Storage that is taken away is not asked, and is the same when it is back."""
    row.must("detached", engine.ask({"do": "detach"}, 60)["success"])
    story.again(engine, "without storage", 0)
    row.must("attached", engine.ask({"do": "attach"}, 60)["success"])
    story.again(engine, "with storage again", story.whole)
    row.must("cleared", engine.ask({"do": "clear"}, 60)["success"])
    story.again(engine, "with storage that was cleared", 0)
