"""What rows of the tier of engines stand on: environments, processes that end, a memkv server."""
