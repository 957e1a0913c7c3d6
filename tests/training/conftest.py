from tiny import dataset, learned, trained  # noqa: F401, fixtures
