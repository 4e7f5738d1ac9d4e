"""mixaug: more than forty published ways to mix training samples, as drop-in policies for PyTorch.

>>> import mixaug, torch
>>> policy = mixaug.create("cutmix", alpha=1.0)
>>> mixed = policy(torch.rand(8, 3, 32, 32), torch.arange(8))
>>> mixed.inputs.shape, mixed.targets(num_classes=10).shape
(torch.Size([8, 3, 32, 32]), torch.Size([8, 10]))
"""

from typing import TYPE_CHECKING

from mixaug._version import __version__ as __version__

if TYPE_CHECKING:
    from mixaug._names import *  # noqa: F403
else:
    # Torch takes seconds to import: `import mixaug.cli` runs this file too, and `mixaug --help` should not wait for it.
    def __getattr__(name):
        """A public name, or a module of the package, imported when it is first asked for."""
        import importlib
        import importlib.util

        if name.startswith("__") and name != "__all__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        # Modules come first and alone: while one is imported, it may ask for another that it stands on.
        if importlib.util.find_spec(f"{__name__}.{name}") is not None:
            return importlib.import_module(f"{__name__}.{name}")
        names = importlib.import_module(f"{__name__}._names")
        globals().update({public: getattr(names, public) for public in names.__all__}, __all__=names.__all__)
        if name not in globals():
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return globals()[name]

    def __dir__():
        return sorted({*globals(), *__getattr__("__all__")})
