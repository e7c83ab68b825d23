"""What a step's time goes into, by name."""

FORWARD, BACKWARD, OPTIMIZER, COMMUNICATION, OTHER = "forward", "backward", "optimizer", "communication", "other"
ENGINE_PHASES = (FORWARD, BACKWARD, OPTIMIZER, COMMUNICATION, OTHER)
DATA = "data"
PHASES = (DATA, *ENGINE_PHASES)  # of a step's seconds, which they add up to
# What goes on between the steps that are learned from; an incident is a step that was not.
CHECKPOINT, VALIDATION, INCIDENT = "checkpoint", "validation", "incident"
