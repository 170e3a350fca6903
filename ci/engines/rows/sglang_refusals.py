"""SGLang in a namespace that is another deployment's, and on a drive that is full."""

from harness import direct, sglang

TITLE = "SGLang -> memkv; dtype, page, layout, weights, model changed: refused; full drive"
ENVIRONMENT = "sg"
SECONDS = 900
FULL_ONLY = True

# What is changed, the field that is named for it, and how it is changed.
CHANGES = [
    ("data type", "dtype", {"env": {"DTYPE": "float16"}}),
    ("page", "page_size", {"env": {"PAGE": "32"}}),
    ("layout", "layout", {"layout": "layer_first"}),
    ("model", "model", {"model": "another"}),
]


def run(row):
    """One thing after the other, then no name, then no room."""
    story = direct.Story(row, row.server(), sglang.PAGE_TOKENS)
    ours = {"namespace": "ours", "model": "tiny"}
    engine = story.ready(sglang.launch(row, story.memkv, "sglang-1", **ours))
    story.begin(engine)
    engine.kill()
    other = direct.other_weights(row)
    for what, field, change in [*CHANGES, ("weights", "weights", {"folder": other})]:
        engine = sglang.launch(row, story.memkv, f"sglang-{what.split()[0]}", **{**ours, **change})
        direct.refused(row, what, field, engine)
        engine.kill()

    engine = story.ready(sglang.launch(row, story.memkv, "sglang-2", folder=other, model="tiny"))
    told = engine.ask({"do": "generate"}, 120)
    row.check("without a name nothing of another is found", told["cached"] == 0, told)
    engine.kill()

    small = direct.small_server(row)
    engine = story.ready(sglang.launch(row, small, "sglang-3"))
    direct.full_drive(row, small, engine, sglang.PAGE_TOKENS)
    engine.kill()
