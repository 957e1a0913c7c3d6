from tiny import dataset, trained  # noqa: F401, fixtures
