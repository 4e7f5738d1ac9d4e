"""What a model does beside being right: measures, and the suite that takes them of finished runs.

The measures are functions of tensors that know nothing of runs: ``calibration``, ``outliers``, ``attack``,
``occlusion``, ``corruption`` and ``geometry``, one module per family. ``landscape`` has what two pictures show.
``suite`` runs the families over a run folder. Needs the ``train`` extra.
"""
