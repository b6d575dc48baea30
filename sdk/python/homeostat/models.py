"""The host's models. Needs `import homeostat:policy/models@0.1.0;` in world.wit and the
grant "models"."""

from wit_world.imports.models import GenerateOptions, Generated, Model, names, open

__all__ = ["GenerateOptions", "Generated", "Model", "names", "open"]
