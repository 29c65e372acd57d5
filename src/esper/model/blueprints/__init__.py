"""What seeds are made from. Importing this package registers the blueprints that come with it."""

from esper.model.blueprints import cnn as cnn  # for its registrations
from esper.model.blueprints.registry import blueprint, blueprint_names, build

__all__ = ["blueprint", "blueprint_names", "build"]
