"""Fills a server: programs import it."""


def fill(server: str) -> int:
    """Takes all the room there is; how many values that took."""
    import memkv

    stored = 0
    with memkv.Client(server, namespace="fill") as client:
        for length in (1 << 20, 1 << 14):
            try:
                while client.put(f"fill/{stored}", bytes(length)):
                    stored += 1
            except memkv.Full:
                continue
    return stored
