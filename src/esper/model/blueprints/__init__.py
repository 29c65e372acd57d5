"""What seeds are made from. Importing this package registers the blueprints that come with it."""

from esper.model.blueprints import cnn as cnn  # for its registrations
from esper.model.blueprints import transformer as transformer
from esper.model.blueprints.registry import blueprint, blueprint_names, build, parameter_count

__all__ = ["blueprint", "blueprint_names", "build", "parameter_count"]
