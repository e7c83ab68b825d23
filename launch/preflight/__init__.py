"""Whether the nodes of a job are fit to train on: measured before a stage, with the slow or sick one named.

Every check measures and returns figures, facts and troubles (`node.Report`); what they mean is judged elsewhere
(`judging`), from all nodes together, so that no judgement needs a machine to be sick.
"""
