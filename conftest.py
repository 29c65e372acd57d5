"""For all of tests/, examples/ and docs/."""

# Tests of the plugin run pytest inside pytest.
pytest_plugins = ["pytester"]
