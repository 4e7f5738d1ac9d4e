"""What a model does beside being right: measures, and the suite that takes them of finished runs.

The measures are functions of tensors that know nothing of runs: ``calibration``, ``outliers``, ``attack``,
``occlusion``, ``corruption`` and ``geometry``, one module per family. ``suite`` runs them over a run folder,
``figures`` draws what it found. Needs the ``train`` extra.
"""
