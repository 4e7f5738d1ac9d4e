"""The training engine: configuration, one readable loop, exact resume, evaluation.

Import from the modules: ``mixaug.engine.config`` (compose, validate), ``mixaug.engine.run`` (the run folder),
``mixaug.engine.train`` (the loop), ``mixaug.engine.evaluate``. Needs the ``train`` extra.
"""
