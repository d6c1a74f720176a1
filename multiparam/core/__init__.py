"""What every framework's models have in common: slots, storages, names, ties, steps. It imports no framework.

Four laws, which the comments in these modules refer to:

1. The model is the truth, the table is a cache. A storage is a place in the native model, looked up, never a tensor
   remembered: users change native models after wrapping them.
2. A write lands, where the place is, or says why not: device, memory format and dtype stay as they were.
3. Evidence decides, and is named: a guess never contradicts a name, and numbers prove an inference.
4. The framework's own words: a path is the one that the framework and its checkpoints use.
"""
