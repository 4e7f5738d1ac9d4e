"""What mixing costs: policies and other libraries timed in turn, as multiples of a memory floor of the same run.

The floor of a batch is ``torch.lerp(a, b, 0.3, out=o)`` on tensors of its shape, dtype and layout: two reads and
one write. On uint8 images, which ``lerp`` does not take, it is ``o.copy_(a)``. docs/speed.md explains the tables.
"""
