"""What lists the policies is made of their files; a new policy is four files from a template.

Nothing here imports mixaug: files are read as text, so that the lists can be repaired when the package cannot be
imported.
"""
